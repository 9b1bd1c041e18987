//! Paths that carry less than others, and less than they did.

use std::time::Duration;

use meshd::control::output::Event;
use meshd::wire::size_probe::FLOOR;

use crate::mesh::Mesh;
use crate::net::Net;
use crate::paths::{cut_off, ends, two_homed};
use crate::scenarios::{formed, secs};

/// The path MTU from one host to another as that host has found it.
fn size(mesh: &Mesh, from: usize, to: usize) -> u16 {
    let node = mesh.node(to);
    mesh.hosts[from].engine.as_ref().and_then(|engine| engine.path_mtu(node)).expect("a running host and its peer")
}

/// Runs with a large packet from one host to another every half second, until `done`.
fn run_with_traffic(mesh: &mut Mesh, ends: (usize, usize), limit: Duration, done: impl Fn(&Mesh) -> bool) -> bool {
    let (node, end) = (mesh.node(ends.1), mesh.now + limit);
    while mesh.now < end {
        let now = mesh.now;
        mesh.command(ends.0, |engine| engine.handle_large(node, now));
        if mesh.run_until(Duration::from_millis(500), &done) {
            return true;
        }
    }
    false
}

/// Every change of a path MTU: at which host, from what to what.
fn changes(mesh: &Mesh) -> Vec<(usize, u16, u16)> {
    let of = |(host, events): (usize, &[(meshd::time::Instant, Event)])| -> Vec<(usize, u16, u16)> {
        let change = |(_, event): &(_, Event)| match event {
            Event::PathMtu { from, to, .. } => Some((host, *from, *to)),
            _ => None,
        };
        events.iter().filter_map(change).collect()
    };
    mesh.hosts.iter().map(|host| host.events.as_slice()).enumerate().flat_map(of).collect()
}

#[test]
fn a_black_hole_one_way_is_found_there_and_nowhere_else() {
    let mut worst = Duration::ZERO;
    for seed in 0..20 {
        let mut mesh = formed(seed, 4);
        mesh.run(secs(5) + Duration::from_millis(50 * seed));
        assert_eq!(changes(&mesh), [], "seed {seed}");
        mesh.net.limits.insert((1, 2), 1_344);
        let began = mesh.now;
        assert!(run_with_traffic(&mut mesh, (1, 2), secs(60), |mesh| size(mesh, 1, 2) == FLOOR), "seed {seed}");
        worst = worst.max(mesh.now.saturating_since(began));
        mesh.run(secs(60));
        assert_eq!(changes(&mesh), [(1, 1_420, FLOOR), (1, FLOOR, 1_344)], "seed {seed}");
        assert_eq!((size(&mesh, 2, 1), mesh.connected(&[0, 1, 2, 3])), (1_420, true), "seed {seed}");
    }
    println!("black hole one way under traffic, 20 meshes: found within {worst:?}");
    assert!(worst <= secs(3), "{worst:?}");
}

#[test]
fn an_idle_mesh_finds_it_too_and_grows_back() {
    let mut mesh = formed(3, 3);
    mesh.run(secs(30));
    mesh.net.limits.extend([((0, 1), 1_300), ((1, 0), 1_300)]);
    let began = mesh.now;
    assert!(mesh.run_until(secs(90), |mesh| (size(mesh, 0, 1), size(mesh, 1, 0)) == (1_296, 1_296)));
    println!("black hole both ways, idle: found and sized after {:?}", mesh.now.saturating_since(began));
    mesh.net.limits.clear();
    let began = mesh.now;
    assert!(mesh.run_until(secs(620), |mesh| (size(mesh, 0, 1), size(mesh, 1, 0)) == (1_420, 1_420)));
    println!("grew back after {:?}", mesh.now.saturating_since(began));
}

#[test]
fn loss_changes_no_size_in_a_day() {
    let mut mesh = formed(4, 3);
    mesh.net.loss = 50;
    for _ in 0..6 {
        run_with_traffic(&mut mesh, (0, 1), secs(1_200), |_| false);
        mesh.run(secs(3 * 3_600 + 2_400));
    }
    assert_eq!(changes(&mesh), [], "5 % loss each way for a day, traffic for two hours of it");
}

#[test]
fn a_host_that_comes_back_finds_its_paths_again() {
    let mut mesh = formed(5, 3);
    mesh.net.limits.insert((0, 1), 1_344);
    mesh.kill(0);
    mesh.run(secs(20));
    mesh.start(0);
    assert!(mesh.run_until(secs(30), |mesh| mesh.connected(&[0, 1, 2]) && size(mesh, 0, 1) == 1_344));
    assert_eq!((size(&mesh, 1, 0), size(&mesh, 0, 2)), (1_420, 1_420));
}

#[test]
fn a_path_that_is_taken_again_carries_at_once_what_it_did() {
    let all = |host| [0, 1].map(|number| Net::other_endpoint(host, number).ip());
    for seed in 0..20 {
        let mut mesh = two_homed(seed);
        let small = ends(&mesh, 0);
        mesh.net.path_limits.insert(small, 1_344);
        assert!(mesh.run_until(secs(90), |mesh| size(mesh, 0, 1) == 1_344), "seed {seed}");
        cut_off(&mut mesh, small.1);
        assert!(mesh.run_until(secs(10), |mesh| ends(mesh, 0).1 != small.1), "seed {seed}: {}", mesh.describe());
        assert!(mesh.run_until(secs(10), |mesh| size(mesh, 0, 1) == 1_420), "seed {seed}: the other one carries more");
        let pairs = all(0).into_iter().flat_map(|local| all(1).map(|remote| (local, remote)));
        let others = pairs.filter(|pair| *pair != small);
        mesh.net.path_cuts = others.flat_map(|(local, remote)| [(local, remote), (remote, local)]).collect();
        assert!(mesh.run_until(secs(10), |mesh| ends(mesh, 0) == small), "seed {seed}: {}", mesh.describe());
        assert_eq!(size(&mesh, 0, 1), 1_344, "seed {seed}: with the switch, before any probe");
        mesh.run(secs(60));
        assert_eq!((ends(&mesh, 0), size(&mesh, 0, 1)), (small, 1_344), "seed {seed}");
    }
}

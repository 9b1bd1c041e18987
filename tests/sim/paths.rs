//! Links with several paths: which one packets take when one of them dies, changes or gets slower.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use meshd::control::output::Event;
use meshd::control::path::Path;
use meshd::control::probe::LinkState;
use meshd::time::Instant;
use rand_core::RngCore;

use crate::mesh::Mesh;
use crate::net::Net;
use crate::scenarios::secs;

/// Two hosts of two addresses each, linked, at a moment of the seed's choosing.
pub fn two_homed(seed: u64) -> Mesh {
    let mut mesh = Mesh::new(seed, 2);
    mesh.hosts.iter_mut().for_each(|host| host.addresses = 2);
    mesh.start(0);
    mesh.start(1);
    assert!(mesh.run_until(secs(30), |mesh| mesh.connected(&[0, 1])), "seed {seed}: {}", mesh.describe());
    let pause = Duration::from_millis(20_000 + u64::from(mesh.net.rng.next_u32() % 2_000));
    mesh.run(pause);
    mesh
}

/// The path that a host's packets to the other take.
fn used(mesh: &Mesh, host: usize) -> Path {
    let view = mesh.hosts[host].engine.as_ref().unwrap().paths(mesh.node(1 - host), mesh.now).unwrap();
    view.paths.iter().find(|view| view.in_use).expect("a linked host uses a path").path
}

/// The two ends of what a host sends.
pub fn ends(mesh: &Mesh, host: usize) -> (IpAddr, IpAddr) {
    let path = used(mesh, host);
    let remote = path.remote().expect("nobody relays here");
    (path.local().unwrap_or(Net::endpoint(host).ip()), remote.ip())
}

/// Whether packets between the two pass, in both directions.
fn passes(mesh: &Mesh) -> bool {
    (0..2).all(|host| {
        let ends = ends(mesh, host);
        !mesh.net.path_cuts.contains(&ends) && !mesh.net.gone.contains(&ends.0) && !mesh.net.gone.contains(&ends.1)
    })
}

/// How often a host called a link down since the start.
fn downs(mesh: &Mesh) -> usize {
    let down = |event: &Event| matches!(event, Event::Link { to: LinkState::Down, .. });
    mesh.hosts.iter().flat_map(|host| &host.events).filter(|(_, event)| down(event)).count()
}

fn changes(mesh: &Mesh) -> usize {
    let change = |event: &Event| matches!(event, Event::PathChanged { .. });
    mesh.hosts.iter().flat_map(|host| &host.events).filter(|(_, event)| change(event)).count()
}

/// Cuts an address off, in both directions.
pub fn cut_off(mesh: &mut Mesh, address: IpAddr) {
    let all: Vec<IpAddr> =
        (0..2).flat_map(|host| [0, 1].map(|number| Net::other_endpoint(host, number).ip())).collect();
    mesh.net.path_cuts.extend(all.iter().flat_map(|other| [(address, *other), (*other, address)]));
}

/// The median and the 99th percentile.
pub fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[(times.len() * 99).div_ceil(100) - 1])
}

#[test]
fn a_path_that_dies_is_left_before_the_link_is_called_down() {
    let mut gaps = Vec::new();
    for seed in 0..300 {
        let mut mesh = two_homed(seed);
        let (before, from) = (downs(&mesh), mesh.now);
        // The address that host 0 sends to.
        let victim = ends(&mesh, 0).1;
        cut_off(&mut mesh, victim);
        assert!(mesh.run_until(secs(10), passes), "seed {seed}: {}", mesh.describe());
        gaps.push(mesh.now.saturating_since(from));
        mesh.run(secs(5));
        assert!(passes(&mesh) && mesh.connected(&[0, 1]), "seed {seed}: it lasts");
        assert_eq!(downs(&mesh), before, "seed {seed}");
    }
    let (median, most) = percentiles(gaps);
    println!("a path died silently, another exists: both directions pass again after {median:?} (p50), {most:?} (p99)");
    assert!(median <= Duration::from_millis(1_000) && most <= Duration::from_millis(1_500));
}

#[test]
fn one_direction_that_dies_is_noticed_by_both_ends() {
    for seed in 300..400 {
        let mut mesh = two_homed(seed);
        let (from, to) = ends(&mesh, 1);
        mesh.net.path_cuts.insert((from, to));
        assert!(mesh.run_until(secs(10), passes), "seed {seed}: {}", mesh.describe());
        mesh.run(secs(30));
        assert!(passes(&mesh) && mesh.connected(&[0, 1]), "seed {seed}");
    }
}

#[test]
fn a_host_whose_address_changes_is_found_at_once() {
    let mut gaps = Vec::new();
    for seed in 400..600 {
        let mut mesh = Mesh::new(seed, 2);
        mesh.start(0);
        mesh.start(1);
        assert!(mesh.run_until(secs(30), |mesh| mesh.connected(&[0, 1])), "seed {seed}");
        mesh.run(secs(3 + seed % 7));
        let mover = (seed % 2) as usize;
        let new = Net::other_endpoint(mover, 1);
        mesh.net.gone.insert(Net::endpoint(mover).ip());
        mesh.hosts[mover].moved_to = Some(new.ip());
        let (from, wall) = (mesh.now, mesh.wall(mover));
        let engine = mesh.hosts[mover].engine.as_mut().unwrap();
        engine.handle_underlay(vec![new.ip()], vec![new], from, wall);
        mesh.drain(mover);
        let arrived = |mesh: &Mesh| used(mesh, 1 - mover).remote() == Some(new);
        assert!(mesh.run_until(secs(10), arrived), "seed {seed}: {}", mesh.describe());
        gaps.push(mesh.now.saturating_since(from));
        mesh.run(secs(5));
        assert!(mesh.connected(&[0, 1]) && arrived(&mesh), "seed {seed}");
        assert_eq!(downs(&mesh), 0, "seed {seed}");
    }
    let (median, most) = percentiles(gaps);
    println!("own address changed, seen by this host: the peer sends there after {median:?} (p50), {most:?} (p99)");
    // A packet from the new address, a look there and its answer: one and a half round trips of at most 12 ms.
    assert!(median <= Duration::from_millis(18) && most <= Duration::from_millis(250 + 12));
}

#[test]
fn a_host_whose_address_changes_upstream_is_found_by_its_next_packet() {
    let mut gaps = Vec::new();
    for seed in 600..800 {
        let mut mesh = Mesh::new(seed, 2);
        mesh.start(0);
        mesh.start(1);
        assert!(mesh.run_until(secs(30), |mesh| mesh.connected(&[0, 1])), "seed {seed}");
        mesh.run(Duration::from_millis(3_000 + seed * 37 % 2_000));
        let mover = (seed % 2) as usize;
        let (old, new) = (Net::endpoint(mover), Net::other_endpoint(mover, 3));
        mesh.net.translated.insert(old.ip(), new.ip());
        let from = mesh.now;
        let arrived = |mesh: &Mesh| used(mesh, 1 - mover).remote() == Some(new);
        assert!(mesh.run_until(secs(10), arrived), "seed {seed}: {}", mesh.describe());
        gaps.push(mesh.now.saturating_since(from));
        mesh.run(secs(5));
        assert!(mesh.connected(&[0, 1]), "seed {seed}");
        assert_eq!(downs(&mesh), 0, "seed {seed}");
    }
    let (median, most) = percentiles(gaps);
    println!("own address changed upstream, unseen: the peer sends there after {median:?} (p50), {most:?} (p99)");
    assert!(most <= Duration::from_millis(1_600));
}

#[test]
fn a_much_slower_path_is_left_once_and_oscillation_is_damped() {
    let mut mesh = two_homed(900);
    let slow = |mesh: &mut Mesh, host: usize| {
        let (from, to) = ends(mesh, host);
        mesh.net.detours.clear();
        for pair in [(from, to), (to, from)] {
            mesh.net.detours.insert(pair, Duration::from_millis(30));
        }
    };
    slow(&mut mesh, 0);
    let before = changes(&mesh);
    mesh.run(secs(3600));
    let first = changes(&mesh) - before;
    assert!((1..=2).contains(&first), "each end changes once: {first}");
    assert!(!mesh.net.detours.contains_key(&ends(&mesh, 0)));
    // Whatever host 0 uses becomes slow every five minutes, for six hours.
    let before = changes(&mesh);
    for _ in 0..72 {
        slow(&mut mesh, 0);
        mesh.run(secs(300));
    }
    let most = changes(&mesh) - before;
    println!("a path that gets slow every five minutes for six hours: {most} changes at both ends");
    assert!(most <= 2 * 40, "{most}");
    assert_eq!(downs(&mesh), 0);
}

#[test]
fn loss_on_every_path_changes_little() {
    for (seed, loss) in [(910, 50), (911, 100), (912, 200)] {
        let mut mesh = two_homed(seed);
        mesh.net.loss = loss;
        mesh.run(secs(60));
        let (before, down) = (changes(&mesh), downs(&mesh));
        mesh.run(secs(600));
        println!("{}% loss for ten minutes: {} path changes", loss / 10, changes(&mesh) - before);
        assert!(loss > 100 || downs(&mesh) == down, "no false DOWN at {loss} in 1000");
        assert!(changes(&mesh) - before <= 12, "{}", changes(&mesh) - before);
    }
}

#[test]
fn whatever_is_cut_and_healed_a_way_that_is_there_is_found() {
    for seed in 1_000..1_400u64 {
        let mut mesh = two_homed(seed);
        let all: Vec<IpAddr> =
            (0..2).flat_map(|host| [0, 1].map(|number| Net::other_endpoint(host, number).ip())).collect();
        for _ in 0..6 {
            // Any of the eight directed pairs, but at least one pair of addresses works both ways.
            let mut cuts = BTreeSet::new();
            for near in &all[..2] {
                for far in &all[2..] {
                    for pair in [(*near, *far), (*far, *near)] {
                        if mesh.net.rng.next_u32().is_multiple_of(3) {
                            cuts.insert(pair);
                        }
                    }
                }
            }
            let chosen = mesh.net.rng.next_u32() as usize;
            let spared = (all[chosen % 2], all[2 + chosen / 2 % 2]);
            cuts.remove(&spared);
            cuts.remove(&(spared.1, spared.0));
            mesh.net.path_cuts = cuts;
            let from: Instant = mesh.now;
            let found = mesh.run_until(secs(20), |mesh| passes(mesh) && mesh.connected(&[0, 1]));
            assert!(found, "seed {seed} from {from:?}: {}", mesh.describe());
            let pause = Duration::from_millis(u64::from(mesh.net.rng.next_u32() % 20_000));
            mesh.run(pause);
            assert!(passes(&mesh), "seed {seed}: what works is kept\n{}", mesh.describe());
        }
    }
}

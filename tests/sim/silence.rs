//! Who falls silent, and who says so.

use std::time::Duration;

use meshd::control::output::Event;
use meshd::time::Instant;

use crate::mesh::Mesh;
use crate::scenarios::formed;

/// What a host was told of a silence since an instant: who, how many were asked, how many hear it, who tells.
fn judged(mesh: &Mesh, host: usize, since: Instant) -> Vec<(usize, usize, usize, usize)> {
    let place = |node| (0..mesh.hosts.len()).find(|host| mesh.node(*host) == node).expect("a host of this mesh");
    let events = mesh.hosts[host].events.iter().filter(|(at, _)| *at >= since);
    events
        .filter_map(|(_, event)| match event {
            Event::Judged { node, verdict, reporter } => {
                Some((place(*node), verdict.asked, verdict.hearing, place(*reporter)))
            }
            _ => None,
        })
        .collect()
}

fn uplinks(mesh: &Mesh, host: usize) -> Vec<bool> {
    let events = mesh.hosts[host].events.iter();
    events.filter_map(|(_, event)| if let Event::Uplink { lost, .. } = event { Some(*lost) } else { None }).collect()
}

fn cut_off(mesh: &mut Mesh, host: usize) {
    for other in 0..mesh.hosts.len() {
        mesh.net.cuts.extend([(host, other), (other, host)]);
    }
}

#[test]
fn a_dead_node_is_told_once_and_not_by_everybody() {
    for seed in 300..310 {
        let mut mesh = formed(seed, 12);
        mesh.run(Duration::from_secs(10));
        let (dead, since) = (seed as usize % 12, mesh.now);
        mesh.kill(dead);
        mesh.run(Duration::from_secs(10));
        let mut tell = 0;
        for host in (0..12).filter(|host| *host != dead) {
            let judged = judged(&mesh, host, since);
            let [(node, asked, hearing, reporter)] = judged[..] else { panic!("seed {seed}, host {host}: {judged:?}") };
            assert_eq!((node, asked, hearing), (dead, 5, 0), "seed {seed}, host {host}");
            tell += usize::from(reporter == host);
            assert!(uplinks(&mesh, host).is_empty());
        }
        assert_eq!(tell, 1, "seed {seed}");
    }
    println!("10 dead nodes of 12: each told by one of the 11 others, unreachable from 5 of 5 asked");
}

#[test]
fn a_broken_link_is_no_dead_node() {
    for seed in 320..330 {
        let mut mesh = formed(seed, 12);
        mesh.run(Duration::from_secs(10));
        let since = mesh.now;
        mesh.net.cuts.extend([(2, 7), (7, 2)]);
        mesh.run(Duration::from_secs(10));
        for (host, peer) in [(2, 7), (7, 2)] {
            let judged = judged(&mesh, host, since);
            assert!(matches!(judged[..], [(node, 5, 5, _)] if node == peer), "seed {seed}, host {host}: {judged:?}");
        }
        let others = (0..12).filter(|host| ![2, 7].contains(host));
        assert!(others.into_iter().all(|host| judged(&mesh, host, since).is_empty()), "seed {seed}");
    }
}

#[test]
fn a_node_without_uplink_knows_that_it_is_itself() {
    let mut mesh = formed(340, 12);
    mesh.run(Duration::from_secs(10));
    let since = mesh.now;
    cut_off(&mut mesh, 4);
    mesh.run(Duration::from_secs(20));
    assert_eq!(uplinks(&mesh, 4), [true], "one event, not eleven");
    assert_eq!(judged(&mesh, 4, since), [], "it has nobody to ask");
    let tell =
        (0..12).filter(|host| judged(&mesh, *host, since).iter().any(|(node, _, _, by)| (*node, *by) == (4, *host)));
    assert_eq!(tell.count(), 1, "and the others tell it once");
    mesh.net.cuts.clear();
    mesh.run(Duration::from_secs(20));
    assert_eq!(uplinks(&mesh, 4), [true, false]);
}

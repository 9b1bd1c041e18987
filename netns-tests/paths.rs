//! Links with more than one path, and hosts that move: connections live on.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use meshd::api::{PathKind, PathList, PeerPaths, PeerState};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::mesh::peer_state;
use crate::lab::wan::WanPort;
use crate::lab::{Error, Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "paths::a_path_that_dies_is_left_for_another", needs: &[], run: dead_path },
    Case { name: "paths::a_link_whose_path_dies_goes_by_a_relay", needs: &[], run: relayed },
    Case { name: "paths::a_host_whose_address_changes_is_followed", needs: &[], run: changed_address },
];

/// ```text
///     a===b           two paths, over IPv4 and over IPv6; the one in use dies without a word
/// ```
fn dead_path(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.admit_offline(all[1], scene.underlay[1])?;
    for (number, host) in all.iter().enumerate() {
        mesh.change_config(host, |config| {
            let port = config.underlay.endpoints[0].port();
            config.underlay.endpoints.push(SocketAddr::new(scene.v6[number].into(), port));
        })?;
    }
    mesh.start(&all)?;
    mesh.wait_until_all_up(&all, LONG)?;
    let both = |paths: &PeerPaths| paths.paths.len() == 2 && paths.paths.iter().all(|path| path.answered > 0);
    for (host, other) in [(all[0], all[1]), (all[1], all[0])] {
        wait_for_paths(mesh, host, other, "both paths answered", both)?;
    }
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before")?;
    let used = used(&paths(mesh, all[0], all[1])?);
    for way in [scene.wan.way("a", "b"), scene.wan.way("b", "a")] {
        way.filter(move |packet| packet.destination.is_ipv4() == used.is_ipv4());
    }
    let died = Instant::now();
    flow.exchange(b"by the other one")?;
    println!("    the path in use died: the connection goes on by the other one after {:.2?}", died.elapsed());
    for (host, other) in [(all[0], all[1]), (all[1], all[0])] {
        let moved =
            |paths: &PeerPaths| paths.paths.iter().any(|path| path.in_use && path.endpoint.is_ipv4() != used.is_ipv4());
        wait_for_paths(mesh, host, other, "the other path in use", moved)?;
        mesh.wait_until_seen(&[host], other, PeerState::Up, LONG)?;
        assert_eq!(peer_state(&mesh.status(host)?, other.name()), Some(PeerState::Up));
    }
    flow.exchange(b"after")
}

/// ```text
///     a-x-b           nothing passes between a and b; both reach c and d, which may relay, and e, which may not
///      \\ //
///      c d  e
/// ```
fn relayed(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c", "d", "e"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    for (host, underlay) in all.iter().zip(&scene.underlay).skip(1) {
        let grant: &[&str] = if ["c", "d"].contains(&host.name()) { &["--relay"] } else { &[] };
        mesh.admit_offline_with(host, *underlay, grant)?;
    }
    mesh.start(&all)?;
    mesh.wait_until_all_up(&all, LONG)?;
    let (a, b) = (all[0], all[1]);
    let mut flow = scene.flow(0, 1)?;
    for round in 1..=3 {
        flow.exchange(b"directly")?;
        let cut = Instant::now();
        scene.wan.link("a", "b").blackhole(true);
        // Full segments, of which a relayed link carries less: what is sent again there must fit.
        flow.exchange(&[7; 8_000])?;
        println!("    round {round}: the direct path died: the connection goes on after {:.2?}", cut.elapsed());
        // More than the packets of a link without a relay would carry.
        flow.exchange(&vec![7; 64 << 10])?;
        for (host, other) in [(a, b), (b, a)] {
            wait_for_paths(mesh, host, other, "a relay in use", |paths| via(paths).is_some())?;
        }
        scene.check_every_pair(&[a, b])?;
        scene.wan.link("a", "b").blackhole(false);
        for (host, other) in [(a, b), (b, a)] {
            wait_for_paths(mesh, host, other, "the direct path in use", |paths| via(paths).is_none())?;
        }
        println!("    round {round}: {:.0?} later it is taken again", cut.elapsed());
    }
    scene.wan.link("a", "b").blackhole(true);
    flow.exchange(b"by a relay again")?;
    let warm = |paths: &PeerPaths| {
        via(paths).is_some()
            && paths.paths.iter().filter(|path| path.kind == PathKind::Relay && path.answered > 0).count() == 2
    };
    wait_for_paths(mesh, a, b, "two relays that answer", warm)?;
    wait_for_paths(mesh, b, a, "two relays that answer", warm)?;
    let first = via(&paths(mesh, a, b)?).expect("waited for");
    let shown = mesh.ctl(a).args(["status"]).check()?;
    assert!(shown.contains(&format!("via {first}")), "{shown}");
    let relay = all.iter().find(|host| host.name() == first).expect("a relay is a host");
    let other = if first == "c" { "d" } else { "c" };
    mesh.kill(relay)?;
    let died = Instant::now();
    flow.exchange(b"by the other relay")?;
    println!("    the relay died: the connection goes on by the other one after {:.2?}", died.elapsed());
    for (host, end) in [(a, b), (b, a)] {
        wait_for_paths(mesh, host, end, "the other relay in use", |paths| via(paths).as_deref() == Some(other))?;
    }
    // The last relay is taken out of the mesh while it is in use. The one host left may not relay, so the link is down.
    let last = all.iter().find(|host| host.name() == other).expect("a relay is a host");
    mesh.ctl(a).args(["revoke", last.name(), "--yes"]).check()?;
    mesh.wait_until_seen(&[a], b, PeerState::Down, LONG)?;
    assert_ne!(via(&paths(mesh, a, b)?).as_deref(), Some(other));
    scene.wan.link("a", "b").blackhole(false);
    flow.exchange(b"directly again")
}

/// The relay in use.
fn via(paths: &PeerPaths) -> Option<String> {
    paths.paths.iter().find(|path| path.in_use)?.via.clone()
}

/// ```text
///     a---b           b's address is replaced by another while a and b talk, and is gone
/// ```
fn changed_address(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before")?;
    let (old, new) = (IpAddr::V4(scene.underlay[1]), IpAddr::from([198, 18, 200, 7]));
    let port = WanPort { name: "b".to_owned(), dev: "eth0".to_owned(), v4: scene.underlay[1], v6: scene.v6[1] };
    scene.wan.add_address(all[1], &port, new)?;
    scene.wan.remove_address(all[1], &port, old)?;
    let moved = Instant::now();
    flow.exchange(b"from the new address")?;
    println!("    the address of a host changed: its connection goes on after {:.0?}", moved.elapsed());
    let arrived = |paths: &PeerPaths| paths.paths.iter().any(|path| path.in_use && path.endpoint.ip() == new);
    wait_for_paths(mesh, all[0], all[1], "the new address in use", arrived)?;
    flow.exchange(b"after")?;
    scene.check_every_pair(&all)
}

/// What a host says of the paths to another.
fn paths(mesh: &Mesh, host: &Host, peer: &Host) -> Result<PeerPaths> {
    let told = mesh.ctl(host).args(["--json", "paths", peer.name()]).check()?;
    let list: PathList = serde_json::from_str(&told).context(format_args!("the paths of {}: {told}", host.name()))?;
    list.peers.into_iter().next().ok_or_else(|| Error::failed(format!("{} knows no {}", host.name(), peer.name())))
}

fn used(paths: &PeerPaths) -> SocketAddr {
    paths.paths.iter().find(|path| path.in_use).expect("a link that is up uses a path").endpoint
}

/// Looks at the paths until `look` says yes.
fn wait_for_paths(mesh: &Mesh, host: &Host, peer: &Host, what: &str, look: impl Fn(&PeerPaths) -> bool) -> Result<()> {
    wait(format_args!("{} shows {what}", host.name()), LONG, || {
        let paths = paths(mesh, host, peer)?;
        Ok(if look(&paths) { Look::Found(()) } else { Look::NotYet(format!("{paths:#?}")) })
    })
}

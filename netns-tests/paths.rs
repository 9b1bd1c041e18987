//! Links with more than one path, and hosts that move: connections live on.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use meshd::api::{PathList, PeerPaths, PeerState};

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

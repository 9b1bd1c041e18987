//! Hybrid keys: agreed on by themselves, renewed under traffic, required where the configuration says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshd::api::{PqState, Status};
use meshd::config::PostQuantum;

use crate::harness::Case;
use crate::hold::Stream;
use crate::lab::{Error, Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "hybrid::keys_are_renewed_under_traffic_without_a_packet_lost", needs: &[], run: renewals }];

/// Between two packets of a stream: a thousand a second.
const PACE: Duration = Duration::from_millis(1);
/// Keys that take each other's place while packets are counted.
const RENEWALS: u64 = 4;

fn pq(status: &Status, peer: &Host) -> Option<(PqState, u64)> {
    let peer = status.peers.iter().find(|other| other.name == peer.name())?;
    peer.pq.map(|pq| (pq, peer.pq_keys))
}

fn is(status: &Status, peer: &Host, state: PqState) -> bool {
    pq(status, peer).is_some_and(|(pq, _)| pq == state)
}

/// ```text
///     a---b           a thousand packets a second each way, over several keys
///      \ /
///       c             refuses, then requires, and is killed
/// ```
fn renewals(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let [a, b, c] = all[..] else { return Err(Error::failed("three hosts")) };
    mesh.start(&all[..1])?;
    mesh.join(b, scene.underlay[1])?;
    mesh.join(c, scene.underlay[2])?;
    for host in [a, b] {
        mesh.change_config(host, |config| config.tunnel.pq_renewal = Duration::from_secs(2))?;
    }
    mesh.change_config(c, |config| config.tunnel.pq = PostQuantum::Off)?;
    mesh.ctl(a).arg("reload").check()?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    for (host, peer) in [(a, b), (b, a)] {
        mesh.wait_for(host, "a hybrid key", LONG, |status| is(status, peer, PqState::Hybrid))?;
    }
    mesh.wait_for(a, "no hybrid key with c", LONG, |status| is(status, c, PqState::Off))?;

    let over = Arc::new(AtomicBool::new(false));
    let start = |way| Stream::start(&scene, way, PACE, false, &over);
    let streams = [("a to b", start((0, 1))?), ("b to a", start((1, 0))?), ("c to a", start((2, 0))?)];
    streams.iter().try_for_each(|(_, stream)| stream.wait_for(10))?;
    let keys = |host, peer| mesh.status(host).map(|status| pq(&status, peer).map_or(0, |(_, keys)| keys));
    let from: Vec<u64> = streams.iter().map(|(_, stream)| stream.sent()).collect();
    for (host, peer) in [(a, b), (b, a)] {
        let before = keys(host, peer)?;
        mesh.wait_for(host, "keys in a row", LONG, |status| {
            pq(status, peer).is_some_and(|(_, keys)| keys >= before + RENEWALS)
        })?;
    }
    // The third takes part from now on, by a reload, and asks for it.
    mesh.change_config(c, |config| config.tunnel.pq = PostQuantum::Required)?;
    mesh.ctl(c).arg("reload").check()?;
    for (host, peer) in [(a, c), (c, a), (c, b)] {
        mesh.wait_for(host, "a hybrid key with c", LONG, |status| is(status, peer, PqState::Hybrid))?;
    }
    let mut lost = Vec::new();
    for (number, (name, stream)) in streams.iter().enumerate() {
        let to = stream.sent();
        stream.wait_for(to + 200)?;
        let (missing, silence) = stream.judge(from[number], to);
        println!("    {name}: {missing} of {} lost, longest silence {silence:.1?}", to - from[number]);
        lost.push(missing);
    }

    // Without its memory, a node that requires a key comes to one by itself, and packets pass again.
    mesh.kill(c)?;
    mesh.start(&[c])?;
    for (host, peer) in [(a, c), (c, a)] {
        mesh.wait_for(host, "a hybrid key after a crash", LONG, |status| is(status, peer, PqState::Hybrid))?;
    }
    let third = &streams[2].1;
    third.wait_for(third.sent())?;
    over.store(true, Ordering::Relaxed);
    streams.into_iter().for_each(|(_, stream)| stream.end());
    if lost.iter().any(|lost| *lost > 0) {
        return Err(Error::failed(format!("packets lost while keys changed: {lost:?}")));
    }
    mesh.stop(&all).map(drop)
}

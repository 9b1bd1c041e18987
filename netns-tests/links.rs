//! What meshd says of a link, beside what the emulated network did to its packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshd::api::{PingLine, Status};
use nix::sys::signal::Signal;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::mesh::{FULL_SIZE_PACKET, PROBE_PACKET};
use crate::lab::{Fate, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "links::every_lost_probe_is_counted_once_at_both_ends", needs: &[], run: lost_probes },
    Case { name: "links::a_stopped_daemon_is_not_a_slow_network", needs: &[], run: stopped_daemon },
];

/// Time between two probes: as short as may be, so that the tests need not wait long for them.
const INTERVAL: Duration = Duration::from_millis(100);

/// Two hosts that probe each [`INTERVAL`], all up.
fn two(lab: &Lab) -> Result<Scene> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let all = scene.all();
    scene.mesh.admit_offline(all[1], scene.underlay[1])?;
    for host in &all {
        scene.mesh.change_config(host, |config| config.probe.interval = INTERVAL)?;
    }
    scene.mesh.start(&all)?;
    scene.mesh.wait_until_all_up(&all, LONG)?;
    Ok(scene)
}

/// Every fifth request is dropped, twelve in all. One alone makes nobody doubt the link, so the other end does not begin to
/// probe, and all packets of a probe's length on that way are requests.
fn lost_probes(lab: &Lab) -> Result<()> {
    const DROPPED: u64 = 12;
    let scene = two(lab)?;
    let all = scene.all();
    let ids = all.iter().map(|host| Ok(scene.mesh.status(host)?.node.node_id)).collect::<Result<Vec<_>>>()?;
    let (prober, reflector) = if ids[0] < ids[1] { (all[0], all[1]) } else { (all[1], all[0]) };
    let lost = |status: &Status| status.peers.first().and_then(|peer| peer.loss).map_or(0, |loss| loss.lost);
    let before = [lost(&scene.mesh.status(prober)?), lost(&scene.mesh.status(reflector)?)];
    let requests = Arc::new(AtomicU64::new(0));
    let seen = requests.clone();
    scene.wan.way(prober, reflector).filter(move |packet| {
        packet.bytes.len() == PROBE_PACKET && {
            let number = seen.fetch_add(1, Ordering::Relaxed) + 1;
            number.is_multiple_of(5) && number <= 5 * DROPPED
        }
    });
    scene.wan.wait(LONG, "the last request to be dropped, and some after it", |_| {
        requests.load(Ordering::Relaxed) > 5 * DROPPED + 10
    })?;
    assert_eq!(scene.wan.counts(prober, reflector).filtered, DROPPED);
    for (host, before) in [prober, reflector].into_iter().zip(before) {
        let what = format!("{DROPPED} lost probes beside {before} earlier ones");
        scene.mesh.wait_for(host, &what, LONG, |status| lost(status) == before + DROPPED)?;
    }
    Ok(())
}

/// A ping reaches a daemon that is stopped, and is answered when it runs again: the network took two milliseconds, the host
/// the rest, which is some probes' intervals and so many times more.
fn stopped_daemon(lab: &Lab) -> Result<()> {
    let scene = two(lab)?;
    let all = scene.all();
    let far = scene.mesh.daemon(all[1])?;
    let mark = scene.wan.mark();
    far.signal(Signal::SIGSTOP);
    let ping = scene.mesh.ctl(all[0]).args(["--json", "ping", "b", "--full-size", "--count", "1"]).spawn()?;
    let waited = scene.wan.wait(LONG, "the ping, and probes after it", |core| {
        let mut since = core.log.since(mark).filter(|record| &*record.to == "b" && record.fate == Fate::Delivered);
        since.any(|record| record.len == FULL_SIZE_PACKET)
            && since.filter(|record| record.len == PROBE_PACKET).count() >= 3
    });
    // Also after a failure: a stopped process does not end with its host's other ones.
    far.signal(Signal::SIGCONT);
    waited?;
    assert!(ping.wait(LONG)?.success(), "{}{}", ping.stdout(), ping.stderr());
    let told = ping.stdout();
    let lines: Vec<PingLine> =
        told.lines().map(|line| serde_json::from_str(line).context(line)).collect::<Result<_>>()?;
    let times = lines.iter().find_map(|line| match line {
        PingLine::Reply { path_seconds, host_seconds, .. } => Some((*path_seconds, *host_seconds)),
        _ => None,
    });
    let (path, host) = times.unwrap_or_else(|| panic!("no reply: {told}"));
    assert!(host > path, "the daemon was stopped for longer than the network took, and yet: {told}");
    Ok(())
}

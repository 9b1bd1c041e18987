//! The ledger: which connections use which link, kept over restarts.

use std::thread;
use std::time::Duration;

use meshd::api::{CanGo, LedgerConnection, LinkLedger, LinkUsage};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::{Error, Flow, Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file. A connection is listed once it has lasted a minute, so they run beside the others.
pub const LONG_CASES: &[Case] =
    &[Case { name: "ledger::connections_keep_their_age_over_restarts", needs: &[], run: ages_outlive_restarts }];

/// A connection counts after a minute; the rest is for a loaded machine.
const UNTIL_LISTED: Duration = Duration::from_secs(150);

/// How often something is sent, so that a connection is in use.
const PAUSE: Duration = Duration::from_millis(500);

fn ledger(scene: &Scene, host: &Host) -> Result<LinkLedger> {
    let told = scene.mesh.ctl(host).args(["--json", "ledger", "--since", "1h"]).check()?;
    serde_json::from_str(&told).context(told)
}

fn link(scene: &Scene, host: &Host, peer: &str) -> Result<LinkUsage> {
    let links = ledger(scene, host)?.links;
    links.into_iter().find(|link| link.name == peer).ok_or_else(|| Error::failed(format!("no link to {peer}")))
}

/// The one connection of a link, kept in use until it is listed.
fn listed(scene: &Scene, host: &Host, peer: &str, flow: &mut Flow) -> Result<LedgerConnection> {
    wait(format_args!("{} lists the connection", host.name()), UNTIL_LISTED, || {
        flow.exchange(b"a query")?;
        thread::sleep(PAUSE);
        let link = link(scene, host, peer)?;
        Ok(match &link.connections[..] {
            [one] => Look::Found(one.clone()),
            all => Look::NotYet(format!("{} connections", all.len())),
        })
    })
}

/// ```text
///     a───b           one connection from a to b, in use all the time; nothing uses the links to c
///      ╲ ╱
///       c
/// ```
fn ages_outlive_restarts(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let (a, b) = (all[0], all[1]);
    let unused = link(&scene, a, "c")?;
    assert_eq!((unused.can_go, unused.last, unused.last_connection), (CanGo::Unsure, None, None), "it was never used");
    let mut flow = scene.flow(0, 1)?;
    let first = listed(&scene, a, "b", &mut flow)?;
    assert_eq!((first.ends.near_name.as_deref(), first.ends.far_name.as_deref()), (Some("a"), Some("b")));
    assert_eq!((first.ends.protocol.as_str(), first.ends.opened_near), ("tcp", Some(true)));
    let there = listed(&scene, b, "a", &mut flow)?;
    assert_eq!((there.ends.near, there.ends.far), (first.ends.far, first.ends.near), "the other end sees the same");
    assert_eq!(there.ends.opened_near, Some(false));
    let told = mesh.ctl(a).args(["ledger", "b"]).check()?;
    assert!(told.starts_with("No: 1 connection uses b, open for "), "{told}");
    assert!(mesh.ctl(a).args(["status", "b"]).check()?.contains("can it go? No: 1 connection uses b"));
    assert!(!mesh.ctl(a).args(["ledger", "b", "--check"]).output()?.status.success());

    // A stop and a start, which makes the device anew; then a restart in place.
    mesh.restart(&[a])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let stopped = listed(&scene, a, "b", &mut flow)?;
    mesh.ctl(a).args(["restart"]).check()?;
    let restarted = listed(&scene, a, "b", &mut flow)?;
    for (before, after) in [(&first, &stopped), (&stopped, &restarted)] {
        assert_eq!((&after.ends, after.began), (&before.ends, before.began), "the same connection, as old as before");
        assert!(after.last.0 >= before.last.0);
        assert!(after.sent_bytes > before.sent_bytes && after.received_bytes > before.received_bytes);
    }
    println!("    {} B sent over two restarts, {} B received", restarted.sent_bytes, restarted.received_bytes);
    assert_eq!(link(&scene, a, "c")?.watched_since, unused.watched_since, "watched since before the restarts");

    drop(flow);
    let over = wait("the end is seen", LONG, || {
        let link = link(&scene, a, "b")?;
        Ok(if link.connections.is_empty() {
            Look::Found(link)
        } else {
            Look::NotYet(format!("{:?}", link.connections))
        })
    })?;
    assert_eq!(over.ended.len(), 1, "{:?}", over.ended);
    assert_eq!((over.ended[0].began, over.can_go), (first.began, CanGo::No), "something used it a moment ago");
    let told = mesh.ctl(a).args(["ledger", "b"]).check()?;
    assert!(told.contains("No: no connection to b lasts") && told.contains("of a:"), "{told}");
    Ok(())
}

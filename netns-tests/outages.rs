//! Links that are cut and come back: what becomes of the connections over them.

use std::thread;
use std::time::{Duration, Instant};

use meshd::api::PeerState;

use crate::harness::Case;
use crate::lab::{Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "outages::a_connection_goes_on_when_its_link_is_back", needs: &[], run: goes_on_at_once }];

/// Attempts of the kernel that fail before the link comes back. After a first one at once, each pause is twice as long as the
/// last, from 0.2 s on: the next would be more than six seconds away.
const ATTEMPTS: u64 = 6;

/// How often the kernel's counters are looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// ```text
///     a─ ─b           cut in both directions while a has something to say, and healed after the kernel has tried six times
/// ```
fn goes_on_at_once(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before")?;
    let before = all[0].segments_sent_again()?;
    scene.wan.link("a", "b").cut(true);
    flow.send(b"said while nobody hears it")?;
    mesh.wait_until_seen(&all[..1], all[1], PeerState::Down, LONG)?;
    wait_for_attempts(all[0], before + ATTEMPTS)?;
    scene.wan.link("a", "b").cut(false);
    let healed = Instant::now();
    flow.receive(b"said while nobody hears it")?;
    println!("    the connection goes on {:.0?} after its link was healed", healed.elapsed());
    // Not by the kernel's next attempt, for which it would have had to wait.
    assert_eq!(all[0].segments_sent_again()?, before + ATTEMPTS);
    assert_eq!(mesh.status(all[0])?.peers[0].flows_woken, 1);
    flow.exchange(b"after")
}

/// Waits until a host's kernel has sent so many segments again in all.
fn wait_for_attempts(host: &Host, attempts: u64) -> Result<()> {
    while host.segments_sent_again()? < attempts {
        thread::sleep(LOOK_PAUSE);
    }
    Ok(())
}

//! One more millisecond on links of ten: how long until meshd says so, and whether it says so of links that did not change.

use std::time::{Duration, Instant};

use meshd::api::Status;

use crate::lab::{Lab, Result};
use crate::options::Options;
use crate::report::{Report, Target};
use crate::sample::Sample;
use crate::stage::{Stage, pass};

/// Links; every other one changes.
const LINKS: usize = 8;

/// The round trip before, and what comes on top.
const RTT: Duration = Duration::from_millis(10);
const STEP: Duration = Duration::from_millis(1);

/// Time between two probes of a link, meshd's own.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the links are as they are first: what is longer than before needs a past of a minute, beside the half minute that is
/// now.
const BEFORE: Duration = Duration::from_secs(120);

/// How long meshd is given to notice.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Lets the links be normal for a while, changes half of them, and waits for what the hub says.
///
/// # Errors
/// Where the mesh does not come up.
pub fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let stage = Stage::new(lab, options.seed, &[RTT; LINKS], INTERVAL)?;
    stage.start()?;
    pass(Instant::now(), options.time.max(BEFORE));
    let early = stage.mesh.status(&stage.hub)?;
    let is_changed = |number: usize| number.is_multiple_of(2);
    for (number, spoke) in stage.spokes.iter().enumerate().filter(|(number, _)| is_changed(*number)) {
        let longer = (RTT + STEP) / 2;
        println!("{} ({number}): {RTT:?} becomes {:?}", spoke.host.name(), longer * 2);
        stage.wan.link(&stage.hub, &spoke.host).delay(longer);
    }
    let began = Instant::now();
    let mut found = vec![f64::NAN; LINKS];
    while began.elapsed() < LIMIT && found.iter().enumerate().any(|(at, found)| is_changed(at) && found.is_nan()) {
        let status = stage.mesh.status(&stage.hub)?;
        for (spoke, found) in stage.spokes.iter().zip(&mut found) {
            if found.is_nan() && says_something(&status, spoke.host.name()) {
                *found = began.elapsed().as_secs_f64();
            }
        }
        pass(Instant::now(), LOOK);
    }
    let said = |changed: bool| {
        let of = found.iter().enumerate().filter(|(at, found)| is_changed(*at) == changed && !found.is_nan());
        Sample::new(of.map(|(_, found)| *found).collect())
    };
    let (right, wrong) = (said(true), said(false));
    let before = stage.spokes.iter().filter(|spoke| says_something(&early, spoke.host.name())).count();
    let count = LINKS / 2;
    report.add(
        "step",
        format!("of {count} links with +1 ms found"),
        right.len() as f64,
        "",
        Target::AtLeast(count as f64),
    );
    report.add("step", "found after, the last of them", right.range().1, "s", Target::AtMost(30.0));
    report.add("step", "found after, median", right.median(), "s", Target::None);
    report.add("step", "false alarms", (wrong.len() + before) as f64, "", Target::AtMost(0.0));
    Ok(())
}

/// Whether a status tells of anything wrong with a peer.
fn says_something(status: &Status, name: &str) -> bool {
    status.problems.iter().any(|problem| problem.peer.as_deref() == Some(name))
}

//! Loss on many links at once: whether the interval that meshd prints holds the rate that was set.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use meshd::api::Status;

use crate::lab::mesh::PROBE_PACKET;
use crate::lab::wan::now;
use crate::lab::{Lab, Result};
use crate::many::Many;
use crate::options::Options;
use crate::report::{Report, Target};
use crate::stage::{pass, peer};
use crate::truth::{self, Exchange};

/// Nodes: 190 links, each a run of its own.
const NODES: usize = 20;

/// One way between any two.
const DELAY: Duration = Duration::from_millis(5);

/// Time between two probes of a link: as many of them as the emulator's log can hold.
const INTERVAL: Duration = Duration::from_millis(500);

/// Loss on the way from the lower number to the higher and back; the links have them by turns.
const LOSSES: [(f64, f64); 6] = [(0.01, 0.01), (0.01, 0.0), (0.0, 0.01), (0.03, 0.0), (0.0, 0.03), (0.002, 0.002)];

/// While a mesh forms, packets of a probe's length say other things too; the counts are compared from here on.
const SETTLE: Duration = Duration::from_secs(10);

/// A probe younger than this may be decided on the network and not yet by meshd: a loss is one after 2 s.
const UNDECIDED: Duration = Duration::from_secs(3);

/// Lets packets be lost, and compares.
///
/// # Errors
/// Where the mesh does not come up.
pub fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let many = Many::new(lab, options.seed, NODES, DELAY, INTERVAL)?;
    let links: Vec<((usize, usize), (f64, f64))> = many.links().zip(LOSSES.into_iter().cycle()).collect();
    for ((low, high), (there, back)) in &links {
        many.wan.way(&many.hosts[*low], &many.hosts[*high]).loss(*there);
        many.wan.way(&many.hosts[*high], &many.hosts[*low]).loss(*back);
    }
    let mark = many.wan.mark();
    many.start()?;
    pass(Instant::now(), SETTLE);
    let before = look(&many)?;
    pass(Instant::now(), options.time * 2);
    let after = look(&many)?;
    let log = many.wan.log(mark);
    let (mut covered, mut ends, mut differ, mut probes, mut lost) = ([0; 2], [0; 2], 0, 0, 0);
    for ((low, high), (there, back)) in &links {
        let rate = 1.0 - (1.0 - there) * (1.0 - back);
        let (low_name, high_name) = (many.hosts[*low].name(), many.hosts[*high].name());
        let low_probes = after[*low].1.node.node_id < after[*high].1.node.node_id;
        for (at, name, is_prober) in [(*low, high_name, low_probes), (*high, low_name, !low_probes)] {
            let Some(loss) = peer(&after[at].1, name)?.loss else { continue };
            let end = usize::from(!is_prober);
            ends[end] += 1;
            covered[end] += usize::from(loss.low <= rate && rate <= loss.high);
        }
        let (at, prober, reflector) =
            if low_probes { (*low, low_name, high_name) } else { (*high, high_name, low_name) };
        let requests = truth::logged(&log, prober, reflector, PROBE_PACKET);
        let [exchanges, _] = truth::exchanges(&requests, &truth::logged(&log, reflector, prober, PROBE_PACKET));
        probes += exchanges.len();
        lost += exchanges.iter().filter(|exchange| exchange.on_network().is_none()).count();
        let counted =
            |(_, status): &(u64, Status)| peer(status, reflector).map(|peer| peer.loss.map_or(0, |loss| loss.lost));
        let counted = counted(&after[at])?.saturating_sub(counted(&before[at])?);
        differ += usize::from(!possible(&exchanges, before[at].0, after[at].0).contains(&counted));
    }
    let share = |end: usize| covered[end] as f64 * 100.0 / ends[end] as f64;
    println!(
        "{} links, {probes} probes, {lost} of them lost on the network; {} times down",
        links.len(),
        many.times_down()?
    );
    report.add("loss", "runs whose interval holds the rate, at the prober", share(0), "%", Target::AtLeast(93.0));
    report.add("loss", "runs whose interval holds the rate, at the other end", share(1), "%", Target::AtLeast(93.0));
    report.add("loss", "links whose count differs from the log's", differ as f64, "", Target::AtMost(0.0));
    report.add("loss", "false DOWN at up to 3 % loss", many.times_down()? as f64, "", Target::AtMost(0.0));
    Ok(())
}

/// Every node's status, and when it was taken (CLOCK_MONOTONIC, ns).
fn look(many: &Many) -> Result<Vec<(u64, Status)>> {
    many.hosts.iter().map(|host| Ok((now(), many.mesh.status(host)?))).collect()
}

/// How many losses a node may have counted between two looks: all that it must have decided within, and at most those too
/// that it was still waiting for at the first or had just sent at the last.
fn possible(exchanges: &[Exchange], from: u64, to: u64) -> RangeInclusive<u64> {
    let undecided = u64::try_from(UNDECIDED.as_nanos()).unwrap_or(u64::MAX);
    let lost = |from: u64, to: u64| {
        let within = exchanges.iter().filter(|exchange| (from..to).contains(&exchange.request.left));
        within.filter(|exchange| exchange.on_network().is_none()).count() as u64
    };
    lost(from, to.saturating_sub(undecided))..=lost(from.saturating_sub(undecided), to)
}

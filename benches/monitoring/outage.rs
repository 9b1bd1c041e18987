//! Links cut one after the other: how long until both ends say that the link is down, and that it is up again.

use std::thread;
use std::time::{Duration, SystemTime};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::lab::{Lab, Result};
use crate::many::Many;
use crate::options::Options;
use crate::report::{Report, Target};
use crate::sample::Sample;

/// Nodes: 190 links.
const NODES: usize = 20;

/// One way between any two.
const DELAY: Duration = Duration::from_millis(5);

/// Time between two probes of a link, meshd's own.
const INTERVAL: Duration = Duration::from_secs(1);

/// A node loses at most this many of its 19 links at a time: it must not take itself for the one that is cut off.
const AT_ONCE: usize = 3;

/// Cuts made.
const CUTS: usize = 210;

/// Longer than any detection takes; reached only in failure.
const LIMIT: Duration = Duration::from_secs(20);

/// Cuts links, waits for both ends' words, and heals.
///
/// # Errors
/// Where a link is not found to be down, or up again.
pub fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let many = Many::new(lab, options.seed, NODES, DELAY, INTERVAL)?;
    many.start()?;
    let mut chance = ChaCha8Rng::seed_from_u64(options.seed);
    // Links whose two numbers have the same sum share no node, so a class of sums takes at most one link from each.
    let class = |sum: usize| many.links().filter(move |(low, high)| (low + high) % NODES == sum);
    let ids = many.hosts.iter().map(|host| Ok(many.mesh.status(host)?.node.node_id)).collect::<Result<Vec<_>>>()?;
    let (mut down, mut up, mut cuts) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()], 0);
    for first in (0..).step_by(AT_ONCE) {
        if cuts >= CUTS {
            break;
        }
        let links: Vec<(usize, usize)> = (first..first + AT_ONCE).flat_map(|sum| class(sum % NODES)).collect();
        cuts += links.len();
        for (all, cut) in [(&mut down, true), (&mut up, false)] {
            for (from, took) in change(&many, &links, cut, &mut chance)? {
                let is_prober = ids[from[0]] < ids[from[1]];
                all[usize::from(!is_prober)].push(took);
            }
        }
    }
    for (end, (down, up)) in ["at the prober", "at the other end"].into_iter().zip(down.into_iter().zip(up)) {
        let (down, up) = (Sample::new(down), Sample::new(up));
        println!(
            "{cuts} cuts, {end}: down after {:.2} s (p50 {:.2}, {:.2} to {:.2}), up again after {:.2} s (at most {:.2})",
            down.mean(),
            down.median(),
            down.range().0,
            down.range().1,
            up.mean(),
            up.range().1,
        );
        let what = format!("DOWN after a cut, {end}");
        report.add("outage", format!("{what}, mean of {cuts}"), down.mean(), "s", Target::AtMost(2.7));
        report.add("outage", format!("{what}, the last"), down.range().1, "s", Target::AtMost(3.2));
        report.add("outage", format!("UP after healing, {end}, the last"), up.range().1, "s", Target::None);
    }
    let said = many.times_down()?;
    report.add("outage", "said DOWN without a cut", said.abs_diff(2 * cuts) as f64, "", Target::AtMost(0.0));
    Ok(())
}

/// Cuts or heals these links, each at a moment of its own within a probe's interval; returns how long each end (the one that
/// said so comes first) took to say so, in seconds.
fn change(many: &Many, links: &[(usize, usize)], cut: bool, chance: &mut ChaCha8Rng) -> Result<Vec<([usize; 2], f64)>> {
    let mut changed = Vec::with_capacity(links.len());
    for (low, high) in links {
        thread::sleep(INTERVAL * (chance.next_u32() >> 16) / (1 << 16) / u32::try_from(links.len()).unwrap_or(1) * 2);
        changed.push(SystemTime::now());
        many.wan.link(&many.hosts[*low], &many.hosts[*high]).cut(cut);
    }
    let mut took = Vec::with_capacity(2 * links.len());
    for ((low, high), at) in links.iter().zip(changed) {
        for ends in [[*low, *high], [*high, *low]] {
            let said = many.wait_for_change(ends, if cut { "Down" } else { "Up" }, at, LIMIT)?;
            took.push((ends, said.duration_since(at).unwrap_or_default().as_secs_f64()));
        }
    }
    Ok(took)
}

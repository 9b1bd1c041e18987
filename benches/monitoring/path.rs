//! Round trips from 0.2 to 300 ms: what meshd says beside the stamps of both kernels and the kernel's ping, at rest and with all
//! processors busy.

use std::time::{Duration, Instant};

use meshd::api::Status;

use crate::busy::Busy;
use crate::lab::capture::Captured;
use crate::lab::mesh::PROBE_PACKET;
use crate::lab::{Capture, Lab, Result};
use crate::options::Options;
use crate::ping::Ping;
use crate::report::{Report, Target};
use crate::sample::Sample;
use crate::stage::{Spoke, Stage, pass, peer};
use crate::truth::{self, Crossing, Exchange, Witness};

/// The round trips, µs.
const ROUND_TRIPS: [u64; 6] = [200, 1_000, 10_000, 50_000, 100_000, 300_000];

/// Time between two probes of a link.
const INTERVAL: Duration = Duration::from_millis(250);

/// Time between two requests of a ping: few enough not to keep the processors awake for the probes.
const PING_INTERVAL: Duration = Duration::from_millis(500);

/// What one link showed, in microseconds.
struct Seen {
    rtt: Duration,
    /// On the network, by the kernels' stamps.
    truth: Sample,
    /// What the network took above what was set, each way.
    late: Sample,
    p50: f64,
    p99: f64,
    /// The kernel's ping between the same two hosts.
    outside: Sample,
    /// The kernel's ping through the tunnel.
    inside: Sample,
}

/// Measures all round trips at once, at rest and then with all processors busy.
///
/// # Errors
/// Where the mesh does not come up.
pub fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let stage = Stage::new(lab, options.seed, &ROUND_TRIPS.map(Duration::from_micros), INTERVAL)?;
    println!("p50 and p99 of each; + is above the network's");
    for (load, excess) in [("idle", 150.0), ("busy", 250.0)] {
        let busy = if load == "busy" { Some(Busy::start(&stage.hub)?) } else { None };
        let seen = watch(lab, &stage, options.time)?;
        stage.mesh.stop(&stage.all())?;
        drop(busy);
        seen.iter().for_each(|seen| tell(report, load, seen, excess));
    }
    Ok(())
}

/// Starts all daemons, lets them measure, and returns what each link showed.
fn watch(lab: &Lab, stage: &Stage, time: Duration) -> Result<Vec<Seen>> {
    let captures: Vec<Capture> =
        stage.all().into_iter().map(|host| Capture::start(lab, host, "eth0")).collect::<Result<_>>()?;
    stage.start()?;
    let began = Instant::now();
    let outside = stage.spokes.iter().map(|spoke| spoke.underlay);
    let inside = stage.spokes.iter().map(|spoke| stage.mesh.overlay(&spoke.host).0);
    let mut pings = Ping::start(&stage.hub, outside.chain(inside).collect(), PING_INTERVAL, time)?.finish()?;
    let insides = pings.split_off(stage.spokes.len());
    pass(began, time);
    let status = stage.mesh.status(&stage.hub)?;
    let packets: Vec<Vec<Captured>> = captures.iter().map(|capture| truth::captured(capture, PROBE_PACKET)).collect();
    let hub = Witness { address: stage.address, packets: &packets[0] };
    let mut seen = Vec::new();
    for (((spoke, packets), outside), inside) in stage.spokes.iter().zip(&packets[1..]).zip(pings).zip(insides) {
        let other = Witness { address: spoke.underlay, packets };
        let [prober, reflector] = if stage.hub_probes(&status, spoke)? { [&hub, &other] } else { [&other, &hub] };
        let one_way = spoke.rtt / 2;
        let requests = truth::stamped(prober, reflector, one_way);
        let answers = truth::stamped(reflector, prober, one_way);
        let took = requests.iter().chain(&answers).filter_map(Crossing::took);
        let late = took.map(|took| took.saturating_sub(one_way));
        let [truth, _] = truth::exchanges(&requests, &answers);
        let truth = truth::micros(truth.iter().filter_map(Exchange::on_network));
        let (p50, p99) = quantiles(&status, spoke)?;
        seen.push(Seen { rtt: spoke.rtt, truth, late: truth::micros(late), p50, p99, outside, inside });
    }
    Ok(seen)
}

/// The median and the 99th percentile of a link's round trips in the status, in microseconds.
fn quantiles(status: &Status, spoke: &Spoke) -> Result<(f64, f64)> {
    let link = peer(status, spoke.host.name())?.link;
    Ok(link.map_or((f64::NAN, f64::NAN), |link| (link.rtt_p50_seconds * 1e6, link.rtt_p99_seconds * 1e6)))
}

fn tell(report: &mut Report, load: &str, seen: &Seen, excess: f64) {
    let truth = seen.truth.median();
    println!(
        "{load} {:?}: {} probes, network {truth:.0} {:.0} µs (late by {:.0} {:.0} a way); meshd {:+.0} {:+.0}; \
         ping outside {:+.0} {:+.0}, inside {:+.0} {:+.0}",
        seen.rtt,
        seen.truth.len(),
        seen.truth.quantile(0.99),
        seen.late.median(),
        seen.late.quantile(0.99),
        seen.p50 - truth,
        seen.p99 - seen.truth.quantile(0.99),
        seen.outside.median() - truth,
        seen.outside.quantile(0.99) - truth,
        seen.inside.median() - truth,
        seen.inside.quantile(0.99) - truth,
    );
    let bound = (truth * 0.005).max(50.0);
    let of = format!("{load}, {} ms", seen.rtt.as_secs_f64() * 1e3);
    report.add("path", format!("{of}: p50 off the network's"), (seen.p50 - truth).abs(), "µs", Target::AtMost(bound));
    let above = seen.p99 - seen.truth.quantile(0.99);
    report.add("path", format!("{of}: p99 above the network's"), above, "µs", Target::AtMost(excess));
    let beside = (seen.p50 - seen.outside.median()).abs();
    report.add("path", format!("{of}: p50 off the kernel's ping"), beside, "µs", Target::AtMost(100.0));
}

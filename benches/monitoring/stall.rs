//! A far daemon that is stopped for 5 ms at a time: the network did nothing, and meshd must say so.
//!
//! Full-size pings, because no other packet has their length: so each can be found in what the kernels stamped. The time
//! from the request's arrival at the far device to its answer's leaving is what the far daemon held it.

use std::time::Duration;

use meshd::api::PingLine;

use crate::lab::error::Context;
use crate::lab::mesh::FULL_SIZE_PACKET;
use crate::lab::{Capture, Error, Lab, Result};
use crate::options::Options;
use crate::ping::Ping;
use crate::pulse::Pulse;
use crate::report::{Report, Target};
use crate::sample::Sample;
use crate::stage::Stage;
use crate::truth::{self, Exchange, Witness};

/// How long the daemon stands, and how long it then runs.
const STAND: Duration = Duration::from_millis(5);
const RUN: Duration = Duration::from_millis(15);

/// Between two pings: no multiple of the pulses' period, so that pings meet every part of it.
const INTERVAL: Duration = Duration::from_millis(37);

/// The round trip on the network.
const RTT: Duration = Duration::from_millis(10);

/// Holds of at least this long are the pulses' work and not the machine's, µs.
const STALLED: f64 = 1_000.0;

/// Between two requests of the kernel's ping through the tunnel.
const PING_INTERVAL: Duration = Duration::from_millis(100);

/// What a series of pings showed, in microseconds.
struct Series {
    /// What each said of the tunnel.
    tunnel: Vec<f64>,
    /// What each said of the network, and what the network took.
    path: Vec<(f64, f64)>,
    /// What each said of the hosts, and how long the far one held it.
    host: Vec<(f64, f64)>,
}

/// Pings a daemon that runs, and then one that is stopped again and again.
///
/// # Errors
/// Where the mesh does not come up, or pings stay out.
pub fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let stage = Stage::new(lab, options.seed, &[RTT], Duration::from_secs(1))?;
    stage.start()?;
    let time = options.time / 2;
    let count = time.as_millis() / INTERVAL.as_millis();
    let through = stage.mesh.overlay(&stage.spokes[0].host).0;
    let inside = Ping::start(&stage.hub, vec![through], PING_INTERVAL, time)?;
    let calm = series(lab, &stage, count)?;
    let inside = inside.finish()?.pop().unwrap_or_default();
    let pulse = Pulse::start(stage.mesh.daemon(&stage.spokes[0].host)?, STAND, RUN)?;
    let stalled = series(lab, &stage, count);
    drop(pulse);
    let stalled = stalled?;

    let said = |series: &Series| Sample::new(series.path.iter().map(|(said, _)| *said).collect());
    let (before, during) = (said(&calm), said(&stalled));
    let stalls = || stalled.path.iter().zip(&stalled.host).filter(|(_, (_, held))| *held >= STALLED);
    let above = Sample::new(stalls().map(|((said, took), _)| (said - took).abs()).collect());
    let error = Sample::new(stalls().map(|(_, (said, held))| (said - held).abs() / held * 100.0).collect());
    let (said_longest, longest) = stalled.host.iter().copied().fold((0.0, 0.0), |a, b| if b.1 > a.1 { b } else { a });
    println!(
        "{} pings calm, {} with stalls of which {} were held for 1 ms and more; path p50 {:.0} and {:.0} µs, p99 {:.0} and {:.0}; \
         longest hold {longest:.0} µs, of which meshd said {said_longest:.0}",
        calm.path.len(),
        stalled.path.len(),
        above.len(),
        before.median(),
        during.median(),
        before.quantile(0.99),
        during.quantile(0.99),
    );
    let tunnel = Sample::new(calm.tunnel).median();
    println!("calm: tunnel p50 {tunnel:.0} µs, the kernel's ping through it {:.0} µs", inside.median());
    let beside = (tunnel - inside.median()).abs();
    report.add("stall", "calm: tunnel p50 off the kernel's ping inside", beside, "µs", Target::AtMost(150.0));
    let moved = (during.median() - before.median()).abs();
    report.add("stall", "path p50 moved by 5 ms stalls of the far daemon", moved, "µs", Target::AtMost(200.0));
    let of_stalled = "path of stalled pings off the network's";
    report.add("stall", format!("{of_stalled}, p50"), above.median(), "µs", Target::AtMost(200.0));
    report.add("stall", format!("{of_stalled}, p95"), above.quantile(0.95), "µs", Target::None);
    report.add("stall", "host delay off how long it was held, p50", error.median(), "%", Target::AtMost(10.0));
    report.add("stall", "host delay off how long it was held, p95", error.quantile(0.95), "%", Target::AtMost(10.0));
    let share = (said_longest / longest - 1.0).abs() * 100.0;
    report.add("stall", "host delay off how long it was held, the longest", share, "%", Target::AtMost(10.0));
    Ok(())
}

/// Pings the spoke and sets each answer beside what the kernels stamped.
fn series(lab: &Lab, stage: &Stage, count: u128) -> Result<Series> {
    let spoke = &stage.spokes[0];
    let captures = [Capture::start(lab, &stage.hub, "eth0")?, Capture::start(lab, &spoke.host, "eth0")?];
    let ask = stage.mesh.ctl(&stage.hub).args(["--json", "ping", spoke.host.name(), "--full-size"]);
    let ask = ask.args(["--interval", &format!("{}ms", INTERVAL.as_millis()), "--count", &count.to_string()]);
    let told = ask.check()?;
    let lines = told.lines().map(|line| serde_json::from_str(line).context(line));
    let lines: Vec<PingLine> = lines.collect::<Result<_>>()?;
    let mut answers = lines.iter().filter_map(|line| match line {
        PingLine::Reply { path_seconds, tunnel_seconds, host_seconds, .. } => {
            Some([path_seconds, tunnel_seconds, host_seconds].map(|seconds| seconds * 1e6))
        }
        _ => None,
    });
    let packets = captures.each_ref().map(|capture| truth::captured(capture, FULL_SIZE_PACKET));
    let hub = Witness { address: stage.address, packets: &packets[0] };
    let far = Witness { address: spoke.underlay, packets: &packets[1] };
    let [exchanges, _] = truth::exchanges(&truth::stamped(&hub, &far, RTT / 2), &truth::stamped(&far, &hub, RTT / 2));
    let whole = |exchange: &Exchange| {
        let (took, answer) = (exchange.on_network()?, exchange.answer?);
        let held = answer.left.saturating_sub(exchange.request.arrived?);
        Some((took.as_secs_f64() * 1e6, held as f64 / 1e3))
    };
    let seen: Vec<(f64, f64)> = exchanges.iter().filter_map(whole).collect();
    let mut series = Series { tunnel: Vec::new(), path: Vec::new(), host: Vec::new() };
    for ([path, tunnel, host], (took, held)) in answers.by_ref().zip(&seen) {
        series.tunnel.push(tunnel);
        series.path.push((path, *took));
        series.host.push((host, *held));
    }
    if series.path.len() != seen.len() || answers.next().is_some() || seen.is_empty() {
        return Err(Error::failed(format!("{} of {count} pings were seen on both devices: {told}", seen.len())));
    }
    Ok(series)
}

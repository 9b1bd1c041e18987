//! What monitoring 100 links costs: one real meshd among 100 peers made here, probing each link every second, and then hardly.
//!
//! Half of the links, by chance, are probed by the daemon and the other half by the peers, as in any mesh. The difference of the
//! two costs is monitoring's own share; what is left is what the daemon needs to be a member.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use meshd::api::{Client, PeerState};
use meshd::config::Config;

use crate::circle::Circle;
use crate::contender::{Contender, Place};
use crate::lab::error::Context;
use crate::lab::{Error, Lab, Result};
use crate::options::Options;
use crate::ours::Meshd;
use crate::report::{Report, Target};
use crate::sample::Sample;
use crate::usage::{Usage, peak_memory};

/// Peers, and so links.
const PEERS: usize = 100;

/// The interval that is measured, and one at which next to nothing is.
const INTERVALS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Rounds of each, interleaved.
const ROUNDS: usize = 2;

/// Between the last session and the measurement: gossip with 100 newcomers is over by then.
const SETTLE: Duration = Duration::from_secs(10);

/// What one round gave.
struct Cost {
    /// Time on a processor, milliseconds a second.
    cpu: f64,
    /// Sleeps of all threads, a second.
    sleeps: f64,
    /// Resident memory at most, MiB.
    memory: f64,
}

/// Measures both intervals by turns.
///
/// # Errors
/// Where the daemon does not start, or not all peers get a session.
pub fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (interval, costs) in INTERVALS.into_iter().zip(&mut costs) {
            let cost = measure(&Lab::new(lab.name())?, interval, options.time / 2)?;
            println!(
                "a probe each {interval:?}: {:.2} ms/s, {:.0} sleeps/s, {:.1} MiB",
                cost.cpu, cost.sleeps, cost.memory
            );
            costs.push(cost);
        }
    }
    let median = |which: usize, of: fn(&Cost) -> f64| Sample::new(costs[which].iter().map(of).collect()).median();
    let [probing, hardly] = [median(0, |cost| cost.cpu), median(1, |cost| cost.cpu)];
    let links = format!("{PEERS} links");
    // A millisecond of a second is a tenth of a per cent.
    report.add(
        "share",
        format!("{links} at 1/s: monitoring's share"),
        (probing - hardly) / 10.0,
        "%",
        Target::AtMost(0.5),
    );
    report.add("share", format!("{links} at 1/s: the whole daemon"), probing / 10.0, "%", Target::None);
    report.add("share", format!("{links} at 1/min: the whole daemon"), hardly / 10.0, "%", Target::None);
    report.add("share", format!("{links} at 1/s: wake-ups"), median(0, |cost| cost.sleeps), "/s", Target::None);
    report.add("share", format!("{links} at 1/s: memory"), median(0, |cost| cost.memory), "MiB", Target::None);
    Ok(())
}

fn measure(lab: &Lab, interval: Duration, time: Duration) -> Result<Cost> {
    let place = |name: &str, last: u8| -> Result<Place> {
        // The upper half of what RFC 2544 sets aside; the peers have the lower one.
        Ok(Place { host: lab.host(name)?, underlay: Ipv4Addr::new(198, 19, 0, last) })
    };
    let places = [place("near", 1)?, place("far", 2)?];
    lab.wire(&places[0].host, "eth0", &places[1].host, "eth0")?;
    for place in &places {
        place.host.add_address("eth0", IpAddr::V4(place.underlay), 24)?;
    }
    let ready = Meshd::new(None, None)?.prepare(&places[..1])?;
    let path = places[0].host.dir().join("mesh/meshd.toml");
    let text = fs::read_to_string(&path).context("read a configuration")?;
    let mut config = Config::parse(&text, &path).context("a configuration that meshctl wrote")?;
    config.probe.interval = interval;
    fs::write(&path, config.to_toml(&path)).context("write a configuration")?;
    let first = ready.first().ok_or_else(|| Error::failed("nothing to start"))?;
    let daemon = (first.daemon)().spawn()?;
    daemon.wait_for_output(" is up", Duration::from_secs(20))?;
    let mut circle = Circle::new(&places[0], &places[1], PEERS, interval)?;
    circle.gather()?;
    circle.live(SETTLE)?;
    let before = Usage::of(daemon.pid())?;
    circle.live(time)?;
    let after = Usage::of(daemon.pid())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let socket = places[0].host.dir().join("mesh/meshd.sock");
    let status = runtime.block_on(Client::new(socket).status()).context("ask the daemon")?;
    let measured = status.peers.iter().filter(|peer| peer.state == PeerState::Up && peer.link.is_some()).count();
    if measured < PEERS {
        return Err(Error::failed(format!("of {PEERS} links {measured} were measured: the cost says nothing")));
    }
    let seconds = time.as_secs_f64();
    Ok(Cost {
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e3 / seconds,
        sleeps: after.sleeps.saturating_sub(before.sleeps) as f64 / seconds,
        memory: peak_memory(daemon.pid())? as f64 / f64::from(1 << 20),
    })
}

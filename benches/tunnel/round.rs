//! One round: a tunnel is started between two fresh hosts, measured in every way, and ended.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::package::Tree;
use crate::lab::{Error, Lab, Proc, Result};
use crate::meter;
use crate::peer::{Pair, Peer};
use crate::{bulk, echo, exchange, flood};

/// Between two echo requests: long enough for every processor and thread to fall asleep, as between two real requests.
const BETWEEN: Duration = Duration::from_millis(10);

/// What is measured with, and how long.
pub struct Tools {
    /// TCP at full rate.
    pub iperf3: Tree,
    /// TCP requests and responses.
    pub sockperf: Option<Tree>,
    /// How long each measurement takes.
    pub time: Duration,
}

/// What a round gave. What could not be measured is not a number.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// TCP payload of one flow, Gbit/s.
    pub one_flow: f64,
    /// TCP payload of four flows, Gbit/s.
    pub four_flows: f64,
    /// Processor seconds of both daemons per Gbit of the one flow.
    pub processor: f64,
    /// Segments of the one flow sent again per Gbit.
    pub retransmits: f64,
    /// Median round trip of an echo request while nothing else happens, µs.
    pub idle_p50: f64,
    /// What one in a hundred of those exceeds, µs.
    pub idle_p99: f64,
    /// Median of a TCP request and its response, µs.
    pub exchange_p50: f64,
    /// What one in a hundred of those exceeds, µs.
    pub exchange_p99: f64,
    /// Median round trip of an echo request beside one TCP flow at full rate, µs.
    pub loaded_p50: f64,
    /// What one in a hundred of those exceeds, µs. As with `ping`, of those that were answered.
    pub loaded_p99: f64,
    /// Share of the echo requests beside the flow without an answer, per cent.
    pub loaded_lost: f64,
    /// UDP packets of 64 bytes delivered, thousands a second.
    pub delivered: f64,
    /// Those that the sender's kernel took, thousands a second.
    pub offered: f64,
    /// Resident memory of the larger daemon after all that, MiB.
    pub memory: f64,
    /// The most it ever had, MiB.
    pub memory_peak: f64,
}

impl Figures {
    /// The round in one line.
    pub fn line(&self, name: &str) -> String {
        format!(
            "{name}: TCP {:.2} and {:.2} Gbit/s, {:.3} CPU s/Gbit, ping {:.0}/{:.0} µs, request {:.0}/{:.0} µs, \
             ping beside a flow {:.0}/{:.0} µs ({:.1} % lost), UDP {:.0} of {:.0} kpps, {:.1} MiB (peak {:.1})",
            self.one_flow,
            self.four_flows,
            self.processor,
            self.idle_p50,
            self.idle_p99,
            self.exchange_p50,
            self.exchange_p99,
            self.loaded_p50,
            self.loaded_p99,
            self.loaded_lost,
            self.delivered,
            self.offered,
            self.memory,
            self.memory_peak,
        )
    }
}

/// Runs a round.
///
/// # Errors
/// Where the tunnel does not come up, or one of the programs fails.
pub fn run(peer: &dyn Peer, tools: &Tools) -> Result<Figures> {
    let lab = Lab::new(&format!("tunnel-{}", peer.name()))?;
    let measured = measure(&lab, peer, tools);
    if matches!(measured, Err(Error::Failed(_))) {
        lab.fail();
    }
    measured
}

fn measure(lab: &Lab, peer: &dyn Peer, tools: &Tools) -> Result<Figures> {
    let pair = Pair::new(lab)?;
    let running = peer.start(&pair)?;
    running.wait(&pair)?;
    peer.settle(&running)?;
    let (near, far, to) = (pair.near(), pair.far(), running.addresses[1]);
    let server = bulk::serve(far, &tools.iperf3)?;
    let requests = u16::try_from(tools.time.as_millis() / BETWEEN.as_millis()).unwrap_or(u16::MAX);

    let idle = echo::run(near, to, requests, BETWEEN)?;
    let exchanges = match &tools.sockperf {
        Some(sockperf) => exchange::run(near, far, sockperf, to, tools.time)?,
        None => exchange::Exchanges { p50: f64::NAN, p99: f64::NAN },
    };

    let send = |flows, time| -> Result<bulk::Moved> {
        let told = bulk::send(near, &tools.iperf3, to, flows, time)?.check();
        bulk::read(&told.map_err(|error| Error::failed(format!("{error}\n{}", server.stderr())))?)
    };
    let before = meter::processor_time(&running.daemons)?;
    let one = send(1, tools.time)?;
    let used = meter::processor_time(&running.daemons)?.saturating_sub(before);
    let four = send(4, tools.time)?;

    let beside = bulk::send(near, &tools.iperf3, to, 1, tools.time + RAMP * 2)?.spawn()?;
    wait_for_load(&beside, &pair)?;
    let loaded = echo::run(near, to, requests, BETWEEN)?;
    beside.wait(tools.time + Duration::from_secs(20))?;

    let flood = flood::run(near, far, to, tools.time)?;
    let memory = meter::largest_memory(&running.daemons)?;
    Ok(Figures {
        one_flow: one.rate(),
        four_flows: four.rate(),
        processor: used.as_secs_f64() / one.gbit,
        retransmits: one.retransmits as f64 / one.gbit,
        idle_p50: idle.quantile(0.5),
        idle_p99: idle.quantile(0.99),
        exchange_p50: exchanges.p50,
        exchange_p99: exchanges.p99,
        loaded_p50: loaded.quantile(0.5),
        loaded_p99: loaded.quantile(0.99),
        loaded_lost: loaded.lost() as f64 * 100.0 / f64::from(requests),
        delivered: flood.delivered / 1e3,
        offered: flood.offered / 1e3,
        memory: memory.now,
        memory_peak: memory.peak,
    })
}

/// What a flow gets to reach its rate.
const RAMP: Duration = Duration::from_secs(1);

/// Gives the flow its time to reach its rate.
fn wait_for_load(flow: &Proc, pair: &Pair) -> Result<()> {
    let until = Instant::now() + RAMP;
    while Instant::now() < until {
        if !flow.is_running() {
            return Err(Error::failed(format!("the flow to {} ended: {}", pair.far().name(), flow.stdout())));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

//! One TCP flow at full rate for minutes, across several rekeys: what was sent again, and when.
//!
//! How one knows: the sender's kernel counts the segments it sends again in `TcpRetransSegs` of its own network namespace,
//! which carries nothing but this flow; it is read every 100 ms. The daemon counts the sessions it has made with the
//! peer, asked over its socket as often. A rekey that costs packets shows as segments sent again next to it, and as packets
//! that a daemon counts as dropped for want of a session, or as opened too late or twice. A flow at full rate loses packets in
//! full queues too; one held below it by `--rate` does not, so that there every segment sent again means something.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use meshd::api::{Client, Status};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::bulk::{self, Moved};
use crate::lab::error::Context;
use crate::lab::package::Tree;
use crate::lab::{Error, Host, Lab, Result};
use crate::member::Meshd;
use crate::peer::{Pair, Peer};

/// Between two looks. A rekey's moment is known to this.
const LOOK: Duration = Duration::from_millis(100);
/// How near to a rekey a segment sent again must be to be put down to it: some retransmission timeouts (200 ms at least).
const NEAR: f64 = 1.0;

/// What a run showed. Times are seconds since the flow began.
pub struct Rekeys {
    moved: Moved,
    /// When a new session was first seen.
    rekeys: Vec<f64>,
    /// When segments were first seen to have been sent again, and how many.
    again: Vec<(f64, u64)>,
    /// What the two daemons dropped meanwhile, by reason.
    drops: [BTreeMap<String, u64>; 2],
    seconds: f64,
}

/// Lets a flow run for `time`, at full rate or at `rate` (Mbit/s).
///
/// # Errors
/// Where the tunnel does not come up, or the flow ends early.
pub fn run(meshd: &Meshd, iperf3: &Tree, time: Duration, rate: Option<u16>) -> Result<Rekeys> {
    let lab = Lab::new("tunnel-rekeys")?;
    let pair = Pair::new(&lab)?;
    let running = meshd.start(&pair)?;
    running.wait(&pair)?;
    let _server = bulk::serve(pair.far(), iperf3)?;
    let near = pair.near().clone();
    let runtime = Builder::new_current_thread().enable_all().build().context("start a runtime")?;

    let hosts = [pair.near(), pair.far()];
    let dropped = || Ok::<_, Error>([drops(&status(&runtime, hosts[0])?), drops(&status(&runtime, hosts[1])?)]);
    let dropped_before = dropped()?;

    let flow = bulk::send(&near, iperf3, running.addresses[1], 1, time)?;
    let flow = match rate {
        Some(rate) => flow.args(["-b", &format!("{rate}M")]),
        None => flow,
    };
    let flow = flow.spawn()?;
    let began = Instant::now();
    let (mut before, mut made) = (near.segments_sent_again()?, sessions(&status(&runtime, &near)?));
    let (mut rekeys, mut again) = (Vec::new(), Vec::new());
    while flow.is_running() {
        if began.elapsed() > time + Duration::from_secs(20) {
            return Err(Error::failed("the flow did not end"));
        }
        thread::sleep(LOOK);
        let at = began.elapsed().as_secs_f64();
        let now = near.segments_sent_again()?;
        if now > before {
            again.push((at, now - before));
        }
        let sessions = sessions(&status(&runtime, &near)?);
        if sessions > made {
            rekeys.push(at);
        }
        (before, made) = (now, sessions);
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut drops = dropped()?;
    for (drops, before) in drops.iter_mut().zip(&dropped_before) {
        drops.iter_mut().for_each(|(reason, count)| *count -= before.get(reason).copied().unwrap_or(0));
        drops.retain(|_, count| *count > 0);
    }
    Ok(Rekeys { moved: bulk::read(&flow.stdout())?, rekeys, again, drops, seconds })
}

/// What the host's daemon tells.
fn status(runtime: &Runtime, host: &Host) -> Result<Status> {
    let client = Client::new(host.dir().join("mesh/meshd.sock"));
    runtime.block_on(client.status()).context(format_args!("ask the daemon of {}", host.name()))
}

/// The sessions that a daemon has made so far.
fn sessions(status: &Status) -> u64 {
    status.peers.iter().map(|peer| peer.handshakes).sum()
}

/// What a daemon has dropped so far, by reason.
fn drops(status: &Status) -> BTreeMap<String, u64> {
    let mut drops = status.drops.clone();
    for (reason, count) in status.peers.iter().flat_map(|peer| &peer.drops) {
        *drops.entry(reason.clone()).or_default() += count;
    }
    drops
}

impl Rekeys {
    /// Segments sent again near a rekey, all of them, and the share of the time that is near one.
    fn near(&self) -> (u64, u64, f64) {
        let is_near = |at: f64| self.rekeys.iter().any(|rekey| (at - rekey).abs() <= NEAR);
        let all = self.again.iter().map(|(_, count)| count).sum();
        let near = self.again.iter().filter(|(at, _)| is_near(*at)).map(|(_, count)| count).sum();
        (near, all, (self.rekeys.len() as f64 * 2.0 * NEAR / self.seconds).min(1.0))
    }

    /// Returns everything seen.
    pub fn to_json(&self) -> Value {
        let (near, all, share) = self.near();
        json!({
            "seconds": self.seconds, "gbit_per_s": self.moved.rate(), "rekeys_at_s": self.rekeys,
            "sent_again": all, "sent_again_near_rekeys": near, "share_of_time_near_rekeys": share,
            "sent_again_at_s": self.again, "dropped_near": self.drops[0], "dropped_far": self.drops[1],
        })
    }
}

impl fmt::Display for Rekeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (near, all, share) = self.near();
        writeln!(
            f,
            "one TCP flow over {:.0} s: {:.2} Gbit/s, {} rekeys",
            self.seconds,
            self.moved.rate(),
            self.rekeys.len()
        )?;
        writeln!(f, "segments sent again: {all} by the kernel's count ({} by iperf3's)", self.moved.retransmits)?;
        for rekey in &self.rekeys {
            let near = self.again.iter().filter(|(at, _)| (at - rekey).abs() <= NEAR);
            let count: u64 = near.map(|(_, count)| count).sum();
            writeln!(f, "  rekey at {rekey:.1} s: {count} sent again within {NEAR} s of it")?;
        }
        writeln!(f, "dropped by the daemons meanwhile, by reason: near {:?}, far {:?}", self.drops[0], self.drops[1])?;
        writeln!(
            f,
            "near rekeys: {near} of {all}; those seconds are {:.1} % of the time, so {:.1} would be there by chance",
            share * 100.0,
            all as f64 * share
        )
    }
}

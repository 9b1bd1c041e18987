//! One TCP flow at full rate for minutes, across several rekeys: what was sent again, and when.
//!
//! How one knows: the sender's kernel counts the segments it sends again in `TcpRetransSegs` of its own network namespace,
//! which carries nothing but this flow; it is read every 100 ms. The daemon counts the sessions it has made with the
//! peer, asked over its socket as often. A rekey that costs packets shows as segments sent again next to it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use meshd::api::Client;
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
    seconds: f64,
}

/// Lets a flow run for `time`.
///
/// # Errors
/// Where the tunnel does not come up, or the flow ends early.
pub fn run(meshd: &Meshd, iperf3: &Tree, time: Duration) -> Result<Rekeys> {
    let lab = Lab::new("tunnel-rekeys")?;
    let pair = Pair::new(&lab)?;
    let running = meshd.start(&pair)?;
    running.wait(&pair)?;
    let _server = bulk::serve(pair.far(), iperf3)?;
    let near = pair.near().clone();
    let socket = near.dir().join("mesh/meshd.sock");
    let runtime = Builder::new_current_thread().enable_all().build().context("start a runtime")?;

    let flow = bulk::send(&near, iperf3, running.addresses[1], 1, time)?.spawn()?;
    let began = Instant::now();
    let (mut before, mut made) = (sent_again(&near)?, sessions(&runtime, &socket)?);
    let (mut rekeys, mut again) = (Vec::new(), Vec::new());
    while flow.is_running() {
        if began.elapsed() > time + Duration::from_secs(20) {
            return Err(Error::failed("the flow did not end"));
        }
        thread::sleep(LOOK);
        let at = began.elapsed().as_secs_f64();
        let now = sent_again(&near)?;
        if now > before {
            again.push((at, now - before));
        }
        let sessions = sessions(&runtime, &socket)?;
        if sessions > made {
            rekeys.push(at);
        }
        (before, made) = (now, sessions);
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Rekeys { moved: bulk::read(&flow.stdout())?, rekeys, again, seconds })
}

/// The host's count of TCP segments sent again.
fn sent_again(host: &Host) -> Result<u64> {
    let text =
        host.enter(|| fs::read_to_string("/proc/thread-self/net/snmp")).context("read the host's TCP counters")?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let count = match (lines.next(), lines.next()) {
        (Some(names), Some(values)) => names.zip(values).find(|(name, _)| *name == "RetransSegs"),
        _ => None,
    };
    let count = count.and_then(|(_, value)| value.parse().ok());
    count.ok_or_else(|| Error::failed("the kernel tells no RetransSegs"))
}

/// The sessions that the daemon has made so far.
fn sessions(runtime: &Runtime, socket: &Path) -> Result<u64> {
    let status = runtime.block_on(Client::new(socket).status()).context("ask the daemon")?;
    Ok(status.peers.iter().map(|peer| peer.handshakes).sum())
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
            "sent_again_at_s": self.again,
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
        writeln!(
            f,
            "near rekeys: {near} of {all}; those seconds are {:.1} % of the time, so {:.1} would be there by chance",
            share * 100.0,
            all as f64 * share
        )
    }
}

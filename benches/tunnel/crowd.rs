//! One meshd among many peers with live sessions: what memory it takes.

use std::fmt;
use std::time::Duration;

use meshd::api::{Client, PeerState};
use serde_json::{Value, json};

use crate::circle::Circle;
use crate::lab::error::Context;
use crate::lab::{Error, Lab, Result};
use crate::member::Meshd;
use crate::meter::{self, Memory};
use crate::peer::Pair;

/// How long the daemon lives with them before its memory is read: some rounds of probes and digests.
const HOLD: Duration = Duration::from_secs(20);
/// Time between two probes of a link: meshd's own.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a run showed.
pub struct Crowd {
    peers: usize,
    /// Peers with which the daemon says it has a session and a link that is up.
    live: usize,
    /// How long it took until all had a session, seconds.
    seconds: f64,
    alone: Memory,
    together: Memory,
}

/// Lets `count` peers (at most 30,000) make themselves known to one daemon.
///
/// # Errors
/// Where the daemon does not start, or not all of them get a session.
pub fn run(meshd: &Meshd, count: usize) -> Result<Crowd> {
    let lab = Lab::new("tunnel-crowd")?;
    let crowd = among(&lab, meshd, count);
    if matches!(crowd, Err(Error::Failed(_))) {
        lab.fail();
    }
    crowd
}

fn among(lab: &Lab, meshd: &Meshd, count: usize) -> Result<Crowd> {
    let pair = Pair::new(lab)?;
    let daemon = meshd.start_alone(&pair)?;
    daemon.wait_for_output(" is up", Duration::from_secs(20))?;
    let alone = meter::memory(daemon.pid())?;
    let mut circle = Circle::new(&pair.places[0], &pair.places[1], count, INTERVAL)?;
    let seconds = circle.gather()?;
    circle.live(HOLD)?;
    // Before the daemon is asked for anything: its answer is large and takes memory too.
    let together = meter::memory(daemon.pid())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let socket = pair.near().dir().join("mesh/meshd.sock");
    let status = runtime.block_on(Client::new(socket).status()).context("ask the daemon")?;
    let live = status.peers.iter().filter(|peer| peer.state == PeerState::Up && peer.session_age_seconds.is_some());
    Ok(Crowd { peers: count, live: live.count(), seconds, alone, together })
}

impl Crowd {
    /// Returns everything seen.
    pub fn to_json(&self) -> Value {
        json!({
            "peers": self.peers, "live": self.live, "seconds_until_all_live": self.seconds,
            "memory_alone_mib": self.alone.now, "memory_mib": self.together.now, "memory_peak_mib": self.together.peak,
        })
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "meshd with {} peers ({} up with a session, the last after {:.1} s): {:.1} MiB resident (peak {:.1}, alone {:.1}), \
             {:.1} KiB a peer; target for 1,000: ≤ 40 MiB",
            self.peers,
            self.live,
            self.seconds,
            self.together.now,
            self.together.peak,
            self.alone.now,
            (self.together.now - self.alone.now) * 1024.0 / self.peers as f64
        )
    }
}

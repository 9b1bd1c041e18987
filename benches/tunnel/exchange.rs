//! TCP requests and responses, one after the other, by sockperf.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::lab::package::Tree;
use crate::lab::{Error, Host, Result};

/// Any port that nothing else here uses.
const PORT: &str = "11111";

/// Round trips in microseconds, of 64 bytes each way.
#[derive(Clone, Copy, Debug)]
pub struct Exchanges {
    /// The median.
    pub p50: f64,
    /// What one in a hundred exceeds.
    pub p99: f64,
}

/// Exchanges as many as pass in `time`.
///
/// # Errors
/// Where sockperf fails, or tells nothing.
pub fn run(near: &Host, far: &Host, sockperf: &Tree, to: Ipv4Addr, time: Duration) -> Result<Exchanges> {
    let server = far.command_from(sockperf, "sockperf")?.args(["server", "--tcp", "-p", PORT]).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let client = near.command_from(sockperf, "sockperf")?.args(["ping-pong", "--tcp", "--full-rtt", "-m", "64"]);
        let client = client.args(["-i", &to.to_string(), "-p", PORT, "-t", &time.as_secs().max(1).to_string()]);
        let done = client.limit(time + Duration::from_secs(15)).output()?;
        let quantile = |name: &str| {
            let line = done.stdout.lines().find(|line| line.contains("percentile") && line.contains(name));
            line.and_then(|line| line.rsplit_once('=')).and_then(|(_, value)| value.trim().parse().ok())
        };
        if let (Some(p50), Some(p99)) = (quantile("50.000"), quantile("99.000")) {
            return Ok(Exchanges { p50, p99 });
        }
        // The server may not listen yet; it does not say when it does.
        if Instant::now() > deadline {
            let said = format!("{}{}{}{}", done.stdout, done.stderr, server.stdout(), server.stderr());
            return Err(Error::failed(format!("sockperf gave no percentiles: {said}")));
        }
    }
}

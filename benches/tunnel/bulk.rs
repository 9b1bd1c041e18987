//! TCP at full rate, by iperf3.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;

use crate::lab::error::Context;
use crate::lab::package::Tree;
use crate::lab::{Error, Host, HostCommand, Proc, Result};

/// What a run moved.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// What the receiver got, in Gbit of TCP payload.
    pub gbit: f64,
    /// Over how long, in seconds.
    pub seconds: f64,
    /// Segments sent again, as the sender's kernel counts them.
    pub retransmits: u64,
}

impl Moved {
    /// Gbit/s of TCP payload.
    pub fn rate(&self) -> f64 {
        self.gbit / self.seconds
    }
}

/// Starts the receiving side; it serves one run after the other.
///
/// # Errors
/// Where it does not start.
pub fn serve(host: &Host, iperf3: &Tree) -> Result<Proc> {
    let server = host.command_from(iperf3, "iperf3")?.args(["-s", "--forceflush"]).spawn()?;
    server.wait_for_output("listening", Duration::from_secs(5))?;
    Ok(server)
}

/// Prepares a sender of so many flows.
///
/// # Errors
/// NOT RUN where there is no iperf3.
pub fn send(host: &Host, iperf3: &Tree, to: Ipv4Addr, flows: u32, time: Duration) -> Result<HostCommand> {
    let command = host.command_from(iperf3, "iperf3")?.args(["-c", &to.to_string(), "-J", "-i", "0"]);
    let command = command.args(["-P", &flows.to_string(), "-t", &time.as_secs().max(1).to_string()]);
    Ok(command.limit(time + Duration::from_secs(20)))
}

/// Reads what a sender has written.
///
/// # Errors
/// Where it tells of an error, or nothing.
pub fn read(told: &str) -> Result<Moved> {
    let told: Value = serde_json::from_str(told).context("what iperf3 told")?;
    if let Some(error) = told.get("error") {
        return Err(Error::failed(format!("iperf3: {error}")));
    }
    let number = |path: &str| told.pointer(path).and_then(Value::as_f64);
    let bytes = number("/end/sum_received/bytes").ok_or_else(|| Error::failed("iperf3 tells no bytes received"))?;
    let seconds = number("/end/sum_received/seconds").ok_or_else(|| Error::failed("iperf3 tells no time"))?;
    let retransmits = told.pointer("/end/sum_sent/retransmits").and_then(Value::as_u64).unwrap_or(0);
    Ok(Moved { gbit: bytes * 8.0 / 1e9, seconds, retransmits })
}

//! What a tunnel's daemons have used so far, as the kernel counts it.

use std::fs;
use std::time::Duration;

use crate::lab::error::Context;
use crate::lab::{Error, Proc, Result};

/// Ticks of a second in `/proc/PID/stat`: fixed for user space on every Linux architecture in use (proc_pid_stat(5)).
const TICKS: u32 = 100;

/// Time on a processor of all these daemons: user and system, all threads, also those that have ended.
///
/// # Errors
/// Where one is gone.
pub fn processor_time(daemons: &[Proc]) -> Result<Duration> {
    daemons.iter().map(|daemon| time_of(daemon.pid())).sum()
}

fn time_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(&path)?;
    // The name is in brackets and may hold anything; utime and stime are the 14th and 15th field, the 12th and 13th after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2);
    let ticks: Option<Vec<u32>> = fields.map(|field| field.parse().ok()).collect();
    match ticks.as_deref() {
        Some([user, system]) => Ok(Duration::from_secs(1) * (user + system) / TICKS),
        _ => Err(Error::failed(format!("{path} has no times"))),
    }
}

/// Resident memory of a process in MiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Now.
    pub now: f64,
    /// At most, since it started.
    pub peak: f64,
}

/// Reads the memory of the daemon that has most; nothing where there is none.
///
/// # Errors
/// Where one is gone.
pub fn largest_memory(daemons: &[Proc]) -> Result<Memory> {
    let mut largest = Memory::default();
    for daemon in daemons {
        let memory = memory(daemon.pid())?;
        largest.now = largest.now.max(memory.now);
        largest.peak = largest.peak.max(memory.peak);
    }
    Ok(largest)
}

/// Reads a process's memory.
///
/// # Errors
/// Where it is gone.
pub fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(&path)?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib: Option<f64> = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok());
        kib.map(|kib| kib / 1024.0).ok_or_else(|| Error::failed(format!("{path} names no {name}")))
    };
    Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

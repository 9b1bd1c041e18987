//! What a process has cost so far, as the kernel counts it.

use std::fs;
use std::time::Duration;

use crate::lab::error::Context;
use crate::lab::{Error, Result};

/// Time on a processor and number of sleeps, of all threads alive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a processor, to the nanosecond; the kernel's work for the process included.
    pub cpu: Duration,
    /// How often a thread went to sleep, and so was woken.
    pub sleeps: u64,
}

impl Usage {
    /// Reads the process's usage.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn of(pid: u32) -> Result<Usage> {
        let mut usage = Usage::default();
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).context(&tasks)? {
            let path = task.context(&tasks)?.path();
            // A thread that has just ended takes its figures with it; the daemons here keep theirs.
            let Ok(schedstat) = fs::read_to_string(path.join("schedstat")) else { continue };
            let nanos = schedstat.split_whitespace().next().and_then(|field| field.parse().ok());
            usage.cpu += Duration::from_nanos(nanos.ok_or_else(|| Error::failed("schedstat has no figures"))?);
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            usage.sleeps += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(usage)
    }
}

/// The most memory the process has had resident, in bytes.
///
/// # Errors
/// Where the process is gone.
pub fn peak_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(&path)?;
    let kib = field(&status, "VmHWM:").ok_or_else(|| Error::failed(format!("{path} names no VmHWM")))?;
    Ok(kib * 1024)
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

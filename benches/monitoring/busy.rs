//! Processors with nothing left over: one endless loop for each of them.

use crate::lab::{Host, Proc, Result};

/// Loops that run until this is dropped.
pub struct Busy {
    _loops: Vec<Proc>,
}

impl Busy {
    /// Starts as many loops as there are processors, at the priority that any program has.
    ///
    /// # Errors
    /// Where they cannot be started.
    pub fn start(host: &Host) -> Result<Busy> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let start = |_| host.command("/bin/sh").args(["-c", "while :; do :; done"]).spawn();
        Ok(Busy { _loops: (0..count).map(start).collect::<Result<_>>()? })
    }
}

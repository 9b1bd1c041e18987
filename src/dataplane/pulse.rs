//! What proves that a data thread turns.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count of a thread's turns, the waits that ended with nothing included.
#[derive(Debug, Default)]
pub(super) struct Pulse(AtomicU64);

impl Pulse {
    /// Notes one turn; only the thread itself does.
    pub(super) fn beat(&self) {
        self.0.store(self.count().wrapping_add(1), Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

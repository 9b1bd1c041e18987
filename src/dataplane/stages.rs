//! How long packets wait for this host, stage by stage on their way.
//!
//! ```text
//!  out   the device ─ TunRx: read, find the peers ─▶ Encrypt: seal, until the kernel has the datagrams ─▶
//!  in    the kernel's stamp ─ UdpRx: in the socket, until taken ─▶ Decrypt: open, judge ─▶ TunTx: write to the device ─▶
//! ```
//!
//! One time for each batch and stage, that of the packet which waited longest. How long a packet lies in the device before it
//! is read is not known, for the kernel stamps nothing there.

use crate::time::Instant;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A stage of a packet's way through this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Packets are read from the device and their peers found.
    TunRx,
    /// They are sealed and handed to the kernel.
    Encrypt,
    /// Datagrams lie in the socket, from the kernel's stamp until they are taken.
    UdpRx,
    /// They are opened and judged.
    Decrypt,
    /// They are written to the device.
    TunTx,
}

impl Stage {
    /// All stages, in the order of their discriminants.
    pub const ALL: [Stage; 5] = [Stage::TunRx, Stage::Encrypt, Stage::UdpRx, Stage::Decrypt, Stage::TunTx];

    /// Its name as a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::TunRx => "tun_rx",
            Stage::Encrypt => "encrypt",
            Stage::UdpRx => "udp_rx",
            Stage::Decrypt => "decrypt",
            Stage::TunTx => "tun_tx",
        }
    }
}

/// Times of one stage, counted in buckets whose bounds double.
#[derive(Debug, Default)]
pub(super) struct Delays {
    counts: [AtomicU64; DelayReading::BUCKETS],
    nanos: AtomicU64,
}

/// A reading of one stage's times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelayReading {
    /// How many times lay in each bucket: up to [`DelayReading::FIRST`], up to twice that, and so on; the last has no bound.
    pub counts: [u64; DelayReading::BUCKETS],
    /// The sum of all, in nanoseconds.
    pub nanos: u64,
}

impl DelayReading {
    /// Buckets, the last one without a bound.
    pub const BUCKETS: usize = 19;
    /// The first bucket's bound: what lies below is nobody's trouble.
    pub const FIRST: Duration = Duration::from_micros(50);

    /// Returns the sums of two readings.
    #[must_use]
    pub(super) fn plus(&self, other: &Self) -> Self {
        DelayReading {
            counts: std::array::from_fn(|bucket| self.counts[bucket] + other.counts[bucket]),
            nanos: self.nanos + other.nanos,
        }
    }
}

impl Delays {
    pub(super) fn record(&self, from: Instant, to: Instant) {
        let nanos = to.saturating_since(from).as_nanos() as u64;
        // Doublings of the first bound until it is not below the time.
        let firsts = nanos.saturating_sub(1) / DelayReading::FIRST.as_nanos() as u64;
        let bucket = ((u64::BITS - firsts.leading_zeros()) as usize).min(DelayReading::BUCKETS - 1);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> DelayReading {
        DelayReading {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed)),
            nanos: self.nanos.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_lies_below_its_bound_and_above_the_one_before() {
        let bounds: Vec<u64> = (0..18).map(|doublings| 50_000 << doublings).collect();
        for (place, bound) in bounds.iter().enumerate() {
            for (nanos, bucket) in [(bound - 1, place), (*bound, place), (bound + 1, place + 1)] {
                let delays = Delays::default();
                delays.record(Instant::from_nanos(7), Instant::from_nanos(7 + nanos));
                let reading = delays.read();
                assert_eq!((reading.counts[bucket], reading.nanos), (1, nanos), "{nanos} ns");
            }
        }
        let delays = Delays::default();
        delays.record(Instant::from_nanos(9), Instant::from_nanos(9));
        delays.record(Instant::from_nanos(9), Instant::from_nanos(8));
        delays.record(Instant::ZERO, Instant::from_nanos(u64::MAX));
        assert_eq!((delays.read().counts[0], delays.read().counts[18]), (2, 1));
    }
}

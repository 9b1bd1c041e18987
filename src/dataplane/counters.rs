//! What the data threads count. Readers see each number whole; sums over several may be a packet apart.

use super::stages::{DelayReading, Delays, Stage};
use crate::time::Instant;
use crate::wire::DropReason;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one direction. Only its data thread adds; anyone reads.
#[derive(Debug, Default)]
pub struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    ignored: AtomicU64,
    relayed_packets: AtomicU64,
    relayed_bytes: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
    stages: [Delays; Stage::ALL.len()],
}

/// A reading of [`Counters`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountersReading {
    /// Inner packets that went through.
    pub packets: u64,
    /// Their bytes, without padding and outer headers.
    pub bytes: u64,
    /// Wake-ups that brought at least one packet; packets by batches is how well batching works.
    pub batches: u64,
    /// Multicast, broadcast and link-local packets, which have no place in the mesh and are no fault.
    pub ignored: u64,
    /// Sealed datagrams of others that were passed on, in their wrapping.
    pub relayed_packets: u64,
    /// Their bytes, without padding and outer headers.
    pub relayed_bytes: u64,
    /// Drops by reason, in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// How long packets waited at each stage of this direction, in the order of [`Stage::ALL`].
    pub stages: [DelayReading; Stage::ALL.len()],
}

impl CountersReading {
    /// Returns how many packets were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Returns the sums of two readings.
    #[must_use]
    pub(super) fn plus(&self, other: &Self) -> Self {
        CountersReading {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            batches: self.batches + other.batches,
            ignored: self.ignored + other.ignored,
            relayed_packets: self.relayed_packets + other.relayed_packets,
            relayed_bytes: self.relayed_bytes + other.relayed_bytes,
            drops: std::array::from_fn(|reason| self.drops[reason] + other.drops[reason]),
            stages: std::array::from_fn(|stage| self.stages[stage].plus(&other.stages[stage])),
        }
    }
}

impl Counters {
    /// Reads all counters.
    pub fn read(&self) -> CountersReading {
        CountersReading {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            ignored: self.ignored.load(Ordering::Relaxed),
            relayed_packets: self.relayed_packets.load(Ordering::Relaxed),
            relayed_bytes: self.relayed_bytes.load(Ordering::Relaxed),
            drops: std::array::from_fn(|reason| self.drops[reason].load(Ordering::Relaxed)),
            stages: std::array::from_fn(|stage| self.stages[stage].read()),
        }
    }

    pub(super) fn passed(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn batch(&self) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ignored(&self) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn waited(&self, stage: Stage, from: Instant, to: Instant) {
        self.stages[stage as usize].record(from, to);
    }

    pub(super) fn relayed(&self, bytes: u64) {
        self.relayed_packets.fetch_add(1, Ordering::Relaxed);
        self.relayed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let counters = Counters::default();
        for (times, &reason) in DropReason::ALL.iter().enumerate() {
            (0..times).for_each(|_| counters.dropped(reason));
        }
        counters.passed(2, 100);
        counters.waited(Stage::Encrypt, Instant::ZERO, Instant::from_nanos(300));
        let reading = counters.read();
        for (times, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reading.dropped(reason), times as u64);
        }
        assert_eq!((reading.packets, reading.bytes, reading.batches, reading.ignored), (2, 100, 0, 0));
        let twice = reading.plus(&reading);
        assert_eq!((twice.packets, twice.bytes, twice.drops[1]), (4, 200, 2));
        let waited = twice.stages.map(|stage| (stage.counts[0], stage.nanos));
        assert_eq!(waited, [(0, 0), (2, 600), (0, 0), (0, 0), (0, 0)]);
    }
}

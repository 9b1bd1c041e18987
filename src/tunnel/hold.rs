//! Packets that wait for a session: a short queue per peer, and one budget for all of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::time::Instant;

/// Packets one peer may have waiting: a thousand a second for a second, which is longer than any start that loses no
/// message. (The kernel's 128 are 128 ms of that, less than the one and a half round trips of a crossing start between continents.)
pub(super) const MOST_PACKETS: usize = 1_024;

/// Memory one peer's waiting packets may take: a second of a thousand packets of 1,000 bytes. 700 of a usual MTU are more
/// than come to a restart's pause at that rate.
pub(super) const MOST_BYTES: usize = 1_024 * 1_024;

/// A packet longer than this is part of a transfer, which sends again what is lost; of the room for packets and bytes, all of
/// those together may take three quarters, so that a transfer does not crowd out queries and their answers.
const BULK: usize = 512;

/// What a waiting packet takes besides its bytes: its place in the queue, and the allocator's share.
const PLACE: usize = 64;

/// Memory all peers' waiting packets together may take, so that a mesh whose uplink is gone costs a bounded amount of memory.
pub(super) const BUDGET: usize = 16 * 1_024 * 1_024;

/// How long a packet is worth sending: one wait of the reconnect loop at its slowest. TCP has sent it again long since.
pub(super) const LIFE: Duration = Duration::from_secs(30);

/// Memory taken by the waiting packets of all peers of a host.
pub(super) struct HoldBudget {
    used: AtomicUsize,
    limit: usize,
}

impl HoldBudget {
    pub(super) fn new(limit: usize) -> Arc<HoldBudget> {
        Arc::new(HoldBudget { used: AtomicUsize::new(0), limit })
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let grown = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One peer's waiting packets, oldest first.
pub(super) struct HoldQueue {
    packets: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    budget: Arc<HoldBudget>,
}

impl HoldQueue {
    pub(super) fn new(budget: Arc<HoldBudget>) -> HoldQueue {
        HoldQueue { packets: VecDeque::new(), bytes: 0, budget }
    }

    /// Copies the packet in; false when one of the bounds is reached.
    pub(super) fn push(&mut self, now: Instant, packet: &[u8]) -> bool {
        let bytes = packet.len() + PLACE;
        let share = |most: usize| if packet.len() > BULK { most / 4 * 3 } else { most };
        let fits = self.packets.len() < share(MOST_PACKETS) && self.bytes + bytes <= share(MOST_BYTES);
        if !fits || !self.budget.take(bytes) {
            return false;
        }
        self.bytes += bytes;
        self.packets.push_back((now, packet.to_vec()));
        true
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len() + PLACE;
        self.budget.give(packet.len() + PLACE);
        if self.packets.is_empty() {
            self.packets = VecDeque::new();
        }
        Some(packet)
    }

    /// When the oldest packet is no longer worth sending.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.packets.front().map(|(since, _)| *since + LIFE)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }

    pub(super) fn clear(&mut self) {
        while self.pop().is_some() {}
    }
}

impl Drop for HoldQueue {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_refuses_and_gives_back() {
        let small = MOST_PACKETS * (PLACE + 1);
        let budget = HoldBudget::new(small + 900);
        let mut first = HoldQueue::new(budget.clone());
        let mut second = HoldQueue::new(budget.clone());
        for _ in 0..MOST_PACKETS {
            assert!(first.push(Instant::ZERO, &[1]));
        }
        assert!(!first.push(Instant::ZERO, &[1]), "packets per peer");
        assert!(!second.push(Instant::ZERO, &[0; 900 - PLACE + 1]), "budget of the host");
        assert!(second.push(Instant::ZERO, &[0; 900 - PLACE]));
        drop(first);
        assert_eq!(budget.used(), 900);
        second.clear();
        assert_eq!(budget.used(), 0);

        let mut wide = HoldQueue::new(HoldBudget::new(BUDGET));
        let length = MOST_BYTES / 4 - PLACE;
        assert!((0..3).all(|_| wide.push(Instant::ZERO, &vec![0; length])));
        assert!(!wide.push(Instant::ZERO, &vec![0; BULK + 1]), "a transfer has its share");
        while wide.push(Instant::ZERO, &[0; BULK]) {}
        assert!(wide.packets.len() < MOST_PACKETS && wide.bytes > MOST_BYTES - BULK - PLACE, "bytes per peer");
    }
}

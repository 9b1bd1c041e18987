//! The numbers by which peers address our sessions: random, 24 bits, each claimed by one handshake.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use rand_core::RngCore;

use super::Shard;
use super::tunnel::Tunnel;

/// Locks are spread over this many shards so that threads opening packets of different sessions rarely share one.
const SHARDS: usize = 64;

/// Draws before a claim is given up. With one shard and a table half full (eight million sessions) the chance to fail is
/// 2^-512; with sixteen shards, which take one draw in sixteen, still 2^-46.
const DRAWS: usize = 1_024;

/// Which tunnel a receiver index belongs to.
///
/// boringtun appends eight bits of its own to the number; a handshake of ours uses one value of them, and sessions
/// compare the whole 32 bits again before they open anything.
pub(super) struct IndexTable {
    shards: Vec<RwLock<HashMap<u32, Weak<Tunnel>>>>,
}

impl IndexTable {
    pub(super) fn new() -> Arc<IndexTable> {
        Arc::new(IndexTable { shards: (0..SHARDS).map(|_| RwLock::default()).collect() })
    }

    fn shard(&self, number: u32) -> &RwLock<HashMap<u32, Weak<Tunnel>>> {
        &self.shards[number as usize % SHARDS]
    }

    /// Claims a random free number of `shard`'s for `owner`; `None` when they are as good as all taken.
    pub(super) fn claim(self: &Arc<Self>, rng: &mut impl RngCore, owner: &Weak<Tunnel>, shard: Shard) -> Option<Slot> {
        for _ in 0..DRAWS {
            let number = rng.next_u32() >> 8;
            if !shard.owns(number) {
                continue;
            }
            let mut shard = self.shard(number).write().unwrap_or_else(PoisonError::into_inner);
            if let Entry::Vacant(vacant) = shard.entry(number) {
                vacant.insert(owner.clone());
                return Some(Slot { table: self.clone(), number });
            }
        }
        None
    }

    /// Finds the tunnel that claimed the number inside `receiver_index`.
    pub(super) fn find(&self, receiver_index: u32) -> Option<Arc<Tunnel>> {
        let number = receiver_index >> 8;
        self.shard(number).read().unwrap_or_else(PoisonError::into_inner).get(&number)?.upgrade()
    }

    /// How many numbers are claimed.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

/// A claimed number; free again when dropped.
pub(super) struct Slot {
    table: Arc<IndexTable>,
    number: u32,
}

impl Slot {
    /// The claimed 24-bit number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut shard = self.table.shard(self.number).write().unwrap_or_else(PoisonError::into_inner);
        shard.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    /// Draws the same number three times before it moves on.
    struct Stuck(u32);

    impl RngCore for Stuck {
        fn next_u32(&mut self) -> u32 {
            self.0 += 1;
            (self.0 / 3) << 8
        }
        fn next_u64(&mut self) -> u64 {
            u64::from(self.next_u32())
        }
        fn fill_bytes(&mut self, dest: &mut [u8]) {
            dest.fill(0);
        }
        fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
            dest.fill(0);
            Ok(())
        }
    }

    #[test]
    fn a_collision_is_drawn_again_and_a_dropped_slot_is_free() {
        let table = IndexTable::new();
        let mut rng = Stuck(2);
        let first = table.claim(&mut rng, &Weak::new(), Shard::default()).unwrap();
        let second = table.claim(&mut rng, &Weak::new(), Shard::default()).unwrap();
        assert_ne!(first.number(), second.number());
        assert_eq!(table.len(), 2);
        drop(first);
        drop(second);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_number_says_whose_it_is() {
        let table = IndexTable::new();
        let mut rng = rand_chacha::ChaCha20Rng::from_seed([7; 32]);
        for of in [1, 2, 3, 4, 16] {
            for number in 0..of {
                let shard = Shard { number, of };
                let slot = table.claim(&mut rng, &Weak::new(), shard).unwrap();
                // Byte 5 of a data message: the receiver index starts at 4, little-endian, with boringtun's byte.
                assert_eq!((slot.number() << 8).to_le_bytes()[1] % of, number);
            }
        }
    }
}

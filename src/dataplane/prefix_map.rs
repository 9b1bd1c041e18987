//! Longest-prefix lookup over sorted arrays, one per prefix length.

use std::fmt::Debug;

/// An address as an integer.
pub(super) trait Bits: Copy + Ord + Debug {
    /// Bits of an address.
    const WIDTH: u8;

    /// Clears all but the first `length` bits.
    fn masked(self, length: u8) -> Self;
}

impl Bits for u32 {
    const WIDTH: u8 = 32;

    fn masked(self, length: u8) -> Self {
        self & u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)
    }
}

impl Bits for u128 {
    const WIDTH: u8 = 128;

    fn masked(self, length: u8) -> Self {
        self & u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
    }
}

/// An immutable map from prefixes to values.
///
/// A mesh has one host address per node and a handful of prefix lengths beside, so a lookup is one binary search, in
/// most cases, and a few at worst. Hashing would be no faster at these sizes and would need a keyed hash, because
/// members choose their prefixes.
#[derive(Debug)]
pub(super) struct PrefixMap<K, V> {
    /// Longest prefixes first; none is empty.
    levels: Box<[Level<K, V>]>,
}

#[derive(Debug)]
struct Level<K, V> {
    length: u8,
    keys: Box<[K]>,
    values: Box<[V]>,
}

impl<K: Bits, V: Copy> PrefixMap<K, V> {
    /// Builds the map. Of entries with the same prefix the first stays.
    pub(super) fn build(entries: impl IntoIterator<Item = (K, u8, V)>) -> Self {
        let mut entries: Vec<_> =
            entries.into_iter().map(|(key, length, value)| (key.masked(length), length.min(K::WIDTH), value)).collect();
        // Stable, so that the first of equals comes first.
        entries.sort_by_key(|&(key, length, _)| (std::cmp::Reverse(length), key));
        entries.dedup_by_key(|&mut (key, length, _)| (length, key));
        let levels = entries
            .chunk_by(|a, b| a.1 == b.1)
            .map(|level| Level {
                length: level[0].1,
                keys: level.iter().map(|entry| entry.0).collect(),
                values: level.iter().map(|entry| entry.2).collect(),
            })
            .collect();
        PrefixMap { levels }
    }

    /// Returns the value of the longest prefix that contains `address`.
    pub(super) fn find(&self, address: K) -> Option<V> {
        self.levels.iter().find_map(|level| {
            let at = level.keys.binary_search(&address.masked(level.length)).ok()?;
            Some(level.values[at])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_wins_and_the_first_of_equals_stays() {
        let map = PrefixMap::build([
            (0x0a00_0000u32, 8, 'a'),
            (0x0a01_0000, 16, 'b'),
            (0x0a01_0203, 32, 'c'),
            (0, 0, 'd'),
            (0x0a01_ffff, 16, 'e'),
        ]);
        for (address, value) in [(0x0a01_0203, 'c'), (0x0a01_0204, 'b'), (0x0a02_0000, 'a'), (0x0b00_0000, 'd')] {
            assert_eq!(map.find(address), Some(value), "{address:#x}");
        }
        assert_eq!(PrefixMap::<u32, u8>::build([]).find(1), None);
        assert_eq!(PrefixMap::build([(7u128, 128, 'x')]).find(8), None);
    }

    proptest! {
        /// Against the obvious: try every entry and keep the longest match.
        #[test]
        fn lookups_agree_with_a_linear_search(
            entries in proptest::collection::vec((0u32..64, 0u8..=32, any::<u16>()), 0..40),
            addresses in proptest::collection::vec(0u32..64, 1..20),
        ) {
            // Few distinct top bits make overlaps common.
            let entries: Vec<_> = entries.into_iter().map(|(key, length, v)| (key << 26 | key, length, v)).collect();
            let map = PrefixMap::build(entries.iter().copied());
            for address in addresses.into_iter().map(|address| address << 26 | address) {
                let mut best: Option<(u8, u16)> = None;
                for &(key, length, value) in &entries {
                    if key.masked(length) == address.masked(length) && best.is_none_or(|(l, _)| length > l) {
                        best = Some((length, value));
                    }
                }
                prop_assert_eq!(map.find(address), best.map(|(_, value)| value));
            }
        }
    }
}

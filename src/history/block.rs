//! The buckets of one link that lie in one row, packed together.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::telemetry::Bucket;
use crate::telemetry::packed;
use crate::telemetry::varint::{self, Damaged};

/// A block's buckets by their place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    buckets: BTreeMap<u16, Bucket>,
}

/// Places in a block at most: a day of ten minutes has 144.
const PLACES: u64 = 1_440;
/// What a packed row begins with. The first layout began with a place, and this is none: read as one it is 16,383.
const PACKED: [u8; 2] = [0xff, 0x7f];
/// Bytes of the sum at the end of a packed row, in which a flipped bit would change everything that follows it.
const SUM: usize = 4;

fn sum_of(bytes: &[u8]) -> [u8; SUM] {
    let digest = Sha256::digest(bytes);
    std::array::from_fn(|i| digest[i])
}

impl Block {
    /// Reads a row of either layout.
    pub(super) fn decode(bytes: &[u8]) -> Result<Block, Damaged> {
        let Some(rest) = bytes.strip_prefix(&PACKED) else { return Block::decode_first_layout(bytes) };
        let (packed, sum) = rest.split_last_chunk::<SUM>().ok_or(Damaged)?;
        if sum_of(packed) != *sum {
            return Err(Damaged);
        }
        Ok(Block { buckets: packed::unpack(packed, PLACES)? })
    }

    /// Reads a row as the first version wrote it: each bucket by itself, with its place and its length.
    fn decode_first_layout(mut bytes: &[u8]) -> Result<Block, Damaged> {
        let mut block = Block::default();
        while !bytes.is_empty() {
            let place = varint::read(&mut bytes)?;
            let length = usize::try_from(varint::read(&mut bytes)?).map_err(|_| Damaged)?;
            if place >= PLACES || length > bytes.len() {
                return Err(Damaged);
            }
            let (bucket, rest) = bytes.split_at(length);
            block.buckets.insert(place as u16, Bucket::decode(bucket)?);
            bytes = rest;
        }
        Ok(block)
    }

    /// Writes a row.
    pub(super) fn encode(&self) -> Vec<u8> {
        let packed = packed::pack(&self.buckets);
        [&PACKED[..], &packed, &sum_of(&packed)].concat()
    }

    /// Adds what a bucket holds to what is at its place already.
    pub(super) fn merge(&mut self, place: u16, more: &Bucket) {
        self.buckets.entry(place).or_default().merge(more);
    }

    /// The buckets in the order of time.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Bucket)> {
        self.buckets.iter().map(|(place, bucket)| (*place, bucket))
    }

    /// Writes a row as the first version did.
    #[cfg(test)]
    pub(super) fn encode_first_layout(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (place, bucket) in &self.buckets {
            let bucket = bucket.encode();
            varint::write(&mut out, u64::from(*place));
            varint::write(&mut out, bucket.len() as u64);
            out.extend_from_slice(&bucket);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_merged_reads_back_in_either_layout(
            answers in prop::collection::vec((0u16..1_440, 1u64..100), 0..60),
        ) {
            let (mut block, mut want) = (Block::default(), BTreeMap::<u16, u64>::new());
            for (place, answered) in answers {
                block.merge(place, &Bucket { answered, ..Bucket::default() });
                *want.entry(place).or_default() += answered;
            }
            let read = Block::decode(&block.encode()).unwrap();
            prop_assert_eq!(&read, &block);
            prop_assert_eq!(&Block::decode(&block.encode_first_layout()).unwrap(), &block);
            let got: BTreeMap<u16, u64> = read.iter().map(|(place, bucket)| (place, bucket.answered)).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn a_flipped_bit_or_a_lost_end_is_noticed(at in 2usize..1_000, bit in 0u8..8, answered in 1u64..1_000_000) {
            let mut block = Block::default();
            (0..60).for_each(|place| block.merge(place, &Bucket { answered: answered * u64::from(place), ..Bucket::default() }));
            let mut bytes = block.encode();
            let at = 2 + at % (bytes.len() - 2);
            prop_assert_eq!(Block::decode(&bytes[..at]), Err(Damaged));
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Block::decode(&bytes), Err(Damaged));
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200), packed in any::<bool>()) {
            let packed = if packed { [&PACKED[..], &bytes, &sum_of(&bytes)].concat() } else { bytes };
            if let Ok(block) = Block::decode(&packed) {
                block.iter().for_each(|(_, bucket)| drop(bucket.clone()));
            }
        }
    }
}

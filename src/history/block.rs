//! The buckets of one link that lie in one row: each with its place in the block and its length, in the order of time.

use std::collections::BTreeMap;

use crate::telemetry::Bucket;
use crate::telemetry::varint::{self, Damaged};

/// A block's buckets by their place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    buckets: BTreeMap<u16, Vec<u8>>,
}

/// Places in a block at most: a day of ten minutes has 144.
const PLACES: u64 = 1_440;

impl Block {
    /// Reads a row. The buckets themselves are read when they are asked for.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Block, Damaged> {
        let mut block = Block::default();
        while !bytes.is_empty() {
            let place = varint::read(&mut bytes)?;
            let length = usize::try_from(varint::read(&mut bytes)?).map_err(|_| Damaged)?;
            if place >= PLACES || length > bytes.len() {
                return Err(Damaged);
            }
            let (bucket, rest) = bytes.split_at(length);
            block.buckets.insert(place as u16, bucket.to_vec());
            bytes = rest;
        }
        Ok(block)
    }

    /// Writes a row.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.buckets.values().map(|bucket| bucket.len() + 4).sum());
        for (place, bucket) in &self.buckets {
            varint::write(&mut out, u64::from(*place));
            varint::write(&mut out, bucket.len() as u64);
            out.extend_from_slice(bucket);
        }
        out
    }

    /// Adds what a bucket holds to what is at its place already.
    pub(super) fn merge(&mut self, place: u16, more: &Bucket) -> Result<(), Damaged> {
        let mut bucket = match self.buckets.get(&place) {
            Some(bytes) => Bucket::decode(bytes)?,
            None => Bucket::default(),
        };
        bucket.merge(more);
        self.buckets.insert(place, bucket.encode());
        Ok(())
    }

    /// The buckets in the order of time.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, Result<Bucket, Damaged>)> {
        self.buckets.iter().map(|(place, bytes)| (*place, Bucket::decode(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_merged_reads_back(answers in prop::collection::vec((0u16..1_440, 1u64..100), 0..60)) {
            let (mut block, mut want) = (Block::default(), BTreeMap::<u16, u64>::new());
            for (place, answered) in answers {
                block.merge(place, &Bucket { answered, ..Bucket::default() }).unwrap();
                *want.entry(place).or_default() += answered;
            }
            let read = Block::decode(&block.encode()).unwrap();
            prop_assert_eq!(&read, &block);
            let got: BTreeMap<u16, u64> = read.iter().map(|(place, bucket)| (place, bucket.unwrap().answered)).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(block) = Block::decode(&bytes) {
                block.iter().for_each(|(_, bucket)| drop(bucket));
            }
        }
    }
}

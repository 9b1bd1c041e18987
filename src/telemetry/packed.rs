//! Many buckets of one link in few bytes: what they have in common is said once.
//!
//! A minute of a healthy link takes 85 bytes by itself and some 20 here. Each figure is told by how far it is off what the
//! buckets before it, or the figures beside it, let expect, and an arithmetic coder gives the likely little room. Nothing is
//! lost: what is unpacked equals what was packed, whatever it holds.

use std::collections::BTreeMap;

use super::distribution::BIN_LIMIT;
use super::range_coder::{Coder, Column, Decoder, Encoder, Number};
use super::varint::{self, Damaged};
use super::{Bucket, Distribution};

/// Packs buckets by their place, in the order of the places.
pub fn pack(buckets: &BTreeMap<u16, Bucket>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + buckets.len() * 24);
    varint::write(&mut out, buckets.len() as u64);
    let (mut used, mut whole) = (0u64, u64::MAX >> 1 >> (63 - COLUMNS));
    for bucket in buckets.values() {
        for (i, value) in values(bucket).into_iter().enumerate() {
            used |= u64::from(value != 0) << i;
            whole &= !(u64::from(!value.is_multiple_of(MICROS)) << i);
        }
    }
    varint::write(&mut out, used);
    varint::write(&mut out, used & whole);
    let (mut encoder, mut series) = (Encoder::new(out), Series::new(used, used & whole));
    for (place, bucket) in buckets {
        // Writing does not fail: a bit always finds room.
        let _ = series.code(&mut encoder, *place, bucket);
    }
    encoder.finish()
}

/// Reads what [`pack`] wrote; `places` is the number of places there are.
///
/// # Errors
/// It is damaged, or was written by a newer version.
pub fn unpack(mut bytes: &[u8], places: u64) -> Result<BTreeMap<u16, Bucket>, Damaged> {
    let count = varint::read(&mut bytes)?;
    let (used, whole) = (varint::read(&mut bytes)?, varint::read(&mut bytes)?);
    if count > places || used >> COLUMNS != 0 || whole & !used != 0 {
        return Err(Damaged);
    }
    let (mut decoder, mut series) = (Decoder::new(bytes), Series::new(used, whole));
    let (mut buckets, empty) = (BTreeMap::new(), Bucket::default());
    for _ in 0..count {
        let (place, bucket) = series.code(&mut decoder, 0, &empty)?;
        if u64::from(place) >= places {
            return Err(Damaged);
        }
        buckets.insert(place, bucket);
    }
    Ok(buckets)
}

/// The counters and the longest run of losses.
const COLUMNS: usize = Bucket::COUNTERS + 1;
/// Counters of nanoseconds hold whole microseconds, and are told in them.
const MICROS: u64 = 1_000;

/// The run first, so that a counter added at the end of the list changes nobody's place.
fn values(bucket: &Bucket) -> [u64; COLUMNS] {
    let (mut values, counters) = ([bucket.longest_loss_run; COLUMNS], bucket.counters());
    values[1..].copy_from_slice(&counters);
    values
}

/// What is known of a link from the buckets that were coded already.
struct Series {
    /// Counters that are not zero in all buckets, and those that are whole microseconds in all.
    used: u64,
    whole: u64,
    next: u16,
    gap: Number,
    counters: Vec<Column>,
    path: Shape<2>,
    host: Shape<10>,
    tunnel: Shape<2>,
}

impl Series {
    fn new(used: u64, whole: u64) -> Series {
        let counters = (0..COLUMNS).map(|_| Column::default()).collect();
        let (path, host, tunnel) = (Shape::new(), Shape::new(), Shape::new());
        Series { used, whole, next: 0, gap: Number::default(), counters, path, host, tunnel }
    }

    fn code(&mut self, coder: &mut impl Coder, place: u16, bucket: &Bucket) -> Result<(u16, Bucket), Damaged> {
        let gap = self.gap.code(coder, u64::from(place.wrapping_sub(self.next)))?;
        let place = self.next.checked_add(u16::try_from(gap).map_err(|_| Damaged)?).ok_or(Damaged)?;
        self.next = place.checked_add(1).ok_or(Damaged)?;
        let (mut done, given) = (Bucket::default(), values(bucket));
        let mut read = [0; COLUMNS];
        for (i, column) in self.counters.iter_mut().enumerate().filter(|(i, _)| self.used >> i & 1 == 1) {
            let unit = if self.whole >> i & 1 == 1 { MICROS } else { 1 };
            read[i] = (column.code(coder, (given[i] / unit) as i64)? as u64).wrapping_mul(unit);
        }
        done.longest_loss_run = read[0];
        done.counters_mut().into_iter().zip(&read[1..]).for_each(|(counter, value)| *counter = *value);
        done.path = self.path.code(coder, &bucket.path, done.answered, None)?;
        done.host = self.host.code(coder, &bucket.host, done.path.count, None)?;
        // A tunnel's round trip is the path's and the hosts' share, so that the sums say it but for the rounding.
        let sum = done.path.sum.wrapping_add(done.host.sum);
        done.tunnel = self.tunnel.code(coder, &bucket.tunnel, done.path.count, Some(sum))?;
        Ok((place, done))
    }
}

/// What is known of one of a link's distributions.
struct Shape<const GROWTH: u32> {
    /// The upper ends of the bins in 2^20ths of a tick: whole numbers, because what is written here must be read alike by
    /// every processor and version, and floating point is not.
    upper: Vec<u64>,
    /// How many times each bin was hit in the mean, times [`ONE`].
    usual: BTreeMap<u16, u64>,
    seen: u64,
    count: Column,
    first: Number,
    before: u16,
    hits: Vec<Number>,
    least: Number,
    most: Number,
    sum: Column,
}

/// A hit, of the mean of hits.
const ONE: u64 = 1 << 12;
/// Buckets after which the mean follows no slower: a link's rhythm is that of hours.
const MEMORY: u64 = 24;
/// How many hits are expected, in classes: by powers of two in quarters; all that are left; beyond all that was ever hit.
const CLASSES: usize = 14;
const REST: usize = CLASSES - 2;
const BEYOND: usize = CLASSES - 1;
/// The ends lie within their bins but for what the two kinds of arithmetic differ by.
const SLACK: u64 = 1;

impl<const GROWTH: u32> Shape<GROWTH> {
    fn new() -> Shape<GROWTH> {
        let upper = |end: &u64| Some((u128::from(*end) * u128::from(100 + GROWTH) / 100).min(1 << 62) as u64);
        Shape {
            upper: std::iter::successors(Some(10 << 20), upper).take(BIN_LIMIT as usize).collect(),
            usual: BTreeMap::new(),
            seen: 0,
            count: Column::default(),
            first: Number::default(),
            before: 0,
            hits: (0..2 * CLASSES).map(|_| Number::default()).collect(),
            least: Number::default(),
            most: Number::default(),
            sum: Column::default(),
        }
    }

    fn upper(&self, bin: u16) -> u64 {
        self.upper.get(usize::from(bin)).map_or(0, |end| end >> 20)
    }

    fn lower(&self, bin: u16) -> u64 {
        bin.checked_sub(1).map_or(0, |below| self.upper(below))
    }

    /// Codes a distribution; `answered` is how many values it is likely to have, `sum` what their sum is likely to be.
    fn code(
        &mut self,
        coder: &mut impl Coder,
        given: &Distribution<GROWTH>,
        answered: u64,
        sum: Option<u64>,
    ) -> Result<Distribution<GROWTH>, Damaged> {
        let more = self.count.code(coder, given.count.wrapping_sub(answered) as i64)?;
        let mut done = Distribution { count: answered.wrapping_add(more as u64), ..Distribution::default() };
        if done.count == 0 {
            return Ok(done);
        }
        self.code_bins(coder, given, &mut done)?;
        self.learn(&done);
        let (lowest, highest) = match (done.bins.first(), done.bins.last()) {
            (Some((lowest, _)), Some((highest, _))) => (*lowest, *highest),
            _ => return Err(Damaged),
        };
        let floor = self.lower(lowest).wrapping_sub(SLACK);
        done.min = floor.wrapping_add(self.least.code(coder, given.min.wrapping_sub(floor))?);
        if done.count == 1 {
            (done.max, done.sum) = (done.min, done.min);
            return Ok(done);
        }
        let ceiling = self.upper(highest).wrapping_add(SLACK);
        done.max = ceiling.wrapping_sub(self.most.code(coder, ceiling.wrapping_sub(given.max))?);
        let middles = done.bins.iter().fold(0u64, |sum, (bin, hits)| {
            let ends = u128::from(self.upper[usize::from(*bin)]) + (u128::from(self.lower(*bin)) << 20);
            sum.wrapping_add(((ends * u128::from(*hits)) >> 21) as u64)
        });
        let likely = sum.unwrap_or(middles);
        done.sum = likely.wrapping_add(self.sum.code(coder, given.sum.wrapping_sub(likely) as i64)? as u64);
        Ok(done)
    }

    /// Codes the bins from the first that was hit to that with which all hits are told.
    fn code_bins(
        &mut self,
        coder: &mut impl Coder,
        given: &Distribution<GROWTH>,
        done: &mut Distribution<GROWTH>,
    ) -> Result<(), Damaged> {
        let first = given.bins.first().map_or(0, |(bin, _)| *bin);
        let moved = self.first.code_signed(coder, i64::from(first) - i64::from(self.before))?;
        let first = i64::from(self.before).checked_add(moved).and_then(|bin| u16::try_from(bin).ok()).ok_or(Damaged)?;
        self.before = first;
        let (mut left, mut tail) = (done.count, self.usual.range(first..).fold(0, |sum, (_, usual)| sum + usual));
        let mut hits = given.bins.iter().peekable();
        let mut bin = first;
        while left > 0 {
            if u64::from(bin) >= BIN_LIMIT {
                return Err(Damaged);
            }
            let usual = self.usual.get(&bin).copied().unwrap_or(0);
            let quarters = (u128::from(left) * u128::from(usual) * 4).checked_div(u128::from(tail)).unwrap_or(0) as u64;
            let class = match quarters {
                _ if tail == 0 => BEYOND,
                _ if usual == tail => REST,
                _ => ((u64::BITS - quarters.leading_zeros()) as usize).min(REST - 1),
            };
            let expected = ((quarters + 2) / 4) as i64;
            let hit = hits.next_if(|(next, _)| *next == bin).map_or(0, |(_, hit)| *hit);
            // The first bin was hit for certain, which is another matter than those after it.
            let model = &mut self.hits[if bin == first { CLASSES } else { 0 } + class];
            let hit = expected.wrapping_add(model.code_signed(coder, (hit as i64).wrapping_sub(expected))?) as u64;
            if hit > left {
                return Err(Damaged);
            }
            if hit > 0 {
                done.bins.push((bin, hit));
            }
            (left, tail, bin) = (left - hit, tail - usual, bin + 1);
        }
        Ok(())
    }

    fn learn(&mut self, done: &Distribution<GROWTH>) {
        self.seen = (self.seen + 1).min(MEMORY);
        self.usual.values_mut().for_each(|usual| *usual -= *usual / self.seen);
        for (bin, hits) in &done.bins {
            // Bounded, so that the sum of all bins has its place.
            *self.usual.entry(*bin).or_default() += (hits.min(&(1 << 40)) * ONE) / self.seen;
        }
        self.usual.retain(|_, usual| *usual > ONE / 256);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn bucket()(
            probes in prop::collection::vec((prop_oneof![9_900u64..10_100, 0u64..60_000_000], 0u64..5_000), 0..40),
            counts in prop::collection::vec((0..Bucket::COUNTERS, prop_oneof![0u64..5, any::<u64>()]), 0..5),
            run in 0u64..9,
        ) -> Bucket {
            let mut bucket = Bucket { up_millis: 60_000, longest_loss_run: run, ..Bucket::default() };
            for (path, host) in probes {
                let [path, host] = [path, host].map(Duration::from_micros);
                bucket.answer(path, path + host, host / 3, host);
            }
            for (at, value) in counts {
                *bucket.counters_mut()[at] = value;
            }
            bucket
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks_to_the_same(buckets in prop::collection::btree_map(0u16..1_440, bucket(), 0..30)) {
            let bytes = pack(&buckets);
            prop_assert_eq!(unpack(&bytes, 1_440), Ok(buckets));
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(buckets) = unpack(&bytes, 360) {
                let mut all = Bucket::default();
                buckets.values().for_each(|bucket| all.merge(bucket));
                let _ = pack(&BTreeMap::from([(0, all)]));
            }
        }
    }

    #[test]
    fn a_quiet_link_takes_two_bytes_a_minute_and_a_probed_one_a_quarter_of_what_it_took() {
        let mut state = 17u64;
        let mut noise = |most: u64| {
            // Knuth's MMIX constants: any noise does.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % most
        };
        let minutes = |probes: u64, noise: &mut dyn FnMut(u64) -> u64| -> BTreeMap<u16, Bucket> {
            let minute = |place| {
                let mut bucket = Bucket { up_millis: 60_000, ..Bucket::default() };
                for _ in 0..probes {
                    let nanos = |n| Duration::from_nanos(n);
                    let path = nanos(10_000_000 + noise(50_000) + noise(50_000));
                    let (own, peer) = (nanos(20_000 + noise(60_000)), nanos(20_000 + noise(60_000)));
                    bucket.answer(path, path + own + peer, own, own + peer);
                    bucket.vary([noise(50_000), noise(25_000), noise(25_000)]);
                }
                (place, bucket)
            };
            (0..360).map(minute).collect()
        };
        let mean = |buckets: &BTreeMap<u16, Bucket>| {
            let alone: usize = buckets.values().map(|bucket| bucket.encode().len()).sum();
            (pack(buckets).len() as f64 / 360.0, alone as f64 / 360.0)
        };
        let (down, probed) = (mean(&minutes(0, &mut noise)), mean(&minutes(60, &mut noise)));
        println!("bytes a minute, packed and alone: unprobed {down:.1?}, probed each second {probed:.1?}");
        assert!(down.0 < 2.0 && probed.0 < probed.1 / 3.0);
    }
}

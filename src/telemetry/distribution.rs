//! How times were distributed over minutes to years, in a few bytes.

use std::time::Duration;

use super::varint::{self, Damaged};

/// A mergeable distribution of durations: logarithmic bins (as DDSketch has them: Masson, Rim, Lee 2019), exact counts,
/// exact ends and mean.
///
/// `GROWTH` is the ratio of neighbouring bins in per cent: with 2 a quantile is at most 1 % away from the true one, with 10
/// at most 5 %. Merging adds counts and loses nothing, so that a month made of minutes says what a month taken at once would
/// say. [`super::Sketch`] is finer and does not merge without loss; it serves the last minutes of a link. A general sketch
/// with its mapping, its store and its own encoding would be as large as everything else a minute keeps.
///
/// Times are kept in ticks of 100 ns, and those above ten minutes count as ten minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution<const GROWTH: u32 = 2> {
    /// Bins and their counts, in the order of the bins; no count is 0.
    pub(super) bins: Vec<(u16, u64)>,
    pub(super) count: u64,
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) sum: u64,
}

/// Nanoseconds of a tick: finer than any stamp is exact, and a round trip of 1 s fits four bytes.
const TICK_NANOS: u64 = 100;
/// The longest time: no probe is waited for so long.
const MOST_TICKS: u64 = 600 * 1_000_000_000 / TICK_NANOS;
/// Everything up to a microsecond is one bin: less than the stamps' own error.
const SMALLEST_TICKS: f64 = 10.0;
/// Bins at most, by the range from a microsecond to ten minutes at 2 %; a larger number is damage.
pub(super) const BIN_LIMIT: u64 = 1_100;

impl<const GROWTH: u32> Distribution<GROWTH> {
    const RATIO: f64 = 1.0 + GROWTH as f64 / 100.0;

    /// Adds a duration.
    pub fn record(&mut self, value: Duration) {
        let ticks = u64::try_from(value.as_nanos() / u128::from(TICK_NANOS)).unwrap_or(MOST_TICKS).min(MOST_TICKS);
        self.min = if self.count == 0 { ticks } else { self.min.min(ticks) };
        self.max = self.max.max(ticks);
        self.sum = self.sum.saturating_add(ticks);
        self.count = self.count.saturating_add(1);
        let bin = Self::bin_of(ticks);
        match self.bins.binary_search_by_key(&bin, |(bin, _)| *bin) {
            Ok(at) => self.bins[at].1 = self.bins[at].1.saturating_add(1),
            Err(at) => self.bins.insert(at, (bin, 1)),
        }
    }

    /// Adds everything that `other` holds.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.min = if self.count == 0 { other.min } else { self.min.min(other.min) };
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
        self.count = self.count.saturating_add(other.count);
        let mut merged = Vec::with_capacity(self.bins.len().max(other.bins.len()));
        let (mut ours, mut theirs) = (self.bins.iter().peekable(), other.bins.iter().peekable());
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) if a.0 == b.0 => {
                    let both = (a.0, a.1.saturating_add(b.1));
                    ours.next();
                    theirs.next();
                    Some(both)
                }
                (Some(a), Some(b)) if a.0 > b.0 => theirs.next().copied(),
                (Some(_), _) => ours.next().copied(),
                (None, _) => theirs.next().copied(),
            };
            match next {
                Some(bin) => merged.push(bin),
                None => break,
            }
        }
        self.bins = merged;
    }

    /// Returns how many durations were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the smallest, exactly; zero where nothing was added.
    pub fn min(&self) -> Duration {
        duration(self.min)
    }

    /// Returns the largest, exactly; zero where nothing was added.
    pub fn max(&self) -> Duration {
        duration(self.max)
    }

    /// Returns the mean, exactly; zero where nothing was added.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos((u128::from(self.sum) * u128::from(TICK_NANOS) / u128::from(self.count.max(1))) as u64)
    }

    /// Returns a quantile by nearest rank; `None` where nothing was added. `quantile` outside 0 to 1 is the nearer end.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let rank = ((quantile.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0u64;
        let (bin, _) = self.bins.iter().find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen >= rank
        })?;
        Some(duration(Self::value_of(*bin).clamp(self.min, self.max)))
    }

    fn bin_of(ticks: u64) -> u16 {
        let ratio = ticks as f64 / SMALLEST_TICKS;
        if ratio <= 1.0 {
            return 0;
        }
        // A float becomes an integer by saturation: no duration can leave the range.
        (ratio.ln() / Self::RATIO.ln()).ceil() as u16
    }

    /// The value in the middle of a bin, so that the relative error is the same at both of its ends.
    fn value_of(bin: u16) -> u64 {
        let upper = SMALLEST_TICKS * Self::RATIO.powi(i32::from(bin));
        (upper * 2.0 / (1.0 + Self::RATIO)).round() as u64
    }

    /// Writes it: the number of bins, the ends and the sum, then each bin's distance from the one before and its count, a
    /// byte where both are small.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        varint::write(out, self.bins.len() as u64);
        if self.bins.is_empty() {
            return;
        }
        for value in [self.min, self.max - self.min, self.sum] {
            varint::write(out, value);
        }
        let mut next = 0;
        for (bin, count) in &self.bins {
            let small = (count - 1).min(3);
            varint::write(out, u64::from(bin - next) << 2 | small);
            if small == 3 {
                varint::write(out, count - 4);
            }
            next = bin + 1;
        }
    }

    /// Reads what [`Distribution::encode`] wrote.
    pub(super) fn decode(bytes: &mut &[u8]) -> Result<Self, Damaged> {
        let bins = varint::read(bytes)?;
        if bins == 0 {
            return Ok(Self::default());
        }
        if bins > BIN_LIMIT {
            return Err(Damaged);
        }
        let min = varint::read(bytes)?;
        let max = min.checked_add(varint::read(bytes)?).ok_or(Damaged)?;
        let sum = varint::read(bytes)?;
        let mut read = Distribution { bins: Vec::with_capacity(bins as usize), count: 0, min, max, sum };
        let mut next = 0u64;
        for _ in 0..bins {
            let packed = varint::read(bytes)?;
            let bin = next.checked_add(packed >> 2).filter(|bin| *bin < u64::from(u16::MAX)).ok_or(Damaged)?;
            let more = if packed & 3 == 3 { varint::read(bytes)? } else { 0 };
            let count = more.checked_add((packed & 3) + 1).ok_or(Damaged)?;
            read.count = read.count.checked_add(count).ok_or(Damaged)?;
            read.bins.push((bin as u16, count));
            next = bin + 1;
        }
        Ok(read)
    }
}

fn duration(ticks: u64) -> Duration {
    Duration::from_nanos(ticks.saturating_mul(TICK_NANOS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(micros: &[u64]) -> Distribution {
        let mut distribution = Distribution::default();
        micros.iter().for_each(|us| distribution.record(Duration::from_micros(*us)));
        distribution
    }

    fn exact(values: &[u64], quantile: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let rank = ((quantile * sorted.len() as f64).ceil() as usize).max(1);
        sorted[rank - 1] as f64 * 1_000.0
    }

    proptest! {
        #[test]
        fn quantiles_are_within_a_hundredth(
            micros in prop::collection::vec(2u64..60_000_000, 1..500),
            quantile in 0.0f64..=1.0,
        ) {
            let got = of(&micros).quantile(quantile).unwrap().as_nanos() as f64;
            let want = exact(&micros, quantile);
            prop_assert!((got - want).abs() <= want * 0.01 + 100.0, "{} for {}", got, want);
        }

        #[test]
        fn any_split_merges_to_the_whole(micros in prop::collection::vec((0u64..60_000_000, 0usize..4), 0..300)) {
            let mut parts = [const { Vec::new() }; 4];
            for (us, part) in &micros {
                parts[*part].push(*us);
            }
            let mut merged = Distribution::default();
            parts.iter().for_each(|part| merged.merge(&of(part)));
            let whole: Vec<u64> = micros.iter().map(|(us, _)| *us).collect();
            prop_assert_eq!(merged, of(&whole));
        }

        #[test]
        fn what_is_written_reads_back(micros in prop::collection::vec(0u64..900_000_000, 0..300)) {
            let distribution = of(&micros);
            let mut bytes = Vec::new();
            distribution.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(Distribution::decode(&mut rest), Ok(distribution));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(read) = Distribution::<2>::decode(&mut bytes.as_slice()) {
                let mut twice = read.clone();
                twice.merge(&read);
                let _ = (twice.quantile(0.99), twice.mean());
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_do_not_panic() {
        let mut distribution = Distribution::<10>::default();
        assert_eq!(distribution.quantile(0.5), None);
        distribution.record(Duration::ZERO);
        distribution.record(Duration::MAX);
        assert_eq!((distribution.min(), distribution.max()), (Duration::ZERO, Duration::from_secs(600)));
        assert_eq!(distribution.quantile(2.0), Some(Duration::from_secs(600)));
        assert_eq!(distribution.mean(), Duration::from_secs(300));
    }
}

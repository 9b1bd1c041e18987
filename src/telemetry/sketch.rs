//! Quantiles of durations in a few bytes.

use std::time::Duration;

/// A sparse sketch with logarithmic bins, mergeable like DDSketch (Masson, Rim, Lee 2019).
///
/// A quantile is at most 0.1 % away from the true one, so that the digits shown are digits known. Ten seconds of a link
/// probed each second take at most ten bins of four bytes; a dense store would take kibibytes, and thirty of them are
/// kept for each peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// Bins and their counts, in the order of the bins.
    bins: Vec<(u16, u16)>,
}

/// The ratio of two neighbouring bins' upper ends: 0.2 % apart, so that a bin's middle is within 0.1 %.
const GAMMA: f64 = 1.002;
/// Everything below is one bin: a microsecond is less than the stamps' own error.
const SMALLEST_NANOS: f64 = 1_000.0;
/// Bins at most. Ten seconds of ordinary probing need ten; beyond 64 the two nearest neighbours become one.
const BIN_LIMIT: usize = 64;

impl Sketch {
    /// Adds a duration.
    pub fn record(&mut self, value: Duration) {
        self.add(bin_of(value), 1);
    }

    fn add(&mut self, bin: u16, count: u16) {
        match self.bins.binary_search_by_key(&bin, |(bin, _)| *bin) {
            Ok(at) => self.bins[at].1 = self.bins[at].1.saturating_add(count),
            Err(at) => {
                self.bins.insert(at, (bin, count));
                if self.bins.len() > BIN_LIMIT {
                    self.merge_nearest();
                }
            }
        }
    }

    /// Makes one bin of the two that lie nearest, which costs the least exactness; the greater count keeps its place.
    fn merge_nearest(&mut self) {
        let nearest = (1..self.bins.len()).min_by_key(|at| self.bins[*at].0 - self.bins[*at - 1].0);
        if let Some(at) = nearest {
            let (bin, count) = self.bins.remove(at);
            let kept = &mut self.bins[at - 1];
            if count > kept.1 {
                kept.0 = bin;
            }
            kept.1 = kept.1.saturating_add(count);
        }
    }

    /// Returns whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// Returns how many values were added; a bin counts to 65,535 and stays there.
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Returns the bytes it holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.bins.capacity() * size_of::<(u16, u16)>()
    }

    /// Gives back what it holds in reserve, once nothing more is expected.
    pub fn shrink(&mut self) {
        self.bins.shrink_to_fit();
    }

    /// Returns quantiles over several sketches at once, by nearest rank; `None` where all are empty.
    ///
    /// `quantiles` lie between 0 and 1; others are taken as the nearer end.
    pub fn quantiles<'a, const N: usize>(
        sketches: impl IntoIterator<Item = &'a Sketch>,
        quantiles: [f64; N],
    ) -> Option<[Duration; N]> {
        let mut bins: Vec<(u16, u16)> = sketches.into_iter().flat_map(|sketch| sketch.bins.iter().copied()).collect();
        bins.sort_unstable();
        let total: u64 = bins.iter().map(|(_, count)| u64::from(*count)).sum();
        if total == 0 {
            return None;
        }
        Some(quantiles.map(|quantile| {
            let rank = ((quantile.clamp(0.0, 1.0) * total as f64).ceil() as u64).max(1);
            let mut seen = 0;
            let bin = bins.iter().find(|(_, count)| {
                seen += u64::from(*count);
                seen >= rank
            });
            value_of(bin.or(bins.last()).map_or(0, |(bin, _)| *bin))
        }))
    }
}

fn bin_of(value: Duration) -> u16 {
    let nanos = value.as_nanos() as f64;
    if nanos <= SMALLEST_NANOS {
        return 0;
    }
    // A float becomes an integer by saturation: no duration can leave the range.
    ((nanos / SMALLEST_NANOS).ln() / GAMMA.ln()).ceil() as u16
}

/// The value in the middle of a bin, so that the relative error is the same at both of its ends.
fn value_of(bin: u16) -> Duration {
    let upper = SMALLEST_NANOS * GAMMA.powi(i32::from(bin));
    Duration::from_nanos((upper * 2.0 / (1.0 + GAMMA)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(values: &[u64], quantile: f64) -> u64 {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let rank = ((quantile * sorted.len() as f64).ceil() as usize).max(1);
        sorted[rank - 1]
    }

    proptest! {
        #[test]
        fn quantiles_are_within_a_thousandth(
            micros in prop::collection::vec(2u64..60_000_000, 1..60),
            quantile in 0.0f64..=1.0,
        ) {
            let mut sketch = Sketch::default();
            micros.iter().for_each(|us| sketch.record(Duration::from_micros(*us)));
            let [got] = Sketch::quantiles([&sketch], [quantile]).unwrap();
            let want = exact(&micros, quantile) as f64 * 1_000.0;
            prop_assert!((got.as_nanos() as f64 - want).abs() <= want * 0.001 + 1.0, "{:?} for {}", got, want);
        }

        #[test]
        fn many_sketches_are_as_good_as_one(micros in prop::collection::vec(2u64..60_000_000, 2..60)) {
            let (mut one, mut left, mut right) = (Sketch::default(), Sketch::default(), Sketch::default());
            for (i, us) in micros.iter().enumerate() {
                one.record(Duration::from_micros(*us));
                if i % 2 == 0 { &mut left } else { &mut right }.record(Duration::from_micros(*us));
            }
            let split = Sketch::quantiles([&left, &right], [0.0, 0.5, 0.99, 1.0]);
            prop_assert_eq!(split, Sketch::quantiles([&one], [0.0, 0.5, 0.99, 1.0]));
        }

        #[test]
        fn it_stays_small_and_counts_on(micros in prop::collection::vec(1u64..60_000_000, 0..2_000)) {
            let mut sketch = Sketch::default();
            micros.iter().for_each(|us| sketch.record(Duration::from_micros(*us)));
            prop_assert!(sketch.bins.len() <= BIN_LIMIT);
            prop_assert_eq!(sketch.count(), micros.len() as u64);
            prop_assert!(sketch.bins.is_sorted_by(|a, b| a.0 < b.0));
        }
    }

    #[test]
    fn the_ends_of_the_range_do_not_panic() {
        let mut sketch = Sketch::default();
        assert_eq!(Sketch::quantiles([&sketch], [0.5]), None);
        sketch.record(Duration::ZERO);
        sketch.record(Duration::MAX);
        assert_eq!(sketch.count(), 2);
        let [low, high] = Sketch::quantiles([&sketch], [-1.0, 2.0]).unwrap();
        assert!(low <= Duration::from_micros(1) && high > Duration::from_secs(60));
    }
}

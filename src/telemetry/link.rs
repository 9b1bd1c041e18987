//! The last five minutes of one link.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Jitter, LossEstimate, Sketch};
use crate::time::Instant;

/// Rolling statistics of one link: what its probes told in the last five minutes.
///
/// A probe belongs to the moment it was sent. It is `answered`, or it is `lost` once its time is over; an answer after
/// that is `late`, which takes the loss back: late is not lost. Below 4 KiB per link at one probe a second (measured by a test).
#[derive(Clone, Debug, Default)]
pub struct LinkStatistics {
    /// Oldest first, by strictly rising `slot`; at most [`BUCKETS`].
    buckets: VecDeque<Bucket>,
    jitter: Jitter,
}

/// How long a bucket is, and so by how much the window's start moves at once.
const BUCKET: Duration = Duration::from_secs(10);
/// Buckets kept: five minutes, long enough to see one loss in a hundred, short enough to be about now.
const BUCKETS: u64 = 30;

#[derive(Clone, Debug)]
struct Bucket {
    slot: u64,
    answered: u32,
    lost: u32,
    late: u32,
    min: Duration,
    max: Duration,
    rtt: Sketch,
}

/// What a link's window holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkSummary {
    /// How much time it covers: from the oldest bucket in it until now, at most five minutes.
    pub window: Duration,
    /// Probes answered, late ones among them.
    pub answered: u64,
    /// Probes answered after their time.
    pub late: u64,
    /// Loss with its interval; `None` without a probe.
    pub loss: Option<LossEstimate>,
    /// Round trips; `None` without an answer.
    pub rtt: Option<RttSummary>,
    /// Jitter of the round trip.
    pub jitter: Duration,
}

/// Round trips of a window: the ends exact, the quantiles within 0.1 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RttSummary {
    /// The smallest.
    pub min: Duration,
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The largest.
    pub max: Duration,
}

impl LinkStatistics {
    /// Starts without any probe.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the round trip of an answered probe that was sent at `sent`.
    pub fn answered(&mut self, now: Instant, sent: Instant, rtt: Duration) {
        self.take_answer(now, sent, rtt, false);
    }

    /// Takes note that a probe sent at `sent` was not answered in its time.
    pub fn lost(&mut self, now: Instant, sent: Instant) {
        if let Some(bucket) = self.bucket(now, sent) {
            bucket.lost = bucket.lost.saturating_add(1);
        }
    }

    /// Takes the round trip of an answer that came after the probe was reported lost.
    pub fn late(&mut self, now: Instant, sent: Instant, rtt: Duration) {
        self.take_answer(now, sent, rtt, true);
    }

    fn take_answer(&mut self, now: Instant, sent: Instant, rtt: Duration, late: bool) {
        if let Some(bucket) = self.bucket(now, sent) {
            bucket.answered = bucket.answered.saturating_add(1);
            if late {
                bucket.late = bucket.late.saturating_add(1);
                bucket.lost = bucket.lost.saturating_sub(1);
            }
            bucket.min = bucket.min.min(rtt);
            bucket.max = bucket.max.max(rtt);
            bucket.rtt.record(rtt);
        }
        self.jitter.record(i64::try_from(rtt.as_nanos()).unwrap_or(i64::MAX));
    }

    /// Forgets everything, as after the path has changed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns what the last five minutes before `now` hold.
    pub fn summary(&self, now: Instant) -> LinkSummary {
        let oldest = oldest_slot(now);
        let window = || self.buckets.iter().filter(move |bucket| bucket.slot >= oldest);
        let count = |of: fn(&Bucket) -> u32| window().map(|bucket| u64::from(of(bucket))).sum::<u64>();
        let (answered, lost, late) = (count(|b| b.answered), count(|b| b.lost), count(|b| b.late));
        let first = window().next().map_or(now, |bucket| start_of(bucket.slot));
        let [min, max] = [window().map(|b| b.min).min(), window().map(|b| b.max).max()];
        let quantiles = Sketch::quantiles(window().map(|bucket| &bucket.rtt), [0.5, 0.99]);
        let rtt = match (min, max, quantiles) {
            (Some(min), Some(max), Some([p50, p99])) => {
                Some(RttSummary { min, p50: p50.clamp(min, max), p99: p99.clamp(min, max), max })
            }
            _ => None,
        };
        LinkSummary {
            window: now.saturating_since(first),
            answered,
            late,
            loss: LossEstimate::new(lost, answered + lost),
            rtt,
            jitter: self.jitter.estimate(),
        }
    }

    /// Returns the bytes it holds, itself included.
    pub fn memory_bytes(&self) -> usize {
        let buckets = self.buckets.capacity() * size_of::<Bucket>();
        size_of::<Self>() + buckets + self.buckets.iter().map(|bucket| bucket.rtt.heap_bytes()).sum::<usize>()
    }

    /// The bucket of a probe; `None` where it was sent before the window.
    fn bucket(&mut self, now: Instant, sent: Instant) -> Option<&mut Bucket> {
        let oldest = oldest_slot(now);
        while self.buckets.front().is_some_and(|bucket| bucket.slot < oldest) {
            self.buckets.pop_front();
        }
        // A probe cannot be sent after its answer; a caller that says so means now.
        let slot = slot_of(sent.min(now));
        if slot < oldest {
            return None;
        }
        let at = self.buckets.partition_point(|bucket| bucket.slot < slot);
        if self.buckets.get(at).is_none_or(|bucket| bucket.slot != slot) {
            if let Some(before) = at.checked_sub(1).and_then(|before| self.buckets.get_mut(before)) {
                before.rtt.shrink();
            }
            self.buckets.insert(at, Bucket::new(slot));
        }
        self.buckets.get_mut(at)
    }
}

impl Bucket {
    fn new(slot: u64) -> Self {
        let (min, max) = (Duration::MAX, Duration::ZERO);
        Bucket { slot, answered: 0, lost: 0, late: 0, min, max, rtt: Sketch::default() }
    }
}

fn slot_of(at: Instant) -> u64 {
    at.as_nanos() / BUCKET.as_nanos() as u64
}

fn start_of(slot: u64) -> Instant {
    Instant::from_nanos(slot.saturating_mul(BUCKET.as_nanos() as u64))
}

fn oldest_slot(now: Instant) -> u64 {
    (slot_of(now) + 1).saturating_sub(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn rtt(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn a_link_without_probes_claims_nothing() {
        let summary = LinkStatistics::new().summary(ms(1_000_000));
        assert_eq!((summary.loss, summary.rtt, summary.window), (None, None, Duration::ZERO));
    }

    #[test]
    fn probes_leave_the_window_after_five_minutes() {
        let mut link = LinkStatistics::new();
        link.lost(ms(0), ms(0));
        link.answered(ms(100_000), ms(100_000), rtt(10_000));
        assert_eq!(link.summary(ms(299_999)).loss.unwrap().lost, 1);
        assert_eq!(link.summary(ms(300_000)).loss.unwrap().lost, 0);
        assert_eq!(link.summary(ms(300_000)).answered, 1);
        assert_eq!(link.summary(ms(400_000)).rtt, None);
    }

    #[test]
    fn late_is_not_lost() {
        let mut link = LinkStatistics::new();
        link.lost(ms(2_000), ms(0));
        assert_eq!(link.summary(ms(2_000)).loss.unwrap().lost, 1);
        link.late(ms(2_500), ms(0), rtt(2_500_000));
        let summary = link.summary(ms(2_500));
        assert_eq!((summary.loss.unwrap().lost, summary.late, summary.answered), (0, 1, 1));
        assert_eq!(summary.rtt.unwrap().max, Duration::from_micros(2_500_000));
    }

    #[test]
    fn answers_that_come_out_of_order_find_their_bucket() {
        let mut link = LinkStatistics::new();
        link.answered(ms(50_000), ms(45_000), rtt(1_000));
        link.answered(ms(50_000), ms(15_000), rtt(3_000));
        link.answered(ms(50_000), ms(25_000), rtt(2_000));
        let slots: Vec<u64> = link.buckets.iter().map(|bucket| bucket.slot).collect();
        assert_eq!(slots, [1, 2, 4]);
        assert_eq!(link.summary(ms(50_000)).window, Duration::from_secs(40));
    }

    #[test]
    fn five_minutes_of_a_link_take_few_bytes() {
        let mut link = LinkStatistics::new();
        for second in 0..600u64 {
            // Round trips that spread over a decade, so that no two of a bucket share a bin.
            link.answered(ms(second * 1_000), ms(second * 1_000), rtt(5_000 + (second * 7_919) % 50_000));
        }
        assert!(link.memory_bytes() <= 4_096, "{} bytes", link.memory_bytes());
    }

    proptest! {
        #[test]
        fn nothing_is_counted_twice_or_forgotten(
            fates in prop::collection::vec((0u64..299_000, 0u8..3, 1u64..5_000_000), 0..300),
        ) {
            let now = ms(299_000);
            let mut link = LinkStatistics::new();
            let (mut answered, mut lost, mut late) = (0, 0, 0);
            for (sent, fate, micros) in fates {
                match fate {
                    0 => { link.answered(now, ms(sent), rtt(micros)); answered += 1; }
                    1 => { link.lost(now, ms(sent)); lost += 1; }
                    _ => { link.lost(now, ms(sent)); link.late(now, ms(sent), rtt(micros)); late += 1; }
                }
            }
            let summary = link.summary(now);
            prop_assert_eq!(summary.answered, answered + late);
            prop_assert_eq!(summary.late, late);
            prop_assert_eq!(summary.loss.map_or(0, |loss| loss.lost), lost);
            prop_assert_eq!(summary.loss.map_or(0, |loss| loss.sent), answered + late + lost);
            if let Some(rtt) = summary.rtt {
                prop_assert!(rtt.min <= rtt.p50 && rtt.p50 <= rtt.p99 && rtt.p99 <= rtt.max);
            }
        }

        #[test]
        fn any_times_are_taken_without_panic(times in prop::collection::vec((any::<u64>(), any::<u64>()), 0..200)) {
            let mut link = LinkStatistics::new();
            for (now, sent) in times {
                link.answered(Instant::from_nanos(now), Instant::from_nanos(sent), rtt(sent));
                link.lost(Instant::from_nanos(now), Instant::from_nanos(sent));
                let _ = link.summary(Instant::from_nanos(now));
                prop_assert!(link.buckets.len() as u64 <= BUCKETS + 1);
            }
        }
    }
}

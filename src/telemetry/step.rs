//! Steps of a link's round trip: when it is longer now than it was.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Instant;

/// Notices when the median of the last 30 s is above that of the ten minutes before by more than half a millisecond and more
/// than 5 %, for ten seconds together.
///
/// Medians, because a queue that stands now and then is no step; both bounds, because half a millisecond is what a page of
/// many queries begins to feel, and 5 % what long ways move by anyway. Below 3 KiB per link.
#[derive(Clone, Debug, Default)]
pub struct StepWatch {
    /// The last half minute, oldest first; at most [`RECENT`].
    recent: VecDeque<(Instant, Duration)>,
    /// What has left it and is not in `past` yet.
    leaving: Vec<Duration>,
    leaving_since: Option<Instant>,
    /// Medians of ten seconds each, oldest first; at most [`PAST`].
    past: VecDeque<Duration>,
    /// Since when the bound is passed, where it is.
    above_since: Option<Instant>,
    standing: Option<Step>,
    /// Since when a standing step is gone, where it is.
    below_since: Option<Instant>,
}

/// A step that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it was noticed.
    pub since: Instant,
    /// The median before.
    pub before: Duration,
    /// The median when it was noticed.
    pub after: Duration,
}

/// What a sample made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepChange {
    /// The round trip has taken a step.
    Began(Step),
    /// It is back where it was, or has stayed where it is for so long that it is how the link is.
    Ended(Step),
}

/// What counts as now.
const NOW: Duration = Duration::from_secs(30);
/// Samples of it: enough for a median, whatever the schedule.
const RECENT: usize = 64;
/// Samples a median needs at least, older ones among them where the link is probed seldom.
const FEWEST: usize = 5;
/// The time one remembered median covers, and how many are remembered: ten minutes.
const PIECE: Duration = Duration::from_secs(10);
const PAST: usize = 60;
/// Remembered medians that make a past: a minute.
const LEAST_PAST: usize = 6;
/// How long a step must hold.
const HOLD: Duration = Duration::from_secs(10);
/// How long a step stands at most.
const LONGEST: Duration = Duration::from_secs(3_600);
/// The least step.
const SMALLEST: Duration = Duration::from_micros(500);
/// The least part of the round trip that a step is.
const PART: u32 = 20;

/// By how much a round trip may be above a baseline before it is a step.
pub fn tolerance(baseline: Duration) -> Duration {
    SMALLEST.max(baseline / PART)
}

impl StepWatch {
    /// Takes the round trip of a probe sent at `sent`; tells what it changed.
    pub fn record(&mut self, sent: Instant, rtt: Duration) -> Option<StepChange> {
        // At the fastest schedule every second sample is enough.
        let spacing = NOW / RECENT as u32;
        if self.recent.back().is_some_and(|(last, _)| sent.saturating_since(*last) < spacing) {
            return None;
        }
        self.recent.push_back((sent, rtt));
        while self.recent.len() > FEWEST
            && let Some((at, rtt)) = self.recent.front().copied()
            && (sent.saturating_since(at) > NOW || self.recent.len() > RECENT)
        {
            self.recent.pop_front();
            self.remember(at, rtt);
        }
        let now = median(self.recent.iter().map(|(_, rtt)| *rtt)).filter(|_| self.recent.len() >= FEWEST)?;
        match self.standing {
            None => self.begin(sent, now),
            Some(step) => self.end(sent, now, step),
        }
    }

    /// The step that stands.
    pub fn standing(&self) -> Option<Step> {
        self.standing
    }

    /// The median of the last half minute.
    pub fn now(&self) -> Option<Duration> {
        median(self.recent.iter().map(|(_, rtt)| *rtt))
    }

    /// Returns the bytes it holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.recent.capacity() * size_of::<(Instant, Duration)>()
            + (self.leaving.capacity() + self.past.capacity()) * size_of::<Duration>()
    }

    fn begin(&mut self, sent: Instant, now: Duration) -> Option<StepChange> {
        let before = median(self.past.iter().copied()).filter(|_| self.past.len() >= LEAST_PAST)?;
        if now <= before + tolerance(before) {
            self.above_since = None;
            return None;
        }
        let since = *self.above_since.get_or_insert(sent);
        if sent.saturating_since(since) < HOLD {
            return None;
        }
        let step = Step { since: sent, before, after: now };
        (self.standing, self.above_since, self.below_since) = (Some(step), None, None);
        Some(StepChange::Began(step))
    }

    fn end(&mut self, sent: Instant, now: Duration, step: Step) -> Option<StepChange> {
        // Half of the bound, so that a step at the bound does not come and go.
        let back = now <= step.before + tolerance(step.before) / 2;
        self.below_since = back.then(|| self.below_since.unwrap_or(sent));
        let gone = self.below_since.is_some_and(|since| sent.saturating_since(since) >= HOLD);
        if !gone && sent.saturating_since(step.since) < LONGEST {
            return None;
        }
        if !gone {
            // What the link is like now is its past from here on.
            self.past.clear();
        }
        (self.standing, self.below_since) = (None, None);
        Some(StepChange::Ended(step))
    }

    fn remember(&mut self, at: Instant, rtt: Duration) {
        let since = *self.leaving_since.get_or_insert(at);
        if at.saturating_since(since) >= PIECE
            && let Some(median) = median(self.leaving.drain(..))
        {
            self.leaving_since = Some(at);
            self.past.push_back(median);
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        self.leaving.push(rtt);
    }
}

fn median(values: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = values.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::{RngCore, SeedableRng};

    /// Watches a link at one probe each `interval`, whose round trip in microseconds at a second is given; returns what
    /// changed, at which second.
    fn watch(seed: u64, seconds: f64, interval: f64, rtt: impl Fn(f64) -> f64) -> Vec<(f64, StepChange)> {
        let (mut watch, mut rng, mut at, mut changes) =
            (StepWatch::default(), ChaCha12Rng::seed_from_u64(seed), 0.0, vec![]);
        while at < seconds {
            let mut uniform = || f64::from(rng.next_u32()) / f64::from(u32::MAX);
            // A quiet link's jitter, and every hundredth probe finds a queue of some milliseconds.
            let noise = 60.0 * uniform() + if uniform() < 0.01 { 8_000.0 * uniform() } else { 0.0 };
            let sent = Instant::from_millis((at * 1e3) as u64);
            let change = watch.record(sent, Duration::from_nanos(((rtt(at) + noise) * 1e3) as u64));
            changes.extend(change.map(|change| (at, change)));
            at += interval * (0.9 + 0.2 * uniform());
        }
        changes
    }

    #[test]
    fn one_millisecond_on_ten_is_found_within_thirty_seconds() {
        let mut worst = 0.0f64;
        for seed in 0..40 {
            let changes = watch(seed, 1_400.0, 1.0, |at| if at < 1_000.0 { 10_000.0 } else { 11_000.0 });
            let [(at, StepChange::Began(step))] = changes[..] else { panic!("seed {seed}: {changes:?}") };
            assert!(
                (step.before.as_secs_f64() - 0.010).abs() < 2e-4 && (step.after.as_secs_f64() - 0.011).abs() < 2e-4
            );
            worst = worst.max(at - 1_000.0);
        }
        println!("+1 ms on 10 ms: found in 40 of 40 runs, after {worst:.1} s at the latest");
        assert!(worst <= 30.0, "{worst}");
    }

    #[test]
    fn a_day_that_breathes_by_one_percent_raises_no_alarm() {
        let day = 86_400.0;
        for seed in 0..3 {
            let changes =
                watch(seed, day, 1.0, |at| 10_000.0 * (1.0 + 0.01 * (at / day * std::f64::consts::TAU).sin()));
            assert_eq!(changes, [], "seed {seed}");
        }
        println!("a simulated day at ±1 %, three seeds: no false alarm");
    }

    #[test]
    fn a_step_ends_when_the_round_trip_is_back_or_has_become_usual() {
        let changes = watch(1, 2_000.0, 0.2, |at| if (500.0..900.0).contains(&at) { 12_000.0 } else { 10_000.0 });
        let [(_, StepChange::Began(began)), (at, StepChange::Ended(ended))] = changes[..] else {
            panic!("{changes:?}")
        };
        assert!(began == ended && (900.0..940.0).contains(&at), "{at}");
        let changes = watch(2, 9_000.0, 1.0, |at| if at < 500.0 { 10_000.0 } else { 12_000.0 });
        assert_eq!(changes.len(), 2, "it began, and after an hour it is how the link is: {changes:?}");
    }

    #[test]
    fn a_link_that_is_probed_seldom_has_steps_too() {
        let changes = watch(3, 9_000.0, 20.0, |at| if at < 3_000.0 { 10_000.0 } else { 12_000.0 });
        assert!(matches!(changes[0], (at, StepChange::Began(_)) if at < 3_120.0), "{changes:?}");
    }
}

//! How fast bad probes use up what an objective allows.

use std::time::Duration;

use crate::config::alert::Severity;
use crate::time::Instant;

/// A pair of windows: too fast in the long one (it matters), and in the short one too (it goes on).
struct Pair {
    long: Duration,
    short: Duration,
    /// How many times faster than the objective allows in the long run.
    factor: f64,
    severity: Severity,
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// The windows and factors of Google's workbook on service levels, as its followers ship them: 2 % of a month's budget in
/// an hour and 5 % in six wake somebody; 10 % in a day and in three are for working hours.
const PAIRS: [Pair; 4] = [
    Pair { long: minutes(60), short: minutes(5), factor: 14.4, severity: Severity::Page },
    Pair { long: minutes(360), short: minutes(30), factor: 6.0, severity: Severity::Page },
    Pair { long: minutes(1_440), short: minutes(120), factor: 3.0, severity: Severity::Ticket },
    Pair { long: minutes(4_320), short: minutes(360), factor: 1.0, severity: Severity::Ticket },
];

/// Minutes kept: the longest window that is counted by minutes.
const MINUTES: u64 = 60;
/// Hours kept: the longest window of all.
const HOURS: u64 = 72;

/// The probes of one link in the last three days, good and bad, in about one KiB.
#[derive(Clone, Debug)]
pub struct Burn {
    minutes: Ring<{ MINUTES as usize }>,
    hours: Ring<{ HOURS as usize }>,
    began: Option<Instant>,
}

/// Counts by slots of time, the newest overwriting the oldest.
#[derive(Clone, Debug)]
struct Ring<const N: usize> {
    slots: Box<[(u32, u32); N]>,
    newest: u64,
}

impl<const N: usize> Ring<N> {
    fn new() -> Self {
        Ring { slots: Box::new([(0, 0); N]), newest: 0 }
    }

    fn add(&mut self, slot: u64, bad: bool) {
        self.advance(slot);
        let (total, bads) = &mut self.slots[(slot % N as u64) as usize];
        *total = total.saturating_add(1);
        *bads = bads.saturating_add(u32::from(bad));
    }

    /// Empties the slots that time has passed over.
    fn advance(&mut self, slot: u64) {
        let passed = slot.saturating_sub(self.newest).min(N as u64);
        for step in 0..passed {
            self.slots[((slot - step) % N as u64) as usize] = (0, 0);
        }
        self.newest = self.newest.max(slot);
    }

    /// Sums the newest `count` slots up to `slot`.
    fn sum(&self, slot: u64, count: u64) -> (u64, u64) {
        let oldest = (slot + 1).saturating_sub(count.min(N as u64));
        let kept = (self.newest + 1).saturating_sub(N as u64);
        (oldest.max(kept)..=self.newest.min(slot)).fold((0, 0), |(total, bad), slot| {
            let (more, bads) = self.slots[(slot % N as u64) as usize];
            (total + u64::from(more), bad + u64::from(bads))
        })
    }
}

impl Default for Burn {
    fn default() -> Self {
        Burn { minutes: Ring::new(), hours: Ring::new(), began: None }
    }
}

impl Burn {
    /// Takes a probe.
    pub fn add(&mut self, now: Instant, bad: bool) {
        self.began.get_or_insert(now);
        self.minutes.add(minute_of(now), bad);
        self.hours.add(minute_of(now) / 60, bad);
    }

    /// Returns how many times too fast the budget goes where any pair of windows of that severity says so: the long
    /// window's factor, and how long that window is.
    ///
    /// What lies before the first probe counts as good, so that a bad first minute is not three bad days.
    pub fn too_fast(&self, now: Instant, allowed: f64, severity: Severity) -> Option<(f64, Duration)> {
        let pairs = PAIRS.iter().filter(|pair| pair.severity == severity);
        pairs
            .filter_map(|pair| {
                let [long, short] = [pair.long, pair.short].map(|window| self.share(now, window) / allowed);
                (long > pair.factor && short > pair.factor).then_some((long, pair.long))
            })
            .next()
    }

    /// Returns the share of bad probes in a window.
    pub fn share(&self, now: Instant, window: Duration) -> f64 {
        let slots = window.as_secs() / 60;
        let (total, bad) = match slots <= MINUTES {
            true => self.minutes.sum(minute_of(now), slots),
            false => self.hours.sum(minute_of(now) / 60, slots / 60),
        };
        let known = self.began.map_or(Duration::ZERO, |began| now.saturating_since(began));
        let expected = match known < window && !known.is_zero() {
            true => total as f64 * window.as_secs_f64() / known.as_secs_f64(),
            false => total as f64,
        };
        if total == 0 { 0.0 } else { bad as f64 / expected.max(total as f64) }
    }
}

fn minute_of(at: Instant) -> u64 {
    at.as_nanos() / 60_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A burn after `good` and then `bad` seconds of one probe each.
    fn burn(good: u64, bad: u64) -> (Burn, Instant) {
        let mut burn = Burn::default();
        let start = Instant::from_millis(7 * 86_400_000);
        for second in 0..good + bad {
            burn.add(start + Duration::from_secs(second), second >= good);
        }
        (burn, start + Duration::from_secs(good + bad))
    }

    const ALLOWED: f64 = 0.001;

    #[test]
    fn fifty_two_bad_probes_of_an_hour_wake_somebody() {
        // 14.4 times 0.1 % of 3,600 probes is 51.84.
        let (quiet, now) = burn(7_200, 51);
        assert_eq!(quiet.too_fast(now, ALLOWED, Severity::Page), None);
        let (loud, now) = burn(7_200, 54);
        let (factor, window) = loud.too_fast(now, ALLOWED, Severity::Page).unwrap();
        assert!(factor > 14.4 && window == minutes(60), "{factor}");
    }

    #[test]
    fn what_is_over_wakes_nobody() {
        let (mut burn, now) = burn(7_200, 120);
        assert!(burn.too_fast(now, ALLOWED, Severity::Page).is_some());
        for second in 0..600 {
            burn.add(now + Duration::from_secs(second), false);
        }
        assert_eq!(burn.too_fast(now + Duration::from_secs(600), ALLOWED, Severity::Page), None);
    }

    #[test]
    fn a_slow_burn_is_a_ticket() {
        let mut burn = Burn::default();
        let start = Instant::from_millis(7 * 86_400_000);
        // One probe in five hundred for three days: twice what is allowed.
        for second in 0..3 * 86_400u64 {
            burn.add(start + Duration::from_secs(second), second % 500 == 0);
        }
        let now = start + Duration::from_secs(3 * 86_400);
        assert_eq!(burn.too_fast(now, ALLOWED, Severity::Page), None);
        let (factor, window) = burn.too_fast(now, ALLOWED, Severity::Ticket).unwrap();
        assert!((1.8..2.2).contains(&factor) && window == minutes(4_320), "{factor}");
    }

    #[test]
    fn a_bad_first_minute_is_not_three_bad_days() {
        let (burn, now) = burn(0, 20);
        assert_eq!(burn.too_fast(now, ALLOWED, Severity::Ticket), None);
        assert!(burn.share(now, minutes(4_320)) < 0.001);
    }

    #[test]
    fn slots_that_time_passed_over_are_empty() {
        let (mut burn, now) = burn(0, 600);
        let later = now + Duration::from_secs(5 * 3600);
        burn.add(later, false);
        assert_eq!(burn.share(later, minutes(60)), 0.0);
        assert!(burn.share(later, minutes(1_440)) > 0.0);
        let much_later = now + Duration::from_secs(100 * 3600);
        burn.add(much_later, false);
        assert_eq!(burn.share(much_later, minutes(4_320)), 0.0);
    }
}

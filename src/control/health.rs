//! How well this node is as an observer: whoever is stopped or starved finds everybody else silent (Lifeguard, Dadgar 2017).

use std::time::Duration;

use crate::time::Instant;

/// A score from 0, well, to [`LocalHealth::WORST`]. It rises with each sign of trouble and falls by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalHealth {
    score: u8,
    /// When the score was right.
    at: Instant,
}

impl LocalHealth {
    /// The highest score: timeouts are eight times as long as those of a well node.
    pub const WORST: u8 = 7;
    /// A deadline met later than this is a sign of trouble: a quarter of the shortest time an answer is waited for.
    const LATE: Duration = Duration::from_millis(50);
    /// One met later than this is a stop: whatever was sent before it is probably judged wrongly.
    const STOPPED: Duration = Duration::from_secs(1);
    /// How long the score takes to fall by one.
    const HEALING: Duration = Duration::from_secs(3);

    /// The score as it is now.
    pub fn score(&self, now: Instant) -> u8 {
        let healed = now.saturating_since(self.at).as_nanos() / Self::HEALING.as_nanos();
        self.score.saturating_sub(u8::try_from(healed).unwrap_or(u8::MAX))
    }

    /// A deadline was met so much later than it was.
    pub fn note_lag(&mut self, lag: Duration, now: Instant) {
        if lag >= Self::STOPPED {
            self.worsen(3, now);
        } else if lag >= Self::LATE {
            self.worsen(1, now);
        }
    }

    /// Something else is amiss, as grave as `by` late deadlines: a clock was set, packets found the socket full.
    pub fn worsen(&mut self, by: u8, now: Instant) {
        *self = LocalHealth { score: self.score(now).saturating_add(by).min(Self::WORST), at: now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_adds_up_and_passes() {
        let at = Instant::from_millis;
        let mut health = LocalHealth::default();
        health.note_lag(Duration::from_millis(49), at(0));
        assert_eq!(health.score(at(0)), 0, "a busy moment");
        health.note_lag(Duration::from_millis(60), at(1_000));
        health.note_lag(Duration::from_secs(2), at(2_000));
        assert_eq!([2_000, 4_999, 5_000, 13_999, 14_000].map(|ms| health.score(at(ms))), [4, 4, 3, 1, 0]);
        (0..50).for_each(|_| health.worsen(1, at(20_000)));
        assert_eq!(health.score(at(20_000)), LocalHealth::WORST);
    }
}

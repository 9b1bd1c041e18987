//! What is known of one path: how its looks fared, and what it costs.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::RngCore;

use super::condition::Condition;
use super::path::{Look, Path};
use crate::time::Instant;
use crate::wire::probe::CHALLENGE;

/// Looks at one path that wait for their answer: as many as one pause after the other makes in their time.
pub(super) const MOST_OPEN: usize = 8;
/// The numbers of looks: the bits that a probe's sequence leaves to them.
const NUMBERS: u32 = CHALLENGE - 1;
/// Looks that are remembered for the loss of a path.
const REMEMBERED: u32 = 20;
/// What a lost packet costs a connection at least: Linux's shortest retransmission time-out.
pub const LOSS_COST: Duration = Duration::from_millis(200);
/// How much one probe says about the loss of the path in use: the last minute or two count.
pub(super) const LOSS_WEIGHT: f64 = 1.0 / 64.0;
/// Standard deviations by which two losses must differ: once in eighty by chance, and never three times in a row.
const SIGNIFICANT: f64 = 2.5;
/// A better path is better by this at least (iroh's bound; less is within what a route varies by).
const LEAST_GAIN: Duration = Duration::from_millis(5);
/// And by this part of what the present one costs.
const LEAST_GAIN_SHARE: f64 = 0.15;

/// A path that the link may take.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: Path,
    /// Seen, not told by the peer or the configuration.
    pub(super) observed: bool,
    pub(super) rtt: Option<Duration>,
    pub(super) heard: Option<Instant>,
    /// When it answered first in the silence that goes on, or that went on last.
    pub(super) back: Option<Instant>,
    /// The fates of the newest looks, the newest in the lowest bit; a set bit is an answer.
    pub(super) fates: u32,
    pub(super) looks: u32,
    /// Looks in a row at which it was better than the one in use.
    pub(super) better: u32,
    /// Since when the peer seems to have moved here; it is followed once it answers.
    pub(super) moved: Option<Instant>,
    /// Looks that wait for their answer, oldest first, by number and time.
    pub(super) open: VecDeque<(u32, Instant)>,
    pub(super) next: Instant,
}

impl Entry {
    pub(super) fn new(path: Path, observed: bool, next: Instant) -> Entry {
        let (rtt, heard, back, open) = (None, None, None, VecDeque::new());
        Entry { path, observed, rtt, heard, back, fates: 0, looks: 0, better: 0, moved: None, open, next }
    }

    pub(super) fn look(&mut self, now: Instant, rng: &mut impl RngCore) -> Look {
        let number = rng.next_u32() & NUMBERS;
        if self.open.len() >= MOST_OPEN {
            self.open.pop_front();
        }
        self.open.push_back((number, now));
        Look { path: self.path, number }
    }

    pub(super) fn remember(&mut self, answered: bool) {
        self.fates = (self.fates << 1 | u32::from(answered)) & ((1 << REMEMBERED) - 1);
        self.looks = (self.looks + 1).min(REMEMBERED);
        self.better = if answered { self.better } else { 0 };
    }

    pub(super) fn loss(&self) -> f64 {
        if self.looks == 0 { 0.0 } else { 1.0 - f64::from(self.fates.count_ones()) / f64::from(self.looks) }
    }

    /// Whether it is better than the path in use by more than the hysteresis. Loss counts only where the two differ by more
    /// than chance makes of so few looks.
    pub(super) fn is_better(&self, condition: &Condition) -> bool {
        let (Some(present), Some(own)) = (condition.rtt, self.rtt) else { return false };
        let (looks, mean) = (f64::from(self.looks.max(1)), (self.loss() + condition.loss) / 2.0);
        let deviation = (mean * (1.0 - mean) * (1.0 / looks + LOSS_WEIGHT)).sqrt();
        let difference = condition.loss - self.loss();
        let loss = if difference.abs() > SIGNIFICANT * deviation { difference } else { 0.0 };
        let gain = present.as_secs_f64() - own.as_secs_f64() + LOSS_COST.as_secs_f64() * loss;
        gain >= LEAST_GAIN.as_secs_f64().max(present.as_secs_f64() * LEAST_GAIN_SHARE)
    }

    pub(super) fn cost(&self, rtt: Option<Duration>) -> Option<Duration> {
        Some(rtt.or(self.rtt)? + LOSS_COST.mul_f64(self.loss()))
    }
}

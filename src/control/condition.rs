//! How a link is by the path in use, and how long its silence must last to mean something.

use std::time::Duration;

use crate::time::Instant;

/// How long a miss takes to be known on a usual path: the probes' shortest time-out.
pub(super) const MISS: Duration = Duration::from_millis(200);
/// Of so many probes one may make a lossy path look silent: at one a second, once in three hours.
const CHANCE: f64 = 10_000.0;
/// Probes missed in a row that are put up with on the worst path: below what calls a link down.
const MOST_TOLERATED: u32 = 6;

/// How the link is, by its own probes on the path in use.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// Since when the probes are not answered; `None` while they are. That the peer is heard means nothing: its packets may
    /// come by a path of which the other direction is dead.
    pub silent_since: Option<Instant>,
    /// The smoothed round trip on the path in use.
    pub rtt: Option<Duration>,
    /// The share of the link's newest probes that were lost, 0 to 1, smoothed.
    pub loss: f64,
}

impl Condition {
    /// How long the silence must last to be no chance, from the first probe that was missed: at the loss there is, as many
    /// in a row are missed once in [`CHANCE`] probes. One lost probe is never enough.
    pub(super) fn patience(&self) -> Duration {
        MISS * (self.misses() - 1)
    }

    /// How many have to be missed in a row.
    pub(super) fn misses(&self) -> u32 {
        let misses = (CHANCE.ln() / -self.loss.clamp(0.001, 0.9).ln()).ceil();
        (misses as u32).clamp(2, MOST_TOLERATED)
    }
}

//! Lost packets of data, from what a tunnel saw of the peer's message numbers.

use crate::wire::probe::Arrivals;

/// Turns the growth of a tunnel's counters into packets and losses of one direction.
///
/// A message that is late counts as lost until it comes; what was counted too much is set off against later losses, so that
/// neither sum ever falls.
#[derive(Clone, Copy, Debug, Default)]
pub struct DataLoss {
    last: Option<Arrivals>,
    owed: u32,
}

impl DataLoss {
    /// Growth beyond this is no growth: the tunnel is another one, which counts anew.
    const MOST: u32 = 1 << 31;

    /// Takes the counters as they are now; returns the packets sent since the last time, and the losses among them. `None`
    /// where nothing was sent, and the first time.
    pub fn take(&mut self, now: Arrivals) -> Option<(u32, u32)> {
        let before = self.last.replace(now)?;
        let packets = now.expected.wrapping_sub(before.expected);
        let came = now.accepted.wrapping_sub(before.accepted);
        if packets >= Self::MOST || came >= Self::MOST {
            self.owed = 0;
            return None;
        }
        let lost = i64::from(packets) - i64::from(came) - i64::from(self.owed);
        // What is negative came late: it was counted as lost before.
        self.owed = u32::try_from(-lost).unwrap_or(0);
        (packets > 0).then(|| (packets, u32::try_from(lost).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(expected: u32, accepted: u32) -> Arrivals {
        Arrivals { expected, accepted }
    }

    #[test]
    fn what_comes_late_is_set_off() {
        let mut loss = DataLoss::default();
        let told = [at(10, 10), at(30, 27), at(40, 39), at(50, 47), at(50, 47), at(0, 0), at(9, 8)];
        let told: Vec<_> = told.into_iter().map(|now| loss.take(now)).collect();
        let want = [None, Some((20, 3)), Some((10, 0)), Some((10, 0)), None, None, Some((9, 1))];
        assert_eq!(told, want, "a new tunnel is a new beginning");
    }

    #[test]
    fn counters_wrap() {
        let mut loss = DataLoss::default();
        loss.take(at(u32::MAX - 1, u32::MAX - 5));
        assert_eq!(loss.take(at(8, 3)), Some((10, 1)));
    }

    proptest! {
        /// Whenever it is asked, the sum is what is missing in the end, give or take what was under way.
        #[test]
        fn the_sum_is_what_is_missing(steps in proptest::collection::vec((0u32..1000, 0u32..1000), 1..50)) {
            let mut loss = DataLoss::default();
            let (mut now, mut lost, mut most) = (at(0, 0), 0, 0);
            loss.take(now);
            for (sent, came) in steps {
                now.expected += sent;
                now.accepted = (now.accepted + came).min(now.expected);
                lost += loss.take(now).map_or(0, |(_, lost)| lost);
                most = most.max(now.expected - now.accepted);
            }
            prop_assert!(lost >= now.expected - now.accepted);
            prop_assert!(lost <= most);
        }
    }
}

//! Jitter after RFC 3550 §6.4.1.

use std::time::Duration;

/// A running estimate of how much transit times differ from one packet to the next.
///
/// `J += (|D| - J) / 16` for each packet, where `D` is the difference of two successive transit times. The two clocks
/// need not agree: their offset cancels in the difference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jitter {
    last_nanos: Option<i64>,
    estimate_nanos: f64,
}

impl Jitter {
    /// Takes the next packet's transit time in nanoseconds, by clocks with any fixed offset.
    pub fn record(&mut self, transit_nanos: i64) {
        if let Some(last) = self.last_nanos.replace(transit_nanos) {
            let difference = transit_nanos.abs_diff(last) as f64;
            self.estimate_nanos += (difference - self.estimate_nanos) / 16.0;
        }
    }

    /// Returns the estimate; zero before the second packet.
    pub fn estimate(&self) -> Duration {
        Duration::from_nanos(self.estimate_nanos as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_step_is_a_sixteenth() {
        let mut jitter = Jitter::default();
        jitter.record(1_000_000);
        assert_eq!(jitter.estimate(), Duration::ZERO);
        jitter.record(1_160_000);
        assert_eq!(jitter.estimate(), Duration::from_nanos(10_000));
    }

    /// The integer arithmetic of RFC 3550's appendix A.8, in units of a sixteenth.
    fn reference(transits: &[i64]) -> u64 {
        let mut jitter = 0u64;
        for pair in transits.windows(2) {
            jitter = jitter + pair[0].abs_diff(pair[1]) - ((jitter + 8) >> 4);
        }
        jitter >> 4
    }

    #[test]
    fn it_is_the_rfc_s_own_on_a_recorded_trace() {
        // One-way transits of a link between two hosts in nanoseconds, clocks some 80 ms apart; a queue in the middle.
        let trace = [
            80_412_331, 80_409_120, 80_431_877, 80_415_002, 80_420_640, 80_408_915, 81_950_433, 83_107_210, 82_230_918,
            80_911_204, 80_417_553, 80_411_090, 80_409_876, 80_446_301, 80_413_777, 80_410_025, 80_412_960, 80_409_431,
        ];
        let mut jitter = Jitter::default();
        for upto in 1..=trace.len() {
            jitter.record(trace[upto - 1]);
            let (ours, theirs) = (jitter.estimate().as_nanos() as u64, reference(&trace[..upto]));
            assert!(ours.abs_diff(theirs) <= 2, "after {upto}: {ours} ns, the RFC's {theirs} ns");
        }
    }

    proptest! {
        #[test]
        fn an_offset_of_the_clocks_changes_nothing(
            transits in prop::collection::vec(0i64..10_000_000_000, 0..50),
            offset in -1_000_000_000_000i64..1_000_000_000_000,
        ) {
            let (mut a, mut b) = (Jitter::default(), Jitter::default());
            for transit in transits {
                a.record(transit);
                b.record(transit + offset);
            }
            prop_assert_eq!(a.estimate(), b.estimate());
        }

        #[test]
        fn it_never_exceeds_the_largest_difference(transits in prop::collection::vec(0i64..1_000_000, 2..50)) {
            let largest = transits.windows(2).map(|w| w[0].abs_diff(w[1])).max().unwrap_or(0);
            let mut jitter = Jitter::default();
            transits.iter().for_each(|transit| jitter.record(*transit));
            prop_assert!(jitter.estimate() <= Duration::from_nanos(largest));
        }

        #[test]
        fn hostile_stamps_do_not_panic(a in any::<i64>(), b in any::<i64>()) {
            let mut jitter = Jitter::default();
            jitter.record(a);
            jitter.record(b);
            let _ = jitter.estimate();
        }
    }
}

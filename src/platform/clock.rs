//! The only reader of clocks.

use crate::time::{Instant, UnixTime};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The oldest kernel receive stamp that is believed, in nanoseconds.
///
/// A datagram can wait in the socket buffer while the process is stopped, so seconds are normal; beyond a minute a step
/// of the wall clock between stamp and reading is the likelier story, and the datagram counts as received now.
const MAX_STAMP_AGE_NANOS: u64 = 60_000_000_000;

/// Returns the monotonic time of this host (CLOCK_BOOTTIME: it goes on during suspend and is never set).
pub fn now() -> Instant {
    Instant::from_nanos(nanos(ClockId::CLOCK_BOOTTIME))
}

/// Returns the wall clock in whole seconds; a clock before 1970 reads as the epoch.
pub fn wall() -> UnixTime {
    UnixTime::from_secs(realtime_nanos() / 1_000_000_000)
}

/// Returns the wall clock in nanoseconds since 1970-01-01T00:00:00Z; a clock before 1970 reads as zero.
pub fn realtime_nanos() -> u64 {
    nanos(ClockId::CLOCK_REALTIME)
}

/// Both clocks read one after the other: what converts the kernel's wall-clock receive stamps.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The monotonic time.
    pub now: Instant,
    /// The wall clock at the same moment, nanoseconds since the epoch.
    pub realtime_nanos: u64,
}

/// Two clocks read further apart than this were read with the thread asleep in between: on a busy host the stamps would
/// be wrong by as much.
const CLOSE_ENOUGH: Duration = Duration::from_micros(5);

/// How often a reading is tried again until it is close: each time costs less than 100 ns.
const TRIES: usize = 4;

impl Reading {
    /// Reads both clocks, as nearly at the same moment as can be.
    pub fn take() -> Self {
        let mut closest = Duration::MAX;
        let mut reading = Reading { now: Instant::ZERO, realtime_nanos: 0 };
        for _ in 0..TRIES {
            let (before, realtime_nanos, after) = (now(), realtime_nanos(), now());
            let apart = after.saturating_since(before);
            if apart < closest {
                (closest, reading) = (apart, Reading { now: before + apart / 2, realtime_nanos });
            }
            if apart <= CLOSE_ENOUGH {
                break;
            }
        }
        reading
    }

    /// Returns the wall clock in whole seconds.
    pub fn wall(&self) -> UnixTime {
        UnixTime::from_secs(self.realtime_nanos / 1_000_000_000)
    }

    /// Converts a kernel receive stamp (CLOCK_REALTIME, nanoseconds) taken before this reading to monotonic time.
    ///
    /// Works by the stamp's age, so that only a step of the wall clock between the stamp and this reading can disturb
    /// it. A stamp from the future, or older than one minute, reads as received now.
    pub fn instant_of(&self, stamp_nanos: u64) -> Instant {
        match self.realtime_nanos.checked_sub(stamp_nanos) {
            Some(age) if age <= MAX_STAMP_AGE_NANOS => self.now - Duration::from_nanos(age),
            _ => self.now,
        }
    }
}

/// Notices when the wall clock is set: the kernel's receive stamps that were taken before must not be read after.
///
/// A clock that is slewed carries both clocks with it and is no step.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepWatch {
    /// The wall clock less the monotonic one, in nanoseconds.
    offset: Option<i128>,
    unsteady_until: Instant,
}

impl StepWatch {
    /// The smallest step that counts: as much as a sample may be wrong by.
    const SMALLEST: i128 = 100_000;
    /// How long stamps from before a step may lie in the socket's buffer.
    const DOUBTFUL: Duration = Duration::from_secs(2);

    /// Compares a reading with the last one; returns by how many nanoseconds the wall clock was set, if it was.
    pub fn look(&mut self, reading: &Reading) -> Option<i64> {
        let offset = i128::from(reading.realtime_nanos) - i128::from(reading.now.as_nanos());
        let step = offset - self.offset.replace(offset)?;
        if step.abs() <= Self::SMALLEST {
            return None;
        }
        self.unsteady_until = reading.now + Self::DOUBTFUL;
        Some(i64::try_from(step).unwrap_or(if step < 0 { i64::MIN } else { i64::MAX }))
    }

    /// Whether a stamp that is read now can be believed.
    pub fn is_steady(&self, now: Instant) -> bool {
        now >= self.unsteady_until
    }
}

fn nanos(clock: ClockId) -> u64 {
    // Both clocks exist since Linux 2.6.39 and the call takes no other argument, so it cannot fail.
    let time = clock_gettime(clock).expect("CLOCK_REALTIME and CLOCK_BOOTTIME exist on every Linux we run on");
    let secs = u64::try_from(time.tv_sec()).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_never_goes_back() {
        let mut last = now();
        for _ in 0..10_000 {
            let next = now();
            assert!(next >= last);
            last = next;
        }
        assert!(wall() > UnixTime::from_secs(1_600_000_000), "this host's wall clock is before 2020");
    }

    #[test]
    fn a_set_clock_is_noticed_and_a_slewed_one_is_not() {
        let at = |millis, realtime_nanos| Reading { now: Instant::from_millis(millis), realtime_nanos };
        let mut watch = StepWatch::default();
        assert_eq!(watch.look(&at(0, 5_000_000_000)), None);
        assert_eq!(watch.look(&at(1_000, 6_000_100_000)), None, "no more than a reading is wrong by");
        assert_eq!(watch.look(&at(2_000, 8_000_100_000)), Some(1_000_000_000));
        assert!(!watch.is_steady(Instant::from_millis(3_999)) && watch.is_steady(Instant::from_millis(4_000)));
        assert_eq!(watch.look(&at(5_000, 10_000_000_000)), Some(-1_000_100_000));
        assert_eq!(watch.look(&at(6_000, 0)), Some(-11_000_000_000));
    }

    #[test]
    fn a_stamp_becomes_an_instant_by_its_age() {
        let reading = Reading { now: Instant::from_millis(500_000), realtime_nanos: 1_700_000_000_000_000_000 };
        let age = |nanos: u64| reading.instant_of(reading.realtime_nanos - nanos);
        assert_eq!(age(0), reading.now);
        assert_eq!(age(1_500_000), Instant::from_nanos(500_000_000_000 - 1_500_000));
        assert_eq!(age(MAX_STAMP_AGE_NANOS), Instant::from_millis(440_000));
        // The wall clock was set between stamp and reading: forward by a day, or back.
        assert_eq!(age(86_400_000_000_000), reading.now);
        assert_eq!(reading.instant_of(reading.realtime_nanos + 1), reading.now);
        assert_eq!(reading.instant_of(u64::MAX), reading.now);
    }
}

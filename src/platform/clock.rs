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

impl Reading {
    /// Reads both clocks.
    pub fn take() -> Self {
        Reading { now: now(), realtime_nanos: realtime_nanos() }
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

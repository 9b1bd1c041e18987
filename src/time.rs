//! Time as data: the pure rooms receive it as an argument and never read a clock.
//!
//! [`Instant`] orders events on one host and never steps; [`UnixTime`] is the wall clock and enters only where a
//! protocol needs it (certificates, records, WireGuard's TAI64N marks). Both come from `platform::clock`.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point on this host's monotonic time line, in nanoseconds since boot (CLOCK_BOOTTIME, so that suspend counts).
///
/// Unlike `std::time::Instant` it can be made in a test without reading a clock. Arithmetic saturates: a deadline
/// computed from a hostile duration is far away, never a panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of the time line.
    pub const ZERO: Instant = Instant(0);

    /// Makes an instant from nanoseconds since the start of the time line.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Makes an instant from milliseconds since the start of the time line.
    pub const fn from_millis(millis: u64) -> Self {
        Instant(millis.saturating_mul(1_000_000))
    }

    /// Returns nanoseconds since the start of the time line.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time since `earlier`, or zero where `earlier` is later.
    pub const fn saturating_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Wall-clock time in whole seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// The epoch; also what a host without a working clock reports.
    pub const EPOCH: UnixTime = UnixTime(0);

    /// Makes a time from seconds since the epoch.
    pub const fn from_secs(secs: u64) -> Self {
        UnixTime(secs)
    }

    /// Returns seconds since the epoch.
    pub const fn as_secs(self) -> u64 {
        self.0
    }

    /// Returns the time since `earlier`, or zero where `earlier` is later.
    pub const fn saturating_since(self, earlier: UnixTime) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for UnixTime {
    type Output = UnixTime;
    fn add(self, rhs: Duration) -> UnixTime {
        UnixTime(self.0.saturating_add(rhs.as_secs()))
    }
}

impl Sub<Duration> for UnixTime {
    type Output = UnixTime;
    fn sub(self, rhs: Duration) -> UnixTime {
        UnixTime(self.0.saturating_sub(rhs.as_secs()))
    }
}

impl fmt::Display for UnixTime {
    /// Writes RFC 3339 in UTC, as in `2026-11-22T14:02:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stamp = i64::try_from(self.0).ok().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
        match stamp {
            Some(stamp) => write!(f, "{stamp}"),
            None => write!(f, "{}s", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_durations_saturate() {
        assert_eq!(Instant::ZERO + Duration::MAX, Instant::from_nanos(u64::MAX));
        assert_eq!(Instant::ZERO - Duration::MAX, Instant::ZERO);
        assert_eq!(UnixTime::EPOCH - Duration::from_secs(5), UnixTime::EPOCH);
    }

    #[test]
    fn wall_time_prints_as_rfc_3339() {
        assert_eq!(UnixTime::from_secs(1_700_000_000).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(UnixTime::from_secs(u64::MAX).to_string(), format!("{}s", u64::MAX));
    }
}

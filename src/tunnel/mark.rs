//! TAI64N marks: how a responder tells a new initiation from a replayed one.

use std::time::Duration;

use crate::time::UnixTime;

/// TAI64 counts from 2^62 at 1970; the ten seconds of 1972 and the leap seconds since are left out of the comparison.
const TAI64_BASE: u64 = 1 << 62;

/// How far ahead of our clock a mark may lie. A node whose clock was wrong for a while must not lock itself out for
/// longer than this, nor may anyone who once held its key (CVE-2021-46873).
const AHEAD: Duration = Duration::from_secs(24 * 3_600);

/// Slack for the different leap second counts in use (10 in the kernel and wireguard-go, 37 in boringtun).
const LEAP_SLACK: u64 = 64;

/// A wall clock before 2025-01-01 was never set; it cannot judge anybody's mark.
const SANE: UnixTime = UnixTime::from_secs(1_735_689_600);

/// The TAI64N mark of a handshake initiation: twelve bytes, big-endian, compared as a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark([u8; 12]);

impl Mark {
    /// Takes the twelve bytes as they stand in the decrypted initiation.
    pub const fn from_bytes(bytes: [u8; 12]) -> Mark {
        Mark(bytes)
    }

    /// The twelve bytes, for persistence.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// Whether the mark lies further ahead of `wall` than any honest clock. Always false while our own clock is unset.
    pub(super) fn is_too_far_ahead(&self, wall: UnixTime) -> bool {
        let mut seconds = [0u8; 8];
        seconds.copy_from_slice(&self.0[..8]);
        let latest = TAI64_BASE.saturating_add((wall + AHEAD).as_secs()).saturating_add(LEAP_SLACK);
        wall >= SANE && u64::from_be_bytes(seconds) > latest
    }
}

/// What must survive a restart about one peer's handshakes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The newest mark received from the peer: anything not newer is a replay.
    pub received: Mark,
    /// The latest wall-clock second at which we sent the peer an initiation: below it, it will refuse ours.
    pub sent: UnixTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Mark {
        let mut bytes = [0u8; 12];
        bytes[..8].copy_from_slice(&(TAI64_BASE + secs).to_be_bytes());
        Mark::from_bytes(bytes)
    }

    #[test]
    fn the_cap_is_a_day_and_needs_a_sane_clock() {
        let wall = UnixTime::from_secs(1_800_000_000);
        assert!(!at(wall.as_secs() + 86_400 + 37).is_too_far_ahead(wall));
        assert!(at(wall.as_secs() + 86_400 + 65).is_too_far_ahead(wall));
        assert!(Mark::from_bytes([255; 12]).is_too_far_ahead(wall));
        assert!(!Mark::from_bytes([255; 12]).is_too_far_ahead(UnixTime::from_secs(86_400)));
    }

    #[test]
    fn marks_order_by_seconds_then_nanoseconds() {
        let mut later = *at(5).as_bytes();
        later[11] = 1;
        assert!(Mark::from_bytes(later) > at(5));
        assert!(at(6) > Mark::from_bytes(later));
    }
}

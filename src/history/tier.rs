//! How finely the past is kept, and for how long.

use std::time::Duration;

use crate::time::UnixTime;

/// One fineness of the stored past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Minutes, for 30 days.
    Minute,
    /// Ten minutes, for 400 days: a year and the same weeks of the year before.
    TenMinutes,
    /// Days of UTC, for five years.
    Day,
}

const DAY: u64 = 86_400;

impl Tier {
    /// All of them, finest first.
    pub const ALL: [Tier; 3] = [Tier::Minute, Tier::TenMinutes, Tier::Day];

    /// Seconds of a bucket.
    pub const fn length(self) -> u64 {
        match self {
            Tier::Minute => 60,
            Tier::TenMinutes => 600,
            Tier::Day => DAY,
        }
    }

    /// Seconds of the buckets that lie in one row: some kilobytes of them, so that rows cost little beside their content,
    /// and a row of minutes is complete with the hour in which it is written.
    pub const fn block(self) -> u64 {
        match self {
            Tier::Minute => 3_600,
            Tier::TenMinutes => DAY,
            Tier::Day => 32 * DAY,
        }
    }

    /// How long buckets are kept.
    pub const fn kept(self) -> Duration {
        Duration::from_secs(match self {
            Tier::Minute => 30 * DAY,
            Tier::TenMinutes => 400 * DAY,
            Tier::Day => 5 * 365 * DAY,
        })
    }

    /// The table the blocks lie in.
    pub(super) const fn table(self) -> &'static str {
        match self {
            Tier::Minute => "minutes",
            Tier::TenMinutes => "ten_minutes",
            Tier::Day => "days",
        }
    }

    /// The block a time lies in.
    pub(super) fn block_of(self, at: UnixTime) -> u32 {
        u32::try_from(at.as_secs() / self.block()).unwrap_or(u32::MAX)
    }

    /// The bucket within its block that a time lies in.
    pub(super) fn offset_of(self, at: UnixTime) -> u16 {
        (at.as_secs() % self.block() / self.length()) as u16
    }

    /// Where a bucket of a block begins.
    pub(super) fn start_of(self, block: u32, offset: u16) -> UnixTime {
        UnixTime::from_secs(u64::from(block) * self.block() + u64::from(offset) * self.length())
    }

    /// The coarsest tier of which `step` seconds are a whole number of buckets; `None` below a minute.
    pub fn for_step(step: u64) -> Option<Tier> {
        Tier::ALL.into_iter().rev().find(|tier| step >= tier.length() && step.is_multiple_of(tier.length()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_its_place() {
        let at = UnixTime::from_secs(1_795_356_179);
        for tier in Tier::ALL {
            let start = tier.start_of(tier.block_of(at), tier.offset_of(at));
            assert!(start <= at && at.as_secs() < start.as_secs() + tier.length(), "{tier:?}");
            assert_eq!(start.as_secs() % tier.length(), 0);
        }
    }

    #[test]
    fn a_step_is_made_of_the_coarsest_buckets_that_fit() {
        assert_eq!(Tier::for_step(10), None);
        assert_eq!(Tier::for_step(90), None);
        assert_eq!(Tier::for_step(300), Some(Tier::Minute));
        assert_eq!(Tier::for_step(3_600), Some(Tier::TenMinutes));
        assert_eq!(Tier::for_step(7 * 86_400), Some(Tier::Day));
    }
}

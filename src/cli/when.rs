//! Points in time and steps of time as arguments.

use std::time::Duration;

use crate::config::duration;
use crate::time::UnixTime;

/// A point in time: so long ago, or a date, or a date with a time. Dates are in UTC, as everything that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long before now.
    Ago(Duration),
    /// Then.
    At(UnixTime),
}

impl When {
    /// Reads `90d`, `2026-11-22` or `2026-11-22T14:02:00Z`.
    ///
    /// # Errors
    /// What is wrong with the text, as a sentence for its writer.
    pub fn parse(text: &str) -> Result<When, String> {
        let day = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
        if let Ok(stamp) = day.parse::<jiff::Timestamp>() {
            let secs = u64::try_from(stamp.as_second()).map_err(|_| "that is before 1970".to_owned())?;
            return Ok(When::At(UnixTime::from_secs(secs)));
        }
        let hint = "give a duration as 90d, or a time in UTC as 2026-11-22 or 2026-11-22T14:02:00Z";
        duration::parse(text).map(When::Ago).map_err(|why| format!("{why}; {hint}"))
    }

    /// The time it means at `now`.
    pub fn at(self, now: UnixTime) -> UnixTime {
        match self {
            When::Ago(ago) => now - ago,
            When::At(at) => at,
        }
    }
}

/// How much time a row stands for; `None` where that follows from the time asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(pub Option<Duration>);

impl Step {
    /// Reads a duration, or `auto`.
    ///
    /// # Errors
    /// What is wrong with the text, as a sentence for its writer.
    pub fn parse(text: &str) -> Result<Step, String> {
        if text == "auto" {
            return Ok(Step(None));
        }
        let step = duration::parse(text)?;
        let whole = step.subsec_nanos() == 0 && step.as_secs() > 0;
        if whole { Ok(Step(Some(step))) } else { Err("a step is a whole number of seconds".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ages_or_dates_in_utc() {
        let now = UnixTime::from_secs(1_795_356_120);
        let at = |text| When::parse(text).map(|when| when.at(now).to_string());
        assert_eq!(at("1d").as_deref(), Ok("2026-11-21T14:02:00Z"));
        assert_eq!(at("2026-11-20").as_deref(), Ok("2026-11-20T00:00:00Z"));
        assert_eq!(at("2026-11-20T10:00:00+02:00").as_deref(), Ok("2026-11-20T08:00:00Z"));
        assert!(at("yesterday").unwrap_err().contains("2026-11-22"));
        assert!(at("1969-12-31").is_err());
    }

    #[test]
    fn steps_are_whole_seconds_or_left_to_the_daemon() {
        assert_eq!(Step::parse("auto"), Ok(Step(None)));
        assert_eq!(Step::parse("10m"), Ok(Step(Some(Duration::from_secs(600)))));
        assert!(Step::parse("500ms").is_err() && Step::parse("0s").is_err() && Step::parse("often").is_err());
    }
}

//! Durations as people write them: `250ms`, `1s`, `5m`, `24h`.

use std::time::Duration;

/// Units, largest first, with their length in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a whole number followed by `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// What is wrong with the text, as a sentence for its writer.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("`{text}` is no duration"));
    }
    let Some((_, millis)) = UNITS.iter().find(|(name, _)| *name == unit.trim_start()) else {
        return Err(match unit {
            "" => format!("`{text}` has no unit; did you mean `{text}s`?"),
            _ => format!("`{}` is no unit of time", unit.trim_start()),
        });
    };
    let number: u64 = number.parse().map_err(|_| format!("`{number}` is too large"))?;
    number.checked_mul(*millis).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
}

/// Writes a duration in the largest unit that divides it; what is finer than a millisecond is cut off.
pub fn format(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, length) = UNITS.iter().find(|(_, length)| millis % length == 0).unwrap_or(&UNITS[4]);
    format!("{}{unit}", millis / length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_required_and_named() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("10").unwrap_err(), "`10` has no unit; did you mean `10s`?");
        assert_eq!(parse("fast").unwrap_err(), "`fast` is no duration");
        assert_eq!(parse("3 weeks").unwrap_err(), "`weeks` is no unit of time");
        assert!(parse("99999999999999999999s").is_err());
        assert!(parse("999999999999999999d").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(millis in 0u64..10_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}

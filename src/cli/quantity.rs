//! Numbers with their units, as an operator reads them.

use crate::api::Timestamp;

/// Writes a time between milliseconds and microseconds in three or four digits: `214 us`, `10.28 ms`, `1.250 s`.
pub fn seconds(seconds: f64) -> String {
    if seconds >= 1.0 {
        format!("{seconds:.3} s")
    } else if seconds >= 0.001 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{:.0} us", seconds * 1e6)
    }
}

/// Writes how long before `now` something was, as [`age`] does.
pub fn since(now: Timestamp, then: Timestamp) -> String {
    age(now.0.saturating_since(then.0).as_secs())
}

/// Writes an age in its two largest units: `41s`, `4m12s`, `3h05m`, `91d04h`.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Writes bytes in the largest binary unit: `0 B`, `96.5 KiB`, `1.15 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1_024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0: the next unit takes it.
    while value >= 1_023.95 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Writes a count with its noun: `1 peer`, `3 peers`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_where_they_should() {
        assert_eq!(seconds(0.000_214), "214 us");
        assert_eq!(seconds(0.010_281), "10.28 ms");
        assert_eq!(seconds(1.25), "1.250 s");
        assert_eq!(
            [0, 59, 60, 3_599, 3_600, 86_400, 7_876_900].map(age),
            ["0s", "59s", "1m00s", "59m59s", "1h00m", "1d00h", "91d04h"]
        );
        assert_eq!([0, 1_023, 1_024, 98_765].map(bytes), ["0 B", "1023 B", "1.00 KiB", "96.5 KiB"]);
        assert_eq!(bytes(1_234_567_890), "1.15 GiB");
        assert_eq!(bytes(1_024 * 1_024 - 1), "1.00 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!((count(1, "peer"), count(0, "peer")), ("1 peer".to_owned(), "0 peers".to_owned()));
    }
}

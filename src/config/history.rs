//! What is kept of the links' past.

/// The recorded past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistorySettings {
    /// Whether it is recorded.
    pub enabled: bool,
    /// Bytes of the file at most, [`HistorySettings::MIN_SIZE`] to [`HistorySettings::MAX_SIZE`].
    pub max_size: u64,
}

impl HistorySettings {
    /// Bytes at least: the days and ten minutes of a few links.
    pub const MIN_SIZE: u64 = 16 << 20;
    /// Bytes at most: SQLite's own limit with pages of 4 KiB is four times as much.
    pub const MAX_SIZE: u64 = 4 << 40;

    /// Its file in the state directory.
    pub const FILE: &str = "history.db";
}

impl Default for HistorySettings {
    /// Recorded, with room for some hundred links' full time.
    fn default() -> Self {
        HistorySettings { enabled: true, max_size: 1 << 30 }
    }
}

/// Units, largest first.
const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Reads a size such as `512MiB`.
///
/// # Errors
/// What is wrong with the text, as a sentence for its writer.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no size"))?;
    let unit = unit.trim_start();
    let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(match unit {
            "" => format!("`{text}` has no unit; did you mean `{text}MiB`?"),
            _ => format!("`{unit}` is no unit of size; the units are KiB, MiB, GiB and TiB"),
        });
    };
    let size = number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))?;
    let fits = (HistorySettings::MIN_SIZE..=HistorySettings::MAX_SIZE).contains(&size);
    if fits { Ok(size) } else { Err(format!("found \"{text}\"")) }
}

/// Writes a size in the largest unit that divides it.
pub(super) fn format_size(size: u64) -> String {
    let divides = |shift: &u32| size.is_multiple_of(1 << shift);
    let (unit, shift) = UNITS.iter().find(|(_, shift)| divides(shift)).unwrap_or(&UNITS[4]);
    format!("{}{unit}", size >> shift)
}

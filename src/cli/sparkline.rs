//! A series as one line of text.

/// A series drawn in eighths of a line's height.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparkline {
    /// One column per cell; blank where nothing is known.
    pub text: String,
    /// What the lowest bar stands for.
    pub low: f64,
    /// What the highest bar stands for.
    pub high: f64,
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws values, `None` for what is not known, into at most `width` columns; `None` where nothing is known at all.
///
/// Where several values share a column the largest is drawn: what stood out must not vanish. A series whose values differ by
/// less than a hundredth is drawn flat, so that noise does not look like news.
pub fn sparkline(values: &[Option<f64>], width: usize) -> Option<Sparkline> {
    let columns = values.len().min(width.max(1));
    let cell = |column: usize| {
        let (from, to) = (column * values.len() / columns, (column + 1) * values.len() / columns);
        values[from..to].iter().flatten().copied().reduce(f64::max)
    };
    let cells: Vec<Option<f64>> = (0..columns).map(cell).collect();
    let low = cells.iter().flatten().copied().reduce(f64::min)?;
    let high = cells.iter().flatten().copied().reduce(f64::max)?;
    let span = (high - low).max(high.abs() * 0.01);
    let bar = |value: f64| {
        let eighth = if span > 0.0 { ((value - low) / span * 7.0).round() } else { 0.0 };
        BARS[(eighth as usize).min(7)]
    };
    Some(Sparkline { text: cells.iter().map(|cell| cell.map_or(' ', bar)).collect(), low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(values: &[f64], width: usize) -> String {
        let values: Vec<Option<f64>> = values.iter().map(|value| value.is_finite().then_some(*value)).collect();
        sparkline(&values, width).map(|line| line.text).unwrap_or_default()
    }

    #[test]
    fn a_step_is_seen_and_a_gap_is_blank() {
        assert_eq!(drawn(&[10.0, 10.0, f64::NAN, 12.0, 11.0], 80), "▁▁ █▅");
    }

    #[test]
    fn noise_is_flat_and_what_stood_out_stays() {
        assert_eq!(drawn(&[10.0, 10.001, 10.0], 80), "▁▁▁");
        assert_eq!(drawn(&[1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0], 2), "█▁");
        assert_eq!(drawn(&[0.0, 0.0], 80), "▁▁");
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(sparkline(&[], 80), None);
        assert_eq!(sparkline(&[None, None], 80), None);
    }
}

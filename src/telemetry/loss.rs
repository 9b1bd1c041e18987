//! Loss with the certainty it is known with.

use std::fmt;

/// A loss ratio and its Wilson score interval (Wilson 1927) at 95 %.
///
/// From few probes little is known: 0 lost of 60 means "below 6.0 %", not "0.0 %". The interval is right for small
/// counts and at both ends, where the usual normal approximation has no width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossEstimate {
    /// Probes that were not answered.
    pub lost: u64,
    /// Probes whose fate is known; never 0.
    pub sent: u64,
    /// The interval's lower end, 0 to 1.
    pub low: f64,
    /// The interval's upper end, 0 to 1.
    pub high: f64,
}

/// The standard normal distribution's 97.5 % quantile, for a two-sided interval of 95 %.
const Z: f64 = 1.959_963_984_540_054;

impl LossEstimate {
    /// Estimates the loss from counts; `None` where nothing was sent. `lost` above `sent` counts as `sent`.
    pub fn new(lost: u64, sent: u64) -> Option<LossEstimate> {
        if sent == 0 {
            return None;
        }
        let lost = lost.min(sent);
        let n = sent as f64;
        let p = lost as f64 / n;
        let scale = 1.0 + Z * Z / n;
        let centre = (p + Z * Z / (2.0 * n)) / scale;
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
        // At the ends the interval touches the end exactly; rounding must not leave a trace of 1e-18 there.
        let low = if lost == 0 { 0.0 } else { (centre - half).max(0.0) };
        let high = if lost == sent { 1.0 } else { (centre + half).min(1.0) };
        Some(LossEstimate { lost, sent, low, high })
    }

    /// Returns `lost / sent`.
    pub fn ratio(&self) -> f64 {
        self.lost as f64 / self.sent as f64
    }
}

/// Writes what is known and no more: `<6.0%` where nothing was lost, `>94%` where everything was, else the interval, as
/// in `0.34-2.9%`. Ends are rounded outwards to two digits.
impl fmt::Display for LossEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.lost == 0 {
            format!("<{}%", percent(self.high, f64::ceil))
        } else if self.lost == self.sent {
            format!(">{}%", percent(self.low, f64::floor))
        } else {
            format!("{}-{}%", percent(self.low, f64::floor), percent(self.high, f64::ceil))
        };
        f.pad(&text)
    }
}

/// A ratio as a percentage of two significant digits, rounded by `round`.
fn percent(ratio: f64, round: fn(f64) -> f64) -> String {
    let percent = ratio * 100.0;
    if percent <= 0.0 {
        return "0".to_owned();
    }
    // Digits after the point: 1 for 1.0..10, 2 for 0.1..1, none from 10 on.
    let digits = (1.0 - percent.log10().floor()).clamp(0.0, 9.0);
    let scale = 10f64.powf(digits);
    // What differs from a round number by less than a billionth is that number: 6 % is not 6.000000001 %.
    let scaled = percent * scale;
    let rounded = if (scaled - scaled.round()).abs() < 1e-9 { scaled.round() } else { round(scaled) } / scale;
    format!("{rounded:.*}", digits as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(lost: u64, sent: u64) -> String {
        LossEstimate::new(lost, sent).unwrap().to_string()
    }

    #[test]
    fn few_probes_never_show_zero() {
        assert_eq!(shown(0, 1), "<80%");
        assert_eq!(shown(0, 60), "<6.1%");
        assert_eq!(shown(0, 300), "<1.3%");
        assert_eq!(shown(3, 300), "0.34-2.9%");
        assert_eq!(shown(0, 3_600), "<0.11%");
        assert_eq!(shown(86, 86_400), "0.080-0.13%");
        assert_eq!(shown(60, 60), ">93%");
        assert_eq!(LossEstimate::new(0, 0), None);
    }

    #[test]
    fn the_interval_is_wilsons() {
        // Its ends solve (p - x)^2 = z^2 x (1 - x) / n: the roots of a quadratic, computed apart from the code above.
        for (lost, sent, low, high) in
            [(0, 60, 0.0, 0.060_171_852), (3, 300, 0.003_406_618, 0.028_983_493), (60, 60, 0.939_828_148, 1.0)]
        {
            let loss = LossEstimate::new(lost, sent).unwrap();
            assert!((loss.low - low).abs() < 1e-8 && (loss.high - high).abs() < 1e-8, "{loss:?}");
        }
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_ratio(sent in 1u64..1_000_000_000, share in 0.0f64..=1.0) {
            let lost = ((sent as f64 * share) as u64).min(sent);
            let loss = LossEstimate::new(lost, sent).unwrap();
            prop_assert!(0.0 <= loss.low && loss.low <= loss.ratio());
            prop_assert!(loss.ratio() <= loss.high && loss.high <= 1.0);
        }

        #[test]
        fn more_probes_narrow_it(lost in 0u64..50, extra in 50u64..5_000) {
            let few = LossEstimate::new(lost, 50 + extra).unwrap();
            let many = LossEstimate::new(lost * 10, (50 + extra) * 10).unwrap();
            prop_assert!(many.high - many.low < few.high - few.low);
        }

        #[test]
        fn the_text_never_claims_certainty(sent in 1u64..100_000_000, lost in 0u64..100) {
            let text = LossEstimate::new(lost, sent).unwrap().to_string();
            prop_assert!(!text.starts_with("<0%") && !text.starts_with("<0.0%"), "{}", text);
        }
    }
}

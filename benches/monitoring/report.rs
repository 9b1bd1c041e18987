//! The table: each figure beside its target.

use std::fmt;

use serde_json::{Value, json};

/// What a figure must not go beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Told for what it says about the others.
    None,
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Target::AtMost(bound) => value <= bound,
            Target::AtLeast(bound) => value >= bound,
            Target::None => true,
        }
    }
}

/// One line of the table.
struct Row {
    piece: &'static str,
    what: String,
    unit: &'static str,
    value: f64,
    target: Target,
}

/// The figures so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    missing: Vec<String>,
    failed: bool,
}

impl Report {
    /// Adds a figure.
    pub fn add(
        &mut self,
        piece: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Target,
    ) {
        self.rows.push(Row { piece, what: what.into(), unit, value, target });
    }

    /// Notes what could not be measured here, and why.
    pub fn miss(&mut self, reason: String) {
        self.missing.push(reason);
    }

    /// Notes that a piece broke down: its targets are not met.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Whether every target that was looked at is met. What could not be run here does not count; a figure that is not a
    /// number misses its target.
    pub fn is_met(&self) -> bool {
        !self.failed && !self.rows.is_empty() && self.rows.iter().all(|row| row.target.is_met(row.value))
    }

    /// Returns all figures.
    pub fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let target = match row.target {
                Target::AtMost(bound) => json!({"at_most": bound}),
                Target::AtLeast(bound) => json!({"at_least": bound}),
                Target::None => Value::Null,
            };
            json!({"piece": row.piece, "what": row.what, "unit": row.unit, "value": row.value, "target": target})
        });
        json!({"figures": rows.collect::<Vec<_>>(), "not_run": self.missing, "failed": self.failed})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.missing.iter().try_for_each(|reason| writeln!(f, "{reason}"))?;
        writeln!(f, "{:8} {:58} {:>10}        {:>10}", "piece", "figure", "measured", "target")?;
        for row in &self.rows {
            let (target, outcome) = match (row.target, row.target.is_met(row.value)) {
                (Target::None, _) => (String::new(), ""),
                (Target::AtMost(bound), met) => (format!("≤ {}", shown(bound)), if met { "met" } else { "MISSED" }),
                (Target::AtLeast(bound), met) => (format!("≥ {}", shown(bound)), if met { "met" } else { "MISSED" }),
            };
            let value = shown(row.value);
            writeln!(f, "{:8} {:58} {value:>10} {:6} {target:>10} {outcome}", row.piece, row.what, row.unit)?;
        }
        Ok(())
    }
}

/// Three digits that matter, without an exponent; a dash for what never came.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size.is_nan() => "-".to_owned(),
        size if size >= 100.0 || value == value.trunc() => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

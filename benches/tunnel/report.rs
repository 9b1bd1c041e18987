//! The table: medians of all, and how meshd compares with what the targets are set against.

use std::fmt;

use serde_json::{Value, json};

use crate::round::Figures;
use crate::sample::Sample;

/// What a figure of meshd is held against: so many times this peer's.
struct Target {
    of: &'static str,
    against: &'static str,
    times: f64,
}

/// One row of the table.
struct Row {
    key: &'static str,
    what: &'static str,
    /// More is better.
    rising: bool,
    digits: usize,
    targets: &'static [Target],
    of: fn(&Figures) -> f64,
}

/// A target of meshd's default mode.
const fn times(times: f64, against: &'static str) -> Target {
    Target { of: "meshd", against, times }
}

/// Stands for a target that is a number of its own.
const FIXED: &str = "";

/// The rows, in the order of the table.
const ROWS: [Row; 15] = [
    Row {
        key: "tcp_one_flow_gbit_per_s",
        what: "TCP, one flow, Gbit/s",
        rising: true,
        digits: 2,
        targets: &[times(3.3, "gotatun"), times(0.33, "veth")],
        of: |figures| figures.one_flow,
    },
    Row {
        key: "tcp_four_flows_gbit_per_s",
        what: "TCP, four flows, Gbit/s",
        rising: true,
        digits: 2,
        targets: &[],
        of: |figures| figures.four_flows,
    },
    Row {
        key: "cpu_s_per_gbit",
        what: "CPU s/Gbit, both daemons",
        rising: false,
        digits: 3,
        targets: &[times(0.25, "gotatun")],
        of: |figures| figures.processor,
    },
    Row {
        key: "retransmits_per_gbit",
        what: "segments again per Gbit",
        rising: false,
        digits: 1,
        targets: &[],
        of: |figures| figures.retransmits,
    },
    Row {
        key: "idle_ping_p50_us",
        what: "idle ping p50, µs",
        rising: false,
        digits: 0,
        targets: &[times(1.0, "boringtun")],
        of: |figures| figures.idle_p50,
    },
    Row {
        key: "idle_ping_p99_us",
        what: "idle ping p99, µs",
        rising: false,
        digits: 0,
        targets: &[times(1.0, "boringtun")],
        of: |figures| figures.idle_p99,
    },
    Row {
        key: "tcp_request_p50_us",
        what: "TCP request p50, µs",
        rising: false,
        digits: 0,
        targets: &[times(1.0, "boringtun"), Target { of: "meshd-low", against: "veth", times: 0.4 }],
        of: |figures| figures.exchange_p50,
    },
    Row {
        key: "tcp_request_p99_us",
        what: "TCP request p99, µs",
        rising: false,
        digits: 0,
        targets: &[],
        of: |figures| figures.exchange_p99,
    },
    Row {
        key: "loaded_ping_p50_us",
        what: "ping beside a flow p50, µs",
        rising: false,
        digits: 0,
        targets: &[],
        of: |figures| figures.loaded_p50,
    },
    Row {
        key: "loaded_ping_p99_us",
        what: "ping beside a flow p99, µs",
        rising: false,
        digits: 0,
        targets: &[times(0.12, "gotatun")],
        of: |figures| figures.loaded_p99,
    },
    Row {
        key: "loaded_ping_lost_percent",
        what: "ping beside a flow, % lost",
        rising: false,
        digits: 1,
        targets: &[],
        of: |figures| figures.loaded_lost,
    },
    Row {
        key: "udp_delivered_kpps",
        what: "64-byte UDP delivered, kpps",
        rising: true,
        digits: 0,
        targets: &[times(2.5, "boringtun")],
        of: |figures| figures.delivered,
    },
    Row {
        key: "udp_offered_kpps",
        what: "  of those offered, kpps",
        rising: true,
        digits: 0,
        targets: &[],
        of: |figures| figures.offered,
    },
    Row {
        key: "memory_mib",
        what: "memory after load, MiB",
        rising: false,
        digits: 1,
        targets: &[times(10.0, FIXED)],
        of: |figures| figures.memory,
    },
    Row {
        key: "memory_peak_mib",
        what: "memory at most, MiB",
        rising: false,
        digits: 1,
        targets: &[],
        of: |figures| figures.memory_peak,
    },
];

/// Whose figures meshd's are divided by, in columns of their own.
const BESIDE: [&str; 3] = ["veth", "gotatun", "boringtun"];

/// One peer's rounds.
struct Entry {
    name: &'static str,
    version: String,
    rounds: Vec<Figures>,
}

/// What the rounds gave so far.
#[derive(Default)]
pub struct Report {
    entries: Vec<Entry>,
    missing: Vec<String>,
}

impl Report {
    /// Adds a round.
    pub fn add(&mut self, name: &'static str, version: &str, figures: Figures) {
        match self.entries.iter_mut().find(|entry| entry.name == name) {
            Some(entry) => entry.rounds.push(figures),
            None => self.entries.push(Entry { name, version: version.to_owned(), rounds: vec![figures] }),
        }
    }

    /// Notes what was not measured, and why; the same reason once.
    pub fn miss(&mut self, reason: String) {
        if !self.missing.contains(&reason) {
            self.missing.push(reason);
        }
    }

    /// Puts the entries into this order of names: the order of rounds changes from one to the next.
    pub fn arrange(&mut self, names: &[&str]) {
        self.entries.sort_by_key(|entry| names.iter().position(|name| *name == entry.name));
    }

    /// Whether meshd ran and meets every target that could be looked at.
    pub fn is_met(&self) -> bool {
        let verdicts: Vec<bool> = ROWS.iter().flat_map(|row| self.verdicts(row)).map(|verdict| verdict.1).collect();
        !verdicts.is_empty() && verdicts.iter().all(|met| *met)
    }

    /// Returns all figures: every round, the median and the range of each.
    pub fn to_json(&self) -> Value {
        let entries = self.entries.iter().map(|entry| {
            let figures = ROWS.iter().map(|row| {
                let rounds: Vec<f64> = entry.rounds.iter().map(row.of).collect();
                let sample = Sample::new(rounds.clone());
                let (low, high) = sample.range();
                (row.key.to_owned(), json!({"median": sample.median(), "low": low, "high": high, "rounds": rounds}))
            });
            let figures: serde_json::Map<String, Value> = figures.collect();
            json!({"name": entry.name, "version": entry.version, "figures": figures})
        });
        json!({"peers": entries.collect::<Vec<_>>(), "not_run": self.missing})
    }

    fn sample(&self, name: &str, row: &Row) -> Option<Sample> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        Some(Sample::new(entry.rounds.iter().map(row.of).collect()))
    }

    fn median(&self, name: &str, row: &Row) -> Option<f64> {
        self.sample(name, row).map(|sample| sample.median()).filter(|value| !value.is_nan())
    }

    /// Each target of the row whose two sides were measured, in words, and whether it is met.
    fn verdicts(&self, row: &Row) -> Vec<(String, bool)> {
        let verdict = |target: &Target| {
            let ours = self.median(target.of, row)?;
            let theirs = if target.against == FIXED { 1.0 } else { self.median(target.against, row)? };
            let bound = theirs * target.times;
            let met = if row.rising { ours >= bound } else { ours <= bound };
            let sign = if row.rising { '≥' } else { '≤' };
            let whose = if target.of == "meshd" { String::new() } else { format!("{}: ", target.of) };
            let of = if target.against == FIXED { String::new() } else { format!(" × {}", target.against) };
            let outcome = if met { "met" } else { "MISSED" };
            Some((format!("{whose}{sign} {}{of} {outcome}", target.times), met))
        };
        row.targets.iter().filter_map(verdict).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            writeln!(f, "{}: {} ({} rounds)", entry.name, entry.version, entry.rounds.len())?;
        }
        self.missing.iter().try_for_each(|reason| writeln!(f, "{reason}"))?;
        write!(f, "\n{:28}", "medians")?;
        self.entries.iter().try_for_each(|entry| write!(f, "{:>13}", entry.name))?;
        write!(f, "  |")?;
        BESIDE.iter().try_for_each(|name| write!(f, "{:>11}", format!("÷{name}")))?;
        write!(f, "  | targets")?;
        for row in &ROWS {
            write!(f, "\n{:28}", row.what)?;
            for entry in &self.entries {
                write!(f, "{:>13}", shown(self.median(entry.name, row), row.digits))?;
            }
            write!(f, "  |")?;
            for name in BESIDE {
                let ratio = self.median("meshd", row).zip(self.median(name, row));
                let ratio = ratio.map(|(ours, theirs)| ours / theirs).filter(|ratio| ratio.is_finite());
                write!(f, "{:>11}", shown(ratio, 2))?;
            }
            let verdicts: Vec<String> = self.verdicts(row).into_iter().map(|verdict| verdict.0).collect();
            write!(f, "  | {}", verdicts.join("; "))?;
        }
        writeln!(f, "\n(÷: meshd's figure divided by theirs)")
    }
}

fn shown(value: Option<f64>, digits: usize) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) => format!("{value:.digits$}"),
    }
}

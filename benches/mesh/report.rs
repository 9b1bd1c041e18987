//! The table: medians beside the targets, and how the others compare.

use std::fmt;
use std::fs;

use crate::contender::Contender;
use crate::round::{Figures, Plan};

/// One row of the table.
struct Row {
    what: &'static str,
    unit: &'static str,
    /// What meshd must not exceed, with 20 nodes.
    target: Option<f64>,
    of: fn(&Figures) -> f64,
}

/// The rows, in the order of the table.
const ROWS: [Row; 6] = [
    Row { what: "all ordered pairs answer", unit: "s", target: Some(2.0), of: |figures| figures.formed },
    Row { what: "a new node reaches all", unit: "s", target: Some(0.5), of: |figures| figures.joined },
    Row { what: "idle CPU per node", unit: "ms/s", target: Some(2.0), of: |figures| figures.idle_cpu },
    Row { what: "idle CPU, worst node", unit: "ms/s", target: None, of: |figures| figures.idle_cpu_worst },
    Row { what: "wake-ups per node", unit: "/s", target: None, of: |figures| figures.wakeups },
    Row { what: "largest resident memory", unit: "MiB", target: Some(12.0), of: |figures| figures.memory },
];

/// One contender's rounds.
struct Entry {
    name: &'static str,
    version: String,
    rounds: Vec<Figures>,
}

impl Entry {
    fn median(&self, row: &Row) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(row.of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
    }
}

/// What the rounds gave so far.
pub struct Report {
    plan: Plan,
    entries: Vec<Entry>,
}

impl Report {
    /// Makes an empty report.
    pub fn new(plan: Plan) -> Self {
        Report { plan, entries: Vec::new() }
    }

    /// Adds a round.
    pub fn add(&mut self, contender: &dyn Contender, figures: Figures) {
        let name = contender.name();
        match self.entries.iter_mut().find(|entry| entry.name == name) {
            Some(entry) => entry.rounds.push(figures),
            None => {
                let version = contender.version().to_owned();
                self.entries.push(Entry { name, version, rounds: vec![figures] });
            }
        }
    }

    /// Whether meshd ran and meets every target.
    pub fn is_met(&self) -> bool {
        let ours = self.entries.iter().find(|entry| entry.name == "meshd");
        ours.is_some_and(|ours| ROWS.iter().all(|row| row.target.is_none_or(|target| ours.median(row) <= target)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", machine())?;
        for entry in &self.entries {
            writeln!(f, "{}: {}, {} rounds", entry.name, entry.version, entry.rounds.len())?;
        }
        writeln!(
            f,
            "{} nodes, one bootstrap; idle over {} s, {} s after the last answer; medians",
            self.plan.nodes,
            self.plan.idle.as_secs(),
            self.plan.settle.as_secs()
        )?;
        write!(f, "\n{:32}{:>10}", "", "target")?;
        self.entries.iter().try_for_each(|entry| write!(f, "{:>18}", entry.name))?;
        for row in &ROWS {
            let target = row.target.map_or(String::new(), |target| format!("≤ {target}"));
            write!(f, "\n{:32}{target:>10}", format!("{}, {}", row.what, row.unit))?;
            let ours = self.entries.iter().find(|entry| entry.name == "meshd").map(|entry| entry.median(row));
            for entry in &self.entries {
                let value = entry.median(row);
                let note = match (ours, row.target) {
                    (Some(ours), _) if entry.name != "meshd" => format!("{:.2}×", value / ours),
                    (Some(ours), Some(target)) if ours > target => "MISSED".to_owned(),
                    _ => String::new(),
                };
                write!(f, "{value:>10.2}{note:>8}")?;
            }
        }
        writeln!(f, "\n(× beside another's figure: how many times meshd's it is)")
    }
}

/// The machine in one line.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let kib: f64 = field(&memory, "MemTotal").split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0);
    format!(
        "{count} × {}, {:.0} GiB, Linux {}",
        field(&processors, "model name"),
        kib / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

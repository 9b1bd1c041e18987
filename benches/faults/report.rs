//! The table: what each fault cost each program.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::fault::Fault;
use crate::lab::Result;
use crate::lab::error::Context;
use crate::team::Player;
use crate::{machine, options, sample::Sample};

/// What one fault cost one program.
#[derive(Clone, Copy)]
pub struct Figures {
    /// Silence of the echo requests; `None`: they had not come back when it was waited no longer.
    pub echoes: Option<Duration>,
    /// The same of the connection's messages, of the slower direction.
    pub messages: Option<Duration>,
    /// Whether the connection ended.
    pub broken: bool,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Option<Duration>| match time {
            Some(time) => format!("{:.3} s", time.as_secs_f64()),
            None => "not back".to_owned(),
        };
        write!(f, "echoes {}, TCP {}", time(self.echoes), time(self.messages))?;
        if self.broken { write!(f, ", the connection ended") } else { Ok(()) }
    }
}

/// One program's rounds of one fault.
struct Row {
    fault: &'static str,
    about: &'static str,
    player: &'static str,
    rounds: Vec<Figures>,
}

/// The figures so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    versions: Vec<String>,
    missing: Vec<String>,
}

impl Report {
    /// Adds a round.
    pub fn add(&mut self, fault: &Fault, player: &Player, figures: Figures) {
        let version = player.version();
        if !self.versions.contains(&version) {
            self.versions.push(version);
        }
        let same = |row: &&mut Row| (row.fault, row.player) == (fault.name, player.name());
        match self.rows.iter_mut().find(same) {
            Some(row) => row.rounds.push(figures),
            None => {
                let (fault, about, player) = (fault.name, fault.about, player.name());
                self.rows.push(Row { fault, about, player, rounds: vec![figures] });
            }
        }
    }

    /// Notes what could not be measured, and why.
    pub fn miss(&mut self, reason: String) {
        println!("{reason}");
        self.missing.push(reason);
    }

    /// Writes every figure of every round to a file.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path, load: f64) -> Result<()> {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let echoes: Vec<_> = row.rounds.iter().map(|round| seconds(round.echoes)).collect();
                let messages: Vec<_> = row.rounds.iter().map(|round| seconds(round.messages)).collect();
                let broken = row.rounds.iter().filter(|round| round.broken).count();
                json!({ "fault": row.fault, "player": row.player, "echo_seconds": echoes, "tcp_seconds": messages, "connections_ended": broken })
            })
            .collect();
        let all = json!({
            "machine": machine::describe(),
            "load_average_before": load,
            "build": options::build(),
            "versions": self.versions,
            "rows": rows,
            "not_run": self.missing,
        });
        fs::write(path, format!("{all:#}\n")).context(format_args!("write {}", path.display()))
    }
}

impl Row {
    /// Median and longest of one of the figures: in seconds, or that it was not back.
    fn shown(&self, of: impl Fn(&Figures) -> Option<Duration>) -> [String; 2] {
        // What was not back is longer than all that was.
        let values = self.rounds.iter().map(|round| of(round).map_or(f64::MAX, |time| time.as_secs_f64()));
        let sample = Sample::new(values.collect());
        let time = |seconds: f64| if seconds > 1e6 { "not back".to_owned() } else { format!("{seconds:.2} s") };
        [time(sample.quantile(0.5)), time(sample.range().1)]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for version in &self.versions {
            writeln!(f, "{version}")?;
        }
        let mut about = "";
        for row in &self.rows {
            if row.about != about {
                about = row.about;
                writeln!(f, "\n{about}")?;
                writeln!(
                    f,
                    "{:14}{:>7}{:>12}{:>12}{:>12}{:>12}{:>8}",
                    "", "rounds", "echo p50", "longest", "TCP p50", "longest", "ended"
                )?;
            }
            let ([echo, echo_most], [tcp, tcp_most]) =
                (row.shown(|round| round.echoes), row.shown(|round| round.messages));
            let ended = row.rounds.iter().filter(|round| round.broken).count();
            let rounds = row.rounds.len();
            writeln!(f, "{:14}{rounds:>7}{echo:>12}{echo_most:>12}{tcp:>12}{tcp_most:>12}{ended:>8}", row.player)?;
        }
        self.missing.iter().try_for_each(|reason| writeln!(f, "NOT RUN: {reason}"))
    }
}

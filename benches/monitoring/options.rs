//! What the command line asks for.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::Result;
use crate::lab::error::Context;
use crate::machine;
use crate::report::Report;

/// What `--help` shows, in front of the pieces' names.
const HELP: &str = "\
cargo bench --bench monitoring -- [OPTIONS]
  --only NAME      a piece; may be given several times (all)
  --seconds S      how long each piece watches a steady state, 20 to 240 (60)
  --seed N         the emulated network's seed (1)
  --json FILE      write every figure there
  --gate           end with status 1 where meshd misses a target
pieces: ";

/// The choices.
pub struct Options {
    only: Vec<String>,
    /// How long a steady state is watched.
    pub time: Duration,
    /// The seed of the emulated network.
    pub seed: u64,
    json: Option<PathBuf>,
    /// Whether a missed target is a failure.
    pub gate: bool,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// What to print instead of running.
    pub fn parse(mut args: impl Iterator<Item = String>, pieces: &[&str]) -> std::result::Result<Options, String> {
        let mut options = Options { only: Vec::new(), time: Duration::from_secs(60), seed: 1, json: None, gate: false };
        let help = || format!("{HELP}{}", pieces.join(", "));
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            let number = |value: String| value.parse::<u64>().map_err(|error| format!("{arg} {value}: {error}"));
            match arg.as_str() {
                // cargo bench says so to every benchmark.
                "--bench" => {}
                "--only" => options.only.push(value()?),
                // The window of a link's statistics is five minutes, and all of a measurement has to be in it.
                "--seconds" => options.time = Duration::from_secs(number(value()?)?.clamp(20, 240)),
                "--seed" => options.seed = number(value()?)?,
                "--json" => options.json = Some(value()?.into()),
                "--gate" => options.gate = true,
                _ => return Err(help()),
            }
        }
        match options.only.iter().find(|name| !pieces.contains(&name.as_str())) {
            Some(unknown) => Err(format!("there is no piece {unknown}\n{}", help())),
            None => Ok(options),
        }
    }

    /// Whether the piece of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Writes the figures where they are wanted, with what they were taken on.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_json(&self, load: f64, report: &Report) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let figures = serde_json::json!({
            "machine": machine::describe(),
            "load_average_before": load,
            "build": build(),
            "seed": self.seed,
            "seconds": self.time.as_secs(),
            "report": report.to_json(),
        });
        fs::write(path, format!("{figures:#}\n")).context(format_args!("write {}", path.display()))
    }
}

/// How meshd was built.
pub fn build() -> &'static str {
    if cfg!(debug_assertions) { "WITHOUT optimisation" } else { "optimised" }
}

//! What the command line asks for.

use std::path::PathBuf;

/// What `--help` shows.
const HELP: &str = "\
cargo bench --bench faults -- [OPTIONS]
  --rounds N      rounds of each fault (3); one of all faults takes some four minutes
  --only FAULT    cut, direct, term, kill, address or mtu; may be given several times (all)
  --player NAME   meshd, tinc, nebula or wireguard-go; may be given several times (all)
  --seed N        of the emulated network's chances (1)
  --json FILE     write every figure of every round there";

/// The choices.
pub struct Options {
    /// Rounds of each fault.
    pub rounds: usize,
    /// The first round's seed.
    pub seed: u64,
    /// Where the figures go.
    pub json: Option<PathBuf>,
    faults: Vec<String>,
    players: Vec<String>,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// What to print instead of running.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options { rounds: 3, seed: 1, json: None, faults: Vec::new(), players: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            let number = |value: String| value.parse::<u16>().map_err(|error| format!("{arg} {value}: {error}"));
            match arg.as_str() {
                // cargo bench says so to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = usize::from(number(value()?)?.max(1)),
                "--seed" => options.seed = u64::from(number(value()?)?),
                "--only" => options.faults.push(value()?),
                "--player" => options.players.push(value()?),
                "--json" => options.json = Some(value()?.into()),
                _ => return Err(HELP.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether this fault is wanted.
    pub fn wants_fault(&self, name: &str) -> bool {
        self.faults.is_empty() || self.faults.iter().any(|only| only == name)
    }

    /// Whether this program is wanted.
    pub fn wants_player(&self, name: &str) -> bool {
        self.players.is_empty() || self.players.iter().any(|only| only == name)
    }
}

/// How the programs of this build were built.
pub fn build() -> &'static str {
    if cfg!(debug_assertions) { "WITHOUT optimisation" } else { "optimised" }
}

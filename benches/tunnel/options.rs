//! What the command line asks for.

use std::path::PathBuf;
use std::time::Duration;

/// What `--help` shows.
const HELP: &str = "\
cargo bench --bench tunnel -- [OPTIONS]
  --rounds N       rounds of each, interleaved; medians are printed (3)
  --seconds S      length of each measurement; a round of one peer takes about seven times that (3)
  --only NAME      veth, relay, relay-low, meshd, meshd-low, gotatun, boringtun, wireguard-go, nebula or tinc; may be given
                   several times (all)
  --install        build gotatun-cli and boringtun-cli beside this build where they are missing (minutes, once)
  --meshd PATH     another meshd than the one of this build
  --meshctl PATH   the meshctl that goes with it
  --build TEXT     how that meshd was built, to be printed with the figures
  --json FILE      write every figure of every round there
  --rekeys MIN     instead: one TCP flow through meshd for so many minutes (10 is several rekeys), what was sent again and when
  --rate MBIT      of that flow; without it as fast as it goes
  --crowd N        instead: the memory of one meshd with so many peers that have live sessions (1000)
  --gate           end with status 1 where meshd misses a target";

/// The choices.
pub struct Options {
    /// Rounds of each peer.
    pub rounds: usize,
    /// Length of each measurement.
    pub time: Duration,
    /// Names of those wanted; empty for all.
    only: Vec<String>,
    /// Whether cargo may build what is missing.
    pub install: bool,
    /// The daemon, where it is not this build's.
    pub meshd: Option<PathBuf>,
    /// The command that goes with it.
    pub meshctl: Option<PathBuf>,
    build: Option<String>,
    /// Where the figures go.
    pub json: Option<PathBuf>,
    /// Minutes of a flow across rekeys, where that is wanted instead of the table.
    pub rekeys: Option<u16>,
    /// Rate of that flow in Mbit/s, where it is held back.
    pub rate: Option<u16>,
    /// Peers of one daemon, where its memory is wanted instead of the table.
    pub crowd: Option<u16>,
    /// Whether a missed target is a failure.
    pub gate: bool,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// What to print instead of running.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            rounds: 3,
            time: Duration::from_secs(3),
            only: Vec::new(),
            install: false,
            meshd: None,
            meshctl: None,
            build: None,
            json: None,
            rekeys: None,
            rate: None,
            crowd: None,
            gate: false,
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            let number = |value: String| value.parse::<u16>().map_err(|error| format!("{arg} {value}: {error}"));
            match arg.as_str() {
                // cargo bench says so to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = usize::from(number(value()?)?.max(1)),
                "--seconds" => options.time = Duration::from_secs(u64::from(number(value()?)?.clamp(1, 60))),
                "--only" => options.only.push(value()?),
                "--install" => options.install = true,
                "--meshd" => options.meshd = Some(value()?.into()),
                "--meshctl" => options.meshctl = Some(value()?.into()),
                "--build" => options.build = Some(value()?),
                "--json" => options.json = Some(value()?.into()),
                "--rekeys" => options.rekeys = Some(number(value()?)?.max(1)),
                "--rate" => options.rate = Some(number(value()?)?.max(1)),
                "--crowd" => options.crowd = Some(number(value()?)?.clamp(1, 30_000)),
                "--gate" => options.gate = true,
                _ => return Err(HELP.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether the one of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// How meshd was built.
    pub fn build(&self) -> String {
        match &self.build {
            Some(build) => build.clone(),
            None if self.meshd.is_some() => "elsewhere (--build would say how)".to_owned(),
            None if cfg!(debug_assertions) => "beside this benchmark, WITHOUT optimisation".to_owned(),
            None => "beside this benchmark, optimised".to_owned(),
        }
    }
}

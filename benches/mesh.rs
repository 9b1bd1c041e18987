//! How fast a mesh forms, and what it costs while nothing happens, beside tinc and Nebula on the same topology.
//!
//! ```text
//!                      ┌────────── bridge ──────────┐
//!                      │      │      │              │
//!                     n01    n02    n03    …       n20      n21 comes later
//!                  bootstrap  └──────┴──── know n01 and nobody else
//! ```
//!
//! `cargo bench --bench mesh [-- OPTIONS]`. It prints the figures beside their targets and ends with status 0 whatever
//! they are, unless `--gate` is given. It needs root, or a kernel that gives ordinary users namespaces.

#[path = "mesh/contender.rs"]
mod contender;
#[path = "../netns-tests/lab/mod.rs"]
mod lab;
#[path = "mesh/nebula.rs"]
mod nebula;
#[path = "mesh/ours.rs"]
mod ours;
#[path = "mesh/pinger.rs"]
mod pinger;
#[path = "mesh/report.rs"]
mod report;
#[path = "mesh/round.rs"]
mod round;
#[path = "mesh/tinc.rs"]
mod tinc;
#[path = "mesh/usage.rs"]
mod usage;

use std::process::ExitCode;
use std::time::Duration;

use contender::Contender;
use report::Report;
use round::Plan;

const HELP: &str = "\
cargo bench --bench mesh -- [OPTIONS]
  --rounds N     rounds of each, interleaved; medians are printed (3)
  --nodes N      nodes started together, 2 to 200 (20)
  --settle S     seconds between the last answer and the measurement of the idle cost (15)
  --idle S       seconds the idle cost is measured over (30)
  --only NAME    meshd, tinc or nebula; may be given several times (all)
  --gate         end with status 1 where meshd misses a target";

/// What the command line asks for.
struct Options {
    rounds: usize,
    plan: Plan,
    only: Vec<String>,
    gate: bool,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
        let plan = Plan { nodes: 20, settle: Duration::from_secs(15), idle: Duration::from_secs(30) };
        let mut options = Options { rounds: 3, plan, only: Vec::new(), gate: false };
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            let mut number = || {
                let value = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
                value.parse::<u16>().map_err(|error| format!("{arg} {value}: {error}"))
            };
            match arg.as_str() {
                // cargo bench says so to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = usize::from(number()?.max(1)),
                "--nodes" => options.plan.nodes = number()?.clamp(2, 200),
                "--settle" => options.plan.settle = Duration::from_secs(u64::from(number()?)),
                "--idle" => options.plan.idle = Duration::from_secs(u64::from(number()?.max(1))),
                "--only" => options.only.push(args.next().ok_or("--only needs a name")?),
                "--gate" => options.gate = true,
                _ => return Err(HELP.to_owned()),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(met) if met || !options.gate => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs everything; tells whether meshd meets its targets.
fn run(options: &Options) -> lab::Result<bool> {
    // Before a user namespace is entered, from which there is no way out to fetch anything.
    for set in [&lab::package::TINC, &lab::package::NEBULA, &lab::package::IPROUTE2] {
        if let Err(error) = set.fetch() {
            println!("{error}");
        }
    }
    lab::reexec::ensure_namespaces()?;
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(ours::Meshd::new(None, None)?)];
    for other in [tinc::Tinc::new().map(boxed), nebula::Nebula::new().map(boxed)] {
        match other {
            Ok(other) => contenders.push(other),
            Err(error) => println!("{error}"),
        }
    }
    if !options.only.is_empty() {
        contenders.retain(|contender| options.only.iter().any(|name| name == contender.name()));
    }
    let mut report = Report::new(options.plan);
    for number in 1..=options.rounds {
        for contender in &contenders {
            match round::run(contender.as_ref(), options.plan) {
                Ok(figures) => {
                    println!("round {number}: {}", figures.line(contender.name()));
                    report.add(contender.as_ref(), figures);
                }
                Err(error) => println!("round {number}: {} gave no figures: {error}", contender.name()),
            }
        }
    }
    println!("\n{report}");
    Ok(report.is_met())
}

fn boxed(contender: impl Contender + 'static) -> Box<dyn Contender> {
    Box::new(contender)
}

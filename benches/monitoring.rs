//! How exact the measurements of links are: what meshd says beside what an emulated network did to each packet.
//!
//! ```text
//!             ┌──────── emulated network: logs when each packet entered and left ────────┐
//!             │ 0.1 ms    0.5 ms     5 ms      25 ms     50 ms     150 ms    one way      │
//!            hub ──────── spokes ──────────────────────────────────────────────           │
//!             │  meshctl status, meshctl ping, the kernel's ping                          │
//! ```
//!
//! `cargo bench --bench monitoring [-- OPTIONS]`. It prints the figures beside their targets and ends with status 0 whatever
//! they are, unless `--gate` is given. It needs root, or a kernel that gives ordinary users namespaces.

#[path = "monitoring/busy.rs"]
mod busy;
#[path = "tunnel/circle.rs"]
mod circle;
#[path = "mesh/contender.rs"]
mod contender;
#[path = "../netns-tests/lab/mod.rs"]
mod lab;
#[path = "monitoring/loss.rs"]
mod loss;
#[path = "tunnel/machine.rs"]
mod machine;
#[path = "monitoring/many.rs"]
mod many;
#[path = "mesh/nebula.rs"]
mod nebula;
#[path = "monitoring/notice.rs"]
mod notice;
#[path = "monitoring/options.rs"]
mod options;
#[path = "mesh/ours.rs"]
mod ours;
#[path = "monitoring/outage.rs"]
mod outage;
#[path = "monitoring/path.rs"]
mod path;
#[path = "monitoring/ping.rs"]
mod ping;
#[path = "monitoring/pulse.rs"]
mod pulse;
#[path = "monitoring/report.rs"]
mod report;
#[path = "tunnel/sample.rs"]
mod sample;
#[path = "monitoring/share.rs"]
mod share;
#[path = "monitoring/stage.rs"]
mod stage;
#[path = "monitoring/stall.rs"]
mod stall;
#[path = "monitoring/step.rs"]
mod step;
#[path = "mesh/tinc.rs"]
mod tinc;
#[path = "monitoring/truth.rs"]
mod truth;
#[path = "mesh/usage.rs"]
mod usage;

use std::process::ExitCode;

use lab::{Error, Lab, Result};
use options::Options;
use report::Report;

/// One thing that is measured: its name on the command line, and what it does.
struct Piece {
    name: &'static str,
    run: fn(&Lab, &Options, &mut Report) -> Result<()>,
}

/// Everything that can be measured, in the order in which it is.
const PIECES: &[Piece] = &[
    Piece { name: "path", run: path::run },
    Piece { name: "stall", run: stall::run },
    Piece { name: "loss", run: loss::run },
    Piece { name: "outage", run: outage::run },
    Piece { name: "step", run: step::run },
    Piece { name: "share", run: share::run },
    Piece { name: "notice", run: notice::run },
];

fn main() -> ExitCode {
    let names: Vec<&str> = PIECES.iter().map(|piece| piece.name).collect();
    let options = match Options::parse(std::env::args().skip(1), &names) {
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

/// Runs what was asked for; tells whether every target is met.
fn run(options: &Options) -> Result<bool> {
    let mut report = Report::default();
    // Before a user namespace is entered, from which there is no way out to fetch anything.
    for set in [&lab::package::TINC, &lab::package::NEBULA, &lab::package::IPROUTE2] {
        // Whoever uses it tells what is missing.
        let _ = set.fetch();
    }
    lab::reexec::ensure_namespaces()?;
    let load = machine::load();
    println!("{}, load average {load:.2}", machine::describe());
    println!("meshd built beside this benchmark, {}", options::build());
    if let Some(warning) = machine::warning(load) {
        println!("{warning}");
    }
    for piece in PIECES.iter().filter(|piece| options.wants(piece.name)) {
        println!("\n{}", piece.name);
        let lab = Lab::new(&format!("monitoring-{}", piece.name))?;
        match (piece.run)(&lab, options, &mut report) {
            Ok(()) => {}
            Err(error @ Error::NotRun(_)) => report.miss(format!("{}: {error}", piece.name)),
            Err(error) => {
                lab.fail();
                println!("{} gave no figures: {error}", piece.name);
                report.fail();
            }
        }
    }
    println!("\n{report}");
    options.write_json(load, &report)?;
    Ok(report.is_met())
}

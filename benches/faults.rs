//! What a fault costs whoever uses the network: the same faults, at the same time, for meshd, tinc, Nebula and wireguard-go.
//!
//! ```text
//!        n01             Each program has three hosts of its own on one emulated network, 5 ms from each other. n02 and n03
//!       /   \            know n01 and nobody else, and talk to each other: an echo request every 20 ms, and on one TCP
//!    n02 ─── n03         connection a message of 4,000 bytes every 100 ms from each end. wireguard-go has no way by a third
//!                        host and is told both ends, so it has two.
//! ```
//!
//! `cargo bench --bench faults [-- OPTIONS]`. Every fault finds hosts and daemons that have just been started. It prints how long
//! nothing came, for the echo requests and for the connection, and ends with status 0 whatever that is. It needs root, or a
//! kernel that gives ordinary users namespaces.

#[path = "mesh/contender.rs"]
mod contender;
#[path = "tunnel/echo.rs"]
#[allow(dead_code, reason = "only what peer.rs needs of it is used here")]
mod echo;
#[path = "faults/fault.rs"]
mod fault;
#[path = "../netns-tests/lab/mod.rs"]
mod lab;
#[path = "tunnel/machine.rs"]
mod machine;
#[path = "mesh/nebula.rs"]
mod nebula;
#[path = "faults/options.rs"]
mod options;
#[path = "mesh/ours.rs"]
mod ours;
#[path = "tunnel/peer.rs"]
#[allow(dead_code, reason = "the bare pair is the other benchmark's")]
mod peer;
#[path = "faults/report.rs"]
mod report;
#[path = "tunnel/sample.rs"]
mod sample;
#[path = "faults/team.rs"]
mod team;
#[path = "mesh/tinc.rs"]
mod tinc;
#[path = "faults/traffic.rs"]
mod traffic;
#[path = "tunnel/uapi.rs"]
mod uapi;
#[path = "tunnel/wireguard.rs"]
#[allow(dead_code, reason = "those that cargo builds are the other benchmark's")]
mod wireguard;

use std::process::ExitCode;

use fault::FAULTS;
use lab::package::{IPROUTE2, NEBULA, TINC, WIREGUARD_GO};
use lab::{Error, Lab, Result};
use options::Options;
use report::Report;
use team::Player;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    // Before a user namespace is entered, from which there is no way out to fetch anything.
    for set in [&TINC, &IPROUTE2, &NEBULA, &WIREGUARD_GO] {
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
    let mut report = Report::default();
    let mut players = Vec::new();
    for (name, player) in Player::all() {
        match player {
            _ if !options.wants_player(name) => {}
            Ok(player) => players.push(player),
            Err(error) => report.miss(format!("{name}: {error}")),
        }
    }
    if players.is_empty() {
        return Err(Error::failed("nothing is left to measure; --help names what --player takes"));
    }
    for round in 0..options.rounds {
        for fault in FAULTS.iter().filter(|fault| options.wants_fault(fault.name)) {
            let lab = Lab::new("faults")?;
            match fault.run(&lab, &players, options.seed + round as u64, &mut report) {
                Ok(()) => {}
                Err(error) => report.miss(format!("{}, round {}: {error}", fault.name, round + 1)),
            }
        }
    }
    println!("\n{report}");
    if let Some(path) = &options.json {
        report.write(path, load)?;
    }
    Ok(())
}

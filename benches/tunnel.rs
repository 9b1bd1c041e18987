//! How fast packets go between two hosts through meshd, beside no tunnel at all and the userspace tunnels one can install.
//!
//! ```text
//!     iperf3, sockperf, echo requests                              iperf3, sockperf, the kernel's answers
//!     ┌─────────────────────────────┐                              ┌─────────────────────────────┐
//!     │ n01       daemon ── TUN     │       one veth pair          │ n02       daemon ── TUN     │
//!     │              │              │         MTU 1500             │              │              │
//!     │            eth0 ────────────┼──────────────────────────────┼──────────── eth0            │
//!     └─────────────────────────────┘                              └─────────────────────────────┘
//! ```
//!
//! `cargo bench --bench tunnel [-- OPTIONS]`. It prints the figures beside their targets and ends with status 0 whatever
//! they are, unless `--gate` is given. It needs root, or a kernel that gives ordinary users namespaces.

#[path = "tunnel/bulk.rs"]
mod bulk;
#[path = "tunnel/circle.rs"]
mod circle;
#[path = "mesh/contender.rs"]
mod contender;
#[path = "tunnel/crowd.rs"]
mod crowd;
#[path = "tunnel/echo.rs"]
mod echo;
#[path = "tunnel/exchange.rs"]
mod exchange;
#[path = "tunnel/flood.rs"]
mod flood;
#[path = "../netns-tests/lab/mod.rs"]
mod lab;
#[path = "tunnel/machine.rs"]
mod machine;
#[path = "tunnel/member.rs"]
mod member;
#[path = "tunnel/meter.rs"]
mod meter;
#[path = "mesh/nebula.rs"]
mod nebula;
#[path = "tunnel/options.rs"]
mod options;
#[path = "mesh/ours.rs"]
mod ours;
#[path = "tunnel/peer.rs"]
mod peer;
#[path = "tunnel/rekeys.rs"]
mod rekeys;
#[path = "tunnel/relay.rs"]
mod relay;
#[path = "tunnel/report.rs"]
mod report;
#[path = "tunnel/round.rs"]
mod round;
#[path = "tunnel/sample.rs"]
mod sample;
#[path = "mesh/tinc.rs"]
mod tinc;
#[path = "tunnel/uapi.rs"]
mod uapi;
#[path = "tunnel/wireguard.rs"]
mod wireguard;

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use lab::error::Context;
use lab::package::{IPERF3, IPROUTE2, NEBULA, SOCKPERF, TINC, WIREGUARD_GO};
use lab::{Error, Result};
use member::{Latency, Meshd};
use options::Options;
use peer::{Bare, Peer};
use relay::Relay;
use report::Report;
use round::Tools;
use wireguard::{BORINGTUN, GOTATUN, Wireguard};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(relay::ARGUMENT) {
        return match relay::serve(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
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
fn run(options: &Options) -> Result<bool> {
    let mut report = Report::default();
    // Before a user namespace is entered, from which there is no way out to fetch anything.
    for set in [&IPERF3, &SOCKPERF, &TINC, &IPROUTE2, &NEBULA, &WIREGUARD_GO] {
        // Whoever uses it tells what is missing.
        let _ = set.fetch();
    }
    for which in [&GOTATUN, &BORINGTUN] {
        if options.install
            && let Err(error) = Wireguard::of_cargo(which, true)
        {
            println!("{error}");
        }
    }
    lab::reexec::ensure_namespaces()?;
    let load = machine::load();
    println!("{}, load average {load:.2}", machine::describe());
    println!("meshd built {}", options.build());
    if let Some(warning) = machine::warning(load) {
        println!("{warning}");
    }

    if options.rekeys.is_some() || options.crowd.is_some() {
        return alone(options, load).map(|()| true);
    }
    let peers = peers(options, &mut report);
    if peers.is_empty() {
        return Err(Error::failed("nothing is left to measure; --help names what --only takes"));
    }
    let tools = tools(options, &mut report)?;
    for number in 0..options.rounds {
        for place in 0..peers.len() {
            // Nobody always comes first, or always after the same.
            let peer = peers[(place + number) % peers.len()].as_ref();
            match round::run(peer, &tools) {
                Ok(figures) => {
                    println!("round {}: {}", number + 1, figures.line(peer.name()));
                    report.add(peer.name(), &peer.version(), figures);
                }
                Err(error @ Error::NotRun(_)) => report.miss(format!("{}: {error}", peer.name())),
                Err(error) => println!("round {}: {} gave no figures: {error}", number + 1, peer.name()),
            }
        }
    }
    let names: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
    report.arrange(&names);
    println!("\n{report}");
    write_json(options, load, report.to_json())?;
    Ok(report.is_met())
}

/// What is measured of meshd by itself.
fn alone(options: &Options, load: f64) -> Result<()> {
    let meshd = Meshd::new(options.meshd.clone(), options.meshctl.clone(), Latency::Normal)?;
    println!("{}", meshd.version());
    let mut figures = serde_json::Map::new();
    if let Some(count) = options.crowd {
        let crowd = crowd::run(&meshd, usize::from(count))?;
        println!("{crowd}");
        figures.insert("crowd".to_owned(), crowd.to_json());
    }
    if let Some(minutes) = options.rekeys {
        let time = Duration::from_secs(u64::from(minutes) * 60);
        let rekeys = rekeys::run(&meshd, &IPERF3.fetch()?, time, options.rate)?;
        println!("{rekeys}");
        figures.insert("rekeys".to_owned(), rekeys.to_json());
    }
    write_json(options, load, figures.into())
}

/// Writes the figures where they are wanted, with what they were taken on.
fn write_json(options: &Options, load: f64, report: Value) -> Result<()> {
    let Some(path) = &options.json else { return Ok(()) };
    let figures = serde_json::json!({
        "machine": machine::describe(),
        "load_average_before": load,
        "build": options.build(),
        "seconds_per_measurement": options.time.as_secs(),
        "report": report,
    });
    fs::write(path, format!("{figures:#}\n")).context(format_args!("write {}", path.display()))
}

/// Everything that can be had here and was asked for; what cannot is noted.
fn peers(options: &Options, report: &mut Report) -> Vec<Box<dyn Peer>> {
    let meshd = |latency| Meshd::new(options.meshd.clone(), options.meshctl.clone(), latency);
    let made: [(&str, Result<Box<dyn Peer>>); 10] = [
        ("veth", Ok(Box::new(Bare))),
        ("relay", Ok(Box::new(Relay::new(Latency::Normal)))),
        ("relay-low", Ok(Box::new(Relay::new(Latency::Low)))),
        ("meshd", meshd(Latency::Normal).map(boxed)),
        ("meshd-low", meshd(Latency::Low).map(boxed)),
        ("gotatun", Wireguard::of_cargo(&GOTATUN, false).map(boxed)),
        ("boringtun", Wireguard::of_cargo(&BORINGTUN, false).map(boxed)),
        ("wireguard-go", Wireguard::go().map(boxed)),
        ("nebula", nebula::Nebula::new().map(boxed)),
        ("tinc", tinc::Tinc::new().map(boxed)),
    ];
    let mut peers = Vec::new();
    for (name, peer) in made {
        match peer {
            _ if !options.wants(name) => {}
            Ok(peer) => peers.push(peer),
            Err(error) => {
                println!("{name}: {error}");
                report.miss(format!("{name}: {error}"));
            }
        }
    }
    peers
}

fn boxed(peer: impl Peer + 'static) -> Box<dyn Peer> {
    Box::new(peer)
}

fn tools(options: &Options, report: &mut Report) -> Result<Tools> {
    let sockperf = SOCKPERF.fetch();
    if let Err(error) = &sockperf {
        report.miss(format!("TCP requests: {error}"));
    }
    Ok(Tools { iperf3: IPERF3.fetch()?, sockperf: sockperf.ok(), time: options.time })
}

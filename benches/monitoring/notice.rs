//! Who notices what, how fast: the same faults for meshd, tinc, Nebula and the kernel's ping, and what each tells by itself.
//!
//! ```text
//!   meshd-1 ── 5 ms ── meshd-2        Each pair runs one of them, all under the same faults at the same time, and carries
//!   tinc-1 ─── 5 ms ── tinc-2         twenty echo requests a second through its tunnel: Nebula looks after a tunnel only
//!   nebula-1 ─ 5 ms ── nebula-2       while something is sent through it.
//! ```
//!
//! What counts as noticing: that the first node's program says something it did not say before the fault. meshd is asked for its
//! status, tinc to write out all it knows (SIGUSR1, SIGUSR2), and Nebula writes its log.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use meshd::api::Status;
use nix::sys::signal::Signal;

use crate::contender::{Contender, Place};
use crate::lab::error::Context;
use crate::lab::{Error, Host, Lab, Proc, Result, Wan, place};
use crate::nebula::Nebula;
use crate::options::Options;
use crate::ours;
use crate::ping::Ping;
use crate::pulse::Pulse;
use crate::report::{Report, Target};
use crate::stage::pass;
use crate::tinc::Tinc;

/// One way between the two of a pair.
const DELAY: Duration = Duration::from_millis(5);

/// How long everything runs before the first fault, so that there is something normal to compare with.
const BEFORE: Duration = Duration::from_secs(120);

/// Between the end of a fault and the next one.
const BETWEEN: Duration = Duration::from_secs(12);

/// Between two looks at what each of them says.
const LOOK: Duration = Duration::from_millis(500);

/// Between two echo requests through a tunnel.
const TRAFFIC: Duration = Duration::from_millis(50);

/// What the kernel's ping has to be off by to show something: more than this machine's own unrest.
const SHOWN: f64 = 1_000.0;

/// A fault and how long it lasts.
struct Fault {
    name: &'static str,
    time: Duration,
    make: fn(&Wan, &Pair) -> Result<Option<Pulse>>,
}

/// The faults, one after the other.
const FAULTS: [Fault; 5] = [
    Fault {
        name: "a 3 s cut",
        time: Duration::from_secs(3),
        make: |wan, pair| {
            wan.link(&pair.hosts[0], &pair.hosts[1]).cut(true);
            Ok(None)
        },
    },
    Fault {
        name: "+2 ms one way",
        time: Duration::from_secs(45),
        make: |wan, pair| {
            wan.way(&pair.hosts[0], &pair.hosts[1]).delay(DELAY + Duration::from_millis(2));
            Ok(None)
        },
    },
    Fault {
        name: "1 % loss one way",
        time: Duration::from_secs(45),
        make: |wan, pair| {
            wan.way(&pair.hosts[0], &pair.hosts[1]).loss(0.01);
            Ok(None)
        },
    },
    Fault {
        name: "a peer starved of CPU",
        time: Duration::from_secs(30),
        // A tenth of a processor, in pieces of 5 ms.
        make: |_, pair| Pulse::start(pair.far.clone(), Duration::from_millis(45), Duration::from_millis(5)).map(Some),
    },
    Fault {
        name: "full-size packets lost",
        time: Duration::from_secs(45),
        make: |wan, pair| {
            wan.link(&pair.hosts[0], &pair.hosts[1]).mtu(1_400, false);
            Ok(None)
        },
    },
];

/// Everything that a pair's first program says now and has said.
type Said = Box<dyn Fn(&Pair) -> Result<BTreeSet<String>>>;

/// Two hosts and the programs between them.
struct Pair {
    name: &'static str,
    hosts: [Host; 2],
    /// The far host's address on the network.
    address: Ipv4Addr,
    near: Arc<Proc>,
    far: Arc<Proc>,
    said: Said,
}

/// Runs all of them under each fault.
///
/// # Errors
/// Where meshd does not come up.
pub fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let wan = lab.wan(options.seed)?;
    let mut pairs = Vec::new();
    let mut traffic = Vec::new();
    let all = BEFORE + FAULTS.iter().map(|fault| fault.time + BETWEEN).sum::<Duration>() + BETWEEN;
    let made: [(&str, Result<Box<dyn Contender>>); 3] = [
        ("meshd", ours::Meshd::new(None, None).map(boxed)),
        ("tinc", Tinc::new().map(boxed)),
        ("nebula", Nebula::new().map(boxed)),
    ];
    for (name, contender) in made {
        match contender {
            Ok(contender) => {
                println!("{name}: {}", contender.version());
                let (pair, through) = start(lab, &wan, contender.as_ref())?;
                traffic.push(Ping::start(&pair.hosts[0], vec![through], TRAFFIC, all)?);
                pairs.push(pair);
            }
            Err(error) => report.miss(format!("{name}: {error}")),
        }
    }
    pass(Instant::now(), BEFORE);
    for fault in FAULTS {
        watch(&wan, &pairs, &fault, report)?;
        pass(Instant::now(), BETWEEN);
    }
    for (pair, traffic) in pairs.iter().zip(traffic) {
        let sample = traffic.finish()?.pop().unwrap_or_default();
        println!(
            "{}: {} echo requests through the tunnel, {} without an answer",
            pair.name,
            sample.len(),
            sample.lost()
        );
    }
    Ok(())
}

fn boxed(contender: impl Contender + 'static) -> Box<dyn Contender> {
    Box::new(contender)
}

/// Starts one of them on two hosts of its own; returns also the far host's address through the tunnel.
fn start(lab: &Lab, wan: &Wan, contender: &dyn Contender) -> Result<(Pair, Ipv4Addr)> {
    let name = contender.name();
    let hosts = [lab.host(&format!("{name}-1"))?, lab.host(&format!("{name}-2"))?];
    let mut places = Vec::new();
    for host in &hosts {
        places.push(Place { host: host.clone(), underlay: wan.attach(host)?.v4 });
    }
    wan.link(&hosts[0], &hosts[1]).delay(DELAY);
    let ready = contender.prepare(&places)?;
    let [first, second] = &ready[..] else { return Err(Error::failed("a pair has two ends")) };
    let [near, far] = [(first.daemon)().spawn()?, (second.daemon)().spawn()?].map(Arc::new);
    let meshctl = place::binary("meshctl")?;
    let said: Said = match name {
        "meshd" => Box::new(move |pair| problems(pair, &meshctl)),
        "tinc" => Box::new(dumped),
        _ => Box::new(|pair| Ok(logged(pair))),
    };
    let address = places[1].underlay;
    Ok((Pair { name, hosts, address, near, far, said }, second.overlay))
}

/// Makes one fault on all pairs and looks at what each says until it is over.
fn watch(wan: &Wan, pairs: &[Pair], fault: &Fault, report: &mut Report) -> Result<()> {
    let before: Vec<BTreeSet<String>> = pairs.iter().map(|pair| (pair.said)(pair)).collect::<Result<_>>()?;
    let began = Instant::now();
    let pulses: Vec<Option<Pulse>> = pairs.iter().map(|pair| (fault.make)(wan, pair)).collect::<Result<_>>()?;
    // The kernel's ping on the first pair's network, as an operator might start it when the fault begins.
    let first = pairs.first().ok_or_else(|| Error::failed("nothing runs"))?;
    let ping = Ping::start(&first.hosts[0], vec![first.address], TRAFFIC * 4, fault.time)?;
    let mut noticed: Vec<Option<(Duration, String)>> = vec![None; pairs.len()];
    while began.elapsed() < fault.time + BETWEEN / 2 {
        for ((pair, before), noticed) in pairs.iter().zip(&before).zip(&mut noticed) {
            if noticed.is_none() {
                let new = (pair.said)(pair)?.difference(before).next().cloned();
                *noticed = new.map(|new| (began.elapsed(), new));
            }
        }
        if began.elapsed() > fault.time {
            heal(wan, pairs);
        }
        thread::sleep(LOOK);
    }
    drop(pulses);
    heal(wan, pairs);
    for (pair, noticed) in pairs.iter().zip(noticed) {
        let (after, what) = noticed.map_or((f64::NAN, "nothing".to_owned()), |(at, what)| (at.as_secs_f64(), what));
        println!("{}: {} said {what}", fault.name, pair.name);
        if pair.name == "meshd" {
            println!("{}: meshd shows {}", fault.name, shown(pair)?);
        }
        report.add("notice", format!("{}: {} says so after", fault.name, pair.name), after, "s", Target::None);
    }
    let answers = ping.finish()?.pop().unwrap_or_default();
    let shows = answers.lost() > 0 || answers.median() > (DELAY * 2).as_secs_f64() * 1e6 + SHOWN;
    let shown = if shows { "shows it while it runs" } else { "shows nothing" };
    println!(
        "{}: ping on the network {shown}: {} of {} lost, p50 {:.0} µs, p99 {:.0} µs",
        fault.name,
        answers.lost(),
        answers.len() + answers.lost(),
        answers.median(),
        answers.quantile(0.99)
    );
    Ok(())
}

/// Takes all faults of the network away.
fn heal(wan: &Wan, pairs: &[Pair]) {
    for pair in pairs {
        wan.link(&pair.hosts[0], &pair.hosts[1]).clear().delay(DELAY);
    }
}

/// What meshd's status says to be wrong with the far node.
fn problems(pair: &Pair, meshctl: &Path) -> Result<BTreeSet<String>> {
    let problems = status(pair, meshctl)?.problems.into_iter();
    Ok(problems.map(|problem| format!("{}: {}", problem.kind, problem.message)).collect())
}

/// meshd's status on the near host.
fn status(pair: &Pair, meshctl: &Path) -> Result<Status> {
    let config = pair.hosts[0].dir().join("mesh/meshd.toml");
    let told = pair.hosts[0].command(meshctl).arg("--config").arg(config).args(["--json", "status"]).check()?;
    serde_json::from_str(&told).context("the status of meshd")
}

/// The figures of the last five minutes that meshd shows, for whoever looks.
fn shown(pair: &Pair) -> Result<String> {
    let status = status(pair, &place::binary("meshctl")?)?;
    let peer = status.peers.first().ok_or_else(|| Error::failed("meshd has no peer"))?;
    let link = peer.link.map_or_else(String::new, |link| {
        let [p50, p99] = [link.rtt_p50_seconds, link.rtt_p99_seconds].map(|seconds| seconds * 1e3);
        format!(", p50 {p50:.2} ms, p99 {p99:.2} ms")
    });
    let loss = peer.loss.map_or_else(String::new, |loss| format!(", {} of {} probes lost", loss.lost, loss.sent));
    Ok(format!("{}{link}{loss}", peer.state.name()))
}

/// Every line that tinc has written, after asking it for all it knows of nodes and connections.
fn dumped(pair: &Pair) -> Result<BTreeSet<String>> {
    pair.near.signal(Signal::SIGUSR1);
    pair.near.signal(Signal::SIGUSR2);
    pass(Instant::now(), Duration::from_millis(100));
    Ok(logged(pair))
}

/// Every line that a program has written, without its time.
fn logged(pair: &Pair) -> BTreeSet<String> {
    let timeless = |line: &str| match line.strip_prefix("time=\"").and_then(|rest| rest.split_once("\" ")) {
        Some((_, rest)) => rest.to_owned(),
        None => line.to_owned(),
    };
    // What has no end yet may be half a line.
    let whole = |text: String| text.rsplit_once('\n').map_or_else(String::new, |(whole, _)| format!("{whole}\n"));
    let all = whole(pair.near.stdout()) + &whole(pair.near.stderr());
    // tinc counts bytes in its dumps, and its own requests for them are lines too: not news about the network.
    all.lines().map(timeless).filter(|line| !line.is_empty() && !line.contains(" bytes ")).collect()
}

//! Measures how many packets two WireGuard ends lose around handshakes, and traces why.
#![forbid(unsafe_code)]

mod end;
mod node;
mod packet;
mod plain;
mod report;
#[cfg(not(feature = "v06"))]
mod seam;
mod wggo;
mod wire;

use boringtun::noise::Tunn;
use boringtun::x25519::{PublicKey, StaticSecret};
use end::Tunnel;
use node::{Log, Plan, Remake, TunnelEnd, run_app};
use plain::Plain;
use report::{Row, summary, table, trace};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use wire::Wire;

#[cfg(not(feature = "v06"))]
const VERSION: &str = "0.7.1";
#[cfg(feature = "v06")]
const VERSION: &str = "0.6.0";

const ADDRESS_A: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const ADDRESS_B: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
/// wireguard-go's port, in a network namespace of its own; below the ephemeral range, because at its
/// start it binds an ephemeral port that a reserved one can collide with.
const WIREGUARD_GO_PORT: u16 = 7655;
/// Time between the rig being ready and both ends' first packet.
const LEAD: Duration = Duration::from_millis(300);
/// Receiving goes on this long after the last packet.
const DRAIN: Duration = Duration::from_secs(6);

/// When end A starts anew in scenarios F and G: long after any exchange at the start.
const RESTART: Duration = Duration::from_secs(15);

const USAGE: &str = "usage: boringtun-soak plain|seam SCENARIO PEER RUNS PARALLEL DELAY_MS OUT_DIR [WIREGUARD_GO]\n\
       boringtun-soak table FILE...\n\
SCENARIO is A (one packet per 3 s, 15 min), B (10/s, 20 s), C (10/s, 5 min),\n\
         D (as A, but B starts 1.5 s later and A has a 25 s keepalive), E (1,000/s, 10 s),\n\
         F (100/s, 30 s, end A starts anew after 15 s),\n\
         G (as F, but A sends nothing)\n\
         or H (1 packet per s, 3 min, a second program has A's key; wg-go only); PEER is same or wg-go\n\
plain drives boringtun as its documentation says, seam the product's tunnels (not in the build for 0.6.0)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["plain", rest @ ..] => run(rest, false),
        #[cfg(not(feature = "v06"))]
        ["seam", rest @ ..] => run(rest, true),
        ["table", files @ ..] => print_table(files),
        _ => Err(io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boringtun-soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What every run of one command shares.
struct Job {
    scenario: String,
    pair: String,
    interval: Duration,
    count: u32,
    /// How much later end B starts.
    offset: Duration,
    keepalive: Option<u16>,
    /// Whether our ends are the product's tunnels.
    seam: bool,
    /// When end A starts anew, after the plan's start.
    restart: Option<Duration>,
    /// Whether end A sends nothing, so that only its peer can notice that it started anew.
    silent: bool,
    /// Whether a second program uses end A's key from another port.
    twin: bool,
    delay: Duration,
    out: PathBuf,
    wireguard_go: Option<PathBuf>,
}

fn run(words: &[&str], seam: bool) -> io::Result<()> {
    let (scenario, peer, runs, parallel, delay, out, program) = match words {
        [scenario, peer, runs, parallel, delay, out] => (scenario, peer, runs, parallel, delay, out, None),
        [scenario, peer, runs, parallel, delay, out, program] => {
            (scenario, peer, runs, parallel, delay, out, Some(PathBuf::from(program)))
        }
        _ => return Err(io::Error::other(USAGE)),
    };
    let (interval, count) = match *scenario {
        "A" | "D" => (Duration::from_secs(3), 300),
        "B" => (Duration::from_millis(100), 200),
        "C" => (Duration::from_millis(100), 3_000),
        "E" => (Duration::from_millis(1), 10_000),
        "H" => (Duration::from_secs(1), 180),
        "F" | "G" => (Duration::from_millis(10), 3_000),
        _ => return Err(io::Error::other(USAGE)),
    };
    let wireguard_go = match (*peer, program) {
        ("same", _) if *scenario != "H" => None,
        ("wg-go", Some(program)) => Some(program),
        _ => return Err(io::Error::other(USAGE)),
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| io::Error::other(USAGE));
    let (runs, parallel) = (number(runs)?, number(parallel)?.max(1));
    let ours = if seam { "seam" } else { VERSION };
    let job = Arc::new(Job {
        scenario: format!("{scenario} {delay} ms"),
        pair: match wireguard_go {
            Some(_) => format!("{ours} ↔ wireguard-go"),
            None => format!("{ours} ↔ {ours}"),
        },
        interval,
        count,
        offset: if *scenario == "D" { Duration::from_millis(1_500) } else { Duration::ZERO },
        keepalive: (*scenario == "D").then_some(25),
        seam,
        restart: matches!(*scenario, "F" | "G").then_some(RESTART),
        silent: *scenario == "G",
        twin: *scenario == "H",
        delay: Duration::from_millis(u64::from(number(delay)?)),
        out: PathBuf::from(out),
        wireguard_go,
    });
    fs::create_dir_all(&job.out)?;
    let mut failed = 0;
    for first in (0..runs).step_by(parallel as usize) {
        let batch: Vec<_> = (first..runs.min(first + parallel))
            .map(|index| {
                let job = Arc::clone(&job);
                thread::spawn(move || one_run(&job, index))
            })
            .collect();
        for handle in batch {
            match handle.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    failed += 1;
                    eprintln!("run failed: {error}");
                }
                Err(_) => failed += 1,
            }
        }
    }
    if failed > 0 {
        return Err(io::Error::other(format!("{failed} of {runs} runs failed and are not in the results")));
    }
    Ok(())
}

fn one_run(job: &Arc<Job>, index: u32) -> io::Result<()> {
    let name = format!("{}-{}-{index}", job.scenario, job.pair).replace(' ', "_").replace('↔', "-");
    let (a, b, wire) = match &job.wireguard_go {
        Some(program) => with_wireguard_go(job, program, index, &name)?,
        None => with_itself(job, index)?,
    };
    let row = Row::new(&job.pair, &job.scenario, &a, &b, &wire, job.interval.as_secs_f64() * 1e3);
    fs::write(job.out.join(format!("{name}.trace")), trace(&a, &b, &wire))?;
    let mut results = OpenOptions::new().create(true).append(true).open(job.out.join("results.tsv"))?;
    results.write_all(format!("{}\n", row.line()).as_bytes())
}

fn with_itself(job: &Arc<Job>, index: u32) -> io::Result<(Log, Log, Vec<wire::Seen>)> {
    let plan = plan(job);
    let late = Plan { first: job.offset, ..plan };
    let (secret_a, secret_b) = (StaticSecret::from(random()?), StaticSecret::from(random()?));
    let (public_a, public_b) = (PublicKey::from(&secret_a), PublicKey::from(&secret_b));
    let socket_a = wire::bind(Ipv4Addr::LOCALHOST, 0)?;
    let socket_b = wire::bind(Ipv4Addr::LOCALHOST, 0)?;
    let wire = Wire::open(socket_a.local_addr()?, socket_b.local_addr()?, job.delay, plan)?;
    socket_a.connect(wire.for_a)?;
    socket_b.connect(wire.for_b)?;
    let first = index * 2 + 0xa00;
    let for_a = Identity { own: secret_a, peer: public_b, source: wire.for_a, end_a: true, index: first };
    let for_b = Identity { own: secret_b, peer: public_a, source: wire.for_b, end_a: false, index: first + 0x101 };
    let a = TunnelEnd {
        restart: job.restart.map(|when| (when, remake(job, &for_a))),
        tunnel: tunnel(job, &for_a, false)?,
        socket: socket_a,
        source: ADDRESS_A,
        destination: ADDRESS_B,
    };
    let b = TunnelEnd {
        restart: None,
        tunnel: tunnel(job, &for_b, false)?,
        socket: socket_b,
        source: ADDRESS_B,
        destination: ADDRESS_A,
    };
    let other = thread::spawn(move || b.run(late));
    let log_a = a.run(quiet(job, plan));
    let log_b = other.join().map_err(|_| io::Error::other("end B panicked"))?;
    Ok((log_a, log_b, wire.close()))
}

fn with_wireguard_go(
    job: &Arc<Job>,
    program: &Path,
    index: u32,
    name: &str,
) -> io::Result<(Log, Log, Vec<wire::Seen>)> {
    wggo::enter_namespaces()?;
    let (secret_a, secret_b) = (StaticSecret::from(random()?), StaticSecret::from(random()?));
    let (public_a, public_b) = (PublicKey::from(&secret_a), PublicKey::from(&secret_b));
    let socket_a = wire::bind(Ipv4Addr::LOCALHOST, 0)?;
    let endpoint_b = SocketAddr::from((Ipv4Addr::LOCALHOST, WIREGUARD_GO_PORT));
    // The wire's clock must start before the plan is fixed, so setup happens first on a late plan.
    let setup_plan = Plan { start: Instant::now() + Duration::from_secs(3), ..plan(job) };
    let late = Plan { first: job.offset, ..setup_plan };
    let wire = Wire::open(socket_a.local_addr()?, endpoint_b, job.delay, setup_plan)?;
    socket_a.connect(wire.for_a)?;
    let peer = wggo::WireguardGo::start(wggo::Setup {
        program,
        private_key: secret_b.to_bytes(),
        peer_public_key: public_a.to_bytes(),
        listen_port: endpoint_b.port(),
        endpoint: wire.for_b,
        own_address: ADDRESS_B,
        peer_address: ADDRESS_A,
        log: Some(File::create(job.out.join(format!("{name}.wggo")))?),
    })?;
    let app = wire::bind(ADDRESS_B, packet::APP_PORT)?;
    app.connect((ADDRESS_A, packet::APP_PORT))?;
    if Instant::now() >= setup_plan.start {
        return Err(io::Error::other("wireguard-go took longer than 3 s to start: machine too busy"));
    }
    let first = index * 2 + 0xa00;
    let for_a = Identity { own: secret_a, peer: public_b, source: wire.for_a, end_a: true, index: first };
    let a = TunnelEnd {
        restart: job.restart.map(|when| (when, remake(job, &for_a))),
        tunnel: tunnel(job, &for_a, false)?,
        socket: socket_a,
        source: ADDRESS_A,
        destination: ADDRESS_B,
    };
    let twin = if job.twin {
        let socket = wire::bind(Ipv4Addr::LOCALHOST, 0)?;
        let wire = Wire::open(socket.local_addr()?, endpoint_b, job.delay, setup_plan)?;
        socket.connect(wire.for_a)?;
        let end = TunnelEnd {
            restart: None,
            tunnel: tunnel(job, &Identity { source: wire.for_a, index: first + 0x200, ..for_a }, false)?,
            socket,
            source: ADDRESS_A,
            destination: ADDRESS_B,
        };
        let plan = Plan { first: job.interval / 2, ..setup_plan };
        Some((wire, thread::spawn(move || end.run(plan))))
    } else {
        None
    };
    let other = thread::spawn(move || run_app(&app, late));
    let log_a = a.run(quiet(job, setup_plan));
    if let Some((wire, twin)) = twin {
        twin.join().map_err(|_| io::Error::other("the twin panicked"))?;
        wire.close();
    }
    let log_b = other.join().map_err(|_| io::Error::other("end B panicked"))?;
    drop(peer);
    Ok((log_a, log_b, wire.close()))
}

fn plan(job: &Job) -> Plan {
    Plan { start: Instant::now() + LEAD, interval: job.interval, first: Duration::ZERO, count: job.count, drain: DRAIN }
}

/// What makes an end the peer of another.
#[derive(Clone)]
struct Identity {
    own: StaticSecret,
    peer: PublicKey,
    /// Where the peer's datagrams come from: this end's side of the wire.
    #[cfg_attr(feature = "v06", expect(dead_code, reason = "plain boringtun looks at no address"))]
    source: SocketAddr,
    /// Names end A, which has the keepalive of scenario D.
    end_a: bool,
    /// The plain tunnel's first session index.
    index: u32,
}

/// Makes one end's tunnel. `restarted` is whether it had one before and has forgotten it.
fn tunnel(job: &Job, identity: &Identity, restarted: bool) -> io::Result<Box<dyn Tunnel>> {
    if job.seam {
        return seam_tunnel(job, identity, restarted);
    }
    let keepalive = if identity.end_a { job.keepalive } else { None };
    let tunnel = Tunn::new(identity.own.clone(), identity.peer, None, keepalive, identity.index, None);
    #[cfg(feature = "v06")]
    // 0.6.0 declares an error it never returns.
    let tunnel = tunnel.expect("0.6.0 has no failing path here");
    Ok(Box::new(Plain::new(tunnel)))
}

#[cfg(not(feature = "v06"))]
fn seam_tunnel(job: &Job, identity: &Identity, restarted: bool) -> io::Result<Box<dyn Tunnel>> {
    let peer = seam::Peer {
        public: identity.peer,
        source: identity.source,
        stock: job.wireguard_go.is_some(),
        keep_up: identity.end_a && job.keepalive.is_some(),
    };
    let make = if restarted { seam::Seam::restarted } else { seam::Seam::new };
    Ok(Box::new(make(identity.own.clone(), random()?, &peer)))
}

#[cfg(feature = "v06")]
fn seam_tunnel(_: &Job, _: &Identity, _: bool) -> io::Result<Box<dyn Tunnel>> {
    Err(io::Error::other("the product is not built on 0.6.0"))
}

/// End A's own plan.
fn quiet(job: &Job, plan: Plan) -> Plan {
    if job.silent { Plan { first: job.interval * job.count, count: 0, ..plan } } else { plan }
}

fn remake(job: &Arc<Job>, identity: &Identity) -> Remake {
    let (job, identity) = (Arc::clone(job), identity.clone());
    Box::new(move || tunnel(&job, &identity, true))
}

fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn print_table(files: &[&str]) -> io::Result<()> {
    let mut rows = Vec::new();
    for file in files {
        for line in fs::read_to_string(file)?.lines() {
            let row = Row::parse(line).ok_or_else(|| io::Error::other(format!("{file}: not a result: {line}")))?;
            rows.push(row);
        }
    }
    println!("{}\n{}", summary(&rows), table(&rows));
    Ok(())
}

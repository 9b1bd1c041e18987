//! One round: a mesh is started, left alone, joined by one more, and ended.

use std::thread;
use std::time::{Duration, Instant};

use crate::contender::{Contender, Place, Ready, node_name};
use crate::lab::{Error, Lab, Proc, Result};
use crate::pinger::Pinger;
use crate::usage::{Usage, peak_memory};

/// How long a mesh may take to form before the round is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a round does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Nodes started together.
    pub nodes: u16,
    /// Between the last answer and the measurement of the idle cost.
    pub settle: Duration,
    /// What the idle cost is measured over.
    pub idle: Duration,
}

/// What a round gave.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// From the first start to the last pair's first answer, seconds.
    pub formed: f64,
    /// From a new node's start to the last of its answers, seconds.
    pub joined: f64,
    /// Time on a processor per node and second while nothing happens: mean over the nodes, milliseconds.
    pub idle_cpu: f64,
    /// The same of the node that uses most, milliseconds.
    pub idle_cpu_worst: f64,
    /// Sleeps of all threads per node and second.
    pub wakeups: f64,
    /// The most memory that any node had resident, MiB.
    pub memory: f64,
}

impl Figures {
    /// The round in one line.
    pub fn line(&self, name: &str) -> String {
        format!(
            "{name}: formed {:.2} s, new node {:.3} s, idle {:.2} ms/s (worst {:.2}, {:.0} wake-ups/s), memory {:.1} MiB",
            self.formed, self.joined, self.idle_cpu, self.idle_cpu_worst, self.wakeups, self.memory
        )
    }
}

/// Runs a round in hosts of its own.
///
/// # Errors
/// Where the mesh does not form, or one of its programs fails.
pub fn run(contender: &dyn Contender, plan: Plan) -> Result<Figures> {
    let lab = Lab::new(&format!("bench-{}", contender.name()))?;
    let measured = measure(&lab, contender, plan);
    if measured.is_err() {
        lab.fail();
    }
    measured
}

fn measure(lab: &Lab, contender: &dyn Contender, plan: Plan) -> Result<Figures> {
    let wire = lab.plain("wire")?;
    let mut places = Vec::new();
    for index in 0..=usize::from(plan.nodes) {
        let host = lab.host(&node_name(index))?;
        let underlay = wire.attach(&host)?.v4;
        places.push(Place { host, underlay });
    }
    let ready = contender.prepare(&places)?;
    let (Some((late_place, places)), Some((late, nodes))) = (places.split_last(), ready.split_last()) else {
        return Err(Error::failed("a mesh of no nodes"));
    };

    let began = Instant::now();
    let running = start_all(nodes)?;
    let mut pingers = Vec::new();
    for (index, place) in places.iter().enumerate() {
        let others = nodes.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, node)| node.overlay);
        pingers.push(Pinger::start(&place.host, others.collect(), began + PATIENCE)?);
    }
    let formed = last_answer(pingers, &running)?.duration_since(began).as_secs_f64();

    thread::sleep(plan.settle);
    let idle = idle_cost(&running, plan.idle)?;
    let memory = running.iter().map(|daemon| peak_memory(daemon.pid())).collect::<Result<Vec<_>>>()?;

    let began = Instant::now();
    let new = (late.daemon)().spawn()?;
    let everybody = nodes.iter().map(|node| node.overlay).collect();
    let pinger = Pinger::start(&late_place.host, everybody, began + PATIENCE)?;
    let joined = last_answer(vec![pinger], std::slice::from_ref(&new))?.duration_since(began).as_secs_f64();

    let nodes = f64::from(plan.nodes);
    let cpu: Vec<f64> = idle.iter().map(|(milliseconds, _)| *milliseconds).collect();
    Ok(Figures {
        formed,
        joined,
        idle_cpu: cpu.iter().sum::<f64>() / nodes,
        idle_cpu_worst: cpu.iter().copied().fold(0.0, f64::max),
        wakeups: idle.iter().map(|(_, wakeups)| wakeups).sum::<f64>() / nodes,
        memory: memory.into_iter().max().unwrap_or(0) as f64 / f64::from(1 << 20),
    })
}

/// Starts all at once: each by a thread of its own, as far as the processors go.
fn start_all(nodes: &[Ready]) -> Result<Vec<Proc>> {
    thread::scope(|scope| {
        let starting: Vec<_> = nodes.iter().map(|node| scope.spawn(|| (node.daemon)().spawn())).collect();
        let started = starting.into_iter().map(|thread| thread.join());
        started.map(|process| process.map_err(|_| Error::failed("a starting thread panicked"))?).collect()
    })
}

/// Waits for all pingers; a daemon that has ended is the better explanation of silence.
fn last_answer(pingers: Vec<Pinger>, running: &[Proc]) -> Result<Instant> {
    let mut last = None;
    for pinger in pingers {
        match pinger.finish() {
            Ok(at) => last = last.max(Some(at)),
            Err(error) => match running.iter().find(|daemon| !daemon.is_running()) {
                Some(ended) => return Err(Error::failed(format!("{error}; a daemon ended: {}", ended.stderr()))),
                None => return Err(error),
            },
        }
    }
    last.ok_or_else(|| Error::failed("nobody asked"))
}

/// What each daemon uses while nothing happens: milliseconds on a processor and sleeps, per second.
fn idle_cost(running: &[Proc], time: Duration) -> Result<Vec<(f64, f64)>> {
    let read = || {
        let read = |daemon: &Proc| Ok((Instant::now(), Usage::of(daemon.pid())?));
        running.iter().map(read).collect::<Result<Vec<_>>>()
    };
    let before = read()?;
    thread::sleep(time);
    let after = read()?;
    Ok(before
        .iter()
        .zip(&after)
        .map(|((from, before), (to, after))| {
            let seconds = to.duration_since(*from).as_secs_f64();
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e3;
            let sleeps = after.sleeps.saturating_sub(before.sleeps) as f64;
            (cpu / seconds, sleeps / seconds)
        })
        .collect())
}

//! One end of a rig: sends numbered packets on a fixed schedule and notes which ones arrive.
//!
//! `TunnelEnd` drives a tunnel of this program. `run_app` is the same schedule through a kernel UDP
//! socket, for the end whose tunnel is another program.

use crate::end::{Outgoing, Tunnel};
use crate::packet;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

/// Largest datagram a rig carries; the numbered packets are far smaller.
const BUFFER: usize = 2048;

/// When and how much an end sends. All times count from the rig's `start`.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub start: Instant,
    /// When this end's first packet goes, after `start`.
    pub first: Duration,
    pub interval: Duration,
    pub count: u32,
    /// How long an end keeps receiving (and its timers running) after its last packet.
    pub drain: Duration,
}

impl Plan {
    fn send_time(&self, sequence: u32) -> Instant {
        self.start + self.first + self.interval * sequence
    }

    fn end(&self) -> Instant {
        self.send_time(self.count.saturating_sub(1)) + self.drain
    }
}

/// What an end saw. Times are milliseconds since the plan's start.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub sent: Vec<(u32, f64)>,
    pub received: Vec<(u32, f64)>,
    /// Counts of errors the tunnel returned, by name.
    pub errors: BTreeMap<String, u32>,
    pub events: Vec<(f64, String)>,
}

/// Makes a tunnel with the same keys and nothing else remembered.
pub type Remake = Box<dyn FnOnce() -> io::Result<Box<dyn Tunnel>> + Send>;

/// The tunnel end of a rig.
pub struct TunnelEnd {
    pub tunnel: Box<dyn Tunnel>,
    /// What makes the tunnel anew at a time after the plan's start: a restart of this end.
    pub restart: Option<(Duration, Remake)>,
    /// Connected to the wire.
    pub socket: UdpSocket,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
}

impl TunnelEnd {
    /// Runs the plan to its end and returns what was seen.
    pub fn run(mut self, plan: Plan) -> Log {
        let mut log = Log::default();
        let mut datagram = [0u8; BUFFER];
        let mut next_sequence = 0;
        sleep_until(plan.start);
        loop {
            let now = Instant::now();
            if now >= plan.end() {
                return log;
            }
            if let Some((_, remake)) = self.restart.take_if(|(when, _)| now >= plan.start + *when) {
                match remake() {
                    Ok(tunnel) => self.tunnel = tunnel,
                    Err(error) => *log.errors.entry(format!("restart {error}")).or_default() += 1,
                }
                log.events.push((since(plan), "restarts".into()));
            }
            if self.tunnel.wait().is_zero() {
                self.tick(plan, &mut log);
            }
            while next_sequence < plan.count && Instant::now() >= plan.send_time(next_sequence) {
                self.send(next_sequence, plan, &mut log);
                next_sequence += 1;
            }
            let mut wake = plan.end();
            // A wait without an end is longer than the time line.
            if let Some(due) = now.checked_add(self.tunnel.wait()) {
                wake = wake.min(due);
            }
            if let Some((when, _)) = &self.restart {
                wake = wake.min(plan.start + *when);
            }
            if next_sequence < plan.count {
                wake = wake.min(plan.send_time(next_sequence));
            }
            if let Some(length) = receive_until(&self.socket, &mut datagram, wake) {
                self.receive(&datagram[..length], plan, &mut log);
            }
        }
    }

    fn send(&mut self, sequence: u32, plan: Plan, log: &mut Log) {
        let inner = packet::ipv4_udp(self.source, self.destination, &packet::payload(sequence));
        log.sent.push((sequence, since(plan)));
        let mut out = Vec::new();
        if let Err(error) = self.tunnel.send(&inner, &mut out) {
            log.events.push((since(plan), format!("refused packet {sequence}: {error}")));
            *log.errors.entry(format!("send {error}")).or_default() += 1;
        }
        self.put(out, plan, log);
    }

    fn tick(&mut self, plan: Plan, log: &mut Log) {
        let mut out = Vec::new();
        if let Err(error) = self.tunnel.tick(&mut out) {
            log.events.push((since(plan), format!("timers: {error}")));
            *log.errors.entry(format!("timers {error}")).or_default() += 1;
        }
        self.put(out, plan, log);
    }

    fn receive(&mut self, datagram: &[u8], plan: Plan, log: &mut Log) {
        let mut out = Vec::new();
        match self.tunnel.receive(datagram, &mut out) {
            Ok(inner) => {
                if let Some(sequence) = inner.as_deref().and_then(packet::inner_sequence) {
                    log.received.push((sequence, since(plan)));
                }
            }
            Err(error) => {
                let seen = packet::Message::read(datagram);
                log.events.push((since(plan), format!("refused {seen:x?}: {error}")));
                *log.errors.entry(error).or_default() += 1;
            }
        }
        self.put(out, plan, log);
    }

    fn put(&self, out: Vec<Outgoing>, plan: Plan, log: &mut Log) {
        for (step, datagram) in out {
            let seen = packet::Message::read(&datagram);
            if seen.is_handshake() || matches!(seen, packet::Message::Keepalive { .. }) {
                log.events.push((since(plan), format!("{step} sends {seen:x?}")));
            }
            if let Err(error) = self.socket.send(&datagram) {
                *log.errors.entry(format!("send {:?}", error.kind())).or_default() += 1;
            }
        }
    }
}

/// Runs the plan through a connected kernel socket whose far side is the other end's tunnel.
pub fn run_app(socket: &UdpSocket, plan: Plan) -> Log {
    let mut log = Log::default();
    let mut datagram = [0u8; BUFFER];
    let mut next_sequence = 0;
    sleep_until(plan.start);
    loop {
        let now = Instant::now();
        if now >= plan.end() {
            return log;
        }
        while next_sequence < plan.count && Instant::now() >= plan.send_time(next_sequence) {
            log.sent.push((next_sequence, since(plan)));
            if let Err(error) = socket.send(&packet::payload(next_sequence)) {
                *log.errors.entry(format!("send {:?}", error.kind())).or_default() += 1;
            }
            next_sequence += 1;
        }
        let mut wake = plan.end();
        if next_sequence < plan.count {
            wake = wake.min(plan.send_time(next_sequence));
        }
        if let Some(length) = receive_until(socket, &mut datagram, wake)
            && let Some(sequence) = packet::sequence(&datagram[..length])
        {
            log.received.push((sequence, since(plan)));
        }
    }
}

/// Milliseconds since the plan's start; negative before it.
pub fn since(plan: Plan) -> f64 {
    let now = Instant::now();
    match now.checked_duration_since(plan.start) {
        Some(after) => after.as_secs_f64() * 1e3,
        None => -(plan.start - now).as_secs_f64() * 1e3,
    }
}

/// Sleeps to within 0.1 ms of `wake`. Nothing arrives before a plan's start, and `ppoll` may be late
/// by up to 0.5 % of its wait, which would keep the two ends from starting at once.
fn sleep_until(wake: Instant) {
    thread::sleep(wake.saturating_duration_since(Instant::now()));
}

/// Waits for a datagram until `wake`; `None` when the time came first.
///
/// Waits with `ppoll`: socket timeouts go through the kernel's coarse timer wheel, which was seen to
/// wake 4 to 30 ms late, and then the two ends do not start at once.
fn receive_until(socket: &UdpSocket, datagram: &mut [u8], wake: Instant) -> Option<usize> {
    let wait = TimeSpec::from_duration(wake.saturating_duration_since(Instant::now()));
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut ready, Some(wait), None) {
        // A port that is not open yet answers with an ICMP error: not fatal, the schedule goes on.
        Ok(1..) => socket.recv(datagram).ok(),
        _ => None,
    }
}

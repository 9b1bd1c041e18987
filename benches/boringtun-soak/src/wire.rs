//! The wire between two ends: passes every datagram on after a fixed delay and notes its header.
//!
//! It never drops or reorders, so every packet a rig loses was lost by one of the two tunnels.

use crate::node::{Plan, since};
use crate::packet::Message;
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a wire thread looks whether its rig has ended.
const POLL: Duration = Duration::from_millis(200);

/// Receive buffer of every socket, as the product's: packets that waited for a session come all at once, and the usual buffer
/// has room for fewer than 300 small ones.
const BUFFER_BYTES: usize = 4 << 20;

/// Binds a socket that the bench itself does not lose packets in.
pub fn bind(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, port))?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
    }
    Ok(socket)
}

/// Which end sent a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

/// One datagram as it entered the wire, in milliseconds since the plan's start.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub at: f64,
    pub from: Side,
    pub message: Message,
}

/// A running wire.
pub struct Wire {
    /// Where end A sends to.
    pub for_a: SocketAddr,
    /// Where end B sends to.
    pub for_b: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Seen>>>,
    movers: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Opens the wire between `a` and `b`, the two ends' own sockets. `delay` is one way.
    pub fn open(a: SocketAddr, b: SocketAddr, delay: Duration, plan: Plan) -> io::Result<Wire> {
        let near_a = Arc::new(bind(Ipv4Addr::LOCALHOST, 0)?);
        let near_b = Arc::new(bind(Ipv4Addr::LOCALHOST, 0)?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut wire = Wire {
            for_a: near_a.local_addr()?,
            for_b: near_b.local_addr()?,
            stop: Arc::clone(&stop),
            threads: Vec::new(),
            movers: Vec::new(),
        };
        let ways = [(Side::A, Arc::clone(&near_a), Arc::clone(&near_b), b), (Side::B, near_b, near_a, a)];
        for (side, input, output, to) in ways {
            let (queue, due) = mpsc::channel::<(Instant, Vec<u8>)>();
            let stop = Arc::clone(&stop);
            wire.threads.push(thread::spawn(move || listen(side, &input, &queue, &stop, delay, plan)));
            wire.movers.push(thread::spawn(move || {
                for (when, datagram) in due {
                    thread::sleep(when.saturating_duration_since(Instant::now()));
                    // An end that has closed already answers with an error; it lost nothing then.
                    let _ = output.send_to(&datagram, to);
                }
            }));
        }
        Ok(wire)
    }

    /// Ends the wire and returns everything it saw, in time order.
    pub fn close(mut self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = VecDeque::new();
        for thread in self.threads.drain(..) {
            seen.extend(thread.join().unwrap_or_default());
        }
        for mover in self.movers.drain(..) {
            let _ = mover.join();
        }
        let mut seen: Vec<Seen> = seen.into();
        seen.sort_by(|left, right| left.at.total_cmp(&right.at));
        seen
    }
}

fn listen(
    side: Side,
    input: &UdpSocket,
    queue: &mpsc::Sender<(Instant, Vec<u8>)>,
    stop: &AtomicBool,
    delay: Duration,
    plan: Plan,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut datagram = [0u8; 2048];
    let _ = input.set_read_timeout(Some(POLL));
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, _)) = input.recv_from(&mut datagram) else {
            continue;
        };
        let datagram = &datagram[..length];
        seen.push(Seen { at: since(plan), from: side, message: Message::read(datagram) });
        if queue.send((Instant::now() + delay, datagram.to_vec())).is_err() {
            break;
        }
    }
    seen
}

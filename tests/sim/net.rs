//! The network between the simulated hosts: a queue of deliveries in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use meshd::identity::WireguardKey;
use meshd::time::Instant;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packet {
    /// A datagram of ours outside any tunnel.
    Plain(Vec<u8>),
    /// The modelled handshake, first message: who asks whom for which session.
    Initiation { from: WireguardKey, to: WireguardKey, session: u64 },
    /// The modelled handshake, second message.
    Response { session: u64 },
    /// A payload sealed under a session.
    Sealed { session: u64, payload: Vec<u8> },
}

/// A packet on its way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delivery {
    pub at: Instant,
    /// Breaks ties in the order of sending, so that the trace does not depend on the heap.
    order: u64,
    pub from: SocketAddr,
    pub to: usize,
    pub packet: Packet,
}

/// The conditions, and what is under way.
pub struct Net {
    pub rng: ChaCha12Rng,
    queue: BinaryHeap<Reverse<Delivery>>,
    order: u64,
    /// Probability that a packet is lost, in 1/1000.
    pub loss: u32,
    /// One-way delay inside a site and between two sites.
    pub delays: (Duration, Duration),
    /// Ordered pairs between which nothing passes.
    pub cuts: BTreeSet<(usize, usize)>,
    /// Packets and bytes handed in, per sender.
    pub sent: Vec<(u64, u64)>,
}

impl Net {
    pub fn new(seed: u64, hosts: usize) -> Self {
        Net {
            rng: ChaCha12Rng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            order: 0,
            loss: 0,
            delays: (Duration::from_micros(300), Duration::from_millis(5)),
            cuts: BTreeSet::new(),
            sent: vec![(0, 0); hosts],
        }
    }

    /// The endpoint of a host.
    pub fn endpoint(host: usize) -> SocketAddr {
        SocketAddr::from(([198, 18, (host >> 8) as u8, host as u8], 7655))
    }

    /// The host behind an endpoint.
    pub fn host(endpoint: SocketAddr) -> Option<usize> {
        let SocketAddr::V4(v4) = endpoint else { return None };
        let [198, 18, high, low] = v4.ip().octets() else { return None };
        Some(usize::from(high) << 8 | usize::from(low))
    }

    /// Sends a packet, which the conditions may lose.
    pub fn send(&mut self, now: Instant, from: usize, to: SocketAddr, packet: Packet) {
        let bytes = match &packet {
            Packet::Plain(bytes) => bytes.len(),
            Packet::Initiation { .. } => 148,
            Packet::Response { .. } => 92,
            Packet::Sealed { payload, .. } => payload.len() + 48 + 32,
        };
        self.sent[from].0 += 1;
        self.sent[from].1 += bytes as u64;
        let roll = self.rng.next_u32();
        let Some(host) = Net::host(to).filter(|host| *host < self.sent.len()) else { return };
        if roll % 1000 < self.loss || self.cuts.contains(&(from, host)) {
            return;
        }
        // Two sites: even hosts and odd hosts. Up to a fifth more, so that packets overtake each other.
        let base = if (from ^ host) & 1 == 0 { self.delays.0 } else { self.delays.1 };
        let delay = base.mul_f64(1.0 + 0.2 * f64::from(self.rng.next_u32()) / f64::from(u32::MAX));
        self.order += 1;
        let delivery = Delivery { at: now + delay, order: self.order, from: Net::endpoint(from), to: host, packet };
        self.queue.push(Reverse(delivery));
    }

    /// When the next packet arrives.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse(delivery)| delivery.at)
    }

    /// Takes the next packet that has arrived.
    pub fn pop(&mut self, now: Instant) -> Option<Delivery> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop().map(|Reverse(delivery)| delivery)
    }
}

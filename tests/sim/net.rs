//! The network between the simulated hosts: a queue of deliveries in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meshd::identity::{NodeId, WireguardKey};
use meshd::time::Instant;
use meshd::wire::overlay::HEADER_LEN;
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
    /// What one node seals for another, in a session with a relay: on its way to it, or passed on by it.
    Relayed { session: u64, from: NodeId, to: NodeId, passed: bool, inner: Box<Packet> },
}

impl Packet {
    /// Bytes on the wire.
    fn len(&self) -> usize {
        match self {
            Packet::Plain(bytes) => bytes.len(),
            Packet::Initiation { .. } => 148,
            Packet::Response { .. } => 92,
            Packet::Sealed { payload, .. } => payload.len() + 48 + 32,
            Packet::Relayed { inner, .. } => inner.len() + 50 + 32,
        }
    }
}

/// A packet on its way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delivery {
    pub at: Instant,
    /// Breaks ties in the order of sending, so that the trace does not depend on the heap.
    order: u64,
    pub from: SocketAddr,
    pub to: usize,
    /// The address of the receiver that it was sent to.
    pub at_address: IpAddr,
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
    /// Ordered pairs of addresses between which nothing passes.
    pub path_cuts: BTreeSet<(IpAddr, IpAddr)>,
    /// What is added to the delay of packets between two addresses, one way.
    pub detours: BTreeMap<(IpAddr, IpAddr), Duration>,
    /// What the network makes of an address behind its host's back: packets from it seem to come from the other one, and
    /// reach it there alone.
    pub translated: BTreeMap<IpAddr, IpAddr>,
    /// Addresses that no host has any more.
    pub gone: BTreeSet<IpAddr>,
    /// The largest overlay packet that passes between an ordered pair, in bytes, where not all do.
    pub limits: BTreeMap<(usize, usize), usize>,
    /// The same between an ordered pair of addresses.
    pub path_limits: BTreeMap<(IpAddr, IpAddr), usize>,
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
            path_cuts: BTreeSet::new(),
            detours: BTreeMap::new(),
            translated: BTreeMap::new(),
            gone: BTreeSet::new(),
            limits: BTreeMap::new(),
            path_limits: BTreeMap::new(),
            sent: vec![(0, 0); hosts],
        }
    }

    /// The endpoint of a host.
    pub fn endpoint(host: usize) -> SocketAddr {
        SocketAddr::from(([198, 18, (host >> 8) as u8, host as u8], 7655))
    }

    /// The endpoint of a host on another of its addresses; number 0 is [`Net::endpoint`].
    pub fn other_endpoint(host: usize, number: u8) -> SocketAddr {
        SocketAddr::from(([198, 18 + number, (host >> 8) as u8, host as u8], 7655))
    }

    /// The host behind an endpoint.
    pub fn host(endpoint: SocketAddr) -> Option<usize> {
        let SocketAddr::V4(v4) = endpoint else { return None };
        let [198, 18..=25, high, low] = v4.ip().octets() else { return None };
        Some(usize::from(high) << 8 | usize::from(low))
    }

    /// Sends a packet, which the conditions may lose.
    pub fn send(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, packet: Packet) {
        let Some(sender) = Net::host(from) else { return };
        let seen = self.translated.get(&from.ip()).map_or(from, |seen| SocketAddr::new(*seen, from.port()));
        let behind = self.translated.iter().find(|(_, outside)| **outside == to.ip()).map(|(inside, _)| *inside);
        let hidden = self.translated.contains_key(&to.ip());
        self.sent[sender].0 += 1;
        self.sent[sender].1 += packet.len() as u64;
        let roll = self.rng.next_u32();
        let Some(host) = Net::host(to).filter(|host| *host < self.sent.len()) else { return };
        let ends = (from.ip(), to.ip());
        let cut = self.cuts.contains(&(sender, host)) || self.path_cuts.contains(&ends);
        if roll % 1000 < self.loss || cut || hidden || self.gone.contains(&ends.0) || self.gone.contains(&ends.1) {
            return;
        }
        let inner = if let Packet::Sealed { payload, .. } = &packet { payload.len() + HEADER_LEN } else { 0 };
        let limits = [self.limits.get(&(sender, host)), self.path_limits.get(&ends)];
        if limits.into_iter().flatten().any(|limit| inner > *limit) {
            return;
        }
        // Two sites: even hosts and odd hosts. Up to a fifth more, so that packets overtake each other.
        let base = if (sender ^ host) & 1 == 0 { self.delays.0 } else { self.delays.1 };
        let base = base + self.detours.get(&ends).copied().unwrap_or_default();
        let delay = base.mul_f64(1.0 + 0.2 * f64::from(self.rng.next_u32()) / f64::from(u32::MAX));
        self.order += 1;
        let (at, order, at_address) = (now + delay, self.order, behind.unwrap_or(to.ip()));
        let delivery = Delivery { at, order, from: seen, to: host, at_address, packet };
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

//! Two hosts and the network between them, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshd::time::{Instant, UnixTime};
use meshd::tunnel::{Destination, Host, Outbox, PeerKey, Sealed, Tunnel, TunnelOptions};
use meshd::wire::DropReason;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use x25519_dalek::{PublicKey, StaticSecret};

pub const A: usize = 0;
pub const B: usize = 1;

/// What the network does to a datagram.
#[derive(Clone, Copy)]
pub struct Weather {
    pub delay: Duration,
    pub jitter: Duration,
    pub loss: f64,
    pub duplication: f64,
}

pub const FAIR: Weather =
    Weather { delay: Duration::from_millis(10), jitter: Duration::ZERO, loss: 0.0, duplication: 0.0 };

pub struct Node {
    pub host: Arc<Host>,
    pub tunnel: Arc<Tunnel>,
    pub address: SocketAddr,
    pub tick: Instant,
    /// Packets that wait inside the tunnel, oldest first.
    pub held: VecDeque<u64>,
    pub received: Vec<u64>,
    pub drops: Vec<DropReason>,
}

/// Decides about a datagram before the weather does: sender, message type, how many of that kind that sender sent before.
/// True takes it off the network.
pub type Thief = Box<dyn FnMut(usize, u8, usize) -> bool>;

pub struct Pair {
    pub now: Instant,
    pub started: UnixTime,
    pub rng: ChaCha20Rng,
    pub weather: Weather,
    pub nodes: [Node; 2],
    pub wire: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    pub serial: u64,
    pub next_packet: u64,
    pub sent: BTreeSet<u64>,
    /// Copies of each packet the network still has or has delivered.
    pub copies: BTreeMap<u64, u32>,
    pub counts: BTreeMap<(usize, u8), usize>,
    pub thief: Option<Thief>,
    /// Every datagram delivered so far, for replays.
    pub tape: Option<Vec<(usize, Vec<u8>)>>,
}

impl Pair {
    /// Makes two hosts that know each other; A has the lower key.
    pub fn new(seed: u64, weather: Weather, options: TunnelOptions) -> Pair {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let mut secrets = [(); 2].map(|()| {
            let mut bytes = [0u8; 32];
            rng.fill_bytes(&mut bytes);
            StaticSecret::from(bytes)
        });
        secrets.sort_by_key(|secret| PublicKey::from(secret).to_bytes());
        let keys: [PeerKey; 2] = [0, 1].map(|at: usize| PublicKey::from(&secrets[at]).to_bytes());
        let mut sides = secrets.into_iter().enumerate();
        let nodes = [(); 2].map(|()| {
            let (at, secret) = sides.next().expect("two secrets for two sides");
            let mut own = [0u8; 32];
            rng.fill_bytes(&mut own);
            let host = Host::new(secret, own);
            let tunnel = host.add(keys[1 - at], options.clone()).expect("a good key");
            let address = SocketAddr::from(([192, 0, 2, at as u8 + 1], 7_655));
            let (held, received, drops) = (VecDeque::new(), Vec::new(), Vec::new());
            Node { host, tunnel, address, tick: Instant::from_nanos(u64::MAX), held, received, drops }
        });
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
        Pair {
            now: Instant::from_millis(1_000),
            started: UnixTime::from_secs(since.as_secs()),
            rng,
            weather,
            nodes,
            wire: BTreeMap::new(),
            serial: 0,
            next_packet: 0,
            sent: BTreeSet::new(),
            copies: BTreeMap::new(),
            counts: BTreeMap::new(),
            thief: None,
            tape: None,
        }
    }

    pub fn wall(&self) -> UnixTime {
        self.started + self.now.saturating_since(Instant::ZERO)
    }

    pub fn chance(&mut self, likelihood: f64) -> bool {
        f64::from(self.rng.next_u32()) < likelihood * f64::from(u32::MAX)
    }

    /// Lets both sides run their timers from now on.
    pub fn start(&mut self) {
        for node in &mut self.nodes {
            node.tick = self.now;
        }
    }

    /// Sends a packet from one side's network stack.
    pub fn send(&mut self, from: usize) -> u64 {
        let id = self.next_packet;
        self.next_packet += 1;
        self.sent.insert(id);
        let mut sealed = [0u8; 2_048];
        let (now, wall) = (self.now, self.wall());
        let mut out = Outbox::new();
        let tunnel = self.nodes[from].tunnel.clone();
        let mut guard = tunnel.lock();
        match guard.seal(now, &packet(id), &mut sealed) {
            Ok(Sealed::Datagram(length)) => self.transmit(from, sealed[..length].to_vec(), Some(id)),
            Ok(Sealed::Held) => self.nodes[from].held.push_back(id),
            Err(reason) => panic!("packet {id} refused: {}", reason.name()),
        }
        let due = guard.flush(now, wall, &mut out);
        drop(guard);
        self.bring_forward(from, due);
        self.empty(from, None, &mut out);
        id
    }

    /// Puts what a side wants sent on the wire.
    pub fn empty(&mut self, from: usize, source: Option<SocketAddr>, out: &mut Outbox) {
        while let Some(outgoing) = out.pop() {
            if outgoing.to == Destination::Source {
                assert_eq!(source, Some(self.nodes[1 - from].address), "an answer goes where the question came from");
            }
            let data = outgoing.bytes[0] == 4 && outgoing.bytes.len() > 32;
            let id = data.then(|| self.nodes[from].held.pop_front().expect("only held packets come by the outbox"));
            self.transmit(from, outgoing.bytes, id);
        }
    }

    pub fn transmit(&mut self, from: usize, bytes: Vec<u8>, id: Option<u64>) {
        let kind = match (bytes[0], bytes.len()) {
            (4, 32) => 5, // a keepalive counts as a kind of its own
            (kind, _) => kind,
        };
        let count = self.counts.entry((from, kind)).or_default();
        *count += 1;
        let nth = *count;
        if self.thief.as_mut().is_some_and(|thief| thief(from, kind, nth)) || self.chance(self.weather.loss) {
            return;
        }
        let copies = 1 + u32::from(self.chance(self.weather.duplication));
        if let Some(id) = id {
            self.copies.insert(id, copies);
        }
        for _ in 0..copies {
            let late = self.weather.jitter.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX));
            self.serial += 1;
            self.wire.insert((self.now + self.weather.delay + late, self.serial), (1 - from, bytes.clone()));
        }
    }

    pub fn deliver(&mut self, to: usize, bytes: &[u8]) {
        if let Some(tape) = &mut self.tape {
            tape.push((to, bytes.to_vec()));
        }
        let (now, wall, source) = (self.now, self.wall(), self.nodes[1 - to].address);
        let mut out = Outbox::new();
        if bytes[0] != 4 {
            let host = self.nodes[to].host.clone();
            if let Err(reason) = host.handle_handshake(now, wall, source, bytes, &mut out) {
                self.nodes[to].drops.push(reason);
            }
            self.bring_forward(to, self.nodes[to].tunnel.deadline());
            return self.empty(to, Some(source), &mut out);
        }
        let index = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
        let Some(tunnel) = self.nodes[to].host.by_index(index) else {
            return self.nodes[to].drops.push(DropReason::UnknownSession);
        };
        let mut plain = [0u8; 2_048];
        let mut guard = tunnel.lock();
        match guard.open(now, bytes, &mut plain) {
            Ok(opened) if opened.length > 0 => self.nodes[to].received.push(identify(&plain[..opened.length])),
            Ok(_) => {}
            Err(reason) => self.nodes[to].drops.push(reason),
        }
        let due = guard.flush(now, wall, &mut out);
        drop(guard);
        self.bring_forward(to, due);
        self.empty(to, None, &mut out);
    }

    /// Moves a side's next tick, unless its timers do not run.
    pub fn bring_forward(&mut self, at: usize, due: Instant) {
        let node = &mut self.nodes[at];
        if node.tick != Instant::from_nanos(u64::MAX) {
            node.tick = node.tick.min(due);
        }
    }

    pub fn tick(&mut self, at: usize) {
        let mut out = Outbox::new();
        let next = self.nodes[at].tunnel.tick(self.now, self.wall(), &mut out);
        assert!(next > self.now || !out.is_empty(), "a tick that did nothing wants to be repeated at once");
        self.nodes[at].tick = next.max(self.now + Duration::from_micros(1)).min(self.now + Duration::from_secs(1));
        self.empty(at, None, &mut out);
    }

    /// Runs until `end`, sending a packet each way every `spacing` if given.
    pub fn run_until(&mut self, end: Instant, spacing: Option<Duration>) {
        let mut next_send = spacing.map(|_| self.now);
        loop {
            let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
            let ticks = self.nodes.each_ref().map(|node| node.tick);
            let next = ticks.into_iter().chain(arrival).chain(next_send).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if arrival == Some(next) {
                if let Some((_, (to, bytes))) = self.wire.pop_first() {
                    self.deliver(to, &bytes);
                }
            } else if next_send == Some(next) {
                self.send(A);
                self.send(B);
                next_send = spacing.map(|spacing| next + spacing);
            } else {
                self.tick(if ticks[A] == next { A } else { B });
            }
        }
    }

    pub fn run_for(&mut self, time: Duration, spacing: Option<Duration>) {
        self.run_until(self.now + time, spacing);
    }

    /// Runs until `done`, at most for `most`; returns how long it took.
    pub fn run_till(&mut self, most: Duration, done: impl Fn(&Pair) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now.saturating_since(start) < most, "not done after {most:?}");
            self.run_for(Duration::from_millis(1), None);
        }
        self.now.saturating_since(start)
    }

    /// Whether both sides have a session in use that the other was heard on.
    pub fn stands(&self) -> bool {
        self.nodes.iter().all(|node| node.tunnel.status(self.now).session.is_some_and(|session| session.proven))
    }

    pub fn handshakes(&self, at: usize) -> u64 {
        self.nodes[at].tunnel.status(self.now).handshakes
    }

    /// Each packet was delivered exactly once, unless the network took every copy.
    pub fn check_packets(&self) {
        let received: Vec<u64> = self.nodes.iter().flat_map(|node| node.received.iter().copied()).collect();
        let unique: BTreeSet<u64> = received.iter().copied().collect();
        assert_eq!(unique.len(), received.len(), "a packet came twice");
        let lost: Vec<_> = self.copies.keys().filter(|id| !unique.contains(id)).collect();
        assert!(lost.is_empty(), "delivered by the network, lost by the tunnel: {lost:?}");
        for node in &self.nodes {
            assert!(node.held.is_empty(), "still waiting: {:?}", node.held);
        }
    }

    /// Both sides use the same session.
    pub fn check_agreement(&mut self) {
        let mut named = [0u32; 2];
        let indices =
            self.nodes.each_ref().map(|node| node.tunnel.status(self.now).session.expect("a session").local_index);
        for (at, index) in named.iter_mut().enumerate() {
            let mut sealed = [0u8; 256];
            let result = self.nodes[at].tunnel.lock().seal(self.now, &packet(0), &mut sealed);
            assert!(matches!(result, Ok(Sealed::Datagram(_))), "{result:?}");
            *index = u32::from_le_bytes(sealed[4..8].try_into().expect("four bytes"));
        }
        assert_eq!(named, [indices[B], indices[A]], "each side seals for the other's session");
    }
}

/// An IPv4 packet that carries a number.
pub fn packet(id: u64) -> Vec<u8> {
    let mut packet = vec![0u8; 20 + 8 + (id % 40) as usize];
    let length = packet.len() as u16;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[20..28].copy_from_slice(&id.to_be_bytes());
    packet
}

pub fn identify(packet: &[u8]) -> u64 {
    let id = u64::from_be_bytes(packet[20..28].try_into().expect("eight bytes"));
    assert_eq!(packet.len(), 28 + (id % 40) as usize, "padding was not taken off");
    id
}

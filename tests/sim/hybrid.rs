//! Two members with real engines and real tunnels, and a network between them that loses, delays and reorders: hybrid keys
//! are agreed on, renewed and lost with their programs, and no link is ever dead for it.
//!
//! What a daemon does between its engine and its tunnel is done here the same way; packets of data are numbered and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshd::config::PostQuantum;
use meshd::control::output::{Output, PeerChange};
use meshd::control::path::Path;
use meshd::control::snapshot::Snapshot;
use meshd::control::{Arrival, Engine, OwnNode, SessionEvent, Settings};
use meshd::identity::{Authority, InviteBook, SignedCertificate, Term};
use meshd::time::{Instant, UnixTime};
use meshd::tunnel::{self, Destination, HandshakeEvent, Outbox, Sealed, Tunnel, TunnelOptions};
use meshd::wire::overlay;
use meshd::wire::probe::{Probe, ProbeReply};
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use x25519_dalek::StaticSecret;

use crate::mesh::{NodeKeysSeed, START, admit};

/// Time between two packets of data in each direction.
const PACE: Duration = Duration::from_millis(20);
/// A network's round trip is twice that at least.
const ONE_WAY: Duration = Duration::from_millis(10);

/// A member.
struct Side {
    keys: NodeKeysSeed,
    certificate: SignedCertificate,
    wanted: PostQuantum,
    engine: Engine,
    host: Arc<tunnel::Host>,
    tunnel: Option<Arc<Tunnel>>,
    session: bool,
    /// Numbers of the packets of data that came.
    received: BTreeSet<u64>,
    /// When something came last.
    last: Instant,
}

/// The pair and what is on its way.
struct Pair {
    now: Instant,
    sides: [Side; 2],
    authority: Authority,
    wire: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    rng: ChaCha12Rng,
    /// Of a thousand datagrams, how many are lost.
    loss: u32,
    jitter: Duration,
    /// Nothing passes.
    cut: bool,
    sent: u64,
    next_data: Instant,
    renewal: Duration,
    /// What is lost of the datagrams that are next: true for lost.
    script: Vec<bool>,
    /// Datagrams that left.
    datagrams: u64,
    /// Packets of data that somebody who requires a hybrid key gave away without one.
    leaked: u64,
}

fn address(side: usize) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, side as u8 + 1], 7_655))
}

/// The wall clock boringtun stamps with.
fn stamps() -> UnixTime {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    UnixTime::from_secs(now.as_secs())
}

fn authority_of(seed: u64) -> Authority {
    let overlay = "10.77.0.0/16".parse().expect("a constant");
    Authority::generate("sim", overlay, &mut ChaCha12Rng::seed_from_u64(!seed)).expect("a valid mesh")
}

fn engine_and_host(
    authority: &Authority,
    certificate: &SignedCertificate,
    keys: NodeKeysSeed,
    settings: Settings,
    disk: Option<&[u8]>,
    seed: [u8; 32],
    now: Instant,
) -> (Engine, Arc<tunnel::Host>) {
    let (own_keys, secret) = (keys.keys(), *keys.keys().wireguard.to_bytes());
    let own = OwnNode {
        keys: own_keys,
        certificate: certificate.clone(),
        anchor: authority.anchor().clone(),
        authority: None,
        invites: InviteBook::default(),
    };
    let snapshot = disk.and_then(|bytes| Snapshot::from_bytes(bytes).ok());
    let engine = Engine::new(own, settings, snapshot, seed, now, START);
    (engine, tunnel::Host::new(StaticSecret::from(secret), seed))
}

impl Pair {
    fn new(seed: u64, wanted: [PostQuantum; 2]) -> Pair {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let authority = authority_of(seed);
        let now = Instant::from_millis(1_000_000);
        let sides = [0usize, 1].map(|index| {
            let keys = NodeKeysSeed::new(rng.next_u64());
            let certificate = admit(&authority, &mut rng, index, keys, &Term::offline(START));
            let settings = settings(index, wanted[index], PostQuantum::RENEWAL);
            let mut random = [0u8; 32];
            rng.fill_bytes(&mut random);
            let (engine, host) = engine_and_host(&authority, &certificate, keys, settings, None, random, now);
            let (tunnel, session) = (None, false);
            let (wanted, received, last) = (wanted[index], BTreeSet::new(), now);
            Side { keys, certificate, wanted, engine, host, tunnel, session, received, last }
        });
        let wire = BTreeMap::new();
        let mut pair = Pair {
            now,
            sides,
            authority,
            wire,
            rng,
            loss: 0,
            jitter: Duration::ZERO,
            cut: false,
            sent: 0,
            next_data: now,
            renewal: PostQuantum::RENEWAL,
            script: Vec::new(),
            datagrams: 0,
            leaked: 0,
        };
        for index in [0, 1] {
            let other = pair.sides[1 - index].certificate.clone();
            let engine = &mut pair.sides[index].engine;
            engine.accept_certificate(other.bytes(), now, START).expect("the authority signed it");
            engine.set_bootstrap(
                vec![meshd::control::BootstrapPeer {
                    key: other.certificate().wireguard_key,
                    endpoint: address(1 - index),
                }],
                now,
            );
            pair.drain(index);
        }
        pair
    }

    /// Ends a program without a word and starts the next one, with what is on the disk.
    fn restart(&mut self, index: usize, wanted: PostQuantum) {
        let mut seed = [0u8; 32];
        self.rng.fill_bytes(&mut seed);
        let (now, renewal) = (self.now, self.renewal);
        let side = &mut self.sides[index];
        side.wanted = wanted;
        let settings = settings(index, wanted, renewal);
        let disk = side.engine.snapshot().to_bytes();
        let made = engine_and_host(&self.authority, &side.certificate, side.keys, settings, Some(&disk), seed, now);
        (side.engine, side.host) = made;
        (side.tunnel, side.session) = (None, false);
        side.engine.make_haste(now);
        self.drain(index);
    }

    fn set_renewal(&mut self, renewal: Duration) {
        self.renewal = renewal;
        for index in [0, 1] {
            let (now, wanted) = (self.now, self.sides[index].wanted);
            self.sides[index].engine.set_post_quantum(wanted, renewal, now, START);
            self.drain(index);
        }
    }

    /// Runs until `done` holds, asked after every event, or until the limit.
    fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Pair) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            let engines = self.sides.iter().filter_map(|side| side.engine.poll_timeout()).map(|(at, _)| at);
            let tunnels = self.sides.iter().filter_map(|side| side.tunnel.as_ref()).map(|tunnel| tunnel.deadline());
            let wire = self.wire.keys().next().map(|(at, _)| *at);
            let next = engines.chain(tunnels).chain(wire).min().unwrap_or(end).min(self.next_data);
            if next > end {
                self.now = end;
                return done(self);
            }
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to, bytes) = entry.remove();
                self.deliver(to, &bytes);
            }
            if self.next_data <= self.now {
                self.next_data = self.now + PACE;
                self.send_data();
            }
            for index in [0, 1] {
                self.tick(index);
                let now = self.now;
                if self.sides[index].engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
                    self.sides[index].engine.handle_timeout(now, START);
                }
                self.drain(index);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn tick(&mut self, index: usize) {
        let (now, side) = (self.now, &mut self.sides[index]);
        let Some(tunnel) = side.tunnel.clone().filter(|tunnel| tunnel.deadline() <= now) else { return };
        let mut out = Outbox::new();
        tunnel.tick(now, stamps(), &mut out);
        if side.session && tunnel.status(now).session.is_none() {
            side.session = false;
            let node = self.sides[1 - index].certificate.certificate().node;
            self.sides[index].engine.handle_session(node, SessionEvent::Lost, now);
        }
        self.post(index, out);
    }

    fn send_data(&mut self) {
        self.sent += 1;
        for index in [0, 1] {
            let Some(tunnel) = self.sides[index].tunnel.clone() else { continue };
            let mut packet = vec![0u8; 64];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&64u16.to_be_bytes());
            packet[20..28].copy_from_slice(&self.sent.to_be_bytes());
            let (mut sealed, mut out) = (vec![0u8; 256], Outbox::new());
            let required = self.sides[index].wanted == PostQuantum::Required;
            let now = self.now;
            let bytes = {
                let mut guard = tunnel.lock();
                let what = guard.seal(now, &packet, &mut sealed);
                guard.flush(now, stamps(), &mut out);
                what
            };
            if let Ok(Sealed::Datagram(length)) = bytes {
                let hybrid = tunnel.status(now).session.is_some_and(|session| session.hybrid);
                self.leaked += u64::from(required && !hybrid);
                self.carry(index, sealed[..length].to_vec());
            } else if tunnel.status(now).session.is_none() {
                let node = self.sides[1 - index].certificate.certificate().node;
                self.sides[index].engine.handle_wanted(node, now);
            }
            self.post(index, out);
            self.drain(index);
        }
    }

    fn post(&mut self, index: usize, mut out: Outbox) {
        while let Some(outgoing) = out.pop() {
            // One address each: the source of what came is where the peer is.
            let (Destination::Peer | Destination::Source) = outgoing.to;
            self.carry(index, outgoing.bytes);
        }
    }

    fn carry(&mut self, from: usize, bytes: Vec<u8>) {
        self.datagrams += 1;
        let scripted = if self.script.is_empty() { false } else { self.script.remove(0) };
        let lost = scripted || self.rng.next_u32() % 1_000 < self.loss || self.cut;
        let jitter = self.jitter.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX));
        if !lost {
            self.wire.insert((self.now + ONE_WAY + jitter, self.datagrams), (1 - from, bytes));
        }
    }

    fn deliver(&mut self, index: usize, bytes: &[u8]) {
        let now = self.now;
        let (peer, path) = (self.sides[1 - index].certificate.certificate().node, Path::to(address(1 - index)));
        let mut out = Outbox::new();
        match bytes[0] {
            1..=3 => {
                let host = self.sides[index].host.clone();
                let event = host.handle_handshake(now, stamps(), address(1 - index), bytes, &mut out);
                if let Ok(HandshakeEvent::Established(_)) = event {
                    self.establish(index);
                }
            }
            4 => {
                let Some(tunnel) = self.sides[index].tunnel.clone() else { return };
                let mut plain = vec![0u8; 2_048];
                let opened = {
                    let mut guard = tunnel.lock();
                    let opened = guard.open(now, bytes, &mut plain);
                    guard.flush(now, stamps(), &mut out);
                    opened
                };
                let Ok(opened) = opened else { return self.post(index, out) };
                if opened.confirmed {
                    self.establish(index);
                }
                let packet = &plain[..opened.length];
                let own = self.sides[index].certificate.certificate().address_v6;
                if let Some(payload) = overlay::unwrap(packet, own) {
                    if let Some(Probe::Request(request)) = Probe::decode(payload).filter(Probe::is_routine) {
                        let reply = Probe::Reply(ProbeReply::to(&request, now, now, now)).encode();
                        self.seal(index, &reply);
                    }
                    let arrival = Arrival { arrived: tunnel.arrived(), ..Arrival::at(peer, path, now) };
                    let _ = self.sides[index].engine.handle_message(arrival, payload, now, START);
                } else if opened.length == 64 {
                    let number = u64::from_be_bytes(packet[20..28].try_into().expect("eight bytes"));
                    self.sides[index].received.insert(number);
                    self.sides[index].last = now;
                }
            }
            _ => {
                let _ = self.sides[index].engine.handle_datagram(address(1 - index), bytes, now, START);
            }
        }
        self.post(index, out);
        self.drain(index);
    }

    fn establish(&mut self, index: usize) {
        let (now, peer) = (self.now, self.sides[1 - index].certificate.certificate().node);
        let side = &mut self.sides[index];
        side.session = true;
        let path = Path::to(address(1 - index));
        side.engine.handle_session(peer, SessionEvent::Established { path }, now);
        if let Some(tunnel) = &side.tunnel {
            side.engine.handle_key_in_use(peer, tunnel.key_in_use(now), now);
        }
        self.drain(index);
    }

    fn seal(&mut self, index: usize, payload: &[u8]) {
        let (own, to) = (&self.sides[index].certificate, &self.sides[1 - index].certificate);
        let (own, to) = (own.certificate().address_v6, to.certificate().address_v6);
        let Some(tunnel) = self.sides[index].tunnel.clone().filter(|_| self.sides[index].session) else { return };
        let packet = overlay::wrap(own, to, payload);
        let mut sealed = vec![0u8; packet.len() + tunnel::LEAST_BUFFER];
        let what = tunnel.lock().seal(self.now, &packet, &mut sealed);
        if let Ok(Sealed::Datagram(length)) = what {
            self.carry(index, sealed[..length].to_vec());
        }
    }

    fn drain(&mut self, index: usize) {
        while let Some(output) = self.sides[index].engine.poll_output() {
            let now = self.now;
            let side = &mut self.sides[index];
            match output {
                Output::Datagram { bytes, .. } => self.carry(index, bytes),
                Output::Message { bytes, .. } => self.seal(index, &bytes),
                Output::Initiate { .. } => {
                    let Some(tunnel) = side.tunnel.clone() else { continue };
                    let mut out = Outbox::new();
                    let _ = tunnel.initiate(now, stamps(), &mut out);
                    self.post(index, out);
                }
                Output::Peer(change) => match (change, &side.tunnel) {
                    (PeerChange::Add { key, .. }, _) => {
                        let added = side.host.add(*key.as_bytes(), TunnelOptions::default());
                        side.tunnel = Some(added.expect("a valid key"));
                    }
                    (PeerChange::Key { key, leads, .. }, Some(tunnel)) => tunnel.offer_key(key, leads),
                    (PeerChange::WithdrawKey { .. }, Some(tunnel)) => tunnel.withdraw_key(),
                    (PeerChange::ForgetKeys { .. }, Some(tunnel)) => tunnel.forget_keys(),
                    (PeerChange::Hybrid { names, required, .. }, Some(tunnel)) => tunnel.set_hybrid(names, required),
                    _ => {}
                },
                _ => {}
            }
        }
    }

    /// Whether both seal under a session of a hybrid key.
    fn is_hybrid(&self) -> bool {
        let hybrid = |side: &Side| side.tunnel.as_ref().and_then(|tunnel| tunnel.status(self.now).session);
        self.sides.iter().all(|side| hybrid(side).is_some_and(|session| session.hybrid))
    }

    /// Whether data has passed both ways since `then`.
    fn passes(&self, then: Instant) -> bool {
        self.sides.iter().all(|side| side.last > then)
    }

    fn keys(&self, index: usize) -> u64 {
        self.sides[index].tunnel.as_ref().map_or(0, |tunnel| tunnel.status(self.now).hybrid_keys)
    }

    /// Waits for all that is on its way, and tells how many of the numbers from `from` on did not come, by side.
    fn missing(&mut self, from: u64) -> [usize; 2] {
        let to = self.sent;
        self.run(Duration::from_secs(1));
        [0, 1].map(|index| (from..=to).filter(|number| !self.sides[index].received.contains(number)).count())
    }

    fn describe(&self) -> String {
        let status = |side: &Side| format!("{:?}", side.tunnel.as_ref().map(|tunnel| tunnel.status(self.now)));
        let wants = [0, 1].map(|index| {
            let node = self.sides[1 - index].certificate.certificate().node;
            (self.sides[index].engine.wants_hybrid(node), self.sides[index].engine.poll_timeout())
        });
        format!("at {:?} {wants:?}\n{}\n{}", self.now, status(&self.sides[0]), status(&self.sides[1]))
    }
}

fn settings(index: usize, post_quantum: PostQuantum, key_renewal: Duration) -> Settings {
    let endpoints = vec![address(index)];
    let addresses = vec![address(index).ip()];
    let probe_interval = Duration::from_secs(1);
    Settings { probe_interval, endpoints, addresses, mtu: 1_420, bootstrap: vec![], post_quantum, key_renewal }
}

const ON: [PostQuantum; 2] = [PostQuantum::On; 2];
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_key_stands_soon_and_is_renewed_without_a_packet_lost() {
    for seed in 0..10 {
        let mut pair = Pair::new(seed, ON);
        assert!(pair.run_until(5 * SECOND, |pair| pair.is_hybrid()), "seed {seed}: {}", pair.describe());
        pair.set_renewal(10 * SECOND);
        let from = pair.sent + 1;
        pair.run(125 * SECOND);
        let keys = [pair.keys(0), pair.keys(1)];
        assert!(keys[0] >= 12 && keys[0].abs_diff(keys[1]) <= 1, "seed {seed}: {keys:?} keys");
        assert_eq!(pair.missing(from), [0, 0], "seed {seed}");
    }
}

#[test]
fn loss_and_reordering_delay_a_key_and_kill_nothing() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed, ON);
        (pair.loss, pair.jitter) = (200, Duration::from_millis(40));
        pair.set_renewal(10 * SECOND);
        assert!(pair.run_until(60 * SECOND, |pair| pair.is_hybrid()), "seed {seed}: {}", pair.describe());
        for _ in 0..10 {
            let then = pair.now;
            assert!(pair.run_until(20 * SECOND, |pair| pair.passes(then)), "seed {seed}: {}", pair.describe());
            pair.run(20 * SECOND);
        }
        assert!(pair.run_until(60 * SECOND, |pair| pair.is_hybrid()), "seed {seed}: {}", pair.describe());
    }
}

/// A program ends behind every single datagram of a start and of a renewal, on either side, and the link lives on.
#[test]
fn a_restart_at_any_datagram_is_survived() {
    for wanted in [ON, [PostQuantum::Required; 2], [PostQuantum::On, PostQuantum::Required]] {
        for renewing in [false, true] {
            for victim in [0, 1] {
                for at in 0..24 {
                    let mut pair = Pair::new(at, wanted);
                    if renewing {
                        assert!(pair.run_until(5 * SECOND, |pair| pair.is_hybrid()), "{}", pair.describe());
                        pair.set_renewal(10 * SECOND);
                        let keys = pair.keys(0);
                        // From a little before the renewal on; it comes with the proposal.
                        pair.run_until(11 * SECOND, |pair| pair.keys(0) > keys);
                    }
                    let from = pair.datagrams;
                    pair.run_until(5 * SECOND, |pair| pair.datagrams >= from + at);
                    pair.restart(victim, wanted[victim]);
                    let (then, case) = (pair.now, format!("{wanted:?} {renewing} {victim} {at}"));
                    assert!(pair.run_until(2 * SECOND, |pair| pair.passes(then)), "{case}: {}", pair.describe());
                    assert!(pair.run_until(8 * SECOND, |pair| pair.is_hybrid()), "{case}: {}", pair.describe());
                    assert_eq!(pair.leaked, 0, "{case}");
                }
            }
        }
    }
}

/// Each message of an exchange and of the handshake after it is lost in turn, and each two in a row.
#[test]
fn each_lost_datagram_is_made_up_for() {
    for lost in [vec![true], vec![true, true], vec![true, false, true]] {
        for behind in 0..30 {
            let mut pair = Pair::new(behind, [PostQuantum::Required, PostQuantum::On]);
            pair.script = std::iter::repeat_n(false, behind as usize).chain(lost.clone()).collect();
            let then = pair.now;
            let done = pair.run_until(20 * SECOND, |pair| pair.is_hybrid() && pair.passes(then));
            assert!(done, "{lost:?} behind {behind}: {}", pair.describe());
            assert_eq!(pair.leaked, 0);
        }
    }
}

#[test]
fn chaos_never_leaves_a_link_dead() {
    for seed in 0..24 {
        let mut pair = Pair::new(seed, ON);
        pair.set_renewal(10 * SECOND);
        let mut dice = ChaCha12Rng::seed_from_u64(!seed);
        let mut wanted = ON;
        for _ in 0..12 {
            pair.loss = [0, 0, 100, 300][dice.next_u32() as usize % 4];
            pair.jitter = Duration::from_millis(u64::from(dice.next_u32() % 60));
            pair.cut = dice.next_u32().is_multiple_of(4);
            pair.run(Duration::from_millis(u64::from(dice.next_u32() % 15_000)));
            let victim = dice.next_u32() as usize % 2;
            if dice.next_u32().is_multiple_of(2) {
                wanted[victim] = PostQuantum::ALL[dice.next_u32() as usize % 3];
                pair.restart(victim, wanted[victim]);
            }
            if dice.next_u32().is_multiple_of(8) {
                pair.restart(1 - victim, wanted[1 - victim]);
            }
        }
        // Whatever both want at the end, they get.
        (pair.loss, pair.jitter, pair.cut) = (0, Duration::ZERO, false);
        for index in [0, 1] {
            let now = pair.now;
            pair.sides[index].wanted = PostQuantum::Required;
            pair.sides[index].engine.set_post_quantum(PostQuantum::Required, 10 * SECOND, now, START);
            pair.drain(index);
        }
        let then = pair.now;
        let done = pair.run_until(90 * SECOND, |pair| pair.is_hybrid() && pair.passes(then));
        assert!(done, "seed {seed}: {}", pair.describe());
    }
}

#[test]
fn one_side_off_is_a_link_without_a_key_and_one_that_requires_it_gives_nothing_away() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed, [PostQuantum::On, PostQuantum::Off]);
        let then = pair.now;
        assert!(pair.run_until(5 * SECOND, |pair| pair.passes(then)), "seed {seed}");
        pair.run(130 * SECOND);
        assert_eq!((pair.is_hybrid(), pair.keys(0), pair.keys(1)), (false, 0, 0));

        let mut pair = Pair::new(seed, [PostQuantum::Required, PostQuantum::Off]);
        pair.run(10 * SECOND);
        assert_eq!((pair.leaked, pair.sides[0].received.len(), pair.sides[1].received.len()), (0, 0, 0));
        assert!(pair.sides[0].session && pair.sides[1].session, "they talk, but nobody's data passes");
        let now = pair.now;
        pair.sides[1].engine.set_post_quantum(PostQuantum::On, 3_600 * SECOND, now, START);
        pair.sides[1].wanted = PostQuantum::On;
        pair.drain(1);
        assert!(pair.run_until(15 * SECOND, |pair| pair.is_hybrid() && pair.passes(now)), "{}", pair.describe());
    }
}

/// A host that was set back to an earlier state of its memory has a key that the peer has replaced.
#[test]
fn keys_that_do_not_fit_are_given_up() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed, ON);
        assert!(pair.run_until(5 * SECOND, |pair| pair.is_hybrid()), "seed {seed}");
        // As if one side had gone back: a key that the other does not have, in place of the one that stands.
        for (index, tunnel) in pair.sides.iter().map(|side| side.tunnel.clone().expect("a tunnel")).enumerate() {
            let secret = zeroize::Zeroizing::new([index as u8 + 1; 32]);
            tunnel.forget_keys();
            tunnel.offer_key(meshd::identity::HybridKey { odd: true, secret }, true);
        }
        let then = pair.now + 185 * SECOND;
        pair.run(185 * SECOND);
        let done = pair.run_until(120 * SECOND, |pair| pair.is_hybrid() && pair.passes(then));
        assert!(done, "seed {seed}: {}", pair.describe());
    }
}

/// A crash costs what it costs without keys: the next program's handshake, at once, on whichever side it was.
#[test]
fn a_crash_is_over_with_the_next_programs_handshake() {
    for seed in 0..20 {
        for victim in [0, 1] {
            let mut pair = Pair::new(seed, ON);
            assert!(pair.run_until(5 * SECOND, |pair| pair.is_hybrid()), "seed {seed}");
            pair.run(Duration::from_millis(2_000 + 130 * seed));
            pair.restart(victim, PostQuantum::On);
            let then = pair.now;
            assert!(pair.run_until(10 * SECOND, |pair| pair.passes(then + 2 * ONE_WAY)), "seed {seed}");
            let took = pair.now.saturating_since(then);
            assert!(took <= 5 * ONE_WAY + PACE, "seed {seed}, side {victim}: {took:?} {}", pair.describe());
        }
    }
}

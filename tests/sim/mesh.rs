//! A mesh of simulated hosts: engines, their modelled tunnels, their clocks and disks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use meshd::config::PostQuantum;
use meshd::control::output::{Event, Output, PeerChange, Persist};
use meshd::control::path::Path;
use meshd::control::snapshot::Snapshot;
use meshd::control::{Arrival, BootstrapPeer, Engine, OwnNode, SessionEvent, Settings};
use meshd::identity::{
    Admission, Authority, InviteBook, NodeId, NodeKeys, Permissions, Priority, Revocation, Shares, SignedCertificate,
    SignedRevocation, Term, WireguardKey,
};
use meshd::time::{Instant, UnixTime};
use meshd::wire::probe::{Probe, ProbeReply};
use meshd::wire::receipts::{Receipt, Requests};
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

use crate::net::{Delivery, Net, Packet};
use crate::trace::Trace;

/// Where every host listens.
const PORT: u16 = 7655;

/// The wall clock when a simulation starts.
pub const START: UnixTime = UnixTime::from_secs(1_800_000_000);

/// A tunnel reduced to what the control engine can see of it.
struct Tunnel {
    key: WireguardKey,
    path: Option<Path>,
    /// Sessions that open packets; the last one seals.
    sessions: Vec<u64>,
    /// Initiations of ours that wait for their answer.
    asked: BTreeSet<u64>,
    /// Sessions of which we are the responder and have heard nothing yet.
    unconfirmed: BTreeSet<u64>,
    /// The peer's requests, as a data thread notes them.
    requests: Requests,
}

/// A simulated host.
pub struct Host {
    pub keys: NodeKeysSeed,
    pub certificate: SignedCertificate,
    pub engine: Option<Engine>,
    tunnels: BTreeMap<NodeId, Tunnel>,
    /// The state file.
    pub disk: Option<Vec<u8>>,
    /// Seconds this host's wall clock is wrong by.
    pub skew: i64,
    pub bootstrap: Vec<usize>,
    /// Whether it holds the authority's key.
    pub signs: bool,
    /// Peers this host has (had) a session with since it started.
    pub reached: BTreeSet<NodeId>,
    /// How many addresses it has.
    pub addresses: u8,
    /// Its only address, once that is not the first one any more.
    pub moved_to: Option<IpAddr>,
    pub events: Vec<(Instant, Event)>,
    /// How often its deadlines woke it.
    pub woken: u64,
    starts: u64,
}

/// Keys are not cloneable on purpose; a host that restarts makes them again from their seed.
#[derive(Clone, Copy)]
pub struct NodeKeysSeed(u64);

impl NodeKeysSeed {
    pub fn new(seed: u64) -> NodeKeysSeed {
        NodeKeysSeed(seed)
    }

    pub fn keys(self) -> NodeKeys {
        NodeKeys::generate(&mut ChaCha12Rng::seed_from_u64(self.0))
    }
}

/// The whole simulation.
pub struct Mesh {
    pub now: Instant,
    pub net: Net,
    pub hosts: Vec<Host>,
    pub authority: Authority,
    pub trace: Trace,
    /// Packets that each relay has passed on.
    relayed: BTreeMap<usize, u64>,
    /// Relays that pass on only one packet in so many, though they answer for themselves.
    pub droppers: BTreeMap<usize, u32>,
    seed: u64,
    sessions: u64,
}

impl Mesh {
    /// Makes `count` admitted hosts, none of them started; all know host 0 as bootstrap.
    pub fn new(seed: u64, count: usize) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let authority = authority_of(seed);
        let hosts = (0..count)
            .map(|index| {
                let keys = NodeKeysSeed(rng.next_u64());
                let certificate = admit(&authority, &mut rng, index, keys, &Term::offline(START));
                Host {
                    keys,
                    certificate,
                    engine: None,
                    tunnels: BTreeMap::new(),
                    disk: None,
                    skew: 0,
                    bootstrap: if index == 0 { vec![] } else { vec![0] },
                    signs: false,
                    reached: BTreeSet::new(),
                    addresses: 1,
                    moved_to: None,
                    events: Vec::new(),
                    woken: 0,
                    starts: 0,
                }
            })
            .collect();
        let net = Net::new(seed ^ 0x006e_6574, count);
        Mesh {
            now: Instant::ZERO,
            net,
            hosts,
            authority,
            trace: Trace::default(),
            relayed: BTreeMap::new(),
            droppers: BTreeMap::new(),
            seed,
            sessions: 0,
        }
    }

    /// Gives every host a certificate of a month, as an authority node does.
    pub fn admit_for_a_month(&mut self) {
        let mut rng = self.net.rng.clone();
        for index in 0..self.hosts.len() {
            let keys = self.hosts[index].keys;
            self.hosts[index].certificate = admit(&self.authority, &mut rng, index, keys, &Term::online(START));
        }
    }

    /// Has the authority sign one more prefix for hosts that are not started yet, shared at these priorities.
    pub fn share(&mut self, network: IpNet, holders: &[(usize, u8)]) {
        for (index, priority) in holders {
            let host = &mut self.hosts[*index];
            let mut admission = host.certificate.certificate().admission();
            admission.prefixes.push(network);
            let priority = Priority::new(*priority).expect("the test names one above 0");
            admission.shares = admission.shares.iter().chain([(network, priority)]).collect();
            let keys = host.keys.keys().public();
            host.certificate =
                self.authority.issue(&admission.ordered(), &keys, &Term::offline(START)).expect("a valid admission");
        }
    }

    /// The host that carries a shared prefix for another one.
    pub fn carrier(&self, index: usize, network: IpNet) -> Option<usize> {
        let node = *self.hosts[index].engine.as_ref()?.routing().carriers.get(&network)?;
        (0..self.hosts.len()).find(|host| self.node(*host) == node)
    }

    /// Lets some of the hosts relay.
    pub fn make_relays(&mut self, relays: &[usize]) {
        relays.iter().for_each(|index| self.permit_relaying(*index, true, START));
    }

    /// Gives a running host a certificate that lets it relay no more.
    pub fn withdraw_relay(&mut self, index: usize) {
        let (now, wall) = (self.now, self.wall(index));
        self.permit_relaying(index, false, wall);
        let host = &mut self.hosts[index];
        let engine = host.engine.as_mut().expect("a running host");
        engine.accept_certificate(host.certificate.bytes(), now, wall).expect("the authority signed it");
        self.drain(index);
    }

    fn permit_relaying(&mut self, index: usize, relay: bool, wall: UnixTime) {
        let certificate = self.hosts[index].certificate.certificate();
        let permissions = Permissions { relay, ..certificate.permissions };
        let admission = Admission { permissions, ..certificate.admission() };
        let keys = self.hosts[index].keys.keys().public();
        let issued = self.authority.issue(&admission, &keys, &Term::offline(wall));
        self.hosts[index].certificate = issued.expect("a valid admission");
    }

    /// Packets that relays have passed on.
    pub fn relayed(&self) -> u64 {
        self.relayed.values().sum()
    }

    /// Packets that one has.
    pub fn relayed_by(&self, host: usize) -> u64 {
        self.relayed.get(&host).copied().unwrap_or(0)
    }

    /// Adds a machine with the keys, certificate and disk of another.
    pub fn add_host(&mut self, keys: NodeKeysSeed, certificate: SignedCertificate, disk: Option<Vec<u8>>) {
        self.net.sent.push((0, 0));
        self.hosts.push(Host {
            keys,
            certificate,
            engine: None,
            tunnels: BTreeMap::new(),
            disk,
            skew: 0,
            bootstrap: vec![0],
            signs: false,
            reached: BTreeSet::new(),
            addresses: 1,
            moved_to: None,
            events: Vec::new(),
            woken: 0,
            starts: 0,
        });
    }

    /// The id of a host's node.
    pub fn node(&self, host: usize) -> NodeId {
        self.hosts[host].certificate.certificate().node
    }

    pub fn wall(&self, host: usize) -> UnixTime {
        let secs = START.as_secs() + self.now.as_nanos() / 1_000_000_000;
        UnixTime::from_secs(secs.saturating_add_signed(self.hosts[host].skew))
    }

    /// Starts a host, with what is on its disk.
    pub fn start(&mut self, index: usize) {
        let bootstrap = self.hosts[index]
            .bootstrap
            .iter()
            .map(|peer| BootstrapPeer {
                key: self.hosts[*peer].certificate.certificate().wireguard_key,
                endpoint: Net::endpoint(*peer),
            })
            .collect();
        let (now, wall, anchor) = (self.now, self.wall(index), self.authority.anchor().clone());
        let seed = self.seed;
        let host = &mut self.hosts[index];
        host.starts += 1;
        let own = OwnNode {
            keys: host.keys.keys(),
            certificate: host.certificate.clone(),
            anchor,
            authority: host.signs.then(|| authority_of(seed)),
            invites: InviteBook::default(),
        };
        let endpoints: Vec<SocketAddr> = (0..host.addresses).map(|number| Net::other_endpoint(index, number)).collect();
        let addresses = endpoints.iter().map(SocketAddr::ip).collect();
        let probe_interval = Duration::from_secs(1);
        let (post_quantum, key_renewal) = (PostQuantum::Off, PostQuantum::RENEWAL);
        let settings =
            Settings { probe_interval, endpoints, addresses, mtu: 1_420, bootstrap, post_quantum, key_renewal };
        let snapshot = host.disk.as_deref().and_then(|bytes| Snapshot::from_bytes(bytes).ok());
        let mut seed = [0u8; 32];
        seed[..8].copy_from_slice(&self.seed.to_be_bytes());
        seed[8..16].copy_from_slice(&(index as u64).to_be_bytes());
        seed[16..24].copy_from_slice(&host.starts.to_be_bytes());
        host.engine = Some(Engine::new(own, settings, snapshot, seed, now, wall));
        self.trace.line(format!("{:?} start {index}", self.now));
        self.drain(index);
    }

    /// Ends a host without a word; its disk stays.
    pub fn kill(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.engine = None;
        host.tunnels.clear();
        host.reached.clear();
        self.trace.line(format!("{:?} kill {index}", self.now));
    }

    /// Revokes a host's node, as told to another host.
    pub fn revoke(&mut self, victim: usize, at_host: usize) -> SignedRevocation {
        let revocation = Revocation::of(self.hosts[victim].certificate.certificate(), self.wall(at_host));
        let signed = self.authority.revoke(&revocation).expect("a revocation of this mesh");
        let now = self.now;
        let engine = self.hosts[at_host].engine.as_mut().expect("a running host");
        engine.accept_revocation(signed.bytes(), now).expect("the authority signed it");
        self.drain(at_host);
        signed
    }

    /// Runs until `done` holds, asked after every event, or until the limit; says whether it held.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Mesh) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            let timers =
                self.hosts.iter().filter_map(|host| host.engine.as_ref()?.poll_timeout()).map(|(at, _)| at).min();
            let Some(next) = timers.into_iter().chain(self.net.next()).min() else { return false };
            if next > end {
                self.now = end;
                return done(self);
            }
            self.now = self.now.max(next);
            while let Some(delivery) = self.net.pop(self.now) {
                let host = delivery.to;
                self.deliver(delivery);
                self.drain(host);
            }
            for host in 0..self.hosts.len() {
                let wall = self.wall(host);
                let now = self.now;
                if let Some(engine) = self.hosts[host].engine.as_mut()
                    && engine.poll_timeout().is_some_and(|(at, _)| at <= now)
                {
                    engine.handle_timeout(now, wall);
                    self.hosts[host].woken += 1;
                    self.drain(host);
                }
            }
        }
    }

    /// Tells a host's engine something.
    pub fn command(&mut self, index: usize, tell: impl FnOnce(&mut Engine)) {
        if let Some(engine) = self.hosts[index].engine.as_mut() {
            tell(engine);
        }
        self.drain(index);
    }

    /// Runs for a while.
    pub fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Sends bytes into a host's tunnel as the peer `from` would: for members that lie.
    pub fn whisper(&mut self, from: usize, to: usize, payload: &[u8]) {
        let node = self.node(to);
        self.seal(from, node, None, payload);
    }

    fn deliver(&mut self, delivery: Delivery) {
        let (now, wall, index) = (self.now, self.wall(delivery.to), delivery.to);
        self.trace.line(format!("{:?} {} -> {} {:?}", now, delivery.from, index, kind(&delivery.packet)));
        let Some(engine) = self.hosts[index].engine.as_mut() else { return };
        if let Packet::Plain(bytes) = &delivery.packet {
            // Refusals are silence; the counters of the daemon are not part of the model.
            let _ = engine.handle_datagram(delivery.from, bytes, now, wall);
        } else {
            let path = Path::Direct { remote: delivery.from, local: Some(delivery.at_address) };
            self.open(index, path, delivery.packet);
        }
    }

    /// Takes a packet of a tunnel that came by `path`.
    fn open(&mut self, index: usize, path: Path, packet: Packet) {
        let (now, wall) = (self.now, self.wall(index));
        let host = &mut self.hosts[index];
        let Some(engine) = host.engine.as_mut() else { return };
        match packet {
            Packet::Plain(_) => {}
            Packet::Relayed { .. } => self.open_relayed(index, path, packet),
            Packet::Initiation { from, to, session } => {
                let for_us = host.certificate.certificate().wireguard_key == to;
                let known = host.tunnels.iter_mut().find(|(_, tunnel)| tunnel.key == from);
                if let (true, Some((node, tunnel))) = (for_us, known) {
                    tunnel.unconfirmed.insert(session);
                    let node = *node;
                    self.send(index, node, path, Packet::Response { session });
                }
            }
            Packet::Response { session } => {
                let asked = host.tunnels.iter_mut().find(|(_, tunnel)| tunnel.asked.contains(&session));
                if let Some((node, tunnel)) = asked {
                    let node = *node;
                    tunnel.asked.clear();
                    tunnel.sessions.push(session);
                    engine.handle_session(node, SessionEvent::Established { path }, now);
                    host.reached.insert(node);
                    self.send(index, node, path, Packet::Sealed { session, payload: vec![] });
                }
            }
            Packet::Sealed { session, payload } => {
                let holder = host
                    .tunnels
                    .iter_mut()
                    .find(|(_, tunnel)| tunnel.sessions.contains(&session) || tunnel.unconfirmed.contains(&session));
                let Some((node, tunnel)) = holder else { return };
                let node = *node;
                if tunnel.unconfirmed.remove(&session) {
                    tunnel.sessions.push(session);
                    host.reached.insert(node);
                    engine.handle_session(node, SessionEvent::Established { path }, now);
                } else if tunnel.path.is_none_or(|used| differs(used, path)) && !is_look(&payload) {
                    engine.handle_roam(node, path, now);
                }
                if !payload.is_empty() {
                    let arrival = Arrival::at(node, path, now);
                    let _ = engine.handle_message(arrival, &payload, now, wall);
                    self.answer(index, node, &payload);
                }
            }
        }
    }

    /// A relay passes on what comes from its sender; the receiver takes what comes from a relay. As a data thread does it.
    fn open_relayed(&mut self, index: usize, path: Path, packet: Packet) {
        let Packet::Relayed { session, from, to, passed, inner } = packet else { return };
        let own = self.node(index);
        let holder = self.hosts[index].tunnels.iter().find(|(_, tunnel)| tunnel.sessions.contains(&session));
        let Some(holder) = holder.map(|(node, _)| *node).filter(|_| path.via().is_none()) else { return };
        if to == own && passed && self.relays(holder) && self.hosts[index].tunnels.contains_key(&from) {
            self.open(index, Path::Relay { via: holder }, *inner);
        } else if holder == from && !passed && self.relays(own) && to != own && to != from {
            if self.droppers.get(&index).is_some_and(|one_in| !self.net.rng.next_u32().is_multiple_of(*one_in)) {
                return;
            }
            let Some(tunnel) = self.hosts[index].tunnels.get(&to) else { return };
            if let (Some(session), Some(path @ Path::Direct { .. })) = (tunnel.sessions.last().copied(), tunnel.path) {
                *self.relayed.entry(index).or_default() += 1;
                self.send(index, to, path, Packet::Relayed { session, from, to, passed: true, inner });
            }
        }
    }

    fn relays(&self, node: NodeId) -> bool {
        self.hosts.iter().map(|host| host.certificate.certificate()).any(|it| it.node == node && it.permissions.relay)
    }

    /// Sends a packet for a peer by a path.
    fn send(&mut self, index: usize, node: NodeId, path: Path, packet: Packet) {
        match path {
            Path::Direct { remote, local } => self.net.send(self.now, self.source(index, local), remote, packet),
            Path::Relay { via } => {
                let Some(tunnel) = self.hosts[index].tunnels.get(&via) else { return };
                if let (Some(session), Some(path @ Path::Direct { .. })) =
                    (tunnel.sessions.last().copied(), tunnel.path)
                {
                    let (from, inner) = (self.node(index), Box::new(packet));
                    self.send(index, via, path, Packet::Relayed { session, from, to: node, passed: false, inner });
                }
            }
        }
    }

    /// Answers a request of the probes' schedule, as a data thread does.
    fn answer(&mut self, index: usize, node: NodeId, payload: &[u8]) {
        let Some(Probe::Request(request)) = Probe::decode(payload).filter(Probe::is_routine) else { return };
        let Some(tunnel) = self.hosts[index].tunnels.get_mut(&node) else { return };
        if tunnel.requests.note(request.run, request.sequence) == Receipt::Duplicated {
            return;
        }
        let (now, receipts) = (self.now, tunnel.requests.receipts());
        let reply = ProbeReply { receipts, ..ProbeReply::to(&request, now, now, now) };
        self.seal(index, node, None, &Probe::Reply(reply).encode());
    }

    /// Does what a host's engine asks for.
    pub fn drain(&mut self, index: usize) {
        while let Some(output) = self.hosts[index].engine.as_mut().and_then(Engine::poll_output) {
            match output {
                Output::Datagram { to, bytes } => {
                    self.net.send(self.now, self.source(index, None), to, Packet::Plain(bytes))
                }
                Output::Message { to, via, bytes } => self.seal(index, to, via, &bytes),
                Output::Peer(change) => self.change(index, change),
                Output::Initiate { node, path } => self.initiate(index, node, path),
                Output::Fragmentation { .. } => {}
                Output::Routing | Output::Persist(Persist::Invites) => {}
                Output::Persist(Persist::Certificate(certificate)) => self.hosts[index].certificate = *certificate,
                Output::Persist(Persist::Membership | Persist::Revocation) => {
                    let bytes = self.hosts[index].engine.as_ref().map(|engine| engine.snapshot().to_bytes());
                    self.hosts[index].disk = bytes;
                }
                Output::Event(event) => {
                    self.trace.line(format!("{:?} {index} {event:?}", self.now));
                    self.hosts[index].events.push((self.now, event));
                }
            }
        }
    }

    fn change(&mut self, index: usize, change: PeerChange) {
        let tunnels = &mut self.hosts[index].tunnels;
        match change {
            PeerChange::Add { node, key, endpoint, .. } => {
                let empty = (vec![], BTreeSet::new(), BTreeSet::new());
                let (sessions, asked, unconfirmed) = empty;
                let path = endpoint.map(Path::to);
                let tunnel = Tunnel { key, path, sessions, asked, unconfirmed, requests: Requests::default() };
                tunnels.insert(node, tunnel);
            }
            PeerChange::Path { node, path } => {
                if let Some(tunnel) = tunnels.get_mut(&node) {
                    tunnel.path = Some(path);
                }
            }
            // Told of by an event as well.
            PeerChange::Mtu { .. } | PeerChange::Doubt { .. } => {}
            // Modelled tunnels have no keys: `hybrid` has real ones.
            PeerChange::Key { .. }
            | PeerChange::WithdrawKey { .. }
            | PeerChange::ForgetKeys { .. }
            | PeerChange::Hybrid { .. } => {}
            PeerChange::Remove { node } => {
                tunnels.remove(&node);
            }
        }
    }

    fn initiate(&mut self, index: usize, node: NodeId, path: Path) {
        self.sessions += 1;
        let (session, from) = (self.sessions, self.hosts[index].certificate.certificate().wireguard_key);
        let Some(tunnel) = self.hosts[index].tunnels.get_mut(&node) else { return };
        tunnel.asked.insert(session);
        let packet = Packet::Initiation { from, to: tunnel.key, session };
        self.send(index, node, path, packet);
    }

    fn seal(&mut self, index: usize, node: NodeId, via: Option<Path>, payload: &[u8]) {
        let Some(tunnel) = self.hosts[index].tunnels.get(&node) else { return };
        if let (Some(session), Some(path)) = (tunnel.sessions.last(), via.or(tunnel.path)) {
            let packet = Packet::Sealed { session: *session, payload: payload.to_vec() };
            self.send(index, node, path, packet);
        }
    }

    /// Where a host's packets leave from.
    fn source(&self, host: usize, local: Option<IpAddr>) -> SocketAddr {
        let own = local.or(self.hosts[host].moved_to);
        own.map_or_else(|| Net::endpoint(host), |local| SocketAddr::new(local, PORT))
    }

    /// The hosts that run.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].engine.is_some())
    }

    /// Whether all of these hosts know the same certificates, records and revocations.
    pub fn agree(&self, hosts: &[usize], members: usize) -> bool {
        let digest = |host: &usize| {
            let membership = self.hosts[*host].engine.as_ref()?.membership();
            let complete = membership.members().all(|(_, member)| member.record.is_some());
            (membership.len() == members && complete).then(|| membership.digest())
        };
        let first = hosts.first().and_then(digest);
        first.is_some() && hosts.iter().all(|host| digest(host) == first)
    }

    /// Whether each of these hosts has an answering link to each other one.
    pub fn connected(&self, hosts: &[usize]) -> bool {
        hosts.iter().all(|a| hosts.iter().all(|b| a == b || self.link_is_up(*a, *b)))
    }

    /// Whether host `a` sees its link to `b` answered.
    pub fn link_is_up(&self, a: usize, b: usize) -> bool {
        let node = self.node(b);
        self.hosts[a]
            .engine
            .as_ref()
            .is_some_and(|engine| engine.link_state(node) == Some(meshd::control::probe::LinkState::Up))
    }

    /// Whether host `a` still has a tunnel to `b`.
    pub fn has_tunnel(&self, a: usize, b: usize) -> bool {
        self.hosts[a].tunnels.contains_key(&self.node(b))
    }

    /// The number of hosts that know each node, for messages.
    pub fn describe(&self) -> String {
        let known = |host: usize| self.hosts[host].engine.as_ref().map_or(0, |engine| engine.membership().len());
        let up = |host: usize| (0..self.hosts.len()).filter(|b| self.link_is_up(host, *b)).count();
        let rows: Vec<String> = self.running().map(|h| format!("{h}: {} known {} up", known(h), up(h))).collect();
        format!("at {:?}\n{}\n{}", self.now, rows.join(", "), self.trace.tail())
    }
}

/// Whether a payload is a look at a path, which is no move.
fn is_look(payload: &[u8]) -> bool {
    Probe::decode(payload).is_some_and(|probe| probe.is_challenge())
}

/// Whether a packet that came by `path` came otherwise than ours go, as a data thread judges it.
fn differs(used: Path, path: Path) -> bool {
    match (used, path) {
        (Path::Direct { remote, local }, Path::Direct { remote: from, local: to }) => {
            remote != from || local.is_some_and(|local| Some(local) != to)
        }
        _ => used != path,
    }
}

/// The authority of a seed's mesh: the same each time, since keys are not cloneable.
fn authority_of(seed: u64) -> Authority {
    let overlay = "10.77.0.0/16".parse().expect("a constant");
    Authority::generate("sim", overlay, &mut ChaCha12Rng::seed_from_u64(!seed)).expect("a valid mesh")
}

/// Issues the certificate of a simulated host.
pub fn admit(
    authority: &Authority,
    rng: &mut ChaCha12Rng,
    index: usize,
    keys: NodeKeysSeed,
    term: &Term,
) -> SignedCertificate {
    let number = index as u16 + 1;
    let admission = Admission {
        node: NodeId::generate(rng),
        name: format!("host-{index}").parse().expect("a valid name"),
        address_v4: std::net::Ipv4Addr::new(10, 77, (number >> 8) as u8, number as u8),
        prefixes: vec![],
        tags: vec![],
        permissions: Permissions { authority: index == 0, relay: false },
        serial: u64::from(number),
        shares: Shares::default(),
    };
    authority.issue(&admission, &keys.keys().public(), term).expect("a valid admission")
}

fn kind(packet: &Packet) -> String {
    match packet {
        Packet::Plain(bytes) => format!("plain {}", bytes.len()),
        Packet::Initiation { session, .. } => format!("initiation {session}"),
        Packet::Response { session } => format!("response {session}"),
        Packet::Relayed { session, passed, inner, .. } => format!("relayed {session} {passed} ({})", kind(inner)),
        Packet::Sealed { session, payload } => format!("sealed {session} {} {:?}", payload.len(), payload.first()),
    }
}

//! A peer's life: from the moment it is learned until it is no member any more.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand_core::RngCore;

use super::contact::Contact;
use super::gossip::{GATHER, Object};
use super::hybrid::Exchange;
use super::measurement::{Direction, Measurement};
use super::output::{Departure, Event, Output, PeerChange, Persist};
use super::path::{self, Path, Paths};
use super::path_mtu::PathMtu;
use super::probe::{LinkState, Pace, Prober, jittered};
use super::timer::TimerName;
use super::{Arrival, Engine};
use crate::identity::{NodeId, WireguardKey};
use crate::time::{Instant, UnixTime};
use crate::wire::control::ControlMessage;
use crate::wire::probe::{CHALLENGE, PING, Probe, ProbeReply, ProbeRequest};
use crate::wire::{DropReason, introduction};

/// Pings under way at once.
const MAX_PINGS: usize = 256;
/// How long a ping may be answered.
const PING_LIFE: Duration = Duration::from_secs(10);
/// How long the node with the higher key leaves the first move to the other: it hears of us from the same rumours.
pub(super) const SECOND_MOVE: Duration = Duration::from_millis(300);
/// Nodes that learn of each other together spread their first handshakes over this time per known peer: a handshake costs
/// half a millisecond on each side.
const SPREAD_PER_PEER: Duration = Duration::from_millis(2);
/// The longest such spread.
const MAX_SPREAD: Duration = Duration::from_secs(5);

/// The part of the interval by which a probe may go out early to join a company: about its jitter, so that one link's
/// probes stay between three quarters of an interval and 1.1 intervals apart.
const PROBE_WINDOW: u32 = 8;
/// Probes of one company: some 400 µs of work, a burst of three kilobytes.
const PROBES_TOGETHER: usize = 24;
/// How long the probes of one company may take to go out; the next one to come begins another.
const COMPANY_LIFE: Duration = Duration::from_millis(5);

/// Links whose probes go out together, this time and the next: being awake costs more than a probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Company {
    began: Instant,
    /// The time between two probes of its links.
    interval: Duration,
    /// When its probes go out again.
    next: Instant,
    /// How many more may join.
    room: usize,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: WireguardKey,
    pub(super) address: Ipv6Addr,
    pub(super) contact: Contact,
    pub(super) prober: Prober,
    pub(super) path_mtu: PathMtu,
    pub(super) learned: Instant,
    /// When the link last carried data, as far as the driver has told.
    pub(super) last_data: Option<Instant>,
    pub(super) paths: Paths,
    /// Since when the probes are not answered, where they were before.
    pub(super) silent_since: Option<Instant>,
    /// The share of the newest probes that were lost, smoothed.
    pub(super) loss: f64,
    /// Whether the driver was told that the path in use is in doubt.
    pub(super) doubted: bool,
    /// Whether its certificate lets others send through it.
    pub(super) relays: bool,
    /// When its paths were last offered relays.
    pub(super) relays_offered: Option<Instant>,
    introduced: Option<Instant>,
    pub(super) hybrid: Exchange,
}

impl Peer {
    /// When we introduced ourselves to it last.
    pub(super) fn introduced_at(&self) -> Option<Instant> {
        self.introduced
    }
}

/// A member that the configuration names and whose certificate we do not have yet.
#[derive(Debug)]
pub(super) struct Bootstrap {
    contact: Contact,
    introduced: Option<Instant>,
}

/// What a tunnel tells the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A session stands and was confirmed.
    Established {
        /// How the peer's authentic packets come.
        path: Path,
    },
    /// The last session ended without a successor.
    Lost,
}

impl Engine {
    /// A tunnel's session came or went.
    pub fn handle_session(&mut self, node: NodeId, event: SessionEvent, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match event {
            SessionEvent::Established { path } => {
                let first = !peer.contact.has_session();
                let newly_met = !peer.contact.met();
                peer.contact.on_session(path.remote(), now);
                self.timers.cancel(TimerName::Contact(node));
                self.settle(node, path, first, now);
                if first {
                    self.gossip.add(node, now);
                    if let Some(peer) = self.peers.get_mut(&node) {
                        peer.prober.on_session(now);
                    }
                    self.timers.set(TimerName::Probe(node), now);
                    self.greet(node, now);
                }
                self.greet_as_gateway(node, now);
                self.size_path(node, first, now);
                if newly_met {
                    self.output(Output::Persist(Persist::Membership));
                }
            }
            SessionEvent::Lost => {
                peer.contact.on_session_lost(now, now);
                self.gossip.remove(node);
                self.arm_contact(node);
                self.suspend_sizing(node);
            }
        }
    }

    /// Packets wait for a peer without a session: try it now.
    pub fn handle_wanted(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node)
            && !peer.contact.has_session()
        {
            peer.contact.start(now);
            self.arm_contact(node);
        }
    }

    /// Our handshakes carry marks below one the peer has seen (our clock was set back), so it refuses them: ask it to start.
    pub fn handle_clock_behind(&mut self, node: NodeId, now: Instant, wall: UnixTime) {
        if let Some((key, Some(endpoint))) =
            self.peers.get(&node).map(|peer| (peer.key, peer.contact.current().or(peer.contact.first_candidate())))
        {
            self.introduce(key, endpoint, true, now, wall);
        }
    }

    /// Something authentic came from a peer at `heard`. The daemon reports it for peers in [`Engine::suspects`].
    pub fn handle_heard(&mut self, node: NodeId, heard: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.prober.on_heard(heard);
        }
    }

    /// The state of the link to a peer.
    pub fn link_state(&self, node: NodeId) -> Option<LinkState> {
        self.peers.get(&node).map(|peer| peer.prober.state())
    }

    /// The peers whose probes are not answered, for which any sign of life matters.
    pub fn suspects(&self) -> impl Iterator<Item = NodeId> {
        let suspect = |peer: &Peer| peer.prober.state() == LinkState::Suspect;
        self.peers.iter().filter(move |(_, peer)| suspect(peer)).map(|(node, _)| *node)
    }

    /// Makes a peer of every member that is none yet.
    pub(super) fn start_peers(&mut self, now: Instant) {
        let nodes: Vec<NodeId> = self.membership.members().map(|(node, _)| node).collect();
        for node in nodes {
            self.adopt(node, now);
        }
    }

    /// A member was learned or its objects changed: bring its peer into line.
    pub(super) fn adopt(&mut self, node: NodeId, now: Instant) {
        if node == self.node || self.revoked {
            return;
        }
        let Some(member) = self.membership.get(node) else { return };
        let certificate = member.certificate();
        let (key, address, name) = (certificate.wireguard_key, certificate.address_v6, certificate.name.clone());
        let relays = certificate.permissions.relay;
        let endpoints: Vec<SocketAddr> =
            member.record.as_ref().map(|record| record.record().endpoints.clone()).unwrap_or_default();
        if self.peers.get(&node).is_some_and(|peer| peer.key != key || peer.address != address) {
            self.drop_peer(node, Departure::Replaced, now);
        }
        if !self.peers.contains_key(&node) {
            let mut contact = self.remembered.remove(&node).unwrap_or_else(|| Contact::new(false, now));
            let mut introduced = None;
            if let Some(bootstrap) = self.bootstraps.remove(&key) {
                // Its configured endpoint stays a candidate beside what it announces.
                contact = bootstrap.contact;
                introduced = bootstrap.introduced;
                self.timers.cancel(TimerName::Bootstrap(key));
            }
            let path_mtu = PathMtu::new(self.settings.mtu, now);
            let prober = Prober::new(self.node < node, self.pace_of(node, now), now);
            let (paths, silent_since, last_data, loss) = (Paths::new(node < self.node), None, None, 0.0);
            let peer = Peer {
                key,
                address,
                contact,
                prober,
                path_mtu,
                learned: now,
                last_data,
                paths,
                silent_since,
                loss,
                doubted: false,
                relays,
                relays_offered: None,
                introduced,
                hybrid: Exchange::new(now),
            };
            self.peers.insert(node, peer);
            self.event(Event::PeerLearned { node, name });
            self.output(Output::Peer(PeerChange::Add { node, key, address, endpoint: endpoints.first().copied() }));
            self.reroute(now);
        }
        let first_move = self.own.certificate.certificate().wireguard_key < key;
        let spread = SPREAD_PER_PEER.saturating_mul(self.peers.len() as u32).min(MAX_SPREAD);
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        let delay = spread.mul_f64(share) + if first_move { Duration::ZERO } else { SECOND_MOVE };
        if let Some(peer) = self.peers.get_mut(&node) {
            let was_reachable = peer.contact.is_reachable();
            let withdrawn = std::mem::replace(&mut peer.relays, relays) && !relays;
            peer.contact.set_announced(&endpoints);
            peer.renew_paths(&self.settings.addresses, now);
            if !peer.contact.has_session() && (!was_reachable || peer.contact.poll_timeout().is_none()) {
                peer.contact.start(now + delay);
            }
            self.arm_contact(node);
            self.arm_paths(node);
            if withdrawn {
                self.leave_relay(node, now);
            }
        }
        self.follow_record(node, now);
    }

    /// Ends a peer.
    pub(super) fn drop_peer(&mut self, node: NodeId, departure: Departure, now: Instant) {
        if self.peers.remove(&node).is_some() {
            self.gossip.remove(node);
            self.rows.forget(node);
            self.gateway_states.forget(node);
            self.verdicts.forget(node);
            self.timers.cancel(TimerName::Verdict(node));
            self.timers.cancel(TimerName::Hearing(node));
            self.timers.cancel(TimerName::Contact(node));
            self.timers.cancel(TimerName::Probe(node));
            self.timers.cancel(TimerName::Paths(node));
            self.timers.cancel(TimerName::Sizes(node));
            self.timers.cancel(TimerName::Hybrid(node));
            self.settle_fragmentation();
            self.output(Output::Peer(PeerChange::Remove { node }));
            self.leave_relay(node, now);
            self.reroute(now);
            self.event(Event::PeerGone { node, departure });
        }
    }

    /// Ends every peer that is no member any more.
    pub(super) fn drop_former(&mut self, departure: Departure, now: Instant) {
        let gone: Vec<NodeId> =
            self.peers.keys().filter(|node| self.membership.get(**node).is_none()).copied().collect();
        for node in gone {
            self.drop_peer(node, departure, now);
        }
    }

    pub(super) fn arm_contact(&mut self, node: NodeId) {
        match self.peers.get(&node).and_then(|peer| peer.contact.poll_timeout()) {
            Some(at) => self.timers.set(TimerName::Contact(node), at),
            None => self.timers.cancel(TimerName::Contact(node)),
        }
    }

    pub(super) fn try_contact(&mut self, node: NodeId, now: Instant, wall: UnixTime) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(attempt) = peer.contact.handle_timeout(now, &mut self.rng) else {
            return self.arm_contact(node);
        };
        let (key, has_path) = (peer.key, peer.contact.has_session() && peer.paths.current().is_some());
        if attempt.introduce {
            self.introduce(key, attempt.endpoint, false, now, wall);
        }
        // From each of our addresses in turn: the kernel's choice may be the one that leads nowhere. Every other time through a
        // relay, where there is one.
        let (locals, relays) = (path::sources(attempt.endpoint, &self.settings.addresses), self.relays_for(node));
        let turn = if relays.is_empty() { attempt.round } else { attempt.round / 2 };
        let path = if relays.is_empty() || attempt.round.is_multiple_of(2) {
            Path::Direct { remote: attempt.endpoint, local: locals[turn % locals.len()] }
        } else {
            Path::Relay { via: relays[turn % relays.len()] }
        };
        if !has_path {
            self.output(Output::Peer(PeerChange::Path { node, path }));
        }
        self.output(Output::Initiate { node, path });
        self.arm_contact(node);
    }

    /// Starts to contact the members that the configuration names.
    pub(super) fn start_bootstraps(&mut self, now: Instant) {
        for named in self.settings.bootstrap.clone() {
            if named.key == self.own.certificate.certificate().wireguard_key {
                continue;
            }
            if let Some(node) = self.membership.by_key(&named.key) {
                // Known already: the configured endpoint is one more place to look.
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.contact.add_configured(named.endpoint);
                    peer.renew_paths(&self.settings.addresses, now);
                    self.arm_contact(node);
                    self.arm_paths(node);
                }
                continue;
            }
            let bootstrap = self.bootstraps.entry(named.key).or_insert_with(|| {
                let mut contact = Contact::new(false, now);
                contact.start(now);
                Bootstrap { contact, introduced: None }
            });
            bootstrap.contact.add_configured(named.endpoint);
            self.timers.set(TimerName::Bootstrap(named.key), now);
        }
    }

    pub(super) fn try_bootstrap(&mut self, key: WireguardKey, now: Instant, wall: UnixTime) {
        let Some(bootstrap) = self.bootstraps.get_mut(&key) else { return };
        let attempt = bootstrap.contact.handle_timeout(now, &mut self.rng);
        if let Some(at) = bootstrap.contact.poll_timeout() {
            self.timers.set(TimerName::Bootstrap(key), at);
        }
        if let Some(attempt) = attempt {
            self.introduce(key, attempt.endpoint, true, now, wall);
        }
    }

    /// Sends our certificate and record, sealed to a key.
    pub(super) fn introduce(
        &mut self,
        key: WireguardKey,
        to: SocketAddr,
        answer_wanted: bool,
        now: Instant,
        wall: UnixTime,
    ) {
        if let Some(peer) = self.membership.by_key(&key).and_then(|node| self.peers.get_mut(&node)) {
            peer.introduced = Some(now);
        } else if let Some(bootstrap) = self.bootstraps.get_mut(&key) {
            bootstrap.introduced = Some(now);
        }
        let at = self.membership.present(wall);
        let record = self.own_record().cloned();
        let (certificate, signing) = (&self.own.certificate, &self.own.keys.signing);
        let sealed = introduction::seal(&key, certificate, record.as_ref(), signing, at, answer_wanted, &mut self.rng);
        // Only a key of low order cannot be sealed to, and none is ever admitted.
        let Some(bytes) = sealed else { return };
        self.output(Output::Datagram { to, bytes });
    }

    /// Sends an operator's ping to a peer and returns its number; `size` pads the overlay packet to that many bytes.
    ///
    /// The answer comes as [`Event::Pong`]; there is none where no session stands, or too many pings are under way.
    pub fn ping(&mut self, node: NodeId, size: usize, now: Instant) -> Option<u32> {
        self.pings.retain(|_, (_, sent)| now.saturating_since(*sent) < PING_LIFE);
        if !self.peers.get(&node)?.contact.has_session() || self.pings.len() >= MAX_PINGS {
            return None;
        }
        let number = self.rng.next_u32() & (PING - 1);
        self.pings.insert(number, (node, now));
        let request = ProbeRequest { sequence: number | PING, sent_nanos: now.as_nanos(), ..ProbeRequest::default() };
        let mut bytes = Probe::Request(request).encode().to_vec();
        bytes.resize(bytes.len().max(size.saturating_sub(crate::wire::overlay::HEADER_LEN)), 0);
        self.output(Output::Message { to: node, via: None, bytes });
        Some(number)
    }

    fn handle_pong(&mut self, arrival: Arrival, reply: &ProbeReply) {
        let number = reply.sequence & !PING;
        let asked = self.pings.get(&number).copied();
        let Some((_, sent)) = asked.filter(|(node, sent)| *node == arrival.peer && sent.as_nanos() == reply.sent_nanos)
        else {
            return;
        };
        self.pings.remove(&number);
        let path_rtt = arrival.stamped.saturating_since(sent).checked_sub(reply.held_since_kernel);
        let tunnel_rtt = arrival.read.saturating_since(sent).checked_sub(reply.held_since_read);
        if let (Some(path_rtt), Some(tunnel_rtt), true, false) = (path_rtt, tunnel_rtt, arrival.steady, reply.unsteady)
        {
            self.event(Event::Pong { number, path_rtt, tunnel_rtt });
        }
    }

    /// A peer's probes are due, or one of them is to be judged.
    pub(super) fn probe(&mut self, node: NodeId, now: Instant) {
        let pace = self.pace_of(node, now);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let before = peer.prober.state();
        peer.prober.set_pace(pace, now);
        if let Some(request) = peer.prober.handle_timeout(now, &mut self.rng) {
            let bytes = Probe::Request(request).encode().to_vec();
            self.output(Output::Message { to: node, via: None, bytes });
            self.join_company(node, pace, now);
        }
        self.after_probe(node, before, now);
    }

    /// Puts a link whose probe has just gone out into the company that is going out, or makes it the first of a new one
    /// and brings forward the probes of other links of its class that are up and due soon.
    fn join_company(&mut self, node: NodeId, pace: Pace, now: Instant) {
        let Pace { class, interval, .. } = pace;
        let open = |company: &Company| {
            company.room > 0 && company.interval == interval && now.saturating_since(company.began) < COMPANY_LIFE
        };
        let joined = self.company[class as usize].filter(open);
        let next = joined.map_or_else(|| now + jittered(interval, &mut self.rng), |company| company.next);
        let company = joined.unwrap_or(Company { began: now, interval, next, room: PROBES_TOGETHER });
        self.company[class as usize] = Some(Company { room: company.room - 1, ..company });
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.prober.keep_company(next);
        }
        if joined.is_some() {
            return;
        }
        let window = interval / PROBE_WINDOW;
        let soon: Vec<NodeId> = self
            .timers
            .until(now + window)
            .filter_map(|name| if let TimerName::Probe(node) = name { Some(node) } else { None })
            .collect();
        let mut room = PROBES_TOGETHER - 1;
        for node in soon {
            let alike = |peer: &&mut Peer| (peer.prober.pace().class, peer.prober.pace().interval) == (class, interval);
            let peer = self.peers.get_mut(&node).filter(alike);
            if room > 0 && peer.is_some_and(|peer| peer.prober.bring_forward(window, now)) {
                self.timers.set(TimerName::Probe(node), now);
                room -= 1;
            }
        }
    }

    /// Takes a probe out of a tunnel. A request of the schedule was answered where it arrived, all others are answered here.
    ///
    /// A reply is as long as its request, so that a padded one tests the path's MTU both ways.
    pub(super) fn handle_probe(&mut self, arrival: Arrival, probe: Probe, length: usize, now: Instant) {
        let node = arrival.peer;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let before = peer.prober.state();
        match probe {
            Probe::Request(request) if request.sequence & (CHALLENGE | PING) != 0 => {
                // Neither says anything about the schedule: it is answered and forgotten. A look at a path is answered by
                // that path, so that it tells of both its directions.
                let via = Some(arrival.path).filter(|_| request.sequence & CHALLENGE != 0);
                if let Some(path) = via {
                    // What leads here may lead back, also when the peer does not tell of it.
                    peer.paths.observe(self.settings.canonical(path), now);
                }
                let reply = ProbeReply {
                    unsteady: !arrival.steady,
                    ..ProbeReply::to(&request, arrival.stamped, arrival.read, now)
                };
                let mut bytes = Probe::Reply(reply).encode().to_vec();
                bytes.resize(length.max(bytes.len()), 0);
                self.output(Output::Message { to: node, via, bytes });
            }
            Probe::Request(request) => peer.prober.on_request(&request, &arrival, now),
            Probe::Reply(reply) if reply.sequence & CHALLENGE != 0 => return self.take_look(&arrival, &reply, now),
            Probe::Reply(reply) if reply.sequence & PING != 0 => self.handle_pong(arrival, &reply),
            Probe::Reply(reply) => {
                peer.prober.on_reply(&reply, &arrival, now);
            }
        }
        self.after_probe(node, before, now);
    }

    /// Takes a routine probe of a link that was up, at most a second after it was read. A request was answered on arrival;
    /// what it says counts as of then.
    ///
    /// # Errors
    /// The reason to count it under, where it was dropped.
    pub fn handle_late_probe(&mut self, arrival: Arrival, payload: &[u8], now: Instant) -> Result<(), DropReason> {
        let Some(peer) = self.peers.get_mut(&arrival.peer) else { return Err(DropReason::NotAdmitted) };
        let before = peer.prober.state();
        match Probe::decode(payload).filter(Probe::is_routine) {
            Some(Probe::Request(request)) => {
                peer.prober.on_request(&request, &arrival, arrival.read);
            }
            Some(Probe::Reply(reply)) => {
                peer.prober.on_reply(&reply, &arrival, arrival.read);
            }
            None => return Err(DropReason::BadControl),
        }
        self.after_probe(arrival.peer, before, now);
        Ok(())
    }

    /// Passes on what the prober found and re-arms its timer.
    fn after_probe(&mut self, node: NodeId, before: LinkState, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let measured: Vec<Measurement> = std::iter::from_fn(|| peer.prober.poll_measurement()).collect();
        let state = peer.prober.state();
        self.timers.set(TimerName::Probe(node), peer.prober.poll_timeout());
        if state.is_silent() && !before.is_silent() {
            // The session may be gone on the other side: try afresh, at every endpoint, while the probes go on.
            peer.contact.start(now);
        } else if state == LinkState::Up && peer.contact.has_session() {
            peer.contact.stop();
        }
        self.arm_contact(node);
        for measurement in measured {
            self.weigh_loss(node, &measurement);
            if let Measurement::Data { direction: Direction::Forward, lost, .. } = measurement {
                self.note_arrivals(node, lost > 0, now);
            }
            self.event(Event::Measured { node, measurement });
        }
        if before.is_silent() && state == LinkState::Up {
            // Both sides of a partition have news for each other.
            let digest = self.membership.digest();
            self.send(node, &ControlMessage::Digest(digest));
        }
        if state == LinkState::Up && before != LinkState::Up {
            self.wake_sizing(node, now);
        }
        if state != before {
            self.event(Event::Link { node, from: before, to: state });
        }
        self.follow_silence(node, before, now);
        self.follow_gateway(node, before, now);
        if state.is_silent() != before.is_silent() || state == LinkState::Down && before == LinkState::Unknown {
            self.weigh_silence(node, state, now);
        }
    }

    /// Tells a few peers of an object that is news to us, all of them where it is a revocation.
    pub(super) fn spread(&mut self, object: Object, source: Option<NodeId>, now: Instant) {
        self.last_change = now;
        let mut peers: Vec<NodeId> = self.gossip.peers().filter(|peer| Some(*peer) != source).collect();
        if !matches!(object, Object::Revocation(_)) {
            let chosen = super::gossip::FAN_OUT.min(peers.len());
            for place in 0..chosen {
                let other = place + self.rng.next_u32() as usize % (peers.len() - place);
                peers.swap(place, other);
            }
            peers.truncate(chosen);
        }
        for peer in peers {
            self.gossip.push(peer, object);
            self.timers.set_earlier(TimerName::Flush, now + GATHER);
        }
        let soon = now + super::ANTI_ENTROPY_BUSY;
        self.timers.set_earlier(TimerName::AntiEntropy, soon);
    }
}

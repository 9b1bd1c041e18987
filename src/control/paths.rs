//! What the engine does with the paths to its peers: looks at them, follows a peer that moved, switches.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Engine;
use super::candidate::LOSS_WEIGHT;
use super::condition::Condition;
use super::link::Peer;
use super::measurement::Measurement;
use super::output::{Event, Output, PeerChange};
use super::path::{Look, Path, PathView, Reason, sources};
use super::probe::LinkState;
use super::timer::TimerName;
use crate::identity::NodeId;
use crate::time::{Instant, UnixTime};
use crate::wire::control::ControlMessage;
use crate::wire::probe::{CHALLENGE, Probe, ProbeReply, ProbeRequest};

impl Peer {
    pub(super) fn condition(&self) -> Condition {
        Condition { silent_since: self.silent_since, rtt: self.prober.smoothed_rtt(), loss: self.loss }
    }

    /// Has the paths be those from the host's addresses to the endpoints that are known now.
    pub(super) fn renew_paths(&mut self, addresses: &[IpAddr], now: Instant) {
        let (announced, configured) = self.contact.told();
        self.paths.set(announced, configured, addresses, now);
    }
}

impl Engine {
    /// An authentic packet of a peer came by another path than the one in use: find out whether it moved.
    pub fn handle_roam(&mut self, node: NodeId, path: Path, now: Instant) {
        let path = self.settings.canonical(path);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(remote) = path.remote() {
            peer.contact.set_observed(remote);
        }
        if peer.paths.current() == Some(path) {
            return;
        }
        let condition = peer.condition();
        let looks = peer.paths.on_move(path, &condition, now, &mut self.rng);
        self.send_looks(node, looks, now);
        self.arm_paths(node);
    }

    /// Connections to a peer whose probes are answered so far send again what they sent, and nothing is heard of it.
    pub fn handle_unanswered(&mut self, node: NodeId, now: Instant) {
        let peer = self.peers.get(&node).filter(|peer| peer.prober.state() == LinkState::Up);
        if peer.is_none() {
            return;
        }
        self.offer_relays(node, true, now);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let condition = peer.condition();
        peer.paths.on_unanswered(&condition, now);
        if self.gateways.has(node) {
            // Another one may carry it, whatever other paths there are.
            peer.prober.demand(now);
            self.timers.set(TimerName::Probe(node), now);
        }
        self.look_at_paths(node, now);
    }

    /// The addresses of this host on the underlay changed, or the ways from them: announces its endpoints and looks at every
    /// path at once, so that peers learn where this node is now.
    pub fn handle_underlay(
        &mut self,
        addresses: Vec<IpAddr>,
        endpoints: Vec<SocketAddr>,
        now: Instant,
        wall: UnixTime,
    ) {
        let moved = self.settings.addresses != addresses;
        self.settings.addresses = addresses;
        self.set_endpoints(endpoints, now, wall);
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            peer.renew_paths(&self.settings.addresses, now);
            if let Some(Path::Direct { remote, local: Some(local) }) = peer.paths.current()
                && !self.settings.addresses.contains(&local)
            {
                // From an address that is gone nothing can be sent; the kernel knows another or none.
                self.switch(node, Path::to(remote), Reason::Moved, now);
            }
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let condition = peer.condition();
            peer.paths.look_now(&condition, now);
            if moved && peer.contact.has_session() {
                // Any authentic packet from the new address tells the peer of it.
                let digest = self.membership.digest();
                self.send(node, &ControlMessage::Digest(digest));
            }
            self.look_at_paths(node, now);
        }
    }

    /// Takes what a probe told of the loss on the path in use.
    pub(super) fn weigh_loss(&mut self, node: NodeId, measurement: &Measurement) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let lost = match measurement {
            Measurement::Sample(_) => 0.0,
            // What went out by a path that has been left since says nothing of this one.
            Measurement::Lost { sent, .. } if peer.paths.chosen().is_none_or(|(_, _, since)| *sent >= since) => 1.0,
            _ => return,
        };
        peer.loss += (lost - peer.loss) * LOSS_WEIGHT;
    }

    /// A session stands with a peer whose packets come by `path`. The first one is used where it was made; a later one changes
    /// nothing while the link answers.
    pub(super) fn settle(&mut self, node: NodeId, path: Path, first: bool, now: Instant) {
        let path = self.settings.canonical(path);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let current = peer.paths.current();
        // A handshake that went both ways is answered both ways, and the direct one comes first.
        let both = path.via().is_some() && current.is_some_and(|path| path.via().is_none());
        let state = peer.prober.state();
        let works = state == LinkState::Up && current.is_some() || state == LinkState::New && both;
        if first || !works {
            peer.paths.take(path, Reason::Session, now);
            self.output(Output::Peer(PeerChange::Path { node, path }));
        } else {
            peer.paths.observe(path, now);
        }
        self.arm_paths(node);
    }

    /// Sends the looks that are due, and switches where something better is known.
    pub(super) fn look_at_paths(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.contact.has_session() {
            self.offer_relays(node, false, now);
            let Some(peer) = self.peers.get_mut(&node) else { return };
            let condition = peer.condition();
            let looks = peer.paths.handle_timeout(&condition, now, &mut self.rng);
            self.send_looks(node, looks, now);
            self.choose_path(node, now);
        }
        self.arm_paths(node);
    }

    /// Takes the answer to a look.
    pub(super) fn take_look(&mut self, arrival: &super::Arrival, reply: &ProbeReply, now: Instant) {
        let node = arrival.peer;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let condition = peer.condition();
        let held = (arrival.stamped, reply.held_since_kernel);
        if peer.paths.on_answer(reply.sequence & !CHALLENGE, held, &condition, now) {
            self.choose_path(node, now);
            self.arm_paths(node);
        }
    }

    /// The link's state may have changed: when it falls silent, every path is looked at at once.
    pub(super) fn follow_silence(&mut self, node: NodeId, before: LinkState, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let state = peer.prober.state();
        match (before, state) {
            (_, LinkState::Up | LinkState::New) => peer.silent_since = None,
            (LinkState::Up, _) => {
                peer.silent_since = Some(now);
                peer.relays_offered = None;
                self.offer_relays(node, false, now);
                let Some(peer) = self.peers.get_mut(&node) else { return };
                let condition = peer.condition();
                peer.paths.look_now(&condition, now);
                self.look_at_paths(node, now);
            }
            // Another probe may have been missed, the one that decides.
            _ => self.choose_path(node, now),
        }
    }

    fn choose_path(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let condition = peer.condition();
        if let Some((path, reason)) = peer.paths.choose(&condition, now) {
            self.switch(node, path, reason, now);
        }
    }

    pub(super) fn switch(&mut self, node: NodeId, path: Path, reason: Reason, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let from = peer.paths.current();
        peer.paths.take(path, reason, now);
        peer.contact.on_session(path.remote(), now);
        // Whether this one is silent too is to be seen.
        peer.silent_since = peer.silent_since.map(|_| now);
        // Judged afresh: what was missed was missed on the path before.
        peer.prober.on_session(now);
        self.timers.set(TimerName::Probe(node), now);
        self.output(Output::Peer(PeerChange::Path { node, path }));
        self.event(Event::PathChanged { node, from, to: path, reason });
        self.size_path(node, false, now);
    }

    fn send_looks(&mut self, node: NodeId, looks: Vec<Look>, now: Instant) {
        for Look { path, number } in looks {
            let request =
                ProbeRequest { sequence: number | CHALLENGE, sent_nanos: now.as_nanos(), ..ProbeRequest::default() };
            let bytes = Probe::Request(request).encode().to_vec();
            self.output(Output::Message { to: node, via: Some(path), bytes });
        }
    }

    pub(super) fn arm_paths(&mut self, node: NodeId) {
        self.tell_doubt(node);
        let peer = self.peers.get(&node).filter(|peer| peer.contact.has_session());
        match peer.and_then(|peer| peer.paths.poll_timeout()) {
            Some(at) => self.timers.set(TimerName::Paths(node), at),
            None => self.timers.cancel(TimerName::Paths(node)),
        }
    }

    fn tell_doubt(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let doubted = peer.paths.is_doubted();
        if std::mem::replace(&mut peer.doubted, doubted) != doubted {
            self.output(Output::Peer(PeerChange::Doubt { node, doubted }));
        }
    }

    /// What is known of the paths to a peer; `None` for a node that is no peer.
    pub fn paths(&self, node: NodeId, now: Instant) -> Option<PathsView> {
        let peer = self.peers.get(&node)?;
        let chosen = peer.paths.chosen().map(|(_, reason, since)| (reason, now.saturating_since(since)));
        Some(PathsView { paths: peer.paths.view(&peer.condition()), chosen })
    }
}

/// The paths to a peer.
#[derive(Clone, Debug)]
pub struct PathsView {
    /// The paths, the one in use first, then by cost.
    pub paths: Vec<PathView>,
    /// Why the one in use is, and for how long it has been; `None` while none is.
    pub chosen: Option<(Reason, Duration)>,
}

impl super::Settings {
    /// The path as it is told from others here: our own address is part of it where there is a choice.
    pub(super) fn canonical(&self, path: Path) -> Path {
        let Path::Direct { remote, local } = path else { return path };
        let choice = sources(remote, &self.addresses).len() > 1;
        Path::Direct { remote, local: local.filter(|_| choice) }
    }
}

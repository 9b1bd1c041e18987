//! Through which members a link can go when its own ways are silent.

use std::time::Duration;

use super::Engine;
use super::candidate::LOSS_COST;
use super::link::Peer;
use super::path::{Path, Reason};
use super::probe::LinkState;
use crate::identity::NodeId;
use crate::time::Instant;

/// Shortest time between two offers of relays to one link: a relay that does not lead there has left three looks unanswered by
/// then, and makes room for another.
const OFFER_PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    /// Whether this node's certificate lets it pass on what others send each other.
    pub fn may_relay(&self) -> bool {
        self.own.certificate.certificate().permissions.relay
    }

    /// The members that may relay and answer on a direct path, the best first: by the round trip to them and the loss on it,
    /// since what lies beyond is found out by looking.
    pub(super) fn relays_for(&self, node: NodeId) -> Vec<NodeId> {
        let direct = |path: Path| path.via().is_none();
        let cost = |peer: &Peer| Some(peer.prober.smoothed_rtt()? + LOSS_COST.mul_f64(peer.loss));
        let mut relays: Vec<(bool, Option<Duration>, NodeId)> = self
            .peers
            .iter()
            .filter(|(id, peer)| peer.relays && **id != node && peer.prober.state() == LinkState::Up)
            .filter(|(_, peer)| peer.contact.has_session() && peer.paths.current().is_some_and(direct))
            .map(|(id, peer)| (cost(peer).is_none(), cost(peer), *id))
            .collect();
        relays.sort();
        relays.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Tells a link in trouble of the relays there are now; `doubted` where the trouble is not the probes' word yet.
    pub(super) fn offer_relays(&mut self, node: NodeId, doubted: bool, now: Instant) {
        let Some(peer) = self.peers.get(&node) else { return };
        let wanted =
            doubted || peer.silent_since.is_some() || peer.paths.current().is_some_and(|path| path.via().is_some());
        let due = peer.relays_offered.is_none_or(|last| now.saturating_since(last) >= OFFER_PAUSE);
        if !wanted || !due {
            return;
        }
        let relays = self.relays_for(node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.relays_offered = Some(now);
            peer.paths.offer_relays(&relays, now);
        }
    }

    /// A member relays no more, because it is none or lost the permission: what went through it goes elsewhere at once.
    pub(super) fn leave_relay(&mut self, via: NodeId, now: Instant) {
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let from = peer.paths.current();
            let known = peer.paths.forget_relay(via);
            if from.and_then(Path::via) != Some(via) {
                continue;
            }
            match known.or_else(|| peer.contact.first_candidate().map(Path::to)) {
                Some(path) => self.switch(node, path, Reason::Silence, now),
                // Nowhere to go: what is sent to the member that is gone is dropped.
                None => peer.contact.start(now),
            }
            self.arm_contact(node);
        }
    }
}

//! Hybrid keys: what the engine agrees on with a peer, given to the tunnel to that peer.

use super::driver::Driver;
use crate::api::{Gravity, PqState, Problem};
use crate::control::output::PeerChange;
use crate::control::{Standoff, View};
use crate::identity::NodeId;
use crate::time::Instant;
use crate::tunnel::SessionStatus;

impl Driver {
    /// Gives a tunnel a key, or takes one from it.
    pub(super) fn change_key(&mut self, node: NodeId, change: PeerChange, now: Instant) {
        let Some(link) = self.links.get(node) else { return };
        let tunnel = link.peer.tunnel();
        match change {
            PeerChange::Key { key, leads, .. } => tunnel.offer_key(key, leads),
            PeerChange::WithdrawKey { .. } => tunnel.withdraw_key(),
            PeerChange::ForgetKeys { .. } => tunnel.forget_keys(),
            PeerChange::Hybrid { names, required, .. } => {
                tunnel.set_hybrid(names, required);
                // What waited for a key may go now.
                self.links.set_tick(node, now, now);
            }
            _ => {}
        }
    }

    /// How a link stands to quantum computers, by the session in use.
    pub(super) fn pq_of(&self, node: NodeId, session: SessionStatus) -> PqState {
        match session.hybrid {
            true => PqState::Hybrid,
            false if self.engine.wants_hybrid(node) => PqState::Pending,
            false => PqState::Off,
        }
    }

    /// Links on which one end requires what the other does not have.
    pub(super) fn pq_problems(&self, view: &View, problems: &mut Vec<Problem>) {
        for peer in &view.peers {
            let Some(standoff) = self.engine.hybrid_standoff(peer.node).filter(|_| self.sessions.contains(&peer.node))
            else {
                continue;
            };
            let (message, advice) = match standoff {
                Standoff::There => (
                    format!(
                        "no data passes to {}: it has no post-quantum layer, which tunnel.pq requires here",
                        peer.name
                    ),
                    "update meshd there, or see that tunnel.pq is not off there; or set tunnel.pq to on here",
                ),
                Standoff::Here => (
                    format!(
                        "no data passes to {}: it requires the post-quantum layer, and tunnel.pq is off here",
                        peer.name
                    ),
                    "set tunnel.pq to on here, or there",
                ),
            };
            problems.push(Problem {
                gravity: Gravity::Critical,
                kind: "pq_required".into(),
                peer: Some(peer.name.to_string()),
                message,
                advice: advice.into(),
                since: None,
            });
        }
    }
}

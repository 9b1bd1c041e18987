//! Holding packets back for a peer that restarts (docs/protocol.md §6.5).
//!
//! A node that is about to restart asks its peers to seal nothing more for it: what they would seal under a session that
//! ends with its program is lost. They keep the packets until the new session stands, or the time is over. Each may ask this
//! for its own link alone, and what waits is bounded as for a peer without a session.

use std::time::Duration;

use super::Engine;
use super::output::Event;
use super::probe::LinkState;
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::control::{ControlMessage, Hold, Holding};

/// The longest time for which packets are held back, whatever a peer asks for: many times what a start takes, and short
/// enough that an application waits rather than gives up where no start follows.
pub const LONGEST_HOLD: Duration = Duration::from_secs(2);

impl Engine {
    /// The peers that answer, with the smoothed round trips to them.
    pub fn answering(&self) -> impl Iterator<Item = (NodeId, Option<Duration>)> {
        let up = self.peers.iter().filter(|(_, peer)| peer.prober.state() == LinkState::Up);
        up.map(|(node, peer)| (*node, peer.prober.smoothed_rtt()))
    }

    /// Contacts every peer without a session at once: this node has only just restarted, and they may be holding packets back.
    /// Otherwise first moves are spread, and half of them left to the other side.
    pub fn make_haste(&mut self, now: Instant) {
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            if let Some(peer) = self.peers.get_mut(&node)
                && !peer.contact.has_session()
            {
                peer.contact.start(now);
                self.arm_contact(node);
            }
        }
    }

    /// Asks a peer to hold packets back; its answer is [`Event::Holding`] with the same number.
    pub fn ask_hold(&mut self, node: NodeId, number: u32, time: Duration) {
        let millis = u32::try_from(time.min(LONGEST_HOLD).as_millis()).unwrap_or(u32::MAX);
        self.send(node, &ControlMessage::Hold(Hold { number, millis }));
    }

    /// Answers a peer that asked: nothing sealed after this leaves for it.
    pub fn confirm_hold(&mut self, node: NodeId, number: u32) {
        self.send(node, &ControlMessage::Holding(Holding { number }));
    }

    pub(super) fn handle_hold(&mut self, from: NodeId, hold: Hold) {
        self.event(Event::HoldAsked { by: from, number: hold.number, time: bounded(hold.millis) });
    }

    pub(super) fn handle_holding(&mut self, from: NodeId, holding: Holding) {
        self.event(Event::Holding { node: from, number: holding.number });
    }
}

/// How long packets are held back for whoever asks for so many milliseconds.
fn bounded(millis: u32) -> Duration {
    Duration::from_millis(u64::from(millis)).min(LONGEST_HOLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_packets_held_back_for_long() {
        assert_eq!(bounded(0), Duration::ZERO);
        assert_eq!(bounded(1_500), Duration::from_millis(1_500));
        assert_eq!((bounded(2_001), bounded(u32::MAX)), (LONGEST_HOLD, LONGEST_HOLD));
    }
}

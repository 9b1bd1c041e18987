//! Who tells of a peer that is down for everybody.

use super::driver::Driver;
use crate::control::PeerView;
use crate::control::probe::LinkState;
use crate::identity::NodeId;
use crate::time::Instant;

impl Driver {
    /// What those say who were asked about a peer that does not answer, where none of them hears it.
    pub(super) fn witnessed(&self, silent: &PeerView) -> Option<String> {
        let verdict = self.links.get(silent.node)?.verdict?;
        (silent.state == LinkState::Down && verdict.is_node()).then(|| verdict.to_string())
    }

    /// The other member that tells of a dead node, so that not every member does: of those that answer and have receivers,
    /// this node among them, the one with the smallest id.
    pub(super) fn reporter(&self, dead: NodeId, now: Instant) -> Option<String> {
        let own = self.engine.node();
        let tells = |peer: &&PeerView| peer.node != dead && peer.tells_alerts && peer.state == LinkState::Up;
        let view = self.engine.view(now);
        let first = view.peers.iter().filter(tells).min_by_key(|peer| peer.node)?;
        (first.node < own || !self.alerts.has_receivers()).then(|| first.name.to_string())
    }
}

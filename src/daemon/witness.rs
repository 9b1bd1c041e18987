//! Whether a peer that does not answer is down for everybody: a few members are asked for their rows of the matrix.

use std::time::Duration;

use super::driver::Driver;
use crate::control::PeerView;
use crate::control::probe::LinkState;
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::row::CellState;

/// Members asked at once: enough that one with troubles of its own does not decide.
const WITNESSES: usize = 5;
/// How long a peer counts as having just fallen silent: as long as its alerts are pending.
const RECENT: Duration = Duration::from_secs(60);
/// How often members are asked about those that have just fallen silent: with each look at everything.
const SOON: Duration = Duration::from_secs(5);
/// How often they are asked about the others. A row of a thousand links has 30 kB.
const LATER: Duration = Duration::from_secs(60);
/// How old what a member said may be, so that one round of questions may fail.
const FRESH: Duration = Duration::from_secs(150);

impl Driver {
    /// Asks a few members for their rows, where that is due because of a peer that does not answer.
    pub(super) fn ask_witnesses(&mut self, now: Instant) {
        let silent = |state: &PeerView| state.state == LinkState::Down;
        let newest = self.engine.view(now).peers.iter().filter(|peer| silent(peer)).map(|peer| peer.state_for).min();
        let Some(newest) = newest else { return };
        let pause = if newest <= RECENT { SOON } else { LATER };
        if self.alerts.asked.is_none_or(|asked| now >= asked + pause) {
            self.alerts.asked = Some(now);
            self.engine.pull_rows(WITNESSES, now);
            self.drain();
        }
    }

    /// What those say who were asked about a peer that does not answer, where they agree that it is down.
    pub(super) fn witnessed(&self, silent: &PeerView, now: Instant) -> Option<String> {
        if silent.state != LinkState::Down {
            return None;
        }
        let oldest = (now - silent.state_for).max(now - FRESH);
        let rows =
            self.links.iter().filter(|(peer, _)| *peer != silent.node).filter_map(|(peer, _)| self.rows.said_by(peer));
        let cells = rows.filter(|row| row.taken >= oldest).filter_map(|row| row.link(silent.node));
        let states: Vec<CellState> =
            cells.map(|cell| cell.state).filter(|state| *state != CellState::Unknown).collect();
        let agree = !states.is_empty() && states.iter().all(|state| *state == CellState::Down);
        agree.then(|| format!("unreachable from {0} of {0} asked, and from here", states.len()))
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

//! What a link's outage asks of the data plane: which packets may be lost, and when the flows they belong to are to be woken.

use std::time::Duration;

use super::driver::Driver;
use crate::control::probe::LinkState;
use crate::identity::NodeId;
use crate::time::Instant;

/// Silence after which a flow is worth waking: twice the time in which a lost probe is made good for, and less than the pause
/// before the kernel's second attempt where the first one failed (200 and 400 ms, RFC 6298 with Linux's minimum).
const WORTH_WAKING: Duration = Duration::from_millis(500);

/// What a link's last outage left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outage {
    /// Whether the link is up.
    up: bool,
    /// When the peer was heard last before it did not answer, where it did before.
    since: Option<Instant>,
    /// Whether the path in use is in doubt.
    doubted: bool,
    /// Whether another path was taken while packets may have been lost.
    left: bool,
    /// TCP flows woken so far.
    pub(super) woken: u64,
}

/// Says that TCP flows were woken.
pub(super) fn woken_text(flows: usize) -> String {
    match flows {
        1 => "1 TCP flow that stood still was woken".to_owned(),
        _ => format!("{flows} TCP flows that stood still were woken"),
    }
}

impl Driver {
    /// Packets to a peer take another path from now on.
    pub(super) fn note_move(&mut self, node: NodeId) {
        if let Some(link) = self.links.get_mut(node) {
            link.outage.left |= link.outage.doubted || !link.outage.up;
        }
    }

    /// The path to a peer whose probes are answered so far is in doubt, or is not any more. Where another one was taken, what
    /// went into the first goes on by it.
    pub(super) fn follow_doubt(&mut self, node: NodeId, doubted: bool) {
        let (Some(link), Some(dataplane)) = (self.links.get_mut(node), &self.dataplane) else { return };
        link.outage.doubted = doubted;
        if doubted {
            link.peer.set_calm(false);
        }
        if doubted || !link.outage.up {
            // Where probes were missed meanwhile, the rest follows the link's state.
            return;
        }
        if std::mem::take(&mut link.outage.left) {
            link.outage.woken += dataplane.wake_flows(&link.peer) as u64;
        } else {
            dataplane.forget_flows(node);
        }
        link.peer.set_calm(true);
    }

    /// The link to a peer entered another state: from here on the data threads keep what may be lost, or the flows that
    /// stand still go on. Returns how many flows were woken.
    pub(super) fn follow_outage(&mut self, node: NodeId, from: LinkState, to: LinkState, now: Instant) -> usize {
        let (Some(link), Some(dataplane)) = (self.links.get_mut(node), &self.dataplane) else { return 0 };
        link.outage.up = to == LinkState::Up;
        if !link.outage.up {
            link.peer.set_calm(false);
            if from == LinkState::Up {
                // The silence began before a probe was missed. What is heard by another path now is no answer by this one.
                let heard = link.peer.tunnel().status(now).last_received;
                link.outage.since = link.outage.since.or(Some(heard.unwrap_or(now)));
            }
            return 0;
        }
        let silence = link.outage.since.take().map(|since| now.saturating_since(since));
        let left = std::mem::take(&mut link.outage.left);
        let woken = if left || silence.is_some_and(|silence| silence >= WORTH_WAKING) {
            dataplane.wake_flows(&link.peer)
        } else {
            // A link that is new, or that lost a probe or two: what was kept has most likely arrived.
            dataplane.forget_flows(node);
            0
        };
        // After what was kept was taken: a data thread drops it once the link is calm.
        link.peer.set_calm(!link.outage.doubted);
        link.outage.woken += woken as u64;
        woken
    }
}

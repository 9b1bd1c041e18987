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
    /// Since when the peer does not answer, where it did before.
    since: Option<Instant>,
    /// TCP flows woken so far.
    pub(super) woken: u64,
}

impl Driver {
    /// The link to a peer entered another state: from here on the data threads keep what may be lost, or the flows that
    /// stand still go on. Returns how many flows were woken.
    pub(super) fn follow_outage(&mut self, node: NodeId, from: LinkState, to: LinkState, now: Instant) -> usize {
        let (Some(link), Some(dataplane)) = (self.links.get_mut(node), &self.dataplane) else { return 0 };
        link.peer.set_calm(to == LinkState::Up);
        if to != LinkState::Up {
            link.outage.since = link.outage.since.or(Some(now).filter(|_| from == LinkState::Up));
            return 0;
        }
        let silence = link.outage.since.take().map(|since| now.saturating_since(since));
        if silence.is_some_and(|silence| silence >= WORTH_WAKING) {
            let woken = dataplane.wake_flows(&link.peer);
            link.outage.woken += woken as u64;
            return woken;
        }
        // A link that is new, or that lost a probe or two: what was kept has most likely arrived.
        dataplane.forget_flows(node);
        0
    }
}

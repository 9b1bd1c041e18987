//! The end of the daemon, so that no packet is lost by it: peers are asked to hold back what is for this node, and nothing ends
//! before they say that they do; and the same from the other side.

use std::collections::BTreeSet;
use std::time::Duration;

use super::driver::Driver;
use super::restart::Ended;
use crate::control::hold::LONGEST_HOLD;
use crate::identity::NodeId;
use crate::platform::clock;
use crate::time::Instant;

/// How long a peer may take to answer besides its round trips: its control task may be at other work.
const SLACK: Duration = Duration::from_millis(30);
/// The longest wait for answers. A peer that says nothing (an older program, a link that just fell silent) loses packets, and
/// must not keep the others waiting.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long packets may still be on their way behind the answer: another thread of the peer's may have lost its core with some
/// in hand.
const LINGER: Duration = Duration::from_millis(5);

/// A daemon that is about to end.
#[derive(Debug)]
pub(super) struct Leaving {
    ended: Ended,
    number: u32,
    /// Who has not answered.
    waiting: BTreeSet<NodeId>,
    /// When those who have not answered are asked again.
    repeat: Option<Instant>,
    /// When it ends in any case.
    until: Instant,
}

impl Leaving {
    fn answered(&mut self, node: NodeId, number: u32, now: Instant) {
        if number == self.number && self.waiting.remove(&node) && self.waiting.is_empty() {
            self.until = self.until.min(now + LINGER);
        }
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Instant {
        self.repeat.map_or(self.until, |repeat| repeat.min(self.until))
    }
}

impl Driver {
    /// Begins the end: writes what must survive, and asks the peers to hold back. From here on no session begins, because it would
    /// be one with a program that ends.
    pub(super) fn leave(&mut self, ended: Ended) {
        if self.leaving.is_some() {
            return;
        }
        self.restart_due = None;
        self.write_down();
        let now = clock::now();
        let answering = || self.engine.answering().filter(|(node, _)| self.sessions.contains(node));
        let waiting: BTreeSet<NodeId> = answering().map(|(node, _)| node).collect();
        let rtt = answering().filter_map(|(_, rtt)| rtt).max().unwrap_or_default();
        let patience = if waiting.is_empty() { Duration::ZERO } else { PATIENCE.min(3 * rtt + 2 * SLACK) };
        // Any number that differs from that of another end of this node's within moments.
        let number = now.as_nanos() as u32;
        let repeat = Some(now + rtt + SLACK);
        self.leaving = Some(Leaving { ended, number, waiting, repeat, until: now + patience });
        self.ask_to_hold();
    }

    /// Whether the daemon has nothing to wait for any more, and how it ends then.
    pub(super) fn left(&mut self) -> Option<Ended> {
        let now = clock::now();
        let leaving = self.leaving.as_mut()?;
        if leaving.until <= now {
            for node in &leaving.waiting {
                tracing::info!(peer = %node, "it does not say that it holds packets back: some may be lost");
            }
            return Some(leaving.ended);
        }
        if leaving.repeat.is_some_and(|repeat| repeat <= now) {
            leaving.repeat = None;
            self.ask_to_hold();
        }
        None
    }

    fn ask_to_hold(&mut self) {
        let Some(leaving) = &self.leaving else { return };
        for node in &leaving.waiting {
            self.engine.ask_hold(*node, leaving.number, LONGEST_HOLD);
        }
        self.drain();
    }

    /// A peer holds back.
    pub(super) fn note_holding(&mut self, node: NodeId, number: u32) {
        if let Some(leaving) = &mut self.leaving {
            leaving.answered(node, number, clock::now());
        }
    }

    /// A peer is about to restart: what is for it waits for its new session.
    pub(super) fn hold_for(&mut self, node: NodeId, number: u32, time: Duration) {
        // The last message under the old session; only what a thread has in hand can come behind it.
        self.engine.confirm_hold(node, number);
        self.drain();
        let now = clock::now();
        let Some(link) = self.links.get(node) else { return };
        tracing::debug!(peer = %node, "it restarts: packets for it wait");
        link.peer.tunnel().hold(now + time);
        self.links.set_tick(node, now + time, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_comes_soon_after_the_last_answer_and_at_the_latest_when_patience_ends() {
        let nodes = [NodeId::from_bytes([1; 16]), NodeId::from_bytes([2; 16])];
        let at = Instant::from_millis;
        let mut leaving = Leaving {
            ended: Ended::Restart,
            number: 7,
            waiting: nodes.into(),
            repeat: Some(at(1_040)),
            until: at(1_100),
        };
        assert_eq!(leaving.deadline(), at(1_040));
        leaving.answered(nodes[0], 6, at(1_010));
        leaving.answered(nodes[0], 7, at(1_010));
        leaving.answered(nodes[0], 7, at(1_011));
        assert_eq!((leaving.waiting.len(), leaving.until), (1, at(1_100)), "one has not answered this time");
        leaving.answered(nodes[1], 7, at(1_020));
        assert_eq!(leaving.until, at(1_020) + LINGER);
        assert_eq!(leaving.deadline(), leaving.until);
    }
}

//! Is it the link or the node? Who hears a node that this one does not is asked of a few others (SWIM, Das et al. 2002).
//!
//! ```text
//!   link down ──▶ Question to up to five peers ──▶ each answers at once, or after a probe of its own where its last word
//!                                                  with the node is not fresh: Hearing, how long ago it heard it
//!             ◀── all answered, or PATIENCE over: Event::Judged
//! ```
//!
//! What a member answers is only a label on an outage: nothing is decided by it. One of those that see a node down tells it
//! for all, the one with the lowest id, so that an outage is told once and not by every node of the mesh.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand_core::RngCore;

use super::Engine;
use super::limit::Bucket;
use super::output::Event;
use super::probe::LinkState;
use super::timer::TimerName;
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::DropReason;
use crate::wire::control::{ControlMessage, Hearing, Question, id_bytes, node_id};

/// Peers asked: if a fifth of them cannot tell, four can.
const ASKED: usize = 5;
/// How long answers are waited for: the pause before one, a round trip around the world, and a busy host.
const PATIENCE: Duration = Duration::from_secs(2);
/// Whoever heard the node within this time answers at once.
const FRESH: Duration = Duration::from_millis(500);
/// How long the others listen for the answer to a probe of theirs.
const LISTENING: Duration = Duration::from_millis(800);
/// A node heard by another one this long after our first probe that it missed is alive: what it sent before has arrived.
const AFTER: Duration = Duration::from_millis(500);
/// Questions of one member that are answered in a second, and in a burst: a site of twenty that goes down at once.
const QUESTIONS_PER_SECOND: f64 = 2.0;
const QUESTIONS_BURST: f64 = 20.0;
/// Members that wait for our answer about one node.
const MOST_WAITING: usize = 64;
/// Links that make an uplink: below, half of them may well be two others' trouble.
const UPLINK_LINKS: usize = 3;
/// Time between two rounds of questions about a link that stays down: a node may come back for others first.
const REPEAT: Duration = Duration::from_secs(60);

/// What those say who were asked about a silent peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How many answered; at least one.
    pub asked: usize,
    /// How many of them hear it.
    pub hearing: usize,
}

impl Verdict {
    /// Whether it is the node that is down, for everybody asked; else it is the link.
    pub fn is_node(&self) -> bool {
        self.hearing == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hearing {
            0 => write!(f, "unreachable from {0} of {0} asked, and from here", self.asked),
            hearing => write!(f, "the link: {hearing} of {} asked hear the node", self.asked),
        }
    }
}

/// Questions under way, ours and the others'.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// What the peers that were asked about a node say: whether they hear it, once they said it.
    asked: BTreeMap<NodeId, BTreeMap<NodeId, Option<bool>>>,
    /// Whether it was the node, of those that were judged and are silent still.
    judged: BTreeMap<NodeId, bool>,
    /// Who waits for our word about a node.
    waiting: BTreeMap<NodeId, Vec<NodeId>>,
    limits: BTreeMap<NodeId, Bucket>,
    /// Most links fail together: it is this node's own uplink.
    isolated: bool,
}

impl Verdicts {
    /// A peer is none any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.asked.remove(&node);
        self.judged.remove(&node);
        self.waiting.remove(&node);
        self.limits.remove(&node);
        for asked in self.asked.values_mut() {
            asked.remove(&node);
        }
        for waiting in self.waiting.values_mut() {
            waiting.retain(|waits| *waits != node);
        }
    }
}

impl Engine {
    /// A link fell silent, or speaks again.
    pub(super) fn weigh_silence(&mut self, node: NodeId, state: LinkState, now: Instant) {
        if !state.is_silent() {
            self.verdicts.asked.remove(&node);
            self.verdicts.judged.remove(&node);
            self.timers.cancel(TimerName::Verdict(node));
        }
        let known = || self.peers.values().filter(|peer| peer.prober.state() != LinkState::New);
        let (links, silent) = (known().count(), known().filter(|peer| peer.prober.state().is_silent()).count());
        let isolated = links >= UPLINK_LINKS && silent * 2 > links;
        if isolated != self.verdicts.isolated {
            self.verdicts.isolated = isolated;
            self.event(Event::Uplink { lost: isolated, silent, links });
        }
        if state == LinkState::Down {
            self.ask_about(node, now);
        }
    }

    /// Asks a few peers about a silent one, unless it is this node that nobody hears; and again as long as it is silent.
    fn ask_about(&mut self, node: NodeId, now: Instant) {
        if self.verdicts.isolated {
            return self.timers.set(TimerName::Verdict(node), now + REPEAT);
        }
        let up = |(other, peer): (&NodeId, &super::Peer)| {
            (*other != node && peer.prober.state() == LinkState::Up).then_some(*other)
        };
        let mut others: Vec<NodeId> = self.peers.iter().filter_map(up).collect();
        let chosen = ASKED.min(others.len());
        for place in 0..chosen {
            let other = place + self.rng.next_u32() as usize % (others.len() - place);
            others.swap(place, other);
        }
        others.truncate(chosen);
        if others.is_empty() {
            return self.timers.set(TimerName::Verdict(node), now + REPEAT);
        }
        for other in &others {
            self.send(*other, &ControlMessage::Question(Question { node: id_bytes(node) }));
        }
        self.verdicts.asked.insert(node, others.into_iter().map(|other| (other, None)).collect());
        self.timers.set(TimerName::Verdict(node), now + PATIENCE);
    }

    /// A peer asks whether we hear a node.
    pub(super) fn handle_question(
        &mut self,
        from: NodeId,
        question: &Question,
        now: Instant,
    ) -> Result<(), DropReason> {
        let Some(node) = node_id(&question.node) else { return Err(DropReason::BadControl) };
        let limit = self.verdicts.limits.entry(from);
        if !limit.or_insert_with(|| Bucket::new(QUESTIONS_PER_SECOND, QUESTIONS_BURST, now)).take(1.0, now) {
            return Err(DropReason::RateLimited);
        }
        let Some(peer) = self.peers.get_mut(&node).filter(|_| node != from) else { return Ok(()) };
        if peer.prober.heard().is_some_and(|heard| now.saturating_since(heard) < FRESH) {
            self.answer(node, &[from], now);
            return Ok(());
        }
        peer.prober.demand(now);
        let due = peer.prober.poll_timeout();
        self.timers.set(TimerName::Probe(node), due);
        let waiting = self.verdicts.waiting.entry(node).or_default();
        if waiting.len() < MOST_WAITING && !waiting.contains(&from) {
            waiting.push(from);
            self.timers.set_earlier(TimerName::Hearing(node), now + LISTENING);
        }
        Ok(())
    }

    /// The time to listen for a node is over: tell those who wait.
    pub(super) fn tell_hearing(&mut self, node: NodeId, now: Instant) {
        if let Some(waiting) = self.verdicts.waiting.remove(&node) {
            self.answer(node, &waiting, now);
        }
    }

    fn answer(&mut self, node: NodeId, to: &[NodeId], now: Instant) {
        let heard = self.peers.get(&node).and_then(|peer| peer.prober.heard());
        let ago = heard.map_or(u64::from(u32::MAX), |heard| now.saturating_since(heard).as_millis() as u64);
        for peer in to {
            self.send(*peer, &ControlMessage::Hearing(Hearing { node: id_bytes(node), heard_millis: ago }));
        }
    }

    /// A peer says how long ago it heard a node.
    pub(super) fn handle_hearing(&mut self, from: NodeId, hearing: &Hearing, now: Instant) {
        let Some(node) = node_id(&hearing.node) else { return };
        let lost = self.peers.get(&node).and_then(|peer| peer.prober.lost_since()).unwrap_or(Instant::ZERO);
        let theirs = now - Duration::from_millis(hearing.heard_millis);
        let Some(asked) = self.verdicts.asked.get_mut(&node) else { return };
        if let Some(said) = asked.get_mut(&from) {
            *said = Some(theirs > lost + AFTER);
        }
        if asked.values().all(Option::is_some) {
            self.judge_silence(node, now);
        }
    }

    /// All have answered about a node, or it was waited for long enough, or it is time to ask again. A verdict that says what
    /// the one before said is not told.
    pub(super) fn judge_silence(&mut self, node: NodeId, now: Instant) {
        self.timers.cancel(TimerName::Verdict(node));
        if !self.peers.get(&node).is_some_and(|peer| peer.prober.state().is_silent()) {
            return;
        }
        let Some(asked) = self.verdicts.asked.remove(&node) else { return self.ask_about(node, now) };
        self.timers.set(TimerName::Verdict(node), now + REPEAT);
        let said = || asked.values().flatten();
        let verdict = Verdict { asked: said().count(), hearing: said().filter(|hears| **hears).count() };
        if verdict.asked == 0 || self.verdicts.isolated {
            return;
        }
        if self.verdicts.judged.insert(node, verdict.is_node()) == Some(verdict.is_node()) {
            return;
        }
        let up = self.peers.iter().filter(|(_, peer)| peer.prober.state() == LinkState::Up).map(|(other, _)| *other);
        let reporter = up.chain([self.node]).min().unwrap_or(self.node);
        self.event(Event::Judged { node, verdict, reporter });
    }
}

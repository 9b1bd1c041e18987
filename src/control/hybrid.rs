//! Hybrid keys with the peers: when to agree on one, what a message of an exchange makes us do (docs/protocol.md §5.9).
//!
//! Of two members the one with the lower id proposes. It begins as soon as a session stands that came of no such key, and
//! again when the key is old. Between two programs of which one does not know it, nothing is said: a record tells.
//!
//! ```text
//! idle ──▶ waiting ──▶ offering ──answer──▶ agreed ──session under the key──▶ standing ──old──▶ offering
//!            ▲            │ repeated                │ none within 5 s             │ a session without any key:
//!            └────────────┴─────────────────────────┘                            │ the peer has restarted
//!            └───────────────────────────────────────────────────────────────────┘
//! ```

use std::time::Duration;

use rand_core::RngCore;

use super::limit::Bucket;
use super::output::{Output, PeerChange};
use super::timer::TimerName;
use super::{Engine, FEATURE_HYBRID, FEATURE_REQUIRES_HYBRID};
use crate::config::PostQuantum;
use crate::identity::NodeId;
use crate::identity::hybrid::{self, Binding, HybridAnswer, HybridKey, PROPOSAL_LEN, Proposal};
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;
use crate::wire::control::ControlMessage;
use crate::wire::hybrid::{HybridPart, HybridReply};

/// The first repetition of a proposal, longer than round trips are; each further one waits twice as long, up to the cap.
const FIRST_REPEAT: Duration = Duration::from_millis(500);
const LONGEST_REPEAT: Duration = Duration::from_secs(30);
/// How long a session under an agreed key may take, with the repetitions of a handshake. Then the exchange begins anew: the
/// peer may have restarted between its answer and that.
const AGREED_FOR: Duration = Duration::from_secs(5);
/// How often a session under an agreed key is asked for meanwhile; another handshake may have come between.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Exchanges that a peer may begin, per second and at once: far more than restarts and losses make, and 0.2 ms of work each.
const ANSWERED: (f64, f64) = (2.0, 4.0);
/// How much of its time a key's renewal may come early, so that keys that were agreed on together are not renewed together.
const JITTER: f64 = 0.1;
/// By how much exchanges of a start are spread, per peer: two halves of an exchange and another handshake cost a millisecond.
const SPREAD_PER_PEER: Duration = Duration::from_millis(2);

/// Who has no hybrid keys, where the other end requires them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standoff {
    /// This node.
    Here,
    /// The peer.
    There,
}

/// Where the exchange with a peer is, seen from whoever proposes.
#[derive(Debug)]
enum Stage {
    /// Nothing is under way.
    Idle,
    /// A key is wanted, from then on.
    Waiting(Instant),
    /// Proposed, and to be repeated at `again`.
    Offering { number: u64, odd: bool, proposal: Box<Proposal>, again: Instant, repeated: u32 },
    /// The peer has the key; no session came of it yet.
    Agreed { odd: bool, since: Instant, ask: Instant, doubted: bool },
    /// A session came of the key; renewed then.
    Standing { renew: Instant },
}

/// The exchange with one peer.
#[derive(Debug)]
pub(super) struct Exchange {
    stage: Stage,
    /// The bit of the key that the session in use came of.
    in_use: Option<bool>,
    /// Whether the driver was told that the peer's handshakes name their keys, and that data needs one.
    names: bool,
    required: bool,
    incoming: Incoming,
}

/// The peer's proposal: one at a time, so that it takes a bounded place.
#[derive(Debug)]
struct Incoming {
    number: Option<u64>,
    odd: bool,
    parts: [Option<Vec<u8>>; HybridPart::PARTS],
    answer: Option<HybridAnswer>,
    limit: Bucket,
}

impl Exchange {
    pub(super) fn new(now: Instant) -> Exchange {
        let limit = Bucket::new(ANSWERED.0, ANSWERED.1, now);
        let incoming = Incoming { number: None, odd: false, parts: [None, None], answer: None, limit };
        Exchange { stage: Stage::Idle, in_use: None, names: false, required: false, incoming }
    }

    /// When something is due.
    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Idle => None,
            Stage::Waiting(at) | Stage::Standing { renew: at } | Stage::Offering { again: at, .. } => Some(*at),
            Stage::Agreed { ask, .. } => Some(*ask),
        }
    }
}

impl Incoming {
    /// Takes a part. The whole proposal where it is the last one of a new exchange, and nothing where it is one of an exchange
    /// that was answered or is not complete.
    fn take(&mut self, part: HybridPart) -> Option<Vec<u8>> {
        if self.number != Some(part.number) {
            (self.number, self.odd, self.answer) = (Some(part.number), part.odd, None);
            self.parts = [None, None];
        }
        if self.answer.is_some() || self.odd != part.odd || part.bytes.len() != HybridPart::LEN {
            return None;
        }
        *self.parts.get_mut(usize::from(part.part))? = Some(part.bytes);
        let [Some(first), Some(second)] = &mut self.parts else { return None };
        let mut whole = std::mem::take(first);
        whole.append(second);
        self.parts = [None, None];
        (whole.len() == PROPOSAL_LEN).then_some(whole)
    }
}

impl Engine {
    /// Says how much hybrid keys are worth here, and how long one serves.
    pub fn set_post_quantum(&mut self, wanted: PostQuantum, renewal: Duration, now: Instant, wall: UnixTime) {
        let changed = self.settings.post_quantum != wanted;
        if !changed && self.settings.key_renewal == renewal {
            return;
        }
        (self.settings.post_quantum, self.settings.key_renewal) = (wanted, renewal);
        if changed {
            self.publish(now, wall);
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            if wanted == PostQuantum::Off {
                self.output(Output::Peer(PeerChange::ForgetKeys { node }));
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.hybrid.stage = Stage::Idle;
                }
            }
            let renew = now + self.served_for();
            if let Some(peer) = self.peers.get_mut(&node)
                && let Stage::Standing { renew: at } = &mut peer.hybrid.stage
            {
                *at = (*at).min(renew);
            }
            self.follow_record(node, now);
        }
    }

    /// Whether a hybrid key is to stand between this node and a peer: both know how, and neither refuses.
    pub fn wants_hybrid(&self, node: NodeId) -> bool {
        self.settings.post_quantum != PostQuantum::Off && self.announces(node, FEATURE_HYBRID)
    }

    /// Whether no data passes between this node and a peer, because one requires hybrid keys and the other has none.
    pub fn hybrid_standoff(&self, node: NodeId) -> Option<Standoff> {
        let has_record = self.membership.get(node).is_some_and(|member| member.record.is_some());
        match self.settings.post_quantum {
            PostQuantum::Required if has_record && !self.announces(node, FEATURE_HYBRID) => Some(Standoff::There),
            PostQuantum::Off if self.announces(node, FEATURE_REQUIRES_HYBRID) => Some(Standoff::Here),
            _ => None,
        }
    }

    /// The driver's word on the session that came into use: the bit of the hybrid key that it came of, if it came of one.
    pub fn handle_key_in_use(&mut self, node: NodeId, in_use: Option<bool>, now: Instant) {
        let renew = now + self.served_for();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.hybrid.in_use = in_use;
        match &mut peer.hybrid.stage {
            Stage::Agreed { odd, .. } if in_use == Some(*odd) => peer.hybrid.stage = Stage::Standing { renew },
            // A handshake that was under way already. The next one is for the key; where that too ends in a session without any,
            // the peer has restarted since its answer.
            Stage::Agreed { doubted: true, .. } if in_use.is_none() => {
                peer.hybrid.stage = Stage::Idle;
                self.output(Output::Peer(PeerChange::WithdrawKey { node }));
            }
            Stage::Agreed { ask, doubted, .. } => (*ask, *doubted) = (now, true),
            // What was said under the old session may be lost with it.
            Stage::Offering { again, .. } => *again = now,
            Stage::Standing { .. } if in_use.is_none() => peer.hybrid.stage = Stage::Idle,
            Stage::Idle | Stage::Waiting(_) | Stage::Standing { .. } => {}
        }
        self.want_key(node, now);
    }

    /// A peer's record or certificate is new: it may know of hybrid keys by now, or not any more, or require them.
    pub(super) fn follow_record(&mut self, node: NodeId, now: Instant) {
        let known = self.settings.post_quantum != PostQuantum::Off;
        let required = self.settings.post_quantum == PostQuantum::Required
            || (known && self.announces(node, FEATURE_REQUIRES_HYBRID));
        let names = self.announces(node, FEATURE_HYBRID);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if (peer.hybrid.names, peer.hybrid.required) != (names, required) {
            (peer.hybrid.names, peer.hybrid.required) = (names, required);
            self.output(Output::Peer(PeerChange::Hybrid { node, names, required }));
        }
        self.want_key(node, now);
    }

    fn announces(&self, node: NodeId, feature: u32) -> bool {
        let record = self.membership.get(node).and_then(|member| member.record.as_ref());
        record.is_some_and(|record| record.record().features & feature != 0)
    }

    /// How long a key that comes to stand now serves.
    fn served_for(&mut self) -> Duration {
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        self.settings.key_renewal.mul_f64(1.0 - JITTER * share)
    }

    /// Begins an exchange where there is none and one is wanted.
    fn want_key(&mut self, node: NodeId, now: Instant) {
        let wanted = self.wants_hybrid(node) && self.node < node;
        let spread = SPREAD_PER_PEER.saturating_mul(self.peers.len().saturating_sub(1) as u32);
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !wanted {
            if matches!(peer.hybrid.stage, Stage::Waiting(_) | Stage::Offering { .. }) {
                peer.hybrid.stage = Stage::Idle;
            }
        } else if matches!(peer.hybrid.stage, Stage::Idle) && peer.contact.has_session() {
            // Where data waits for the key, nothing else does.
            let delay = if peer.hybrid.required { Duration::ZERO } else { spread.mul_f64(share) };
            peer.hybrid.stage = Stage::Waiting(now + delay);
        }
        self.arm_hybrid(node);
    }

    fn arm_hybrid(&mut self, node: NodeId) {
        match self.peers.get(&node).and_then(|peer| peer.hybrid.deadline()) {
            Some(at) => self.timers.set(TimerName::Hybrid(node), at),
            None => self.timers.cancel(TimerName::Hybrid(node)),
        }
    }

    /// Something of an exchange is due.
    pub(super) fn look_at_hybrid(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match &mut peer.hybrid.stage {
            Stage::Waiting(at) | Stage::Standing { renew: at } if *at <= now => self.propose(node, now),
            Stage::Offering { again, repeated, .. } if *again <= now => {
                let wait = FIRST_REPEAT.saturating_mul(1 << (*repeated).min(7)).min(LONGEST_REPEAT);
                (*again, *repeated) = (now + wait, *repeated + 1);
                self.send_proposal(node);
            }
            Stage::Agreed { since, .. } if now >= *since + AGREED_FOR => {
                peer.hybrid.stage = Stage::Waiting(now);
                self.output(Output::Peer(PeerChange::WithdrawKey { node }));
            }
            Stage::Agreed { ask, .. } if *ask <= now => {
                *ask = now + ASK_AGAIN;
                self.ask_session(node);
            }
            _ => {}
        }
        self.arm_hybrid(node);
    }

    fn propose(&mut self, node: NodeId, now: Instant) {
        let (number, proposal) = (self.rng.next_u64(), Box::new(Proposal::draw(&mut self.rng)));
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // Never the bit of the key in use: its handshakes go on meanwhile.
        let odd = !peer.hybrid.in_use.unwrap_or(false);
        let again = now + FIRST_REPEAT;
        peer.hybrid.stage = Stage::Offering { number, odd, proposal, again, repeated: 1 };
        self.send_proposal(node);
    }

    fn send_proposal(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let Stage::Offering { number, odd, proposal, .. } = &peer.hybrid.stage else { return };
        let parts: Vec<ControlMessage> = proposal
            .message()
            .chunks(HybridPart::LEN)
            .zip(0..)
            .map(|(bytes, part)| HybridPart { number: *number, part, odd: *odd, bytes: bytes.to_vec() })
            .map(ControlMessage::HybridPart)
            .collect();
        parts.iter().for_each(|part| self.send(node, part));
    }

    /// Has the driver start a handshake, which uses the key that leads.
    fn ask_session(&mut self, node: NodeId) {
        let path = self.peers.get(&node).and_then(|peer| peer.paths.current());
        if let Some(path) = path {
            self.output(Output::Initiate { node, path });
        }
    }

    fn binding(&self, peer: NodeId, peer_proposes: bool, number: u64, odd: bool) -> Option<Binding> {
        let ours = (self.node, self.own.certificate.certificate().wireguard_key);
        let theirs = (peer, self.peers.get(&peer)?.key);
        let (proposer, answerer) = if peer_proposes { (theirs, ours) } else { (ours, theirs) };
        Some(Binding { mesh: self.own.anchor.mesh, proposer, answerer, number, odd })
    }

    /// A part of a peer's proposal.
    pub(super) fn handle_hybrid_part(
        &mut self,
        from: NodeId,
        part: HybridPart,
        now: Instant,
    ) -> Result<(), DropReason> {
        if self.settings.post_quantum == PostQuantum::Off {
            return Ok(());
        }
        if self.node < from || usize::from(part.part) >= HybridPart::PARTS || part.bytes.len() != HybridPart::LEN {
            return Err(DropReason::BadControl);
        }
        let (number, odd, is_last) = (part.number, part.odd, usize::from(part.part) + 1 == HybridPart::PARTS);
        let Some(peer) = self.peers.get_mut(&from) else { return Err(DropReason::NotAdmitted) };
        if let Some(proposal) = peer.hybrid.incoming.take(part) {
            if !peer.hybrid.incoming.limit.take(1.0, now) {
                return Err(DropReason::RateLimited);
            }
            let binding = self.binding(from, true, number, odd).ok_or(DropReason::NotAdmitted)?;
            let (answer, key) = hybrid::answer(&binding, &proposal, &mut self.rng).ok_or(DropReason::BadControl)?;
            self.take_key(from, key, false);
            if let Some(peer) = self.peers.get_mut(&from) {
                peer.hybrid.incoming.answer = Some(answer);
            }
        }
        // Said again for each repetition: the answer may have been lost.
        if is_last
            && let Some(peer) = self.peers.get(&from)
            && let Some(answer) = &peer.hybrid.incoming.answer
        {
            let (ciphertext, share) = (answer.ciphertext.clone(), answer.share.to_vec());
            self.send(from, &ControlMessage::HybridReply(HybridReply { number, ciphertext, share }));
        }
        Ok(())
    }

    /// The answer to a proposal of ours.
    pub(super) fn handle_hybrid_reply(
        &mut self,
        from: NodeId,
        reply: &HybridReply,
        now: Instant,
    ) -> Result<(), DropReason> {
        let Some(peer) = self.peers.get(&from) else { return Err(DropReason::NotAdmitted) };
        let Stage::Offering { number, odd, proposal, .. } = &peer.hybrid.stage else { return Ok(()) };
        if *number != reply.number {
            return Ok(());
        }
        let odd = *odd;
        let binding = self.binding(from, false, *number, odd).ok_or(DropReason::NotAdmitted)?;
        let key = proposal.finish(&binding, &reply.ciphertext, &reply.share).ok_or(DropReason::BadControl)?;
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.hybrid.stage = Stage::Agreed { odd, since: now, ask: now + ASK_AGAIN, doubted: false };
        }
        self.take_key(from, key, true);
        self.ask_session(from);
        self.arm_hybrid(from);
        Ok(())
    }

    fn take_key(&mut self, node: NodeId, key: HybridKey, leads: bool) {
        self.output(Output::Peer(PeerChange::Key { node, key, leads }));
    }
}

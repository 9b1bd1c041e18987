//! What a control message makes us do.

use super::gossip::{self, GATHER, Object};
use super::membership::{Merge, Refusal};
use super::output::{Departure, Event, Output, Persist};
use super::timer::TimerName;
use super::{ANTI_ENTROPY_BUSY, ANTI_ENTROPY_QUIET, Arrival, BUSY_FOR, Engine};
use crate::identity::{NodeId, SignedCertificate, SignedRecord};
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;
use crate::wire::control::{ControlError, ControlMessage, Items, Want, id_bytes};
use crate::wire::probe::Probe;
use crate::wire::size_probe::SizeProbe;
use rand_core::RngCore;
use std::time::Duration;

/// A new session sends a digest at once while there are fewer than this many: a node that comes up asks its first peers, not
/// everybody.
const GREET_FIRST: usize = 3;
/// Shortest time between two answers to another user of our identity.
const CLONE_PAUSE: Duration = Duration::from_secs(10);

impl Engine {
    /// Takes a control payload out of a peer's tunnel.
    ///
    /// # Errors
    /// The reason to count it under, where it was dropped.
    pub fn handle_message(
        &mut self,
        arrival: Arrival,
        payload: &[u8],
        now: Instant,
        wall: UnixTime,
    ) -> Result<(), DropReason> {
        if !self.peers.contains_key(&arrival.peer) {
            return Err(DropReason::NotAdmitted);
        }
        if let Some(probe) = Probe::decode(payload) {
            self.handle_probe(arrival, probe, payload.len(), now);
            return Ok(());
        }
        let from = arrival.peer;
        if let Some(probe) = SizeProbe::decode(payload) {
            self.handle_size_probe(from, &probe, now);
            return Ok(());
        }
        if !self.gossip.receive(from, payload.len(), now) {
            return Err(DropReason::RateLimited);
        }
        match ControlMessage::decode(payload) {
            Err(ControlError::Malformed) => return Err(DropReason::BadControl),
            Err(ControlError::Unknown) => {}
            Ok(ControlMessage::Digest(digest)) => {
                let answers = gossip::answer_digest(&self.membership, &digest);
                if !answers.is_empty() && !self.gossip.may_answer(from, now) {
                    return Err(DropReason::RateLimited);
                }
                answers.iter().for_each(|answer| self.send(from, answer));
            }
            Ok(ControlMessage::Summary(summary)) => {
                let (push, wants) = gossip::answer_summary(&self.membership, &summary);
                self.push_all(from, push, now);
                wants.iter().for_each(|want| self.send(from, want));
            }
            Ok(ControlMessage::RevocationSummary(summary)) => {
                let (push, wants) = gossip::answer_revocations(&self.membership, &summary);
                self.push_all(from, push, now);
                wants.iter().for_each(|want| self.send(from, want));
            }
            Ok(ControlMessage::Want(want)) => {
                let objects = gossip::answer_want(&self.membership, &want);
                self.push_all(from, objects, now);
            }
            Ok(ControlMessage::Items(items)) => self.handle_items(from, &items, now, wall),
            Ok(ControlMessage::RenewalRequest) => self.handle_renewal_request(from, now, wall),
            Ok(ControlMessage::RenewalReply(reply)) => self.handle_renewal_reply(&reply.certificate, now, wall),
            Ok(ControlMessage::Question(question)) => return self.handle_question(from, &question, now),
            Ok(ControlMessage::Hearing(hearing)) => self.handle_hearing(from, &hearing, now),
            Ok(ControlMessage::Hold(hold)) => self.handle_hold(from, hold),
            Ok(ControlMessage::Holding(holding)) => self.handle_holding(from, holding),
            Ok(ControlMessage::RowRequest(request)) => return self.handle_row_request(from, request, now),
            Ok(ControlMessage::Row(row)) => self.handle_row(from, &row, now),
            Ok(ControlMessage::GatewayState(state)) => self.handle_gateway_state(from, state, now),
            Ok(ControlMessage::GatewayHeard(heard)) => self.handle_gateway_heard(from, heard),
            Ok(ControlMessage::HybridPart(part)) => return self.handle_hybrid_part(from, part, now),
            Ok(ControlMessage::HybridReply(reply)) => return self.handle_hybrid_reply(from, &reply, now),
        }
        Ok(())
    }

    fn handle_items(&mut self, from: NodeId, items: &Items, now: Instant, wall: UnixTime) {
        for bytes in &items.revocations {
            self.take_revocation(bytes, Some(from), now);
        }
        for bytes in &items.certificates {
            self.take_certificate(bytes, Some(from), now, wall);
        }
        let mut missing = Vec::new();
        for bytes in &items.records {
            let Some(node) = SignedRecord::peek_node(bytes) else {
                self.blame(Some(from), Refusal::Invalid);
                continue;
            };
            if self.take_record(node, bytes, Some(from), now, wall) == Merge::Refused(Refusal::Unknown) {
                missing.push(id_bytes(node));
            }
        }
        if !missing.is_empty() {
            let want = Want { certificates: missing.clone(), records: missing, ..Want::default() };
            self.send(from, &ControlMessage::Want(want));
        }
    }

    /// Merges a certificate, from a peer or (without one) from an introduction, a join or the operator.
    pub(super) fn take_certificate(
        &mut self,
        bytes: &[u8],
        from: Option<NodeId>,
        now: Instant,
        wall: UnixTime,
    ) -> Merge {
        let (merge, node) = self.membership.merge_certificate(bytes, wall);
        self.after_certificate(merge, node, from, now, wall)
    }

    /// Merges a certificate that was verified against our anchor.
    pub(super) fn take_verified(
        &mut self,
        signed: SignedCertificate,
        from: Option<NodeId>,
        now: Instant,
        wall: UnixTime,
    ) -> Merge {
        let node = signed.certificate().node;
        let merge = self.membership.merge_verified(signed, wall);
        self.after_certificate(merge, Some(node), from, now, wall)
    }

    fn after_certificate(
        &mut self,
        merge: Merge,
        node: Option<NodeId>,
        from: Option<NodeId>,
        now: Instant,
        wall: UnixTime,
    ) -> Merge {
        match (merge, node) {
            (Merge::New | Merge::Updated, Some(node)) => {
                self.drop_former(Departure::Replaced, now);
                if node == self.node {
                    self.adopt_own_certificate(now, wall);
                } else {
                    self.adopt(node, now);
                }
                self.spread(Object::Certificate(node), from, now);
                self.reroute(now);
                self.output(Output::Persist(Persist::Membership));
            }
            (Merge::Refused(Refusal::Revoked), Some(node)) => {
                // The sender has not heard of the revocation yet.
                if let Some(from) = from {
                    self.gossip.push(from, Object::Revocation(node));
                    self.timers.set_earlier(TimerName::Flush, now + GATHER);
                }
            }
            (Merge::Refused(refusal), _) => self.blame(from, refusal),
            _ => {}
        }
        merge
    }

    /// Merges a record.
    pub(super) fn take_record(
        &mut self,
        node: NodeId,
        bytes: &[u8],
        from: Option<NodeId>,
        now: Instant,
        wall: UnixTime,
    ) -> Merge {
        if node == self.node {
            self.take_own_record(bytes, now, wall);
            return Merge::Known;
        }
        let merge = self.membership.merge_record(node, bytes);
        match merge {
            Merge::New | Merge::Updated => {
                self.adopt(node, now);
                self.spread(Object::Record(node), from, now);
                self.output(Output::Persist(Persist::Membership));
            }
            Merge::Refused(Refusal::Revoked) => {
                if let Some(from) = from {
                    self.gossip.push(from, Object::Revocation(node));
                    self.timers.set_earlier(TimerName::Flush, now + GATHER);
                }
            }
            Merge::Refused(refusal @ Refusal::Invalid) => self.blame(from, refusal),
            _ => {}
        }
        merge
    }

    /// Merges a revocation and cuts off whom it names.
    pub(super) fn take_revocation(&mut self, bytes: &[u8], from: Option<NodeId>, now: Instant) -> Merge {
        let (merge, gone) = self.membership.merge_revocation(bytes);
        match merge {
            Merge::New => {
                if self.membership.is_revoked(&self.own.certificate) && !self.revoked {
                    self.revoked = true;
                    self.event(Event::Revoked);
                }
                // The last thing it hears of us, so that its own status says why it is alone.
                for node in gone.iter().filter(|node| self.peers.contains_key(node)).copied().collect::<Vec<_>>() {
                    let revocations = vec![bytes.to_vec().into()];
                    self.send(node, &ControlMessage::Items(Items { revocations, ..Items::default() }));
                }
                self.drop_former(Departure::Revoked, now);
                let subject = self.membership.revocations().find(|(_, revocation)| revocation.bytes() == bytes);
                if let Some((node, _)) = subject {
                    self.spread(Object::Revocation(node), from, now);
                }
                self.reroute(now);
                self.output(Output::Persist(Persist::Revocation));
            }
            Merge::Refused(refusal) => self.blame(from, refusal),
            _ => {}
        }
        merge
    }

    /// A record of our own that we did not just make: a copy of an older one, what we said before our state was lost, or the
    /// word of another host that runs with our keys.
    fn take_own_record(&mut self, bytes: &[u8], now: Instant, wall: UnixTime) {
        let Ok(signed) = SignedRecord::verify(bytes, self.own.certificate.certificate()) else { return };
        let theirs = signed.record();
        if theirs.sequence <= self.sequence {
            return;
        }
        if self.last_clone_answer.is_some_and(|last| now.saturating_since(last) < CLONE_PAUSE) {
            return;
        }
        if theirs.boot != self.boot && self.last_clone_answer.is_some() {
            // The first newer record may be our own from before a restore; a second one has another living author.
            self.clone_seen = Some(now);
            self.event(Event::Cloned);
        }
        self.last_clone_answer = Some(now);
        self.sequence = theirs.sequence;
        self.publish(now, wall);
    }

    fn blame(&mut self, from: Option<NodeId>, refusal: Refusal) {
        if let Some(from) = from {
            self.event(Event::Refused { from, refusal });
        }
    }

    fn push_all(&mut self, to: NodeId, objects: Vec<Object>, now: Instant) {
        if !objects.is_empty() {
            objects.into_iter().for_each(|object| self.gossip.push(to, object));
            self.timers.set_earlier(TimerName::Flush, now + GATHER);
        }
    }

    pub(super) fn send(&mut self, to: NodeId, message: &ControlMessage) {
        self.output(Output::Message { to, via: None, bytes: message.encode() });
    }

    /// A session with a peer just came up: compare notes, if we are new ourselves.
    pub(super) fn greet(&mut self, node: NodeId, now: Instant) {
        if self.gossip.len() <= GREET_FIRST {
            let digest = self.membership.digest();
            self.send(node, &ControlMessage::Digest(digest));
        }
        let busy = now.saturating_since(self.last_change) < BUSY_FOR;
        if busy {
            self.timers.set_earlier(TimerName::AntiEntropy, now + ANTI_ENTROPY_BUSY);
        }
    }

    pub(super) fn compare_with_someone(&mut self, now: Instant) {
        let peers: Vec<NodeId> = self.gossip.peers().collect();
        if !peers.is_empty() {
            let peer = peers[self.rng.next_u32() as usize % peers.len()];
            let digest = self.membership.digest();
            self.send(peer, &ControlMessage::Digest(digest));
        }
        let busy = now.saturating_since(self.last_change) < BUSY_FOR;
        let pause = if busy { ANTI_ENTROPY_BUSY } else { ANTI_ENTROPY_QUIET };
        let jitter = 0.75 + 0.5 * f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        self.timers.set(TimerName::AntiEntropy, now + pause.mul_f64(jitter));
    }

    pub(super) fn flush(&mut self, now: Instant) {
        let (messages, again) = self.gossip.flush(&self.membership, now);
        for (peer, message) in messages {
            self.send(peer, &message);
        }
        if let Some(again) = again {
            self.timers.set_earlier(TimerName::Flush, again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::path::Path;
    use crate::control::{OwnNode, SessionEvent, Settings};
    use crate::identity::testing::{NOW, admission, authority, certificate, keys};
    use crate::identity::{Admission, InviteBook, Term};
    use crate::wire::control::{BUCKETS, Digest};

    /// A digest costs its sender 200 bytes, and the summaries of a whole mesh can be the answer.
    #[test]
    fn digests_are_answered_within_a_budget() {
        let anchor = authority().anchor().clone();
        let own = OwnNode {
            keys: keys(1),
            certificate: certificate(1),
            anchor,
            authority: None,
            invites: InviteBook::default(),
        };
        let now = Instant::ZERO;
        let mut engine = Engine::new(own, Settings::bare(), None, [9; 32], now, NOW);
        for number in 2..60 {
            let admission = Admission { prefixes: vec![], ..admission(number) };
            let signed = authority().issue(&admission, &keys(number).public(), &Term::offline(NOW)).unwrap();
            engine.accept_certificate(signed.bytes(), now, NOW).unwrap();
        }
        let peer = NodeId::from_bytes([2; 16]);
        let path = Path::to(([192, 0, 2, 2], 7655).into());
        engine.handle_session(peer, SessionEvent::Established { path }, now);
        while engine.poll_output().is_some() {}
        let digest = ControlMessage::Digest(Digest { buckets: vec![7; BUCKETS], revocations: 7 }).encode();
        let arrival = Arrival::at(peer, path, now);
        let answered = |engine: &mut Engine, at| {
            let taken = engine.handle_message(arrival, &digest, at, NOW);
            let sent: usize = std::iter::from_fn(|| engine.poll_output())
                .map(|output| if let Output::Message { bytes, .. } = output { bytes.len() } else { 0 })
                .sum();
            (taken, sent)
        };
        let (taken, sent) = answered(&mut engine, now);
        assert!(taken.is_ok() && sent > 2_000, "{sent} bytes for the first one");
        for _ in 0..500 {
            assert_eq!(answered(&mut engine, now), (Err(DropReason::RateLimited), 0), "and nothing for its copies");
        }
        let (taken, sent) = answered(&mut engine, now + Duration::from_secs(1));
        assert!(taken.is_ok() && sent > 2_000, "a second later it is answered again");
    }
}

//! Spreading signed objects: rumours to a few peers at once, anti-entropy to repair what rumours miss.
//!
//! ```text
//!   A                                   B
//!   │ Digest ──────────────────────────▶│  equal: nothing more
//!   │◀────────────── Summary (per bucket that differs)
//!   │ Items (what B lacks) ────────────▶│
//!   │ Want  (what A lacks) ────────────▶│
//!   │◀──────────────────────────── Items│
//! ```
//!
//! What is sent is looked up when it is sent, so that an outbox holds names, not bytes, and never something outdated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use minicbor::bytes::ByteVec;

use super::limit::Bucket;
use super::membership::{Membership, bucket_range};
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::control::{
    BUCKETS, ControlMessage, Digest, Items, MAX_MESSAGE, RevocationSummary, Summary, Want, id_bytes, node_id,
};

/// Peers that hear a rumour first-hand from each node that learns it. With four, a rumour reaches all of 200 nodes in some
/// five steps and misses one with a probability below 2 %, which anti-entropy repairs.
pub const FAN_OUT: usize = 4;
/// How long an outbox gathers before it is sent: short against a human's patience, long enough to fill a packet.
pub const GATHER: Duration = Duration::from_millis(10);
/// Summary lines per message: 24 of at most 46 bytes.
const SUMMARY_ENTRIES: usize = 24;
/// Revoked ids per message.
const SUMMARY_REVOCATIONS: usize = 60;
/// Ids per [`Want`]: 60 of 17 bytes.
const WANT_IDS: usize = 60;
/// Shortest time between two answers to digests of one peer. An answer may be two hundred times as long as the question, so a
/// member that asks all the time must not make us shout.
const ANSWER_PAUSE: Duration = Duration::from_millis(300);
/// Bytes a second that one peer may send us or get from us, once its burst is used up.
const BYTES_PER_SECOND: f64 = 64.0 * 1024.0;
/// The burst: the whole membership of 300 nodes at once.
const BURST_BYTES: f64 = 256.0 * 1024.0;

/// What waits to be sent to one peer.
#[derive(Debug, Default)]
struct Outbox {
    /// With how many of the node's revocations were sent already.
    revocations: BTreeMap<NodeId, usize>,
    certificates: BTreeSet<NodeId>,
    records: BTreeSet<NodeId>,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.revocations.is_empty() && self.certificates.is_empty() && self.records.is_empty()
    }
}

/// A kind of signed object and its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The certificate of a node.
    Certificate(NodeId),
    /// The record of a node.
    Record(NodeId),
    /// The revocation of a node.
    Revocation(NodeId),
}

/// Outboxes and budgets of the peers a session stands with.
#[derive(Debug, Default)]
pub struct Gossip {
    peers: BTreeMap<NodeId, Exchange>,
}

#[derive(Debug)]
struct Exchange {
    outbox: Outbox,
    send: Bucket,
    receive: Bucket,
    answered: Option<Instant>,
}

impl Gossip {
    /// A session stands with a peer: it takes part from now on.
    pub fn add(&mut self, peer: NodeId, now: Instant) {
        self.peers.entry(peer).or_insert_with(|| Exchange {
            outbox: Outbox::default(),
            send: Bucket::new(BYTES_PER_SECOND, BURST_BYTES, now),
            receive: Bucket::new(BYTES_PER_SECOND, BURST_BYTES, now),
            answered: None,
        });
    }

    /// The peer has no session any more.
    pub fn remove(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// The peers that take part, in the order of their ids.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.peers.keys().copied()
    }

    /// Number of peers that take part.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether no peer takes part.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Counts a received message against its sender's budget; false means: drop it unread.
    pub fn receive(&mut self, peer: NodeId, bytes: usize, now: Instant) -> bool {
        self.peers.get_mut(&peer).is_some_and(|exchange| exchange.receive.take(bytes as f64, now))
    }

    /// Whether a digest of a peer may be answered now; notes that it is.
    pub fn may_answer(&mut self, peer: NodeId, now: Instant) -> bool {
        let Some(exchange) = self.peers.get_mut(&peer) else { return false };
        let may = exchange.answered.is_none_or(|last| now.saturating_since(last) >= ANSWER_PAUSE);
        if may {
            exchange.answered = Some(now);
        }
        may
    }

    /// Puts an object into a peer's outbox.
    pub fn push(&mut self, peer: NodeId, object: Object) {
        if let Some(exchange) = self.peers.get_mut(&peer) {
            let outbox = &mut exchange.outbox;
            match object {
                Object::Certificate(node) => outbox.certificates.insert(node),
                Object::Record(node) => outbox.records.insert(node),
                Object::Revocation(node) => outbox.revocations.insert(node, 0).is_none(),
            };
        }
    }

    /// Takes what the outboxes hold and the budgets allow, as messages, and says when to come back if anything is left.
    pub fn flush(&mut self, membership: &Membership, now: Instant) -> (Vec<(NodeId, ControlMessage)>, Option<Instant>) {
        let mut messages = Vec::new();
        let mut again: Option<Instant> = None;
        for (peer, exchange) in &mut self.peers {
            while !exchange.outbox.is_empty() {
                let wait = exchange.send.wait(MAX_MESSAGE as f64, now);
                if !wait.is_zero() {
                    // Rounded up, so that the bucket holds enough when the time has come.
                    let at = now + wait + Duration::from_millis(1);
                    again = Some(again.map_or(at, |again| again.min(at)));
                    break;
                }
                let (items, size) = exchange.outbox.pack(membership);
                if size > 0 {
                    exchange.send.take(size as f64, now);
                    messages.push((*peer, ControlMessage::Items(items)));
                }
            }
        }
        (messages, again)
    }
}

impl Outbox {
    /// Takes one message's worth of objects out. Revocations first, then certificates, then the records they make readable.
    fn pack(&mut self, membership: &Membership) -> (Items, usize) {
        let mut items = Items::default();
        // Kind, array, type, and a map of three arrays with their lengths.
        let mut size = 16;
        let mut fits = |len: usize| {
            let fits = size + len <= MAX_MESSAGE;
            size += if fits { len } else { 0 };
            fits
        };
        while let Some(mut entry) = self.revocations.first_entry() {
            while let Some(revocation) = membership.revocations_of(*entry.key()).get(*entry.get()) {
                if !fits(revocation.bytes().len() + 3) {
                    return (items, size);
                }
                items.revocations.push(ByteVec::from(revocation.bytes().to_vec()));
                *entry.get_mut() += 1;
            }
            entry.remove();
        }
        while let Some(node) = self.certificates.first().copied() {
            if let Some(member) = membership.get(node) {
                if !fits(member.certificate.bytes().len() + 3) {
                    return (items, size);
                }
                items.certificates.push(ByteVec::from(member.certificate.bytes().to_vec()));
            }
            self.certificates.pop_first();
        }
        while let Some(node) = self.records.first().copied() {
            if let Some(record) = membership.get(node).and_then(|member| member.record.as_ref()) {
                if !fits(record.bytes().len() + 3) {
                    return (items, size);
                }
                items.records.push(ByteVec::from(record.bytes().to_vec()));
            }
            self.records.pop_first();
        }
        let empty = items == Items::default();
        (items, if empty { 0 } else { size })
    }
}

/// Answers a digest: summaries of the buckets that differ. Equal digests need no answer.
pub fn answer_digest(membership: &Membership, theirs: &Digest) -> Vec<ControlMessage> {
    let ours = membership.digest();
    let mut messages = Vec::new();
    for bucket in 0..BUCKETS {
        if ours.buckets.get(bucket) != theirs.buckets.get(bucket) {
            messages.extend(summarise(membership, bucket));
        }
    }
    if ours.revocations != theirs.revocations {
        messages.extend(summarise_revocations(membership));
    }
    messages
}

/// The summaries of one bucket. Together they cover its whole range, also where it is empty: what is not listed is lacking.
fn summarise(membership: &Membership, bucket: usize) -> Vec<ControlMessage> {
    let (first, last) = bucket_range(bucket);
    let entries: Vec<_> =
        membership.range(first, last).map(|(node, member)| Membership::summary_entry(node, member)).collect();
    split(&entries, SUMMARY_ENTRIES, first, last, |entry| entry.node)
        .into_iter()
        .map(|(from, to, entries)| ControlMessage::Summary(Summary { from, to, entries }))
        .collect()
}

fn summarise_revocations(membership: &Membership) -> Vec<ControlMessage> {
    let nodes: Vec<NodeId> = membership.revoked_nodes().collect();
    let (first, last) = (NodeId::from_bytes([0; 16]), NodeId::from_bytes([0xff; 16]));
    split(&nodes, SUMMARY_REVOCATIONS, first, last, |node| *node.as_bytes())
        .into_iter()
        .map(|(from, to, nodes)| {
            let nodes = nodes.into_iter().map(id_bytes).collect();
            ControlMessage::RevocationSummary(RevocationSummary { from, to, nodes })
        })
        .collect()
}

/// Cuts a sorted list into pieces of at most `limit` whose ranges cover `first..=last` without a gap.
fn split<T: Clone>(
    list: &[T],
    limit: usize,
    first: NodeId,
    last: NodeId,
    id: impl Fn(&T) -> [u8; 16],
) -> Vec<([u8; 16], [u8; 16], Vec<T>)> {
    if list.is_empty() {
        return vec![(*first.as_bytes(), *last.as_bytes(), Vec::new())];
    }
    let mut pieces = Vec::new();
    let mut from = *first.as_bytes();
    let mut chunks = list.chunks(limit).peekable();
    while let Some(chunk) = chunks.next() {
        let to = if chunks.peek().is_some() { chunk.last().map_or(*last.as_bytes(), &id) } else { *last.as_bytes() };
        pieces.push((from, to, chunk.to_vec()));
        from = (u128::from_be_bytes(to).wrapping_add(1)).to_be_bytes();
    }
    pieces
}

/// What a summary leads to: objects to push to its sender, and requests to send.
pub fn answer_summary(membership: &Membership, summary: &Summary) -> (Vec<Object>, Vec<ControlMessage>) {
    let mut push = Vec::new();
    let (mut certificates, mut records) = (Vec::new(), Vec::new());
    let mut listed = BTreeSet::new();
    let (from, to) = (NodeId::from_bytes(summary.from), NodeId::from_bytes(summary.to));
    for theirs in &summary.entries {
        let node = NodeId::from_bytes(theirs.node);
        if node < from || node > to || !listed.insert(node) {
            continue;
        }
        let Some(member) = membership.get(node) else {
            if membership.revocation(node).is_some() {
                push.push(Object::Revocation(node));
            }
            if !membership.is_out(node) {
                certificates.push(id_bytes(node));
                records.push(id_bytes(node));
            }
            continue;
        };
        let ours = Membership::summary_entry(node, member);
        match (ours.certificate, ours.serial).cmp(&(theirs.certificate, theirs.serial)) {
            std::cmp::Ordering::Less => certificates.push(id_bytes(node)),
            std::cmp::Ordering::Greater => push.push(Object::Certificate(node)),
            std::cmp::Ordering::Equal => {}
        }
        match ours.sequence.cmp(&theirs.sequence) {
            std::cmp::Ordering::Less => records.push(id_bytes(node)),
            std::cmp::Ordering::Greater => push.push(Object::Record(node)),
            std::cmp::Ordering::Equal => {}
        }
    }
    for (node, member) in membership.range(from, to).filter(|(node, _)| !listed.contains(node)) {
        push.push(Object::Certificate(node));
        if member.record.is_some() {
            push.push(Object::Record(node));
        }
    }
    let mut wants = Vec::new();
    for ids in certificates.chunks(WANT_IDS) {
        wants.push(ControlMessage::Want(Want { certificates: ids.to_vec(), ..Want::default() }));
    }
    for ids in records.chunks(WANT_IDS) {
        wants.push(ControlMessage::Want(Want { records: ids.to_vec(), ..Want::default() }));
    }
    (push, wants)
}

/// What a revocation summary leads to.
pub fn answer_revocations(membership: &Membership, summary: &RevocationSummary) -> (Vec<Object>, Vec<ControlMessage>) {
    let (from, to) = (NodeId::from_bytes(summary.from), NodeId::from_bytes(summary.to));
    let listed: BTreeSet<NodeId> =
        summary.nodes.iter().filter_map(node_id).filter(|node| (from..=to).contains(node)).collect();
    let push = membership
        .revoked_nodes()
        .filter(|node| (from..=to).contains(node) && !listed.contains(node))
        .map(Object::Revocation)
        .collect();
    let missing: Vec<ByteVec> =
        listed.iter().filter(|node| membership.revocation(**node).is_none()).map(|node| id_bytes(*node)).collect();
    let wants = missing
        .chunks(WANT_IDS)
        .map(|ids| ControlMessage::Want(Want { revocations: ids.to_vec(), ..Want::default() }))
        .collect();
    (push, wants)
}

/// The objects that a request names and we hold.
pub fn answer_want(membership: &Membership, want: &Want) -> Vec<Object> {
    let held = |ids: &[ByteVec]| -> Vec<NodeId> { ids.iter().filter_map(node_id).collect() };
    let mut objects = Vec::new();
    for node in held(&want.revocations) {
        if membership.revocation(node).is_some() {
            objects.push(Object::Revocation(node));
        }
    }
    for node in held(&want.certificates) {
        if membership.get(node).is_some() {
            objects.push(Object::Certificate(node));
        } else if membership.revocation(node).is_some() {
            objects.push(Object::Revocation(node));
        }
    }
    for node in held(&want.records) {
        if membership.get(node).is_some_and(|member| member.record.is_some()) {
            objects.push(Object::Record(node));
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::membership::Merge;
    use crate::identity::testing::{NOW, admission, authority, certificate, keys, record};
    use crate::identity::{Admission, Record, Revocation, SignedRecord, Term};
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::LazyLock;

    const PEER: [NodeId; 2] = [NodeId::from_bytes([0xfe; 16]), NodeId::from_bytes([0xff; 16])];

    /// A node's objects, spread over all buckets: certificate, record, revocation.
    static NODES: LazyLock<Vec<[Vec<u8>; 3]>> = LazyLock::new(|| {
        (1..=60_u8)
            .map(|number| {
                let node = NodeId::from_bytes([number.wrapping_mul(67); 16]);
                let admission = Admission { node, prefixes: vec![], ..admission(number) };
                let signed = authority().issue(&admission, &keys(number).public(), &Term::offline(NOW)).unwrap();
                let record = Record { node, ..record(number, 1).record().clone() };
                let record = SignedRecord::sign(&record, &keys(number).signing).unwrap();
                let revoked = authority().revoke(&Revocation::of(signed.certificate(), NOW)).unwrap();
                [signed.bytes().to_vec(), record.bytes().to_vec(), revoked.bytes().to_vec()]
            })
            .collect()
    });

    fn membership() -> Membership {
        Membership::new(authority().anchor().clone())
    }

    /// A membership of some nodes: 1 has the certificate, 2 the record too, 3 the revocation.
    fn of(states: &[u8]) -> Membership {
        let mut held = membership();
        for (state, [certificate, record, revocation]) in states.iter().zip(NODES.iter()) {
            if matches!(state, 1 | 2) {
                held.merge_certificate(certificate, NOW);
            }
            if *state == 2 {
                take_record(&mut held, record);
            }
            if *state == 3 {
                held.merge_revocation(revocation);
            }
        }
        held
    }

    fn take_record(held: &mut Membership, bytes: &[u8]) -> Merge {
        held.merge_record(SignedRecord::peek_node(bytes).unwrap(), bytes)
    }

    /// Lets two memberships talk from one digest of the first on; returns the number of messages and their bytes.
    fn talk(held: &mut [Membership; 2]) -> (usize, usize) {
        let mut gossip = [Gossip::default(), Gossip::default()];
        let mut now = Instant::ZERO;
        (0..2).for_each(|side| gossip[side].add(PEER[1 - side], now));
        let mut wire = VecDeque::from([(1, ControlMessage::Digest(held[0].digest()).encode())]);
        let (mut messages, mut bytes) = (0, 0);
        loop {
            while let Some((to, message)) = wire.pop_front() {
                assert!(message.len() <= MAX_MESSAGE, "{} bytes", message.len());
                (messages, bytes) = (messages + 1, bytes + message.len());
                let (push, answers) = match ControlMessage::decode(&message).expect("ours") {
                    ControlMessage::Digest(digest) => (vec![], answer_digest(&held[to], &digest)),
                    ControlMessage::Summary(summary) => answer_summary(&held[to], &summary),
                    ControlMessage::RevocationSummary(summary) => answer_revocations(&held[to], &summary),
                    ControlMessage::Want(want) => (answer_want(&held[to], &want), vec![]),
                    ControlMessage::Items(items) => {
                        for bytes in &items.revocations {
                            held[to].merge_revocation(bytes);
                        }
                        for bytes in &items.certificates {
                            held[to].merge_certificate(bytes, NOW);
                        }
                        items
                            .records
                            .iter()
                            .for_each(|bytes| assert_ne!(take_record(&mut held[to], bytes), Merge::Known));
                        (vec![], vec![])
                    }
                    other => panic!("{other:?} is no gossip"),
                };
                push.into_iter().for_each(|object| gossip[to].push(PEER[1 - to], object));
                wire.extend(answers.into_iter().map(|answer| (1 - to, answer.encode())));
            }
            let mut again: Option<Instant> = None;
            for side in 0..2 {
                let (sent, at) = gossip[side].flush(&held[side], now);
                wire.extend(sent.into_iter().map(|(_, message)| (1 - side, message.encode())));
                again = again.into_iter().chain(at).min();
            }
            match (wire.is_empty(), again) {
                (true, None) => return (messages, bytes),
                (true, Some(at)) => now = at,
                _ => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// One exchange is enough, and costs what differs, not what is known.
        #[test]
        fn two_memberships_converge_in_a_bounded_exchange(
            mine in proptest::collection::vec(0..4_u8, 60),
            theirs in proptest::collection::vec(0..4_u8, 60),
        ) {
            let mut held = [of(&mine), of(&theirs)];
            let (messages, bytes) = talk(&mut held);
            prop_assert_eq!(held[0].digest(), held[1].digest());
            let ids = |held: &Membership| held.members().map(|(node, _)| node).collect::<Vec<_>>();
            prop_assert_eq!(ids(&held[0]), ids(&held[1]));
            let records = |held: &Membership| held.members().filter(|(_, member)| member.record.is_some()).count();
            prop_assert_eq!(records(&held[0]), records(&held[1]));
            // A digest, at most a summary and two wants for each bucket, the same once for the revocations, and the items.
            let differ = mine.iter().zip(&theirs).filter(|(mine, theirs)| mine != theirs).count();
            prop_assert!(messages <= 1 + 3 * (BUCKETS + 1) + 2 * differ, "{} messages for {}", messages, differ);
            prop_assert!(bytes <= 200 + (BUCKETS + 1) * 100 + 60 * 50 + 60 * 40 + differ * 1200, "{} bytes", bytes);
            prop_assert_eq!(talk(&mut held).0, 1, "equal digests need no answer");
        }
    }

    #[test]
    fn a_newcomer_hears_everything() {
        let mut held = [membership(), of(&[2; 60])];
        talk(&mut held);
        assert_eq!(held[0].len(), 60);
        let mut held = [of(&[2; 60]), membership()];
        talk(&mut held);
        assert_eq!(held[1].len(), 60);
    }

    /// A member with the longest certificate and record, revoked as often as can be.
    fn large(number: u8) -> [Vec<u8>; 2] {
        let prefixes = (0..16).map(|i| format!("2001:db8:{i:x}::/48").parse().unwrap()).collect();
        let tags = (10..23).map(|i| format!("{i}{}", "x".repeat(30)).parse().unwrap()).collect();
        let admission = Admission { prefixes, tags, ..admission(number) };
        let signed = authority().issue(&admission, &keys(number).public(), &Term::offline(NOW)).unwrap();
        [signed.bytes().to_vec(), record(number, 16).bytes().to_vec()]
    }

    fn revoke_often(held: &mut Membership, number: u8) {
        for key in 1..=crate::control::membership::MAX_REVOCATIONS_PER_NODE as u8 {
            let keys = keys(key).public();
            let name = "n".repeat(63).parse().unwrap();
            let revocation = Revocation {
                wireguard_key: keys.wireguard,
                verifying_key: keys.verifying,
                name,
                ..Revocation::of(certificate(number).certificate(), NOW)
            };
            assert_eq!(held.merge_revocation(authority().revoke(&revocation).unwrap().bytes()).0, Merge::New);
        }
    }

    #[test]
    fn messages_stay_below_their_limit_and_every_object_is_sent_once() {
        let mut held = membership();
        revoke_often(&mut held, 200);
        let mut gossip = Gossip::default();
        gossip.add(PEER[0], Instant::ZERO);
        gossip.push(PEER[0], Object::Revocation(NodeId::from_bytes([200; 16])));
        gossip.push(PEER[0], Object::Revocation(NodeId::from_bytes([201; 16])));
        for number in 20..40 {
            let [certificate, record] = large(number);
            assert_eq!(held.merge_certificate(&certificate, NOW).0, Merge::New);
            assert_eq!(take_record(&mut held, &record), Merge::New);
            for object in [Object::Certificate, Object::Record] {
                gossip.push(PEER[0], object(NodeId::from_bytes([number; 16])));
                gossip.push(PEER[0], object(NodeId::from_bytes([number; 16])));
            }
        }
        let (messages, again) = gossip.flush(&held, Instant::ZERO);
        assert_eq!(again, None);
        let mut counts = [0; 3];
        for (_, message) in messages {
            assert!(message.encode().len() <= MAX_MESSAGE, "{}", message.encode().len());
            let ControlMessage::Items(items) = message else { panic!("gossip sends items") };
            let lists = [items.revocations.len(), items.certificates.len(), items.records.len()];
            counts.iter_mut().zip(lists).for_each(|(count, more)| *count += more);
        }
        assert_eq!(counts, [8, 20, 20]);
    }

    #[test]
    fn budgets_hold_in_both_directions() {
        let held = of(&[2; 60]);
        let mut gossip = Gossip::default();
        let mut now = Instant::ZERO;
        gossip.add(PEER[0], now);
        assert!(!gossip.receive(PEER[1], 1, now), "nobody but a peer with a session");
        assert!(!gossip.may_answer(PEER[1], now));
        assert!(gossip.may_answer(PEER[0], now) && !gossip.may_answer(PEER[0], now), "one answer to many digests");
        assert!(gossip.may_answer(PEER[0], now + ANSWER_PAUSE));
        let (mut sent, second) = (0, Instant::from_millis(1_000));
        // Someone who asks for everything again and again gets the burst and then its rate.
        loop {
            NODES.iter().for_each(|[certificate, ..]| {
                let node = crate::identity::SignedCertificate::peek_node(certificate).unwrap();
                gossip.push(PEER[0], Object::Certificate(node));
            });
            let (messages, again) = gossip.flush(&held, now);
            sent += messages.iter().map(|(_, message)| message.encode().len()).sum::<usize>();
            let next = again.unwrap_or(now);
            assert!(again.is_none() || next > now, "it is told when to come back");
            if next >= second {
                break;
            }
            now = next;
        }
        assert!(sent as f64 <= BURST_BYTES + BYTES_PER_SECOND && sent as f64 > BURST_BYTES, "{sent} bytes");
        let received = (0..10_000).filter(|_| gossip.receive(PEER[0], 1_000, now)).count() as f64 * 1_000.0;
        assert!((BURST_BYTES - 1_000.0..=BURST_BYTES).contains(&received), "{received} bytes");
        assert!(gossip.receive(PEER[0], 1_000, now + Duration::from_secs(1)), "the budget comes back");
    }
}

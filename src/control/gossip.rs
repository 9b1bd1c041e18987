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
    revocations: BTreeSet<NodeId>,
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
            match object {
                Object::Certificate(node) => exchange.outbox.certificates.insert(node),
                Object::Record(node) => exchange.outbox.records.insert(node),
                Object::Revocation(node) => exchange.outbox.revocations.insert(node),
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
        while let Some(node) = self.revocations.first().copied() {
            if let Some(revocation) = membership.revocation(node) {
                if !fits(revocation.bytes().len() + 3) {
                    return (items, size);
                }
                items.revocations.push(ByteVec::from(revocation.bytes().to_vec()));
            }
            self.revocations.pop_first();
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
    let nodes: Vec<NodeId> = membership.revocations().map(|(node, _)| node).collect();
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
            } else {
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
        .revocations()
        .map(|(node, _)| node)
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

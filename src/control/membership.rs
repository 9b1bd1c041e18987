//! Who belongs to the mesh: certificates, records and revocations, and how a newer one replaces an older one.
//!
//! Merging is commutative and idempotent: whatever the order in which two nodes hear the same objects, and however often, they
//! end with the same membership. (An object that another one had to precede, such as a record before its certificate, is
//! refused and asked for again.) A node can speak only for itself (records carry its own signature), only the authority admits
//! and revokes, and a revocation is never undone.
//!
//! While two authorities are trusted, a revocation takes out what its own authority let in. So whoever holds a key that is being
//! retired can no longer cut off a node that the other authority has certified, and the exchange of a key makes a mesh safer
//! node by node. The price: a node that has got a certificate of the new authority is revoked by the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blake2::{Blake2s256, Digest as _};

use crate::identity::{
    Certificate, Issuer, NodeId, PublicKeys, SignedCertificate, SignedRecord, SignedRevocation, TrustAnchor, Validity,
    VerifyingKey, WireguardKey,
};
use crate::time::UnixTime;
use crate::wire::control::{BUCKETS, Digest, SummaryEntry};

/// Members at most, ourselves included: four times the largest mesh we plan for, and a bound on what a stolen authority key
/// can make us hold (some 4 MiB).
pub const MAX_MEMBERS: usize = 4096;
/// Revoked nodes at most. Full means refused, and a problem in the status: the authority is then re-made.
pub const MAX_REVOCATIONS: usize = 16_384;
/// Revocations of one node by one authority at most: its keys may have changed between two.
pub const MAX_REVOCATIONS_PER_NODE: usize = 8;

/// How long after its end a certificate still lets a standing link be: a renewal that failed over a weekend shows in the
/// status for weeks before, and must not cut a database off at night.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(86_400);

/// A member: its certificate and, once heard, its record.
#[derive(Clone, Debug)]
pub struct Member {
    /// What the authority says.
    pub certificate: SignedCertificate,
    /// What the node says about itself.
    pub record: Option<SignedRecord>,
}

impl Member {
    /// The certificate's fields.
    pub fn certificate(&self) -> &Certificate {
        self.certificate.certificate()
    }

    /// The record's sequence, 0 without a record.
    pub fn sequence(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.record().sequence)
    }
}

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The object was unknown and is kept.
    New,
    /// The object replaced an older one.
    Updated,
    /// We had it, or a newer one.
    Known,
    /// It is not accepted.
    Refused(Refusal),
}

/// Why a signed object is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not decode, or its signature does not fit: the sender lies or is broken.
    Invalid,
    /// Its subject is revoked.
    Revoked,
    /// Its certificate has expired.
    Expired,
    /// A record whose subject's certificate we do not have.
    Unknown,
    /// The table is full.
    Full,
    /// Another member with a newer certificate holds the same key.
    KeyInUse,
}

/// The members and the revoked, with the sums that make two memberships comparable at a glance.
#[derive(Debug)]
pub struct Membership {
    anchor: TrustAnchor,
    members: BTreeMap<NodeId, Member>,
    by_key: BTreeMap<WireguardKey, NodeId>,
    /// None of the lists is empty.
    revocations: BTreeMap<NodeId, Vec<SignedRevocation>>,
    /// Keys that are out, each with the authority that said so.
    revoked_keys: BTreeSet<([u8; 32], [u8; 32])>,
    buckets: [u64; BUCKETS],
    revocation_sum: u64,
    floor: UnixTime,
}

impl Membership {
    /// Makes an empty membership under a trust anchor.
    pub fn new(anchor: TrustAnchor) -> Self {
        Membership {
            anchor,
            members: BTreeMap::new(),
            by_key: BTreeMap::new(),
            revocations: BTreeMap::new(),
            revoked_keys: BTreeSet::new(),
            buckets: [0; BUCKETS],
            revocation_sum: 0,
            floor: UnixTime::EPOCH,
        }
    }

    /// The trust anchor.
    pub fn anchor(&self) -> &TrustAnchor {
        &self.anchor
    }

    /// The earliest time it can be, by what the authority has signed (reliability rule: only the authority's word moves it, so
    /// that no member can make the others' certificates expire).
    pub fn floor(&self) -> UnixTime {
        self.floor
    }

    /// The present as far as certificates go: our clock, or the floor where the clock is behind it.
    pub fn present(&self, wall: UnixTime) -> UnixTime {
        wall.max(self.floor)
    }

    /// Raises the floor to a saved one.
    pub fn raise_floor(&mut self, floor: UnixTime) {
        self.floor = self.floor.max(floor);
    }

    /// Returns a member.
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// Returns the member that holds a WireGuard key.
    pub fn by_key(&self, key: &WireguardKey) -> Option<NodeId> {
        self.by_key.get(key).copied()
    }

    /// All members in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(node, member)| (*node, member))
    }

    /// The members in an inclusive range of ids.
    pub fn range(&self, from: NodeId, to: NodeId) -> impl Iterator<Item = (NodeId, &Member)> {
        let range = if from <= to { Some(self.members.range(from..=to)) } else { None };
        range.into_iter().flatten().map(|(node, member)| (*node, member))
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the first revocation of a node.
    pub fn revocation(&self, node: NodeId) -> Option<&SignedRevocation> {
        self.revocations_of(node).first()
    }

    /// All revocations of a node: more than one where it was revoked with several sets of keys.
    pub fn revocations_of(&self, node: NodeId) -> &[SignedRevocation] {
        self.revocations.get(&node).map_or(&[], Vec::as_slice)
    }

    /// All revocations in the order of node ids.
    pub fn revocations(&self) -> impl Iterator<Item = (NodeId, &SignedRevocation)> {
        self.revocations.iter().flat_map(|(node, list)| list.iter().map(|revocation| (*node, revocation)))
    }

    /// The nodes that are revoked, in the order of their ids.
    pub fn revoked_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.revocations.keys().copied()
    }

    /// Whether the authority that a certificate rests on has revoked its subject, by its id or by either of its keys.
    pub fn is_revoked(&self, signed: &SignedCertificate) -> bool {
        let (certificate, root) = (signed.certificate(), signed.root());
        let keys = [certificate.wireguard_key.as_bytes(), certificate.verifying_key.as_bytes()];
        self.revocations_of(certificate.node).iter().any(|revocation| revocation.authority() == root)
            || keys.into_iter().any(|key| self.has_revoked(&root, key))
    }

    /// Whether every authority has revoked this node, so that no certificate for it can hold.
    pub fn is_out(&self, node: NodeId) -> bool {
        let revocations = self.revocations_of(node);
        let has_revoked = |key: &VerifyingKey| revocations.iter().any(|revocation| revocation.authority() == *key);
        self.anchor.authorities.iter().all(has_revoked)
    }

    /// Whether either key belonged to a node that any authority has revoked: such keys are not let in again.
    pub fn is_revoked_key(&self, keys: &PublicKeys) -> bool {
        let keys = [keys.wireguard.as_bytes(), keys.verifying.as_bytes()];
        keys.into_iter().any(|key| self.anchor.authorities.iter().any(|root| self.has_revoked(root, key)))
    }

    fn has_revoked(&self, authority: &VerifyingKey, key: &[u8; 32]) -> bool {
        self.revoked_keys.contains(&(*key, *authority.as_bytes()))
    }

    /// The digest of what we know.
    pub fn digest(&self) -> Digest {
        Digest { buckets: self.buckets.to_vec(), revocations: self.revocation_sum }
    }

    /// A member's line in a summary.
    pub fn summary_entry(node: NodeId, member: &Member) -> SummaryEntry {
        let certificate = member.certificate();
        SummaryEntry {
            node: *node.as_bytes(),
            certificate: certificate.issued.as_secs(),
            serial: certificate.serial,
            sequence: member.sequence(),
        }
    }

    /// Takes a certificate. `wall` is our clock; the later of it and the floor counts.
    pub fn merge_certificate(&mut self, bytes: &[u8], wall: UnixTime) -> (Merge, Option<NodeId>) {
        if let Some(node) = SignedCertificate::peek_node(bytes)
            && self.members.get(&node).is_some_and(|member| member.certificate.bytes() == bytes)
        {
            return (Merge::Known, Some(node));
        }
        let Ok(signed) = SignedCertificate::verify(bytes, &self.anchor) else {
            return (Merge::Refused(Refusal::Invalid), None);
        };
        let node = signed.certificate().node;
        (self.merge_verified(signed, wall), Some(node))
    }

    /// Takes a certificate that was verified against our anchor.
    pub fn merge_verified(&mut self, signed: SignedCertificate, wall: UnixTime) -> Merge {
        let certificate = signed.certificate();
        let node = certificate.node;
        if matches!(signed.issuer(), Issuer::Authority(_)) {
            self.floor = self.floor.max(certificate.issued);
        }
        if self.is_revoked(&signed) {
            return Merge::Refused(Refusal::Revoked);
        }
        let at = self.present(wall);
        if signed.validity(at - EXPIRY_GRACE) == Validity::Expired {
            return Merge::Refused(Refusal::Expired);
        }
        if self.members.get(&node).is_some_and(|old| rank(&signed) <= rank(&old.certificate)) {
            return Merge::Known;
        }
        // What a revoked member issued for an authority counts only where exactly this was known before: a thief of its keys
        // may still issue, but evicting those whom it admitted honestly is for the operator to decide.
        if let Issuer::Delegate(key) = signed.issuer()
            && self.has_revoked(&signed.root(), key.as_bytes())
        {
            return Merge::Refused(Refusal::Revoked);
        }
        if let Some(holder) = self.by_key.get(&certificate.wireguard_key).copied().filter(|holder| *holder != node) {
            if self.members.get(&holder).is_some_and(|old| rank(&signed) <= rank(&old.certificate)) {
                return Merge::Refused(Refusal::KeyInUse);
            }
            self.remove(holder);
        }
        let known = self.members.contains_key(&node);
        if !known && self.members.len() >= MAX_MEMBERS {
            return Merge::Refused(Refusal::Full);
        }
        // A record stays only where the new certificate's key still vouches for it.
        let record = self
            .remove(node)
            .and_then(|old| old.record)
            .and_then(|record| SignedRecord::verify(record.bytes(), signed.certificate()).ok());
        self.insert(node, Member { certificate: signed, record });
        if known { Merge::Updated } else { Merge::New }
    }

    /// Takes a record of `node`.
    pub fn merge_record(&mut self, node: NodeId, bytes: &[u8]) -> Merge {
        let Some(member) = self.members.get(&node) else {
            let refusal = if self.revocations.contains_key(&node) { Refusal::Revoked } else { Refusal::Unknown };
            return Merge::Refused(refusal);
        };
        if member.record.as_ref().is_some_and(|record| record.bytes() == bytes) {
            return Merge::Known;
        }
        let Ok(record) = SignedRecord::verify(bytes, member.certificate()) else {
            return Merge::Refused(Refusal::Invalid);
        };
        if record.record().sequence <= member.sequence() {
            return Merge::Known;
        }
        let known = member.record.is_some();
        if let Some(mut member) = self.remove(node) {
            member.record = Some(record);
            self.insert(node, member);
        }
        if known { Merge::Updated } else { Merge::New }
    }

    /// Takes a revocation; the member it names is gone afterwards, and so is every member that holds one of its keys.
    ///
    /// A second revocation of a node adds the keys it names, whatever its date, and takes nothing back.
    pub fn merge_revocation(&mut self, bytes: &[u8]) -> (Merge, Vec<NodeId>) {
        let Ok(signed) = SignedRevocation::verify(bytes, &self.anchor) else {
            return (Merge::Refused(Refusal::Invalid), Vec::new());
        };
        let revocation = signed.revocation();
        let node = revocation.node;
        self.floor = self.floor.max(revocation.at);
        let keys = [*revocation.wireguard_key.as_bytes(), *revocation.verifying_key.as_bytes()];
        let authority = signed.authority();
        let held = self.revocations_of(node).iter().filter(|held| held.authority() == authority).count();
        if held > 0 && keys.iter().all(|key| self.has_revoked(&authority, key)) {
            return (Merge::Known, Vec::new());
        }
        let first = self.revocations_of(node).is_empty();
        let full = first && self.revocations.len() >= MAX_REVOCATIONS;
        if full || held >= MAX_REVOCATIONS_PER_NODE {
            return (Merge::Refused(Refusal::Full), Vec::new());
        }
        self.revoked_keys.extend(keys.map(|key| (key, *authority.as_bytes())));
        if first {
            self.revocation_sum = self.revocation_sum.wrapping_add(sum(node.as_bytes(), &[]));
        }
        self.revocations.entry(node).or_default().push(signed);
        let gone: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| self.is_revoked(&member.certificate))
            .map(|(node, _)| *node)
            .collect();
        for node in &gone {
            self.remove(*node);
        }
        (Merge::New, gone)
    }

    /// The members whose certificates rest on none of these authorities.
    pub fn outside<'a>(&'a self, authorities: &'a [VerifyingKey]) -> impl Iterator<Item = (NodeId, &'a Member)> {
        self.members().filter(|(_, member)| !authorities.contains(&member.certificate.root()))
    }

    /// Trusts these authorities from now on, and no others: the members that rest on others are gone, and named, and so are the
    /// revocations of others, whose subjects none of these has let in. The mesh stays the same.
    pub fn set_authorities(&mut self, authorities: Vec<VerifyingKey>) -> Vec<NodeId> {
        let gone: Vec<NodeId> = self.outside(&authorities).map(|(node, _)| node).collect();
        for node in &gone {
            self.remove(*node);
        }
        self.revocations.retain(|_, list| {
            list.retain(|revocation| authorities.contains(&revocation.authority()));
            !list.is_empty()
        });
        self.revoked_keys.retain(|(_, root)| authorities.iter().any(|key| key.as_bytes() == root));
        self.revocation_sum = self.revocations.keys().fold(0, |all, node| all.wrapping_add(sum(node.as_bytes(), &[])));
        self.anchor.authorities = authorities;
        gone
    }

    /// Removes the members whose certificate ended more than the grace ago, and names them.
    pub fn expire(&mut self, wall: UnixTime) -> Vec<NodeId> {
        let at = self.present(wall) - EXPIRY_GRACE;
        let gone: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| member.certificate.validity(at) == Validity::Expired)
            .map(|(node, _)| *node)
            .collect();
        for node in &gone {
            self.remove(*node);
        }
        gone
    }

    fn insert(&mut self, node: NodeId, member: Member) {
        self.add_to_sum(node, &member, u64::wrapping_add);
        self.by_key.insert(member.certificate().wireguard_key, node);
        self.members.insert(node, member);
    }

    fn remove(&mut self, node: NodeId) -> Option<Member> {
        let member = self.members.remove(&node)?;
        self.by_key.remove(&member.certificate().wireguard_key);
        self.add_to_sum(node, &member, u64::wrapping_sub);
        Some(member)
    }

    fn add_to_sum(&mut self, node: NodeId, member: &Member, combine: fn(u64, u64) -> u64) {
        let entry = Self::summary_entry(node, member);
        let value = sum(&entry.node, &[entry.certificate, entry.serial, entry.sequence]);
        let bucket = &mut self.buckets[bucket_of(node)];
        *bucket = combine(*bucket, value);
    }
}

/// The bucket of a node id: its first four bits.
pub fn bucket_of(node: NodeId) -> usize {
    usize::from(node.as_bytes()[0] >> 4)
}

/// First and last node id of a bucket.
pub fn bucket_range(bucket: usize) -> (NodeId, NodeId) {
    let high = (bucket as u8 & 0x0f) << 4;
    let (mut from, mut to) = ([0u8; 16], [0xffu8; 16]);
    from[0] = high;
    to[0] = high | 0x0f;
    (NodeId::from_bytes(from), NodeId::from_bytes(to))
}

/// What orders two certificates of one node, or of one key: the time of issue, then the serial. The rest only decides between
/// two that an authority gave in one second (two copies of it, that is), so that every node decides alike.
fn rank(signed: &SignedCertificate) -> (UnixTime, u64, NodeId, &[u8]) {
    let certificate = signed.certificate();
    (certificate.issued, certificate.serial, certificate.node, signed.bytes())
}

/// A line's share of a digest. A cryptographic hash, so that no member can find a second record of its own that hides the first.
fn sum(node: &[u8; 16], fields: &[u64]) -> u64 {
    let mut hash = Blake2s256::new();
    hash.update(node);
    for field in fields {
        hash.update(field.to_be_bytes());
    }
    let digest = hash.finalize();
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{NOW, admission, authority, certificate, keys, record};
    use crate::identity::{Admission, DelegationTerms, Record, Revocation, SignedDelegation, Term};
    use crate::identity::{Authority, SigningSecret};
    use proptest::prelude::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;
    use std::sync::LazyLock;

    const DAY: Duration = Duration::from_secs(86_400);

    fn membership() -> Membership {
        Membership::new(authority().anchor().clone())
    }

    /// A certificate of node `number` with a key pair each by its number, `days` after the start.
    fn issue(number: u8, wireguard: u8, verifying: u8, days: u32, serial: u64) -> SignedCertificate {
        let keys =
            PublicKeys { wireguard: keys(wireguard).public().wireguard, verifying: keys(verifying).public().verifying };
        let admission = Admission { serial, prefixes: vec![], ..admission(number) };
        authority().issue(&admission, &keys, &Term::offline(NOW + DAY * days)).unwrap()
    }

    fn delegation(admission: &Admission, delegate: u8) -> SignedDelegation {
        let delegate = keys(delegate).public().verifying;
        let terms = DelegationTerms { delegate, now: NOW, window: 10 * DAY, certificate: 100 * DAY };
        authority().delegate(admission, &terms).unwrap()
    }

    /// A certificate of node `number` that node `delegate` issued for the authority, `days` after the start.
    fn delegated(number: u8, key: u8, delegate: u8, days: u32) -> SignedCertificate {
        let admission = Admission { prefixes: vec![], ..admission(number) };
        let term = Term::offline(NOW + DAY * days);
        delegation(&admission, delegate)
            .issue(&admission, &keys(key).public(), &term, authority().anchor(), &keys(delegate).signing)
            .unwrap()
    }

    fn revocation(number: u8, wireguard: u8, verifying: u8, at: UnixTime) -> Vec<u8> {
        let revocation = Revocation {
            wireguard_key: keys(wireguard).public().wireguard,
            verifying_key: keys(verifying).public().verifying,
            ..Revocation::of(certificate(number).certificate(), at)
        };
        authority().revoke(&revocation).unwrap().bytes().to_vec()
    }

    fn signed_record(number: u8, key: u8, sequence: u64) -> Vec<u8> {
        let record = Record { sequence, issued: NOW, expires: NOW + DAY, ..record(number, 1).record().clone() };
        SignedRecord::sign(&record, &keys(key).signing).unwrap().bytes().to_vec()
    }

    fn take(membership: &mut Membership, signed: &SignedCertificate) -> Merge {
        membership.merge_certificate(signed.bytes(), NOW).0
    }

    #[test]
    fn revocation_is_by_node_and_by_keys_and_for_good() {
        let mut held = membership();
        assert_eq!(take(&mut held, &issue(1, 1, 1, 0, 1)), Merge::New);
        let first = revocation(1, 1, 1, NOW);
        assert_eq!(held.merge_revocation(&first), (Merge::New, vec![NodeId::from_bytes([1; 16])]));
        assert_eq!(held.merge_revocation(&first), (Merge::Known, vec![]));
        let refused = Merge::Refused(Refusal::Revoked);
        assert_eq!(take(&mut held, &issue(1, 1, 1, 0, 1)), refused, "an old copy");
        assert_eq!(take(&mut held, &issue(1, 2, 2, 5, 99)), refused, "the node under new keys and a higher serial");
        assert_eq!(take(&mut held, &issue(9, 1, 2, 5, 99)), refused, "its tunnel key under another id");
        assert_eq!(take(&mut held, &issue(9, 2, 1, 5, 99)), refused, "its signing key under another id");
        assert_eq!(held.merge_record(NodeId::from_bytes([1; 16]), &signed_record(1, 1, 9)), refused);
        // A second revocation, older by its date and with other keys, adds to the first and takes nothing back.
        assert_eq!(take(&mut held, &issue(8, 3, 8, 0, 1)), Merge::New, "its key is nobody's so far");
        let (merge, gone) = held.merge_revocation(&revocation(1, 3, 1, NOW - DAY));
        assert_eq!((merge, gone), (Merge::New, vec![NodeId::from_bytes([8; 16])]));
        assert!(held.is_revoked_key(&keys(1).public()));
        assert_eq!(take(&mut held, &issue(9, 3, 9, 5, 99)), refused);
        assert_eq!(held.revocations_of(NodeId::from_bytes([1; 16])).len(), 2);
        assert_eq!((held.revocations().count(), held.revoked_nodes().count()), (2, 1));
        assert_eq!(take(&mut held, &issue(9, 9, 9, 0, 1)), Merge::New, "its name and address belong to nobody");
    }

    #[test]
    fn what_a_revoked_delegate_issued_counts_only_where_it_was_known() {
        let known = delegated(2, 2, 1, 0);
        let mut held = membership();
        assert_eq!(take(&mut held, &known), Merge::New);
        assert_eq!(held.merge_revocation(&revocation(1, 1, 1, NOW)).0, Merge::New);
        assert_eq!(held.get(NodeId::from_bytes([2; 16])).map(|member| &member.certificate), Some(&known));
        assert_eq!(take(&mut held, &known), Merge::Known);
        // A thief of the delegate's key issues again what it was allowed to issue once, with a key of its own.
        let refused = Merge::Refused(Refusal::Revoked);
        assert_eq!(take(&mut held, &delegated(2, 7, 1, 1)), refused);
        assert_eq!(held.get(NodeId::from_bytes([2; 16])).map(|member| &member.certificate), Some(&known));
        assert_eq!(take(&mut held, &delegated(3, 3, 1, 0)), refused);
        assert_eq!(take(&mut held, &issue(2, 2, 2, 1, 7)), Merge::Updated, "the authority's own word replaces it");
        let mut late = membership();
        late.merge_revocation(&revocation(1, 1, 1, NOW));
        assert_eq!(take(&mut late, &known), refused);
    }

    #[test]
    fn the_newer_certificate_holds_a_key() {
        let (old, new) = (issue(1, 5, 1, 0, 1), issue(2, 5, 2, 1, 2));
        let mut held = membership();
        assert_eq!(take(&mut held, &old), Merge::New);
        assert_eq!(take(&mut held, &new), Merge::New);
        assert_eq!(held.by_key(&keys(5).public().wireguard), Some(NodeId::from_bytes([2; 16])));
        assert_eq!(held.get(NodeId::from_bytes([1; 16])).map(Member::sequence), None, "the older one is out");
        assert_eq!(take(&mut held, &old), Merge::Refused(Refusal::KeyInUse));
        // Given in one second with one serial, by two copies of the authority: every node decides alike.
        let twins = [issue(3, 6, 3, 0, 1), issue(4, 6, 4, 0, 1)];
        for order in [[0, 1], [1, 0]] {
            let mut held = membership();
            order.into_iter().for_each(|at| assert_ne!(take(&mut held, &twins[at]), Merge::Known));
            assert_eq!(held.by_key(&keys(6).public().wireguard), Some(NodeId::from_bytes([4; 16])));
        }
    }

    #[test]
    fn a_record_needs_its_subject_and_the_key_that_is_certified() {
        let node = NodeId::from_bytes([1; 16]);
        let mut held = membership();
        assert_eq!(held.merge_record(node, &signed_record(1, 1, 3)), Merge::Refused(Refusal::Unknown));
        take(&mut held, &issue(1, 1, 1, 0, 1));
        assert_eq!(held.merge_record(node, &signed_record(1, 2, 3)), Merge::Refused(Refusal::Invalid), "by another");
        assert_eq!(held.merge_record(node, &signed_record(2, 1, 3)), Merge::Refused(Refusal::Invalid), "of another");
        assert_eq!(held.merge_record(node, &signed_record(1, 1, 3)), Merge::New);
        assert_eq!(held.merge_record(node, &signed_record(1, 1, 5)), Merge::Updated);
        assert_eq!(held.merge_record(node, &signed_record(1, 1, 4)), Merge::Known, "an older one");
        take(&mut held, &issue(1, 1, 1, 1, 1));
        assert_eq!(held.get(node).map(Member::sequence), Some(5), "a renewal keeps it");
        take(&mut held, &issue(1, 1, 4, 2, 2));
        assert_eq!(held.get(node).map(Member::sequence), Some(0), "another signing key does not vouch for it");
    }

    #[test]
    fn only_the_authority_moves_the_floor() {
        let mut held = membership();
        take(&mut held, &issue(1, 1, 1, 0, 1));
        assert_eq!(held.floor(), NOW);
        let far = NOW + DAY * 5000;
        let record = Record { issued: far, expires: far + DAY, ..record(1, 1).record().clone() };
        let record = SignedRecord::sign(&record, &keys(1).signing).unwrap();
        held.merge_record(NodeId::from_bytes([1; 16]), record.bytes());
        assert_eq!(take(&mut held, &delegated(2, 2, 1, 9)), Merge::New);
        assert_eq!(held.floor(), NOW, "neither a member nor its delegated signature");
        take(&mut held, &issue(3, 3, 3, 2, 1));
        assert_eq!(held.floor(), NOW + DAY * 2);
        held.merge_revocation(&revocation(4, 4, 4, NOW + DAY * 3));
        assert_eq!(held.floor(), NOW + DAY * 3);
        held.raise_floor(NOW);
        assert_eq!(held.floor(), NOW + DAY * 3);
    }

    #[test]
    fn an_ended_certificate_goes_after_the_grace_and_does_not_come_back() {
        let end = NOW + Term::OFFLINE;
        let signed = issue(1, 1, 1, 0, 1);
        let mut held = membership();
        take(&mut held, &signed);
        assert!(held.expire(end + EXPIRY_GRACE - Duration::from_secs(1)).is_empty());
        assert_eq!(held.expire(end + EXPIRY_GRACE), [NodeId::from_bytes([1; 16])]);
        let again = held.merge_certificate(signed.bytes(), end + EXPIRY_GRACE).0;
        assert_eq!(again, Merge::Refused(Refusal::Expired));
        assert_eq!((held.len(), held.digest()), (0, membership().digest()));
    }

    #[test]
    fn tables_are_bounded() {
        let fill = |number: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            NodeId::from_bytes(id)
        };
        let mut held = membership();
        take(&mut held, &issue(250, 50, 50, 0, 1));
        // Made by hand, since four thousand signatures prove nothing more.
        let filler = Member { certificate: issue(251, 51, 51, 0, 1), record: None };
        (1..MAX_MEMBERS as u32).for_each(|number| held.insert(fill(number), filler.clone()));
        assert_eq!(held.len(), MAX_MEMBERS);
        assert_eq!(take(&mut held, &issue(252, 52, 52, 0, 1)), Merge::Refused(Refusal::Full));
        assert_eq!(take(&mut held, &issue(250, 50, 50, 1, 1)), Merge::Updated, "members are still renewed");
        assert_eq!(take(&mut held, &issue(253, 50, 53, 2, 1)), Merge::New, "in the place of another with its key");
        assert_eq!(held.len(), MAX_MEMBERS);

        let one = SignedRevocation::verify(&revocation(1, 1, 1, NOW), &held.anchor).unwrap();
        (0..MAX_REVOCATIONS as u32).for_each(|number| drop(held.revocations.insert(fill(number), vec![one.clone()])));
        assert_eq!(held.merge_revocation(&revocation(254, 54, 54, NOW)).0, Merge::Refused(Refusal::Full));
        let mut held = membership();
        for key in 1..=MAX_REVOCATIONS_PER_NODE as u8 {
            assert_eq!(held.merge_revocation(&revocation(1, key, key, NOW)).0, Merge::New);
        }
        assert_eq!(held.merge_revocation(&revocation(1, 99, 99, NOW)).0, Merge::Refused(Refusal::Full));
    }

    #[test]
    fn buckets_divide_the_ids() {
        let mut next = 0_u128;
        for bucket in 0..BUCKETS {
            let (from, to) = bucket_range(bucket);
            assert_eq!(u128::from_be_bytes(*from.as_bytes()), next);
            assert_eq!((bucket_of(from), bucket_of(to)), (bucket, bucket));
            next = u128::from_be_bytes(*to.as_bytes()).wrapping_add(1);
        }
        assert_eq!(next, 0, "to the last id");
        assert_eq!(membership().range(bucket_range(1).1, bucket_range(1).0).count(), 0, "a range backwards is empty");
    }

    #[derive(Clone, Debug)]
    enum Object {
        Certificate(Vec<u8>),
        Record(NodeId, Vec<u8>),
        Revocation(Vec<u8>),
    }

    /// Renewals, new keys, keys that change hands, twins of one second, delegated ones, records of each, revocations.
    static POOL: LazyLock<Vec<Object>> = LazyLock::new(|| {
        let twin = Admission { tags: vec![], prefixes: vec![], serial: 1, ..admission(3) };
        let certificates = [
            issue(1, 1, 1, 0, 1),
            issue(1, 1, 1, 1, 1),
            issue(1, 5, 5, 3, 2),
            issue(2, 1, 2, 2, 3),
            issue(2, 2, 2, 4, 4),
            issue(3, 3, 3, 0, 1),
            authority().issue(&twin, &keys(3).public(), &Term::offline(NOW)).unwrap(),
            issue(4, 4, 4, 0, 1),
            issue(6, 6, 6, 0, 1),
            issue(7, 6, 7, 1, 2),
            issue(7, 4, 7, 2, 3),
            delegated(8, 8, 3, 0),
            delegated(8, 9, 3, 1),
        ];
        let record = |number, key, sequence| {
            Object::Record(NodeId::from_bytes([number; 16]), signed_record(number, key, sequence))
        };
        let mut pool: Vec<Object> = certificates.iter().map(|c| Object::Certificate(c.bytes().to_vec())).collect();
        pool.extend([record(1, 1, 1), record(1, 1, 2), record(1, 5, 1), record(3, 3, 4), record(3, 3, 2)]);
        pool.extend([record(2, 2, 1), record(4, 4, 1), record(7, 7, 1), record(8, 9, 1)]);
        for revoked in [revocation(4, 4, 4, NOW + DAY), revocation(4, 14, 4, NOW), revocation(10, 6, 10, NOW)] {
            pool.push(Object::Revocation(revoked));
        }
        pool
    });

    fn merge(held: &mut Membership, object: &Object) -> Merge {
        match object {
            Object::Certificate(bytes) => held.merge_certificate(bytes, NOW).0,
            Object::Record(node, bytes) => held.merge_record(*node, bytes),
            Object::Revocation(bytes) => held.merge_revocation(bytes).0,
        }
    }

    /// A second authority of the same mesh, and the anchor that trusts both.
    fn second() -> Authority {
        let secret = SigningSecret::generate(&mut ChaCha12Rng::seed_from_u64(77));
        let mut anchor = authority().anchor().clone();
        anchor.authorities.push(secret.public());
        Authority::from_parts(anchor, secret).unwrap()
    }

    #[test]
    fn each_authority_takes_out_only_whom_it_let_in() {
        let new = second();
        let mut held = Membership::new(new.anchor().clone());
        let old_two = issue(2, 2, 2, 0, 1);
        let old_three = issue(3, 3, 3, 0, 2);
        let bare = |number| Admission { prefixes: vec![], ..admission(number) };
        let new_three = new.issue(&bare(3), &keys(3).public(), &Term::offline(NOW + DAY)).unwrap();
        for signed in [&old_two, &old_three, &new_three] {
            held.merge_verified(signed.clone(), NOW);
        }
        let revoked = |by: &Authority, signed: &SignedCertificate| {
            by.revoke(&Revocation::of(signed.certificate(), NOW + DAY)).unwrap().bytes().to_vec()
        };
        let (node_two, node_three) = (old_two.certificate().node, old_three.certificate().node);
        let by_old = [revoked(&authority(), &old_two), revoked(&authority(), &old_three)];
        assert_eq!(held.merge_revocation(&by_old[0]), (Merge::New, vec![node_two]));
        assert_eq!(held.merge_revocation(&by_old[1]), (Merge::New, vec![]), "the new authority has certified it");
        assert_eq!(held.get(node_three).map(|member| &member.certificate), Some(&new_three));
        assert_eq!(held.merge_verified(old_three.clone(), NOW), Merge::Refused(Refusal::Revoked));
        assert!(!held.is_out(node_three) && held.is_revoked_key(&keys(3).public()), "but such keys do not join anew");
        // In the other order the same.
        let mut other = Membership::new(new.anchor().clone());
        by_old.iter().for_each(|bytes| drop(other.merge_revocation(bytes)));
        for signed in [&new_three, &old_three, &old_two] {
            other.merge_verified(signed.clone(), NOW);
        }
        assert_eq!(shown(&held), shown(&other));
        let by_new = revoked(&new, &new_three);
        assert_eq!(held.merge_revocation(&by_new), (Merge::New, vec![node_three]));
        assert_eq!(held.merge_revocation(&by_new), (Merge::Known, vec![]));
        assert!(held.is_out(node_three) && !held.is_out(node_two));
    }

    #[test]
    fn an_authority_goes_with_those_who_rest_on_it_and_its_revocations() {
        let new = second();
        let mut held = Membership::new(new.anchor().clone());
        let bare = |number| Admission { prefixes: vec![], ..admission(number) };
        let stays = new.issue(&bare(3), &keys(3).public(), &Term::offline(NOW)).unwrap();
        let goes = issue(2, 2, 2, 0, 1);
        let revocation = authority().revoke(&Revocation::of(issue(4, 4, 4, 0, 2).certificate(), NOW)).unwrap();
        held.merge_verified(stays.clone(), NOW);
        held.merge_verified(goes.clone(), NOW);
        held.merge_revocation(revocation.bytes());
        assert_eq!(held.set_authorities(vec![new.public()]), [goes.certificate().node]);
        assert_eq!((held.len(), held.revocations().count()), (1, 0));
        assert_eq!(held.merge_certificate(goes.bytes(), NOW).0, Merge::Refused(Refusal::Invalid));
        let mut alone = Membership::new(held.anchor().clone());
        alone.merge_verified(stays, NOW);
        assert_eq!(held.digest(), alone.digest(), "as if the other had never been");
    }

    /// Merges until nothing is news any more, as anti-entropy does.
    fn settle<'a>(held: &mut Membership, objects: impl Iterator<Item = &'a Object> + Clone) {
        for _ in 0..POOL.len() {
            let news = objects.clone().filter(|object| matches!(merge(held, object), Merge::New | Merge::Updated));
            if news.count() == 0 {
                return;
            }
        }
        panic!("merging has no end");
    }

    type Shown = (Vec<(NodeId, Vec<u8>, Option<Vec<u8>>)>, Vec<NodeId>, Vec<([u8; 32], [u8; 32])>, Digest, UnixTime);

    fn shown(held: &Membership) -> Shown {
        let members = held.members().map(|(node, member)| {
            (node, member.certificate.bytes().to_vec(), member.record.as_ref().map(|record| record.bytes().to_vec()))
        });
        let revoked_keys = held.revoked_keys.iter().copied().collect();
        (members.collect(), held.revoked_nodes().collect(), revoked_keys, held.digest(), held.floor())
    }

    /// Everything a membership would tell another.
    fn objects(held: &Membership) -> Vec<Object> {
        let revoked = held.revocations().map(|(_, signed)| Object::Revocation(signed.bytes().to_vec()));
        let certificates = held.members().map(|(_, m)| Object::Certificate(m.certificate.bytes().to_vec()));
        let records = held.members().filter_map(|(node, member)| {
            member.record.as_ref().map(|record| Object::Record(node, record.bytes().to_vec()))
        });
        revoked.chain(certificates).chain(records).collect()
    }

    fn of(chosen: &[usize]) -> Membership {
        let mut held = membership();
        settle(&mut held, chosen.iter().map(|at| &POOL[*at]));
        held
    }

    fn union(a: &Membership, b: &Membership) -> Membership {
        let mut held = membership();
        settle(&mut held, objects(a).iter().chain(&objects(b)));
        // What was heard and is not held any more may have raised it.
        held.raise_floor(a.floor().max(b.floor()));
        held
    }

    fn some() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::vec(0..POOL.len(), 0..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_order_of_hearing_does_not_matter(order in Just((0..POOL.len()).collect::<Vec<_>>()).prop_shuffle()) {
            let held = of(&order);
            let sorted = of(&(0..POOL.len()).collect::<Vec<_>>());
            prop_assert_eq!(shown(&held), shown(&sorted));
            prop_assert_eq!(shown(&union(&held, &held)), shown(&held), "what is known is no news");
        }

        #[test]
        fn merging_is_commutative_and_idempotent(a in some(), b in some()) {
            let (a, b) = (of(&a), of(&b));
            prop_assert_eq!(shown(&union(&a, &b)), shown(&union(&b, &a)));
            let both = union(&a, &b);
            prop_assert_eq!(shown(&union(&both, &a)), shown(&both));
            prop_assert_eq!(shown(&union(&both, &both)), shown(&both));
        }

        /// A sum of all sums, whatever was merged and removed on the way, so that equal knowledge is seen as equal.
        #[test]
        fn digests_follow_the_content(order in some()) {
            let held = of(&order);
            let mut again = membership();
            for object in objects(&held) {
                merge(&mut again, &object);
            }
            prop_assert_eq!(shown(&again).3, held.digest());
        }

        #[test]
        fn a_revocation_is_never_undone(order in proptest::collection::vec(0..POOL.len(), 0..60)) {
            let mut held = membership();
            let (mut nodes, mut keys) = (Vec::new(), Vec::new());
            for at in order {
                merge(&mut held, &POOL[at]);
                prop_assert!(nodes.iter().all(|node| held.revocation(*node).is_some() && held.get(*node).is_none()));
                prop_assert!(keys.iter().all(|key| held.revoked_keys.contains(key)));
                prop_assert!(held.members().all(|(_, member)| !held.is_revoked(&member.certificate)));
                nodes = held.revoked_nodes().collect();
                keys = held.revoked_keys.iter().copied().collect();
            }
        }
    }
}

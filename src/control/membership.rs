//! Who belongs to the mesh: certificates, records and revocations, and how a newer one replaces an older one.
//!
//! Merging is commutative and idempotent: whatever the order in which two nodes hear the same objects, they end with the same
//! membership. A node can speak only for itself (records carry its own signature), only the authority admits and revokes, and
//! a revocation is never undone.

use std::collections::BTreeMap;
use std::time::Duration;

use blake2::{Blake2s256, Digest as _};

use crate::identity::{
    Certificate, Issuer, NodeId, PublicKeys, SignedCertificate, SignedRecord, SignedRevocation, TrustAnchor, Validity,
    WireguardKey,
};
use crate::time::UnixTime;
use crate::wire::control::{BUCKETS, Digest, SummaryEntry};

/// Members at most, ourselves included: four times the largest mesh we plan for, and a bound on what a stolen authority key
/// can make us hold (some 4 MiB).
pub const MAX_MEMBERS: usize = 4096;
/// Revocations at most. Full means refused, and a problem in the status: the authority is then re-made.
pub const MAX_REVOCATIONS: usize = 16_384;

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
    revocations: BTreeMap<NodeId, SignedRevocation>,
    revoked_keys: BTreeMap<[u8; 32], NodeId>,
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
            revoked_keys: BTreeMap::new(),
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

    /// Returns the revocation of a node.
    pub fn revocation(&self, node: NodeId) -> Option<&SignedRevocation> {
        self.revocations.get(&node)
    }

    /// All revocations in the order of node ids.
    pub fn revocations(&self) -> impl Iterator<Item = (NodeId, &SignedRevocation)> {
        self.revocations.iter().map(|(node, revocation)| (*node, revocation))
    }

    /// Whether the authority has revoked the subject of a certificate, by its id or by either of its keys.
    pub fn is_revoked(&self, certificate: &Certificate) -> bool {
        self.revocations.contains_key(&certificate.node) || self.is_revoked_key(&certificate.keys())
    }

    /// Whether either key belonged to a node that was revoked.
    pub fn is_revoked_key(&self, keys: &PublicKeys) -> bool {
        self.revoked_keys.contains_key(keys.wireguard.as_bytes())
            || self.revoked_keys.contains_key(keys.verifying.as_bytes())
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
        if self.is_revoked(certificate) {
            return Merge::Refused(Refusal::Revoked);
        }
        // What a revoked member issued for an authority counts only where it was known before: a thief of its keys may still
        // issue, but evicting those whom it admitted honestly is for the operator to decide.
        if let Issuer::Delegate(key) = signed.issuer()
            && self.revoked_keys.contains_key(key.as_bytes())
            && !self.members.contains_key(&node)
        {
            return Merge::Refused(Refusal::Revoked);
        }
        let at = wall.max(self.floor);
        if signed.validity(at - EXPIRY_GRACE) == Validity::Expired {
            return Merge::Refused(Refusal::Expired);
        }
        let version = version(certificate);
        if self.members.get(&node).is_some_and(|old| version <= self::version(old.certificate())) {
            return Merge::Known;
        }
        if let Some(holder) = self.by_key.get(&certificate.wireguard_key).copied().filter(|holder| *holder != node) {
            let newer = self.members.get(&holder).is_some_and(|old| version > self::version(old.certificate()));
            if !newer {
                return Merge::Refused(Refusal::KeyInUse);
            }
            self.remove(holder);
        }
        let known = self.members.contains_key(&node);
        if !known && self.members.len() >= MAX_MEMBERS {
            return Merge::Refused(Refusal::Full);
        }
        if matches!(signed.issuer(), Issuer::Authority(_)) {
            self.floor = self.floor.max(certificate.issued);
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
    pub fn merge_revocation(&mut self, bytes: &[u8]) -> (Merge, Vec<NodeId>) {
        let Ok(signed) = SignedRevocation::verify(bytes, &self.anchor) else {
            return (Merge::Refused(Refusal::Invalid), Vec::new());
        };
        let revocation = signed.revocation();
        let node = revocation.node;
        if self.revocations.contains_key(&node) {
            return (Merge::Known, Vec::new());
        }
        if self.revocations.len() >= MAX_REVOCATIONS {
            return (Merge::Refused(Refusal::Full), Vec::new());
        }
        self.floor = self.floor.max(revocation.at);
        self.revoked_keys.insert(*revocation.wireguard_key.as_bytes(), node);
        self.revoked_keys.insert(*revocation.verifying_key.as_bytes(), node);
        self.revocation_sum = self.revocation_sum.wrapping_add(sum(node.as_bytes(), &[]));
        self.revocations.insert(node, signed);
        let gone: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| self.is_revoked(member.certificate()))
            .map(|(node, _)| *node)
            .collect();
        for node in &gone {
            self.remove(*node);
        }
        (Merge::New, gone)
    }

    /// Removes the members whose certificate ended more than the grace ago, and names them.
    pub fn expire(&mut self, wall: UnixTime) -> Vec<NodeId> {
        let at = wall.max(self.floor) - EXPIRY_GRACE;
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

/// What orders two certificates of one node: the time of issue, then the serial.
fn version(certificate: &Certificate) -> (UnixTime, u64) {
    (certificate.issued, certificate.serial)
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

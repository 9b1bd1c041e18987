//! What the engine remembers across restarts: enough to find the mesh again with every bootstrap node dead.
//!
//! Nothing in a snapshot is trusted because it is in a snapshot: every object is verified again when it is restored, so a
//! tampered or mixed-up file can make the node forget, never believe.

use std::net::SocketAddr;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::Engine;
use super::contact::Contact;
use crate::identity::NodeId;
use crate::time::{Instant, UnixTime};

/// The format's version. A newer one is refused whole rather than half understood.
const VERSION: u16 = 1;

/// The state as it is written to disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Snapshot {
    #[n(0)]
    version: u16,
    /// The sequence of our newest record.
    #[n(1)]
    sequence: u64,
    /// The time floor, seconds since 1970.
    #[n(2)]
    floor: u64,
    #[n(3)]
    certificates: Vec<ByteVec>,
    #[n(4)]
    records: Vec<ByteVec>,
    #[n(5)]
    revocations: Vec<ByteVec>,
    #[n(6)]
    contacts: Vec<SavedContact>,
}

/// Where a peer was reached last.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct SavedContact {
    #[cbor(n(0), with = "minicbor::bytes")]
    node: [u8; 16],
    /// `address:port` in text: a state file is read by people, too.
    #[n(1)]
    endpoint: String,
}

/// Why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It does not decode.
    #[error("the state does not decode: {0}")]
    Malformed(String),
    /// A newer meshd wrote it.
    #[error("the state has version {0}; this meshd reads version {VERSION}")]
    Version(u16),
}

impl Snapshot {
    /// Encodes the snapshot.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Encoding into memory cannot fail; an empty file would be set aside at the next start, not believed.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Decodes a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`]; the caller sets the file aside and starts without.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot: Snapshot =
            minicbor::decode(bytes).map_err(|error| SnapshotError::Malformed(error.to_string()))?;
        if snapshot.version != VERSION {
            return Err(SnapshotError::Version(snapshot.version));
        }
        Ok(snapshot)
    }
}

impl Engine {
    /// Returns what must survive a restart.
    pub fn snapshot(&self) -> Snapshot {
        let members: Vec<_> = self.membership.members().filter(|(node, _)| *node != self.node).collect();
        let bytes = |bytes: &[u8]| ByteVec::from(bytes.to_vec());
        Snapshot {
            version: VERSION,
            sequence: self.sequence,
            floor: self.membership.floor().as_secs(),
            certificates: members.iter().map(|(_, member)| bytes(member.certificate.bytes())).collect(),
            records: members
                .iter()
                .filter_map(|(_, member)| member.record.as_ref().map(|record| bytes(record.bytes())))
                .collect(),
            revocations: self.membership.revocations().map(|(_, revocation)| bytes(revocation.bytes())).collect(),
            contacts: self
                .peers
                .iter()
                .filter(|(_, peer)| peer.contact.met())
                .filter_map(|(node, peer)| {
                    let endpoint = peer.contact.current()?.to_string();
                    Some(SavedContact { node: *node.as_bytes(), endpoint })
                })
                .collect(),
        }
    }

    pub(super) fn restore(&mut self, snapshot: Snapshot, now: Instant, wall: UnixTime) {
        self.sequence = snapshot.sequence;
        self.membership.raise_floor(UnixTime::from_secs(snapshot.floor));
        // Certificates first: what a member that was revoked since had issued was known before, and stays.
        for certificate in &snapshot.certificates {
            self.membership.merge_certificate(certificate, wall);
        }
        for revocation in &snapshot.revocations {
            self.membership.merge_revocation(revocation);
        }
        for record in &snapshot.records {
            if let Some(node) = crate::identity::SignedRecord::peek_node(record) {
                self.membership.merge_record(node, record);
            }
        }
        for saved in &snapshot.contacts {
            if let Ok(endpoint) = saved.endpoint.parse::<SocketAddr>() {
                let mut contact = Contact::new(true, now);
                contact.set_observed(endpoint);
                self.remembered.insert(NodeId::from_bytes(saved.node), contact);
            }
        }
        self.last_change = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{OwnNode, Settings};
    use crate::identity::testing::{NOW, admission, authority, certificate, keys};
    use crate::identity::{DelegationTerms, InviteBook, Revocation, SignedCertificate, Term};
    use std::time::Duration;

    fn engine(certificate: SignedCertificate, number: u8, snapshot: Option<Snapshot>) -> Engine {
        let anchor = authority().anchor().clone();
        let (keys, invites) = (keys(number), InviteBook::default());
        let own = OwnNode { keys, certificate, anchor, authority: None, invites };
        Engine::new(own, Settings::bare(), snapshot, [9; 32], Instant::ZERO, NOW)
    }

    /// The certificate of node `number` that node 1 issued for the authority.
    fn delegated(number: u8) -> SignedCertificate {
        let day = Duration::from_secs(86_400);
        let delegate = keys(1).public().verifying;
        let terms = DelegationTerms { delegate, now: NOW, window: 10 * day, certificate: 100 * day };
        let delegation = authority().delegate(&admission(number), &terms).unwrap();
        let (anchor, term) = (authority().anchor().clone(), Term::offline(NOW));
        delegation.issue(&admission(number), &keys(number).public(), &term, &anchor, &keys(1).signing).unwrap()
    }

    fn revoke(engine: &mut Engine, number: u8, wireguard: u8) {
        let wireguard_key = keys(wireguard).public().wireguard;
        let revocation = Revocation { wireguard_key, ..Revocation::of(certificate(number).certificate(), NOW) };
        let signed = authority().revoke(&revocation).unwrap();
        engine.accept_revocation(signed.bytes(), Instant::ZERO).unwrap();
    }

    fn restarted(engine: &Engine, number: u8) -> Engine {
        let saved = Snapshot::from_bytes(&engine.snapshot().to_bytes()).unwrap();
        self::engine(engine.certificate().clone(), number, Some(saved))
    }

    fn members(engine: &Engine) -> Vec<u8> {
        engine.membership().members().map(|(node, _)| node.as_bytes()[0]).collect()
    }

    #[test]
    fn what_a_member_let_in_outlives_its_revocation_and_a_restart() {
        let mut engine = engine(delegated(4), 4, None);
        for signed in [certificate(1), delegated(2), certificate(3)] {
            engine.accept_certificate(signed.bytes(), Instant::ZERO, NOW).unwrap();
        }
        revoke(&mut engine, 1, 1);
        assert_eq!(members(&engine), [2, 3, 4]);
        let mut again = restarted(&engine, 4);
        assert_eq!(members(&again), [2, 3, 4], "node 2, and this node, were known before");
        assert!(again.membership().get(again.node()).is_some_and(|member| member.record.is_some()));
        assert!(again.accept_certificate(delegated(5).bytes(), Instant::ZERO, NOW).is_err(), "node 5 was not");
    }

    #[test]
    fn every_revocation_outlives_a_restart() {
        let mut engine = engine(certificate(4), 4, None);
        revoke(&mut engine, 1, 1);
        revoke(&mut engine, 1, 7);
        let again = restarted(&engine, 4);
        assert_eq!(again.membership().revocations().count(), 2);
        for key in [1, 7] {
            assert!(again.membership().is_revoked_key(&keys(key).public()), "key {key}");
        }
    }

    #[test]
    fn a_node_that_was_revoked_knows_it_after_a_restart() {
        let mut engine = engine(certificate(4), 4, None);
        engine.accept_certificate(certificate(2).bytes(), Instant::ZERO, NOW).unwrap();
        revoke(&mut engine, 4, 4);
        let again = restarted(&engine, 4);
        assert!(again.view(Instant::ZERO).revoked);
        assert_eq!(members(&again), [2]);
    }
}

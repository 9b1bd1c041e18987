//! Delegations: an authority that stays offline lets one member issue one node's certificate, and nothing else.

use std::time::Duration;

use minicbor::{Decode, Encode};

use super::admission::Admission;
use super::anchor::TrustAnchor;
use super::armor::{self, ArmorKind};
use super::certificate::{Certificate, SignedCertificate, Term};
use super::cose::{self, Envelope, ObjectError, ObjectKind};
use super::id::MeshId;
use super::key::{PublicKeys, SigningSecret, VerifyingKey};
use crate::time::UnixTime;

const KIND: ObjectKind = ObjectKind::Delegation;

/// What a delegation says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Delegation {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// The key that may issue.
    #[n(1)]
    pub delegate: VerifyingKey,
    /// The hash of the one admission it may issue: node, name, addresses, prefixes, tags, permissions and serial.
    #[cbor(n(2), with = "minicbor::bytes")]
    admission: [u8; 32],
    /// The first second in which it may issue.
    #[n(3)]
    pub not_before: UnixTime,
    /// The first second in which it may no longer issue.
    #[n(4)]
    pub not_after: UnixTime,
    /// The latest end of the certificate.
    #[n(5)]
    pub certificate_not_after: UnixTime,
}

/// A delegation whose signature and limits were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDelegation {
    delegation: Delegation,
    authority: VerifyingKey,
    bytes: Vec<u8>,
}

/// What an authority puts into a delegation besides the admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelegationTerms {
    /// The member's key that may issue.
    pub delegate: VerifyingKey,
    /// The present.
    pub now: UnixTime,
    /// How long from now it may issue.
    pub window: Duration,
    /// How long from the end of the window the certificate may hold at most.
    pub certificate: Duration,
}

impl Delegation {
    /// The longest window: as long as the longest invite.
    pub const LONGEST: Duration = Duration::from_secs(30 * 86_400);
}

impl SignedDelegation {
    /// Checks signature, encoding and limits against the mesh's trust anchor; not the time.
    ///
    /// # Errors
    /// Anything but exactly what an authority of this mesh signed.
    pub fn verify(bytes: &[u8], anchor: &TrustAnchor) -> Result<Self, ObjectError> {
        let envelope = Envelope::open(KIND, bytes)?;
        let delegation: Delegation = envelope.decode()?;
        if delegation.mesh != anchor.mesh {
            return Err(ObjectError::Foreign { kind: KIND, what: "mesh" });
        }
        let window = delegation.not_after.saturating_since(delegation.not_before);
        if delegation.not_before >= delegation.not_after || window > Delegation::LONGEST + Term::BACKDATING {
            return Err(ObjectError::value(KIND, "window", "is empty, or longer than 30 days"));
        }
        if delegation.certificate_not_after.saturating_since(delegation.not_after) > Certificate::LONGEST {
            return Err(ObjectError::value(KIND, "certificate term", "is longer than three years"));
        }
        let authority = anchor.authorities.iter().find(|key| envelope.signed_by(key)).copied();
        let authority = authority.ok_or(ObjectError::Signature { kind: KIND, signer: "an authority of this mesh" })?;
        Ok(Self { delegation, authority, bytes: bytes.to_vec() })
    }

    /// Makes a delegation for one admission.
    pub(super) fn sign(
        admission: &Admission,
        terms: &DelegationTerms,
        anchor: &TrustAnchor,
        secret: &SigningSecret,
    ) -> Result<Self, ObjectError> {
        let admission = admission.clone().ordered();
        admission.check(anchor)?;
        let not_after = terms.now + terms.window;
        let delegation = Delegation {
            mesh: anchor.mesh,
            delegate: terms.delegate,
            admission: admission.digest(anchor),
            not_before: terms.now - Term::BACKDATING,
            not_after,
            certificate_not_after: not_after + terms.certificate,
        };
        Self::verify(&cose::sign(KIND, &delegation, secret)?, anchor)
    }

    /// Issues the certificate it permits, with the delegate's secret.
    ///
    /// # Errors
    /// Another admission, another secret than the delegate's, a time outside the window.
    pub fn issue(
        &self,
        admission: &Admission,
        keys: &PublicKeys,
        term: &Term,
        anchor: &TrustAnchor,
        secret: &SigningSecret,
    ) -> Result<SignedCertificate, ObjectError> {
        let mut term = *term;
        term.not_after = term.not_after.min(self.delegation.certificate_not_after);
        let certificate = Certificate::assemble(admission, keys, &term, anchor, Some(self));
        SignedCertificate::sign(&certificate, anchor, secret)
    }

    /// Checks that a certificate is the one this delegation permits.
    pub(super) fn check_certificate(&self, certificate: &Certificate, anchor: &TrustAnchor) -> Result<(), ObjectError> {
        let error = |field, problem| Err(ObjectError::value(ObjectKind::Certificate, field, problem));
        let delegation = &self.delegation;
        if certificate.admission().digest(anchor) != delegation.admission {
            return error("admission", "is not the one its delegation permits");
        }
        if certificate.issued < delegation.not_before || certificate.issued >= delegation.not_after {
            return error("time of signing", "is outside its delegation's window");
        }
        if certificate.not_after > delegation.certificate_not_after {
            return error("term", "is longer than its delegation permits");
        }
        if certificate.verifying_key == delegation.delegate {
            return error("key", "is the delegate's own: a node does not admit itself");
        }
        Ok(())
    }

    /// Returns what it says.
    pub fn delegation(&self) -> &Delegation {
        &self.delegation
    }

    /// Returns the authority that signed it.
    pub fn authority(&self) -> VerifyingKey {
        self.authority
    }

    /// Returns the exact signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the delegation as text.
    pub fn to_armor(&self) -> String {
        armor::write(ArmorKind::Delegation, &self.bytes)
    }

    /// Reads and verifies a delegation's text.
    ///
    /// # Errors
    /// As [`SignedDelegation::verify`], and text that is no delegation.
    pub fn from_armor(text: &str, anchor: &TrustAnchor) -> Result<Self, ObjectError> {
        Self::verify(&armor::read(ArmorKind::Delegation, text)?, anchor)
    }
}

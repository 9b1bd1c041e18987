//! The authority: the key that admits nodes, with the mesh it admits them to.

use rand_core::CryptoRngCore;

use super::admission::Admission;
use super::anchor::{AnchorError, TrustAnchor};
use super::certificate::{Certificate, SignedCertificate, Term};
use super::cose::ObjectError;
use super::delegation::{DelegationTerms, SignedDelegation};
use super::id::MeshId;
use super::key::{PublicKeys, SigningSecret, VerifyingKey};
use super::revocation::{Revocation, SignedRevocation};
use ipnet::Ipv4Net;

/// The authority of a mesh. Lives in one file, best offline;
pub struct Authority {
    pub(super) anchor: TrustAnchor,
    pub(super) secret: SigningSecret,
}

impl Authority {
    /// Makes a new mesh and its first authority.
    ///
    /// # Errors
    /// A name or range that no mesh can have.
    pub fn generate(mesh_name: &str, overlay_v4: Ipv4Net, rng: &mut impl CryptoRngCore) -> Result<Self, AnchorError> {
        let secret = SigningSecret::generate(rng);
        let anchor = TrustAnchor::new(MeshId::generate(rng), mesh_name, overlay_v4, vec![secret.public()])?;
        Ok(Self { anchor, secret })
    }

    /// Makes an authority from a secret and the anchor that names its key.
    ///
    /// # Errors
    /// An anchor that breaks a rule, or does not name the key.
    pub fn from_parts(anchor: TrustAnchor, secret: SigningSecret) -> Result<Self, AnchorError> {
        anchor.check()?;
        if !anchor.authorities.contains(&secret.public()) {
            return Err(AnchorError { field: "authorities", problem: "do not name this authority's key".into() });
        }
        Ok(Self { anchor, secret })
    }

    /// Returns what nodes must know to believe it.
    pub fn anchor(&self) -> &TrustAnchor {
        &self.anchor
    }

    /// Returns its public key.
    pub fn public(&self) -> VerifyingKey {
        self.secret.public()
    }

    /// Issues a certificate.
    ///
    /// # Errors
    /// An admission or term that breaks a rule.
    pub fn issue(
        &self,
        admission: &Admission,
        keys: &PublicKeys,
        term: &Term,
    ) -> Result<SignedCertificate, ObjectError> {
        let certificate = Certificate::assemble(admission, keys, term, &self.anchor, None);
        SignedCertificate::sign(&certificate, &self.anchor, &self.secret)
    }

    /// Lets a member issue the certificate of one admission.
    ///
    /// # Errors
    /// An admission or terms that break a rule.
    pub fn delegate(&self, admission: &Admission, terms: &DelegationTerms) -> Result<SignedDelegation, ObjectError> {
        SignedDelegation::sign(admission, terms, &self.anchor, &self.secret)
    }

    /// Takes a node out.
    ///
    /// # Errors
    /// A revocation for another mesh.
    pub fn revoke(&self, revocation: &Revocation) -> Result<SignedRevocation, ObjectError> {
        SignedRevocation::sign(revocation, &self.anchor, &self.secret)
    }
}

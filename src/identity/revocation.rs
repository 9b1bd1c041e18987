//! Revocations: an authority takes a node out, for good.

use minicbor::{Decode, Encode};

use super::anchor::TrustAnchor;
use super::armor::{self, ArmorKind};
use super::certificate::Certificate;
use super::cose::{self, Envelope, ObjectError, ObjectKind};
use super::id::{MeshId, NodeId};
use super::key::{SigningSecret, VerifyingKey, WireguardKey};
use super::name::NodeName;
use crate::time::UnixTime;

const KIND: ObjectKind = ObjectKind::Revocation;

/// What a revocation says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Revocation {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// The node that is out.
    #[n(1)]
    pub node: NodeId,
    /// Its tunnel key, which is out under any name.
    #[n(2)]
    pub wireguard_key: WireguardKey,
    /// Its signing key, which is out under any name.
    #[n(3)]
    pub verifying_key: VerifyingKey,
    /// Its name, for people; the name itself may be given to another node.
    #[n(4)]
    pub name: NodeName,
    /// When it was revoked.
    #[n(5)]
    pub at: UnixTime,
    /// When its last certificate expires: until then the revocation must be remembered.
    #[n(6)]
    pub not_after: UnixTime,
}

/// A revocation whose signature was checked. Two may differ in bytes and take out the same node; both hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRevocation {
    revocation: Revocation,
    authority: VerifyingKey,
    bytes: Box<[u8]>,
}

impl Revocation {
    /// The revocation of the node that has this certificate.
    pub fn of(certificate: &Certificate, at: UnixTime) -> Self {
        Self {
            mesh: certificate.mesh,
            node: certificate.node,
            wireguard_key: certificate.wireguard_key,
            verifying_key: certificate.verifying_key,
            name: certificate.name.clone(),
            at,
            not_after: certificate.not_after,
        }
    }

    /// Whether it takes out the node of this certificate: by node id, or by either key.
    pub fn refuses(&self, certificate: &Certificate) -> bool {
        self.node == certificate.node
            || self.wireguard_key == certificate.wireguard_key
            || self.verifying_key == certificate.verifying_key
    }
}

impl SignedRevocation {
    /// Checks signature and encoding against the mesh's trust anchor.
    ///
    /// # Errors
    /// Anything but exactly what an authority of this mesh signed.
    pub fn verify(bytes: &[u8], anchor: &TrustAnchor) -> Result<Self, ObjectError> {
        let envelope = Envelope::open(KIND, bytes)?;
        let revocation: Revocation = envelope.decode()?;
        if revocation.mesh != anchor.mesh {
            return Err(ObjectError::Foreign { kind: KIND, what: "mesh" });
        }
        let authority = anchor.authorities.iter().find(|key| envelope.signed_by(key)).copied();
        let authority = authority.ok_or(ObjectError::Signature { kind: KIND, signer: "an authority of this mesh" })?;
        Ok(Self { revocation, authority, bytes: bytes.into() })
    }

    /// Signs a revocation.
    pub(super) fn sign(
        revocation: &Revocation,
        anchor: &TrustAnchor,
        secret: &SigningSecret,
    ) -> Result<Self, ObjectError> {
        Self::verify(&cose::sign(KIND, revocation, secret)?, anchor)
    }

    /// Returns what it says.
    pub fn revocation(&self) -> &Revocation {
        &self.revocation
    }

    /// Returns the authority that signed it. It takes out what that authority let in, and nothing that another one did.
    pub fn authority(&self) -> VerifyingKey {
        self.authority
    }

    /// Returns the exact signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the revocation file.
    pub fn to_armor(&self) -> String {
        armor::write(ArmorKind::Revocation, &self.bytes)
    }

    /// Reads and verifies a revocation file.
    ///
    /// # Errors
    /// As [`SignedRevocation::verify`], and text that is no revocation file.
    pub fn from_armor(text: &str, anchor: &TrustAnchor) -> Result<Self, ObjectError> {
        Self::verify(&armor::read(ArmorKind::Revocation, text)?, anchor)
    }
}

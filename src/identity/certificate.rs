//! Certificates: the authority's word on who a node is, where it lives in the overlay and what it may do.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use minicbor::bytes::ByteVec;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};

use super::admission::Admission;
use super::anchor::TrustAnchor;
use super::armor::{self, ArmorKind};
use super::cose::{self, Envelope, ObjectError, ObjectKind};
use super::delegation::SignedDelegation;
use super::id::{MeshId, NodeId};
use super::key::{PublicKeys, SigningSecret, VerifyingKey, WireguardKey};
use super::name::{NodeName, Tag};
use super::share::Shares;
use crate::time::UnixTime;

const KIND: ObjectKind = ObjectKind::Certificate;

/// What a certificate says. Read from a [`SignedCertificate`], it is true; alone it is only data.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Certificate {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// The node, the same across its certificates.
    #[n(1)]
    pub node: NodeId,
    /// The node's name.
    #[n(2)]
    pub name: NodeName,
    /// The key of its tunnels.
    #[n(3)]
    pub wireguard_key: WireguardKey,
    /// The key of its signatures.
    #[n(4)]
    pub verifying_key: VerifyingKey,
    /// Its IPv4 overlay address.
    #[cbor(n(5), with = "super::cbor::octets")]
    pub address_v4: Ipv4Addr,
    /// Its IPv6 overlay address, which follows from the other.
    #[cbor(n(6), with = "super::cbor::octets")]
    pub address_v6: Ipv6Addr,
    /// The mesh's IPv4 range.
    #[cbor(n(7), with = "super::cbor::octets")]
    pub overlay_v4: Ipv4Net,
    /// The mesh's IPv6 range.
    #[cbor(n(8), with = "super::cbor::octets")]
    pub overlay_v6: Ipv6Net,
    /// Networks behind it that it may carry; ascending, disjoint, outside the overlay.
    #[cbor(n(9), with = "super::cbor::octets_list")]
    pub prefixes: Vec<IpNet>,
    /// Its tags, ascending.
    #[n(10)]
    pub tags: Vec<Tag>,
    /// What else it may do.
    #[n(11)]
    pub permissions: Permissions,
    /// When it was signed; never after a reader's present, give or take the clocks.
    #[n(12)]
    pub issued: UnixTime,
    /// The first second in which it holds.
    #[n(13)]
    pub not_before: UnixTime,
    /// The first second in which it no longer holds.
    #[n(14)]
    pub not_after: UnixTime,
    /// Of two certificates of one node the one issued later holds; of one second, the one with the higher serial.
    #[n(15)]
    pub serial: u64,
    /// The delegation under which a member issued it; absent where an authority did.
    #[n(16)]
    delegation: Option<ByteVec>,
    /// Which of its prefixes other nodes may carry as well.
    #[n(17)]
    pub shares: Shares,
}

/// What a node may do beyond being reached. Written and kept, but not asked for yet: whoever holds the authority's key renews,
/// and there are no relays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// It may answer joins and renewals (with the authority's key, or under delegations).
    pub authority: bool,
    /// Others may send through it.
    pub relay: bool,
}

/// A certificate's place in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It holds only later, or the clock is behind.
    NotYet,
    /// It holds.
    Valid,
    /// It no longer holds.
    Expired,
}

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The present.
    pub issued: UnixTime,
    /// The first second.
    pub not_before: UnixTime,
    /// The first second no longer.
    pub not_after: UnixTime,
}

/// Who signed a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// An authority of the mesh.
    Authority(VerifyingKey),
    /// A member, under a delegation of an authority. Where that member is revoked, its key may be a thief's: what it issued
    /// counts only where it was known before.
    Delegate(VerifyingKey),
}

/// A certificate whose signatures, shape and limits were checked. Cheap to clone.
#[derive(Clone)]
pub struct SignedCertificate(Arc<Inner>);

struct Inner {
    certificate: Certificate,
    issuer: Issuer,
    root: VerifyingKey,
    bytes: Box<[u8]>,
}

impl Certificate {
    /// The most prefixes of one node: a router of a site has few; more belong behind a shorter prefix.
    pub const MAX_PREFIXES: usize = 16;
    /// The most tags of one node.
    pub const MAX_TAGS: usize = 16;
    /// How long one may hold at most, from its signing: three years, for hosts nobody logs in to. Theft of a key is
    /// answered by revocation, which must be remembered as long as this.
    pub const LONGEST: Duration = Duration::from_secs(3 * 366 * 86_400);

    /// Returns what the authority granted, without keys and times.
    pub fn admission(&self) -> Admission {
        Admission {
            node: self.node,
            name: self.name.clone(),
            address_v4: self.address_v4,
            prefixes: self.prefixes.clone(),
            shares: self.shares.clone(),
            tags: self.tags.clone(),
            permissions: self.permissions,
            serial: self.serial,
        }
    }

    /// Returns both public keys.
    pub fn keys(&self) -> PublicKeys {
        PublicKeys { wireguard: self.wireguard_key, verifying: self.verifying_key }
    }

    /// Says whether it holds at `at`.
    pub fn validity(&self, at: UnixTime) -> Validity {
        match at {
            _ if at < self.not_before => Validity::NotYet,
            _ if at >= self.not_after => Validity::Expired,
            _ => Validity::Valid,
        }
    }

    /// Puts a certificate together; [`Certificate::check`] says whether it may be signed.
    pub(super) fn assemble(
        admission: &Admission,
        keys: &PublicKeys,
        term: &Term,
        anchor: &TrustAnchor,
        delegation: Option<&SignedDelegation>,
    ) -> Self {
        let admission = admission.clone().ordered();
        Self {
            mesh: anchor.mesh,
            node: admission.node,
            name: admission.name,
            wireguard_key: keys.wireguard,
            verifying_key: keys.verifying,
            address_v4: admission.address_v4,
            address_v6: anchor.address_v6(admission.address_v4),
            overlay_v4: anchor.overlay_v4,
            overlay_v6: anchor.overlay_v6,
            prefixes: admission.prefixes,
            tags: admission.tags,
            permissions: admission.permissions,
            issued: term.issued,
            not_before: term.not_before,
            not_after: term.not_after,
            serial: admission.serial,
            delegation: delegation.map(|delegation| ByteVec::from(delegation.bytes().to_vec())),
            shares: admission.shares,
        }
    }

    /// Checks everything but signatures.
    fn check(&self, anchor: &TrustAnchor) -> Result<(), ObjectError> {
        if self.mesh != anchor.mesh {
            return Err(ObjectError::Foreign { kind: KIND, what: "mesh" });
        }
        if (self.overlay_v4, self.overlay_v6) != (anchor.overlay_v4, anchor.overlay_v6) {
            return Err(ObjectError::Foreign { kind: KIND, what: "overlay range" });
        }
        self.admission().check(anchor)?;
        if self.address_v6 != anchor.address_v6(self.address_v4) {
            return Err(ObjectError::value(KIND, "IPv6 address", "does not follow from its IPv4 address"));
        }
        if self.not_before > self.issued || self.issued >= self.not_after {
            return Err(ObjectError::value(KIND, "term", "does not contain the time of signing"));
        }
        if self.issued.saturating_since(self.not_before) > Term::MAX_BACKDATING {
            return Err(ObjectError::value(KIND, "term", "begins too long before the signing"));
        }
        if self.not_after.saturating_since(self.issued) > Certificate::LONGEST {
            return Err(ObjectError::value(KIND, "term", "is longer than three years"));
        }
        Ok(())
    }
}

impl Term {
    /// How long a certificate signed by hand holds: a year, since renewing takes a hand again.
    pub const OFFLINE: Duration = Duration::from_secs(365 * 86_400);
    /// How long a certificate signed by a running node holds: 30 days, since renewal is automatic from half of it, and
    /// a mesh whose authority is away for two weeks must not fall apart.
    pub const ONLINE: Duration = Duration::from_secs(30 * 86_400);
    /// How far the beginning lies before the signing. Clocks more than a day slow are common enough that 24 h would
    /// lock hosts out; one hour more covers daylight-saving mistakes on top.
    pub const BACKDATING: Duration = Duration::from_secs(25 * 3600);
    /// The furthest beginning accepted, so that nobody can sign for the past.
    pub const MAX_BACKDATING: Duration = Duration::from_secs(48 * 3600);

    /// The term of a certificate signed by hand.
    pub fn offline(now: UnixTime) -> Self {
        Self::lasting(now, Self::OFFLINE)
    }

    /// The term of a certificate signed by a running node.
    pub fn online(now: UnixTime) -> Self {
        Self::lasting(now, Self::ONLINE)
    }

    /// A term that ends `duration` from now.
    pub fn lasting(now: UnixTime, duration: Duration) -> Self {
        Self { issued: now, not_before: now - Self::BACKDATING, not_after: now + duration }
    }
}

impl SignedCertificate {
    /// Checks signatures, encoding and limits against the mesh's trust anchor; not the time, see
    /// [`SignedCertificate::validity`].
    ///
    /// # Errors
    /// Anything but exactly what an authority of this mesh, or a member under its delegation, signed.
    pub fn verify(bytes: &[u8], anchor: &TrustAnchor) -> Result<Self, ObjectError> {
        let envelope = Envelope::open(KIND, bytes)?;
        let certificate: Certificate = envelope.decode()?;
        certificate.check(anchor)?;
        let signed = match &certificate.delegation {
            Some(delegation) => {
                let delegation = SignedDelegation::verify(delegation, anchor)?;
                delegation.check_certificate(&certificate, anchor)?;
                let delegate = delegation.delegation().delegate;
                envelope.signed_by(&delegate).then(|| (Issuer::Delegate(delegate), delegation.authority()))
            }
            None => {
                let key = anchor.authorities.iter().find(|key| envelope.signed_by(key)).copied();
                key.map(|key| (Issuer::Authority(key), key))
            }
        };
        let signer = "an authority of this mesh or its delegate";
        let (issuer, root) = signed.ok_or(ObjectError::Signature { kind: KIND, signer })?;
        Ok(Self(Arc::new(Inner { certificate, issuer, root, bytes: bytes.into() })))
    }

    /// Checks and signs a certificate.
    pub(super) fn sign(
        certificate: &Certificate,
        anchor: &TrustAnchor,
        secret: &SigningSecret,
    ) -> Result<Self, ObjectError> {
        let bytes = cose::sign(KIND, certificate, secret)?;
        // Read back as a stranger would: what we issue is what everyone accepts.
        Self::verify(&bytes, anchor)
    }

    /// Says whose certificate the bytes claim to be, so that a copy of one that is held is recognised cheaply. Nothing else is
    /// checked.
    pub fn peek_node(bytes: &[u8]) -> Option<NodeId> {
        Envelope::open(KIND, bytes).and_then(|envelope| envelope.decode::<Certificate>()).ok().map(|shown| shown.node)
    }

    /// Returns what it says.
    pub fn certificate(&self) -> &Certificate {
        &self.0.certificate
    }

    /// Returns the exact signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Returns who signed it.
    pub fn issuer(&self) -> Issuer {
        self.0.issuer
    }

    /// Returns the authority whose word it rests on: that of its issuer, or of the delegation under which a member issued it.
    pub fn root(&self) -> VerifyingKey {
        self.0.root
    }

    /// Says whether it holds at `at`.
    pub fn validity(&self, at: UnixTime) -> Validity {
        self.0.certificate.validity(at)
    }

    /// Writes the certificate file.
    pub fn to_armor(&self) -> String {
        armor::write(ArmorKind::Certificate, self.bytes())
    }

    /// Reads and verifies a certificate file.
    ///
    /// # Errors
    /// As [`SignedCertificate::verify`], and text that is no certificate file.
    pub fn from_armor(text: &str, anchor: &TrustAnchor) -> Result<Self, ObjectError> {
        Self::verify(&armor::read(ArmorKind::Certificate, text)?, anchor)
    }
}

impl PartialEq for SignedCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.bytes == other.0.bytes
    }
}

impl Eq for SignedCertificate {}

impl std::fmt::Debug for SignedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SignedCertificate").field(&self.0.certificate).finish()
    }
}

impl<C> Encode<C> for Permissions {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.u8(u8::from(self.authority) | u8::from(self.relay) << 1)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Permissions {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        match d.u8()? {
            bits @ 0..=3 => Ok(Self { authority: bits & 1 != 0, relay: bits & 2 != 0 }),
            _ => Err(DecodeError::message("a permission this version does not know")),
        }
    }
}

//! Who is who: keys, the authority, certificates, records, revocations, and the ways in. Pure.
//!
//! Everything signed is a COSE_Sign1 over a deterministic payload ([`cose`], [`cbor`]); whoever holds a `Signed…`
//! value holds one that was verified. `docs/protocol.md` §2 has the bytes.
#![forbid(unsafe_code)]

mod admission;
mod anchor;
pub mod armor;
mod authority;
pub(crate) mod cbor;
mod certificate;
mod cose;
mod delegation;
mod id;
mod key;
mod name;
mod record;
mod revocation;

pub use admission::{Admission, overlap};
pub use anchor::{AnchorError, TrustAnchor, overlay_v6};
pub use authority::Authority;
pub use certificate::{Certificate, Issuer, Permissions, SignedCertificate, Term, Validity};
pub use cose::{ObjectError, ObjectKind};
pub use delegation::{Delegation, DelegationTerms, SignedDelegation};
pub use id::{IdError, InviteId, MeshId, NodeId};
pub use key::{
    KeyError, NodeKeys, NodeKeysError, PublicKeys, SigningSecret, VerifyingKey, WireguardKey, WireguardSecret,
};
pub use name::{NameError, NodeName, Tag};
pub use record::{Record, SignedRecord};
pub use revocation::{Revocation, Revocations, SignedRevocation};

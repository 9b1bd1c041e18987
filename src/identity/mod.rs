//! Who is who: keys, the authority, certificates, records, revocations, and the ways in. Pure.
//!
//! Everything signed is a COSE_Sign1 over a deterministic payload (`cose`, `cbor`); whoever holds a `Signed…`
//! value holds one that was verified. `docs/protocol.md` §2 has the bytes.
#![forbid(unsafe_code)]

mod admission;
mod anchor;
pub mod armor;
mod authority;
mod authority_file;
pub(crate) mod cbor;
mod certificate;
mod cose;
mod delegation;
pub mod hybrid;
mod id;
mod invite;
mod key;
mod ledger;
mod ledger_file;
mod name;
mod record;
mod request;
mod revocation;
mod share;
#[cfg(test)]
pub(crate) mod testing;
mod token;

pub use admission::{Admission, is_reserved, overlap};
pub use anchor::{AnchorError, TrustAnchor, overlay_v6};
pub use authority::Authority;
pub use authority_file::{AuthorityFile, AuthorityFileError, PassphraseCost};
pub use certificate::{Certificate, Issuer, Permissions, SignedCertificate, Term, Validity};
pub use cose::{ObjectError, ObjectKind};
pub use delegation::{Delegation, DelegationTerms, SignedDelegation};
pub use hybrid::HybridKey;
pub use id::{IdError, InviteId, MeshId, NodeId};
pub use invite::{Grant, Invite, InviteBook, InviteBookError, InviteState, Presentation, Refusal};
pub use key::{
    KeyError, NodeKeys, NodeKeysError, PublicKeys, SigningSecret, VerifyingKey, WireguardKey, WireguardSecret,
};
pub use ledger::{Ledger, LedgerEntry, LedgerError, Wish};
pub use name::{NameError, NodeName, Tag};
pub use record::{Record, SignedRecord};
pub use request::{Request, SignedRequest};
pub use revocation::{Revocation, SignedRevocation};
pub use share::{Priority, Shares};
pub use token::{InviteKey, InviteSecret, Token, TokenError};

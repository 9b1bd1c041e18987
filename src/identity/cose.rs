//! COSE_Sign1 (RFC 9052 §4.2) as every signed object of ours uses it: EdDSA, one fixed header, one encoding.
//!
//! The bytes are `d2 84 43 a10127 a0`, the payload as a byte string, and `58 40` with 64 bytes of signature. What is
//! signed is the RFC's Sig_structure with the kind's domain string as external_aad, so that a signature made for one
//! kind of object is none for another.

use std::fmt;

use minicbor::{Decode, Encode};

use super::cbor;
use super::key::{SigningSecret, VerifyingKey};

/// The kinds of signed objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// An authority's (or a delegate's) word on who a node is.
    Certificate,
    /// An authority's permission to a member to issue one certificate.
    Delegation,
    /// A node's word on itself.
    Record,
    /// An authority's exclusion of a node.
    Revocation,
    /// A host's wish to become a node.
    Request,
}

impl ObjectKind {
    /// The domain separation string.
    pub const fn domain(self) -> &'static str {
        match self {
            ObjectKind::Certificate => "meshd certificate v1",
            ObjectKind::Delegation => "meshd delegation v1",
            ObjectKind::Record => "meshd record v1",
            ObjectKind::Revocation => "meshd revocation v1",
            ObjectKind::Request => "meshd request v1",
        }
    }

    /// The longest object of the kind, in bytes, signature included.
    pub const fn limit(self) -> usize {
        match self {
            // An introduction carries a certificate and a record and must stay one unfragmented datagram.
            ObjectKind::Certificate => 1024,
            // Rides inside a certificate.
            ObjectKind::Delegation => 256,
            // Sixteen IPv6 endpoints and every number at its widest are 490 bytes.
            ObjectKind::Record => 512,
            // A name of 63 characters and every number at its widest are 267 bytes.
            ObjectKind::Revocation => 288,
            // Rides inside a join request of 1,200 bytes.
            ObjectKind::Request => 512,
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Certificate => "certificate",
            ObjectKind::Delegation => "delegation",
            ObjectKind::Record => "record",
            ObjectKind::Revocation => "revocation",
            ObjectKind::Request => "request",
        })
    }
}

/// Why a signed object was not accepted, or could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Longer than its kind may be.
    #[error("the {kind} has {length} bytes, more than the {limit} allowed: use fewer prefixes, tags or endpoints")]
    TooLong {
        /// What it is.
        kind: ObjectKind,
        /// Its length in bytes.
        length: usize,
        /// The most its kind may have.
        limit: usize,
    },
    /// Not a COSE_Sign1 in the one form we write.
    #[error("the bytes are no {kind}: {detail}")]
    Encoding {
        /// What was wanted.
        kind: ObjectKind,
        /// What is wrong with the bytes.
        detail: String,
    },
    /// No key that may sign it has signed it.
    #[error("the {kind} is not signed by {signer}: it was altered, or belongs to another mesh")]
    Signature {
        /// What it is.
        kind: ObjectKind,
        /// Whose signature was wanted.
        signer: &'static str,
    },
    /// The mesh, node or ranges are not those expected.
    #[error("the {kind} is for another {what}")]
    Foreign {
        /// What it is.
        kind: ObjectKind,
        /// What differs.
        what: &'static str,
    },
    /// A value that breaks a rule.
    #[error("the {kind}'s {field} {problem}")]
    Value {
        /// What it is.
        kind: ObjectKind,
        /// The field.
        field: &'static str,
        /// The rule that is broken.
        problem: String,
    },
    /// The text around the bytes is wrong.
    #[error(transparent)]
    Armor(#[from] super::armor::ArmorError),
}

impl ObjectError {
    /// A value that breaks a rule.
    pub(super) fn value(kind: ObjectKind, field: &'static str, problem: impl Into<String>) -> Self {
        ObjectError::Value { kind, field, problem: problem.into() }
    }
}

/// Tag 18, array of four, protected header {1: −8} (EdDSA), no unprotected header.
const PREFIX: [u8; 7] = [0xd2, 0x84, 0x43, 0xa1, 0x01, 0x27, 0xa0];
/// The protected header alone, as the Sig_structure repeats it.
const PROTECTED: [u8; 3] = [0xa1, 0x01, 0x27];
/// A byte string of 64.
const SIGNATURE_HEAD: [u8; 2] = [0x58, 0x40];

/// Encodes and signs a payload.
///
/// # Errors
/// Only where the result would be longer than its kind may be.
pub(super) fn sign<T: Encode<()>>(
    kind: ObjectKind,
    payload: &T,
    secret: &SigningSecret,
) -> Result<Vec<u8>, ObjectError> {
    let payload = cbor::encode(payload);
    let mut bytes = PREFIX.to_vec();
    put_bytes(&mut bytes, &payload);
    bytes.extend(SIGNATURE_HEAD);
    bytes.extend(secret.sign(&to_be_signed(kind, &payload)));
    check_length(kind, bytes.len())?;
    Ok(bytes)
}

/// A signed object taken apart; nothing in it is trusted yet.
pub(super) struct Envelope<'b> {
    kind: ObjectKind,
    payload: &'b [u8],
    signature: [u8; 64],
}

impl<'b> Envelope<'b> {
    /// Takes the bytes apart.
    pub(super) fn open(kind: ObjectKind, bytes: &'b [u8]) -> Result<Self, ObjectError> {
        check_length(kind, bytes.len())?;
        let error = |detail: &str| ObjectError::Encoding { kind, detail: detail.into() };
        let rest = bytes.strip_prefix(&PREFIX).ok_or_else(|| error("not a COSE_Sign1 with EdDSA"))?;
        let (rest, signature) = rest.split_last_chunk::<64>().ok_or_else(|| error("truncated"))?;
        let rest = rest.strip_suffix(&SIGNATURE_HEAD).ok_or_else(|| error("truncated, or bytes after the end"))?;
        // The payload's length must be written in its shortest form and reach exactly to the signature.
        let head_length = match rest.first() {
            Some(0x58) => 2,
            Some(0x59) => 3,
            _ => 1,
        };
        let payload = rest.get(head_length..).ok_or_else(|| error("truncated"))?;
        let mut again = Vec::with_capacity(rest.len());
        put_bytes(&mut again, payload);
        if again != rest {
            return Err(error("the payload's length is wrong or not in its shortest form"));
        }
        Ok(Self { kind, payload, signature: *signature })
    }

    /// Whether `key` signed the payload as an object of this kind.
    pub(super) fn signed_by(&self, key: &VerifyingKey) -> bool {
        key.verify(&to_be_signed(self.kind, self.payload), &self.signature)
    }

    /// Decodes the payload, which must be in its deterministic form.
    pub(super) fn decode<T: Decode<'b, ()> + Encode<()>>(&self) -> Result<T, ObjectError> {
        cbor::decode_strict(self.payload).map_err(|detail| ObjectError::Encoding { kind: self.kind, detail })
    }
}

fn check_length(kind: ObjectKind, length: usize) -> Result<(), ObjectError> {
    let limit = kind.limit();
    if length > limit { Err(ObjectError::TooLong { kind, length, limit }) } else { Ok(()) }
}

/// The Sig_structure of RFC 9052 §4.4: ["Signature1", protected, external_aad, payload].
fn to_be_signed(kind: ObjectKind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x84, 0x6a];
    bytes.extend(b"Signature1");
    put_bytes(&mut bytes, &PROTECTED);
    put_bytes(&mut bytes, kind.domain().as_bytes());
    put_bytes(&mut bytes, payload);
    bytes
}

/// Appends a byte string with its head in the shortest form. All of ours are shorter than 64 KiB.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = bytes.len() as u16;
    match length {
        0..=23 => out.push(0x40 | length as u8),
        24..=255 => out.extend([0x58, length as u8]),
        _ => {
            out.push(0x59);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend(bytes);
}

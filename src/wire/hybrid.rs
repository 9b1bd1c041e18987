//! The messages of an exchange of hybrid keys (docs/protocol.md §5.9).

use minicbor::{Decode, Encode};

/// A part of a proposal ([`crate::identity::hybrid::Proposal`]).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HybridPart {
    /// The exchange, drawn at random by its proposer; the answer repeats it.
    #[n(0)]
    pub number: u64,
    /// Which part this is, from 0.
    #[n(1)]
    pub part: u8,
    /// Which of two keys in a row comes of it.
    #[n(2)]
    pub odd: bool,
    /// The bytes of the part, [`HybridPart::LEN`] of them.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

impl HybridPart {
    /// Parts of a proposal: its 1,216 bytes are more than one message holds.
    pub const PARTS: usize = 2;
    /// Bytes of each.
    pub const LEN: usize = 608;
}

/// The answer to a proposal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HybridReply {
    /// The exchange.
    #[n(0)]
    pub number: u64,
    /// The ML-KEM-768 ciphertext.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ciphertext: Vec<u8>,
    /// The X25519 share.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub share: Vec<u8>,
}

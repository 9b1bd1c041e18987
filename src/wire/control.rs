//! Control messages between two nodes, inside their tunnel (docs/protocol.md §6).
//!
//! One message is one UDP payload on [`crate::wire::overlay::CONTROL_PORT`]: the byte [`KIND`], then a CBOR array
//! `[type, body]`, where the body is a map with numbered fields. An unknown type is skipped, an unknown field is skipped,
//! so that a newer and an older node share a mesh. Probes have a fixed layout of their own ([`crate::wire::probe`]).

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Decoder, Encode, Encoder};

use super::gateway::{GatewayHeard, GatewayState};
use super::hybrid::{HybridPart, HybridReply};
use super::row;
use crate::identity::NodeId;

/// First byte of a control message.
pub const KIND: u8 = 0x10;

/// Largest control message in bytes. With the overlay headers (48), WireGuard's 32 bytes, UDP and IP it makes 1,308 bytes over
/// IPv4 and 1,328 over IPv6: whole on every usual path before any path MTU is known, and fragmented on a narrower one.
pub const MAX_MESSAGE: usize = 1200;

/// Number of digest buckets: a node belongs to the bucket of its id's first four bits. Sixteen keep a digest below 200
/// bytes while a difference in one member of 200 costs a summary of some twelve entries.
pub const BUCKETS: usize = 16;

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlMessage {
    /// What the sender knows, condensed.
    Digest(Digest),
    /// What the sender knows in a range of node ids, entry by entry.
    Summary(Summary),
    /// Signed objects.
    Items(Items),
    /// Asks for signed objects.
    Want(Want),
    /// Asks an authority node for a fresh certificate of the sender.
    RenewalRequest,
    /// The fresh certificate.
    RenewalReply(RenewalReply),
    /// Which revocations the sender holds in a range of node ids.
    RevocationSummary(RevocationSummary),
    /// Asks whether the receiver hears a node.
    Question(Question),
    /// How long ago the sender heard a node.
    Hearing(Hearing),
    /// Asks to hold back packets for the sender, which restarts.
    Hold(Hold),
    /// Says that packets are held back.
    Holding(Holding),
    /// Asks for the receiver's row of the matrix.
    RowRequest(RowRequest),
    /// A part of the sender's row.
    Row(Row),
    /// How the sender is as a gateway.
    GatewayState(GatewayState),
    /// Which state of the receiver's the sender holds.
    GatewayHeard(GatewayHeard),
    /// A part of a proposal for a hybrid key.
    HybridPart(HybridPart),
    /// The answer to a proposal.
    HybridReply(HybridReply),
}

/// What a node knows, condensed to one sum per bucket; equal digests mean equal knowledge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Digest {
    /// One sum per bucket, [`BUCKETS`] of them.
    #[n(0)]
    pub buckets: Vec<u64>,
    /// The sum over all revocations.
    #[n(1)]
    pub revocations: u64,
}

/// What a node knows of the members with `from <= id <= to`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Summary {
    /// First node id of the range, 16 bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub from: [u8; 16],
    /// Last node id of the range, 16 bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub to: [u8; 16],
    /// The entries, in ascending order of id.
    #[n(2)]
    pub entries: Vec<SummaryEntry>,
}

/// The revocations a node holds for node ids with `from <= id <= to`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RevocationSummary {
    /// First node id of the range, 16 bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub from: [u8; 16],
    /// Last node id of the range, 16 bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub to: [u8; 16],
    /// The revoked node ids, ascending.
    #[n(2)]
    pub nodes: Vec<ByteVec>,
}

/// The versions a node holds of one member's objects.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SummaryEntry {
    /// The member's node id, 16 bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub node: [u8; 16],
    /// When the certificate was issued, in seconds: the later one replaces the earlier one.
    #[n(1)]
    pub certificate: u64,
    /// The certificate's serial, which orders two certificates of the same second.
    #[n(2)]
    pub serial: u64,
    /// The record's sequence; 0 where there is no record.
    #[n(3)]
    pub sequence: u64,
}

/// Signed objects, each encoded as it was signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Items {
    /// Certificates.
    #[n(0)]
    pub certificates: Vec<ByteVec>,
    /// Records.
    #[n(1)]
    pub records: Vec<ByteVec>,
    /// Revocations.
    #[n(2)]
    pub revocations: Vec<ByteVec>,
}

/// Asks for objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Want {
    /// Node ids whose certificate is wanted.
    #[n(0)]
    pub certificates: Vec<ByteVec>,
    /// Node ids whose record is wanted.
    #[n(1)]
    pub records: Vec<ByteVec>,
    /// Node ids whose revocation is wanted.
    #[n(2)]
    pub revocations: Vec<ByteVec>,
}

/// A renewed certificate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RenewalReply {
    /// The signed certificate.
    #[n(0)]
    pub certificate: ByteVec,
}

/// Asks whether the receiver hears a node, of which the sender hears nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Question {
    /// The node's id, 16 bytes.
    #[n(0)]
    pub node: ByteVec,
}

/// How long ago the sender heard a node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hearing {
    /// The node's id, 16 bytes.
    #[n(0)]
    pub node: ByteVec,
    /// Milliseconds since anything of its probes came; 2^32 - 1 where nothing ever did.
    #[n(1)]
    pub heard_millis: u64,
}

/// Asks to hold back packets for the sender until it has a new session, because it restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hold {
    /// Chosen by the sender; the answer repeats it.
    #[n(0)]
    pub number: u32,
    /// For how long at most, in milliseconds.
    #[n(1)]
    pub millis: u32,
}

/// Says that nothing more is sealed for the receiver under the session in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Holding {
    /// The number of the request.
    #[n(0)]
    pub number: u32,
}

/// Asks for the receiver's row of the matrix ([`crate::wire::row`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RowRequest {
    /// Chosen by the sender; the answer repeats it.
    #[n(0)]
    pub number: u32,
}

/// A part of a row: what the sender knows of some of its links.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Row {
    /// The request's number.
    #[n(0)]
    pub number: u32,
    /// Which part this is, from 0.
    #[n(1)]
    pub part: u8,
    /// How many parts there are, 1 to [`Row::MAX_PARTS`].
    #[n(2)]
    pub parts: u8,
    /// Bytes of a cell, at least [`row::CELL_LEN`].
    #[n(3)]
    pub cell_len: u8,
    /// The cells, one after the other.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub cells: Vec<u8>,
}

impl Row {
    /// Cells of one part: with them and the largest numbers a message has 1,198 bytes.
    pub const MAX_CELLS: usize = 84;
    /// Parts of a row at most: 50 hold the links of the largest mesh.
    pub const MAX_PARTS: u8 = 50;

    /// Returns the cells.
    pub fn cells(&self) -> impl Iterator<Item = row::Cell> {
        // Decoding has made sure that no cell is shorter; a row made by hand has none then.
        self.cells.chunks_exact(usize::from(self.cell_len).max(row::CELL_LEN)).filter_map(row::Cell::decode)
    }

    fn is_sound(&self) -> bool {
        let length = usize::from(self.cell_len);
        (1..=Self::MAX_PARTS).contains(&self.parts)
            && self.part < self.parts
            && length >= row::CELL_LEN
            && self.cells.len().is_multiple_of(length)
    }
}

/// Why a control message was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Longer than [`MAX_MESSAGE`], or no CBOR of the right shape.
    Malformed,
    /// A type this version does not know: skipped without blame.
    Unknown,
}

impl ControlMessage {
    fn type_number(&self) -> u8 {
        match self {
            ControlMessage::Digest(_) => 1,
            ControlMessage::Summary(_) => 2,
            ControlMessage::Items(_) => 3,
            ControlMessage::Want(_) => 4,
            ControlMessage::RenewalRequest => 5,
            ControlMessage::RenewalReply(_) => 6,
            ControlMessage::RevocationSummary(_) => 7,
            ControlMessage::Question(_) => 8,
            ControlMessage::Hearing(_) => 9,
            ControlMessage::Hold(_) => 10,
            ControlMessage::Holding(_) => 11,
            ControlMessage::RowRequest(_) => 16,
            ControlMessage::Row(_) => 17,
            ControlMessage::GatewayState(_) => 18,
            ControlMessage::GatewayHeard(_) => 19,
            ControlMessage::HybridPart(_) => 24,
            ControlMessage::HybridReply(_) => 25,
        }
    }

    /// Encodes the message, with its leading [`KIND`] byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![KIND];
        let mut encoder = Encoder::new(&mut out);
        // Writing to a Vec cannot fail, and the bodies hold nothing that cannot be encoded.
        let ok = encoder.array(2).and_then(|e| e.u8(self.type_number())).is_ok()
            && match self {
                ControlMessage::Digest(body) => encoder.encode(body).is_ok(),
                ControlMessage::Summary(body) => encoder.encode(body).is_ok(),
                ControlMessage::Items(body) => encoder.encode(body).is_ok(),
                ControlMessage::Want(body) => encoder.encode(body).is_ok(),
                ControlMessage::RenewalRequest => encoder.map(0).is_ok(),
                ControlMessage::RenewalReply(body) => encoder.encode(body).is_ok(),
                ControlMessage::RevocationSummary(body) => encoder.encode(body).is_ok(),
                ControlMessage::Question(body) => encoder.encode(body).is_ok(),
                ControlMessage::Hearing(body) => encoder.encode(body).is_ok(),
                ControlMessage::Hold(body) => encoder.encode(body).is_ok(),
                ControlMessage::Holding(body) => encoder.encode(body).is_ok(),
                ControlMessage::RowRequest(body) => encoder.encode(body).is_ok(),
                ControlMessage::Row(body) => encoder.encode(body).is_ok(),
                ControlMessage::GatewayState(body) => encoder.encode(body).is_ok(),
                ControlMessage::GatewayHeard(body) => encoder.encode(body).is_ok(),
                ControlMessage::HybridPart(body) => encoder.encode(body).is_ok(),
                ControlMessage::HybridReply(body) => encoder.encode(body).is_ok(),
            };
        debug_assert!(ok, "control messages encode into memory");
        out
    }

    /// Decodes a message from a UDP payload that starts with [`KIND`].
    ///
    /// # Errors
    /// [`ControlError`]; the caller counts a malformed one against its sender.
    pub fn decode(payload: &[u8]) -> Result<Self, ControlError> {
        let malformed = |_| ControlError::Malformed;
        if payload.len() > MAX_MESSAGE || payload.first() != Some(&KIND) {
            return Err(ControlError::Malformed);
        }
        let mut decoder = Decoder::new(&payload[1..]);
        if decoder.array().map_err(malformed)? != Some(2) {
            return Err(ControlError::Malformed);
        }
        let message = match decoder.u64().map_err(malformed)? {
            1 => ControlMessage::Digest(decoder.decode().map_err(malformed)?),
            2 => ControlMessage::Summary(decoder.decode().map_err(malformed)?),
            3 => ControlMessage::Items(decoder.decode().map_err(malformed)?),
            4 => ControlMessage::Want(decoder.decode().map_err(malformed)?),
            5 => {
                decoder.skip().map_err(malformed)?;
                ControlMessage::RenewalRequest
            }
            6 => ControlMessage::RenewalReply(decoder.decode().map_err(malformed)?),
            7 => ControlMessage::RevocationSummary(decoder.decode().map_err(malformed)?),
            8 => ControlMessage::Question(decoder.decode().map_err(malformed)?),
            9 => ControlMessage::Hearing(decoder.decode().map_err(malformed)?),
            10 => ControlMessage::Hold(decoder.decode().map_err(malformed)?),
            11 => ControlMessage::Holding(decoder.decode().map_err(malformed)?),
            16 => ControlMessage::RowRequest(decoder.decode().map_err(malformed)?),
            17 => ControlMessage::Row(decoder.decode().map_err(malformed)?),
            18 => ControlMessage::GatewayState(decoder.decode().map_err(malformed)?),
            19 => ControlMessage::GatewayHeard(decoder.decode().map_err(malformed)?),
            24 => ControlMessage::HybridPart(decoder.decode().map_err(malformed)?),
            25 => ControlMessage::HybridReply(decoder.decode().map_err(malformed)?),
            _ => return Err(ControlError::Unknown),
        };
        if let ControlMessage::Digest(digest) = &message
            && digest.buckets.len() != BUCKETS
        {
            return Err(ControlError::Malformed);
        }
        if let ControlMessage::Row(row) = &message
            && !row.is_sound()
        {
            return Err(ControlError::Malformed);
        }
        Ok(message)
    }
}

/// Reads a node id out of a byte string of a message.
pub fn node_id(bytes: &ByteVec) -> Option<NodeId> {
    <[u8; 16]>::try_from(bytes.as_slice()).ok().map(NodeId::from_bytes)
}

/// Writes a node id as a byte string of a message.
pub fn id_bytes(node: NodeId) -> ByteVec {
    ByteVec::from(node.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::hybrid::{CIPHERTEXT_LEN, PROPOSAL_LEN, SHARE_LEN};
    use proptest::prelude::*;

    fn samples() -> Vec<ControlMessage> {
        vec![
            ControlMessage::Digest(Digest { buckets: vec![7; BUCKETS], revocations: u64::MAX }),
            ControlMessage::Summary(Summary {
                from: [0; 16],
                to: [255; 16],
                entries: vec![SummaryEntry { node: [3; 16], certificate: 1, serial: 2, sequence: 3 }],
            }),
            ControlMessage::RevocationSummary(RevocationSummary {
                from: [0; 16],
                to: [255; 16],
                nodes: vec![ByteVec::from(vec![9; 16])],
            }),
            ControlMessage::Items(Items {
                certificates: vec![ByteVec::from(vec![1, 2, 3])],
                records: vec![ByteVec::from(vec![5])],
                revocations: vec![],
            }),
            ControlMessage::Want(Want::default()),
            ControlMessage::RenewalRequest,
            ControlMessage::RenewalReply(RenewalReply { certificate: ByteVec::from(vec![1]) }),
            ControlMessage::Question(Question { node: ByteVec::from(vec![4; 16]) }),
            ControlMessage::Hearing(Hearing { node: ByteVec::from(vec![4; 16]), heard_millis: 70 }),
            ControlMessage::Hold(Hold { number: 5, millis: 2_000 }),
            ControlMessage::Holding(Holding { number: 5 }),
            ControlMessage::RowRequest(RowRequest { number: 5 }),
            ControlMessage::Row(Row { number: 5, part: 0, parts: 2, cell_len: 14, cells: vec![7; 28] }),
            ControlMessage::GatewayState(GatewayState {
                sequence: 7,
                drained: true,
                failing: Some(["10.20.0.0/16".parse().unwrap()].into_iter().collect()),
            }),
            ControlMessage::GatewayHeard(GatewayHeard { sequence: u64::MAX, drained: false, failing: None }),
            ControlMessage::HybridPart(HybridPart { number: 5, part: 1, odd: true, bytes: vec![7; HybridPart::LEN] }),
            ControlMessage::HybridReply(HybridReply { number: 5, ciphertext: vec![7; 1_088], share: vec![8; 32] }),
        ]
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in samples() {
            assert_eq!(ControlMessage::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn truncations_are_refused() {
        for message in samples() {
            let bytes = message.encode();
            for len in 0..bytes.len() {
                assert_eq!(ControlMessage::decode(&bytes[..len]), Err(ControlError::Malformed), "{message:?} at {len}");
            }
        }
    }

    #[test]
    fn newer_types_and_fields_are_skipped() {
        // [99, {}]
        assert_eq!(ControlMessage::decode(&[KIND, 0x82, 0x18, 99, 0xa0]), Err(ControlError::Unknown));
        // Want with an unknown field 7 that holds an array.
        let message = [KIND, 0x82, 0x04, 0xa4, 0x00, 0x80, 0x01, 0x80, 0x02, 0x80, 0x07, 0x82, 0x01, 0x02];
        assert_eq!(ControlMessage::decode(&message), Ok(ControlMessage::Want(Want::default())));
    }

    #[test]
    fn the_largest_part_of_a_row_fits_a_message() {
        let cells = vec![255; Row::MAX_CELLS * row::CELL_LEN];
        let part = Row { number: u32::MAX, part: 48, parts: Row::MAX_PARTS, cell_len: 14, cells };
        let bytes = ControlMessage::Row(part).encode();
        assert_eq!(bytes.len(), 1_198);
        assert!(bytes.len() + row::CELL_LEN > MAX_MESSAGE, "and no further cell would");
        assert!(usize::from(Row::MAX_PARTS) * Row::MAX_CELLS >= 4_096, "every link of the largest mesh");
    }

    #[test]
    fn the_messages_of_an_exchange_fit() {
        let part = HybridPart { number: u64::MAX, part: 1, odd: true, bytes: vec![255; HybridPart::LEN] };
        let reply =
            HybridReply { number: u64::MAX, ciphertext: vec![255; CIPHERTEXT_LEN], share: vec![255; SHARE_LEN] };
        let lengths = [ControlMessage::HybridPart(part), ControlMessage::HybridReply(reply)].map(|m| m.encode().len());
        assert!(lengths.iter().all(|length| *length <= MAX_MESSAGE), "{lengths:?}");
        assert_eq!(HybridPart::PARTS * HybridPart::LEN, PROPOSAL_LEN);
    }

    #[test]
    fn rows_that_contradict_themselves_are_malformed_and_longer_cells_are_read() {
        let decoded = |part, parts, cell_len, cells: usize| {
            let row = Row { number: 1, part, parts, cell_len, cells: vec![1; cells] };
            ControlMessage::decode(&ControlMessage::Row(row).encode())
        };
        for (part, parts, cell_len, cells) in
            [(0, 0, 14, 0), (1, 1, 14, 0), (0, 51, 14, 0), (0, 1, 13, 13), (0, 1, 14, 15)]
        {
            assert_eq!(decoded(part, parts, cell_len, cells), Err(ControlError::Malformed));
        }
        let Ok(ControlMessage::Row(newer)) = decoded(0, 1, 20, 40) else { panic!("a newer version's row") };
        assert_eq!(newer.cells().count(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..1300)) {
            let mut payload = vec![KIND];
            payload.extend_from_slice(&bytes);
            let _ = ControlMessage::decode(&payload);
            let _ = ControlMessage::decode(&bytes);
        }
    }
}

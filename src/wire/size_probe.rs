//! Probes of a certain size, inside the tunnel: what finds the largest packet a path carries (docs/protocol.md §8).
//!
//! ```text
//! request  0 kind 0x03 | 1 version | 2..4 size | 4..8 zero | 8..16 nonce | zeros up to the size
//! reply    0 kind 0x04 | 1 version | 2..4 size | 4..8 zero | 8..16 nonce echoed
//! ```
//!
//! The size is that of the whole overlay packet. The reply is short, so that it says something of one direction only: each
//! end sizes its own way. A request that arrives shorter than it says is no request.

use super::overlay::HEADER_LEN;

/// First byte of a request.
pub const KIND_REQUEST: u8 = 0x03;
/// First byte of a reply.
pub const KIND_REPLY: u8 = 0x04;

/// The smallest packet every link carries, in bytes: the least MTU of IPv6 (RFC 8200 §5), without which the overlay has
/// none.
pub const FLOOR: u16 = 1_280;

/// Bytes of the fields.
const FIELDS: usize = 16;

/// The shortest overlay packet that can be a size probe, in bytes.
pub const LEAST: u16 = (HEADER_LEN + FIELDS) as u16;

const VERSION: u8 = 1;

/// Which of the two a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeProbeKind {
    /// Asks for a reply.
    Request,
    /// Says that the request arrived whole.
    Reply,
}

/// A probe of a certain size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeProbe {
    /// Request or reply.
    pub kind: SizeProbeKind,
    /// The request's size as an overlay packet, in bytes; at least [`LEAST`].
    pub size: u16,
    /// Drawn for each request; only who received it can say it again.
    pub nonce: u64,
}

impl SizeProbe {
    /// Encodes the probe, a request with its padding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIELDS];
        out[1] = VERSION;
        out[2..4].copy_from_slice(&self.size.to_be_bytes());
        out[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        match self.kind {
            SizeProbeKind::Request => {
                out[0] = KIND_REQUEST;
                out.resize(FIELDS.max(usize::from(self.size).saturating_sub(HEADER_LEN)), 0);
            }
            SizeProbeKind::Reply => out[0] = KIND_REPLY,
        }
        out
    }

    /// Decodes a probe; `None` where the payload is none, or a request that is shorter than it says.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let fields = payload.first_chunk::<FIELDS>()?;
        let kind = match fields[0] {
            KIND_REQUEST => SizeProbeKind::Request,
            KIND_REPLY => SizeProbeKind::Reply,
            _ => return None,
        };
        let size = u16::from_be_bytes([fields[2], fields[3]]);
        if size < LEAST || kind == SizeProbeKind::Request && HEADER_LEN + payload.len() < usize::from(size) {
            return None;
        }
        let nonce = u64::from_be_bytes(std::array::from_fn(|at| fields[8 + at]));
        Some(SizeProbe { kind, size, nonce })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::ControlMessage;
    use crate::wire::probe::Probe;
    use proptest::prelude::*;

    fn any_probe() -> impl Strategy<Value = SizeProbe> {
        (any::<bool>(), LEAST..=9_000, any::<u64>()).prop_map(|(request, size, nonce)| {
            let kind = if request { SizeProbeKind::Request } else { SizeProbeKind::Reply };
            SizeProbe { kind, size, nonce }
        })
    }

    proptest! {
        #[test]
        fn size_probes_survive_the_wire_and_are_nothing_else(probe in any_probe()) {
            let bytes = probe.encode();
            prop_assert_eq!(SizeProbe::decode(&bytes), Some(probe));
            prop_assert_eq!(Probe::decode(&bytes), None);
            prop_assert!(ControlMessage::decode(&bytes).is_err());
            let whole = match probe.kind {
                SizeProbeKind::Request => usize::from(probe.size),
                SizeProbeKind::Reply => usize::from(LEAST),
            };
            prop_assert_eq!(bytes.len() + HEADER_LEN, whole);
        }

        #[test]
        fn what_was_cut_short_is_no_request(probe in any_probe(), cut in 1usize..100) {
            let probe = SizeProbe { kind: SizeProbeKind::Request, ..probe };
            let bytes = probe.encode();
            prop_assert_eq!(SizeProbe::decode(&bytes[..bytes.len().saturating_sub(cut)]), None);
        }

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = SizeProbe::decode(&bytes);
        }
    }
}

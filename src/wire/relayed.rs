//! The overlay packet in which a member carries another one's sealed datagram (docs/protocol.md §5.8).
//!
//! It goes through the sender's tunnel to the relay and, one hop shorter and otherwise unchanged, through the relay's tunnel to
//! the receiver. Its addresses are those of the two ends, so that each tunnel proves what it says: the relay that the source
//! is the sender, the receiver that the relay passed it on. What is inside is sealed between the ends.

use std::net::Ipv6Addr;

use super::overlay;

/// First byte of the payload.
pub const KIND: u8 = 0x20;
const VERSION: u8 = 1;

/// Bytes in front of the datagram: those of the overlay packet, kind and version.
pub const HEADER_LEN: usize = overlay::HEADER_LEN + 2;

/// The hop limit of a packet that comes from its sender, and of one that a relay has passed on.
pub const HOPS: [u8; 2] = [overlay::HOP_LIMIT, overlay::HOP_LIMIT - 1];

/// What WireGuard puts around a packet in its tunnel, in bytes: a header of 16 and a tag of 16.
const TUNNEL: u16 = 32;

/// The largest packet that a datagram can carry which is itself wrapped and fits into `outer` bytes of another tunnel; a
/// multiple of 16, since tunnels pad packets to that (or to their own size where that is smaller).
pub fn largest_within(outer: u16) -> u16 {
    outer.saturating_sub(HEADER_LEN as u16 + TUNNEL) / 16 * 16
}

/// The size of the wrapped datagram that carries a packet of `inner` bytes.
pub fn wrapped(inner: u16) -> usize {
    usize::from(inner).next_multiple_of(16) + usize::from(TUNNEL) + HEADER_LEN
}

/// Wraps a sealed datagram of `source` for `destination`, for the tunnel to the relay.
pub fn wrap(source: Ipv6Addr, destination: Ipv6Addr, datagram: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(2 + datagram.len());
    payload.extend_from_slice(&[KIND, VERSION]);
    payload.extend_from_slice(datagram);
    overlay::wrap(source, destination, &payload)
}

/// A sealed datagram on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed<'a> {
    /// The datagram; at least one byte.
    pub datagram: &'a [u8],
    /// How many relays have passed it on: 0 or 1.
    pub passed: usize,
}

/// Returns what `packet` carries, where it is such a packet for `destination`.
pub fn unwrap(packet: &[u8], destination: Ipv6Addr) -> Option<Relayed<'_>> {
    match overlay::unwrap(packet, destination)? {
        [KIND, VERSION, datagram @ ..] if !datagram.is_empty() => {
            Some(Relayed { datagram, passed: HOPS.iter().position(|hops| *hops == packet[7])? })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    proptest! {
        #[test]
        fn datagrams_come_back(datagram in proptest::collection::vec(any::<u8>(), 1..1300), padding in 0usize..16) {
            let mut packet = wrap(A, B, &datagram);
            prop_assert_eq!(packet.len(), HEADER_LEN + datagram.len());
            packet.resize(packet.len() + padding, 0);
            prop_assert_eq!(unwrap(&packet, B), Some(Relayed { datagram: &datagram, passed: 0 }));
            prop_assert_eq!(unwrap(&packet, A), None, "not for another address");
            packet[7] -= 1;
            prop_assert_eq!(unwrap(&packet, B), Some(Relayed { datagram: &datagram, passed: 1 }));
            packet[7] -= 1;
            prop_assert_eq!(unwrap(&packet, B), None, "one hop");
        }

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = unwrap(&bytes, B);
        }
    }

    #[test]
    fn what_fits_fits() {
        for outer in 100..9_000 {
            let inner = largest_within(outer);
            assert!(wrapped(inner) <= usize::from(outer) && wrapped(inner + 1) > usize::from(outer), "{outer}");
        }
        assert_eq!(largest_within(1_420), 1_328);
    }

    #[test]
    fn other_payloads_are_not_taken() {
        for payload in [&[KIND, VERSION][..], &[KIND, VERSION + 1, 4], &[0x10, VERSION, 4], &[]] {
            assert_eq!(unwrap(&overlay::wrap(A, B, payload), B), None);
        }
    }
}

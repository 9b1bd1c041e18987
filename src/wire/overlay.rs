//! The overlay packet that carries a control message or a probe through a tunnel (docs/protocol.md §6).
//!
//! An ordinary IPv6 UDP packet between the two nodes' overlay addresses, on a reserved port at both ends. The sending daemon
//! seals it like data; the receiving daemon takes it out before the TUN, so the kernels never see it.

use std::net::Ipv6Addr;

/// The reserved UDP port inside the overlay. The same number as the default underlay port: one number to remember.
pub const CONTROL_PORT: u16 = 7655;

/// Bytes in front of the payload: an IPv6 header (40) and a UDP header (8).
pub const HEADER_LEN: usize = 48;

/// The hop limit of a packet as its sender makes it.
pub const HOP_LIMIT: u8 = 64;

const UDP: u8 = 17;

/// Wraps a payload into an overlay packet from `source` to `destination`.
///
/// The traffic class is CS6 (network control), so that a queueing discipline that honours DSCP does not drop the mesh's
/// own traffic first; the checksum is right, so that a capture of the opened packet shows no error.
pub fn wrap(source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = Vec::with_capacity(HEADER_LEN + payload.len());
    packet.extend_from_slice(&[0x6c, 0x00, 0, 0]);
    packet.extend_from_slice(&udp_len.to_be_bytes());
    packet.push(UDP);
    packet.push(HOP_LIMIT);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(&CONTROL_PORT.to_be_bytes());
    packet.extend_from_slice(&CONTROL_PORT.to_be_bytes());
    packet.extend_from_slice(&udp_len.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let checksum = udp_checksum(&packet);
    packet[46..48].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Tells whether a packet is one that daemons send each other: to the reserved port, in the plain form that [`wrap`] makes. No
/// packet of a host has it ([`super::DropReason::ReservedPort`]).
pub fn is_reserved(packet: &[u8]) -> bool {
    packet.len() >= HEADER_LEN
        && packet[0] >> 4 == 6
        && packet[6] == UDP
        && packet[42..44] == CONTROL_PORT.to_be_bytes()
}

/// Returns the payload where `packet` is an overlay packet to the reserved port of `destination`.
///
/// Only the plain form that [`wrap`] makes is recognised: no extension headers, so that there is one way to be a control
/// packet and no fragment can become one.
pub fn unwrap(packet: &[u8], destination: Ipv6Addr) -> Option<&[u8]> {
    if packet.len() < HEADER_LEN || packet[0] >> 4 != 6 || packet[6] != UDP {
        return None;
    }
    if packet[24..40] != destination.octets() || packet[42..44] != CONTROL_PORT.to_be_bytes() {
        return None;
    }
    let udp_len = usize::from(u16::from_be_bytes([packet[44], packet[45]]));
    if udp_len < 8 || packet.len() < 40 + udp_len {
        return None;
    }
    Some(&packet[HEADER_LEN..40 + udp_len])
}

/// The UDP checksum over the IPv6 pseudo header (RFC 8200 §8.1), computed with the checksum field taken as zero.
fn udp_checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = u32::from(UDP) + (packet.len() as u32 - 40);
    let mut add = |bytes: &[u8]| {
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    };
    add(&packet[8..46]);
    add(&packet[48..]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
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
        fn payloads_come_back(payload in proptest::collection::vec(any::<u8>(), 0..1200), padding in 0usize..16) {
            let mut packet = wrap(A, B, &payload);
            let mut sum: u32 = u32::from(UDP) + (packet.len() as u32 - 40);
            for pair in packet[8..].chunks(2) {
                sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            }
            while sum > 0xffff { sum = (sum & 0xffff) + (sum >> 16); }
            prop_assert_eq!(sum, 0xffff, "the checksum verifies");
            packet.resize(packet.len() + padding, 0);
            prop_assert_eq!(unwrap(&packet, B), Some(payload.as_slice()));
            prop_assert_eq!(unwrap(&packet, A), None, "not for another address");
        }

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = unwrap(&bytes, B);
        }
    }
}

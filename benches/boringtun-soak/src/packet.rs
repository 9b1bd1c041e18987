//! The numbered packets both ends send, and the WireGuard headers the wire tap reads.

use std::net::Ipv4Addr;

/// UDP port both overlay ends use; it exists only inside the rig's own network namespace.
pub const APP_PORT: u16 = 7000;
/// Bytes of a numbered payload: marker plus sequence number.
pub const PAYLOAD_LEN: usize = 64;
const MARKER: [u8; 8] = *b"soak-pkt";
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Writes the payload that carries `sequence`.
pub fn payload(sequence: u32) -> [u8; PAYLOAD_LEN] {
    let mut out = [0u8; PAYLOAD_LEN];
    out[..8].copy_from_slice(&MARKER);
    out[8..12].copy_from_slice(&sequence.to_be_bytes());
    out
}

/// Reads the sequence number of a payload, if it is one of ours.
pub fn sequence(payload: &[u8]) -> Option<u32> {
    let (marker, rest) = payload.split_at_checked(8)?;
    if marker != MARKER {
        return None;
    }
    Some(u32::from_be_bytes(rest.first_chunk::<4>().copied()?))
}

/// Wraps a payload in IPv4 and UDP as a kernel would put it on a TUN device.
pub fn ipv4_udp(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = IPV4_HEADER + UDP_HEADER + payload.len();
    let mut out = vec![0u8; total];
    out[0] = 0x45;
    out[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    out[8] = 64;
    out[9] = 17;
    out[12..16].copy_from_slice(&source.octets());
    out[16..20].copy_from_slice(&destination.octets());
    let sum = header_checksum(&out[..IPV4_HEADER]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out[20..22].copy_from_slice(&APP_PORT.to_be_bytes());
    out[22..24].copy_from_slice(&APP_PORT.to_be_bytes());
    // A zero UDP checksum means "none" over IPv4 (RFC 768).
    out[24..26].copy_from_slice(&((UDP_HEADER + payload.len()) as u16).to_be_bytes());
    out[28..].copy_from_slice(payload);
    out
}

/// Returns the sequence number inside a decrypted IPv4 packet, if it is one of ours.
pub fn inner_sequence(packet: &[u8]) -> Option<u32> {
    if packet.len() < IPV4_HEADER + UDP_HEADER || packet[9] != 17 {
        return None;
    }
    sequence(&packet[IPV4_HEADER + UDP_HEADER..])
}

fn header_checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The cleartext part of a WireGuard message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Initiation { sender: u32 },
    Response { sender: u32, receiver: u32 },
    Cookie { receiver: u32 },
    Keepalive { receiver: u32, counter: u64 },
    Data { receiver: u32, counter: u64 },
    Other,
}

impl Message {
    /// Reads the header of a datagram; the encrypted part is not looked at.
    pub fn read(datagram: &[u8]) -> Message {
        let word = |at: usize| {
            datagram.get(at..).and_then(|rest| rest.first_chunk::<4>()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let counter = u64::from(word(8)) | (u64::from(word(12)) << 32);
        match (word(0), datagram.len()) {
            (1, 148) => Message::Initiation { sender: word(4) },
            (2, 92) => Message::Response { sender: word(4), receiver: word(8) },
            (3, 64) => Message::Cookie { receiver: word(4) },
            (4, 32) => Message::Keepalive { receiver: word(4), counter },
            (4, 33..) => Message::Data { receiver: word(4), counter },
            _ => Message::Other,
        }
    }

    /// True for initiation, response and cookie.
    pub fn is_handshake(self) -> bool {
        matches!(self, Message::Initiation { .. } | Message::Response { .. } | Message::Cookie { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbered_packet_survives_its_headers() {
        let packet = ipv4_udp(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), &payload(77));
        assert_eq!(inner_sequence(&packet), Some(77));
        assert_eq!(header_checksum(&packet[..IPV4_HEADER]), 0);
    }

    #[test]
    fn foreign_bytes_have_no_number() {
        assert_eq!(sequence(&[0u8; 64]), None);
        assert_eq!(sequence(b"soak"), None);
        assert_eq!(inner_sequence(&[0x45; 10]), None);
    }

    #[test]
    fn headers_are_told_apart_by_type_and_length() {
        let mut datagram = vec![0u8; 148];
        datagram[0] = 1;
        datagram[4] = 9;
        assert_eq!(Message::read(&datagram), Message::Initiation { sender: 9 });
        datagram.truncate(147);
        assert_eq!(Message::read(&datagram), Message::Other);
        let mut keepalive = vec![0u8; 32];
        keepalive[0] = 4;
        keepalive[8] = 3;
        assert_eq!(Message::read(&keepalive), Message::Keepalive { receiver: 0, counter: 3 });
    }
}

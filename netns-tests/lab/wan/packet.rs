//! IP packets as the emulator sees them, and the ICMP messages of its router.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where the emulator's ICMP messages come from.
const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0xffff);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// An IP packet, with what filters and the log look at.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The whole packet from the IP header on.
    pub bytes: &'a [u8],
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number of what follows the (first) IP header.
    pub protocol: u8,
    /// Source port of UDP and TCP, else 0.
    pub source_port: u16,
    /// Destination port of UDP and TCP, else 0.
    pub destination_port: u16,
    /// Length of the IP header in bytes.
    pub header_len: usize,
    /// What UDP or TCP carry; for other protocols, what IP carries.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet; `None` where it is not whole IPv4 or IPv6.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (source, destination, protocol, header_len) = match bytes.first()? >> 4 {
            4 if bytes.len() >= 20 => {
                let source = Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[12..16]).ok()?);
                let destination = Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[16..20]).ok()?);
                (IpAddr::V4(source), IpAddr::V4(destination), bytes[9], usize::from(bytes[0] & 15) * 4)
            }
            6 if bytes.len() >= 40 => {
                let source = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[8..24]).ok()?);
                let destination = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[24..40]).ok()?);
                (IpAddr::V6(source), IpAddr::V6(destination), bytes[6], 40)
            }
            _ => return None,
        };
        let inner = bytes.get(header_len..)?;
        let mut packet = Packet {
            bytes,
            source,
            destination,
            protocol,
            source_port: 0,
            destination_port: 0,
            header_len,
            payload: inner,
        };
        let later_fragment = bytes[0] >> 4 == 4 && u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff != 0;
        if matches!(protocol, UDP | TCP) && inner.len() >= 8 && !later_fragment {
            packet.source_port = u16::from_be_bytes([inner[0], inner[1]]);
            packet.destination_port = u16::from_be_bytes([inner[2], inner[3]]);
            let skip = if protocol == UDP { 8 } else { usize::from(inner.get(12).copied().unwrap_or(0x50) >> 4) * 4 };
            packet.payload = inner.get(skip..).unwrap_or(&[]);
        }
        Some(packet)
    }

    /// Returns the first eight bytes of the payload as a big-endian number; shorter payloads end in zeros.
    pub fn tag(&self) -> u64 {
        let mut head = [0; 8];
        let len = self.payload.len().min(8);
        head[..len].copy_from_slice(&self.payload[..len]);
        u64::from_be_bytes(head)
    }

    /// Makes the ICMP message that tells the sender the packet is larger than `mtu`; `None` for IPv4 without DF, where
    /// a router would fragment instead of answering.
    pub fn too_big(&self, mtu: usize) -> Option<Vec<u8>> {
        let mtu = u16::try_from(mtu).ok()?;
        match self.source {
            IpAddr::V4(source) => (self.bytes[6] & 0x40 != 0).then(|| too_big_v4(self.bytes, source, mtu)),
            IpAddr::V6(source) => Some(too_big_v6(self.bytes, source, mtu)),
        }
    }
}

/// RFC 792 and RFC 1191: destination unreachable, fragmentation needed and DF set, with the next hop's MTU.
fn too_big_v4(original: &[u8], source: Ipv4Addr, mtu: u16) -> Vec<u8> {
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    // RFC 1812 4.3.2.3: as much as fits into 576 bytes.
    icmp.extend(&original[..original.len().min(576 - 28)]);
    let sum = checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let length = u16::try_from(20 + icmp.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0xc0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    packet.extend(ROUTER_V4.octets());
    packet.extend(source.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(icmp);
    packet
}

/// RFC 4443 section 3.2: packet too big.
fn too_big_v6(original: &[u8], source: Ipv6Addr, mtu: u16) -> Vec<u8> {
    let mut icmp = vec![2, 0, 0, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(&original[..original.len().min(1280 - 48)]);
    let length = u16::try_from(icmp.len()).unwrap_or(u16::MAX).to_be_bytes();
    let pseudo = [0, 0, length[0], length[1], 0, 0, 0, ICMPV6];
    let sum = checksum(&[&ROUTER_V6.octets(), &source.octets(), &pseudo, &icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], ICMPV6, 64];
    packet.extend(ROUTER_V6.octets());
    packet.extend(source.octets());
    packet.extend(icmp);
    packet
}

/// RFC 1071 over parts that each have an even length, except the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or(0)
}

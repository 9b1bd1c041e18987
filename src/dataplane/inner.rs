//! The packets inside the tunnel, as far as forwarding must understand them.

use crate::wire::DropReason;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use crate::policy::UDP;
pub(super) use crate::policy::{ICMP, ICMPV6, TCP};

/// Extension headers walked before a packet counts as hiding something; senders of real traffic use at most three.
const MAX_EXTENSIONS: usize = 8;

/// The header fields forwarding decides by. Both directions use this one parser, so that what one node lets through
/// means the same to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerPacket {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// Bytes of the packet by its own header; what follows is padding.
    pub length: usize,
    /// The protocol of the payload, behind extension headers; the kernel's view where the walk ends early.
    pub protocol: u8,
    /// Where the payload starts.
    pub payload: usize,
    /// Whether the payload starts with its protocol's header: false for all fragments but the first.
    pub has_header: bool,
    /// Whether it is a fragment, the first included.
    pub is_fragment: bool,
    /// The destination port, for UDP with its header.
    pub udp_port: Option<u16>,
}

impl InnerPacket {
    /// Reads the headers of `bytes`, one IP packet and possibly padding.
    ///
    /// # Errors
    /// [`DropReason::BadInnerPacket`] for anything that is no whole IPv4 or IPv6 packet: lengths that disagree,
    /// jumbograms, IPv4-mapped IPv6 addresses (they would pass an address check as one family and be routed as the
    /// other), endless extension headers, UDP cut off inside its header.
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let packet = match bytes.first().map(|byte| byte >> 4) {
            Some(4) => parse_v4(bytes),
            Some(6) => parse_v6(bytes),
            _ => None,
        };
        packet.ok_or(DropReason::BadInnerPacket)
    }

    /// Tells whether the packet stays on its link by nature: multicast, broadcast, link-local or unspecified.
    pub fn is_link_scoped(&self) -> bool {
        is_link_scoped(self.destination) || is_link_scoped(self.source)
    }

    fn with_ports(mut self, bytes: &[u8]) -> Option<Self> {
        if self.protocol == UDP && self.has_header {
            let header = bytes.get(self.payload..self.length)?.first_chunk::<8>()?;
            self.udp_port = Some(u16::from_be_bytes([header[2], header[3]]));
        }
        Some(self)
    }
}

fn parse_v4(bytes: &[u8]) -> Option<InnerPacket> {
    let header = bytes.first_chunk::<20>()?;
    let payload = usize::from(header[0] & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if payload < 20 || length < payload || length > bytes.len() {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let packet = InnerPacket {
        source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
        destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
        length,
        protocol: header[9],
        payload,
        has_header: fragment & 0x1fff == 0,
        is_fragment: fragment & 0x3fff != 0,
        udp_port: None,
    };
    packet.with_ports(bytes)
}

fn parse_v6(bytes: &[u8]) -> Option<InnerPacket> {
    let header = bytes.first_chunk::<40>()?;
    let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if length > bytes.len() {
        return None;
    }
    let (source, destination) = (v6_at(header, 8), v6_at(header, 24));
    if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return None;
    }
    let mut packet = InnerPacket {
        source: IpAddr::V6(source),
        destination: IpAddr::V6(destination),
        length,
        protocol: header[6],
        payload: 40,
        has_header: true,
        is_fragment: false,
        udp_port: None,
    };
    for _ in 0..=MAX_EXTENSIONS {
        let rest = bytes.get(packet.payload..length)?;
        let bytes_long = match packet.protocol {
            // Hop-by-hop options, routing, destination options (RFC 8200 §4): length in units of 8 beyond the first.
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            // Authentication header (RFC 4302 §2.2): length in units of 4, less 2.
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            44 => {
                let fragment = rest.first_chunk::<8>()?;
                packet.is_fragment = true;
                packet.has_header &= u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 == 0;
                8
            }
            _ => return packet.with_ports(bytes),
        };
        packet.protocol = *rest.first()?;
        packet.payload += bytes_long;
        if packet.payload > length {
            return None;
        }
        // What follows in a later fragment is data, whatever it looks like.
        if !packet.has_header {
            return Some(packet);
        }
    }
    None
}

fn v6_at(header: &[u8; 40], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets)
}

fn is_link_scoped(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_multicast() || v4.is_broadcast() || v4.is_link_local() || v4.is_unspecified() || v4.is_loopback()
        }
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_loopback(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::offload::checksum::Sum;
    use super::*;
    use proptest::prelude::*;

    /// Makes a packet without payload checksums, which forwarding never looks at.
    pub(crate) fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
                bytes[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                let sum = Sum::of(&bytes).checksum();
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend(payload);
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut bytes = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
                bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(payload);
                bytes
            }
            _ => panic!("two families in one packet"),
        }
    }

    /// Makes a UDP payload with its header.
    pub(crate) fn udp(port: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x30, 0x39];
        bytes.extend(port.to_be_bytes());
        bytes.extend((8 + data.len() as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(data);
        bytes
    }

    #[test]
    fn plain_packets_are_read_and_padding_is_not() {
        for (source, destination, header) in [("10.1.0.1", "10.1.0.2", 20), ("fd00::1", "fd00::2", 40)] {
            let mut bytes = packet(source, destination, UDP, &udp(7655, b"data"));
            let length = bytes.len();
            bytes.resize(length + 15, 0);
            let read = InnerPacket::parse(&bytes).unwrap();
            assert_eq!(read.source, source.parse::<IpAddr>().unwrap());
            assert_eq!(read.destination, destination.parse::<IpAddr>().unwrap());
            assert_eq!((read.length, read.payload, read.udp_port), (length, header, Some(7655)));
            assert!(read.has_header && !read.is_fragment && !read.is_link_scoped());
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for bytes in [
            packet("10.1.0.1", "10.1.0.2", UDP, &udp(1, b"data")),
            packet("fd00::1", "fd00::2", UDP, &udp(1, b"data")),
            packet("fd00::1", "fd00::2", 60, &[&[UDP, 0, 0, 0, 0, 0, 0, 0][..], &udp(1, b"data")].concat()),
        ] {
            InnerPacket::parse(&bytes).unwrap();
            for cut in 0..bytes.len() {
                assert_eq!(InnerPacket::parse(&bytes[..cut]), Err(DropReason::BadInnerPacket), "cut at {cut}");
            }
        }
    }

    #[test]
    fn ports_hide_neither_behind_extensions_nor_in_a_cut_header() {
        let behind = [&[43, 0, 0, 0, 0, 0, 0, 0][..], &[51, 0, 0, 0, 0, 0, 0, 0], &[UDP, 2], &[0; 14], &udp(7655, b"")];
        let read = InnerPacket::parse(&packet("fd00::1", "fd00::2", 0, &behind.concat())).unwrap();
        assert_eq!((read.protocol, read.udp_port), (UDP, Some(7655)));
        for (source, destination) in [("10.1.0.1", "10.1.0.2"), ("fd00::1", "fd00::2")] {
            let cut = packet(source, destination, UDP, &udp(7655, b"")[..7]);
            assert_eq!(InnerPacket::parse(&cut), Err(DropReason::BadInnerPacket));
        }
        let endless = packet("fd00::1", "fd00::2", 60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(20));
        assert_eq!(InnerPacket::parse(&endless), Err(DropReason::BadInnerPacket));
    }

    #[test]
    fn only_first_fragments_have_ports() {
        let mut first = packet("10.1.0.1", "10.1.0.2", UDP, &udp(7655, b"12345678"));
        first[6] = 0x20;
        let read = InnerPacket::parse(&first).unwrap();
        assert!(read.is_fragment && read.has_header && read.udp_port == Some(7655));
        first[7] = 1;
        let read = InnerPacket::parse(&first).unwrap();
        assert!(read.is_fragment && !read.has_header && read.udp_port.is_none());

        let with = |offset: u8| [&[UDP, 0, 0, offset, 0, 0, 0, 1][..], &udp(7655, b"")].concat();
        let read = InnerPacket::parse(&packet("fd00::1", "fd00::2", 44, &with(1))).unwrap();
        assert!(read.is_fragment && read.has_header && read.udp_port == Some(7655));
        let read = InnerPacket::parse(&packet("fd00::1", "fd00::2", 44, &with(8))).unwrap();
        assert!(read.is_fragment && !read.has_header && read.udp_port.is_none());
    }

    #[test]
    fn mapped_addresses_and_lying_lengths_are_refused() {
        for (source, destination) in [("::ffff:10.1.0.1", "fd00::2"), ("fd00::1", "::ffff:10.1.0.2")] {
            let bytes = packet(source, destination, 6, &[0; 20]);
            assert_eq!(InnerPacket::parse(&bytes), Err(DropReason::BadInnerPacket));
        }
        let good = packet("10.1.0.1", "10.1.0.2", 6, &[0; 20]);
        for (at, value) in [(0, 0x44), (0, 0x4f), (3, 19), (3, 41), (0, 0x55), (2, 0xff)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(InnerPacket::parse(&bad), Err(DropReason::BadInnerPacket), "byte {at} = {value:#x}");
        }
    }

    #[test]
    fn what_stays_on_its_link_is_told() {
        for (source, destination) in [
            ("10.1.0.1", "224.0.0.1"),
            ("10.1.0.1", "255.255.255.255"),
            ("169.254.0.1", "10.1.0.1"),
            ("fe80::1", "ff02::2"),
            ("::", "ff02::16"),
            ("fd00::1", "::1"),
        ] {
            assert!(InnerPacket::parse(&packet(source, destination, 6, &[0; 20])).unwrap().is_link_scoped());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_lie_about_lengths(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0u8..16, next in 0u8..64,
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0x0f | version << 4;
            }
            if bytes.len() > 6 && version == 6 {
                bytes[4] = 0;
                bytes[6] = next;
            }
            if let Ok(read) = InnerPacket::parse(&bytes) {
                prop_assert!(read.payload <= read.length && read.length <= bytes.len());
                prop_assert!(read.udp_port.is_none() || read.payload + 8 <= read.length);
                prop_assert_eq!(InnerPacket::parse(&bytes[..read.length]), Ok(read));
            }
        }
    }
}

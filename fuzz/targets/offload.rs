//! What the kernel hands over to be cut, and what other nodes send to be joined.

use std::collections::BTreeMap;

use meshd::dataplane::InnerPacket;
use meshd::dataplane::offload::checksum::Sum;
use meshd::dataplane::offload::{Coalescer, Delivery, Offloads, Segments, VirtioHeader};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where the checksum stands behind the start of the transport header, for what is joined.
fn sum_field(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// Sums up a whole TCP or UDP packet's transport; zero where it is right.
fn transport_sum(packet: &[u8], inner: &InnerPacket) -> u16 {
    let transport = &packet[inner.payload..inner.length];
    Sum::pseudo(inner.source, inner.destination, inner.protocol, transport.len()).plus(transport).checksum()
}

/// A read from the device: a header, and a packet that is as it is or gets what makes it fit its header.
pub fn split(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let Some((header, packet)) = rest.split_first_chunk::<{ VirtioHeader::LENGTH }>() else { return };
    let mut header = VirtioHeader::read(header);
    assert_eq!(VirtioHeader::read(&header.write()), header);
    let mut packet = packet[..packet.len().min(65_535)].to_vec();
    let fitted = mode & 1 != 0 && fit(&mut header, &mut packet);
    let before = packet.clone();
    let Ok(mut segments) = Segments::new(&header, &mut packet) else { return };
    let inner = *segments.inner();
    let (count, length, last) = (segments.count(), segments.segment_length(), segments.last_length());
    assert!(count >= 1 && last <= length && length <= inner.length);
    let mut payload = Vec::new();
    for made in 1..=count {
        let segment = segments.next().expect("as many as were told of");
        assert_eq!(segment.len(), if made == count { last } else { length });
        let read = InnerPacket::parse(segment).expect("a segment is a packet");
        assert_eq!((read.source, read.destination, read.payload), (inner.source, inner.destination, inner.payload));
        if !header.is_super() {
            return;
        }
        assert_eq!(read.length, segment.len());
        if fitted {
            assert_eq!(transport_sum(segment, &read), 0, "segment {made} of {count}");
        }
        let own = if inner.protocol == TCP { usize::from(segment[inner.payload + 12] >> 4) * 4 } else { 8 };
        payload.extend(&segment[inner.payload + own..]);
    }
    assert!(segments.next().is_none());
    assert!(before.ends_with(&payload));
}

/// Makes lengths, sums and header agree; tells whether there is a sum that can be checked afterwards.
fn fit(header: &mut VirtioHeader, packet: &mut [u8]) -> bool {
    let length = packet.len() as u16;
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => packet[2..4].copy_from_slice(&length.to_be_bytes()),
        Some(6) if packet.len() >= 40 => packet[4..6].copy_from_slice(&(length - 40).to_be_bytes()),
        _ => return false,
    }
    let Ok(inner) = InnerPacket::parse(packet) else { return false };
    if !matches!(inner.protocol, TCP | UDP) {
        return false;
    }
    let field = sum_field(inner.protocol);
    let at = inner.payload + field;
    if at + 2 > packet.len() {
        return false;
    }
    let pseudo = Sum::pseudo(inner.source, inner.destination, inner.protocol, packet.len() - inner.payload);
    packet[at..at + 2].copy_from_slice(&pseudo.partial().to_be_bytes());
    header.flags = VirtioHeader::NEEDS_CSUM;
    header.csum_start = inner.payload as u16;
    header.csum_offset = field as u16;
    header.gso_type = match (inner.protocol, inner.source.is_ipv4()) {
        (TCP, true) => VirtioHeader::GSO_TCPV4,
        (TCP, false) => VirtioHeader::GSO_TCPV6,
        _ => VirtioHeader::GSO_UDP_L4,
    };
    true
}

/// A batch of packets, each behind its length in two bytes. The first byte's bits: sums are made right, the device takes
/// TCP, it takes UDP, the packets are forwarded.
pub fn coalesce(data: &[u8]) {
    let Some((&mode, mut rest)) = data.split_first() else { return };
    let (mut buffer, mut packets) = (Vec::new(), Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(tail.len());
        let (packet, tail) = tail.split_at(length);
        rest = tail;
        let mut packet = packet.to_vec();
        let Ok(inner) = InnerPacket::parse(&packet) else { continue };
        packet.truncate(inner.length);
        if mode & 1 != 0 {
            make_sums(&mut packet, &inner);
        }
        packets.push((buffer.len(), inner));
        buffer.extend(packet);
    }
    let given: Vec<Vec<u8>> =
        packets.iter().map(|(start, inner)| buffer[*start..start + inner.length].to_vec()).collect();
    let offloads = Offloads { tcp: mode & 2 != 0, udp: mode & 4 != 0 };
    let delivery = if mode & 8 != 0 { Delivery::Forwarded } else { Delivery::Host };
    let mut coalescer = Coalescer::new(1, offloads);
    for (start, inner) in &packets {
        coalescer.push(&buffer, *start, inner, delivery);
    }
    let mut taken = Vec::new();
    coalescer.finish(&mut buffer, |run| {
        let mut gathered = run.pieces().collect::<Vec<_>>().concat();
        let count = run.pieces().len();
        assert!((1..=60).contains(&count) && gathered.len() <= 65_575);
        let mut segments = Segments::new(&run.header, &mut gathered).expect("a run is a super-packet");
        assert_eq!(segments.count(), count);
        while let Some(packet) = segments.next() {
            taken.push(packet.to_vec());
        }
    });
    assert_eq!(taken.len(), given.len());
    // Sums that were wrong may become right on this host's own packets, and only there.
    if mode & 9 != 0 {
        assert_eq!(by_flow(&given), by_flow(&taken));
    }
}

/// Gives a packet the sums its sender should have given it.
fn make_sums(packet: &mut [u8], inner: &InnerPacket) {
    if inner.source.is_ipv4() {
        let header = usize::from(packet[0] & 15) * 4;
        packet[10..12].fill(0);
        let sum = Sum::of(&packet[..header]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = inner.payload + sum_field(inner.protocol);
    if matches!(inner.protocol, TCP | UDP) && !inner.is_fragment && at + 2 <= inner.length {
        packet[at..at + 2].fill(0);
        let sum = transport_sum(packet, inner);
        packet[at..at + 2].copy_from_slice(&if sum == 0 { 0xffffu16 } else { sum }.to_be_bytes());
    }
}

/// The packets by addresses, protocol and ports, each without what means nothing: which of its two forms a zero sum has, and
/// the identification of what must not be fragmented.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        let inner = InnerPacket::parse(packet).expect("it was parsed before");
        let addresses = if inner.source.is_ipv4() { &packet[12..20] } else { &packet[8..40] };
        let ports = packet.get(inner.payload..inner.payload + 4).unwrap_or_default();
        let key = [addresses, &[inner.protocol], ports].concat();
        let mut packet = packet.clone();
        if inner.source.is_ipv4() {
            let whole = packet[6] & 0x40 != 0 && !inner.is_fragment;
            let mut sum = Sum::default().add_word(!word(&packet, 10));
            if whole {
                sum = sum.remove_word(word(&packet, 4));
                packet[4..6].fill(0);
            }
            let sum = sum.checksum() % 0xffff;
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let at = inner.payload + sum_field(inner.protocol);
        if inner.protocol == TCP && at + 2 <= packet.len() {
            let sum = word(&packet, at) % 0xffff;
            packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        flows.entry(key).or_default().push(packet);
    }
    flows
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// Inputs to begin with.
pub mod seeds {
    use super::super::{Seed, with};
    use super::{TCP, UDP};

    /// An IPv4 packet of number `at` in a flow, without sums.
    fn v4(protocol: u8, at: u8, payload: usize) -> Vec<u8> {
        let transport = transport(protocol, at, payload);
        let mut bytes = vec![0x45, 0, 0, 0, 0, at, 0x40, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
        bytes[2..4].copy_from_slice(&((20 + transport.len()) as u16).to_be_bytes());
        bytes.extend(transport);
        bytes
    }

    fn v6(protocol: u8, at: u8, payload: usize) -> Vec<u8> {
        let transport = transport(protocol, at, payload);
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        bytes[4..6].copy_from_slice(&(transport.len() as u16).to_be_bytes());
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        bytes.extend(transport);
        bytes
    }

    fn transport(protocol: u8, at: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0x9c, 0x40, 0, 80];
        if protocol == TCP {
            bytes.extend((u32::from(at) * 40).to_be_bytes());
            bytes.extend([0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0]);
            bytes.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        } else {
            bytes.extend(((8 + payload) as u16).to_be_bytes());
            bytes.extend([1, 1]);
        }
        bytes.extend((0..payload).map(|byte| byte as u8));
        bytes
    }

    pub fn split() -> Vec<Seed> {
        let read = |size: u16, packet: Vec<u8>| {
            let mut header = vec![0; 10];
            header[4..6].copy_from_slice(&size.to_ne_bytes());
            [header, packet].concat()
        };
        let mut extended = v6(UDP, 0, 100);
        extended[6] = 60;
        extended.splice(40..40, [UDP, 0, 1, 4, 0, 0, 0, 0]);
        let mut single = read(0, v4(UDP, 0, 30));
        single[0] = 1;
        single[6..8].copy_from_slice(&20u16.to_ne_bytes());
        single[8..10].copy_from_slice(&6u16.to_ne_bytes());
        vec![
            ("empty", vec![]),
            ("plain", with(0, read(0, v4(TCP, 0, 30)))),
            ("sum-missing", with(0, single)),
            ("tcp-v4", with(1, read(40, v4(TCP, 0, 210)))),
            ("tcp-v6", with(1, read(40, v6(TCP, 0, 210)))),
            ("udp-v4", with(1, read(33, v4(UDP, 0, 100)))),
            ("udp-v6-extended", with(1, read(33, extended))),
            ("one-byte-each", with(1, read(1, v4(TCP, 0, 20)))),
        ]
    }

    pub fn coalesce() -> Vec<Seed> {
        let batch = |packets: Vec<Vec<u8>>| {
            let framed = |packet: &Vec<u8>| [&(packet.len() as u16).to_be_bytes()[..], packet].concat();
            packets.iter().flat_map(framed).collect::<Vec<u8>>()
        };
        let mut fragment = v4(UDP, 1, 40);
        fragment[6] = 0x20;
        let mixed = vec![v4(TCP, 0, 40), v6(TCP, 0, 40), v4(UDP, 0, 40), v4(TCP, 1, 40), v6(TCP, 1, 20), fragment];
        vec![
            ("empty", vec![]),
            ("tcp-v4", with(7, batch((0..4).map(|at| v4(TCP, at, 40)).collect()))),
            ("tcp-v6", with(7, batch((0..3).map(|at| v6(TCP, at, 40)).collect()))),
            ("udp-v4", with(15, batch((0..4).map(|at| v4(UDP, at, 40)).collect()))),
            ("udp-v6", with(7, batch(vec![v6(UDP, 0, 40), v6(UDP, 0, 40), v6(UDP, 0, 9)]))),
            ("wrong-sums", with(14, batch((0..3).map(|at| v4(TCP, at, 40)).collect()))),
            ("mixed", with(15, batch(mixed))),
        ]
    }
}

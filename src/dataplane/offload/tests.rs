//! Cutting and joining against packets made one by one, byte by byte.

use super::super::inner::InnerPacket;
use super::*;
use crate::platform::test_device::TestDevice;
use crate::platform::test_namespace::in_namespace;
use crate::wire::DropReason;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const BOTH: Offloads = Offloads { tcp: true, udp: true };

/// A flow's packet before it is bytes: everything the headers can say.
#[derive(Clone, Debug)]
struct Packet {
    v4: bool,
    tcp: bool,
    tos: u8,
    ttl: u8,
    id: u16,
    must_not_fragment: bool,
    /// IPv4 options or IPv6 extension headers (destination options), in units of 8 bytes.
    network_options: usize,
    ports: (u16, u16),
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
}

/// The checksum by the book: sixteen bits at a time.
fn plain_checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Packet {
    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        match self.v4 {
            true => (vec![10, 77, 0, 2], vec![10, 78, 0, 2]),
            false => {
                let address = |net: u16| Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 2).octets().to_vec();
                (address(77), address(78))
            }
        }
    }

    fn pseudo(&self, length: usize) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let protocol = if self.tcp { 6 } else { 17 };
        [source, destination, (length as u32).to_be_bytes().to_vec(), vec![0, 0, 0, protocol]].concat()
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        let field = if self.tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledgement.to_be_bytes());
            bytes.extend([((20 + self.tcp_options.len()) << 2) as u8, self.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&self.tcp_options);
            16
        } else {
            bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            bytes.extend([0; 2]);
            6
        };
        bytes.extend(&self.payload);
        let mut sum = plain_checksum(&[&self.pseudo(bytes.len()), &bytes]);
        if sum == 0 && !self.tcp {
            sum = 0xffff;
        }
        bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let protocol = if self.tcp { 6 } else { 17 };
        let (source, destination) = self.addresses();
        let options = self.network_options * 8;
        let mut bytes;
        if self.v4 {
            bytes = vec![0x45 + (options / 4) as u8, self.tos];
            bytes.extend(((20 + options + transport.len()) as u16).to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend([if self.must_not_fragment { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            bytes.extend([source, destination].concat());
            bytes.extend(vec![1; options]);
            let sum = plain_checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            bytes = vec![0x60 | self.tos >> 4, self.tos << 4, 0x12, 0x34];
            bytes.extend(((options + transport.len()) as u16).to_be_bytes());
            bytes.extend([if options > 0 { 60 } else { protocol }, self.ttl]);
            bytes.extend([source, destination].concat());
            if options > 0 {
                bytes.extend([protocol, (options / 8 - 1) as u8, 1, (options - 4) as u8]);
                bytes.extend(vec![0; options - 4]);
            }
        }
        bytes.extend(transport);
        bytes
    }

    fn headers(&self) -> usize {
        self.bytes().len() - self.payload.len()
    }

    /// The packets that stand for this one, each made from its fields.
    fn segments(&self, size: usize) -> Vec<Vec<u8>> {
        let pieces: Vec<&[u8]> = match self.payload.is_empty() {
            true => vec![&[]],
            false => self.payload.chunks(size).collect(),
        };
        let last = pieces.len() - 1;
        let segment = |(at, piece): (usize, &&[u8])| {
            let mut packet = Packet { payload: piece.to_vec(), ..self.clone() };
            packet.id = self.id.wrapping_add(at as u16);
            packet.sequence = self.sequence.wrapping_add((at * size) as u32);
            packet.flags &= if at == 0 { 0xff } else { !0x80 };
            packet.flags &= if at == last { 0xff } else { !0x09 };
            packet.bytes()
        };
        pieces.iter().enumerate().map(segment).collect()
    }

    /// This packet as the kernel hands it over to be cut.
    fn super_packet(&self, size: usize) -> (VirtioHeader, Vec<u8>) {
        let mut bytes = self.bytes();
        let start = bytes.len() - self.transport().len();
        let offset = if self.tcp { 16 } else { 6 };
        let sum = !plain_checksum(&[&self.pseudo(bytes.len() - start)]);
        bytes[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        let gso_type = match (self.tcp, self.v4) {
            (true, true) => VirtioHeader::GSO_TCPV4,
            (true, false) => VirtioHeader::GSO_TCPV6,
            (false, _) => VirtioHeader::GSO_UDP_L4,
        };
        let header = VirtioHeader {
            flags: VirtioHeader::NEEDS_CSUM,
            gso_type: gso_type | if self.tcp && self.flags & 0x80 != 0 { VirtioHeader::GSO_ECN } else { 0 },
            hdr_len: 7,
            gso_size: size as u16,
            csum_start: start as u16,
            csum_offset: offset as u16,
        };
        (header, bytes)
    }
}

fn payload(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(seed | 1).wrapping_add((at >> 8) as u8)).collect()
}

prop_compose! {
    fn any_packet(most: usize)(
        v4: bool, tcp: bool, tos: u8, ttl in 1u8.., id: u16, must_not_fragment: bool,
        network_options in prop_oneof![4 => Just(0usize), 1 => 1usize..5],
        ports: (u16, u16), sequence: u32, acknowledgement: u32, flags: u8, window: u16,
        options in 0usize..=10, length in 0..most, seed: u8,
    ) -> Packet {
        Packet {
            v4, tcp, tos, ttl, id, must_not_fragment, network_options, ports, sequence, acknowledgement, flags, window,
            tcp_options: payload(options * 4, seed), payload: payload(length, seed),
        }
    }
}

/// Cuts and checks what was foretold about the packets.
fn cut(header: &VirtioHeader, bytes: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut bytes = bytes.to_vec();
    let mut segments = Segments::new(header, &mut bytes)?;
    let (count, length, last) = (segments.count(), segments.segment_length(), segments.last_length());
    let mut packets = Vec::new();
    while let Some(packet) = segments.next() {
        packets.push(packet.to_vec());
        assert_eq!(packet.len(), if packets.len() == count { last } else { length });
    }
    assert_eq!(packets.len(), count);
    assert!(last <= length);
    assert!(segments.next().is_none());
    Ok(packets)
}

/// Joins packets, cuts the runs again where the device would, and returns the packets in the order they come out with the
/// number of runs.
fn join(packets: &[Vec<u8>], offloads: Offloads, delivery: Delivery) -> (Vec<Vec<u8>>, usize) {
    let mut coalescer = Coalescer::new(4, offloads);
    let mut buffer = vec![0xaa; 3];
    let mut starts = Vec::new();
    for packet in packets {
        starts.push(buffer.len());
        buffer.extend(packet);
        buffer.extend([0xbb; 16]);
    }
    for start in starts {
        let inner = InnerPacket::parse(&buffer[start..]).unwrap();
        coalescer.push(&buffer, start, &inner, delivery);
    }
    let (mut out, mut runs) = (Vec::new(), 0);
    coalescer.finish(&mut buffer, |run| {
        runs += 1;
        assert!(run.pieces.len() <= 60);
        let count = run.pieces().len();
        let gathered = run.pieces().collect::<Vec<_>>().concat();
        assert!(gathered.len() <= 65_535);
        assert_eq!(count > 1, run.header != VirtioHeader::PLAIN);
        let cut = cut(&run.header, &gathered).expect("a run is a super-packet");
        assert_eq!(cut.len(), count);
        out.extend(cut);
    });
    coalescer.finish(&mut buffer, |_| panic!("nothing is kept"));
    (out, runs)
}

/// Addresses, protocol and ports.
type FlowKey = (IpAddr, IpAddr, u8, u16, u16);

/// The packets of each flow, in their order.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<FlowKey, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        let inner = InnerPacket::parse(packet).unwrap();
        let port = |at: usize| u16::from_be_bytes([packet[inner.payload + at], packet[inner.payload + at + 1]]);
        let key = (inner.source, inner.destination, inner.protocol, port(0), port(2));
        flows.entry(key).or_default().push(packet.clone());
    }
    flows
}

fn stream() -> Packet {
    Packet {
        v4: true,
        tcp: true,
        tos: 2,
        ttl: 63,
        id: 0xfffe,
        must_not_fragment: true,
        network_options: 0,
        ports: (40_000, 80),
        sequence: u32::MAX - 2_000,
        acknowledgement: 9,
        flags: 0x10,
        window: 500,
        tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        payload: payload(10_000, 3),
    }
}

proptest! {
    #[test]
    fn sums_are_those_of_the_book(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300, word: u16) {
        let sum = checksum::Sum::of(&bytes);
        prop_assert_eq!(sum.checksum(), plain_checksum(&[&bytes]));
        let cut = (cut & !1).min(bytes.len() & !1);
        prop_assert_eq!(checksum::Sum::of(&bytes[..cut]).plus(&bytes[cut..]).checksum(), sum.checksum());
        let put = sum.add_word(word).remove_word(word).partial();
        prop_assert_eq!(put % 0xffff, sum.partial() % 0xffff);
    }

    #[test]
    fn cutting_is_making_the_packets_one_by_one(packet in any_packet(4_000), size in 1usize..1_500) {
        let (header, bytes) = packet.super_packet(size);
        prop_assert_eq!(cut(&header, &bytes).unwrap(), packet.segments(size));
        // The kernel may have checked the sum already; then it is whole.
        let header = VirtioHeader { flags: 0, ..header };
        prop_assert_eq!(cut(&header, &packet.bytes()).unwrap(), packet.segments(size));
    }

    #[test]
    fn sums_of_single_packets_are_completed(packet in any_packet(2_000)) {
        let (header, bytes) = packet.super_packet(1);
        let header = VirtioHeader { gso_type: 0, gso_size: 0, ..header };
        let mut expected = packet.bytes();
        let at = usize::from(header.csum_start + header.csum_offset);
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xff);
        }
        prop_assert_eq!(cut(&header, &bytes).unwrap(), vec![expected.clone()]);
        prop_assert_eq!(cut(&VirtioHeader::PLAIN, &expected).unwrap(), vec![expected]);
    }

    #[test]
    fn joining_a_cut_stream_gives_it_back(
        packet in any_packet(20_000), size in 200usize..1_500, ordinary in prop::bool::weighted(0.7), host: bool,
    ) {
        let mut packet = packet;
        if ordinary {
            packet.network_options = 0;
            packet.flags = 0x10 | packet.flags & 0x49;
        }
        let packets = packet.segments(size);
        let delivery = if host { Delivery::Host } else { Delivery::Forwarded };
        let (out, runs) = join(&packets, BOTH, delivery);
        prop_assert_eq!(&out, &packets);
        if ordinary {
            prop_assert_eq!(runs, packets.len().div_ceil(60.min((65_535 - packet.headers()) / size)));
        }
        let (out, runs) = join(&packets, Offloads { tcp: false, udp: false }, delivery);
        prop_assert_eq!((out, runs), (packets.clone(), packets.len()));
    }

    #[test]
    fn no_flow_changes_whatever_is_mixed(
        flows in prop::collection::vec((any_packet(9_000), 300usize..1_400), 1..7),
        order in prop::collection::vec(any::<prop::sample::Index>(), 60),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..60, any::<u8>()), 0..4),
    ) {
        let mut queues: Vec<Vec<Vec<u8>>> = Vec::new();
        for (number, (packet, size)) in flows.into_iter().enumerate() {
            let ports = (1_000 + number as u16, 80);
            let packet = Packet { ports, network_options: 0, flags: packet.flags & 0x59 | 0x10, ..packet };
            queues.push(packet.segments(size).into_iter().rev().collect());
        }
        let mut packets = Vec::new();
        for index in order {
            let at = index.index(queues.len());
            packets.extend(queues[at].pop());
        }
        for (which, at, value) in damage {
            if packets.is_empty() {
                continue;
            }
            let packet = which.get_mut(&mut packets[..]);
            let mut changed: Vec<u8> = packet.clone();
            changed[at.min(packet.len() - 1)] = value;
            // Only what would have come so far, and is in a flow.
            if InnerPacket::parse(&changed).is_ok_and(|inner| {
                inner.length == changed.len() && inner.payload + 4 <= inner.length && inner.has_header
            }) {
                *packet = changed;
            }
        }
        // What is forwarded keeps its sums, right or wrong.
        let (out, _) = join(&packets, BOTH, Delivery::Forwarded);
        let (mut given, mut taken) = (by_flow(&packets), by_flow(&out));
        for flow in given.values_mut().chain(taken.values_mut()) {
            for packet in flow.iter_mut() {
                forget_atomic_id(packet);
            }
        }
        prop_assert_eq!(given.keys().collect::<Vec<_>>(), taken.keys().collect::<Vec<_>>());
        for (flow, given) in &given {
            prop_assert_eq!(given.len(), taken[flow].len());
            for (given, taken) in given.iter().zip(&taken[flow]) {
                // The headers say more than a thousand bytes of payload.
                prop_assert_eq!(given.get(..80), taken.get(..80), "of {:?}", flow);
                prop_assert_eq!(given, taken);
            }
        }
    }
}

/// Clears the identification of a packet that must not be fragmented: it means nothing (RFC 6864 §4.1).
fn forget_atomic_id(packet: &mut [u8]) {
    if packet[0] == 0x45 && packet[6] & 0x60 == 0x40 {
        let id = u16::from_be_bytes([packet[4], packet[5]]);
        let sum = u16::from_be_bytes([packet[10], packet[11]]);
        packet[4..6].fill(0);
        let sum = !checksum::Sum::default().add_word(!sum).remove_word(id).partial();
        // Zero has two forms.
        packet[10..12].copy_from_slice(&(sum % 0xffff).to_be_bytes());
    }
}

/// One change of the second packet that must keep it out of the first one's run.
type Change = fn(&mut Packet);

#[test]
fn what_differs_does_not_join() {
    let changes: &[(&str, Change)] = &[
        ("a gap", |packet| packet.sequence = packet.sequence.wrapping_add(1)),
        ("a copy", |packet| packet.sequence = packet.sequence.wrapping_sub(1_000)),
        ("acknowledgement", |packet| packet.acknowledgement += 1),
        ("window", |packet| packet.window += 1),
        ("timestamps", |packet| packet.tcp_options[7] += 1),
        ("fewer options", |packet| packet.tcp_options.truncate(4)),
        ("time to live", |packet| packet.ttl -= 1),
        ("congestion", |packet| packet.tos = 3),
        ("class", |packet| packet.tos = 0xba),
        ("may be fragmented", |packet| packet.must_not_fragment = false),
        ("identification", |packet| packet.id = packet.id.wrapping_add(5)),
        ("port", |packet| packet.ports.1 = 81),
        ("ECE", |packet| packet.flags |= 0x40),
        ("CWR", |packet| packet.flags |= 0x80),
        ("URG", |packet| packet.flags |= 0x20),
        ("RST", |packet| packet.flags |= 0x04),
        ("SYN", |packet| packet.flags |= 0x02),
        ("no ACK", |packet| packet.flags = 0),
        ("longer", |packet| packet.payload.push(1)),
        ("empty", |packet| packet.payload.clear()),
        ("protocol", |packet| packet.tcp = false),
        ("options", |packet| packet.network_options = 1),
    ];
    let first = Packet { payload: payload(1_000, 5), ..stream() };
    let mut second = first.clone();
    second.sequence = second.sequence.wrapping_add(1_000);
    second.id = second.id.wrapping_add(1);
    assert_eq!(join(&[first.bytes(), second.bytes()], BOTH, Delivery::Host).1, 1);
    for (name, change) in changes {
        let mut other = second.clone();
        change(&mut other);
        let packets = [first.bytes(), other.bytes()];
        assert_eq!(join(&packets, BOTH, Delivery::Host), (packets.to_vec(), 2), "{name}");
    }
    // And it keeps what follows from joining what stands before it.
    let mut third = second.clone();
    third.sequence = third.sequence.wrapping_add(1_000);
    third.id = third.id.wrapping_add(1);
    let fragment = {
        let mut bytes = second.bytes();
        bytes[6] = 0x20;
        bytes
    };
    let empty = Packet { payload: vec![], ..second.clone() }.bytes();
    for between in [fragment, empty] {
        let packets = [first.bytes(), between, second.bytes(), third.bytes()];
        assert_eq!(join(&packets, BOTH, Delivery::Host), (packets.to_vec(), 3));
    }
}

#[test]
fn a_pushed_or_short_packet_ends_its_run() {
    let mut pushed = stream();
    pushed.flags |= 0x08;
    let packets = [
        pushed.segments(1_000),
        Packet { sequence: pushed.sequence.wrapping_add(10_000), ..pushed.clone() }.segments(1_000),
    ];
    assert_eq!(join(&packets.concat(), BOTH, Delivery::Host), (packets.concat(), 2));
    let mut short = stream();
    short.payload.truncate(9_500);
    let next = Packet { sequence: short.sequence.wrapping_add(9_500), id: short.id.wrapping_add(10), ..short.clone() };
    let packets = [short.segments(1_000), next.segments(1_000)].concat();
    assert_eq!(join(&packets, BOTH, Delivery::Host), (packets, 2));
}

#[test]
fn datagrams_without_a_sum_and_with_other_lengths_stay_alone() {
    let packet = Packet { tcp: false, ..stream() };
    let packets = packet.segments(1_000);
    assert_eq!(join(&packets, BOTH, Delivery::Host), (packets.clone(), 1));
    for (at, value) in [(26, [0, 0]), (24, [0, 9])] {
        let mut changed = packets.clone();
        changed.iter_mut().for_each(|packet| packet[at..at + 2].copy_from_slice(&value));
        assert_eq!(join(&changed, BOTH, Delivery::Host), (changed.clone(), changed.len()));
    }
}

#[test]
fn identifications_that_stay_join_only_where_they_mean_nothing() {
    for (must_not_fragment, runs) in [(true, 1), (false, 10)] {
        let mut packets = Packet { must_not_fragment, ..stream() }.segments(1_000);
        for packet in &mut packets {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
            let sum = plain_checksum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        assert_eq!(join(&packets, BOTH, Delivery::Host).1, runs);
    }
}

#[test]
fn a_wrong_sum_of_a_forwarded_packet_stays_wrong() {
    let mut packets = stream().segments(1_000);
    packets[4][700] ^= 1;
    assert_eq!(join(&packets, BOTH, Delivery::Forwarded), (packets.clone(), 3));
    // A header the kernel would refuse is refused by it still, whomever it is for.
    let mut packets = stream().segments(1_000);
    packets[4][10] ^= 1;
    assert_eq!(join(&packets, BOTH, Delivery::Host), (packets.clone(), 3));
}

#[test]
fn four_flows_grow_side_by_side_and_a_fifth_closes_the_oldest() {
    let flow = |port: u16| Packet { ports: (port, 80), ..stream() }.segments(1_000);
    for (count, runs) in [(4, 4), (5, 50)] {
        let flows: Vec<_> = (0..count).map(flow).collect();
        let packets: Vec<_> = (0..10).flat_map(|at| flows.iter().map(move |flow| flow[at].clone())).collect();
        let (out, made) = join(&packets, BOTH, Delivery::Host);
        assert_eq!(made, runs);
        assert_eq!(by_flow(&out), by_flow(&packets));
    }
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let (good, bytes) = stream().super_packet(1_000);
    cut(&good, &bytes).unwrap();
    for header in [
        VirtioHeader { gso_type: VirtioHeader::GSO_TCPV6, ..good },
        VirtioHeader { gso_type: VirtioHeader::GSO_UDP_L4, ..good },
        VirtioHeader { gso_type: 3, ..good },
        VirtioHeader { gso_type: VirtioHeader::GSO_ECN, ..good },
        VirtioHeader { gso_size: 0, ..good },
        VirtioHeader { csum_start: 24, ..good },
        VirtioHeader { csum_offset: 6, ..good },
        VirtioHeader { gso_type: 0, csum_start: 0, ..good },
        VirtioHeader { gso_type: 0, csum_start: 65_535, ..good },
        VirtioHeader { gso_type: 0, csum_offset: 65_535, ..good },
    ] {
        assert_eq!(cut(&header, &bytes), Err(DropReason::BadInnerPacket), "{header:?}");
    }
    for (at, value) in [(32, 0x40), (32, 0xf0), (6, 0x20), (7, 1), (0, 0x46), (9, 17)] {
        let mut changed = bytes.clone();
        changed[at] = value;
        changed.truncate(70);
        changed[2..4].copy_from_slice(&70u16.to_be_bytes());
        assert_eq!(cut(&good, &changed), Err(DropReason::BadInnerPacket), "byte {at} = {value:#x}");
    }
    assert_eq!(cut(&good, &[bytes, vec![0]].concat()), Err(DropReason::BadInnerPacket));
}

#[test]
fn a_sum_of_a_tunnel_inside_is_completed_where_it_is() {
    // UDP with something inside that has a sum of its own at byte 60.
    let mut bytes = Packet { tcp: false, payload: payload(100, 7), ..stream() }.bytes();
    let header =
        VirtioHeader { flags: VirtioHeader::NEEDS_CSUM, csum_start: 44, csum_offset: 16, ..VirtioHeader::PLAIN };
    let out = cut(&header, &bytes).unwrap().remove(0);
    let sum = plain_checksum(&[&bytes[44..]]);
    bytes[60..62].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(out, bytes);
}

#[test]
fn the_reference_makes_real_packets() {
    let packet = Packet { v4: true, network_options: 0, ..stream() }.bytes();
    let inner = InnerPacket::parse(&packet).unwrap();
    assert_eq!(inner.source, IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)));
    assert_eq!(inner.payload, 20);
}

/// Streams of all kinds the kernel may have to cut: both families and protocols, odd sizes, options, a push at the end.
fn streams() -> Vec<(Packet, usize)> {
    let mut streams = Vec::new();
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        for (network_options, flags, length, size) in
            [(0, 0x10, 60_000, 1_000), (0, 0x18, 7_001, 333), (0, 0x59, 1_341, 1_340), (1, 0x10, 5_000, 700)]
        {
            let packet = Packet { v4, tcp, network_options, flags, payload: payload(length, 9), ..stream() };
            streams.push((packet, size));
        }
    }
    streams
}

/// What forwarding makes of a packet.
fn forwarded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let sum = plain_checksum(&[&packet[..usize::from(packet[0] & 15) * 4]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[7] -= 1;
    }
    packet
}

/// Has the kernel forward `writes` from a device with offloads to one with or without; returns what comes out, cut by the
/// kernel or by us, and how much of it was to be cut.
fn through_the_kernel(writes: &[Vec<u8>], cut_by_us: bool, expected: usize) -> (Vec<Vec<u8>>, usize) {
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
    }
    let from = TestDevice::new("from", true, &["10.77.0.1/24", "fd00:4d::1/64"]);
    let to = TestDevice::new("to", cut_by_us, &["10.78.0.1/24", "fd00:4e::1/64"]);
    let (mut packets, mut supers) = (Vec::new(), 0);
    // All of it fits into the device's queue of 500.
    assert!(expected < 500);
    writes.iter().for_each(|bytes| from.write(bytes));
    while packets.len() < expected {
        let read = to.read();
        let (header, bytes) = match read.split_first_chunk().filter(|_| cut_by_us) {
            Some((header, bytes)) => (VirtioHeader::read(header), bytes),
            None => (VirtioHeader::PLAIN, &read[..]),
        };
        // Not what the kernel says for itself: who listens to which group.
        if InnerPacket::parse(bytes).unwrap().is_link_scoped() {
            continue;
        }
        supers += usize::from(header.is_super());
        packets.extend(cut(&header, bytes).unwrap());
    }
    (packets, supers)
}

#[test]
fn the_kernel_cuts_our_runs_into_the_packets_they_were_made_of() {
    for cut_by_us in [false, true] {
        in_namespace("the_kernel_cuts_our_runs_into_the_packets_they_were_made_of", move || {
            let packets: Vec<_> = streams().iter().flat_map(|(packet, size)| packet.segments(*size)).collect();
            let mut buffer = packets.concat();
            let mut coalescer = Coalescer::new(100, BOTH);
            let mut start = 0;
            for packet in &packets {
                coalescer.push(&buffer, start, &InnerPacket::parse(packet).unwrap(), Delivery::Forwarded);
                start += packet.len();
            }
            let (mut writes, mut joined) = (Vec::new(), 0);
            coalescer.finish(&mut buffer, |run| {
                joined += usize::from(run.header.is_super());
                writes.push([&run.header.write()[..], &run.pieces().collect::<Vec<_>>().concat()].concat());
            });
            let (out, supers) = through_the_kernel(&writes, cut_by_us, packets.len());
            let expected: Vec<_> = packets.iter().map(|packet| forwarded(packet)).collect();
            assert!(out == expected);
            assert_eq!(supers, if cut_by_us { joined } else { 0 });
            assert!(joined >= 12);
        });
    }
}

#[test]
fn the_kernel_cuts_super_packets_as_we_do() {
    for cut_by_us in [false, true] {
        in_namespace("the_kernel_cuts_super_packets_as_we_do", move || {
            let framed = |(packet, size): &(Packet, usize)| {
                let (mut header, bytes) = packet.super_packet(*size);
                header.hdr_len = packet.headers() as u16;
                [&header.write()[..], &bytes].concat()
            };
            let writes: Vec<_> = streams().iter().map(framed).collect();
            let packets = streams().iter().flat_map(|(packet, size)| packet.segments(*size)).collect::<Vec<_>>();
            let (out, supers) = through_the_kernel(&writes, cut_by_us, packets.len());
            let expected: Vec<_> = packets.iter().map(|packet| forwarded(packet)).collect();
            assert!(out == expected);
            assert_eq!(supers, if cut_by_us { writes.len() } else { 0 });
        });
    }
}

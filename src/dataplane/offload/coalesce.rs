//! Making runs of consecutive packets of one flow, which the kernel then handles as one.
//!
//! # What becomes of checksums
//! A packet that stays alone reaches the kernel bit for bit as it was sealed, with the sum its sender gave it. Of a run, the
//! kernel is told to make the sums itself where they are needed at all; nobody looks at those that came. This is what the
//! kernel's own WireGuard does: it marks what it has opened as not to be checked (the seal is the stronger proof that nothing
//! changed on the way) and lets runs be made of it, whose sums are made anew where they leave the host. A packet that was
//! damaged before it was sealed would get a right sum that way. For this host's own connections that has no other end: the
//! sums were made where the packet was sealed. What is only forwarded may have come from farther away, so its sums are
//! checked before it joins a run ([`Delivery::Forwarded`]), and what fails passes alone, as wrong as it was.

use super::super::inner::{InnerPacket, TCP, UDP};
use super::VirtioHeader;
use super::checksum::Sum;
use std::net::IpAddr;
use std::ops::Range;

/// Runs open at once: beyond this many flows in one batch, none has packets enough for runs to matter, and every packet is
/// compared with all of them.
const OPEN: usize = 4;

/// Packets in a run, and so pieces of what is written in one call: below the 64 datagrams the older kernels take in one piece.
pub const MOST_PIECES: usize = 60;

/// Bytes of a run, headers included: what IPv4's length can say; IPv6's could say 40 more.
const MOST_BYTES: usize = 65_535;

/// The end of the list of a run's packets.
const END: u32 = u32::MAX;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// Which runs the device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Runs of TCP segments.
    pub tcp: bool,
    /// Runs of UDP datagrams (Linux 6.2 and later).
    pub udp: bool,
}

/// Whom a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// This host: its own address.
    Host,
    /// Others: this host only forwards it.
    Forwarded,
}

/// Collects the opened packets of one batch and gives them back as runs.
///
/// Packets lie in one buffer of the caller's, which must not change between the first [`Coalescer::push`] and
/// [`Coalescer::finish`].
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    packets: Vec<Packet>,
    runs: Vec<Flow>,
    /// Indices in `runs` of those that may still grow, the one that grew last at the end.
    open: Vec<usize>,
    pieces: Vec<Range<usize>>,
}

/// One packet's place: the whole of the first of a run, the payload of the others.
#[derive(Clone, Debug)]
struct Packet {
    piece: Range<usize>,
    next: u32,
}

/// A run that is being made.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// Where its first packet starts.
    start: usize,
    /// Where its transport header starts, from there.
    transport: usize,
    /// Bytes of all headers of each packet.
    headers: usize,
    protocol: u8,
    is_v4: bool,
    /// Bytes of payload of each packet but the last.
    size: usize,
    /// Bytes of the run.
    length: usize,
    first: u32,
    last: u32,
    count: usize,
    /// How IPv4 identifications go on.
    numbering: Numbering,
    /// FIN and PSH of the last packet.
    closing: u8,
}

/// The two ways identifications of one flow go on that the kernel, cutting the run again, may make one of: counting up is
/// what it does itself; staying the same is for packets that must not be fragmented, where the field means nothing
/// (RFC 6864 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbering {
    Unknown,
    Counting,
    Constant,
}

/// What is to be written in one call: the header, then all pieces.
#[derive(Debug)]
pub struct Run<'a> {
    /// What the kernel is asked to do.
    pub header: VirtioHeader,
    /// The caller's buffer.
    pub buffer: &'a [u8],
    /// Where the pieces lie in it: the first packet whole, then the payloads of the others.
    pub pieces: &'a [Range<usize>],
}

impl Run<'_> {
    /// The pieces themselves, one per packet.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| &self.buffer[piece.clone()])
    }
}

impl Coalescer {
    /// Makes one that has room for `packets` packets at a time; it grows where there are more.
    pub fn new(packets: usize, offloads: Offloads) -> Self {
        Coalescer {
            offloads,
            packets: Vec::with_capacity(packets),
            runs: Vec::with_capacity(packets),
            open: Vec::with_capacity(OPEN + 1),
            pieces: Vec::with_capacity(MOST_PIECES),
        }
    }

    /// Changes what the device takes, for the next batch: after it refused a run, for one.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    /// Returns whether no packet was pushed since the last finish.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Takes the packet at `start` of `buffer`, whose headers are `inner`.
    pub fn push(&mut self, buffer: &[u8], start: usize, inner: &InnerPacket, delivery: Delivery) {
        let packet = &buffer[start..start + inner.length];
        let number = self.packets.len() as u32;
        let candidate = self.candidate(packet, start, inner, delivery, number);
        let found = self.open.iter().position(|&run| self.runs[run].is_same_flow(buffer, packet, inner));
        if let (Some(at), Some(candidate)) = (found, &candidate) {
            let index = self.open[at];
            if let Some(numbering) = self.runs[index].takes(buffer, packet, candidate) {
                let run = &mut self.runs[index];
                self.packets[run.last as usize].next = number;
                run.last = number;
                run.count += 1;
                run.length += candidate.size;
                run.numbering = numbering;
                run.closing = candidate.closing;
                let payload = start + candidate.headers..start + inner.length;
                self.packets.push(Packet { piece: payload, next: END });
                if candidate.closing != 0 || candidate.size < run.size || run.count == MOST_PIECES {
                    self.open.remove(at);
                } else {
                    self.open[at..].rotate_left(1);
                }
                return;
            }
        }
        // What follows in the flow must not join a run that stands before this packet.
        if inner.is_fragment {
            self.open.clear();
        } else if let Some(at) = found {
            self.open.remove(at);
        }
        self.packets.push(Packet { piece: start..start + inner.length, next: END });
        let joinable = candidate.is_some_and(|candidate| candidate.closing == 0);
        self.runs.push(candidate.unwrap_or(Flow::alone(start, inner, number)));
        if joinable {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            self.open.push(self.runs.len() - 1);
        }
    }

    /// Gives back all packets as runs, each flow in its order, and forgets them.
    ///
    /// A run the device refuses can be cut again into its packets: gather it and give it to
    /// [`Segments`](super::Segments) with its header.
    pub fn finish(&mut self, buffer: &mut [u8], mut write: impl FnMut(Run<'_>)) {
        for run in &self.runs {
            self.pieces.clear();
            let mut next = run.first;
            while let Some(packet) = self.packets.get(next as usize) {
                self.pieces.push(packet.piece.clone());
                next = packet.next;
            }
            let header = run.seal_header(&mut buffer[run.start..]);
            write(Run { header, buffer, pieces: &self.pieces });
        }
        self.packets.clear();
        self.runs.clear();
        self.open.clear();
    }

    /// Describes a packet as the first of a run, where it may be one.
    fn candidate(
        &self,
        packet: &[u8],
        start: usize,
        inner: &InnerPacket,
        delivery: Delivery,
        number: u32,
    ) -> Option<Flow> {
        let transport = packet.get(inner.payload..)?;
        let (own, closing) = match inner.protocol {
            TCP if self.offloads.tcp => {
                let header = transport.first_chunk::<20>()?;
                // Only data, its end and its urgency to be read; CWR, of which kernels disagree whether one segment or all
                // get it, and everything that opens or breaks a connection stays alone. AccECN's AE is in the byte before.
                if header[13] & !(FIN | PSH | ECE) != ACK {
                    return None;
                }
                (usize::from(header[12] >> 4) * 4, header[13] & (FIN | PSH))
            }
            UDP if self.offloads.udp => {
                let header = transport.first_chunk::<8>()?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                // Without a sum there must be none in the end.
                if length != transport.len() || header[6..8] == [0, 0] {
                    return None;
                }
                (8, 0)
            }
            _ => return None,
        };
        let is_v4 = inner.source.is_ipv4();
        let network = if is_v4 { 20 } else { 40 };
        // With options or extension headers, or in fragments, packets are too rare to be worth comparing those.
        if inner.payload != network || inner.is_fragment || own < 8 || own >= transport.len() {
            return None;
        }
        // The kernel would have dropped it, and must not get it repaired.
        if is_v4 && Sum::of(&packet[..20]).checksum() != 0 {
            return None;
        }
        if inner.protocol == TCP && own < 20 {
            return None;
        }
        if delivery == Delivery::Forwarded {
            let pseudo = Sum::pseudo(inner.source, inner.destination, inner.protocol, transport.len());
            if pseudo.plus(transport).checksum() != 0 {
                return None;
            }
        }
        Some(Flow {
            start,
            transport: inner.payload,
            headers: inner.payload + own,
            protocol: inner.protocol,
            is_v4,
            size: transport.len() - own,
            length: packet.len(),
            first: number,
            last: number,
            count: 1,
            numbering: Numbering::Unknown,
            closing,
        })
    }
}

impl Flow {
    /// A packet that joins nothing.
    fn alone(start: usize, inner: &InnerPacket, number: u32) -> Flow {
        Flow {
            start,
            transport: inner.payload,
            headers: inner.length,
            protocol: inner.protocol,
            is_v4: inner.source.is_ipv4(),
            size: 0,
            length: inner.length,
            first: number,
            last: number,
            count: 1,
            numbering: Numbering::Unknown,
            closing: 0,
        }
    }

    /// Tells whether the run and a packet with `inner` have addresses, protocol and ports in common.
    fn is_same_flow(&self, buffer: &[u8], packet: &[u8], inner: &InnerPacket) -> bool {
        let first = &buffer[self.start..self.start + self.headers];
        let addresses = if self.is_v4 { 12..20 } else { 8..40 };
        self.protocol == inner.protocol
            && self.is_v4 == inner.source.is_ipv4()
            && first[addresses.clone()] == packet[addresses]
            // Where the ports cannot be told it may be the same flow.
            && packet
                .get(inner.payload..inner.payload + 4)
                .is_none_or(|ports| first[self.transport..self.transport + 4] == *ports)
    }

    /// Tells whether `next`, whose bytes are `packet`, may follow in the run, and how identifications go on then.
    fn takes(&self, buffer: &[u8], packet: &[u8], next: &Flow) -> Option<Numbering> {
        if next.headers != self.headers || next.size > self.size || self.length + next.size > MOST_BYTES {
            return None;
        }
        let first = &buffer[self.start..self.start + self.headers];
        let packet = &packet[..self.headers];
        let numbering = if self.is_v4 {
            // Version, header length and TOS; flags, fragment offset, TTL and protocol.
            if first[..2] != packet[..2] || first[6..10] != packet[6..10] {
                return None;
            }
            let id = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
            let must_not_fragment = first[6] & 0x40 != 0;
            let counts = id(first).wrapping_add(self.count as u16) == id(packet);
            match self.numbering {
                Numbering::Unknown | Numbering::Counting if counts => Numbering::Counting,
                Numbering::Unknown | Numbering::Constant if must_not_fragment && id(first) == id(packet) => {
                    Numbering::Constant
                }
                _ => return None,
            }
        } else {
            // Version, traffic class and flow label; next header and hop limit.
            if first[..4] != packet[..4] || first[6..8] != packet[6..8] {
                return None;
            }
            Numbering::Unknown
        };
        if self.protocol == TCP {
            let (first, packet) = (&first[self.transport..], &packet[self.transport..]);
            let sequence = |header: &[u8]| u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let expected = sequence(first).wrapping_add((self.count * self.size) as u32);
            let flags_differ = (first[13] ^ packet[13]) & !(FIN | PSH) != 0;
            // Acknowledgement, header length with the reserved bits; window; urgent pointer and options.
            if sequence(packet) != expected
                || first[8..13] != packet[8..13]
                || flags_differ
                || first[14..16] != packet[14..16]
                || first[18..] != packet[18..]
            {
                return None;
            }
        }
        Some(numbering)
    }

    /// Makes the first packet's headers those of the run and returns what stands in front of them.
    fn seal_header(&self, packet: &mut [u8]) -> VirtioHeader {
        if self.count == 1 {
            return VirtioHeader::PLAIN;
        }
        let (network, transport) = packet[..self.headers].split_at_mut(self.transport);
        let transport_length = self.length - self.transport;
        let address = |range: Range<usize>| address_at(&network[range]);
        let (source, destination) =
            if self.is_v4 { (address(12..16), address(16..20)) } else { (address(8..24), address(24..40)) };
        let pseudo = Sum::pseudo(source, destination, self.protocol, transport_length).partial();
        if self.is_v4 {
            network[2..4].copy_from_slice(&(self.length as u16).to_be_bytes());
            network[10..12].fill(0);
            let sum = Sum::of(network).checksum();
            network[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            network[4..6].copy_from_slice(&(transport_length as u16).to_be_bytes());
        }
        let (gso_type, csum_offset) = if self.protocol == TCP {
            transport[13] |= self.closing;
            (if self.is_v4 { VirtioHeader::GSO_TCPV4 } else { VirtioHeader::GSO_TCPV6 }, 16)
        } else {
            transport[4..6].copy_from_slice(&(transport_length as u16).to_be_bytes());
            (VirtioHeader::GSO_UDP_L4, 6)
        };
        transport[csum_offset..csum_offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        VirtioHeader {
            flags: VirtioHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: self.headers as u16,
            gso_size: self.size as u16,
            csum_start: self.transport as u16,
            csum_offset: csum_offset as u16,
        }
    }
}

fn address_at(octets: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(octets) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets).unwrap_or_default()),
    }
}

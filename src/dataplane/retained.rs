//! The newest TCP segment of each flow to a peer that does not answer, to be sent again once it does.
//!
//! While a link is cut, the kernel's TCP sends a lost segment again after ever longer pauses, up to two minutes (RFC 6298
//! §5.5). When the link is back, a connection would stand still until the next of these. But the newest of them passed here
//! and is at hand: sent as soon as the link answers, it makes the other end acknowledge, and the flow goes on at once.
//!
//! One segment of a flow is enough, and only the newest is kept. Of two, one that carries something (data, or the start or end
//! of a connection) outweighs a bare acknowledgement. Each is sent once; what arrives twice, TCP sorts out as it always does.

use super::inner::{InnerPacket, TCP};
use super::offload::{Segments, VirtioHeader};
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::DropReason;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Flows of one peer whose newest segment is kept: a pool of database connections, or a few. Those that find no room wait
/// for their kernel, as they would without us.
const MOST_FLOWS: usize = 256;

/// Memory for the segments of all peers, in bytes: some 2,700 of a usual MTU, so that a host whose uplink is gone does not pay
/// for it in memory.
const MOST_BYTES: usize = 4 * 1_024 * 1_024;

/// How long a segment is worth sending: TCP's maximum segment lifetime (RFC 9293 §3.4.1), after which nobody may meet it, and
/// the longest pause between two of the kernel's own attempts (RFC 6298 §2.5 with Linux's maximum).
const LIFE: Duration = Duration::from_secs(120);

/// Flags of a TCP header that make a segment more than an acknowledgement: FIN, SYN and RST.
const MEANINGFUL: u8 = 0x01 | 0x02 | 0x04;

/// The segments kept for all peers. Locked only for packets to peers that do not answer.
#[derive(Debug, Default)]
pub(super) struct Retained {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    peers: HashMap<NodeId, Vec<Segment>>,
    bytes: usize,
}

#[derive(Debug)]
struct Segment {
    flow: Flow,
    at: Instant,
    /// Whether it carries data, or starts or ends the connection.
    carries: bool,
    packet: Vec<u8>,
}

/// A connection, in the direction of one of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    source: IpAddr,
    destination: IpAddr,
    /// Source and destination port, as they stand in the header.
    ports: [u8; 4],
}

impl Retained {
    /// Keeps a copy of the packet, if it is a whole TCP segment, in the place of its flow's last. Returns whether it is one that
    /// the peer has to answer.
    pub(super) fn keep(&self, now: Instant, peer: NodeId, packet: &[u8]) -> bool {
        let Some((flow, carries, length)) = read(packet) else { return false };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { peers, bytes } = &mut *table;
        let kept = peers.entry(peer).or_default();
        let place = kept.iter().position(|kept| kept.flow == flow);
        let (replaced, fits) = match place {
            Some(place) => (kept[place].packet.len(), carries || !kept[place].carries),
            None => (0, kept.len() < MOST_FLOWS),
        };
        if !fits || *bytes - replaced + length > MOST_BYTES {
            return carries;
        }
        *bytes = *bytes - replaced + length;
        let segment = Segment { flow, at: now, carries, packet: packet[..length].to_vec() };
        match place {
            Some(place) => kept[place] = segment,
            None => kept.push(segment),
        }
        carries
    }

    /// Takes out what is kept for a peer and goes to a network, still worth sending, in the order in which the flows came.
    pub(super) fn take_within(&self, now: Instant, peer: NodeId, network: &IpNet) -> Vec<Vec<u8>> {
        worth_sending(self.remove(peer, |segment| network.contains(&segment.flow.destination)), now)
    }

    /// Takes out what is kept for a peer and still worth sending, in the order in which the flows came.
    pub(super) fn take(&self, now: Instant, peer: NodeId) -> Vec<Vec<u8>> {
        worth_sending(self.remove(peer, |_| true), now)
    }

    /// Drops what is kept for a peer.
    pub(super) fn forget(&self, peer: NodeId) {
        self.remove(peer, |_| true);
    }

    fn remove(&self, peer: NodeId, wanted: impl Fn(&Segment) -> bool) -> Vec<Segment> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { peers, bytes } = &mut *table;
        let Some(kept) = peers.get_mut(&peer) else { return Vec::new() };
        let removed: Vec<Segment> = kept.extract_if(.., |segment| wanted(segment)).collect();
        if kept.is_empty() {
            peers.remove(&peer);
        }
        *bytes -= removed.iter().map(|segment| segment.packet.len()).sum::<usize>();
        removed
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.table.lock().unwrap().bytes
    }
}

/// A kept segment as such of at most `mtu` bytes: the way that it takes now may carry less than the one that it was made for, and
/// what does not fit would wake nobody.
///
/// # Errors
/// [`DropReason::BadInnerPacket`] where it is no TCP segment; [`DropReason::TooBig`] where not even its headers fit.
pub(super) fn fitting(mtu: u16, packet: &mut [u8]) -> Result<Segments<'_>, DropReason> {
    if packet.len() <= usize::from(mtu) {
        return Segments::new(&VirtioHeader::PLAIN, packet);
    }
    let inner = InnerPacket::parse(packet)?;
    let offset = packet.get(inner.payload + 12).ok_or(DropReason::BadInnerPacket)? >> 4;
    let headers = inner.payload + usize::from(offset) * 4;
    let gso_size = usize::from(mtu).checked_sub(headers).filter(|size| *size > 0).ok_or(DropReason::TooBig)?;
    let gso_type = if inner.source.is_ipv4() { VirtioHeader::GSO_TCPV4 } else { VirtioHeader::GSO_TCPV6 };
    Segments::new(&VirtioHeader { gso_type, gso_size: gso_size as u16, ..VirtioHeader::PLAIN }, packet)
}

fn worth_sending(segments: Vec<Segment>, now: Instant) -> Vec<Vec<u8>> {
    let fresh = segments.into_iter().filter(|segment| now.saturating_since(segment.at) < LIFE);
    fresh.map(|segment| segment.packet).collect()
}

/// Reads a TCP segment: its flow, whether it is more than an acknowledgement, and the packet's length without padding.
fn read(packet: &[u8]) -> Option<(Flow, bool, usize)> {
    let inner = InnerPacket::parse(packet).ok()?;
    if inner.protocol != TCP || inner.is_fragment || !inner.has_header {
        return None;
    }
    let header = packet.get(inner.payload..inner.length)?.first_chunk::<20>()?;
    let data = inner.payload + usize::from(header[12] >> 4) * 4;
    let carries = header[13] & MEANINGFUL != 0 || data < inner.length;
    let ports = [header[0], header[1], header[2], header[3]];
    Some((Flow { source: inner.source, destination: inner.destination, ports }, carries, inner.length))
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::packet;
    use super::super::offload::checksum::Sum;
    use super::*;
    use proptest::prelude::*;

    const ACK: u8 = 0x10;
    const SYN: u8 = 0x02;
    const DB: NodeId = NodeId::from_bytes([7; 16]);

    fn segment(port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0; 20];
        tcp[..2].copy_from_slice(&port.to_be_bytes());
        tcp[2..4].copy_from_slice(&3306u16.to_be_bytes());
        (tcp[12], tcp[13]) = (5 << 4, flags);
        tcp.extend(data);
        packet("10.77.0.1", "10.77.0.2", TCP, &tcp)
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1_000)
    }

    #[test]
    fn of_each_flow_the_newest_segment_is_sent_once() {
        let retained = Retained::default();
        for (second, port, data) in [(1, 5_000, "old"), (2, 5_001, "other"), (3, 5_000, "new")] {
            retained.keep(at(second), DB, &segment(port, ACK, data.as_bytes()));
        }
        assert_eq!(retained.take(at(4), DB), [segment(5_000, ACK, b"new"), segment(5_001, ACK, b"other")]);
        assert!(retained.take(at(4), DB).is_empty());
        assert_eq!(retained.bytes(), 0);
    }

    #[test]
    fn an_acknowledgement_takes_no_places_but_its_own() {
        let retained = Retained::default();
        let (data, syn, ack) = (segment(1, ACK, b"data"), segment(2, SYN, b""), segment(3, ACK, b""));
        for packet in [&data, &syn, &ack] {
            retained.keep(at(1), DB, packet);
        }
        for port in 1..=3 {
            retained.keep(at(2), DB, &segment(port, ACK, b""));
        }
        assert_eq!(retained.take(at(3), DB), [data, syn, ack]);
    }

    #[test]
    fn peers_are_told_apart_and_old_segments_stay_behind() {
        let (retained, other) = (Retained::default(), NodeId::from_bytes([8; 16]));
        retained.keep(at(0), DB, &segment(1, ACK, b"old"));
        retained.keep(at(1), DB, &segment(2, ACK, b"in time"));
        assert!(retained.take(at(2), other).is_empty());
        assert_eq!(retained.take(at(120), DB), [segment(2, ACK, b"in time")]);
    }

    #[test]
    fn what_a_narrower_way_does_not_carry_is_cut_to_fit() {
        let data: Vec<u8> = (0..1_380u16).map(|number| number as u8).collect();
        let mut tcp = segment(9, ACK, &data)[20..].to_vec();
        tcp[4..8].copy_from_slice(&(u32::MAX - 700).to_be_bytes());
        for (source, destination, pieces) in [("10.77.0.1", "10.77.0.2", 2), ("fd00::1", "fd00::2", 2)] {
            let whole = packet(source, destination, TCP, &tcp);
            let mtu = 1_328u16;
            let mut kept = whole.clone();
            let mut cut = fitting(mtu, &mut kept).unwrap();
            let (mut joined, mut count) = (Vec::new(), 0);
            while let Some(piece) = cut.next() {
                assert!(piece.len() <= usize::from(mtu));
                let inner = InnerPacket::parse(piece).unwrap();
                let transport = &piece[inner.payload..];
                let sequence = u32::from_be_bytes(*transport[4..].first_chunk().unwrap());
                assert_eq!(sequence, (u32::MAX - 700).wrapping_add(joined.len() as u32));
                let sum = Sum::pseudo(inner.source, inner.destination, TCP, transport.len()).plus(transport);
                assert_eq!(sum.checksum(), 0, "as a receiver sums it");
                joined.extend(&transport[20..]);
                count += 1;
            }
            assert_eq!((joined, count), (data.clone(), pieces));
            let mut kept = whole.clone();
            assert_eq!(fitting(1_440, &mut kept).unwrap().next(), Some(&whole[..]), "what fits is as it was");
            assert_eq!(fitting(30, &mut whole.clone()).unwrap_err(), DropReason::TooBig);
        }
    }

    #[test]
    fn what_goes_to_a_network_is_taken_alone() {
        let retained = Retained::default();
        let mut behind = segment(2, ACK, b"behind");
        behind[16..20].copy_from_slice(&[10, 20, 0, 5]);
        let direct = segment(1, ACK, b"direct");
        retained.keep(at(0), DB, &behind);
        retained.keep(at(1), DB, &direct);
        let network = "10.20.0.0/16".parse().unwrap();
        assert_eq!(retained.take_within(at(2), DB, &network), [behind]);
        assert!(retained.take_within(at(2), DB, &network).is_empty());
        assert_eq!(retained.take(at(2), DB), [direct]);
        assert_eq!(retained.bytes(), 0);
    }

    #[test]
    fn only_whole_tcp_segments_are_kept_and_without_their_padding() {
        let retained = Retained::default();
        let mut fragment = segment(1, ACK, b"data");
        fragment[6] = 0x20;
        let cut = packet("10.77.0.1", "10.77.0.2", TCP, &[0; 19]);
        let udp = packet("10.77.0.1", "10.77.0.2", 17, &[0; 30]);
        for packet in [fragment, cut, udp, Vec::new()] {
            retained.keep(at(1), DB, &packet);
        }
        assert!(retained.take(at(1), DB).is_empty());
        let whole = segment(1, ACK, b"data");
        retained.keep(at(1), DB, &[&whole[..], &[0; 12]].concat());
        assert_eq!(retained.take(at(1), DB), [whole]);
    }

    #[test]
    fn flows_and_bytes_are_bounded() {
        let retained = Retained::default();
        for port in 0..2 * MOST_FLOWS as u16 {
            retained.keep(at(1), DB, &segment(port, ACK, b"data"));
        }
        assert_eq!(retained.take(at(1), DB).len(), MOST_FLOWS);
        for peer in 0..=u8::MAX {
            for port in 0..20 {
                retained.keep(at(1), NodeId::from_bytes([peer; 16]), &segment(port, ACK, &[0; 1_380]));
            }
        }
        assert!(retained.bytes() <= MOST_BYTES && retained.bytes() > MOST_BYTES - 1_500, "{}", retained.bytes());
        // Longer than the one it replaces: no way round the bound.
        retained.keep(at(1), NodeId::from_bytes([0; 16]), &segment(0, ACK, &[0; 60_000]));
        assert!(retained.bytes() <= MOST_BYTES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_and_accounted_for(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
            let retained = Retained::default();
            for mut packet in packets {
                // Many of them TCP over IPv4 or IPv6.
                for (at, value) in [(0, 0x45), (9, TCP)] {
                    if let Some(byte) = packet.get_mut(at) {
                        *byte = value;
                    }
                }
                retained.keep(at(1), DB, &packet);
            }
            retained.take(at(1), DB);
            prop_assert_eq!(retained.bytes(), 0);
        }
    }
}

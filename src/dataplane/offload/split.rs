//! Cutting a super-packet into the packets it stands for.

use super::super::inner::{InnerPacket, TCP, UDP};
use super::VirtioHeader;
use super::checksum::Sum;
use crate::wire::DropReason;

/// TCP flags in byte 13 of its header (RFC 9293 §3.1) that not all segments have.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The packets of one read from the device, in order, each made in the bytes the super-packet came in: the headers go in
/// front of a segment's payload, over the end of the segment before, so no payload is ever moved.
///
/// What comes out is what the kernel's own segmentation makes: IPv4 identifications count up, FIN and PSH are the last
/// segment's, CWR is the first's, everything else in the headers is the same.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a mut [u8],
    inner: InnerPacket,
    /// How segments are made; nothing for a single packet.
    cut: Option<Cut>,
    /// How many packets were made.
    made: usize,
    count: usize,
}

/// What is the same for all segments of a super-packet.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of payload of every segment but the last.
    size: usize,
    /// The pseudo header without its length.
    pseudo: Sum,
    /// Flags that wait for the last segment.
    closing: u8,
}

impl<'a> Segments<'a> {
    /// Judges the packet that follows `header`, and of a single packet sums what the kernel left to be summed.
    ///
    /// # Errors
    /// [`DropReason::BadInnerPacket`] where the packet is no whole IP packet or the header does not fit it.
    pub fn new(header: &VirtioHeader, packet: &'a mut [u8]) -> Result<Self, DropReason> {
        let inner = InnerPacket::parse(packet)?;
        let cut = if header.is_super() {
            Some(Cut::plan(header, packet, &inner).ok_or(DropReason::BadInnerPacket)?)
        } else {
            if header.flags & VirtioHeader::NEEDS_CSUM != 0 {
                complete(header, packet, &inner).ok_or(DropReason::BadInnerPacket)?;
            }
            None
        };
        let count = cut.map_or(1, |cut| (inner.length - cut.headers).div_ceil(cut.size).max(1));
        Ok(Segments { packet, inner, cut, made: 0, count })
    }

    /// The headers as they came: those of all segments but for the length.
    pub fn inner(&self) -> &InnerPacket {
        &self.inner
    }

    /// How many packets there are, at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of every packet but the last.
    pub fn segment_length(&self) -> usize {
        self.cut.map_or(self.inner.length, |cut| self.inner.length.min(cut.headers + cut.size))
    }

    /// Bytes of the last packet, at most [`Segments::segment_length`].
    pub fn last_length(&self) -> usize {
        self.cut.map_or(self.inner.length, |cut| self.inner.length - (self.count - 1) * cut.size)
    }

    /// Makes the next packet; what was returned before is overwritten.
    #[expect(clippy::should_implement_trait, reason = "what it returns is lent, which an iterator cannot say")]
    pub fn next(&mut self) -> Option<&[u8]> {
        if self.made == self.count {
            return None;
        }
        let at = self.made;
        self.made += 1;
        let Some(cut) = self.cut else { return Some(&self.packet[..self.inner.length]) };
        let start = at * cut.size;
        let length = if self.made == self.count { self.last_length() } else { cut.headers + cut.size };
        if at > 0 {
            // The headers of the segment before are whole still, and its payload is no longer needed.
            let before = start - cut.size;
            self.packet.copy_within(before..before + cut.headers, start);
        }
        let segment = &mut self.packet[start..start + length];
        cut.finish(segment, &self.inner, at, self.made == self.count);
        Some(segment)
    }
}

impl Cut {
    /// Judges a super-packet.
    fn plan(header: &VirtioHeader, packet: &[u8], inner: &InnerPacket) -> Option<Cut> {
        let is_v4 = inner.source.is_ipv4();
        let protocol = match header.gso_type & !VirtioHeader::GSO_ECN {
            VirtioHeader::GSO_TCPV4 if is_v4 => TCP,
            VirtioHeader::GSO_TCPV6 if !is_v4 => TCP,
            VirtioHeader::GSO_UDP_L4 => UDP,
            _ => return None,
        };
        let size = usize::from(header.gso_size);
        if size == 0 || inner.protocol != protocol || inner.is_fragment || inner.length != packet.len() {
            return None;
        }
        let transport = &packet[inner.payload..];
        let (least, offset) = if protocol == TCP { (20, 16) } else { (8, 6) };
        if transport.len() < least {
            return None;
        }
        let own = if protocol == TCP { usize::from(transport[12] >> 4) * 4 } else { 8 };
        if own < least || own > transport.len() {
            return None;
        }
        let pseudo = if header.flags & VirtioHeader::NEEDS_CSUM != 0 {
            if usize::from(header.csum_start) != inner.payload || header.csum_offset != offset {
                return None;
            }
            // The kernel's own sum without its length: behind a routing header it is of another address than the one
            // we see.
            let at = usize::from(offset);
            let word = u16::from_be_bytes([transport[at], transport[at + 1]]);
            Sum::default().add_word(word).remove_word(transport.len() as u16)
        } else {
            Sum::pseudo(inner.source, inner.destination, protocol, 0)
        };
        let closing = if protocol == TCP { transport[13] & (FIN | PSH) } else { 0 };
        Some(Cut { headers: inner.payload + own, size, pseudo, closing })
    }

    /// Makes the copied headers of segment `at` those of the segment.
    fn finish(&self, segment: &mut [u8], inner: &InnerPacket, at: usize, last: bool) {
        let length = segment.len();
        let (network, transport) = segment.split_at_mut(inner.payload);
        if inner.source.is_ipv4() {
            set_word(network, 2, length as u16);
            if at > 0 {
                set_word(network, 4, word(network, 4).wrapping_add(1));
            }
            set_word(network, 10, 0);
            set_word(network, 10, Sum::of(network).checksum());
        } else {
            set_word(network, 4, (length - 40) as u16);
        }
        let pseudo = self.pseudo.add_word(transport.len() as u16);
        if inner.protocol == TCP {
            if at > 0 {
                let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                transport[4..8].copy_from_slice(&sequence.wrapping_add(self.size as u32).to_be_bytes());
                transport[13] &= !CWR;
            }
            transport[13] &= !(FIN | PSH);
            if last {
                transport[13] |= self.closing;
            }
            set_word(transport, 16, 0);
            set_word(transport, 16, pseudo.plus(transport).checksum());
        } else {
            set_word(transport, 4, transport.len() as u16);
            set_word(transport, 6, 0);
            set_word(transport, 6, never_zero(pseudo.plus(transport).checksum()));
        }
    }
}

/// Adds what a single packet lacks of its checksum. The kernel leaves this to be done for any protocol with such a sum and
/// also inside tunnels of its own (VXLAN), so only the place is judged.
fn complete(header: &VirtioHeader, packet: &mut [u8], inner: &InnerPacket) -> Option<()> {
    let start = usize::from(header.csum_start);
    let field = usize::from(header.csum_offset);
    let summed = packet.get_mut(start..inner.length)?;
    if start < inner.payload || field + 2 > summed.len() {
        return None;
    }
    let sum = Sum::of(summed).checksum();
    set_word(summed, field, never_zero(sum));
    Some(())
}

/// Says zero as its other form: in UDP, zero is no checksum at all (RFC 768).
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

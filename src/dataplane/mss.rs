//! The largest segment that TCP connections through this node agree on (RFC 9293 §3.7.1, RFC 6691).
//!
//! The hosts behind a node know the MTU of their own network, not of the mesh. Where the errors about packets too large do
//! not reach them, their connections would stand still: so what their SYNs announce is lowered to what the link carries.

use super::inner::{InnerPacket, TCP};
use super::offload::checksum::Sum;
use crate::policy::Flags;
use std::net::IpAddr;

/// Bytes of a TCP header without options, and where its fields lie (RFC 9293 §3.1).
const HEADER: usize = 20;
const OFFSET: usize = 12;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;

const SYN: u8 = Flags::SYN;

/// Options: the end of the list, one byte of nothing, and the maximum segment size with its length.
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const MSS_LENGTH: u8 = 4;

/// Lowers what a SYN says of the largest segment to what fits `mtu` bytes; everything else is left as it is. `summed` says
/// whether the checksum is complete, or still lacks the segment itself. Returns whether it changed anything.
pub(super) fn clamp(packet: &mut [u8], inner: &InnerPacket, mtu: u16, summed: bool) -> bool {
    if inner.protocol != TCP || !inner.has_header || inner.is_fragment {
        return false;
    }
    let Some(segment) = packet.get_mut(inner.payload..inner.length) else { return false };
    if segment.len() < HEADER || segment[FLAGS] & SYN == 0 {
        return false;
    }
    let options = usize::from(segment[OFFSET] >> 4) * 4;
    let Some(at) = segment.get(HEADER..options).and_then(position) else { return false };
    let at = HEADER + at;
    // Both headers without options count, whatever options there are (RFC 6691 §2).
    let headers = if matches!(inner.source, IpAddr::V4(_)) { 40 } else { 60 };
    let most = mtu.saturating_sub(headers);
    let announced = u16::from_be_bytes([segment[at], segment[at + 1]]);
    if announced <= most {
        return false;
    }
    segment[at..at + 2].copy_from_slice(&most.to_be_bytes());
    if summed {
        // A field that begins at an odd byte lies across two words of the sum, with its bytes swapped in it.
        let turn = |value: u16| if at.is_multiple_of(2) { value } else { value.swap_bytes() };
        let before = u16::from_be_bytes([segment[CHECKSUM], segment[CHECKSUM + 1]]);
        let sum = Sum::default().add_word(!before).remove_word(turn(announced)).add_word(turn(most)).checksum();
        segment[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

/// Where the value of the MSS option lies among the options.
fn position(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            END => return None,
            NOTHING => at += 1,
            kind => {
                let length = *options.get(at + 1)?;
                if kind == MSS {
                    return (length == MSS_LENGTH && at + 4 <= options.len()).then_some(at + 2);
                }
                if length < 2 {
                    return None;
                }
                at += usize::from(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::packet;
    use super::*;
    use proptest::prelude::*;

    /// A TCP packet with these flags and options, correctly summed.
    fn tcp(v6: bool, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let (from, to) = if v6 { ("fd00::1", "fd00::9") } else { ("10.1.0.1", "10.1.0.9") };
        let mut segment = vec![0; HEADER];
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0x0c, 0xea]);
        segment.extend_from_slice(options);
        segment.resize(segment.len().next_multiple_of(4), 0);
        segment[OFFSET] = (segment.len() / 4 * 16) as u8;
        segment[FLAGS] = flags;
        segment.extend_from_slice(payload);
        let pseudo = Sum::pseudo(from.parse().unwrap(), to.parse().unwrap(), TCP, segment.len());
        let sum = pseudo.plus(&segment).checksum();
        segment[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        packet(from, to, TCP, &segment)
    }

    fn is_summed(packet: &[u8]) -> bool {
        let inner = InnerPacket::parse(packet).unwrap();
        let segment = &packet[inner.payload..inner.length];
        Sum::pseudo(inner.source, inner.destination, TCP, segment.len()).plus(segment).checksum() == 0
    }

    fn clamped(mut packet: Vec<u8>, mtu: u16) -> (bool, Vec<u8>) {
        let inner = InnerPacket::parse(&packet).unwrap();
        (clamp(&mut packet, &inner, mtu, true), packet)
    }

    fn announced(packet: &[u8]) -> Option<u16> {
        let inner = InnerPacket::parse(packet).unwrap();
        let segment = &packet[inner.payload..inner.length];
        let at = HEADER + position(&segment[HEADER..usize::from(segment[OFFSET] >> 4) * 4])?;
        Some(u16::from_be_bytes([segment[at], segment[at + 1]]))
    }

    #[test]
    fn syns_announce_what_fits_and_stay_right() {
        for (v6, want) in [(false, 1_288), (true, 1_268)] {
            for flags in [SYN, SYN | 0x10] {
                for options in
                    [&[2, 4, 5, 180, 4, 2][..], &[1, 2, 4, 5, 180], &[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 5, 180]]
                {
                    let (changed, packet) = clamped(tcp(v6, flags, options, b""), 1_328);
                    assert!(changed);
                    assert_eq!(announced(&packet), Some(want));
                    assert!(is_summed(&packet));
                    assert_eq!(clamped(packet.clone(), 1_328), (false, packet), "once is enough");
                }
            }
        }
    }

    #[test]
    fn everything_else_is_left_as_it_is() {
        let small = tcp(false, SYN, &[2, 4, 2, 24], b"");
        let data = tcp(false, 0x10, &[2, 4, 5, 180], b"data");
        let mut fragment = tcp(false, SYN, &[2, 4, 5, 180], b"");
        fragment[6] = 0x20;
        let without = tcp(false, SYN, &[1, 1, 4, 2], b"");
        let ended = tcp(false, SYN, &[0, 2, 4, 5, 180], b"");
        let broken = [vec![2, 3, 5, 180], vec![8, 0, 2, 4], vec![8, 1, 2, 4], vec![1, 1, 1, 2], vec![1, 2, 4, 5]];
        let broken = broken.map(|options| tcp(true, SYN, &options, b""));
        for packet in [vec![small, data, fragment, without, ended], broken.to_vec()].concat() {
            assert_eq!(clamped(packet.clone(), 1_280), (false, packet));
        }
    }

    #[test]
    fn a_sum_that_is_not_complete_yet_stays_so() {
        let mut packet = tcp(false, SYN, &[2, 4, 5, 180], b"");
        packet[36..38].copy_from_slice(&[0x12, 0x34]);
        let inner = InnerPacket::parse(&packet).unwrap();
        assert!(clamp(&mut packet, &inner, 1_280, false));
        assert_eq!((packet[36], packet[37], announced(&packet)), (0x12, 0x34, Some(1_240)));
    }

    proptest! {
        #[test]
        fn any_segment_is_handled_and_sums_stay_right(
            v6 in any::<bool>(),
            flags in any::<u8>(),
            options in proptest::collection::vec(prop_oneof![0u8..9, any::<u8>()], 0..40),
            payload in proptest::collection::vec(any::<u8>(), 0..50),
            mtu in 1_280u16..9_000,
        ) {
            let before = tcp(v6, flags, &options, &payload);
            let (changed, after) = clamped(before.clone(), mtu);
            prop_assert!(is_summed(&after));
            prop_assert_eq!(changed, before != after);
            let most = mtu - if v6 { 60 } else { 40 };
            prop_assert!(flags & SYN == 0 || announced(&after).is_none_or(|announced| announced <= most));
            let differences = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            prop_assert!(differences <= 4, "the option and the sum at most");
        }

        #[test]
        fn headers_that_lie_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..60), mtu in any::<u16>()) {
            let mut bytes = packet("10.1.0.1", "10.1.0.9", TCP, &bytes);
            let inner = InnerPacket::parse(&bytes).unwrap();
            clamp(&mut bytes, &inner, mtu, true);
        }
    }
}

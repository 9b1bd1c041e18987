//! DSCP and ECN across the tunnel: RFC 6040 in normal mode, and RFC 2983's uniform way out for DSCP.
//!
//! On the way in, the outer header gets the inner one's whole byte. On the way out, only the marks of congestion that the
//! underlay set come back; its DSCP is the underlay's own affair.

use super::offload::checksum::Sum;

/// The two bits of ECN (RFC 3168 §5).
pub(super) const MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// Returns a packet's DSCP and ECN: IPv4's TOS or IPv6's traffic class; zero for what is neither.
pub(super) fn traffic_class(packet: &[u8]) -> u8 {
    match *packet {
        [first, second, ..] if first >> 4 == 4 => second,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// What ECN the inner packet has on leaving a tunnel whose outer header said `outer` (RFC 6040 §4.2, figure 4); `None` where
/// it must be dropped: congestion was met, and the transport inside cannot be told otherwise.
pub(super) fn leaving(inner: u8, outer: u8) -> Option<u8> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Sets the ECN of an opened packet by what the outer header said; false where the packet must be dropped.
pub(super) fn combine(packet: &mut [u8], outer: u8) -> bool {
    let inner = traffic_class(packet) & MASK;
    let Some(wanted) = leaving(inner, outer) else { return false };
    if wanted != inner {
        set(packet, wanted);
    }
    true
}

fn set(packet: &mut [u8], ecn: u8) {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            let old = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] = packet[1] & !MASK | ecn;
            let new = u16::from_be_bytes([packet[0], packet[1]]);
            // RFC 1624: the sum without the old word and with the new one.
            let sum = Sum::default().add_word(!u16::from_be_bytes([packet[10], packet[11]]));
            let sum = sum.remove_word(old).add_word(new).checksum();
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) => packet[1] = packet[1] & !(MASK << 4) | ecn << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::{packet, udp};
    use super::*;

    #[test]
    fn the_table_of_rfc_6040() {
        let table = [
            // Outer: Not-ECT, ECT(1), ECT(0), CE.
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for (inner, row) in table {
            assert_eq!([NOT_ECT, ECT_1, ECT_0, CE].map(|outer| leaving(inner, outer)), row, "inner {inner:#b}");
        }
    }

    #[test]
    fn marks_are_set_and_the_header_stays_right() {
        for (source, destination) in [("10.1.0.1", "10.1.0.2"), ("fd00::1", "fd00::2")] {
            for dscp in [0, 46, 63] {
                let mut bytes = packet(source, destination, 17, &udp(7, b"data"));
                match bytes[0] >> 4 {
                    4 => {
                        bytes[1] = dscp << 2 | ECT_0;
                        bytes[10..12].fill(0);
                        let sum = Sum::of(&bytes[..20]).checksum();
                        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                    }
                    _ => {
                        bytes[0] |= dscp >> 2;
                        bytes[1] |= (dscp << 2 | ECT_0) << 4;
                    }
                }
                let before = bytes.clone();
                assert_eq!(traffic_class(&bytes), dscp << 2 | ECT_0);
                assert!(combine(&mut bytes, NOT_ECT));
                assert_eq!(bytes, before);
                assert!(combine(&mut bytes, CE));
                assert_eq!(traffic_class(&bytes), dscp << 2 | CE);
                if bytes[0] >> 4 == 4 {
                    assert_eq!(Sum::of(&bytes[..20]).checksum(), 0);
                }
            }
            assert!(!combine(&mut packet(source, destination, 17, &udp(7, b"data")), CE));
        }
        assert_eq!(traffic_class(&[0x45]), 0);
    }
}

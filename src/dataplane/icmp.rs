//! Errors told to this host's own applications, so that they fail at once instead of after a timeout.

use super::inner::{ICMP, ICMPV6, InnerPacket};
use super::offload::checksum::Sum;
use crate::time::Instant;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest message made: the smallest MTU every IPv6 link has (RFC 4443 §2.4 c).
pub const MAX_MESSAGE: usize = 1_280;

/// How much of an offending IPv4 packet is quoted: the message stays within the 576 bytes every host accepts
/// (RFC 1812 §4.3.2.3).
const QUOTED_V4: usize = 576 - 28;

/// How much of an offending IPv6 packet is quoted.
const QUOTED_V6: usize = MAX_MESSAGE - 48;

/// What went wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody owns the destination, or nothing is known of the way there.
    Unreachable,
    /// It is larger than this many bytes, which is what the way there carries.
    TooBig(u16),
    /// It was to be passed on and has no hop left.
    HopLimit,
}

/// Writes the error for `packet` (parsed as `inner`) into `out` and returns its length.
///
/// An IPv6 error comes from `speaker`, this host's own overlay address. An IPv4 error comes from the address the packet
/// was for, because Linux drops what enters with an IPv4 source of its own (a martian).
///
/// `None` where no error may be sent (RFC 1122 §3.2.2, RFC 4443 §2.4 e): about errors, about all but the first
/// fragment, and about packets from or to more than one host.
pub fn error_for(
    packet: &[u8],
    inner: &InnerPacket,
    trouble: Trouble,
    speaker: Ipv6Addr,
    out: &mut [u8; MAX_MESSAGE],
) -> Option<usize> {
    if inner.is_link_scoped() || !inner.has_header || is_error(packet, inner) {
        return None;
    }
    let packet = &packet[..inner.length];
    match (inner.source, inner.destination) {
        (IpAddr::V4(to), IpAddr::V4(from)) => Some(write_v4(packet, to, trouble, from, out)),
        (IpAddr::V6(to), _) => Some(write_v6(packet, to, trouble, speaker, out)),
        // No packet has addresses of two families.
        (IpAddr::V4(_), IpAddr::V6(_)) => None,
    }
}

fn is_error(packet: &[u8], inner: &InnerPacket) -> bool {
    let kind = packet.get(inner.payload).copied();
    match inner.protocol {
        // Everything but echo and the queries is an error or a redirect.
        ICMP => !matches!(kind, Some(0 | 8 | 13 | 14)),
        ICMPV6 => kind.is_none_or(|kind| kind < 128 || kind == 137),
        _ => false,
    }
}

fn write_v4(packet: &[u8], to: Ipv4Addr, trouble: Trouble, from: Ipv4Addr, out: &mut [u8; MAX_MESSAGE]) -> usize {
    let quoted = &packet[..packet.len().min(QUOTED_V4)];
    let length = 28 + quoted.len();
    let message = &mut out[..length];
    message[..28].fill(0);
    message[0] = 0x45;
    message[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    message[8] = 64;
    message[9] = ICMP;
    message[12..16].copy_from_slice(&from.octets());
    message[16..20].copy_from_slice(&to.octets());
    let sum = Sum::of(&message[..20]).checksum();
    message[10..12].copy_from_slice(&sum.to_be_bytes());
    // Destination unreachable: 1 host unreachable, 4 fragmentation needed (RFC 792, RFC 1191 §4).
    // Time exceeded: 0 in transit (RFC 792).
    (message[20], message[21]) = match trouble {
        Trouble::Unreachable => (3, 1),
        Trouble::TooBig(mtu) => {
            message[26..28].copy_from_slice(&mtu.to_be_bytes());
            (3, 4)
        }
        Trouble::HopLimit => (11, 0),
    };
    message[28..].copy_from_slice(quoted);
    let sum = Sum::of(&message[20..]).checksum();
    message[22..24].copy_from_slice(&sum.to_be_bytes());
    length
}

fn write_v6(packet: &[u8], to: Ipv6Addr, trouble: Trouble, from: Ipv6Addr, out: &mut [u8; MAX_MESSAGE]) -> usize {
    let quoted = &packet[..packet.len().min(QUOTED_V6)];
    let length = 48 + quoted.len();
    let message = &mut out[..length];
    message[..48].fill(0);
    message[0] = 0x60;
    message[4..6].copy_from_slice(&(8 + quoted.len() as u16).to_be_bytes());
    message[6] = ICMPV6;
    message[7] = 64;
    message[8..24].copy_from_slice(&from.octets());
    message[24..40].copy_from_slice(&to.octets());
    // Destination unreachable code 0 no route (RFC 4443 §3.1), packet too big (§3.2), time exceeded code 0 (§3.3).
    match trouble {
        Trouble::Unreachable => message[40] = 1,
        Trouble::TooBig(mtu) => {
            message[40] = 2;
            message[44..48].copy_from_slice(&u32::from(mtu).to_be_bytes());
        }
        Trouble::HopLimit => message[40] = 3,
    }
    message[48..].copy_from_slice(quoted);
    let pseudo = Sum::pseudo(from.into(), to.into(), ICMPV6, 8 + quoted.len());
    let sum = pseudo.plus(&message[40..]).checksum();
    message[42..44].copy_from_slice(&sum.to_be_bytes());
    length
}

/// How many errors are sent: a burst of 50 and 50 a second, enough for every application on a host to learn of every
/// dead peer in time, and too few to matter when something floods.
#[derive(Debug)]
pub struct ErrorLimit {
    tokens: u32,
    refilled: Instant,
}

const ERRORS_PER_SECOND: u32 = 50;

impl ErrorLimit {
    /// Makes a full limit.
    pub fn new(now: Instant) -> Self {
        ErrorLimit { tokens: ERRORS_PER_SECOND, refilled: now }
    }

    /// Tells whether one more error may be sent, and counts it.
    pub fn allow(&mut self, now: Instant) -> bool {
        const INTERVAL: u64 = 1_000_000_000 / ERRORS_PER_SECOND as u64;
        let elapsed = now.as_nanos().saturating_sub(self.refilled.as_nanos());
        let fresh = elapsed / INTERVAL;
        if fresh > 0 {
            self.tokens = u64::from(self.tokens).saturating_add(fresh).min(u64::from(ERRORS_PER_SECOND)) as u32;
            self.refilled = Instant::from_nanos(self.refilled.as_nanos() + fresh * INTERVAL);
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::{packet, udp};
    use super::*;
    use std::time::Duration;

    const SPEAKER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

    fn error(packet: &[u8], trouble: Trouble) -> Option<Vec<u8>> {
        let inner = InnerPacket::parse(packet).unwrap();
        let mut out = [0xaa; MAX_MESSAGE];
        error_for(packet, &inner, trouble, SPEAKER, &mut out).map(|length| out[..length].to_vec())
    }

    #[test]
    fn errors_are_whole_packets_with_right_sums_and_a_quote() {
        for size in [0, 1, 7, 600, 1_400] {
            let offending = packet("10.1.0.1", "10.1.0.9", 17, &udp(53, &vec![5; size]));
            let message = error(&offending, Trouble::Unreachable).unwrap();
            let read = InnerPacket::parse(&message).unwrap();
            assert_eq!((read.length, read.protocol), (message.len(), 1));
            assert!(message.len() <= 576);
            assert_eq!((Sum::of(&message[..20]).checksum(), Sum::of(&message[20..]).checksum()), (0, 0));
            assert_eq!(message[20..22], [3, 1]);
            assert!(offending.starts_with(&message[28..]));

            let offending = packet("fd00::1", "fd00::9", 17, &udp(53, &vec![5; size]));
            let message = error(&offending, Trouble::TooBig(1_280)).unwrap();
            let read = InnerPacket::parse(&message).unwrap();
            assert_eq!((read.length, read.protocol), (message.len(), 58));
            let length = (message.len() as u32 - 40).to_be_bytes();
            let sum = Sum::of(&message[8..40]).plus(&length).plus(&[0, 0, 0, 58]).plus(&message[40..]);
            assert_eq!(sum.checksum(), 0);
            assert_eq!((message[40], &message[44..48]), (2, &1_280u32.to_be_bytes()[..]));
            assert!(offending.starts_with(&message[48..]));
        }
        let message = error(&packet("10.1.0.1", "10.1.0.9", 6, &[0; 20]), Trouble::TooBig(1_380)).unwrap();
        assert_eq!((message[21], &message[26..28]), (4, &1_380u16.to_be_bytes()[..]));
        let message = error(&packet("fd00::1", "fd00::9", 6, &[0; 20]), Trouble::Unreachable).unwrap();
        assert_eq!(message[40..42], [1, 0]);
        let message = error(&packet("10.1.0.1", "10.1.0.9", 6, &[0; 20]), Trouble::HopLimit).unwrap();
        assert_eq!((&message[20..22], Sum::of(&message[20..]).checksum()), (&[11, 0][..], 0));
        let message = error(&packet("fd00::1", "fd00::9", 6, &[0; 20]), Trouble::HopLimit).unwrap();
        assert_eq!(message[40..42], [3, 0]);
    }

    #[test]
    fn errors_beget_no_errors() {
        let mut silent = vec![
            packet("10.1.0.1", "10.1.0.9", 1, &[3, 1, 0, 0, 0, 0, 0, 0]),
            packet("10.1.0.1", "10.1.0.9", 1, &[]),
            packet("fd00::1", "fd00::9", 58, &[1, 0, 0, 0, 0, 0, 0, 0]),
            packet("fd00::1", "ff02::1", 17, &udp(1, b"")),
            packet("0.0.0.0", "10.1.0.9", 17, &udp(1, b"")),
        ];
        let mut fragment = packet("10.1.0.1", "10.1.0.9", 17, &udp(1, b""));
        fragment[7] = 1;
        silent.push(fragment);
        for packet in silent {
            assert_eq!(error(&packet, Trouble::Unreachable), None, "{packet:?}");
        }
        assert!(error(&packet("10.1.0.1", "10.1.0.9", 1, &[8, 0, 0, 0, 0, 0, 0, 0]), Trouble::Unreachable).is_some());
        assert!(error(&packet("fd00::1", "fd00::9", 58, &[128, 0, 0, 0]), Trouble::Unreachable).is_some());
    }

    #[test]
    fn a_flood_gets_fifty_errors_a_second() {
        let mut now = Instant::from_millis(5_000);
        let mut limit = ErrorLimit::new(now);
        assert_eq!((0..1_000).filter(|_| limit.allow(now)).count(), 50);
        now += Duration::from_millis(100);
        assert_eq!((0..1_000).filter(|_| limit.allow(now)).count(), 5);
        now += Duration::from_secs(3_600);
        assert_eq!((0..1_000).filter(|_| limit.allow(now)).count(), 50);
    }
}

//! Packets that not every path carries. The control task hears of them; and should it turn out that they vanish on their
//! way, their senders can be told.
//!
//! A connection whose packets vanish sends them again and again, ever more seldom. Told of its packet's size, it need not
//! wait for its next attempt: so an error about the newest large packet of each flow is kept until the path is known.

use super::forwarding::Local;
use super::icmp::{ErrorLimit, MAX_MESSAGE, Trouble, error_for};
use super::inner::InnerPacket;
use super::peer::Peer;
use super::queues::{Event, Queues};
use crate::time::Instant;
use crate::wire::size_probe::FLOOR;
use std::net::IpAddr;
use std::time::Duration;

/// Flows to one peer whose errors are kept.
const FLOWS: usize = 32;

/// Time between two errors about one flow: what is sent again in a black hole comes more seldom.
const PAUSE: Duration = Duration::from_millis(100);

/// How old an error may be when it is told: what was sent earlier has arrived, or was sent again since.
const LIFE: Duration = Duration::from_secs(4);

/// How much of a packet is quoted: the headers by which its sender knows it, options included.
const QUOTED: usize = 128;

/// The longest error: an IPv6 and an ICMPv6 header in front of the quote.
const LONGEST: usize = 48 + QUOTED;

/// Tells whether a packet is larger than what every path carries.
pub(super) fn is_large(length: usize) -> bool {
    length > usize::from(FLOOR)
}

/// Tells the control task of a large packet to a peer, now and then.
pub(super) fn report(peer: &Peer, queues: &Queues, now: Instant) {
    if peer.may_report_large(now) {
        // Where the queue is full, the next one is told of.
        let _ = queues.events.try_send(Event::Large { node: peer.node() });
    }
}

/// What would tell this host's senders of large packets to one peer that these do not pass.
#[derive(Debug)]
pub(super) struct Errors {
    /// In no order; what was kept first goes first.
    kept: Vec<Kept>,
    /// Where the last packet's flow is among them: flows send several packets in a row.
    last: usize,
    /// Bounds the work where there are more flows than are kept.
    limit: ErrorLimit,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    flow: u64,
    at: Instant,
    length: usize,
    error: [u8; LONGEST],
}

impl Errors {
    pub(super) fn new(now: Instant) -> Self {
        Errors { kept: Vec::with_capacity(FLOWS), last: 0, limit: ErrorLimit::new(now) }
    }

    /// Keeps the error about a packet, where it is this host's own and its flow has none that is as good.
    pub(super) fn note(
        &mut self,
        packet: &[u8],
        inner: &InnerPacket,
        local: &Local,
        room: &mut [u8; MAX_MESSAGE],
        now: Instant,
    ) {
        if !local.has(inner.source) {
            return;
        }
        let flow = flow(packet, inner);
        let again = self.kept.get(self.last).is_some_and(|kept| kept.flow == flow);
        let known = if again { Some(self.last) } else { self.kept.iter().position(|kept| kept.flow == flow) };
        self.last = known.unwrap_or(self.last);
        let fresh = known.is_some_and(|at| now.saturating_since(self.kept[at].at) < PAUSE);
        if fresh || !self.limit.allow(now) {
            return;
        }
        let quoted = InnerPacket { length: inner.length.min(QUOTED), ..*inner };
        let error = error_for(packet, &quoted, Trouble::TooBig(FLOOR), local.address_v6, room);
        let Some(length) = error.filter(|length| *length <= LONGEST) else { return };
        let mut kept = Kept { flow, at: now, length, error: [0; LONGEST] };
        kept.error[..length].copy_from_slice(&room[..length]);
        let oldest = || (0..self.kept.len()).min_by_key(|at| self.kept[*at].at);
        match known.or_else(|| if self.kept.len() < FLOWS { None } else { oldest() }) {
            Some(at) => self.kept[at] = kept,
            None => self.kept.push(kept),
        }
    }

    /// Takes the errors that are about packets still on their way, if they are anywhere.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let young = |kept: &Kept| now.saturating_since(kept.at) < LIFE;
        self.kept.drain(..).filter(young).map(|kept| kept.error[..kept.length].to_vec()).collect()
    }
}

/// Stands for the flow of a packet: its addresses and ports. Two flows that share one are told of by turns.
fn flow(packet: &[u8], inner: &InnerPacket) -> u64 {
    let ports = packet.get(inner.payload..inner.payload + 4).filter(|_| inner.has_header);
    let ports = ports.and_then(|ports| ports.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let fold = |address: IpAddr| match address {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() as u64) ^ (v6.to_bits() >> 64) as u64,
    };
    // A Fibonacci multiplier spreads addresses that differ in their last bits only.
    let addresses = fold(inner.source).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ fold(inner.destination);
    addresses.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(ports) << 8 ^ u64::from(inner.protocol)
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::packet;
    use super::*;

    fn local() -> Local {
        Local {
            address_v4: "10.77.0.1".parse().unwrap(),
            address_v6: "fd00::1".parse().unwrap(),
            overlay_v4: "10.77.0.0/16".parse().unwrap(),
            overlay_v6: "fd00::/64".parse().unwrap(),
            prefixes: vec!["10.1.0.0/16".parse().unwrap()],
            relays: false,
        }
    }

    fn segment(port: u16) -> Vec<u8> {
        let mut segment = vec![0; 1_360];
        segment[..2].copy_from_slice(&port.to_be_bytes());
        segment
    }

    fn note(errors: &mut Errors, packet: &[u8], millis: u64) {
        let inner = InnerPacket::parse(packet).unwrap();
        errors.note(packet, &inner, &local(), &mut [0; MAX_MESSAGE], Instant::from_millis(millis));
    }

    #[test]
    fn the_newest_packet_of_each_flow_is_told_once() {
        let mut errors = Errors::new(Instant::from_millis(0));
        for millis in [1_000, 1_050, 1_300] {
            let mut v4 = packet("10.77.0.1", "10.77.0.9", 6, &segment(7));
            v4[24] = (millis / 50) as u8;
            note(&mut errors, &v4, millis);
        }
        note(&mut errors, &packet("10.77.0.1", "10.77.0.9", 6, &segment(8)), 1_301);
        note(&mut errors, &packet("fd00::1", "fd00::9", 6, &segment(7)), 1_302);
        note(&mut errors, &packet("10.1.0.1", "10.77.0.9", 6, &segment(9)), 1_303);
        let told = errors.take(Instant::from_millis(2_000));
        assert_eq!(told.len(), 3, "two flows over IPv4 and one over IPv6, none of another host's");
        assert_eq!((told[0][20], told[0][21], &told[0][26..28]), (3, 4, &1_280u16.to_be_bytes()[..]));
        assert_eq!(told[0][28 + 24], (1_300 / 50) as u8, "the newest");
        assert_eq!(told[2][40..48][..1], [2]);
        for error in &told {
            assert_eq!(InnerPacket::parse(error).map(|inner| inner.length), Ok(error.len()));
        }
        assert!(errors.take(Instant::from_millis(2_000)).is_empty());
    }

    #[test]
    fn old_errors_are_not_told_and_all_is_bounded() {
        let mut errors = Errors::new(Instant::from_millis(0));
        for number in 0..1_000u16 {
            note(&mut errors, &packet("10.77.0.1", "10.77.0.9", 6, &segment(number)), u64::from(number) * 10);
        }
        assert_eq!(errors.kept.len(), FLOWS);
        let told = errors.take(Instant::from_millis(9_990));
        assert_eq!(told.len(), FLOWS, "the last 32 of 50 a second are younger than a second");
        note(&mut errors, &packet("10.77.0.1", "10.77.0.9", 6, &segment(1)), 20_000);
        assert!(errors.take(Instant::from_millis(24_001)).is_empty());
    }
}

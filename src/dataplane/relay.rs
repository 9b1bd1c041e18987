//! Sealed datagrams of two members that a third one passes on.
//!
//! The sender puts the datagram into a packet for the receiver (`wire/relayed.rs`) and that into its tunnel to the relay. The
//! relay's tunnel proves the sender, the packet's source; the relay counts what the pair uses and passes the packet on as it is
//! into its tunnel to the receiver, whose source check lets it in because the relay's certificate says so. One hop: what came
//! by a relay goes to no other, and a relay passes on by its direct paths alone.

use super::forwarding::ForwardingTable;
use super::passing::Passing;
use super::peer::{Path, Peer};
use crate::identity::NodeId;
use crate::platform::clock::Reading;
use crate::time::Instant;
use crate::tunnel::{LEAST_BUFFER, OVERHEAD, Sealed};
use crate::wire::size_probe::FLOOR;
use crate::wire::{DropReason, relayed};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// What a relay passes on for a pair, each way: 100 Mbit/s, a tenth of what a server's line carries. A relay is for the time in
/// which there is no other way.
const TIME_PER_BYTE: Duration = Duration::from_nanos(80);
/// The least that a packet counts for, whatever its size: 40,000 a second each way, since what a relay spends on one is mostly
/// the same for each.
const TIME_PER_PACKET: Duration = Duration::from_micros(25);
/// How long a pair may send faster: five times what a stream of 100 Mbit/s has under way at a round trip of 20 ms.
const BURST: Duration = Duration::from_millis(100);
/// Pairs that one thread remembers: of a hundred members, a third of all.
const MOST_PAIRS: usize = 4_096;
/// How often pairs that are quiet are swept out.
const SWEEP: Duration = Duration::from_secs(1);

/// A path through another member.
#[derive(Clone)]
pub struct RelayPath {
    /// The member.
    pub via: Arc<Peer>,
    /// This node's overlay address.
    pub source: Ipv6Addr,
    /// The peer's.
    pub destination: Ipv6Addr,
}

/// A datagram in its packet, sealed for the relay, and where that is to be sent.
pub(super) struct Carried {
    pub(super) length: usize,
    pub(super) remote: SocketAddr,
    pub(super) local: Option<IpAddr>,
}

impl RelayPath {
    /// The largest inner packet that a link by this path carries, in bytes: sealed and wrapped it fits the relay's link, or it
    /// is of the size that every link must carry.
    pub(super) fn mtu(&self) -> u16 {
        relayed::largest_within(self.via.own_mtu()).max(FLOOR)
    }

    /// Room that a datagram takes once it is sealed for the relay.
    pub(super) fn room(datagram: usize) -> usize {
        ((relayed::HEADER_LEN + datagram).next_multiple_of(16) + OVERHEAD).max(LEAST_BUFFER)
    }

    /// Seals a datagram for the relay into `out`, which has [`RelayPath::room`] for it.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] where the relay itself has no session or no direct path; [`DropReason::TooBig`]; the tunnel's
    /// reason else.
    pub(super) fn carry(&self, now: Instant, datagram: &[u8], out: &mut [u8]) -> Result<Carried, DropReason> {
        let path = self.via.path();
        let Some(Path::Direct { remote, local }) = path.as_deref() else { return Err(DropReason::NoRoute) };
        let packet = relayed::wrap(self.source, self.destination, datagram);
        if packet.len() > room_to(&self.via) {
            return Err(DropReason::TooBig);
        }
        let mut guard = self.via.tunnel().lock();
        // What cannot go now is not worth waiting for: its sender has other paths.
        if !guard.has_session(now) {
            return Err(DropReason::NoRoute);
        }
        match guard.seal(now, &packet, out)? {
            Sealed::Datagram(length) => Ok(Carried { length, remote: *remote, local: *local }),
            Sealed::Held => Err(DropReason::NoRoute),
        }
    }
}

/// The largest wrapped datagram that goes to a peer: what the link carries, and in any case one with a packet of [`FLOOR`].
fn room_to(peer: &Peer) -> usize {
    usize::from(peer.own_mtu()).max(relayed::wrapped(FLOOR))
}

/// What a data thread needs to pass on what members send each other through this node.
#[derive(Default)]
pub(super) struct Relay {
    /// When each pair, by sender and receiver, would have used nothing.
    pairs: HashMap<(NodeId, NodeId), Instant>,
    swept: Instant,
}

impl Relay {
    /// Passes on a member's packet for another member.
    ///
    /// # Errors
    /// [`DropReason::NoRelay`] where this node, or one of the two, has no part in relaying, or the packet has been passed on
    /// before; [`DropReason::RelayQuota`]; the reason why it cannot be sent.
    pub(super) fn pass(
        &mut self,
        passing: &mut Passing,
        table: &ForwardingTable,
        (from, to): (&Peer, &Peer),
        packet: &[u8],
        destination: Ipv6Addr,
        reading: &Reading,
    ) -> Result<(), DropReason> {
        let members = !from.is_stock() && !to.is_stock() && !std::ptr::eq(from, to);
        let fresh = relayed::unwrap(packet, destination).is_some_and(|relayed| relayed.passed == 0);
        if !table.local().relays || !members || !fresh {
            return Err(DropReason::NoRelay);
        }
        if packet.len() > room_to(to) {
            return Err(DropReason::TooBig);
        }
        if !self.allow((from.node(), to.node()), packet.len(), reading.now) {
            return Err(DropReason::RelayQuota);
        }
        passing.send_directly(to, packet, reading)
    }

    fn allow(&mut self, pair: (NodeId, NodeId), bytes: usize, now: Instant) -> bool {
        if self.pairs.len() >= MOST_PAIRS && now.saturating_since(self.swept) >= SWEEP {
            self.swept = now;
            self.pairs.retain(|_, free| *free > now);
        }
        let free = self.pairs.get(&pair).copied();
        if free.is_none() && self.pairs.len() >= MOST_PAIRS {
            return false;
        }
        let time = (TIME_PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX)).max(TIME_PER_PACKET);
        let after = free.unwrap_or_default().max(now) + time;
        let within = after.saturating_since(now) <= BURST;
        if within {
            self.pairs.insert(pair, after);
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(number: u32) -> (NodeId, NodeId) {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        (NodeId::from_bytes(bytes), NodeId::from_bytes([7; 16]))
    }

    #[test]
    fn a_pair_gets_its_rate_and_no_more() {
        let mut relay = Relay::default();
        let mut passed = 0;
        for millis in 0..10_000 {
            // Twice what is granted.
            for _ in 0..20 {
                passed += u64::from(relay.allow(pair(1), 1_250, Instant::from_millis(millis))) * 1_250;
            }
        }
        // Ten seconds of 12.5 MB, and the burst of a tenth.
        assert!((125_000_000..=126_300_000).contains(&passed), "{passed}");
        assert!(relay.allow(pair(2), 1_250, Instant::from_millis(10_000)), "each pair has its own");
    }

    #[test]
    fn small_packets_count_by_their_number() {
        let mut relay = Relay::default();
        let passed = (0..200_000u64).filter(|at| relay.allow(pair(1), 90, Instant::from_millis(at / 100))).count();
        // Two seconds of 40,000 packets, and the burst of a tenth.
        assert!((80_000..=84_100).contains(&passed), "{passed}");
    }

    #[test]
    fn the_table_of_pairs_is_bounded_and_is_swept() {
        let mut relay = Relay::default();
        let now = Instant::from_millis(60_000);
        for number in 0..MOST_PAIRS as u32 {
            assert!(relay.allow(pair(number), 1_250, now));
        }
        assert!(!relay.allow(pair(u32::MAX), 1_250, now), "full of pairs that are busy");
        assert_eq!(relay.pairs.len(), MOST_PAIRS);
        assert!(relay.allow(pair(u32::MAX), 1_250, now + SWEEP));
        assert_eq!(relay.pairs.len(), 1);
    }
}

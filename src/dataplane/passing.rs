//! From one tunnel straight into another: packets between the mesh and the stock peers of this node.
//!
//! They never touch the kernel's forwarding. It would take `ip_forward` of the whole host, and a packet that came back
//! from it could no longer be told from one that somebody else on the host's networks made up with the same source; here
//! the tunnel a packet was opened from proves it. [`ForwardingTable::way_of`] says which packets may pass.

use super::forwarding::ForwardingTable;
use super::icmp::{ErrorLimit, MAX_MESSAGE, Trouble, error_for};
use super::inner::InnerPacket;
use super::large;
use super::mss;
use super::offload::checksum::Sum;
use super::peer::{Path, Peer};
use super::queues::{Event, Queues};
use super::transmit::Transmitter;
use crate::platform::clock::Reading;
use crate::time::Instant;
use crate::tunnel::{LEAST_BUFFER, OVERHEAD, Outbox, Sealed};
use crate::wire::DropReason;

/// What the inbound thread needs to pass packets on.
pub(super) struct Passing {
    transmitter: Transmitter,
    queues: Queues,
    packet: Box<[u8]>,
    datagram: Box<[u8]>,
    outbox: Outbox,
    limit: ErrorLimit,
    message: Box<[u8; MAX_MESSAGE]>,
}

impl Passing {
    pub(super) fn new(transmitter: Transmitter, queues: Queues, largest_packet: usize, now: Instant) -> Self {
        Passing {
            transmitter,
            queues,
            packet: vec![0; largest_packet].into_boxed_slice(),
            datagram: vec![0; (largest_packet.next_multiple_of(16) + OVERHEAD).max(LEAST_BUFFER)].into_boxed_slice(),
            outbox: Outbox::new(),
            limit: ErrorLimit::new(now),
            message: Box::new([0; MAX_MESSAGE]),
        }
    }

    /// Passes one packet of `from` on to `to`, one hop shorter. Where it cannot go, `from` is told as a router tells it.
    ///
    /// One send per packet: what a phone moves is little, and packets to members may be of any number of peers.
    ///
    /// # Errors
    /// The reason it went nowhere.
    pub(super) fn pass(
        &mut self,
        table: &ForwardingTable,
        from: &Peer,
        to: &Peer,
        packet: &[u8],
        inner: &InnerPacket,
        reading: &Reading,
    ) -> Result<(), DropReason> {
        let room = self.packet.get_mut(..packet.len()).ok_or(DropReason::TooBig)?;
        room.copy_from_slice(packet);
        let trouble = if packet.len() > usize::from(to.mtu()) {
            Some((DropReason::TooBig, Trouble::TooBig(to.mtu())))
        } else if !one_hop_less(room) {
            Some((DropReason::HopLimit, Trouble::HopLimit))
        } else {
            None
        };
        if let Some((reason, trouble)) = trouble {
            let speaker = table.local().address_v6;
            if self.limit.allow(reading.now)
                && let Some(length) = error_for(packet, inner, trouble, speaker, &mut self.message)
            {
                self.packet[..length].copy_from_slice(&self.message[..length]);
                // The error is a courtesy: the packet's own fate is the one that counts.
                let _ = self.send(from, length, reading);
            }
            return Err(reason);
        }
        mss::clamp(&mut self.packet[..packet.len()], inner, from.mtu().min(to.mtu()), true);
        if large::is_large(packet.len()) {
            large::report(to, &self.queues, reading.now);
        }
        self.send(to, packet.len(), reading)
    }

    /// Passes a packet on to `to`, one hop shorter, by its direct path: at once or not at all.
    ///
    /// # Errors
    /// The reason it went nowhere; [`DropReason::NoRoute`] without a session or a direct path.
    pub(super) fn send_directly(&mut self, to: &Peer, packet: &[u8], reading: &Reading) -> Result<(), DropReason> {
        let path = to.path();
        let Some(Path::Direct { remote, local }) = path.as_deref() else { return Err(DropReason::NoRoute) };
        let room = self.packet.get_mut(..packet.len()).ok_or(DropReason::TooBig)?;
        room.copy_from_slice(packet);
        if !one_hop_less(room) {
            return Err(DropReason::HopLimit);
        }
        let sealed = {
            let mut guard = to.tunnel().lock();
            if !guard.has_session(reading.now) {
                return Err(DropReason::NoRoute);
            }
            guard.seal(reading.now, &self.packet[..packet.len()], &mut self.datagram)?
        };
        let Sealed::Datagram(length) = sealed else { return Err(DropReason::NoRoute) };
        let sent = self.transmitter.send_datagram(&self.datagram[..length], *remote, *local);
        sent.map_err(|_| DropReason::SystemRefused)
    }

    /// Seals the packet in the buffer for a peer and sends it.
    fn send(&mut self, to: &Peer, length: usize, reading: &Reading) -> Result<(), DropReason> {
        let sealed = {
            let mut guard = to.tunnel().lock();
            let sealed = guard.seal(reading.now, &self.packet[..length], &mut self.datagram);
            guard.flush(reading.now, reading.wall(), &mut self.outbox);
            sealed
        };
        self.transmitter.drain(to, &mut self.outbox);
        match (sealed?, to.path().as_deref()) {
            (Sealed::Datagram(length), Some(path)) => self.transmitter.send_along(path, &self.datagram[..length]),
            (Sealed::Datagram(_), None) => Err(DropReason::NoRoute),
            (Sealed::Held, _) => {
                if to.may_report_want(reading.now) {
                    let wanted = Event::Wanted { node: to.node() };
                    self.queues.events.try_send(wanted).map_err(|_| DropReason::QueueFull)?;
                }
                Ok(())
            }
        }
    }
}

/// Takes a hop off a packet (RFC 1812 §5.3.1, RFC 8200 §3); false where it has none left.
fn one_hop_less(packet: &mut [u8]) -> bool {
    let (at, v4) = if packet[0] >> 4 == 4 { (8, true) } else { (7, false) };
    if packet[at] <= 1 {
        return false;
    }
    packet[at] -= 1;
    if v4 {
        let header = usize::from(packet[0] & 0x0f) * 4;
        packet[10..12].fill(0);
        let sum = Sum::of(&packet[..header]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::{packet, udp};
    use super::*;

    #[test]
    fn a_hop_is_taken_off_and_the_sum_stays_right() {
        let mut v4 = packet("10.78.0.2", "10.77.0.3", 17, &udp(1, b"x"));
        let hops = v4[8];
        assert!(one_hop_less(&mut v4));
        assert_eq!((v4[8], Sum::of(&v4[..20]).checksum()), (hops - 1, 0));
        let mut v6 = packet("fd78::2", "fd00::3", 17, &udp(1, b"x"));
        let hops = v6[7];
        assert!(one_hop_less(&mut v6));
        assert_eq!(v6[7], hops - 1);
        (v4[8], v6[7]) = (1, 1);
        assert!(!one_hop_less(&mut v4) && !one_hop_less(&mut v6));
    }
}

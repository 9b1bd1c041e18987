//! From the TUN to the peers.

use super::counters::Counters;
use super::forwarding::{ForwardingTable, Owner};
use super::icmp::{ErrorLimit, MAX_MESSAGE, Trouble, error_for};
use super::inner::InnerPacket;
use super::peer::Peer;
use super::queues::{Event, Queues};
use super::transmit::Transmitter;
use crate::platform::clock::{self, Reading};
use crate::platform::tun::{PacketBatch, Tun, TunError};
use crate::platform::udp::UdpSocket;
use crate::platform::udp_batch::{BATCH, SendBatch};
use crate::platform::wake::{Waited, Wake};
use crate::tunnel::{LEAST_BUFFER, OVERHEAD, Outbox, Sealed};
use crate::wire::DropReason;
use crate::wire::overlay::CONTROL_PORT;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// How long the thread pauses after an error it does not understand, in milliseconds, so that a lasting one does not
/// take a whole core.
const ERROR_PAUSE: u16 = 100;

/// The outbound thread's belongings.
pub(super) struct Outbound {
    tun: Arc<Tun>,
    udp: Arc<UdpSocket>,
    table: Arc<ArcSwap<ForwardingTable>>,
    queues: Queues,
    counters: Arc<Counters>,
    wake: Arc<Wake>,
    transmitter: Transmitter,
    packets: PacketBatch,
    datagrams: SendBatch,
    outbox: Outbox,
    limit: ErrorLimit,
    message: Box<[u8; MAX_MESSAGE]>,
}

/// What is left of a packet after its headers were judged: the number of its peer and its length.
type Admitted = Option<(u32, usize)>;

impl Outbound {
    pub(super) fn new(
        tun: Arc<Tun>,
        udp: Arc<UdpSocket>,
        table: Arc<ArcSwap<ForwardingTable>>,
        queues: Queues,
        counters: Arc<Counters>,
        wake: Arc<Wake>,
        largest_packet: usize,
    ) -> Self {
        let largest_datagram = (largest_packet.next_multiple_of(16) + OVERHEAD).max(LEAST_BUFFER);
        Outbound {
            transmitter: Transmitter::new(Arc::clone(&udp)),
            packets: PacketBatch::new(BATCH, largest_packet),
            datagrams: SendBatch::new(BATCH, largest_datagram),
            outbox: Outbox::new(),
            limit: ErrorLimit::new(clock::now()),
            message: Box::new([0; MAX_MESSAGE]),
            tun,
            udp,
            table,
            queues,
            counters,
            wake,
        }
    }

    /// Moves packets until the latch is rung or the device is gone.
    pub(super) fn run(mut self) {
        while !self.wake.is_rung() {
            match self.tun.read_batch(&mut self.packets) {
                Ok(0) => match self.tun.wait(&self.wake) {
                    Ok(Waited::Woken) => return,
                    Ok(_) => {}
                    Err(_) => self.pause(),
                },
                Ok(count) => self.turn(count),
                Err(TunError::Deleted) => {
                    // A full queue of events already makes the control task look at everything.
                    let _ = self.queues.events.try_send(Event::DeviceGone);
                    return;
                }
                Err(_) => self.pause(),
            }
        }
    }

    fn pause(&self) {
        self.counters.dropped(DropReason::SystemRefused);
        self.wake.wait(ERROR_PAUSE);
    }

    /// Sends one batch: judge all, then seal peer by peer, then send all in one call.
    fn turn(&mut self, count: usize) {
        self.counters.batch();
        let reading = Reading::take();
        let table = Arc::clone(&self.table);
        let table = table.load();
        let mut admitted: [Admitted; BATCH] = [None; BATCH];
        for (index, slot) in admitted.iter_mut().enumerate().take(count) {
            *slot = self.judge(&table, index, &reading);
        }
        for first in 0..count {
            if let Some((number, _)) = admitted[first] {
                let peer = &table.peers()[number as usize];
                self.seal_for(peer, number, &mut admitted[first..count], first, &reading);
            }
        }
        let counters = &self.counters;
        self.udp.send(&mut self.datagrams, |_, _| counters.dropped(DropReason::SystemRefused));
    }

    /// Decides where packet `index` goes; counts it, and answers it where that helps, if it goes nowhere.
    fn judge(&mut self, table: &ForwardingTable, index: usize, reading: &Reading) -> Admitted {
        let packet = self.packets.packet(index);
        let inner = match InnerPacket::parse(packet) {
            Ok(inner) => inner,
            Err(reason) => {
                self.counters.dropped(reason);
                return None;
            }
        };
        if inner.is_link_scoped() {
            self.counters.ignored();
            return None;
        }
        if inner.udp_port == Some(CONTROL_PORT) && table.is_overlay(inner.destination) {
            self.counters.dropped(DropReason::ReservedPort);
            return None;
        }
        // The peer would refuse it as well; here the host that sends it can see why.
        if !matches!(table.owner_of(inner.source), Owner::Local) {
            self.counters.dropped(DropReason::ForeignSource);
            return None;
        }
        let (reason, trouble) = match table.owner_of(inner.destination) {
            Owner::Peer(number, peer) if inner.length <= usize::from(peer.mtu()) => {
                return Some((number, inner.length));
            }
            Owner::Peer(_, peer) => (DropReason::TooBig, Trouble::TooBig(peer.mtu())),
            Owner::Local | Owner::Nobody => (DropReason::NoRoute, Trouble::Unreachable),
        };
        self.counters.dropped(reason);
        if self.limit.allow(reading.now)
            && let Some(length) = error_for(packet, &inner, trouble, table.local().address_v6, &mut self.message)
            && self.tun.write(&self.message[..length]).is_err()
        {
            self.counters.dropped(DropReason::SystemRefused);
        }
        None
    }

    /// Seals all packets of one peer among `rest`, which starts at packet `first`, under one lock.
    fn seal_for(&mut self, peer: &Peer, number: u32, rest: &mut [Admitted], first: usize, reading: &Reading) {
        let path = peer.path().as_deref().copied();
        let (mut packets, mut bytes, mut held) = (0, 0, false);
        {
            let mut guard = peer.tunnel().lock();
            for (offset, slot) in rest.iter_mut().enumerate() {
                let Some((_, length)) = slot.take_if(|(owner, _)| *owner == number) else { continue };
                let packet = &self.packets.packet(first + offset)[..length];
                let Some(buffer) = self.datagrams.slot() else {
                    self.counters.dropped(DropReason::QueueFull);
                    continue;
                };
                match (guard.seal(reading.now, packet, buffer), path) {
                    (Ok(Sealed::Datagram(sealed)), Some(path)) => {
                        self.datagrams.commit(sealed, path.remote, path.local, None);
                        packets += 1;
                        bytes += length as u64;
                    }
                    (Ok(Sealed::Datagram(_)), None) => {
                        self.counters.dropped(DropReason::NoRoute);
                        held = true;
                    }
                    (Ok(Sealed::Held), _) => held = true,
                    (Err(reason), _) => {
                        self.counters.dropped(reason);
                        held |= reason == DropReason::HoldFull;
                    }
                }
            }
            guard.flush(reading.now, reading.wall(), &mut self.outbox);
        }
        self.counters.passed(packets, bytes);
        self.transmitter.drain(peer, None, &mut self.outbox);
        if held && peer.may_report_want(reading.now) {
            let wanted = self.queues.events.try_send(Event::Wanted { node: peer.node() });
            if wanted.is_err() {
                self.counters.dropped(DropReason::QueueFull);
            }
        }
    }
}

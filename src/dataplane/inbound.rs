//! From the peers to the TUN.

use super::counters::Counters;
use super::forwarding::{ForwardingTable, Owner};
use super::inner::InnerPacket;
use super::peer::Peer;
use super::queues::{ControlPacket, Event, Queues, UnopenedDatagram};
use super::transmit::Transmitter;
use crate::platform::clock::{self, Reading};
use crate::platform::tun::Tun;
use crate::platform::udp::UdpSocket;
use crate::platform::udp_batch::{BATCH, ReceiveBatch, Received};
use crate::platform::wake::Wake;
use crate::tunnel::{Host, LEAST_BUFFER, OVERHEAD, Outbox, Tunnel};
use crate::wire::DropReason;
use crate::wire::overlay::{self, CONTROL_PORT};
use crate::wire::probe::{Probe, ProbeReply};
use arc_swap::ArcSwap;
use std::net::IpAddr;
use std::sync::Arc;

/// How long the thread pauses after an error in receiving, in milliseconds. Errors of single datagrams (a port
/// unreachable here, a firewall there) are not reported on receiving, so this is rare.
const ERROR_PAUSE: u16 = 10;

/// The inbound thread's belongings.
pub(super) struct Inbound {
    tun: Arc<Tun>,
    udp: Arc<UdpSocket>,
    table: Arc<ArcSwap<ForwardingTable>>,
    host: Arc<Host>,
    queues: Queues,
    counters: Arc<Counters>,
    wake: Arc<Wake>,
    transmitter: Transmitter,
    received: ReceiveBatch,
    /// Data messages of the batch.
    items: Vec<Item>,
    /// The tunnels they belong to, each once.
    tunnels: Vec<Arc<Tunnel>>,
    /// Where packets are opened to, one slot per item.
    opened: Box<[u8]>,
    slot: usize,
    outbox: Outbox,
}

/// One data message of a batch.
#[derive(Clone, Copy)]
struct Item {
    /// Its tunnel in `tunnels`.
    tunnel: usize,
    /// Counts the sessions of the batch in order of first appearance.
    session: usize,
    counter: u64,
    index: u32,
    buffer: usize,
    start: usize,
    length: usize,
    /// Bytes of the opened packet; zero until then, and for keepalives.
    opened: usize,
    authentic: bool,
}

impl Inbound {
    #[expect(clippy::too_many_arguments, reason = "called once, by the one place that owns all of these")]
    pub(super) fn new(
        tun: Arc<Tun>,
        udp: Arc<UdpSocket>,
        table: Arc<ArcSwap<ForwardingTable>>,
        host: Arc<Host>,
        queues: Queues,
        counters: Arc<Counters>,
        wake: Arc<Wake>,
        largest_packet: usize,
    ) -> Self {
        let slot = (largest_packet.next_multiple_of(16) + OVERHEAD).max(LEAST_BUFFER);
        Inbound {
            transmitter: Transmitter::new(Arc::clone(&udp)),
            received: ReceiveBatch::new(BATCH, slot),
            items: Vec::with_capacity(BATCH),
            tunnels: Vec::with_capacity(BATCH),
            opened: vec![0; BATCH * slot].into_boxed_slice(),
            outbox: Outbox::new(),
            slot,
            tun,
            udp,
            table,
            host,
            queues,
            counters,
            wake,
        }
    }

    /// Moves packets until the latch is rung.
    pub(super) fn run(mut self) {
        while !self.wake.is_rung() {
            match self.udp.receive(&mut self.received, &self.wake) {
                Ok(0) => {}
                Ok(count) => self.turn(count),
                Err(_) => {
                    self.counters.dropped(DropReason::SystemRefused);
                    self.wake.wait(ERROR_PAUSE);
                }
            }
        }
    }

    /// Handles one batch: sort out what is data, open it tunnel by tunnel, write it to the device.
    fn turn(&mut self, count: usize) {
        self.counters.batch();
        let reading = Reading::take();
        for buffer in 0..count {
            let Some(about) = self.received.about(buffer) else {
                self.counters.dropped(DropReason::Malformed);
                continue;
            };
            if about.truncated {
                self.counters.dropped(DropReason::TooBig);
                continue;
            }
            if about.length == 0 {
                self.counters.dropped(DropReason::Malformed);
                continue;
            }
            let mut start = 0;
            while start < about.length {
                let length = about.stride.min(about.length - start);
                self.classify(buffer, start, length, &about, &reading);
                start += length;
                if self.items.len() == BATCH {
                    self.open(&reading);
                }
            }
        }
        self.open(&reading);
    }

    /// Keeps a data message for opening and hands everything else to the control task.
    fn classify(&mut self, buffer: usize, start: usize, length: usize, about: &Received, reading: &Reading) {
        let bytes = &self.received.bytes(buffer)[start..start + length];
        match bytes[0] {
            4 => {
                let Some(header) = bytes.first_chunk::<16>().filter(|_| length >= OVERHEAD) else {
                    return self.counters.dropped(DropReason::Malformed);
                };
                let index = u32::from_le_bytes(std::array::from_fn(|at| header[4 + at]));
                let counter = u64::from_le_bytes(std::array::from_fn(|at| header[8 + at]));
                let Some((tunnel, session)) = self.place(index) else {
                    return self.counters.dropped(DropReason::UnknownSession);
                };
                let (opened, authentic) = (0, false);
                self.items.push(Item { tunnel, session, counter, index, buffer, start, length, opened, authentic });
            }
            1..=3 | 0x10..=0x12 => {
                let (source, local) = (about.source, about.destination);
                let at = stamp(about, reading);
                let datagram = UnopenedDatagram { source, local, at, bytes: bytes.to_vec() };
                if self.queues.datagrams.try_send(datagram).is_err() {
                    self.counters.dropped(DropReason::QueueFull);
                }
            }
            _ => self.counters.dropped(DropReason::Malformed),
        }
    }

    /// Finds the tunnel of a receiver index and the session's place in the batch.
    fn place(&mut self, index: u32) -> Option<(usize, usize)> {
        // Runs of one session are the rule, so the last item is the likeliest to share it.
        if let Some(item) = self.items.iter().rev().find(|item| item.index == index) {
            return Some((item.tunnel, item.session));
        }
        let found = self.host.by_index(index)?;
        let tunnel = self.tunnels.iter().position(|known| Arc::ptr_eq(known, &found)).unwrap_or_else(|| {
            self.tunnels.push(found);
            self.tunnels.len() - 1
        });
        Some((tunnel, self.items.len()))
    }

    /// Opens all kept messages, one lock per tunnel, in order of their counters, and delivers the packets.
    fn open(&mut self, reading: &Reading) {
        let table = Arc::clone(&self.table);
        let table = table.load();
        let mut items = std::mem::take(&mut self.items);
        let tunnels = std::mem::take(&mut self.tunnels);
        items.sort_unstable_by_key(|item| (item.tunnel, item.session, item.counter));
        let mut from = 0;
        for run in items.chunk_by_mut(|a, b| a.tunnel == b.tunnel) {
            let tunnel = &tunnels[run[0].tunnel];
            match table.by_tunnel(tunnel) {
                Some((number, peer)) => {
                    self.open_run(peer, from, run, reading);
                    self.deliver_run(&table, number, peer, from, run, reading);
                }
                None => run.iter().for_each(|_| self.counters.dropped(DropReason::NotAdmitted)),
            }
            from += run.len();
        }
        (self.items, self.tunnels) = (items, tunnels);
        self.items.clear();
        self.tunnels.clear();
    }

    fn open_run(&mut self, peer: &Peer, from: usize, run: &mut [Item], reading: &Reading) {
        let mut confirmed = None;
        {
            let mut guard = peer.tunnel().lock();
            for (offset, item) in run.iter_mut().enumerate() {
                let datagram = &self.received.bytes(item.buffer)[item.start..item.start + item.length];
                let slot = (from + offset) * self.slot;
                match guard.open(reading.now, datagram, &mut self.opened[slot..slot + self.slot]) {
                    Ok(opened) => {
                        (item.opened, item.authentic) = (opened.length, true);
                        confirmed = confirmed.or(opened.confirmed.then_some(item.buffer));
                    }
                    Err(reason) => self.counters.dropped(reason),
                }
            }
            guard.flush(reading.now, reading.wall(), &mut self.outbox);
        }
        self.transmitter.drain(peer, None, &mut self.outbox);
        if let Some(about) = confirmed.and_then(|buffer| self.received.about(buffer)) {
            let event = Event::Confirmed { node: peer.node(), source: about.source, local: about.destination };
            if self.queues.events.try_send(event).is_err() {
                self.counters.dropped(DropReason::QueueFull);
            }
        }
    }

    fn deliver_run(
        &mut self,
        table: &ForwardingTable,
        number: u32,
        peer: &Peer,
        from: usize,
        run: &[Item],
        reading: &Reading,
    ) {
        let (mut packets, mut bytes) = (0, 0);
        for (offset, item) in run.iter().enumerate().filter(|(_, item)| item.opened > 0) {
            let slot = (from + offset) * self.slot;
            match self.deliver(table, number, peer, slot, item, reading) {
                Ok(true) => (packets, bytes) = (packets + 1, bytes + item.opened as u64),
                Ok(false) => {}
                Err(reason) => {
                    self.counters.dropped(reason);
                    peer.tunnel().lock().count_drop(reason);
                }
            }
        }
        self.counters.passed(packets, bytes);
        // The highest counter is what the peer sent last, so its source is where the peer is.
        if let Some(last) = run.iter().rev().find(|item| item.authentic) {
            self.report_move(peer, last, reading);
        }
    }

    /// Delivers one opened packet; tells whether it went to the device.
    fn deliver(
        &self,
        table: &ForwardingTable,
        number: u32,
        peer: &Peer,
        slot: usize,
        item: &Item,
        reading: &Reading,
    ) -> Result<bool, DropReason> {
        let packet = &self.opened[slot..slot + item.opened];
        let inner = InnerPacket::parse(packet)?;
        if inner.is_link_scoped() {
            self.counters.ignored();
            return Ok(false);
        }
        if !matches!(table.owner_of(inner.source), Owner::Peer(owner, _) if owner == number) {
            return Err(DropReason::ForeignSource);
        }
        if let Some(payload) = overlay::unwrap(&packet[..inner.length], table.local().address_v6) {
            return self.take_control(table, peer, item, &inner, payload, reading).map(|()| false);
        }
        if inner.udp_port == Some(CONTROL_PORT) && table.is_overlay(inner.destination) {
            return Err(DropReason::ReservedPort);
        }
        // What is for neither this node nor a prefix it carries would be forwarded by the kernel to wherever its routes
        // lead: a peer has no business there.
        if !matches!(table.owner_of(inner.destination), Owner::Local) {
            return Err(DropReason::NoRoute);
        }
        self.tun.write(&packet[..inner.length]).map_err(|_| DropReason::SystemRefused)?;
        Ok(true)
    }

    /// Passes a control packet up. A probe of a calm link wakes nobody: a request is answered here, the sooner the
    /// better, and what either kind says of the link can wait until the control task is awake for another reason.
    fn take_control(
        &self,
        table: &ForwardingTable,
        peer: &Peer,
        item: &Item,
        inner: &InnerPacket,
        payload: &[u8],
        reading: &Reading,
    ) -> Result<(), DropReason> {
        let about = self.received.about(item.buffer).ok_or(DropReason::Malformed)?;
        let (source, local, at) = (about.source, about.destination, stamp(&about, reading));
        let packet = ControlPacket { node: peer.node(), source, local, at, read: reading.now, bytes: payload.to_vec() };
        let probe = Probe::decode(payload).filter(|probe| peer.is_calm() && probe.is_routine());
        let (Some(probe), IpAddr::V6(to)) = (probe, inner.source) else {
            return self.queues.control.try_send(packet).map_err(|_| DropReason::QueueFull);
        };
        // Queued first: a peer that sends more requests than are read gets no answers either.
        self.queues.probes.try_send(packet).map_err(|_| DropReason::QueueFull)?;
        if let Probe::Request(request) = probe {
            let now = clock::now();
            let reply = ProbeReply::to(&request, now.saturating_since(at), now.saturating_since(reading.now));
            let answer = overlay::wrap(table.local().address_v6, to, &Probe::Reply(reply).encode());
            return self.transmitter.send_packet(peer, None, &answer);
        }
        Ok(())
    }

    fn report_move(&self, peer: &Peer, item: &Item, reading: &Reading) {
        let Some(about) = self.received.about(item.buffer) else { return };
        let known = peer.path().as_ref().is_some_and(|path| path.remote == about.source);
        if known || !peer.may_report_move(reading.now) {
            return;
        }
        let (source, local, at) = (about.source, about.destination, stamp(&about, reading));
        if self.queues.events.try_send(Event::Moved { node: peer.node(), source, local, at }).is_err() {
            self.counters.dropped(DropReason::QueueFull);
        }
    }
}

fn stamp(about: &Received, reading: &Reading) -> crate::time::Instant {
    about.stamp.map_or(reading.now, |stamp| reading.instant_of(stamp))
}

//! From the peers to the TUN.

use super::brought::Brought;
use super::counters::Counters;
use super::ecn;
use super::flows::{Flows, Recent, Side};
use super::forwarding::{ForwardingTable, Owner, Way};
use super::gate::{self, Gate};
use super::inner::InnerPacket;
use super::mss;
use super::offload::{Coalescer, Delivery, MOST_PIECES, Offloads, Run, Segments};
use super::outbound::Found;
use super::passing::Passing;
use super::peer::Peer;
use super::queues::{ControlPacket, Event, Origin, Queues, UnopenedDatagram};
use super::relay::Relay;
use super::stages::Stage;
use super::transmit::Transmitter;
use crate::identity::NodeId;
use crate::platform::clock::{self, Reading, StepWatch};
use crate::platform::tun::{Tun, TunError};
use crate::platform::udp::UdpSocket;
use crate::platform::udp_batch::{ReceiveBatch, Received};
use crate::time::Instant;
use crate::tunnel::{Host, OVERHEAD, Outbox, Tunnel};
use crate::wire::overlay::{self, CONTROL_PORT};
use crate::wire::probe::{Probe, ProbeReply};
use crate::wire::{DropReason, relayed};
use arc_swap::ArcSwap;
use std::io::IoSlice;
use std::net::IpAddr;
use std::sync::Arc;

/// Buffers of one receive, each large enough for all datagrams the kernel may put together. What is never used of them
/// costs nothing.
const BUFFERS: usize = 32;

/// Bytes of one buffer.
const BUFFER: usize = 65_536;

/// Buffers taken at once while datagrams arrive put together: a quarter of a megabyte, which stays in the second-level cache,
/// and keeps the other direction waiting for some 200 µs (two bytes a nanosecond are opened at best).
const FEW_BUFFERS: usize = 4;

/// Data messages opened in one go: the most small ones in [`FEW_BUFFERS`] buffers of 64.
const MOST_ITEMS: usize = 256;

/// Bytes opened to in one go.
const OPENED: usize = FEW_BUFFERS * BUFFER;

/// The way in's belongings.
pub(super) struct Inbound {
    tun: Arc<Tun>,
    udp: Arc<UdpSocket>,
    table: Arc<ArcSwap<ForwardingTable>>,
    host: Arc<Host>,
    pub(super) queues: Queues,
    pub(super) counters: Arc<Counters>,
    transmitter: Transmitter,
    passing: Passing,
    relay: Relay,
    gate: Gate,
    flows: Arc<Flows>,
    recent: Recent,
    pub(super) received: ReceiveBatch,
    steps: StepWatch,
    /// How many buffers the next receive may fill.
    most: usize,
    /// Data messages of the batch.
    pub(super) items: Vec<Item>,
    /// Their bytes in all.
    bytes: usize,
    /// The tunnels they belong to, each once.
    pub(super) tunnels: Vec<Arc<Tunnel>>,
    /// Where packets are opened to, one behind the other.
    pub(super) opened: Box<[u8]>,
    /// Datagrams that relays have brought with this batch, to be opened after it: whose they are said to be, and where they lie
    /// in `carried`.
    pub(super) brought: Vec<Brought>,
    pub(super) carried: Vec<u8>,
    coalescer: Coalescer,
    outbox: Outbox,
}

/// One data message of a batch.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// Its tunnel in `tunnels`.
    pub(super) tunnel: usize,
    /// Counts the sessions of the batch in order of first appearance.
    pub(super) session: usize,
    pub(super) counter: u64,
    pub(super) index: u32,
    pub(super) buffer: usize,
    pub(super) start: usize,
    pub(super) length: usize,
    /// Where the opened packet lies, and its bytes; zero until then, and for keepalives.
    pub(super) at: usize,
    pub(super) opened: usize,
    pub(super) authentic: bool,
    /// The ECN bits of its outer header.
    pub(super) ecn: u8,
    /// The relay that brought it and whose it is said to be; its bytes are then in `carried`.
    pub(super) relayed: Option<(NodeId, NodeId)>,
}

impl Inbound {
    pub(super) fn new(
        tun: Arc<Tun>,
        udp: Arc<UdpSocket>,
        table: Arc<ArcSwap<ForwardingTable>>,
        host: Arc<Host>,
        queues: Queues,
        counters: Arc<Counters>,
        flows: Arc<Flows>,
    ) -> Self {
        let transmitter = Transmitter::new(Arc::clone(&udp));
        Inbound {
            passing: Passing::new(transmitter.clone(), queues.clone(), BUFFER, clock::now()),
            relay: Relay::default(),
            transmitter,
            gate: Gate::default(),
            flows,
            recent: Recent::default(),
            received: ReceiveBatch::new(BUFFERS, BUFFER),
            steps: StepWatch::default(),
            most: BUFFERS,
            items: Vec::with_capacity(MOST_ITEMS),
            bytes: 0,
            tunnels: Vec::with_capacity(BUFFERS),
            opened: vec![0; OPENED].into_boxed_slice(),
            brought: Vec::new(),
            carried: Vec::new(),
            coalescer: Coalescer::new(MOST_ITEMS, Offloads { tcp: false, udp: false }),
            outbox: Outbox::new(),
            tun,
            udp,
            table,
            host,
            queues,
            counters,
        }
    }

    /// Moves what the socket has, one batch at most: sort out what is data, open it tunnel by tunnel, write it to the device.
    pub(super) fn turn(&mut self) -> Found {
        let count = match self.udp.receive(&mut self.received, self.most) {
            Ok(0) => return Found::All,
            Ok(count) => count,
            // Errors of single datagrams (a port unreachable here, a firewall there) are not reported on receiving, so
            // this is rare.
            Err(_) => {
                self.counters.dropped(DropReason::SystemRefused);
                return Found::Trouble;
            }
        };
        let found = if count < self.most { Found::All } else { Found::More };
        self.counters.batch();
        let reading = Reading::take();
        self.steps.look(&reading);
        let (mut joined, mut oldest) = (false, reading.now);
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
            joined |= about.stride < about.length;
            oldest = oldest.min(stamp(&about, &reading));
            let mut start = 0;
            while start < about.length {
                let length = about.stride.min(about.length - start);
                if self.items.len() == MOST_ITEMS || self.bytes + length > OPENED {
                    self.open(&reading);
                }
                self.classify(buffer, start, length, &about, &reading);
                start += length;
            }
        }
        // A stamp from before the clock was set says nothing.
        if self.steps.is_steady(reading.now) {
            self.counters.waited(Stage::UdpRx, oldest, reading.now);
        }
        self.open(&reading);
        // Many buffers only for many single datagrams: filled to the brim, all of them would be two megabytes.
        if joined {
            self.most = FEW_BUFFERS;
        } else if found == Found::More {
            self.most = BUFFERS;
        }
        found
    }

    /// Keeps a data message for opening and hands everything else to the control task.
    fn classify(&mut self, buffer: usize, start: usize, length: usize, about: &Received, reading: &Reading) {
        let bytes = &self.received.bytes(buffer)[start..start + length];
        match bytes[0] {
            4 => {
                let Some(numbers) = numbers(bytes) else {
                    return self.counters.dropped(DropReason::Malformed);
                };
                let Some(item) = self.item(numbers, buffer, start, length) else { return };
                self.bytes += length;
                self.items.push(Item { ecn: about.ecn, ..item });
            }
            1..=3 | 0x10..=0x12 => {
                let origin = Origin::Underlay { source: about.source, local: about.destination };
                self.pass_up(origin, stamp(about, reading), bytes);
            }
            _ => self.counters.dropped(DropReason::Malformed),
        }
    }

    /// Hands what is no data message to the control task.
    pub(super) fn pass_up(&self, origin: Origin, at: Instant, bytes: &[u8]) {
        let datagram = UnopenedDatagram { origin, at, bytes: bytes.to_vec() };
        if self.queues.datagrams.try_send(datagram).is_err() {
            self.counters.dropped(DropReason::QueueFull);
        }
    }

    /// Describes a data message with these [`numbers`] that lies in a buffer; `None`, and counted, where its session is unknown.
    pub(super) fn item(
        &mut self,
        (index, counter): (u32, u64),
        buffer: usize,
        start: usize,
        length: usize,
    ) -> Option<Item> {
        let Some((tunnel, session)) = self.place(index) else {
            self.counters.dropped(DropReason::UnknownSession);
            return None;
        };
        let (at, opened, authentic, ecn, relayed) = (0, 0, false, 0, None);
        Some(Item { tunnel, session, counter, index, buffer, start, length, at, opened, authentic, ecn, relayed })
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
        if self.items.is_empty() {
            return;
        }
        let table = Arc::clone(&self.table);
        let table = table.load();
        self.open_items(&table, reading);
        if !self.brought.is_empty() {
            self.unpack(&table, reading);
            self.open_items(&table, reading);
            self.carried.clear();
        }
    }

    fn open_items(&mut self, table: &ForwardingTable, reading: &Reading) {
        let began = clock::now();
        let mut items = std::mem::take(&mut self.items);
        let tunnels = std::mem::take(&mut self.tunnels);
        items.sort_unstable_by_key(|item| (item.tunnel, item.session, item.counter));
        let runs = self.tun.takes_runs();
        self.coalescer.set_offloads(Offloads { tcp: runs.tcp, udp: runs.udp });
        let mut end = 0;
        for run in items.chunk_by_mut(|a, b| a.tunnel == b.tunnel) {
            let tunnel = &tunnels[run[0].tunnel];
            match table.by_tunnel(tunnel) {
                Some((number, peer)) => {
                    end = self.open_run(peer, end, run, reading);
                    self.admit_run(table, number, peer, run, reading);
                }
                None => run.iter().for_each(|_| self.counters.dropped(DropReason::NotAdmitted)),
            }
        }
        let opened = clock::now();
        self.counters.waited(Stage::Decrypt, began, opened);
        if !self.coalescer.is_empty() {
            self.write();
            self.counters.waited(Stage::TunTx, opened, clock::now());
        }
        (self.items, self.tunnels, self.bytes) = (items, tunnels, 0);
        self.items.clear();
        self.tunnels.clear();
    }

    /// Opens the messages of one tunnel to behind `end` and returns the new end.
    fn open_run(&mut self, peer: &Peer, mut end: usize, run: &mut [Item], reading: &Reading) -> usize {
        let mut confirmed = None;
        {
            let mut guard = peer.tunnel().lock();
            for item in run.iter_mut() {
                let bytes = if item.relayed.is_some() { &self.carried } else { self.received.bytes(item.buffer) };
                let datagram = &bytes[item.start..item.start + item.length];
                // A packet is shorter than its datagram, so all of them fit where the datagrams would.
                match guard.open(reading.now, datagram, &mut self.opened[end..]) {
                    Ok(opened) => {
                        (item.at, item.opened, item.authentic) = (end, opened.length, true);
                        end += opened.length;
                        confirmed = confirmed.or(opened.confirmed.then_some(*item));
                    }
                    Err(reason) => self.counters.dropped(reason),
                }
            }
            guard.flush(reading.now, reading.wall(), &mut self.outbox);
        }
        self.transmitter.drain(peer, &mut self.outbox);
        if let Some((origin, _)) = confirmed.and_then(|item| self.origin(&item, reading)) {
            let event = Event::Confirmed { node: peer.node(), origin };
            if self.queues.events.try_send(event).is_err() {
                self.counters.dropped(DropReason::QueueFull);
            }
        }
        end
    }

    fn admit_run(&mut self, table: &ForwardingTable, number: u32, peer: &Peer, run: &[Item], reading: &Reading) {
        let (mut packets, mut bytes) = (0, 0);
        let mut known = None;
        for item in run.iter().filter(|item| item.opened > 0) {
            match self.admit(table, number, peer, item, &mut known, reading) {
                Ok(true) => (packets, bytes) = (packets + 1, bytes + item.opened as u64),
                Ok(false) => {}
                Err(reason) => {
                    self.counters.dropped(reason);
                    peer.tunnel().lock().count_drop(reason);
                }
            }
        }
        self.counters.passed(packets, bytes);
        if packets > 0 {
            peer.note_data(reading.now);
        }
        // The highest counter is what the peer sent last, so its source is where the peer is. A look at another path is no
        // move: that it comes by another path is its purpose.
        let tells = |item: &&Item| item.authentic && !self.is_look(table, item);
        if let Some(last) = run.iter().rev().find(tells) {
            self.report_move(peer, last, reading);
        }
    }

    /// Judges one opened packet; tells whether it goes to the device, or on to another peer. `known` are the addresses of
    /// the last packet of this peer that went to the device, and whom that was for.
    fn admit(
        &mut self,
        table: &ForwardingTable,
        number: u32,
        peer: &Peer,
        item: &Item,
        known: &mut Option<(IpAddr, IpAddr, Delivery)>,
        reading: &Reading,
    ) -> Result<bool, DropReason> {
        let packet = &self.opened[item.at..item.at + item.opened];
        let inner = InnerPacket::parse(packet)?;
        let fresh =
            known.filter(|(source, destination, _)| (*source, *destination) == (inner.source, inner.destination));
        let reserved = inner.udp_port == Some(CONTROL_PORT);
        let delivery = match fresh.filter(|_| !reserved) {
            Some((_, _, delivery)) => delivery,
            None => {
                if inner.is_link_scoped() {
                    self.counters.ignored();
                    return Ok(false);
                }
                if !table.may_send(number, inner.source) {
                    return match table.owner_of(inner.source) {
                        Owner::Peer(_, from) if reserved && inner.destination == table.local().address_v6 => {
                            let packet = item.at..item.at + inner.length;
                            self.take_brought(table, peer, from, item, packet).map(|()| false)
                        }
                        _ => Err(DropReason::ForeignSource),
                    };
                }
                if peer.is_stock() && reserved {
                    // It is no member, and nothing of the mesh listens there for it.
                    return Err(DropReason::ReservedPort);
                }
                let local = table.local();
                if let Some(payload) = overlay::unwrap(&packet[..inner.length], local.address_v6) {
                    return self.take_control(table, peer, item, &inner, payload, reading).map(|()| false);
                }
                if reserved && table.is_overlay(inner.destination) {
                    let packet = &self.opened[item.at..item.at + inner.length];
                    return match (table.owner_of(inner.destination), inner.destination) {
                        (Owner::Peer(_, to), IpAddr::V6(address))
                            if packet.get(overlay::HEADER_LEN) == Some(&relayed::KIND) =>
                        {
                            if item.relayed.is_some() {
                                return Err(DropReason::NoRelay);
                            }
                            let ends = (peer, &**to);
                            self.relay.pass(&mut self.passing, table, ends, packet, address, reading)?;
                            self.counters.relayed(inner.length as u64);
                            Ok(false)
                        }
                        _ => Err(DropReason::ReservedPort),
                    };
                }
                if let Way::On(to) = table.way_of(peer, inner.source, inner.destination)? {
                    if let Some(policy) = table.policy() {
                        if to.is_stock() {
                            self.gate.judge(policy, peer.node(), packet, &inner, reading.now)?;
                        }
                        if peer.is_stock() {
                            gate::note(policy, local, packet, &inner, reading.now);
                        }
                    }
                    let packet = &mut self.opened[item.at..item.at + inner.length];
                    if !ecn::combine(packet, item.ecn) {
                        return Err(DropReason::Congestion);
                    }
                    // It uses the tunnel it came out of, and the one it goes into.
                    for (tunnel, from) in [(peer, Side::Far), (&**to, Side::Near)] {
                        if self.flows.note(&mut self.recent, packet, &inner, inner.length, from, reading.now) {
                            tunnel.note_flow(reading.now);
                        }
                    }
                    return self.passing.pass(table, peer, to, packet, &inner, reading).map(|()| true);
                }
                let own = [IpAddr::V4(local.address_v4), IpAddr::V6(local.address_v6)];
                let delivery = if own.contains(&inner.destination) { Delivery::Host } else { Delivery::Forwarded };
                *known = Some((inner.source, inner.destination, delivery));
                delivery
            }
        };
        if let Some(policy) = table.policy() {
            self.gate.judge(policy, peer.node(), packet, &inner, reading.now)?;
        }
        if !ecn::combine(&mut self.opened[item.at..item.at + item.opened], item.ecn) {
            return Err(DropReason::Congestion);
        }
        let packet = &self.opened[item.at..item.at + item.opened];
        if self.flows.note(&mut self.recent, packet, &inner, inner.length, Side::Far, reading.now) {
            peer.note_flow(reading.now);
        }
        if delivery == Delivery::Forwarded {
            // What the answer will be sent through is this same link.
            mss::clamp(&mut self.opened[item.at..item.at + item.opened], &inner, peer.mtu(), true);
        }
        self.coalescer.push(&self.opened, item.at, &inner, delivery);
        Ok(true)
    }

    /// Where a data message came from, and when the kernel received it.
    fn origin(&self, item: &Item, reading: &Reading) -> Option<(Origin, Instant)> {
        let about = self.received.about(item.buffer)?;
        let origin = match item.relayed {
            Some((via, from)) => Origin::Relay { via, from },
            None => Origin::Underlay { source: about.source, local: about.destination },
        };
        Some((origin, stamp(&about, reading)))
    }

    /// Writes what was admitted, as runs where the device takes them.
    fn write(&mut self) {
        let (tun, counters) = (&self.tun, &self.counters);
        self.coalescer.finish(&mut self.opened, |run| {
            let refused = match run.pieces {
                [one] => u64::from(tun.write(&run.buffer[one.clone()]).is_err()),
                _ => write_run(tun, &run),
            };
            (0..refused).for_each(|_| counters.dropped(DropReason::SystemRefused));
        });
    }

    /// Passes a control packet up. A request of the probes' schedule is answered here, the sooner the better. A probe of a
    /// calm link wakes nobody: what it says of the link can wait until the control task is awake for another reason.
    fn take_control(
        &self,
        table: &ForwardingTable,
        peer: &Peer,
        item: &Item,
        inner: &InnerPacket,
        payload: &[u8],
        reading: &Reading,
    ) -> Result<(), DropReason> {
        let (origin, at) = self.origin(item, reading).ok_or(DropReason::Malformed)?;
        let (read, steady, bytes) = (reading.now, self.steps.is_steady(reading.now), payload.to_vec());
        let packet = ControlPacket { node: peer.node(), origin, at, read, steady, bytes };
        let probe = Probe::decode(payload).filter(Probe::is_routine);
        // Queued first: a peer that sends more requests than are read gets no answers either.
        if probe.is_some() && peer.is_calm() {
            self.queues.probes.try_send(packet).map_err(|_| DropReason::QueueFull)?;
        } else {
            self.queues.control.try_send(packet).map_err(|_| DropReason::QueueFull)?;
        }
        if let (Some(Probe::Request(request)), IpAddr::V6(to)) = (probe, inner.source)
            && let Some(receipts) = peer.note_request(&request)
        {
            let (health, arrived) = (peer.health(), peer.tunnel().arrived());
            let reply = ProbeReply::to(&request, at, read, clock::now());
            let reply = ProbeReply { unsteady: !steady, health, receipts, arrived, ..reply };
            let answer = overlay::wrap(table.local().address_v6, to, &Probe::Reply(reply).encode());
            return self.transmitter.send_packet(peer, None, &answer);
        }
        Ok(())
    }

    fn is_look(&self, table: &ForwardingTable, item: &Item) -> bool {
        let payload = overlay::unwrap(&self.opened[item.at..item.at + item.opened], table.local().address_v6);
        payload.and_then(Probe::decode).is_some_and(|probe| probe.is_challenge())
    }

    fn report_move(&self, peer: &Peer, item: &Item, reading: &Reading) {
        let Some((origin, at)) = self.origin(item, reading) else { return };
        let known = peer.path().as_ref().is_some_and(|path| path.is_of(&origin));
        if known || !peer.may_report_move(reading.now) {
            return;
        }
        if self.queues.events.try_send(Event::Moved { node: peer.node(), origin, at }).is_err() {
            self.counters.dropped(DropReason::QueueFull);
        }
    }
}

/// Writes one run; where the device refuses it as one, packet by packet. Returns how many packets it did not take.
fn write_run(tun: &Tun, run: &Run<'_>) -> u64 {
    let header = run.header.write();
    // The header, and the most pieces a run has.
    let mut slices = [IoSlice::new(&header); 1 + MOST_PIECES];
    let pieces = run.pieces();
    let count = pieces.len();
    slices[1..].iter_mut().zip(pieces).for_each(|(slice, piece)| *slice = IoSlice::new(piece));
    match tun.write_run(&slices[..=count]) {
        Ok(()) => 0,
        // It may be the run that is at fault: its kind, or that so much memory in one piece is not to be had.
        Err(TunError::BadPacket | TunError::NoBuffers) => write_singly(tun, run),
        Err(_) => count as u64,
    }
}

/// Cuts a run again and writes its packets. Rare, so it may allocate.
#[cold]
fn write_singly(tun: &Tun, run: &Run<'_>) -> u64 {
    let mut gathered = run.pieces().collect::<Vec<_>>().concat();
    let mut refused = 0;
    match Segments::new(&run.header, &mut gathered) {
        Ok(mut segments) => {
            while let Some(packet) = segments.next() {
                refused += u64::from(tun.write(packet).is_err());
            }
        }
        Err(_) => refused += run.pieces.len() as u64,
    }
    refused
}

/// The receiver index and the counter of a data message (WireGuard §5.4.6); `None` where it is too short for one.
pub(super) fn numbers(message: &[u8]) -> Option<(u32, u64)> {
    let header = message.first_chunk::<16>().filter(|_| message.len() >= OVERHEAD)?;
    let index = u32::from_le_bytes(std::array::from_fn(|at| header[4 + at]));
    let counter = u64::from_le_bytes(std::array::from_fn(|at| header[8 + at]));
    Some((index, counter))
}

pub(super) fn stamp(about: &Received, reading: &Reading) -> Instant {
    about.stamp.map_or(reading.now, |stamp| reading.instant_of(stamp))
}

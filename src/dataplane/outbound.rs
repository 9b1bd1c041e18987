//! From the TUN to the peers.

use super::counters::Counters;
use super::ecn;
use super::flows::{Flows, Recent, Side};
use super::forwarding::{ForwardingTable, Owner};
use super::gate;
use super::icmp::{ErrorLimit, MAX_MESSAGE, Trouble, error_for};
use super::inner::InnerPacket;
use super::large;
use super::mss;
use super::offload::{Segments, VirtioHeader};
use super::peer::{Path, Peer};
use super::queues::{Event, Queues};
use super::relay::RelayPath;
use super::retained::Retained;
use super::stages::Stage;
use super::transmit::Transmitter;
use crate::platform::clock::{self, Reading};
use crate::platform::tun::{Framing, LONGEST_READ, Tun, TunError};
use crate::platform::udp::UdpSocket;
use crate::platform::udp_batch::{SendBatch, Way};
use crate::tunnel::{LEAST_BUFFER, OVERHEAD, Outbox, Sealed};
use crate::wire::DropReason;
use crate::wire::overlay::CONTROL_PORT;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::Duration;

/// Packets taken from the device in one turn: at 64 the cost of sending is below a tenth of sealing them, and more would
/// only make the other direction wait.
const MOST_READS: usize = 64;

/// How long a peer is not heard before its segments are kept, though its link is still up: longer than an answer takes between
/// datacentres on two continents, and less than the kernel waits before it sends a segment again for the first time (200 ms and the
/// round trip, RFC 6298 with Linux's minimum). So when the first probe is missed, the newest attempt of each flow is at hand.
const SILENCE: Duration = Duration::from_millis(150);

/// The way out's belongings.
pub(super) struct Outbound {
    /// The device's queues that are this shard's.
    lanes: Vec<Arc<Tun>>,
    udp: Arc<UdpSocket>,
    table: Arc<ArcSwap<ForwardingTable>>,
    queues: Queues,
    counters: Arc<Counters>,
    retained: Arc<Retained>,
    flows: Arc<Flows>,
    recent: Recent,
    transmitter: Transmitter,
    /// What was read, one after the other. Twice the longest packet, so that behind any there is room for another.
    buffer: Box<[u8]>,
    reads: Vec<Read>,
    /// How many packets the next turn may read.
    most: usize,
    datagrams: SendBatch,
    /// Datagrams for a relay, one behind the other, with the length of each and the bits of its packet's service.
    relayed: Vec<u8>,
    lengths: Vec<(usize, u8)>,
    outbox: Outbox,
    limit: ErrorLimit,
    message: Box<[u8; MAX_MESSAGE]>,
}

/// One packet read from the device.
#[derive(Clone, Copy)]
struct Read {
    /// Where its bytes lie.
    start: usize,
    length: usize,
    header: VirtioHeader,
    /// The number of the peer it goes to; `None` before it was judged, and from when it was sealed.
    peer: Option<u32>,
    tos: u8,
}

/// What a turn of one direction found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There may be more.
    More,
    /// All there was.
    All,
    /// An error that may last: do not ask again at once.
    Trouble,
    /// The device is gone for ever.
    Gone,
}

impl Outbound {
    pub(super) fn new(
        lanes: Vec<Arc<Tun>>,
        udp: Arc<UdpSocket>,
        table: Arc<ArcSwap<ForwardingTable>>,
        queues: Queues,
        counters: Arc<Counters>,
        retained: Arc<Retained>,
        flows: Arc<Flows>,
    ) -> Self {
        Outbound {
            transmitter: Transmitter::new(Arc::clone(&udp)),
            buffer: vec![0; 2 * LONGEST_READ].into_boxed_slice(),
            reads: Vec::with_capacity(MOST_READS),
            most: 1,
            datagrams: SendBatch::new(),
            relayed: Vec::new(),
            lengths: Vec::new(),
            outbox: Outbox::new(),
            limit: ErrorLimit::new(clock::now()),
            message: Box::new([0; MAX_MESSAGE]),
            lanes,
            udp,
            table,
            queues,
            counters,
            retained,
            flows,
            recent: Recent::default(),
        }
    }

    /// Tells whether sealed datagrams wait for room in the socket. Nothing is read from the device until they are out.
    pub(super) fn is_waiting(&self) -> bool {
        !self.datagrams.is_empty()
    }

    /// Sends what waits, as far as there is room for it by now.
    pub(super) fn resume(&mut self) {
        if self.is_waiting() {
            self.send();
        }
    }

    /// Moves what one queue of the device has, if nothing waits: at most one packet that stands for many, or 64 others.
    pub(super) fn turn(&mut self, lane: usize) -> Found {
        if self.is_waiting() {
            return Found::All;
        }
        let tun = Arc::clone(&self.lanes[lane]);
        let began = clock::now();
        let found = self.read(&tun);
        // A lone packet is sent before it is asked for another; where one came after the other, as many as there are.
        self.most = if found == Found::More || self.reads.len() > 1 { MOST_READS } else { 1 };
        if !self.reads.is_empty() {
            self.counters.batch();
            let reading = Reading::take();
            let table = Arc::clone(&self.table);
            let table = table.load();
            let mut reads = std::mem::take(&mut self.reads);
            for read in &mut reads {
                self.judge(&tun, &table, read, &reading);
            }
            let judged = clock::now();
            self.counters.waited(Stage::TunRx, began, judged);
            for first in 0..reads.len() {
                if let Some(number) = reads[first].peer {
                    let peer = &table.peers()[number as usize];
                    let path = peer.path();
                    // What goes by a relay shares the turn of all that goes there.
                    let carrier = if let Some(Path::Relay(path)) = path.as_deref() { &path.via } else { peer };
                    let turn = carrier.turn();
                    self.seal_for(peer, number, &mut reads[first..], path.as_deref(), &reading);
                    if turn.is_some() {
                        self.send();
                    }
                }
            }
            self.reads = reads;
            self.send();
            self.counters.waited(Stage::Encrypt, judged, clock::now());
        }
        found
    }

    fn read(&mut self, tun: &Tun) -> Found {
        self.reads.clear();
        let mut start = 0;
        while self.reads.len() < self.most && self.buffer.len() - start >= LONGEST_READ {
            match tun.read(&mut self.buffer[start..]) {
                Ok(length) => {
                    let end = start + length;
                    let mut header = VirtioHeader::PLAIN;
                    if tun.framing() == Framing::Vnet {
                        let Some(bytes) = self.buffer[start..end].first_chunk() else {
                            self.counters.dropped(DropReason::BadInnerPacket);
                            continue;
                        };
                        header = VirtioHeader::read(bytes);
                        start += VirtioHeader::LENGTH;
                    }
                    self.reads.push(Read { start, length: end - start, header, peer: None, tos: 0 });
                    start = end;
                    if header.is_super() {
                        return Found::More;
                    }
                }
                Err(TunError::WouldBlock) => return Found::All,
                // An error after the first packet shows at the next read.
                Err(_) if !self.reads.is_empty() => return Found::More,
                Err(TunError::Deleted) => {
                    // A full queue of events already makes the control task look at everything.
                    let _ = self.queues.events.try_send(Event::DeviceGone);
                    return Found::Gone;
                }
                Err(_) => {
                    self.counters.dropped(DropReason::SystemRefused);
                    return Found::Trouble;
                }
            }
        }
        Found::More
    }

    fn send(&mut self) {
        let counters = &self.counters;
        self.udp.send(&mut self.datagrams, |_, _| counters.dropped(DropReason::SystemRefused));
    }

    /// Decides where a packet goes; counts it, and answers it where that helps, if it goes nowhere.
    fn judge(&mut self, tun: &Tun, table: &ForwardingTable, read: &mut Read, reading: &Reading) {
        let packet = &mut self.buffer[read.start..read.start + read.length];
        read.tos = ecn::traffic_class(packet);
        let inner = match InnerPacket::parse(packet) {
            Ok(inner) => inner,
            Err(reason) => return self.counters.dropped(reason),
        };
        if inner.is_link_scoped() {
            return self.counters.ignored();
        }
        if inner.udp_port == Some(CONTROL_PORT) && table.is_overlay(inner.destination) {
            return self.counters.dropped(DropReason::ReservedPort);
        }
        // The peer would refuse it as well; here the host that sends it can see why.
        if !table.is_ours(inner.source) {
            return self.counters.dropped(DropReason::ForeignSource);
        }
        let (reason, trouble) = match table.owner_of(inner.destination) {
            Owner::Peer(number, peer) => {
                let mtu = usize::from(peer.mtu());
                let length = match read.header.is_super() {
                    true => Segments::new(&read.header, packet).map(|segments| segments.segment_length()),
                    false => Ok(inner.length),
                };
                match length {
                    Ok(length) if length <= mtu => {
                        read.peer = Some(number);
                        if self.flows.note(&mut self.recent, packet, &inner, read.length, Side::Near, reading.now) {
                            peer.note_flow(reading.now);
                        }
                        if let Some(policy) = table.policy() {
                            gate::note(policy, table.local(), packet, &inner, reading.now);
                        }
                        if !table.local().has(inner.source) {
                            let summed = read.header.flags & VirtioHeader::NEEDS_CSUM == 0;
                            mss::clamp(packet, &inner, peer.mtu(), summed);
                        }
                        if large::is_large(length) {
                            peer.note_large(packet, &inner, table.local(), &mut self.message, reading.now);
                            large::report(peer, &self.queues, reading.now);
                        }
                        return;
                    }
                    Ok(_) => (DropReason::TooBig, Trouble::TooBig(peer.mtu())),
                    Err(reason) => return self.counters.dropped(reason),
                }
            }
            Owner::Local | Owner::Nobody => (DropReason::NoRoute, Trouble::Unreachable),
        };
        self.counters.dropped(reason);
        if !self.limit.allow(reading.now) {
            return;
        }
        // Of what stands for many packets, the error quotes the first, which is what the application's socket knows.
        let Ok(mut segments) = Segments::new(&read.header, packet) else { return };
        let Some(packet) = segments.next() else { return };
        if let Ok(inner) = InnerPacket::parse(packet)
            && let Some(length) = error_for(packet, &inner, trouble, table.local().address_v6, &mut self.message)
            && tun.write(&self.message[..length]).is_err()
        {
            self.counters.dropped(DropReason::SystemRefused);
        }
    }

    /// Seals all packets of one peer among `reads` under one lock, straight into the bytes the kernel will send.
    fn seal_for(&mut self, peer: &Peer, number: u32, reads: &mut [Read], path: Option<&Path>, reading: &Reading) {
        let counters = &self.counters;
        let (mut packets, mut bytes, mut held, mut kept) = (0, 0, false, false);
        let calm = peer.is_calm();
        let heard = {
            let mut guard = peer.tunnel().lock();
            let heard = guard.last_heard();
            let is_silent = heard.is_none_or(|at| reading.now.saturating_since(at) >= SILENCE);
            let may_be_lost = !peer.is_stock() && (!calm || is_silent);
            if !may_be_lost && peer.take_kept() {
                // It was heard again before anybody called it silent: what was kept has most likely arrived.
                self.retained.forget(peer.node());
            }
            for read in reads.iter_mut().filter(|read| read.peer == Some(number)) {
                read.peer = None;
                let packet = &mut self.buffer[read.start..read.start + read.length];
                let mut segments = match Segments::new(&read.header, packet) {
                    Ok(segments) => segments,
                    Err(reason) => {
                        counters.dropped(reason);
                        continue;
                    }
                };
                while let Some(segment) = segments.next() {
                    if may_be_lost {
                        kept |= self.retained.keep(reading.now, peer.node(), segment);
                    }
                    let room = (segment.len().next_multiple_of(16) + OVERHEAD).max(LEAST_BUFFER);
                    let start = self.relayed.len();
                    let buffer = if let Some(Path::Relay(_)) = path {
                        self.relayed.resize(start + room, 0);
                        &mut self.relayed[start..]
                    } else if let Some(buffer) = self.datagrams.slot(room) {
                        buffer
                    } else {
                        counters.dropped(DropReason::QueueFull);
                        continue;
                    };
                    let sealed = guard.seal(reading.now, segment, buffer);
                    if let (Ok(Sealed::Datagram(_)), Some(_)) = (&sealed, path) {
                        packets += 1;
                        bytes += segment.len() as u64;
                    }
                    match (sealed, path) {
                        (Ok(Sealed::Datagram(sealed)), Some(Path::Direct { remote, local })) => {
                            self.datagrams.commit(sealed, Way { to: *remote, source: *local, tos: read.tos });
                        }
                        (Ok(Sealed::Datagram(sealed)), Some(Path::Relay(_))) => {
                            self.relayed.truncate(start + sealed);
                            self.lengths.push((sealed, read.tos));
                            continue;
                        }
                        (Ok(Sealed::Datagram(_)), None) => {
                            counters.dropped(DropReason::NoRoute);
                            held = true;
                        }
                        (Ok(Sealed::Held), _) => held = true,
                        (Err(reason), _) => {
                            counters.dropped(reason);
                            held |= reason == DropReason::HoldFull;
                        }
                    }
                    self.relayed.truncate(start);
                }
            }
            guard.flush(reading.now, reading.wall(), &mut self.outbox);
            heard
        };
        self.counters.passed(packets, bytes);
        if packets > 0 {
            peer.note_data(reading.now);
        }
        if let Some(Path::Relay(path)) = path {
            self.carry(path, reading);
        }
        self.transmitter.drain(peer, &mut self.outbox);
        // The first segment into a silence may be answered yet; one that comes after it was not.
        if kept && peer.note_kept() && calm && heard.is_some() && peer.may_report_unanswered(reading.now) {
            let told = self.queues.events.try_send(Event::Unanswered { node: peer.node() });
            if told.is_err() {
                self.counters.dropped(DropReason::QueueFull);
            }
        }
        if held && peer.may_report_want(reading.now) {
            let wanted = self.queues.events.try_send(Event::Wanted { node: peer.node() });
            if wanted.is_err() {
                self.counters.dropped(DropReason::QueueFull);
            }
        }
    }

    /// Puts what was sealed for a relayed link into the tunnel to its relay. One lock after the other: never two at once.
    fn carry(&mut self, path: &RelayPath, reading: &Reading) {
        let mut start = 0;
        for (length, tos) in self.lengths.drain(..) {
            let datagram = &self.relayed[start..start + length];
            start += length;
            let Some(buffer) = self.datagrams.slot(RelayPath::room(length)) else {
                self.counters.dropped(DropReason::QueueFull);
                continue;
            };
            match path.carry(reading.now, datagram, buffer) {
                Ok(carried) => {
                    // No ECN: a mark made on the way to the relay would end there.
                    let way = Way { to: carried.remote, source: carried.local, tos: tos & !ecn::MASK };
                    self.datagrams.commit(carried.length, way);
                }
                Err(reason) => self.counters.dropped(reason),
            }
        }
        self.relayed.clear();
    }
}

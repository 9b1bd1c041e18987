//! The emulator's state: ports, addresses, directions and packets under way. The engine's thread and the test share it
//! under one lock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use super::log::{Counts, Fate, Log, Record};
use super::packet::Packet;
use super::pipe::{Pipe, Settings, Verdict};

/// A port: one host's device on the emulated network.
pub struct Port {
    /// The host's name, or `host/device` for a second device.
    pub name: Arc<str>,
    /// The site it is at, if any.
    pub site: Option<Arc<str>>,
    /// The device, from outside.
    pub device: Arc<File>,
    /// Packets to addresses that nobody has.
    pub unrouted: u64,
}

/// A packet under way; ordered by when it leaves, then by when it entered.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    due: u64,
    order: u64,
    record: u64,
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

/// The emulator's state.
pub struct Core {
    seed: u64,
    /// The ports, in the order in which they were attached.
    pub ports: Vec<Port>,
    /// Who has which address.
    pub routes: BTreeMap<IpAddr, usize>,
    /// The directions between different ports.
    pub pipes: BTreeMap<(usize, usize), Pipe>,
    /// Totals per direction.
    pub counts: BTreeMap<(usize, usize), Counts>,
    /// What directions from a site to another are like, for ports yet to come.
    pub sites: BTreeMap<(Arc<str>, Arc<str>), Settings>,
    /// The truth.
    pub log: Log,
    flight: BinaryHeap<Reverse<Flight>>,
    order: u64,
}

impl Core {
    /// Makes an empty network.
    pub fn new(seed: u64) -> Self {
        Core {
            seed,
            ports: Vec::new(),
            routes: BTreeMap::new(),
            pipes: BTreeMap::new(),
            counts: BTreeMap::new(),
            sites: BTreeMap::new(),
            log: Log::default(),
            flight: BinaryHeap::new(),
            order: 0,
        }
    }

    /// Adds a port and the directions between it and all others.
    pub fn attach(&mut self, port: Port) -> usize {
        let new = self.ports.len();
        self.ports.push(port);
        for old in 0..new {
            for (from, to) in [(old, new), (new, old)] {
                let settings = self.initial(from, to);
                let pipe = Pipe::new(self.seed, &self.ports[from].name, &self.ports[to].name, settings);
                self.pipes.insert((from, to), pipe);
                self.counts.insert((from, to), Counts::default());
            }
        }
        new
    }

    fn initial(&self, from: usize, to: usize) -> Settings {
        let (from, to) = (self.ports[from].site.clone(), self.ports[to].site.clone());
        from.zip(to).and_then(|pair| self.sites.get(&pair)).cloned().unwrap_or_default()
    }

    /// Returns the number of the port with this name.
    pub fn port(&self, name: &str) -> Option<usize> {
        self.ports.iter().position(|port| &*port.name == name)
    }

    /// Returns when the next packet leaves (ns).
    pub fn next_due(&self) -> Option<u64> {
        self.flight.peek().map(|Reverse(flight)| flight.due)
    }

    /// Takes a packet from a port at `now` (ns).
    pub fn enter(&mut self, from: usize, now: u64, bytes: &[u8]) {
        let Some(packet) = Packet::parse(bytes) else { return };
        let Some(&to) = self.routes.get(&packet.destination).filter(|to| **to != from) else {
            self.ports[from].unrouted += 1;
            return;
        };
        let (Some(pipe), Some(counts)) = (self.pipes.get_mut(&(from, to)), self.counts.get_mut(&(from, to))) else {
            return;
        };
        let verdict = pipe.offer(now, &packet);
        let told = pipe.settings().mtu.filter(|(_, tell)| *tell);
        counts.entered += 1;
        let mut record = Record {
            number: 0,
            from: self.ports[from].name.clone(),
            to: self.ports[to].name.clone(),
            entered: now,
            due: 0,
            left: 0,
            len: bytes.len(),
            protocol: packet.protocol,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            tag: packet.tag(),
            copy: false,
            held: false,
            corrupted: false,
            fate: Fate::InFlight,
        };
        let (due, twice, held, flip) = match verdict {
            Verdict::Pass { due, twice, held, flip } => (due, twice, held, flip),
            Verdict::Drop(fate) => {
                counts.settle(fate, bytes.len());
                record.fate = fate;
                self.log.add(record);
                if let (Fate::TooBig, Some((mtu, _))) = (fate, told) {
                    // The message need not arrive: a device that is down loses it like any other packet.
                    let message = packet.too_big(mtu);
                    message.map(|message| (&*self.ports[from].device).write(&message));
                }
                return;
            }
        };
        let mut bytes = bytes.to_vec();
        record.corrupted = flip.is_some_and(|random| flip_bit(&mut bytes[packet.header_len..], random));
        record.due = due;
        record.held = held;
        counts.held += u64::from(held);
        counts.corrupted += u64::from(record.corrupted);
        counts.duplicated += u64::from(twice);
        let second = twice.then(|| (Record { copy: true, ..record.clone() }, bytes.clone()));
        for (record, bytes) in std::iter::once((record, bytes)).chain(second) {
            let number = self.log.add(record);
            self.order += 1;
            self.flight.push(Reverse(Flight { due, order: self.order, record: number, from, to, bytes }));
        }
    }

    /// Hands over every packet that leaves at `now` (ns) or before; `clock` gives the time of each hand-over.
    pub fn leave(&mut self, now: u64, clock: impl Fn() -> u64) -> bool {
        let mut any = false;
        while self.flight.peek().is_some_and(|Reverse(flight)| flight.due <= now) {
            let Some(Reverse(flight)) = self.flight.pop() else { break };
            let way = (flight.from, flight.to);
            let cut = self.pipes.get(&way).is_some_and(|pipe| pipe.settings().cut);
            let left = clock();
            let fate = match cut {
                true => Fate::Cut,
                false if (&*self.ports[flight.to].device).write(&flight.bytes).is_ok() => Fate::Delivered,
                false => Fate::HostDown,
            };
            self.log.settle(flight.record, fate, if fate == Fate::Delivered { left } else { 0 });
            if let Some(counts) = self.counts.get_mut(&way) {
                counts.settle(fate, flight.bytes.len());
            }
            any = true;
        }
        any
    }
}

/// Flips one bit; returns whether there was one.
fn flip_bit(bytes: &mut [u8], random: u64) -> bool {
    let bits = bytes.len() as u64 * 8;
    let Some(bit) = random.checked_rem(bits) else { return false };
    let at = usize::try_from(bit / 8).unwrap_or(0);
    bytes[at] ^= 1 << (bit % 8);
    true
}

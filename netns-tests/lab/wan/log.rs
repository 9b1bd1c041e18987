//! The truth: what the emulator did to each packet, and when.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// How many records are kept; older ones go. At 1,000 packets a second this is over four minutes.
const KEPT: usize = 1 << 18;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It is still under way.
    InFlight,
    /// It was handed to the receiving host.
    Delivered,
    /// Lost by chance, alone or in a burst.
    Lost,
    /// Dropped by a filter.
    Filtered,
    /// The link was cut.
    Cut,
    /// The direction is a black hole.
    Blackhole,
    /// The queue in front of a rate limit was full.
    QueueFull,
    /// Larger than the direction's MTU.
    TooBig,
    /// The receiving host's device was down or gone.
    HostDown,
}

/// One packet on one direction. Times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Clone, Debug)]
pub struct Record {
    /// Number of the record, from 0, without gaps.
    pub number: u64,
    /// Sending port.
    pub from: Arc<str>,
    /// Receiving port.
    pub to: Arc<str>,
    /// When it was taken from the sender.
    pub entered: u64,
    /// When it was to leave; 0 if it never was.
    pub due: u64,
    /// When it was handed over; 0 if it was not.
    pub left: u64,
    /// Length of the IP packet in bytes.
    pub len: usize,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, 0 without one.
    pub source_port: u16,
    /// Destination port, 0 without one.
    pub destination_port: u16,
    /// The first eight bytes of the payload, big-endian, so that a test finds its own packets.
    pub tag: u64,
    /// A second copy made by the emulator.
    pub copy: bool,
    /// Held back so that others overtake it.
    pub held: bool,
    /// A bit was flipped.
    pub corrupted: bool,
    /// What became of it.
    pub fate: Fate,
}

/// Totals of one direction, which no ring forgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that entered, without the emulator's own copies.
    pub entered: u64,
    /// Packets handed over, with copies.
    pub delivered: u64,
    /// Bytes of IP packets handed over.
    pub delivered_bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped by a filter.
    pub filtered: u64,
    /// Dropped by a cut or a black hole.
    pub cut: u64,
    /// Dropped by a full queue.
    pub queue_full: u64,
    /// Dropped by the MTU.
    pub too_big: u64,
    /// Dropped because the receiver's device was down.
    pub host_down: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Packets held back.
    pub held: u64,
    /// Packets with a flipped bit.
    pub corrupted: u64,
}

impl Counts {
    /// Counts one packet's final fate.
    pub fn settle(&mut self, fate: Fate, len: usize) {
        match fate {
            Fate::InFlight => {}
            Fate::Delivered => {
                self.delivered += 1;
                self.delivered_bytes += len as u64;
            }
            Fate::Lost => self.lost += 1,
            Fate::Filtered => self.filtered += 1,
            Fate::Cut | Fate::Blackhole => self.cut += 1,
            Fate::QueueFull => self.queue_full += 1,
            Fate::TooBig => self.too_big += 1,
            Fate::HostDown => self.host_down += 1,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}->{} in {} due {} out {}", self.number, self.from, self.to, self.entered, self.due, self.left)?;
        write!(f, " len {} proto {} {}>{}", self.len, self.protocol, self.source_port, self.destination_port)?;
        write!(f, " tag {:016x} {:?}", self.tag, self.fate)?;
        for (set, word) in [(self.copy, "copy"), (self.held, "held"), (self.corrupted, "corrupted")] {
            if set {
                write!(f, " {word}")?;
            }
        }
        Ok(())
    }
}

/// A bounded log of records.
#[derive(Default)]
pub struct Log {
    records: VecDeque<Record>,
    next: u64,
}

impl Log {
    /// Adds a record and returns its number.
    pub fn add(&mut self, mut record: Record) -> u64 {
        if self.records.len() == KEPT {
            self.records.pop_front();
        }
        record.number = self.next;
        self.next += 1;
        self.records.push_back(record);
        self.next - 1
    }

    /// Sets what became of a packet under way, if its record is still kept.
    pub fn settle(&mut self, number: u64, fate: Fate, left: u64) {
        let first = self.next - self.records.len() as u64;
        let record =
            number.checked_sub(first).and_then(|at| usize::try_from(at).ok()).and_then(|at| self.records.get_mut(at));
        if let Some(record) = record {
            record.fate = fate;
            record.left = left;
        }
    }

    /// Returns the number that the next record will get.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Returns the records kept, oldest first, from `number` on.
    pub fn since(&self, number: u64) -> impl Iterator<Item = &Record> {
        let first = self.next - self.records.len() as u64;
        self.records.iter().skip(usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX))
    }
}

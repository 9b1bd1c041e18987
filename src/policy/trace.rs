//! What becomes of chosen packets, for somebody who watches for a while.
//!
//! While nobody does, a packet costs one look at a flag. While somebody does, only the packets chosen are written down, a
//! bounded number of them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::flow::{Flow, ICMP, ICMPV6, TCP, UDP};
use crate::config::Service;
use crate::time::Instant;

/// Packets that wait to be told: what comes within a tenth of a second at two thousand a second, and then it is counted.
const WAITING: usize = 256;

/// What somebody watches: conversations from one to the other for a service, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// From whom to whom.
    pub pairs: Vec<(IpAddr, IpAddr)>,
    /// By what.
    pub service: Service,
}

/// What a packet is to its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It begins one.
    New,
    /// It goes on with one.
    Established,
    /// It answers what this side began.
    Reply,
    /// It leaves this side.
    Departing,
    /// A later fragment, without ports.
    Fragment,
    /// An error about a packet of this side.
    Error,
}

/// One packet, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// When.
    pub at: Instant,
    /// Its ends; of an error, those of the packet it is about.
    pub flow: Flow,
    /// Its length in bytes.
    pub length: usize,
    /// What it is to its conversation.
    pub stage: Stage,
    /// The rule that let it in, from 0, where it needed one; or why it was refused.
    pub outcome: Result<Option<usize>, &'static str>,
}

/// What was seen since it was last asked.
#[derive(Debug, Default)]
pub struct Seen {
    /// The packets, in their order.
    pub sightings: Vec<Sighting>,
    /// Packets for which there was no room.
    pub missed: u64,
    /// As many packets as were asked for have been seen.
    pub complete: bool,
}

/// The place where packets are written down while somebody watches.
#[derive(Debug, Default)]
pub struct Trace {
    on: AtomicBool,
    watch: Mutex<Option<Watch>>,
}

#[derive(Debug)]
struct Watch {
    selection: Selection,
    /// Packets that may still be written down.
    left: u32,
    seen: Seen,
}

impl Trace {
    /// Whether somebody watches: one relaxed load.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Begins to write down at most `most` packets. Returns whether nobody else watches.
    pub fn begin(&self, selection: Selection, most: u32) -> bool {
        let mut watch = self.watch();
        if watch.is_some() {
            return false;
        }
        *watch = Some(Watch { selection, left: most, seen: Seen::default() });
        self.on.store(true, Ordering::Relaxed);
        true
    }

    /// Writes a packet down, if it is one that is watched.
    pub fn see(&self, sighting: Sighting) {
        let mut watch = self.watch();
        let Some(watch) = &mut *watch else { return };
        if watch.left == 0 || !watch.selection.covers(&sighting.flow, sighting.stage == Stage::Fragment) {
            return;
        }
        if watch.seen.sightings.len() >= WAITING {
            watch.seen.missed += 1;
            return;
        }
        watch.seen.sightings.push(sighting);
        watch.left -= 1;
        if watch.left == 0 {
            watch.seen.complete = true;
            self.on.store(false, Ordering::Relaxed);
        }
    }

    /// Takes what was seen since the last time.
    pub fn take(&self) -> Seen {
        let mut watch = self.watch();
        let Some(watch) = &mut *watch else { return Seen::default() };
        let complete = watch.seen.complete;
        Seen { complete, ..std::mem::take(&mut watch.seen) }
    }

    /// Ends it.
    pub fn end(&self) {
        self.on.store(false, Ordering::Relaxed);
        *self.watch() = None;
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Option<Watch>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Selection {
    /// Whether a packet belongs to what is watched, in either direction; one without ports by its ends and protocol.
    fn covers(&self, flow: &Flow, without_ports: bool) -> bool {
        let of = |flow: &Flow| {
            let service = if without_ports { self.is_protocol(flow) } else { flow.is(self.service) };
            service && self.pairs.contains(&(flow.source, flow.destination))
        };
        of(flow) || of(&flow.reversed())
    }

    fn is_protocol(&self, flow: &Flow) -> bool {
        match self.service {
            Service::Any => true,
            Service::Icmp => flow.protocol == if flow.source.is_ipv4() { ICMP } else { ICMPV6 },
            Service::Tcp(..) => flow.protocol == TCP,
            Service::Udp(..) => flow.protocol == UDP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source_port: u16, destination_port: u16) -> Flow {
        let (source, destination) = ("10.1.0.2".parse().unwrap(), "10.1.0.1".parse().unwrap());
        Flow { source, destination, protocol: TCP, source_port, destination_port }
    }

    fn sighting(flow: Flow) -> Sighting {
        Sighting { at: Instant::from_millis(5), flow, length: 60, stage: Stage::New, outcome: Ok(Some(0)) }
    }

    fn selection() -> Selection {
        let asked = flow(1, 1);
        Selection { pairs: vec![(asked.source, asked.destination)], service: Service::Tcp(3_306, 3_306) }
    }

    #[test]
    fn what_is_asked_for_is_seen_in_both_directions_and_nothing_else() {
        let trace = Trace::default();
        trace.see(sighting(flow(9, 3_306)));
        assert!(!trace.is_on() && trace.take().sightings.is_empty());
        assert!(trace.begin(selection(), 10) && trace.is_on());
        assert!(!trace.begin(selection(), 10), "one at a time");
        let fragment = Sighting { stage: Stage::Fragment, ..sighting(flow(0, 0)) };
        let other_host = Flow { source: "10.1.0.3".parse().unwrap(), ..flow(9, 3_306) };
        let seen = [sighting(flow(9, 3_306)), sighting(flow(9, 3_306).reversed()), fragment];
        for other in
            [sighting(flow(3_306, 9)), sighting(other_host), sighting(Flow { protocol: UDP, ..flow(9, 3_306) })]
        {
            trace.see(other);
        }
        seen.into_iter().for_each(|sighting| trace.see(sighting));
        let taken = trace.take();
        assert_eq!((taken.sightings, taken.missed, taken.complete), (seen.to_vec(), 0, false));
        trace.end();
        assert!(!trace.is_on());
        trace.see(seen[0]);
        assert!(trace.take().sightings.is_empty());
    }

    #[test]
    fn it_ends_by_itself_and_keeps_no_more_than_there_is_room_for() {
        let trace = Trace::default();
        assert!(trace.begin(selection(), 1_000));
        (0..300).for_each(|_| trace.see(sighting(flow(9, 3_306))));
        let taken = trace.take();
        assert_eq!((taken.sightings.len(), taken.missed), (WAITING, 300 - WAITING as u64));
        trace.end();
        assert!(trace.begin(selection(), 3));
        (0..300).for_each(|_| trace.see(sighting(flow(9, 3_306))));
        assert!(!trace.is_on());
        let taken = trace.take();
        assert_eq!((taken.sightings.len(), taken.missed, taken.complete), (3, 0, true));
    }
}

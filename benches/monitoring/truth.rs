//! What the network did to each probe, told by others than meshd.
//!
//! Two witnesses: the emulated network's log, which knows every packet's fate, and the kernels of both hosts, which stamp
//! each packet as it leaves through one device and arrives by the other. The stamps also hold what the emulator adds to the
//! delay it was set to. Probes are sealed, so both tell them by their length, which nothing else of an idle mesh has.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::lab::capture::Captured;
use crate::lab::wan::Record;
use crate::lab::{Capture, Fate};
use crate::sample::Sample;

/// How long a peer may hold a request for an answer to be taken as that request's; more than any stall that is made here.
const HELD: u64 = 100_000_000;

/// One packet's way over the network, in nanoseconds on the witness's clock.
#[derive(Clone, Copy, Debug)]
pub struct Crossing {
    /// When it left the sender.
    pub left: u64,
    /// When it reached the receiver; `None` where it did not.
    pub arrived: Option<u64>,
}

impl Crossing {
    /// How long it took.
    pub fn took(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.arrived?.saturating_sub(self.left)))
    }
}

/// A request and its answer, where one was sent.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The request.
    pub request: Crossing,
    /// The answer.
    pub answer: Option<Crossing>,
}

impl Exchange {
    /// Time on the network both ways; `None` where one of the two was lost.
    pub fn on_network(&self) -> Option<Duration> {
        Some(self.request.took()? + self.answer?.took()?)
    }
}

/// The packets of this length from one host to another in the emulated network's log.
pub fn logged(log: &[Record], from: &str, to: &str, len: usize) -> Vec<Crossing> {
    let wanted = |record: &&Record| record.len == len && !record.copy && *record.from == *from && *record.to == *to;
    let arrived = |record: &Record| (record.fate == Fate::Delivered).then_some(record.left);
    log.iter().filter(wanted).map(|record| Crossing { left: record.entered, arrived: arrived(record) }).collect()
}

/// One host's address and the packets on its device.
pub struct Witness<'a> {
    /// Its address on the network.
    pub address: Ipv4Addr,
    /// Its packets.
    pub packets: &'a [Captured],
}

/// Takes the packets of this length from a capture.
pub fn captured(capture: &Capture, len: usize) -> Vec<Captured> {
    capture.packets(|packet| packet.ip().len() == len)
}

/// The packets from one host to another as both kernels stamped them, on a network that neither loses nor reorders and
/// takes at least `least`.
pub fn stamped(from: &Witness<'_>, to: &Witness<'_>, least: Duration) -> Vec<Crossing> {
    let on_way = |packet: &&Captured| {
        let ip = packet.ip();
        ip.get(12..16) == Some(&from.address.octets()) && ip.get(16..20) == Some(&to.address.octets())
    };
    let left = from.packets.iter().filter(on_way).filter(|packet| packet.outgoing);
    let mut arrived = to.packets.iter().filter(on_way).filter(|packet| !packet.outgoing).map(|packet| packet.time);
    // What was under way when the captures began has arrived without having left.
    let least = u64::try_from(least.as_nanos()).unwrap_or(u64::MAX);
    let arrival = |left: u64| arrived.find(|time| *time >= left.saturating_add(least));
    left.map(|packet| packet.time)
        .scan(arrival, |arrival, left| Some(Crossing { left, arrived: arrival(left) }))
        .collect()
}

/// Sorts the packets between two hosts into requests with their answers: what leaves a host soon after an unanswered request
/// reached it is the answer, anything else a request. Returns the exchanges that the first host began, and those that the
/// second one did, each in the order of its requests.
pub fn exchanges(there: &[Crossing], back: &[Crossing]) -> [Vec<Exchange>; 2] {
    let mut packets: Vec<(usize, Crossing)> = there.iter().map(|packet| (0, *packet)).collect();
    packets.extend(back.iter().map(|packet| (1, *packet)));
    packets.sort_by_key(|(_, packet)| packet.left);
    let mut exchanges = [Vec::new(), Vec::new()];
    // Requests that reached the other end and wait, by the end that sent them.
    let mut open = [VecDeque::new(), VecDeque::new()];
    for (from, packet) in packets {
        let waiting: &mut VecDeque<(usize, u64)> = &mut open[1 - from];
        while waiting.front().is_some_and(|(_, arrived)| arrived.saturating_add(HELD) < packet.left) {
            waiting.pop_front();
        }
        match waiting.front() {
            Some(&(at, arrived)) if arrived <= packet.left => {
                waiting.pop_front();
                let exchange: &mut Exchange = &mut exchanges[1 - from][at];
                exchange.answer = Some(packet);
            }
            _ => {
                if let Some(arrived) = packet.arrived {
                    open[from].push_back((exchanges[from].len(), arrived));
                }
                exchanges[from].push(Exchange { request: packet, answer: None });
            }
        }
    }
    exchanges
}

/// Returns durations in microseconds.
pub fn micros(durations: impl Iterator<Item = Duration>) -> Sample {
    Sample::new(durations.map(|duration| duration.as_secs_f64() * 1e6).collect())
}

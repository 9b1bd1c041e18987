//! Latency probes, inside the tunnel (docs/protocol.md §8).
//!
//! A fixed layout, big-endian, because probes are the most frequent control traffic and their cost is part of what they
//! measure. Both kinds are [`PROBE_LEN`] bytes, so that the two directions carry the same load; a longer message is a newer
//! version's and its tail is ignored.
//!
//! ```text
//! request  0 kind 0x01 | 1 version | 2 flags | 3 health | 4..8 sequence | 8..16 t1 | 16..20 run | 20..22 interval ms |
//!          22 class | 23 late | 24..28 report sequence | 28..36 outward transit ns | 36..44 homeward transit ns |
//!          44..48 prober held ns | 48..52 reflector held ns | 52..56 decided | 56..58 lost outward | 58..60 lost homeward |
//!          60..62 lost unknown | 62..64 in a row | 64..68 expected | 68..72 accepted | 72..74 reordered | 74..76 duplicated |
//!          76..80 zero
//! reply    0 kind 0x02 | 1 version | 2 flags | 3 health | 4..8 sequence | 8..16 t1 echoed | 16..24 t2 |
//!          24..32 held since kernel stamp ns | 32..40 held since read ns | 40..44 highest | 44..52 window |
//!          52..56 expected | 56..60 accepted | 60..62 reordered | 62..64 duplicated | 64..80 zero
//! ```
//!
//! No clock of one host is ever compared with another's: `t1` is opaque to the reflector, and of the transits, which are
//! differences of two hosts' clocks, only the changes mean something. *Outward* is from the prober to the reflector, whoever
//! reads it.

use std::time::Duration;

use super::receipts::Receipts;
use crate::time::Instant;

/// First byte of a request.
pub const KIND_REQUEST: u8 = 0x01;
/// First byte of a reply.
pub const KIND_REPLY: u8 = 0x02;
/// Length of both kinds in bytes: with the overlay's headers a multiple of 16, to which the tunnel would pad it.
pub const PROBE_LEN: usize = 80;

const VERSION: u8 = 1;

/// Flag: a clock of the sender was set while it held the probe, so that its stamps say nothing.
const UNSTEADY: u8 = 1;

/// How closely a link is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Nobody uses it, in a mesh too large to probe every link each second.
    Idle,
    /// It carried data lately, or the mesh is small.
    #[default]
    Active,
    /// The operator named a tag of one of its ends in `probe.critical_tags`.
    Critical,
}

impl Class {
    /// All classes, the least watched first.
    pub const ALL: [Class; 3] = [Class::Idle, Class::Active, Class::Critical];

    /// Its name on the screen, in JSON and as a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Idle => "idle",
            Class::Active => "active",
            Class::Critical => "critical",
        }
    }
}

/// Where a probe was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// On the way from the prober to the reflector.
    Outward,
    /// On the way back.
    Homeward,
    /// On one of the two; nothing has told yet on which.
    Unknown,
}

impl Leg {
    const ALL: [Leg; 3] = [Leg::Outward, Leg::Homeward, Leg::Unknown];
}

/// Asks the peer to answer at once, and tells it what the last exchanges gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeRequest {
    /// Counts requests on this link; wraps.
    pub sequence: u32,
    /// The sender's clock when it queued the request, in nanoseconds; only the sender reads it.
    pub sent_nanos: u64,
    /// Drawn when the sender began to count; sequences of another run begin anew.
    pub run: u32,
    /// How unwell the sender finds itself: 0 is well, 7 the worst.
    pub health: u8,
    /// The time between two requests as long as they are answered, in milliseconds; 0 where it says nothing.
    pub interval_millis: u16,
    /// The class the sender finds the link in.
    pub class: Class,
    /// The newest finished exchange, so that both ends hold the same series with one request and one reply per interval.
    pub report: ProbeReport,
    /// The messages of the reflector's that the prober's tunnel saw.
    pub arrived: Arrivals,
}

/// What the prober learned so far on this link. The counters wrap; only their growth means something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// The sequence of the newest answered request that was measured; 0 before the first.
    pub sequence: u32,
    /// Its way to the reflector: the reflector's clock at its receive stamp, less the prober's when it was sent.
    pub outward_nanos: i64,
    /// Its answer's way back: the prober's clock at its receive stamp, less the reflector's when it was sent.
    pub homeward_nanos: i64,
    /// From the kernel's stamp of the answer until the prober's daemon saw it; 4.29 s stand for more.
    pub prober_held: Duration,
    /// From the kernel's stamp of the request until the reflector's daemon saw it; 4.29 s stand for more.
    pub reflector_held: Duration,
    /// Whether the answer came after the request was counted as lost, and where it was thought to be.
    pub late: Option<Leg>,
    /// Requests whose fate is decided.
    pub decided: u32,
    /// Requests that were lost on their way out. Less than before where late answers took losses back.
    pub lost_outward: u16,
    /// Requests whose answer was lost on its way home.
    pub lost_homeward: u16,
    /// Requests that were lost, nothing tells on which way.
    pub lost_unknown: u16,
    /// How many requests in a row were lost, the newest lost one being the last of them.
    pub lost_in_row: u16,
    /// Answers that came after the answer to a later request.
    pub reordered: u16,
    /// Answers that came twice.
    pub duplicated: u16,
}

/// What one end's tunnel saw of the other's messages, all of them: data is counted without an extra packet.
///
/// The peer numbers its messages, so that one of a number never seen is lost, or still under way. Both counters wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Messages up to the highest number seen, in all sessions together.
    pub expected: u32,
    /// Of those, the ones that came.
    pub accepted: u32,
}

/// Answers a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeReply {
    /// The request's sequence.
    pub sequence: u32,
    /// The request's `sent_nanos`.
    pub sent_nanos: u64,
    /// The reflector's clock at the kernel's receive stamp of the request, in nanoseconds.
    pub received_nanos: u64,
    /// From the kernel's receive stamp of the request to the queueing of this reply.
    pub held_since_kernel: Duration,
    /// From the daemon's first sight of the request to the queueing of this reply.
    pub held_since_read: Duration,
    /// Whether a clock was set meanwhile, so that the stamps say nothing.
    pub unsteady: bool,
    /// How unwell the reflector finds itself: 0 is well, 7 the worst.
    pub health: u8,
    /// Which of the prober's requests came, this one among them.
    pub receipts: Receipts,
    /// The messages of the prober's that the reflector's tunnel saw.
    pub arrived: Arrivals,
}

/// A probe of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A request.
    Request(ProbeRequest),
    /// A reply.
    Reply(ProbeReply),
}

/// Sequences of challenges to an endpoint carry this bit, those of ordinary probes do not.
pub const CHALLENGE: u32 = 1 << 31;
/// Sequences of an operator's pings carry this bit.
pub const PING: u32 = 1 << 30;

impl ProbeReport {
    /// How many requests were lost on a leg.
    pub fn lost(&self, leg: Leg) -> u16 {
        match leg {
            Leg::Outward => self.lost_outward,
            Leg::Homeward => self.lost_homeward,
            Leg::Unknown => self.lost_unknown,
        }
    }

    /// The count of requests lost on a leg.
    pub fn lost_mut(&mut self, leg: Leg) -> &mut u16 {
        match leg {
            Leg::Outward => &mut self.lost_outward,
            Leg::Homeward => &mut self.lost_homeward,
            Leg::Unknown => &mut self.lost_unknown,
        }
    }
}

impl ProbeReply {
    /// Makes the reply to a request that the kernel received at `stamped`, the daemon saw at `read` and answers `now`; what
    /// the reflector counts is left out.
    pub fn to(request: &ProbeRequest, stamped: Instant, read: Instant, now: Instant) -> Self {
        ProbeReply {
            sequence: request.sequence,
            sent_nanos: request.sent_nanos,
            received_nanos: stamped.as_nanos(),
            held_since_kernel: now.saturating_since(stamped),
            held_since_read: now.saturating_since(read),
            ..ProbeReply::default()
        }
    }

    /// From the kernel's receive stamp of the request until the reflector's daemon saw it: its host's share of the delay.
    pub fn held_by_host(&self) -> Duration {
        self.held_since_kernel.saturating_sub(self.held_since_read)
    }
}

impl Probe {
    /// Tells whether the probe is a look at a path, which need not be the one in use.
    pub fn is_challenge(&self) -> bool {
        let (Probe::Request(ProbeRequest { sequence, .. }) | Probe::Reply(ProbeReply { sequence, .. })) = self;
        sequence & CHALLENGE != 0
    }

    /// Tells whether the probe is one of the schedule's, not a challenge and not an operator's ping.
    pub fn is_routine(&self) -> bool {
        let (Probe::Request(ProbeRequest { sequence, .. }) | Probe::Reply(ProbeReply { sequence, .. })) = self;
        sequence & (CHALLENGE | PING) == 0
    }

    /// Encodes the probe.
    pub fn encode(&self) -> [u8; PROBE_LEN] {
        let mut out = [0u8; PROBE_LEN];
        out[1] = VERSION;
        match self {
            Probe::Request(request) => {
                out[0] = KIND_REQUEST;
                write_request(request, &mut out);
            }
            Probe::Reply(reply) => {
                out[0] = KIND_REPLY;
                write_reply(reply, &mut out);
            }
        }
        out
    }

    /// Decodes a probe; `None` where the bytes are no probe or too short for one.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let payload = payload.first_chunk::<PROBE_LEN>()?;
        match payload[0] {
            KIND_REQUEST => Some(Probe::Request(read_request(payload))),
            KIND_REPLY => Some(Probe::Reply(read_reply(payload))),
            _ => None,
        }
    }
}

fn write_request(request: &ProbeRequest, out: &mut [u8; PROBE_LEN]) {
    let report = &request.report;
    out[3] = request.health;
    put(out, 4, request.sequence.to_be_bytes());
    put(out, 8, request.sent_nanos.to_be_bytes());
    put(out, 16, request.run.to_be_bytes());
    put(out, 20, request.interval_millis.to_be_bytes());
    out[22] = request.class as u8;
    out[23] = report.late.map_or(0, |leg| leg as u8 + 1);
    put(out, 24, report.sequence.to_be_bytes());
    put(out, 28, report.outward_nanos.to_be_bytes());
    put(out, 36, report.homeward_nanos.to_be_bytes());
    put(out, 44, short_nanos(report.prober_held).to_be_bytes());
    put(out, 48, short_nanos(report.reflector_held).to_be_bytes());
    put(out, 52, report.decided.to_be_bytes());
    put(out, 56, report.lost_outward.to_be_bytes());
    put(out, 58, report.lost_homeward.to_be_bytes());
    put(out, 60, report.lost_unknown.to_be_bytes());
    put(out, 62, report.lost_in_row.to_be_bytes());
    put(out, 64, request.arrived.expected.to_be_bytes());
    put(out, 68, request.arrived.accepted.to_be_bytes());
    put(out, 72, report.reordered.to_be_bytes());
    put(out, 74, report.duplicated.to_be_bytes());
}

fn read_request(bytes: &[u8; PROBE_LEN]) -> ProbeRequest {
    ProbeRequest {
        health: bytes[3],
        sequence: u32::from_be_bytes(get(bytes, 4)),
        sent_nanos: u64::from_be_bytes(get(bytes, 8)),
        run: u32::from_be_bytes(get(bytes, 16)),
        interval_millis: u16::from_be_bytes(get(bytes, 20)),
        // A class that a newer version has is watched at least as closely as any of ours.
        class: Class::ALL.get(usize::from(bytes[22])).copied().unwrap_or(Class::Critical),
        report: ProbeReport {
            sequence: u32::from_be_bytes(get(bytes, 24)),
            outward_nanos: i64::from_be_bytes(get(bytes, 28)),
            homeward_nanos: i64::from_be_bytes(get(bytes, 36)),
            prober_held: Duration::from_nanos(u32::from_be_bytes(get(bytes, 44)).into()),
            reflector_held: Duration::from_nanos(u32::from_be_bytes(get(bytes, 48)).into()),
            late: usize::from(bytes[23]).checked_sub(1).map(|leg| Leg::ALL.get(leg).copied().unwrap_or(Leg::Unknown)),
            decided: u32::from_be_bytes(get(bytes, 52)),
            lost_outward: u16::from_be_bytes(get(bytes, 56)),
            lost_homeward: u16::from_be_bytes(get(bytes, 58)),
            lost_unknown: u16::from_be_bytes(get(bytes, 60)),
            lost_in_row: u16::from_be_bytes(get(bytes, 62)),
            reordered: u16::from_be_bytes(get(bytes, 72)),
            duplicated: u16::from_be_bytes(get(bytes, 74)),
        },
        arrived: read_arrivals(bytes, 64),
    }
}

fn write_reply(reply: &ProbeReply, out: &mut [u8; PROBE_LEN]) {
    out[2] = if reply.unsteady { UNSTEADY } else { 0 };
    out[3] = reply.health;
    put(out, 4, reply.sequence.to_be_bytes());
    put(out, 8, reply.sent_nanos.to_be_bytes());
    put(out, 16, reply.received_nanos.to_be_bytes());
    put(out, 24, nanos(reply.held_since_kernel).to_be_bytes());
    put(out, 32, nanos(reply.held_since_read).to_be_bytes());
    put(out, 40, reply.receipts.highest.to_be_bytes());
    put(out, 44, reply.receipts.window.to_be_bytes());
    put(out, 52, reply.arrived.expected.to_be_bytes());
    put(out, 56, reply.arrived.accepted.to_be_bytes());
    put(out, 60, reply.receipts.reordered.to_be_bytes());
    put(out, 62, reply.receipts.duplicated.to_be_bytes());
}

fn read_reply(bytes: &[u8; PROBE_LEN]) -> ProbeReply {
    ProbeReply {
        unsteady: bytes[2] & UNSTEADY != 0,
        health: bytes[3],
        sequence: u32::from_be_bytes(get(bytes, 4)),
        sent_nanos: u64::from_be_bytes(get(bytes, 8)),
        received_nanos: u64::from_be_bytes(get(bytes, 16)),
        held_since_kernel: Duration::from_nanos(u64::from_be_bytes(get(bytes, 24))),
        held_since_read: Duration::from_nanos(u64::from_be_bytes(get(bytes, 32))),
        receipts: Receipts {
            highest: u32::from_be_bytes(get(bytes, 40)),
            window: u64::from_be_bytes(get(bytes, 44)),
            reordered: u16::from_be_bytes(get(bytes, 60)),
            duplicated: u16::from_be_bytes(get(bytes, 62)),
        },
        arrived: read_arrivals(bytes, 52),
    }
}

fn read_arrivals(bytes: &[u8; PROBE_LEN], at: usize) -> Arrivals {
    Arrivals { expected: u32::from_be_bytes(get(bytes, at)), accepted: u32::from_be_bytes(get(bytes, at + 4)) }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn short_nanos(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}

fn put<const N: usize>(out: &mut [u8; PROBE_LEN], at: usize, field: [u8; N]) {
    out[at..at + N].copy_from_slice(&field);
}

fn get<const N: usize>(bytes: &[u8; PROBE_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|place| bytes[at + place])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_probe() -> impl Strategy<Value = Probe> {
        let small = any::<[u32; 8]>();
        let signed = any::<[i64; 2]>();
        let request = (small, any::<u64>(), signed, any::<[u16; 7]>(), any::<u8>(), 0usize..12);
        let request = request.prop_map(|(small, sent_nanos, transit, short, health, kinds)| {
            Probe::Request(ProbeRequest {
                sequence: small[0],
                sent_nanos,
                run: small[1],
                health,
                interval_millis: short[0],
                class: Class::ALL[kinds % 3],
                report: ProbeReport {
                    sequence: small[2],
                    outward_nanos: transit[0],
                    homeward_nanos: transit[1],
                    prober_held: Duration::from_nanos(small[3].into()),
                    reflector_held: Duration::from_nanos(small[4].into()),
                    late: Leg::ALL.get(kinds / 3).copied(),
                    decided: small[5],
                    lost_outward: short[1],
                    lost_homeward: short[2],
                    lost_unknown: short[3],
                    lost_in_row: short[6],
                    reordered: short[4],
                    duplicated: short[5],
                },
                arrived: Arrivals { expected: small[6], accepted: small[7] },
            })
        });
        let reply = (any::<[u32; 4]>(), any::<[u64; 5]>(), any::<[u16; 2]>(), any::<u8>(), any::<bool>());
        let reply = reply.prop_map(|(small, large, short, health, unsteady)| {
            let receipts = Receipts { highest: small[1], window: large[4], reordered: short[0], duplicated: short[1] };
            Probe::Reply(ProbeReply {
                sequence: small[0],
                sent_nanos: large[0],
                received_nanos: large[1],
                held_since_kernel: Duration::from_nanos(large[2]),
                held_since_read: Duration::from_nanos(large[3]),
                unsteady,
                health,
                receipts,
                arrived: Arrivals { expected: small[2], accepted: small[3] },
            })
        });
        prop_oneof![request, reply]
    }

    proptest! {
        #[test]
        fn probes_survive_the_wire(probe in any_probe(), tail in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = probe.encode().to_vec();
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(Probe::decode(&bytes), Some(probe));
        }

        #[test]
        fn short_probes_are_refused(probe in any_probe(), len in 0usize..PROBE_LEN) {
            prop_assert_eq!(Probe::decode(&probe.encode()[..len]), None);
        }
    }

    #[test]
    fn the_tunnel_pads_no_probe() {
        assert_eq!((PROBE_LEN + crate::wire::overlay::HEADER_LEN) % 16, 0);
    }
}

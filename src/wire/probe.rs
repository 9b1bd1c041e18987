//! Latency probes, inside the tunnel (docs/protocol.md §8).
//!
//! A fixed layout, big-endian, because probes are the most frequent control traffic and their cost is part of what they
//! measure. Both kinds are [`PROBE_LEN`] bytes, so that the two directions carry the same load; a longer message is a newer
//! version's and its tail is ignored.
//!
//! ```text
//! request  0 kind 0x01 | 1 version | 2..4 zero | 4..8 sequence | 8..16 t1 | 16..20 report sequence |
//!          20..28 report path RTT ns | 28..36 report tunnel RTT ns | 36..40 sent | 40..44 lost | 44..64 zero
//! reply    0 kind 0x02 | 1 version | 2..4 zero | 4..8 sequence | 8..16 t1 echoed | 16..24 held since kernel stamp ns |
//!          24..32 held since read ns | 32..64 zero
//! ```
//!
//! Only durations cross the wire: no clock of one host is ever compared with another's. `t1` is opaque to the reflector.

use std::time::Duration;

/// First byte of a request.
pub const KIND_REQUEST: u8 = 0x01;
/// First byte of a reply.
pub const KIND_REPLY: u8 = 0x02;
/// Length of both kinds in bytes.
pub const PROBE_LEN: usize = 64;

const VERSION: u8 = 1;

/// Asks the peer to answer at once, and tells it what the last exchanges gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRequest {
    /// Counts requests on this link; wraps.
    pub sequence: u32,
    /// The sender's clock when it queued the request, in nanoseconds; only the sender reads it.
    pub sent_nanos: u64,
    /// The newest finished exchange, so that both ends hold the same series with one request and one reply per interval.
    pub report: ProbeReport,
}

/// What the prober learned so far on this link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// The sequence of the newest answered request; 0 before the first.
    pub sequence: u32,
    /// Round trip on the network alone.
    pub path_rtt: Duration,
    /// Round trip as a packet of an application feels it, both daemons' queues included.
    pub tunnel_rtt: Duration,
    /// Requests whose fate is decided; wraps.
    pub sent: u32,
    /// Of those, the ones that were lost; wraps.
    pub lost: u32,
}

/// Answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReply {
    /// The request's sequence.
    pub sequence: u32,
    /// The request's `sent_nanos`.
    pub sent_nanos: u64,
    /// From the kernel's receive stamp of the request to the queueing of this reply.
    pub held_since_kernel: Duration,
    /// From the daemon's first sight of the request to the queueing of this reply.
    pub held_since_read: Duration,
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

impl ProbeReply {
    /// Makes the reply to a request from how long it was held since the kernel's stamp and since it was read.
    pub fn to(request: &ProbeRequest, held_since_kernel: Duration, held_since_read: Duration) -> Self {
        let (sequence, sent_nanos) = (request.sequence, request.sent_nanos);
        ProbeReply { sequence, sent_nanos, held_since_kernel, held_since_read }
    }
}

impl Probe {
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
                out[4..8].copy_from_slice(&request.sequence.to_be_bytes());
                out[8..16].copy_from_slice(&request.sent_nanos.to_be_bytes());
                out[16..20].copy_from_slice(&request.report.sequence.to_be_bytes());
                out[20..28].copy_from_slice(&nanos(request.report.path_rtt).to_be_bytes());
                out[28..36].copy_from_slice(&nanos(request.report.tunnel_rtt).to_be_bytes());
                out[36..40].copy_from_slice(&request.report.sent.to_be_bytes());
                out[40..44].copy_from_slice(&request.report.lost.to_be_bytes());
            }
            Probe::Reply(reply) => {
                out[0] = KIND_REPLY;
                out[4..8].copy_from_slice(&reply.sequence.to_be_bytes());
                out[8..16].copy_from_slice(&reply.sent_nanos.to_be_bytes());
                out[16..24].copy_from_slice(&nanos(reply.held_since_kernel).to_be_bytes());
                out[24..32].copy_from_slice(&nanos(reply.held_since_read).to_be_bytes());
            }
        }
        out
    }

    /// Decodes a probe; `None` where the bytes are no probe or too short for one.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        if payload.len() < PROBE_LEN {
            return None;
        }
        match payload[0] {
            KIND_REQUEST => Some(Probe::Request(ProbeRequest {
                sequence: read_u32(payload, 4),
                sent_nanos: read_u64(payload, 8),
                report: ProbeReport {
                    sequence: read_u32(payload, 16),
                    path_rtt: Duration::from_nanos(read_u64(payload, 20)),
                    tunnel_rtt: Duration::from_nanos(read_u64(payload, 28)),
                    sent: read_u32(payload, 36),
                    lost: read_u32(payload, 40),
                },
            })),
            KIND_REPLY => Some(Probe::Reply(ProbeReply {
                sequence: read_u32(payload, 4),
                sent_nanos: read_u64(payload, 8),
                held_since_kernel: Duration::from_nanos(read_u64(payload, 16)),
                held_since_read: Duration::from_nanos(read_u64(payload, 24)),
            })),
            _ => None,
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0u8; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(field)
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0u8; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_probe() -> impl Strategy<Value = Probe> {
        prop_oneof![
            (any::<[u32; 4]>(), any::<[u64; 3]>()).prop_map(|(small, large)| Probe::Request(ProbeRequest {
                sequence: small[0],
                sent_nanos: large[0],
                report: ProbeReport {
                    sequence: small[1],
                    path_rtt: Duration::from_nanos(large[1]),
                    tunnel_rtt: Duration::from_nanos(large[2]),
                    sent: small[2],
                    lost: small[3],
                },
            })),
            (any::<u32>(), any::<[u64; 3]>()).prop_map(|(sequence, large)| Probe::Reply(ProbeReply {
                sequence,
                sent_nanos: large[0],
                held_since_kernel: Duration::from_nanos(large[1]),
                held_since_read: Duration::from_nanos(large[2]),
            })),
        ]
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
}

//! What probes give.

use std::time::Duration;

use crate::time::Instant;

/// One of the two ways of a link, as seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From this node to the peer.
    Forward,
    /// From the peer to this node.
    Reverse,
    /// One of the two; nothing has told which.
    Unknown,
}

impl Direction {
    /// All of them.
    pub const ALL: [Direction; 3] = [Direction::Forward, Direction::Reverse, Direction::Unknown];

    /// Its name in JSON and as a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
            Direction::Unknown => "unknown",
        }
    }
}

/// An answered probe.
///
/// Both ends of a link hold the same one: the prober from the answer, the reflector from the next request's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When the probe was sent; on the reflector, about when.
    pub sent: Instant,
    /// Round trip on the network alone, from stamp to stamp.
    pub path_rtt: Duration,
    /// Round trip as a packet of an application feels it: `path_rtt`, `own_delay` and `peer_delay` together.
    pub tunnel_rtt: Duration,
    /// From the kernel's stamp until this daemon saw the packet.
    pub own_delay: Duration,
    /// From the kernel's stamp until the peer's daemon saw the packet.
    pub peer_delay: Duration,
    /// The way to the peer in nanoseconds, from this host's clock to the peer's: no clock agrees with another, so only
    /// differences between two samples mean something.
    pub forward_transit: i64,
    /// The way from the peer in nanoseconds, from the peer's clock to this host's.
    pub reverse_transit: i64,
    /// Whether the answer came after the probe was given as lost, and on which way: it takes that loss back.
    pub late: Option<Direction>,
}

/// What a probe gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurement {
    /// An answered probe.
    Sample(Sample),
    /// A probe without an answer in its time.
    Lost {
        /// When it was sent.
        sent: Instant,
        /// Where it was lost.
        direction: Direction,
        /// How many were lost in a row, this one being the last of them.
        in_row: u16,
    },
    /// A probe that was given as lost on an unknown way was lost on this one.
    Placed {
        /// When it was sent.
        sent: Instant,
        /// Where it was lost.
        direction: Direction,
    },
    /// An answered probe that says nothing of the round trip: it counts as sent and not as lost.
    Discarded {
        /// When it was sent.
        sent: Instant,
        /// Why.
        reason: Discard,
        /// As in [`Sample::late`].
        late: Option<Direction>,
    },
    /// A probe or answer that overtook another, or came twice.
    Disorder {
        /// When it was noticed.
        at: Instant,
        /// On which way; never unknown.
        direction: Direction,
        /// What happened.
        kind: Disorder,
    },
    /// Messages of all kinds that the link carried since the last measurement of this direction: data, above all.
    Data {
        /// When they were counted.
        at: Instant,
        /// On which way; never unknown.
        direction: Direction,
        /// How many were sent.
        packets: u32,
        /// How many of them, or of earlier ones, are missing.
        lost: u32,
    },
}

/// Why a sample is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Discard {
    /// A clock was set between its stamps.
    ClockStep,
    /// Its round trip would be negative: a stamp is wrong, or the peer lies.
    Negative,
}

/// What can happen to the order of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disorder {
    /// It came after one that was sent later (RFC 4737).
    Reordered,
    /// It came a second time.
    Duplicated,
}

//! What the data threads hand to the control task. All queues are bounded; what finds one full is dropped and counted.

use crate::identity::NodeId;
use crate::time::Instant;
use std::net::{IpAddr, SocketAddr};
use tokio::sync::mpsc;

/// Handshakes and introductions waiting: a burst of all 1,024 nodes of a large mesh after a restart.
const DATAGRAMS: usize = 1_024;

/// Control packets waiting: a round of probes and gossip from as many peers.
const CONTROL: usize = 1_024;

/// Probes of calm links waiting for the control task to be awake, which it is once a second at least: more than the 200
/// requests a second it sends at most and as many that it gets.
const PROBES: usize = 1_024;

/// Events waiting.
const EVENTS: usize = 256;

/// Where a datagram came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An endpoint.
    Underlay {
        /// The endpoint.
        source: SocketAddr,
        /// The address of ours it was sent to.
        local: Option<IpAddr>,
    },
    /// A member that may relay, proven by its tunnel.
    Relay {
        /// That member.
        via: NodeId,
        /// The member that sent it, as the relay says.
        from: NodeId,
    },
}

impl Origin {
    /// What stands for the sender where its handshakes are counted: the endpoint, or a source of its own for each member whose
    /// datagrams are relayed, which no endpoint has, since identifiers are random.
    pub fn source(&self) -> SocketAddr {
        match self {
            Origin::Underlay { source, .. } => *source,
            Origin::Relay { from, .. } => SocketAddr::new(IpAddr::from(*from.as_bytes()), 0),
        }
    }
}

/// A datagram that is no data message: WireGuard's types 1 to 3, introductions and joins (0x10 to 0x12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnopenedDatagram {
    /// Where it came from. Nothing about it is proven.
    pub origin: Origin,
    /// When the kernel received it.
    pub at: Instant,
    /// Its bytes; at least one.
    pub bytes: Vec<u8>,
}

/// A control packet taken out of a peer's tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPacket {
    /// The peer that sent it, proven by its tunnel.
    pub node: NodeId,
    /// Where its datagram came from.
    pub origin: Origin,
    /// When the kernel received its datagram.
    pub at: Instant,
    /// When the data thread read it.
    pub read: Instant,
    /// Whether no clock was set between the two.
    pub steady: bool,
    /// The payload behind the IPv6 and UDP headers.
    pub bytes: Vec<u8>,
}

/// Something the control task should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer's authenticated datagram came by another path than the one in use, at most once a second per peer.
    /// Only a candidate: the datagram may be a copy sent on by somebody in the middle.
    Moved {
        /// The peer.
        node: NodeId,
        /// Where it came from.
        origin: Origin,
        /// When the kernel received it.
        at: Instant,
    },
    /// A new session of a peer was proven by its first authentic packet.
    Confirmed {
        /// The peer.
        node: NodeId,
        /// Where the packet came from.
        origin: Origin,
    },
    /// Packets wait for a peer that has no session, or no path, at most once a second per peer.
    Wanted {
        /// The peer.
        node: NodeId,
    },
    /// A packet above [`crate::wire::size_probe::FLOOR`] was sent to a peer, about twice a second per peer at most: the path
    /// may not carry it.
    Large {
        /// The peer.
        node: NodeId,
    },
    /// TCP segments go to a peer of which nothing is heard, though its link is up: at most once in 200 ms per peer.
    Unanswered {
        /// The peer.
        node: NodeId,
    },
    /// The TUN device was deleted; nothing leaves by it any more.
    DeviceGone,
}

/// The senders, for the data threads.
#[derive(Clone, Debug)]
pub struct Queues {
    pub(super) datagrams: mpsc::Sender<UnopenedDatagram>,
    pub(super) control: mpsc::Sender<ControlPacket>,
    pub(super) probes: std::sync::mpsc::SyncSender<ControlPacket>,
    pub(super) events: mpsc::Sender<Event>,
}

/// The receivers, for the control task.
#[derive(Debug)]
pub struct Receivers {
    /// Handshakes, introductions and joins.
    pub datagrams: mpsc::Receiver<UnopenedDatagram>,
    /// Control packets.
    pub control: mpsc::Receiver<ControlPacket>,
    /// Probes of calm links. Nobody is woken for them: whoever is awake takes them.
    pub probes: std::sync::mpsc::Receiver<ControlPacket>,
    /// Events.
    pub events: mpsc::Receiver<Event>,
}

/// Makes the queues between the data threads and the control task.
pub fn queues() -> (Queues, Receivers) {
    let (datagrams, datagrams_out) = mpsc::channel(DATAGRAMS);
    let (control, control_out) = mpsc::channel(CONTROL);
    let (probes, probes_out) = std::sync::mpsc::sync_channel(PROBES);
    let (events, events_out) = mpsc::channel(EVENTS);
    let receivers =
        Receivers { datagrams: datagrams_out, control: control_out, probes: probes_out, events: events_out };
    (Queues { datagrams, control, probes, events }, receivers)
}

//! The picture that metrics are made of.

use crate::config::alert::Severity;
use crate::control::probe::LinkState;
use crate::telemetry::alert::Health;
use crate::time::UnixTime;
use crate::wire::DropReason;

/// A node and its links at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The daemon's version.
    pub version: String,
    /// The protocol it speaks.
    pub protocol_version: u32,
    /// This node's name.
    pub node: String,
    /// The mesh's name.
    pub mesh: String,
    /// When the daemon started.
    pub started: UnixTime,
    /// When this node's certificate ends.
    pub certificate_not_after: UnixTime,
    /// Members it knows, itself among them.
    pub members: u64,
    /// Inner packets from the mesh into this host.
    pub received: Traffic,
    /// Inner packets from this host into the mesh.
    pub sent: Traffic,
    /// Packets that were dropped and belong to no peer, in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// Alerts that fire, by urgency.
    pub firing: [(Severity, u64); 2],
    /// The receivers of alerts.
    pub receivers: Vec<ReceiverSnapshot>,
    /// The links, in the order of their peers' names.
    pub links: Vec<LinkSnapshot>,
}

/// Packets and their bytes, of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many packets.
    pub packets: u64,
    /// How many bytes they had, without padding and outer headers.
    pub bytes: u64,
}

/// A receiver of alerts at one moment.
#[derive(Clone, Debug)]
pub struct ReceiverSnapshot {
    /// Its name.
    pub name: String,
    /// How it does.
    pub health: Health,
}

/// One link at one moment.
#[derive(Clone, Debug)]
pub struct LinkSnapshot {
    /// The peer's name.
    pub peer: String,
    /// How the link is.
    pub state: LinkState,
    /// Since when it has been so.
    pub since: UnixTime,
    /// When the session in use was made; `None` without one.
    pub last_handshake: Option<UnixTime>,
    /// Sessions made.
    pub handshakes: u64,
    /// Inner packets from the peer.
    pub received: Traffic,
    /// Inner packets to the peer.
    pub sent: Traffic,
}

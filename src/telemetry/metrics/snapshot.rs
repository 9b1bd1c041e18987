//! The picture that metrics are made of.

use std::time::Duration;

use crate::config::PerLink;
use crate::config::alert::Severity;
use crate::control::probe::LinkState;
use crate::telemetry::alert::Health;
use crate::telemetry::{DelayHistogram, LinkCounters};
use crate::time::{Instant, UnixTime};
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
    /// Sealed datagrams of other members that this node passed on, in their wrapping.
    pub relayed: Traffic,
    /// Packets that were dropped and belong to no peer, in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// Alerts that fire, by urgency.
    pub firing: [(Severity, u64); 2],
    /// The receivers of alerts.
    pub receivers: Vec<ReceiverSnapshot>,
    /// How long packets wait for this host at each stage of their way, by its name.
    pub stages: Vec<(&'static str, DelayHistogram)>,
    /// How late probes were sent or judged.
    pub probe_lag: DelayHistogram,
    /// The forwards, in the order of their names.
    pub forwards: Vec<ForwardSnapshot>,
    /// The gateways of the shared prefixes, prefix by prefix.
    pub gateways: Vec<GatewaySnapshot>,
    /// What this node looks at behind itself.
    pub gateway_checks: Vec<GatewayCheckSnapshot>,
    /// How unwell this node is, from 0 to 7.
    pub health: u8,
    /// How often this host's clock was set since the daemon started.
    pub clock_steps: u64,
    /// Bytes of the history's file; `None` where none is kept.
    pub history_bytes: Option<u64>,
    /// The site it stands at, by its tag.
    pub site: Option<String>,
    /// When this was, by the clock of [`LinkCounters`].
    pub now: Instant,
    /// Which links have series of their own.
    pub per_link: PerLink,
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

/// A forward at one moment.
#[derive(Clone, Debug)]
pub struct ForwardSnapshot {
    /// Its name.
    pub name: String,
    /// Connections refused because there were too many.
    pub refused: u64,
    /// Its targets, in the order of the configuration.
    pub targets: Vec<ForwardTargetSnapshot>,
}

/// A target of a forward at one moment.
#[derive(Clone, Debug)]
pub struct ForwardTargetSnapshot {
    /// The target as the configuration writes it.
    pub target: String,
    /// Whether it takes connections; `None` before it was looked at.
    pub up: Option<bool>,
    /// Whether new connections go there.
    pub in_use: bool,
    /// Connections that are open.
    pub open: u64,
    /// Connections that were made.
    pub made: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// Bytes from clients, and bytes to them.
    pub bytes: [u64; 2],
    /// How long it took to connect.
    pub connects: DelayHistogram,
}

/// A gateway of a shared prefix at one moment.
#[derive(Clone, Debug)]
pub struct GatewaySnapshot {
    /// The prefix.
    pub prefix: String,
    /// The gateway's name.
    pub name: String,
    /// Whether this node sends by it.
    pub in_use: bool,
    /// Whether it serves.
    pub fit: bool,
}

/// Something that this node looks at behind itself, at one moment.
#[derive(Clone, Debug)]
pub struct GatewayCheckSnapshot {
    /// The prefix whose check it belongs to.
    pub prefix: String,
    /// The target as the configuration writes it.
    pub target: String,
    /// Whether it answers; `None` before enough is known.
    pub up: Option<bool>,
}

/// One link at one moment.
#[derive(Clone, Debug)]
pub struct LinkSnapshot {
    /// The peer's name.
    pub peer: String,
    /// The site it stands at, by its tag.
    pub site: Option<String>,
    /// Whether its link is always told by itself.
    pub is_critical: bool,
    /// How the link is.
    pub state: LinkState,
    /// How packets reach the peer, and through which member; `None` while they do not.
    pub path: Option<(&'static str, String)>,
    /// The smoothed round trip, by which the worst are found.
    pub smoothed_rtt: Option<Duration>,
    /// Whether it answers and works badly nevertheless.
    pub is_degraded: bool,
    /// The median round trip of the last seven days; `None` until it is known.
    pub baseline: Option<Duration>,
    /// By how much the round trip has risen of late; zero without a step.
    pub step: Duration,
    /// Jitter of each way (RFC 3550 §6.4.1); zero without an answer.
    pub jitter: [Duration; 2],
    /// By how much the newest probe took longer each way than it can; `None` until that can be told.
    pub variation: Option<[Duration; 2]>,
    /// What its probes came to.
    pub counters: LinkCounters,
    /// The largest packet that the path to the peer carries, in bytes.
    pub path_mtu: u16,
    /// Since when it has been so.
    pub since: UnixTime,
    /// When the session in use was made; `None` without one.
    pub last_handshake: Option<UnixTime>,
    /// Sessions made.
    pub handshakes: u64,
    /// How it stands to quantum computers, by the session in use.
    pub pq: Option<&'static str>,
    /// Hybrid keys under which it was heard.
    pub pq_keys: u64,
    /// Inner packets from the peer.
    pub received: Traffic,
    /// Inner packets to the peer.
    pub sent: Traffic,
}

impl Snapshot {
    /// Links up to which all have series of their own: some seventy each, so that a node has 14,000.
    pub const ALL_UP_TO: usize = 200;
    /// Of more, how many of the worst have.
    pub const WORST: usize = 50;

    /// Returns the links that have series of their own, in the order of their peers' names.
    ///
    /// The worst are those that nothing is heard of, then those that have just lost probes, then the longest. Critical ones
    /// come on top.
    pub fn shown(&self) -> Vec<&LinkSnapshot> {
        let all = match self.per_link {
            PerLink::All => true,
            PerLink::Auto => self.links.len() <= Self::ALL_UP_TO,
            PerLink::Worst => false,
        };
        if all {
            return self.links.iter().collect();
        }
        let badness = |link: &LinkSnapshot| (link.state.is_silent(), link.counters.held(), link.smoothed_rtt);
        let mut worst: Vec<&LinkSnapshot> = self.links.iter().filter(|link| !link.is_critical).collect();
        worst.sort_by_key(|link| std::cmp::Reverse(badness(link)));
        worst.truncate(Self::WORST);
        worst.extend(self.links.iter().filter(|link| link.is_critical));
        worst.sort_by(|a, b| a.peer.cmp(&b.peer));
        worst
    }
}

//! What `meshctl status` shows.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ConfinementStatus, PolicyAgreement, Timestamp};

/// The daemon's whole state in one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// This node.
    pub node: NodeStatus,
    /// The mesh.
    pub mesh: MeshStatus,
    /// Peers by state.
    pub counts: Counts,
    /// What is wrong, gravest first.
    pub problems: Vec<Problem>,
    /// The peers, worst first, then by name.
    pub peers: Vec<PeerStatus>,
    /// The stock WireGuard peers of this node, in the order of its configuration. They are no members: they are not
    /// probed, and not counted above.
    #[serde(default)]
    pub wireguard: Vec<WireguardStatus>,
    /// Packets dropped that belong to no peer, by reason (`wire::DropReason::name`); reasons without drops are absent.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// Its WireGuard key in base64.
    pub wireguard_key: String,
    /// Its IPv4 overlay address.
    pub address_v4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub address_v6: Ipv6Addr,
    /// The prefixes that its certificate carries.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub prefixes: Vec<IpNet>,
    /// The interface's name.
    pub interface: String,
    /// The interface's MTU in bytes.
    pub mtu_bytes: u32,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where it says it can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// The daemon's version.
    pub version: String,
    /// When the daemon started.
    pub started: Timestamp,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// Its certificate.
    pub certificate: CertificateStatus,
    /// How unwell it is as an observer, from 0, well, to 7: deadlines met late, clocks set.
    #[serde(default)]
    pub observer_health: u8,
    /// How often its wall clock was set since the daemon started.
    #[serde(default)]
    pub clock_steps: u64,
    /// What the kernel refuses the daemon; absent in a daemon that is too old to say.
    #[serde(default)]
    pub confinement: Option<ConfinementStatus>,
}

/// A certificate's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CertificateStatus {
    /// When it stops being valid.
    pub expires: Timestamp,
    /// Seconds until then; 0 once it has expired.
    pub expires_in_seconds: u64,
    /// Its serial.
    pub serial: u64,
    /// How close the end is: `None` while it is more than 21 days away.
    #[serde(default)]
    pub warning: Option<Gravity>,
}

impl CertificateStatus {
    /// Days before the end at which an operator should plan the renewal: online renewal runs long before.
    pub const NOTICE_DAYS: u64 = 21;
    /// Days before the end at which an operator must act: a week holds a working day in every country.
    pub const WARNING_DAYS: u64 = 7;

    /// Returns how grave it is that a certificate ends in that many seconds.
    pub fn warning_at(expires_in_seconds: u64) -> Option<Gravity> {
        match expires_in_seconds {
            0 => Some(Gravity::Critical),
            left if left <= Self::WARNING_DAYS * 86_400 => Some(Gravity::Warning),
            left if left <= Self::NOTICE_DAYS * 86_400 => Some(Gravity::Notice),
            _ => None,
        }
    }
}

/// The mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MeshStatus {
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub mesh_id: String,
    /// Members this node knows, itself among them.
    pub members: u32,
}

/// Peers by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Counts {
    /// All peers.
    pub peers: u32,
    /// Peers in state `up`.
    pub up: u32,
    /// Peers in state `degraded`.
    #[serde(default)]
    pub degraded: u32,
    /// Peers in state `suspect`.
    pub suspect: u32,
    /// Peers in state `down`.
    pub down: u32,
    /// Peers in state `unknown`.
    #[serde(default)]
    pub unknown: u32,
    /// Peers in state `new`.
    pub new: u32,
    /// Peers in state `expired`.
    pub expired: u32,
}

impl Counts {
    /// Counts peers by their states.
    pub fn of(states: impl IntoIterator<Item = PeerState>) -> Counts {
        let mut counts = Counts::default();
        for state in states {
            counts.peers += 1;
            *match state {
                PeerState::Up => &mut counts.up,
                PeerState::Degraded => &mut counts.degraded,
                PeerState::Unknown => &mut counts.unknown,
                PeerState::Suspect => &mut counts.suspect,
                PeerState::Down => &mut counts.down,
                PeerState::New => &mut counts.new,
                PeerState::Expired => &mut counts.expired,
            } += 1;
        }
        counts
    }
}

/// How grave a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Gravity {
    /// Worth knowing; nothing is wrong yet.
    Notice,
    /// Something will fail, or works badly.
    Warning,
    /// Something has failed.
    Critical,
}

/// Something that is wrong, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Problem {
    /// How grave it is.
    pub gravity: Gravity,
    /// What kind it is, for programs: a stable word such as `peer_down` or `certificate_expires`.
    pub kind: String,
    /// The peer it is about, where it is about one.
    #[serde(default)]
    pub peer: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do next; empty where there is nothing to do but wait.
    #[serde(default)]
    pub advice: String,
    /// Since when.
    #[serde(default)]
    pub since: Option<Timestamp>,
}

/// A peer's state; [`PeerState::severity`] orders them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Answers.
    Up,
    /// Answers, but worse than it should.
    Degraded,
    /// Has missed answers, but not long enough to be down.
    Suspect,
    /// Does not answer.
    Down,
    /// Is not heard, but this node is unwell: it may be the one that does not hear.
    Unknown,
    /// Known, and no tunnel has stood yet.
    New,
    /// Its certificate is no longer valid.
    Expired,
}

impl PeerState {
    /// The state's name on the screen and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            PeerState::Up => "up",
            PeerState::Degraded => "degraded",
            PeerState::Unknown => "unknown",
            PeerState::Suspect => "suspect",
            PeerState::Down => "down",
            PeerState::New => "new",
            PeerState::Expired => "expired",
        }
    }

    /// Whether the peer answers, well or badly.
    pub const fn answers(self) -> bool {
        matches!(self, PeerState::Up | PeerState::Degraded)
    }

    /// Orders states, the one an operator should look at first being the greatest.
    pub const fn severity(self) -> u8 {
        match self {
            PeerState::Up => 0,
            PeerState::New => 1,
            PeerState::Degraded => 2,
            PeerState::Suspect => 3,
            PeerState::Unknown => 4,
            PeerState::Expired => 5,
            PeerState::Down => 6,
        }
    }
}

/// How packets reach a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PathStatus {
    /// What kind of path it is.
    pub kind: PathKind,
    /// Where packets are sent.
    pub endpoint: SocketAddr,
    /// The relay's name, for a relayed path.
    #[serde(default)]
    pub via: Option<String>,
}

/// What kind of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// UDP straight to the peer.
    Direct,
    /// Through another member.
    Relay,
    /// TCP straight to the peer.
    Tcp,
}

/// A loss ratio with its Wilson 95 % interval, all between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LossRatio {
    /// Probes that were not answered.
    pub lost: u64,
    /// Probes whose fate is known.
    pub sent: u64,
    /// `lost / sent`.
    pub ratio: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

/// What was measured on a link in the window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkMeasure {
    /// Seconds the window covers.
    pub window_seconds: f64,
    /// Smallest round trip.
    pub rtt_min_seconds: f64,
    /// Median round trip.
    pub rtt_p50_seconds: f64,
    /// 99th percentile of the round trip.
    pub rtt_p99_seconds: f64,
    /// Largest round trip.
    pub rtt_max_seconds: f64,
    /// RFC 3550 jitter.
    pub jitter_seconds: f64,
    /// Jitter of the way to the peer.
    #[serde(default)]
    pub jitter_forward_seconds: f64,
    /// Jitter of the way from the peer.
    #[serde(default)]
    pub jitter_reverse_seconds: f64,
    /// By how much the way to the peer took longer than it can, at the newest probe; absent until that can be told.
    #[serde(default)]
    pub variation_forward_seconds: Option<f64>,
    /// By how much the way from the peer took longer than it can.
    #[serde(default)]
    pub variation_reverse_seconds: Option<f64>,
    /// Median delay of packets in this host, from the kernel to the daemon.
    #[serde(default)]
    pub own_delay_p50_seconds: f64,
    /// 99th percentile of this host's delay.
    #[serde(default)]
    pub own_delay_p99_seconds: f64,
    /// Median delay of packets in the peer's host.
    #[serde(default)]
    pub peer_delay_p50_seconds: f64,
    /// 99th percentile of the peer's host's delay.
    #[serde(default)]
    pub peer_delay_p99_seconds: f64,
    /// Median round trip of the last week; absent until it is known.
    #[serde(default)]
    pub rtt_baseline_seconds: Option<f64>,
    /// Median round trip before the step that stands; absent without one.
    #[serde(default)]
    pub step_from_seconds: Option<f64>,
}

/// How closely a link is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LinkClass {
    /// Nobody uses it, in a mesh too large to probe every link each second.
    Idle,
    /// It carried data lately, or the mesh is small.
    Active,
    /// One of its ends has a tag that `probe.critical_tags` names.
    Critical,
}

impl LinkClass {
    /// The class's name on the screen and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            LinkClass::Idle => "idle",
            LinkClass::Active => "active",
            LinkClass::Critical => "critical",
        }
    }
}

/// Why a link is degraded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DegradedReason {
    /// What kind it is, for programs: a stable word such as `loss` or `latency_step`.
    pub kind: String,
    /// What is wrong, with the figures it was found by last.
    pub text: String,
    /// Since when.
    #[serde(default)]
    pub since: Option<Timestamp>,
}

/// What else was counted on a link in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkCounts {
    /// Loss on the way to the peer; absent without a probe.
    pub loss_forward: Option<LossRatio>,
    /// Loss on the way from the peer.
    pub loss_reverse: Option<LossRatio>,
    /// Probes lost on a way that nothing has told.
    pub lost_unknown: u64,
    /// Loss of messages of all kinds on the way to the peer; absent without a message.
    pub data_loss_forward: Option<LossRatio>,
    /// Loss of messages of all kinds on the way from the peer.
    pub data_loss_reverse: Option<LossRatio>,
    /// The most probes lost in a row.
    pub longest_loss_run: u64,
    /// Probes answered after their time.
    pub late: u64,
    /// Probes overtaken on the way to the peer.
    pub reordered_forward: u64,
    /// Probes overtaken on the way from the peer.
    pub reordered_reverse: u64,
    /// Probes that came twice on the way to the peer.
    pub duplicated_forward: u64,
    /// Probes that came twice on the way from the peer.
    pub duplicated_reverse: u64,
    /// Answers not measured because a clock was set.
    pub discarded_clock_step: u64,
    /// Answers not measured because the result would be negative.
    pub discarded_negative: u64,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// Its IPv4 overlay address.
    pub address_v4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub address_v6: Ipv6Addr,
    /// Prefixes it may carry.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub prefixes: Vec<IpNet>,
    /// Its state.
    pub state: PeerState,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// How packets reach it; absent while they do not.
    pub path: Option<PathStatus>,
    /// Round trips in the window; absent without an answered probe.
    pub link: Option<LinkMeasure>,
    /// Loss in the window; absent without a probe.
    pub loss: Option<LossRatio>,
    /// What else was counted in the window; absent without a link.
    #[serde(default)]
    pub counts: Option<LinkCounts>,
    /// How closely the link is watched, as the end that probes it decides.
    #[serde(default)]
    pub class: Option<LinkClass>,
    /// Seconds between two probes while they are answered.
    #[serde(default)]
    pub probe_interval_seconds: Option<f64>,
    /// What others say who were asked about a silent peer; absent while it is not silent.
    #[serde(default)]
    pub verdict: Option<String>,
    /// Why the link is degraded, the gravest first.
    #[serde(default)]
    pub reasons: Vec<DegradedReason>,
    /// The largest packet that the path to it carries, in bytes; the interface's MTU where nothing is found to the contrary.
    #[serde(default)]
    pub mtu_bytes: u32,
    /// Seconds since the session was made; absent without a session.
    pub session_age_seconds: Option<u64>,
    /// Bytes received in its tunnel, inner packets only.
    pub rx_bytes: u64,
    /// Bytes sent in its tunnel, inner packets only.
    pub tx_bytes: u64,
    /// Packets received in its tunnel.
    pub rx_packets: u64,
    /// Packets sent in its tunnel.
    pub tx_packets: u64,
    /// Sessions made with it since the daemon started.
    pub handshakes: u64,
    /// TCP flows that an outage of the link had brought to a stand and that were woken when it ended.
    #[serde(default)]
    pub flows_woken: u64,
    /// Seconds since its newest record was signed; absent while none has arrived.
    pub record_age_seconds: Option<u64>,
    /// When its certificate stops being valid.
    pub certificate_expires: Timestamp,
    /// Whether the session in use is safe from what records it today and has a quantum computer later; absent without a
    /// session, and where an older daemon does not say.
    #[serde(default)]
    pub pq: Option<PqState>,
    /// Hybrid keys under which it was heard since the daemon started.
    #[serde(default)]
    pub pq_keys: u64,
    /// How its rules of what may come in are to this node's; absent where it does not say.
    #[serde(default)]
    pub policy: Option<PolicyAgreement>,
    /// Packets of this peer that were dropped, by reason; reasons without drops are absent.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// How a link stands to quantum computers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PqState {
    /// The session in use came of a key of ML-KEM-768 and X25519.
    Hybrid,
    /// Both ends know how, and no session came of such a key yet.
    Pending,
    /// One end does not know how, or refuses.
    Off,
}

impl PqState {
    /// The state's name on the screen, in JSON and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            PqState::Hybrid => "hybrid",
            PqState::Pending => "pending",
            PqState::Off => "off",
        }
    }
}

/// A stock WireGuard peer's state, by its handshakes and traffic: nothing measures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WireguardState {
    /// A session stands, for which it answered or asked; sessions live for three minutes at most.
    Up,
    /// It was heard since the daemon started, and has no session now: nothing to say, or away.
    Idle,
    /// It was not heard since the daemon started.
    New,
    /// It has no tunnel: a member's certificate has its key.
    Refused,
}

impl WireguardState {
    /// The state's name on the screen and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            WireguardState::Up => "up",
            WireguardState::Idle => "idle",
            WireguardState::New => "new",
            WireguardState::Refused => "refused",
        }
    }
}

/// A stock WireGuard peer, as `[[wireguard]]` declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WireguardStatus {
    /// Its name.
    pub name: String,
    /// Its public key in base64.
    pub public_key: String,
    /// What it is declared with; a problem names what of it a certificate takes away.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub addresses: Vec<IpNet>,
    /// Those of its addresses that this node's certificate carries: with them it takes part in the whole mesh.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub carried: Vec<IpNet>,
    /// Its state.
    pub state: WireguardState,
    /// Where it was last heard from, or is declared to be; absent where neither is known.
    pub endpoint: Option<SocketAddr>,
    /// Where it is declared to be.
    pub declared_endpoint: Option<SocketAddr>,
    /// Whether a pre-shared key is mixed in.
    pub has_preshared_key: bool,
    /// Seconds since the session was made; absent without a session.
    pub session_age_seconds: Option<u64>,
    /// Seconds since anything of it was authenticated; absent while nothing was.
    pub heard_seconds: Option<u64>,
    /// Bytes received in its tunnel, inner packets only.
    pub rx_bytes: u64,
    /// Bytes sent in its tunnel, inner packets only.
    pub tx_bytes: u64,
    /// Packets received in its tunnel.
    pub rx_packets: u64,
    /// Packets sent in its tunnel.
    pub tx_packets: u64,
    /// Sessions made with it since the daemon started.
    pub handshakes: u64,
    /// Packets of this peer that were dropped, by reason; reasons without drops are absent.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_warn_at_21_and_7_days() {
        let day = 86_400;
        assert_eq!(CertificateStatus::warning_at(21 * day + 1), None);
        assert_eq!(CertificateStatus::warning_at(21 * day), Some(Gravity::Notice));
        assert_eq!(CertificateStatus::warning_at(7 * day), Some(Gravity::Warning));
        assert_eq!(CertificateStatus::warning_at(0), Some(Gravity::Critical));
    }

    #[test]
    fn counts_add_up() {
        let counts = Counts::of([PeerState::Up, PeerState::Up, PeerState::Down, PeerState::New]);
        assert_eq!(counts, Counts { peers: 4, up: 2, down: 1, new: 1, ..Counts::default() });
    }
}

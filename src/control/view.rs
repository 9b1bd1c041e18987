//! What the engine shows: a read-only picture for the status, the metrics and the tests.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::link::Peer;
use super::path::Path;
use super::probe::{LinkState, Pace};
use super::routing::Collision;
use super::{Engine, FEATURE_RENEWS, FEATURE_TELLS_ALERTS};
use crate::identity::{NodeId, NodeName, Tag};
use crate::time::{Instant, UnixTime};

/// The mesh as this node sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// This node.
    pub node: NodeId,
    /// When its certificate ends.
    pub certificate_not_after: UnixTime,
    /// Whether the authority has revoked it.
    pub revoked: bool,
    /// Another host spoke with this node's keys, this long ago.
    pub cloned: Option<Duration>,
    /// Whether this node signs certificates.
    pub is_authority: bool,
    /// Members, this node included.
    pub members: usize,
    /// Revoked nodes.
    pub revocations: usize,
    /// The peers, in the order of their names.
    pub peers: Vec<PeerView>,
    /// Claims of two certificates to the same name, address or prefix.
    pub collisions: Vec<Collision>,
}

/// A peer as this node sees it.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// Its node id.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its overlay addresses.
    pub address_v4: Ipv4Addr,
    /// Its overlay addresses.
    pub address_v6: Ipv6Addr,
    /// The networks it may carry.
    pub prefixes: Vec<IpNet>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// How the link is.
    pub state: LinkState,
    /// How long it has been so.
    pub state_for: Duration,
    /// Where its datagrams go: its endpoint, or the relay's.
    pub endpoint: Option<SocketAddr>,
    /// The member that passes its datagrams on, where one does.
    pub via: Option<NodeId>,
    /// How long a session has stood without a break.
    pub session_for: Option<Duration>,
    /// Attempts to reach it since the last session.
    pub attempts: u32,
    /// How long this node has known it.
    pub known_for: Duration,
    /// How closely the link is probed, as the end that probes it decides.
    pub pace: Pace,
    /// How unwell the peer says it is: 0 is well.
    pub peer_health: u8,
    /// The smoothed round trip.
    pub smoothed_rtt: Option<Duration>,
    /// The largest packet that the path to it carries, in bytes.
    pub path_mtu: u16,
    /// When its certificate ends.
    pub certificate_not_after: UnixTime,
    /// When it signed its newest record.
    pub record_issued: Option<UnixTime>,
    /// Whether it says that it renews certificates.
    pub is_authority: bool,
    /// Whether it says that it tells somebody of alerts.
    pub tells_alerts: bool,
    /// What it says its rules are condensed to, 0 where it has none; absent where it does not say.
    pub policy: Option<u64>,
}

impl Engine {
    /// Returns the present picture.
    pub fn view(&self, now: Instant) -> View {
        let mut peers: Vec<PeerView> = self.peers.keys().filter_map(|node| self.peer_view(*node, now)).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name).then(a.node.cmp(&b.node)));
        View {
            node: self.node,
            certificate_not_after: self.own.certificate.certificate().not_after,
            revoked: self.revoked,
            cloned: self.clone_seen.map(|seen| now.saturating_since(seen)),
            is_authority: self.own.authority.is_some(),
            members: self.membership.len(),
            revocations: self.membership.revoked_nodes().count(),
            peers,
            collisions: self.routing().collisions,
        }
    }

    fn endpoint_of(&self, peer: &Peer) -> Option<SocketAddr> {
        match peer.paths.current() {
            Some(Path::Direct { remote, .. }) => Some(remote),
            Some(Path::Relay { via }) => self.peers.get(&via).and_then(|relay| relay.paths.current()?.remote()),
            None => peer.contact.first_candidate(),
        }
    }

    /// Returns the present picture of one peer.
    pub fn peer_view(&self, node: NodeId, now: Instant) -> Option<PeerView> {
        let peer = self.peers.get(&node)?;
        let member = self.membership.get(node)?;
        let certificate = member.certificate();
        let features = member.record.as_ref().map_or(0, |record| record.record().features);
        let has = |bit| features & bit != 0;
        Some(PeerView {
            node,
            name: certificate.name.clone(),
            address_v4: certificate.address_v4,
            address_v6: certificate.address_v6,
            prefixes: certificate.prefixes.clone(),
            tags: certificate.tags.clone(),
            state: peer.prober.state(),
            state_for: now.saturating_since(peer.prober.since()),
            endpoint: self.endpoint_of(peer),
            via: peer.paths.current().and_then(Path::via),
            session_for: peer.contact.session_since().map(|since| now.saturating_since(since)),
            attempts: peer.contact.attempts(),
            known_for: now.saturating_since(peer.learned),
            pace: peer.prober.pace(),
            peer_health: peer.prober.peer_health(),
            smoothed_rtt: peer.prober.smoothed_rtt(),
            path_mtu: peer.path_mtu.size(),
            certificate_not_after: certificate.not_after,
            record_issued: member.record.as_ref().map(|record| record.record().issued),
            is_authority: has(FEATURE_RENEWS),
            tells_alerts: has(FEATURE_TELLS_ALERTS),
            policy: member.record.as_ref().and_then(|record| record.record().policy),
        })
    }
}

//! The ways to each peer, for the local interface.

use std::net::SocketAddr;

use super::driver::Driver;
use crate::api::{PathKind, PathList, PathReason, PathState, PathStatus, PeerPaths, SCHEMA, Timestamp};
use crate::control::PathsView;
use crate::control::path::{Path, PathView, Reason};
use crate::dataplane::Origin;
use crate::identity::NodeId;
use crate::platform::clock;
use crate::time::Instant;

impl Driver {
    /// The paths of every link.
    pub(super) fn paths(&self) -> PathList {
        let (now, wall) = (clock::now(), clock::wall());
        let peers = self.engine.view(now).peers.into_iter().filter_map(|peer| {
            let PathsView { paths, chosen } = self.engine.paths(peer.node, now)?;
            Some(PeerPaths {
                name: peer.name.to_string(),
                node_id: peer.node.to_string(),
                chosen: chosen.map(|(reason, _)| reason_of(reason)),
                since: chosen.map(|(_, since)| Timestamp(wall - since)),
                paths: paths.iter().filter_map(|view| self.path_state(view, now)).collect(),
            })
        });
        PathList { schema: SCHEMA, now: Timestamp(wall), peers: peers.collect() }
    }

    /// How packets reach a peer, as far as it is known.
    pub(super) fn path_status(&self, endpoint: Option<SocketAddr>, via: Option<NodeId>) -> Option<PathStatus> {
        let kind = if via.is_some() { PathKind::Relay } else { PathKind::Direct };
        Some(PathStatus { kind, endpoint: endpoint?, via: via.map(|via| self.name_of(via)) })
    }

    fn path_state(&self, view: &PathView, now: Instant) -> Option<PathState> {
        let via = view.path.via();
        // A relay is where its own packets go.
        let relay = |via| self.engine.peer_view(via, now)?.endpoint;
        Some(PathState {
            kind: if via.is_some() { PathKind::Relay } else { PathKind::Direct },
            endpoint: view.path.remote().or_else(|| via.and_then(relay))?,
            via: via.map(|via| self.name_of(via)),
            local: view.path.local(),
            in_use: view.in_use,
            rtt_seconds: view.rtt.map(|rtt| rtt.as_secs_f64()),
            answered: view.answered,
            looks: view.looks,
            heard_seconds: view.heard.map(|heard| now.saturating_since(heard).as_secs_f64()),
            cost_seconds: view.cost.map(|cost| cost.as_secs_f64()),
        })
    }
}

/// The path by which an authentic packet came.
pub(super) fn path_of(origin: &Origin) -> Path {
    match *origin {
        Origin::Underlay { source, local } => Path::Direct { remote: source, local },
        Origin::Relay { via, .. } => Path::Relay { via },
    }
}

fn reason_of(reason: Reason) -> PathReason {
    match reason {
        Reason::Session => PathReason::Session,
        Reason::Moved => PathReason::Moved,
        Reason::Silence => PathReason::Silence,
        Reason::Better => PathReason::Better,
        Reason::Direct => PathReason::Direct,
    }
}

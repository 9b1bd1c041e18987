//! The ways to each peer, for the local interface.

use super::driver::Driver;
use crate::api::{PathList, PathReason, PathState, PeerPaths, SCHEMA, Timestamp};
use crate::control::PathsView;
use crate::control::path::{PathView, Reason};
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
                paths: paths.iter().map(|view| state_of(view, now)).collect(),
            })
        });
        PathList { schema: SCHEMA, now: Timestamp(wall), peers: peers.collect() }
    }
}

fn reason_of(reason: Reason) -> PathReason {
    match reason {
        Reason::Session => PathReason::Session,
        Reason::Moved => PathReason::Moved,
        Reason::Silence => PathReason::Silence,
        Reason::Better => PathReason::Better,
    }
}

fn state_of(view: &PathView, now: Instant) -> PathState {
    PathState {
        endpoint: view.path.remote,
        local: view.path.local,
        in_use: view.in_use,
        rtt_seconds: view.rtt.map(|rtt| rtt.as_secs_f64()),
        answered: view.answered,
        looks: view.looks,
        heard_seconds: view.heard.map(|heard| now.saturating_since(heard).as_secs_f64()),
        cost_seconds: view.cost.map(|cost| cost.as_secs_f64()),
    }
}

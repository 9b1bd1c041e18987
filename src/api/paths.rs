//! The ways to each peer, as `meshctl paths` shows them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{PathKind, Timestamp};

/// The paths of every link of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PathList {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// The peers, in the order of their names.
    pub peers: Vec<PeerPaths>,
}

/// The paths to one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PeerPaths {
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// Why the path in use is the one it is; absent while none is.
    pub chosen: Option<PathReason>,
    /// Since when it is in use; absent while none is.
    pub since: Option<Timestamp>,
    /// The paths, the one in use first, then the better ones.
    pub paths: Vec<PathState>,
}

/// Why a path is the one in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PathReason {
    /// The newest session was made there.
    Session,
    /// The peer, or this host, moved, and it answered there.
    Moved,
    /// The one before did not answer, and this one did.
    Silence,
    /// It is better than the one before by more than chance makes of it.
    Better,
    /// It is direct and answers again, where a relay was in use.
    Direct,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PathState {
    /// What kind of path it is.
    pub kind: PathKind,
    /// Where packets are sent: the peer's endpoint, or the relay's.
    pub endpoint: SocketAddr,
    /// The relay's name, for a relayed path.
    #[serde(default)]
    pub via: Option<String>,
    /// The address of this host that packets leave from; absent where it has only one of that family.
    pub local: Option<IpAddr>,
    /// Whether packets take it.
    pub in_use: bool,
    /// Its round trip, smoothed; absent before the first answer.
    pub rtt_seconds: Option<f64>,
    /// Looks at it that were answered, of those remembered. A link of one path is not looked at: its probes say it all.
    pub answered: u32,
    /// Looks that are remembered; at most 20.
    pub looks: u32,
    /// Seconds since it answered a look; absent where it never did.
    pub heard_seconds: Option<f64>,
    /// What the choice goes by: the round trip, and the loss in retransmission time-outs of 200 ms.
    pub cost_seconds: Option<f64>,
}

//! Forwards, as `meshctl forward` shows and switches them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The forwards of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ForwardList {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// The forwards, in the order of their names.
    pub forwards: Vec<ForwardStatus>,
}

/// One forward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ForwardStatus {
    /// Its name.
    pub name: String,
    /// Where it takes connections.
    pub listen: Vec<SocketAddr>,
    /// The target new connections go to, as the configuration writes it.
    pub target: String,
    /// Whether that target was chosen by hand, and so stays whatever its health.
    pub pinned: bool,
    /// Whether it is another one than the first in the configuration.
    pub differs: bool,
    /// When it was last switched by hand; absent where it was not.
    pub switched: Option<Timestamp>,
    /// What `--back` would use; absent where there is nothing to undo.
    pub previous: Option<String>,
    /// Connections refused because there were too many.
    pub refused: u64,
    /// The targets, in the order of the configuration.
    pub targets: Vec<ForwardTarget>,
    /// The open connections, the oldest first; at most [`ForwardStatus::CONNECTION_LIMIT`].
    pub connections: Vec<ForwardConnection>,
}

impl ForwardStatus {
    /// Connections told at most; the targets' counts have them all.
    pub const CONNECTION_LIMIT: usize = 1_000;
}

/// How a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TargetHealth {
    /// It has not been looked at often enough.
    Unknown,
    /// It takes connections.
    Up,
    /// It does not.
    Down,
}

/// One target of a forward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ForwardTarget {
    /// The target as the configuration writes it.
    pub target: String,
    /// Its address; absent while no member of that name is known.
    pub address: Option<SocketAddr>,
    /// Whether new connections go there.
    pub in_use: bool,
    /// How it is.
    pub health: TargetHealth,
    /// Why the last look or connection failed; absent where it did not.
    pub failure: Option<String>,
    /// Connections that are open.
    pub open: u64,
    /// Connections that were made since the daemon started.
    pub opened: u64,
    /// Attempts to connect that failed since the daemon started.
    pub failed: u64,
    /// Bytes from clients to the target.
    pub to_target_bytes: u64,
    /// Bytes from the target to clients.
    pub to_client_bytes: u64,
    /// Time to connect, the median of the last thousand; absent before the first.
    pub connect_p50_seconds: Option<f64>,
    /// Their 99th percentile.
    pub connect_p99_seconds: Option<f64>,
}

/// One open connection of a forward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ForwardConnection {
    /// Where it came from.
    pub client: SocketAddr,
    /// The target it goes to.
    pub target: String,
    /// How long it has been open.
    pub age_seconds: u64,
    /// How long nothing has gone through it.
    pub idle_seconds: u64,
    /// Bytes from the client.
    pub to_target_bytes: u64,
    /// Bytes to the client.
    pub to_client_bytes: u64,
}

/// Asks for a switch of a forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SwitchRequest {
    /// The forward's name.
    pub forward: String,
    /// The target, as the configuration writes it; absent to undo the last switch.
    pub to: Option<String>,
    /// Whether old connections are closed.
    #[serde(default)]
    pub close: bool,
    /// Whether to switch also to a target that takes no connections now.
    #[serde(default)]
    pub force: bool,
}

/// A switch that was made, and written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Switched {
    /// The version of these types.
    pub schema: u32,
    /// The forward's name.
    pub forward: String,
    /// The target before.
    pub from: String,
    /// The target now.
    pub to: String,
    /// Connections that go on to other targets.
    pub old_connections: u64,
}

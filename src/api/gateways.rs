//! Gateways in pairs, as `meshctl gateways` and `meshctl drain` show them.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The shared prefixes of the mesh, as this node sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GatewayList {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// This node's name.
    pub node: String,
    /// The prefixes, ascending.
    pub prefixes: Vec<SharedPrefixStatus>,
    /// What still passes this node; absent while it is not drained.
    pub drain: Option<DrainStatus>,
    /// What this node looks at behind itself, in the order of its configuration.
    #[serde(default)]
    pub checks: Vec<GatewayCheckStatus>,
}

/// The check of what lies behind this node, for one prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GatewayCheckStatus {
    /// The prefix.
    #[cfg_attr(test, schemars(with = "String"))]
    pub prefix: IpNet,
    /// Whether none of the targets answers; the others then send by another gateway.
    pub failing: bool,
    /// Since when; absent where that never changed.
    pub since: Option<Timestamp>,
    /// The targets, in the order of the configuration.
    pub targets: Vec<CheckedTarget>,
}

/// Something that a gateway looks at behind itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckedTarget {
    /// An address and a TCP port, or an address that is asked for echoes.
    pub target: String,
    /// Whether it answers, by several looks; absent before enough is known.
    pub answers: Option<bool>,
    /// Why the last look failed.
    pub failure: Option<String>,
    /// How long the last look took, where it was answered.
    pub answer_seconds: Option<f64>,
}

/// A prefix that several nodes may carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SharedPrefixStatus {
    /// The prefix.
    #[cfg_attr(test, schemars(with = "String"))]
    pub prefix: IpNet,
    /// Who carries it for this node; absent where this node is one of its gateways.
    pub carrier: Option<String>,
    /// Why: `priority`, `silence`, `health`, `drained` or `gone`; all but the first of the one before.
    pub cause: Option<String>,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Its gateways, the highest priority first.
    pub gateways: Vec<GatewayStatus>,
}

/// A gateway of a shared prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GatewayStatus {
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// How much it is preferred, 1 to 255.
    pub priority: u8,
    /// Whether it is this node.
    pub is_self: bool,
    /// How it is: `fit`, `drained`, `failing` (its check is not answered) or `silent`.
    pub fitness: String,
    /// Since when; absent for this node and for other gateways of its own prefixes.
    pub since: Option<Timestamp>,
    /// Seconds until its priority counts again, where it has failed.
    pub returns_in_seconds: Option<u64>,
}

/// What passes a gateway that is drained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DrainStatus {
    /// Since when it is drained.
    pub since: Timestamp,
    /// Flows that passed within the last minute.
    pub flows: u64,
    /// All their bytes so far, as far as the daemon knows these flows.
    pub bytes: u64,
    /// Seconds since the last packet; since the drain, or the daemon's start, where there was none.
    pub quiet_seconds: f64,
    /// Whether nothing has passed for [`DrainStatus::SAFE_AFTER_SECONDS`].
    pub safe: bool,
}

impl DrainStatus {
    /// Silence after which a gateway is not needed any more. All peers hear of a drain within a second; what comes later comes
    /// from hosts behind it that still send this way, and those that say anything at all do it more often than this.
    pub const SAFE_AFTER_SECONDS: u64 = 30;
}

/// Moves flows away from this node's gateway, or lets them come again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DrainRequest {
    /// This node's name or identifier, to be sure; anything else is refused.
    #[serde(default)]
    pub node: Option<String>,
    /// Flows may come again.
    #[serde(default)]
    pub undo: bool,
}

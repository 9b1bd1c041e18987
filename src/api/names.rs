//! Names, as `meshctl names` shows them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The names this node knows, and how it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NameList {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// What stands behind every name; empty where the mesh's name cannot and the configuration gives nothing else.
    pub suffix: String,
    /// Where questions are answered now; absent where they are not.
    pub listen: Option<SocketAddr>,
    /// Why they are not answered where they should be; absent where nothing is wrong.
    pub failure: Option<String>,
    /// How the host's own resolver learns of the names (`resolved`, `resolvconf`, `hosts`); absent where it does not.
    #[serde(default)]
    pub resolver: Option<String>,
    /// Why it does not know them although it should; absent where nothing is wrong.
    #[serde(default)]
    pub resolver_failure: Option<String>,
    /// The questions since the daemon began to answer; absent where it does not.
    pub questions: Option<NameQuestions>,
    /// The names, in their order.
    pub names: Vec<NameEntry>,
}

/// Questions by what became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NameQuestions {
    /// Those that were answered.
    pub answered: u64,
    /// Those from outside this host and the mesh, which got silence.
    pub strangers: u64,
    /// Those that were too many at a time, which got silence.
    pub too_many: u64,
    /// Datagrams that were no questions, which got silence.
    pub malformed: u64,
}

/// One name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NameEntry {
    /// The whole name.
    pub name: String,
    /// Its addresses; none where it stands for a member that is not known.
    pub addresses: Vec<IpAddr>,
    /// What it stands for: a node's name or an address; absent for a member's own name.
    pub alias_of: Option<String>,
}

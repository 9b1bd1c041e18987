//! What may come in, as `meshctl policy` shows it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The rules in force, and what they did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// Whether there is any rule; without one, everything is let in.
    pub restricted: bool,
    /// The rules, in the order of the configuration.
    pub rules: Vec<PolicyRule>,
    /// Conversations that this side began and whose answers pass without a rule.
    pub connections: u64,
    /// How many of them are remembered at most.
    pub connections_limit: u64,
    /// Packets refused since the daemon started.
    pub refused_packets: u64,
    /// What was refused, the newest first; at most 256.
    pub denied: Vec<PolicyDenial>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Which `[[allow]]` it is, from 1.
    pub number: u64,
    /// Who may.
    pub from: Vec<String>,
    /// What may be reached; everything of this node where empty.
    pub to: Vec<String>,
    /// By what; everything where empty.
    pub ports: Vec<String>,
    /// How often it was the first to let something in. A lasting flow counts once a second.
    pub let_in: u64,
}

/// Packets that were refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyDenial {
    /// The peer through whose tunnel they came.
    pub peer: String,
    /// Who sent them.
    pub source: IpAddr,
    /// What they were for.
    pub destination: IpAddr,
    /// As a rule would name it.
    pub service: String,
    /// How many.
    pub packets: u64,
    /// When the last one came.
    pub last: Timestamp,
}

/// Asks what the rules in force make of something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyCheckRequest {
    /// Who would send: a name or an address.
    pub from: String,
    /// What it would be for: a name or an address.
    pub to: String,
    /// `tcp/PORT`, `udp/PORT` or `icmp`.
    pub service: String,
}

/// What the rules in force make of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyChecked {
    /// The version of these types.
    pub schema: u32,
    /// Whether there is any rule.
    pub restricted: bool,
    /// For each pair of addresses of one family; at least one.
    pub verdicts: Vec<PolicyVerdict>,
}

/// What they make of one pair of addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyVerdict {
    /// Who would send.
    pub source: IpAddr,
    /// What it would be for.
    pub destination: IpAddr,
    /// Whether it would be let in.
    pub allowed: bool,
    /// The first rule that allows it, from 1; absent where none does.
    pub rule: Option<u64>,
    /// Whether this node is the one that judges it; another may have other rules.
    pub here: bool,
}

/// How a peer's rules are to this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyAgreement {
    /// They let the same in.
    Same,
    /// They are others.
    Differs,
    /// It has none: every member reaches everything of it.
    None,
}

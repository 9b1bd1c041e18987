//! What may come in, as `meshctl policy` shows it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The rules in force, and what they did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PolicyAgreement {
    /// They let the same in.
    Same,
    /// They are others.
    Differs,
    /// It has none: every member reaches everything of it.
    None,
}

/// Asks what becomes of the packets of something, while it happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyTraceRequest {
    /// From whom, to whom, by what.
    #[serde(flatten)]
    pub of: PolicyCheckRequest,
    /// For how long at most, 1 to [`PolicyTraceRequest::SECONDS_LIMIT`].
    pub seconds: u32,
    /// How many packets at most, 1 to [`PolicyTraceRequest::COUNT_LIMIT`].
    pub count: u32,
}

impl PolicyTraceRequest {
    /// Seconds at most: long enough to go to another screen and try it.
    pub const SECONDS_LIMIT: u32 = 600;
    /// Packets at most: more is a capture, and there are better programs for one.
    pub const COUNT_LIMIT: u32 = 10_000;
}

/// One line of a trace's answer: JSON, ended by a newline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TraceLine {
    /// The first line: from now on, packets are seen.
    Start {
        /// The version of these types.
        schema: u32,
    },
    /// A packet.
    Packet {
        /// When it was judged.
        at: Timestamp,
        /// Who sent it.
        source: IpAddr,
        /// Its port; of a question of ICMP the identifier, 0 where there is none.
        source_port: u16,
        /// Who it is for.
        destination: IpAddr,
        /// Its port; of an answer of ICMP the identifier, 0 where there is none.
        destination_port: u16,
        /// The IP protocol's number.
        protocol: u8,
        /// Its length in bytes.
        length_bytes: u64,
        /// What it is to its conversation.
        stage: PacketStage,
        /// Whether it passed.
        allowed: bool,
        /// The rule that let it in, from 1; absent where it needed none.
        rule: Option<u64>,
        /// Why it was refused; absent where it passed.
        reason: Option<String>,
    },
    /// The last line.
    Summary {
        /// Packets that passed.
        allowed: u64,
        /// Packets that were refused.
        refused: u64,
        /// Packets for which there was no room.
        missed: u64,
    },
}

/// What a packet is to its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PacketStage {
    /// It begins one.
    New,
    /// It goes on with one.
    Established,
    /// It answers what this side began.
    Reply,
    /// It leaves this side.
    Departing,
    /// A later fragment, without ports, or something without whole headers.
    Fragment,
    /// An error about a packet of this side; its ends are that packet's.
    Error,
}

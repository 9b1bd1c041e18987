//! Which connections use which link, as `meshctl ledger` shows it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// What uses the links of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkLedger {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// Long-lived connections that had to make room in the data threads' tables since the start. They stay in the list, and
    /// are counted again with their next packet; what passed in between may be missing from their bytes.
    pub evicted: u64,
    /// How often a long-lived connection found no room in the ledger itself since the start: it is not complete.
    pub left_out: u64,
    /// The links, in the order of the peers' names.
    pub links: Vec<LinkUsage>,
}

/// What uses one link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkUsage {
    /// The peer's name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// Whether the link can go.
    pub can_go: CanGo,
    /// Since when its use is watched.
    pub watched_since: Timestamp,
    /// The last packet of any connection, however short; absent where there was none. ICMP does not count.
    pub last: Option<Timestamp>,
    /// Whose it was, as far as that was seen.
    pub last_connection: Option<ConnectionEnds>,
    /// The connections that are open and have lasted a minute, the oldest first.
    pub connections: Vec<LedgerConnection>,
    /// Those of the past, the newest end first.
    pub ended: Vec<LedgerConnection>,
}

/// Whether a link can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CanGo {
    /// Connections use it, or something did within the last hour.
    No,
    /// What is open has been silent for two hours and more, or the link was watched for less than a day and not used.
    Unsure,
    /// Nothing is open, and nothing has used it for an hour and more.
    Yes,
}

/// The two ends of a connection, as this node sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConnectionEnds {
    /// The end on this side of the tunnel; port 0 where the protocol has none.
    pub near: SocketAddr,
    /// The node whose own address that is; absent for an address behind a node.
    pub near_name: Option<String>,
    /// The end on the peer's side.
    pub far: SocketAddr,
    /// The node whose own address that is.
    pub far_name: Option<String>,
    /// `tcp`, `udp`, `sctp` or `ip/N`.
    pub protocol: String,
    /// Whether the near end opened it; absent where its opening was not seen.
    pub opened_near: Option<bool>,
}

/// A long-lived connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LedgerConnection {
    /// Its ends.
    #[serde(flatten)]
    pub ends: ConnectionEnds,
    /// When it began, or was first seen.
    pub began: Timestamp,
    /// Its last packet.
    pub last: Timestamp,
    /// Bytes into the tunnel, headers included.
    pub sent_bytes: u64,
    /// Bytes out of it.
    pub received_bytes: u64,
}

//! Invites: making, listing and revoking them.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Asks the daemon for an invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteRequest {
    /// The new node's name.
    pub name: String,
    /// Tags the new node gets.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Prefixes the new node may carry.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub prefixes: Vec<IpNet>,
    /// The priority at which it shares them with other nodes, 1 to 255; absent where they are its alone.
    #[serde(default)]
    pub shared_priority: Option<u8>,
    /// The new node's overlay address; the lowest free one where it is absent.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// How long the token can be used, in seconds.
    pub lifetime_seconds: u64,
    /// Whether other nodes may send through the new one.
    #[serde(default)]
    pub relay: bool,
    /// A known name may get new keys: the same host, built again.
    #[serde(default)]
    pub replace: bool,
    /// What the authority signed for exactly this node, where the daemon does not hold the authority's key itself; then
    /// `address` must be given.
    #[serde(default)]
    pub delegated: Option<DelegatedInvite>,
}

/// An admission whose certificate the daemon may issue in the authority's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DelegatedInvite {
    /// The new node's identifier in hexadecimal.
    pub node_id: String,
    /// The serial of the certificate.
    pub serial: u64,
    /// The signed delegation in base64.
    pub delegation: String,
}

/// A new invite. The token is shown here and never again: the daemon keeps only its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Invited {
    /// The version of these types.
    pub schema: u32,
    /// The invite's identifier in hexadecimal.
    pub invite: String,
    /// The new node's name.
    pub name: String,
    /// The new node's overlay address.
    pub address: Ipv4Addr,
    /// When the token stops working.
    pub expires: Timestamp,
    /// The one-line token for `meshctl join`.
    pub token: String,
}

/// Leaves the token out.
impl fmt::Debug for Invited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invited").field("invite", &self.invite).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where an invite stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InviteState {
    /// Nobody has used it.
    Open,
    /// A node's key is bound to it; only that node can still use it.
    Used,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

/// One invite in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteSummary {
    /// The invite's identifier in hexadecimal.
    pub invite: String,
    /// The invited node's name.
    pub name: String,
    /// The invited node's overlay address.
    pub address: Ipv4Addr,
    /// Where it stands.
    pub state: InviteState,
    /// When the token stops working.
    pub expires: Timestamp,
}

/// All invites the daemon remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteList {
    /// The version of these types.
    pub schema: u32,
    /// The invites, the one that expires first at the front.
    pub invites: Vec<InviteSummary>,
}

/// Asks the daemon to make an invite useless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteRevokeRequest {
    /// The invited node's name, or the invite's identifier in hexadecimal.
    pub invite: String,
}

/// An invite that was made useless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteRevoked {
    /// The version of these types.
    pub schema: u32,
    /// The invite.
    pub invite: InviteSummary,
}

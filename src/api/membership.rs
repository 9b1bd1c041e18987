//! The node itself, the members it knows, and what changes membership.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Problem, Timestamp};

/// What the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Version {
    /// The version of these types.
    pub schema: u32,
    /// The daemon's version.
    pub version: String,
    /// The version of the protocol between nodes.
    pub protocol_version: u16,
    /// Planned restarts of the daemon's process so far.
    #[serde(default)]
    pub restarts: u32,
}

/// Whether the daemon does its work, for probes of a service manager or a monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Health {
    /// The version of these types.
    pub schema: u32,
    /// Nothing is wrong.
    pub healthy: bool,
    /// What is wrong, gravest first.
    pub problems: Vec<Problem>,
}

/// This node's public identity: what a delegation is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeInfo {
    /// The version of these types.
    pub schema: u32,
    /// This node's name.
    pub name: String,
    /// This node's identifier in hexadecimal.
    pub node_id: String,
    /// This node's WireGuard key in base64.
    pub wireguard_key: String,
    /// This node's Ed25519 key in base64.
    pub verifying_key: String,
    /// The mesh's name.
    pub mesh_name: String,
    /// The mesh's identifier in hexadecimal.
    pub mesh_id: String,
    /// The overlay's IPv4 range.
    #[cfg_attr(test, schemars(with = "String"))]
    pub overlay_v4: Ipv4Net,
    /// The overlay's IPv6 range.
    #[cfg_attr(test, schemars(with = "String"))]
    pub overlay_v6: Ipv6Net,
    /// The authorities' keys in base64.
    pub authorities: Vec<String>,
    /// Where this node can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// Whether this node holds an authority's key and admits nodes itself.
    pub holds_authority: bool,
}

/// One member of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// Its WireGuard key in base64.
    pub wireguard_key: String,
    /// Its Ed25519 key in base64.
    pub verifying_key: String,
    /// Its IPv4 overlay address.
    pub address_v4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub address_v6: Ipv6Addr,
    /// Prefixes it may carry.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub prefixes: Vec<IpNet>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Where it says it can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// When its certificate stops being valid.
    pub certificate_expires: Timestamp,
    /// The version of the protocol it speaks; absent until its record has arrived.
    #[serde(default)]
    pub protocol_version: Option<u16>,
    /// Its certificate lets others send through it.
    #[serde(default)]
    pub relays: bool,
    /// It was revoked.
    pub revoked: bool,
    /// It is this node.
    pub is_self: bool,
}

/// The members this node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Members {
    /// The version of these types.
    pub schema: u32,
    /// The members, by name.
    pub members: Vec<Member>,
}

/// Asks the daemon to revoke a node, or to spread a revocation the authority has signed elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RevokeRequest {
    /// The node's name, or its identifier in hexadecimal.
    pub node: String,
    /// The signed revocation in base64, where the daemon does not hold the authority's key itself.
    #[serde(default)]
    pub revocation: Option<String>,
}

/// A node that was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Revoked {
    /// The version of these types.
    pub schema: u32,
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// Its overlay addresses, which are not given out again.
    pub addresses: Vec<IpAddr>,
    /// Members the revocation was sent to at once; the others hear of it from them.
    pub sent_to: u32,
}

/// A restart that has begun: what will run is checked already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Restarting {
    /// The version of these types.
    pub schema: u32,
    /// The file that is executed in the daemon's place.
    pub program: String,
}

/// This node's renewed certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Renewed {
    /// The version of these types.
    pub schema: u32,
    /// When the certificate now stops being valid.
    pub certificate_expires: Timestamp,
    /// Who issued it.
    pub issuer: String,
}

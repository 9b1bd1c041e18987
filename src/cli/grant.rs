//! What `meshctl invite` and `meshctl sign` grant to a node.

use std::net::Ipv4Addr;

use clap::Args;
use ipnet::IpNet;

use crate::identity::{Permissions, Priority, Shares, Tag};

/// What is granted to a node.
#[derive(Clone, Debug, Default, Args)]
pub struct GrantArgs {
    /// A tag for the node; may be given several times.
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<Tag>,
    /// A network the node may carry; may be given several times.
    #[arg(long, value_name = "CIDR")]
    pub route: Vec<IpNet>,
    /// Other nodes may carry these networks as well: gateways in pairs. Each must be signed so, for exactly the same network.
    #[arg(long, requires = "route")]
    pub shared: bool,
    /// How much this node is preferred among those, 1 to 255; the highest that works carries the traffic.
    #[arg(long, value_name = "N", requires = "shared", default_value_t = Priority::DEFAULT)]
    pub priority: Priority,
    /// The node's overlay address; the lowest free one unless given.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<Ipv4Addr>,
    /// Lets other nodes send through this one, sealed, where they do not reach each other.
    #[arg(long)]
    pub relay: bool,
    /// Lets a known name get new keys: the same host, built again.
    #[arg(long)]
    pub replace: bool,
}

impl GrantArgs {
    /// The priority at which the networks are shared; nothing where they are the node's alone.
    pub fn shared_priority(&self) -> Option<Priority> {
        self.shared.then_some(self.priority)
    }

    /// What of the networks is shared.
    pub fn shares(&self) -> Shares {
        self.shared_priority().map(|priority| Shares::all(&self.route, priority)).unwrap_or_default()
    }

    /// What the node may do.
    pub fn permissions(&self) -> Permissions {
        Permissions { relay: self.relay, ..Permissions::default() }
    }
}

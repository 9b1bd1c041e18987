//! What is compared: a program that makes a mesh of hosts.

use std::net::Ipv4Addr;

use crate::lab::{Host, HostCommand, Result};

/// Where a node runs and how the others reach it.
pub struct Place {
    /// Its host; the node's files go into its directory.
    pub host: Host,
    /// The host's address on the plain network.
    pub underlay: Ipv4Addr,
}

/// A node that only has to be started.
pub struct Ready {
    /// The node's address inside the mesh.
    pub overlay: Ipv4Addr,
    /// Makes the command that runs the daemon in the foreground.
    pub daemon: Box<dyn Fn() -> HostCommand + Sync>,
}

/// A program that makes a mesh.
pub trait Contender {
    /// Its name in the tables.
    fn name(&self) -> &'static str;

    /// What was run, as it says itself.
    fn version(&self) -> &str;

    /// Makes keys, certificates and configurations, so that every node knows the first one and nobody else.
    ///
    /// # Errors
    /// Where one of its tools fails.
    fn prepare(&self, places: &[Place]) -> Result<Vec<Ready>>;
}

/// A node's name: `n01` for the first.
pub fn node_name(index: usize) -> String {
    format!("n{:02}", index + 1)
}

/// A node's address in a contender's overlay, for those whose tools do not choose it.
pub fn overlay_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, u8::try_from(index + 1).unwrap_or(u8::MAX))
}

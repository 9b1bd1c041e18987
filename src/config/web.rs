//! The page for browsers.

use std::net::SocketAddr;

/// Where people look at the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Web {
    /// Where the page is served; nowhere unless given.
    pub listen: Option<SocketAddr>,
}

impl Web {
    /// The TCP port of the page in every example: the one after the mesh's own.
    pub const PORT: u16 = 7656;
}

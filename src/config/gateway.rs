//! What this node does for the networks that its certificate carries, as `[gateway]` says it.

/// A gateway's own choices; what it carries is its certificate's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Whether hosts of these networks see this host's own address instead of the mesh's.
    pub masquerade: bool,
}

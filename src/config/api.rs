//! Who else may ask the daemon.

/// The daemon's socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Api {
    /// The group whose members may look, besides root and the daemon's user; nobody else unless given.
    pub group: Option<String>,
}

impl Api {
    /// Bytes of a group's name at most: what the system's tools take.
    const GROUP_LIMIT: usize = 32;

    /// Whether the system's tools take this as a group's name.
    pub(super) fn is_group(name: &str) -> bool {
        let first = |c: char| c.is_ascii_lowercase() || c == '_';
        let fits = |c: char| first(c) || c.is_ascii_digit() || c == '-';
        name.len() <= Self::GROUP_LIMIT && name.starts_with(first) && name.chars().all(fits)
    }
}

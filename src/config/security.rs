//! What the daemon takes from itself, as `[security]` says it.

use std::path::PathBuf;

/// What the daemon, and what it executes, may do on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether the kernel refuses it what it does not need.
    pub landlock: Landlock,
    /// Directories that it may write besides its own, at most [`Security::WRITABLE_LIMIT`]: for programs of receivers.
    pub writable: Vec<PathBuf>,
}

impl Security {
    /// Directories at most: more than there are receivers.
    pub const WRITABLE_LIMIT: usize = 32;
}

/// Whether the kernel refuses the daemon what it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landlock {
    /// Where the kernel has Landlock.
    #[default]
    Auto,
    /// Not at all.
    Off,
}

impl Landlock {
    /// Both, the default first.
    pub const ALL: [Landlock; 2] = [Landlock::Auto, Landlock::Off];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Landlock::Auto => "auto",
            Landlock::Off => "off",
        }
    }
}

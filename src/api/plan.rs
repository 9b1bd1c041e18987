//! What a reload takes, or would take.

use serde::{Deserialize, Serialize};

/// The difference between the configuration in the files and the one that the daemon runs with, and what taking it over
/// does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plan {
    /// The version of these types.
    pub schema: u32,
    /// Every setting that differs, in the order of the file.
    pub changes: Vec<PlannedChange>,
    /// The links that a reload makes, changes or ends.
    pub touched: Vec<TouchedLink>,
    /// Links that stay as they are, sessions and all.
    pub untouched: u64,
}

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedChange {
    /// Its key, as in `underlay.listen`.
    pub key: String,
    /// It changes at a restart only, and a reload refuses everything because of it.
    pub needs_restart: bool,
    /// Which entries of a list differ; empty where it is none, and where only the order is another.
    pub entries: Vec<PlannedEntry>,
}

/// An entry of a list that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedEntry {
    /// What happens to it.
    pub action: PlannedAction,
    /// What it is called: its name, its value, or a rule's number and text.
    pub name: String,
}

/// What happens to an entry, or to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PlannedAction {
    /// It is new.
    Add,
    /// It goes on otherwise than before.
    Change,
    /// It ends.
    Remove,
}

/// A link that a reload touches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TouchedLink {
    /// The peer's name.
    pub peer: String,
    /// What happens to the link.
    pub action: PlannedAction,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.touched.is_empty()
    }

    /// Whether a reload refuses it.
    pub fn needs_restart(&self) -> bool {
        self.changes.iter().any(|change| change.needs_restart)
    }
}

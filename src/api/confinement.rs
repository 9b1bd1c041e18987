//! What the kernel refuses the daemon, as `meshctl status --json` and `meshctl doctor` tell it.

use serde::{Deserialize, Serialize};

/// What the kernel refuses the daemon besides what its user may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfinementStatus {
    /// Whether Landlock is in force.
    pub landlock: LandlockState,
    /// The kernel's version of it; absent where it is not in force.
    #[serde(default)]
    pub version: Option<u32>,
    /// What is written beneath, where it is in force.
    #[serde(default)]
    pub writable: Vec<String>,
    /// Why it is not in force, or since when.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Whether Landlock is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LandlockState {
    /// It is.
    InForce,
    /// The kernel has none, or it is not enabled.
    Absent,
    /// It is turned off by `security.landlock`.
    Off,
    /// The kernel refused it.
    Refused,
}

//! The lock-down of the host's public side, as `meshctl lockdown` shows and moves it.

use serde::{Deserialize, Serialize};

/// What is closed, and what stays open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LockdownInfo {
    /// The version of these types.
    pub schema: u32,
    /// How far it has come.
    pub phase: LockdownPhase,
    /// What the configuration leaves open besides the mesh's port; absent without `[lockdown]`.
    pub configured: Option<Vec<String>>,
    /// What the confirmed rules leave open; absent where none are.
    pub confirmed: Option<Vec<String>>,
    /// Seconds until the trial is over by itself; absent where there is none.
    pub trial_ends_seconds: Option<f64>,
    /// The tables of family `inet` that are in force.
    pub tables: Vec<String>,
    /// Packets that these closed, since each was made.
    pub closed_packets: u64,
    /// Why the packet filter did not take it, where it did not.
    pub failure: Option<String>,
}

/// How far a lock-down has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LockdownPhase {
    /// Neither configured nor in force.
    Off,
    /// Configured, and nothing is closed yet.
    Open,
    /// The configured rules are in force until the trial ends.
    Trial,
    /// The configured rules are in force, at boot as well.
    Confirmed,
    /// Rules that were confirmed are in force; the configuration says something else by now.
    Outdated,
}

/// Asks for a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LockdownTrialRequest {
    /// How long it lasts, 1 to 600 s.
    pub seconds: f64,
}

impl LockdownTrialRequest {
    /// How long a trial lasts unless somebody says otherwise, in seconds: time to open one more connection from outside.
    pub const SECONDS: f64 = 60.0;
    /// The longest trial in seconds: whoever is shut out can wait so long.
    pub const SECONDS_LIMIT: f64 = 600.0;
}

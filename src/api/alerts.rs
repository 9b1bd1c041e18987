//! Alerts and their receivers, as the interface shows them.

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Where an alert stands; what fires comes after what is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AlertPhase {
    /// It is the case, but not for long enough.
    Pending,
    /// It is the case.
    Firing,
}

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AlertSeverity {
    /// Somebody should look at it in working hours.
    Ticket,
    /// Somebody should be woken.
    Page,
}

/// The alerts of this node, the rules behind them, and who is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertList {
    /// The version of these types.
    pub schema: u32,
    /// The daemon's wall clock.
    pub now: Timestamp,
    /// What is pending or fires: what fires first, pages before tickets.
    pub alerts: Vec<AlertStatus>,
    /// The rules that hold.
    pub rules: Vec<AlertRule>,
    /// Who is told.
    pub receivers: Vec<ReceiverStatus>,
}

/// One alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertStatus {
    /// The rule's name.
    pub rule: String,
    /// The kind of condition, as the configuration names it.
    pub what: String,
    /// Where it stands.
    pub phase: AlertPhase,
    /// How urgent it is.
    pub severity: AlertSeverity,
    /// The peer it is about; absent for this node itself.
    pub peer: Option<String>,
    /// Since when it is the case.
    pub since: Timestamp,
    /// What was measured, with its unit.
    pub value: Option<String>,
    /// What it was to stay below, with its unit.
    pub threshold: Option<String>,
    /// The link's own median round trip of seven days; absent while it is not known.
    #[serde(default)]
    pub baseline_seconds: Option<f64>,
    /// What is the case, in one line.
    pub summary: String,
    /// The command that shows more.
    pub command: String,
    /// Why nobody is told of it from here; absent where somebody is, or will be.
    #[serde(default)]
    pub untold: Option<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertRule {
    /// Its name.
    pub name: String,
    /// The kind of condition, as the configuration names it.
    pub what: String,
    /// Its threshold, with its unit; absent where the condition has none.
    pub threshold: Option<String>,
    /// Seconds that it must be the case.
    pub for_seconds: u64,
}

/// A receiver, and how it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReceiverStatus {
    /// Its name.
    pub name: String,
    /// Its type, as the configuration names it.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is: a host or a program, without what may be secret.
    pub place: String,
    /// Deliveries that succeeded since the daemon started.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Alerts given up.
    pub dropped: u64,
    /// Alerts that wait.
    pub queued: u64,
    /// When the last delivery succeeded.
    pub last_success: Option<Timestamp>,
    /// Why the last attempt failed; absent once one has succeeded.
    pub failure: Option<String>,
}

/// Sends a test to a receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertTestRequest {
    /// The receiver's name.
    pub receiver: String,
}

/// A test that was delivered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertTested {
    /// The version of these types.
    pub schema: u32,
    /// The receiver's name.
    pub receiver: String,
    /// Where it is.
    pub place: String,
    /// How long the delivery took.
    pub seconds: f64,
}

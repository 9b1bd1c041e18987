//! A ping through the tunnel: a stream of lines.

use serde::{Deserialize, Serialize};

use super::{LossRatio, PathStatus};

/// What a ping measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PingMode {
    /// A probe inside the tunnel, as the daemon's own.
    #[default]
    Tunnel,
    /// The same, padded to the link's full packet size, so that it finds an MTU that is too large.
    FullSize,
}

/// Asks for probes to a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PingRequest {
    /// The peer's name, identifier or overlay address.
    pub node: String,
    /// How many probes, 1 to [`PingRequest::COUNT_LIMIT`].
    pub count: u32,
    /// Seconds between two probes, [`PingRequest::INTERVAL_MIN`] to [`PingRequest::INTERVAL_MAX`].
    pub interval_seconds: f64,
    /// What is measured.
    #[serde(default)]
    pub mode: PingMode,
}

impl PingRequest {
    /// Probes of one call at most: an hour at the default interval.
    pub const COUNT_LIMIT: u32 = 3_600;
    /// Seconds between two probes at least: a hundred a second are no load for a link, and more is no ping.
    pub const INTERVAL_MIN: f64 = 0.01;
    /// Seconds between two probes at most.
    pub const INTERVAL_MAX: f64 = 60.0;
}

/// One line of a ping's answer: JSON, ended by a newline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PingLine {
    /// The first line.
    Start {
        /// The version of these types.
        schema: u32,
        /// The peer's name.
        node: String,
        /// The peer's overlay address.
        address: String,
        /// The path the probes take.
        path: Option<PathStatus>,
        /// Bytes of a probe's inner packet.
        size_bytes: u32,
    },
    /// An answered probe.
    Reply {
        /// The probe's number, from 1.
        sequence: u32,
        /// Between the two kernels.
        path_seconds: f64,
        /// Between the two daemons: the path and both ends' encryption.
        tunnel_seconds: f64,
        /// The remote daemon's own time.
        host_seconds: f64,
    },
    /// A probe without an answer in time.
    Lost {
        /// The probe's number, from 1.
        sequence: u32,
    },
    /// A probe that could not be sent.
    Failed {
        /// The probe's number, from 1.
        sequence: u32,
        /// Why.
        reason: String,
    },
    /// The last line.
    Summary {
        /// Probes sent.
        sent: u32,
        /// Probes answered.
        received: u32,
        /// Loss with its interval; absent where nothing was sent.
        loss: Option<LossRatio>,
        /// Smallest path time.
        path_min_seconds: Option<f64>,
        /// Median path time.
        path_p50_seconds: Option<f64>,
        /// Largest path time.
        path_max_seconds: Option<f64>,
        /// RFC 3550 jitter of the path time.
        path_jitter_seconds: Option<f64>,
        /// Median of what the tunnel adds to the path.
        tunnel_adds_p50_seconds: Option<f64>,
    },
}

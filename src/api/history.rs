//! What links were like, minutes to years ago, and what happened.

use serde::{Deserialize, Serialize};

use super::{LossRatio, Timestamp};

/// Asks what the link to a peer was like: `GET /v1/history?peer=db1&since=2026-11-22T00:00:00Z&step_seconds=600`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryRequest {
    /// The peer's name, identifier or overlay address; also one that is no member any more.
    pub peer: String,
    /// Where to begin; 24 hours before the end unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Where to end; now unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Seconds a point stands for: 10 or a multiple of it below a minute, else whole minutes. Unless given, the finest of
    /// 10 s, 1 min, 10 min, 1 h and 1 d that is kept for so long and gives at most [`HistoryRequest::AUTO_POINTS`] points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<u64>,
}

impl HistoryRequest {
    /// Points of an answer at most: a week by the minute.
    pub const POINT_LIMIT: u64 = 10_080;
    /// Points of an answer whose step was left to the daemon: a day in steps of ten minutes, ninety days by the day.
    pub const AUTO_POINTS: u64 = 150;
    /// Steps the daemon chooses among.
    pub const AUTO_STEPS: [u64; 5] = [10, 60, 600, 3_600, 86_400];
    /// Seconds before the end where an answer begins unless asked otherwise.
    pub const DEFAULT_SPAN: u64 = 86_400;
}

/// What a link was like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct History {
    /// The version of these types.
    pub schema: u32,
    /// The peer's name, the last one known of one that has gone.
    pub peer: String,
    /// The peer's identifier in hexadecimal.
    pub node_id: String,
    /// Where the first point begins.
    pub since: Timestamp,
    /// Where the last point ends.
    pub until: Timestamp,
    /// Seconds each point stands for.
    pub step_seconds: u64,
    /// Seconds of the stored buckets the points are made of: 60, 600 or 86,400; 0 where they are made of single probes.
    pub tier_seconds: u64,
    /// The median path round trip of the last seven days; absent before an hour of it was measured.
    pub baseline_seconds: Option<f64>,
    /// The points, oldest first and without holes: a time nothing is known of is a point that says so.
    pub points: Vec<HistoryPoint>,
    /// Everything from `since` to `until` together: its percentiles are those of all probes, not means of percentiles.
    pub total: HistoryPoint,
}

/// What a link was like for one step of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryPoint {
    /// Where it begins.
    pub start: Timestamp,
    /// Nothing is known: the daemon was down, the link did not exist, or the recording failed. Never the same as zero.
    pub gap: bool,
    /// Less than half of the time is known.
    pub partial: bool,
    /// Probes whose fate is known.
    pub probes_sent: u64,
    /// Probes answered, late ones among them.
    pub probes_answered: u64,
    /// Probes answered after they had been counted as lost.
    pub probes_late: u64,
    /// Probes answered late, or more than 5 ms above the link's median of seven days as it was then. Not counted in steps
    /// below a minute.
    #[serde(default)]
    pub probes_slow: u64,
    /// Of the probes lost, those of outages: eight in a row and more. Not counted in steps below a minute.
    #[serde(default)]
    pub probes_lost_in_outages: u64,
    /// Copies of a probe or its answer that came again.
    pub probes_duplicate: u64,
    /// Probes and answers that came after a later one.
    pub probes_reordered: u64,
    /// Most probes lost one after the other.
    pub longest_loss_run: u64,
    /// Round trips on the network; absent without an answer.
    pub path: Option<Spread>,
    /// Round trips with both daemons' queues; absent without an answer.
    pub tunnel: Option<Spread>,
    /// What both hosts added to the network's round trip; absent without an answer.
    pub host_delay: Option<Spread>,
    /// Loss in both directions together; absent without a probe.
    pub loss: Option<LossRatio>,
    /// Loss on the way to the peer; absent without a probe whose direction of loss could be told.
    pub loss_forward: Option<LossRatio>,
    /// Loss on the way back.
    pub loss_reverse: Option<LossRatio>,
    /// Loss of data packets on the way to the peer; absent without data.
    pub data_loss_forward: Option<LossRatio>,
    /// Loss of data packets on the way back.
    pub data_loss_reverse: Option<LossRatio>,
    /// This node's own part of the host delay, in the mean; the rest is the peer's. Absent without an answer.
    pub own_delay_mean_seconds: Option<f64>,
    /// Mean difference of two successive round trips, to which RFC 3550's estimate converges; absent before the second.
    pub jitter_seconds: Option<f64>,
    /// The same of the way to the peer.
    pub jitter_forward_seconds: Option<f64>,
    /// The same of the way back.
    pub jitter_reverse_seconds: Option<f64>,
    /// Seconds the link was known to be in each state.
    pub states: StateSeconds,
    /// Seconds of outages: down, and under the suspicion before. Not counted in steps below a minute.
    #[serde(default)]
    pub outage_seconds: f64,
    /// How often packets began to take another path.
    pub path_changes: u64,
    /// Sessions made.
    pub handshakes: u64,
    /// Bytes received in its tunnel.
    pub rx_bytes: u64,
    /// Bytes sent in its tunnel.
    pub tx_bytes: u64,
}

/// A distribution of times, in seconds: ends and mean exact, percentiles within 1 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spread {
    /// The smallest.
    pub min_seconds: f64,
    /// The mean.
    pub mean_seconds: f64,
    /// One in twenty is smaller.
    pub p5_seconds: f64,
    /// One in four is smaller.
    pub p25_seconds: f64,
    /// The median.
    pub p50_seconds: f64,
    /// One in four is larger.
    pub p75_seconds: f64,
    /// One in twenty is larger.
    pub p95_seconds: f64,
    /// One in a hundred is larger.
    pub p99_seconds: f64,
    /// The largest.
    pub max_seconds: f64,
}

/// Seconds a link was in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StateSeconds {
    /// It answered.
    pub up: f64,
    /// It answered, but badly.
    pub degraded: f64,
    /// It had missed answers.
    pub suspect: f64,
    /// It did not answer.
    pub down: f64,
    /// This node could not tell, being unwell itself.
    pub unknown: f64,
    /// It had not answered yet.
    pub new: f64,
}

impl StateSeconds {
    /// How long the link was watched.
    pub fn observed(&self) -> f64 {
        self.up + self.degraded + self.suspect + self.down + self.unknown + self.new
    }

    /// The share of the watched time in which packets got through, 0 to 1: all but down, and what cannot be told counts
    /// for neither side. `None` where nothing could be told.
    pub fn availability(&self) -> Option<f64> {
        let (through, told) = (self.up + self.degraded + self.suspect, self.observed() - self.unknown - self.new);
        (told > 0.0).then(|| through / told)
    }
}

/// Asks what happened: `GET /v1/events?peer=db1&since=2026-11-22T00:00:00Z&limit=50`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventsRequest {
    /// Only what is about this peer: its name, identifier or overlay address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Only what happened then or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only what happened before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Only what has a greater number than this one: what a follower has not seen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// The newest so many, at most [`EventsRequest::LIMIT`]; [`EventsRequest::DEFAULT`] unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl EventsRequest {
    /// Events of an answer at most.
    pub const LIMIT: u64 = 10_000;
    /// Events of an answer unless asked otherwise: some screens full.
    pub const DEFAULT: u64 = 100;
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Events {
    /// The version of these types.
    pub schema: u32,
    /// The events, oldest first.
    pub events: Vec<EventItem>,
    /// There are older ones that the limit left out.
    pub truncated: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventItem {
    /// Its number. Later events have greater ones, also after a restart of the daemon.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// What kind, in snake case.
    pub kind: String,
    /// The name, at that time, of the peer it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What happened, for a person.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn availability_counts_what_could_be_told() {
        let states = StateSeconds { up: 50.0, suspect: 5.0, down: 5.0, unknown: 20.0, ..StateSeconds::default() };
        assert_eq!(states.observed(), 80.0);
        assert_eq!(states.availability(), Some(55.0 / 60.0));
        let unwell = StateSeconds { unknown: 60.0, ..StateSeconds::default() };
        assert_eq!(unwell.availability(), None);
    }

    #[test]
    fn a_reader_without_a_state_reads_on() {
        let states: StateSeconds = serde_json::from_str(r#"{"up": 1.0, "melting": 2.0}"#).unwrap();
        assert_eq!(states, StateSeconds { up: 1.0, ..StateSeconds::default() });
    }
}

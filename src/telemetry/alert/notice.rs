//! What a receiver is told of one alert.

use std::fmt;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::config::alert::Severity;
use crate::identity::NodeName;
use crate::time::UnixTime;

/// Peers named in one alert; more are counted.
const NAMED: usize = 50;

/// Whether an alert begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeStatus {
    /// It is the case.
    Firing,
    /// It is over.
    Resolved,
}

/// A measured value, with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A delay.
    Delay(Duration),
    /// A share between 0 and 1.
    Share(f64),
    /// A time that is left.
    Left(Duration),
    /// How many times too fast.
    Times(f64),
}

/// Whom an alert is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// This node itself.
    Node,
    /// A peer.
    Peer(String),
    /// Peers for which it began together, in the order of their names.
    Several(Vec<String>),
}

/// Why an alert fires: what was measured, and against what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// What was measured.
    pub value: Value,
    /// What it was to stay below (above, for what is left).
    pub threshold: Value,
    /// The link's own median of seven days, where it is known.
    pub baseline: Option<Duration>,
}

/// One alert, as a receiver is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Whether it begins or ends.
    pub status: NoticeStatus,
    /// The rule's name.
    pub rule: NodeName,
    /// The kind of condition, as the configuration names it.
    pub what: &'static str,
    /// How urgent it is.
    pub severity: Severity,
    /// The node that tells it; absent where every node would tell the same, so that theirs are one alert.
    pub node: Option<String>,
    /// The mesh.
    pub mesh: String,
    /// Whom it is about.
    pub subject: Subject,
    /// What was measured, where something was.
    pub reading: Option<Reading>,
    /// What is known beyond that: one sentence or nothing.
    pub detail: String,
    /// Since when it is the case.
    pub since: UnixTime,
    /// When it was over.
    pub ended: Option<UnixTime>,
    /// Who is told; everybody where empty.
    pub receivers: Vec<NodeName>,
}

impl Notice {
    /// Returns the labels, which say which alert it is: the same for its beginning and its end.
    pub fn labels(&self) -> Vec<(&'static str, String)> {
        let mut labels = vec![
            ("alertname", self.rule.to_string()),
            ("mesh", self.mesh.clone()),
            ("severity", self.severity.name().to_owned()),
            ("what", self.what.to_owned()),
        ];
        if let Some(node) = &self.node {
            labels.push(("node", node.clone()));
        }
        match &self.subject {
            Subject::Node => {}
            Subject::Peer(peer) => labels.push(("peer", peer.clone())),
            // Who is among them changes while it lasts. No node has an upper-case name.
            Subject::Several(_) => labels.push(("peer", "SEVERAL".to_owned())),
        }
        labels.sort();
        labels
    }

    /// Returns a number for the labels (64-bit FNV-1a, which needs no secret: whoever names an alert may know it).
    pub fn fingerprint(&self) -> u64 {
        let bytes = self.labels().into_iter().flat_map(|(name, value)| {
            name.bytes().chain([0xff]).chain(value.into_bytes()).chain([0xff]).collect::<Vec<u8>>()
        });
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// Returns what is the case, in one line.
    pub fn summary(&self) -> String {
        let who = match &self.subject {
            Subject::Node => "this node",
            Subject::Peer(peer) => peer,
            Subject::Several(peers) => return format!("{} peers at once: {}", peers.len(), self.what),
        };
        let measured = self.reading.map(|reading| (reading.value.to_string(), reading.threshold.to_string()));
        let (value, threshold) = measured.unwrap_or_default();
        match self.what {
            "link_down" => format!("{who} does not answer"),
            "node_down" => format!("{who} answers nobody"),
            "latency_above" => format!("the path to {who} takes {value}, more than {threshold}"),
            "loss_above" => format!("at least {value} of the probes to {who} are lost, more than {threshold}"),
            "data_loss" => format!("{value} of the packets with {who} are lost, more than {threshold}"),
            "latency_step" => format!("the path to {who} has become {value} longer, more than {threshold}"),
            "host_delay" => format!("the hosts of the link with {who} add {value}, more than {threshold}"),
            "certificate" => format!("the certificate of {who} ends in {value}, less than {threshold}"),
            "burn_rate" => format!("the link with {who} uses up its budget {value} too fast"),
            "test" => "a test: nothing is wrong".to_owned(),
            _ => format!("{}: {who}", self.what),
        }
    }

    /// Returns the command that shows more.
    pub fn command(&self) -> String {
        match &self.subject {
            Subject::Peer(peer) => format!("meshctl status {peer}"),
            Subject::Node | Subject::Several(_) => "meshctl status".to_owned(),
        }
    }

    /// Returns what is to be read, in a fixed order.
    pub fn annotations(&self) -> Vec<(&'static str, String)> {
        let mut notes =
            vec![("summary", self.summary()), ("command", self.command()), ("since", self.since.to_string())];
        if let Some(reading) = &self.reading {
            notes.push(("value", reading.value.to_string()));
            notes.push(("threshold", reading.threshold.to_string()));
            if let Some(baseline) = reading.baseline {
                notes.push(("baseline", Value::Delay(baseline).to_string()));
            }
        }
        if let Subject::Several(peers) = &self.subject {
            let named = peers.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = peers.len().saturating_sub(NAMED);
            notes.push(("peers", if more > 0 { format!("{named} and {more} more") } else { named }));
        }
        if !self.detail.is_empty() {
            notes.push(("detail", self.detail.clone()));
        }
        notes
    }

    /// Returns the alert as the webhooks of Alertmanager have it.
    pub fn to_json(&self) -> Json {
        json!({
            "status": self.status.name(),
            "labels": object(self.labels()),
            "annotations": object(self.annotations()),
            "startsAt": self.since.to_string(),
            // What Alertmanager writes for an alert that has not ended.
            "endsAt": self.ended.map_or("0001-01-01T00:00:00Z".to_owned(), |ended| ended.to_string()),
            "generatorURL": "",
            "fingerprint": format!("{:016x}", self.fingerprint()),
        })
    }

    /// Returns the whole body of a webhook of Alertmanager, version 4, to that receiver.
    pub fn to_webhook(&self, receiver: &NodeName) -> Json {
        json!({
            "version": "4",
            "groupKey": format!("{{}}:{{alertname=\"{}\", fingerprint=\"{:016x}\"}}", self.rule, self.fingerprint()),
            "truncatedAlerts": 0,
            "status": self.status.name(),
            "receiver": receiver.to_string(),
            "groupLabels": {"alertname": self.rule.to_string()},
            "commonLabels": object(self.labels()),
            "commonAnnotations": object(self.annotations()),
            "externalURL": "",
            "alerts": [self.to_json()],
        })
    }

    /// Returns the alert as the API of Alertmanager takes it, version 2; it counts as over at `ends` unless told again.
    pub fn to_alertmanager(&self, ends: UnixTime) -> Json {
        json!({
            "labels": object(self.labels()),
            "annotations": object(self.annotations()),
            "startsAt": self.since.to_string(),
            "endsAt": self.ended.unwrap_or(ends).to_string(),
            "generatorURL": "",
        })
    }
}

impl NoticeStatus {
    /// Its name, as Alertmanager writes it.
    pub const fn name(self) -> &'static str {
        match self {
            NoticeStatus::Firing => "firing",
            NoticeStatus::Resolved => "resolved",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Delay(delay) => write!(f, "{:.2} ms", delay.as_secs_f64() * 1e3),
            Value::Share(share) => write!(f, "{:.2} %", share * 100.0),
            Value::Left(left) if *left < Duration::from_secs(2 * 86_400) => write!(f, "{} h", left.as_secs() / 3600),
            Value::Left(left) => write!(f, "{} days", left.as_secs() / 86_400),
            Value::Times(times) => write!(f, "{times:.1} times"),
        }
    }
}

fn object(pairs: Vec<(&'static str, String)>) -> Json {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Json::from(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

//! The alerts: links are looked at a few at a time, and what is to be told goes to the couriers.

use std::collections::VecDeque;
use std::time::Duration;

use super::courier::{self, Courier};
use super::driver::Driver;
use crate::api::{
    AlertList, AlertPhase, AlertRule, AlertSeverity, AlertStatus, AlertTestRequest, AlertTested, Answer, ApiError,
    ErrorKind, ReceiverStatus, SCHEMA,
};
use crate::config::alert::Severity;
use crate::config::{Alert, Config, Receiver};
use crate::control::PeerView;
use crate::control::measurement::{Measurement, Sample};
use crate::identity::NodeId;
use crate::platform::{clock, random};
use crate::telemetry::EventKind;
use crate::telemetry::alert::{
    AlertEngine, CHECK_INTERVAL, Failure, Health, LinkObservation, NodeObservation, Notice, NoticeStatus, Phase,
    Standing, Subject, body,
};
use crate::time::{Instant, UnixTime};

/// In how many parts the links are looked at: no part of a thousand links keeps the control task for more than a few
/// milliseconds.
const PARTS: u32 = 5;

/// The rules, the receivers, and where the present look at all links has come.
pub(super) struct Alerts {
    pub(super) engine: AlertEngine,
    couriers: Vec<Courier>,
    /// Links that the present round has still to look at.
    left: VecDeque<NodeId>,
    /// How many a part takes.
    part: usize,
    due: Option<Instant>,
}

/// The rules that hold: those of the file, or the usual ones where somebody is to be told and the file has none.
fn rules(config: &Config) -> Vec<Alert> {
    match config.alerts.is_empty() && !config.receivers.is_empty() {
        true => Alert::defaults(),
        false => config.alerts.clone(),
    }
}

impl Alerts {
    /// Starts with what the configuration says.
    pub(super) fn new(config: &Config) -> Alerts {
        let engine = AlertEngine::new(config.node.as_str(), &config.mesh.name, rules(config));
        Alerts { engine, couriers: Vec::new(), left: VecDeque::new(), part: 0, due: None }
    }

    /// Takes what the configuration says now; receivers that stay as they are keep what they still have to be told. Needs a
    /// tokio runtime.
    pub(super) fn configure(&mut self, config: &Config, now: Instant, wall: UnixTime) {
        self.engine.set_rules(rules(config), wall);
        self.tell_ready();
        self.couriers.retain(|courier| config.receivers.contains(&courier.receiver));
        for receiver in &config.receivers {
            if !self.couriers.iter().any(|courier| courier.receiver == *receiver) {
                self.couriers.push(Courier::start(receiver.clone(), seed()));
            }
        }
        self.due = if self.engine.rules().is_empty() { None } else { Some(self.due.unwrap_or(now)) };
    }

    /// Whether somebody is told.
    pub(super) fn has_receivers(&self) -> bool {
        !self.couriers.is_empty()
    }

    /// When the next part is to be looked at.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Alerts that fire, by urgency.
    pub(super) fn firing(&self) -> [(Severity, u64); 2] {
        let standing = self.engine.standing();
        Severity::ALL.map(|severity| {
            let fires = |alert: &&Standing| alert.phase == Phase::Firing && alert.notice.severity == severity;
            (severity, standing.iter().filter(fires).count() as u64)
        })
    }

    /// The receivers with how they do, in the order of the file.
    pub(super) fn receivers(&self) -> impl Iterator<Item = (&Receiver, Health)> {
        self.couriers.iter().map(|courier| (&courier.receiver, courier.health()))
    }

    /// Hands over what is to be told; returns it for the record.
    fn tell_ready(&mut self) -> Vec<Notice> {
        let ready = self.engine.take_ready();
        for notice in &ready {
            // The event log: one line of JSON for each.
            tracing::info!("alert {}", notice.to_json());
            let told = |receiver: &Receiver| notice.receivers.is_empty() || notice.receivers.contains(&receiver.name);
            for courier in self.couriers.iter().filter(|courier| told(&courier.receiver)) {
                courier.tell(notice.clone());
            }
        }
        ready
    }
}

/// Randomness for the pauses of a courier; without any, those of several nodes may fall together.
fn seed() -> u64 {
    random::seed()
        .map_or(0, |seed| u64::from_le_bytes([seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7]]))
}

impl Driver {
    /// Looks at the next part of the links; decides once all were looked at.
    pub(super) fn look_at_alerts(&mut self, now: Instant, wall: UnixTime) {
        if self.alerts.due.is_none_or(|due| due > now) {
            return;
        }
        self.alerts.due = Some(now + CHECK_INTERVAL / PARTS);
        if self.alerts.left.is_empty() {
            let members = self.links.iter().filter(|(_, link)| link.stock.is_none());
            self.alerts.left = members.map(|(node, _)| node).collect();
            self.alerts.part = self.alerts.left.len().div_ceil(PARTS as usize).max(1);
        }
        for _ in 0..self.alerts.part {
            let Some(node) = self.alerts.left.pop_front() else { break };
            if let Some(view) = self.engine.peer_view(node, now) {
                let observation = self.observation(&view, now);
                self.alerts.engine.observe_link(&observation, now, wall);
            }
        }
        if self.alerts.left.is_empty() {
            let certificate_not_after = self.engine.certificate().certificate().not_after;
            self.alerts.engine.observe_node(&NodeObservation { certificate_not_after }, now, wall);
            self.alerts.engine.settle(now, wall);
            self.tell_alerts();
        }
    }

    /// Takes a probe's fate for the rules that count single probes.
    pub(super) fn count_probe(&mut self, node: NodeId, measurement: &Measurement, now: Instant) {
        if !self.alerts.engine.counts_probes() {
            return;
        }
        let rtt = match measurement {
            Measurement::Sample(Sample { path_rtt, late: None, .. }) => Some(*path_rtt),
            Measurement::Lost { .. } => None,
            // A late one was counted when it was lost: late was too late for whoever waited.
            _ => return,
        };
        if let Some(member) = self.engine.membership().get(node) {
            let certificate = member.certificate();
            let baseline = self.links.get(node).and_then(|link| link.statistics.baseline());
            self.alerts.engine.probed(certificate.name.as_str(), &certificate.tags, rtt, baseline, now);
        }
    }

    /// Tells what is to be told, and keeps it among the events.
    fn tell_alerts(&mut self) {
        for notice in self.alerts.tell_ready() {
            let kind = match notice.status {
                NoticeStatus::Firing => EventKind::AlertFiring,
                NoticeStatus::Resolved => EventKind::AlertResolved,
            };
            let peer = match &notice.subject {
                Subject::Peer(peer) => Some(peer.clone()),
                Subject::Node | Subject::Several(_) => None,
            };
            self.note(kind, peer, format!("{}: {}", notice.rule, notice.summary()));
        }
    }

    fn observation(&self, view: &PeerView, now: Instant) -> LinkObservation {
        let link = self.links.get(view.node);
        let summary = link.map(|link| link.statistics.summary(now));
        let node_down = self.witnessed(view);
        let reporter = node_down.as_ref().and_then(|_| self.reporter(view.node, now));
        LinkObservation {
            node_down,
            reporter,
            peer: view.name.to_string(),
            tags: view.tags.clone(),
            state: Some(view.state),
            rtt: summary.as_ref().and_then(|summary| summary.rtt).map(|rtt| rtt.p50),
            baseline: link.and_then(|link| link.statistics.baseline()),
            // The lower end of the interval: what is lost for certain.
            data_loss: summary
                .as_ref()
                .and_then(|summary| summary.data_loss.iter().flatten().map(|loss| loss.low).reduce(f64::max)),
            step: summary.as_ref().and_then(|summary| summary.step).map(|step| step.after.saturating_sub(step.before)),
            host_delay: summary.as_ref().and_then(|summary| {
                [summary.own_delay, summary.peer_delay].into_iter().flatten().map(|delay| delay.p99).max()
            }),
            loss: summary.as_ref().and_then(|summary| summary.loss),
        }
    }

    /// Begins to look at alerts and to tell receivers. Needs a tokio runtime.
    pub(super) fn start_alerts(&mut self) {
        let (now, wall) = (clock::now(), clock::wall());
        self.alerts.configure(&self.config, now, wall);
        self.engine.set_tells_alerts(self.alerts.has_receivers(), now, wall);
    }

    /// Takes the rules and receivers of a new configuration.
    pub(super) fn configure_alerts(&mut self, config: &Config, now: Instant, wall: UnixTime) {
        self.alerts.configure(config, now, wall);
        self.engine.set_tells_alerts(self.alerts.has_receivers(), now, wall);
    }

    /// What `meshctl alerts` shows.
    pub(super) fn alert_list(&self) -> AlertList {
        let now = clock::wall();
        let alerts = self.alerts.engine.standing().into_iter().map(|standing| AlertStatus {
            rule: standing.notice.rule.to_string(),
            what: standing.notice.what.to_owned(),
            phase: match standing.phase {
                Phase::Pending => AlertPhase::Pending,
                Phase::Firing => AlertPhase::Firing,
            },
            severity: match standing.notice.severity {
                Severity::Ticket => AlertSeverity::Ticket,
                Severity::Page => AlertSeverity::Page,
            },
            peer: match &standing.notice.subject {
                Subject::Peer(peer) => Some(peer.clone()),
                Subject::Node | Subject::Several(_) => None,
            },
            since: standing.notice.since.into(),
            value: standing.notice.reading.map(|reading| reading.value.to_string()),
            threshold: standing.notice.reading.map(|reading| reading.threshold.to_string()),
            baseline_seconds: standing.notice.reading.and_then(|reading| reading.baseline).map(|b| b.as_secs_f64()),
            summary: standing.notice.summary(),
            command: standing.notice.command(),
            untold: standing.untold,
        });
        let mut alerts: Vec<AlertStatus> = alerts.collect();
        alerts.sort_by_key(|alert| std::cmp::Reverse((alert.phase, alert.severity)));
        let receivers = self.alerts.receivers().map(|(receiver, health)| ReceiverStatus {
            name: receiver.name.to_string(),
            kind: receiver.kind.name().to_owned(),
            place: receiver.kind.place().to_owned(),
            delivered: health.delivered,
            failed: health.failed,
            dropped: health.dropped,
            queued: health.queued as u64,
            last_success: health.last_success.map(Into::into),
            failure: health.failure,
        });
        let rules = self.alerts.engine.rules().iter().map(|rule| AlertRule {
            name: rule.name.to_string(),
            what: rule.condition.kind().to_owned(),
            threshold: rule.condition.threshold(),
            for_seconds: rule.lasting.as_secs(),
        });
        AlertList { schema: SCHEMA, now: now.into(), alerts, rules: rules.collect(), receivers: receivers.collect() }
    }

    /// The receiver of a test, and what it is to be told.
    pub(super) fn alert_test(&self, request: &AlertTestRequest) -> Answer<(Receiver, Notice)> {
        let receivers = || self.config.receivers.iter();
        let found = receivers().find(|receiver| receiver.name.as_str() == request.receiver);
        let Some(receiver) = found else {
            let names: Vec<&str> = receivers().map(|receiver| receiver.name.as_str()).collect();
            let advice = match names.as_slice() {
                [] => "declare one as [[receiver]] in the configuration".to_owned(),
                names => format!("there are: {}", names.join(", ")),
            };
            let message = format!("there is no receiver `{}`", request.receiver);
            return Err(ApiError::new(ErrorKind::NotFound, message).advise(advice));
        };
        let wall = clock::wall();
        let notice = Notice {
            status: NoticeStatus::Firing,
            rule: "meshd-test".parse().map_err(|_| ApiError::new(ErrorKind::Internal, "a name is no name"))?,
            what: "test",
            severity: Severity::Ticket,
            node: Some(self.config.node.to_string()),
            mesh: self.config.mesh.name.clone(),
            subject: Subject::Node,
            reading: None,
            detail: "somebody tries this receiver with `meshctl alerts test`; nothing is wrong".to_owned(),
            since: wall,
            // It counts as over at once, so that no receiver waits for its end.
            ended: Some(wall + Duration::from_secs(1)),
            receivers: Vec::new(),
        };
        Ok((receiver.clone(), notice))
    }
}

/// Delivers a test by the way of every alert, and waits for the outcome.
pub(super) async fn test(receiver: Receiver, notice: Notice) -> Answer<AlertTested> {
    let began = clock::now();
    let outcome = courier::deliver(&receiver, body(&receiver, &[notice], clock::wall())).await;
    let seconds = clock::now().saturating_since(began).as_secs_f64();
    match outcome {
        Ok(()) => Ok(AlertTested {
            schema: SCHEMA,
            receiver: receiver.name.to_string(),
            place: receiver.kind.place().to_owned(),
            seconds,
        }),
        Err(Failure { why, .. }) => {
            let message = format!("{} was not told: {}: {why}", receiver.name, receiver.kind.place());
            Err(ApiError::new(ErrorKind::Conflict, message))
        }
    }
}

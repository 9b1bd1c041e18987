//! Rules, looked at against what was observed: what begins to be told, and what is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::burn::Burn;
use super::notice::{Notice, NoticeStatus, Reading, Subject, Value};
use crate::config::alert::{Alert, Condition, Severity};
use crate::control::probe::LinkState;
use crate::identity::{NodeName, Tag};
use crate::telemetry::LossEstimate;
use crate::time::{Instant, UnixTime};

/// How often everything is observed once: fine against the shortest useful `for`.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a condition must be over before that is told: ten looks, so that what comes and goes is one alert.
pub const HOLD: Duration = Duration::from_secs(50);
/// How long an alert waits for others to join it: two looks at everything.
pub const GROUP_WAIT: Duration = Duration::from_secs(10);
/// How close together alerts of one rule begin that have one cause.
const GROUP_SPAN: Duration = Duration::from_secs(60);
/// Peers that make a group, however many links there are.
const GROUP_SIZE: usize = 3;

/// One link, as observed.
#[derive(Clone, Debug, Default)]
pub struct LinkObservation {
    /// The peer's name.
    pub peer: String,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// How the link is; `None` before anything is known.
    pub state: Option<LinkState>,
    /// The median path round trip of five minutes.
    pub rtt: Option<Duration>,
    /// The link's own median of seven days.
    pub baseline: Option<Duration>,
    /// Loss of five minutes.
    pub loss: Option<LossEstimate>,
    /// Loss of data packets, between 0 and 1.
    pub data_loss: Option<f64>,
    /// By how much the path became longer and stayed so.
    pub step: Option<Duration>,
    /// The 99th percentile of what the hosts add.
    pub host_delay: Option<Duration>,
    /// What those say who were asked, where they agree that the node is down.
    pub node_down: Option<String>,
    /// Another member that reports it, where it is down for everybody.
    pub reporter: Option<String>,
}

/// This node, as observed.
#[derive(Clone, Copy, Debug)]
pub struct NodeObservation {
    /// When its certificate ends.
    pub certificate_not_after: UnixTime,
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is the case, but not for long enough.
    Pending,
    /// It is the case.
    Firing,
}

/// One alert that is pending or fires.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Where it stands.
    pub phase: Phase,
    /// What is told of it.
    pub notice: Notice,
    /// Why nobody is told of it from here, where that is so.
    pub untold: Option<String>,
}

/// Which alert: a rule, how urgent, and about whom; about this node itself with an empty name.
type Key = (NodeName, Severity, String);

/// A condition that is the case, or was a moment ago.
#[derive(Clone, Debug)]
struct Active {
    since: Instant,
    since_wall: UnixTime,
    /// Since when it has lasted long enough.
    fires: Option<Instant>,
    /// Since when it is no longer the case.
    over: Option<(Instant, UnixTime)>,
    told: bool,
    reading: Option<Reading>,
    detail: String,
    reporter: Option<String>,
}

/// Alerts of one rule that began together.
#[derive(Clone, Debug)]
struct Group {
    since: UnixTime,
    /// Those for whom it is still the case.
    members: BTreeSet<String>,
    /// Everybody for whom it was.
    ever: BTreeSet<String>,
}

/// The rules with everything that is the case.
#[derive(Debug)]
pub struct AlertEngine {
    node: String,
    mesh: String,
    rules: Arc<[Alert]>,
    active: BTreeMap<Key, Active>,
    groups: BTreeMap<(NodeName, Severity), Group>,
    burns: BTreeMap<(NodeName, String), Burn>,
    peers: BTreeSet<String>,
    /// Peers that the present round has looked at.
    seen: BTreeSet<String>,
    ready: Vec<Notice>,
}

/// What a condition says of an observation.
enum Verdict {
    /// It is the case.
    Holds(Option<Reading>, String),
    /// It is not.
    Fails,
    /// Nothing can be said: what was so stays so.
    Unknown,
}

impl AlertEngine {
    /// Starts with rules and nothing the case.
    pub fn new(node: &str, mesh: &str, rules: Vec<Alert>) -> AlertEngine {
        AlertEngine {
            node: node.to_owned(),
            mesh: mesh.to_owned(),
            rules: rules.into(),
            active: BTreeMap::new(),
            groups: BTreeMap::new(),
            burns: BTreeMap::new(),
            peers: BTreeSet::new(),
            seen: BTreeSet::new(),
            ready: Vec::new(),
        }
    }

    /// Returns the rules.
    pub fn rules(&self) -> &[Alert] {
        &self.rules
    }

    /// Takes other rules; alerts of those that stay as they are go on, the others are over.
    pub fn set_rules(&mut self, rules: Vec<Alert>, wall: UnixTime) {
        let stays = |name: &NodeName| {
            let old = self.rules.iter().find(|rule| rule.name == *name);
            old.is_some() && old == rules.iter().find(|rule| rule.name == *name)
        };
        let gone: Vec<Key> = self.active.keys().filter(|(name, ..)| !stays(name)).cloned().collect();
        let ungrouped: Vec<_> = self.groups.keys().filter(|(name, _)| !stays(name)).cloned().collect();
        self.burns.retain(|(name, _), _| stays(name));
        for key in gone {
            self.end(&key, wall);
        }
        for key in ungrouped {
            self.end_group(&key, wall);
        }
        self.rules = rules.into();
    }

    /// Forgets a peer that is no member any more.
    fn forget(&mut self, peer: &str, wall: UnixTime) {
        self.peers.remove(peer);
        self.burns.retain(|(_, of), _| of != peer);
        let gone: Vec<Key> = self.active.keys().filter(|(.., of)| of == peer).cloned().collect();
        for key in gone {
            self.end(&key, wall);
        }
    }

    /// Returns whether any rule counts single probes.
    pub fn counts_probes(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.condition, Condition::BurnRate { .. }))
    }

    /// Takes a probe's fate: its path round trip, or `None` where it was lost.
    pub fn probed(
        &mut self,
        peer: &str,
        tags: &[Tag],
        rtt: Option<Duration>,
        baseline: Option<Duration>,
        now: Instant,
    ) {
        for rule in self.rules.iter() {
            if let Condition::BurnRate { limit, .. } = rule.condition
                && rule.is_about(peer, tags)
            {
                let bad = rtt.is_none_or(|rtt| limit.of(baseline).is_some_and(|limit| rtt > limit));
                self.burns.entry((rule.name.clone(), peer.to_owned())).or_default().add(now, bad);
            }
        }
    }

    /// Looks at this node.
    pub fn observe_node(&mut self, node: &NodeObservation, now: Instant, wall: UnixTime) {
        for rule in Arc::clone(&self.rules).iter() {
            if let Condition::Certificate(ahead) = rule.condition {
                let left = node.certificate_not_after.saturating_since(wall);
                let reading = Reading { value: Value::Left(left), threshold: Value::Left(ahead), baseline: None };
                let verdict = if left < ahead { Verdict::Holds(Some(reading), String::new()) } else { Verdict::Fails };
                let severity = rule.severity.unwrap_or(rule.condition.usual_severity());
                self.judge(rule, severity, "", None, verdict, now, wall);
            }
        }
    }

    /// Looks at a link.
    pub fn observe_link(&mut self, link: &LinkObservation, now: Instant, wall: UnixTime) {
        self.peers.insert(link.peer.clone());
        self.seen.insert(link.peer.clone());
        for rule in Arc::clone(&self.rules).iter() {
            if !rule.is_about(&link.peer, &link.tags) {
                continue;
            }
            let reporter = link.reporter.clone().filter(|_| rule.condition == Condition::NodeDown);
            match rule.condition {
                Condition::Certificate(_) => {}
                Condition::BurnRate { allowed, .. } => {
                    let burn = self.burns.get(&(rule.name.clone(), link.peer.clone()));
                    let verdicts = Severity::ALL.map(|severity| {
                        let fast = burn.and_then(|burn| burn.too_fast(now, allowed.ratio(), severity));
                        fast.map_or(Verdict::Fails, |(times, window)| {
                            let (value, threshold) = (Value::Times(times), Value::Share(allowed.ratio()));
                            let detail = format!("in the last {} h", window.as_secs() / 3600);
                            Verdict::Holds(Some(Reading { value, threshold, baseline: link.baseline }), detail)
                        })
                    });
                    match (rule.severity, verdicts) {
                        (None, [slow, fast]) => {
                            self.judge(rule, Severity::Ticket, &link.peer, None, slow, now, wall);
                            self.judge(rule, Severity::Page, &link.peer, None, fast, now, wall);
                        }
                        (Some(severity), [slow, fast]) => {
                            let worst = if matches!(fast, Verdict::Holds(..)) { fast } else { slow };
                            self.judge(rule, severity, &link.peer, None, worst, now, wall);
                        }
                    }
                }
                condition => {
                    let severity = rule.severity.unwrap_or(condition.usual_severity());
                    self.judge(rule, severity, &link.peer, reporter, verdict(condition, link), now, wall);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the one place where rule, subject, verdict and time meet")]
    fn judge(
        &mut self,
        rule: &Alert,
        severity: Severity,
        peer: &str,
        reporter: Option<String>,
        verdict: Verdict,
        now: Instant,
        wall: UnixTime,
    ) {
        let key = (rule.name.clone(), severity, peer.to_owned());
        match verdict {
            Verdict::Holds(reading, detail) => {
                let active = self.active.entry(key).or_insert_with(|| Active {
                    since: now,
                    since_wall: wall,
                    fires: None,
                    over: None,
                    told: false,
                    reading: None,
                    detail: String::new(),
                    reporter: None,
                });
                active.over = None;
                (active.reading, active.detail, active.reporter) = (reading, detail, reporter);
                if now.saturating_since(active.since) >= rule.lasting {
                    active.fires.get_or_insert(now);
                }
            }
            Verdict::Fails => {
                let grouped = self.is_grouped(&key);
                match self.active.get_mut(&key) {
                    Some(active) if active.told || grouped => {
                        active.over.get_or_insert((now, wall));
                    }
                    // Nobody was told that it began.
                    Some(_) => {
                        self.active.remove(&key);
                    }
                    None => {}
                }
            }
            Verdict::Unknown => {
                // What has not lasted long enough yet must begin anew; what fires goes on until it is known to be over.
                self.active.retain(|other, active| *other != key || active.fires.is_some());
            }
        }
    }

    /// Decides what is told, once everything was observed; who was not is no member any more. Call it every
    /// [`CHECK_INTERVAL`].
    pub fn settle(&mut self, now: Instant, wall: UnixTime) {
        let seen = std::mem::take(&mut self.seen);
        let gone: Vec<String> = self.peers.difference(&seen).cloned().collect();
        for peer in gone {
            self.forget(&peer, wall);
        }
        let over = |active: &Active| active.over.is_some_and(|(over, _)| now.saturating_since(over) >= HOLD);
        let ended: Vec<Key> =
            self.active.iter().filter(|(_, active)| over(active)).map(|(key, _)| key.clone()).collect();
        for key in ended {
            self.end(&key, wall);
        }
        let rules: BTreeSet<(NodeName, Severity)> =
            self.active.keys().map(|(name, severity, _)| (name.clone(), *severity)).collect();
        for (name, severity) in rules {
            self.tell(&name, severity, now);
        }
        let empty = |group: &Group| group.members.is_empty();
        let over: Vec<_> = self.groups.iter().filter(|(_, group)| empty(group)).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.end_group(&key, wall);
        }
    }

    /// Tells what fires of one rule: one by one, or together where they began together.
    fn tell(&mut self, name: &NodeName, severity: Severity, now: Instant) {
        let Some(rule) = self.rules.iter().find(|rule| rule.name == *name).cloned() else { return };
        let group_key = (name.clone(), severity);
        let firing: Vec<(Key, Active)> = self
            .active
            .iter()
            .filter(|((of, urgency, _), active)| of == name && *urgency == severity && active.fires.is_some())
            .filter(|((.., peer), active)| active.told || self.muted(&rule, peer, active).is_none())
            .map(|(key, active)| (key.clone(), active.clone()))
            .collect();
        if let Some(group) = self.groups.get_mut(&group_key) {
            // Whoever joins is told with the others from now on.
            let joining = firing.iter().filter(|(key, active)| !active.told && !key.2.is_empty());
            for ((.., peer), _) in joining {
                group.members.insert(peer.clone());
                group.ever.insert(peer.clone());
            }
            return;
        }
        let untold: Vec<&(Key, Active)> = firing.iter().filter(|(_, active)| !active.told).collect();
        let Some(newest) = untold.iter().map(|(_, active)| active.since).max() else { return };
        let apart = |since: Instant| newest.saturating_since(since).max(since.saturating_since(newest));
        let together =
            firing.iter().filter(|((.., peer), active)| !peer.is_empty() && apart(active.since) <= GROUP_SPAN).count();
        let waited = |active: &Active| active.fires.is_some_and(|fires| now.saturating_since(fires) >= GROUP_WAIT);
        if !untold.iter().any(|(_, active)| waited(active)) {
            return;
        }
        let most = together >= 2 && together * 2 > self.peers.len();
        if together >= GROUP_SIZE || most {
            let members: BTreeSet<String> = untold.iter().map(|(key, _)| key.2.clone()).collect();
            let since = untold.iter().map(|(_, active)| active.since_wall).min().unwrap_or_default();
            let group = Group { since, ever: members.clone(), members };
            self.ready.push(self.group_notice(&rule, severity, &group, NoticeStatus::Firing, None));
            self.groups.insert(group_key, group);
            return;
        }
        for (key, active) in untold.into_iter().filter(|(_, active)| waited(active)) {
            self.ready.push(self.notice(&rule, severity, &key.2, active, NoticeStatus::Firing, None));
            if let Some(active) = self.active.get_mut(key) {
                active.told = true;
            }
        }
    }

    /// Whether an alert is told together with others.
    fn is_grouped(&self, (name, severity, peer): &Key) -> bool {
        self.groups.get(&(name.clone(), *severity)).is_some_and(|group| group.members.contains(peer))
    }

    /// Why nobody is told of an alert from here.
    fn muted(&self, rule: &Alert, peer: &str, active: &Active) -> Option<String> {
        if let Some(reporter) = &active.reporter {
            return Some(format!("{reporter} tells it for all"));
        }
        if matches!(rule.condition, Condition::NodeDown | Condition::Certificate(_)) {
            return None;
        }
        // What a dead node's link shows is the node's own alert to tell.
        let causes = self.rules.iter().filter(|rule| rule.condition == Condition::NodeDown);
        let is_down = |cause: &&Alert| {
            let severity = cause.severity.unwrap_or(cause.condition.usual_severity());
            let key = (cause.name.clone(), severity, peer.to_owned());
            self.active.get(&key).is_some_and(|active| active.over.is_none())
        };
        let cause = &causes.into_iter().find(is_down)?.name;
        Some(format!("{cause} says it"))
    }

    /// Ends an alert, and tells who was told that it began.
    fn end(&mut self, key: &Key, wall: UnixTime) {
        let Some(active) = self.active.remove(key) else { return };
        if let Some(group) = self.groups.get_mut(&(key.0.clone(), key.1)) {
            group.members.remove(&key.2);
        }
        if active.told
            && let Some(rule) = self.rules.iter().find(|rule| rule.name == key.0)
        {
            let ended = active.over.map_or(wall, |(_, over)| over);
            let notice = self.notice(rule, key.1, &key.2, &active, NoticeStatus::Resolved, Some(ended));
            self.ready.push(notice);
        }
    }

    fn end_group(&mut self, key: &(NodeName, Severity), wall: UnixTime) {
        let Some(group) = self.groups.remove(key) else { return };
        if let Some(rule) = self.rules.iter().find(|rule| rule.name == key.0) {
            let notice = self.group_notice(rule, key.1, &group, NoticeStatus::Resolved, Some(wall));
            self.ready.push(notice);
        }
    }

    /// Takes what is to be told, in order.
    pub fn take_ready(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.ready)
    }

    /// Returns everything that is pending or fires, by rule, urgency and peer.
    pub fn standing(&self) -> Vec<Standing> {
        let mut list = Vec::new();
        for ((name, severity, peer), active) in &self.active {
            let Some(rule) = self.rules.iter().find(|rule| rule.name == *name) else { continue };
            let phase = if active.fires.is_some() { Phase::Firing } else { Phase::Pending };
            let key = (name.clone(), *severity, peer.clone());
            let untold = match active.told {
                true => None,
                false if self.is_grouped(&key) => Some("told together with others".to_owned()),
                false => self.muted(rule, peer, active),
            };
            let notice = self.notice(rule, *severity, peer, active, NoticeStatus::Firing, None);
            list.push(Standing { phase, notice, untold });
        }
        list
    }

    fn notice(
        &self,
        rule: &Alert,
        severity: Severity,
        peer: &str,
        active: &Active,
        status: NoticeStatus,
        ended: Option<UnixTime>,
    ) -> Notice {
        let everybody = rule.condition == Condition::NodeDown;
        Notice {
            status,
            rule: rule.name.clone(),
            what: rule.condition.kind(),
            severity,
            node: (!everybody).then(|| self.node.clone()),
            mesh: self.mesh.clone(),
            subject: if peer.is_empty() { Subject::Node } else { Subject::Peer(peer.to_owned()) },
            reading: active.reading,
            detail: active.detail.clone(),
            since: active.since_wall,
            ended,
            receivers: rule.receivers.clone(),
        }
    }

    fn group_notice(
        &self,
        rule: &Alert,
        severity: Severity,
        group: &Group,
        status: NoticeStatus,
        ended: Option<UnixTime>,
    ) -> Notice {
        let (count, links) = (group.ever.len(), self.peers.len());
        let detail = match count * 2 > links {
            true => format!("{count} of {links} links at once: look at this node's own network first"),
            false => format!("{count} of {links} links at once"),
        };
        Notice {
            status,
            rule: rule.name.clone(),
            what: rule.condition.kind(),
            severity,
            node: Some(self.node.clone()),
            mesh: self.mesh.clone(),
            subject: Subject::Several(group.ever.iter().cloned().collect()),
            reading: None,
            detail,
            since: group.since,
            ended,
            receivers: rule.receivers.clone(),
        }
    }
}

/// What a condition says of a link.
fn verdict(condition: Condition, link: &LinkObservation) -> Verdict {
    let above = |value: Value, threshold: Value, holds: bool| {
        let reading = Reading { value, threshold, baseline: link.baseline };
        if holds { Verdict::Holds(Some(reading), String::new()) } else { Verdict::Fails }
    };
    let longer = |value: Option<Duration>, limit: Duration| {
        value.map_or(Verdict::Fails, |value| above(Value::Delay(value), Value::Delay(limit), value > limit))
    };
    match condition {
        Condition::LinkDown => match link.state {
            Some(LinkState::Down) => Verdict::Holds(None, String::new()),
            Some(LinkState::Up | LinkState::Suspect) => Verdict::Fails,
            _ => Verdict::Unknown,
        },
        Condition::NodeDown => match &link.node_down {
            Some(says) => Verdict::Holds(None, says.clone()),
            None => Verdict::Fails,
        },
        Condition::LatencyAbove(limit) => match (link.rtt, limit.of(link.baseline)) {
            (Some(rtt), Some(limit)) => above(Value::Delay(rtt), Value::Delay(limit), rtt > limit),
            _ => Verdict::Unknown,
        },
        Condition::LossAbove(most) => match link.loss {
            Some(loss) => above(Value::Share(loss.low), Value::Share(most.ratio()), loss.low > most.ratio()),
            None => Verdict::Unknown,
        },
        Condition::DataLoss(most) => match link.data_loss {
            Some(lost) => above(Value::Share(lost), Value::Share(most.ratio()), lost > most.ratio()),
            None => Verdict::Unknown,
        },
        Condition::LatencyStep(most) => longer(link.step, most),
        Condition::HostDelay(most) => longer(link.host_delay, most),
        // About this node, and judged by windows.
        Condition::Certificate(_) | Condition::BurnRate { .. } => Verdict::Unknown,
    }
}

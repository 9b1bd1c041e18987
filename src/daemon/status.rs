//! What the local interface is told about this node.

use std::collections::BTreeMap;
use std::time::Duration;

use super::driver::Driver;
use super::reload::Refusal;
use crate::api::{
    CertificateStatus, Counts, DegradedReason, Gravity, Health, LinkClass, LinkCounts, LinkMeasure, LossRatio, Member,
    Members, MeshStatus, NodeInfo, NodeStatus, PeerState, PeerStatus, Problem, SCHEMA, Status, Timestamp, Version,
};
use crate::control::probe::LinkState;
use crate::control::routing::Claim;
use crate::control::{PROTOCOL_VERSION, PeerView, View};
use crate::platform::clock;
use crate::telemetry::degraded::Held;
use crate::telemetry::{Degradation, LinkSummary, LossEstimate};
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;
use crate::wire::probe::Class;

/// The daemon's version.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Driver {
    /// The whole state.
    pub(super) fn status(&self) -> Status {
        let (now, wall) = (clock::now(), clock::wall());
        let view = self.engine.view(now);
        let mut peers: Vec<PeerStatus> = view.peers.iter().map(|peer| self.peer_status(peer, now, wall)).collect();
        peers.sort_by(|a, b| b.state.severity().cmp(&a.state.severity()).then_with(|| a.name.cmp(&b.name)));
        let anchor = self.engine.membership().anchor();
        Status {
            schema: SCHEMA,
            now: Timestamp(wall),
            node: self.node_status(now, wall),
            mesh: MeshStatus {
                name: anchor.mesh_name.clone(),
                mesh_id: anchor.mesh.to_string(),
                members: u32::try_from(view.members).unwrap_or(u32::MAX),
            },
            counts: Counts::of(peers.iter().map(|peer| peer.state)),
            problems: self.problems(&view, &peers, wall),
            peers,
            wireguard: self.wireguard_status(now),
            drops: self.drop_counts(),
        }
    }

    fn node_status(&self, now: Instant, wall: UnixTime) -> NodeStatus {
        let certificate = self.engine.certificate().certificate();
        NodeStatus {
            name: certificate.name.to_string(),
            node_id: certificate.node.to_string(),
            wireguard_key: certificate.wireguard_key.to_string(),
            address_v4: certificate.address_v4,
            address_v6: certificate.address_v6,
            prefixes: certificate.prefixes.clone(),
            interface: self.interface.clone(),
            mtu_bytes: u32::from(self.config.interface.mtu),
            listen: self.config.underlay.listen.clone(),
            endpoints: self.engine.endpoints().to_vec(),
            version: VERSION.to_owned(),
            started: Timestamp(self.started_wall),
            uptime_seconds: now.saturating_since(self.started).as_secs(),
            certificate: certificate_status(certificate.not_after, certificate.serial, wall),
            observer_health: self.engine.health(now),
            clock_steps: self.observer.clock_steps,
            confinement: Some(self.confinement.status()),
        }
    }

    pub(super) fn peer_status(&self, view: &PeerView, now: Instant, wall: UnixTime) -> PeerStatus {
        let link = self.links.get(view.node);
        let tunnel = link.map(|link| link.peer.tunnel().status(now));
        let summary = link.map(|link| link.statistics.summary(now));
        let baseline = link.and_then(|link| link.statistics.baseline());
        let expired = view.certificate_not_after <= wall;
        let degradation = link.map(|link| link.statistics.degradation()).filter(|found| found.is_degraded());
        let state = match view.state {
            LinkState::Up if !expired && degradation.is_some() => PeerState::Degraded,
            LinkState::Up if !expired => PeerState::Up,
            LinkState::Suspect if !expired => PeerState::Suspect,
            LinkState::Down if !expired => PeerState::Down,
            LinkState::Unknown if !expired => PeerState::Unknown,
            LinkState::New if !expired => PeerState::New,
            _ => PeerState::Expired,
        };
        let session = tunnel.as_ref().and_then(|tunnel| tunnel.session);
        let endpoint = view.endpoint.filter(|_| session.is_some());
        PeerStatus {
            name: view.name.to_string(),
            node_id: view.node.to_string(),
            address_v4: view.address_v4,
            address_v6: view.address_v6,
            prefixes: view.prefixes.clone(),
            state,
            since: Timestamp(match degradation.and_then(Degradation::since) {
                Some(since) if state == PeerState::Degraded => wall - now.saturating_since(since),
                _ => wall - view.state_for,
            }),
            path: self.path_status(endpoint, view.via),
            link: summary.as_ref().and_then(|summary| link_measure(summary, baseline)),
            loss: summary.as_ref().and_then(|summary| summary.loss).map(loss_ratio),
            counts: summary.as_ref().map(link_counts),
            class: Some(link_class(view.pace.class)),
            probe_interval_seconds: Some(view.pace.interval.as_secs_f64()),
            verdict: link.and_then(|link| link.verdict).map(|verdict| verdict.to_string()),
            reasons: degradation.map_or(Vec::new(), |degradation| {
                let reason = |held: &Held| DegradedReason {
                    kind: held.reason.name().to_owned(),
                    text: held.text.clone(),
                    since: Some(Timestamp(wall - now.saturating_since(held.since))),
                };
                degradation.reasons().iter().map(reason).collect()
            }),
            mtu_bytes: u32::from(view.path_mtu),
            session_age_seconds: session.map(|session| now.saturating_since(session.established).as_secs()),
            rx_bytes: tunnel.as_ref().map_or(0, |tunnel| tunnel.received.bytes),
            tx_bytes: tunnel.as_ref().map_or(0, |tunnel| tunnel.sent.bytes),
            rx_packets: tunnel.as_ref().map_or(0, |tunnel| tunnel.received.packets),
            tx_packets: tunnel.as_ref().map_or(0, |tunnel| tunnel.sent.packets),
            handshakes: tunnel.as_ref().map_or(0, |tunnel| tunnel.handshakes),
            flows_woken: link.map_or(0, |link| link.outage.woken),
            record_age_seconds: view.record_issued.map(|issued| wall.saturating_since(issued).as_secs()),
            certificate_expires: Timestamp(view.certificate_not_after),
            pq: session.map(|session| self.pq_of(view.node, session)),
            pq_keys: tunnel.as_ref().map_or(0, |tunnel| tunnel.hybrid_keys),
            policy: self.agreement(view),
            drops: tunnel.as_ref().map(|tunnel| by_reason(&tunnel.drops)).unwrap_or_default(),
        }
    }

    /// Drops that belong to no peer: of the data threads, the handshakes and the control task.
    fn drop_counts(&self) -> BTreeMap<String, u64> {
        by_reason(&self.ownerless_drops())
    }

    /// The same, in the order of [`DropReason::ALL`].
    pub(super) fn ownerless_drops(&self) -> [u64; DropReason::ALL.len()] {
        let mut drops = self.drops;
        for (sum, more) in drops.iter_mut().zip(self.links.host().drops()) {
            *sum += more;
        }
        if let Some(dataplane) = &self.dataplane {
            for reading in [dataplane.inbound(), dataplane.outbound()] {
                for (sum, more) in drops.iter_mut().zip(reading.drops) {
                    *sum += more;
                }
            }
        }
        drops
    }

    /// What is wrong, gravest first.
    fn problems(&self, view: &View, peers: &[PeerStatus], wall: UnixTime) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.own_problems(view, wall, &mut problems);
        self.gateway_problems(&mut problems);
        for peer in peers {
            let since = Some(peer.since);
            match peer.state {
                PeerState::Down => problems.push(Problem {
                    gravity: Gravity::Critical,
                    kind: "peer_down".into(),
                    peer: Some(peer.name.clone()),
                    message: match &peer.verdict {
                        Some(verdict) => format!("{} does not answer: {verdict}", peer.name),
                        None => format!("{} does not answer", peer.name),
                    },
                    advice: format!("see that meshd runs there and UDP gets through: meshctl status {}", peer.name),
                    since,
                }),
                PeerState::Suspect => problems.push(Problem {
                    gravity: Gravity::Warning,
                    kind: "peer_suspect".into(),
                    peer: Some(peer.name.clone()),
                    message: format!("{} has missed probes", peer.name),
                    advice: String::new(),
                    since,
                }),
                PeerState::Expired => problems.push(Problem {
                    gravity: Gravity::Critical,
                    kind: "peer_certificate_expired".into(),
                    peer: Some(peer.name.clone()),
                    message: format!("the certificate of {} has expired; its link ends within a day", peer.name),
                    advice: "sign a new one: meshctl request there, meshctl sign at the authority".into(),
                    since: Some(peer.certificate_expires),
                }),
                PeerState::Unknown => problems.push(Problem {
                    gravity: Gravity::Warning,
                    kind: "peer_unknown".into(),
                    peer: Some(peer.name.clone()),
                    message: format!("{} is not heard, and this node is unwell itself", peer.name),
                    advice: "see what keeps this host busy, or whether its clock was set".into(),
                    since,
                }),
                PeerState::Degraded => problems.push(Problem {
                    gravity: Gravity::Warning,
                    kind: "peer_degraded".into(),
                    peer: Some(peer.name.clone()),
                    message: format!("{}: {}", peer.name, texts(&peer.reasons)),
                    advice: String::new(),
                    since,
                }),
                PeerState::Up | PeerState::New => {}
            }
        }
        for collision in &view.collisions {
            let what = match &collision.what {
                Claim::Network(network) => network.to_string(),
                Claim::Name(name) => format!("the name {name}"),
            };
            let (holder, ignored) = (self.name_of(collision.holder), self.name_of(collision.ignored));
            problems.push(Problem {
                gravity: Gravity::Critical,
                kind: "collision".into(),
                peer: Some(ignored.clone()),
                message: format!(
                    "two certificates grant {what}: {holder} has it, {ignored} ({}) does not",
                    collision.ignored
                ),
                advice: "revoke one of the two and sign it anew; keep one ledger per authority".into(),
                since: None,
            });
        }
        self.wireguard_problems(&mut problems);
        self.pq_problems(view, &mut problems);
        problems.extend(self.trust_problem());
        problems.extend(self.policy_problem(peers));
        problems.extend(self.refusal.as_ref().map(Refusal::problem));
        problems.sort_by_key(|problem| std::cmp::Reverse(problem.gravity));
        problems
    }

    fn own_problems(&self, view: &View, wall: UnixTime, problems: &mut Vec<Problem>) {
        problems.extend(self.firewall.lockdown.problem(&self.config));
        let mut add = |gravity, kind: &str, message: String, advice: &str| {
            problems.push(Problem {
                gravity,
                kind: kind.into(),
                peer: None,
                message,
                advice: advice.into(),
                since: None,
            });
        };
        if view.revoked {
            let advice = "make new keys and join again, if this host still belongs to the mesh";
            add(Gravity::Critical, "revoked", "this node was revoked: no member talks to it".into(), advice);
        }
        if view.cloned.is_some() {
            let message = "another host runs with this node's keys (a copied disk or image?)".to_owned();
            let advice =
                "stop one of the two, delete its identity.key and node.cert, and let it join under its own name";
            add(Gravity::Critical, "cloned", message, advice);
        }
        let left = view.certificate_not_after.saturating_since(wall).as_secs();
        // A certificate that an authority node will renew passes 21 days every month; that is no news.
        let expected = |gravity: &Gravity| *gravity == Gravity::Notice && self.engine.can_renew();
        if let Some(gravity) = CertificateStatus::warning_at(left).filter(|gravity| !expected(gravity)) {
            let message = match left {
                0 => format!("this node's certificate expired on {}", view.certificate_not_after),
                _ => format!("this node's certificate expires in {} days", left / 86_400),
            };
            let advice = "no authority node has renewed it: meshctl request here, meshctl sign at the authority";
            add(gravity, "certificate_expires", message, advice);
        }
        for (prefix, endpoint) in self.looping_prefixes() {
            let message = format!("no route for {prefix}: {endpoint}, an endpoint of the mesh, lies in it");
            let advice = "sign that node's certificate anew with prefixes that leave the endpoints out";
            add(Gravity::Warning, "prefix_covers_endpoint", message, advice);
        }
        for failure in &self.host_failures {
            add(Gravity::Critical, "host", failure.clone(), "");
        }
        if let Some(why) = self.firewall.failure() {
            add(Gravity::Warning, "firewall", format!("packet filter: {why}"), "it is tried again every ten seconds");
        }
        for failure in self.pages.iter().flat_map(|pages| pages.failures()) {
            let advice = "stop what listens there, or choose another address and reload";
            add(Gravity::Warning, "page", failure, advice);
        }
        if let Some(why) = self.monitor.history_report().and_then(|report| report.failing) {
            add(Gravity::Warning, "history", why, "the links are watched on, but their past is not recorded");
        }
        for (receiver, health) in self.alerts.receivers() {
            if let Some(why) = health.failure {
                let message = format!("alerts do not reach {} ({}): {why}", receiver.name, receiver.kind.place());
                add(Gravity::Warning, "receiver", message, "mend it, then: meshctl alerts test NAME");
            }
        }
        for (is_trouble, message, advice) in self.forwards.problems() {
            add(if is_trouble { Gravity::Warning } else { Gravity::Notice }, "forward", message, &advice);
        }
        for (message, advice) in self.names.problems() {
            add(Gravity::Warning, "names", message, advice);
        }
        for complaint in self.files.complaints() {
            add(Gravity::Warning, "state_files", complaint.clone(), "");
        }
        if view.peers.is_empty() && !self.config.bootstrap.is_empty() {
            let advice = "see whether they run, and whether this host may send UDP to them";
            add(Gravity::Critical, "alone", "none of the bootstrap members has answered yet".into(), advice);
        }
    }

    /// This node's public identity.
    pub(super) fn node_info(&self) -> NodeInfo {
        let certificate = self.engine.certificate().certificate();
        let anchor = self.engine.membership().anchor();
        NodeInfo {
            schema: SCHEMA,
            name: certificate.name.to_string(),
            node_id: certificate.node.to_string(),
            wireguard_key: certificate.wireguard_key.to_string(),
            verifying_key: certificate.verifying_key.to_string(),
            mesh_name: anchor.mesh_name.clone(),
            mesh_id: anchor.mesh.to_string(),
            overlay_v4: anchor.overlay_v4,
            overlay_v6: anchor.overlay_v6,
            authorities: anchor.authorities.iter().map(ToString::to_string).collect(),
            endpoints: self.engine.endpoints().to_vec(),
            holds_authority: self.engine.is_authority(),
        }
    }

    /// The members this node knows, and those it knows to be revoked.
    pub(super) fn members(&self) -> Members {
        let membership = self.engine.membership();
        let mut members: Vec<Member> = membership
            .members()
            .map(|(node, member)| {
                let certificate = member.certificate();
                Member {
                    name: certificate.name.to_string(),
                    node_id: node.to_string(),
                    wireguard_key: certificate.wireguard_key.to_string(),
                    verifying_key: certificate.verifying_key.to_string(),
                    address_v4: certificate.address_v4,
                    address_v6: certificate.address_v6,
                    prefixes: certificate.prefixes.clone(),
                    tags: certificate.tags.iter().map(ToString::to_string).collect(),
                    endpoints: member.record.as_ref().map(|r| r.record().endpoints.clone()).unwrap_or_default(),
                    certificate_expires: Timestamp(certificate.not_after),
                    protocol_version: member.record.as_ref().map(|record| record.record().protocol_version),
                    relays: certificate.permissions.relay,
                    revoked: false,
                    is_self: node == self.engine.node(),
                }
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Members { schema: SCHEMA, members }
    }

    /// Whether the daemon does its work.
    pub(super) fn health(&self) -> Health {
        let status = self.status();
        let healthy = status.problems.iter().all(|problem| problem.gravity < Gravity::Critical);
        Health { schema: SCHEMA, healthy, problems: status.problems }
    }

    /// What the daemon is.
    pub(super) fn version(&self) -> Version {
        let restarts = self.restarts;
        Version { schema: SCHEMA, version: VERSION.to_owned(), protocol_version: PROTOCOL_VERSION, restarts }
    }
}

fn certificate_status(not_after: UnixTime, serial: u64, wall: UnixTime) -> CertificateStatus {
    let left = not_after.saturating_since(wall).as_secs();
    CertificateStatus {
        expires: Timestamp(not_after),
        expires_in_seconds: left,
        serial,
        warning: CertificateStatus::warning_at(left),
    }
}

fn link_measure(summary: &LinkSummary, baseline: Option<Duration>) -> Option<LinkMeasure> {
    let rtt = summary.rtt?;
    let [forward, reverse] = summary.one_way_jitter;
    let (own, peer) = (summary.own_delay?, summary.peer_delay?);
    let seconds = |time: Duration| time.as_secs_f64();
    Some(LinkMeasure {
        window_seconds: seconds(summary.window),
        rtt_min_seconds: seconds(rtt.min),
        rtt_p50_seconds: seconds(rtt.p50),
        rtt_p99_seconds: seconds(rtt.p99),
        rtt_max_seconds: seconds(rtt.max),
        jitter_seconds: seconds(summary.jitter),
        jitter_forward_seconds: seconds(forward),
        jitter_reverse_seconds: seconds(reverse),
        variation_forward_seconds: summary.variation.map(|[forward, _]| seconds(forward)),
        variation_reverse_seconds: summary.variation.map(|[_, reverse]| seconds(reverse)),
        own_delay_p50_seconds: seconds(own.p50),
        own_delay_p99_seconds: seconds(own.p99),
        peer_delay_p50_seconds: seconds(peer.p50),
        peer_delay_p99_seconds: seconds(peer.p99),
        rtt_baseline_seconds: baseline.map(seconds),
        step_from_seconds: summary.step.map(|step| seconds(step.before)),
    })
}

fn link_counts(summary: &LinkSummary) -> LinkCounts {
    let counts = &summary.counts;
    let [loss_forward, loss_reverse] = [summary.loss_forward, summary.loss_reverse].map(|loss| loss.map(loss_ratio));
    let [data_loss_forward, data_loss_reverse] = summary.data_loss.map(|loss| loss.map(loss_ratio));
    LinkCounts {
        loss_forward,
        loss_reverse,
        lost_unknown: counts.lost[2].into(),
        data_loss_forward,
        data_loss_reverse,
        longest_loss_run: summary.longest_loss_run.into(),
        late: counts.late.into(),
        reordered_forward: counts.reordered[0].into(),
        reordered_reverse: counts.reordered[1].into(),
        duplicated_forward: counts.duplicated[0].into(),
        duplicated_reverse: counts.duplicated[1].into(),
        discarded_clock_step: counts.discarded[0].into(),
        discarded_negative: counts.discarded[1].into(),
    }
}

fn link_class(class: Class) -> LinkClass {
    match class {
        Class::Idle => LinkClass::Idle,
        Class::Active => LinkClass::Active,
        Class::Critical => LinkClass::Critical,
    }
}

fn loss_ratio(loss: LossEstimate) -> LossRatio {
    LossRatio { lost: loss.lost, sent: loss.sent, ratio: loss.ratio(), low: loss.low, high: loss.high }
}

fn texts(reasons: &[DegradedReason]) -> String {
    reasons.iter().map(|reason| reason.text.as_str()).collect::<Vec<_>>().join("; ")
}

pub(super) fn by_reason(counts: &[u64; DropReason::ALL.len()]) -> BTreeMap<String, u64> {
    DropReason::ALL
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| (reason.name().to_owned(), *count))
        .collect()
}

//! The gateways of shared prefixes: what follows where another one carries a prefix, and this node drained as one of them.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::checks::Checks;
use super::driver::Driver;
use super::outage::woken_text;
use crate::api::{
    Answer, ApiError, DrainRequest, DrainStatus, ErrorKind, GatewayList, GatewayStatus, Gravity, Problem, SCHEMA,
    SharedPrefixStatus, Timestamp,
};
use crate::control::gateway::{Cause, Fitness, Switch};
use crate::control::{HolderView, SharedPrefix};
use crate::platform::clock;
use crate::telemetry::EventKind;
use crate::telemetry::metrics::GatewaySnapshot;
use crate::time::{Instant, UnixTime};

/// How long after its last packet a flow counts as one that still passes: the keep-alives of most pools of connections are
/// no further apart.
const STILL_PASSES: Duration = Duration::from_secs(60);

/// This node as a gateway.
#[derive(Default)]
pub(super) struct Gateways {
    /// Since when it is drained, and since when what passes is counted.
    drained: Option<(UnixTime, Instant)>,
    /// What it looks at behind itself.
    pub(super) checks: Checks,
}

impl Driver {
    /// Another gateway carries a prefix, and the forwarding table says so already: flows that stand still go on by it.
    pub(super) fn follow_gateway(&mut self, network: IpNet, switch: Switch) {
        let Switch { from, to, cause } = switch;
        let woken = match (from, self.links.get(to), &self.dataplane) {
            (Some(from), Some(link), Some(dataplane)) => dataplane.move_flows(from, &network, &link.peer),
            _ => 0,
        };
        let name = self.name_of(to);
        let before = from.map(|from| self.name_of(from));
        let why = match (cause, &before) {
            (Cause::Priority, None) => "it has the highest priority of those that serve".to_owned(),
            (Cause::Priority, Some(before)) => format!("it serves and goes before {before}"),
            (Cause::Silence, Some(before)) => format!("{before} does not answer"),
            (Cause::Health, Some(before)) => format!("what lies behind {before} does not answer its check"),
            (Cause::Drained, Some(before)) => format!("{before} is drained"),
            (cause, _) => format!("the one before is {}", cause.name()),
        };
        let mut text = format!("carries {network} from now on: {why}");
        if woken > 0 {
            text.push_str(&format!("; {}", woken_text(woken)));
        }
        if before.is_some() {
            tracing::warn!(peer = %name, "{text}");
        } else {
            tracing::info!(peer = %name, "{text}");
        }
        self.note(EventKind::GatewayChanged, Some(name), text);
    }

    /// Takes up a drain from before a restart.
    pub(super) fn restore_drain(&mut self, since: Option<UnixTime>) {
        if let Some(since) = since {
            self.set_drain(Some(since));
        }
    }

    fn set_drain(&mut self, since: Option<UnixTime>) {
        let now = clock::now();
        self.gateways.drained = since.map(|since| (since, now));
        self.engine.set_drained(since.is_some(), now);
        self.drain();
    }

    /// Moves flows away from this node, or lets them come again; written down before anybody hears of it.
    pub(super) fn drain_gateway(&mut self, request: &DrainRequest) -> Answer<GatewayList> {
        let certificate = self.engine.certificate().certificate();
        if let Some(node) = &request.node
            && *node != certificate.name.as_str()
            && *node != certificate.node.to_string()
        {
            let message = format!("this node is {}: a gateway is drained on itself", certificate.name);
            return Err(ApiError::new(ErrorKind::NotFound, message).advise(format!("run meshctl drain on {node}")));
        }
        if !request.undo && certificate.shares.is_empty() {
            let message = format!("{} shares no prefix with another node", certificate.name);
            let advice = "have it signed with --route PREFIX --shared, and another node as well";
            return Err(ApiError::new(ErrorKind::Conflict, message).advise(advice));
        }
        let before = self.gateways.drained.map(|(since, _)| since);
        let since = (!request.undo).then(|| before.unwrap_or_else(clock::wall));
        if since != before {
            if !self.files.write_drained(since) {
                return Err(ApiError::new(ErrorKind::Internal, "it cannot be written down, so nothing was done")
                    .advise("see to the state directory's disk"));
            }
            let text = if request.undo { "this gateway takes flows again" } else { "this gateway is drained" };
            tracing::info!("{text}");
            self.note(EventKind::GatewayChanged, None, text);
            self.set_drain(since);
        }
        Ok(self.gateway_list())
    }

    /// The shared prefixes, and what still passes here where this node is drained.
    pub(super) fn gateway_list(&self) -> GatewayList {
        let (now, wall) = (clock::now(), clock::wall());
        let prefixes = self.engine.shared_prefixes(now).into_iter();
        GatewayList {
            schema: SCHEMA,
            now: Timestamp(wall),
            node: self.engine.certificate().certificate().name.to_string(),
            prefixes: prefixes.map(|prefix| self.prefix_status(&prefix, now, wall)).collect(),
            drain: self.drain_status(now),
            checks: self.gateways.checks.statuses(),
        }
    }

    /// The gateways of the shared prefixes, as monitors are told of them.
    pub(super) fn gateway_snapshots(&self, now: Instant) -> Vec<GatewaySnapshot> {
        let of = |prefix: &SharedPrefix| {
            let gateway = |view: &HolderView| GatewaySnapshot {
                prefix: prefix.network.to_string(),
                name: self.name_of(view.holder.node),
                in_use: prefix.carrier.is_some_and(|carrier| carrier.node == view.holder.node),
                fit: view.fitness == Fitness::Fit,
            };
            prefix.holders.iter().map(gateway).collect::<Vec<_>>()
        };
        self.engine.shared_prefixes(now).iter().flat_map(of).collect()
    }

    fn prefix_status(&self, prefix: &SharedPrefix, now: Instant, wall: UnixTime) -> SharedPrefixStatus {
        let ago = |at: Instant| Timestamp(wall - now.saturating_since(at));
        let own = self.engine.node();
        let gateway = |view: &HolderView| GatewayStatus {
            name: self.name_of(view.holder.node),
            node_id: view.holder.node.to_string(),
            priority: view.holder.priority.get(),
            is_self: view.holder.node == own,
            fitness: view.fitness.name().to_owned(),
            since: view.since.map(ago),
            returns_in_seconds: view
                .returns_at
                .filter(|at| view.fitness == Fitness::Fit && *at > now)
                .map(|at| at.saturating_since(now).as_secs()),
        };
        let mut holders: Vec<&HolderView> = prefix.holders.iter().collect();
        holders.sort_by_key(|view| (std::cmp::Reverse(view.holder.priority), view.holder.node));
        SharedPrefixStatus {
            prefix: prefix.network,
            carrier: prefix.carrier.map(|carrier| self.name_of(carrier.node)),
            cause: prefix.carrier.map(|carrier| carrier.cause.name().to_owned()),
            since: prefix.carrier.map(|carrier| ago(carrier.since)),
            gateways: holders.into_iter().map(gateway).collect(),
        }
    }

    fn drain_status(&self, now: Instant) -> Option<DrainStatus> {
        let (since, counted) = self.gateways.drained?;
        let shares = &self.engine.certificate().certificate().shares;
        let shared = |ip: IpAddr| shares.iter().any(|(network, _)| network.contains(&ip));
        let flows = self.dataplane.as_ref()?.flows().into_iter().flatten();
        let ours: Vec<_> = flows.filter(|flow| shared(flow.ends.near.ip()) && flow.last >= counted).collect();
        let last = ours.iter().map(|flow| flow.last).max().unwrap_or(counted);
        let lately = ours.iter().filter(|flow| now.saturating_since(flow.last) < STILL_PASSES);
        let quiet = now.saturating_since(last).as_secs_f64();
        Some(DrainStatus {
            since: Timestamp(since),
            flows: lately.clone().count() as u64,
            bytes: lately.map(|flow| flow.sent + flow.received).sum(),
            quiet_seconds: quiet,
            safe: quiet >= DrainStatus::SAFE_AFTER_SECONDS as f64,
        })
    }

    /// What is to be known of gateways: that this one is drained, and prefixes that nobody serves as wanted.
    pub(super) fn gateway_problems(&self, problems: &mut Vec<Problem>) {
        self.check_problems(problems);
        let mut add = |gravity, message: String, advice: &str, since| {
            let (kind, advice) = ("gateway".into(), advice.into());
            problems.push(Problem { gravity, kind, peer: None, message, advice, since });
        };
        let now = clock::now();
        if let Some((since, _)) = self.gateways.drained {
            let message = "this gateway is drained: flows go by others where these serve".to_owned();
            add(
                Gravity::Notice,
                message,
                "meshctl drain says what still passes; meshctl drain --undo",
                Some(since.into()),
            );
        }
        for prefix in self.engine.shared_prefixes(now) {
            let fit = prefix.holders.iter().filter(|view| view.fitness == Fitness::Fit).count();
            let how = |view: &HolderView| format!("{} is {}", self.name_of(view.holder.node), view.fitness.name());
            let how: Vec<String> = prefix.holders.iter().map(how).collect();
            if fit == 0 {
                let message = format!("no gateway of {} serves as it should: {}", prefix.network, how.join(", "));
                add(Gravity::Warning, message, "see meshctl gateways", None);
            }
        }
    }
}

//! What this node looks at behind itself as a gateway: a task for each target, and what the others are told of it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use rand_core::{OsRng, RngCore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, timeout};

use super::backend::call;
use super::driver::{Command, Driver};
use crate::api::{CheckedTarget, GatewayCheckStatus, Gravity, Problem, Timestamp};
use crate::config::{CheckTarget, Config, GatewayCheck};
use crate::control::check::Check;
use crate::platform::icmp::{self, Echo, EchoError};
use crate::platform::{clock, host_facts};
use crate::telemetry::EventKind;
use crate::telemetry::metrics::GatewayCheckSnapshot;
use crate::time::UnixTime;

/// How long a look waits at most, however seldom there is one: a local network answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of an echo: as `ping` sends them.
const ECHO_LEN: usize = icmp::HEADER_LEN + 56;

/// How a look came out.
#[derive(Clone, Debug)]
pub(super) enum Looked {
    /// It answered, after this time.
    Answered(Duration),
    /// It did not, for this reason.
    Silent(String),
    /// This process may not look, which says nothing about what is looked at.
    Forbidden(String),
}

/// The checks of this node.
#[derive(Default)]
pub(super) struct Checks {
    /// Where outcomes go; nothing before the start is complete.
    commands: Option<mpsc::Sender<Command>>,
    running: Vec<Running>,
}

/// The check of one prefix.
struct Running {
    settings: GatewayCheck,
    check: Check,
    /// Since when it fails, or answers again.
    since: Option<UnixTime>,
    /// How the last look at each target came out.
    last: Vec<Option<Looked>>,
    tasks: Vec<AbortHandle>,
}

impl Running {
    fn start(settings: &GatewayCheck, commands: &mpsc::Sender<Command>) -> Running {
        let targets = settings.check.iter().enumerate();
        let task = |(place, target): (usize, &CheckTarget)| {
            let watching = watch(settings.prefix, place, *target, settings.interval, commands.clone());
            tokio::spawn(watching).abort_handle()
        };
        Running {
            check: Check::new(settings.check.len(), settings.tries),
            since: None,
            last: vec![None; settings.check.len()],
            tasks: targets.map(task).collect(),
            settings: settings.clone(),
        }
    }

    /// Its targets and what is wrong with them.
    fn failures(&self) -> String {
        let failure = |(target, last): (&CheckTarget, &Option<Looked>)| match last {
            Some(Looked::Silent(why)) => format!("{target}: {why}"),
            _ => target.to_string(),
        };
        self.settings.check.iter().zip(&self.last).map(failure).collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Checks {
    fn failing(&self) -> BTreeSet<IpNet> {
        let failing = self.running.iter().filter(|running| running.check.is_failing());
        failing.map(|running| running.settings.prefix).collect()
    }

    /// The checks, as the local interface shows them.
    pub(super) fn statuses(&self) -> Vec<GatewayCheckStatus> {
        let target = |running: &Running, place: usize, target: &CheckTarget| {
            let (failure, answer) = match &running.last[place] {
                Some(Looked::Answered(after)) => (None, Some(after.as_secs_f64())),
                Some(Looked::Silent(why) | Looked::Forbidden(why)) => (Some(why.clone()), None),
                None => (None, None),
            };
            let answers = running.check.answers(place);
            CheckedTarget { target: target.to_string(), answers, failure, answer_seconds: answer }
        };
        let status = |running: &Running| GatewayCheckStatus {
            prefix: running.settings.prefix,
            failing: running.check.is_failing(),
            since: running.since.map(Timestamp),
            targets: running
                .settings
                .check
                .iter()
                .enumerate()
                .map(|(place, one)| target(running, place, one))
                .collect(),
        };
        self.running.iter().map(status).collect()
    }

    /// The checks, as monitors are told of them.
    pub(super) fn snapshots(&self) -> Vec<GatewayCheckSnapshot> {
        let targets = |running: &Running| {
            let target = |(place, target): (usize, &CheckTarget)| GatewayCheckSnapshot {
                prefix: running.settings.prefix.to_string(),
                target: target.to_string(),
                up: running.check.answers(place),
            };
            running.settings.check.iter().enumerate().map(target).collect::<Vec<_>>()
        };
        self.running.iter().flat_map(targets).collect()
    }
}

impl Driver {
    /// Begins to look at what the configuration names.
    pub(super) fn start_checks(&mut self, commands: mpsc::Sender<Command>) {
        self.gateways.checks.commands = Some(commands);
        let config = self.config.clone();
        self.apply_checks(&config);
    }

    /// Makes the checks those of a configuration; those that stay as they are go on.
    pub(super) fn apply_checks(&mut self, config: &Config) {
        let checks = &mut self.gateways.checks;
        let Some(commands) = &checks.commands else { return };
        let mut old = std::mem::take(&mut checks.running);
        for wanted in &config.gateway_checks {
            let known = old.iter().position(|running| running.settings == *wanted);
            let running = known.map(|place| old.swap_remove(place));
            checks.running.push(running.unwrap_or_else(|| Running::start(wanted, commands)));
        }
        drop(old);
        self.tell_checks();
    }

    fn tell_checks(&mut self) {
        self.engine.set_failing(self.gateways.checks.failing(), clock::now());
        self.drain();
    }

    /// A look behind this gateway is over.
    fn looked_behind(&mut self, prefix: IpNet, place: usize, looked: Looked) {
        let checks = &mut self.gateways.checks;
        let Some(running) = checks.running.iter_mut().find(|running| running.settings.prefix == prefix) else { return };
        let Some(last) = running.last.get_mut(place) else { return };
        let good = match &looked {
            Looked::Answered(_) => Some(true),
            Looked::Silent(_) => Some(false),
            Looked::Forbidden(_) => None,
        };
        *last = Some(looked);
        let Some(failing) = good.and_then(|good| running.check.looked(place, good)) else { return };
        running.since = Some(clock::wall());
        let text = match failing {
            true => format!("nothing behind this gateway answers for {prefix}: {}", running.failures()),
            false => format!("what lies behind this gateway answers for {prefix} again"),
        };
        if failing {
            tracing::warn!("{text}");
        } else {
            tracing::info!("{text}");
        }
        self.note(EventKind::GatewayChanged, None, text);
        self.tell_checks();
    }

    /// What is wrong behind this gateway, or with it.
    pub(super) fn check_problems(&self, problems: &mut Vec<Problem>) {
        let certificate = self.engine.certificate().certificate();
        let mut add = |message: String, advice: &str, since: Option<UnixTime>| {
            let (kind, advice, since) = ("gateway".into(), advice.into(), since.map(Timestamp));
            problems.push(Problem { gravity: Gravity::Warning, kind, peer: None, message, advice, since });
        };
        for running in &self.gateways.checks.running {
            let prefix = running.settings.prefix;
            if running.check.is_failing() {
                let message = format!("nothing behind this gateway answers for {prefix}: {}", running.failures());
                let advice = "see to its link there; the others send by another gateway that serves: meshctl gateways";
                add(message, advice, running.since);
            }
            if certificate.shares.get(&prefix).is_none() {
                let message = format!(
                    "[[gateway_check]] {prefix}: this node's certificate does not share it, so its check moves nothing"
                );
                add(message, "take the entry out, or have the node signed with --route PREFIX --shared", None);
            }
            for (target, last) in running.settings.check.iter().zip(&running.last) {
                if let Some(Looked::Forbidden(why)) = last {
                    let message = format!("[[gateway_check]] {prefix}: {target} cannot be looked at: {why}");
                    add(message, "or check a TCP port: check = [\"ADDRESS:PORT\"]", None);
                }
            }
        }
        for message in
            unfit_host(certificate.shares.iter().map(|(prefix, _)| prefix), &self.interface, host_facts::parameter)
        {
            let advice = "ln -s /usr/share/meshd/60-meshd-gateway.conf /etc/sysctl.d/, then sysctl --system";
            add(message, advice, None);
        }
    }
}

/// What this host's kernel does not do that a gateway of these prefixes needs.
fn unfit_host(
    shared: impl Iterator<Item = IpNet>,
    interface: &str,
    parameter: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut messages = Vec::new();
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = shared.partition(|prefix| prefix.addr().is_ipv4());
    for (prefixes, name) in [(&v4, "net.ipv4.ip_forward"), (&v6, "net.ipv6.conf.all.forwarding")] {
        if !prefixes.is_empty() && parameter(name).as_deref() == Some("0") {
            messages.push(format!("this gateway does not forward: {name} is 0"));
        }
    }
    // Of the two the greater holds; 1 is strict, 2 is loose.
    let names = ["all", interface].map(|which| format!("net.ipv4.conf.{which}.rp_filter"));
    let strictest = names.iter().filter_map(|name| Some((parameter(name)?.parse::<u8>().ok()?, name))).max();
    if let Some((1, name)) = strictest.filter(|_| !v4.is_empty()) {
        messages.push(format!("this gateway drops what the other one sends from their network: {name} is 1 (strict)"));
    }
    messages
}

/// Looks at a target for ever.
async fn watch(prefix: IpNet, place: usize, target: CheckTarget, interval: Duration, commands: mpsc::Sender<Command>) {
    let mut due = tokio::time::interval(interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let looked = look(target, interval.min(PATIENCE)).await;
        if call(&commands, move |driver| driver.looked_behind(prefix, place, looked)).await.is_err() {
            return;
        }
    }
}

/// Looks at a target once.
async fn look(target: CheckTarget, patience: Duration) -> Looked {
    let silent = || Looked::Silent(format!("no answer within {} ms", patience.as_millis()));
    match target {
        CheckTarget::Connect(address) => {
            let began = clock::now();
            match timeout(patience, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Nobody is to wait for an end of what carried nothing. Where it is refused, an orderly end is what remains.
                    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    Looked::Answered(clock::now().saturating_since(began))
                }
                Ok(Err(error)) => Looked::Silent(error.to_string()),
                Err(_) => silent(),
            }
        }
        CheckTarget::Echo(address) => {
            let mark = OsRng.next_u64();
            match tokio::task::spawn_blocking(move || echo(address, mark, patience)).await {
                Ok(Ok(Some(after))) => Looked::Answered(after),
                Ok(Ok(None)) => silent(),
                Ok(Err(error @ EchoError::NotPermitted)) => Looked::Forbidden(error.to_string()),
                Ok(Err(EchoError::Refused { source, .. })) => Looked::Silent(source.to_string()),
                Err(error) => Looked::Forbidden(io::Error::from(error).to_string()),
            }
        }
    }
}

fn echo(address: IpAddr, mark: u64, patience: Duration) -> Result<Option<Duration>, EchoError> {
    Echo::open(address, mark)?.round_trip(1, ECHO_LEN, patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_listens_answers_and_one_that_does_not_says_why() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = CheckTarget::Connect(listener.local_addr().unwrap());
        let patience = Duration::from_secs(10);
        assert!(matches!(look(target, patience).await, Looked::Answered(_)));
        drop(listener);
        let Looked::Silent(why) = look(target, patience).await else { panic!("nobody listens any more") };
        assert!(why.contains("refused"), "{why}");
    }

    #[test]
    fn a_host_that_does_not_forward_or_looks_back_too_strictly_is_told() {
        let told = |shared: &[&str], set: &[(&str, &str)]| {
            let parameter = |name: &str| {
                Some(set.iter().find(|(known, _)| *known == name).map_or("2", |(_, value)| value).to_owned())
            };
            unfit_host(shared.iter().map(|prefix| prefix.parse().unwrap()), "mesh0", parameter).join("; ")
        };
        let v4 = ["10.20.0.0/16"];
        assert_eq!(told(&v4, &[]), "");
        assert_eq!(told(&[], &[("net.ipv4.ip_forward", "0")]), "", "it shares nothing");
        let forwarding = told(&v4, &[("net.ipv4.ip_forward", "0"), ("net.ipv6.conf.all.forwarding", "0")]);
        assert_eq!(forwarding, "this gateway does not forward: net.ipv4.ip_forward is 0");
        let (all, own) = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.mesh0.rp_filter");
        assert!(told(&v4, &[(all, "0"), (own, "1")]).contains("mesh0.rp_filter is 1"));
        assert!(told(&v4, &[(all, "1"), (own, "0")]).contains("all.rp_filter is 1"));
        assert_eq!(told(&v4, &[(all, "1"), (own, "2")]), "", "the greater holds");
        assert_eq!(told(&["fd00:7::/48"], &[(all, "1"), (own, "1")]), "", "there is none for IPv6");
        assert!(told(&["fd00:7::/48"], &[("net.ipv6.conf.all.forwarding", "0")]).contains("net.ipv6"));
    }
}

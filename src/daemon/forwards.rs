//! The forwards of this node: started, reloaded, shown, and switched on an operator's word.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::backend::call;
use super::driver::{Command, Driver};
use super::switches::Switch;
use crate::api::{
    Answer, ApiError, ErrorKind, ForwardConnection, ForwardList, ForwardStatus, ForwardTarget, SCHEMA, SwitchRequest,
    Switched, TargetHealth, Timestamp,
};
use crate::config::{self, Config, Target, nearest};
use crate::forward::{Connection, Forward, Health, Picture, Service, ServiceError, Standing, SwitchError};
use crate::identity::NodeName;
use crate::platform::clock;
use crate::telemetry::EventKind;
use crate::telemetry::metrics::{ForwardSnapshot, ForwardTargetSnapshot};

/// The forwards, and what was switched by hand.
#[derive(Default)]
pub(super) struct Forwards {
    /// Without a forward there is no thread.
    service: Option<Service>,
    switches: BTreeMap<NodeName, Switch>,
    /// Why there are none although the configuration has some.
    failure: Option<String>,
}

impl Forwards {
    /// Takes what was switched before the daemon started.
    pub(super) fn new(switches: BTreeMap<NodeName, Switch>) -> Self {
        Forwards { service: None, switches, failure: None }
    }

    /// Makes the forwards of a daemon that starts. Where one of them cannot be had, there is none until a reload, and the
    /// status says so: a mesh must not stand still because something took a port.
    pub(super) fn start(&mut self, config: &Config) {
        if let Err(error) = self.apply(config) {
            tracing::error!("no forward is there until it is mended and the configuration read again: {error}");
            self.failure = Some(error.to_string());
        }
    }

    /// Makes the forwards those of a configuration; what was switched by hand stays so, as long as it is a target.
    ///
    /// # Errors
    /// A socket or the thread cannot be had; then nothing has changed.
    pub(super) fn apply(&mut self, config: &Config) -> Result<(), ServiceError> {
        if self.service.is_none() && !config.forwards.is_empty() {
            self.service = Some(Service::start()?);
        }
        let Some(service) = &mut self.service else { return Ok(()) };
        service.apply(&config.forwards)?;
        for (name, forward) in service.iter() {
            if let Some(switch) = self.switches.get(name)
                && let Err(problem) = forward.restore(&switch.now.0, switch.now.1)
            {
                tracing::warn!(forward = %name, "it was switched by hand, but {problem} any more");
            }
        }
        self.failure = None;
        Ok(())
    }

    fn get(&self, name: &str) -> Result<&Arc<Forward>, ApiError> {
        let known = || self.service.iter().flat_map(Service::iter).map(|(name, _)| name.as_str());
        let advice = || match nearest(name, known()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`meshctl forward` lists them".to_owned(),
        };
        let missing = || ApiError::new(ErrorKind::NotFound, format!("there is no forward `{name}`")).advise(advice());
        self.service.as_ref().and_then(|service| service.get(name)).ok_or_else(missing)
    }

    /// The target that each forward uses now.
    pub(super) fn targets(&self) -> Vec<(NodeName, Target)> {
        let forwards = self.service.iter().flat_map(Service::iter);
        forwards.filter_map(|(name, forward)| Some((name.clone(), forward.used()?.0))).collect()
    }

    fn statuses(&self) -> Vec<ForwardStatus> {
        let forwards = self.service.iter().flat_map(Service::iter);
        forwards.map(|(name, forward)| status_of(&forward.picture(), self.switches.get(name))).collect()
    }

    /// What monitors are told of the forwards.
    pub(super) fn snapshots(&self) -> Vec<ForwardSnapshot> {
        let forwards = self.service.iter().flat_map(Service::iter);
        forwards.map(|(_, forward)| snapshot_of(&forward.picture())).collect()
    }

    /// What is wrong with forwards, or other than in the configuration: whether it needs doing, what it is, and what to do.
    pub(super) fn problems(&self) -> Vec<(bool, String, String)> {
        let mut problems = Vec::new();
        if let Some(failure) = &self.failure {
            problems.push((true, failure.clone(), "no forward is there until it is mended: meshctl reload".into()));
        }
        for (name, forward) in self.service.iter().flat_map(Service::iter) {
            let Standing { settings, choice, health, failure } = forward.standing();
            let (Some(used), Some(first)) = (settings.targets.get(choice.target), settings.targets.first()) else {
                continue;
            };
            if health == Health::Down {
                let why = failure.as_deref().unwrap_or("it does not answer");
                let advice = format!("see to it, or: meshctl forward switch {name} --to TARGET");
                problems.push((true, format!("forward {name}: {used} takes no connections: {why}"), advice));
            } else if choice.target != 0 {
                let how = if choice.pinned { "was switched" } else { "moved" };
                let message = format!("forward {name} {how} to {used}, the configuration has {first} first");
                let advice = format!(
                    "if it is to stay so, put it first there; else: meshctl forward switch {name} --to {first}"
                );
                problems.push((false, message, advice));
            }
        }
        problems
    }
}

impl Driver {
    /// Makes the forwards those of a configuration: the last part of a reload that may refuse, and the first to change anything.
    ///
    /// # Errors
    /// As [`Forwards::apply`].
    pub(super) fn apply_forwards(&mut self, config: &Config) -> Result<(), ServiceError> {
        self.forwards.apply(config)?;
        self.name_targets();
        Ok(())
    }

    /// Says which addresses the targets have that are members.
    pub(super) fn name_targets(&self) {
        let Some(service) = &self.forwards.service else { return };
        let own = self.engine.certificate().certificate();
        let members = self.engine.membership().members().map(|(_, member)| member.certificate());
        let address =
            |certificate: &crate::identity::Certificate| (certificate.name.clone(), IpAddr::V4(certificate.address_v4));
        service.set_addresses(members.map(address).chain([address(own)]).collect());
    }

    /// The forwards and their connections.
    pub(super) fn forward_list(&self) -> ForwardList {
        ForwardList { schema: SCHEMA, now: Timestamp(clock::wall()), forwards: self.forwards.statuses() }
    }

    /// Finds what a switch is about: the forward, its target, and whether that stays whatever its health.
    fn find_switch(&self, request: &SwitchRequest) -> Answer<(Arc<Forward>, Target, bool)> {
        let forward = Arc::clone(self.forwards.get(&request.forward)?);
        let Some(text) = &request.to else {
            let name = &request.forward;
            let last = self.forwards.switches.iter().find(|(known, _)| known.as_str() == name).map(|(_, last)| last);
            let nothing = || ApiError::new(ErrorKind::Conflict, format!("forward {name} was not switched by hand"));
            let (target, pinned) = last.ok_or_else(nothing)?.before.clone();
            return Ok((forward, target, pinned));
        };
        let settings = forward.settings();
        let target: Option<&Target> = settings.targets.iter().find(|target| target.to_string() == *text);
        // A node's name alone is enough where it is one target's.
        let named = || {
            let mut hosts = settings.targets.iter().filter(|target| host_of(target) == *text);
            hosts.next().filter(|_| hosts.next().is_none())
        };
        let target = target.or_else(named).cloned().ok_or_else(|| no_target(text, &settings))?;
        Ok((forward, target, true))
    }

    /// Writes a switch down before it is made. What cannot be written down is not made: a restart would undo it in silence.
    fn record_switch(&mut self, forward: &Forward, target: &Target, pinned: bool) -> Answer<String> {
        let settings = forward.settings();
        let lost = || ApiError::new(ErrorKind::Conflict, format!("forward {} is gone", settings.name));
        let before = forward.used().ok_or_else(lost)?;
        self.forwards.get(settings.name.as_str())?;
        let from = before.0.to_string();
        let now = (target.clone(), pinned);
        if before == now {
            return Ok(from);
        }
        let mut switches = self.forwards.switches.clone();
        // Those of forwards that are gone have had their time; the file stays small.
        switches.retain(|name, _| self.forwards.get(name.as_str()).is_ok());
        switches.insert(settings.name.clone(), Switch { now, before, at: clock::wall() });
        if !self.files.write_switches(&switches) {
            let advice = "nothing was switched; see `meshctl status` for why, and make room or mend the disk";
            return Err(ApiError::new(ErrorKind::Internal, "the switch could not be written down").advise(advice));
        }
        self.forwards.switches = switches;
        let text = format!("forward {} switched from {from} to {target}", settings.name);
        tracing::info!("{text}");
        self.note(EventKind::Switched, None, text);
        Ok(from)
    }
}

/// Switches a forward: looks at the target, writes the switch down, and makes it. All but the writing is done on the
/// forwards' own thread, and goes on to its end also where the caller goes.
pub(super) async fn switch(commands: &mpsc::Sender<Command>, request: SwitchRequest) -> Answer<Switched> {
    let found = call(commands, {
        let request = request.clone();
        move |driver| {
            let found = driver.find_switch(&request)?;
            let handle = driver.forwards.service.as_ref().map(|service| service.handle().clone());
            Ok::<_, ApiError>((found, handle))
        }
    });
    let ((forward, target, pinned), handle) = found.await??;
    let stopping = || ApiError::new(ErrorKind::Busy, "the daemon is stopping");
    let handle = handle.ok_or_else(stopping)?;
    let commands = commands.clone();
    let switching = handle.spawn(async move {
        if !request.force {
            forward.probe(&target).await.map_err(refused)?;
        }
        let (recorded, chosen) = (Arc::clone(&forward), target.clone());
        let from = call(&commands, move |driver| driver.record_switch(&recorded, &chosen, pinned)).await??;
        let old_connections = forward.switch(&target, pinned, request.close).await.map_err(refused)?;
        // Whoever asked may look the forward's name up next.
        call(&commands, Driver::publish_names).await?;
        let to = target.to_string();
        Ok(Switched { schema: SCHEMA, forward: request.forward, from, to, old_connections })
    });
    switching.await.map_err(|_| stopping())?
}

fn refused(error: SwitchError) -> ApiError {
    let advice = match &error {
        SwitchError::NoTarget(_) => "add it to the forward's targets and reload",
        SwitchError::Unreachable { .. } => "nothing was switched; --force switches all the same",
    };
    ApiError::new(ErrorKind::Conflict, error.to_string()).advise(advice)
}

fn no_target(text: &str, settings: &config::Forward) -> ApiError {
    let targets: Vec<String> = settings.targets.iter().map(ToString::to_string).collect();
    let message = format!("`{text}` is no target of the forward {}", settings.name);
    ApiError::new(ErrorKind::NotFound, message).advise(format!("it has {}", targets.join(", ")))
}

/// A target without its port.
fn host_of(target: &Target) -> String {
    match &target.host {
        config::TargetHost::Node(name) => name.to_string(),
        config::TargetHost::Address(address) => address.to_string(),
    }
}

fn status_of(picture: &Picture, switch: Option<&Switch>) -> ForwardStatus {
    let settings = &picture.settings;
    let used = picture.choice.target;
    ForwardStatus {
        name: settings.name.to_string(),
        listen: settings.listen.clone(),
        target: settings.targets.get(used).map(ToString::to_string).unwrap_or_default(),
        pinned: picture.choice.pinned,
        differs: used != 0,
        switched: switch.map(|switch| Timestamp(switch.at)),
        previous: switch.map(|switch| switch.before.0.to_string()),
        refused: picture.refused,
        targets: picture.targets.iter().enumerate().map(|(place, target)| target_of(target, place == used)).collect(),
        connections: picture.connections.iter().take(ForwardStatus::CONNECTION_LIMIT).map(connection_of).collect(),
    }
}

fn target_of(picture: &crate::forward::TargetPicture, in_use: bool) -> ForwardTarget {
    ForwardTarget {
        target: picture.target.to_string(),
        address: picture.address,
        in_use,
        health: match picture.health {
            Health::Unknown => TargetHealth::Unknown,
            Health::Up => TargetHealth::Up,
            Health::Down => TargetHealth::Down,
        },
        failure: picture.failure.clone(),
        open: picture.open,
        opened: picture.opened,
        failed: picture.failed,
        to_target_bytes: picture.to_target,
        to_client_bytes: picture.to_client,
        connect_p50_seconds: picture.connect.map(|(p50, _)| p50.as_secs_f64()),
        connect_p99_seconds: picture.connect.map(|(_, p99)| p99.as_secs_f64()),
    }
}

fn snapshot_of(picture: &Picture) -> ForwardSnapshot {
    let target = |(place, target): (usize, &crate::forward::TargetPicture)| ForwardTargetSnapshot {
        target: target.target.to_string(),
        up: match target.health {
            Health::Unknown => None,
            Health::Up => Some(true),
            Health::Down => Some(false),
        },
        in_use: place == picture.choice.target,
        open: target.open,
        made: target.opened,
        failed: target.failed,
        bytes: [target.to_target, target.to_client],
        connects: target.connects.clone(),
    };
    ForwardSnapshot {
        name: picture.settings.name.to_string(),
        refused: picture.refused,
        targets: picture.targets.iter().enumerate().map(target).collect(),
    }
}

fn connection_of(connection: &Connection) -> ForwardConnection {
    ForwardConnection {
        client: connection.client,
        target: connection.target.to_string(),
        age_seconds: connection.age.as_secs(),
        idle_seconds: connection.idle.as_secs(),
        to_target_bytes: connection.to_target,
        to_client_bytes: connection.to_client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;

    #[test]
    fn a_port_that_is_taken_is_a_problem_and_no_end() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let minimal = include_str!("../../fuzz/corpus/config/minimal");
        let text =
            format!("{minimal}[[forward]]\nname = \"orders\"\nlisten = [\"{address}\"]\ntargets = [\"db1:3306\"]\n");
        let config = Config::parse(&text, Path::new("/srv/mesh/meshd.toml")).unwrap();
        let mut forwards = Forwards::new(BTreeMap::new());
        forwards.start(&config);
        let [(true, message, _)] = &forwards.problems()[..] else { panic!("one problem: {:?}", forwards.problems()) };
        assert!(message.contains(&format!("[[forward]] orders: cannot listen on {address}")), "{message}");
        drop(taken);
        forwards.apply(&config).unwrap();
        assert_eq!(forwards.problems(), []);
        TcpStream::connect(address).unwrap();
    }
}

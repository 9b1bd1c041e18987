//! Taking over a changed configuration: the plan, which touches nothing, then exactly that or nothing.

use super::config_files::{self, ConfigError};
use super::driver::Driver;
use super::stock::{Stock, read_declared};
use super::trust::Trust;
use crate::api::{
    Answer, ApiError, ErrorKind, Gravity, Plan, PlannedAction, PlannedChange, PlannedEntry, Problem, SCHEMA,
    TouchedLink,
};
use crate::config::{Change, Config, Effect, Entry, EntryChange, diff};
use crate::platform::clock;
use crate::telemetry::EventKind;
use crate::time::UnixTime;

/// A changed configuration that was not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    since: UnixTime,
    /// Why, for everybody who may see the status; what the text says is left out, for it may be a secret.
    why: String,
    advice: &'static str,
}

impl Refusal {
    /// The same, for the status.
    pub(super) fn problem(&self) -> Problem {
        Problem {
            gravity: Gravity::Warning,
            kind: "reload_refused".into(),
            peer: None,
            message: format!("the changed configuration was not taken over: {}", self.why),
            advice: self.advice.into(),
            since: Some(self.since.into()),
        }
    }
}

/// Why a changed configuration is not taken over.
#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0} can only change at a restart")]
    NeedsRestart(String),
    #[error("{0}")]
    Unfit(String),
}

impl Reason {
    fn unfit(why: impl ToString) -> Self {
        Reason::Unfit(why.to_string())
    }

    fn refusal(&self, since: UnixTime) -> Refusal {
        let (why, advice) = match self {
            Reason::Config(ConfigError::Invalid(problems)) => {
                (format!("something is wrong at {}", problems.place()), "see meshctl check; then meshctl reload")
            }
            Reason::NeedsRestart(_) => (self.to_string(), "take it over with meshctl restart"),
            Reason::Config(_) | Reason::Unfit(_) => (self.to_string(), "mend it; then meshctl reload"),
        };
        Refusal { since, why, advice }
    }
}

/// A changed configuration that was read and checked, and not taken over yet.
struct Ready {
    config: Config,
    stocks: Vec<Stock>,
    changes: Vec<Change>,
    trust: Trust,
}

impl Ready {
    /// The keys that a running daemon cannot take.
    fn restart_keys(&self) -> String {
        let keys = self.changes.iter().filter(|change| change.effect() == Effect::NeedsRestart).map(Change::key);
        keys.collect::<Vec<_>>().join(", ")
    }
}

impl Driver {
    /// Says what a reload would take over from the files as they are now, and changes nothing.
    ///
    /// # Errors
    /// They cannot be taken over at all. What they say is left out, as anybody who may see the status may ask this.
    pub(super) fn plan(&self) -> Answer<Plan> {
        match self.read_again() {
            Ok(ready) => Ok(self.plan_of(&ready)),
            Err(reason) => {
                let Refusal { why, advice, .. } = reason.refusal(clock::wall());
                Err(ApiError::new(ErrorKind::Conflict, format!("a reload would be refused: {why}")).advise(advice))
            }
        }
    }

    /// Reads the configuration again and takes what changed, or refuses it whole and goes on as before.
    ///
    /// # Errors
    /// It was refused, with everything that is wrong.
    pub(super) fn reload(&mut self) -> Answer<Plan> {
        self.service.reloading();
        let answer = match self.take_over() {
            Ok(plan) => {
                let changes = plan.changes.len();
                tracing::info!("reloaded: {changes} settings changed");
                self.refusal = None;
                self.note(EventKind::Reloaded, None, format!("{changes} settings changed"));
                Ok(plan)
            }
            Err(reason) => {
                tracing::error!("not reloaded, everything goes on as it was: {reason}");
                let refusal = reason.refusal(clock::wall());
                let message = format!("not reloaded, everything goes on as it was: {reason}");
                let refused = ApiError::new(ErrorKind::Conflict, message).advise(refusal.advice);
                self.note(EventKind::ReloadRefused, None, refusal.why.clone());
                self.refusal = Some(refusal);
                Err(refused)
            }
        };
        self.report_ready();
        answer
    }

    fn read_again(&self) -> Result<Ready, Reason> {
        let config = config_files::read(&self.config_path)?;
        let changes = diff(&self.config, &config);
        let certificate = self.engine.certificate().certificate();
        let stocks = read_declared(&config, certificate).map_err(Reason::unfit)?;
        super::pages::check(&config, certificate).map_err(Reason::unfit)?;
        super::names::check(&config, certificate).map_err(Reason::unfit)?;
        if config.lockdown.is_some() {
            super::firewall::fit("[lockdown]", &self.interface).map_err(Reason::unfit)?;
        }
        if config.gateway.masquerade {
            super::firewall::fit("gateway.masquerade", &self.interface).map_err(Reason::unfit)?;
        }
        let trust = self.read_trust(&config).map_err(Reason::Unfit)?;
        Ok(Ready { config, stocks, changes, trust })
    }

    fn plan_of(&self, ready: &Ready) -> Plan {
        let mut changes: Vec<PlannedChange> =
            ready.changes.iter().map(|change| planned(change, &self.config)).collect();
        let mut touched = self.touched(&self.stock_difference(&ready.stocks));
        // A pre-shared key's file may be other than before, although the configuration is not.
        for link in &touched {
            add_entry(&mut changes, link);
        }
        ready.trust.add_to(&mut changes, &mut touched);
        let known = touched.iter().filter(|link| link.action != PlannedAction::Add).count();
        let untouched = self.links.iter().count().saturating_sub(known) as u64;
        Plan { schema: SCHEMA, changes, touched, untouched }
    }

    /// Takes over what changed in the configuration.
    fn take_over(&mut self) -> Result<Plan, Reason> {
        let ready = self.read_again()?;
        let restart = ready.restart_keys();
        if !restart.is_empty() {
            return Err(Reason::NeedsRestart(restart));
        }
        let plan = self.plan_of(&ready);
        let Ready { config: new, stocks, trust, .. } = ready;
        self.apply_forwards(&new).map_err(Reason::unfit)?;
        self.take_trust(trust).map_err(Reason::Unfit)?;
        let (now, wall) = (clock::now(), clock::wall());
        self.engine.set_probe_interval(new.probe.interval, now);
        self.engine.set_post_quantum(new.tunnel.pq, new.tunnel.pq_renewal, now, wall);
        self.engine.set_critical_tags(new.probe.critical_tags.clone(), now);
        self.engine.set_bootstrap(super::startup::bootstrap(&new), now);
        let endpoints = super::underlay::endpoints(&new, self.bound, &self.interface);
        self.engine.set_endpoints(endpoints, now, wall);
        super::startup::set_log_level(new.log.level);
        self.stocks = stocks;
        self.declare_stocks();
        if let Some(pages) = &mut self.pages {
            pages.serve(&new);
        }
        self.configure_alerts(&new, now, wall);
        self.apply_checks(&new);
        self.take_config(new);
        self.publish_names();
        self.take_lockdown();
        self.take_gateway();
        Ok(plan)
    }
}

/// A change as it is told; `old` is what it changes.
fn planned(change: &Change, old: &Config) -> PlannedChange {
    let entry = |entry: Entry| {
        let action = match entry.change {
            EntryChange::Added => PlannedAction::Add,
            EntryChange::Changed => PlannedAction::Change,
            EntryChange::Removed => PlannedAction::Remove,
        };
        PlannedEntry { action, name: entry.name }
    };
    PlannedChange {
        key: change.key().to_owned(),
        needs_restart: change.effect() == Effect::NeedsRestart,
        entries: change.setting.entries(old).into_iter().map(entry).collect(),
    }
}

/// Has the changes name a link that they touch.
fn add_entry(changes: &mut Vec<PlannedChange>, link: &TouchedLink) {
    let key = "wireguard";
    let place = changes.iter().position(|change| change.key == key).unwrap_or_else(|| {
        changes.push(PlannedChange { key: key.to_owned(), needs_restart: false, entries: Vec::new() });
        changes.len() - 1
    });
    let entries = &mut changes[place].entries;
    if !entries.iter().any(|entry| entry.name == link.peer) {
        entries.push(PlannedEntry { action: link.action, name: link.peer.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_link_is_named_by_the_change_that_touches_it() {
        let link = |peer: &str, action| TouchedLink { peer: peer.into(), action };
        let mut changes = Vec::new();
        // Only its key's file is other than before.
        add_entry(&mut changes, &link("phone", PlannedAction::Change));
        let told = |changes: &[PlannedChange]| {
            changes.iter().map(|change| (change.key.clone(), change.entries.len())).collect::<Vec<_>>()
        };
        assert_eq!(told(&changes), [("wireguard".to_owned(), 1)]);
        add_entry(&mut changes, &link("phone", PlannedAction::Change));
        assert_eq!(told(&changes), [("wireguard".to_owned(), 1)]);
        add_entry(&mut changes, &link("router", PlannedAction::Remove));
        assert_eq!(told(&changes), [("wireguard".to_owned(), 2)]);
    }

    #[test]
    fn a_refusal_says_where_and_what_next_and_quotes_nothing() {
        let text = "[[receiver]]\nurl = T0PSECRET\n[log]\nlevel = T0PSECRET\n";
        let problems = Config::parse(text, Path::new("/etc/meshd/meshd.toml")).unwrap_err();
        let reason = Reason::Config(ConfigError::Invalid(problems));
        let problem = reason.refusal(UnixTime::from_secs(1_800_000_000)).problem();
        assert_eq!(
            problem.message,
            "the changed configuration was not taken over: something is wrong at /etc/meshd/meshd.toml:2 and 1 more place"
        );
        assert!(problem.advice.contains("meshctl check"), "{}", problem.advice);
        let problem =
            Reason::NeedsRestart("interface.mtu".into()).refusal(UnixTime::from_secs(1_800_000_000)).problem();
        assert!(problem.message.ends_with("interface.mtu can only change at a restart"), "{}", problem.message);
        assert!(problem.advice.contains("meshctl restart"), "{}", problem.advice);
    }
}

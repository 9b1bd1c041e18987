//! Taking over a changed configuration.

use super::config_files::{self, ConfigError};
use super::driver::Driver;
use super::stock::read_declared;
use crate::api::{Gravity, Problem};
use crate::config::{Change, Effect, diff};
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
            Reason::Config(ConfigError::Invalid(problems)) => (
                format!("something is wrong at {}", problems.place()),
                "see meshctl check; then systemctl reload meshd",
            ),
            Reason::NeedsRestart(_) => (self.to_string(), "take it over with meshctl restart"),
            Reason::Config(_) | Reason::Unfit(_) => (self.to_string(), "mend it; then systemctl reload meshd"),
        };
        Refusal { since, why, advice }
    }
}

impl Driver {
    /// Reads the configuration again and takes what changed, or refuses it whole and goes on as before.
    pub(super) fn reload(&mut self) {
        match self.take_over() {
            Ok(changes) => {
                tracing::info!("reloaded: {changes} settings changed");
                self.refusal = None;
                self.note(EventKind::Reloaded, None, format!("{changes} settings changed"));
            }
            Err(reason) => {
                tracing::error!("not reloaded, everything goes on as it was: {reason}");
                let refusal = reason.refusal(clock::wall());
                self.note(EventKind::ReloadRefused, None, refusal.why.clone());
                self.refusal = Some(refusal);
            }
        }
    }

    /// Takes over what changed in the configuration; returns how many settings did.
    fn take_over(&mut self) -> Result<usize, Reason> {
        let new = config_files::read(&self.config_path)?;
        let changes = diff(&self.config, &new);
        let restart: Vec<&str> =
            changes.iter().filter(|change| change.effect() == Effect::NeedsRestart).map(Change::key).collect();
        if !restart.is_empty() {
            return Err(Reason::NeedsRestart(restart.join(", ")));
        }
        let stocks = read_declared(&new, self.engine.certificate().certificate()).map_err(Reason::unfit)?;
        super::pages::check(&new, self.engine.certificate().certificate()).map_err(Reason::unfit)?;
        self.apply_forwards(&new).map_err(Reason::unfit)?;
        let (now, wall) = (clock::now(), clock::wall());
        self.engine.set_probe_interval(new.probe.interval, now);
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
        self.take_config(new);
        Ok(changes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

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

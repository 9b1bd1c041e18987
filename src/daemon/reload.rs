//! Taking over a changed configuration.

use super::driver::Driver;
use super::stock::read_declared;
use crate::config::{Change, Effect, diff};
use crate::platform::clock;
use crate::telemetry::EventKind;

impl Driver {
    /// Reads the configuration again and takes what changed, or refuses it whole and goes on as before.
    pub(super) fn reload(&mut self) {
        let new = match super::config_files::read(&self.config_path) {
            Ok(new) => new,
            Err(problem) => return tracing::error!("not reloaded, everything goes on as it was: {problem}"),
        };
        let changes = diff(&self.config, &new);
        let restart: Vec<&str> =
            changes.iter().filter(|change| change.effect() == Effect::NeedsRestart).map(Change::key).collect();
        if !restart.is_empty() {
            let keys = restart.join(", ");
            return tracing::error!("not reloaded, everything goes on as it was: {keys} can only change at a restart");
        }
        let stocks = match read_declared(&new, self.engine.certificate().certificate()) {
            Ok(stocks) => stocks,
            Err(problem) => return tracing::error!("not reloaded, everything goes on as it was: {problem}"),
        };
        if let Err(problem) = super::pages::check(&new, self.engine.certificate().certificate()) {
            return tracing::error!("not reloaded, everything goes on as it was: {problem}");
        }
        if let Err(problem) = self.apply_forwards(&new) {
            return tracing::error!("not reloaded, everything goes on as it was: {problem}");
        }
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
        tracing::info!("reloaded: {} settings changed", changes.len());
        self.note(EventKind::Reloaded, None, format!("{} settings changed", changes.len()));
    }
}

//! The hub of what is seen: every measurement, every change of a link's state and every noted event passes here once, on
//! its way to whoever keeps or shows it.
//!
//! Whoever wants to know of them is a field of [`Monitor`] and is called from the three methods that take them in. Nobody
//! here decides anything, and nobody here may wait: what needs a disk or a network has a bounded queue and a thread or task
//! of its own behind it.

use std::time::Duration;

use super::links::Links;
use crate::control::measurement::Measurement;
use crate::control::probe::LinkState;
use crate::identity::NodeId;
use crate::telemetry::{EventKind, EventRing, StepChange};
use crate::time::{Instant, UnixTime};

/// Everything that keeps or shows what happens.
pub(super) struct Monitor {
    /// The newest events.
    pub(super) events: EventRing,
}

impl Monitor {
    pub(super) fn new() -> Self {
        Monitor { events: EventRing::new(EventRing::DEFAULT_LIMIT) }
    }

    /// A probe of a link told something; returns what an operator may want to read of it. What is not among the links any
    /// more is about nobody.
    pub(super) fn measured(
        &mut self,
        links: &mut Links,
        node: NodeId,
        measurement: &Measurement,
        now: Instant,
    ) -> Vec<(EventKind, String)> {
        let Some(link) = links.get_mut(node) else { return Vec::new() };
        link.counters.measured(measurement, link.statistics.baseline(), now);
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        let mut told = Vec::new();
        match link.statistics.take(measurement, now) {
            Some(StepChange::Began(step)) => {
                told.push((EventKind::LatencyStep, format!("round trip {}, was {}", ms(step.after), ms(step.before))));
            }
            Some(StepChange::Ended(step)) => {
                told.push((EventKind::LatencyStep, format!("the step from {} is over", ms(step.before))));
            }
            None => {}
        }
        match link.statistics.judge(now) {
            Some(true) => {
                let (summary, baseline) = (link.statistics.summary(now), link.statistics.baseline());
                let reasons = link.statistics.degradation().reasons().map(|reason| reason.text(&summary, baseline));
                told.push((EventKind::Degraded, reasons.collect::<Vec<_>>().join("; ")));
            }
            Some(false) => told.push((EventKind::Degraded, "works as it should again".to_owned())),
            None => {}
        }
        told
    }

    /// A link entered another state.
    pub(super) fn link_changed(&mut self, name: &str, from: LinkState, to: LinkState, wall: UnixTime) {
        let kind = match to {
            LinkState::Up => EventKind::Up,
            LinkState::Down => EventKind::Down,
            LinkState::Unknown => EventKind::Unknown,
            LinkState::New | LinkState::Suspect => EventKind::Suspect,
        };
        if to.is_silent() || from.is_silent() || from == LinkState::New {
            tracing::info!(peer = %name, ?from, ?to, "link");
        } else {
            tracing::debug!(peer = %name, ?from, ?to, "link");
        }
        self.noted(kind, Some(name.to_owned()), format!("{from:?} to {to:?}"), wall);
    }

    /// Something happened that an operator may want to read later.
    pub(super) fn noted(&mut self, kind: EventKind, peer: Option<String>, text: impl Into<String>, wall: UnixTime) {
        self.events.push(wall, kind, peer, text);
    }
}

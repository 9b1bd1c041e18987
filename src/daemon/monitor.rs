//! The hub of what is seen: every measurement, every change of a link's state and every noted event passes here once, on
//! its way to whoever keeps or shows it.
//!
//! Whoever wants to know of them is a field of [`Monitor`] and is called from the three methods that take them in. Nobody
//! here decides anything, and nobody here may wait: what needs a disk or a network has a bounded queue and a thread or task
//! of its own behind it.

use super::links::Links;
use crate::control::measurement::{Measurement, Sample};
use crate::control::probe::LinkState;
use crate::identity::NodeId;
use crate::telemetry::{EventKind, EventRing};
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

    /// A probe of a link told something. What is not among the links any more is about nobody.
    pub(super) fn measured(&mut self, links: &mut Links, node: NodeId, measurement: &Measurement, now: Instant) {
        let Some(link) = links.get_mut(node) else { return };
        match *measurement {
            Measurement::Sample(Sample { sent, path_rtt, late: Some(_), .. }) => {
                link.statistics.late(now, sent, path_rtt);
            }
            Measurement::Sample(Sample { sent, path_rtt, .. }) => link.statistics.answered(now, sent, path_rtt),
            Measurement::Lost { sent, .. } => link.statistics.lost(now, sent),
            Measurement::Placed { .. }
            | Measurement::Discarded { .. }
            | Measurement::Disorder { .. }
            | Measurement::Data { .. } => {}
        }
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

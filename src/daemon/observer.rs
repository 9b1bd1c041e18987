//! What this node sees of itself, which the engine cannot: its clock, and which links carry data.

use std::time::Duration;

use super::driver::Driver;
use crate::control::timer::TimerName;
use crate::control::verdict::Verdict;
use crate::identity::NodeId;
use crate::platform::clock::{self, Reading, StepWatch};
use crate::telemetry::{DelayHistogram, EventKind};
use crate::time::Instant;

/// How often the links are asked for data: much shorter than a link counts as used for.
const DATA_INTERVAL: Duration = Duration::from_secs(10);
/// From this score on the operator is told: one late deadline is no news.
const UNWELL: u8 = 3;

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Observer {
    steps: StepWatch,
    /// How often the wall clock was set.
    pub(super) clock_steps: u64,
    data_due: Instant,
    /// How late probes were sent or judged.
    pub(super) probe_lag: DelayHistogram,
    /// The score the data threads tell the peers.
    told: u8,
    /// Whether the operator was told that this node is unwell.
    unwell: bool,
}

impl Driver {
    /// Others were asked about a silent peer. A node that is down is told by one of those who see it.
    pub(super) fn note_verdict(&mut self, node: NodeId, verdict: Verdict, reporter: NodeId) {
        let name = self.name_of(node);
        tracing::info!(peer = %name, "{verdict}");
        if let Some(link) = self.links.get_mut(node) {
            link.verdict = Some(verdict);
        }
        if !verdict.is_node() {
            self.note(EventKind::Down, Some(name), verdict.to_string());
        } else if reporter == self.engine.node() {
            self.note(EventKind::NodeDown, Some(name), verdict.to_string());
        }
    }

    /// Most links fell silent together, or speak again.
    pub(super) fn note_uplink(&mut self, lost: bool, silent: usize, links: usize) {
        let text = match lost {
            true => format!("{silent} of {links} links are silent: this node's own uplink, most likely"),
            false => format!("most links answer again, {silent} of {links} do not"),
        };
        tracing::warn!("{text}");
        self.note(EventKind::Observer, None, text);
    }

    /// Something of the engine's is about to be done that was due then.
    pub(super) fn note_lag(&mut self, due: Instant, what: TimerName) {
        if matches!(what, TimerName::Probe(_)) {
            self.observer.probe_lag.record(clock::now().saturating_since(due));
        }
    }

    /// Looks at this node itself. Cheap: it is done whenever the control task is awake.
    pub(super) fn observe(&mut self) {
        let reading = Reading::take();
        let now = reading.now;
        if let Some(step) = self.observer.steps.look(&reading) {
            self.observer.clock_steps += 1;
            self.engine.handle_trouble(1, now);
            let way = if step > 0 { "forward" } else { "back" };
            let text = format!("this host's clock was set {way} by {:?}", Duration::from_nanos(step.unsigned_abs()));
            tracing::warn!("{text}");
            self.note(EventKind::ClockStep, None, text);
        }
        if now >= self.observer.data_due {
            self.observer.data_due = now + DATA_INTERVAL;
            let used: Vec<(NodeId, Instant)> =
                self.links.iter().filter_map(|(node, link)| Some((node, link.peer.last_data()?))).collect();
            used.into_iter().for_each(|(node, at)| self.engine.handle_data(node, at, now));
        }
        let score = self.engine.health(now);
        if score == self.observer.told {
            return;
        }
        self.observer.told = score;
        self.links.iter().for_each(|(_, link)| link.peer.set_health(score));
        if score >= UNWELL && !self.observer.unwell {
            self.observer.unwell = true;
            let text = "this node is unwell: deadlines are met late, or its clock was set";
            tracing::warn!("{text}");
            self.note(EventKind::Observer, None, text);
        } else if score == 0 && self.observer.unwell {
            self.observer.unwell = false;
            tracing::info!("this node is well again");
            self.note(EventKind::Observer, None, "this node is well again");
        }
    }
}

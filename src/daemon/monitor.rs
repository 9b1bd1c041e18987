//! The hub of what is seen: every measurement, every change of a link's state and every noted event passes here once, on
//! its way to whoever keeps or shows it.
//!
//! Whoever wants to know of them is a field of [`Monitor`] and is called from the three methods that take them in. Nobody
//! here decides anything, and nobody here may wait: what needs a disk or a network has a bounded queue and a thread or task
//! of its own behind it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::links::Links;
use crate::control::measurement::Measurement;
use crate::control::probe::LinkState;
use crate::history::{Backlog, Batch, Report, StoredEvent, Writer};
use crate::identity::NodeId;
use crate::telemetry::{Event, EventKind, EventRing, Recorder, Standing, StepChange, TunnelTotals};
use crate::time::{Instant, UnixTime};

/// Everything that keeps or shows what happens.
pub(super) struct Monitor {
    /// The newest events.
    pub(super) events: EventRing,
    recorder: Recorder,
    /// The way to the history; `None` where none is wanted.
    writer: Option<Writer>,
    /// What the writer has not taken yet.
    backlog: Backlog,
    /// The last event that is on its way to the history.
    handed_over: u64,
    /// When buckets are complete.
    seal_due: Instant,
    /// How the recording went when it was looked at last.
    report: Report,
    /// Minutes of single links that the writer was too busy to take.
    lost_minutes: u64,
}

impl Monitor {
    /// Starts watching; `writer` is where the past goes.
    pub(super) fn new(writer: Option<Writer>, now: Instant, wall: UnixTime) -> Self {
        let first = writer.as_ref().map_or(1, Writer::next_event);
        let recorder = Recorder::new(now, wall);
        let mut monitor = Monitor {
            events: EventRing::starting_at(EventRing::DEFAULT_LIMIT, first),
            seal_due: recorder.poll_timeout(now),
            recorder,
            writer,
            backlog: Backlog::default(),
            handed_over: first.saturating_sub(1),
            report: Report::default(),
            lost_minutes: 0,
        };
        monitor.noted(EventKind::Started, None, concat!("meshd ", env!("CARGO_PKG_VERSION"), " started"), wall);
        monitor.look_at_writer(wall);
        monitor
    }

    /// A member has a link from now on, or another name.
    pub(super) fn watch(&mut self, node: NodeId, name: &str, now: Instant) {
        self.recorder.watch(node, name, Standing::New, now);
    }

    /// A member has no link any more. What it did stays in the history.
    pub(super) fn forget(&mut self, node: NodeId, now: Instant) {
        self.recorder.forget(node, now);
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
        self.recorder.measured(node, measurement, now);
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
        let judged = link.statistics.judge(now);
        match judged {
            Some(true) => {
                let reasons = link.statistics.degradation().reasons().iter().map(|held| held.text.as_str());
                told.push((EventKind::Degraded, reasons.collect::<Vec<_>>().join("; ")));
            }
            Some(false) => told.push((EventKind::Degraded, "works as it should again".to_owned())),
            None => {}
        }
        if let Some(degraded) = judged {
            self.recorder.degrades(node, degraded, now);
        }
        told
    }

    /// A link entered another state.
    pub(super) fn link_changed(&mut self, link: Changed<'_>, now: Instant, wall: UnixTime) {
        let Changed { node, name, from, to } = link;
        self.recorder.stands(node, standing(to), now);
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

    /// Packets of a link take another path.
    pub(super) fn path_changed(&mut self, node: NodeId, now: Instant) {
        self.recorder.path_changed(node, now);
    }

    /// Returns when [`Monitor::handle_timeout`] wants to be called.
    pub(super) fn next_deadline(&self) -> Instant {
        self.seal_due
    }

    /// Looks whether the wall clock was set, and hands over what is complete. `name_of` gives a member's present name.
    pub(super) fn handle_timeout(
        &mut self,
        links: &mut Links,
        name_of: impl Fn(NodeId) -> String,
        now: Instant,
        wall: UnixTime,
    ) {
        // That it was set is the observer's to tell.
        if self.recorder.follow(now, wall).is_some() {
            self.seal_due = now;
        }
        if self.seal_due > now {
            return;
        }
        for (node, link) in links.iter().filter(|(_, link)| link.stock.is_none()) {
            let status = link.peer.tunnel().status(now);
            self.recorder.watch(node, &name_of(node), Standing::New, now);
            let (tx_bytes, rx_bytes, handshakes) = (status.sent.bytes, status.received.bytes, status.handshakes);
            self.recorder.count(node, TunnelTotals { tx_bytes, rx_bytes, handshakes }, now);
        }
        let baselines = self.baselines();
        links.set_baselines(&baselines);
        self.recorder.set_baselines(&baselines);
        let buckets = self.recorder.seal(now);
        self.seal_due = self.recorder.poll_timeout(now);
        if self.writer.is_some() {
            self.look_at_writer(wall);
            let events = self.new_events();
            self.lost_minutes += self.backlog.add(Batch { buckets, events });
            let batch = self.backlog.take();
            if let Some(Err(refused)) = self.writer.as_ref().map(|writer| writer.offer(batch, wall)) {
                self.lost_minutes += self.backlog.add(refused);
            }
        }
    }

    /// Hands over everything, and waits a little until it is written.
    pub(super) fn stop(&mut self, now: Instant, wall: UnixTime) {
        let Some(writer) = self.writer.take() else { return };
        let (buckets, events) = (self.recorder.seal_all(now), self.new_events());
        self.backlog.add(Batch { buckets, events });
        if !writer.stop(self.backlog.take(), wall) {
            tracing::warn!("the last half minute of the history may be missing: the disk does not answer");
        }
    }

    /// What is not stored yet.
    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Where the past lies; `None` where none is recorded.
    pub(super) fn history_file(&self) -> Option<PathBuf> {
        self.writer.as_ref().map(|writer| writer.path().to_path_buf())
    }

    /// How the recording goes; `None` where none is wanted.
    pub(super) fn history_report(&self) -> Option<Report> {
        let report = self.writer.as_ref().map(Writer::report)?;
        Some(Report { lost_minutes: report.lost_minutes + self.lost_minutes, ..report })
    }

    /// The median round trip of each link's last seven days, as far as it is known.
    pub(super) fn baselines(&self) -> Arc<BTreeMap<NodeId, Duration>> {
        self.history_report().map(|report| report.baselines).unwrap_or_default()
    }

    /// The events that are not on their way to the history yet.
    fn new_events(&mut self) -> Vec<StoredEvent> {
        let events: Vec<StoredEvent> = self.events.after(self.handed_over).map(stored).collect();
        self.handed_over = events.last().map_or(self.handed_over, |event| event.sequence);
        events
    }

    /// Tells what has become of the recording.
    fn look_at_writer(&mut self, wall: UnixTime) {
        let Some(report) = self.history_report() else { return };
        let before = std::mem::replace(&mut self.report, report.clone());
        for aside in report.set_aside.iter().skip(before.set_aside.len()) {
            let text = format!("the history could not be used, was set aside as {} and begun anew", aside.display());
            self.noted(EventKind::HistoryFailed, None, text, wall);
        }
        match (before.failing, report.failing) {
            (None, Some(why)) => self.noted(EventKind::HistoryFailed, None, why, wall),
            (Some(_), None) => {
                let lost = report.lost_minutes.saturating_sub(before.lost_minutes);
                let text = format!("the history is recorded again; {lost} minutes of single links are missing");
                self.noted(EventKind::HistoryResumed, None, text, wall);
            }
            _ => {}
        }
    }
}

/// A link that entered another state.
#[derive(Clone, Copy)]
pub(super) struct Changed<'a> {
    pub(super) node: NodeId,
    pub(super) name: &'a str,
    pub(super) from: LinkState,
    pub(super) to: LinkState,
}

fn standing(state: LinkState) -> Standing {
    match state {
        LinkState::New => Standing::New,
        LinkState::Up => Standing::Up,
        LinkState::Suspect => Standing::Suspect,
        LinkState::Down => Standing::Down,
        LinkState::Unknown => Standing::Unknown,
    }
}

/// An event as it is stored.
pub(super) fn stored(event: &Event) -> StoredEvent {
    let Event { sequence, at, kind, peer, text } = event.clone();
    StoredEvent { sequence, at, kind: kind.name().to_owned(), peer, text }
}

//! What happened lately.

use std::collections::VecDeque;

use crate::time::UnixTime;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A peer answers.
    Up,
    /// A peer has missed answers.
    Suspect,
    /// A peer does not answer.
    Down,
    /// A peer does not answer, and this node is unwell: it may be the one that does not hear.
    Unknown,
    /// A link answers, but worse than it should.
    Degraded,
    /// Nobody hears a node any more: it is the node, not the links to it.
    NodeDown,
    /// A link's round trip has taken a step against what it was before.
    LatencyStep,
    /// This host's wall clock was set.
    ClockStep,
    /// This node is unwell, or well again: what it measures of others is to be read with care.
    Observer,
    /// Packets take another path.
    PathChanged,
    /// Another gateway carries a shared prefix.
    GatewayChanged,
    /// A path carries larger packets than before, or only smaller ones.
    PathMtu,
    /// A member became known.
    Joined,
    /// A member was revoked.
    Revoked,
    /// A member's certificate was renewed.
    Renewed,
    /// A member's certificate is no longer valid.
    Expired,
    /// An alert fires.
    AlertFiring,
    /// An alert is over.
    AlertResolved,
    /// A forward was switched by hand.
    Switched,
    /// The configuration was taken over again.
    Reloaded,
    /// A changed configuration was not taken over.
    ReloadRefused,
    /// The daemon started.
    Started,
    /// The past is not recorded at present, or a file of it was set aside.
    HistoryFailed,
    /// The past is recorded again.
    HistoryResumed,
}

impl EventKind {
    /// Its name in the history, in JSON and on the screen.
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::Up => "up",
            EventKind::Suspect => "suspect",
            EventKind::Down => "down",
            EventKind::Unknown => "unknown",
            EventKind::Degraded => "degraded",
            EventKind::NodeDown => "node_down",
            EventKind::LatencyStep => "latency_step",
            EventKind::ClockStep => "clock_step",
            EventKind::Observer => "observer",
            EventKind::PathChanged => "path_changed",
            EventKind::GatewayChanged => "gateway_changed",
            EventKind::PathMtu => "path_mtu",
            EventKind::Joined => "joined",
            EventKind::Revoked => "revoked",
            EventKind::Renewed => "renewed",
            EventKind::Expired => "expired",
            EventKind::Switched => "switched",
            EventKind::Reloaded => "reloaded",
            EventKind::ReloadRefused => "reload_refused",
            EventKind::Started => "started",
            EventKind::HistoryFailed => "history_failed",
            EventKind::HistoryResumed => "history_resumed",
            EventKind::AlertFiring => "alert_firing",
            EventKind::AlertResolved => "alert_resolved",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number: one more than the last one's, so that a reader sees what it missed.
    pub sequence: u64,
    /// When.
    pub at: UnixTime,
    /// What kind.
    pub kind: EventKind,
    /// The peer it is about, where it is about one.
    pub peer: Option<String>,
    /// What happened, for a person.
    pub text: String,
}

/// The newest events, in a bounded ring.
#[derive(Clone, Debug)]
pub struct EventRing {
    events: VecDeque<Event>,
    limit: usize,
    next: u64,
}

impl EventRing {
    /// Events kept by default: a whole mesh of 100 peers going down and up again, with room.
    pub const DEFAULT_LIMIT: usize = 256;

    /// Starts empty; `limit` is at least 1.
    pub fn new(limit: usize) -> Self {
        Self::starting_at(limit, 1)
    }

    /// Starts empty, with `first` as the number of the first event: numbers go on where the history's end.
    pub fn starting_at(limit: usize, first: u64) -> Self {
        EventRing { events: VecDeque::new(), limit: limit.max(1), next: first.max(1) }
    }

    /// Adds an event; the oldest goes where the ring is full. Returns the event's number.
    pub fn push(&mut self, at: UnixTime, kind: EventKind, peer: Option<String>, text: impl Into<String>) -> u64 {
        if self.events.len() == self.limit {
            self.events.pop_front();
        }
        let sequence = self.next;
        self.next += 1;
        self.events.push_back(Event { sequence, at, kind, peer, text: text.into() });
        sequence
    }

    /// Returns the events after number `sequence`, oldest first; 0 for all that are kept.
    pub fn after(&self, sequence: u64) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.sequence > sequence)
    }
}

impl Default for EventRing {
    fn default() -> Self {
        Self::new(Self::DEFAULT_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_and_their_numbers() {
        let mut ring = EventRing::new(3);
        for i in 0..5 {
            ring.push(UnixTime::from_secs(i), EventKind::Up, Some(format!("web{i}")), "answers");
        }
        let numbers: Vec<u64> = ring.after(0).map(|event| event.sequence).collect();
        assert_eq!(numbers, [3, 4, 5]);
        assert_eq!(ring.after(4).count(), 1);
        assert_eq!(ring.after(5).count(), 0);
    }
}

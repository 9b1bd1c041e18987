//! Deadlines of the engine, each with a name, so that every wake-up can be explained.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::{NodeId, WireguardKey};
use crate::time::Instant;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerName {
    /// Send what waits in the gossip outboxes.
    Flush,
    /// Compare digests with a random peer.
    AntiEntropy,
    /// Publish a fresh record of our own.
    Record,
    /// Look at certificates: renew ours, drop expired peers.
    Certificates,
    /// Try to reach a peer that has no session.
    Contact(NodeId),
    /// Introduce ourselves to a member that the configuration names and we do not know yet.
    Bootstrap(WireguardKey),
    /// Send a probe, or judge one.
    Probe(NodeId),
    /// Look at the paths to a peer that has several.
    Paths(NodeId),
    /// Answer those who ask whether we hear a node.
    Hearing(NodeId),
    /// Judge whether a silent link or its node is at fault.
    Verdict(NodeId),
    /// Ask again for rows of the matrix that stay out.
    Rows,
    /// Try the sizes of a peer's path, or judge one.
    Sizes(NodeId),
    /// Begin an exchange of hybrid keys, go on with it, or renew the key.
    Hybrid(NodeId),
    /// Weigh the gateways of shared prefixes.
    Gateways,
    /// Tell again how this node is as a gateway.
    GatewayState,
}

/// At most one deadline per name.
#[derive(Debug, Default)]
pub struct Timers {
    deadlines: BTreeMap<TimerName, Instant>,
    queue: BTreeSet<(Instant, TimerName)>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub fn set(&mut self, name: TimerName, at: Instant) {
        if let Some(old) = self.deadlines.insert(name, at) {
            self.queue.remove(&(old, name));
        }
        self.queue.insert((at, name));
    }

    /// Sets a deadline unless an earlier one stands.
    pub fn set_earlier(&mut self, name: TimerName, at: Instant) {
        if self.deadlines.get(&name).is_none_or(|old| at < *old) {
            self.set(name, at);
        }
    }

    /// Forgets a deadline.
    pub fn cancel(&mut self, name: TimerName) {
        if let Some(old) = self.deadlines.remove(&name) {
            self.queue.remove(&(old, name));
        }
    }

    /// Returns the earliest deadline.
    pub fn next(&self) -> Option<(Instant, TimerName)> {
        self.queue.first().copied()
    }

    /// Returns the names of all deadlines up to `until`, the earliest first.
    pub fn until(&self, until: Instant) -> impl Iterator<Item = TimerName> {
        self.queue.iter().take_while(move |(at, _)| *at <= until).map(|(_, name)| *name)
    }

    /// Takes the earliest deadline that has come.
    pub fn pop_due(&mut self, now: Instant) -> Option<TimerName> {
        let (at, name) = self.next()?;
        if at > now {
            return None;
        }
        self.cancel(name);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_deadline_fires_once() {
        let mut timers = Timers::default();
        timers.set(TimerName::Flush, Instant::from_millis(10));
        timers.set(TimerName::Flush, Instant::from_millis(5));
        timers.set_earlier(TimerName::Flush, Instant::from_millis(8));
        assert_eq!(timers.next(), Some((Instant::from_millis(5), TimerName::Flush)));
        assert_eq!(timers.pop_due(Instant::from_millis(4)), None);
        assert_eq!(timers.pop_due(Instant::from_millis(20)), Some(TimerName::Flush));
        assert_eq!(timers.pop_due(Instant::from_millis(20)), None);
    }
}

//! How closely each link is watched.

use std::time::Duration;

use super::Engine;
use super::gateways;
use super::probe::Pace;
use super::timer::TimerName;
use crate::identity::{NodeId, Tag};
use crate::time::Instant;
use crate::wire::overlay::HEADER_LEN;
use crate::wire::probe::{Class, PROBE_LEN};

/// Time between two probes of a critical link: a cut is known after two seconds and a step after twenty either way, but five
/// times as many probes show five times as rare a loss.
pub const CRITICAL_INTERVAL: Duration = Duration::from_millis(200);
/// Members up to which every link is active: 199 links at one probe a second are 331 kbit/s each way.
pub const SMALL_MESH: usize = 200;
/// How long a link counts as used after its last packet of data.
pub const USED_FOR: Duration = Duration::from_secs(300);
/// What the probes of idle links may cost a node each way, in bits a second.
pub const IDLE_BUDGET: u64 = 250_000;
/// Longest time between two probes: an idle link of a mesh of ten thousand.
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of a probe on the underlay, with the overlay's headers, WireGuard's framing, UDP and IPv6.
pub const PROBE_BYTES: u64 = (PROBE_LEN + HEADER_LEN + 32 + 8 + 40) as u64;

/// Time between two probes of an idle link among so many members: each of a node's links sends one packet and gets one.
pub fn idle_interval(members: usize, configured: Duration) -> Duration {
    let bits = (members.saturating_sub(1) as u64).saturating_mul(PROBE_BYTES * 8);
    let paced = Duration::from_micros(bits.saturating_mul(1_000_000) / IDLE_BUDGET);
    configured.max(paced).min(LONGEST_INTERVAL)
}

impl Engine {
    /// Sets the tags that make the links of a node critical.
    pub fn set_critical_tags(&mut self, tags: Vec<Tag>, now: Instant) {
        self.critical_tags = tags;
        self.repace(now);
    }

    /// Sets the time between two probes of a link.
    pub fn set_probe_interval(&mut self, interval: Duration, now: Instant) {
        self.settings.probe_interval = interval;
        self.repace(now);
    }

    /// A link carried data at `at`: the driver tells of it now and then.
    pub fn handle_data(&mut self, node: NodeId, at: Instant, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let used = peer.last_data.is_some_and(|last| now.saturating_since(last) < USED_FOR);
        peer.last_data = Some(at.min(now));
        if !used {
            self.repace_link(node, now);
        }
    }

    /// The class of a link and its schedule, as this node sees them.
    pub(super) fn pace_of(&self, node: NodeId, now: Instant) -> Pace {
        let configured = self.settings.probe_interval;
        let used = self.is_used(node, now);
        let class = self.class_of(node, used);
        let interval = match class {
            Class::Critical => configured.min(CRITICAL_INTERVAL),
            Class::Active if used && self.gateways.concern(node) => configured.min(gateways::PROBE_INTERVAL),
            Class::Active => configured,
            Class::Idle => idle_interval(self.membership.len(), configured),
        };
        Pace { class, interval, health: self.health.score(now) }
    }

    /// Whether a link has carried data lately.
    fn is_used(&self, node: NodeId, now: Instant) -> bool {
        let last_data = self.peers.get(&node).and_then(|peer| peer.last_data);
        last_data.is_some_and(|last| now.saturating_since(last) < USED_FOR)
    }

    fn class_of(&self, node: NodeId, used: bool) -> Class {
        let named = |tags: &[Tag]| tags.iter().any(|tag| self.critical_tags.contains(tag));
        let theirs = self.membership.get(node).is_some_and(|member| named(&member.certificate().tags));
        if theirs || named(&self.own.certificate.certificate().tags) {
            return Class::Critical;
        }
        if used || self.membership.len() <= SMALL_MESH { Class::Active } else { Class::Idle }
    }

    fn repace(&mut self, now: Instant) {
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.repace_link(node, now));
    }

    fn repace_link(&mut self, node: NodeId, now: Instant) {
        let pace = self.pace_of(node, now);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.prober.set_pace(pace, now);
            self.timers.set(TimerName::Probe(node), peer.prober.poll_timeout());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_links_of_a_thousand_nodes_stay_within_the_budget() {
        for members in [1_000, 2_000, 5_000] {
            let interval = idle_interval(members, Duration::from_secs(1));
            let bits = (members as f64 - 1.0) * PROBE_BYTES as f64 * 8.0 / interval.as_secs_f64();
            println!(
                "{members} members: a probe of {PROBE_BYTES} B every {interval:?} on each link, {bits:.0} bit/s each way"
            );
            assert!(bits <= IDLE_BUDGET as f64 * 1.0001, "{bits}");
        }
        assert_eq!(
            idle_interval(2, Duration::from_secs(5)),
            Duration::from_secs(5),
            "never more often than configured"
        );
        assert_eq!(idle_interval(100_000, Duration::from_secs(1)), LONGEST_INTERVAL);
    }
}

//! When the sizes of each link are tried, and who hears what was found.

use super::Engine;
use super::output::{Event, Output, PeerChange};
use super::path::Path;
use super::path_mtu::Conditions;
use super::timer::TimerName;
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::relayed;
use crate::wire::size_probe::{SizeProbe, SizeProbeKind};
use std::time::Duration;

/// Time between two trials of the size in use, in times of the interval between two probes: a minute where that is a
/// second, and as much longer in meshes so large that their links are probed less often.
const VALIDATION: u32 = 60;
/// The shortest such time.
const LEAST_VALIDATION: Duration = Duration::from_secs(60);

impl Engine {
    /// A packet above [`crate::wire::size_probe::FLOOR`] was sent to a peer. The daemon reports it about twice a second
    /// while there are such packets.
    pub fn handle_large(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.path_mtu.on_large(now);
            self.arm_sizing(node);
        }
    }

    /// The size of the largest packet that the path to a peer carries, in bytes.
    pub fn path_mtu(&self, node: NodeId) -> Option<u16> {
        self.peers.get(&node).map(|peer| peer.path_mtu.size())
    }

    /// A session was made with a peer, or its packets take another path; `fresh` where no session stood before.
    pub(super) fn size_path(&mut self, node: NodeId, fresh: bool, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let before = (peer.path_mtu.size(), peer.path_mtu.is_narrow());
        match peer.paths.current() {
            Some(path) if peer.path_mtu.path() != Some(path) => {
                let most = self.most_by(path);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.path_mtu.on_path(path, most, now);
                }
            }
            _ if fresh => peer.path_mtu.resume(now),
            _ => {}
        }
        self.after_sizing(node, before);
    }

    /// The largest packet that a path may carry, in bytes: by a relay, what the link to the relay carries with another tunnel's
    /// header and padding around it.
    fn most_by(&self, path: Path) -> u16 {
        let Some(via) = path.via() else { return u16::MAX };
        let relay = self.peers.get(&via).map_or(u16::MAX, |relay| relay.path_mtu.size());
        relayed::largest_within(relay)
    }

    /// The link has no session.
    pub(super) fn suspend_sizing(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.path_mtu.suspend();
        }
        self.arm_sizing(node);
    }

    /// The link answers its probes again.
    pub(super) fn wake_sizing(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.path_mtu.on_answers(peer.contact.has_session(), now);
        }
        self.arm_sizing(node);
    }

    /// The peer told how many of our packets arrived since it told last: all, or not.
    pub(super) fn note_arrivals(&mut self, node: NodeId, lost: bool, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.path_mtu.on_report(lost, now);
        }
        self.arm_sizing(node);
    }

    /// Sizes of a peer's path are to be tried, or judged.
    pub(super) fn size(&mut self, node: NodeId, now: Instant) {
        let validate_every = self.pace_of(node, now).interval.saturating_mul(VALIDATION).max(LEAST_VALIDATION);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let before = (peer.path_mtu.size(), peer.path_mtu.is_narrow());
        let answers = !peer.prober.state().is_silent();
        let conditions = Conditions { rtt: peer.prober.smoothed_rtt(), answers, validate_every };
        peer.path_mtu.handle_timeout(&conditions, now, &mut self.rng);
        self.after_sizing(node, before);
    }

    /// Takes a probe of sizes out of a tunnel.
    pub(super) fn handle_size_probe(&mut self, node: NodeId, probe: &SizeProbe, now: Instant) {
        match probe.kind {
            SizeProbeKind::Request => {
                let bytes = SizeProbe { kind: SizeProbeKind::Reply, ..*probe }.encode();
                self.output(Output::Message { to: node, via: None, bytes });
            }
            SizeProbeKind::Reply => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.path_mtu.on_reply(probe, now);
                }
                self.arm_sizing(node);
            }
        }
    }

    /// Tells the daemon again whether datagrams may be fragmented, where that has changed: as long as one path is narrow.
    pub(super) fn settle_fragmentation(&mut self) {
        let narrow = self.peers.values().any(|peer| peer.path_mtu.is_narrow());
        if narrow != self.fragmenting {
            self.fragmenting = narrow;
            self.output(Output::Fragmentation { allowed: narrow });
        }
    }

    /// Sends the probes that are due, passes on what was found and re-arms the timer.
    fn after_sizing(&mut self, node: NodeId, before: (u16, bool)) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let after = (peer.path_mtu.size(), peer.path_mtu.is_narrow());
        let probes: Vec<SizeProbe> = std::iter::from_fn(|| peer.path_mtu.poll_probe()).collect();
        if after.1 != before.1 {
            // Before the probes that are to tell whether the path is still narrow.
            self.settle_fragmentation();
        }
        for probe in probes {
            self.output(Output::Message { to: node, via: None, bytes: probe.encode() });
        }
        if after.0 != before.0 {
            self.output(Output::Peer(PeerChange::Mtu { node, mtu: after.0 }));
        }
        if after.0 != before.0 || after.1 && !before.1 {
            self.event(Event::PathMtu { node, from: before.0, to: after.0, narrow: after.1 });
        }
        self.arm_sizing(node);
    }

    fn arm_sizing(&mut self, node: NodeId) {
        match self.peers.get(&node).and_then(|peer| peer.path_mtu.poll_timeout()) {
            Some(at) => self.timers.set(TimerName::Sizes(node), at),
            None => self.timers.cancel(TimerName::Sizes(node)),
        }
    }
}

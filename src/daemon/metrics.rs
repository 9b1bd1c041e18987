//! What monitors are shown, copied from everything that counts.

use std::time::Duration;

use super::driver::Driver;
use crate::control::PeerView;
use crate::dataplane::{CountersReading, DelayReading, Stage};
use crate::identity::Tag;
use crate::platform::clock;
use crate::telemetry::metrics::{LinkSnapshot, ReceiverSnapshot, Snapshot, Traffic};
use crate::telemetry::{DelayHistogram, LinkStatistics};
use crate::time::{Instant, UnixTime};
use crate::tunnel;
use crate::wire::probe::Class;

impl Driver {
    /// The whole picture. Numbers are copied; no text is made here.
    pub(super) fn metrics_snapshot(&self) -> Snapshot {
        let (now, wall) = (clock::now(), clock::wall());
        let view = self.engine.view(now);
        let version = self.version();
        let crossed = |reading: CountersReading| Traffic { packets: reading.packets, bytes: reading.bytes };
        let dataplane = self.dataplane.as_ref();
        Snapshot {
            version: version.version,
            protocol_version: u32::from(version.protocol_version),
            node: self.config.node.to_string(),
            mesh: self.config.mesh.name.clone(),
            started: self.started_wall,
            certificate_not_after: view.certificate_not_after,
            members: view.members as u64,
            received: dataplane.map_or(Traffic::default(), |dataplane| crossed(dataplane.inbound())),
            sent: dataplane.map_or(Traffic::default(), |dataplane| crossed(dataplane.outbound())),
            relayed: dataplane.map_or(Traffic::default(), |dataplane| {
                let reading = dataplane.inbound();
                Traffic { packets: reading.relayed_packets, bytes: reading.relayed_bytes }
            }),
            drops: self.ownerless_drops(),
            stages: dataplane.map(|dataplane| stages(&dataplane.inbound(), &dataplane.outbound())).unwrap_or_default(),
            probe_lag: self.observer.probe_lag.clone(),
            health: self.engine.health(now),
            clock_steps: self.observer.clock_steps,
            history_bytes: self.monitor.history_report().map(|report| report.sizes.file),
            site: site_of(&self.engine.certificate().certificate().tags),
            now,
            per_link: self.config.metrics.per_link,
            forwards: self.forwards.snapshots(),
            gateways: self.gateway_snapshots(now),
            gateway_checks: self.gateways.checks.snapshots(),
            firing: self.alerts.firing(),
            receivers: self
                .alerts
                .receivers()
                .map(|(receiver, health)| ReceiverSnapshot { name: receiver.name.to_string(), health })
                .collect(),
            links: view.peers.iter().map(|peer| self.link_snapshot(peer, now, wall)).collect(),
        }
    }

    fn link_snapshot(&self, view: &PeerView, now: Instant, wall: UnixTime) -> LinkSnapshot {
        let link = self.links.get(view.node);
        let statistics = link.map(|link| &link.statistics);
        let tunnel = link.map(|link| link.peer.tunnel().status(now));
        let session = tunnel.as_ref().and_then(|tunnel| tunnel.session);
        let crossed = |traffic: tunnel::Traffic| Traffic { packets: traffic.packets, bytes: traffic.bytes };
        LinkSnapshot {
            peer: view.name.to_string(),
            site: site_of(&view.tags),
            is_critical: view.pace.class == Class::Critical,
            state: view.state,
            path: session.filter(|_| !view.state.is_silent()).map(|_| match view.via {
                Some(via) => ("relay", self.name_of(via)),
                None => ("direct", String::new()),
            }),
            smoothed_rtt: view.smoothed_rtt,
            is_degraded: statistics.is_some_and(|statistics| statistics.degradation().is_degraded()),
            baseline: statistics.and_then(LinkStatistics::baseline),
            step: statistics
                .and_then(LinkStatistics::step)
                .map_or(Duration::ZERO, |step| step.after.saturating_sub(step.before)),
            jitter: statistics.map_or([Duration::ZERO; 2], LinkStatistics::jitter),
            variation: statistics.and_then(LinkStatistics::variation),
            counters: link.map(|link| link.counters.clone()).unwrap_or_default(),
            path_mtu: view.path_mtu,
            since: wall - view.state_for,
            last_handshake: session.map(|session| wall - now.saturating_since(session.established)),
            handshakes: tunnel.as_ref().map_or(0, |tunnel| tunnel.handshakes),
            pq: session.map(|session| self.pq_of(view.node, session).name()),
            pq_keys: tunnel.as_ref().map_or(0, |tunnel| tunnel.hybrid_keys),
            received: tunnel.as_ref().map_or(Traffic::default(), |tunnel| crossed(tunnel.received)),
            sent: tunnel.as_ref().map_or(Traffic::default(), |tunnel| crossed(tunnel.sent)),
        }
    }
}

/// What was counted at each stage, of either direction.
fn stages(inbound: &CountersReading, outbound: &CountersReading) -> Vec<(&'static str, DelayHistogram)> {
    // A data plane knows nothing of statistics, but counts in their buckets: the compiler and a test see to it.
    let histogram = |of: &DelayReading| DelayHistogram::of(of.counts, Duration::from_nanos(of.nanos));
    let both = Stage::ALL.iter().map(|stage| {
        let way = match stage {
            Stage::TunRx | Stage::Encrypt => outbound,
            Stage::UdpRx | Stage::Decrypt | Stage::TunTx => inbound,
        };
        (stage.name(), histogram(&way.stages[*stage as usize]))
    });
    both.collect()
}

fn site_of(tags: &[Tag]) -> Option<String> {
    tags.iter().find_map(Tag::site).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_counted_in_the_buckets_of_all_delays() {
        assert_eq!(DelayHistogram::bounds().next(), Some(DelayReading::FIRST));
        let (mut inbound, mut outbound) = (CountersReading::default(), CountersReading::default());
        inbound.stages[Stage::Decrypt as usize] = DelayReading { counts: [2; DelayReading::BUCKETS], nanos: 7_000 };
        outbound.stages[Stage::TunRx as usize].counts[3] = 5;
        let told = stages(&inbound, &outbound);
        let counts: Vec<(&str, u64)> = told.iter().map(|(name, delays)| (*name, delays.count())).collect();
        assert_eq!(counts, [("tun_rx", 5), ("encrypt", 0), ("udp_rx", 0), ("decrypt", 38), ("tun_tx", 0)]);
        assert_eq!(told[0].1.buckets()[3], (0.000_4, 5));
        assert_eq!(told[3].1.sum(), Duration::from_micros(7));
    }
}

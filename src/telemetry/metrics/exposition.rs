//! The families of metrics, each with its name, unit, help and samples.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{LinkSnapshot, Snapshot, Traffic};
use crate::control::probe::LinkState;
use crate::telemetry::alert::Health;
use crate::time::UnixTime;
use crate::wire::DropReason;

/// A label with its value.
type Label<'a> = (&'static str, &'a str);
/// A value with its labels.
type Sample<'a, T> = (Vec<Label<'a>>, T);

/// Writes families one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// A number that only rises; `_total` is added to its name.
    fn counter<'s>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'s, u64>>,
    ) -> Result<(), Error> {
        self.family(name, unit, help, MetricType::Counter, samples, |encoder, value| {
            encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
        })
    }

    /// A number that rises and falls.
    fn gauge<'s>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'s, f64>>,
    ) -> Result<(), Error> {
        self.family(name, unit, help, MetricType::Gauge, samples, |encoder, value| encoder.encode_gauge(&value))
    }

    /// What something is, in its labels; `_info` is added to its name.
    fn info<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Vec<Label<'s>>>,
    ) -> Result<(), Error> {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        samples.into_iter().try_for_each(|labels| encoder.encode_info(&labels))
    }

    fn family<'s, T>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = Sample<'s, T>>,
        encode: impl Fn(&mut MetricEncoder<'_>, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut encoder = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        samples.into_iter().try_for_each(|(labels, value)| match labels.is_empty() {
            true => encode(&mut encoder, value),
            false => encode(&mut encoder.encode_family(&labels)?, value),
        })
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut families = Families(encoder);
        self.encode_node(&mut families)?;
        self.encode_links(&mut families)
    }
}

impl Snapshot {
    fn encode_node(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let protocol = self.protocol_version.to_string();
        families.info(
            "build",
            "What runs here",
            [vec![("version", self.version.as_str()), ("protocol", &protocol)]],
        )?;
        families.info("node", "Who this is", [vec![("node", self.node.as_str()), ("mesh", &self.mesh)]])?;
        let instant = |at: UnixTime| [(Vec::new(), at.as_secs() as f64)];
        families.gauge("start_timestamp", Some(Unit::Seconds), "When the daemon started", instant(self.started))?;
        let help = "When this node's certificate ends";
        families.gauge(
            "certificate_not_after_timestamp",
            Some(Unit::Seconds),
            help,
            instant(self.certificate_not_after),
        )?;
        let help = "Members this node knows, itself among them";
        families.gauge("members", None, help, [(Vec::new(), self.members as f64)])?;
        let directions = |of: fn(&Traffic) -> u64| {
            let sample = move |direction, traffic| (vec![("direction", direction)], of(traffic));
            [sample("received", &self.received), sample("sent", &self.sent)]
        };
        let help = "Packets that crossed between this host and the mesh";
        families.counter("dataplane_packets", None, help, directions(|traffic| traffic.packets))?;
        let help = "Bytes of the packets that crossed, without padding and outer headers";
        families.counter("dataplane", Some(Unit::Bytes), help, directions(|traffic| traffic.bytes))?;
        let drops =
            DropReason::ALL.iter().zip(self.drops).map(|(reason, count)| (vec![("reason", reason.name())], count));
        families.counter("dropped_packets", None, "Packets dropped that belong to no peer", drops)?;
        self.encode_alerts(families)
    }

    fn encode_alerts(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let firing = self.firing.iter().map(|(severity, count)| (vec![("severity", severity.name())], *count as f64));
        families.gauge("alerts_firing", None, "Alerts that fire, by this daemon's own rules", firing)?;
        let counts = |of: fn(&Health) -> u64| {
            self.receivers.iter().map(move |told| (vec![("receiver", told.name.as_str())], of(&told.health)))
        };
        let help = "Alerts that reached a receiver";
        families.counter("alert_deliveries", None, help, counts(|health| health.delivered))?;
        let help = "Attempts to reach a receiver that failed";
        families.counter("alert_delivery_failures", None, help, counts(|health| health.failed))?;
        let help = "Alerts given up before a receiver took them";
        families.counter("alerts_dropped", None, help, counts(|health| health.dropped))
    }

    fn encode_links(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let up =
            self.samples(|link| Some(f64::from(u8::from(matches!(link.state, LinkState::Up | LinkState::Suspect)))));
        families.gauge("link_up", None, "Whether the peer answers; it does while only suspected", up)?;
        let states = self.links.iter().map(|link| {
            let mut labels = link.labels();
            labels.push(("state", state_name(link.state)));
            labels
        });
        families.info("link_state", "How the link is", states)?;
        let since = self.samples(|link| {
            matches!(link.state, LinkState::Up | LinkState::Suspect).then(|| link.since.as_secs() as f64)
        });
        let help = "Since when the peer has answered";
        families.gauge("link_up_since_timestamp", Some(Unit::Seconds), help, since)?;
        let handshake = self.samples(|link| link.last_handshake.map(|at| at.as_secs() as f64));
        let help = "When the session in use was made";
        families.gauge("link_last_handshake_timestamp", Some(Unit::Seconds), help, handshake)?;
        let handshakes = self.samples(|link| Some(link.handshakes));
        families.counter("link_handshakes", None, "Sessions made with the peer", handshakes)?;
        let help = "Packets that crossed the link";
        families.counter("link_data_packets", None, help, self.directions(|traffic| traffic.packets))?;
        let help = "Bytes of the packets that crossed the link, without padding and outer headers";
        families.counter("link_data", Some(Unit::Bytes), help, self.directions(|traffic| traffic.bytes))
    }

    /// One sample of each link that has a value.
    fn samples<T>(&self, value: impl Fn(&LinkSnapshot) -> Option<T>) -> impl Iterator<Item = Sample<'_, T>> {
        self.links.iter().filter_map(move |link| Some((link.labels(), value(link)?)))
    }

    /// Two samples of each link, one of each direction.
    fn directions(&self, value: fn(&Traffic) -> u64) -> impl Iterator<Item = Sample<'_, u64>> {
        self.links.iter().flat_map(move |link| {
            [("received", &link.received), ("sent", &link.sent)].map(|(direction, traffic)| {
                let mut labels = link.labels();
                labels.push(("direction", direction));
                (labels, value(traffic))
            })
        })
    }
}

impl LinkSnapshot {
    fn labels(&self) -> Vec<Label<'_>> {
        vec![("peer", &self.peer)]
    }
}

fn state_name(state: LinkState) -> &'static str {
    match state {
        LinkState::New => "new",
        LinkState::Up => "up",
        LinkState::Suspect => "suspect",
        LinkState::Down => "down",
        LinkState::Unknown => "unknown",
    }
}

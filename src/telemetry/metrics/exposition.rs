//! How families of metrics are written, and those of the node.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{Snapshot, Traffic, forwards, gateways, links, sites};
use crate::telemetry::DelayHistogram;
use crate::telemetry::alert::Health;
use crate::time::UnixTime;
use crate::wire::DropReason;

/// A label with its value.
pub(super) type Label<'a> = (&'static str, &'a str);
/// A value with its labels.
pub(super) type Sample<'a, T> = (Vec<Label<'a>>, T);

/// Writes families one after the other.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// A number that only rises; `_total` is added to its name.
    pub(super) fn counter<'s>(
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
    pub(super) fn gauge<'s>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'s, f64>>,
    ) -> Result<(), Error> {
        self.family(name, unit, help, MetricType::Gauge, samples, |encoder, value| encoder.encode_gauge(&value))
    }

    /// What something is, in its labels; `_info` is added to its name.
    pub(super) fn info<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Vec<Label<'s>>>,
    ) -> Result<(), Error> {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        samples.into_iter().try_for_each(|labels| encoder.encode_info(&labels))
    }

    /// How often something took how long.
    pub(super) fn histogram<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'s, DelayHistogram>>,
    ) -> Result<(), Error> {
        self.family(name, Some(Unit::Seconds), help, MetricType::Histogram, samples, |encoder, value| {
            let sum = value.sum().as_secs_f64();
            encoder.encode_histogram::<NoLabelSet>(sum, value.count(), &value.buckets(), None)
        })
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
        forwards::encode(self, &mut families)?;
        gateways::encode(self, &mut families)?;
        links::encode(self, &mut families)?;
        sites::encode(self, &mut families)
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
        let mut node = vec![("node", self.node.as_str()), ("mesh", &self.mesh)];
        node.extend(self.site.as_deref().map(|site| ("site", site)));
        families.info("node", "Who this is", [node])?;
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
        let help = "Sealed datagrams of other members that this node passed on as a relay";
        families.counter("relayed_packets", None, help, [(Vec::new(), self.relayed.packets)])?;
        let help = "Bytes of the datagrams passed on, in their wrapping";
        families.counter("relayed", Some(Unit::Bytes), help, [(Vec::new(), self.relayed.bytes)])?;
        let drops =
            DropReason::ALL.iter().zip(self.drops).map(|(reason, count)| (vec![("reason", reason.name())], count));
        families.counter("dropped_packets", None, "Packets dropped that belong to no peer", drops)?;
        let mut host = DelayHistogram::default();
        self.links.iter().for_each(|link| host.merge(&link.counters.host));
        let help = "What both hosts added to a probe's round trip on the network";
        families.histogram("probe_host_delay", help, [(Vec::new(), host)])?;
        let help = "How long the longest waiting packet of a batch took for a stage of its way through this host";
        let stages = self.stages.iter().map(|(stage, delays)| (vec![("stage", *stage)], delays.clone()));
        families.histogram("host_delay", help, stages)?;
        let help = "How much later than it was due a probe was sent or judged";
        families.histogram("probe_lag", help, [(Vec::new(), self.probe_lag.clone())])?;
        let steps = self.links.iter().map(|link| link.counters.discarded[0]).sum();
        let help = "Probes whose round trip is not used because a clock was set meanwhile";
        families.counter("clock_step_probes", None, help, [(Vec::new(), steps)])?;
        let help = "How often this host's clock was set since the daemon started";
        families.counter("clock_steps", None, help, [(Vec::new(), self.clock_steps)])?;
        let help = "How unwell this node is as an observer: 0 is well, 7 the worst";
        families.gauge("observer_unwell", None, help, [(Vec::new(), f64::from(self.health))])?;
        let help = "Size of the history's file";
        let history = self.history_bytes.map(|bytes| (Vec::new(), bytes as f64));
        families.gauge("history", Some(Unit::Bytes), help, history)?;
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
}

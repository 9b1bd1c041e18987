//! The families of links.

use std::fmt::Error;
use std::time::Duration;

use prometheus_client::registry::Unit;

use super::exposition::{Families, Label, Sample};
use super::{LinkSnapshot, Snapshot, Traffic};
use crate::control::measurement::Direction;
use crate::control::probe::LinkState;
use crate::telemetry::LinkCounters;

/// Both ways of a link, as counters hold them.
const WAYS: [Direction; 2] = [Direction::Forward, Direction::Reverse];

/// Writes the links that have series of their own.
pub(super) fn encode(snapshot: &Snapshot, families: &mut Families<'_>) -> Result<(), Error> {
    let links = Links { snapshot, shown: snapshot.shown() };
    links.states(families)?;
    links.probes(families)?;
    links.traffic(families)
}

struct Links<'a> {
    snapshot: &'a Snapshot,
    shown: Vec<&'a LinkSnapshot>,
}

impl<'a> Links<'a> {
    fn states(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let up = self.each(|link| Some(f64::from(u8::from(answers(link.state)))));
        families.gauge("link_up", None, "Whether the peer answers; it does while only suspected", up)?;
        let states = self.shown.iter().map(|link| with(self.of(link), ("state", shown_state(link))));
        families.info("link_state", "How the link is", states)?;
        let since = self.each(|link| answers(link.state).then(|| link.since.as_secs() as f64));
        let help = "Since when the peer has answered";
        families.gauge("link_up_since_timestamp", Some(Unit::Seconds), help, since)?;
        let mtu = self.each(|link| Some(f64::from(link.path_mtu)));
        let help = "The largest packet that the path to the peer carries";
        families.gauge("link_path_mtu", Some(Unit::Bytes), help, mtu)?;
        let transitions = self.several(|link| {
            link.counters.transitions().map(|(state, count)| (("to", state_name(state)), count)).collect()
        });
        families.counter("link_transitions", None, "How often the link entered a state", transitions)?;
        let handshake = self.each(|link| link.last_handshake.map(|at| at.as_secs() as f64));
        let help = "When the session in use was made";
        families.gauge("link_last_handshake_timestamp", Some(Unit::Seconds), help, handshake)?;
        families.counter(
            "link_handshakes",
            None,
            "Sessions made with the peer",
            self.each(|link| Some(link.handshakes)),
        )?;
        let hybrid = self.each(|link| link.pq.map(|pq| f64::from(u8::from(pq == "hybrid"))));
        let help = "Whether the session in use came of a key of ML-KEM-768 and X25519";
        families.gauge("link_pq_hybrid", None, help, hybrid)?;
        let states = self.shown.iter().filter_map(|link| link.pq.map(|pq| with(self.of(link), ("state", pq))));
        families.info("link_pq", "How the session in use stands to quantum computers", states)?;
        let keys = self.each(|link| Some(link.pq_keys));
        families.counter("link_pq_keys", None, "Keys of ML-KEM-768 and X25519 that came into use", keys)?;
        let paths = self.shown.iter().filter_map(|link| {
            let (kind, via) = link.path.as_ref()?;
            let mut labels = self.of(link);
            labels.push(("path", *kind));
            if !via.is_empty() {
                labels.push(("via", via));
            }
            Some(labels)
        });
        families.info("link_path", "How packets reach the peer, and through which member", paths)
    }

    fn probes(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let now = self.snapshot.now;
        let path = self.each(|link| Some(link.counters.path.clone()));
        families.histogram("link_path_rtt", "Round trips of probes on the network alone", path)?;
        let tunnel = self.each(|link| Some(link.counters.tunnel.clone()));
        let help = "Round trips of probes as an application feels them, with what both hosts add";
        families.histogram("link_tunnel_rtt", help, tunnel)?;
        let rtt = self.each(|link| link.smoothed_rtt.map(|rtt| rtt.as_secs_f64()));
        let help = "Smoothed round trip on the network (RFC 6298)";
        families.gauge("link_smoothed_rtt", Some(Unit::Seconds), help, rtt)?;
        let baseline = self.each(|link| link.baseline.map(|rtt| rtt.as_secs_f64()));
        let help = "Median round trip of the last seven days";
        families.gauge("link_baseline_rtt", Some(Unit::Seconds), help, baseline)?;
        let step = self.each(|link| Some(link.step.as_secs_f64()));
        let help = "By how much the round trip has risen against the minutes before; 0 without a step";
        families.gauge("link_latency_step", Some(Unit::Seconds), help, step)?;
        let jitter = self.both(|link| Some(link.jitter));
        families.gauge("link_jitter", Some(Unit::Seconds), "Interarrival jitter of probes (RFC 3550)", jitter)?;
        let variation = self.both(|link| link.variation);
        let help = "By how much the newest probe took longer than the quickest, by way";
        families.gauge("link_owd_variation", Some(Unit::Seconds), help, variation)?;
        let count = |of: fn(&LinkCounters) -> u64| self.each(move |link| Some(of(&link.counters)));
        families.counter("link_probes_sent", None, "Probes whose fate is known", count(|of| of.sent))?;
        let lost = self.several(|link| {
            let lost = link.counters.lost(now);
            Direction::ALL.map(|direction| (("direction", direction.name()), lost[direction as usize])).to_vec()
        });
        families.counter("link_probes_lost", None, "Probes lost for good, ten seconds ago or earlier", lost)?;
        families.counter("link_probes_late", None, "Probes answered after they were given up", count(|of| of.late))?;
        let reordered = self.ways(|of| of.reordered);
        families.counter("link_probes_reordered", None, "Probes and answers that were overtaken", reordered)?;
        let duplicated = self.ways(|of| of.duplicated);
        families.counter("link_probes_duplicate", None, "Probes and answers that came twice", duplicated)?;
        let bad = self.several(|link| {
            let lost = link.counters.lost(now).iter().sum();
            vec![(("slo", "latency"), link.counters.bad_latency), (("slo", "loss"), lost)]
        });
        let help = "Probes that were lost (loss), or lost or 5 ms slower than the seven days' median (latency)";
        families.counter("link_slo_bad_probes", None, help, bad)
    }

    fn traffic(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let help = "Packets of both hosts that the ends have compared, by the way they took";
        families.counter("link_data_packets_compared", None, help, self.ways(|of| of.data_packets))?;
        let help = "Of the compared packets, those that did not arrive";
        families.counter("link_data_packets_lost", None, help, self.ways(|of| of.data_lost))?;
        let crossed = |of: fn(&Traffic) -> u64| {
            self.several(move |link| {
                vec![(("direction", "received"), of(&link.received)), (("direction", "sent"), of(&link.sent))]
            })
        };
        families.counter(
            "link_data_packets",
            None,
            "Packets that crossed the link",
            crossed(|traffic| traffic.packets),
        )?;
        let help = "Bytes of the packets that crossed the link, without padding and outer headers";
        families.counter("link_data", Some(Unit::Bytes), help, crossed(|traffic| traffic.bytes))
    }

    /// One sample of each link that has a value.
    fn each<T>(&self, value: impl Fn(&LinkSnapshot) -> Option<T>) -> Vec<Sample<'a, T>> {
        self.shown.iter().filter_map(|link| Some((self.of(link), value(link)?))).collect()
    }

    /// Several samples of each link, with a label more.
    fn several(&self, values: impl Fn(&LinkSnapshot) -> Vec<(Label<'static>, u64)>) -> Vec<Sample<'a, u64>> {
        let of_link = |link: &&'a LinkSnapshot| {
            let labels = self.of(link);
            values(link).into_iter().map(move |(label, value)| (with(labels.clone(), label), value)).collect::<Vec<_>>()
        };
        self.shown.iter().flat_map(of_link).collect()
    }

    /// Two samples of each link, one of each way.
    fn ways(&self, values: fn(&LinkCounters) -> [u64; 2]) -> Vec<Sample<'a, u64>> {
        self.several(move |link| {
            WAYS.iter().zip(values(&link.counters)).map(|(way, value)| (("direction", way.name()), value)).collect()
        })
    }

    /// Two times of each link that has them, one of each way.
    fn both(&self, values: fn(&LinkSnapshot) -> Option<[Duration; 2]>) -> Vec<Sample<'a, f64>> {
        let of_link = |link: &&'a LinkSnapshot| {
            let labels = self.of(link);
            let times = WAYS.iter().zip(values(link).into_iter().flatten());
            times
                .map(move |(way, time)| (with(labels.clone(), ("direction", way.name())), time.as_secs_f64()))
                .collect::<Vec<_>>()
        };
        self.shown.iter().flat_map(of_link).collect()
    }

    /// Which link it is. Its class is none of its labels: it changes with the traffic, and a counter would begin anew.
    fn of(&self, link: &'a LinkSnapshot) -> Vec<Label<'a>> {
        let mut labels = vec![("peer", link.peer.as_str())];
        labels.extend(self.snapshot.site.as_deref().map(|site| ("site", site)));
        labels.extend(link.site.as_deref().map(|site| ("peer_site", site)));
        labels
    }
}

fn with<'a>(mut labels: Vec<Label<'a>>, label: Label<'a>) -> Vec<Label<'a>> {
    labels.push(label);
    labels
}

fn answers(state: LinkState) -> bool {
    matches!(state, LinkState::Up | LinkState::Suspect)
}

/// The state as `meshctl status` names it.
fn shown_state(link: &LinkSnapshot) -> &'static str {
    if link.is_degraded && link.state == LinkState::Up { "degraded" } else { state_name(link.state) }
}

pub(super) const fn state_name(state: LinkState) -> &'static str {
    match state {
        LinkState::New => "new",
        LinkState::Up => "up",
        LinkState::Suspect => "suspect",
        LinkState::Down => "down",
        LinkState::Unknown => "unknown",
    }
}

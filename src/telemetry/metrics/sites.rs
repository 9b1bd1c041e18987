//! The families of sites: sums over all links to the nodes of one site, whether these have series of their own or not.

use std::collections::BTreeMap;
use std::fmt::Error;

use super::Snapshot;
use super::exposition::{Families, Label};
use super::links::state_name;
use crate::telemetry::DelayHistogram;

/// What the links to one site come to.
#[derive(Default)]
struct Site {
    states: BTreeMap<&'static str, u64>,
    sent: u64,
    lost: u64,
    path: DelayHistogram,
}

/// Writes the sites; nodes without one are the site with an empty name.
pub(super) fn encode(snapshot: &Snapshot, families: &mut Families<'_>) -> Result<(), Error> {
    let mut sites: BTreeMap<&str, Site> = BTreeMap::new();
    for link in &snapshot.links {
        let site = sites.entry(link.site.as_deref().unwrap_or_default()).or_default();
        *site.states.entry(state_name(link.state)).or_default() += 1;
        site.sent += link.counters.sent;
        site.lost += link.counters.lost(snapshot.now).iter().sum::<u64>();
        site.path.merge(&link.counters.path);
    }
    let all = || sites.iter().map(|(name, site)| (labels(snapshot, name), site));
    let states = sites.iter().flat_map(|(name, site)| {
        site.states.iter().map(|(state, count)| {
            let mut labels = labels(snapshot, name);
            labels.push(("state", *state));
            (labels, *count as f64)
        })
    });
    families.gauge("site_links", None, "Links to the nodes of a site, by how they are", states)?;
    let sent = all().map(|(labels, site)| (labels, site.sent));
    families.counter("site_probes_sent", None, "Probes to the nodes of a site whose fate is known", sent)?;
    let lost = all().map(|(labels, site)| (labels, site.lost));
    families.counter("site_probes_lost", None, "Probes to the nodes of a site lost for good", lost)?;
    let path = all().map(|(labels, site)| (labels, site.path.clone()));
    families.histogram("site_path_rtt", "Round trips to the nodes of a site on the network alone", path)
}

fn labels<'a>(snapshot: &'a Snapshot, site: &'a str) -> Vec<Label<'a>> {
    let own = snapshot.site.as_deref().map(|own| ("site", own));
    own.into_iter().chain([("peer_site", site)]).collect()
}

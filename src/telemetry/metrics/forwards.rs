//! The metrics of the forwards. As many series as the configuration has targets, and no more: a client or a connection has none.

use std::fmt::Error;

use prometheus_client::registry::Unit;

use super::Snapshot;
use super::exposition::{Families, Label};
use super::snapshot::ForwardTargetSnapshot;

pub(super) fn encode(snapshot: &Snapshot, families: &mut Families<'_>) -> Result<(), Error> {
    let forwards = &snapshot.forwards;
    let targets =
        || forwards.iter().flat_map(|forward| forward.targets.iter().map(|target| (forward.name.as_str(), target)));
    let counted =
        |of: fn(&ForwardTargetSnapshot) -> u64| targets().map(move |(name, target)| (labels(name, target), of(target)));
    let shown =
        |of: fn(&ForwardTargetSnapshot) -> f64| targets().map(move |(name, target)| (labels(name, target), of(target)));
    families.gauge("forward_connections", None, "Connections that are open", shown(|target| target.open as f64))?;
    families.counter("forward_connections_made", None, "Connections that were made", counted(|target| target.made))?;
    let help = "Attempts to connect to a target that failed";
    families.counter("forward_connect_failures", None, help, counted(|target| target.failed))?;
    let help = "Connections refused because there were too many";
    let refused = forwards.iter().map(|forward| (vec![("forward", forward.name.as_str())], forward.refused));
    families.counter("forward_refused_connections", None, help, refused)?;
    let bytes = targets().flat_map(|(name, target)| {
        ["to_target", "to_client"].into_iter().zip(target.bytes).map(move |(direction, bytes)| {
            let mut labels = labels(name, target);
            labels.push(("direction", direction));
            (labels, bytes)
        })
    });
    families.counter("forward", Some(Unit::Bytes), "Bytes that went through connections", bytes)?;
    let help = "How long it took to connect to a target";
    let connects = targets().map(|(name, target)| (labels(name, target), target.connects.clone()));
    families.histogram("forward_connect", help, connects)?;
    let help = "Whether new connections go to a target";
    families.gauge("forward_target_in_use", None, help, shown(|target| f64::from(u8::from(target.in_use))))?;
    let help = "Whether a target takes connections; absent before it was looked at";
    let up = targets().filter_map(|(name, target)| Some((labels(name, target), f64::from(u8::from(target.up?)))));
    families.gauge("forward_target_up", None, help, up)
}

fn labels<'a>(forward: &'a str, target: &'a ForwardTargetSnapshot) -> Vec<Label<'a>> {
    vec![("forward", forward), ("target", target.target.as_str())]
}

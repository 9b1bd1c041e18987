//! `meshctl paths`.

use clap::Args;

use super::context::Context;
use super::exit::Failure;
use super::output::{HEADING, STRONG};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{PathKind, PathList, PathReason, PathState, PeerPaths};

/// `meshctl paths`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl paths db1\n  meshctl --json paths\n\n\
                        A link has a path for each endpoint of the peer and each of this host's own addresses of that family.\n\
                        Those not in use are looked at every 30 s, and all at once when the link falls silent.")]
pub struct PathsArgs {
    /// The node; all of them unless given.
    pub node: Option<String>,
}

/// Shows the paths to one peer, or to all.
pub async fn run(context: &Context, args: &PathsArgs) -> Result<(), Failure> {
    let mut list = context.client()?.paths().await?;
    if let Some(name) = &args.node {
        if !list.peers.iter().any(|peer| names(peer, name)) {
            let known = list.peers.iter().map(|peer| peer.name.as_str());
            return Err(Failure::not_found("peer", name, known, "meshctl members"));
        }
        list.peers.retain(|peer| names(peer, name));
    }
    if context.output.json { context.output.json(&list) } else { context.output.data(&render(&list)) }
}

fn names(peer: &PeerPaths, name: &str) -> bool {
    peer.name == name || peer.node_id == name
}

/// Renders paths: a line for each, and below each peer why it takes the one it takes.
pub fn render(list: &PathList) -> String {
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("USED", Align::Left),
        ("ENDPOINT", Align::Left),
        ("FROM", Align::Left),
        ("RTT", Align::Right),
        ("ANSWERED", Align::Right),
        ("LAST", Align::Right),
        ("COST", Align::Right),
    ]);
    for peer in &list.peers {
        for (number, path) in peer.paths.iter().enumerate() {
            let name = if number == 0 { Cell::styled(peer.name.clone(), STRONG) } else { Cell::default() };
            table.row([name].into_iter().chain(cells(path)));
        }
        if peer.paths.is_empty() {
            table.row([Cell::styled(peer.name.clone(), STRONG), "".into(), "none known".into()]);
        }
    }
    let mut out = table.render(HEADING);
    for peer in &list.peers {
        if let (Some(reason), Some(since)) = (peer.chosen, peer.since) {
            let age = quantity::since(list.now, since);
            out.push_str(&format!("\n{}: in use for {age}, because {}", peer.name, why(reason)));
        }
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn cells(path: &PathState) -> [Cell; 7] {
    let time = |seconds: Option<f64>| seconds.map_or("-".to_owned(), quantity::seconds);
    let answered = if path.looks == 0 { "-".to_owned() } else { format!("{}/{}", path.answered, path.looks) };
    let last = path.heard_seconds.map_or("-".to_owned(), |heard| format!("{} ago", quantity::age(heard as u64)));
    [
        if path.in_use { "yes".into() } else { "".into() },
        match &path.via {
            Some(via) => format!("via {via}").into(),
            None => path.endpoint.to_string().into(),
        },
        match (path.local, path.kind) {
            (Some(local), _) => local.to_string().into(),
            (None, PathKind::Relay) => "".into(),
            (None, _) => "any".into(),
        },
        time(path.rtt_seconds).into(),
        answered.into(),
        last.into(),
        time(path.cost_seconds).into(),
    ]
}

fn why(reason: PathReason) -> &'static str {
    match reason {
        PathReason::Session => "the session was made there",
        PathReason::Moved => "the peer, or this host, moved, and it answered there",
        PathReason::Silence => "the one before fell silent, and this one answered",
        PathReason::Direct => "it is direct and answered three times in a row, where a relay was in use",
        PathReason::Better => "it was better than the one before, three times in a row",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    #[test]
    fn what_is_used_comes_first_and_says_why() {
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&fake::paths())).to_string(), @"
        PEER  USED  ENDPOINT           FROM              RTT  ANSWERED     LAST      COST
        db1   yes   198.51.100.2:7655  203.0.113.5  10.31 ms     20/20  12s ago  10.31 ms
                    198.51.100.3:7655  203.0.113.5  24.90 ms     20/20  12s ago  24.90 ms
                    198.51.100.2:7655  203.0.113.6         -      0/20        -         -
                    via web1                        31.20 ms     20/20  12s ago  31.20 ms
        web9        none known

        db1: in use for 1h01m, because the one before fell silent, and this one answered
        ");
    }
}

//! `meshctl restart`.

use std::fmt;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::wait::missing;
use crate::api::{Client, SCHEMA, Status};
use crate::config::duration;
use crate::wire::DropReason;

/// Time between two looks: a restart takes a few of them.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// `meshctl restart`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl restart               after an upgrade, or a change that needs a restart\n  \
                        meshctl restart --timeout 2m  and wait longer for the links\n\n\
                        Device, addresses, routes and port stay, no packet is lost, and TCP connections through the mesh go on; those of \
                        forwards end. What will\nrun is checked first; where it refuses, nothing is touched. Ends when every link that was up \
                        is up again."
)]
pub struct RestartArgs {
    /// How long to wait for the links.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub timeout: Duration,
}

/// Restarts the daemon in its process and waits until the links that were up are up again.
pub async fn run(context: &Context, args: &RestartArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let (before, restarts) = (client.status().await?, client.version().await?.restarts);
    let links = links_up(&before);
    let restarting = client.restart().await?;
    let began = Instant::now();
    while let Some(missing) = still_missing(&client, restarts, &links).await {
        if began.elapsed() >= args.timeout {
            let limit = duration::format(args.timeout);
            return Err(Failure::new(Exit::Failed, format!("not within {limit}: {missing}")));
        }
        sleep(LOOK_PAUSE).await;
    }
    let took = began.elapsed();
    let version = client.version().await?;
    let lost = Lost::of(&client.status().await?);
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA,
            "program": restarting.program,
            "version": version.version,
            "restarts": version.restarts,
            "links": links.len(),
            "took_seconds": took.as_secs_f64(),
            "lost": { "former_session": lost.former_session, "no_room": lost.no_room },
        }));
    }
    let links = match links.len() {
        0 => "no link was up before".to_owned(),
        1 => "the link that was up is up again".to_owned(),
        count => format!("the {count} links that were up are up again"),
    };
    context.output.data(&format!(
        "{} {} runs after {} ms in the same process; {links}; {lost}\n",
        restarting.program,
        version.version,
        took.as_millis()
    ))
}

/// Packets that a restart cost, as the new program has counted since its start.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lost {
    /// Came for a session of the former program.
    former_session: u64,
    /// Found no room to wait for the new session.
    no_room: u64,
}

impl Lost {
    fn of(status: &Status) -> Lost {
        let counts = status.peers.iter().map(|peer| &peer.drops).chain([&status.drops]);
        counts.fold(Lost::default(), |lost, drops| {
            let count = |reason: DropReason| drops.get(reason.name()).copied().unwrap_or(0);
            Lost {
                former_session: lost.former_session + count(DropReason::UnknownSession),
                no_room: lost.no_room + count(DropReason::HoldFull),
            }
        })
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost { former_session: 0, no_room: 0 } => f.write_str("no packet was lost here"),
            Lost { former_session, no_room } => {
                write!(f, "packets lost: {former_session} for former sessions, {no_room} without room to wait")
            }
        }
    }
}

/// The nodes whose links are up.
fn links_up(status: &Status) -> Vec<String> {
    let up = status.peers.iter().filter(|peer| peer.state.answers());
    up.map(|peer| peer.name.clone()).collect()
}

/// What is not as it was, as a sentence.
async fn still_missing(client: &Client, restarts: u32, links: &[String]) -> Option<String> {
    match client.version().await {
        Ok(version) if version.restarts == restarts => Some("the daemon has not restarted; see its log".to_owned()),
        Ok(_) => match client.status().await {
            Ok(status) => missing(&status, links),
            Err(error) => Some(error.to_string()),
        },
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PeerState;
    use crate::api::fake::troubled_status;

    #[test]
    fn what_a_restart_cost_is_counted_over_all_peers() {
        let mut status = troubled_status();
        status.drops.insert("unknown_session".into(), 3);
        let before = Lost::of(&status);
        *status.peers[0].drops.entry("hold_full".into()).or_default() += 2;
        let after = Lost::of(&status);
        assert_eq!((after.former_session, after.no_room), (before.former_session, before.no_room + 2));
        assert!(after.to_string().contains("3 for former sessions"), "{after}");
        assert_eq!(Lost::default().to_string(), "no packet was lost here");
    }

    #[test]
    fn only_links_that_were_up_are_waited_for() {
        let status = troubled_status();
        let up = links_up(&status);
        assert!(!up.is_empty());
        assert_eq!(missing(&status, &up), None);
        let down = status.peers.iter().find(|peer| peer.state == PeerState::Down).unwrap();
        assert!(!up.contains(&down.name));
    }
}

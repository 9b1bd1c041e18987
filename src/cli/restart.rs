//! `meshctl restart`.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::wait::missing;
use crate::api::{Client, SCHEMA, Status};
use crate::config::duration;

/// Time between two looks: a restart takes a few of them.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// `meshctl restart`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl restart               after an upgrade, or a change that needs a restart\n  \
                        meshctl restart --timeout 2m  and wait longer for the links\n\n\
                        Device, addresses, routes and port stay, and TCP connections through the mesh go on; those of \
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
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA,
            "program": restarting.program,
            "version": version.version,
            "restarts": version.restarts,
            "links": links.len(),
            "took_seconds": took.as_secs_f64(),
        }));
    }
    let links = match links.len() {
        0 => "no link was up before".to_owned(),
        1 => "the link that was up is up again".to_owned(),
        count => format!("the {count} links that were up are up again"),
    };
    context.output.data(&format!(
        "{} {} runs after {} ms in the same process; {links}\n",
        restarting.program,
        version.version,
        took.as_millis()
    ))
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
    fn only_links_that_were_up_are_waited_for() {
        let status = troubled_status();
        let up = links_up(&status);
        assert!(!up.is_empty());
        assert_eq!(missing(&status, &up), None);
        let down = status.peers.iter().find(|peer| peer.state == PeerState::Down).unwrap();
        assert!(!up.contains(&down.name));
    }
}

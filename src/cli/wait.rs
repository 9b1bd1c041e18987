//! `meshctl wait`.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::context::Context;
use super::exit::{Exit, Failure};
use crate::api::{ClientError, SCHEMA, Status};
use crate::config::duration;

/// Time between two looks: short beside what a service takes to start, and a handful of calls a second.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// `meshctl wait`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl wait                       until this host has its overlay addresses\n  \
                        meshctl wait db1 db2 --timeout 2m  and the links to db1 and db2 are up\n\n\
                        For scripts and units that need the mesh; says what is still missing when the time is over.")]
pub struct WaitArgs {
    /// Nodes whose links must be up, by name.
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    pub timeout: Duration,
}

/// Waits until the daemon answers, this host has its addresses, and the named links are up.
pub async fn run(context: &Context, args: &WaitArgs) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        // The configuration may come while we wait, and the socket with it.
        let missing = match context.client() {
            Ok(client) => match client.status().await {
                Ok(status) => missing(&status, &args.nodes),
                Err(error @ (ClientError::NotRunning { .. } | ClientError::TimedOut { .. })) => Some(error.to_string()),
                Err(error) => return Err(error.into()),
            },
            Err(failure) => return Err(failure),
        };
        let Some(missing) = missing else {
            let waited = began.elapsed();
            if context.output.json {
                let done = serde_json::json!({ "schema": SCHEMA, "waited_seconds": waited.as_secs_f64() });
                return context.output.json(&done);
            }
            return Ok(());
        };
        if began.elapsed() >= args.timeout {
            let limit = duration::format(args.timeout);
            return Err(Failure::new(Exit::Failed, format!("not within {limit}: {missing}")));
        }
        sleep(LOOK_PAUSE.min(args.timeout)).await;
    }
}

/// What a status lacks, as a sentence.
pub(super) fn missing(status: &Status, nodes: &[String]) -> Option<String> {
    if let Some(problem) = status.problems.iter().find(|problem| problem.kind == "host") {
        return Some(problem.message.clone());
    }
    let lacking = nodes.iter().filter_map(|name| match status.peers.iter().find(|peer| peer.name == *name) {
        None => Some(format!("{name} is not known here")),
        Some(peer) if peer.state.answers() => None,
        Some(peer) => Some(format!("the link to {name} is {}", peer.state.name())),
    });
    let lacking: Vec<String> = lacking.collect();
    (!lacking.is_empty()).then(|| lacking.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PeerState;
    use crate::api::fake::{healthy_status, troubled_status};

    #[test]
    fn what_is_missing_is_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let healthy = healthy_status();
        let up = healthy.peers[0].name.clone();
        assert_eq!(missing(&healthy, &[]), None);
        assert_eq!(missing(&healthy, &[up]), None);
        assert_eq!(missing(&healthy, &names(&["web99"])).unwrap(), "web99 is not known here");
        let troubled = troubled_status();
        let down = troubled.peers.iter().find(|peer| peer.state == PeerState::Down).unwrap();
        let told = missing(&troubled, &names(&[&down.name, "web99"])).unwrap();
        assert_eq!(told, format!("the link to {} is down; web99 is not known here", down.name));
    }
}

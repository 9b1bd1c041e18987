//! `meshctl drain`.

use std::time::{Duration, Instant};

use clap::Args;

use super::context::Context;
use super::exit::Failure;
use super::quantity;
use crate::api::{DrainRequest, DrainStatus, GatewayList};
use crate::config::duration;

/// Time between two looks while waiting; what is waited for lasts half a minute.
const PAUSE: Duration = Duration::from_secs(1);

/// `meshctl drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl drain                on a gateway of shared prefixes: flows go by another one\n  \
                        meshctl drain --wait 10m     and says when nothing has passed here for 30 s\n  \
                        meshctl drain --undo\n\n\
                        The other nodes are told at once; where no other gateway serves, they go on to send here. A drain outlives\n\
                        restarts. After --undo the priority counts again five minutes later."
)]
pub struct DrainArgs {
    /// This node, by name or identifier, to be sure that it is the right one.
    #[arg(value_name = "NODE")]
    pub node: Option<String>,
    /// Lets flows come again.
    #[arg(long)]
    pub undo: bool,
    /// Waits until nothing has passed for 30 s; fails after this time.
    #[arg(long, value_name = "DURATION", conflicts_with = "undo", value_parser = duration::parse)]
    pub wait: Option<Duration>,
}

/// Drains this node, or undoes it, and says what still passes.
pub async fn run(context: &Context, args: &DrainArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let request = DrainRequest { node: args.node.clone(), undo: args.undo };
    let mut list = client.drain(&request).await?;
    let limit = args.wait.map(|wait| Instant::now() + wait);
    let is_safe = |list: &GatewayList| list.drain.as_ref().is_none_or(|drain| drain.safe);
    while !is_safe(&list) && limit.is_some_and(|limit| Instant::now() < limit) {
        tokio::time::sleep(PAUSE).await;
        list = client.gateways().await?;
    }
    if context.output.json {
        context.output.json(&list)?;
    } else {
        context.output.data(&told(&list))?;
    }
    match args.wait {
        Some(wait) if !is_safe(&list) => {
            Err(Failure::failed(format!("something still passed here after {}", duration::format(wait))))
        }
        _ => Ok(()),
    }
}

fn told(list: &GatewayList) -> String {
    let Some(drain) = &list.drain else {
        return format!("{} is not drained; its priority counts again after five minutes\n", list.node);
    };
    let mut out = render(&list.node, drain);
    for prefix in &list.prefixes {
        let own = prefix.gateways.iter().any(|gateway| gateway.is_self);
        let others = prefix.gateways.iter().filter(|gateway| !gateway.is_self);
        let fit: Vec<&str> = others.filter(|other| other.fitness == "fit").map(|other| other.name.as_str()).collect();
        match fit.is_empty() {
            _ if !own => {}
            true => out.push_str(&format!("{}: no other gateway serves it, so flows still come here\n", prefix.prefix)),
            false => out.push_str(&format!("{}: by {} now\n", prefix.prefix, fit.join(" or "))),
        }
    }
    out
}

/// Renders what still passes a drained node.
pub fn render(node: &str, drain: &DrainStatus) -> String {
    let quiet = quantity::age(drain.quiet_seconds as u64);
    match drain.safe {
        true => format!("{node} is drained: nothing has passed for {quiet}, so it is safe to take it down\n"),
        false => format!(
            "{node} is drained: {} ({}) passed in the last minute, the last packet {quiet} ago; safe after {} s without any\n",
            quantity::count(drain.flows, "flow"),
            quantity::bytes(drain.bytes),
            DrainStatus::SAFE_AFTER_SECONDS
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    #[test]
    fn what_still_passes_and_when_it_is_safe() {
        let mut list = fake::gateways();
        insta::assert_snapshot!(told(&list), @r#"
        web1 is drained: 3 flows (1.15 MiB) passed in the last minute, the last packet 4s ago; safe after 30 s without any
        10.30.0.0/16: by gw2 now
        "#);
        list.drain = list.drain.map(|drain| DrainStatus { flows: 0, quiet_seconds: 95.0, safe: true, ..drain });
        insta::assert_snapshot!(told(&list), @r#"
        web1 is drained: nothing has passed for 1m35s, so it is safe to take it down
        10.30.0.0/16: by gw2 now
        "#);
        list.drain = None;
        assert!(told(&list).contains("not drained"));
    }
}

//! `meshctl events`: what happened.

use std::time::Duration;

use anstyle::Style;
use clap::Args;

use super::context::Context;
use super::exit::Failure;
use super::output::{BAD, GOOD, HEADING, STRONG, WORRYING};
use super::table::{Align, Cell, Table};
use super::when::When;
use crate::api::{EventItem, Events, EventsRequest};
use crate::platform::clock;

/// How often a follower asks: events are for people.
const FOLLOW: Duration = Duration::from_secs(1);

/// `meshctl events`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl events\n  meshctl events db1 --since 7d\n  \
                        meshctl events --follow                    goes on until interrupted\n  \
                        meshctl --json events --follow | jq .text\n\n\
                        Times are in UTC. Events are kept for five years.")]
pub struct EventsArgs {
    /// Only what is about this node, by name, identifier or overlay address; also one that has gone.
    #[arg(value_name = "NODE")]
    pub node: Option<String>,
    /// Only what happened since: so long ago, or a date.
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub since: Option<When>,
    /// How many at most, the newest.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub limit: u64,
    /// Goes on with what happens from now on.
    #[arg(long, short)]
    pub follow: bool,
}

/// Shows events, and goes on with `--follow`.
pub async fn run(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let now = clock::wall();
    let mut request = EventsRequest {
        peer: args.node.clone(),
        since: args.since.map(|since| since.at(now).into()),
        until: None,
        after: None,
        limit: Some(args.limit),
    };
    let mut events = client.events(&request).await?;
    if !args.follow {
        return if context.output.json { context.output.json(&events) } else { context.output.data(&render(&events)) };
    }
    loop {
        for event in &events.events {
            request.after = request.after.max(Some(event.sequence));
        }
        if context.output.json {
            events.events.iter().try_for_each(|event| context.output.json_line(event))?;
        } else if !events.events.is_empty() {
            context.output.data(&table(&events.events).render_rows())?;
        }
        tokio::time::sleep(FOLLOW).await;
        // From the second time on only what is new.
        request.since = None;
        events = client.events(&request).await?;
    }
}

/// Renders events.
pub fn render(events: &Events) -> String {
    if events.events.is_empty() {
        return "nothing happened in that time\n".to_owned();
    }
    let mut text = table(&events.events).render(HEADING);
    if events.truncated {
        text.push_str("older ones are left out; --limit shows more\n");
    }
    text
}

fn table(events: &[EventItem]) -> Table {
    let columns = [("TIME (UTC)", Align::Left), ("EVENT", Align::Left), ("PEER", Align::Left), ("WHAT", Align::Left)];
    let mut table = Table::new(&columns);
    for event in events {
        table.row([
            event.at.to_string().trim_end_matches('Z').replace('T', " ").into(),
            Cell::styled(event.kind.clone(), style_of(&event.kind)),
            Cell::styled(event.peer.clone().unwrap_or_else(|| "-".to_owned()), STRONG),
            event.text.clone().into(),
        ]);
    }
    table
}

/// The colour of an event's kind; kinds that a newer daemon may have are plain.
pub fn style_of(kind: &str) -> Style {
    match kind {
        "down" | "node_down" | "revoked" | "expired" | "history_failed" | "alert_firing" => BAD,
        "suspect" | "degraded" | "unknown" | "latency_step" | "clock_step" | "observer" | "reload_refused" => WORRYING,
        "up" | "history_resumed" | "alert_resolved" => GOOD,
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SCHEMA;
    use crate::api::fake::event_items;

    #[test]
    fn events_with_their_kinds() {
        let events = Events { schema: SCHEMA, events: event_items(), truncated: true };
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&events)).to_string(), @r#"
            TIME (UTC)           EVENT         PEER       WHAT
            2026-11-22 11:58:20  started       -          meshd 0.1.0 started
            2026-11-22 13:10:00  latency_step  db-par-17  10.30 ms to 12.61 ms, on the way back
            2026-11-22 13:40:00  down          db-par-17  Suspect to Down
            2026-11-22 13:40:58  up            db-par-17  Down to Up
            older ones are left out; --limit shows more
        "#);
        let none = Events { schema: SCHEMA, events: Vec::new(), truncated: false };
        assert_eq!(render(&none), "nothing happened in that time\n");
    }
}

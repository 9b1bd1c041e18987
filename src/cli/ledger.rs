//! `meshctl ledger`.

use std::time::Duration;

use clap::Args;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{HEADING, STRONG, WORRYING, paint};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{CanGo, Client, ConnectionEnds, LedgerConnection, LinkLedger, LinkUsage, Timestamp};
use crate::config::duration;

/// `meshctl ledger`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl ledger                        every link: can it go, and what holds it\n  \
                  meshctl ledger db-old                 the connections of one\n  \
                  meshctl ledger db-old --since 7d      also those that ended in the last seven days\n  \
                  meshctl ledger db-old --check && meshctl revoke db-old\n  \
                  meshctl --json ledger | jq '.links[] | select(.can_go == \"yes\") | .name'\n\n\
                  A connection is listed once it has lasted a minute. Ages, bytes and the last use outlive restarts of the daemon.\n\
                  Where a connection's opening was not seen, the end with the lower port is taken for the one that was called."
)]
pub struct LedgerArgs {
    /// The node or stock WireGuard peer; every link unless given.
    pub node: Option<String>,
    /// Lists connections that have ended, too, if their last packet is no older than this.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub since: Option<Duration>,
    /// Ends with 1 unless the link, or every one, can go.
    #[arg(long)]
    pub check: bool,
}

/// Shows what uses the links.
pub async fn run(context: &Context, args: &LedgerArgs) -> Result<(), Failure> {
    let mut ledger = context.client()?.ledger().await?;
    if let Some(name) = &args.node {
        let is_it = |link: &LinkUsage| link.name == *name || link.node_id == *name;
        if !ledger.links.iter().any(is_it) {
            let known = ledger.links.iter().map(|link| link.name.as_str());
            return Err(Failure::not_found("peer", name, known, "meshctl members"));
        }
        ledger.links.retain(is_it);
    }
    for link in &mut ledger.links {
        let recent = |ended: &LedgerConnection| {
            args.since.is_some_and(|since| ledger.now.0.saturating_since(ended.last.0) <= since)
        };
        link.ended.retain(recent);
    }
    if context.output.json {
        context.output.json(&ledger)?;
    } else if args.node.is_some() {
        ledger.links.iter().try_for_each(|link| context.output.data(&render_link(&ledger, link)))?;
    } else {
        context.output.data(&render(&ledger))?;
    }
    if args.check && ledger.links.iter().any(|link| link.can_go != CanGo::Yes) {
        // What holds it stands on the screen.
        return Err(Failure::new(Exit::Failed, ""));
    }
    Ok(())
}

/// The line of `meshctl status NODE`; nothing where it cannot be told.
pub(super) async fn line(client: &Client, node_id: &str) -> Option<String> {
    let ledger = client.ledger().await.ok()?;
    let link = ledger.links.iter().find(|link| link.node_id == node_id)?;
    Some(format!("{}      can it go? {}\n", paint(HEADING, "ledger"), answer(link, ledger.now)))
}

/// Renders every link: what cannot go first, then the longest in use.
pub fn render(ledger: &LinkLedger) -> String {
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("CAN GO", Align::Left),
        ("OPEN", Align::Right),
        ("OLDEST", Align::Right),
        ("LAST PACKET", Align::Right),
        ("OF", Align::Left),
    ]);
    let mut links: Vec<&LinkUsage> = ledger.links.iter().collect();
    let oldest = |link: &LinkUsage| link.connections.first().map(|connection| connection.began.0);
    links.sort_by_key(|link| (link.can_go, oldest(link).is_none(), oldest(link), link.name.clone()));
    for link in links {
        let word = match link.can_go {
            CanGo::No => Cell::from("no"),
            CanGo::Unsure => Cell::styled("unsure", WORRYING),
            CanGo::Yes => Cell::from("yes"),
        };
        table.row([
            Cell::styled(link.name.clone(), STRONG),
            word,
            link.connections.len().to_string().into(),
            oldest(link).map_or("-".to_owned(), |began| quantity::since(ledger.now, Timestamp(began))).into(),
            link.last.map_or("-".to_owned(), |last| format!("{} ago", quantity::since(ledger.now, last))).into(),
            link.last_connection.as_ref().map_or("-".to_owned(), described).into(),
        ]);
    }
    let mut out = table.render(HEADING);
    for link in &ledger.links {
        if !link.ended.is_empty() {
            out.push_str(&format!(
                "\n{}, ended:\n{}",
                paint(STRONG, &link.name),
                connections(ledger, &link.ended, true)
            ));
        }
    }
    out.push_str(&reservations(ledger));
    out
}

/// Renders one link: the answer, and the connections it rests on.
pub fn render_link(ledger: &LinkLedger, link: &LinkUsage) -> String {
    let mut out = format!("{}\n", answer(link, ledger.now));
    if !link.connections.is_empty() {
        out.push_str(&format!("\n{}", connections(ledger, &link.connections, false)));
    }
    if !link.ended.is_empty() {
        out.push_str(&format!("\nended:\n{}", connections(ledger, &link.ended, true)));
    }
    out.push_str(&reservations(ledger));
    out
}

/// The answer to whether a link can go.
fn answer(link: &LinkUsage, now: Timestamp) -> String {
    let (name, count) = (&link.name, link.connections.len() as u64);
    let watched = quantity::since(now, link.watched_since);
    let last = link.last.map(|last| quantity::since(now, last));
    let whose =
        |word: &str| link.last_connection.as_ref().map_or(String::new(), |ends| format!("{word}{}", described(ends)));
    let newest = link.connections.iter().map(|connection| connection.last.0).max();
    let silence = newest.map(|newest| quantity::since(now, Timestamp(newest))).unwrap_or_default();
    match (link.can_go, link.connections.first(), last) {
        (CanGo::Yes, _, Some(last)) => format!("Yes: nothing has used {name} for {last}{}", whose("; last was ")),
        (CanGo::Yes, _, None) => format!("Yes: nothing has used {name} in the {watched} that it has been watched"),
        (CanGo::Unsure, Some(_), _) => {
            let (connections, they) = (quantity::count(count, "connection"), if count == 1 { "it" } else { "they" });
            let (is, stands) = if count == 1 { ("is", "stands") } else { ("are", "stand") };
            format!(
                "Unsure: {connections} to {name} {is} open, but silent for {silence}; whether {they} still {stands} is not known"
            )
        }
        (_, None, None) | (CanGo::Unsure, None, _) => {
            format!("Unsure: nothing has used {name} yet, but it has been watched for {watched} only")
        }
        (CanGo::No, Some(oldest), _) => {
            let use_it = if count == 1 { "uses" } else { "use" };
            let connections = quantity::count(count, "connection");
            let age = quantity::since(now, oldest.began);
            let which = if count == 1 { "open for" } else { "the oldest for" };
            format!("No: {connections} {use_it} {name}, {which} {age}, last packet {silence} ago")
        }
        (CanGo::No, None, Some(last)) => {
            format!("No: no connection to {name} lasts, but the last packet is {last} old{}", whose(", of "))
        }
    }
}

fn connections(ledger: &LinkLedger, connections: &[LedgerConnection], ended: bool) -> String {
    let mut table = Table::new(&[
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("PROTOCOL", Align::Left),
        (if ended { "LASTED" } else { "AGE" }, Align::Right),
        ("LAST PACKET", Align::Right),
        ("SENT", Align::Right),
        ("RECEIVED", Align::Right),
    ]);
    for connection in connections {
        let [from, to] = in_order(&connection.ends);
        table.row([
            from.into(),
            to.into(),
            connection.ends.protocol.clone().into(),
            quantity::since(if ended { connection.last } else { ledger.now }, connection.began).into(),
            format!("{} ago", quantity::since(ledger.now, connection.last)).into(),
            quantity::bytes(connection.sent_bytes).into(),
            quantity::bytes(connection.received_bytes).into(),
        ]);
    }
    table.render(HEADING)
}

/// What keeps the list from being the whole truth.
fn reservations(ledger: &LinkLedger) -> String {
    let mut out = String::new();
    if ledger.evicted > 0 {
        let evicted = quantity::count(ledger.evicted, "connection");
        out.push_str(&format!(
            "\n{evicted} had to make room for others while open: some bytes are not counted, and an end may be missed\n"
        ));
    }
    if ledger.left_out > 0 {
        out.push_str(&paint(WORRYING, "\nthere are more connections than the ledger holds: it is not complete\n"));
    }
    out
}

/// The two ends, the one that opened it first.
fn in_order(ends: &ConnectionEnds) -> [String; 2] {
    let text = |address: std::net::SocketAddr, name: &Option<String>| match name {
        Some(name) => format!("{name}:{}", address.port()),
        None => address.to_string(),
    };
    let (near, far) = (text(ends.near, &ends.near_name), text(ends.far, &ends.far_name));
    if ends.opened_near.unwrap_or(ends.near.port() >= ends.far.port()) { [near, far] } else { [far, near] }
}

fn described(ends: &ConnectionEnds) -> String {
    let [from, to] = in_order(ends);
    format!("{from} to {to} ({})", ends.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn what_cannot_go_comes_first() {
        insta::assert_snapshot!(plain(&render(&fake::ledger())), @"
        PEER    CAN GO  OPEN  OLDEST  LAST PACKET  OF
        db-old  no         3  41d00h       2s ago  app1:41234 to db-old:3306 (tcp)
        web3    no         0       -      30s ago  app1:41234 to web3:3306 (tcp)
        pg1     unsure     1  30d00h    3d00h ago  app1:41234 to pg1:3306 (tcp)
        new1    unsure     0       -            -  -
        web9    yes        0       -    9d00h ago  app1:41234 to web9:3306 (tcp)

        db-old, ended:
        FROM        TO           PROTOCOL  LASTED  LAST PACKET    SENT  RECEIVED
        app1:40001  db-old:3306  tcp        8d00h    1d00h ago  1000 B  6.84 KiB
        ");
    }

    #[test]
    fn the_answer_comes_first_and_what_it_rests_on_follows() {
        let ledger = fake::ledger();
        let pages: Vec<String> = ledger.links.iter().map(|link| plain(&render_link(&ledger, link))).collect();
        insta::assert_snapshot!(pages.join("----\n"), @"
        No: 3 connections use db-old, the oldest for 41d00h, last packet 2s ago

        FROM             TO             PROTOCOL     AGE  LAST PACKET       SENT  RECEIVED
        app1:41234       db-old:3306    tcp       41d00h       2s ago  941.9 MiB  6.44 GiB
        192.0.2.9:50022  app1:22        tcp        1h01m    1m00s ago   12.1 KiB  84.4 KiB
        app1:123         192.0.2.9:123  udp       10m00s       5s ago      760 B  5.20 KiB

        ended:
        FROM        TO           PROTOCOL  LASTED  LAST PACKET    SENT  RECEIVED
        app1:40001  db-old:3306  tcp        8d00h    1d00h ago  1000 B  6.84 KiB
        ----
        Unsure: nothing has used new1 yet, but it has been watched for 3m00s only
        ----
        Unsure: 1 connection to pg1 is open, but silent for 3d00h; whether it still stands is not known

        FROM        TO        PROTOCOL     AGE  LAST PACKET  SENT  RECEIVED
        app1:50000  pg1:5432  tcp       30d00h    3d00h ago   1 B       7 B
        ----
        No: no connection to web3 lasts, but the last packet is 30s old, of app1:41234 to web3:3306 (tcp)
        ----
        Yes: nothing has used web9 for 9d00h; last was app1:41234 to web9:3306 (tcp)
        ");
    }
}

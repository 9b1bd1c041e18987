//! `meshctl dbcost NODE`: what the link costs a page whose queries go one after the other.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{HEADING, STRONG, WORRYING, paint};
use super::quantity;
use super::underlay::Echoes;
use crate::api::{
    Client, ClientError, ErrorKind, History, HistoryPoint, HistoryRequest, PingLine, PingMode, PingRequest, SCHEMA,
    Status, Timestamp,
};
use crate::config::duration;

/// `meshctl dbcost`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl dbcost db1\n  meshctl dbcost db1 --queries 90        a page of many plugins\n  \
                        meshctl dbcost db1 --query-time 2ms    with what a query takes in the database itself\n\n\
                        Measures for about two seconds; the last week comes from the history. What is not known is said."
)]
pub struct DbcostArgs {
    /// The node the database is on, by name, identifier or overlay address.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Queries of a page, one after the other.
    #[arg(long, short, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queries: u32,
    /// What a query takes in the database itself.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration::parse)]
    pub query_time: Duration,
}

/// Probes whose medians stand for now, and the time between two: a second in all.
const PROBES: u32 = 20;
const INTERVAL: Duration = Duration::from_millis(50);
/// What the way to a database on this host is taken to be: a socket, two wake-ups and a parser, not measured here.
const LOCAL: Duration = Duration::from_micros(200);
/// A week, and the hours it is looked at in.
const WEEK: Duration = Duration::from_secs(7 * 86_400);
const HOUR: u64 = 3_600;

/// What the link costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    schema: u32,
    node: String,
    queries: u32,
    /// What a query takes in the database itself.
    query_seconds: f64,
    /// What the way to a database on this host takes.
    local_seconds: f64,
    /// Probes that were answered just now.
    probes: usize,
    /// The median round trip of a packet of an application.
    tunnel_p50_seconds: f64,
    /// The median round trip between the kernels.
    path_p50_seconds: f64,
    /// The median round trip of an ICMP echo of the same size outside the tunnel.
    icmp_p50_seconds: Option<f64>,
    /// Why there is none.
    icmp_missing: Option<String>,
    /// All queries of a page.
    page_seconds: f64,
    /// The same with a database on this host.
    local_page_seconds: f64,
    /// The same a week ago.
    week_ago: Option<Then>,
    /// The same in the worst hour of the last week, at its 99th percentile.
    worst_hour: Option<Then>,
    /// Since when it is known what the link was like.
    measured_since: Option<Timestamp>,
}

/// What it cost at another time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Then {
    from: Timestamp,
    tunnel_seconds: f64,
    page_seconds: f64,
}

/// What probes say just now.
struct Probed {
    node: String,
    endpoint: Option<IpAddr>,
    inner_bytes: usize,
    paths: Vec<f64>,
    tunnels: Vec<f64>,
}

/// Shows what the link costs.
pub async fn run(context: &Context, args: &DbcostArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let probed = probe(&client, &args.node).await?;
    let (Some(path), Some(tunnel)) = (median(&probed.paths), median(&probed.tunnels)) else {
        let advice = format!("see what is wrong: meshctl status {}", probed.node);
        return Err(Failure::new(Exit::Failed, format!("none of {PROBES} probes was answered; {advice}")));
    };
    let (icmp, icmp_missing) = match echo(&probed).await {
        Ok(icmp) => (Some(icmp), None),
        Err(why) => (None, Some(why)),
    };
    let status = client.status().await?;
    let history = history(&client, &probed.node, &status).await?;
    let page = |rtt: f64| f64::from(args.queries) * (rtt + args.query_time.as_secs_f64());
    let then = |(from, tunnel_seconds)| Then { from, tunnel_seconds, page_seconds: page(tunnel_seconds) };
    let cost = Cost {
        schema: SCHEMA,
        node: probed.node,
        queries: args.queries,
        query_seconds: args.query_time.as_secs_f64(),
        local_seconds: LOCAL.as_secs_f64(),
        probes: probed.tunnels.len(),
        tunnel_p50_seconds: tunnel,
        path_p50_seconds: path,
        icmp_p50_seconds: icmp,
        icmp_missing,
        page_seconds: page(tunnel),
        local_page_seconds: page(LOCAL.as_secs_f64()),
        week_ago: history.as_ref().and_then(week_ago).map(then),
        worst_hour: history.as_ref().and_then(worst_hour).map(then),
        measured_since: history.as_ref().and_then(measured_since),
    };
    if context.output.json { context.output.json(&cost) } else { context.output.data(&render(&cost)) }
}

async fn probe(client: &Client, node: &str) -> Result<Probed, Failure> {
    let request = PingRequest {
        node: node.to_owned(),
        count: PROBES,
        interval_seconds: INTERVAL.as_secs_f64(),
        mode: PingMode::Tunnel,
    };
    let empty = (Vec::new(), Vec::new());
    let mut probed = Probed { node: node.to_owned(), endpoint: None, inner_bytes: 0, paths: empty.0, tunnels: empty.1 };
    let on_line = |line| match line {
        PingLine::Start { node, path, size_bytes, .. } => {
            probed.node = node;
            probed.endpoint = path.map(|path| path.endpoint.ip());
            probed.inner_bytes = usize::try_from(size_bytes).unwrap_or(0);
        }
        PingLine::Reply { path_seconds, tunnel_seconds, .. } => {
            probed.paths.push(path_seconds);
            probed.tunnels.push(tunnel_seconds);
        }
        _ => {}
    };
    client.ping(&request, on_line).await?;
    Ok(probed)
}

/// The median round trip of ICMP, or why it is not known.
async fn echo(probed: &Probed) -> Result<f64, String> {
    let endpoint = probed.endpoint.ok_or("packets do not go straight to an endpoint")?;
    let echoes = Echoes { endpoint, inner_bytes: probed.inner_bytes, count: PROBES, interval: INTERVAL };
    // A host that refuses ICMP is known after two of them.
    let first = Echoes { count: 2, ..echoes }.run(|_| {}).await.map_err(|failure| failure.message)?;
    let silent = || format!("{endpoint} does not answer ICMP, or a firewall refuses it");
    first.median().ok_or_else(silent)?;
    echoes.run(|_| {}).await.map_err(|failure| failure.message)?.median().ok_or_else(silent)
}

/// The last week by the hour, and the hour before it; `None` where the daemon keeps no history, or none of this link.
async fn history(client: &Client, node: &str, status: &Status) -> Result<Option<History>, Failure> {
    let since = Some(Timestamp(status.now.0 - WEEK - Duration::from_secs(HOUR)));
    let request = HistoryRequest { peer: node.to_owned(), since, until: None, step_seconds: Some(HOUR) };
    match client.history(&request).await {
        Ok(history) => Ok(Some(history)),
        Err(ClientError::Refused(refused)) if matches!(refused.kind, ErrorKind::NotFound | ErrorKind::Conflict) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// When the first hour of which anything is known begins.
fn measured_since(history: &History) -> Option<Timestamp> {
    history.points.iter().find(|point| point.tunnel.is_some()).map(|point| point.start)
}

/// The first hour asked for, where it is known.
fn week_ago(history: &History) -> Option<(Timestamp, f64)> {
    let first = history.points.first()?;
    first.tunnel.map(|tunnel| (first.start, tunnel.p50_seconds))
}

fn worst_hour(history: &History) -> Option<(Timestamp, f64)> {
    let p99 = |point: &HistoryPoint| point.tunnel.map(|tunnel| (point.start, tunnel.p99_seconds));
    history.points.iter().filter_map(p99).max_by(|a, b| a.1.total_cmp(&b.1))
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Renders what the link costs.
fn render(cost: &Cost) -> String {
    let time = quantity::seconds;
    let (tunnel, path) = (cost.tunnel_p50_seconds, cost.path_p50_seconds);
    let line = |name: &str, text: String| format!("{}{}{text}\n", paint(HEADING, name), " ".repeat(15 - name.len()));
    let mut out = format!(
        "{}  a query crosses the link and back in {} (median of {})\n\n",
        paint(STRONG, &cost.node),
        paint(STRONG, &time(tunnel)),
        quantity::count(cost.probes as u64, "probe"),
    );
    let share = |part: f64| format!("{:>10}  {:>5.1}%", time(part.max(0.0)), part.max(0.0) / tunnel * 100.0);
    match cost.icmp_p50_seconds {
        Some(icmp) => {
            out.push_str(&line(
                "network",
                format!("{}  as ICMP echoes of the same size see it", share(icmp.min(path))),
            ));
            out.push_str(&line("tunnel", format!("{}  sealing, opening, sockets", share(path - icmp))));
        }
        None => out.push_str(&line("network", format!("{}  sealing and sockets included", share(path)))),
    }
    out.push_str(&line("hosts", format!("{}  packets that wait for a daemon", share(tunnel - path))));
    let page = paint(STRONG, &format!("+{}", time(cost.page_seconds)));
    let itself = match cost.query_seconds {
        0.0 => String::new(),
        seconds => format!(", {} of it in the database", time(seconds * f64::from(cost.queries))),
    };
    let queries = if cost.queries == 1 { "1 query".to_owned() } else { format!("{} queries", cost.queries) };
    out.push_str(&format!("\n{queries} one after the other\n"));
    out.push_str(&line("now", format!("{page} a page{itself}")));
    let local = format!("{} a page, where each takes {}", time(cost.local_page_seconds), time(cost.local_seconds));
    out.push_str(&line("on this host", local));
    let unknown = || match cost.measured_since {
        Some(since) => format!("not known yet: this link is measured since {since}"),
        None => "not known yet: nothing of this link is recorded".to_owned(),
    };
    out.push_str(&line(
        "a week ago",
        cost.week_ago.map_or_else(unknown, |then| {
            let more = cost.page_seconds - then.page_seconds;
            let change = match more {
                more if more >= 0.0005 => paint(WORRYING, &format!("now {} more", time(more))),
                more if more <= -0.0005 => format!("now {} less", time(-more)),
                _ => "now the same".to_owned(),
            };
            format!("+{} a page, {change}", time(then.page_seconds))
        }),
    ));
    out.push_str(&line(
        "worst hour",
        cost.worst_hour.map_or_else(unknown, |then| {
            let (page, p99) = (time(then.page_seconds), time(then.tunnel_seconds));
            format!("+{page} a page at its p99 of {p99}, from {}", then.from)
        }),
    ));
    out.push_str("\nwhat the tunnel and both daemons add to a query, in three ways\n");
    out.push_str(&line(
        "probes",
        format!("{}  tunnel less path round trip: waiting in the hosts", time((tunnel - path).max(0.0))),
    ));
    out.push_str(&line(
        "icmp",
        match (cost.icmp_p50_seconds, &cost.icmp_missing) {
            (Some(icmp), _) => format!("{}  tunnel round trip less that of ICMP", signed(tunnel - icmp)),
            (None, why) => format!("not known: {}", why.as_deref().unwrap_or("not asked")),
        },
    ));
    out.push_str(&line("in line", "not measured by this version: the time data packets spend in both daemons".into()));
    out
}

/// A difference, which noise makes negative where there is none.
fn signed(seconds: f64) -> String {
    if seconds < 0.0 { format!("-{}", quantity::seconds(-seconds)) } else { quantity::seconds(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::time;

    fn cost() -> Cost {
        let then = |from, tunnel_seconds: f64| Some(Then { from, tunnel_seconds, page_seconds: tunnel_seconds * 50.0 });
        Cost {
            schema: SCHEMA,
            node: "db-par-17".into(),
            queries: 50,
            query_seconds: 0.0,
            local_seconds: 0.000_2,
            probes: 20,
            tunnel_p50_seconds: 0.012_8,
            path_p50_seconds: 0.012_61,
            icmp_p50_seconds: Some(0.012_52),
            icmp_missing: None,
            page_seconds: 0.64,
            local_page_seconds: 0.01,
            week_ago: then(time(1_794_751_320), 0.010_5),
            worst_hour: then(time(1_795_272_120), 0.014_3),
            measured_since: Some(time(1_794_751_320)),
        }
    }

    fn shown(cost: &Cost) -> String {
        anstream::adapter::strip_str(&render(cost)).to_string()
    }

    #[test]
    fn a_link_that_has_got_slower() {
        insta::assert_snapshot!(shown(&cost()), @r#"
            db-par-17  a query crosses the link and back in 12.80 ms (median of 20 probes)

            network          12.52 ms   97.8%  as ICMP echoes of the same size see it
            tunnel              90 us    0.7%  sealing, opening, sockets
            hosts              190 us    1.5%  packets that wait for a daemon

            50 queries one after the other
            now            +640.00 ms a page
            on this host   10.00 ms a page, where each takes 200 us
            a week ago     +525.00 ms a page, now 115.00 ms more
            worst hour     +715.00 ms a page at its p99 of 14.30 ms, from 2026-11-21T14:42:00Z

            what the tunnel and both daemons add to a query, in three ways
            probes         190 us  tunnel less path round trip: waiting in the hosts
            icmp           280 us  tunnel round trip less that of ICMP
            in line        not measured by this version: the time data packets spend in both daemons
        "#);
    }

    #[test]
    fn what_is_not_known_is_said_and_not_made_up() {
        let why = Some("198.51.100.2 does not answer ICMP, or a firewall refuses it".to_owned());
        let new = Cost {
            queries: 1,
            query_seconds: 0.002,
            page_seconds: 0.014_8,
            local_page_seconds: 0.002_2,
            icmp_p50_seconds: None,
            icmp_missing: why,
            week_ago: None,
            measured_since: Some(time(1_795_350_120)),
            ..cost()
        };
        let nothing = Cost { worst_hour: None, measured_since: None, ..new.clone() };
        insta::assert_snapshot!([shown(&new), shown(&nothing)].join("\n"), @r#"
            db-par-17  a query crosses the link and back in 12.80 ms (median of 20 probes)

            network          12.61 ms   98.5%  sealing and sockets included
            hosts              190 us    1.5%  packets that wait for a daemon

            1 query one after the other
            now            +14.80 ms a page, 2.00 ms of it in the database
            on this host   2.20 ms a page, where each takes 200 us
            a week ago     not known yet: this link is measured since 2026-11-22T12:22:00Z
            worst hour     +715.00 ms a page at its p99 of 14.30 ms, from 2026-11-21T14:42:00Z

            what the tunnel and both daemons add to a query, in three ways
            probes         190 us  tunnel less path round trip: waiting in the hosts
            icmp           not known: 198.51.100.2 does not answer ICMP, or a firewall refuses it
            in line        not measured by this version: the time data packets spend in both daemons

            db-par-17  a query crosses the link and back in 12.80 ms (median of 20 probes)

            network          12.61 ms   98.5%  sealing and sockets included
            hosts              190 us    1.5%  packets that wait for a daemon

            1 query one after the other
            now            +14.80 ms a page, 2.00 ms of it in the database
            on this host   2.20 ms a page, where each takes 200 us
            a week ago     not known yet: nothing of this link is recorded
            worst hour     not known yet: nothing of this link is recorded

            what the tunnel and both daemons add to a query, in three ways
            probes         190 us  tunnel less path round trip: waiting in the hosts
            icmp           not known: 198.51.100.2 does not answer ICMP, or a firewall refuses it
            in line        not measured by this version: the time data packets spend in both daemons
        "#);
    }

    #[test]
    fn shares_are_of_the_whole_whatever_the_noise() {
        let odd = Cost { icmp_p50_seconds: Some(0.013), ..cost() };
        let text = shown(&odd);
        assert!(text.contains(" 98.5%") && text.contains("  0.0%") && text.contains("  1.5%"), "{text}");
        assert!(text.contains("-200 us"), "ICMP was slower, and that is shown: {text}");
    }
}

//! `meshctl status`.

use std::time::Duration;

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

use super::args::StatusArgs;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::ledger;
use super::output::{HEADING, STRONG, WORRYING, paint, style_of_gravity, style_of_state, style_of_wireguard};
use super::past::{self, Past};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{
    Counts, Gravity, LossRatio, PathKind, PathStatus, PeerState, PeerStatus, PolicyAgreement, PqState, Problem, Status,
    Timestamp, WireguardStatus,
};
use crate::telemetry::LossEstimate;
use crate::wire::overlay;
use crate::wire::probe::PROBE_LEN;

/// How often `--watch` asks and draws.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the state of this node's links.
pub async fn run(context: &Context, args: &StatusArgs) -> Result<(), Failure> {
    if args.watch {
        return watch(context, args).await;
    }
    let client = context.client()?;
    let status = client.status().await?;
    show(context, args, &status)?;
    if let (false, Some(name)) = (context.output.json, &args.node)
        && let Ok(peer) = find(&status, name)
    {
        if let Some(line) = ledger::line(&client, &peer.node_id).await {
            context.output.data(&line)?;
        }
        let past = Past::load(&client, &peer.name, status.now).await;
        context.output.data(&past::render(&past, context.output.width()))?;
    }
    if args.check && !is_good(&status, args.node.as_deref()) {
        // What is wrong stands on the screen.
        return Err(Failure::new(Exit::Failed, ""));
    }
    Ok(())
}

async fn watch(context: &Context, args: &StatusArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    loop {
        ticks.tick().await;
        let status = client.status().await?;
        if !context.output.json {
            // Home, and clear to the end: what is drawn over does not flicker.
            context.output.data("\x1b[H\x1b[J")?;
        }
        show(context, args, &status)?;
    }
}

fn show(context: &Context, args: &StatusArgs, status: &Status) -> Result<(), Failure> {
    match &args.node {
        Some(name) if status.wireguard.iter().any(|peer| peer.name == *name) => {
            let output = context.output;
            status.wireguard.iter().filter(|peer| peer.name == *name).try_for_each(|peer| {
                if output.json && args.watch {
                    output.json_line(peer)
                } else if output.json {
                    output.json(peer)
                } else {
                    output.data(&render_wireguard(status, peer, output.width()))
                }
            })
        }
        Some(name) => {
            let peer = find(status, name)?;
            let output = context.output;
            if output.json && args.watch {
                output.json_line(peer)
            } else if output.json {
                output.json(peer)
            } else {
                output.data(&render_peer(status, peer, output.width()))
            }
        }
        None if context.output.json && args.watch => context.output.json_line(status),
        None if context.output.json => context.output.json(status),
        None => context.output.data(&render(status, context.output.width())),
    }
}

/// Returns the peer of that name, identifier or overlay address.
fn find<'a>(status: &'a Status, name: &str) -> Result<&'a PeerStatus, Failure> {
    let fits = |peer: &&PeerStatus| {
        peer.name == name
            || peer.node_id == name
            || peer.address_v4.to_string() == name
            || peer.address_v6.to_string() == name
    };
    status.peers.iter().find(fits).ok_or_else(|| {
        if name == status.node.name {
            return Failure::new(Exit::NotFound, format!("there is no peer `{name}`; it is this node itself"));
        }
        Failure::not_found("peer", name, status.peers.iter().map(|peer| peer.name.as_str()), "meshctl members")
    })
}

/// Whether a monitor should be content: every peer up or new, and no problem above a notice.
fn is_good(status: &Status, node: Option<&str>) -> bool {
    let concerns = |peer: &PeerStatus| node.is_none_or(|node| find(status, node).is_ok_and(|found| found == peer));
    let peers = status.peers.iter().filter(|peer| concerns(peer));
    let peers_good = peers.clone().all(|peer| matches!(peer.state, PeerState::Up | PeerState::New));
    let problem_concerns = |problem: &Problem| match &problem.peer {
        _ if node.is_none() => true,
        Some(name) => peers.clone().any(|peer| peer.name == *name) || node == Some(name.as_str()),
        None => false,
    };
    let mut problems = status.problems.iter().filter(|problem| problem.gravity >= Gravity::Warning);
    peers_good && !problems.any(problem_concerns)
}

/// Renders the whole state for a terminal of so many columns: what is wrong first, then the peers, the worst first.
pub fn render(status: &Status, width: usize) -> String {
    let node = &status.node;
    let mut out = format!(
        "{}  meshd up {}  mesh {}  {} on {}  {}\n",
        paint(STRONG, &node.name),
        quantity::age(node.uptime_seconds),
        status.mesh.name,
        node.address_v4,
        node.interface,
        render_counts(&status.counts),
    );
    out.push_str(&render_watching(status));
    if node.certificate.warning.is_some() && !status.problems.iter().any(|p| p.kind.starts_with("certificate")) {
        let left = node.certificate.expires_in_seconds;
        let text = if left == 0 { "has ended".to_owned() } else { format!("ends in {}", quantity::age(left)) };
        out.push_str(&format!("{}\n", paint(WORRYING, &format!("certificate {text} ({})", node.certificate.expires))));
    }
    out.push_str(&render_problems(status, None, width));
    out.push('\n');
    if status.peers.is_empty() && status.wireguard.is_empty() {
        out.push_str("No peers yet. `meshctl invite NODE` prints a token with which another host joins.\n");
    } else {
        out.push_str(&render_peers(status, width));
    }
    if !status.drops.is_empty() {
        let drops: Vec<String> = status.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        out.push_str(&format!("\ndropped since the start, from no peer: {}\n", drops.join(", ")));
    }
    out
}

/// Bytes of a probe or its answer on an IPv4 underlay: the inner packet, WireGuard's header and tag, UDP and IP.
const PROBE_BYTES: usize = (overlay::HEADER_LEN + PROBE_LEN).next_multiple_of(16) + 32 + 28;

/// What it costs to watch the links, and how well this node can; nothing where there are none.
fn render_watching(status: &Status) -> String {
    let paces = status.peers.iter().filter(|peer| peer.link.is_some()).filter_map(|peer| peer.probe_interval_seconds);
    let a_second: f64 = paces.filter(|pace| *pace > 0.0).map(|pace| 1.0 / pace).sum();
    if a_second == 0.0 {
        return String::new();
    }
    let kbits = a_second * PROBE_BYTES as f64 * 8.0 / 1e3;
    let observer = match status.node.observer_health {
        0 => "observer well".to_owned(),
        health => paint(WORRYING, &format!("observer unwell ({health} of 7): what is not heard may be its own fault")),
    };
    format!("probes {a_second:.1}/s, {kbits:.1} kbit/s each way  {observer}\n")
}

pub(super) fn render_counts(counts: &Counts) -> String {
    let total = quantity::count(counts.peers.into(), "peer");
    let states = [
        (counts.down, PeerState::Down),
        (counts.expired, PeerState::Expired),
        (counts.unknown, PeerState::Unknown),
        (counts.suspect, PeerState::Suspect),
        (counts.degraded, PeerState::Degraded),
        (counts.new, PeerState::New),
        (counts.up, PeerState::Up),
    ];
    let parts: Vec<String> = states
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| paint(style_of_state(*state), &format!("{count} {}", state.name())))
        .collect();
    if parts.is_empty() { total } else { format!("{total}: {}", parts.join(", ")) }
}

/// The longest gravity, and two blanks.
const GRAVITY_WIDTH: usize = 10;

/// Renders the problems, the gravest first; of one peer only, where one is named. What to do goes to a line of its own
/// where it would break: a command in it can be copied.
fn render_problems(status: &Status, peer: Option<&str>, width: usize) -> String {
    let concerns = |problem: &&Problem| peer.is_none() || problem.peer.as_deref() == peer;
    let mut sorted: Vec<&Problem> = status.problems.iter().filter(concerns).collect();
    sorted.sort_by_key(|problem| std::cmp::Reverse(problem.gravity));
    let mut out = String::new();
    for problem in sorted {
        let word = match problem.gravity {
            Gravity::Notice => "notice",
            Gravity::Warning => "warning",
            Gravity::Critical => "critical",
        };
        let age = |since: Timestamp| quantity::since(status.now, since);
        let since = problem.since.map_or(String::new(), |since| format!(" ({})", age(since)));
        let message = format!("{}{since}", problem.message);
        let indent = GRAVITY_WIDTH;
        let advice = match problem.advice.as_str() {
            "" => String::new(),
            advice if indent + message.width() + 2 + advice.width() <= width => format!(": {advice}"),
            advice => format!("\n{:indent$}{advice}", ""),
        };
        let padding = " ".repeat(indent - word.len());
        let word = paint(style_of_gravity(problem.gravity), word);
        out.push_str(&format!("{word}{padding}{message}{advice}\n"));
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}

/// Columns that a narrow terminal does without, the first to go first; `meshctl status NODE` has them all.
const EXPENDABLE: &[&str] =
    &["SENT", "RECEIVED", "JITTER", "SESSION", "ENDPOINT", "PQ", "LOSS", "VS 7d", "p99", "PATH"];

fn render_peers(status: &Status, width: usize) -> String {
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("FOR", Align::Right),
        ("PATH", Align::Left),
        ("ENDPOINT", Align::Left),
        ("RTT p50", Align::Right),
        ("p99", Align::Right),
        ("VS 7d", Align::Right),
        ("JITTER", Align::Right),
        ("LOST 5m", Align::Right),
        ("LOSS", Align::Right),
        ("SESSION", Align::Right),
        ("PQ", Align::Left),
        ("RECEIVED", Align::Right),
        ("SENT", Align::Right),
    ]);
    let mut peers: Vec<&PeerStatus> = status.peers.iter().collect();
    peers.sort_by(|a, b| b.state.severity().cmp(&a.state.severity()).then_with(|| a.name.cmp(&b.name)));
    for peer in peers {
        let link = |of: fn(&crate::api::LinkMeasure) -> f64| {
            peer.link.as_ref().map_or("-".to_owned(), |link| quantity::seconds(of(link)))
        };
        table.row([
            Cell::styled(peer.name.as_str(), STRONG),
            Cell::styled(peer.state.name(), style_of_state(peer.state)),
            quantity::since(status.now, peer.since).into(),
            peer.path.as_ref().map_or("-".to_owned(), render_path).into(),
            peer.path.as_ref().map_or("-".to_owned(), |path| path.endpoint.to_string()).into(),
            link(|link| link.rtt_p50_seconds).into(),
            link(|link| link.rtt_p99_seconds).into(),
            change_cell(peer),
            link(|link| link.jitter_seconds).into(),
            Cell::styled(render_lost(peer.loss.as_ref()), style_of_loss(peer.loss.as_ref())),
            Cell::styled(render_loss(peer.loss.as_ref()).unwrap_or("-".to_owned()), style_of_loss(peer.loss.as_ref())),
            peer.session_age_seconds.map_or("-".to_owned(), quantity::age).into(),
            pq_cell(peer.pq),
            quantity::bytes(peer.rx_bytes).into(),
            quantity::bytes(peer.tx_bytes).into(),
        ]);
    }
    for peer in &status.wireguard {
        let nothing = || Cell::from("-".to_owned());
        table.row([
            Cell::styled(peer.name.as_str(), STRONG),
            Cell::styled(peer.state.name(), style_of_wireguard(peer.state)),
            nothing(),
            "wireguard".to_owned().into(),
            peer.endpoint.map_or("-".to_owned(), |endpoint| endpoint.to_string()).into(),
            nothing(),
            nothing(),
            nothing(),
            nothing(),
            nothing(),
            nothing(),
            peer.session_age_seconds.map_or("-".to_owned(), quantity::age).into(),
            nothing(),
            quantity::bytes(peer.rx_bytes).into(),
            quantity::bytes(peer.tx_bytes).into(),
        ]);
    }
    if status.peers.iter().all(|peer| change(peer).is_none()) {
        // It says nothing before a baseline is learned.
        table = table.without("VS 7d");
    }
    if status.peers.iter().all(|peer| peer.pq.is_none_or(|pq| pq == PqState::Hybrid)) {
        table = table.without("PQ");
    }
    table.fitted(width, EXPENDABLE).render(HEADING)
}

/// Renders everything about a stock WireGuard peer for a terminal of so many columns.
fn render_wireguard(status: &Status, peer: &WireguardStatus, width: usize) -> String {
    let state = paint(style_of_wireguard(peer.state), peer.state.name());
    let mut out = format!("{}  {state}\n", paint(STRONG, &peer.name));
    out.push_str(&render_problems(status, Some(&peer.name), width));
    let joined = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let reaches = if peer.carried.is_empty() {
        "this node alone; no address of it lies in a prefix that this node carries".to_owned()
    } else {
        format!("the whole mesh, with {}", joined(&peer.carried))
    };
    let age = |seconds: Option<u64>| seconds.map(quantity::age);
    let handshakes = quantity::count(peer.handshakes, "handshake");
    let traffic = |bytes, packets| format!("{} in {}", quantity::bytes(bytes), quantity::count(packets, "packet"));
    let mut lines: Vec<(&str, String)> = vec![
        ("kind", "wireguard: a stock peer of this node, not probed".to_owned()),
        ("key", peer.public_key.clone()),
        ("addresses", joined(&peer.addresses)),
        ("reaches", reaches),
        ("endpoint", peer.endpoint.map_or("not known yet".to_owned(), |endpoint| endpoint.to_string())),
        (
            "session",
            match age(peer.session_age_seconds) {
                Some(age) => format!("{age} old, {handshakes} so far"),
                None => format!("none, {handshakes} so far"),
            },
        ),
        ("heard", age(peer.heard_seconds).map_or("never".to_owned(), |age| format!("{age} ago"))),
        ("received", traffic(peer.rx_bytes, peer.rx_packets)),
        ("sent", traffic(peer.tx_bytes, peer.tx_packets)),
    ];
    lines.extend(peer.drops.iter().map(|(reason, count)| ("dropped", format!("{count} {reason}"))));
    out.push('\n');
    for (name, value) in lines {
        out.push_str(&format!("{}{}{value}\n", paint(HEADING, name), " ".repeat(13 - name.len())));
    }
    out
}

pub(super) fn render_path(path: &PathStatus) -> String {
    match (path.kind, &path.via) {
        (PathKind::Direct, _) => "direct".to_owned(),
        (PathKind::Tcp, _) => "tcp".to_owned(),
        (PathKind::Relay, Some(via)) => format!("via {via}"),
        (PathKind::Relay, None) => "relay".to_owned(),
    }
}

/// The probes that were lost and all whose fate is known: `3/300`.
pub(super) fn render_lost(loss: Option<&LossRatio>) -> String {
    loss.map_or("-".to_owned(), |loss| format!("{}/{}", loss.lost, loss.sent))
}

/// How wide a loss's interval may be to be shown. Beyond ten points it says nothing but that there were few probes (none
/// lost of 22 is `<15%`), and looks as if something were wrong; the counts say the same and do not.
const WIDEST_LOSS: f64 = 0.1;

/// What is known of a loss, never more: its interval, as in `0.34-2.9%`; nothing where too few probes were sent.
pub(super) fn render_loss(loss: Option<&LossRatio>) -> Option<String> {
    let estimate = loss.and_then(|loss| LossEstimate::new(loss.lost, loss.sent))?;
    (estimate.high - estimate.low <= WIDEST_LOSS).then(|| estimate.to_string())
}

/// By how much the median round trip differs from that of the last week; `None` where one of them is not known.
pub(super) fn change(peer: &PeerStatus) -> Option<f64> {
    let link = peer.link.as_ref()?;
    link.rtt_baseline_seconds.map(|usual| link.rtt_p50_seconds - usual)
}

fn pq_cell(pq: Option<PqState>) -> Cell {
    match pq {
        Some(PqState::Pending) => Cell::styled("pending", WORRYING),
        Some(pq) => pq.name().to_owned().into(),
        None => "-".to_owned().into(),
    }
}

fn change_cell(peer: &PeerStatus) -> Cell {
    let usual = peer.link.as_ref().and_then(|link| link.rtt_baseline_seconds).unwrap_or(0.0);
    match change(peer) {
        Some(change) if change.abs() > (usual * 0.05).max(0.000_5) => Cell::styled(render_change(change), WORRYING),
        Some(change) => render_change(change).into(),
        None => "-".into(),
    }
}

/// A change of a round trip, as in `+2.31 ms`.
pub(super) fn render_change(seconds: f64) -> String {
    let sign = if seconds < 0.0 { '-' } else { '+' };
    format!("{sign}{}", quantity::seconds(seconds.abs()))
}

/// Loss is coloured only once it is certain to be more than one in a thousand.
fn style_of_loss(loss: Option<&LossRatio>) -> Style {
    if loss.is_some_and(|loss| loss.low > 0.001) { WORRYING } else { Style::new() }
}

/// Renders everything about one link for a terminal of so many columns.
pub fn render_peer(status: &Status, peer: &PeerStatus, width: usize) -> String {
    let since = quantity::since(status.now, peer.since);
    let state = paint(style_of_state(peer.state), peer.state.name());
    let mut out = format!("{}  {state} for {since}, since {}\n", paint(STRONG, &peer.name), peer.since);
    out.push_str(&render_problems(status, Some(&peer.name), width));
    let reasons = peer.reasons.iter().map(|reason| {
        let since = reason.since.map_or(String::new(), |since| format!(", since {since}"));
        ("degraded", format!("{}{since}", reason.text))
    });
    let mut lines: Vec<(&str, String)> = reasons.collect();
    lines.push(("node", peer.node_id.clone()));
    lines.push(("addresses", format!("{}, {}", peer.address_v4, peer.address_v6)));
    if !peer.prefixes.is_empty() {
        let prefixes: Vec<String> = peer.prefixes.iter().map(ToString::to_string).collect();
        lines.push(("routes", prefixes.join(", ")));
    }
    lines.push((
        "path",
        match &peer.path {
            Some(path) => format!("{}, {}", render_path(path), path.endpoint),
            None => "none".to_owned(),
        },
    ));
    if let Some(link) = &peer.link {
        let [min, p50, p99, max, jitter] = [
            link.rtt_min_seconds,
            link.rtt_p50_seconds,
            link.rtt_p99_seconds,
            link.rtt_max_seconds,
            link.jitter_seconds,
        ]
        .map(quantity::seconds);
        let window = quantity::age(link.window_seconds as u64);
        lines.push((
            "round trip",
            format!("p50 {p50}, p99 {p99}, min {min}, max {max}, jitter {jitter}, over {window}"),
        ));
    }
    if let Some(loss) = &peer.loss {
        let rate = render_loss(Some(loss)).unwrap_or("too few to tell a rate".to_owned());
        lines.push(("loss", format!("{} of {} lost, {rate}", loss.lost, quantity::count(loss.sent, "probe"))));
    }
    lines.extend(quality_lines(peer));
    lines.push((
        "session",
        match peer.session_age_seconds {
            Some(age) => {
                format!("{} old, {} so far", quantity::age(age), quantity::count(peer.handshakes, "handshake"))
            }
            None => format!("none, {} so far", quantity::count(peer.handshakes, "handshake")),
        },
    ));
    if let Some(pq) = peer.pq {
        let means = match pq {
            PqState::Hybrid => format!("hybrid, {} so far", quantity::count(peer.pq_keys, "key")),
            PqState::Pending => "pending: no key of ML-KEM-768 and X25519 stands yet".to_owned(),
            PqState::Off => "off: one end does not mix in keys of ML-KEM-768 and X25519".to_owned(),
        };
        lines.push(("pq", means));
    }
    let traffic = |bytes, packets| format!("{} in {}", quantity::bytes(bytes), quantity::count(packets, "packet"));
    lines.push(("received", traffic(peer.rx_bytes, peer.rx_packets)));
    lines.push(("sent", traffic(peer.tx_bytes, peer.tx_packets)));
    lines.push((
        "record",
        peer.record_age_seconds.map_or("none yet".to_owned(), |age| format!("{} old", quantity::age(age))),
    ));
    lines.push(("certificate", format!("until {}", peer.certificate_expires)));
    match peer.policy {
        Some(PolicyAgreement::Differs) => lines.push(("policy", "differs from this node's".to_owned())),
        Some(PolicyAgreement::None) => lines.push(("policy", "none: every member reaches everything of it".to_owned())),
        Some(PolicyAgreement::Same) | None => {}
    }
    for (reason, count) in &peer.drops {
        lines.push(("dropped", format!("{count} {reason}")));
    }
    out.push('\n');
    for (name, value) in lines {
        out.push_str(&format!("{}{}{value}\n", paint(HEADING, name), " ".repeat(13 - name.len())));
    }
    out
}

/// What a link's measurements say beyond its round trip and loss, a line for each.
fn quality_lines(peer: &PeerStatus) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let both = |forward: Option<String>, reverse: Option<String>| {
        let said = |text: Option<String>| text.unwrap_or("not known yet".to_owned());
        format!("{} towards it, {} coming from it", said(forward), said(reverse))
    };
    if let Some(counts) = &peer.counts {
        let rate = |loss: Option<LossRatio>| loss.and_then(|loss| render_loss(Some(&loss)));
        if peer.loss.is_some() {
            lines.push(("loss by way", both(rate(counts.loss_forward), rate(counts.loss_reverse))));
        }
        let [forward, reverse] = [counts.data_loss_forward, counts.data_loss_reverse];
        if forward.or(reverse).is_some() {
            lines.push(("data loss", both(rate(forward), rate(reverse))));
        }
    }
    if let Some(link) = &peer.link {
        let delay = |p50, p99| format!("{} (p99 {})", quantity::seconds(p50), quantity::seconds(p99));
        let own = delay(link.own_delay_p50_seconds, link.own_delay_p99_seconds);
        let peers = delay(link.peer_delay_p50_seconds, link.peer_delay_p99_seconds);
        lines.push(("host delay", format!("here {own}, there {peers}")));
        let variation = [link.variation_forward_seconds, link.variation_reverse_seconds];
        let [forward, reverse] =
            variation.map(|variation| variation.map(|time| format!("+{}", quantity::seconds(time))));
        lines.push(("variation", both(forward, reverse)));
    }
    if let Some(class) = peer.class {
        let interval = peer.probe_interval_seconds.map(quantity::seconds);
        let interval = interval.map_or(String::new(), |interval| format!(", a probe every {interval}"));
        lines.push(("class", format!("{}{interval}", class.name())));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::{empty_status, healthy_status, troubled_status};

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn an_empty_mesh_says_what_to_do() {
        insta::assert_snapshot!(plain(&render(&empty_status(), usize::MAX)), @r#"
            web1  meshd up 91d04h  mesh example  10.77.0.1 on mesh0  0 peers

            No peers yet. `meshctl invite NODE` prints a token with which another host joins.
        "#);
    }

    #[test]
    fn a_healthy_mesh() {
        insta::assert_snapshot!(plain(&render(&healthy_status(), usize::MAX)), @r#"
            web1  meshd up 91d04h  mesh example  10.77.0.1 on mesh0  3 peers: 3 up
            probes 3.0/s, 4.5 kbit/s each way  observer well

            PEER       STATE     FOR  PATH    ENDPOINT            RTT p50       p99  JITTER  LOST 5m   LOSS  SESSION  RECEIVED      SENT
            db-par-17  up     91d00h  direct  198.51.100.2:7655  10.28 ms  11.02 ms   94 us    0/300  <1.3%    1m37s  1.15 GiB  96.5 KiB
            db-par-18  up     91d00h  direct  198.51.100.3:7655    214 us    388 us   94 us    0/300  <1.3%    1m37s  1.15 GiB  96.5 KiB
            web2       up     91d00h  direct  198.51.100.4:7655  10.28 ms  11.02 ms   94 us    0/300  <1.3%    1m37s  1.15 GiB  96.5 KiB
        "#);
    }

    #[test]
    fn a_mesh_with_trouble() {
        insta::assert_snapshot!(plain(&render(&troubled_status(), usize::MAX)), @r#"
            web1  meshd up 91d04h  mesh example  10.77.0.1 on mesh0  7 peers: 1 down, 1 expired, 1 suspect, 1 new, 3 up
            probes 4.0/s, 6.0 kbit/s each way  observer well

            critical  db-par-22 does not answer (4m00s): look at the host, and whether UDP 7655 reaches it
            warning   this node's certificate ends in 5 days: run `meshctl renew`

            PEER        STATE       FOR  PATH           ENDPOINT            RTT p50       p99  JITTER  LOST 5m       LOSS  SESSION  RECEIVED      SENT
            db-par-22   down      4m00s  -              -                         -         -       -    60/60       >93%        -  1.15 GiB  96.5 KiB
            old1        expired   1d00h  -              -                         -         -       -        -          -        -  1.15 GiB  96.5 KiB
            sto-lim-03  suspect      3s  via db-par-18  198.51.100.6:7655  10.28 ms  11.02 ms   94 us    3/300  0.34-2.9%    1m37s  1.15 GiB  96.5 KiB
            web9        new       1m00s  -              -                         -         -       -        -          -        -       0 B       0 B
            db-par-17   up       91d00h  direct         198.51.100.2:7655  10.28 ms  11.02 ms   94 us    0/300      <1.3%    1m37s  1.15 GiB  96.5 KiB
            db-par-18   up       91d00h  direct         198.51.100.3:7655    214 us    388 us   94 us    0/300      <1.3%    1m37s  1.15 GiB  96.5 KiB
            web2        up       91d00h  direct         198.51.100.4:7655  10.28 ms  11.02 ms   94 us    0/300      <1.3%    1m37s  1.15 GiB  96.5 KiB
            phone       up            -  wireguard      192.0.2.77:40112          -         -       -        -          -    1m01s  47.1 KiB  1.18 MiB

            dropped since the start, from no peer: bad_mac 4211
        "#);
    }

    #[test]
    fn a_narrow_terminal_shows_what_matters_unbroken() {
        let text = plain(&render(&troubled_status(), 80));
        let (_, below_the_heading) = text.split_once("\n\n").unwrap();
        assert!(below_the_heading.lines().all(|line| line.width() <= 80), "{below_the_heading}");
        insta::assert_snapshot!(below_the_heading, @r#"
            critical  db-par-22 does not answer (4m00s)
                      look at the host, and whether UDP 7655 reaches it
            warning   this node's certificate ends in 5 days: run `meshctl renew`

            PEER        STATE       FOR  PATH            RTT p50       p99  LOST 5m
            db-par-22   down      4m00s  -                     -         -    60/60
            old1        expired   1d00h  -                     -         -        -
            sto-lim-03  suspect      3s  via db-par-18  10.28 ms  11.02 ms    3/300
            web9        new       1m00s  -                     -         -        -
            db-par-17   up       91d00h  direct         10.28 ms  11.02 ms    0/300
            db-par-18   up       91d00h  direct           214 us    388 us    0/300
            web2        up       91d00h  direct         10.28 ms  11.02 ms    0/300
            phone       up            -  wireguard             -         -        -

            dropped since the start, from no peer: bad_mac 4211
        "#);
    }

    #[test]
    fn few_probes_are_counted_and_not_rated() {
        let loss = |lost, sent| {
            let estimate = LossEstimate::new(lost, sent).unwrap();
            LossRatio { lost, sent, ratio: estimate.ratio(), low: estimate.low, high: estimate.high }
        };
        let shown = |lost, sent| (render_lost(Some(&loss(lost, sent))), render_loss(Some(&loss(lost, sent))));
        assert_eq!(shown(1, 5), ("1/5".to_owned(), None));
        assert_eq!(shown(0, 34), ("0/34".to_owned(), None));
        assert_eq!(shown(0, 35), ("0/35".to_owned(), Some("<9.9%".to_owned())));
        assert_eq!(shown(3, 300), ("3/300".to_owned(), Some("0.34-2.9%".to_owned())));
        assert_eq!(shown(60, 60), ("60/60".to_owned(), Some(">93%".to_owned())));
        let mut status = healthy_status();
        status.peers[0].loss = Some(loss(1, 5));
        let text = plain(&render_peer(&status, &status.peers[0], usize::MAX));
        assert!(text.contains("loss         1 of 5 probes lost, too few to tell a rate\n"), "{text}");
    }

    #[test]
    fn a_certificate_near_its_end_is_told_even_if_it_is_no_listed_problem() {
        let mut status = troubled_status();
        status.problems.clear();
        status.peers.clear();
        status.wireguard.clear();
        insta::assert_snapshot!(plain(&render(&status, usize::MAX)), @r#"
            web1  meshd up 91d04h  mesh example  10.77.0.1 on mesh0  7 peers: 1 down, 1 expired, 1 suspect, 1 new, 3 up
            certificate ends in 5d00h (2026-11-27T14:02:00Z)

            No peers yet. `meshctl invite NODE` prints a token with which another host joins.

            dropped since the start, from no peer: bad_mac 4211
        "#);
    }

    #[test]
    fn a_stock_peer_is_shown_as_one() {
        let status = troubled_status();
        let text = plain(&render_wireguard(&status, &status.wireguard[0], usize::MAX));
        insta::assert_snapshot!(text, @r#"
            phone  up

            kind         wireguard: a stock peer of this node, not probed
            key          3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=
            addresses    10.78.0.2/32
            reaches      the whole mesh, with 10.78.0.2/32
            endpoint     192.0.2.77:40112
            session      1m01s old, 4 handshakes so far
            heard        2s ago
            received     47.1 KiB in 512 packets
            sent         1.18 MiB in 1311 packets
            dropped      2 foreign_source
        "#);
    }

    #[test]
    fn one_link_with_everything() {
        let status = troubled_status();
        let peer = find(&status, "sto-lim-03").unwrap();
        insta::assert_snapshot!(plain(&render_peer(&status, peer, usize::MAX)), @r#"
            sto-lim-03  suspect for 3s, since 2026-11-22T14:01:57Z

            node         00000000000000000000000000000006
            addresses    10.77.0.6, fd12:3456:789a::a4d:6
            path         via db-par-18, 198.51.100.6:7655
            round trip   p50 10.28 ms, p99 11.02 ms, min 10.11 ms, max 14.90 ms, jitter 94 us, over 5m00s
            loss         3 of 300 probes lost, 0.34-2.9%
            loss by way  0.34-2.9% towards it, <1.3% coming from it
            data loss    <0.011% towards it, 0.0013-0.018% coming from it
            host delay   here 42 us (p99 140 us), there 38 us (p99 120 us)
            variation    +20 us towards it, +31 us coming from it
            class        active, a probe every 1.000 s
            session      1m37s old, 65520 handshakes so far
            pq           hybrid, 2184 keys so far
            received     1.15 GiB in 1000000 packets
            sent         96.5 KiB in 1024 packets
            record       12m00s old
            certificate  until 2027-06-10T14:02:00Z
            dropped      3 foreign_source
            dropped      12 replayed
        "#);
    }

    #[test]
    fn one_link_that_is_down() {
        let status = troubled_status();
        insta::assert_snapshot!(plain(&render_peer(&status, find(&status, "10.77.0.5").unwrap(), usize::MAX)), @r#"
            db-par-22  down for 4m00s, since 2026-11-22T13:58:00Z

            critical  db-par-22 does not answer (4m00s): look at the host, and whether UDP 7655 reaches it

            node         00000000000000000000000000000005
            addresses    10.77.0.5, fd12:3456:789a::a4d:5
            path         none
            loss         60 of 60 probes lost, >93%
            class        active, a probe every 1.000 s
            session      none, 65520 handshakes so far
            received     1.15 GiB in 1000000 packets
            sent         96.5 KiB in 1024 packets
            record       12m00s old
            certificate  until 2027-06-10T14:02:00Z
        "#);
    }

    #[test]
    fn json_has_every_field_under_its_unit() {
        let mut status = troubled_status();
        status.peers.retain(|peer| peer.name == "sto-lim-03");
        status.problems.truncate(1);
        insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap(), @r#"
            {
              "schema": 1,
              "now": "2026-11-22T14:02:00Z",
              "node": {
                "name": "web1",
                "node_id": "0102030405060708090a0b0c0d0e0f10",
                "wireguard_key": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
                "address_v4": "10.77.0.1",
                "address_v6": "fd12:3456:789a::a4d:1",
                "prefixes": [
                  "10.78.0.0/24"
                ],
                "interface": "mesh0",
                "mtu_bytes": 1420,
                "listen": [
                  "[::]:7655"
                ],
                "endpoints": [
                  "203.0.113.5:7655"
                ],
                "version": "0.1.0",
                "started": "2026-08-23T14:02:00Z",
                "uptime_seconds": 7876900,
                "certificate": {
                  "expires": "2026-11-27T14:02:00Z",
                  "expires_in_seconds": 432000,
                  "serial": 1,
                  "warning": "warning"
                },
                "observer_health": 0,
                "clock_steps": 0,
                "confinement": {
                  "landlock": "in_force",
                  "version": 7,
                  "writable": [
                    "/var/lib/meshd",
                    "/run/meshd",
                    "/etc/meshd"
                  ],
                  "reason": null
                }
              },
              "mesh": {
                "name": "example",
                "mesh_id": "000102030405060708090a0b0c0d0e0f",
                "members": 4
              },
              "counts": {
                "peers": 7,
                "up": 3,
                "degraded": 0,
                "suspect": 1,
                "down": 1,
                "unknown": 0,
                "new": 1,
                "expired": 1
              },
              "problems": [
                {
                  "gravity": "critical",
                  "kind": "peer_down",
                  "peer": "db-par-22",
                  "message": "db-par-22 does not answer",
                  "advice": "look at the host, and whether UDP 7655 reaches it",
                  "since": "2026-11-22T13:58:00Z"
                }
              ],
              "peers": [
                {
                  "name": "sto-lim-03",
                  "node_id": "00000000000000000000000000000006",
                  "address_v4": "10.77.0.6",
                  "address_v6": "fd12:3456:789a::a4d:6",
                  "prefixes": [],
                  "state": "suspect",
                  "since": "2026-11-22T14:01:57Z",
                  "path": {
                    "kind": "relay",
                    "endpoint": "198.51.100.6:7655",
                    "via": "db-par-18"
                  },
                  "link": {
                    "window_seconds": 300.0,
                    "rtt_min_seconds": 0.01011,
                    "rtt_p50_seconds": 0.010281,
                    "rtt_p99_seconds": 0.01102,
                    "rtt_max_seconds": 0.0149,
                    "jitter_seconds": 0.000094,
                    "jitter_forward_seconds": 0.000051,
                    "jitter_reverse_seconds": 0.000078,
                    "variation_forward_seconds": 0.00002,
                    "variation_reverse_seconds": 0.000031,
                    "own_delay_p50_seconds": 0.000042,
                    "own_delay_p99_seconds": 0.00014,
                    "peer_delay_p50_seconds": 0.000038,
                    "peer_delay_p99_seconds": 0.00012,
                    "rtt_baseline_seconds": null,
                    "step_from_seconds": null
                  },
                  "loss": {
                    "lost": 3,
                    "sent": 300,
                    "ratio": 0.01,
                    "low": 0.003406,
                    "high": 0.028983
                  },
                  "counts": {
                    "loss_forward": {
                      "lost": 3,
                      "sent": 300,
                      "ratio": 0.01,
                      "low": 0.003406,
                      "high": 0.028983
                    },
                    "loss_reverse": {
                      "lost": 0,
                      "sent": 300,
                      "ratio": 0.0,
                      "low": 0.0,
                      "high": 0.012643
                    },
                    "lost_unknown": 0,
                    "data_loss_forward": {
                      "lost": 0,
                      "sent": 38000,
                      "ratio": 0.0,
                      "low": 0.0,
                      "high": 0.000101
                    },
                    "data_loss_reverse": {
                      "lost": 2,
                      "sent": 41000,
                      "ratio": 0.000049,
                      "low": 0.000013,
                      "high": 0.000178
                    },
                    "longest_loss_run": 0,
                    "late": 0,
                    "reordered_forward": 0,
                    "reordered_reverse": 0,
                    "duplicated_forward": 0,
                    "duplicated_reverse": 0,
                    "discarded_clock_step": 0,
                    "discarded_negative": 0
                  },
                  "class": "active",
                  "probe_interval_seconds": 1.0,
                  "verdict": null,
                  "reasons": [],
                  "mtu_bytes": 1420,
                  "session_age_seconds": 97,
                  "rx_bytes": 1234567890,
                  "tx_bytes": 98765,
                  "rx_packets": 1000000,
                  "tx_packets": 1024,
                  "handshakes": 65520,
                  "flows_woken": 0,
                  "record_age_seconds": 720,
                  "certificate_expires": "2027-06-10T14:02:00Z",
                  "pq": "hybrid",
                  "pq_keys": 2184,
                  "policy": "same",
                  "drops": {
                    "foreign_source": 3,
                    "replayed": 12
                  }
                }
              ],
              "wireguard": [
                {
                  "name": "phone",
                  "public_key": "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=",
                  "addresses": [
                    "10.78.0.2/32"
                  ],
                  "carried": [
                    "10.78.0.2/32"
                  ],
                  "state": "up",
                  "endpoint": "192.0.2.77:40112",
                  "declared_endpoint": null,
                  "has_preshared_key": false,
                  "session_age_seconds": 61,
                  "heard_seconds": 2,
                  "rx_bytes": 48213,
                  "tx_bytes": 1234567,
                  "rx_packets": 512,
                  "tx_packets": 1311,
                  "handshakes": 4,
                  "drops": {
                    "foreign_source": 2
                  }
                }
              ],
              "drops": {
                "bad_mac": 4211
              }
            }
        "#);
    }

    #[test]
    fn colour_is_only_added() {
        let coloured = render(&troubled_status(), usize::MAX);
        assert!(coloured.contains("\x1b["));
        assert!(!plain(&coloured).contains('\x1b'));
    }

    #[test]
    fn a_check_is_content_with_up_and_new_and_notices_only() {
        assert!(is_good(&healthy_status(), None) && is_good(&empty_status(), None));
        assert!(!is_good(&troubled_status(), None));
        let status = troubled_status();
        assert!(is_good(&status, Some("db-par-17")) && is_good(&status, Some("web9")));
        for name in ["db-par-22", "sto-lim-03", "old1"] {
            assert!(!is_good(&status, Some(name)), "{name}");
        }
        let mut noticed = healthy_status();
        noticed.problems = status.problems.clone();
        noticed.problems.iter_mut().for_each(|problem| problem.gravity = Gravity::Notice);
        assert!(is_good(&noticed, None));
        noticed.problems[0].gravity = Gravity::Warning;
        assert!(!is_good(&noticed, None));
    }

    #[test]
    fn an_unknown_peer_gets_a_suggestion() {
        let message = |name| find(&troubled_status(), name).unwrap_err().message;
        assert_eq!(message("db-par-71"), "there is no peer `db-par-71`; did you mean `db-par-17`?");
        assert_eq!(message("mail"), "there is no peer `mail`; `meshctl members` lists them");
        assert_eq!(message("web1"), "there is no peer `web1`; it is this node itself");
        assert_eq!(find(&troubled_status(), "mail").unwrap_err().exit, Exit::NotFound);
    }
}

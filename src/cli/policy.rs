//! `meshctl policy`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{HEADING, STRONG};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{
    PacketStage, PolicyCheckRequest, PolicyChecked, PolicyInfo, PolicyTraceRequest, PolicyVerdict, TraceLine,
};
use crate::config::duration;

/// `meshctl policy`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  meshctl policy                     the rules in force, and what each let in\n  \
                  meshctl policy denied              who was refused what\n  \
                  meshctl policy check web1 db1 tcp/3306\n\n\
                  Rules are the [[allow]] entries of meshd.toml; `meshctl reload` takes them over.\n\
                  Each node judges what comes in to it by its own; answers to what it began always pass."
)]
pub struct PolicyArgs {
    /// What to show; the rules unless given.
    #[command(subcommand)]
    pub command: Option<PolicyCommand>,
}

/// What to show.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Lists what was refused, the newest first.
    #[command(after_help = "Example:\n  meshctl policy denied")]
    Denied,
    /// Says what the rules of this node make of something, and which of them; ends with 1 where it is refused.
    #[command(
        after_help = "Examples:\n  meshctl policy check web1 db1 tcp/3306\n  meshctl policy check 10.77.0.9 db1 icmp\n  \
                  meshctl policy check web1 db1 tcp/3306 --trace --for 1m      on db1, while web1 tries\n\n\
                  A trace shows packets where this node judges them: what comes in to it from the mesh, with the rule, and what it\n\
                  sends; at most so long and so many, for one watcher at a time. Otherwise nothing is recorded."
    )]
    Check {
        /// Who would send: a node's name or an address.
        from: String,
        /// What it would be for: a node's name or an address.
        to: String,
        /// tcp/PORT, udp/PORT or icmp.
        service: String,
        /// Then shows what becomes of such packets, in both directions, while they come.
        #[arg(long)]
        trace: bool,
        /// With --trace, how long to watch, 1s to 10m.
        #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = duration::parse, requires = "trace")]
        length: Duration,
        /// With --trace, how many packets to show at most, up to 10,000.
        #[arg(long, value_name = "PACKETS", default_value_t = 100, requires = "trace")]
        count: u32,
    },
}

/// Shows rules, refusals or a verdict.
pub async fn run(context: &Context, args: &PolicyArgs) -> Result<(), Failure> {
    let client = context.client()?;
    if let Some(PolicyCommand::Check { from, to, service, trace, length, count }) = &args.command {
        let request = PolicyCheckRequest { from: from.clone(), to: to.clone(), service: service.clone() };
        let checked = client.policy_check(&request).await?;
        let shown = match (context.output.json, *trace) {
            (true, false) => context.output.json(&checked),
            (true, true) => context.output.json_line(&checked),
            (false, _) => context.output.data(&verdicts(&request, &checked)),
        };
        shown?;
        if *trace {
            let seconds = u32::try_from(length.as_secs()).unwrap_or(u32::MAX);
            return watch(context, &PolicyTraceRequest { of: request, seconds, count: *count }).await;
        }
        let refused = checked.verdicts.iter().any(|verdict| !verdict.allowed);
        // The verdict is the answer.
        return if refused { Err(Failure::new(Exit::Failed, "")) } else { Ok(()) };
    }
    let info = client.policy().await?;
    if context.output.json {
        return context.output.json(&info);
    }
    match args.command {
        Some(PolicyCommand::Denied) => context.output.data(&denied(&info)),
        _ => context.output.data(&rules(&info)),
    }
}

/// Shows packets while they come.
async fn watch(context: &Context, request: &PolicyTraceRequest) -> Result<(), Failure> {
    let mut shown = Ok(());
    let client = context.client()?;
    let watching = client.policy_trace(request, |line| {
        let told = match context.output.json {
            true => context.output.json_line(&line),
            false => context.output.data(&traced(&line)),
        };
        if shown.is_ok() {
            shown = told;
        }
    });
    watching.await?;
    shown
}

/// A line of a trace.
fn traced(line: &TraceLine) -> String {
    let packet = match line {
        TraceLine::Start { .. } => return "watching\n".to_owned(),
        TraceLine::Summary { allowed, refused, missed } => {
            let missed = if *missed > 0 { format!(", {missed} more were too many to show") } else { String::new() };
            return format!("{} passed, {refused} refused{missed}\n", quantity::count(*allowed, "packet"));
        }
        packet => packet,
    };
    let TraceLine::Packet {
        at,
        source,
        source_port,
        destination,
        destination_port,
        protocol,
        length_bytes,
        stage,
        rule,
        reason,
        ..
    } = packet
    else {
        return String::new();
    };
    let end = |address: &IpAddr, port: &u16| match protocol {
        6 | 17 => SocketAddr::new(*address, *port).to_string(),
        _ => address.to_string(),
    };
    let protocol = match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        1 | 58 => "icmp".to_owned(),
        other => format!("protocol {other}"),
    };
    let stage_name = match stage {
        PacketStage::New => "new",
        PacketStage::Established => "established",
        PacketStage::Reply => "reply",
        PacketStage::Departing => "leaves",
        PacketStage::Fragment => "fragment",
        PacketStage::Error => "error about it",
    };
    let fate = match (reason, rule, stage) {
        (Some(reason), _, _) => format!("refused: {reason}"),
        (None, Some(rule), _) => format!("allowed by [[allow]] {rule}"),
        (None, None, PacketStage::Departing) => "sent".to_owned(),
        (None, None, PacketStage::Reply) => "allowed: this side began it".to_owned(),
        (None, None, _) => "allowed".to_owned(),
    };
    format!(
        "{at} {protocol} {} > {} {length_bytes} B {stage_name}: {fate}\n",
        end(source, source_port),
        end(destination, destination_port)
    )
}

fn verdicts(request: &PolicyCheckRequest, checked: &PolicyChecked) -> String {
    let line = |verdict: &PolicyVerdict| {
        let PolicyVerdict { source, destination, .. } = verdict;
        let why = match (verdict.rule, checked.restricted) {
            (Some(number), _) => format!("allowed by [[allow]] {number}"),
            (None, false) => "allowed: there is no rule, so everything is".to_owned(),
            (None, true) => "refused: no rule allows it".to_owned(),
        };
        let elsewhere =
            if verdict.here { "" } else { "; by the rules of this node, but another one judges it by its own" };
        format!("{source} to {destination}, {}: {why}{elsewhere}\n", request.service)
    };
    checked.verdicts.iter().map(line).collect()
}

fn rules(info: &PolicyInfo) -> String {
    if !info.restricted {
        return "nothing is restricted: there is no [[allow]], so every member reaches everything of this node\n"
            .into();
    }
    let mut table = Table::new(&[
        ("RULE", Align::Right),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("PORTS", Align::Left),
        ("LET IN", Align::Right),
    ]);
    let or = |list: &[String], all: &str| if list.is_empty() { all.to_owned() } else { list.join(" ") };
    for rule in &info.rules {
        table.row([
            rule.number.to_string().into(),
            Cell::styled(rule.from.join(" "), STRONG),
            or(&rule.to, "this node").into(),
            or(&rule.ports, "any").into(),
            rule.let_in.to_string().into(),
        ]);
    }
    format!(
        "{}\nnothing else is let in: {} refused; {} of this side, of {} at most\n",
        table.render(HEADING),
        quantity::count(info.refused_packets, "packet"),
        quantity::count(info.connections, "connection"),
        info.connections_limit
    )
}

fn denied(info: &PolicyInfo) -> String {
    if info.denied.is_empty() {
        return "nothing was refused\n".into();
    }
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("BY", Align::Left),
        ("PACKETS", Align::Right),
        ("LAST", Align::Right),
    ]);
    for denial in &info.denied {
        table.row([
            Cell::styled(denial.peer.clone(), STRONG),
            denial.source.to_string().into(),
            denial.destination.to_string().into(),
            denial.service.clone().into(),
            denial.packets.to_string().into(),
            format!("{} ago", quantity::since(info.now, denial.last)).into(),
        ]);
    }
    table.render(HEADING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn rules_and_refusals_are_told() {
        let info = fake::policy();
        insta::assert_snapshot!(plain(&rules(&info)), @"
        RULE  FROM     TO         PORTS        LET IN
           1  tag:app  tag:db     tcp/3306       8112
           2  any      this node  icmp tcp/22       3

        nothing else is let in: 43 packets refused; 12 connections of this side, of 65536 at most
        ");
        insta::assert_snapshot!(plain(&denied(&info)), @"
        PEER  FROM       TO         BY        PACKETS       LAST
        web9  10.77.0.9  10.77.0.1  tcp/3306       41    12s ago
        old1  10.77.0.7  10.77.0.1  udp/161         2  2h00m ago
        ");
        let open = PolicyInfo { restricted: false, rules: vec![], denied: vec![], ..info };
        assert!(rules(&open).contains("nothing is restricted"));
        assert_eq!(denied(&open), "nothing was refused\n");
    }

    #[test]
    fn a_trace_tells_each_packets_fate() {
        let told: String = fake::trace_lines().iter().map(traced).collect();
        insta::assert_snapshot!(told, @r"
        watching
        2026-11-22T14:02:00Z tcp 10.77.0.9:40000 > 10.77.0.1:3306 60 B new: allowed by [[allow]] 1
        2026-11-22T14:02:00Z tcp 10.77.0.1:3306 > 10.77.0.9:40000 60 B leaves: sent
        2026-11-22T14:02:00Z tcp 10.77.0.9:40000 > 10.77.0.1:3306 60 B established: allowed by [[allow]] 1
        2026-11-22T14:02:00Z tcp 10.77.0.9:40000 > 10.77.0.1:3306 60 B new: refused: no rule allows it
        3 packets passed, 1 refused
        ");
    }

    #[test]
    fn a_verdict_names_its_rule() {
        let request = PolicyCheckRequest { from: "web1".into(), to: "db1".into(), service: "tcp/3306".into() };
        insta::assert_snapshot!(verdicts(&request, &fake::policy_checked(&request)), @"10.77.0.9 to 10.77.0.1, tcp/3306: allowed by [[allow]] 1");
    }
}

//! `meshctl gateways`.

use clap::Args;

use super::context::Context;
use super::exit::Failure;
use super::output::{BAD, GOOD, HEADING, STRONG, WORRYING};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{CheckedTarget, GatewayCheckStatus, GatewayList, GatewayStatus, SharedPrefixStatus};

/// `meshctl gateways`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl gateways\n  meshctl --json gateways | jq '.prefixes[] | {prefix, carrier}'\n\n\
                        A prefix is shared where its nodes were signed with --shared. Each node chooses for itself; this shows the\n\
                        choice of the node it is asked on."
)]
pub struct GatewaysArgs {}

/// Shows who carries which shared prefix, and why.
pub async fn run(context: &Context, _: &GatewaysArgs) -> Result<(), Failure> {
    let list = context.client()?.gateways().await?;
    if context.output.json { context.output.json(&list) } else { context.output.data(&render(&list)) }
}

/// Renders the prefixes: a line for each gateway, and below each prefix who carries it and why.
pub fn render(list: &GatewayList) -> String {
    if list.prefixes.is_empty() {
        return "No prefix is shared by several nodes (meshctl sign --route … --shared).\n".to_owned();
    }
    let mut table = Table::new(&[
        ("PREFIX", Align::Left),
        ("GATEWAY", Align::Left),
        ("PRIORITY", Align::Right),
        ("CARRIES", Align::Left),
        ("STATE", Align::Left),
        ("FOR", Align::Right),
        ("PREFERRED AGAIN", Align::Left),
    ]);
    for prefix in &list.prefixes {
        for (number, gateway) in prefix.gateways.iter().enumerate() {
            let network = if number == 0 { Cell::styled(prefix.prefix.to_string(), STRONG) } else { Cell::default() };
            table.row([network].into_iter().chain(cells(list, prefix, gateway)));
        }
    }
    let mut out = table.render(HEADING);
    out.push('\n');
    for prefix in &list.prefixes {
        out.push_str(&format!("{}: {}\n", prefix.prefix, why(list, prefix)));
    }
    let checks: String = list.checks.iter().map(|check| checked(list, check)).collect();
    if !checks.is_empty() {
        out.push_str(&format!("\n{checks}"));
    }
    if let Some(drain) = &list.drain {
        out.push_str(&format!("\n{}", super::drain::render(&list.node, drain)));
    }
    out
}

fn cells(list: &GatewayList, prefix: &SharedPrefixStatus, gateway: &GatewayStatus) -> [Cell; 6] {
    let carries = prefix.carrier.as_ref() == Some(&gateway.name);
    let style = match gateway.fitness.as_str() {
        "fit" => GOOD,
        "drained" => WORRYING,
        _ => BAD,
    };
    let age = |since: crate::api::Timestamp| quantity::since(list.now, since);
    [
        gateway.name.as_str().into(),
        gateway.priority.to_string().into(),
        if carries { Cell::styled("yes", STRONG) } else { "".into() },
        Cell::styled(gateway.fitness.as_str(), style),
        gateway.since.map_or("-".to_owned(), age).into(),
        gateway.returns_in_seconds.map_or(String::new(), |left| format!("in {}", quantity::age(left))).into(),
    ]
}

/// What this node looks at behind itself, and how that is.
fn checked(list: &GatewayList, check: &GatewayCheckStatus) -> String {
    let target = |target: &CheckedTarget| {
        let how = match (target.answers, &target.failure) {
            (Some(true), _) => "answers".to_owned(),
            (Some(false), Some(why)) => why.clone(),
            (Some(false), None) => "does not answer".to_owned(),
            (None, _) => "not known yet".to_owned(),
        };
        format!("{} ({how})", target.target)
    };
    let age = check.since.map(|since| format!(" for {}", quantity::since(list.now, since))).unwrap_or_default();
    let verdict = match check.failing {
        true => format!("nothing answers{age}, so the others send by another gateway that serves"),
        false => format!("as it should be{age}"),
    };
    let targets = check.targets.iter().map(target).collect::<Vec<_>>().join(", ");
    format!("behind this node, {}: {verdict}: {targets}\n", check.prefix)
}

fn why(list: &GatewayList, prefix: &SharedPrefixStatus) -> String {
    let (Some(carrier), Some(since)) = (&prefix.carrier, prefix.since) else {
        return match prefix.gateways.iter().any(|gateway| gateway.is_self) {
            true => "this node is one of its gateways, and reaches it directly".to_owned(),
            false => "nobody was chosen yet".to_owned(),
        };
    };
    let age = quantity::since(list.now, since);
    let cause = match prefix.cause.as_deref() {
        Some("silence") => "the one before fell silent",
        Some("health") => "what lies behind the one before did not answer its check",
        Some("drained") => "the one before was drained",
        Some("gone") => "the one before does not hold it any more",
        _ => "it is preferred among those that serve",
    };
    format!("by {carrier} for {age}, because {cause}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    #[test]
    fn who_carries_what_and_why() {
        let text = anstream::adapter::strip_str(&render(&fake::gateways())).to_string();
        insta::assert_snapshot!(text, @r#"
        PREFIX        GATEWAY  PRIORITY  CARRIES  STATE      FOR  PREFERRED AGAIN
        10.20.0.0/16  gw1           110           fit        25s  in 4m35s
                      gw2           100  yes      fit      2h01m
        10.30.0.0/16  gw2           100           fit          -
                      web1          100           drained      -

        10.20.0.0/16: by gw2 for 1m25s, because the one before fell silent
        10.30.0.0/16: this node is one of its gateways, and reaches it directly

        behind this node, 10.30.0.0/16: as it should be: 10.30.0.5:3306 (answers), 10.30.0.6 (no answer within 300 ms)

        web1 is drained: 3 flows (1.15 MiB) passed in the last minute, the last packet 4s ago; safe after 30 s without any
        "#);
        let none = GatewayList { prefixes: Vec::new(), drain: None, ..fake::gateways() };
        assert!(render(&none).contains("--shared"));
    }
}

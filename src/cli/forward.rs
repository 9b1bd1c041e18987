//! `meshctl forward`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{BAD, GOOD, HEADING, STRONG, WORRYING};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{ForwardConnection, ForwardList, ForwardStatus, ForwardTarget, SwitchRequest, TargetHealth};
use crate::config::duration;

/// How often a switch that waits looks whether the old connections have ended.
const LOOK: Duration = Duration::from_millis(250);

/// `meshctl forward`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  meshctl forward                            all of them\n  \
                  meshctl forward orders                     one, with its connections\n  \
                  meshctl forward switch orders --to db2 --close\n  meshctl forward switch orders --back"
)]
pub struct ForwardArgs {
    /// What to do; nothing shows the forwards.
    #[command(subcommand)]
    pub command: Option<ForwardCommand>,
    /// The forward; all of them unless given.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// What `meshctl forward` can do.
#[derive(Debug, Subcommand)]
pub enum ForwardCommand {
    /// Sends new connections to another target, at once and until it is switched again.
    #[command(
        after_help = "Examples:\n  meshctl forward switch orders --to db2:3306          old connections go on\n  \
                            meshctl forward switch orders --to db2 --close       old ones are closed first\n  \
                            meshctl forward switch orders --to db2 --wait 10m    says when the last old one has ended\n  \
                            meshctl forward switch orders --back                 undoes the last switch\n\n\
                            No connection is refused: new ones wait for the moment. The switch outlives restarts and reloads;\n\
                            nothing is switched to a target that takes no connections, except with --force."
    )]
    Switch(SwitchArgs),
}

/// `meshctl forward switch`.
#[derive(Debug, Args)]
pub struct SwitchArgs {
    /// The forward.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The target, as the configuration has it; its host alone where that is one target's.
    #[arg(long, value_name = "TARGET", required_unless_present = "back", conflicts_with = "back")]
    pub to: Option<String>,
    /// Undoes the last switch.
    #[arg(long)]
    pub back: bool,
    /// Closes the old connections; new ones wait until that is done.
    #[arg(long, conflicts_with = "wait")]
    pub close: bool,
    /// Waits so long for the old connections to end; exits with 1 if some are left.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub wait: Option<Duration>,
    /// Switches also to a target that takes no connections now.
    #[arg(long)]
    pub force: bool,
}

/// Shows the forwards, or switches one.
pub async fn run(context: &Context, args: &ForwardArgs) -> Result<(), Failure> {
    if let Some(ForwardCommand::Switch(args)) = &args.command {
        return switch(context, args).await;
    }
    let mut list = context.client()?.forwards().await?;
    if let Some(name) = &args.name {
        if !list.forwards.iter().any(|forward| forward.name == *name) {
            let known = list.forwards.iter().map(|forward| forward.name.as_str());
            return Err(Failure::not_found("forward", name, known, "meshctl forward"));
        }
        list.forwards.retain(|forward| forward.name == *name);
    }
    if context.output.json {
        return context.output.json(&list);
    }
    context.output.data(&if args.name.is_some() { render_one(&list) } else { render(&list) })
}

async fn switch(context: &Context, args: &SwitchArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let request =
        SwitchRequest { forward: args.name.clone(), to: args.to.clone(), close: args.close, force: args.force };
    let mut switched = client.switch_forward(&request).await?;
    if let Some(patience) = args.wait {
        let waiting = async {
            while switched.old_connections > 0 {
                tokio::time::sleep(LOOK).await;
                let list = client.forwards().await?;
                let forward = list.forwards.iter().find(|forward| forward.name == switched.forward);
                let others = |forward: &ForwardStatus| -> u64 {
                    forward.targets.iter().filter(|target| target.target != switched.to).map(|target| target.open).sum()
                };
                switched.old_connections = forward.map_or(0, others);
            }
            Ok::<(), Failure>(())
        };
        if let Ok(result) = tokio::time::timeout(patience, waiting).await {
            result?;
        }
    }
    if context.output.json {
        context.output.json(&switched)?;
    } else {
        let old = match switched.old_connections {
            0 => "no connection is left elsewhere".to_owned(),
            left => format!("{} elsewhere until they end", quantity::count(left, "old connection")),
        };
        context.output.data(&format!("{}: {} -> {}; {old}\n", switched.forward, switched.from, switched.to))?;
    }
    match args.wait.is_some() && switched.old_connections > 0 {
        true => Err(Failure::new(Exit::Failed, "the switch stands, but old connections are left")),
        false => Ok(()),
    }
}

/// Renders the forwards: a line for each target, the forwards with trouble first.
pub fn render(list: &ForwardList) -> String {
    if list.forwards.is_empty() {
        return "no forwards: the configuration has no [[forward]]\n".to_owned();
    }
    let mut table = Table::new(&[
        ("FORWARD", Align::Left),
        ("TARGET", Align::Left),
        ("USED", Align::Left),
        ("STATE", Align::Left),
        ("OPEN", Align::Right),
        ("MADE", Align::Right),
        ("FAILED", Align::Right),
        ("CONNECT p50/p99", Align::Right),
        ("TO TARGET", Align::Right),
        ("TO CLIENT", Align::Right),
    ]);
    let in_trouble = |forward: &ForwardStatus| {
        forward.targets.iter().any(|target| target.in_use && target.health == TargetHealth::Down)
    };
    let mut forwards: Vec<&ForwardStatus> = list.forwards.iter().collect();
    forwards.sort_by_key(|forward| !in_trouble(forward));
    for forward in &forwards {
        for (number, target) in forward.targets.iter().enumerate() {
            let name = if number == 0 { Cell::styled(forward.name.clone(), STRONG) } else { Cell::default() };
            table.row([name].into_iter().chain(cells(forward, target)));
        }
    }
    let mut out = table.render(HEADING);
    for forward in &forwards {
        notes(list, forward, &mut out);
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn cells(forward: &ForwardStatus, target: &ForwardTarget) -> [Cell; 9] {
    let state = match target.health {
        TargetHealth::Up => Cell::styled("up".to_owned(), GOOD),
        TargetHealth::Unknown => Cell::styled("unknown".to_owned(), WORRYING),
        TargetHealth::Down => Cell::styled("down".to_owned(), BAD),
    };
    let connect = match (target.connect_p50_seconds, target.connect_p99_seconds) {
        (Some(p50), Some(p99)) => format!("{} / {}", quantity::seconds(p50), quantity::seconds(p99)),
        _ => "-".to_owned(),
    };
    let used = match (target.in_use, forward.pinned) {
        (false, _) => "",
        (true, false) => "yes",
        (true, true) => "by hand",
    };
    [
        target.target.clone().into(),
        used.into(),
        state,
        target.open.to_string().into(),
        target.opened.to_string().into(),
        failures(target).into(),
        connect.into(),
        quantity::bytes(target.to_target_bytes).into(),
        quantity::bytes(target.to_client_bytes).into(),
    ]
}

/// Attempts that failed, and their share of all.
fn failures(target: &ForwardTarget) -> String {
    match target.opened + target.failed {
        0 => "0".to_owned(),
        all => format!("{} ({:.2}%)", target.failed, target.failed as f64 * 100.0 / all as f64),
    }
}

/// What does not fit a table: failures, where it listens, what was switched.
fn notes(list: &ForwardList, forward: &ForwardStatus, out: &mut String) {
    let listen: Vec<String> = forward.listen.iter().map(ToString::to_string).collect();
    out.push_str(&format!("\n{}: listens on {}", forward.name, listen.join(", ")));
    if let Some(at) = forward.switched {
        let age = quantity::since(list.now, at);
        out.push_str(&format!("; switched {age} ago"));
        if let Some(previous) = &forward.previous {
            out.push_str(&format!(", --back uses {previous}"));
        }
    }
    if forward.refused > 0 {
        out.push_str(&format!("; {} refused, too many at a time", quantity::count(forward.refused, "connection")));
    }
    for target in &forward.targets {
        if let Some(failure) = &target.failure {
            out.push_str(&format!("\n  {}: {failure}", target.target));
        }
    }
}

/// Renders one forward with its connections, the oldest first.
pub fn render_one(list: &ForwardList) -> String {
    let mut out = render(list);
    for forward in &list.forwards {
        if forward.connections.is_empty() {
            out.push_str("\nno connection is open\n");
            continue;
        }
        let mut table = Table::new(&[
            ("CLIENT", Align::Left),
            ("TARGET", Align::Left),
            ("AGE", Align::Right),
            ("IDLE", Align::Right),
            ("TO TARGET", Align::Right),
            ("TO CLIENT", Align::Right),
        ]);
        for connection in &forward.connections {
            table.row(connection_cells(connection));
        }
        out.push('\n');
        out.push_str(&table.render(HEADING));
    }
    out
}

fn connection_cells(connection: &ForwardConnection) -> [Cell; 6] {
    [
        connection.client.to_string().into(),
        connection.target.clone().into(),
        quantity::age(connection.age_seconds).into(),
        quantity::age(connection.idle_seconds).into(),
        quantity::bytes(connection.to_target_bytes).into(),
        quantity::bytes(connection.to_client_bytes).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    #[test]
    fn what_is_used_by_hand_and_what_fails_is_told() {
        insta::assert_snapshot!(anstream::adapter::strip_str(&render_one(&fake::forwards())).to_string(), @"
        FORWARD  TARGET    USED     STATE  OPEN   MADE     FAILED      CONNECT p50/p99  TO TARGET  TO CLIENT
        orders   db1:3306           down      1  41001  3 (0.01%)  10.40 ms / 12.90 ms   1.18 MiB   94.2 MiB
                 db2:3306  by hand  up       12  41012  3 (0.01%)  10.40 ms / 12.90 ms   1.18 MiB   94.2 MiB

        orders: listens on 127.0.0.1:3306; switched 1m30s ago, --back uses db1:3306
          db1:3306: Connection refused (os error 111)

        CLIENT           TARGET       AGE  IDLE  TO TARGET  TO CLIENT
        127.0.0.1:51200  db1:3306  91d00h    4s   1.00 KiB   4.00 KiB
        ");
    }
}

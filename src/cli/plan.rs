//! `meshctl plan` and `meshctl reload`: what the changed configuration would do to the running daemon, and doing it.

use clap::Args;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::quantity;
use crate::api::{Plan, PlannedAction, PlannedChange, TouchedLink};

/// `meshctl plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl plan                      what meshctl reload would do\n  meshctl plan && meshctl reload\n  \
                        meshctl plan --detailed-exitcode  for scripts: 0 nothing to do, 7 a reload takes it over,\n                                    \
                        8 it needs a restart\n\n\
                        The running daemon compares its files with what it runs with; nothing is changed. Whether a new address\n\
                        of a forward is free shows only when it is taken: then the reload is refused whole."
)]
pub struct PlanArgs {
    /// Ends with 0 if there is nothing to do, 7 if a reload takes the changes over, 8 if they need a restart.
    #[arg(long)]
    pub detailed_exitcode: bool,
}

/// Says what a reload would do.
pub async fn run(context: &Context, args: &PlanArgs) -> Result<(), Failure> {
    let plan = context.client()?.plan().await?;
    match context.output.json {
        true => context.output.json(&plan)?,
        false => context.output.data(&render(&plan, Tense::Would))?,
    }
    // The plan is the answer.
    match (args.detailed_exitcode, plan.is_empty(), plan.needs_restart()) {
        (true, false, false) => Err(Failure::new(Exit::Changes, "")),
        (true, false, true) => Err(Failure::new(Exit::RestartNeeded, "")),
        _ => Ok(()),
    }
}

/// Has the daemon take the changed configuration over, or nothing of it.
pub async fn reload(context: &Context) -> Result<(), Failure> {
    let taken = context.client()?.reload().await?;
    match context.output.json {
        true => context.output.json(&taken),
        false => context.output.data(&render(&taken, Tense::Did)),
    }
}

/// Whether it is told before or afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tense {
    Would,
    Did,
}

/// A line for each thing that differs, then all of it in a sentence.
fn render(plan: &Plan, tense: Tense) -> String {
    if plan.is_empty() {
        return "nothing has changed\n".to_owned();
    }
    let mut out = String::new();
    for change in &plan.changes {
        let restart = if change.needs_restart { "  (needs a restart)" } else { "" };
        if change.entries.is_empty() {
            out += &format!("  ~ {}{restart}\n", change.key);
        }
        for entry in &change.entries {
            out += &format!("  {} {} {}\n", sign(entry.action), noun(&change.key), entry.name);
        }
    }
    let live: Vec<String> = plan.changes.iter().filter(|change| !change.needs_restart).flat_map(summaries).collect();
    let restart: Vec<&str> =
        plan.changes.iter().filter(|change| change.needs_restart).map(|change| change.key.as_str()).collect();
    if restart.is_empty() {
        let what = live.join(", ");
        let began = match tense {
            Tense::Would => "meshctl reload ",
            Tense::Did => "taken over: ",
        };
        return format!("{out}{began}{what}; {}\n", links(plan));
    }
    let keys = restart.join(", ");
    out += &format!(
        "{keys} can only change at a restart, and meshctl reload refuses all of it; meshctl restart takes it over\n"
    );
    out
}

fn sign(action: PlannedAction) -> char {
    match action {
        PlannedAction::Add => '+',
        PlannedAction::Change => '~',
        PlannedAction::Remove => '-',
    }
}

fn verb(action: PlannedAction) -> &'static str {
    match action {
        PlannedAction::Add => "adds",
        PlannedAction::Change => "changes",
        PlannedAction::Remove => "removes",
    }
}

/// What an entry of a list is called.
fn noun(key: &str) -> &str {
    match key {
        "wireguard" => "stock peer",
        "bootstrap" => "bootstrap member",
        "allow" => "allow rule",
        "underlay.endpoints" => "endpoint",
        "mesh.authorities" => "authority",
        "probe.critical_tags" => "critical tag",
        other => other,
    }
}

/// What a change does, each kind of thing with its number.
fn summaries(change: &PlannedChange) -> Vec<String> {
    if change.entries.is_empty() {
        return vec![format!("changes {}", change.key)];
    }
    let actions = [PlannedAction::Add, PlannedAction::Change, PlannedAction::Remove];
    let counted = actions.map(|action| (action, change.entries.iter().filter(|entry| entry.action == action).count()));
    let told = counted.into_iter().filter(|(_, count)| *count > 0);
    told.map(|(action, count)| format!("{} {}", verb(action), quantity::count(count as u64, noun(&change.key))))
        .collect()
}

/// Which links are touched, and how many are not.
fn links(plan: &Plan) -> String {
    let one = |link: &TouchedLink| {
        let how = match link.action {
            PlannedAction::Add => "begins",
            PlannedAction::Change => "changes",
            PlannedAction::Remove => "ends",
        };
        format!("{} {how}", link.peer)
    };
    let named = match plan.touched.is_empty() {
        true => String::new(),
        false => format!(" ({})", plan.touched.iter().map(one).collect::<Vec<_>>().join(", ")),
    };
    let touched = quantity::count(plan.touched.len() as u64, "link");
    format!("{touched} touched{named}, {} left alone", plan.untouched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    #[test]
    fn a_plan_names_what_differs_and_whom_it_touches() {
        let mut plan = fake::plan();
        insta::assert_snapshot!(render(&plan, Tense::Would), @r"
          ~ underlay.listen  (needs a restart)
          - stock peer phone
          ~ allow rule 1: from tag:app to tag:db by tcp/3306
          ~ allow rule 2: from any by icmp
          + forward orders
          ~ probe.interval
        underlay.listen can only change at a restart, and meshctl reload refuses all of it; meshctl restart takes it over
        ");
        plan.changes.remove(0);
        insta::assert_snapshot!(render(&plan, Tense::Would), @r"
          - stock peer phone
          ~ allow rule 1: from tag:app to tag:db by tcp/3306
          ~ allow rule 2: from any by icmp
          + forward orders
          ~ probe.interval
        meshctl reload removes 1 stock peer, changes 2 allow rules, adds 1 forward, changes probe.interval; 1 link touched (phone ends), 13 left alone
        ");
        insta::assert_snapshot!(render(&plan, Tense::Did).lines().last().unwrap_or_default(), @"taken over: removes 1 stock peer, changes 2 allow rules, adds 1 forward, changes probe.interval; 1 link touched (phone ends), 13 left alone");
        plan.changes.retain(|change| change.key == "probe.interval");
        plan.touched.clear();
        insta::assert_snapshot!(render(&plan, Tense::Would), @r"
          ~ probe.interval
        meshctl reload changes probe.interval; 0 links touched, 13 left alone
        ");
        plan.changes.clear();
        assert_eq!(render(&plan, Tense::Would), "nothing has changed\n");
    }
}

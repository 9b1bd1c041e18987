//! `meshctl names`.

use clap::{Args, Subcommand};

use super::context::{Context, read_config};
use super::exit::Failure;
use super::output::{BAD, HEADING, STRONG, paint};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{NameEntry, NameList, SCHEMA};
use crate::config::{Config, Resolver, TargetHost};
use crate::daemon::names::{handed_over, suffix};
use crate::names::{Bounds, Handed, Way, Wiring, undo};
use crate::platform::file;

/// `meshctl names`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  meshctl names                 all of them, and where they are answered\n  \
                        meshctl names orders          those with this in them\n  meshctl --json names\n\n\
                        [names] in meshd.toml says whether and where they are answered, [[alias]] adds names. NAME.forward is\n\
                        where that forward of this node leads now."
)]
pub struct NamesArgs {
    /// What to do; nothing shows the names.
    #[command(subcommand)]
    pub command: Option<NamesCommand>,
    /// A part of a name; all names unless given.
    #[arg(value_name = "TEXT")]
    pub part: Option<String>,
}

/// What `meshctl names` can do.
#[derive(Debug, Subcommand)]
pub enum NamesCommand {
    /// Puts the names that a daemon without root's rights hands over into this host's resolver, as root.
    #[command(after_help = "Examples:\n  meshctl names apply\n\n\
                            What meshd-names.service runs whenever the names change. Where the daemon hands nothing over, because it has\n\
                            stopped or names.resolver is off, everything is taken out again. A daemon that runs as root needs no help.")]
    Apply,
}

/// Shows the names and their server.
pub async fn run(context: &Context, args: &NamesArgs) -> Result<(), Failure> {
    if let Some(NamesCommand::Apply) = args.command {
        let config = read_config(&context.config)?;
        let way = apply(&config).await?;
        if context.output.json {
            let mesh = &config.mesh.name;
            return context
                .output
                .json(&serde_json::json!({ "schema": SCHEMA, "mesh": mesh, "resolver": way.map(Way::name) }));
        }
        return Ok(());
    }
    let mut list = context.client()?.names().await?;
    if let Some(part) = &args.part {
        let known: Vec<String> = list.names.iter().map(|entry| entry.name.clone()).collect();
        list.names.retain(|entry| entry.name.contains(part.as_str()));
        if list.names.is_empty() {
            return Err(Failure::not_found("name", part, known.iter().map(String::as_str), "meshctl names"));
        }
    }
    if context.output.json { context.output.json(&list) } else { context.output.data(&render(&list)) }
}

/// Does what the daemon hands over; returns the way that was taken, or `None` where all was taken out.
async fn apply(config: &Config) -> Result<Option<Way>, Failure> {
    let place = handed_over(config);
    let failed = |why: String| Failure::failed(why);
    let bytes = match file::read(&place, Handed::LIMIT) {
        Ok(bytes) if config.names.resolver != Resolver::Off => bytes,
        Err(error) if !error.is_missing() => return Err(error.into()),
        _ => {
            undo(&config.mesh.name).await.map_err(|error| failed(error.to_string()))?;
            return Ok(None);
        }
    };
    let anchor = config.mesh.trust_anchor().map_err(|error| failed(error.to_string()))?;
    let suffix = suffix(config).ok_or_else(|| failed("the configuration gives no names.suffix".to_owned()))?;
    let overlay = (anchor.overlay_v4, anchor.overlay_v6);
    let targets = config.forwards.iter().flat_map(|forward| &forward.targets).filter_map(|target| match target.host {
        TargetHost::Address(address) => Some(address),
        TargetHost::Node(_) => None,
    });
    let bounds = Bounds { suffix, overlay, targets: targets.collect() };
    let text = String::from_utf8(bytes).map_err(|_| failed(format!("{} is no text", place.display())))?;
    let handed = Handed::parse(&text, &bounds).map_err(|why| failed(format!("{}: {why}", place.display())))?;
    let wiring = Wiring {
        resolver: config.names.resolver,
        mesh: config.mesh.name.clone(),
        interface: config.interface.name.clone(),
        server: handed.server,
        domains: Wiring::domains(&bounds.suffix, overlay),
        hosts: handed.hosts,
    };
    wiring.apply().await.map(Some).map_err(|error| failed(error.to_string()))
}

/// Renders the names, and how they are answered.
pub fn render(list: &NameList) -> String {
    let mut table =
        Table::new(&[("NAME", Align::Left), ("IPV4", Align::Left), ("IPV6", Align::Left), ("", Align::Left)]);
    for entry in &list.names {
        let address = |v6: bool| {
            let found = entry.addresses.iter().find(|address| address.is_ipv6() == v6);
            found.map_or_else(|| "-".to_owned(), ToString::to_string)
        };
        let name = Cell::styled(entry.name.clone(), STRONG);
        table.row([name, address(false).into(), address(true).into(), stands_for(entry).into()]);
    }
    let mut out = table.render(HEADING);
    out.push_str(&match (&list.failure, list.listen) {
        (Some(why), _) => paint(BAD, &format!("\nnot answered: {why}\n")),
        (None, Some(address)) => format!("\nanswered on {address}{}\n", questions(list)),
        (None, None) => "\nnot answered: the configuration has no names.listen\n".to_owned(),
    });
    out.push_str(&match (&list.resolver_failure, &list.resolver) {
        (Some(why), _) => paint(BAD, &format!("not in this host's resolver: {why}\n")),
        (None, Some(way)) => format!("in this host's resolver by names.resolver: {way}\n"),
        (None, None) => "not in this host's resolver: the configuration has no names.resolver\n".to_owned(),
    });
    out
}

fn stands_for(entry: &NameEntry) -> String {
    match &entry.alias_of {
        None => String::new(),
        Some(of) if entry.addresses.is_empty() => format!("-> {of}, which is not known"),
        Some(of) => format!("-> {of}"),
    }
}

fn questions(list: &NameList) -> String {
    let Some(questions) = list.questions else { return String::new() };
    let mut text = format!("; {} answered", quantity::count(questions.answered, "question"));
    let silent = [
        (questions.strangers, "from outside this host and the mesh"),
        (questions.too_many, "too many at a time"),
        (questions.malformed, "no question"),
    ];
    for (count, why) in silent.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!(", {count} {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    #[test]
    fn names_stand_with_what_they_stand_for() {
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&fake::names())).to_string(), @"
        NAME                 IPV4       IPV6
        db1.prod             10.77.0.2  fd12:3456:789a::a4d:2
        orders.forward.prod  192.0.2.7  -                      -> 192.0.2.7
        reports.prod         -          -                      -> db9, which is not known

        answered on 10.77.0.1:53; 1204 questions answered, 2 from outside this host and the mesh
        in this host's resolver by names.resolver: hosts
        ");
        let silent = NameList { listen: None, questions: None, ..fake::names() };
        assert!(render(&silent).contains("not answered: the configuration has no names.listen"));
        let failing = NameList { failure: Some("it is taken".into()), ..silent };
        assert!(render(&failing).contains("not answered: it is taken"));
    }
}

//! `meshctl names`.

use clap::Args;

use super::context::Context;
use super::exit::Failure;
use super::output::{BAD, HEADING, STRONG, paint};
use super::quantity;
use super::table::{Align, Cell, Table};
use crate::api::{NameEntry, NameList};

/// `meshctl names`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl names                 all of them, and where they are answered\n  \
                        meshctl names orders          those with this in them\n  meshctl --json names\n\n\
                        [names] in meshd.toml says whether and where they are answered, [[alias]] adds names. NAME.forward is\n\
                        where that forward of this node leads now.")]
pub struct NamesArgs {
    /// A part of a name; all names unless given.
    #[arg(value_name = "TEXT")]
    pub part: Option<String>,
}

/// Shows the names and their server.
pub async fn run(context: &Context, args: &NamesArgs) -> Result<(), Failure> {
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
        ");
        let silent = NameList { listen: None, questions: None, ..fake::names() };
        assert!(render(&silent).contains("not answered: the configuration has no names.listen"));
        let failing = NameList { failure: Some("it is taken".into()), ..silent };
        assert!(render(&failing).contains("not answered: it is taken"));
    }
}

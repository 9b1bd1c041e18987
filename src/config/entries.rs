//! What changed inside a list of the configuration: which entries came, went or are other than before.

use super::{Allow, Config, Setting};

/// What happened to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryChange {
    /// It was not there before.
    Added,
    /// It was there and is other now.
    Changed,
    /// It is there no more.
    Removed,
}

/// An entry of a list that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened to it.
    pub change: EntryChange,
    /// What it is called: its name, its value, or a rule's number and text. Never a secret.
    pub name: String,
}

impl Setting {
    /// Returns which entries of a list differ from those in `old`: none for a setting that is no list, and none where only
    /// the order is another.
    pub fn entries(&self, old: &Config) -> Vec<Entry> {
        match self {
            Setting::Bootstrap(new) => named(&old.bootstrap, new, |entry| entry.name.to_string()),
            Setting::Wireguard(new) => named(&old.wireguard, new, |entry| entry.name.to_string()),
            Setting::Forwards(new) => named(&old.forwards, new, |entry| entry.name.to_string()),
            Setting::GatewayChecks(new) => named(&old.gateway_checks, new, |entry| entry.prefix.to_string()),
            Setting::Aliases(new) => named(&old.aliases, new, |entry| entry.name.to_string()),
            Setting::Alerts(new) => named(&old.alerts, new, |entry| entry.name.to_string()),
            Setting::Receivers(new) => named(&old.receivers, new, |entry| entry.name.to_string()),
            Setting::MeshAuthorities(new) => named(&old.mesh.authorities, new, ToString::to_string),
            Setting::Endpoints(new) => named(&old.underlay.endpoints, new, ToString::to_string),
            Setting::ProbeCriticalTags(new) => named(&old.probe.critical_tags, new, |tag| tag.as_str().to_owned()),
            Setting::Allow(new) => rules(&old.allow, new),
            _ => Vec::new(),
        }
    }
}

/// The difference of two lists whose entries have names: those that are there now, in their order, then those that went.
fn named<T: PartialEq>(old: &[T], new: &[T], name: impl Fn(&T) -> String) -> Vec<Entry> {
    let mut entries = Vec::new();
    for entry in new {
        let name_of_it = name(entry);
        match old.iter().find(|known| name(known) == name_of_it) {
            None => entries.push(Entry { change: EntryChange::Added, name: name_of_it }),
            Some(known) if known != entry => entries.push(Entry { change: EntryChange::Changed, name: name_of_it }),
            Some(_) => {}
        }
    }
    let gone = old.iter().map(&name).filter(|known| !new.iter().any(|entry| name(entry) == *known));
    entries.extend(gone.map(|name| Entry { change: EntryChange::Removed, name }));
    entries
}

/// Rules have no names, only their places. What is alike at both ends stays; between, the first is taken for the first.
fn rules(old: &[Allow], new: &[Allow]) -> Vec<Entry> {
    let same = |pairs: &mut dyn Iterator<Item = (&Allow, &Allow)>| pairs.take_while(|(old, new)| old == new).count();
    let before = same(&mut old.iter().zip(new));
    let after = same(&mut old[before..].iter().rev().zip(new[before..].iter().rev()));
    let (was, is) = (&old[before..old.len() - after], &new[before..new.len() - after]);
    let entry = |change, place: usize, rule: &Allow| {
        let name = format!("{}: {}", before + place + 1, rule.summary());
        Entry { change, name }
    };
    let paired = was.len().min(is.len());
    let changed = (0..paired).filter(|place| was[*place] != is[*place]);
    let mut entries: Vec<Entry> = changed.map(|place| entry(EntryChange::Changed, place, &is[place])).collect();
    entries.extend((paired..is.len()).map(|place| entry(EntryChange::Added, place, &is[place])));
    entries.extend((paired..was.len()).map(|place| entry(EntryChange::Removed, place, &was[place])));
    entries
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Level, diff};

    fn config(more: &str) -> Config {
        let text = format!("{}{more}", include_str!("../../fuzz/corpus/config/minimal"));
        Config::parse(&text, Path::new("/srv/mesh/meshd.toml")).unwrap()
    }

    /// What differs, as `key`, then sign and name of each entry.
    fn told(old: &str, new: &str) -> Vec<String> {
        let (old, new) = (config(old), config(new));
        let mut told = Vec::new();
        for change in diff(&old, &new) {
            let entries = change.setting.entries(&old);
            told.push(format!("{} {}", change.key(), entries.len()));
            told.extend(entries.iter().map(|entry| match entry.change {
                EntryChange::Added => format!("+ {}", entry.name),
                EntryChange::Changed => format!("~ {}", entry.name),
                EntryChange::Removed => format!("- {}", entry.name),
            }));
        }
        told
    }

    fn forward(name: &str, port: u16) -> String {
        format!("[[forward]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:{port}\"]\ntargets = [\"db1:3306\"]\n")
    }

    fn allow(tag: &str) -> String {
        format!("[[allow]]\nfrom = [\"tag:{tag}\"]\nports = [\"tcp/3306\"]\n")
    }

    #[test]
    fn entries_with_names_are_told_by_them() {
        let old = forward("a", 1) + &forward("b", 2) + &forward("c", 3);
        let new = forward("d", 1) + &forward("c", 3) + &forward("b", 4);
        assert_eq!(told(&old, &new), ["forward 3", "+ d", "~ b", "- a"]);
        assert_eq!(told(&old, &old), Vec::<String>::new());
        let turned = forward("b", 2) + &forward("a", 1) + &forward("c", 3);
        assert_eq!(told(&old, &turned), ["forward 0"], "only the order is another");
        let (quiet, mut loud) = (config(""), config(""));
        loud.log.level = Level::Debug;
        assert_eq!(diff(&quiet, &loud)[0].setting.entries(&quiet), [], "no list");
    }

    #[test]
    fn rules_are_told_by_their_places() {
        let all = |tags: &[&str]| tags.iter().map(|tag| allow(tag)).collect::<String>();
        let old = all(&["a", "b", "c"]);
        let text = |number: usize, tag: &str| format!("{number}: from tag:{tag} by tcp/3306");
        assert_eq!(
            told(&old, &all(&["a", "x", "y", "c"])),
            ["allow 2".to_owned(), format!("~ {}", text(2, "x")), format!("+ {}", text(3, "y"))]
        );
        assert_eq!(told(&old, &all(&["b", "c"])), ["allow 1".to_owned(), format!("- {}", text(1, "a"))]);
        assert_eq!(told(&old, &all(&["a", "a", "b", "c"])), ["allow 1".to_owned(), format!("+ {}", text(2, "a"))]);
        assert_eq!(told(&all(&["a"]), ""), ["allow 1".to_owned(), format!("- {}", text(1, "a"))]);
    }
}

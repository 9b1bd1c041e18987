//! Several files that are one configuration: the main file, and drop-ins laid over it in the order of their names.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// One file of a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Where the text came from, for errors.
    pub path: &'a Path,
    /// What it says.
    pub text: &'a str,
}

impl Layer<'_> {
    /// Files at most, the main one among them: more than any tool for managing hosts has roles.
    pub const LIMIT: usize = 64;
}

/// Lays a file over those before it: its keys replace theirs, its sections join theirs, and entries of `[[lists]]` are added.
pub(super) fn lay_over<'i>(below: &mut DeTable<'i>, above: DeTable<'i>) {
    for (key, value) in above {
        let Some(found) = below.get_mut(&key) else {
            below.insert(key, value);
            continue;
        };
        let span = value.span();
        match (found.get_mut(), value.into_inner()) {
            (DeValue::Table(below), DeValue::Table(above)) => lay_over(below, above),
            (DeValue::Array(below), DeValue::Array(above)) if has_entries(below) && has_entries(&above) => {
                above.into_iter().for_each(|entry| below.push(entry));
            }
            (_, replacement) => {
                // Out first, because an insertion alone would keep the key at its place in the other file.
                below.remove(&key);
                below.insert(key, Spanned::new(span, replacement));
            }
        }
    }
}

/// Whether a list is one of sections.
fn has_entries(list: &DeArray<'_>) -> bool {
    !list.is_empty() && list.iter().all(|entry| entry.get_ref().is_table())
}

/// Moves every place in a table: the places of several files are counted through.
pub(super) fn shifted(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    let place = |span: Range<usize>| span.start + by..span.end + by;
    let entry =
        |(key, value): (Spanned<_>, _)| (Spanned::new(place(key.span()), key.into_inner()), shifted_value(value, by));
    table.into_iter().map(entry).collect()
}

fn shifted_value(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = value.span();
    let moved = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shifted(table, by)),
        DeValue::Array(list) => DeValue::Array(list.into_iter().map(|item| shifted_value(item, by)).collect()),
        plain => plain,
    };
    Spanned::new(span.start + by..span.end + by, moved)
}

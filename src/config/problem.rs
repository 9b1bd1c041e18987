//! What is wrong with a configuration file, and how it is shown.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::Layer;

/// One problem of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key it is about, in full (`interface.mtu`); empty where the text is no TOML at that place.
    pub key: String,
    /// What is wrong, as a sentence without a full stop.
    pub message: String,
    /// What would be right; empty where the message says it.
    pub expected: String,
    /// Line of the place, from 1.
    pub line: usize,
    /// Column of the place in characters, from 1.
    pub column: usize,
    /// The place in bytes.
    pub span: Range<usize>,
    /// The file it is in.
    pub path: PathBuf,
    /// That file's number.
    source: usize,
}

/// Every problem of a configuration, in the order of its files; never empty when returned as an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    sources: Vec<Source>,
    list: Vec<Problem>,
}

/// A file, and where its text starts where the texts of all files are counted through.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    path: PathBuf,
    text: String,
    start: usize,
}

impl Problems {
    /// Starts an empty list for some files.
    pub(super) fn new(layers: &[Layer<'_>]) -> Self {
        let mut end = 0;
        let source = |layer: &Layer<'_>| {
            let start = end;
            // One more than its length, so that its end is not the next one's start.
            end += layer.text.len() + 1;
            Source { path: layer.path.to_path_buf(), text: layer.text.to_owned(), start }
        };
        let nothing = [Layer { path: Path::new(""), text: "" }];
        let layers = if layers.is_empty() { &nothing } else { layers };
        Problems { sources: layers.iter().map(source).collect(), list: Vec::new() }
    }

    /// Returns where a file's text starts where the texts of all files are counted through.
    pub(super) fn start_of(&self, number: usize) -> usize {
        self.sources.get(number).map_or(0, |source| source.start)
    }

    /// Adds a problem at a place, which is counted through all files.
    pub(super) fn add(&mut self, span: Range<usize>, key: &str, message: impl Into<String>, expected: &str) {
        let number = self.sources.iter().rposition(|source| source.start <= span.start);
        let Some((number, source)) = number.and_then(|number| Some((number, self.sources.get(number)?))) else {
            return;
        };
        let text = &source.text;
        let start = floor_boundary(text, span.start - source.start);
        let end = floor_boundary(text, span.end.saturating_sub(source.start)).max(start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.list.push(Problem {
            key: key.to_owned(),
            message: message.into(),
            expected: expected.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span: start..end,
            path: source.path.clone(),
            source: number,
        });
    }

    /// Keeps those of the syntax alone.
    pub(super) fn keep_syntax(&mut self) {
        self.list.retain(|problem| problem.key.is_empty());
    }

    /// Puts the problems into the order of the files and their texts.
    pub(super) fn sort(&mut self) {
        self.list.sort_by(|a, b| (a.source, a.span.start, &a.key).cmp(&(b.source, b.span.start, &b.key)));
        self.list.dedup();
    }

    /// Returns whether nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the problems in the order of the files.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Returns the first problem's file and line, and how many more there are: nothing that the text says.
    pub fn place(&self) -> String {
        let Some(first) = self.list.first() else { return String::new() };
        let place = format!("{}:{}", first.path.display(), first.line);
        match self.list.len() - 1 {
            0 => place,
            1 => format!("{place} and 1 more place"),
            more => format!("{place} and {more} more places"),
        }
    }

    /// Renders each problem with the line it is about, marked, for a person; with colours where `styled`.
    pub fn render(&self, styled: bool) -> String {
        let renderer = if styled { Renderer::styled() } else { Renderer::plain() }.decor_style(DecorStyle::Ascii);
        let mut out = String::new();
        for problem in &self.list {
            let title = problem.title();
            let path = problem.path.display().to_string();
            let text = self.sources.get(problem.source).map_or("", |source| source.text.as_str());
            let snippet = Snippet::source(text)
                .path(path.as_str())
                .annotation(AnnotationKind::Primary.span(problem.span.clone()).label(problem.expected_label()));
            out.push_str(&renderer.render(&[Level::ERROR.primary_title(title).element(snippet)]));
            out.push_str("\n\n");
        }
        out.push_str(&self.summary());
        out
    }

    fn summary(&self) -> String {
        let count = self.list.len();
        let path = self.sources.first().map_or(Path::new(""), |main| &main.path).display();
        format!("{path}: {count} problem{}", if count == 1 { "" } else { "s" })
    }
}

/// One line each: `FILE:LINE:COLUMN: key: message (expected …)`, as editors and log readers want it.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{}:{}: {}", problem.path.display(), problem.line, problem.column, problem.title())?;
            if !problem.expected.is_empty() {
                write!(f, " ({})", problem.expected_label())?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Problem {
    fn title(&self) -> String {
        if self.key.is_empty() { self.message.clone() } else { format!("{}: {}", self.key, self.message) }
    }

    fn expected_label(&self) -> String {
        if self.expected.is_empty() { String::new() } else { format!("expected {}", self.expected) }
    }
}

/// The nearest character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

//! What is wrong with a configuration file, and how it is shown.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

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
}

/// Every problem of one file, in the order of the file; never empty when returned as an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    path: PathBuf,
    text: String,
    list: Vec<Problem>,
}

impl Problems {
    /// Starts an empty list for a file.
    pub(super) fn new(path: &Path, text: &str) -> Self {
        Problems { path: path.to_path_buf(), text: text.to_owned(), list: Vec::new() }
    }

    /// Adds a problem at a place.
    pub(super) fn add(&mut self, span: Range<usize>, key: &str, message: impl Into<String>, expected: &str) {
        let start = floor_boundary(&self.text, span.start);
        let end = floor_boundary(&self.text, span.end).max(start);
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.list.push(Problem {
            key: key.to_owned(),
            message: message.into(),
            expected: expected.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span: start..end,
        });
    }

    /// Puts the problems into the order of the text.
    pub(super) fn sort(&mut self) {
        self.list.sort_by(|a, b| (a.span.start, &a.key).cmp(&(b.span.start, &b.key)));
        self.list.dedup();
    }

    /// Returns whether nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the problems in the order of the file.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Returns the file they are about.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renders each problem with the line it is about, marked, for a person; with colours where `styled`.
    pub fn render(&self, styled: bool) -> String {
        let renderer = if styled { Renderer::styled() } else { Renderer::plain() }.decor_style(DecorStyle::Ascii);
        let path = self.path.display().to_string();
        let mut out = String::new();
        for problem in &self.list {
            let title = problem.title();
            let snippet = Snippet::source(self.text.as_str())
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
        format!("{}: {count} problem{}", self.path.display(), if count == 1 { "" } else { "s" })
    }
}

/// One line each: `FILE:LINE:COLUMN: key: message (expected …)`, as editors and log readers want it.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{}:{}: {}", self.path.display(), problem.line, problem.column, problem.title())?;
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

//! What goes to the terminal: data on standard output, everything else on standard error.

use std::io::{self, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::args::Color;
use super::exit::{Exit, Failure};
use crate::api::{Gravity, PeerState, SCHEMA, WireguardState};

/// Headings.
pub const HEADING: Style = Style::new().dimmed();
/// What has failed.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// What is about to fail, or works badly.
pub const WORRYING: Style = AnsiColor::Yellow.on_default();
/// What is well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Names.
pub const STRONG: Style = Style::new().bold();

/// The colour of a peer's state.
pub fn style_of_state(state: PeerState) -> Style {
    match state {
        PeerState::Up => GOOD,
        PeerState::New => Style::new(),
        PeerState::Degraded | PeerState::Suspect | PeerState::Unknown => WORRYING,
        PeerState::Down | PeerState::Expired => BAD,
    }
}

/// The colour of a stock peer's state.
pub fn style_of_wireguard(state: WireguardState) -> Style {
    match state {
        WireguardState::Up => GOOD,
        WireguardState::Idle | WireguardState::New => Style::new(),
        WireguardState::Refused => BAD,
    }
}

/// The colour of a problem.
pub fn style_of_gravity(gravity: Gravity) -> Style {
    match gravity {
        Gravity::Notice => STRONG,
        Gravity::Warning => WORRYING,
        Gravity::Critical => BAD,
    }
}

/// Text in a style.
pub fn paint(style: Style, text: &str) -> String {
    format!("{}{text}{}", style.render(), style.render_reset())
}

/// Where a command writes.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    choice: ColorChoice,
    /// Whether the answer is JSON.
    pub json: bool,
}

impl Output {
    /// Makes the output of a command.
    pub fn new(color: Color, json: bool) -> Self {
        let choice = match color {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        };
        Output { choice, json }
    }

    /// Writes data.
    ///
    /// # Errors
    /// Standard output is closed or full; a closed pipe is no failure of the command.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        let mut out = AutoStream::new(io::stdout().lock(), self.resolved(&io::stdout()));
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Good, "")),
            Err(error) => Err(Failure::failed(format!("cannot write to standard output: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value);
        self.data(&(text.map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))? + "\n"))
    }

    /// Writes a value as one line of JSON.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value);
        self.data(&(text.map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))? + "\n"))
    }

    /// Writes what is no data: what was done, what to do next. Nothing where the answer is JSON.
    pub fn note(&self, text: &str) {
        if !self.json {
            self.error_stream(text);
        }
    }

    /// Shows the help to somebody who said nothing.
    pub fn help(&self, help: &clap::builder::StyledStr) {
        self.error_stream(&help.ansi().to_string());
    }

    /// Tells a failure.
    pub fn failure(&self, failure: &Failure) {
        if failure.message.is_empty() {
            return;
        }
        if self.json {
            let value = serde_json::json!({
                "schema": SCHEMA, "exit_code": failure.exit as u8, "message": failure.message,
            });
            self.error_stream(&value.to_string());
            return;
        }
        match &failure.problems {
            Some(problems) => self.error_stream(&problems.render(true)),
            None => self.error_stream(&format!("{} {}", paint(BAD, "error:"), failure.message)),
        }
    }

    fn error_stream(&self, text: &str) {
        let mut out = AutoStream::new(io::stderr().lock(), self.resolved(&io::stderr()));
        // Nobody is left to be told that standard error is closed.
        let _ = writeln!(out, "{}", text.trim_end());
    }

    /// How many columns a line of data may have: those of the terminal, else what `COLUMNS` says, else any number.
    pub fn width(&self) -> usize {
        let terminal = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
        let told = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        // A terminal that does not know its size says 0.
        terminal.filter(|columns| *columns > 0).or_else(told).unwrap_or(usize::MAX)
    }

    fn resolved(&self, stream: &impl anstream::stream::RawStream) -> ColorChoice {
        match self.choice {
            ColorChoice::Auto => AutoStream::choice(stream),
            choice => choice,
        }
    }
}

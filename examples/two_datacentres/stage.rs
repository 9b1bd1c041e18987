//! What the audience sees: scenes, plain words, commands and what they really printed.

use std::time::Duration;

use anstream::println;
use anstyle::{AnsiColor, Style};

const TITLE: Style = AnsiColor::Cyan.on_default().bold();
const PROMPT: Style = AnsiColor::Green.on_default();
const COMMAND: Style = Style::new().bold();
const ASIDE: Style = Style::new().dimmed();
const WARNING: Style = AnsiColor::Yellow.on_default();

/// The screen.
pub struct Stage {
    colour: bool,
}

impl Stage {
    /// Colours where standard output is a terminal that wants them.
    pub fn new() -> Self {
        let choice = anstream::AutoStream::choice(&std::io::stdout());
        Stage { colour: choice != anstream::ColorChoice::Never }
    }

    /// What `meshctl --color` is to be told.
    pub fn color_argument(&self) -> &'static str {
        if self.colour { "always" } else { "never" }
    }

    /// How many columns there are: the terminal's; where nobody knows, enough for an unbroken status line.
    pub fn width(&self) -> u16 {
        let terminal = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col);
        if terminal > 0 { terminal } else { 140 }
    }

    /// Begins a scene.
    pub fn scene(&self, title: &str) {
        println!("\n{TITLE}── {title}{TITLE:#}\n");
    }

    /// Says something in plain words.
    pub fn say(&self, text: &str) {
        println!("{text}");
    }

    /// Says something that explains and may be skipped.
    pub fn aside(&self, text: &str) {
        println!("{ASIDE}{text}{ASIDE:#}");
    }

    /// Says that something is not as it should be.
    pub fn warn(&self, text: &str) {
        println!("{WARNING}{text}{WARNING:#}");
    }

    /// Shows a command as typed on a host.
    pub fn command(&self, host: &str, command: &str) {
        println!("{PROMPT}{host}#{PROMPT:#} {COMMAND}{command}{COMMAND:#}");
    }

    /// Shows what a command printed, unchanged.
    pub fn output(&self, text: &str) {
        println!("{}", text.trim_end());
    }

    /// Ends the show.
    pub fn end(&self, took: Duration) {
        println!("\n{ASIDE}That took {} s. Hosts, daemons and databases are gone again.{ASIDE:#}", took.as_secs());
    }
}

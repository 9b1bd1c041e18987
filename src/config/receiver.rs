//! Who is told of alerts, as `[[receiver]]` says it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::duration;
use super::template::{list, quoted};
use crate::identity::NodeName;

/// One receiver of alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// Its name, on this node only.
    pub name: NodeName,
    /// How it is told.
    pub kind: ReceiverKind,
    /// How long one delivery may take, 1 s to 60 s.
    pub timeout: Duration,
    /// How often it is told again while an alert fires, 1 m to 7 d.
    pub repeat: Duration,
}

/// How a receiver is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverKind {
    /// A POST of what Alertmanager's webhooks get (version 4).
    Webhook(HttpReceiver),
    /// Alertmanager itself, by its API (version 2).
    Alertmanager(HttpReceiver),
    /// A program with its arguments, the alert on its standard input; never a shell. 1 to [`Receiver::ARGUMENT_LIMIT`].
    Command(Vec<String>),
}

/// Somebody who listens for HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReceiver {
    /// Where, http or https. Its path may be a secret: shown is only [`HttpReceiver::host`].
    pub url: String,
    /// A file with one header line, such as a token's.
    pub header_file: Option<PathBuf>,
}

impl Receiver {
    /// Receivers at most; each has a queue and a task.
    pub const LIMIT: usize = 8;
    /// The command's words at most.
    pub const ARGUMENT_LIMIT: usize = 32;
    /// How long a delivery may take unless the file says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(10);
    /// How often it is told again unless the file says otherwise: twice in a shift.
    pub const REPEAT: Duration = Duration::from_secs(4 * 3600);

    /// Renders the receiver as a `[[receiver]]` entry; paths below `directory` relative to it.
    pub fn to_toml(&self, directory: &Path) -> String {
        let mut out = String::from("[[receiver]]\n");
        let mut line = |key: &str, value: String| {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{key} = {value}");
        };
        line("name", quoted(self.name.to_string()));
        line("type", quoted(self.kind.name()));
        match &self.kind {
            ReceiverKind::Webhook(http) | ReceiverKind::Alertmanager(http) => {
                line("url", quoted(&http.url));
                if let Some(file) = &http.header_file {
                    line("header_file", quoted(file.strip_prefix(directory).unwrap_or(file).to_string_lossy()));
                }
            }
            ReceiverKind::Command(words) => line("command", list(words)),
        }
        line("timeout", quoted(duration::format(self.timeout)));
        line("repeat", quoted(duration::format(self.repeat)));
        out
    }
}

impl ReceiverKind {
    /// The kinds, as the file names them.
    pub const NAMES: [&'static str; 3] = ["webhook", "alertmanager", "command"];

    /// Its name in the file.
    pub const fn name(&self) -> &'static str {
        match self {
            ReceiverKind::Webhook(_) => "webhook",
            ReceiverKind::Alertmanager(_) => "alertmanager",
            ReceiverKind::Command(_) => "command",
        }
    }

    /// Returns what may be shown of where it is: a host, or a program.
    pub fn place(&self) -> &str {
        match self {
            ReceiverKind::Webhook(http) | ReceiverKind::Alertmanager(http) => http.host(),
            ReceiverKind::Command(words) => words.first().map_or("", String::as_str),
        }
    }
}

impl HttpReceiver {
    /// Returns the URL's scheme, host and port, without what may be secret.
    pub fn host(&self) -> &str {
        let start = self.url.find("://").map_or(0, |at| at + 3);
        let end = self.url[start..].find(['/', '?', '#']).map_or(self.url.len(), |at| start + at);
        &self.url[..end]
    }
}

/// Checks a receiver's address.
///
/// # Errors
/// What is wrong with it, as a sentence for its writer.
pub(super) fn url(text: &str) -> Result<String, String> {
    let rest = ["http://", "https://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest else { return Err("it begins with neither http:// nor https://".to_owned()) };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if text.len() > 2_048 {
        return Err(format!("it has {} characters", text.len()));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') || text.contains('#') {
        return Err("it has characters that no address on the web has".to_owned());
    }
    if authority.contains('@') {
        return Err("it holds a password; put an Authorization header into header_file instead".to_owned());
    }
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or("", |(host, _)| host),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() { Err("it names no host".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_not_shown() {
        for (address, shown) in [
            ("https://hooks.example.com/services/T0/B0/secret", "https://hooks.example.com"),
            ("http://127.0.0.1:9093", "http://127.0.0.1:9093"),
            ("https://[2001:db8::1]:8443?token=x", "https://[2001:db8::1]:8443"),
        ] {
            let http = HttpReceiver { url: url(address).unwrap(), header_file: None };
            assert_eq!(http.host(), shown);
        }
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        for wrong in
            ["", "ftp://x", "https://", "https:///x", "http://a b", "https://me:word@example.com/", "http://x/#y", "x"]
        {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }
}

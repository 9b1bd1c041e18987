//! How a command ends.

use std::fmt;
use std::process::ExitCode;

use crate::api::{ClientError, ErrorKind};
use crate::config::{Problems, nearest};
use crate::platform::file::FileError;

/// The exit codes, as documented in meshctl(1). Code 2, wrong usage, is clap's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Good = 0,
    /// It failed, or `status --check` found something wrong.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// The daemon does not answer.
    NotReachable = 3,
    /// There is no such peer, invite or key.
    NotFound = 4,
    /// Not permitted.
    Forbidden = 5,
    /// The configuration is invalid.
    InvalidConfig = 6,
    /// `plan --detailed-exitcode` found changes that a reload takes over.
    Changes = 7,
    /// `plan --detailed-exitcode` found changes that need a restart.
    RestartNeeded = 8,
}

impl Exit {
    /// All codes with what they mean, for the manual.
    pub const ALL: [(Exit, &str); 9] = [
        (Exit::Good, "good"),
        (Exit::Failed, "failed, or degraded (`status --check`)"),
        (Exit::Usage, "wrong usage"),
        (Exit::NotReachable, "the daemon is not reachable"),
        (Exit::NotFound, "there is no such peer, invite or key"),
        (Exit::Forbidden, "not permitted"),
        (Exit::InvalidConfig, "the configuration is invalid"),
        (Exit::Changes, "`plan --detailed-exitcode`: there are changes, and a reload takes them over"),
        (Exit::RestartNeeded, "`plan --detailed-exitcode`: there are changes that need a restart"),
    ];
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A command that failed: what to tell, and how to exit.
#[derive(Debug)]
pub struct Failure {
    /// How to exit.
    pub exit: Exit,
    /// What failed, with what, and what to do next.
    pub message: String,
    /// The problems of a configuration, where that is what failed; shown with their lines.
    pub problems: Option<Problems>,
}

impl Failure {
    /// Makes a failure.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into(), problems: None }
    }

    /// Makes the failure that there is no `kind` of that name: with the one that was most likely meant, or else the command
    /// that lists them.
    pub fn not_found<'a>(kind: &str, name: &str, known: impl IntoIterator<Item = &'a str>, list: &str) -> Self {
        let advice = match nearest(name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`{list}` lists them"),
        };
        Failure::new(Exit::NotFound, format!("there is no {kind} `{name}`; {advice}"))
    }

    /// Makes a failure of the ordinary kind.
    pub fn failed(message: impl Into<String>) -> Self {
        Failure::new(Exit::Failed, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NotRunning { .. } | ClientError::TimedOut { .. } => Exit::NotReachable,
            ClientError::Forbidden { .. } => Exit::Forbidden,
            ClientError::Protocol { .. } => Exit::Failed,
            ClientError::Refused(refused) => match refused.kind {
                ErrorKind::Forbidden => Exit::Forbidden,
                ErrorKind::NotFound => Exit::NotFound,
                ErrorKind::Busy | ErrorKind::TimedOut => Exit::NotReachable,
                ErrorKind::BadRequest | ErrorKind::Conflict | ErrorKind::Internal => Exit::Failed,
            },
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let exit = match &error {
            FileError::System { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Exit::Forbidden
            }
            FileError::System { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Failure { exit: Exit::InvalidConfig, message: problems.to_string(), problems: Some(problems) }
    }
}

//! What can go wrong in the lab, and the difference between "failed" and "could not be run here".

use std::fmt;
use std::io;

/// The lab's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a step of the lab did not succeed.
#[derive(Debug)]
pub enum Error {
    /// Something that should have worked did not: the test fails.
    Failed(String),
    /// This machine lacks something: the test is reported as NOT RUN with this reason and counted.
    NotRun(String),
}

impl Error {
    /// Makes a failure from what was attempted.
    pub fn failed(what: impl Into<String>) -> Self {
        Error::Failed(what.into())
    }

    /// Makes a "this machine lacks it" from its reason.
    pub fn not_run(reason: impl Into<String>) -> Self {
        Error::NotRun(reason.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Failed(what) => f.write_str(what),
            Error::NotRun(reason) => write!(f, "NOT RUN: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Failed(error.to_string())
    }
}

impl From<nix::Error> for Error {
    fn from(error: nix::Error) -> Self {
        Error::Failed(error.to_string())
    }
}

/// Says what was attempted when a system call or a file operation fails.
pub trait Context<T> {
    /// Turns an error into a failure that begins with `what`.
    ///
    /// # Errors
    /// The error it was called on, with `what` in front.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Failed(format!("{what}: {error}")))
    }
}

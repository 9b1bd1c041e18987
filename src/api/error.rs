//! What a call that failed answers.

use serde::{Deserialize, Serialize};

use super::SCHEMA;

/// Why a call failed, in terms a program can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request does not decode or breaks a limit: HTTP 400.
    BadRequest,
    /// The caller may not do this: HTTP 403.
    Forbidden,
    /// No such peer, invite or key: HTTP 404.
    NotFound,
    /// It contradicts what is there (a name in use, an invite already used): HTTP 409.
    Conflict,
    /// The daemon serves as many callers as it can: HTTP 503.
    Busy,
    /// The request was not complete in time: HTTP 408.
    TimedOut,
    /// The daemon failed: HTTP 500.
    Internal,
}

impl ErrorKind {
    /// Returns the HTTP status code that goes with it.
    pub const fn http_status(self) -> u16 {
        match self {
            ErrorKind::BadRequest => 400,
            ErrorKind::Forbidden => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::TimedOut => 408,
            ErrorKind::Conflict => 409,
            ErrorKind::Internal => 500,
            ErrorKind::Busy => 503,
        }
    }
}

/// A failed call's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[error("{message}{}", advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default())]
pub struct ApiError {
    /// The version of these types.
    pub schema: u32,
    /// Why, for a program.
    pub kind: ErrorKind,
    /// What failed and with what, for a person.
    pub message: String,
    /// What to do next, where there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl ApiError {
    /// Makes an error.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        ApiError { schema: SCHEMA, kind, message: message.into(), advice: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

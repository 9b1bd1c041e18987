//! Looking at something again and again until it is as wanted.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use super::error::{Error, Result};

/// Between two looks: most cost a process, and the machine has more to do than be looked at.
const PAUSE: Duration = Duration::from_millis(40);

/// What a look gave.
pub enum Look<T> {
    /// What was looked for.
    Found(T),
    /// Not yet; what was there instead, for whoever reads of the failure.
    NotYet(String),
}

impl<T> From<Option<T>> for Look<T> {
    fn from(found: Option<T>) -> Self {
        found.map_or_else(|| Look::NotYet(String::new()), Look::Found)
    }
}

/// Looks until there is what is looked for, and returns it.
///
/// # Errors
/// Where the time runs out, with what there was instead; what a look itself could not do.
pub fn wait<T, L: Into<Look<T>>>(
    what: impl Display,
    limit: Duration,
    mut look: impl FnMut() -> Result<L>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look()?.into() {
            Look::Found(found) => return Ok(found),
            Look::NotYet(seen) if Instant::now() > deadline => {
                return Err(Error::failed(format!("{what}: not within {limit:?}: {seen}")));
            }
            Look::NotYet(_) => thread::sleep(PAUSE),
        }
    }
}

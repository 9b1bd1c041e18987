//! Why the history was not read or written.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::platform::file::FileError;

/// Why the history was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No room: on the disk, or below the configured size.
    #[error("no room for the history {}: make room on the disk; the recording goes on by itself then", .0.display())]
    Full(PathBuf),
    /// The file is no history, is damaged, or was written by a newer version.
    #[error("{} {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The answer would take too long.
    #[error("the history was not read within {seconds} s: ask for a shorter time or a longer step")]
    TooLong {
        /// How long it was read.
        seconds: u64,
    },
    /// Files around it.
    #[error(transparent)]
    File(#[from] FileError),
    /// SQLite refused.
    #[error("cannot use the history {}: {source}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl HistoryError {
    /// Sorts an error of SQLite by what can be done about it.
    pub(super) fn of(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => HistoryError::Full(path),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                HistoryError::Unusable { path, why: format!("is damaged ({source})") }
            }
            Some(_) => HistoryError::Sqlite { path, source },
            // SQLite was content; what it read is nothing that was ever written.
            None => HistoryError::Unusable { path, why: format!("is damaged ({source})") },
        }
    }

    /// Whether the file must be set aside before anything can be recorded again.
    pub fn is_unusable(&self) -> bool {
        matches!(self, HistoryError::Unusable { .. })
    }
}

//! The authority's key and its ledger, opened together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand_core::OsRng;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use super::passphrase;
use crate::config::{ledger_beside, ledger_lock};
use crate::identity::{Authority, AuthorityFile, AuthorityFileError, Ledger, LedgerError, PassphraseCost};
use crate::platform::file::{self, FileError, Lock};

/// Bytes of an authority's key file at most.
const KEY_LIMIT: u64 = 64 * 1024;
/// Bytes of a ledger at most: its largest number of entries at a thousand bytes each.
const LEDGER_LIMIT: u64 = Ledger::MAX_ENTRIES as u64 * 1_000;
/// How often and how long a lock is waited for: whoever holds it writes one file.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A new authority's key as it is written: under the passphrase of a file, under one that is asked for, or open.
///
/// # Errors
/// The passphrase cannot be had.
pub fn armored(authority: &Authority, passphrase_file: Option<&Path>, ask: bool) -> Result<Zeroizing<String>, Failure> {
    let passphrase = match passphrase_file {
        Some(path) => passphrase::from_file(path)?,
        None if ask => passphrase::choose("passphrase for the authority's key")?,
        None => return Ok(authority.to_armor()),
    };
    let armor = authority.to_protected_armor(&passphrase, PassphraseCost::STANDARD, &mut OsRng);
    armor.map_err(|error| Failure::failed(error.to_string()))
}

/// An authority with its ledger, locked against every other user of the ledger until dropped.
pub struct OpenAuthority {
    /// The authority.
    pub authority: Authority,
    /// What it has issued.
    pub ledger: Ledger,
    ledger_path: PathBuf,
    _lock: Lock,
}

impl OpenAuthority {
    /// Opens an authority's key and the ledger beside it.
    ///
    /// # Errors
    /// One of them cannot be read, the passphrase is wrong, or another process keeps the ledger.
    pub fn open(key: &Path, passphrase_file: Option<&Path>) -> Result<Self, Failure> {
        let text = file::read_private(key, KEY_LIMIT)?;
        let text = std::str::from_utf8(&text)
            .map_err(|_| Failure::failed(format!("{} is no authority's key", key.display())))?;
        let named = |error: AuthorityFileError| Failure::failed(format!("{}: {error}", key.display()));
        let needs_passphrase = AuthorityFile::peek(text).map_err(named)?.needs_passphrase;
        let passphrase = match passphrase_file {
            _ if !needs_passphrase => None,
            Some(path) => Some(passphrase::from_file(path)?),
            None => Some(passphrase::ask(&format!("passphrase of {}", key.display()))?),
        };
        let authority = Authority::from_armor(text, passphrase.as_ref().map(|p| p.as_slice())).map_err(named)?;
        let ledger_path = ledger_beside(key);
        let lock = lock(&ledger_path)?;
        let ledger = read_ledger(&ledger_path, &authority)?;
        Ok(OpenAuthority { authority, ledger, ledger_path, _lock: lock })
    }

    /// Writes the ledger; call it before what was granted leaves this process.
    ///
    /// # Errors
    /// The file cannot be written; the old one is whole then.
    pub fn save(&self) -> Result<(), Failure> {
        Ok(file::atomic_write(&self.ledger_path, self.ledger.to_text().as_bytes(), 0o600)?)
    }
}

fn lock(ledger: &Path) -> Result<Lock, Failure> {
    let path = ledger_lock(ledger);
    let mut attempts = 0;
    loop {
        match Lock::acquire(&path) {
            Err(FileError::Locked { .. }) if attempts < LOCK_ATTEMPTS => {
                attempts += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            result => return Ok(result?),
        }
    }
}

fn read_ledger(path: &Path, authority: &Authority) -> Result<Ledger, Failure> {
    let bytes = file::read_private(path, LEDGER_LIMIT).map_err(|error| match error {
        FileError::System { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let advice = "put it beside the authority's key again: without it an address could be given out twice";
            Failure::new(Exit::NotFound, format!("the ledger {} is missing; {advice}", path.display()))
        }
        error => error.into(),
    })?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Failure::failed(format!("the ledger {} is no UTF-8 text", path.display())))?;
    Ledger::parse(text, authority.anchor()).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        let exit = if matches!(error, LedgerError::UnknownNode(_)) { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, error.to_string())
    }
}

//! The files the daemon writes: what it learned, the marks of its handshakes, its invites, its renewed certificate.
//!
//! Every file carries its version and a checksum and is replaced whole. A file that does not check is set aside under another
//! name and the one before it is tried; a node that has lost all of them starts from its configuration. Keys are not among
//! them: the identity file is read, never written, by the daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ledger_file;
use super::state_file::{encode_drained, encode_marks, frame, parse_drained, parse_marks, unframe};
use super::switches::{self, Switch};
use crate::control::snapshot::Snapshot;
use crate::identity::{InviteBook, NodeName, SignedCertificate, TrustAnchor};
use crate::platform::file::{self, FileError};
use crate::telemetry::usage::Usage;
use crate::time::UnixTime;
use crate::tunnel::{Marks, PeerKey};

/// Largest state file that is read: 4,096 members of 1.5 KiB and their revocations fit twice.
const LIMIT: u64 = 16 << 20;

/// Where the daemon keeps its state.
#[derive(Debug)]
pub(super) struct StateFiles {
    directory: PathBuf,
    certificate: PathBuf,
    /// Held as long as the files are in use: two daemons must never share them.
    _lock: file::Lock,
    /// What had to be set aside or could not be written, for the status.
    complaints: Vec<String>,
}

/// What a start found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) snapshot: Option<Snapshot>,
    pub(super) marks: Vec<(PeerKey, Marks)>,
    pub(super) invites: InviteBook,
    /// What operators switched, by forward.
    pub(super) switches: BTreeMap<NodeName, Switch>,
    /// Since when this node is drained, where it is.
    pub(super) drained: Option<UnixTime>,
    /// What used which link.
    pub(super) usage: Usage,
}

impl StateFiles {
    /// Takes a directory, which is made with mode 0700 where it is missing, and locks it.
    ///
    /// # Errors
    /// It cannot be made or read, or another daemon holds it; nothing in it was touched then.
    pub(super) fn open(directory: &Path, certificate: &Path) -> Result<Self, FileError> {
        file::create_private_directory(directory)?;
        let lock = file::Lock::acquire(&directory.join("lock"))?;
        // What a crash left half-written; without the lock it could be what another daemon is writing just now.
        file::sweep(directory)?;
        let (directory, certificate) = (directory.to_path_buf(), certificate.to_path_buf());
        Ok(StateFiles { directory, certificate, _lock: lock, complaints: Vec::new() })
    }

    /// What went wrong with the files, for the status.
    pub(super) fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Reads everything, setting aside what does not check.
    pub(super) fn load(&mut self, anchor: &TrustAnchor, wall: UnixTime) -> Found {
        Found {
            snapshot: self.read_checked("membership", wall, |bytes| {
                Snapshot::from_bytes(bytes).map_err(|error| error.to_string())
            }),
            marks: self.read_checked("marks", wall, parse_marks).unwrap_or_default(),
            invites: self.read_invites(anchor, wall),
            switches: self.read_checked("forwards", wall, switches::parse).unwrap_or_default(),
            drained: self.read_checked("drained", wall, parse_drained).unwrap_or_default(),
            usage: self.read_checked("ledger", wall, ledger_file::parse).unwrap_or_default(),
        }
    }

    pub(super) fn write_snapshot(&mut self, snapshot: &Snapshot) {
        self.write_checked("membership", &snapshot.to_bytes());
    }

    pub(super) fn write_marks(&mut self, marks: &[(PeerKey, Marks)]) {
        self.write_checked("marks", &encode_marks(marks));
    }

    pub(super) fn write_usage(&mut self, usage: &Usage) {
        self.write_checked("ledger", &ledger_file::encode(usage));
    }

    /// Writes what operators switched; a switch may be made only if this says yes.
    #[must_use]
    pub(super) fn write_switches(&mut self, switches: &BTreeMap<NodeName, Switch>) -> bool {
        self.write_checked("forwards", &switches::encode(switches))
    }

    /// Writes since when this node is drained; it may be told to the mesh only if this says yes.
    #[must_use]
    pub(super) fn write_drained(&mut self, since: Option<UnixTime>) -> bool {
        self.write_checked("drained", &encode_drained(since))
    }

    /// Writes the invites; the answer to a join may be sent only if this says yes.
    #[must_use]
    pub(super) fn write_invites(&mut self, invites: &InviteBook) -> bool {
        let path = self.directory.join("invites");
        let written = file::atomic_write(&path, invites.to_armor().as_bytes(), 0o600);
        self.note("the invites", written)
    }

    /// Writes our own renewed certificate where the configuration has it.
    pub(super) fn write_certificate(&mut self, certificate: &SignedCertificate) {
        let written = file::atomic_write(&self.certificate, certificate.to_armor().as_bytes(), 0o644);
        self.note("the renewed certificate", written);
    }

    fn read_invites(&mut self, anchor: &TrustAnchor, wall: UnixTime) -> InviteBook {
        let path = self.directory.join("invites");
        let text = match file::read_private(&path, LIMIT) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return InviteBook::default(),
            Err(error) => {
                self.complain(format!("the invites cannot be read: {error}"));
                return InviteBook::default();
            }
        };
        let parsed = std::str::from_utf8(&text)
            .map_err(|error| error.to_string())
            .and_then(|text| InviteBook::from_armor(text, anchor).map_err(|error| error.to_string()));
        parsed.unwrap_or_else(|why| {
            self.set_aside(&path, &why, wall);
            InviteBook::default()
        })
    }

    /// Reads `name`, and where that is missing or damaged, `name.previous`.
    fn read_checked<T>(&mut self, name: &str, wall: UnixTime, parse: impl Fn(&[u8]) -> Result<T, String>) -> Option<T> {
        for path in [self.directory.join(name), self.directory.join(format!("{name}.previous"))] {
            let bytes = match file::read(&path, LIMIT) {
                Ok(bytes) => bytes,
                Err(error) if error.is_missing() => continue,
                Err(error) => {
                    self.complain(format!("{error}"));
                    continue;
                }
            };
            match unframe(&bytes).and_then(&parse) {
                Ok(value) => return Some(value),
                Err(why) => self.set_aside(&path, &why, wall),
            }
        }
        None
    }

    /// Writes `name`, keeping what was there as `name.previous`.
    fn write_checked(&mut self, name: &str, payload: &[u8]) -> bool {
        let path = self.directory.join(name);
        let previous = self.directory.join(format!("{name}.previous"));
        // A link, so that there is no moment without a good file under either name.
        let _ = std::fs::remove_file(&previous);
        let _ = std::fs::hard_link(&path, &previous);
        let written = file::atomic_write(&path, &frame(payload), 0o600);
        self.note("the state", written)
    }

    fn set_aside(&mut self, path: &Path, why: &str, wall: UnixTime) {
        let moved = match file::quarantine(path, wall) {
            Ok(to) => format!("kept as {}", to.display()),
            Err(error) => format!("and could not be set aside: {error}"),
        };
        self.complain(format!("{} was damaged ({why}), {moved}", path.display()));
    }

    fn note(&mut self, what: &str, written: Result<(), FileError>) -> bool {
        let failed = format!("{what} could not be written");
        self.complaints.retain(|complaint| !complaint.starts_with(&failed));
        match written {
            Ok(()) => true,
            Err(error) => {
                self.complain(format!("{failed}: {error}"));
                false
            }
        }
    }

    fn complain(&mut self, complaint: String) {
        tracing::warn!("{complaint}");
        self.complaints.push(complaint);
        // A disk that stays broken for months must not fill the memory.
        if self.complaints.len() > 16 {
            self.complaints.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Mark;
    use proptest::prelude::*;

    fn files() -> (tempfile::TempDir, StateFiles) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let state = directory.path().join("state");
        let files = StateFiles::open(&state, &directory.path().join("node.cert")).expect("opens");
        (directory, files)
    }

    fn marks(sent: u64) -> Vec<(PeerKey, Marks)> {
        vec![([7; 32], Marks { received: Mark::from_bytes([1; 12]), sent: UnixTime::from_secs(sent) })]
    }

    fn load(files: &mut StateFiles) -> Option<Vec<(PeerKey, Marks)>> {
        files.read_checked("marks", UnixTime::from_secs(9), parse_marks)
    }

    #[test]
    fn what_was_written_comes_back() {
        let (_directory, mut files) = files();
        assert_eq!(load(&mut files), None);
        files.write_marks(&marks(5));
        assert_eq!(load(&mut files), Some(marks(5)));
        assert!(files.complaints().is_empty());
    }

    #[test]
    fn a_second_daemon_touches_nothing() {
        let (_directory, files) = files();
        // What the first one is writing at this moment, under the name that `file::atomic_write` gives it.
        let half_written = files.directory.join(".marks.meshd-tmp-0123456789abcdef");
        std::fs::write(&half_written, b"half").expect("writable");
        let second = StateFiles::open(&files.directory, &files.certificate);
        assert!(matches!(second, Err(FileError::Locked { .. })));
        assert!(half_written.exists());
        let (directory, certificate) = (files.directory.clone(), files.certificate.clone());
        drop(files);
        assert!(StateFiles::open(&directory, &certificate).is_ok());
        assert!(!half_written.exists(), "after a crash it is swept");
    }

    #[test]
    fn every_damage_is_set_aside_and_the_previous_state_used() {
        let (_directory, mut files) = files();
        files.write_marks(&marks(5));
        files.write_marks(&marks(6));
        let path = files.directory.join("marks");
        let good = std::fs::read(&path).expect("written");
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).expect("writable");
            assert_eq!(load(&mut files), Some(marks(5)), "cut at {cut}");
            assert!(!path.exists(), "the damaged file is not in the way any more");
        }
        for flip in 0..good.len() {
            let mut bad = good.clone();
            bad[flip] ^= 0x10;
            std::fs::write(&path, &bad).expect("writable");
            assert_eq!(load(&mut files), Some(marks(5)), "flipped at {flip}");
        }
        assert!(!files.complaints().is_empty() && files.complaints().len() <= 16);
    }

    #[test]
    fn a_full_disk_is_a_complaint_that_ends_with_its_cause() {
        let (directory, mut files) = files();
        let aside = directory.path().join("aside");
        std::fs::rename(&files.directory, &aside).expect("movable");
        files.write_marks(&marks(5));
        assert_eq!(files.complaints().len(), 1);
        std::fs::rename(&aside, &files.directory).expect("movable");
        files.write_marks(&marks(5));
        assert!(files.complaints().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = unframe(&bytes);
            let _ = parse_marks(&bytes);
            let _ = Snapshot::from_bytes(&bytes);
        }
    }
}

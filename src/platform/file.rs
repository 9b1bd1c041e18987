//! Files that must survive a crash at any moment, and files nobody else may read.

use crate::time::UnixTime;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use zeroize::Zeroizing;

/// Marks a file that a crash may leave beside its target; [`sweep`] removes exactly these.
const TEMPORARY_MARK: &str = ".meshd-tmp-";

/// Why a file was not read, written or locked.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused an operation.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A private file that others may read or write.
    #[error("{} is open to others (mode {mode:04o}): it holds secrets; set it with `chmod 600`", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A private file owned by somebody else.
    #[error("{} belongs to uid {owner}, not to this process's user or root: set it with `chown`", path.display())]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// The uid it belongs to.
        owner: u32,
    },
    /// A directory, symbolic link, device or pipe where a regular file is expected.
    #[error("{} is not a regular file (links are not followed): put the file itself there", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// A file larger than it can sensibly be.
    #[error("{} is larger than {limit} bytes: it is not what this path is for", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file that must not be overwritten is there already.
    #[error("{} exists and is not overwritten: move it away first if it is no longer needed", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process holds the lock.
    #[error("{} is locked by another process: is the daemon running already?", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

impl FileError {
    /// Whether the file is simply not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, FileError::System { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Makes a directory that only its owner can enter (mode 0700), with its parents; one that is there stays as it is.
///
/// # Errors
/// The kernel refuses.
pub fn create_private_directory(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    let system = |source| FileError::System { action: "make the directory", path: path.into(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(system)
}

/// Replaces the content of `path` in one step: after a crash at any moment it holds all of the old or all of the new.
///
/// Writes a temporary file in the same directory, flushes it, renames it and flushes the directory. `mode` holds the
/// permission bits (0600 for anything secret); they are set whatever the umask.
///
/// What root writes belongs to the directory's owner, here and in the other functions: root's `meshctl` keeps the files
/// of a daemon that runs as a user of its own, and that daemon must be able to read and replace them.
pub fn atomic_write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = write_temporary(path, bytes, mode, &mut |_| Ok(()))?;
    publish(path, &temporary, &mut |_| Ok(())).inspect_err(|_| remove_quietly(&temporary))
}

/// Creates `path` with mode 0600 and all of `bytes` in it, or leaves what is there.
///
/// # Errors
/// [`FileError::Exists`] where the path is taken, by anything.
pub fn create_new_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = write_temporary(path, bytes, 0o600, &mut |_| Ok(()))?;
    // A hard link, unlike a rename, refuses an existing target, and unlike O_EXCL it never shows half a file.
    let linked = std::fs::hard_link(&temporary, path);
    remove_quietly(&temporary);
    match linked {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(FileError::Exists { path: path.into() }),
        Err(error) => Err(system("create", path)(error)),
    }
}

/// Removes a file; one that is not there is no failure.
///
/// # Errors
/// The kernel refuses.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path).map_err(system("remove", path)) {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}

/// Reads a private file of at most `limit` bytes; the bytes are wiped when dropped.
///
/// # Errors
/// Refuses symbolic links and everything that is no regular file, files that group or others have any access to, and
/// files owned by neither this process's user nor root (nor, for root, by the owner of their directory: see
/// [`atomic_write`]).
pub fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let (file, metadata) = open_regular(path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.into(), mode });
    }
    let owner = metadata.uid();
    let own = nix::unistd::geteuid();
    let is_directory_owners = || own.is_root() && directory_owner(path).is_ok_and(|(uid, _)| uid == owner);
    if owner != 0 && owner != own.as_raw() && !is_directory_owners() {
        return Err(FileError::ForeignOwner { path: path.into(), owner });
    }
    read_limited(file, &metadata, path, limit)
}

/// Reads a public file of at most `limit` bytes; follows no symbolic link in the last component.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let (file, metadata) = open_regular(path)?;
    read_limited(file, &metadata, path, limit).map(|mut bytes| std::mem::take(&mut *bytes))
}

/// Returns what a path leads to, with its links followed; for files that need not be private.
///
/// # Errors
/// There is nothing.
pub fn resolve(path: &Path) -> Result<PathBuf, FileError> {
    std::fs::canonicalize(path).map_err(system("open", path))
}

/// Returns the entries of a directory with this extension, by name; without those whose names begin with a dot.
///
/// # Errors
/// It cannot be read.
pub fn list(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(system("list", directory))? {
        let path = entry.map_err(system("list", directory))?.path();
        let hidden = file_name(&path)?.as_bytes().starts_with(b".");
        if !hidden && path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// An advisory lock on a file, held until dropped or until the process ends however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, creating the file (mode 0600) where it is missing. The file is never removed: removing a lock
    /// file lets two processes hold "the" lock on two different files.
    ///
    /// # Errors
    /// [`FileError::Locked`] at once where another process, or another `Lock` of this one, holds it.
    pub fn acquire(path: &Path) -> Result<Self, FileError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        // Only one that was made here is given away: what lies there already may be a link to another file.
        let file = match options.clone().create_new(true).open(path) {
            Ok(file) => give_to_directory_owner(&file, path).map(|()| file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
            Err(error) => Err(error),
        };
        let file = file.map_err(system("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(FileError::Locked { path: path.into() }),
            Err(TryLockError::Error(error)) => Err(system("lock", path)(error)),
        }
    }
}

/// Moves a file that cannot be used out of the way, keeping it for a human, and returns its new path
/// (`NAME.bad-2026-11-22T14:02:00Z`, with a number where that is taken).
pub fn quarantine(path: &Path, at: UnixTime) -> Result<PathBuf, FileError> {
    // Bounded: a host that quarantines the same file a thousand times in one second has another problem.
    for attempt in 0..1_000u32 {
        let mut name = file_name(path)?.to_os_string();
        name.push(format!(".bad-{at}"));
        if attempt > 0 {
            name.push(format!(".{attempt}"));
        }
        let target = path.with_file_name(name);
        // Link, then unlink: a rename would overwrite an older quarantined file.
        match std::fs::hard_link(path, &target) {
            Ok(()) => {
                std::fs::remove_file(path).map_err(system("move aside", path))?;
                sync_directory(path)?;
                return Ok(target);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(system("move aside", path)(error)),
        }
    }
    Err(FileError::Exists { path: path.into() })
}

/// Removes the temporary files a crash left in `directory` and returns how many there were.
///
/// To be called by the one process that holds the directory's [`Lock`]; another's writes in flight would be hit.
pub fn sweep(directory: &Path) -> Result<usize, FileError> {
    let mut removed = 0;
    for entry in std::fs::read_dir(directory).map_err(system("list", directory))? {
        let entry = entry.map_err(system("list", directory))?;
        if is_temporary(&entry.file_name()) {
            std::fs::remove_file(entry.path()).map_err(system("remove", &entry.path()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The moments between which a crash can fall, for the tests to crash at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Created,
    HalfWritten,
    Written,
    Flushed,
    Renamed,
}

type Observer<'a> = &'a mut dyn FnMut(Step) -> io::Result<()>;

fn write_temporary(path: &Path, bytes: &[u8], mode: u32, at: Observer<'_>) -> Result<PathBuf, FileError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(file_name(path)?);
    name.push(format!("{TEMPORARY_MARK}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let temporary = path.with_file_name(name);

    let result = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)?;
        at(Step::Created)?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        at(Step::HalfWritten)?;
        file.write_all(second)?;
        at(Step::Written)?;
        give_to_directory_owner(&file, path)?;
        // The umask may have taken bits away; it can never have added any.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        at(Step::Flushed)
    })();
    match result {
        Ok(()) => Ok(temporary),
        Err(error) => {
            if error.kind() != CRASH {
                remove_quietly(&temporary);
            }
            Err(system("write", path)(error))
        }
    }
}

fn publish(path: &Path, temporary: &Path, at: Observer<'_>) -> Result<(), FileError> {
    std::fs::rename(temporary, path).map_err(system("replace", path))?;
    at(Step::Renamed).map_err(system("replace", path))?;
    sync_directory(path)
}

/// The kind an observer's error has when it stands for the process dying: nothing is tidied up then.
const CRASH: io::ErrorKind = io::ErrorKind::ConnectionAborted;

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The user and group a file's directory belongs to.
fn directory_owner(path: &Path) -> io::Result<(u32, u32)> {
    let metadata = std::fs::metadata(directory_of(path))?;
    Ok((metadata.uid(), metadata.gid()))
}

/// Gives a file that root has just made to the owner of its directory.
fn give_to_directory_owner(file: &File, path: &Path) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    match directory_owner(path)? {
        (0, _) => Ok(()),
        (user, group) => match std::os::unix::fs::fchown(file, Some(user), Some(group)) {
            // A root that may not give files away keeps them, as in a namespace that does not know the owner.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {
                Ok(())
            }
            given => given,
        },
    }
}

fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(directory_of(path)).and_then(|file| file.sync_all()).map_err(system("flush the directory of", path))
}

fn open_regular(path: &Path) -> Result<(File, std::fs::Metadata), FileError> {
    // O_NONBLOCK: opening a pipe would otherwise wait for a writer before its kind could be refused.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENXIO) => FileError::NotRegular { path: path.into() },
        _ => system("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(system("examine", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular { path: path.into() });
    }
    Ok((file, metadata))
}

fn read_limited(
    file: File,
    metadata: &std::fs::Metadata,
    path: &Path,
    limit: u64,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let too_large = || FileError::TooLarge { path: path.into(), limit };
    if metadata.len() > limit {
        return Err(too_large());
    }
    // One allocation of the final size: a growing vector would leave copies of a secret behind.
    let capacity = usize::try_from(metadata.len().saturating_add(1)).map_err(|_| too_large())?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(system("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

fn file_name(path: &Path) -> Result<&OsStr, FileError> {
    path.file_name().ok_or_else(|| FileError::NotRegular { path: path.into() })
}

fn is_temporary(name: &OsStr) -> bool {
    let mark = TEMPORARY_MARK.as_bytes();
    name.as_bytes().starts_with(b".") && name.as_bytes().windows(mark.len()).any(|window| window == mark)
}

fn remove_quietly(path: &Path) {
    // Best effort on a way that already reports its own error; `sweep` takes what stays.
    let _ = std::fs::remove_file(path);
}

fn system<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::System { action, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_replaces_all_and_sets_the_mode() {
        let dir = directory();
        let path = dir.path().join("state");
        atomic_write(&path, b"old", 0o644).unwrap();
        atomic_write(&path, b"new content", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new content");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(dir.path()), ["state"]);
    }

    #[test]
    fn a_crash_at_any_step_leaves_all_old_or_all_new() {
        for step in [Step::Created, Step::HalfWritten, Step::Written, Step::Flushed, Step::Renamed] {
            let dir = directory();
            let path = dir.path().join("state");
            atomic_write(&path, b"old", 0o600).unwrap();
            let mut crash = |at| if at == step { Err(CRASH.into()) } else { Ok(()) };
            let outcome = write_temporary(&path, b"new", 0o600, &mut crash)
                .and_then(|temporary| publish(&path, &temporary, &mut crash));
            outcome.expect_err("the observer stops at its step");
            let expected: &[u8] = if step == Step::Renamed { b"new" } else { b"old" };
            assert_eq!(std::fs::read(&path).unwrap(), expected, "{step:?}");
            // The next run sweeps, and writes as if nothing had happened.
            assert_eq!(sweep(dir.path()).unwrap(), usize::from(step != Step::Renamed), "{step:?}");
            atomic_write(&path, b"newer", 0o600).unwrap();
            assert_eq!(names(dir.path()), ["state"]);
        }
    }

    #[test]
    fn an_error_leaves_the_old_content_and_no_litter() {
        let dir = directory();
        let path = dir.path().join("state");
        atomic_write(&path, b"old", 0o600).unwrap();
        for step in [Step::Created, Step::HalfWritten, Step::Written, Step::Flushed] {
            let mut full = |at| if at == step { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) };
            write_temporary(&path, b"new", 0o600, &mut full).expect_err("the disk is full");
            assert_eq!((std::fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["state".into()]));
        }
        // The rename itself fails: a directory is in the way.
        let taken = dir.path().join("taken");
        std::fs::create_dir(&taken).unwrap();
        atomic_write(&taken, b"new", 0o600).expect_err("a directory cannot be replaced");
        assert_eq!(names(dir.path()), ["state", "taken"]);
    }

    #[test]
    fn what_root_writes_belongs_to_the_owner_of_the_directory() {
        let dir = directory();
        let (path, lock) = (dir.path().join("ledger"), dir.path().join("ledger.lock"));
        let owner = |path: &Path| std::fs::symlink_metadata(path).unwrap().uid();
        let own = nix::unistd::geteuid();
        let other = if own.is_root() { 4_000_001 } else { own.as_raw() };
        std::os::unix::fs::chown(dir.path(), Some(other), None).unwrap();
        atomic_write(&path, b"one", 0o600).unwrap();
        create_new_private(&dir.path().join("key"), b"two").unwrap();
        drop(Lock::acquire(&lock).unwrap());
        for path in [&path, &dir.path().join("key"), &lock] {
            assert_eq!(owner(path), other, "{}", path.display());
        }
        assert_eq!(*read_private(&path, 10).unwrap(), b"one");
        // A file that lies there already, which may be a link to one of root's, is not given away.
        let elsewhere = directory();
        let precious = elsewhere.path().join("precious");
        std::fs::write(&precious, "x").unwrap();
        let before = owner(&precious);
        std::fs::remove_file(&lock).unwrap();
        std::fs::hard_link(&precious, &lock).unwrap();
        drop(Lock::acquire(&lock).unwrap());
        assert_eq!(owner(&precious), before);
    }

    #[test]
    fn private_reading_refuses_what_others_can_reach() {
        let dir = directory();
        let path = dir.path().join("key");
        create_new_private(&path, b"secret").unwrap();
        assert_eq!(read_private(&path, 100).unwrap().as_slice(), b"secret");
        assert_eq!(read_private(&path, 6).unwrap().len(), 6);
        assert!(matches!(read_private(&path, 5), Err(FileError::TooLarge { limit: 5, .. })));
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read_private(&path, 100), Err(FileError::Exposed { .. })), "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        read_private(&path, 100).unwrap();
    }

    #[test]
    fn private_reading_refuses_links_pipes_and_directories() {
        let dir = directory();
        let (path, link, pipe) = (dir.path().join("key"), dir.path().join("link"), dir.path().join("pipe"));
        create_new_private(&path, b"secret").unwrap();
        symlink(&path, &link).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for wrong in [link.as_path(), pipe.as_path(), dir.path()] {
            let refused = read_private(wrong, 100);
            assert!(matches!(refused, Err(FileError::NotRegular { .. })), "{}: {refused:?}", wrong.display());
        }
        let missing = read_private(&dir.path().join("none"), 100).unwrap_err();
        assert!(matches!(missing, FileError::System { ref source, .. } if source.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn a_new_private_file_overwrites_nothing() {
        let dir = directory();
        let path = dir.path().join("key");
        create_new_private(&path, b"first").unwrap();
        assert!(matches!(create_new_private(&path, b"second"), Err(FileError::Exists { .. })));
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(create_new_private(&dangling, b"second"), Err(FileError::Exists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(dir.path()), ["dangling", "key"]);
    }

    #[test]
    fn only_one_holds_the_lock() {
        let dir = directory();
        let path = dir.path().join("lock");
        let held = Lock::acquire(&path).unwrap();
        assert!(matches!(Lock::acquire(&path), Err(FileError::Locked { .. })));
        drop(held);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn quarantine_keeps_every_bad_file() {
        let dir = directory();
        let path = dir.path().join("peers");
        let at = UnixTime::from_secs(1_700_000_000);
        for content in ["one", "two", "three"] {
            std::fs::write(&path, content).unwrap();
            let aside = quarantine(&path, at).unwrap();
            assert_eq!(std::fs::read_to_string(aside).unwrap(), content);
        }
        let stem = "peers.bad-2023-11-14T22:13:20Z";
        assert_eq!(names(dir.path()), [stem.to_string(), format!("{stem}.1"), format!("{stem}.2")]);
    }
}

//! Files of the host that others write too: changed in one step, with everything that is not ours left as it is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of such a file at most: lists of hosts to block have a few MiB.
const LIMIT: u64 = 32 << 20;
/// How often, and with which pause, a directory is tried that another daemon of ours has locked: a change takes milliseconds.
const TRIES: (u32, Duration) = (100, Duration::from_millis(20));

/// Why a file of the host was not changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct ForeignFileError {
    /// What was tried.
    action: &'static str,
    /// The file.
    path: PathBuf,
    /// What the kernel said.
    source: io::Error,
}

/// Changes a file that may be a link, or mounted alone as in a container, and returns whether it differs now.
///
/// `change` gets what is in it (nothing where there is no file) and returns what is to be in it. Mode and owner stay. A new
/// file takes the old one's name, so that nobody reads half of it; where that cannot be (a mount point, a directory that
/// may not be written, attributes that would be lost), it is written in place, which a reader may see half done.
///
/// # Errors
/// It cannot be read or written, is no regular file, or another daemon keeps its directory locked.
pub fn change(path: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<bool, ForeignFileError> {
    let failed = |action, source| ForeignFileError { action, path: path.to_path_buf(), source };
    // Renaming over a link would replace the link.
    let place = match std::fs::canonicalize(path) {
        Ok(place) => place,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(error) => return Err(failed("find", error)),
    };
    let directory = place.parent().unwrap_or(Path::new("/"));
    // Of two daemons that change it at once, one would undo what the other did.
    let _lock = lock(directory).map_err(|error| failed("lock the directory of", error))?;
    let old = read(&place).map_err(|error| failed("read", error))?;
    let content = old.as_ref().map(|(content, _)| content.as_slice()).unwrap_or_default();
    let new = change(content);
    if new == content {
        return Ok(false);
    }
    let (mode, owner) =
        old.as_ref().map_or((0o644, None), |(_, found)| (found.mode() & 0o7777, Some((found.uid(), found.gid()))));
    let in_place = old.is_some() && (has_attributes(&place) || is_mounted(&place));
    if in_place || replace(&place, &new, mode, owner).is_err() {
        overwrite(&place, &new).map_err(|error| failed("write", error))?;
    }
    Ok(true)
}

fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    for _ in 0..TRIES.0 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(TRIES.1),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "somebody else keeps it locked"))
}

/// What is in a file, and what it is; `None` where there is none.
fn read(place: &Path) -> io::Result<Option<(Vec<u8>, std::fs::Metadata)>> {
    // A pipe would wait for a writer for ever.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(place);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let found = file.metadata()?;
    if !found.is_file() || found.len() > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file of a sensible size"));
    }
    let mut content = Vec::new();
    file.take(LIMIT).read_to_end(&mut content)?;
    Ok(Some((content, found)))
}

/// Whether a file has attributes that a new one would lack, such as a label of SELinux or a list of who may what.
fn has_attributes(place: &Path) -> bool {
    rustix::fs::listxattr_query(place).is_ok_and(|bytes| bytes > 0)
}

/// Whether a file is mounted by itself, so that nothing can take its name. Kernels before 5.8 do not tell; there, it is tried.
fn is_mounted(place: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let found = statx(CWD, place, AtFlags::empty(), StatxFlags::TYPE);
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn replace(place: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(format!(".meshd-tmp-{}", std::process::id()));
    let temporary = place.with_file_name(name);
    let written = write_new(&temporary, content, mode, owner).and_then(|()| std::fs::rename(&temporary, place));
    if written.is_err() {
        // What is not there need not be removed.
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    // The name lasts once its directory is on disk; the content is whole in either case.
    File::open(place.parent().unwrap_or(Path::new("/")))?.sync_all().or(Ok(()))
}

fn write_new(temporary: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    // What a crash of a process with our number left; never followed, for it is made anew.
    let _ = std::fs::remove_file(temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(content)?;
    let made = file.metadata()?;
    if let Some((user, group)) = owner.filter(|owner| *owner != (made.uid(), made.gid())) {
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Writes over what is there; the rest of a longer file is cut off last.
fn overwrite(place: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(place)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn append(line: &'static str) -> impl Fn(&[u8]) -> Vec<u8> {
        move |content| [content, line.as_bytes()].concat()
    }

    #[test]
    fn mode_and_link_stay_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("hosts"));
        std::fs::write(&real, "127.0.0.1 localhost").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        assert!(change(&link, append("\n10.0.0.1 a\n")).unwrap());
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "127.0.0.1 localhost\n10.0.0.1 a\n");
        assert_eq!(real.metadata().unwrap().mode() & 0o777, 0o640);
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(!change(&link, |content| content.to_vec()).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn readers_see_the_old_or_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        std::fs::write(&path, "old").unwrap();
        let mut reader = File::open(&path).unwrap();
        change(&path, |_| b"new and longer".to_vec()).unwrap();
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "old", "whoever had it open goes on reading what was there");
        change(&path, |_| b"short".to_vec()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
    }

    #[test]
    fn a_file_that_is_missing_is_made_and_what_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        assert!(change(&path, append("a\n")).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\n");
        let refused = change(directory.path(), append("a\n")).unwrap_err().to_string();
        assert!(refused.contains("cannot read"), "{refused}");
    }

    #[test]
    fn two_that_change_it_at_once_lose_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        std::thread::scope(|scope| {
            for line in ["a\n", "b\n", "c\n", "d\n"] {
                let path = &path;
                scope.spawn(move || (0..5).for_each(|_| assert!(change(path, append(line)).unwrap())));
            }
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 20);
    }
}

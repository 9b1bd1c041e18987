//! Files that are written together: all of them new, or none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use crate::platform::file;

/// A set of new files. What was written goes again where the set is dropped before it is kept.
#[derive(Debug)]
pub struct NewFiles {
    written: Vec<PathBuf>,
    kept: bool,
}

impl NewFiles {
    /// Starts a set; refuses where one of the paths is taken already, and makes their directories.
    ///
    /// # Errors
    /// Names every path that is taken.
    pub fn start(paths: &[&Path]) -> Result<Self, Failure> {
        let taken: Vec<String> = paths
            .iter()
            .filter(|path| fs::symlink_metadata(path).is_ok())
            .map(|path| path.display().to_string())
            .collect();
        if !taken.is_empty() {
            let (is, it) = if taken.len() == 1 { ("is", "it") } else { ("are", "them") };
            return Err(Failure::failed(format!(
                "{} {is} there already, and nothing was written; move {it} away, or choose another --dir",
                taken.join(", ")
            )));
        }
        for parent in paths.iter().filter_map(|path| path.parent()).filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|source| file::FileError::System {
                action: "create",
                path: parent.to_path_buf(),
                source,
            })?;
        }
        Ok(NewFiles { written: Vec::new(), kept: false })
    }

    /// Writes a file only its owner can read.
    ///
    /// # Errors
    /// It cannot be written, or appeared in the meantime.
    pub fn private(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        file::create_new_private(path, bytes)?;
        self.written.push(path.to_path_buf());
        Ok(())
    }

    /// Writes a file everybody can read.
    ///
    /// # Errors
    /// It cannot be written, or appeared in the meantime.
    pub fn public(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        self.private(path, bytes)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(|source| file::FileError::System {
            action: "open to readers",
            path: path.to_path_buf(),
            source,
        })?;
        Ok(())
    }

    /// Keeps what was written, and returns it.
    pub fn keep(mut self) -> Vec<PathBuf> {
        self.kept = true;
        std::mem::take(&mut self.written)
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        if !self.kept {
            for path in &self.written {
                // Best effort on a way that already reports its own error.
                let _ = fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["deep/a", "deep/b"].map(|name| directory.path().join(name));
        let mut set = NewFiles::start(&[&a, &b]).unwrap();
        set.private(&a, b"1").unwrap();
        // The second fails: its place was taken in the meantime.
        fs::write(&b, "precious").unwrap();
        assert!(set.public(&b, b"2").is_err());
        drop(set);
        assert!(!a.exists());
        assert_eq!(fs::read_to_string(&b).unwrap(), "precious");
        let refused = NewFiles::start(&[&a, &b]).unwrap_err();
        assert!(refused.message.contains("deep/b is there already"), "{refused}");
        fs::remove_file(&b).unwrap();
        let mut set = NewFiles::start(&[&a, &b]).unwrap();
        set.private(&a, b"1").unwrap();
        set.public(&b, b"2").unwrap();
        assert_eq!(set.keep(), [a.clone(), b.clone()]);
        assert_eq!(fs::metadata(&a).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&b).unwrap().permissions().mode() & 0o777, 0o644);
    }
}

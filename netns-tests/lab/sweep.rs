//! What a run holds outside its own process, and the removal of what dead runs of ours left behind.
//!
//! Each run has an id and a lock file that it keeps locked for life; the kernel unlocks it however the run ends. A
//! namespace, link or directory is removed only if its name carries the id of a run whose lock file exists and can be
//! taken. Anything else, also of the same shape, is not ours to touch.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand_core::{OsRng, RngCore};

use super::error::{Context, Error, Result};
use super::netns::Netns;
use super::place;

/// Where iproute2 looks for named namespaces.
const NAMED: &str = "/run/netns";

/// Begins every name the lab gives to something outside its own directories.
const PREFIX: &str = "mlab-";

/// Set to the run's id in the environment of every process that the lab starts.
pub const MARK: &str = "MESHD_LAB_RUN";

/// The lab's traces outside its own process. All labs of a process share one; it goes with the last of them.
pub struct Run {
    id: String,
    link: PathBuf,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl Run {
    /// Returns this process's run; where there is none, sweeps the dead ones and starts it.
    ///
    /// # Errors
    /// Where the build directory or the temporary directory cannot be written.
    pub fn current() -> Result<Arc<Run>> {
        static RUN: Mutex<Weak<Run>> = Mutex::new(Weak::new());
        let mut current = RUN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = current.upgrade() {
            return Ok(run);
        }
        let run = Arc::new(Run::start()?);
        *current = Arc::downgrade(&run);
        Ok(run)
    }

    fn start() -> Result<Run> {
        let runs = place::lab()?.join("run");
        fs::create_dir_all(&runs).context(format_args!("create {}", runs.display()))?;
        sweep(&runs)?;
        let id = format!("{PREFIX}{}-{:06x}", std::process::id(), OsRng.next_u32() & 0xff_ffff);
        let lock_path = runs.join(format!("{id}.lock"));
        let file = File::create_new(&lock_path).context(format_args!("create {}", lock_path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| Error::failed(format!("lock {}: {error}", lock_path.display())))?;
        let dir = runs.join(&id);
        fs::create_dir(&dir).context(format_args!("create {}", dir.display()))?;
        let link = std::env::temp_dir().join(&id);
        symlink(&dir, &link).context(format_args!("link {}", link.display()))?;
        Ok(Run { id, link, lock_path, _lock: lock })
    }

    /// Returns the run's id, which begins every name it gives.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns a short path to the run's directory below the build directory.
    pub fn dir(&self) -> &Path {
        &self.link
    }

    /// Moves one lab's directory to where it is kept after a failure, in place of an older one, and returns that place.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn keep(&self, lab_dir: &Path, name: &str) -> Result<PathBuf> {
        let kept = place::lab()?.join("failed").join(name);
        fs::create_dir_all(kept.parent().unwrap_or(&kept)).context("create the directory of failures")?;
        let _ = fs::remove_dir_all(&kept);
        fs::rename(lab_dir, &kept).context(format_args!("keep {}", kept.display()))?;
        Ok(kept)
    }

    /// Gives a namespace a name that `ip netns exec` finds; returns it, or `None` where names cannot be given
    /// (inside a user namespace), which costs nothing but convenience.
    pub fn name_netns(&self, netns: &Netns, name: &str) -> Option<String> {
        let name = format!("{}-{name}", self.id);
        let path = Path::new(NAMED).join(&name);
        fs::create_dir_all(NAMED).ok()?;
        File::create_new(&path).ok()?;
        let from = format!("/proc/self/fd/{}", netns.raw_fd());
        if mount(Some(from.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).is_err() {
            let _ = fs::remove_file(&path);
            return None;
        }
        Some(name)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.link);
        let _ = fs::remove_dir_all(self.lock_path.with_extension(""));
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Takes a namespace's name away.
pub fn unname_netns(name: &str) {
    let path = Path::new(NAMED).join(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// Kills every process inside the namespace with this inode number, except this one: they are children of the lab,
/// or children of theirs, for nobody else knows the namespace.
pub fn kill_inside(inode: u64) {
    let inside = |pid: &i32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode);
    for pid in processes().filter(inside) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Removes what dead runs left behind; each run does so when it starts.
///
/// # Errors
/// Where the lab's directory cannot be read.
pub fn sweep_now() -> Result<()> {
    sweep(&place::lab()?.join("run"))
}

/// Kills every process that a dead run started, known by the mark in its environment, whatever namespace it is in.
fn kill_marked(id: &str) {
    let mark = format!("{MARK}={id}");
    let marked = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    };
    for pid in processes().filter(marked) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Lists the processes other than this one.
fn processes() -> impl Iterator<Item = i32> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(move |name| *name != own).filter_map(|name| name.parse().ok())
}

/// Removes what dead runs left: their processes, namespaces, links and directories.
fn sweep(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs).context(format_args!("list {}", runs.display()))?.flatten() {
        let path = entry.path();
        let Some(id) = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned) else { continue };
        if path.extension().is_none_or(|ext| ext != "lock") || !id.starts_with(PREFIX) {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        // A lock that cannot be taken belongs to a living run.
        let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        kill_marked(&id);
        sweep_namespaces(&id);
        let _ = fs::remove_file(std::env::temp_dir().join(&id));
        let _ = fs::remove_dir_all(runs.join(&id));
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

fn sweep_namespaces(id: &str) {
    let Ok(entries) = fs::read_dir(NAMED) else { return };
    let begins = format!("{id}-");
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if name.starts_with(&begins) {
            if let Ok(meta) = entry.metadata() {
                kill_inside(meta.ino());
            }
            unname_netns(&name);
        }
    }
}

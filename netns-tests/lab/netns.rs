//! A network namespace held by a file descriptor: it lives while the descriptor or a process inside it does.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

use super::error::{Context, Error, Result};

/// A network namespace. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    inode: u64,
}

impl Netns {
    /// Makes a new, empty namespace.
    ///
    /// # Errors
    /// NOT RUN where this root may not make namespaces, as in an unprivileged container; failed where there are none left.
    pub fn new() -> Result<Self> {
        // A thread of its own enters the namespace and ends, so that no other thread ever changes place.
        let made = thread::spawn(|| -> Result<File> {
            match unshare(CloneFlags::CLONE_NEWNET) {
                Err(Errno::EPERM) => return Err(Error::not_run("this root may not make network namespaces")),
                other => other.context("make a network namespace")?,
            }
            File::open("/proc/thread-self/ns/net").context("open the new network namespace")
        });
        let file = made.join().map_err(|_| Error::failed("the thread that makes a namespace panicked"))??;
        let inode = file.metadata().context("stat the new network namespace")?.ino();
        Ok(Netns { file: Arc::new(file), inode })
    }

    /// Returns the namespace's inode number: what `/proc/PID/ns/net` of a process inside it shows.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns the raw descriptor, for netlink messages that name a namespace.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Moves the calling thread into the namespace for the rest of its life.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn join(&self) -> Result<()> {
        setns(self.file.as_ref(), CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// Runs `work` on a thread inside the namespace and returns its result. Sockets and devices opened there stay
    /// in the namespace and may be used from any thread afterwards.
    ///
    /// # Panics
    /// Where `work` panics, or where the namespace cannot be entered (it was made by this process, so that is a bug).
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.join().expect("a namespace made by this process can be entered by it");
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

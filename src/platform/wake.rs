//! Waking a thread that waits for a descriptor.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A latch (an eventfd): once rung, every [`Wake::wait_readable`] on it returns at once, now and later.
///
/// A latch rather than `shutdown` on the socket, because descriptors outlive the threads: on a planned restart they
/// go on into the next process and must still work there.
#[derive(Debug)]
pub struct Wake {
    event: OwnedFd,
    rung: AtomicBool,
}

/// What to wait for at one of two descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Not waited for at all, not even for errors.
    Nothing,
    /// Something to read, or an error to report.
    Reading,
    /// That, or room to write.
    Both,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The descriptor has something to read, or an error to report: read it.
    Readable,
    /// The latch was rung.
    Woken,
    /// The time was up.
    TimedOut,
}

impl Wake {
    /// Makes a latch that is not rung. Fails when the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; a non-negative result is a descriptor nobody else owns.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Wake { event, rung: AtomicBool::new(false) })
    }

    /// Rings the latch; it stays rung.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is eight valid bytes, as eventfd demands. The only possible failure is a full counter
        // (EAGAIN), and a full counter is rung.
        unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Tells whether the latch was rung, without a system call: for a thread that is too busy ever to wait.
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Waits until the latch is rung, at most `timeout_ms` milliseconds, and tells whether it was.
    pub fn wait(&self, timeout_ms: u16) -> bool {
        let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        // A signal or an impossible error only makes the wait shorter.
        let _ = poll(&mut fds, PollTimeout::from(timeout_ms));
        self.is_rung()
    }

    /// Waits until there is what is wanted of one of two descriptors, the latch is rung, or `timeout_ms` milliseconds have
    /// passed (`None`: without end). Tells at which descriptors there is something, `None` for a rung latch, which wins.
    ///
    /// A signal ends the wait too, with nothing at either.
    pub fn wait_for(
        &self,
        wanted: [(BorrowedFd<'_>, Interest); 2],
        timeout_ms: Option<u16>,
    ) -> io::Result<Option<[bool; 2]>> {
        let timeout = timeout_ms.map_or(PollTimeout::NONE, PollTimeout::from);
        let place = |(fd, interest)| match interest {
            // Errors are reported whether asked for or not, so the latch takes the place of what is not waited for.
            Interest::Nothing => PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
            Interest::Reading => PollFd::new(fd, PollFlags::POLLIN),
            Interest::Both => PollFd::new(fd, PollFlags::POLLIN | PollFlags::POLLOUT),
        };
        let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN), place(wanted[0]), place(wanted[1])];
        match poll(&mut fds, timeout) {
            Ok(_) if fds[0].any() == Some(true) => Ok(None),
            Ok(_) => Ok(Some([fds[1].any() == Some(true), fds[2].any() == Some(true)])),
            Err(Errno::EINTR) => Ok(Some([false; 2])),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until `fd` is readable or in error, the latch is rung, or `timeout_ms` milliseconds have passed
    /// (`None`: without end). A rung latch wins over a readable descriptor.
    pub fn wait_readable(&self, fd: BorrowedFd<'_>, timeout_ms: Option<u16>) -> io::Result<Waited> {
        let timeout = timeout_ms.map_or(PollTimeout::NONE, PollTimeout::from);
        let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN), PollFd::new(fd, PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(Waited::TimedOut),
                Ok(_) if fds[0].any() == Some(true) => return Ok(Waited::Woken),
                Ok(_) => return Ok(Waited::Readable),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    #[test]
    fn a_rung_latch_ends_a_wait_in_another_thread_and_stays_rung() {
        let wake = Arc::new(Wake::new().unwrap());
        let (quiet, _other) = UnixStream::pair().unwrap();
        let waiter = {
            let wake = Arc::clone(&wake);
            std::thread::spawn(move || {
                let first = wake.wait_readable(quiet.as_fd(), None).unwrap();
                (first, wake.wait_readable(quiet.as_fd(), None).unwrap())
            })
        };
        assert!(!wake.is_rung() && !wake.wait(1));
        wake.ring();
        assert!(wake.is_rung() && wake.wait(60_000));
        assert_eq!(waiter.join().unwrap(), (Waited::Woken, Waited::Woken));
    }

    #[test]
    fn of_two_descriptors_each_says_what_it_has() {
        let wake = Wake::new().unwrap();
        let (first, mut to_first) = UnixStream::pair().unwrap();
        let (second, mut to_second) = UnixStream::pair().unwrap();
        let wait =
            |one, other, timeout| wake.wait_for([(first.as_fd(), one), (second.as_fd(), other)], timeout).unwrap();
        assert_eq!(wait(Interest::Reading, Interest::Reading, Some(1)), Some([false, false]));
        assert_eq!(wait(Interest::Reading, Interest::Both, None), Some([false, true]));
        to_first.write_all(b"x").unwrap();
        assert_eq!(wait(Interest::Reading, Interest::Reading, None), Some([true, false]));
        assert_eq!(wait(Interest::Nothing, Interest::Reading, Some(1)), Some([false, false]));
        to_second.write_all(b"x").unwrap();
        assert_eq!(wait(Interest::Reading, Interest::Reading, None), Some([true, true]));
        // An error is something to report too, but not at what nobody asked about.
        drop(to_second);
        assert_eq!(wait(Interest::Nothing, Interest::Nothing, Some(1)), Some([false, false]));
        wake.ring();
        assert_eq!(wait(Interest::Nothing, Interest::Reading, None), None);
    }

    #[test]
    fn a_readable_descriptor_ends_a_wait_and_a_quiet_one_times_out() {
        let wake = Wake::new().unwrap();
        let (reader, mut writer) = UnixStream::pair().unwrap();
        assert_eq!(wake.wait_readable(reader.as_fd(), Some(1)).unwrap(), Waited::TimedOut);
        writer.write_all(b"x").unwrap();
        assert_eq!(wake.wait_readable(reader.as_fd(), None).unwrap(), Waited::Readable);
        wake.ring();
        assert_eq!(wake.wait_readable(reader.as_fd(), None).unwrap(), Waited::Woken);
    }
}

//! Waking a thread that waits for a descriptor.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
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

/// What to wait for at a descriptor.
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

/// Most descriptors of one [`Watch`].
pub const MOST_WATCHED: usize = 63;

/// Descriptors that one thread waits for, and the latch that ends it. What it waits for is told to the kernel once and not
/// again at each wait (an epoll).
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    wake: Arc<Wake>,
    interests: Vec<Interest>,
}

/// At which descriptors of a [`Watch`] there is something, by their places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u64);

impl Ready {
    /// Tells whether there is something at `place`.
    pub fn at(self, place: usize) -> bool {
        place < MOST_WATCHED && self.0 & 1 << place != 0
    }

    /// Tells whether there is nothing anywhere.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl Watch {
    /// Watches at most `places` descriptors, at most [`MOST_WATCHED`], none of them yet.
    pub fn new(wake: Arc<Wake>, places: usize) -> io::Result<Self> {
        if places > MOST_WATCHED {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // SAFETY: epoll_create1 takes no pointers; a non-negative result is a descriptor nobody else owns.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let watch = Watch { epoll, wake, interests: vec![Interest::Nothing; places] };
        watch.control(libc::EPOLL_CTL_ADD, watch.wake.event.as_fd(), libc::EPOLLIN, MOST_WATCHED)?;
        Ok(watch)
    }

    /// Sets what is waited for at the descriptor of `place`: the same one each time, open as long as anything is.
    pub fn set(&mut self, place: usize, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        let Some(before) = self.interests.get(place).copied() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let events = match interest {
            Interest::Nothing => 0,
            Interest::Reading => libc::EPOLLIN,
            Interest::Both => libc::EPOLLIN | libc::EPOLLOUT,
        };
        match (before, interest) {
            (before, interest) if before == interest => return Ok(()),
            (Interest::Nothing, _) => self.control(libc::EPOLL_CTL_ADD, fd, events, place)?,
            // Errors are reported whether asked for or not, so what is not waited for is taken out.
            (_, Interest::Nothing) => self.control(libc::EPOLL_CTL_DEL, fd, events, place)?,
            _ => self.control(libc::EPOLL_CTL_MOD, fd, events, place)?,
        }
        self.interests[place] = interest;
        Ok(())
    }

    /// Waits until there is something at one of the descriptors, the latch is rung, or `timeout_ms` milliseconds have
    /// passed (`None`: without end). Returns `None` for a rung latch, which wins. A signal ends the wait too, with nothing
    /// anywhere.
    pub fn wait(&self, timeout_ms: Option<u16>) -> io::Result<Option<Ready>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST_WATCHED + 1];
        let timeout = timeout_ms.map_or(-1, libc::c_int::from);
        // SAFETY: the pointer and count describe `events`, which outlives the call.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, timeout)
        };
        let Ok(count) = usize::try_from(count) else {
            return match Errno::last() {
                Errno::EINTR => Ok(Some(Ready::default())),
                errno => Err(errno.into()),
            };
        };
        let places = events[..count].iter().fold(0, |places, event| places | 1 << event.u64);
        Ok((places & 1 << MOST_WATCHED == 0).then_some(Ready(places)))
    }

    fn control(&self, operation: libc::c_int, fd: BorrowedFd<'_>, events: libc::c_int, place: usize) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: place as u64 };
        // SAFETY: the pointer is to an epoll_event that outlives the call, which the kernel only reads.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

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
    fn of_several_descriptors_each_says_what_it_has() {
        let wake = Arc::new(Wake::new().unwrap());
        let (first, mut to_first) = UnixStream::pair().unwrap();
        let (second, mut to_second) = UnixStream::pair().unwrap();
        let mut watch = Watch::new(Arc::clone(&wake), 2).unwrap();
        let mut wait = |one, other, timeout| {
            watch.set(0, first.as_fd(), one).unwrap();
            watch.set(1, second.as_fd(), other).unwrap();
            watch.wait(timeout).unwrap().map(|ready| [ready.at(0), ready.at(1)])
        };
        assert_eq!(wait(Interest::Reading, Interest::Reading, Some(1)), Some([false, false]));
        assert_eq!(wait(Interest::Reading, Interest::Both, None), Some([false, true]));
        to_first.write_all(b"x").unwrap();
        assert_eq!(wait(Interest::Reading, Interest::Reading, None), Some([true, false]));
        assert_eq!(wait(Interest::Reading, Interest::Reading, None), Some([true, false]), "as long as it is not read");
        assert_eq!(wait(Interest::Nothing, Interest::Reading, Some(1)), Some([false, false]));
        to_second.write_all(b"x").unwrap();
        assert_eq!(wait(Interest::Reading, Interest::Reading, None), Some([true, true]));
        // An error is something to report too, but not at what nobody asked about.
        drop(to_second);
        assert_eq!(wait(Interest::Nothing, Interest::Nothing, Some(1)), Some([false, false]));
        wake.ring();
        assert_eq!(wait(Interest::Nothing, Interest::Reading, None), None);
        let misplaced = watch.set(2, first.as_fd(), Interest::Reading).unwrap_err();
        assert_eq!(misplaced.kind(), io::ErrorKind::InvalidInput);
        assert!(Watch::new(wake, MOST_WATCHED + 1).is_err());
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

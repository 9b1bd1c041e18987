//! Open descriptors that outlive their program: a planned restart executes the next one in the same process, and what it
//! is given stays open, so that the kernel keeps the device with its routes, the port, and what waits in their queues.
//!
//! They are named in an environment variable, `VERSION PID RESTARTS device FD… sockets FD…`. The process number keeps
//! programs that are merely started, and inherit the variable, from taking numbers that mean nothing there.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::confinement;
use super::notify::LISTEN_VARIABLES;

/// The form of what is handed over. A program is given a form only after it said that it takes it.
pub const VERSION: u8 = 1;

const VARIABLE: &str = "MESHD_HANDOVER";
/// Descriptors taken over at most: more than the queues and sockets of any daemon.
const MOST: usize = 1_024;

/// What one program leaves to the next. Closed when dropped, like any descriptors.
#[derive(Debug)]
pub struct Handover {
    /// The queues of the device.
    pub device: Vec<OwnedFd>,
    /// The sockets that share the port.
    pub sockets: Vec<OwnedFd>,
    /// Planned restarts of this process before this program.
    pub restarts: u32,
}

impl Handover {
    /// Keeps these descriptors open beside their users, in the order given.
    ///
    /// # Errors
    /// Where the limit of open files is reached.
    pub fn of<'a>(
        device: impl IntoIterator<Item = BorrowedFd<'a>>,
        sockets: impl IntoIterator<Item = BorrowedFd<'a>>,
        restarts: u32,
    ) -> io::Result<Handover> {
        let device = device.into_iter().map(|queue| queue.try_clone_to_owned()).collect::<io::Result<_>>()?;
        let sockets = sockets.into_iter().map(|socket| socket.try_clone_to_owned()).collect::<io::Result<_>>()?;
        Ok(Handover { device, sockets, restarts })
    }

    /// Takes what this process's former program left, if it left something. Later calls take nothing.
    pub fn take() -> Option<Handover> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return None;
        }
        let named = Named::parse(&std::env::var(VARIABLE).ok()?, std::process::id())?;
        let all = named.device.iter().chain(&named.sockets);
        if !all.clone().all(|descriptor| is_open(*descriptor)) {
            return None;
        }
        // SAFETY: the numbers differ from each other and are open; our own predecessor in this process left them to us, and
        // nobody else has looked at them since, because the variable is read only once.
        let own = |numbers: &[RawFd]| numbers.iter().map(|number| unsafe { OwnedFd::from_raw_fd(*number) }).collect();
        let handover = Handover { device: own(&named.device), sockets: own(&named.sockets), restarts: named.restarts };
        // Programs that are merely started do not get them.
        handover.set_inheritable(false).ok()?;
        Some(handover)
    }

    /// Executes `program` in place of this one, with everything here left open. Returns only where that failed: why.
    pub fn execute(&self, program: &Program) -> io::Error {
        if let Err(error) = self.set_inheritable(true) {
            return error;
        }
        let named = Named {
            device: self.device.iter().map(AsRawFd::as_raw_fd).collect(),
            sockets: self.sockets.iter().map(AsRawFd::as_raw_fd).collect(),
            restarts: self.restarts.saturating_add(1),
        };
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).env(VARIABLE, named.to_text(std::process::id()));
        // What the service manager handed over once has other numbers by now; the process is still the same.
        for variable in LISTEN_VARIABLES {
            command.env_remove(variable);
        }
        confinement::hand_on(&mut command);
        let error = command.exec();
        let _ = self.set_inheritable(false);
        error
    }

    fn set_inheritable(&self, inheritable: bool) -> io::Result<()> {
        let flags = if inheritable { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        for descriptor in self.device.iter().chain(&self.sockets) {
            fcntl(descriptor.as_fd(), FcntlArg::F_SETFD(flags))?;
        }
        Ok(())
    }
}

/// A program and what it was started with.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file it was read from: another one may lie there by now.
    pub path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// The program that runs. To be asked at its start: once the file is replaced, the kernel names it otherwise.
    ///
    /// # Errors
    /// Where `/proc` does not tell.
    pub fn running() -> io::Result<Program> {
        Ok(Program { path: std::env::current_exe()?, arguments: std::env::args_os().skip(1).collect() })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// The numbers in the variable.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    device: Vec<RawFd>,
    sockets: Vec<RawFd>,
    restarts: u32,
}

impl Named {
    fn to_text(&self, process: u32) -> String {
        let join = |numbers: &[RawFd]| numbers.iter().map(|number| format!(" {number}")).collect::<String>();
        let (device, sockets) = (join(&self.device), join(&self.sockets));
        format!("{VERSION} {process} {} device{device} sockets{sockets}", self.restarts)
    }

    /// Reads the variable; nothing where it is of another form, of another process, or names what cannot be.
    fn parse(text: &str, process: u32) -> Option<Named> {
        let mut words = text.split(' ');
        let version: u8 = words.next()?.parse().ok()?;
        let whose: u32 = words.next()?.parse().ok()?;
        let restarts = words.next()?.parse().ok()?;
        if version != VERSION || whose != process || words.next()? != "device" {
            return None;
        }
        let words: Vec<&str> = words.take(MOST + 1).collect();
        let at = words.iter().position(|word| *word == "sockets")?;
        let numbers = |words: &[&str]| words.iter().map(|word| word.parse().ok()).collect::<Option<Vec<RawFd>>>();
        let named = Named { device: numbers(&words[..at])?, sockets: numbers(&words[at + 1..])?, restarts };
        let mut all = [named.device.as_slice(), &named.sockets].concat();
        all.sort_unstable();
        let distinct = all.windows(2).all(|pair| pair[0] != pair[1]);
        // Never standard input, output or error.
        (distinct && all.first().is_some_and(|lowest| *lowest > 2)).then_some(named)
    }
}

/// Whether a number stands for an open descriptor.
pub(super) fn is_open(descriptor: RawFd) -> bool {
    // SAFETY: F_GETFD reads the flags of whatever the number means, if it means anything, and touches no memory.
    unsafe { libc::fcntl(descriptor, libc::F_GETFD) >= 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_process_it_was_written_for_reads_it() {
        let named = Named { device: vec![5, 6], sockets: vec![9], restarts: 3 };
        let text = named.to_text(77);
        assert_eq!(text, "1 77 3 device 5 6 sockets 9");
        assert_eq!(Named::parse(&text, 77), Some(named));
        assert_eq!(Named::parse(&text, 78), None);
    }

    #[test]
    fn what_cannot_be_is_not_taken() {
        for text in [
            "",
            "2 77 0 device 5 sockets 9",
            "1 77 0 device 5",
            "1 77 0 sockets 9 device 5",
            "1 77 0 device 5 sockets 5",
            "1 77 0 device 2 sockets 9",
            "1 77 0 device -1 sockets 9",
            "1 77 0 device x sockets 9",
            "1 77 0 device sockets",
        ] {
            assert_eq!(Named::parse(text, 77), None, "{text}");
        }
    }

    #[test]
    fn descriptors_are_left_only_to_the_program_that_is_executed() {
        let (one, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let handover = Handover::of([one.as_fd()], [other.as_fd()], 0).unwrap();
        let flags = || fcntl(handover.device[0].as_fd(), FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags(), libc::FD_CLOEXEC);
        let missing = Program { path: "/nonexistent/meshd".into(), arguments: Vec::new() };
        assert_eq!(handover.execute(&missing).kind(), io::ErrorKind::NotFound);
        assert_eq!(flags(), libc::FD_CLOEXEC, "a failed attempt leaves nothing inheritable");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_not(text in "[ 0-9a-z-]{0,60}") {
            let _ = Named::parse(&text, 77);
        }
    }
}

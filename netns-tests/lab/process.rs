//! Processes inside a host. Their output goes to files that are kept after a failure, and may be waited for.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::error::{Context, Error, Result};
use super::host::Host;
use super::package::Tree;
use super::sweep;

/// How long a command run to its end may take before it is killed; the slowest thing a test runs this way is the
/// making of a database's system tables.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// What is kept in memory of each output stream; the files hold all of it.
const TAIL: usize = 1 << 20;

/// A program about to be run on a host.
pub struct HostCommand {
    host: Host,
    program: PathBuf,
    command: Command,
    input: Option<Vec<u8>>,
    limit: Duration,
    descriptors: Vec<OwnedFd>,
}

impl HostCommand {
    pub(super) fn new(host: Host, program: &Path) -> Self {
        let mut command = Command::new(program);
        command.current_dir(host.dir()).env(sweep::MARK, host.run_id());
        // An ordinary user's PATH lacks the directories where `ip` and `nft` live.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
        HostCommand {
            host,
            program: program.to_owned(),
            command,
            input: None,
            limit: RUN_LIMIT,
            descriptors: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Lets the program, and what it starts, find the programs and libraries of an unpacked set.
    #[must_use]
    pub fn with(mut self, tree: &Tree) -> Self {
        for (key, first) in tree.environment() {
            let set = self.command.get_envs().find(|(name, _)| *name == key).and_then(|(_, value)| value);
            let value = match set {
                Some(rest) => format!("{first}:{}", rest.to_string_lossy()),
                None => first,
            };
            self.command.env(key, value);
        }
        self
    }

    /// Gives the program this text as its standard input; without it, there is none.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Gives the program these descriptors, as 3 and so on, as a service manager does.
    #[must_use]
    pub fn descriptors(mut self, descriptors: Vec<OwnedFd>) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Sets how long [`HostCommand::output`] and [`HostCommand::check`] let the program run; 120 s without it.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the program. It is killed when the returned handle is dropped, and at the latest with its host.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(self) -> Result<Proc> {
        let HostCommand { host, program, mut command, input, descriptors, .. } = self;
        let name = program.file_name().unwrap_or(OsStr::new("program")).to_string_lossy().into_owned();
        let log = host.next_log(&name);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut moved = vec![0; descriptors.len()];
        // SAFETY: between fork and exec only prctl, fcntl and dup2 are called, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                hand_over(&descriptors, &mut moved)
            });
        }
        let what = format!("start {} on {}", program.display(), host.name());
        let mut child = host.on_resident(move || command.spawn())?.context(&what)?;
        let shared = Arc::new(Shared::default());
        pump(&shared, child.stdout.take(), 0, log.with_extension("out"))?;
        pump(&shared, child.stderr.take(), 1, log.with_extension("err"))?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A program that does not read to the end closes the pipe, which is its right.
            thread::Builder::new().spawn(move || drop(stdin.write_all(&input))).context(&what)?;
        }
        let pid = child.id();
        let waiter = shared.clone();
        thread::Builder::new().spawn(move || waiter.reap(child)).context(&what)?;
        Ok(Proc { name: format!("{name} on {}", host.name()), pid, shared })
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// Where it cannot be started or does not end in time (it is killed then).
    pub fn output(self) -> Result<Finished> {
        let limit = self.limit;
        let process = self.spawn()?;
        let status = process.wait(limit)?;
        Ok(Finished { status, stdout: process.stdout(), stderr: process.stderr() })
    }

    /// Runs the program to its end and returns its standard output.
    ///
    /// # Errors
    /// As [`HostCommand::output`], and where it exits with another status than 0.
    pub fn check(self) -> Result<String> {
        let what = format!("{:?} on {}", self.command, self.host.name());
        let done = self.output()?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        Err(Error::failed(format!("{what}: {}\n{}{}", done.status, done.stdout, done.stderr)))
    }
}

/// Gives descriptors the numbers from 3 on, in their order, to be inherited. For the time between fork and exec: allocates
/// nothing. `moved` is room for as many.
fn hand_over(descriptors: &[OwnedFd], moved: &mut [RawFd]) -> std::io::Result<()> {
    // Out of the way of the numbers they are to have.
    let free = 3 + descriptors.len() as RawFd;
    for (descriptor, moved) in descriptors.iter().zip(moved.iter_mut()) {
        // SAFETY: fcntl with F_DUPFD_CLOEXEC touches no memory.
        *moved = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, free) };
        if *moved < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    for (number, moved) in (3..).zip(moved.iter()) {
        // SAFETY: dup2 touches no memory; the program that is about to start owns nothing at these numbers.
        if unsafe { libc::dup2(*moved, number) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What a program that has ended left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// The end of its standard output, at most 1 MiB.
    pub stdout: String,
    /// The end of its standard error, at most 1 MiB.
    pub stderr: String,
}

/// A running program. Dropping it kills the program.
pub struct Proc {
    name: String,
    pid: u32,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Standard output and standard error.
    streams: [Stream; 2],
    /// The process is a zombie or gone: its number must not be signalled any more.
    gone: bool,
    status: Option<ExitStatus>,
}

#[derive(Default)]
struct Stream {
    tail: Vec<u8>,
    ended: bool,
}

impl Proc {
    /// Returns the process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the end of the standard output so far, at most 1 MiB.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().streams[0].tail).into_owned()
    }

    /// Returns the end of the standard error so far, at most 1 MiB.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().streams[1].tail).into_owned()
    }

    /// Waits until either output stream contains `needle`, and returns the line it is in.
    ///
    /// # Errors
    /// Where the time runs out, or the program ends without having said it.
    pub fn wait_for_output(&self, needle: &str, limit: Duration) -> Result<String> {
        let found = self.shared.wait(limit, |state| {
            let line = state.streams.iter().find_map(|stream| {
                let text = String::from_utf8_lossy(&stream.tail);
                text.lines().find(|line| line.contains(needle)).map(str::to_owned)
            });
            match line {
                Some(line) => Some(Some(line)),
                None if state.finished() => Some(None),
                None => None,
            }
        });
        match found {
            Some(Some(line)) => Ok(line),
            Some(None) => Err(self.error(format!("ended without saying {needle:?}"))),
            None => Err(self.error(format!("did not say {needle:?} within {limit:?}"))),
        }
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// Where the time runs out; the program is killed then.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        match self.shared.wait(limit, |state| state.status.filter(|_| state.finished())) {
            Some(status) => Ok(status),
            None => {
                self.signal(Signal::SIGKILL);
                // A grandchild may hold the pipes open after the program itself has ended.
                match self.shared.wait(Duration::from_secs(1), |state| state.status) {
                    Some(status) if status.signal().is_none() => Ok(status),
                    _ => Err(self.error(format!("did not end within {limit:?}"))),
                }
            }
        }
    }

    /// Returns whether the program still runs.
    pub fn is_running(&self) -> bool {
        !self.shared.lock().gone
    }

    /// Sends a signal; to a program that has ended, nothing.
    pub fn signal(&self, signal: Signal) {
        let state = self.shared.lock();
        if let (false, Ok(pid)) = (state.gone, i32::try_from(self.pid)) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Asks the program to end, waits, and returns how it ended.
    ///
    /// # Errors
    /// Where it does not end in time (it is killed then).
    pub fn stop(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.wait(limit)
    }

    fn error(&self, what: String) -> Error {
        Error::failed(format!("{} {what}\n--- stdout\n{}--- stderr\n{}", self.name, self.stdout(), self.stderr()))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

impl State {
    /// The program has ended and all it wrote has been read.
    fn finished(&self) -> bool {
        self.status.is_some() && self.streams.iter().all(|stream| stream.ended)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, or the time runs out.
    fn wait<T>(&self, limit: Duration, look: impl Fn(&State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the child's end. Its number is marked as gone before it is free for another process.
    fn reap(&self, mut child: Child) {
        if let Ok(pid) = i32::try_from(child.id()) {
            let _ = waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        }
        let mut state = self.lock();
        state.gone = true;
        state.status = child.wait().ok();
        self.changed.notify_all();
    }
}

/// Copies one output stream into its file and its tail until it ends.
fn pump(shared: &Arc<Shared>, from: Option<impl Read + Send + 'static>, stream: usize, path: PathBuf) -> Result<()> {
    let mut file = File::create(&path).context(format_args!("create {}", path.display()))?;
    let shared = shared.clone();
    let Some(mut from) = from else { return Ok(()) };
    let copy = move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let _ = file.write_all(&buffer[..count]);
            let mut state = shared.lock();
            let tail = &mut state.streams[stream].tail;
            tail.extend_from_slice(&buffer[..count]);
            if tail.len() > TAIL {
                let excess = tail.len() - TAIL;
                tail.drain(..excess);
            }
            shared.changed.notify_all();
        }
        shared.lock().streams[stream].ended = true;
        shared.changed.notify_all();
    };
    thread::Builder::new().spawn(copy).context("start a thread for a process's output")?;
    Ok(())
}

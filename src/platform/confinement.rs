//! What the kernel refuses this process, and some of its threads, for as long as they live (Landlock): a program that is taken
//! over by whoever it listens to can then do no more than it needs.
//!
//! A domain is entered by the calling thread, belongs to whatever it starts and executes later on, and is never left.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

/// What is asked of the kernel: writing, making, removing and moving files since Linux 5.13, 5.19, 6.2 and 6.10, TCP ports since
/// 6.7, signals and abstract sockets since 6.12. An older one is asked for what it knows.
const ASKED: ABI = ABI::V6;
/// Says to the next program in this process that it is confined already, as `PID VERSION`: domains lie upon each other, and the
/// kernel takes sixteen. The process number keeps programs that are merely started, and inherit the variable, from believing it.
const VARIABLE: &str = "MESHD_CONFINED";

/// The version by which this process is confined; 0 where it is not.
static CONFINED: AtomicU32 = AtomicU32::new(0);

/// How far a confinement came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confined {
    /// It is in force, as far as the kernel's version of it, from 1, goes.
    Yes(u32),
    /// The program before this one in the process confined it, by that version.
    Before(u32),
    /// The kernel has no Landlock, or it is not enabled.
    No,
}

/// Why there is no confinement although the kernel has it.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refuses Landlock: {0}")]
pub struct ConfinementError(String);

impl ConfinementError {
    fn of(error: impl fmt::Display) -> Self {
        ConfinementError(error.to_string())
    }
}

/// Refuses this process, from now on and for good, to write, make, remove or move files except beneath `directories` and in
/// `files`, and to send signals to processes that it did not start. What is not there is passed over. Reading and executing stay
/// as they are. What is open stays open.
///
/// It must run before any other thread is started.
///
/// # Errors
/// The kernel refuses; nothing changed then.
pub fn confine(directories: &[&Path], files: &[&Path]) -> Result<Confined, ConfinementError> {
    if let Some(version) = confined_before() {
        return Ok(Confined::Before(version));
    }
    let writing = AccessFs::from_write(ASKED);
    let ruleset = Ruleset::default()
        .handle_access(writing)
        .and_then(|ruleset| ruleset.scope(Scope::Signal))
        .and_then(Ruleset::create)
        .map_err(ConfinementError::of)?;
    let beneath = |path: &Path, access: BitFlags<AccessFs>| Some(PathBeneath::new(PathFd::new(path).ok()?, access));
    // Sorted by what they are, and not by how they are meant: a right for directories would be refused for a file.
    let rules = directories.iter().chain(files).filter_map(|path| {
        let access = if path.is_dir() { writing } else { writing & AccessFs::from_file(ASKED) };
        beneath(path, access)
    });
    let ruleset = rules.map(Ok).try_fold(ruleset, |ruleset, rule: Result<_, ConfinementError>| {
        ruleset.add_rule(rule?).map_err(ConfinementError::of)
    })?;
    let confined = reached(&ruleset.restrict_self().map_err(ConfinementError::of)?);
    if let Confined::Yes(version) = confined {
        CONFINED.store(version, Ordering::Relaxed);
    }
    Ok(confined)
}

/// Returns the version by which the program before this one confined this process, if it did.
pub fn confined_before() -> Option<u32> {
    let told = std::env::var(VARIABLE).ok()?;
    let (process, version) = told.split_once(' ')?;
    let version = version.parse().ok().filter(|_| process == std::process::id().to_string())?;
    CONFINED.store(version, Ordering::Relaxed);
    Some(version)
}

/// Returns whether this process may make no file in `directory` although the modes of files let its user: because it is
/// confined, or held by another rule of the kernel. Of a directory that is not there, the one in which it would be made counts.
pub fn is_withheld(directory: &Path) -> bool {
    let Some(there) = directory.ancestors().find(|place| place.is_dir()) else { return false };
    // What the modes say is asked without what confines.
    if nix::unistd::access(there, nix::unistd::AccessFlags::W_OK).is_err() {
        return false;
    }
    let trial = there.join(format!(".meshd-tmp-{}-trial", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&trial);
    let withheld = made.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    if made.is_ok() {
        // Left over, it would be swept like any other.
        let _ = std::fs::remove_file(&trial);
    }
    withheld
}

/// Refuses the calling thread, from now on and for good, to open or execute any file, to bind or connect TCP, to send signals
/// to other processes, and to connect to abstract Unix sockets of others. What is open stays open.
///
/// # Errors
/// The kernel refuses; nothing changed then.
pub fn confine_thread() -> Result<Confined, ConfinementError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ASKED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ASKED)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ASKED)))
        .and_then(Ruleset::create)
        .map_err(ConfinementError::of)?;
    Ok(reached(&ruleset.restrict_self().map_err(ConfinementError::of)?))
}

/// Has the program that is executed in place of this one know that it is confined.
pub(super) fn hand_on(program: &mut Command) {
    match CONFINED.load(Ordering::Relaxed) {
        0 => program.env_remove(VARIABLE),
        version => program.env(VARIABLE, format!("{} {version}", std::process::id())),
    };
}

fn reached(status: &RestrictionStatus) -> Confined {
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => Confined::Yes(effective_abi as u32),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Confined::No,
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_process::in_process;
    use super::*;
    use std::io::ErrorKind::PermissionDenied;
    use std::net::{TcpListener, TcpStream};

    /// Whether this kernel refuses anything here; said, where it does not.
    fn kernel_has_it() -> bool {
        let has = matches!(std::thread::spawn(confine_thread).join().unwrap(), Ok(Confined::Yes(_)));
        if !has {
            println!("NOT RUN: this kernel has no Landlock");
        }
        has
    }

    /// Runs the ignored test below in a process of its own, since what it does cannot be undone.
    #[test]
    fn a_confined_process_writes_where_it_may_and_nowhere_else() {
        if !kernel_has_it() {
            return;
        }
        in_process("platform::confinement::tests::in_a_process_of_its_own", Some(VARIABLE));
    }

    #[test]
    #[ignore = "started by a_confined_process_writes_where_it_may_and_nowhere_else"]
    fn in_a_process_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("inside"), directory.path().join("outside"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let (one, other) = (outside.join("one"), outside.join("other"));
        std::fs::write(&one, "one").unwrap();
        std::fs::write(&other, "other").unwrap();
        let missing = directory.path().join("missing");

        let confined = confine(&[&inside, &missing], &[&one, Path::new("/dev/null")]).unwrap();
        assert!(matches!(confined, Confined::Yes(_)), "{confined:?}");
        let refused =
            |done: std::io::Result<()>, what: &str| assert_eq!(done.unwrap_err().kind(), PermissionDenied, "{what}");

        std::fs::create_dir(inside.join("sub")).unwrap();
        std::fs::write(inside.join("sub/file"), "x").unwrap();
        std::fs::rename(inside.join("sub/file"), inside.join("file")).unwrap();
        std::fs::remove_file(inside.join("file")).unwrap();
        std::fs::write(&one, "more").unwrap();
        std::fs::write("/dev/null", "x").unwrap();
        refused(std::fs::write(&other, "x"), "a file that is there");
        refused(std::fs::write(outside.join("new"), "x"), "a file that is not");
        refused(std::fs::remove_file(&one), "removing, where only writing is allowed");
        refused(std::fs::create_dir(&missing), "a directory that was not there");
        refused(std::os::unix::net::UnixListener::bind(outside.join("socket")).map(drop), "a socket");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "other", "reading is as it was");

        // What is executed is bound likewise, and does what it may.
        let shell =
            |text: &str| Command::new("/bin/sh").args(["-c", text]).env_clear().current_dir(&outside).output().unwrap();
        assert!(shell("echo x > ../inside/by-a-program").status.success());
        assert!(!shell("echo x > by-a-program").status.success());
        // Signals to what it started, and to nobody else.
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        if matches!(confined, Confined::Yes(abi) if abi >= 6) {
            let parent = nix::unistd::getppid();
            assert_eq!(nix::sys::signal::kill(parent, None), Err(nix::errno::Errno::EPERM));
        }

        // The next program in this process knows, and lays no second domain upon the first.
        let mut next = Command::new("/bin/sh");
        hand_on(&mut next);
        let told = next.get_envs().find(|(name, _)| *name == VARIABLE).and_then(|(_, value)| value).unwrap();
        let Confined::Yes(version) = confined else { unreachable!("asserted above") };
        assert_eq!(told.to_string_lossy(), format!("{} {version}", std::process::id()));
        // It tells what it may not from what nobody like it may.
        assert!(is_withheld(&outside) && is_withheld(&outside.join("sub/sub")) && !is_withheld(&inside));
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 2, "a trial leaves nothing");
    }

    #[test]
    fn a_confined_thread_opens_executes_and_connects_nothing_and_the_others_do() {
        if !kernel_has_it() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (open, path) = (std::fs::File::open(&file).unwrap(), file.clone());
        let confined = std::thread::spawn(move || {
            let confined = confine_thread().unwrap();
            let refused = |done: std::io::Result<()>, what: &str| {
                assert_eq!(done.unwrap_err().kind(), PermissionDenied, "{what}");
            };
            refused(std::fs::read(&path).map(drop), "reading");
            refused(std::fs::read_dir(path.parent().unwrap()).map(drop), "listing");
            refused(std::fs::write(&path, "y"), "writing");
            refused(std::fs::read("/etc/passwd").map(drop), "reading what everybody may");
            refused(Command::new("/bin/true").status().map(drop), "executing");
            if matches!(confined, Confined::Yes(abi) if abi >= 4) {
                refused(TcpStream::connect(address).map(drop), "connecting");
                refused(TcpListener::bind("127.0.0.1:0").map(drop), "listening");
            }
            if matches!(confined, Confined::Yes(abi) if abi >= 6) {
                let parent = nix::unistd::getppid();
                assert_eq!(nix::sys::signal::kill(parent, None), Err(nix::errno::Errno::EPERM), "a signal");
            }
            // What it has goes on.
            assert_eq!(std::io::read_to_string(&open).unwrap(), "x");
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 1);
        });
        confined.join().unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"x", "this thread is as it was");
        TcpStream::connect(address).unwrap();
    }
}

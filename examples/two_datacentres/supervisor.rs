//! Leaves nothing behind, however the show ends: it plays in a child process, and whatever the child could not remove,
//! because it was interrupted or killed, is removed here.

use std::env;
use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};

use crate::lab::package::Set;
use crate::lab::reexec::{self, Privilege};
use crate::lab::{Error, Result, sweep};

/// Set in the child's environment.
const MARK: &str = "MESHD_DEMO_ON_STAGE";

/// Fetches the sets, then runs `play` in a child of this process and cleans up after it.
pub fn run(needs: &[&Set], play: impl FnOnce() -> Result<()>) -> ExitCode {
    if env::var_os(MARK).is_some() {
        // The parent holds these back for itself; here they end the show at once.
        let _ = signals().thread_unblock();
        return told(play().map(|()| ExitCode::SUCCESS));
    }
    // An ordinary user's program starts a second time inside a user namespace, where nothing can be fetched any more.
    if reexec::privilege() != Some(Privilege::UserNamespace) {
        for set in needs {
            println!("Looking for {} (here, else downloaded and unpacked beside the build)", set.program);
            // What cannot be had is told where it is missed.
            let _ = set.fetch();
        }
    }
    told(reexec::ensure_namespaces().and_then(|_| supervise()))
}

fn told(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        match error {
            Error::Failed(what) => eprintln!("\nerror: {what}"),
            Error::NotRun(why) => eprintln!("\nerror: this machine cannot run the demo: {why}"),
        }
        ExitCode::FAILURE
    })
}

fn supervise() -> Result<ExitCode> {
    let mut awaited = signals();
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block()?;
    let mut child = Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(MARK, "1").spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if awaited.wait()? != Signal::SIGCHLD {
            // The kernel kills the hosts' processes with it.
            child.kill()?;
            break child.wait()?;
        }
    };
    sweep::sweep_now()?;
    // A child without a code was ended by a signal: the shell's convention for an interrupt.
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(130)).unwrap_or(1)))
}

/// What asks a program to end.
fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

//! Privilege: runs as root as it is, and as an ordinary user inside a user namespace of its own.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::error::{Error, Result};

/// Set in the environment of the re-executed program, so that it happens once.
const MARK: &str = "MESHD_LAB_USER_NAMESPACE";

/// How the lab got the privilege to make namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root on this machine.
    Root,
    /// Root only inside a user namespace made for this run.
    UserNamespace,
}

/// Returns what this process has now, without changing anything; `None` for an ordinary user.
pub fn privilege() -> Option<Privilege> {
    if env::var_os(MARK).is_some() {
        return Some(Privilege::UserNamespace);
    }
    nix::unistd::geteuid().is_root().then_some(Privilege::Root)
}

/// Makes sure that this process may make namespaces: root already may; an ordinary user's program is replaced by
/// itself under `unshare -Urnm` with the same arguments. Call it before any thread is started.
///
/// Inside there is no way out to the internet, so whatever has to be fetched must be fetched before.
///
/// # Errors
/// NOT RUN where the kernel gives ordinary users no user namespaces.
pub fn ensure_namespaces() -> Result<Privilege> {
    if let Some(privilege) = privilege() {
        return Ok(privilege);
    }
    let probe = Command::new("unshare")
        .args(["-Urnm", "true"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::not_run(format!("not root, and unshare cannot be run: {error}")))?;
    if !probe.status.success() {
        let said = String::from_utf8_lossy(&probe.stderr);
        return Err(Error::not_run(format!("not root, and no user namespaces for ordinary users: {}", said.trim())));
    }
    let exe =
        env::current_exe().map_err(|error| Error::not_run(format!("cannot find the running program: {error}")))?;
    let failed = Command::new("unshare").arg("-Urnm").arg(exe).args(env::args_os().skip(1)).env(MARK, "1").exec();
    Err(Error::not_run(format!("unshare -Urnm could not be started: {failed}")))
}

//! A planned restart: the program that lies where this one was started from is executed in its place, with the device and
//! the port left open. Whatever could go wrong is tried before anything is stopped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::sync::mpsc;

use super::backend::call;
use super::driver::{Command, Driver};
use crate::api::{Answer, ApiError, ErrorKind, Restarting, SCHEMA};
use crate::platform::clock;
use crate::platform::handover::{self, Program};

/// How long the next program may take to say that it takes the configuration: it reads a few files.
const CHECK_PATIENCE: Duration = Duration::from_secs(10);
/// How long after the answer the restart begins, so that whoever asked has it.
const ANSWER_TIME: Duration = Duration::from_millis(50);
/// Bytes of what the next program complains of that are told.
const COMPLAINT_LIMIT: usize = 2_000;

/// How a run of the driver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was told to stop.
    Stop,
    /// It was told to make room for the next program.
    Restart,
}

impl Driver {
    /// Has the driver end for the next program, once the answer is out.
    fn restart_soon(&mut self) {
        self.restart_due = Some(clock::now() + ANSWER_TIME);
    }
}

/// Checks what would be executed, and has it executed.
pub(super) async fn restart(commands: &mpsc::Sender<Command>) -> Answer<Restarting> {
    let (program, config_path) = call(commands, Driver::next_program).await?;
    let program = program.ok_or_else(|| {
        ApiError::new(ErrorKind::Internal, "the daemon does not know what file it was started from")
            .advise("restart it with the service manager")
    })?;
    check(&program, &config_path).await?;
    call(commands, Driver::restart_soon).await?;
    Ok(Restarting { schema: SCHEMA, program: program.path.display().to_string() })
}

/// Has the next program say that it takes over from this one, and takes the configuration.
async fn check(program: &Program, config_path: &PathBuf) -> Answer<()> {
    let refused =
        |why: String| ApiError::new(ErrorKind::Conflict, format!("not restarted, everything goes on as it was: {why}"));
    let mut command = tokio::process::Command::new(&program.path);
    command.arg("--check-config").arg("--config").arg(config_path).args(["--color", "never"]);
    command.arg("--handover").arg(handover::VERSION.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(CHECK_PATIENCE, command.output()).await;
    let output = output.map_err(|_| refused(format!("{program} does not end its check of the configuration")))?;
    let output = output.map_err(|error| refused(format!("{program} cannot be executed: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(format!("{program} refuses: {}", complaint(&output.stderr))))
}

/// What a program complained of, as far as it is told.
fn complaint(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(COMPLAINT_LIMIT)]);
    match text.trim() {
        "" => "it says nothing".to_owned(),
        words => words.to_owned(),
    }
}

/// Reads the configuration for a program that could not be replaced; as it was, where that is not good any more.
pub(super) fn config_again(path: &Path, known: &crate::config::Config) -> crate::config::Config {
    super::config_files::read(path).unwrap_or_else(|problem| {
        tracing::error!("the configuration is taken as it was: {problem}");
        known.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_bounded() {
        assert_eq!(complaint(b" \n"), "it says nothing");
        assert_eq!(complaint(b"error: bad\n"), "error: bad");
        assert_eq!(complaint(&[b'x'; 9_000]).len(), COMPLAINT_LIMIT);
    }
}

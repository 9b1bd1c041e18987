//! Programs of this host that are run and end: something goes in, something is said.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// Bytes of what a program complains of that are told.
const COMPLAINT_LIMIT: usize = 2_000;

/// Why a program did not do what it was run for.
#[derive(Debug)]
pub enum ProgramError {
    /// It does not run.
    Run(io::Error),
    /// It did not end in time, and was killed.
    Late,
    /// It failed: what it complained of, or how it ended where it said nothing.
    Failed(String),
}

/// Runs a program with `input` for at most `patience`; returns what it wrote.
///
/// # Errors
/// [`ProgramError`].
pub async fn run(mut command: Command, input: &str, patience: Duration) -> Result<String, ProgramError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = async {
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program need not read it; whoever does not read to the end says why.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        // At once: it may write before it has read everything.
        tokio::join!(feed, child.wait_with_output()).1
    };
    let output = timeout(patience, running).await.map_err(|_| ProgramError::Late)?.map_err(ProgramError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(COMPLAINT_LIMIT)]);
    let said = said.trim();
    Err(ProgramError::Failed(if said.is_empty() { output.status.to_string() } else { said.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, input: &str, patience: Duration) -> Result<String, ProgramError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, input, patience).await
    }

    #[tokio::test]
    async fn what_goes_in_and_what_is_said_come_across() {
        const LONG: Duration = Duration::from_secs(60);
        // Programs of Rust ignore it; the harness of tests does not.
        let _caught = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::pipe()).unwrap();
        let much = "x".repeat(1 << 20);
        assert_eq!(shell("cat", &much, LONG).await.unwrap(), much, "more than a pipe holds, both ways");
        assert_eq!(shell("echo heard", &much, LONG).await.unwrap(), "heard\n", "it need not read");
        let failed = |outcome| match outcome {
            Err(ProgramError::Failed(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(failed(shell("echo ' no ' >&2; exit 3", "", LONG).await), "no");
        assert_eq!(failed(shell("exit 3", "", LONG).await), "exit status: 3");
        let late = shell("exec sleep 3600", "", Duration::from_millis(1)).await;
        assert!(matches!(late, Err(ProgramError::Late)));
        let missing = run(Command::new("/nonexistent/program"), "", LONG).await;
        assert!(matches!(missing, Err(ProgramError::Run(_))));
    }
}

//! The kernel's packet filter, by the program `nft`: each script is one transaction.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::host_facts;

/// How long a run may take: it is over in milliseconds, and a rule set of a hundred thousand rules in a second or two.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of what `nft` complains of that are told.
const COMPLAINT_LIMIT: usize = 2_000;

/// Why something was not done; nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// It does not run.
    #[error("nft cannot be run: {0}")]
    Run(#[from] io::Error),
    /// It runs for too long.
    #[error("nft did not end within {} s", PATIENCE.as_secs())]
    Late,
    /// It refuses.
    #[error("nft refuses: {0}")]
    Refused(String),
}

/// The program, found on this host.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
}

impl Nft {
    /// The Debian package that has it.
    pub const PACKAGE: &'static str = "nftables";

    /// Finds the program; `None` where this host has none.
    pub fn find() -> Option<Nft> {
        host_facts::program("nft").map(|program| Nft { program })
    }

    /// Applies a script, all of it or nothing.
    ///
    /// # Errors
    /// [`NftError`], also where the kernel has no packet filter or this process may not change it.
    pub async fn apply(&self, script: &str) -> Result<(), NftError> {
        self.run(&["-f", "-"], script).await.map(drop)
    }

    /// Has the kernel say whether it would take a script, and changes nothing.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub async fn check(&self, script: &str) -> Result<(), NftError> {
        self.run(&["-c", "-f", "-"], script).await.map(drop)
    }

    /// Returns a table of family `inet` as it is printed, without the values of its counters; `None` where there is none.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub async fn table(&self, name: &str) -> Result<Option<String>, NftError> {
        match self.run(&["-s", "list", "table", "inet", name], "").await {
            Ok(text) => Ok(Some(text)),
            // ENOENT: only tables that there are can be asked for.
            Err(NftError::Refused(why)) if why.contains("No such file or directory") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the names of the tables of family `inet`.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub async fn tables(&self) -> Result<Vec<String>, NftError> {
        let text = self.run(&["list", "tables", "inet"], "").await?;
        Ok(text.lines().filter_map(|line| line.strip_prefix("table inet ")).map(str::to_owned).collect())
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<String, NftError> {
        let mut command = Command::new(&self.program);
        // What went wrong is told by words.
        command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // Whoever does not read to the end says why.
            let _ = timeout(PATIENCE, stdin.write_all(input.as_bytes())).await;
        }
        let output = timeout(PATIENCE, child.wait_with_output()).await.map_err(|_| NftError::Late)??;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(COMPLAINT_LIMIT)]);
        let said = said.trim();
        Err(NftError::Refused(if said.is_empty() { output.status.to_string() } else { said.to_owned() }))
    }
}

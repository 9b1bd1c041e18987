//! The kernel's packet filter, by the program `nft`: each script is one transaction.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::host_facts;
use super::program::{self, ProgramError};

/// How long a run may take: it is over in milliseconds, and a rule set of a hundred thousand rules in a second or two.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether a table is there that another process makes.
const LOOK: Duration = Duration::from_millis(10);

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

    /// Returns the packets that a table's rules have dropped.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub async fn dropped(&self, name: &str) -> Result<u64, NftError> {
        let text = self.run(&["list", "table", "inet", name], "").await?;
        let counted = |line: &str| line.split_once("counter packets ")?.1.split(' ').next()?.parse::<u64>().ok();
        Ok(text.lines().filter(|line| line.contains(" drop")).filter_map(counted).sum())
    }

    /// Returns all that the packet filter holds, as JSON.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub async fn ruleset(&self) -> Result<String, NftError> {
        self.run(&["-j", "list", "ruleset"], "").await
    }

    /// Makes a table that belongs to a process of its own (the flag `owner`): nobody else can change it, no flush takes it, and
    /// the kernel removes it when that process ends. It reads from this one, so that it ends with this one however that ends.
    ///
    /// # Errors
    /// As [`Nft::apply`]; also where `nft` was built without its interactive mode, or the table is there already.
    pub async fn hold(&self, table: &str, line: &str) -> Result<Held, NftError> {
        self.check(line).await?;
        if self.table(table).await?.is_some() {
            return Err(NftError::Refused(format!("table inet {table} is there already")));
        }
        let mut command = Command::new(&self.program);
        // It would keep what it reads in a file of the user's.
        command.arg("-i").env("HOME", "/nonexistent").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            timeout(PATIENCE, stdin.write_all(format!("{line}\n").as_bytes())).await.map_err(|_| NftError::Late)??;
        }
        child.stdin = stdin;
        let made = async {
            loop {
                if self.table(table).await?.is_some() {
                    return Ok(());
                }
                if let Some(status) = child.try_wait()? {
                    return Err(NftError::Refused(format!("its interactive mode ended ({status})")));
                }
                sleep(LOOK).await;
            }
        };
        timeout(PATIENCE, made).await.map_err(|_| NftError::Late)??;
        Ok(Held { child })
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<String, NftError> {
        let mut command = std::process::Command::new(&self.program);
        // What went wrong is told by words.
        command.args(arguments).env("LC_ALL", "C");
        program::run(command, input, PATIENCE).await.map_err(|error| match error {
            ProgramError::Run(error) => NftError::Run(error),
            ProgramError::Late => NftError::Late,
            ProgramError::Failed(why) => NftError::Refused(why),
        })
    }
}

/// The process that owns a table.
#[derive(Debug)]
pub struct Held {
    child: Child,
}

impl Held {
    /// Ends it, and so its table.
    pub async fn release(mut self) {
        // The end of what it reads; where that is not enough, it is killed when it is dropped.
        drop(self.child.stdin.take());
        let _ = timeout(PATIENCE, self.child.wait()).await;
    }
}

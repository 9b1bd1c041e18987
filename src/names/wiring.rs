//! The names in the host's own resolver: put there, kept there, and taken out again.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::hosts_block::HostsBlock;
use super::picture::ReverseZones;
use crate::config::{Resolver, Suffix};
use crate::platform::program::{self, ProgramError};
use crate::platform::{file, foreign_file, host_facts, privileges};

/// Where hosts are listed.
const HOSTS: &str = "/etc/hosts";
/// Which servers programs ask.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps its state while it runs.
const RESOLVED_STATE: &str = "/run/systemd/resolve";
/// What was set up by programs, one file for each mesh: so that it can be undone also by another process than did it. It ends
/// at a boot, as what it tells of does.
const RECORDS: &str = "/run/meshd-names";
/// Bytes of a record at most.
const RECORD_LIMIT: u64 = 256;
/// How long a program may take: it talks to a service of this host.
const PATIENCE: Duration = Duration::from_secs(5);
/// Zones of addresses that are named to a resolver at most; a range that ends inside an octet can have 128.
const MOST_REVERSE: usize = 16;

/// What the host's resolver is to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// The way that is chosen; never [`Resolver::Off`].
    pub resolver: Resolver,
    /// The mesh's name.
    pub mesh: String,
    /// The mesh's interface.
    pub interface: String,
    /// Where questions are answered; needed by all ways but `hosts`.
    pub server: Option<SocketAddr>,
    /// The domains to ask there for, without a dot at their end.
    pub domains: Vec<String>,
    /// Addresses and whole names, for `hosts`.
    pub hosts: Vec<(IpAddr, String)>,
}

/// A way into the host's resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// systemd-resolved, for the mesh's interface alone.
    Resolved,
    /// resolvconf: one more server for everything.
    Resolvconf,
    /// A block of `/etc/hosts`.
    Hosts,
}

impl Way {
    /// Its name, as the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Way::Resolved => "resolved",
            Way::Resolvconf => "resolvconf",
            Way::Hosts => "hosts",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why the resolver does not know what it should.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// A file cannot be changed.
    #[error(transparent)]
    Hosts(#[from] foreign_file::ForeignFileError),
    /// What was done cannot be noted, so that nothing was done.
    #[error("{0}")]
    Record(String),
    /// A program is missing, or fails.
    #[error("`{program} {words}`: {why}")]
    Program {
        /// The program.
        program: &'static str,
        /// Its arguments.
        words: String,
        /// What it said.
        why: String,
    },
    /// There is nobody to ask.
    #[error("{0} needs names.listen: it asks there")]
    NoServer(Way),
}

impl Wiring {
    /// The domains to ask this node for: the suffix, and those of the overlay's addresses.
    pub fn domains(suffix: &Suffix, overlay: (Ipv4Net, Ipv6Net)) -> Vec<String> {
        let reverse = ReverseZones::of(overlay.0, overlay.1);
        let few = reverse.v4.len() <= MOST_REVERSE;
        let reverse = reverse.v4.into_iter().filter(|_| few).chain(reverse.v6);
        [suffix.to_string()].into_iter().chain(reverse).collect()
    }

    /// The way that is taken: the one that is chosen, or what this host has.
    pub fn way(&self) -> Way {
        match self.resolver {
            Resolver::Resolved => Way::Resolved,
            Resolver::Resolvconf => Way::Resolvconf,
            Resolver::Auto if self.server.is_some() && resolved_is_asked() => Way::Resolved,
            // Not resolvconf, which would have every program of this host ask us for every name first.
            Resolver::Auto | Resolver::Hosts | Resolver::Off => Way::Hosts,
        }
    }

    /// Makes the host's resolver know it, and nothing else of this mesh. What is so already is left alone, but for programs,
    /// which are run again.
    ///
    /// # Errors
    /// It cannot be done; then it is not done, or is done again at the next attempt.
    pub async fn apply(&self) -> Result<Way, WiringError> {
        let way = self.way();
        let record = Record { way, interface: self.interface.clone() };
        if let Some(before) = Record::read(&self.mesh).filter(|before| *before != record) {
            before.undo(&self.mesh).await?;
        }
        if way == Way::Hosts {
            let block = HostsBlock { mesh: self.mesh.clone(), hosts: self.hosts.clone() };
            foreign_file::change(Path::new(HOSTS), |content| block.put(content))?;
            return Ok(way);
        }
        foreign_file::change(Path::new(HOSTS), |content| HostsBlock::take_out(&self.mesh, content))?;
        let server = self.server.ok_or(WiringError::NoServer(way))?;
        // Before it is done: a crash in between undoes too much, not too little.
        record.write(&self.mesh)?;
        if way == Way::Resolvconf {
            let lines = format!("nameserver {}\n", server.ip());
            run("resolvconf", &["-a", &format!("{}.meshd", self.interface)], &lines).await?;
            return Ok(way);
        }
        let at = if server.port() == 53 { server.ip().to_string() } else { server.to_string() };
        let domains: Vec<String> = self.domains.iter().map(|domain| format!("~{domain}")).collect();
        let interface = self.interface.as_str();
        run("resolvectl", &["dns", interface, &at], "").await?;
        let words: Vec<&str> = ["domain", interface].into_iter().chain(domains.iter().map(String::as_str)).collect();
        run("resolvectl", &words, "").await?;
        run("resolvectl", &["default-route", interface, "no"], "").await?;
        Ok(way)
    }
}

/// Takes everything of a mesh out of the host's resolver.
///
/// # Errors
/// It cannot be done.
pub async fn undo(mesh: &str) -> Result<(), WiringError> {
    if let Some(before) = Record::read(mesh) {
        before.undo(mesh).await?;
    }
    foreign_file::change(Path::new(HOSTS), |content| HostsBlock::take_out(mesh, content))?;
    Ok(())
}

/// Whether the programs of this host ask systemd-resolved.
fn resolved_is_asked() -> bool {
    let asked = || std::fs::read_to_string(RESOLV_CONF).is_ok_and(|text| text.contains("127.0.0.53"));
    host_facts::program("resolvectl").is_some() && Path::new(RESOLVED_STATE).is_dir() && asked()
}

/// What was set up by programs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    way: Way,
    interface: String,
}

impl Record {
    fn path(mesh: &str) -> PathBuf {
        Path::new(RECORDS).join(mesh)
    }

    /// What is noted of a mesh; a note that says nothing sensible is none.
    fn read(mesh: &str) -> Option<Record> {
        let bytes = file::read(&Record::path(mesh), RECORD_LIMIT).ok()?;
        let (way, interface) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
        let way = [Way::Resolved, Way::Resolvconf].into_iter().find(|known| known.name() == way)?;
        Some(Record { way, interface: interface.to_owned() })
    }

    fn write(&self, mesh: &str) -> Result<(), WiringError> {
        let failed = |why: String| WiringError::Record(format!("what is set up cannot be noted: {why}"));
        std::fs::create_dir_all(RECORDS).map_err(|error| failed(format!("{RECORDS}: {error}")))?;
        let line = format!("{} {}\n", self.way, self.interface);
        file::atomic_write(&Record::path(mesh), line.as_bytes(), 0o644).map_err(|error| failed(error.to_string()))
    }

    /// Undoes what is noted. An interface that has gone took its settings with it.
    async fn undo(&self, mesh: &str) -> Result<(), WiringError> {
        match self.way {
            Way::Resolvconf => run("resolvconf", &["-d", &format!("{}.meshd", self.interface)], "").await?,
            Way::Resolved if nix::net::if_::if_nametoindex(self.interface.as_str()).is_ok() => {
                run("resolvectl", &["revert", &self.interface], "").await?;
            }
            Way::Resolved | Way::Hosts => {}
        }
        file::remove(&Record::path(mesh)).map_err(|error| WiringError::Record(error.to_string()))
    }
}

/// Runs a program of this host, without a shell and without what our own environment holds.
async fn run(name: &'static str, words: &[&str], input: &str) -> Result<(), WiringError> {
    let failed = |why: String| WiringError::Program { program: name, words: words.join(" "), why };
    let place = host_facts::program(name).ok_or_else(|| failed("it is not installed".to_owned()))?;
    let mut command = std::process::Command::new(place);
    command.args(words).env_clear().env("LC_ALL", "C").current_dir("/");
    // Such programs are scripts that call others.
    command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
    privileges::start_without(&mut command);
    program::run(command, input, PATIENCE).await.map(drop).map_err(|error| match error {
        ProgramError::Run(error) => failed(error.to_string()),
        ProgramError::Late => failed(format!("it did not end within {} s", PATIENCE.as_secs())),
        ProgramError::Failed(said) => failed(said.lines().last().unwrap_or_default().chars().take(200).collect()),
    })
}

//! Programs this machine lacks, from its own distribution: downloaded and unpacked below the build directory, never
//! installed. Works as root and as an ordinary user, because apt gets directories of its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::error::{Context, Error, Result};
use super::place;
use super::reexec::{Privilege, privilege};

/// How old apt's answers may be before it is asked again.
const LIST_AGE: Duration = Duration::from_secs(24 * 3600);

/// Some packages fetched together, and the program they are fetched for.
#[derive(Debug, PartialEq, Eq)]
pub struct Set {
    /// Name of the set, also of its directory.
    pub name: &'static str,
    /// The packages; what they need and this machine lacks comes with them.
    pub packages: &'static [&'static str],
    /// A program that only these packages have; where the machine has it, nothing is fetched.
    pub program: &'static str,
}

/// `ip` and `ss`.
pub const IPROUTE2: Set = Set { name: "iproute2", packages: &["iproute2"], program: "ip" };
/// `nft`.
pub const NFTABLES: Set = Set { name: "nftables", packages: &["nftables"], program: "nft" };
/// `tcpdump`.
pub const TCPDUMP: Set = Set { name: "tcpdump", packages: &["tcpdump"], program: "tcpdump" };
/// `mariadbd` and the `mariadb` client.
pub const MARIADB: Set = Set { name: "mariadb", packages: &["mariadb-server", "mariadb-client"], program: "mariadbd" };
/// `wireguard-go`.
pub const WIREGUARD_GO: Set = Set { name: "wireguard-go", packages: &["wireguard-go"], program: "wireguard-go" };
/// `wg`, which configures WireGuard interfaces.
pub const WIREGUARD_TOOLS: Set = Set { name: "wireguard-tools", packages: &["wireguard-tools"], program: "wg" };
/// `ping`.
pub const PING: Set = Set { name: "ping", packages: &["iputils-ping"], program: "ping" };
/// `dig`.
pub const DNSUTILS: Set = Set { name: "dnsutils", packages: &["bind9-dnsutils"], program: "dig" };
/// `tincd`.
pub const TINC: Set = Set { name: "tinc", packages: &["tinc"], program: "tincd" };
/// `nebula` and `nebula-cert`.
pub const NEBULA: Set = Set { name: "nebula", packages: &["nebula"], program: "nebula" };
/// `iperf3`.
pub const IPERF3: Set = Set { name: "iperf3", packages: &["iperf3"], program: "iperf3" };
/// `sockperf`.
pub const SOCKPERF: Set = Set { name: "sockperf", packages: &["sockperf"], program: "sockperf" };
/// `prometheus` and `promtool`.
pub const PROMETHEUS: Set = Set { name: "prometheus", packages: &["prometheus"], program: "prometheus" };
/// `chromedriver`, and Chromium, which it drives.
pub const CHROMIUM: Set = Set { name: "chromium", packages: &["chromium", "chromium-driver"], program: "chromedriver" };

/// `systemd-analyze`, which needs no running systemd for what it is asked here.
pub const SYSTEMD: Set = Set { name: "systemd", packages: &["systemd"], program: "systemd-analyze" };

/// Every set there is.
pub const ALL: &[&Set] = &[
    &IPROUTE2,
    &NFTABLES,
    &TCPDUMP,
    &MARIADB,
    &WIREGUARD_GO,
    &WIREGUARD_TOOLS,
    &PING,
    &DNSUTILS,
    &TINC,
    &NEBULA,
    &IPERF3,
    &SOCKPERF,
    &PROMETHEUS,
    &CHROMIUM,
    &SYSTEMD,
];

/// A set ready to be run from.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Set {
    /// Makes the set ready: finds it on this machine, or in the cache, or fetches it.
    ///
    /// # Errors
    /// NOT RUN with the reason where it cannot be had.
    pub fn fetch(&self) -> Result<Tree> {
        if find(Path::new("/"), self.program).is_some() {
            return Ok(Tree { root: PathBuf::from("/") });
        }
        let roots = place::lab()?.join("root");
        fs::create_dir_all(&roots).context(format_args!("create {}", roots.display()))?;
        let lock = roots.join(".lock");
        let lock = File::create(&lock).context(format_args!("open {}", lock.display()))?;
        // Two test programs may run at once; the second finds what the first has fetched.
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| Error::from(error))?;
        // There is no way out from a user namespace: what is to be used there was fetched before it was entered.
        let fetched = match privilege() {
            Some(Privilege::UserNamespace) => Err(Error::not_run("was not fetched before entering a user namespace")),
            _ => self.fetch_into(&roots),
        };
        fetched.or_else(|error| match self.newest(&roots) {
            Some(root) => {
                if privilege() != Some(Privilege::UserNamespace) {
                    println!("{}: using {} from an earlier run, for {error}", self.name, root.display());
                }
                Ok(Tree { root })
            }
            None => Err(Error::not_run(format!("{}: {error}", self.name))),
        })
    }

    fn fetch_into(&self, roots: &Path) -> Result<Tree> {
        let asked = roots.join(format!(".{}.asked", self.name));
        if is_fresh(&asked)
            && let Some(root) = self.newest(roots)
        {
            return Ok(Tree { root });
        }
        let apt = Apt::new()?;
        apt.update_if_old()?;
        let files = apt.missing(self.packages)?;
        let digest = Sha256::digest(files.iter().map(|file| format!("{file}\n")).collect::<String>());
        let version: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let root = roots.join(format!("{}-{version}", self.name));
        if root.is_dir() {
            touch(&asked)?;
            return Ok(Tree { root });
        }
        apt.download(self.packages)?;
        let unpacked = roots.join(format!(".{}-{version}.part", self.name));
        let _ = fs::remove_dir_all(&unpacked);
        fs::create_dir(&unpacked).context(format_args!("create {}", unpacked.display()))?;
        for file in &files {
            let from = apt.archives().join(file);
            run(Command::new("dpkg-deb").arg("-x").arg(&from).arg(&unpacked))?;
        }
        fs::rename(&unpacked, &root).context(format_args!("finish {}", root.display()))?;
        let tree = Tree { root };
        tree.program(self.program)?;
        touch(&asked)?;
        Ok(tree)
    }

    /// Returns the newest of the set's trees in the cache.
    fn newest(&self, roots: &Path) -> Option<PathBuf> {
        let ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(self.name));
            name.is_some_and(|rest| rest.len() == 13 && rest.starts_with('-')) && find(path, self.program).is_some()
        };
        let trees = fs::read_dir(roots).ok()?.flatten().map(|entry| entry.path()).filter(ours);
        trees.max_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }
}

impl Tree {
    /// Returns where the set is unpacked; `/` where the machine has it itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of one of the set's programs.
    ///
    /// # Errors
    /// NOT RUN where neither the set nor this machine has it.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let found = find(&self.root, name).or_else(|| find(Path::new("/"), name));
        found.ok_or_else(|| Error::not_run(format!("{} has no program {name}", self.root.display())))
    }

    /// Returns what PATH and LD_LIBRARY_PATH must begin with for the set's programs; empty where nothing is needed.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        if self.root == Path::new("/") {
            return Vec::new();
        }
        let join = |dirs: Vec<PathBuf>| dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
        let mut libraries = BTreeSet::new();
        for dir in ["usr/lib", "lib"].map(|dir| self.root.join(dir)) {
            // The multiarch directory, such as x86_64-linux-gnu, and in it what some libraries keep for themselves and find
            // by an absolute path where they are installed.
            for multiarch in directories(&dir).filter(|path| path.to_string_lossy().contains("-linux-gnu")) {
                libraries.extend(directories(&multiarch).filter(|path| holds_libraries(path)));
                libraries.insert(multiarch);
            }
            libraries.insert(dir);
        }
        let programs = PROGRAM_DIRS.iter().map(|dir| self.root.join(dir)).filter(|dir| dir.is_dir()).collect();
        vec![("PATH", join(programs)), ("LD_LIBRARY_PATH", join(libraries.into_iter().collect()))]
    }
}

/// Where programs lie below a root.
const PROGRAM_DIRS: &[&str] = &["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

fn directories(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir())
}

fn holds_libraries(dir: &Path) -> bool {
    let is_library = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains(".so");
    fs::read_dir(dir).into_iter().flatten().flatten().any(is_library)
}

fn find(root: &Path, program: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| root.join(dir).join(program)).find(|path| path.is_file())
}

/// apt with directories of its own and this machine's sources, keys and installed packages.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new() -> Result<Apt> {
        if find(Path::new("/"), "apt-get").is_none() || find(Path::new("/"), "dpkg-deb").is_none() {
            return Err(Error::not_run("this machine has no apt-get and dpkg-deb"));
        }
        let dir = place::lab()?.join("apt");
        // What is there already apt would leave out of its list; unpacked once, an archive is not needed again.
        let _ = fs::remove_dir_all(dir.join("cache/archives"));
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).context(format_args!("create {}", part.display()))?;
        }
        Ok(Apt { dir })
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let own = |key: &str, at: &str| format!("{key}={}", self.dir.join(at).display());
        let options = [
            own("Dir::State", "state"),
            own("Dir::Cache", "cache"),
            own("Dir::Log", "log"),
            "Dir::State::status=/var/lib/dpkg/status".to_owned(),
            // Our directories are locked by us; apt's own lock files are root's.
            "Debug::NoLocking=true".to_owned(),
            // Its download user could not write below the build directory.
            "APT::Sandbox::User=root".to_owned(),
            // Hooks are for a real installation.
            "APT::Update::Post-Invoke::=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=2".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
        ];
        for option in options {
            command.arg("-o").arg(option);
        }
        command.arg("-qq").env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    fn update_if_old(&self) -> Result<()> {
        let stamp = self.dir.join("updated");
        if is_fresh(&stamp) {
            return Ok(());
        }
        run(self.command().arg("update"))?;
        touch(&stamp)
    }

    /// Returns the package files that this machine would have to download, in a stable order.
    fn missing(&self, packages: &[&str]) -> Result<BTreeSet<String>> {
        let told = run(self.command().args(["--print-uris", "-y", "install"]).args(packages))?;
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        // Each line: 'address' file size digest
        let files = text.lines().filter(|line| line.starts_with('\'')).filter_map(|line| line.split(' ').nth(1));
        let files: BTreeSet<String> = files.map(str::to_owned).collect();
        if files.is_empty() {
            return Err(Error::not_run(format!("apt-get offers nothing for {}", packages.join(" "))));
        }
        Ok(files)
    }

    fn download(&self, packages: &[&str]) -> Result<()> {
        run(self.command().args(["--download-only", "-y", "install"]).args(packages)).map(drop)
    }
}

/// Returns whether a file was touched lately.
fn is_fresh(stamp: &Path) -> bool {
    let age = fs::metadata(stamp).and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age < LIST_AGE)
}

/// Notes in a file's time that something was done now.
fn touch(stamp: &Path) -> Result<()> {
    fs::write(stamp, "").context(format_args!("write {}", stamp.display()))
}

/// Runs a program outside the lab's hosts to its end.
fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().context(format_args!("start {program}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().filter(|line| line.starts_with("E:") || line.contains("rror")).collect();
    Err(Error::failed(format!("{program}: {}: {}", output.status, said.join("; "))))
}

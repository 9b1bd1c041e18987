//! Other userspace WireGuards: one program per host, configured over its socket.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rand_core::OsRng;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::contender::overlay_address;
use crate::lab::error::Context;
use crate::lab::package::{self, Tree};
use crate::lab::{Error, Proc, Result, place};
use crate::peer::{Pair, Peer, Running};
use crate::uapi::End;

/// The device of every daemon here.
const DEVICE: &str = "wg0";
/// What fits into 1,500 bytes over either family, and what wg-quick sets; some of the programs leave the device at 1,500.
const MTU: u32 = 1_420;
/// How long a daemon may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// One of the programs.
pub struct Wireguard {
    name: &'static str,
    version: String,
    program: PathBuf,
    arguments: &'static [&'static str],
    tree: Option<Tree>,
}

impl Wireguard {
    /// Debian's wireguard-go.
    ///
    /// # Errors
    /// NOT RUN where it cannot be had.
    pub fn go() -> Result<Wireguard> {
        let tree = package::WIREGUARD_GO.fetch()?;
        let program = tree.program("wireguard-go")?;
        let version = told(Command::new(&program).arg("--version").envs(tree.environment()));
        let version = version.unwrap_or_else(|| "wireguard-go of Debian".to_owned());
        Ok(Wireguard { name: "wireguard-go", version, program, arguments: &["-f", DEVICE], tree: Some(tree) })
    }

    /// A program of cargo's: the version that the targets were set against, beside the build; where it is missing and
    /// `install` says so, it is built there, which takes minutes.
    ///
    /// # Errors
    /// NOT RUN where it is missing and not to be installed; failed where cargo cannot.
    pub fn of_cargo(which: &Crate, install: bool) -> Result<Wireguard> {
        let root = place::lab()?.join("cargo");
        let program = root.join("bin").join(which.program);
        if !program.is_file() {
            if !install {
                let krate = which.name;
                return Err(Error::not_run(format!("{krate}: not beside the build; --install builds it (minutes)")));
            }
            which.install(&root)?;
        }
        let version = told(Command::new(&program).arg("--version")).unwrap_or_else(|| which.program.to_owned());
        let version = format!("{version} ({} {})", which.name, which.version);
        Ok(Wireguard { name: which.short, version, program, arguments: which.arguments, tree: None })
    }
}

impl Wireguard {
    /// Starts and configures one end of a tunnel: the device is there and up when this returns.
    ///
    /// # Errors
    /// Where the program fails.
    pub fn start_end(&self, pair: &Pair, secrets: &[StaticSecret; 2], index: usize) -> Result<Proc> {
        let (own, other) = (&pair.places[index], 1 - index);
        // All of them look for it there and not all of them make it.
        std::fs::create_dir_all(own.host.run_dir().join("wireguard")).context("make the sockets' directory")?;
        let command = own.host.command(&self.program).args(self.arguments);
        let command = match &self.tree {
            Some(tree) => command.with(tree),
            None => command,
        };
        // boringtun and gotatun would otherwise become another user, of whom the lab's files know nothing.
        let daemon = command.env("WG_SUDO", "true").spawn()?;
        let end = End {
            secret: &secrets[index],
            peer: PublicKey::from(&secrets[other]),
            endpoint: pair.places[other].underlay,
            inside: overlay_address(other),
        };
        configure(&end, &own.host.run_dir().join(format!("wireguard/{DEVICE}.sock")), &daemon)?;
        own.host.set_mtu(DEVICE, MTU)?;
        own.host.add_address(DEVICE, IpAddr::V4(overlay_address(index)), PREFIX)?;
        own.host.link_up(DEVICE)?;
        Ok(daemon)
    }
}

/// A program that cargo builds.
pub struct Crate {
    name: &'static str,
    version: &'static str,
    program: &'static str,
    short: &'static str,
    arguments: &'static [&'static str],
}

/// Mullvad's. Its `info` lines are left out, as a service would leave them.
pub const GOTATUN: Crate = Crate {
    name: "gotatun-cli",
    version: "0.10.2",
    program: "gotatun",
    short: "gotatun",
    arguments: &["-f", "-v", "error", DEVICE],
};

/// Cloudflare's, with its default of four threads.
pub const BORINGTUN: Crate = Crate {
    name: "boringtun-cli",
    version: "0.7.1",
    program: "boringtun-cli",
    short: "boringtun",
    arguments: &["-f", "-v", "error", DEVICE],
};

impl Crate {
    fn install(&self, root: &Path) -> Result<()> {
        println!("building {} {}: this takes minutes", self.name, self.version);
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "--locked", "--version", self.version, "--root"]).arg(root).arg(self.name);
        let done = cargo.env("CARGO_TARGET_DIR", root.join("build")).output().context("start cargo install")?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        let last: Vec<&str> = said.lines().rev().take(3).collect();
        Err(Error::not_run(format!("{}: cargo install: {}", self.name, last.join("; "))))
    }
}

impl Peer for Wireguard {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn start(&self, pair: &Pair) -> Result<Running> {
        let secrets = [StaticSecret::random_from_rng(OsRng), StaticSecret::random_from_rng(OsRng)];
        let mut daemons = Vec::new();
        for index in [0, 1] {
            daemons.push(self.start_end(pair, &secrets, index)?);
        }
        let addresses = [overlay_address(0), overlay_address(1)];
        Ok(Running { addresses, daemons })
    }
}

/// Both addresses are in one network, as [`overlay_address`] makes them.
const PREFIX: u8 = 16;

/// Configures a daemon as soon as it listens.
fn configure(end: &End<'_>, socket: &Path, daemon: &Proc) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match end.set(socket) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline || !daemon.is_running() => {
                return Err(Error::failed(format!("{error}\n{}{}", daemon.stdout(), daemon.stderr())));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The first line a program says about itself.
fn told(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

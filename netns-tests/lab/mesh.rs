//! A mesh of real daemons: each host of the lab runs `meshd`, admitted by `meshctl` as an operator would do it.
//!
//! ```text
//! let mesh = Mesh::init(&a, on_a.v4)?;                 // meshctl init
//! mesh.start(&[&a])?;
//! mesh.join(&b, on_b.v4)?;                             // meshctl invite at a, meshctl join at b
//! mesh.admit_offline(&c, on_c.v4)?;                    // meshctl request at c, meshctl sign at a, files in place
//! mesh.start(&[&b, &c])?;
//! mesh.wait_until_all_up(&[&a, &b, &c], LONG)?;
//! mesh.kill(&b)?;                                      // as kill -9 does
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meshd::api::{PeerState, Status};
use meshd::config::{Bootstrap, Config, DEFAULT_MTU};
use meshd::identity::{NodeKeys, NodeName};
use meshd::wire::{overlay, probe};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

use super::error::{Context, Error, Result};
use super::host::Host;
use super::look::{Look, wait};
use super::package::Tree;
use super::place;
use super::process::{HostCommand, Proc};

/// The port of every node's daemon; each is alone on its host.
pub const PORT: u16 = 7655;

/// How long a daemon may take to start or to stop; reached only in failure.
const LIFECYCLE_LIMIT: Duration = Duration::from_secs(20);

/// A mesh and the daemons that run it. Daemons still running are killed with it, and at the latest with their hosts.
pub struct Mesh {
    founder: Host,
    meshd: PathBuf,
    meshctl: PathBuf,
    nodes: Mutex<BTreeMap<String, Node>>,
}

struct Node {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    daemon: Option<Arc<Proc>>,
}

/// What `init`, `join` and `sign` tell about the node they admitted.
#[derive(Deserialize)]
struct Admitted {
    address_v4: Ipv4Addr,
    address_v6: Ipv6Addr,
}

impl Mesh {
    /// Founds a mesh on its first host, which keeps the authority's key; `underlay` is where the others reach it.
    ///
    /// # Errors
    /// NOT RUN where the programs are not built; failed where `meshctl init` is not content.
    pub fn init(founder: &Host, underlay: impl Into<IpAddr>) -> Result<Mesh> {
        Mesh::init_with(founder, underlay, &[])
    }

    /// Founds a mesh as [`Mesh::init`] does, with more arguments of `meshctl init`.
    ///
    /// # Errors
    /// As [`Mesh::init`].
    pub fn init_with(founder: &Host, underlay: impl Into<IpAddr>, more: &[&str]) -> Result<Mesh> {
        let (meshd, meshctl) = (place::binary("meshd")?, place::binary("meshctl")?);
        let mesh = Mesh { founder: founder.clone(), meshd, meshctl, nodes: Mutex::default() };
        mesh.make_directory(founder)?;
        let endpoint = SocketAddr::new(underlay.into(), PORT).to_string();
        let init = ["--json", "init", "--mesh", "lab", "--overlay", OVERLAY, "--node", founder.name(), "--endpoint"];
        let told = mesh.ctl(founder).args(init).arg(endpoint).args(more).check()?;
        mesh.enter(founder, &told)?;
        Ok(mesh)
    }

    /// Returns the directory of a host's configuration, keys and state.
    pub fn directory(&self, host: &Host) -> PathBuf {
        Mesh::directory_on(host)
    }

    /// Returns the same directory of a host that is in no mesh yet.
    pub fn directory_on(host: &Host) -> PathBuf {
        host.dir().join("mesh")
    }

    /// Returns a host's configuration file.
    pub fn config(&self, host: &Host) -> PathBuf {
        self.directory(host).join("meshd.toml")
    }

    /// Returns a host's directory of what its daemon learned.
    pub fn state(&self, host: &Host) -> PathBuf {
        self.directory(host).join("state")
    }

    /// Returns the authority's key file, on the founder's host.
    pub fn authority(&self) -> PathBuf {
        self.directory(&self.founder).join("authority.key")
    }

    /// Prepares `meshctl` on a host, with its configuration named.
    pub fn ctl(&self, host: &Host) -> HostCommand {
        host.command(&self.meshctl).arg("--config").arg(self.config(host))
    }

    /// Prepares `meshd` on a host, with its configuration named.
    pub fn meshd(&self, host: &Host) -> HostCommand {
        host.command(&self.meshd).arg("--config").arg(self.config(host))
    }

    /// Makes a token for a host at `inviter`'s daemon, with more arguments of `meshctl invite`.
    ///
    /// # Errors
    /// Where the inviter refuses.
    pub fn invite(&self, inviter: &Host, name: &str, more: &[&str]) -> Result<String> {
        Ok(self.ctl(inviter).args(["invite", name]).args(more).check()?.trim().to_owned())
    }

    /// Admits a host over the network: an invite at the founder, whose daemon must run, and a join at the host.
    ///
    /// # Errors
    /// Where either refuses, or the network does not carry it.
    pub fn join(&self, host: &Host, underlay: impl Into<IpAddr>) -> Result<()> {
        let token = self.invite(&self.founder, host.name(), &[])?;
        self.join_with(host, underlay, &token)
    }

    /// Joins a host with a token.
    ///
    /// # Errors
    /// Where it is refused, or the network does not carry it.
    pub fn join_with(&self, host: &Host, underlay: impl Into<IpAddr>, token: &str) -> Result<()> {
        let told = self.join_command(host, underlay, token)?.check()?;
        self.enter(host, &told)
    }

    /// Prepares `meshctl join` on a host, for those who expect a refusal.
    ///
    /// # Errors
    /// Where the host's directory cannot be made.
    pub fn join_command(&self, host: &Host, underlay: impl Into<IpAddr>, token: &str) -> Result<HostCommand> {
        self.make_directory(host)?;
        let endpoint = SocketAddr::new(underlay.into(), PORT).to_string();
        Ok(self.ctl(host).args(["--json", "join", "-", "--endpoint", &endpoint]).input(token))
    }

    /// Admits a host without any daemon, as configuration management does: a request made there, signed where the
    /// authority's key is, certificate and configuration put in place. Its one bootstrap member is the founder.
    ///
    /// # Errors
    /// Where a command refuses.
    pub fn admit_offline(&self, host: &Host, underlay: impl Into<IpAddr>) -> Result<()> {
        self.admit_offline_with(host, underlay, &[])
    }

    /// Admits a host as [`Mesh::admit_offline`] does, with more arguments of `meshctl sign`.
    ///
    /// # Errors
    /// Where a command refuses.
    pub fn admit_offline_with(&self, host: &Host, underlay: impl Into<IpAddr>, more: &[&str]) -> Result<()> {
        self.make_directory(host)?;
        let endpoint = SocketAddr::new(underlay.into(), PORT);
        let request =
            self.ctl(host).args(["request", "--node", host.name(), "--endpoint", &endpoint.to_string()]).check()?;
        let sign = self.ctl(&self.founder).args(["--json", "sign", "-", "--authority"]).arg(self.authority());
        let told = sign.args(more).input(request).check()?;
        let signed: Value = serde_json::from_str(&told).context("what meshctl sign told")?;
        let certificate = signed["certificate"].as_str().unwrap_or_default();
        fs::write(self.directory(host).join("node.cert"), certificate).context("place the certificate")?;
        let path = self.config(host);
        let mut config = self.read_config(&self.founder)?;
        let contact = Bootstrap {
            name: config.node.clone(),
            key: self.keys(&self.founder)?.public().wireguard,
            endpoint: *config.underlay.endpoints.first().ok_or_else(|| Error::failed("the founder has no endpoint"))?,
        };
        let name: NodeName = host.name().parse().context("a host's name")?;
        config = Config::new(name, config.mesh, &path);
        config.underlay.endpoints = vec![endpoint];
        config.bootstrap = vec![contact];
        fs::write(&path, config.to_toml(&path)).context("place the configuration")?;
        self.ctl(host).arg("check").check()?;
        self.enter(host, &told)
    }

    /// Reads a host's configuration.
    ///
    /// # Errors
    /// Where there is none, or it is invalid.
    pub fn read_config(&self, host: &Host) -> Result<Config> {
        let path = self.config(host);
        let text = fs::read_to_string(&path).context(path.display())?;
        Config::parse(&text, &path).context("a configuration that meshctl wrote")
    }

    /// Changes a host's configuration; a running daemon does not hear of it.
    ///
    /// # Errors
    /// As [`Mesh::read_config`].
    pub fn change_config(&self, host: &Host, change: impl FnOnce(&mut Config)) -> Result<()> {
        let mut config = self.read_config(host)?;
        change(&mut config);
        let path = self.config(host);
        fs::write(&path, config.to_toml(&path)).context(path.display())
    }

    /// Reads a host's private keys.
    ///
    /// # Errors
    /// Where it has none.
    pub fn keys(&self, host: &Host) -> Result<NodeKeys> {
        let path = self.directory(host).join("identity.key");
        let armor = fs::read_to_string(&path).context(path.display())?;
        NodeKeys::from_armor(&armor).context(path.display())
    }

    /// Starts the daemons of these hosts together and waits until each says that it is up.
    ///
    /// # Errors
    /// Where one does not come up.
    pub fn start(&self, hosts: &[&Host]) -> Result<()> {
        self.start_as(hosts, |command| command)
    }

    /// Starts daemons as [`Mesh::start`] does, with the programs of an unpacked set at hand.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub fn start_with(&self, hosts: &[&Host], tree: &Tree) -> Result<()> {
        self.start_as(hosts, |command| command.with(tree))
    }

    fn start_as(&self, hosts: &[&Host], prepare: impl Fn(HostCommand) -> HostCommand) -> Result<()> {
        let mut started = Vec::new();
        for host in hosts {
            let daemon = Arc::new(prepare(self.meshd(host)).spawn()?);
            self.node(host, |node| node.daemon = Some(daemon.clone()))?;
            started.push(daemon);
        }
        started.iter().try_for_each(|daemon| daemon.wait_for_output(" is up", LIFECYCLE_LIMIT).map(drop))
    }

    /// Stops these hosts' daemons as an operator does, all at once, and returns how each ended.
    ///
    /// # Errors
    /// Where one does not run, or does not end in time.
    pub fn stop(&self, hosts: &[&Host]) -> Result<Vec<ExitStatus>> {
        let daemons: Vec<_> = hosts.iter().map(|host| self.take_daemon(host)).collect::<Result<_>>()?;
        daemons.iter().for_each(|daemon| daemon.signal(Signal::SIGTERM));
        daemons.iter().map(|daemon| daemon.wait(LIFECYCLE_LIMIT)).collect()
    }

    /// Kills a host's daemon, as `kill -9` does, and returns when it is gone.
    ///
    /// # Errors
    /// Where none runs.
    pub fn kill(&self, host: &Host) -> Result<()> {
        let daemon = self.take_daemon(host)?;
        daemon.signal(Signal::SIGKILL);
        daemon.wait(LIFECYCLE_LIMIT).map(drop)
    }

    /// Stops these hosts' daemons, and starts them together.
    ///
    /// # Errors
    /// As [`Mesh::stop`] and [`Mesh::start`].
    pub fn restart(&self, hosts: &[&Host]) -> Result<()> {
        self.stop(hosts)?;
        self.start(hosts)
    }

    /// Returns a host's running daemon.
    ///
    /// # Errors
    /// Where none runs.
    pub fn daemon(&self, host: &Host) -> Result<Arc<Proc>> {
        let none = || Error::failed(format!("no meshd runs on {}", host.name()));
        self.node(host, |node| node.daemon.clone())?.ok_or_else(none)
    }

    /// Returns the resident memory of a host's daemon in KiB.
    ///
    /// # Errors
    /// Where no daemon runs.
    pub fn resident_kib(&self, host: &Host) -> Result<u64> {
        let path = format!("/proc/{}/status", self.daemon(host)?.pid());
        let text = fs::read_to_string(&path).context(&path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
        number.ok_or_else(|| Error::failed(format!("{path} tells no VmRSS")))
    }

    /// Returns a host's addresses in the mesh.
    ///
    /// # Panics
    /// Where the host was not admitted: a bug in the test.
    pub fn overlay(&self, host: &Host) -> (Ipv4Addr, Ipv6Addr) {
        self.node(host, |node| (node.v4, node.v6)).expect("the test admitted this host")
    }

    /// The same, as sockets take them: IPv4 first.
    ///
    /// # Panics
    /// As [`Mesh::overlay`].
    pub fn addresses(&self, host: &Host) -> [IpAddr; 2] {
        let (v4, v6) = self.overlay(host);
        [v4.into(), v6.into()]
    }

    /// Returns what `meshctl --json status` tells on a host.
    ///
    /// # Errors
    /// Where the daemon does not answer.
    pub fn status(&self, host: &Host) -> Result<Status> {
        let told = self.ctl(host).args(["--json", "status"]).check()?;
        serde_json::from_str(&told).context(format_args!("the status of {}: {told}", host.name()))
    }

    /// Looks at a host's status until `look` says yes, and returns that status.
    ///
    /// # Errors
    /// Where the time runs out; with the last status.
    pub fn wait_for(&self, host: &Host, what: &str, limit: Duration, look: impl Fn(&Status) -> bool) -> Result<Status> {
        wait(format_args!("{} shows {what}", host.name()), limit, || {
            let status = self.status(host)?;
            Ok(if look(&status) { Look::Found(status) } else { Look::NotYet(brief(&status)) })
        })
    }

    /// Waits until each of these hosts shows all the others as up, with their round trips measured. Returns how long
    /// that took.
    ///
    /// # Errors
    /// Where the time runs out.
    pub fn wait_until_all_up(&self, hosts: &[&Host], limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        for host in hosts {
            let others: Vec<&str> =
                hosts.iter().map(|other| other.name()).filter(|name| *name != host.name()).collect();
            let left = (began + limit).saturating_duration_since(Instant::now());
            self.wait_for(host, &format!("{others:?} as up"), left, |status| {
                others.iter().all(|name| status.peers.iter().any(|peer| peer.name == *name && is_measured(peer)))
            })?;
        }
        Ok(began.elapsed())
    }

    /// Waits until each of these hosts shows `peer` in a state. Returns how long that took.
    ///
    /// # Errors
    /// Where the time runs out.
    pub fn wait_until_seen(&self, hosts: &[&Host], peer: &Host, state: PeerState, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        for host in hosts {
            let left = (began + limit).saturating_duration_since(Instant::now());
            self.wait_for(host, &format!("{} as {}", peer.name(), state.name()), left, |status| {
                peer_state(status, peer.name()) == Some(state)
            })?;
        }
        Ok(began.elapsed())
    }

    fn make_directory(&self, host: &Host) -> Result<()> {
        let directory = self.directory(host);
        fs::create_dir_all(&directory).context(format_args!("create {}", directory.display()))
    }

    fn enter(&self, host: &Host, told: &str) -> Result<()> {
        let Admitted { address_v4, address_v6 } = serde_json::from_str(told).context(told)?;
        let daemon = self.lock().remove(host.name()).and_then(|node| node.daemon);
        self.lock().insert(host.name().to_owned(), Node { v4: address_v4, v6: address_v6, daemon });
        Ok(())
    }

    fn take_daemon(&self, host: &Host) -> Result<Arc<Proc>> {
        let none = || Error::failed(format!("no meshd runs on {}", host.name()));
        self.node(host, |node| node.daemon.take())?.ok_or_else(none)
    }

    fn node<T>(&self, host: &Host, work: impl FnOnce(&mut Node) -> T) -> Result<T> {
        let mut nodes = self.lock();
        let node = nodes.get_mut(host.name());
        node.map(work).ok_or_else(|| Error::failed(format!("{} is not in this mesh", host.name())))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The overlay's range of every mesh here.
pub const OVERLAY: &str = "10.77.0.0/16";

/// Length of the IPv4 packet of a routine probe: the inner packet padded to 16 bytes, a WireGuard data message (32), UDP and
/// IPv4. Nothing else of an idle mesh has it.
pub const PROBE_PACKET: usize = (overlay::HEADER_LEN + probe::PROBE_LEN).next_multiple_of(16) + 32 + 8 + 20;

/// Length of the IPv4 packet of a full-size ping: the inner one is the interface's whole MTU, which no padding exceeds.
pub const FULL_SIZE_PACKET: usize = DEFAULT_MTU as usize + 32 + 8 + 20;

/// Returns a peer's state as a status shows it.
pub fn peer_state(status: &Status, name: &str) -> Option<PeerState> {
    status.peers.iter().find(|peer| peer.name == name).map(|peer| peer.state)
}

fn is_measured(peer: &meshd::api::PeerStatus) -> bool {
    // Probes lost while a daemon starts degrade a link for minutes; it answers all the same.
    peer.state.answers() && peer.link.is_some()
}

/// A status in one line, for the message of a failure.
pub fn brief(status: &Status) -> String {
    let peers: Vec<String> = status.peers.iter().map(|peer| format!("{} {}", peer.name, peer.state.name())).collect();
    let problems: Vec<&str> = status.problems.iter().map(|problem| problem.message.as_str()).collect();
    format!("peers {peers:?}, problems {problems:?}, drops {:?}", status.drops)
}

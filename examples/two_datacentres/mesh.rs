//! The hosts of the scene, and what an operator types on them. Every command is shown with what it printed.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use meshd::api::{Members, PeerState, Status};
use nix::sys::signal::Signal;

use crate::lab::error::Context;
use crate::lab::wan::WanPort;
use crate::lab::{Error, Firewall, Host, HostCommand, Open, Proc, Result, place};
use crate::stage::Stage;

/// The mesh's UDP port on every host.
pub const PORT: u16 = 7655;

/// Longer than anything here takes on a slow machine.
const LONG: Duration = Duration::from_secs(30);

/// Between two looks at a daemon's state, which it announces nowhere.
const GLANCE: Duration = Duration::from_millis(50);

/// Where a host's configuration is, from where its commands run; keys, certificate, state and socket lie beside it.
const CONFIG: &str = "mesh/meshd.toml";

/// The hosts and what runs on them.
pub struct Mesh<'a> {
    stage: &'a Stage,
    servers: Vec<Server>,
    meshd: PathBuf,
    meshctl: PathBuf,
}

struct Server {
    host: Host,
    port: WanPort,
    daemon: Mutex<Option<Proc>>,
}

impl<'a> Mesh<'a> {
    /// Starts without any host.
    pub fn new(stage: &'a Stage) -> Result<Self> {
        let (meshd, meshctl) = (place::binary("meshd")?, place::binary("meshctl")?);
        Ok(Mesh { stage, servers: Vec::new(), meshd, meshctl })
    }

    /// Adds a host and closes it to everything on its public interface but the mesh's UDP port.
    pub fn add(&mut self, host: Host, port: WanPort) -> Result<()> {
        match Firewall::new(&host) {
            Ok(firewall) => firewall.open_only(&port.dev, &[Open::Udp(PORT)])?,
            Err(error @ Error::NotRun(_)) => {
                self.stage.warn(&format!("{} is not firewalled: {error}", host.name()));
            }
            Err(error) => return Err(error),
        }
        std::fs::create_dir_all(host.dir().join("mesh")).context("make a host's directory")?;
        self.servers.push(Server { host, port, daemon: Mutex::new(None) });
        Ok(())
    }

    /// Shows what is there before anything of ours runs.
    pub fn introduce(&self) {
        for server in &self.servers {
            let Server { host, port, .. } = server;
            self.stage.say(&format!(
                "  {:<7}  {:<10}  open to the world: UDP {PORT}, nothing else",
                host.name(),
                port.v4
            ));
        }
        self.stage.aside("\nEach is a network namespace with a firewall; the internet between them is emulated.");
    }

    /// The first host founds the mesh.
    pub fn found(&self, name: &str) -> Result<()> {
        self.stage.scene(&format!("{name} founds the mesh"));
        let endpoint = self.endpoint(name);
        self.show(name, &["init", "--mesh", "shop", "--node", name, "--endpoint", &endpoint])?;
        self.start(name)
    }

    /// A host joins with a token, over the network.
    pub fn join(&self, name: &str, inviter: &str) -> Result<()> {
        self.stage.command(inviter, &format!("meshctl invite {name}"));
        let token = self.ctl(inviter).args(["invite", name]).check()?;
        // A token is a secret, and longer than a line.
        self.stage.output(&format!("{}…", token.get(..60).unwrap_or_default()));
        let endpoint = self.endpoint(name);
        self.stage.command(name, &format!("meshctl join - --endpoint {endpoint}   # the token comes by ssh"));
        let join = self.ctl(name).args(["join", "-", "--endpoint", &endpoint]).input(token);
        self.stage.output(&join.check()?);
        self.start(name)
    }

    /// A host is admitted by files alone, as Salt, Chef or Ansible would place them.
    pub fn admit_by_files(&self, name: &str, signer: &str) -> Result<()> {
        self.stage.scene(&format!("{name} is set up by configuration management: three files, no token"));
        let (endpoint, directory) = (self.endpoint(name), self.directory(name));
        self.stage.command(name, &format!("meshctl request --node {name} --endpoint {endpoint} > {name}.request"));
        let request = self.ctl(name).args(["request", "--node", name, "--endpoint", &endpoint]).check()?;
        self.stage.command(signer, &format!("meshctl sign {name}.request --authority mesh/authority.key > node.cert"));
        let authority = self.directory(signer).join("authority.key");
        let sign = self.ctl(signer).args(["sign", "-", "--authority"]).arg(authority).input(request);
        let certificate = sign.check()?;
        std::fs::write(directory.join("node.cert"), certificate).context("place the certificate")?;
        let configuration = self.configuration(name, signer)?;
        std::fs::write(directory.join("meshd.toml"), &configuration).context("place the configuration")?;
        self.stage.command(name, "cat mesh/meshd.toml   # from a template");
        self.stage.output(&configuration);
        self.stage.say("");
        self.show(name, &["check"])?;
        self.start(name)
    }

    /// The file that configuration management makes from its template: the mesh's section is the same everywhere.
    fn configuration(&self, name: &str, contact: &str) -> Result<String> {
        let founders =
            std::fs::read_to_string(self.directory(contact).join("meshd.toml")).context("read meshd.toml")?;
        let founders: toml::Table = founders.parse().context("read meshd.toml")?;
        let section: toml::Table = founders.into_iter().filter(|(key, _)| key == "mesh").collect();
        let members: Members = self.ask(contact, "members")?;
        let own = members.members.iter().find(|member| member.is_self);
        let key = own.map(|member| member.wireguard_key.as_str()).unwrap_or_default();
        Ok(format!(
            "node = \"{name}\"\n\n{section}\n[underlay]\nendpoints = [\"{}\"]\n\n\
             [[bootstrap]]\nname = \"{contact}\"\nkey = \"{key}\"\nendpoint = \"{}\"\n",
            self.endpoint(name),
            self.endpoint(contact),
        ))
    }

    fn start(&self, name: &str) -> Result<()> {
        self.stage.command(name, "meshd &");
        let daemon = self.server(name).host.command(&self.meshd).env("MESHD_CONFIG", CONFIG).spawn()?;
        self.stage.output(&daemon.wait_for_output(" is up", LONG)?);
        *self.lock(name) = Some(daemon);
        Ok(())
    }

    /// Kills a daemon as the kernel does when memory is short, shows what another host says of it, and starts it again.
    pub fn kill_and_restart(&self, name: &str, witness: &str) -> Result<()> {
        let Some(daemon) = self.lock(name).take() else { return Ok(()) };
        self.stage.command(name, &format!("kill -9 {}   # its meshd", daemon.pid()));
        daemon.signal(Signal::SIGKILL);
        daemon.wait(LONG)?;
        let is_down =
            |status: &Status| status.peers.iter().any(|peer| peer.name == name && peer.state == PeerState::Down);
        self.wait_for(witness, &format!("{name} as down"), is_down)?;
        self.stage.say("");
        self.show(witness, &["status"])?;
        self.stage.say("");
        self.start(name)?;
        let took = self.wait_until_all_are_up()?;
        self.stage.say(&format!("\nAll links are up again {} ms after that.", took.as_millis()));
        Ok(())
    }

    /// The whole mesh has formed.
    pub fn look_around(&self) -> Result<()> {
        let took = self.wait_until_all_are_up()?;
        self.stage.scene("Every host has found every other");
        let links = self.servers.len() * (self.servers.len() - 1) / 2;
        self.stage.say(&format!(
            "{links} links, up and measured at both ends {} ms after the last daemon was started.\n",
            took.as_millis()
        ));
        self.show("paris1", &["ping", "london2", "--count", "3", "--interval", "200ms"])
    }

    /// Waits until every host has every other as up and measured, and returns how long that took.
    pub fn wait_until_all_are_up(&self) -> Result<Duration> {
        let began = Instant::now();
        let all_up = |status: &Status| {
            // A degraded one answers; a busy machine is enough for that.
            let up = status.peers.iter().filter(|peer| peer.state.answers() && peer.link.is_some());
            up.count() == self.servers.len() - 1
        };
        for server in &self.servers {
            self.wait_for(server.host.name(), "all others as up", all_up)?;
        }
        Ok(began.elapsed())
    }

    fn wait_for(&self, name: &str, what: &str, look: impl Fn(&Status) -> bool) -> Result<()> {
        let began = Instant::now();
        while !look(&self.ask(name, "status")?) {
            if began.elapsed() > LONG {
                self.show(name, &["status"])?;
                return Err(Error::failed(format!("{name} did not see {what} within {LONG:?}")));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Runs meshctl on a host and shows it with what it printed.
    pub fn show(&self, name: &str, arguments: &[&str]) -> Result<()> {
        self.stage.command(name, &format!("meshctl {}", arguments.join(" ")));
        let printed = self.ctl(name).args(["--color", self.stage.color_argument()]).args(arguments).check()?;
        self.stage.output(&printed);
        Ok(())
    }

    /// Stops every daemon in order, and each removes what it made.
    pub fn stop(&self) -> Result<()> {
        let daemons: Vec<Proc> = self.servers.iter().filter_map(|server| take(&server.daemon)).collect();
        daemons.iter().for_each(|daemon| daemon.signal(Signal::SIGTERM));
        daemons.iter().try_for_each(|daemon| daemon.wait(LONG).map(drop))
    }

    /// Returns a host.
    pub fn host(&self, name: &str) -> &Host {
        &self.server(name).host
    }

    /// Returns a host's address in the mesh.
    pub fn overlay(&self, name: &str) -> Result<Ipv4Addr> {
        Ok(self.ask::<Status>(name, "status")?.node.address_v4)
    }

    /// Returns what to type in another terminal to look around: at the links of one host, and at another from there.
    pub fn hints(&self, name: &str, other: &str) -> Result<Vec<String>> {
        let meshctl = self.meshctl.display();
        let config = self.config(name);
        let config = config.display();
        let mut hints = vec![
            format!("  {meshctl} --config {config} status --watch"),
            format!("  {meshctl} --config {config} ping {other}"),
        ];
        if let Some(netns) = self.host(name).netns_name() {
            hints.push(format!(
                "  nsenter --net=/run/netns/{netns}   # a shell on {name}; {other} is {}",
                self.overlay(other)?
            ));
        }
        Ok(hints)
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, name: &str, what: &str) -> Result<T> {
        let told = self.ctl(name).args(["--json", what]).check()?;
        serde_json::from_str(&told).context(format_args!("meshctl {what} on {name}"))
    }

    /// meshctl on a host, as if the host were the only one: its configuration is where the environment says.
    fn ctl(&self, name: &str) -> HostCommand {
        let command = self.server(name).host.command(&self.meshctl).env("MESHD_CONFIG", CONFIG);
        command.env("COLUMNS", self.stage.width().to_string())
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.server(name).host.dir().join("mesh")
    }

    fn config(&self, name: &str) -> PathBuf {
        self.directory(name).join("meshd.toml")
    }

    fn endpoint(&self, name: &str) -> String {
        format!("{}:{PORT}", self.server(name).port.v4)
    }

    fn server(&self, name: &str) -> &Server {
        let found = self.servers.iter().find(|server| server.host.name() == name);
        found.expect("the scene names only hosts it has added")
    }

    fn lock(&self, name: &str) -> std::sync::MutexGuard<'_, Option<Proc>> {
        self.server(name).daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(daemon: &Mutex<Option<Proc>>) -> Option<Proc> {
    daemon.lock().unwrap_or_else(PoisonError::into_inner).take()
}

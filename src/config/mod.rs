//! `meshd.toml`: text in, validated values out; what changed between two of them; the commented file itself. Pure.
//!
//! [`Config::parse`] reports every error of a file at once, each with its place, the key and what was expected.
//! [`diff`] says which settings differ and whether a running daemon can take them. [`Config::to_toml`] writes the
//! commented file that `meshctl init` and `meshctl join` place, and [`keys::KEYS`] is the one list of keys that the
//! parser, the file and the manual share.
#![forbid(unsafe_code)]

pub mod alert;
pub mod allow;
mod api;
pub mod change;
pub mod duration;
mod entries;
pub mod forward;
mod gateway;
pub mod gateway_check;
mod history;
pub mod keys;
mod layers;
pub mod lockdown;
pub mod metrics;
pub mod names;
mod parse;
pub mod problem;
pub mod receiver;
mod security;
mod suggest;
mod template;
mod tunnel;
mod web;
mod wireguard;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::identity::{AnchorError, MeshId, NodeName, Tag, TrustAnchor, VerifyingKey, WireguardKey};

pub use alert::Alert;
pub use allow::{Allow, Selector, Service};
pub use api::Api;
pub use change::{Change, Effect, Setting, diff};
pub use entries::{Entry, EntryChange};
pub use forward::{Forward, ForwardSource, Target, TargetHost};
pub use gateway::Gateway;
pub use gateway_check::{CheckTarget, GatewayCheck};
pub use history::HistorySettings;
pub use layers::Layer;
pub use lockdown::{Lockdown, Opening};
pub use metrics::{Metrics, PerLink};
pub use names::{Alias, AliasTarget, Names, Resolver, Suffix};
pub use problem::{Problem, Problems};
pub use receiver::Receiver;
pub use security::{Landlock, Security};
pub use suggest::nearest;
pub use tunnel::{PostQuantum, TunnelSettings};
pub use web::Web;
pub use wireguard::Wireguard;

/// The UDP port a node listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7655;

/// The interface's default MTU in bytes: 1,500 less IPv6 (40), UDP (8) and WireGuard's data framing (32), so that a full
/// inner packet fits one underlay packet of an ordinary Ethernet over either family.
pub const DEFAULT_MTU: u16 = 1420;

/// Where a packaged daemon's configuration lies; files beside it follow the file-system hierarchy, see [`Files`].
pub const SYSTEM_DIRECTORY: &str = "/etc/meshd";

/// The file read when neither `--config` nor `MESHD_CONFIG` names one.
pub const DEFAULT_PATH: &str = "/etc/meshd/meshd.toml";

/// A whole, validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name; it must be the one in its certificate.
    pub node: NodeName,
    /// The mesh and who may admit nodes to it.
    pub mesh: Mesh,
    /// The sockets on the public network.
    pub underlay: Underlay,
    /// Members to greet before any other is known; at most [`Bootstrap::LIMIT`].
    pub bootstrap: Vec<Bootstrap>,
    /// Stock WireGuard peers of this node, in the order of the file; at most [`Wireguard::LIMIT`].
    pub wireguard: Vec<Wireguard>,
    /// What members may reach here, in the order of the file; everything where empty, at most [`Allow::LIMIT`].
    pub allow: Vec<Allow>,
    /// What everybody may reach on the underlay; everything that the host itself does not close where absent.
    pub lockdown: Option<Lockdown>,
    /// Forwards, in the order of the file; at most [`Forward::LIMIT`].
    pub forwards: Vec<Forward>,
    /// What is checked behind this node, in the order of the file; at most [`GatewayCheck::LIMIT`].
    pub gateway_checks: Vec<GatewayCheck>,
    /// How the members' names are answered.
    pub names: Names,
    /// Other names, in the order of the file; at most [`Alias::LIMIT`].
    pub aliases: Vec<Alias>,
    /// The TUN interface.
    pub interface: Interface,
    /// What is done for the networks that the certificate carries.
    pub gateway: Gateway,
    /// How packets are moved.
    pub dataplane: DataplaneSettings,
    /// How the tunnels to the other members are made.
    pub tunnel: TunnelSettings,
    /// Where things lie.
    pub files: Files,
    /// How links are measured.
    pub probe: Probe,
    /// What is kept of the links' past.
    pub history: HistorySettings,
    /// What monitors read.
    pub metrics: Metrics,
    /// When somebody is told, in the order of the file; at most [`Alert::LIMIT`]. Where this is empty and somebody is to be
    /// told, [`Alert::defaults`] hold.
    pub alerts: Vec<Alert>,
    /// Who is told, in the order of the file; at most [`Receiver::LIMIT`].
    pub receivers: Vec<Receiver>,
    /// What people look at.
    pub web: Web,
    /// Who else may ask the daemon.
    pub api: Api,
    /// What the daemon takes from itself.
    pub security: Security,
    /// What is logged.
    pub log: Log,
}

/// The trust anchor: what this node believes before it has heard from anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The mesh's name, for people: one DNS label.
    pub name: String,
    /// The mesh's identifier, drawn by `meshctl init`.
    pub id: MeshId,
    /// The IPv4 range of the overlay, between /8 and /29.
    pub overlay: Ipv4Net,
    /// The keys whose signature admits a node; 1 to
    /// [`TrustAnchor::MAX_AUTHORITIES`], no key twice.
    pub authorities: Vec<VerifyingKey>,
}

impl Mesh {
    /// Returns what this node believes, in the terms of identities.
    ///
    /// # Errors
    /// Values that make no mesh; a parsed configuration has none of them.
    pub fn trust_anchor(&self) -> Result<TrustAnchor, AnchorError> {
        TrustAnchor::new(self.id, &self.name, self.overlay, self.authorities.clone())
    }
}

/// The sockets on the public network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The address to listen on ([`Underlay::LISTEN_LIMIT`] of them). `[::]` takes IPv4 too.
    pub listen: Vec<SocketAddr>,
    /// Addresses announced to the other members, at most [`Underlay::ENDPOINT_LIMIT`]; empty where others cannot
    /// reach this node first.
    pub endpoints: Vec<SocketAddr>,
}

impl Underlay {
    /// Listening sockets: one, which serves both families on `[::]` and every uplink.
    pub const LISTEN_LIMIT: usize = 1;
    /// Endpoints at most: what a signed record can carry.
    pub const ENDPOINT_LIMIT: usize = 16;
}

/// A member this node can greet before it knows any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The member's name.
    pub name: NodeName,
    /// The member's WireGuard key, to which the introduction is sealed.
    pub key: WireguardKey,
    /// Where the member listens.
    pub endpoint: SocketAddr,
}

impl Bootstrap {
    /// Bootstrap members at most: any one that answers is enough, and each is greeted at start.
    pub const LIMIT: usize = 64;
}

/// The TUN interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name, 1 to 15 bytes.
    pub name: String,
    /// The interface's MTU in bytes, 1,280 (IPv6's minimum) to 9,000.
    pub mtu: u16,
}

/// How packets are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataplaneSettings {
    /// What the threads that move packets do when there are none.
    pub latency: Latency,
    /// How many threads move packets, 1 to [`MOST_SHARDS`](Self::MOST_SHARDS).
    pub shards: u8,
}

impl DataplaneSettings {
    /// Threads at most: what one of them moves is more than a sixteenth of the fastest network cards.
    pub const MOST_SHARDS: u8 = 16;
}

/// What is worth more: an idle core, or the time that waking it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Sleep whenever there is nothing to move.
    Normal,
    /// Look again for a moment before sleeping, while packets follow each other closely.
    Low,
}

impl Latency {
    /// Both, the default first.
    pub const ALL: [Latency; 2] = [Latency::Normal, Latency::Low];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Latency::Normal => "normal",
            Latency::Low => "low",
        }
    }
}

/// Where keys, state and the socket lie. Paths are absolute or relative to the working directory, never to the file.
///
/// A configuration in [`SYSTEM_DIRECTORY`] keeps its state in `/var/lib/meshd` and its socket in `/run/meshd`, one in a
/// directory NAME below it in directories NAME below those; one in any other directory keeps both there, so that several meshes, or a trial without root, need no further setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The node's private keys.
    pub identity: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// Where the daemon keeps what it learned.
    pub state_directory: PathBuf,
    /// The daemon's Unix socket.
    pub socket: PathBuf,
    /// The authority's key, on the node that answers invites and renewals.
    pub authority: Option<PathBuf>,
    /// A file holding the authority key's passphrase.
    pub authority_passphrase_file: Option<PathBuf>,
    /// What the authority has issued; beside the authority key unless given.
    pub ledger: Option<PathBuf>,
}

impl Files {
    /// Returns the places that follow from where the configuration file lies.
    pub fn beside(config: &Path) -> Files {
        let directory = directory_of(config);
        let (state_directory, socket) = match directory.strip_prefix(SYSTEM_DIRECTORY) {
            Ok(mesh) if mesh.components().count() <= 1 => {
                // By components, since joining nothing would end the path with a slash.
                let below = |place: &str| Path::new(place).components().chain(mesh.components()).collect::<PathBuf>();
                (below("/var/lib/meshd"), below("/run/meshd").join("meshd.sock"))
            }
            _ => (directory.join("state"), directory.join("meshd.sock")),
        };
        Files {
            identity: directory.join("identity.key"),
            certificate: directory.join("node.cert"),
            state_directory,
            socket,
            authority: None,
            authority_passphrase_file: None,
            ledger: None,
        }
    }

    /// Returns where the rules of a confirmed lock-down lie, for whoever loads them at boot.
    pub fn lockdown_path(&self) -> PathBuf {
        self.state_directory.join("lockdown.nft")
    }

    /// Returns where the ledger of this node's authority lies, or `None` where it has no authority.
    pub fn ledger_path(&self) -> Option<PathBuf> {
        self.ledger.clone().or_else(|| self.authority.as_deref().map(ledger_beside))
    }
}

/// Returns the ledger's place beside an authority key: `authority.key` keeps its ledger in `authority.ledger`.
pub fn ledger_beside(authority: &Path) -> PathBuf {
    authority.with_extension("ledger")
}

/// Returns the lock of a ledger, beside it: a file of its own, because the ledger's is replaced at each writing. The daemon
/// and `meshctl` take the same one, so that no address is given out twice.
pub fn ledger_lock(ledger: &Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// Returns the directory a file lies in; `.` for a bare name.
pub fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// How links are measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Time between two probes of a link, 100 ms to 60 s.
    pub interval: Duration,
    /// Tags of nodes whose links are probed five times a second, at most [`Probe::CRITICAL_TAGS_LIMIT`].
    pub critical_tags: Vec<Tag>,
}

impl Probe {
    /// Critical tags at most: as many as a certificate has.
    pub const CRITICAL_TAGS_LIMIT: usize = 16;
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is still written.
    pub level: Level,
}

/// A log level, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed that an operator must look at.
    Error,
    /// Something is wrong but handled.
    Warn,
    /// What an operator wants to read later.
    Info,
    /// What a developer wants to read.
    Debug,
    /// Every step.
    Trace,
}

impl Level {
    /// All levels, most important first.
    pub const ALL: [Level; 5] = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];

    /// The level's name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        }
    }
}

impl Config {
    /// Reads a configuration.
    ///
    /// `path` is where the text came from: it is named in errors, and default and relative places follow from its
    /// directory ([`Files::beside`]).
    ///
    /// # Errors
    /// Every problem of the text, in the order of the text.
    pub fn parse(text: &str, path: &Path) -> Result<Config, Problems> {
        Config::parse_layers(&[Layer { path, text }])
    }

    /// Reads a configuration that stands in several files: the main one, and drop-ins laid over it. A drop-in's keys
    /// replace those before it, and its entries of `[[lists]]` are added. Places follow from the main file's directory.
    ///
    /// # Errors
    /// As [`Config::parse`], by file.
    pub fn parse_layers(layers: &[Layer<'_>]) -> Result<Config, Problems> {
        parse::parse(layers)
    }

    /// Returns where the files of a configuration are, however much else is wrong with it: a daemon that goes on with
    /// what it had must be found also then. What the text does not say, or says wrongly, is at its default.
    pub fn files_of(layers: &[Layer<'_>]) -> Files {
        parse::files(layers)
    }

    /// Returns a configuration with every optional key at its default.
    pub fn new(node: NodeName, mesh: Mesh, path: &Path) -> Config {
        Config {
            node,
            mesh,
            underlay: Underlay { listen: vec![default_listen()], endpoints: Vec::new() },
            bootstrap: Vec::new(),
            wireguard: Vec::new(),
            allow: Vec::new(),
            lockdown: None,
            forwards: Vec::new(),
            gateway_checks: Vec::new(),
            names: Names::default(),
            aliases: Vec::new(),
            interface: Interface { name: "mesh0".to_owned(), mtu: DEFAULT_MTU },
            gateway: Gateway::default(),
            dataplane: DataplaneSettings { latency: Latency::Normal, shards: 1 },
            tunnel: TunnelSettings::default(),
            files: Files::beside(path),
            probe: Probe { interval: Duration::from_secs(1), critical_tags: Vec::new() },
            history: HistorySettings::default(),
            metrics: Metrics::default(),
            alerts: Vec::new(),
            receivers: Vec::new(),
            web: Web::default(),
            api: Api::default(),
            security: Security::default(),
            log: Log { level: Level::Info },
        }
    }

    /// Renders the commented file: values that differ from their default as keys, the others as comments.
    ///
    /// `path` is where the file will lie. The text parses back to the same configuration.
    pub fn to_toml(&self, path: &Path) -> String {
        template::render(self, path, template::Defaults::Commented)
    }

    /// Renders the file with every key written out, defaults too; the shipped example is made of it.
    pub fn to_toml_in_full(&self, path: &Path) -> String {
        template::render(self, path, template::Defaults::Written)
    }
}

/// The socket of a node that names none: every address of both families.
fn default_listen() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_PORT))
}

#[cfg(test)]
mod tests;

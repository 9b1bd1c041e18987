//! From a configuration file to a running node, and the way back.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::backend::LocalBackend;
use super::confinement::Confinement;
use super::device::{Kept, find_orphan};
use super::driver::{Driver, Parts};
use super::firewall::{self, Firewall};
use super::forwards::Forwards;
use super::ledger::Ledger;
use super::links::Links;
use super::pages::Pages;
use super::ports::{LANES, OpenPorts};
use super::restart::{Ended, config_again};
use super::service::Service;
use super::signals::Signals;
use super::state::StateFiles;
use super::stock::read_declared;
use super::tools::Tools;
use super::underlay;
use crate::api::{self, Server};
use crate::config::{Config, HistorySettings, Landlock, Latency, Level};
use crate::control::{BootstrapPeer, Engine, OwnNode, Settings};
use crate::dataplane::{self, Dataplane, Habits, Local, queues};
use crate::history::Writer;
use crate::identity::{Authority, NodeKeys, SignedCertificate, TrustAnchor, Validity};
use crate::platform::file::{self, FileError};
use crate::platform::handover::{Handover, Program};
use crate::platform::host_watch::HostWatch;
use crate::platform::netlink::{self, HostError};
use crate::platform::nftables::NftError;
use crate::platform::notify;
use crate::platform::privileges::{self, Capability};
use crate::platform::scheduling::ask_for_promptness;
use crate::platform::steering::Steering;
use crate::platform::tun::TunError;
use crate::platform::{clock, random};
use crate::policy::digest;
use crate::time::UnixTime;
use crate::tunnel;

/// Bytes of a key, certificate or authority file at most.
const IDENTITY_LIMIT: u64 = 64 << 10;
/// When after a planned restart, which leaves them as they are, the tables of the packet filter are looked at: other things are
/// urgent until the sessions stand.
const FIREWALL_PAUSE: Duration = Duration::from_secs(1);
/// Commands of the local interface that wait: more than its clients.
const COMMANDS: usize = 128;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is there and says the wrong thing.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A stock WireGuard peer cannot be as it is declared.
    #[error("[[wireguard]] {peer}: {why}")]
    Wireguard {
        /// The peer.
        peer: crate::identity::NodeName,
        /// What is wrong with it.
        why: String,
    },
    /// A page, or names, are to be served where they may not be.
    #[error("{0}")]
    Pages(String),
    /// The device cannot be made.
    #[error(transparent)]
    Device(#[from] TunError),
    /// The port cannot be bound.
    #[error("cannot listen on {address}: {source} (is another meshd running, or the address not on this host?)")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Netlink is not there.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A lock-down is wanted, and this host cannot do it.
    #[error("{0}")]
    Lockdown(String),
    /// The packet filter refuses.
    #[error(transparent)]
    Firewall(#[from] NftError),
    /// The device went while the daemon ran.
    #[error("the device {0} was deleted by somebody else; start meshd again")]
    DeviceGone(String),
    /// The data threads did not start.
    #[error(transparent)]
    Threads(#[from] dataplane::StartError),
    /// The socket for meshctl cannot be made.
    #[error(transparent)]
    Socket(#[from] api::BindError),
    /// The system gives no randomness, runtime or signals.
    #[error("the system refuses {what}: {why}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        why: String,
    },
}

/// Everything a node is, as its files say.
struct Identity {
    keys: NodeKeys,
    certificate: SignedCertificate,
    anchor: TrustAnchor,
    authority: Option<Authority>,
}

/// Runs a node until it is told to stop, or is replaced by the next program.
///
/// # Errors
/// [`StartError`], with nothing left behind on the host.
pub fn run(config: Config, config_path: &Path) -> Result<(), StartError> {
    let (program, mut inherited) = (Program::running().ok(), Handover::take().or_else(notify::stored));
    start_log(config.log.level);
    // Before privileges are given up, and before any other thread, which inherits it. What is not granted costs speed alone.
    tracing::debug!("promptness: {}", ask_for_promptness());
    let mut steering = Steering::load(config.dataplane.shards, LANES);
    // Before any other thread: capabilities belong to threads.
    let keep = [Capability::NetAdmin, Capability::NetBindService];
    match privileges::give_up(&keep) {
        Ok(reached) if reached.is_complete() => tracing::debug!("privileges given up: {reached}"),
        Ok(reached) => tracing::warn!("not all privileges could be given up: {reached}"),
        Err(error) => tracing::warn!("privileges were not given up: {error}"),
    }
    // Before any other thread, too.
    let confinement = Confinement::enter(&config);
    let runtime = runtime()?;
    let mut config = config;
    loop {
        let known = config.clone();
        let confinement = confinement.clone();
        let origin = Origin { path: config_path, program: program.clone(), inherited, confinement };
        let Some(handover) = runtime.block_on(serve(config, origin, &steering))? else { return Ok(()) };
        let Some(program) = &program else { return Ok(()) };
        // Nothing returns from here but a failure; the program that is there then takes over from itself.
        let error = handover.execute(program);
        tracing::error!("{program} cannot be executed ({error}): the same program goes on");
        config = config_again(config_path, &known);
        steering = Err(io::ErrorKind::PermissionDenied.into());
        inherited = Some(handover);
    }
}

/// Where a daemon comes from.
struct Origin<'a> {
    /// The configuration file.
    path: &'a Path,
    /// What a planned restart executes.
    program: Option<Program>,
    /// What the program before this one left.
    inherited: Option<Handover>,
    /// What the kernel refuses.
    confinement: Confinement,
}

/// Removes everything of ours from the host that a crashed predecessor left: routes and covers, devices, and tables of the packet
/// filter except a lock-down. Returns how many routes and devices there were, and how many tables.
///
/// # Errors
/// Netlink or `nft` is not there, or refuses.
pub fn cleanup() -> Result<(usize, usize), StartError> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let host = netlink::Host::connect()?;
        let devices = host.remove_orphans().await?;
        Ok((devices + host.cleanup().await?, firewall::cleanup().await?))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::System { what: "an event loop", why: error.to_string() })
}

/// The level of what is logged, which a reload may change.
static LOG_LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn start_log(level: Level) {
    let (filter, handle) = reload::Layer::new(log_filter(level));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    // A second start in one process (a test) keeps the first log.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LOG_LEVEL.set(handle);
    }
}

/// Changes what is logged from now on.
pub(super) fn set_log_level(level: Level) {
    if let Some(handle) = LOG_LEVEL.get()
        && let Err(error) = handle.reload(log_filter(level))
    {
        tracing::warn!("the log level stays as it was: {error}");
    }
}

/// Our own lines from `level` on; those of the crates below us only where something failed.
fn log_filter(level: Level) -> EnvFilter {
    EnvFilter::new(format!("error,meshd={}", level.name()))
}

/// The members that a configuration names.
pub(super) fn bootstrap(config: &Config) -> Vec<BootstrapPeer> {
    config.bootstrap.iter().map(|named| BootstrapPeer { key: named.key, endpoint: named.endpoint }).collect()
}

/// Serves until it is told to stop, or else returns what the next program takes over.
async fn serve(
    config: Config,
    origin: Origin<'_>,
    steering: &io::Result<Steering>,
) -> Result<Option<Handover>, StartError> {
    let Origin { path: config_path, program, inherited, confinement } = origin;
    let (now, wall) = (clock::now(), clock::wall());
    let identity = load_identity(&config)?;
    let readers = reader_group(&config, config_path)?;
    let stocks = read_declared(&config, identity.certificate.certificate())?;
    super::pages::check(&config, identity.certificate.certificate()).map_err(StartError::Pages)?;
    super::names::check(&config, identity.certificate.certificate()).map_err(StartError::Pages)?;
    let mut files = StateFiles::open(&config.files.state_directory, &config.files.certificate)?;
    let found = files.load(&identity.anchor, wall);
    let listen = config.underlay.listen.first().copied().unwrap_or_else(|| ([0, 0, 0, 0], 7655).into());
    let restarts = inherited.as_ref().map_or(0, |handover| handover.restarts);
    let netlink = netlink::Host::connect()?;
    let mut service = Service::find();
    let owner = identity.certificate.certificate().node.to_string();
    let (ports, taken_over) = open_ports(&config, listen, inherited, steering, &netlink, &service, &owner).await?;
    let shards = ports.count();
    let handover = ports
        .hand_over(restarts)
        .map_err(|error| StartError::System { what: "descriptors for a restart", why: error.to_string() })?;
    service.store(&handover);
    let OpenPorts { shards: ports, interface, bound } = ports;
    let firewall = Firewall::find(&config, &interface, identity.certificate.certificate(), bound, now)?;
    let _kept = Kept::keep(&netlink, &ports, &owner).await;
    let watch = HostWatch::start(&interface)?;
    let signals = Signals::listen()?;
    let seed = || random::seed().map_err(|error| StartError::System { what: "randomness", why: error.to_string() });
    let host = tunnel::Host::new(x25519_dalek::StaticSecret::from(*identity.keys.wireguard.to_bytes()), *seed()?);
    host.import_marks(found.marks);
    let certificate = identity.certificate.certificate();
    let local = Local {
        address_v4: certificate.address_v4,
        address_v6: certificate.address_v6,
        overlay_v4: certificate.overlay_v4,
        overlay_v6: certificate.overlay_v6,
        prefixes: certificate.prefixes.clone(),
        relays: certificate.permissions.relay,
    };
    let links = Links::new(host, local, config.interface.mtu, shards);
    let (name, mesh) = (certificate.name.clone(), identity.anchor.mesh_name.clone());
    let own = OwnNode {
        keys: identity.keys,
        certificate: identity.certificate,
        anchor: identity.anchor,
        authority: identity.authority,
        invites: found.invites,
    };
    let settings = Settings {
        probe_interval: config.probe.interval,
        endpoints: underlay::endpoints(&config, bound, &interface),
        addresses: underlay::addresses(bound, &interface),
        mtu: config.interface.mtu,
        bootstrap: bootstrap(&config),
        post_quantum: config.tunnel.pq,
        key_renewal: config.tunnel.pq_renewal,
    };
    let mut engine = Engine::new(own, settings, found.snapshot, *seed()?, now, wall);
    engine.set_critical_tags(config.probe.critical_tags.clone(), now);
    engine.set_policy(digest(&config.mesh.id, &config.allow), now, wall);
    let server = Server::bind(&config.files.socket, readers)?;
    let config_path = config_path.to_path_buf();
    let polls = config.dataplane.latency == Latency::Low;
    let confined = config.security.landlock == Landlock::Auto;
    let habits = Habits { polls, longest_sleep: service.longest_sleep(), confined };
    let history = start_history(&config, wall)?;
    let parts = Parts {
        config,
        config_path,
        program,
        restarts,
        bound,
        engine,
        links,
        stocks,
        files,
        host: netlink,
        firewall,
        interface,
        service,
        history,
        confinement,
    };
    let mut driver = Driver::new(parts, now, wall);
    driver.declare_stocks();
    if restarts > 0 {
        driver.firewall.put_off(now + FIREWALL_PAUSE);
    } else {
        // First, so that no address of the mesh is there without it.
        driver.keep_firewall().await;
    }
    driver.apply_host().await;
    if taken_over {
        driver.engine.make_haste(now);
    }
    // The members known from before are peers before the first packet is read, which would have no route else.
    driver.drain();
    let (senders, receivers) = queues();
    let table = Arc::clone(driver.links.table());
    let host = Arc::clone(driver.links.host());
    driver.dataplane = Some(Dataplane::start(ports, &table, &host, &senders, habits)?);
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    driver.start_checks(commands.clone());
    let backend = Arc::new(LocalBackend::new(commands));
    let mut pages = Pages::new(Arc::clone(&backend), driver.engine.certificate().certificate());
    pages.serve(&driver.config);
    driver.start_alerts();
    driver.pages = Some(pages);
    driver.ledger = Ledger::new(found.usage);
    driver.restore_drain(found.drained);
    driver.forwards = Forwards::new(found.switches);
    driver.forwards.start(&driver.config);
    driver.name_targets();
    driver.clear_names().await;
    driver.publish_names();
    let (stop_server, server_stopped) = tokio::sync::oneshot::channel::<()>();
    let tools = Tools::serve(&driver.interface, Arc::clone(&backend));
    let serving = tokio::spawn(server.serve(backend, async {
        let _ = server_stopped.await;
    }));
    tracing::info!(node = %name, %mesh, %listen, "meshd {} is up", env!("CARGO_PKG_VERSION"));
    let ended = driver.run(receivers, command_queue, watch, signals).await;
    match ended {
        Ok(Ended::Restart) => tracing::info!("restarting in place"),
        _ => {
            tracing::info!("stopping");
            driver.service.stopping();
        }
    }
    let _ = stop_server.send(());
    let _ = serving.await;
    tools.stop().await;
    driver.shut_down(*ended.as_ref().unwrap_or(&Ended::Stop)).await;
    Ok((ended? == Ended::Restart).then_some(handover))
}

/// Takes over the device and the port from the program before this one, however it ended; makes what is not there. Says
/// whether the device was there.
async fn open_ports(
    config: &Config,
    listen: SocketAddr,
    inherited: Option<Handover>,
    steering: &io::Result<Steering>,
    host: &netlink::Host,
    service: &Service,
    owner: &str,
) -> Result<(OpenPorts, bool), StartError> {
    let pattern = &config.interface.name;
    if let Some(handover) = inherited {
        if let Some(ports) = OpenPorts::adopt(handover, pattern, listen) {
            return Ok((ports, true));
        }
        // The names are free only once nobody holds them.
        service.forget();
    }
    let open = |name: &str| OpenPorts::open(name, listen, config.dataplane.shards, steering);
    let Some(orphan) = find_orphan(host, pattern, owner).await? else { return Ok((open(pattern)?, false)) };
    match open(&orphan.name) {
        Ok(ports) => {
            tracing::info!("{}: taken over from a daemon that did not stop", orphan.name);
            Ok((ports, true))
        }
        // It was made otherwise than it would be now.
        Err(StartError::Device(error)) => {
            tracing::warn!("{}: made anew, and connections stand still for a moment: {error}", orphan.name);
            host.remove_device(&orphan).await?;
            Ok((open(pattern)?, false))
        }
        Err(error) => Err(error),
    }
}

/// The number of the group that may look.
fn reader_group(config: &Config, config_path: &Path) -> Result<Option<u32>, StartError> {
    let Some(name) = &config.api.group else { return Ok(None) };
    let why = match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => return Ok(Some(group.gid.as_raw())),
        Ok(None) => format!("api.group: this host has no group `{name}`; make it with `groupadd --system {name}`"),
        Err(error) => format!("api.group: the groups of this host cannot be read: {}", error.desc()),
    };
    Err(StartError::Content { path: config_path.display().to_string(), why })
}

/// Starts recording the links' past, where that is wanted. What is wrong with its file is no reason not to start.
fn start_history(config: &Config, wall: UnixTime) -> Result<Option<Writer>, StartError> {
    if !config.history.enabled {
        return Ok(None);
    }
    let file = config.files.state_directory.join(HistorySettings::FILE);
    let system = |error: std::io::Error| StartError::System { what: "a thread", why: error.to_string() };
    Writer::start(&file, config.history.max_size, wall).map(Some).map_err(system)
}

/// Reads what this node is. Nothing here is ever made anew: a node without its keys is for its operator to decide about.
fn load_identity(config: &Config) -> Result<Identity, StartError> {
    let content = |path: &Path, why: String| StartError::Content { path: path.display().to_string(), why };
    let text = |path: &Path, bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| content(path, "it is not text".to_owned()))
    };
    let files = &config.files;
    let anchor = config.mesh.trust_anchor().map_err(|error| content(&files.certificate, error.to_string()))?;
    let secret = file::read_private(&files.identity, IDENTITY_LIMIT)?;
    let keys = std::str::from_utf8(&secret)
        .map_err(|_| content(&files.identity, "it is not text".to_owned()))
        .and_then(|text| NodeKeys::from_armor(text).map_err(|error| content(&files.identity, error.to_string())))?;
    let armor = text(&files.certificate, &file::read(&files.certificate, IDENTITY_LIMIT)?)?;
    let certificate = SignedCertificate::from_armor(&armor, &anchor)
        .map_err(|error| content(&files.certificate, error.to_string()))?;
    let shown = certificate.certificate();
    if shown.keys() != keys.public() {
        let why = format!("it was issued for other keys than those in {}", files.identity.display());
        return Err(content(&files.certificate, why));
    }
    if shown.name != config.node {
        let why = format!("it names this node `{}`, but the configuration says `{}`", shown.name, config.node);
        return Err(content(&files.certificate, why));
    }
    if certificate.validity(clock::wall()) == Validity::Expired {
        tracing::warn!(
            "this node's certificate expired on {}; renew it with `meshctl request` and `meshctl sign`",
            shown.not_after
        );
    }
    let authority = match &files.authority {
        Some(path) => Some(load_authority(path, files.authority_passphrase_file.as_deref())?),
        None => None,
    };
    if let Some(authority) = &authority
        && !anchor.authorities.contains(&authority.public())
    {
        let path = files.authority.as_deref().unwrap_or(Path::new("authority"));
        return Err(content(path, "its key is not among the authorities that the configuration trusts".to_owned()));
    }
    Ok(Identity { keys, certificate, anchor, authority })
}

/// Reads an authority's key file, with the passphrase in another file where it needs one.
pub(crate) fn load_authority(path: &Path, passphrase_file: Option<&Path>) -> Result<Authority, StartError> {
    let content = |why: String| StartError::Content { path: path.display().to_string(), why };
    let bytes = file::read_private(path, IDENTITY_LIMIT)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| content("it is not text".to_owned()))?;
    let passphrase = passphrase_file.map(|file| file::read_private(file, IDENTITY_LIMIT)).transpose()?;
    let first_line = passphrase.as_ref().map(|bytes| bytes.split(|byte| *byte == b'\n').next().unwrap_or_default());
    Authority::from_armor(text, first_line).map_err(|error| content(error.to_string()))
}

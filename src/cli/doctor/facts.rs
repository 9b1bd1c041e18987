//! What `meshctl doctor` judges by.

use std::path::{Path, PathBuf};

use super::super::context::{Context, read_config};
use super::super::lockdown::{Other, dropped_by_others};
use crate::api::{ClientError, Status};
use crate::config::{Config, Receiver, receiver::ReceiverKind};
use crate::platform::file::{self, FileError};
use crate::platform::host_facts;
use crate::platform::nftables::Nft;
use crate::policy::Purpose;

/// Bytes of a private file at most: the largest is a ledger of some thousand nodes.
const PRIVATE_LIMIT: u64 = 16 << 20;

/// Everything that is looked at, as it was found.
pub(super) struct Facts {
    /// The kernel's release.
    pub(super) kernel: Option<String>,
    /// Whether somebody keeps the clock right.
    pub(super) clock_is_disciplined: Option<bool>,
    /// What opening the tunnel's device gave.
    pub(super) tun: Result<(), String>,
    /// The table that keeps the mesh's addresses apart.
    pub(super) addresses: AddressTable,
    /// Whether IPv4 and IPv6 are forwarded.
    pub(super) forwards: [Option<bool>; 2],
    /// The strictest of the kernel's reverse path settings for IPv4: 0 is none.
    pub(super) reverse_path: Option<String>,
    /// The configuration, or what is wrong with it.
    pub(super) config: Result<Config, String>,
    /// Private files that are not as they must be.
    pub(super) files: Vec<FileTrouble>,
    /// Bytes free where the state lies.
    pub(super) free_bytes: Option<u64>,
    /// What the packet filter's other tables drop of what is to come in; `None` without `nft`, or a configuration.
    pub(super) others: Option<Result<Vec<Other>, String>>,
    /// What the daemon says.
    pub(super) daemon: Daemon,
}

/// What there is of the table that drops what bears an address of the mesh and arrives elsewhere.
pub(super) enum AddressTable {
    /// This host has no `nft`.
    NoProgram,
    /// It is there, under this name.
    There(String),
    /// There is none of this name.
    Missing(String),
    /// It is not told, for this reason.
    Untold(String),
}

/// A private file and what is wrong with it.
pub(super) struct FileTrouble {
    pub(super) path: PathBuf,
    pub(super) why: String,
    /// It may only be this user who cannot read it.
    pub(super) is_permission: bool,
}

/// Whether a daemon answers.
pub(super) enum Daemon {
    /// It does.
    Up(Box<Status>),
    /// Nobody answers, for this reason.
    Down(String),
    /// This user may not ask.
    Closed(String),
}

impl Facts {
    /// Looks at everything.
    pub(super) async fn gather(context: &Context) -> Facts {
        let config = read_config(&context.config).map_err(|failure| match &failure.problems {
            Some(problems) => problems.to_string(),
            None => failure.message.clone(),
        });
        let forwards = |name: &str| host_facts::parameter(name).map(|value| value != "0");
        Facts {
            kernel: host_facts::kernel_release().ok(),
            clock_is_disciplined: host_facts::clock_is_disciplined().ok(),
            tun: host_facts::open_tun().map_err(|error| error.to_string()),
            addresses: look_at_addresses(config.as_ref().ok()).await,
            forwards: [forwards("net.ipv4.ip_forward"), forwards("net.ipv6.conf.all.forwarding")],
            reverse_path: host_facts::parameter("net.ipv4.conf.all.rp_filter"),
            files: config.as_ref().map(look_at_files).unwrap_or_default(),
            free_bytes: config.as_ref().ok().and_then(|c| host_facts::free_bytes(&c.files.state_directory).ok()),
            others: look_at_others(config.as_ref().ok()).await,
            daemon: ask(context).await,
            config,
        }
    }
}

async fn look_at_addresses(config: Option<&Config>) -> AddressTable {
    let Some(nft) = Nft::find() else { return AddressTable::NoProgram };
    let Some(config) = config else { return AddressTable::Untold("the interface is not known".to_owned()) };
    let name = Purpose::Addresses.table(&config.interface.name);
    match nft.table(&name).await {
        Ok(Some(_)) => AddressTable::There(name),
        Ok(None) => AddressTable::Missing(name),
        Err(error) => AddressTable::Untold(error.to_string()),
    }
}

async fn look_at_others(config: Option<&Config>) -> Option<Result<Vec<Other>, String>> {
    let (Some(config), Some(nft)) = (config, Nft::find()) else { return None };
    Some(dropped_by_others(config, &nft).await)
}

async fn ask(context: &Context) -> Daemon {
    let client = match context.client() {
        Ok(client) => client,
        Err(failure) => return Daemon::Down(failure.message),
    };
    match client.status().await {
        Ok(status) => Daemon::Up(Box::new(status)),
        Err(error @ (ClientError::Forbidden { .. } | ClientError::Refused(_))) => Daemon::Closed(error.to_string()),
        Err(error) => Daemon::Down(error.to_string()),
    }
}

/// Reads every private file of a configuration, as the daemon does.
fn look_at_files(config: &Config) -> Vec<FileTrouble> {
    let files = &config.files;
    let preshared = config.wireguard.iter().filter_map(|peer| peer.preshared_key_file.as_deref());
    let header = |receiver: &Receiver| match &receiver.kind {
        ReceiverKind::Webhook(http) | ReceiverKind::Alertmanager(http) => http.header_file.clone(),
        ReceiverKind::Command(_) => None,
    };
    let headers: Vec<PathBuf> = config.receivers.iter().filter_map(header).collect();
    let authority = [files.authority.as_deref(), files.authority_passphrase_file.as_deref()];
    let needed = [Some(files.identity.as_path())].into_iter().chain(authority).flatten();
    let all = needed.chain(preshared).chain(headers.iter().map(PathBuf::as_path));
    let mut troubles: Vec<FileTrouble> =
        all.filter_map(|path| trouble(path, file::read_private(path, PRIVATE_LIMIT))).collect();
    troubles.extend(trouble(&files.certificate, file::read(&files.certificate, PRIVATE_LIMIT)));
    troubles
}

fn trouble<T>(path: &Path, read: Result<T, FileError>) -> Option<FileTrouble> {
    let error = read.err()?;
    let is_permission =
        matches!(&error, FileError::System { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied);
    Some(FileTrouble { path: path.to_path_buf(), why: error.to_string(), is_permission })
}

//! A stock WireGuard peer of this node, as `[[wireguard]]` declares it.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::template::quoted;
use super::{Bootstrap, duration};
use crate::identity::{NodeName, TrustAnchor, WireguardKey, is_reserved, overlap};

/// A phone, a router, a kernel's own WireGuard: it knows nothing of the mesh and has a tunnel to this node alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wireguard {
    /// Its name, on this node only.
    pub name: NodeName,
    /// Its public key.
    pub public_key: WireguardKey,
    /// What it may send from and is reached at; 1 to [`Wireguard::ADDRESS_LIMIT`], without host bits. A single address
    /// has full length.
    pub addresses: Vec<IpNet>,
    /// Where it listens, if it has a fixed place.
    pub endpoint: Option<SocketAddr>,
    /// A file with the pre-shared key in base64.
    pub preshared_key_file: Option<PathBuf>,
    /// How often this node sends at least something, in whole seconds, 1 s to 1 h.
    pub persistent_keepalive: Option<Duration>,
}

impl Wireguard {
    /// Peers at most: the devices of a small company at one node. Each costs a tunnel (11 KB with a session) and a turn
    /// in the lists that the control task walks.
    pub const LIMIT: usize = 256;
    /// Addresses and prefixes of one peer at most: both families and the networks behind a site's router.
    pub const ADDRESS_LIMIT: usize = 16;

    /// Renders the peer as a `[[wireguard]]` entry; paths below `directory` relative to it.
    pub fn to_toml(&self, directory: &Path) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(|network| quoted(shown(network))).collect();
        let mut out = String::from("[[wireguard]]\n");
        let mut line = |key: &str, value: String| {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{key} = {value}");
        };
        line("name", quoted(self.name.to_string()));
        line("public_key", quoted(self.public_key.to_string()));
        line("addresses", format!("[{}]", addresses.join(", ")));
        if let Some(endpoint) = self.endpoint {
            line("endpoint", quoted(endpoint.to_string()));
        }
        if let Some(file) = &self.preshared_key_file {
            line("preshared_key_file", quoted(file.strip_prefix(directory).unwrap_or(file).to_string_lossy()));
        }
        if let Some(interval) = self.persistent_keepalive {
            line("persistent_keepalive", quoted(duration::format(interval)));
        }
        out
    }

    /// What of this entry cannot stand beside the rest of the file: keys with what is wrong.
    pub(super) fn clashes(
        &self,
        node: Option<&NodeName>,
        bootstrap: &[Bootstrap],
        above: &[Wireguard],
    ) -> Vec<(&'static str, String)> {
        let mut clashes = Vec::new();
        if node == Some(&self.name) {
            clashes.push(("name", "it is this node's own name".to_owned()));
        }
        if let Some(member) = bootstrap.iter().find(|member| member.name == self.name) {
            clashes.push(("name", format!("`{}` is a member of the mesh, see [[bootstrap]]", member.name)));
        }
        if let Some(member) = bootstrap.iter().find(|member| member.key == self.public_key) {
            clashes.push(("public_key", format!("it is the key of `{}`, a member of the mesh", member.name)));
        }
        if above.iter().any(|other| other.name == self.name) {
            clashes.push(("name", "an entry above has the same name".to_owned()));
        }
        if let Some(other) = above.iter().find(|other| other.public_key == self.public_key) {
            clashes.push(("public_key", format!("`{}` above has the same key", other.name)));
        }
        for network in &self.addresses {
            let taken = above.iter().flat_map(|other| other.addresses.iter().map(move |theirs| (other, theirs)));
            if let Some((other, theirs)) = taken.into_iter().find(|(_, theirs)| overlap(theirs, network)) {
                let (network, theirs) = (shown(network), shown(theirs));
                clashes.push(("addresses", format!("{network} overlaps {theirs} of `{}` above", other.name)));
            }
        }
        if let Some(endpoint) = self.endpoint
            && let Some(network) = self.addresses.iter().find(|network| network.contains(&endpoint.ip().to_canonical()))
        {
            clashes.push(("endpoint", format!("it lies in {}, which is reached through it", shown(network))));
        }
        clashes
    }
}

/// A network as people write it: an address alone where it is one.
pub(super) fn shown(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

/// Reads an address or a prefix of a stock peer.
pub(super) fn network(text: &str, anchor: Option<&TrustAnchor>) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = address.or_else(|_| text.parse::<IpNet>()).map_err(|_| format!("`{text}` is neither"))?;
    if network.trunc() != network {
        return Err(format!("the prefix starts at another address; did you mean {}?", network.trunc()));
    }
    if is_reserved(&network) {
        return Err(format!("{text} is, or contains, a range with a meaning of its own"));
    }
    let ranges = anchor.map(|anchor| [IpNet::from(anchor.overlay_v4), IpNet::from(anchor.overlay_v6)]);
    if let Some(range) = ranges.into_iter().flatten().find(|range| network.contains(range)) {
        return Err(format!("{text} covers {range}, the overlay of the mesh"));
    }
    Ok(network)
}

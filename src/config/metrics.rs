//! What monitors read: the page of metrics, and where pages may be served at all.

use std::net::{IpAddr, SocketAddr};

use crate::identity::TrustAnchor;

/// The metrics page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where it is served; nowhere unless given.
    pub listen: Option<SocketAddr>,
    /// Which links have series of their own.
    pub per_link: PerLink,
}

impl Metrics {
    /// The TCP port of the metrics in every example: a monitor's usual range, and the last digits of the mesh's own port.
    pub const PORT: u16 = 9655;
}

/// Which links have series of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PerLink {
    /// All of them in a mesh of ordinary size, else the worst.
    #[default]
    Auto,
    /// All of them, whatever that costs the monitor.
    All,
    /// The worst, and those of critical peers; the others in sums by site.
    Worst,
}

impl PerLink {
    /// All three, the default first.
    pub const ALL: [PerLink; 3] = [PerLink::Auto, PerLink::All, PerLink::Worst];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            PerLink::Auto => "auto",
            PerLink::All => "all",
            PerLink::Worst => "worst",
        }
    }
}

/// Checks that a page served there is seen by this host or by the mesh alone.
///
/// # Errors
/// Why it might be seen by others, as a sentence for the address's writer. That an overlay address is this node's own is for
/// its certificate to say.
pub(super) fn page_address(address: SocketAddr, anchor: Option<&TrustAnchor>) -> Result<SocketAddr, String> {
    let within = |anchor: &TrustAnchor| match address.ip() {
        IpAddr::V4(ip) => anchor.overlay_v4.contains(&ip),
        IpAddr::V6(ip) => anchor.overlay_v6.contains(&ip),
    };
    match address.ip() {
        _ if address.port() == 0 => Err("port 0 means any port, and its readers must know it".to_owned()),
        ip if ip.is_loopback() || anchor.is_none_or(within) => Ok(address),
        ip if ip.is_unspecified() => Err(format!("on {ip} the whole internet could read it")),
        ip => Err(format!("{ip} is neither of this host alone nor of the mesh")),
    }
}

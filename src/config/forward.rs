//! Forwards, as `[[forward]]` says them: connections taken here and made again to a target in the mesh.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use super::duration;
use super::template::{list, quoted};
use crate::identity::NodeName;

/// One forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name, on this node only.
    pub name: NodeName,
    /// Where connections are taken, 1 to [`Forward::LISTEN_LIMIT`] addresses that no other forward has.
    pub listen: Vec<SocketAddr>,
    /// Where they are made again, in the order of preference; 1 to [`Forward::TARGET_LIMIT`], none twice.
    pub targets: Vec<Target>,
    /// Whether the next healthy target is taken when the one in use fails.
    pub failover: bool,
    /// Time between two looks at a target, 1 s to 1 h.
    pub check_interval: Duration,
    /// How long a new connection waits for a target, 100 ms to 60 s.
    pub connect_timeout: Duration,
    /// What the target learns of where a connection came from.
    pub source: ForwardSource,
    /// Connections at a time, 1 to [`Forward::MOST_CONNECTIONS`].
    pub max_connections: u16,
}

/// A target of a forward: a member by name, or an address in the mesh or behind a member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The host.
    pub host: TargetHost,
    /// Its TCP port, never 0.
    pub port: u16,
}

/// Which host a target is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetHost {
    /// A member, at its overlay address.
    Node(NodeName),
    /// An address.
    Address(IpAddr),
}

/// What the target learns of where a connection came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardSource {
    /// Nothing: it sees this node.
    #[default]
    None,
    /// A PROXY protocol header, version 2, in front of the first byte.
    ProxyV2,
}

impl ForwardSource {
    /// Both, the default first.
    pub const ALL: [ForwardSource; 2] = [ForwardSource::None, ForwardSource::ProxyV2];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            ForwardSource::None => "none",
            ForwardSource::ProxyV2 => "proxy_v2",
        }
    }
}

impl Forward {
    /// Forwards at most: a host has fewer services.
    pub const LIMIT: usize = 64;
    /// Listening addresses of a forward at most.
    pub const LISTEN_LIMIT: usize = 8;
    /// Targets of a forward at most; each is looked at all the time.
    pub const TARGET_LIMIT: usize = 8;
    /// Connections of a forward at most: each takes two descriptors, and a process seldom has more than 2^16.
    pub const MOST_CONNECTIONS: u16 = 20_000;
    /// Connections at a time unless the file says otherwise: more than databases take.
    pub const CONNECTIONS: u16 = 1_000;
    /// Time between two looks at a target unless the file says otherwise.
    pub const CHECK_INTERVAL: Duration = Duration::from_secs(2);
    /// How long a new connection waits unless the file says otherwise: one repeated SYN (after 1 s) and its answer fit.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

    /// Renders the forward as a `[[forward]]` entry.
    pub fn to_toml(&self) -> String {
        let mut out = String::from("[[forward]]\n");
        let mut line = |key: &str, value: String| {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{key} = {value}");
        };
        line("name", quoted(self.name.to_string()));
        line("listen", list(&self.listen));
        line("targets", list(&self.targets));
        line("failover", self.failover.to_string());
        line("check_interval", quoted(duration::format(self.check_interval)));
        line("connect_timeout", quoted(duration::format(self.connect_timeout)));
        line("source", quoted(self.source.name()));
        line("max_connections", self.max_connections.to_string());
        out
    }

    /// What contradicts itself or a forward above, with the key it is about.
    pub(super) fn clashes(&self, above: &[Forward]) -> Vec<(&'static str, String)> {
        let mut clashes = Vec::new();
        if above.iter().any(|other| other.name == self.name) {
            clashes.push(("name", "a forward above has the same name".to_owned()));
        }
        for address in &self.listen {
            if let Some(other) = above.iter().find(|other| other.listen.contains(address)) {
                clashes.push(("listen", format!("{address} is taken by the forward {} above", other.name)));
            }
            let itself =
                |target: &&Target| target.host == TargetHost::Address(address.ip()) && target.port == address.port();
            if let Some(target) = self.targets.iter().find(itself) {
                clashes.push(("targets", format!("{target} is where this forward listens")));
            }
        }
        clashes
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            TargetHost::Node(name) => write!(f, "{name}:{}", self.port),
            TargetHost::Address(address) => write!(f, "{}", SocketAddr::new(*address, self.port)),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// Reads `NODE:PORT` or `ADDRESS:PORT`.
    fn from_str(text: &str) -> Result<Target, String> {
        let target = match text.parse::<SocketAddr>() {
            Ok(address) => Target { host: TargetHost::Address(address.ip()), port: address.port() },
            Err(_) => {
                let (name, port) = text.rsplit_once(':').ok_or("the port is missing")?;
                let name = name.parse().map_err(|_| "the host is neither an address nor a node's name")?;
                let port = port.parse().map_err(|_| "the port is no number from 1 to 65535")?;
                Target { host: TargetHost::Node(name), port }
            }
        };
        match target.host {
            _ if target.port == 0 => Err("port 0 is no port of anybody".to_owned()),
            TargetHost::Address(ip) if ip.is_unspecified() || ip.is_multicast() => Err(format!("{ip} is no host")),
            // All digits and dots: an address with a slip in it, which would be looked for as a node for ever.
            TargetHost::Node(name) if name.as_str().bytes().all(|byte| byte.is_ascii_digit()) => {
                Err("the host is a number, no address".to_owned())
            }
            _ => Ok(target),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_they_are_written() {
        for text in ["db1:3306", "10.77.0.5:3306", "[fd12::1]:5432", "old-db:1"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for wrong in
            ["", "db1", "db1:", "db1:0", "db1:70000", "DB:1", "10.77.0:3306", "7:3306", "0.0.0.0:1", "[::]:1", ":1"]
        {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}

//! What members may reach here, as `[[allow]]` says it.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::template::list;
use crate::identity::{NodeName, Tag};

/// One rule. Any rule at all, and what no rule allows is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Who may; at least one, at most [`Allow::LIST_LIMIT`].
    pub from: Vec<Selector>,
    /// What may be reached; everything of this node where empty, at most [`Allow::LIST_LIMIT`].
    pub to: Vec<Selector>,
    /// By what; everything where empty, at most [`Allow::LIST_LIMIT`].
    pub ports: Vec<Service>,
}

/// Whose addresses are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Everybody's.
    Any,
    /// The overlay addresses of the members with this tag.
    Tag(Tag),
    /// The overlay addresses of the member of this name, or what the stock peer of this name sends from.
    Node(NodeName),
    /// These; without host bits, a single address has full length.
    Network(IpNet),
}

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Every protocol.
    Any,
    /// Echoes and the other questions of ICMP, of both families. Errors about what is allowed need no rule.
    Icmp,
    /// TCP to one of these ports, both ends included.
    Tcp(u16, u16),
    /// UDP to one of these ports, both ends included.
    Udp(u16, u16),
}

impl Allow {
    /// Rules at most: each is looked at for every new connection.
    pub const LIMIT: usize = 256;
    /// Entries of one list at most; more nodes have a tag, more ports a range.
    pub const LIST_LIMIT: usize = 64;

    /// Says the rule in one line.
    pub fn summary(&self) -> String {
        let mut text = format!("from {}", words(&self.from));
        if !self.to.is_empty() {
            text += &format!(" to {}", words(&self.to));
        }
        if !self.ports.is_empty() {
            text += &format!(" by {}", words(&self.ports));
        }
        text
    }

    /// Renders the rule as an `[[allow]]` entry.
    pub fn to_toml(&self) -> String {
        let mut out = format!("[[allow]]\nfrom = {}\n", list(&self.from));
        // Writing into a String cannot fail.
        if !self.to.is_empty() {
            let _ = writeln!(out, "to = {}", list(&self.to));
        }
        if !self.ports.is_empty() {
            let _ = writeln!(out, "ports = {}", list(&self.ports));
        }
        out
    }
}

fn words(list: &[impl ToString]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Any => f.write_str("any"),
            Selector::Tag(tag) => write!(f, "tag:{}", tag.as_str()),
            Selector::Node(name) => f.write_str(name.as_str()),
            Selector::Network(network) => f.write_str(&super::wireguard::shown(network)),
        }
    }
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Selector::Any);
        }
        if let Some(tag) = text.strip_prefix("tag:") {
            return tag.parse().map(Selector::Tag).map_err(|_| format!("`{tag}` is no tag"));
        }
        if !text.contains(['.', ':', '/']) {
            return text.parse().map(Selector::Node).map_err(|_| format!("`{text}` is none of them"));
        }
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let network = address.or_else(|_| text.parse::<IpNet>()).map_err(|_| format!("`{text}` is none of them"))?;
        if network.trunc() != network {
            return Err(format!("the prefix starts at another address; did you mean {}?", network.trunc()));
        }
        Ok(Selector::Network(network))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut range = |name: &str, first: u16, last: u16| match first == last {
            true => write!(f, "{name}/{first}"),
            false => write!(f, "{name}/{first}-{last}"),
        };
        match *self {
            Service::Any => f.write_str("any"),
            Service::Icmp => f.write_str("icmp"),
            Service::Tcp(first, last) => range("tcp", first, last),
            Service::Udp(first, last) => range("udp", first, last),
        }
    }
}

impl FromStr for Service {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is none of them");
        let (protocol, ports) = match text.split_once('/') {
            Some((protocol, ports)) => (protocol, ports),
            None if text == "any" => return Ok(Service::Any),
            None if text == "icmp" => return Ok(Service::Icmp),
            None if matches!(text, "tcp" | "udp") => {
                return Err(format!("the ports are missing; all are {text}/1-65535"));
            }
            None => return Err(wrong()),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("the range ends before it begins; did you mean {protocol}/{last}-{first}?"));
        }
        match protocol {
            "tcp" => Ok(Service::Tcp(first, last)),
            "udp" => Ok(Service::Udp(first, last)),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_and_services_are_read_as_they_are_written() {
        for text in ["any", "tag:db", "web1", "10.77.0.1", "10.9.0.0/16", "fd00::/64", "fd00::1"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        for text in ["any", "icmp", "tcp/22", "tcp/8000-8100", "udp/53", "udp/1-65535"] {
            assert_eq!(text.parse::<Service>().unwrap().to_string(), text);
        }
        for text in ["", "tag:", "tag:A", "Web", "10.77.0.1/16", "10.77.0", "fd00::/129", "a.b"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        for text in ["", "tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/9-8", "sctp/9", "icmp/8", "tcp/1-2-3", "tcp/ 1"] {
            assert!(text.parse::<Service>().is_err(), "{text}");
        }
    }
}

//! Names, as `[names]` and `[[alias]]` say them.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::str::FromStr;

use super::Forward;
use super::template::quoted;
use crate::identity::NodeName;

/// How the members' names are answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Where questions are answered, by UDP; nowhere unless given.
    pub listen: Option<SocketAddr>,
    /// What stands behind every name; the mesh's name unless given.
    pub suffix: Option<Suffix>,
    /// How the host's own resolver learns of them.
    pub resolver: Resolver,
}

/// How the host's own resolver learns of the names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolver {
    /// Not at all.
    #[default]
    Off,
    /// By systemd-resolved where programs ask it, else by a block of `/etc/hosts`.
    Auto,
    /// By systemd-resolved, for the mesh's interface alone.
    Resolved,
    /// By resolvconf, as one more server for everything.
    Resolvconf,
    /// By a marked block of `/etc/hosts`.
    Hosts,
}

impl Resolver {
    /// All of them, the default first.
    pub const ALL: [Resolver; 5] =
        [Resolver::Off, Resolver::Auto, Resolver::Resolved, Resolver::Resolvconf, Resolver::Hosts];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Resolver::Off => "off",
            Resolver::Auto => "auto",
            Resolver::Resolved => "resolved",
            Resolver::Resolvconf => "resolvconf",
            Resolver::Hosts => "hosts",
        }
    }

    /// What contradicts where questions are answered.
    pub(super) fn clash(self, listen: Option<SocketAddr>) -> Option<String> {
        match (self, listen) {
            (Resolver::Resolved | Resolver::Resolvconf, None) => {
                Some(format!("resolver = \"{}\" needs it: it asks there", self.name()))
            }
            (Resolver::Resolvconf, Some(address)) if address.port() != Names::PORT => {
                Some("resolver = \"resolvconf\" can only ask at port 53".to_owned())
            }
            _ => None,
        }
    }
}

impl Names {
    /// The UDP port that resolvers ask at.
    pub const PORT: u16 = 53;
}

/// The domain the names stand in: labels of host names, without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suffix(String);

impl Suffix {
    /// Bytes at most. With a node's label in front, and three more names of this zone in an answer, it stays below the 512
    /// bytes that every resolver takes by UDP.
    pub const LIMIT: usize = 100;
    /// Domains that mean something else to every resolver (RFC 6761, RFC 6762, RFC 7686), and where addresses are named.
    const RESERVED: [&str; 5] = ["arpa", "invalid", "local", "localhost", "onion"];

    /// Returns the domain.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Suffix {
    type Err = String;

    /// Reads a domain of one or more labels.
    fn from_str(text: &str) -> Result<Suffix, String> {
        if text.len() > Suffix::LIMIT {
            return Err(format!("it has {} bytes", text.len()));
        }
        if let Some(wrong) = text.split('.').find(|label| label.parse::<NodeName>().is_err()) {
            return Err(if wrong.is_empty() {
                "a label is empty".to_owned()
            } else {
                format!("`{wrong}` is no label")
            });
        }
        let last = text.rsplit('.').next().unwrap_or_default();
        if Suffix::RESERVED.contains(&last) {
            return Err(format!("`{last}` means something else to every resolver"));
        }
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("names behind a number are read as addresses".to_owned());
        }
        Ok(Suffix(text.to_owned()))
    }
}

/// Another name of a member, or of wherever a forward leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name, in front of the suffix, on this node only.
    pub name: NodeName,
    /// What it stands for.
    pub to: AliasTarget,
}

/// What an alias stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AliasTarget {
    /// A member.
    Node(NodeName),
    /// The target that a forward of this node uses now.
    Forward(NodeName),
}

impl AliasTarget {
    /// The label that the names of forwards stand below: `orders.forward`.
    pub const FORWARD: &str = "forward";
}

impl fmt::Display for AliasTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AliasTarget::Node(name) => name.fmt(f),
            AliasTarget::Forward(name) => write!(f, "{name}.{}", AliasTarget::FORWARD),
        }
    }
}

impl FromStr for AliasTarget {
    type Err = String;

    /// Reads `NODE` or `NAME.forward`.
    fn from_str(text: &str) -> Result<AliasTarget, String> {
        let (name, below) = match text.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let name: NodeName = name.parse().map_err(|_| format!("`{}` is no name", name.escape_debug()))?;
        match below {
            None => Ok(AliasTarget::Node(name)),
            Some(AliasTarget::FORWARD) => Ok(AliasTarget::Forward(name)),
            Some(_) => Err("it has a domain: the suffix is left out".to_owned()),
        }
    }
}

impl Alias {
    /// Aliases at most: a host has fewer services.
    pub const LIMIT: usize = 256;

    /// Renders the alias as an `[[alias]]` entry.
    pub fn to_toml(&self) -> String {
        let mut out = String::from("[[alias]]\n");
        // Writing into a String cannot fail.
        let _ = writeln!(out, "name = {}", quoted(self.name.as_str()));
        let _ = writeln!(out, "to = {}", quoted(self.to.to_string()));
        out
    }

    /// What contradicts itself, this node, an alias above or the forwards, with the key it is about.
    pub(super) fn clashes(
        &self,
        node: Option<&NodeName>,
        above: &[Alias],
        forwards: &[Forward],
    ) -> Vec<(&'static str, String)> {
        let mut clashes = Vec::new();
        if node == Some(&self.name) {
            clashes.push(("name", "this node itself has that name".to_owned()));
        }
        if above.iter().any(|other| other.name == self.name) {
            clashes.push(("name", "an alias above has the same name".to_owned()));
        }
        match &self.to {
            AliasTarget::Node(to) if *to == self.name => clashes.push(("to", "it stands for itself".to_owned())),
            AliasTarget::Node(to) if above.iter().any(|other| other.name == *to) => {
                clashes.push(("to", format!("`{to}` is an alias itself; name what it stands for")));
            }
            AliasTarget::Forward(to) if !forwards.iter().any(|forward| forward.name == *to) => {
                clashes.push(("to", format!("there is no [[forward]] `{to}`")));
            }
            _ => {}
        }
        clashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_domains_of_their_own() {
        for text in ["prod", "mesh.example.internal", "a-1.b2"] {
            assert_eq!(text.parse::<Suffix>().unwrap().as_str(), text);
        }
        let long = format!("{}.{}", "a".repeat(60), "b".repeat(60));
        for wrong in ["", ".", "prod.", ".prod", "Prod", "a b", "local", "x.arpa", "x.localhost", "10.77", &long] {
            assert!(wrong.parse::<Suffix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn targets_are_read_as_they_are_written() {
        for text in ["db-old", "orders.forward"] {
            assert_eq!(text.parse::<AliasTarget>().unwrap().to_string(), text);
        }
        for wrong in ["", "db-old.prod", ".forward", "orders.forward.prod", "DB", "orders."] {
            assert!(wrong.parse::<AliasTarget>().is_err(), "{wrong}");
        }
    }
}

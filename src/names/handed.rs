//! What a daemon without root's rights hands to root: names and addresses, one to a line.
//!
//! The daemon writes the file beside its socket; `meshctl names apply`, which root's unit runs, reads it. Root believes
//! nothing of it that it cannot check by the configuration, and composes every line it writes itself.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::{AliasTarget, Suffix};
use crate::identity::NodeName;

/// The first line: what the file is, and the version of its format.
const TITLE: &str = "meshd names 1";

/// What is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Where questions are answered.
    pub server: Option<SocketAddr>,
    /// Addresses and whole names.
    pub hosts: Vec<(IpAddr, String)>,
}

/// What root knows of a mesh by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What stands behind every name.
    pub suffix: Suffix,
    /// The ranges of overlay addresses.
    pub overlay: (Ipv4Net, Ipv6Net),
    /// Addresses outside of them that forwards have for targets.
    pub targets: Vec<IpAddr>,
}

impl Handed {
    /// Bytes at most: 16,384 members with the longest names would need less than half.
    pub const LIMIT: u64 = 8 << 20;

    /// Writes it.
    pub fn to_text(&self) -> String {
        let mut text = format!("{TITLE}\n");
        // Writing into a String cannot fail.
        if let Some(server) = self.server {
            let _ = writeln!(text, "server {server}");
        }
        for (address, name) in &self.hosts {
            let _ = writeln!(text, "{address} {name}");
        }
        text
    }

    /// Reads it, and checks everything in it.
    ///
    /// # Errors
    /// The first line that is not as it must be, by its number, never by what it says.
    pub fn parse(text: &str, bounds: &Bounds) -> Result<Handed, String> {
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, title)| title != TITLE) {
            return Err(format!("it does not begin with `{TITLE}`"));
        }
        let mut handed = Handed { server: None, hosts: Vec::new() };
        for (number, line) in lines {
            let wrong = |why: &str| format!("line {}: {why}", number + 1);
            let (first, second) = line.split_once(' ').ok_or_else(|| wrong("it has no two words"))?;
            if first == "server" {
                let server: SocketAddr = second.parse().map_err(|_| wrong("it names no server"))?;
                if !server.ip().is_loopback() && !bounds.is_overlay(server.ip()) {
                    return Err(wrong("the server is neither this host alone nor in the mesh"));
                }
                handed.server = Some(server);
                continue;
            }
            let address: IpAddr = first.parse().map_err(|_| wrong("it does not begin with an address"))?;
            if !bounds.is_overlay(address) && !bounds.targets.contains(&address) {
                return Err(wrong("the address is neither in the mesh nor a target of a forward"));
            }
            if !bounds.is_name(second) {
                return Err(wrong("the name is none of this mesh"));
            }
            handed.hosts.push((address, second.to_owned()));
        }
        Ok(handed)
    }
}

impl Bounds {
    fn is_overlay(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.overlay.0.contains(&address),
            IpAddr::V6(address) => self.overlay.1.contains(&address),
        }
    }

    /// Whether it is a node's, an alias's or a forward's name, with the suffix.
    fn is_name(&self, name: &str) -> bool {
        let prefix = name.strip_suffix(self.suffix.as_str()).and_then(|rest| rest.strip_suffix('.'));
        let is_label = |label: &str| label.parse::<NodeName>().is_ok();
        prefix.is_some_and(|prefix| match prefix.split_once('.') {
            Some((label, below)) => is_label(label) && below == AliasTarget::FORWARD,
            None => is_label(prefix),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds() -> Bounds {
        Bounds {
            suffix: "prod".parse().unwrap(),
            overlay: ("10.77.0.0/16".parse().unwrap(), "fd12:3456:789a::/64".parse().unwrap()),
            targets: vec!["192.0.2.7".parse().unwrap()],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let handed = Handed {
            server: Some("10.77.0.1:53".parse().unwrap()),
            hosts: [("10.77.0.2", "db1.prod"), ("fd12:3456:789a::2", "db1.prod"), ("192.0.2.7", "old.forward.prod")]
                .map(|(address, name)| (address.parse().unwrap(), name.to_owned()))
                .to_vec(),
        };
        assert_eq!(Handed::parse(&handed.to_text(), &bounds()), Ok(handed));
        assert_eq!(Handed::parse("meshd names 1\n", &bounds()), Ok(Handed { server: None, hosts: Vec::new() }));
    }

    #[test]
    fn root_believes_nothing_beyond_its_mesh() {
        for line in [
            "192.0.2.1 db1.prod",
            "127.0.0.1 db1.prod",
            "10.77.0.2 www.example.com",
            "10.77.0.2 prod",
            "10.77.0.2 .prod",
            "10.77.0.2 xprod",
            "10.77.0.2 a.b.prod",
            "10.77.0.2 db1.prod localhost",
            "10.77.0.2 db1.prod\tlocalhost",
            "10.77.0.2  db1.prod",
            "10.77.0.2 DB1.prod",
            "10.77.0.2 db1.prod#",
            "10.77.0.2",
            "",
            "# meshd prod end",
            "server 192.0.2.1:53",
            "server 0.0.0.0:53",
            "server db1:53",
        ] {
            let refused = Handed::parse(&format!("{TITLE}\n10.77.0.2 db1.prod\n{line}\n"), &bounds()).unwrap_err();
            assert!(refused.starts_with("line 3: "), "{line}: {refused}");
        }
        for text in ["", "10.77.0.2 db1.prod\n", "meshd names 2\n"] {
            assert!(Handed::parse(text, &bounds()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(?s).{0,200}") {
            let text = format!("{TITLE}\n{text}");
            if let Ok(handed) = Handed::parse(&text, &bounds()) {
                prop_assert!(handed.hosts.iter().all(|(_, name)| name.ends_with(".prod")));
            }
        }
    }
}

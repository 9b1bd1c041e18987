//! Who has which name: what the daemon knows, before it is a zone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::{AliasTarget, Suffix};
use crate::identity::NodeName;

/// The names of a mesh at one moment, and who may ask for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// What stands behind every name.
    pub suffix: Suffix,
    /// This node.
    pub own: Member,
    /// The other members. Of two with the same name, the first has it.
    pub members: Vec<Member>,
    /// The other names of members and of forwards' targets; a member's own name goes before them.
    pub aliases: Vec<Alias>,
    /// The ranges of overlay addresses.
    pub overlay: (Ipv4Net, Ipv6Net),
    /// Addresses behind this node that may ask too: those of stock WireGuard peers.
    pub guests: Vec<IpAddr>,
}

/// A member and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its IPv4 overlay address.
    pub v4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub v6: Ipv6Addr,
}

/// Another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name, without the suffix: `orders-db` or `orders.forward`.
    pub name: String,
    /// What it stands for: a node's name, a forward's, or an address.
    pub of: String,
    /// The addresses it has now; none while its member is not known.
    pub addresses: Vec<IpAddr>,
}

impl Picture {
    /// Finds a member by name.
    pub fn member(&self, name: &NodeName) -> Option<&Member> {
        [&self.own].into_iter().chain(&self.members).find(|member| member.name == *name)
    }

    /// Returns an alias of a member, which need not be known.
    pub fn alias_of(&self, name: String, of: &NodeName) -> Alias {
        let addresses = self.member(of).map(|member| vec![member.v4.into(), member.v6.into()]);
        Alias { name, of: of.to_string(), addresses: addresses.unwrap_or_default() }
    }

    /// Returns the name that a forward's target has, without the suffix.
    pub fn forward_name(forward: &NodeName) -> String {
        AliasTarget::Forward(forward.clone()).to_string()
    }

    /// Everything as a file of hosts has it: addresses with whole names, this node first.
    pub fn hosts(&self) -> Vec<(IpAddr, String)> {
        let whole = |name: &str| format!("{name}.{}", self.suffix);
        let mut hosts = Vec::new();
        for member in [&self.own].into_iter().chain(&self.members) {
            hosts.extend([IpAddr::V4(member.v4), IpAddr::V6(member.v6)].map(|ip| (ip, whole(member.name.as_str()))));
        }
        for alias in &self.aliases {
            let is_member = alias.name.parse().is_ok_and(|name| self.member(&name).is_some());
            let addresses = alias.addresses.iter().filter(|_| !is_member);
            hosts.extend(addresses.map(|address| (*address, whole(&alias.name))));
        }
        hosts
    }

    /// The domains under which the overlay's addresses are named.
    pub fn reverse_zones(&self) -> ReverseZones {
        ReverseZones::of(self.overlay.0, self.overlay.1)
    }
}

/// The domains under which the addresses of the overlay are named, without a dot at their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReverseZones {
    /// One where the range ends at an octet, else as many as its last octet has values.
    pub v4: Vec<String>,
    /// The one of the /64.
    pub v6: Vec<String>,
}

impl ReverseZones {
    /// Returns those of two ranges. A domain holds no address outside its range, so that no other name is taken from anybody.
    pub fn of(v4: Ipv4Net, v6: Ipv6Net) -> ReverseZones {
        let octets = usize::from(v4.prefix_len().div_ceil(8)).max(1);
        let first = v4.network().octets();
        // 1 where the range ends at an octet, at most 2^7.
        let many = 1_u16 << (octets * 8 - usize::from(v4.prefix_len())).min(7);
        let zone = |number: u16| {
            let mut labels: Vec<String> = first[..octets].iter().map(ToString::to_string).collect();
            if let Some(last) = labels.last_mut() {
                *last = (u16::from(first[octets - 1]) + number).to_string();
            }
            labels.reverse();
            format!("{}.in-addr.arpa", labels.join("."))
        };
        let nibbles = usize::from(v6.prefix_len() / 4);
        let name = reverse_v6(v6.network());
        let skipped: usize = (32 - nibbles) * 2;
        ReverseZones { v4: (0..many).map(zone).collect(), v6: vec![name[skipped..].to_owned()] }
    }
}

/// The name of an IPv4 address (RFC 1035 §3.5).
pub(super) fn reverse_v4(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

/// The name of an IPv6 address (RFC 3596 §2.5).
pub(super) fn reverse_v6(address: Ipv6Addr) -> String {
    let mut name = String::with_capacity(72);
    for octet in address.octets().iter().rev() {
        for nibble in [octet & 15, octet >> 4] {
            name.extend([char::from_digit(u32::from(nibble), 16).unwrap_or('0'), '.']);
        }
    }
    name + "ip6.arpa"
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A mesh of three: this node `web1`, `db1` and `db2`, with an alias and a forward.
    pub(crate) fn picture() -> Picture {
        let member = |name: &str, last: u8| Member {
            name: name.parse().unwrap(),
            v4: [10, 77, 0, last].into(),
            v6: format!("fd12:3456:789a::a4d:{last:x}").parse().unwrap(),
        };
        let mut picture = Picture {
            suffix: "prod".parse().unwrap(),
            own: member("web1", 1),
            members: vec![member("db1", 2), member("db2", 3)],
            aliases: Vec::new(),
            overlay: ("10.77.0.0/16".parse().unwrap(), "fd12:3456:789a::/64".parse().unwrap()),
            guests: vec!["10.78.0.2".parse().unwrap()],
        };
        picture.aliases = vec![
            picture.alias_of("orders-db".into(), &"db2".parse().unwrap()),
            picture.alias_of("orders.forward".into(), &"db1".parse().unwrap()),
            Alias { name: "old.forward".into(), of: "192.0.2.7".into(), addresses: vec!["192.0.2.7".parse().unwrap()] },
            picture.alias_of("nobody".into(), &"gone".parse().unwrap()),
            picture.alias_of("db1".into(), &"db2".parse().unwrap()),
        ];
        picture
    }

    #[test]
    fn reverse_zones_hold_the_range_and_nothing_else() {
        let zones = |v4: &str| ReverseZones::of(v4.parse().unwrap(), "fd12:3456:789a::/64".parse().unwrap());
        assert_eq!(zones("10.77.0.0/16").v4, ["77.10.in-addr.arpa"]);
        assert_eq!(zones("10.0.0.0/8").v4, ["10.in-addr.arpa"]);
        let some = zones("172.16.0.0/12").v4;
        assert_eq!((some.len(), &some[0][..], &some[15][..]), (16, "16.172.in-addr.arpa", "31.172.in-addr.arpa"));
        let eight = zones("10.77.0.8/29").v4;
        assert_eq!((eight.len(), &eight[7][..]), (8, "15.0.77.10.in-addr.arpa"));
        assert_eq!(zones("10.128.0.0/9").v4.len(), 128);
        assert_eq!(zones("10.0.0.0/8").v6, ["0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"]);
    }
}

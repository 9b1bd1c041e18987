//! Which member owns which overlay address and prefix.
//!
//! Certificates decide, nothing else: a member cannot announce a network. Two certificates that grant the same address or
//! overlapping prefixes to different nodes are a mistake of the authority (two copies of its ledger went apart). Every node
//! then decides alike: what was issued first holds, and the other claim is reported. Where the authority signed one prefix for
//! several nodes as shared, all of them hold it ([`super::gateway`] chooses which one carries it).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Engine;
use super::gateway::Holder;
use super::membership::Member;
use crate::identity::{NodeId, Priority, overlap};

/// An address or prefix and the node behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteEntry {
    /// The network; a single address where it has full length.
    pub network: IpNet,
    /// The node that owns it.
    pub node: NodeId,
}

/// Two certificates that grant the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collision {
    /// What both claim.
    pub what: Claim,
    /// The node whose claim holds.
    pub holder: NodeId,
    /// The node whose claim is ignored.
    pub ignored: NodeId,
}

/// What a collision is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// An address or prefix.
    Network(IpNet),
    /// A node name.
    Name(String),
}

/// The result of laying all certificates side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Every owned network, our own included, sorted; a shared one once for each node that holds it.
    pub entries: Vec<RouteEntry>,
    /// Who holds each shared prefix, in the order of their ids.
    pub shared: BTreeMap<IpNet, Vec<Holder>>,
    /// Which of them carries it now, for this node; one that holds it itself is not among its own carriers.
    pub carriers: BTreeMap<IpNet, NodeId>,
    /// The claims that were ignored.
    pub collisions: Vec<Collision>,
    /// The members that others may send through, perhaps this node itself.
    pub relays: BTreeSet<NodeId>,
}

impl Engine {
    /// Lays all certificates side by side, and says which gateways carry the shared prefixes now.
    pub fn routing(&self) -> Routing {
        let mut routing = self.claims();
        routing.carriers = self.carriers(&routing.shared);
        routing
    }

    /// Lays all certificates side by side.
    pub(super) fn claims(&self) -> Routing {
        route(self.membership().members())
    }
}

/// See [`Engine::routing`]. Members are taken in the order of issue, so that the earlier claim stands first.
fn route<'a>(members: impl Iterator<Item = (NodeId, &'a Member)>) -> Routing {
    let mut by_issue: Vec<(NodeId, &Member)> = members.collect();
    by_issue.sort_by_key(|(node, member)| (member.certificate().issued, member.certificate().serial, *node));
    let mut hosts: BTreeMap<IpAddr, NodeId> = BTreeMap::new();
    let mut prefixes: Vec<(RouteEntry, Option<Priority>)> = Vec::new();
    let mut names: BTreeMap<&str, NodeId> = BTreeMap::new();
    let mut routing = Routing::default();
    for (node, member) in by_issue {
        let certificate = member.certificate();
        if certificate.permissions.relay {
            routing.relays.insert(node);
        }
        let name = certificate.name.as_str();
        if let Some(holder) = names.get(name) {
            let what = Claim::Name(name.to_owned());
            routing.collisions.push(Collision { what, holder: *holder, ignored: node });
        } else {
            names.insert(name, node);
        }
        for address in [IpAddr::V4(certificate.address_v4), IpAddr::V6(certificate.address_v6)] {
            let network = IpNet::from(address);
            let taken = hosts.get(&address).copied();
            match taken {
                Some(holder) => {
                    routing.collisions.push(Collision { what: Claim::Network(network), holder, ignored: node });
                }
                None => {
                    hosts.insert(address, node);
                    routing.entries.push(RouteEntry { network, node });
                }
            }
        }
        for network in &certificate.prefixes {
            // A host route inside a prefix is no collision: the longer match wins, as everywhere.
            let priority = certificate.shares.get(network);
            let clashes = |(entry, shared): &&(RouteEntry, Option<Priority>)| {
                let agreed = entry.network == *network && shared.is_some() && priority.is_some();
                overlap(&entry.network, network) && !agreed && entry.node != node
            };
            match prefixes.iter().find(clashes).map(|(entry, _)| entry.node) {
                Some(holder) => {
                    routing.collisions.push(Collision { what: Claim::Network(*network), holder, ignored: node });
                }
                None => prefixes.push((RouteEntry { network: *network, node }, priority)),
            }
        }
    }
    for (RouteEntry { network, node }, priority) in &prefixes {
        if let Some(priority) = *priority {
            routing.shared.entry(*network).or_default().push(Holder { node: *node, priority });
        }
    }
    routing.shared.values_mut().for_each(|holders| holders.sort());
    routing.entries.extend(prefixes.into_iter().map(|(entry, _)| entry));
    routing.entries.sort();
    routing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{NOW, admission, authority, keys};
    use crate::identity::{Admission, Shares, Term};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    /// A member that was admitted `age` seconds ago with this name, host number and prefixes.
    fn member(number: u8, name: &str, host: u8, prefixes: &[&str], age: u64) -> (NodeId, Member) {
        let admission = Admission {
            name: name.parse().unwrap(),
            address_v4: Ipv4Addr::new(10, 77, 0, host),
            prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..admission(number)
        };
        let term = Term::offline(NOW - Duration::from_secs(age));
        let certificate = authority().issue(&admission, &keys(number).public(), &term).unwrap();
        (NodeId::from_bytes([number; 16]), Member { certificate, record: None })
    }

    /// Two copies of a ledger that went apart: names, addresses and prefixes given twice, some in the same second.
    fn mistaken() -> Vec<(NodeId, Member)> {
        vec![
            member(1, "web1", 1, &["192.168.1.0/24", "192.168.2.0/24"], 50),
            member(2, "web2", 2, &["192.168.0.0/16"], 40),
            member(3, "web1", 3, &["192.168.2.128/25"], 40),
            member(4, "db", 1, &["2001:db8::/32"], 40),
            member(5, "db", 5, &["2001:db8:5::/48", "172.16.0.0/12"], 40),
            member(6, "web6", 5, &["172.16.9.0/24"], 60),
        ]
    }

    fn number(node: NodeId) -> u8 {
        node.as_bytes()[0]
    }

    #[test]
    fn what_was_issued_first_holds() {
        let members = mistaken();
        let routing = route(members.iter().map(|(node, member)| (*node, member)));
        let owner = |network: &str| {
            let network: IpNet = network.parse().unwrap();
            routing.entries.iter().find(|entry| entry.network == network).map(|entry| number(entry.node))
        };
        assert_eq!(owner("10.77.0.1/32"), Some(1));
        assert_eq!(owner("10.77.0.5/32"), Some(6));
        assert_eq!(owner("192.168.1.0/24"), Some(1));
        assert_eq!(owner("192.168.0.0/16"), None, "it overlaps an older one");
        assert_eq!(owner("2001:db8::/32"), Some(4), "of one second and one serial, the lower id");
        assert_eq!(owner("172.16.9.0/24"), Some(6));
        let names: Vec<_> = routing
            .collisions
            .iter()
            .filter(|collision| matches!(collision.what, Claim::Name(_)))
            .map(|collision| (number(collision.holder), number(collision.ignored)))
            .collect();
        assert_eq!(names, [(1, 3), (4, 5)]);
        assert_eq!(routing.collisions.len(), 10, "{:#?}", routing.collisions);
    }

    /// The same, with all its prefixes shared at a priority.
    fn sharing(number: u8, prefixes: &[&str], priority: u8, age: u64) -> (NodeId, Member) {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let shares = Shares::all(&prefixes, Priority::new(priority).unwrap());
        let admission = Admission { prefixes, shares, ..admission(number) };
        let term = Term::offline(NOW - Duration::from_secs(age));
        let certificate = authority().issue(&admission, &keys(number).public(), &term).unwrap();
        (NodeId::from_bytes([number; 16]), Member { certificate, record: None })
    }

    #[test]
    fn a_shared_prefix_belongs_to_all_that_were_signed_for_it_and_to_nobody_else() {
        let members = [
            sharing(1, &["10.20.0.0/16"], 110, 50),
            sharing(2, &["10.20.0.0/16"], 100, 40),
            member(3, "web3", 3, &["10.20.0.0/16"], 30),
            sharing(4, &["10.20.5.0/24", "10.21.0.0/16"], 100, 20),
            member(5, "web5", 5, &["10.22.0.0/16"], 60),
            sharing(6, &["10.22.0.0/16"], 255, 10),
        ];
        for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 2, 4, 1]] {
            let routing = route(order.iter().map(|at| (members[*at].0, &members[*at].1)));
            let holders = |network: &str| -> Vec<(u8, u8)> {
                let holders = routing.shared.get(&network.parse().unwrap()).into_iter().flatten();
                holders.map(|holder| (number(holder.node), holder.priority.get())).collect()
            };
            assert_eq!(holders("10.20.0.0/16"), [(1, 110), (2, 100)]);
            assert_eq!(holders("10.21.0.0/16"), [(4, 100)]);
            assert_eq!(holders("10.20.5.0/24"), [], "a part of what others share");
            assert_eq!(holders("10.22.0.0/16"), [], "another's alone");
            let entry = |network: &str| {
                let network: IpNet = network.parse().unwrap();
                routing
                    .entries
                    .iter()
                    .filter(|entry| entry.network == network)
                    .map(|entry| number(entry.node))
                    .collect()
            };
            let entries: [Vec<u8>; 2] = [entry("10.20.0.0/16"), entry("10.22.0.0/16")];
            assert_eq!(entries, [vec![1, 2], vec![5]]);
            let ignored: Vec<u8> = routing.collisions.iter().map(|collision| number(collision.ignored)).collect();
            assert_eq!(ignored, [3, 4, 6]);
        }
    }

    proptest! {
        #[test]
        fn every_node_decides_alike(order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(), count in 1..=6_usize) {
            let members = mistaken();
            let mut chosen = order[..count].to_vec();
            let routing = route(chosen.iter().map(|at| (members[*at].0, &members[*at].1)));
            chosen.sort();
            prop_assert_eq!(&routing, &route(chosen.iter().map(|at| (members[*at].0, &members[*at].1))));
            for (place, entry) in routing.entries.iter().enumerate() {
                for other in &routing.entries[..place] {
                    let hosts = [entry, other].map(|entry| entry.network.prefix_len() == entry.network.max_prefix_len());
                    let clash = hosts[0] == hosts[1] && overlap(&entry.network, &other.network);
                    prop_assert!(!clash, "{:?} and {:?}", entry, other);
                }
            }
        }
    }
}

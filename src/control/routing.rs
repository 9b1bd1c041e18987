//! Which member owns which overlay address and prefix.
//!
//! Certificates decide, nothing else: a member cannot announce a network. Two certificates that grant the same address or
//! overlapping prefixes to different nodes are a mistake of the authority (two copies of its ledger went apart). Every node
//! then decides alike: what was issued first holds, and the other claim is reported.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Engine;
use super::membership::Member;
use crate::identity::{NodeId, overlap};

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
    /// Every owned network, our own included, sorted.
    pub entries: Vec<RouteEntry>,
    /// The claims that were ignored.
    pub collisions: Vec<Collision>,
}

impl Engine {
    /// Lays all certificates side by side.
    pub fn routing(&self) -> Routing {
        route(self.membership().members())
    }
}

/// See [`Engine::routing`]. Members are taken in the order of issue, so that the earlier claim stands first.
fn route<'a>(members: impl Iterator<Item = (NodeId, &'a Member)>) -> Routing {
    let mut by_issue: Vec<(NodeId, &Member)> = members.collect();
    by_issue.sort_by_key(|(node, member)| (member.certificate().issued, member.certificate().serial, *node));
    let mut hosts: BTreeMap<IpAddr, NodeId> = BTreeMap::new();
    let mut prefixes: Vec<RouteEntry> = Vec::new();
    let mut names: BTreeMap<&str, NodeId> = BTreeMap::new();
    let mut routing = Routing::default();
    for (node, member) in by_issue {
        let certificate = member.certificate();
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
            let taken = prefixes.iter().find(|entry| overlap(&entry.network, network)).map(|entry| entry.node);
            match taken {
                Some(holder) if holder != node => {
                    routing.collisions.push(Collision { what: Claim::Network(*network), holder, ignored: node });
                }
                _ => {
                    prefixes.push(RouteEntry { network: *network, node });
                }
            }
        }
    }
    routing.entries.extend(prefixes);
    routing.entries.sort();
    routing
}

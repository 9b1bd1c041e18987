//! What of a network that a stock peer declares is left to it beside the certificates.
//!
//! A declaration is one operator's word about one node; a certificate is the authority's word to all. So a certificate
//! always wins, also one that comes later.

use std::net::IpAddr;

use ipnet::IpNet;

use super::routing::{RouteEntry, Routing};
use crate::identity::NodeId;

/// What becomes of a declared network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It is the peer's: no certificate names it, or this node's own carries it.
    Whole,
    /// It is the peer's but for this part, which a certificate gives to that node.
    But(RouteEntry),
    /// A certificate gives all of it to that node; the peer gets nothing.
    Nothing(RouteEntry),
}

/// Decides about one declared network, on the node `own` with these overlay addresses.
pub fn place(network: &IpNet, routing: &Routing, own: NodeId, addresses: &[IpAddr]) -> Placement {
    // The node's own prefixes are there to be handed on. Its own addresses are not, and nor is what it shares with nodes that
    // know nothing of the peer.
    let is_ours = |entry: &RouteEntry| {
        entry.node == own
            && !addresses.iter().any(|address| IpNet::from(*address) == entry.network)
            && !routing.shared.contains_key(&entry.network)
    };
    let around = routing.entries.iter().filter(|entry| entry.network.contains(network));
    // What counts is the narrowest certified network around it, as for every packet.
    if let Some(entry) = around.max_by_key(|entry| entry.network.prefix_len())
        && !is_ours(entry)
    {
        return Placement::Nothing(*entry);
    }
    let within = |entry: &&RouteEntry| network.contains(&entry.network) && entry.network != *network && !is_ours(entry);
    routing.entries.iter().find(within).map_or(Placement::Whole, |entry| Placement::But(*entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId::from_bytes([1; 16]);
    const DB: NodeId = NodeId::from_bytes([2; 16]);

    #[test]
    fn certificates_win() {
        let entry = |network: &str, node| RouteEntry { network: network.parse().unwrap(), node };
        let routing = Routing {
            entries: vec![
                entry("10.77.0.1/32", OWN),
                entry("10.77.0.9/32", DB),
                entry("10.78.0.0/24", OWN),
                entry("10.79.0.2/32", OWN),
                entry("192.168.0.0/16", DB),
                entry("192.168.5.0/24", OWN),
            ],
            ..Routing::default()
        };
        let placed = |network: &str| place(&network.parse().unwrap(), &routing, OWN, &["10.77.0.1".parse().unwrap()]);
        assert_eq!(placed("10.77.200.2/32"), Placement::Whole, "nobody's");
        assert_eq!(placed("10.78.0.2/32"), Placement::Whole, "carried by this node");
        assert_eq!(placed("10.79.0.2/32"), Placement::Whole, "a prefix of one address is one");
        assert_eq!(placed("10.78.0.0/24"), Placement::Whole, "all of what this node carries");
        assert_eq!(placed("192.168.5.0/25"), Placement::Whole, "ours inside a member's");
        assert_eq!(placed("10.77.0.9/32"), Placement::Nothing(entry("10.77.0.9/32", DB)));
        assert_eq!(placed("10.77.0.1/32"), Placement::Nothing(entry("10.77.0.1/32", OWN)));
        assert_eq!(placed("192.168.9.0/24"), Placement::Nothing(entry("192.168.0.0/16", DB)));
        assert_eq!(placed("10.77.0.8/29"), Placement::But(entry("10.77.0.9/32", DB)));
        assert_eq!(placed("192.160.0.0/12"), Placement::But(entry("192.168.0.0/16", DB)));
        assert_eq!(placed("10.77.0.0/29"), Placement::But(entry("10.77.0.1/32", OWN)));
        assert_eq!(placed("10.0.0.0/8"), Placement::But(entry("10.77.0.1/32", OWN)));
    }
}

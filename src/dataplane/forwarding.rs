//! Which peer owns which address.

use super::peer::Peer;
use super::prefix_map::PrefixMap;
use crate::tunnel::Tunnel;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// This node's own place in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its overlay IPv4 address.
    pub address_v4: Ipv4Addr,
    /// Its overlay IPv6 address.
    pub address_v6: Ipv6Addr,
    /// The mesh's IPv4 range.
    pub overlay_v4: Ipv4Net,
    /// The mesh's IPv6 range.
    pub overlay_v6: Ipv6Net,
    /// The prefixes it carries itself.
    pub prefixes: Vec<IpNet>,
}

/// Who owns an address.
#[derive(Clone, Copy)]
pub enum Owner<'a> {
    /// This node.
    Local,
    /// A peer, with its number in this table.
    Peer(u32, &'a Arc<Peer>),
    /// Nobody.
    Nobody,
}

/// Who owns which addresses: one answer for where a packet goes and for who may have sent it, so that the two can never
/// disagree. Immutable; the control task publishes a new one for every change of membership.
pub struct ForwardingTable {
    local: Local,
    v4: PrefixMap<u32, u32>,
    v6: PrefixMap<u128, u32>,
    peers: Box<[Arc<Peer>]>,
    /// Peers by the address of their tunnel, sorted. The table keeps the tunnels alive, so no address is reused.
    by_tunnel: Box<[(usize, u32)]>,
}

/// Stands for this node among the peers' numbers.
const LOCAL: u32 = u32::MAX;

impl ForwardingTable {
    /// Builds a table of `peers`, each with its overlay addresses and the prefixes it carries.
    ///
    /// Where two claim the same prefix, this node wins over all, and the lower node id over the higher, so that every
    /// node decides alike; more specific prefixes win over less specific ones.
    pub fn new(local: Local, mut peers: Vec<(Arc<Peer>, Vec<IpNet>)>) -> Self {
        peers.sort_by_key(|(peer, _)| peer.node());
        let mut entries: Vec<(IpNet, u32)> = Vec::new();
        entries.push((IpNet::from(IpAddr::V4(local.address_v4)), LOCAL));
        entries.push((IpNet::from(IpAddr::V6(local.address_v6)), LOCAL));
        entries.extend(local.prefixes.iter().map(|&net| (net, LOCAL)));
        for (number, (_, nets)) in (0u32..).zip(&peers) {
            entries.extend(nets.iter().map(|&net| (net, number)));
        }
        let v4 = entries.iter().filter_map(|&(net, owner)| match net {
            IpNet::V4(net) => Some((u32::from(net.network()), net.prefix_len(), owner)),
            IpNet::V6(_) => None,
        });
        let v6 = entries.iter().filter_map(|&(net, owner)| match net {
            IpNet::V6(net) => Some((u128::from(net.network()), net.prefix_len(), owner)),
            IpNet::V4(_) => None,
        });
        let mut by_tunnel: Vec<(usize, u32)> =
            (0u32..).zip(&peers).map(|(number, (peer, _))| (identity(peer.tunnel()), number)).collect();
        by_tunnel.sort_unstable();
        ForwardingTable {
            v4: PrefixMap::build(v4),
            v6: PrefixMap::build(v6),
            by_tunnel: by_tunnel.into(),
            peers: peers.into_iter().map(|(peer, _)| peer).collect(),
            local,
        }
    }

    /// Returns who owns `address`: where packets to it go, and the only one who may send from it.
    pub fn owner_of(&self, address: IpAddr) -> Owner<'_> {
        let number = match address {
            IpAddr::V4(v4) => self.v4.find(u32::from(v4)),
            IpAddr::V6(v6) => self.v6.find(u128::from(v6)),
        };
        match number {
            Some(LOCAL) => Owner::Local,
            // Numbers come from this table's own construction, so the index exists.
            Some(number) => Owner::Peer(number, &self.peers[number as usize]),
            None => Owner::Nobody,
        }
    }

    /// Returns the peer with this tunnel and its number; `None` for a tunnel whose peer has left the table.
    pub fn by_tunnel(&self, tunnel: &Arc<Tunnel>) -> Option<(u32, &Arc<Peer>)> {
        let wanted = identity(tunnel);
        let at = self.by_tunnel.binary_search_by_key(&wanted, |entry| entry.0).ok()?;
        let number = self.by_tunnel[at].1;
        Some((number, &self.peers[number as usize]))
    }

    /// Tells whether `address` lies in the mesh's own ranges, where the control port is reserved on every address.
    pub fn is_overlay(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.local.overlay_v4.contains(&v4),
            IpAddr::V6(v6) => self.local.overlay_v6.contains(&v6),
        }
    }

    /// Returns this node's own place.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Returns all peers, in order of their node ids.
    pub fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }
}

fn identity(tunnel: &Arc<Tunnel>) -> usize {
    Arc::as_ptr(tunnel).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeId;
    use crate::tunnel::{Host, TunnelOptions};

    fn peer(host: &Host, number: u8) -> Arc<Peer> {
        let tunnel = host.add([number; 32], TunnelOptions::default()).unwrap();
        Peer::new(NodeId::from_bytes([number; 16]), tunnel, 1420)
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn local(prefixes: &[&str]) -> Local {
        Local {
            address_v4: "10.1.0.1".parse().unwrap(),
            address_v6: "fd00::1".parse().unwrap(),
            overlay_v4: "10.1.0.0/16".parse().unwrap(),
            overlay_v6: "fd00::/64".parse().unwrap(),
            prefixes: nets(prefixes),
        }
    }

    fn owner(table: &ForwardingTable, address: &str) -> Option<u8> {
        match table.owner_of(address.parse().unwrap()) {
            Owner::Local => Some(0),
            Owner::Peer(_, peer) => Some(peer.node().as_bytes()[0]),
            Owner::Nobody => None,
        }
    }

    #[test]
    fn nested_prefixes_belong_to_the_most_specific_owner() {
        let host = Host::new([1; 32].into(), [2; 32]);
        let (two, three) = (peer(&host, 2), peer(&host, 3));
        let table = ForwardingTable::new(
            local(&["192.168.7.0/24"]),
            vec![
                (Arc::clone(&three), nets(&["10.1.0.3/32", "fd00::3/128", "192.168.0.0/16", "fd10::/16"])),
                (Arc::clone(&two), nets(&["10.1.0.2/32", "fd00::2/128", "192.168.9.0/24", "fd10:1::/32"])),
            ],
        );
        for (address, expected) in [
            ("10.1.0.1", Some(0)),
            ("10.1.0.2", Some(2)),
            ("fd00::3", Some(3)),
            ("10.1.0.4", None),
            ("192.168.1.1", Some(3)),
            ("192.168.9.1", Some(2)),
            ("192.168.7.1", Some(0)),
            ("fd10:1::1", Some(2)),
            ("fd10:2::1", Some(3)),
            ("8.8.8.8", None),
        ] {
            assert_eq!(owner(&table, address), expected, "{address}");
        }
        assert_eq!(table.by_tunnel(two.tunnel()).unwrap().1.node(), two.node());
        assert!(table.by_tunnel(peer(&host, 4).tunnel()).is_none());
        assert!(table.is_overlay("10.1.200.1".parse().unwrap()));
        assert!(!table.is_overlay("192.168.7.1".parse().unwrap()));
    }

    #[test]
    fn two_claims_of_one_prefix_are_decided_alike_everywhere() {
        let host = Host::new([1; 32].into(), [2; 32]);
        for order in [[2, 3], [3, 2]] {
            let claims = order.map(|number| (peer(&host, number), nets(&["192.168.0.0/16", "10.1.0.1/32"])));
            let table = ForwardingTable::new(local(&[]), claims.into());
            assert_eq!(owner(&table, "192.168.1.1"), Some(2));
            assert_eq!(owner(&table, "10.1.0.1"), Some(0), "nobody takes our own address");
        }
    }
}

//! Which peer owns which address.

use super::peer::Peer;
use super::prefix_map::PrefixMap;
use crate::identity::NodeId;
use crate::policy::Policy;
use crate::tunnel::Tunnel;
use crate::wire::DropReason;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
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
    /// Whether its certificate lets others send through it.
    pub relays: bool,
}

impl Local {
    /// Tells whether an address is the node's own, not one of a network behind it.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.address_v4,
            IpAddr::V6(v6) => v6 == self.address_v6,
        }
    }
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

/// Where an opened packet goes.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    /// To this host.
    Here,
    /// Into another peer's tunnel.
    On(&'a Arc<Peer>),
}

/// Who owns which addresses: one answer for where a packet goes and for who may have sent it, so that the two can never
/// disagree. Of a network that several nodes hold, one of them carries it and any of them may send from it. Immutable; the control
/// task publishes a new one for every change of membership, and where another gateway carries a network.
pub struct ForwardingTable {
    local: Local,
    v4: PrefixMap<u32, u32>,
    v6: PrefixMap<u128, u32>,
    peers: Box<[Arc<Peer>]>,
    /// The networks that several nodes hold.
    shared: Box<[Shared]>,
    /// Peers by the address of their tunnel, sorted. The table keeps the tunnels alive, so no address is reused.
    by_tunnel: Box<[(usize, u32)]>,
    policy: Option<Arc<Policy>>,
}

/// Marks a value of the maps as the place of a shared network, not an owner's number.
const SHARED: u32 = 1 << 31;
/// Stands for this node among the peers' numbers.
const LOCAL: u32 = SHARED - 1;

/// A network that several nodes hold.
struct Shared {
    /// The number of the one that packets go to.
    carrier: u32,
    /// The numbers of all that may send from it, sorted.
    holders: Box<[u32]>,
}

impl ForwardingTable {
    /// Builds a table of `peers`, each with its overlay addresses and the prefixes it carries.
    ///
    /// Where two claim the same prefix, this node wins over all, and the lower node id over the higher, so that every
    /// node decides alike; more specific prefixes win over less specific ones. A stock peer takes its part of what this
    /// node carries, and nothing that a member owns.
    pub fn new(local: Local, peers: Vec<(Arc<Peer>, Vec<IpNet>)>) -> Self {
        ForwardingTable::with_carriers(local, peers, &BTreeMap::new())
    }

    /// Builds a table as [`ForwardingTable::new`] does, in which the networks of `carriers` belong to all that claim them, and
    /// packets go to the node named there; from this node to nobody, where it is one of them.
    pub fn with_carriers(
        local: Local,
        mut peers: Vec<(Arc<Peer>, Vec<IpNet>)>,
        carriers: &BTreeMap<IpNet, NodeId>,
    ) -> Self {
        peers.sort_by_key(|(peer, _)| peer.node());
        let mut entries: Vec<(IpNet, u32)> = Vec::new();
        entries.push((IpNet::from(IpAddr::V4(local.address_v4)), LOCAL));
        entries.push((IpNet::from(IpAddr::V6(local.address_v6)), LOCAL));
        let mut shared: Vec<Shared> = Vec::new();
        for (network, carrier) in carriers {
            let claims =
                |(_, (peer, nets)): &(u32, &(Arc<Peer>, Vec<IpNet>))| !peer.is_stock() && nets.contains(network);
            let mut holders: Vec<u32> = (0u32..).zip(&peers).filter(claims).map(|(number, _)| number).collect();
            let chosen = holders.iter().copied().find(|number| peers[*number as usize].0.node() == *carrier);
            let own = local.prefixes.contains(network).then_some(LOCAL);
            if let Some(carrier) = own.or(chosen).or(holders.first().copied()) {
                holders.extend(own);
                entries.push((*network, SHARED | shared.len() as u32));
                shared.push(Shared { carrier, holders: holders.into() });
            }
        }
        // Of equal prefixes the first stands, so the order is the order of the claims.
        let claims = |wanted: fn(&Peer, bool) -> bool| {
            let local = &local;
            (0u32..).zip(&peers).flat_map(move |(number, (peer, nets))| {
                let mine = nets.iter().filter(move |net| wanted(peer, carries(local, net)));
                mine.map(move |&net| (net, number))
            })
        };
        entries.extend(claims(|peer, carried| peer.is_stock() && carried));
        entries.extend(local.prefixes.iter().map(|&net| (net, LOCAL)));
        entries.extend(claims(|peer, _| !peer.is_stock()));
        entries.extend(claims(|peer, carried| peer.is_stock() && !carried));
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
            shared: shared.into(),
            local,
            policy: None,
        }
    }

    /// Adds what may come in; everything where there is no policy.
    #[must_use]
    pub fn with_policy(mut self, policy: Option<Arc<Policy>>) -> Self {
        self.policy = policy;
        self
    }

    /// Returns what may come in, where there are rules.
    pub fn policy(&self) -> Option<&Arc<Policy>> {
        self.policy.as_ref()
    }

    fn find(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(v4) => self.v4.find(u32::from(v4)),
            IpAddr::V6(v6) => self.v6.find(u128::from(v6)),
        }
    }

    /// The shared network behind a value of the maps.
    fn shared(&self, value: u32) -> Option<&Shared> {
        // Places come from this table's own construction, so they exist.
        (value & SHARED != 0).then(|| &self.shared[(value ^ SHARED) as usize])
    }

    /// Returns who owns `address`: where packets to it go.
    pub fn owner_of(&self, address: IpAddr) -> Owner<'_> {
        let value = self.find(address);
        match value.map(|value| self.shared(value).map_or(value, |shared| shared.carrier)) {
            Some(LOCAL) => Owner::Local,
            // Numbers come from this table's own construction, so the index exists.
            Some(number) => Owner::Peer(number, &self.peers[number as usize]),
            None => Owner::Nobody,
        }
    }

    /// Tells whether the peer with this number may send from `source`: it is the owner, or one of those that hold the network.
    pub fn may_send(&self, peer: u32, source: IpAddr) -> bool {
        self.find(source).is_some_and(|value| match self.shared(value) {
            Some(shared) => shared.holders.binary_search(&peer).is_ok(),
            None => value == peer,
        })
    }

    /// Tells whether this node may send from `source`.
    pub fn is_ours(&self, source: IpAddr) -> bool {
        self.may_send(LOCAL, source)
    }

    /// Decides where an opened packet goes, whose source was found to be `from`'s.
    ///
    /// To this host, or between the mesh and a stock peer. A stock peer takes part in the mesh with those of its addresses
    /// that this node's certificate carries; with all others it reaches this host alone, and nobody reaches it from
    /// elsewhere. Two members never meet here: each pair of them has a tunnel of its own.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] for everything else. The kernel would forward it to wherever its routes lead: a peer has no
    /// business there.
    pub fn way_of(&self, from: &Peer, source: IpAddr, destination: IpAddr) -> Result<Way<'_>, DropReason> {
        match self.owner_of(destination) {
            Owner::Local => Ok(Way::Here),
            Owner::Peer(_, to) => {
                let joins = |peer: &Peer, address: IpAddr| !peer.is_stock() || carries(&self.local, &address.into());
                let passes = (from.is_stock() || to.is_stock())
                    && !std::ptr::eq(from, Arc::as_ptr(to))
                    && joins(from, source)
                    && joins(to, destination);
                passes.then_some(Way::On(to)).ok_or(DropReason::NoRoute)
            }
            Owner::Nobody => Err(DropReason::NoRoute),
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

/// Whether this node's certificate carries all of a network.
fn carries(local: &Local, net: &IpNet) -> bool {
    local.prefixes.iter().any(|prefix| prefix.contains(net))
}

fn identity(tunnel: &Arc<Tunnel>) -> usize {
    Arc::as_ptr(tunnel).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
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
            relays: false,
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

    #[test]
    fn of_a_shared_network_one_carries_it_and_all_may_send_from_it() {
        let host = Host::new([1; 32].into(), [2; 32]);
        let shared: IpNet = "10.20.0.0/16".parse().unwrap();
        let peers = || {
            vec![
                (peer(&host, 3), nets(&["10.1.0.3/32", "10.20.0.0/16"])),
                (peer(&host, 2), nets(&["10.1.0.2/32", "10.20.0.0/16"])),
                (peer(&host, 4), nets(&["10.1.0.4/32", "10.20.7.0/24"])),
            ]
        };
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (carrier, expected) in [(2, 2), (3, 3), (9, 2)] {
            let carriers = [(shared, NodeId::from_bytes([carrier; 16]))].into();
            let table = ForwardingTable::with_carriers(local(&[]), peers(), &carriers);
            assert_eq!(owner(&table, "10.20.0.5"), Some(expected), "one that is not there carries nothing");
            assert_eq!(owner(&table, "10.20.7.5"), Some(4), "the narrower network");
            let may: Vec<bool> = (0..3).map(|number| table.may_send(number, address("10.20.0.5"))).collect();
            assert_eq!(may, [true, true, false], "whoever carries it");
            let may: Vec<bool> = (0..3).map(|number| table.may_send(number, address("10.20.7.5"))).collect();
            assert_eq!(may, [false, false, true]);
            assert!(!table.is_ours(address("10.20.0.5")) && table.is_ours(address("10.1.0.1")));
        }
        // On one of the gateways: the network lies here, and what the other one sends from it is welcome.
        let carriers = [(shared, NodeId::from_bytes([2; 16]))].into();
        let table = ForwardingTable::with_carriers(local(&["10.20.0.0/16"]), peers(), &carriers);
        assert_eq!(owner(&table, "10.20.0.5"), Some(0));
        assert!(table.is_ours(address("10.20.0.5")) && table.may_send(1, address("10.20.0.5")));
        let host_behind = table.way_of(&table.peers()[2], address("10.1.0.4"), address("10.20.0.5"));
        assert!(matches!(host_behind, Ok(Way::Here)));
    }

    fn stock(host: &Host, number: u8) -> Arc<Peer> {
        let tunnel = host.add([number; 32], TunnelOptions::default()).unwrap();
        Peer::new_stock(NodeId::from_bytes([number; 16]), tunnel, 1420)
    }

    #[test]
    fn stock_peers_take_their_part_and_nothing_of_a_member() {
        let host = Host::new([1; 32].into(), [2; 32]);
        let table = ForwardingTable::new(
            local(&["192.168.7.0/24", "192.168.8.0/24"]),
            vec![
                // The lower id, and still the weaker claim.
                (stock(&host, 2), nets(&["10.1.0.1/32", "192.168.9.0/24", "192.168.7.0/24", "192.168.8.2/32"])),
                (peer(&host, 3), nets(&["10.1.0.3/32", "192.168.9.0/24"])),
            ],
        );
        assert_eq!(owner(&table, "10.1.0.1"), Some(0), "our own address");
        assert_eq!(owner(&table, "192.168.9.1"), Some(3), "a member's prefix");
        assert_eq!(owner(&table, "192.168.7.1"), Some(2), "carried by us, for it");
        assert_eq!(owner(&table, "192.168.8.2"), Some(2), "its part of what we carry");
        assert_eq!(owner(&table, "192.168.8.3"), Some(0));
    }

    #[test]
    fn what_passes_between_tunnels() {
        let host = Host::new([1; 32].into(), [2; 32]);
        let (phone, tablet) = (stock(&host, 2), stock(&host, 3));
        let (web, db) = (peer(&host, 4), peer(&host, 5));
        let table = ForwardingTable::new(
            local(&["10.8.0.0/24", "fd08::/64"]),
            vec![
                (Arc::clone(&phone), nets(&["10.8.0.2/32", "fd08::2/128", "10.1.200.2/32"])),
                (Arc::clone(&tablet), nets(&["10.8.0.3/32"])),
                (Arc::clone(&web), nets(&["10.1.0.4/32", "fd00::4/128"])),
                (Arc::clone(&db), nets(&["10.1.0.5/32"])),
            ],
        );
        let way = |from: &Peer, source: &str, destination: &str| match table.way_of(
            from,
            source.parse().unwrap(),
            destination.parse().unwrap(),
        ) {
            Ok(Way::Here) => Some(0),
            Ok(Way::On(to)) => Some(to.node().as_bytes()[0]),
            Err(reason) => {
                assert_eq!(reason, DropReason::NoRoute);
                None
            }
        };
        for (from, source, destination, expected) in [
            (&phone, "10.8.0.2", "10.1.0.4", Some(4)),
            (&phone, "fd08::2", "fd00::4", Some(4)),
            (&web, "10.1.0.4", "10.8.0.2", Some(2)),
            (&phone, "10.8.0.2", "10.8.0.3", Some(3)),
            (&phone, "10.8.0.2", "10.1.0.1", Some(0)),
            // This host's networks, for the kernel to forward if it does.
            (&phone, "10.8.0.2", "10.8.0.77", Some(0)),
            // Not carried: this host alone.
            (&phone, "10.1.200.2", "10.1.0.1", Some(0)),
            (&phone, "10.1.200.2", "10.1.0.4", None),
            (&web, "10.1.0.4", "10.1.200.2", None),
            (&tablet, "10.8.0.3", "10.1.200.2", None),
            // Members have a tunnel of their own; nobody is an exit, and nobody echoes.
            (&web, "10.1.0.4", "10.1.0.5", None),
            (&phone, "10.8.0.2", "8.8.8.8", None),
            (&phone, "10.8.0.2", "10.8.0.2", None),
        ] {
            assert_eq!(way(from, source, destination), expected, "{source} to {destination}");
        }
    }
}

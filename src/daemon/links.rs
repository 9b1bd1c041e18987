//! The tunnels of this node as the control task holds them, and the forwarding table made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::outage::Outage;
use super::policy::Rules;
use super::stock::Stock;
use crate::control;
use crate::control::placement::{Placement, place};
use crate::control::routing::{RouteEntry, Routing};
use crate::control::verdict::Verdict;
use crate::dataplane::{ForwardingTable, Local, Origin, Path, Peer, RelayPath};
use crate::identity::{NodeId, WireguardKey};
use crate::platform::steering::shard_of;
use crate::policy::Policy;
use crate::telemetry::{LinkCounters, LinkStatistics};
use crate::time::Instant;
use crate::tunnel::{AddError, Host, Shard, TunnelOptions};

/// A tunnel is looked at no later than this after the last time: traffic may have brought its next deadline forward, but
/// never to less than ten seconds from then.
const LONGEST_TICK: Duration = Duration::from_secs(5);

/// One peer's tunnel and what belongs to it.
pub(super) struct Link {
    pub(super) key: WireguardKey,
    pub(super) address: Ipv6Addr,
    pub(super) peer: Arc<Peer>,
    pub(super) statistics: LinkStatistics,
    pub(super) counters: LinkCounters,
    pub(super) outage: Outage,
    /// Whether its path ever carried less than the interface's MTU: what the kernel then learned of it must be unlearned
    /// where that changes, so that it keeps a route of its own.
    pub(super) sized: bool,
    /// What others say of its silence.
    pub(super) verdict: Option<Verdict>,
    /// What was declared of it, for a stock WireGuard peer; `None` for a member.
    pub(super) stock: Option<Stock>,
    /// The address of ours that the peer's newest datagram was sent to, with the endpoint it came from.
    seen: Option<(SocketAddr, IpAddr)>,
    tick_at: Instant,
}

/// All links of this node.
pub(super) struct Links {
    host: Arc<Host>,
    mtu: u16,
    links: BTreeMap<NodeId, Link>,
    by_key: BTreeMap<WireguardKey, NodeId>,
    /// What the tunnels want done at that time.
    ticks: BTreeSet<(Instant, NodeId)>,
    /// When a tunnel is to be looked at again: on the next occasion after that time.
    looks: BTreeSet<(Instant, NodeId)>,
    table: Arc<ArcSwap<ForwardingTable>>,
    local: Local,
    /// How many threads move packets.
    shards: u8,
    /// What outlives one policy of those published with the tables.
    pub(super) rules: Rules,
}

impl Links {
    pub(super) fn new(host: Arc<Host>, local: Local, mtu: u16, shards: u8) -> Self {
        let table = Arc::new(ArcSwap::from_pointee(ForwardingTable::new(local.clone(), Vec::new())));
        let (links, by_key) = (BTreeMap::new(), BTreeMap::new());
        Links {
            host,
            mtu,
            links,
            by_key,
            ticks: BTreeSet::new(),
            looks: BTreeSet::new(),
            table,
            local,
            shards,
            rules: Rules::default(),
        }
    }

    /// The table as the data threads see it.
    pub(super) fn table(&self) -> &Arc<ArcSwap<ForwardingTable>> {
        &self.table
    }

    /// What may come in, where there are rules.
    pub(super) fn policy(&self) -> Option<Arc<Policy>> {
        self.table.load().policy().cloned()
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Link> {
        self.links.get(&node)
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut Link> {
        self.links.get_mut(&node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Link)> {
        self.links.iter().map(|(node, link)| (*node, link))
    }

    /// Gives each link its median round trip of the last week, as far as it is known.
    pub(super) fn set_baselines(&mut self, baselines: &BTreeMap<NodeId, Duration>) {
        for (node, link) in &mut self.links {
            link.statistics.set_baseline(baselines.get(node).copied());
        }
    }

    /// The peer whose tunnel has this key.
    pub(super) fn node_of(&self, key: &[u8; 32]) -> Option<NodeId> {
        let key = WireguardKey::from_bytes(*key).ok()?;
        self.by_key.get(&key).copied()
    }

    pub(super) fn add(
        &mut self,
        node: NodeId,
        key: WireguardKey,
        address: Ipv6Addr,
        endpoint: Option<SocketAddr>,
        now: Instant,
    ) -> Result<(), AddError> {
        // The control engine decides when to try a peer; the tunnel only follows up on what was begun.
        let options = TunnelOptions { mtu: usize::from(self.mtu), keep_up: false, ..TunnelOptions::default() };
        let tunnel = self.host.add(*key.as_bytes(), options)?;
        let peer = Peer::new(node, tunnel, self.mtu);
        self.insert(node, Link::new(key, address, peer, None, now));
        if let Some(endpoint) = endpoint {
            self.set_endpoint(node, endpoint);
        }
        Ok(())
    }

    fn insert(&mut self, node: NodeId, link: Link) {
        self.by_key.insert(link.key, node);
        self.ticks.insert((link.tick_at, node));
        self.links.insert(node, link);
    }

    /// Makes a stock peer's link as declared: a new one, or the one that is there with what changed.
    pub(super) fn declare(&mut self, stock: Stock, now: Instant) -> Result<NodeId, AddError> {
        let key = stock.declared.public_key;
        let node = stock_node(&key);
        let known = self.links.get(&node).and_then(|link| link.stock.as_ref());
        let endpoint = stock.declared.endpoint;
        // A peer that has moved is left where it is, unless its declared place is news.
        let place = endpoint.filter(|_| known.is_none_or(|known| known.declared.endpoint != endpoint));
        let reachable = endpoint.is_some() || self.links.get(&node).is_some_and(|link| link.peer.path().is_some());
        let tunnel = self.host.add(*key.as_bytes(), stock.options(self.mtu, reachable))?;
        match self.links.get_mut(&node) {
            Some(link) => link.stock = Some(stock),
            None => {
                let peer = Peer::new_stock(node, tunnel, self.mtu);
                self.insert(node, Link::new(key, Ipv6Addr::UNSPECIFIED, peer, Some(stock), now));
            }
        }
        if let Some(endpoint) = place {
            self.set_endpoint(node, endpoint);
        }
        self.set_tick(node, now, now);
        Ok(node)
    }

    /// The stock peers with their links.
    pub(super) fn stocks(&self) -> impl Iterator<Item = (NodeId, &Link, &Stock)> {
        self.links.iter().filter_map(|(node, link)| Some((*node, link, link.stock.as_ref()?)))
    }

    /// A stock peer's declaration; `None` for a member.
    pub(super) fn stock(&self, node: NodeId) -> Option<&Stock> {
        self.links.get(&node)?.stock.as_ref()
    }

    /// Sends a stock peer's datagrams to where an authentic one came from, and from now on starts sessions there by itself
    /// where it is to be kept up. Returns whether that is another place than before.
    pub(super) fn follow_stock(&mut self, node: NodeId, origin: &Origin, source: SocketAddr) -> bool {
        self.note_arrival(node, origin);
        let Some(link) = self.links.get(&node) else { return false };
        let Some(stock) = &link.stock else { return false };
        let before = link.endpoint();
        if before.is_none() {
            link.peer.tunnel().set_options(stock.options(self.mtu, true));
        }
        self.set_endpoint(node, source);
        before != Some(source)
    }

    pub(super) fn remove(&mut self, node: NodeId, now: Instant) {
        if let Some(link) = self.links.remove(&node) {
            self.by_key.remove(&link.key);
            // Paths by relays hold on to peers, and perhaps two of them to each other.
            link.peer.set_path(None);
            self.ticks.remove(&(link.tick_at, node));
            self.looks.remove(&(link.tick_at, node));
            self.host.remove(now, link.key.as_bytes());
        }
    }

    /// Sends a peer's datagrams by a path from now on.
    pub(super) fn set_path(&mut self, node: NodeId, path: control::path::Path) {
        if let Some(link) = self.links.get(&node)
            && let Some(path) = self.along(link, path)
        {
            link.peer.set_path(Some(path));
        }
    }

    /// A path as the data threads take it: where it leaves the choice of our address open, the one that the peer uses; `None`
    /// for a relay that is no peer.
    pub(super) fn along(&self, link: &Link, path: control::path::Path) -> Option<Path> {
        match path {
            control::path::Path::Direct { remote, local: Some(local) } => {
                Some(Path::Direct { remote, local: Some(local) })
            }
            control::path::Path::Direct { remote, local: None } => Some(link.path_to(remote)),
            control::path::Path::Relay { via } => self.through(via, link.address),
        }
    }

    /// Where an answer goes to what came from there.
    pub(super) fn back(&self, origin: &Origin) -> Option<Path> {
        match *origin {
            Origin::Underlay { source, local } => Some(Path::Direct { remote: source, local }),
            Origin::Relay { via, from } => self.through(via, self.get(from)?.address),
        }
    }

    fn through(&self, via: NodeId, destination: Ipv6Addr) -> Option<Path> {
        let via = Arc::clone(&self.get(via)?.peer);
        Some(Path::Relay(RelayPath { via, source: self.local.address_v6, destination }))
    }

    /// Sends a peer's datagrams to an endpoint, from the address of ours that the peer uses where that is known.
    pub(super) fn set_endpoint(&mut self, node: NodeId, endpoint: SocketAddr) {
        if let Some(link) = self.links.get(&node) {
            link.peer.set_path(Some(link.path_to(endpoint)));
        }
    }

    /// Notes from where to where a peer's datagram went.
    pub(super) fn note_arrival(&mut self, node: NodeId, origin: &Origin) {
        if let (Some(link), Origin::Underlay { source, local: Some(local) }) = (self.links.get_mut(&node), *origin) {
            link.seen = Some((source, local));
        }
    }

    /// The next tunnel whose time has come.
    pub(super) fn pop_tick(&mut self, now: Instant) -> Option<NodeId> {
        for queue in [&mut self.ticks, &mut self.looks] {
            if queue.first().is_some_and(|(at, _)| *at <= now) {
                return queue.pop_first().map(|(_, node)| node);
            }
        }
        None
    }

    /// When to be awake for a tunnel at the latest. A mere look wakes nobody: the control task is awake many times a second
    /// in any mesh, and once a second on its own.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.ticks.first().map(|(at, _)| *at)
    }

    /// Plans a tunnel's next look.
    pub(super) fn set_tick(&mut self, node: NodeId, at: Instant, now: Instant) {
        if let Some(link) = self.links.get_mut(&node) {
            self.ticks.remove(&(link.tick_at, node));
            self.looks.remove(&(link.tick_at, node));
            let look = now + LONGEST_TICK;
            // Never at once again: a deadline in the past is a millisecond from now.
            link.tick_at = at.min(look).max(now + Duration::from_millis(1));
            let queue = if at < look { &mut self.ticks } else { &mut self.looks };
            queue.insert((link.tick_at, node));
        }
    }

    /// The networks that are left to a stock peer, each with the part that is not.
    pub(super) fn placed(
        &self,
        stock: &Stock,
        routing: &Routing,
        own: NodeId,
    ) -> impl Iterator<Item = (IpNet, Option<RouteEntry>)> {
        let addresses = [self.local.address_v4.into(), self.local.address_v6.into()];
        stock.declared.addresses.iter().filter_map(move |network| match place(network, routing, own, &addresses) {
            Placement::Whole => Some((*network, None)),
            Placement::But(entry) => Some((*network, Some(entry))),
            Placement::Nothing(_) => None,
        })
    }

    /// Publishes a table of the owners that the certificates name, and of what they leave to the stock peers, with what may
    /// come in.
    pub(super) fn publish(&mut self, routing: &Routing, own: NodeId, policy: Option<Arc<Policy>>) {
        let mut networks: BTreeMap<NodeId, Vec<IpNet>> = BTreeMap::new();
        for entry in &routing.entries {
            networks.entry(entry.node).or_default().push(entry.network);
        }
        self.local.prefixes = networks.remove(&own).unwrap_or_default();
        self.local.relays = routing.relays.contains(&own);
        let peers = self
            .links
            .iter()
            .map(|(node, link)| {
                link.peer.set_relay(routing.relays.contains(node));
                let networks: Vec<IpNet> = match &link.stock {
                    Some(stock) => self.placed(stock, routing, own).map(|(network, _)| network).collect(),
                    None => networks.remove(node).unwrap_or_default(),
                };
                // One thread for both directions of what goes to the peer's own address; several, where there is more.
                let is_one = |network: &&IpNet| network.prefix_len() == network.max_prefix_len();
                let shards = networks.iter().filter(is_one).map(|network| shard_of(network.addr(), self.shards));
                let shards: BTreeSet<u8> = shards.collect();
                let all_one = networks.iter().all(|network| is_one(&network));
                link.peer.set_shared(self.shards > 1 && !(all_one && shards.len() == 1));
                if let Some(&number) = shards.first() {
                    link.peer.tunnel().set_shard(Shard { number, of: self.shards });
                }
                (Arc::clone(&link.peer), networks)
            })
            .collect();
        let table = ForwardingTable::with_carriers(self.local.clone(), peers, &routing.carriers);
        self.table.store(Arc::new(table.with_policy(policy)));
    }
}

impl Link {
    fn new(key: WireguardKey, address: Ipv6Addr, peer: Arc<Peer>, stock: Option<Stock>, now: Instant) -> Link {
        Link {
            key,
            address,
            peer,
            statistics: LinkStatistics::new(),
            counters: LinkCounters::default(),
            outage: Outage::default(),
            sized: false,
            verdict: None,
            stock,
            seen: None,
            tick_at: now,
        }
    }

    fn path_to(&self, endpoint: SocketAddr) -> Path {
        let local = self.seen.filter(|(source, _)| *source == endpoint).map(|(_, local)| local);
        Path::Direct { remote: endpoint, local }
    }

    /// Where its datagrams go, unless a relay takes them.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        match self.peer.path().as_deref() {
            Some(Path::Direct { remote, .. }) => Some(*remote),
            Some(Path::Relay(_)) | None => None,
        }
    }
}

/// What stands for a node id in a stock peer's link. It has none of its own; ids of members are random, so one made of
/// the key meets none.
fn stock_node(key: &WireguardKey) -> NodeId {
    let digest = Sha256::new().chain_update(b"meshd stock peer").chain_update(key.as_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    NodeId::from_bytes(bytes)
}

//! What the host's link, addresses and routes should be, what they are, and the steps between.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// The protocol number that marks our routes and addresses, so that cleaning up finds exactly ours.
///
/// Above 4 the kernel does not interpret it. 77 (an ASCII `M`) is free in iproute2's `rt_protos` (0–18, 42, 99,
/// 186–192), in FRR (191–198) and with the other network daemons met on servers (Calico 80, OVN 84). A daemon
/// takes all routes with the number for its own, so two meshes on one host need a network namespace each.
pub const ROUTE_PROTOCOL: u8 = 77;

/// The metric of routes through the TUN: worse than what an administrator adds by hand (0; 1,024 for IPv6 is the
/// kernel's default and must not win over ours, so ours is below it).
pub const TUNNEL_METRIC: u32 = 512;

/// The metric of the `unreachable` routes under them: worse than any metric network managers give (NetworkManager stays
/// below 2^20), so that it only speaks when nothing else does.
pub const COVER_METRIC: u32 = 4_000_000_000;

/// The wanted state of the host. Everything is ours; what others made is neither in it nor touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// The TUN device, or `None` where there is none (the daemon is stopped): then only covers are kept.
    pub device: Option<Device>,
    /// Overlay ranges and carried prefixes for which an `unreachable` route must stand as long as the mesh is
    /// configured, so that no flow ever leaves in clear while the device is gone.
    pub covers: BTreeSet<IpNet>,
}

/// The wanted state of the TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes; at least 1,280, or the kernel switches IPv6 off on it.
    pub mtu: u32,
    /// This node's overlay addresses; each is set as a single address (/32, /128).
    pub addresses: BTreeSet<IpAddr>,
    /// The prefixes routed through it.
    pub routes: BTreeSet<IpNet>,
    /// Of these, and of parts of them, the ones to which packets may be smaller or larger than others, in bytes: they get
    /// a route with an MTU of its own.
    pub sized: BTreeMap<IpNet, u32>,
}

/// The state found on the host, reduced to what is ours or on our device.
#[derive(Clone, Debug, Default)]
pub struct Actual {
    /// The device, where it exists.
    pub device: Option<ActualDevice>,
    /// The routes that carry our protocol number, in any table.
    pub routes: BTreeSet<Route>,
}

/// The state of the TUN device found on the host.
#[derive(Clone, Debug, Default)]
pub struct ActualDevice {
    /// Its interface index.
    pub index: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// All its addresses except IPv6 link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// Those among them that carry our protocol number (Linux 5.18 and later report it).
    pub marked: BTreeSet<IpNet>,
}

/// One route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination.
    pub destination: IpNet,
    /// The device it leads through, or `None` for an `unreachable` one.
    pub device: Option<u32>,
    /// Its metric; lower wins.
    pub metric: u32,
    /// Its MTU in bytes, where it is not the device's.
    pub mtu: Option<u32>,
    /// Its table.
    pub table: u32,
}

/// The table our routes are in: `main`, where administrators and their tools look.
pub const MAIN_TABLE: u32 = 254;

/// One step towards the wanted state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Sets the device's MTU and puts it up.
    SetLink {
        /// Interface index.
        index: u32,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Adds an address.
    AddAddress {
        /// Interface index.
        index: u32,
        /// The address.
        address: IpAddr,
    },
    /// Removes an address of ours.
    RemoveAddress {
        /// Interface index.
        index: u32,
        /// The address and its length.
        address: IpNet,
    },
    /// Adds a route.
    AddRoute(Route),
    /// Gives a route of ours another MTU.
    ReplaceRoute(Route),
    /// Removes a route of ours.
    RemoveRoute(Route),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::SetLink { mtu, .. } => write!(f, "set the device up with MTU {mtu}"),
            Change::AddAddress { address, .. } => write!(f, "add address {address}"),
            Change::RemoveAddress { address, .. } => write!(f, "remove address {address}"),
            Change::AddRoute(route) => write!(f, "add {route}"),
            Change::ReplaceRoute(route) => write!(f, "replace {route}"),
            Change::RemoveRoute(route) => write!(f, "remove {route}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.device.is_some() { "route" } else { "unreachable route" };
        write!(f, "{kind} {} metric {}", self.destination, self.metric)?;
        self.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
    }
}

/// Returns the steps from `actual` to `wanted`, in an order in which no packet for the mesh can leave in clear: covers
/// first, removals last, and of those the covers last.
pub fn difference(wanted: &HostState, actual: &Actual) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut replaced = BTreeSet::new();
    let mut routes: BTreeSet<Route> = wanted.covers.iter().map(|&net| cover(net)).collect();
    changes.extend(routes.difference(&actual.routes).map(|&route| Change::AddRoute(route)));

    if let (Some(device), Some(found)) = (&wanted.device, &actual.device) {
        let index = found.index;
        if !found.up || found.mtu != device.mtu {
            changes.push(Change::SetLink { index, mtu: device.mtu });
        }
        let addresses: BTreeSet<IpNet> = device.addresses.iter().map(|&address| IpNet::from(address)).collect();
        let missing = addresses.difference(&found.addresses);
        changes.extend(missing.map(|net| Change::AddAddress { index, address: net.addr() }));
        let nets = device.routes.iter().chain(device.sized.keys());
        let through: BTreeSet<Route> = nets.map(|net| tunnel(*net, index, device.sized.get(net).copied())).collect();
        let replaces = |route: &Route| actual.routes.iter().any(|there| Route { mtu: route.mtu, ..*there } == *route);
        changes.extend(through.difference(&actual.routes).map(|route| match replaces(route) {
            true => Change::ReplaceRoute(*route),
            false => Change::AddRoute(*route),
        }));
        replaced.extend(through.iter().map(|route| Route { mtu: None, ..*route }));
        routes.extend(through);
        let surplus = found.marked.difference(&addresses);
        changes.extend(surplus.map(|&address| Change::RemoveAddress { index, address }));
    }
    let stays = |route: &Route| routes.contains(route) || replaced.contains(&Route { mtu: None, ..*route });
    let mut surplus: Vec<Route> = actual.routes.iter().filter(|route| !stays(route)).copied().collect();
    surplus.sort_by_key(|route| (route.device.is_none(), *route));
    changes.extend(surplus.into_iter().map(Change::RemoveRoute));
    changes
}

fn cover(net: IpNet) -> Route {
    Route { destination: net.trunc(), device: None, metric: COVER_METRIC, mtu: None, table: MAIN_TABLE }
}

fn tunnel(net: IpNet, index: u32, mtu: Option<u32>) -> Route {
    Route { destination: net.trunc(), device: Some(index), metric: TUNNEL_METRIC, mtu, table: MAIN_TABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn wanted() -> HostState {
        HostState {
            device: Some(Device {
                name: "mesh0".into(),
                mtu: 1420,
                addresses: ["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
                routes: nets(&["10.1.0.0/16", "fd00::/64"]),
                sized: BTreeMap::new(),
            }),
            covers: nets(&["10.1.0.0/16", "fd00::/64"]),
        }
    }

    fn up(index: u32) -> Actual {
        let device = ActualDevice { index, up: true, mtu: 1420, ..Default::default() };
        Actual { device: Some(device), routes: BTreeSet::new() }
    }

    #[test]
    fn covers_come_first_and_leave_last() {
        let changes = difference(&wanted(), &up(7));
        assert!(matches!(changes[0], Change::AddRoute(Route { device: None, .. })));
        assert!(matches!(changes[1], Change::AddRoute(Route { device: None, .. })));
        assert_eq!(changes.len(), 6);

        let mut full = up(7);
        full.routes = [cover("10.1.0.0/16".parse().unwrap()), tunnel("10.1.0.0/16".parse().unwrap(), 7, None)].into();
        let removals = difference(&HostState::default(), &full);
        assert!(matches!(
            removals[..],
            [Change::RemoveRoute(Route { device: Some(7), .. }), Change::RemoveRoute(Route { device: None, .. })]
        ));
    }

    #[test]
    fn a_route_through_a_former_device_is_replaced() {
        let mut actual = up(8);
        actual.routes = [tunnel("10.1.0.0/16".parse().unwrap(), 7, None)].into();
        let changes = difference(&wanted(), &actual);
        assert!(changes.contains(&Change::AddRoute(tunnel("10.1.0.0/16".parse().unwrap(), 8, None))));
        assert!(changes.contains(&Change::RemoveRoute(tunnel("10.1.0.0/16".parse().unwrap(), 7, None))));
    }

    #[test]
    fn addresses_of_others_on_the_device_stay() {
        let mut actual = up(7);
        let device = actual.device.as_mut().unwrap();
        device.addresses = nets(&["10.1.0.1/32", "fd00::1/128", "192.0.2.1/24", "10.1.0.9/32"]);
        device.marked = nets(&["10.1.0.1/32", "fd00::1/128", "10.1.0.9/32"]);
        let changes = difference(&wanted(), &actual);
        let removed: Vec<_> = changes.iter().filter(|c| matches!(c, Change::RemoveAddress { .. })).collect();
        assert_eq!(removed, [&Change::RemoveAddress { index: 7, address: "10.1.0.9/32".parse().unwrap() }]);
        assert!(!changes.iter().any(|c| matches!(c, Change::AddAddress { .. })));
    }

    #[test]
    fn another_mtu_replaces_the_route_and_nothing_goes_missing_meanwhile() {
        let [part, whole]: [IpNet; 2] = ["10.1.0.7/32", "10.1.0.0/16"].map(|net| net.parse().unwrap());
        let mut state = wanted();
        state.covers.clear();
        state.device.as_mut().unwrap().sized = [(part, 1_280)].into();
        let mut actual = up(7);
        let added = difference(&state, &actual);
        assert!(added.contains(&Change::AddRoute(tunnel(part, 7, Some(1_280)))));
        assert!(added.contains(&Change::AddRoute(tunnel(whole, 7, None))));
        let routes = added.iter().filter_map(|c| if let Change::AddRoute(route) = c { Some(*route) } else { None });
        actual.routes = routes.collect();
        actual.device.as_mut().unwrap().addresses = nets(&["10.1.0.1/32", "fd00::1/128"]);
        assert_eq!(difference(&state, &actual), []);
        state.device.as_mut().unwrap().sized = [(part, 1_328), (whole, 1_300)].into();
        let want = [(whole, 1_300), (part, 1_328)].map(|(net, mtu)| Change::ReplaceRoute(tunnel(net, 7, Some(mtu))));
        assert_eq!(difference(&state, &actual), want);
        state.device.as_mut().unwrap().sized.clear();
        assert_eq!(difference(&state, &actual), [Change::RemoveRoute(tunnel(part, 7, Some(1_280)))]);
    }
}

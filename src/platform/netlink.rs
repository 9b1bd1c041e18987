//! The host's link, addresses and routes, by netlink.

use super::host_state::{Actual, ActualDevice, Change, HostState, ROUTE_PROTOCOL, Route, difference};
use futures_util::{Stream, StreamExt};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::time::Duration;
use tokio::task::AbortHandle;

/// Why the host's state could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Connect(io::Error),
    /// The kernel did not tell.
    #[error("cannot read the host's {what} by netlink: {reason}")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// The TUN device is gone.
    #[error("the device {0} does not exist (was it deleted?): it must be made anew")]
    NoDevice(String),
}

/// Why one change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The process may not.
    #[error("not permitted: the daemon needs CAP_NET_ADMIN")]
    Forbidden,
    /// Somebody else's route has the same destination and metric, or the address is set otherwise.
    #[error("somebody else has set the same one: see `ip route` and `ip address`")]
    Taken,
    /// IPv6 is switched off on this host or device.
    #[error("this address family is switched off here")]
    FamilyOff,
    /// Anything else.
    #[error("{0}")]
    Other(Errno),
}

impl From<Errno> for ChangeError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPERM => ChangeError::Forbidden,
            Errno::EEXIST => ChangeError::Taken,
            // IPv6 answers EACCES where `disable_ipv6` is set for the device.
            Errno::EACCES | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP => ChangeError::FamilyOff,
            other => ChangeError::Other(other),
        }
    }
}

/// What [`Host::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The changes made, in order; none where the host was as wanted.
    pub made: Vec<Change>,
    /// The changes the kernel refused. The others were made nevertheless.
    pub failed: Vec<(Change, ChangeError)>,
}

/// How often and how far apart it is asked whether a new address is ready: at most half a second in all.
const LOCAL_LOOKS: usize = 250;
const LOCAL_PAUSE: Duration = Duration::from_millis(2);

/// A netlink connection to the network namespace this was made in.
#[derive(Debug)]
pub struct Host {
    pub(super) handle: Handle,
    connection: AbortHandle,
    protocol: u8,
}

impl Host {
    /// Connects, marking everything with [`ROUTE_PROTOCOL`]. Must be called inside a tokio runtime with its timer, which
    /// serves the connection.
    pub fn connect() -> Result<Self, HostError> {
        Self::connect_marked(ROUTE_PROTOCOL)
    }

    /// Connects as [`Host::connect`] does, with a route protocol number of the caller's choice above 4.
    pub fn connect_marked(protocol: u8) -> Result<Self, HostError> {
        // With strict checking the kernel itself picks our routes out of what may be a full internet table; kernels
        // before 4.20 lack it and tell us everything.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .or_else(|_| rtnetlink::new_connection())
            .map_err(HostError::Connect)?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Host { handle, connection, protocol })
    }

    /// Makes the host as wanted, changing only what differs and only what is ours. Applying twice changes nothing.
    ///
    /// # Errors
    /// [`HostError::NoDevice`] where the device is missing, after the covers have been set. A change the kernel refuses
    /// is no error here but listed in the result.
    pub async fn apply(&self, wanted: &HostState) -> Result<Applied, HostError> {
        let actual = self.actual(wanted.device.as_ref().map(|device| device.name.as_str())).await?;
        let mut applied = Applied::default();
        for change in difference(wanted, &actual) {
            match self.make(&change).await {
                Ok(()) => applied.made.push(change),
                Err(error) => applied.failed.push((change, error)),
            }
        }
        match &wanted.device {
            Some(device) if actual.device.is_none() => Err(HostError::NoDevice(device.name.clone())),
            _ => Ok(applied),
        }
    }

    /// Reads what is ours on the host, and the state of `device`.
    pub async fn actual(&self, device: Option<&str>) -> Result<Actual, HostError> {
        let device = match device {
            Some(name) => self.device(name).await?,
            None => None,
        };
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for message in self.routes(family).await? {
                routes.extend(route_of(&message));
            }
        }
        Ok(Actual { device, routes })
    }

    /// Removes every route of ours, also those a crashed predecessor left, and returns how many.
    ///
    /// Addresses need no cleaning: they go with the device ([`Host::remove_orphans`]).
    pub async fn cleanup(&self) -> Result<usize, HostError> {
        let mut removed = 0;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for message in self.routes(family).await? {
                let deletion = self.handle.route().del(message).execute().await;
                match refusal(deletion) {
                    Ok(()) => removed += 1,
                    // It went between listing and removing.
                    Err(Errno::ESRCH) => {}
                    Err(errno) => {
                        return Err(HostError::Read { what: "routes for removal", reason: errno.desc().into() });
                    }
                }
            }
        }
        Ok(removed)
    }

    async fn device(&self, name: &str) -> Result<Option<ActualDevice>, HostError> {
        let link = match first(self.handle.link().get().match_name(name).execute()).await {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(None),
            Err(error) if errno_of(&error) == Some(Errno::ENODEV) => return Ok(None),
            Err(error) => return Err(reading("links", &error)),
        };
        let mut device = device_of(&link);
        let request = self.handle.address().get().set_link_index_filter(device.index);
        for message in all(request.execute()).await.map_err(|error| reading("addresses", &error))? {
            let Some(net) = address_of(&message) else { continue };
            device.addresses.insert(net);
            let mark = AddressAttribute::Protocol(AddressProtocol::Other(self.protocol));
            if message.attributes.contains(&mark) {
                device.marked.insert(net);
            }
        }
        Ok(Some(device))
    }

    /// Lists the routes that carry our protocol number.
    async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, HostError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.protocol = RouteProtocol::from(self.protocol);
        let mut messages = match all(self.handle.route().get(filter).execute()).await {
            Ok(messages) => messages,
            // A kernel without IPv6 has no such routes.
            Err(error) if matches!(errno_of(&error), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => Vec::new(),
            Err(error) => return Err(reading("routes", &error)),
        };
        messages.retain(|message| u8::from(message.header.protocol) == self.protocol);
        Ok(messages)
    }

    /// Waits until the kernel delivers packets to `address` here.
    ///
    /// For IPv6 the local route is set by a work queue some milliseconds after the address, duplicate detection or not;
    /// until then packets to the address are lost. An address that is not ready within the time given (the device may
    /// have been set down meanwhile) is left to the next [`Host::apply`].
    async fn await_local(&self, address: IpAddr) {
        for _ in 0..LOCAL_LOOKS {
            let mut question = RouteMessage::default();
            question.header.address_family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
            question.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
            let answer = first(self.handle.route().get(question).execute()).await;
            if matches!(answer, Ok(Some(route)) if route.header.kind == RouteType::Local) {
                return;
            }
            tokio::time::sleep(LOCAL_PAUSE).await;
        }
    }

    async fn make(&self, change: &Change) -> Result<(), ChangeError> {
        let outcome = match *change {
            Change::SetLink { index, mtu } => {
                // An automatic link-local address would only make the kernel solicit routers into the tunnel. Where
                // IPv6 is switched off, there is nothing to prevent.
                let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
                let quiet = LinkUnspec::new_with_index(index)
                    .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
                    .build();
                let _ = self.handle.link().set(quiet).execute().await;
                self.handle.link().set(LinkUnspec::new_with_index(index).mtu(mtu).up().build()).execute().await
            }
            Change::AddAddress { index, address } => {
                let length = if address.is_ipv4() { 32 } else { 128 };
                let mut request = self.handle.address().add(index, address, length);
                let message = request.message_mut();
                // No duplicate detection: there is no neighbour to ask, and it would keep the address unusable for a
                // second. No prefix route: the routes are ours to set.
                let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(flags));
                message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(self.protocol)));
                let added = request.execute().await;
                if added.is_ok() {
                    self.await_local(address).await;
                }
                added
            }
            Change::RemoveAddress { index, address } => {
                let mut message = AddressMessage::default();
                message.header.index = index;
                message.header.family =
                    if address.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                message.header.prefix_len = address.prefix_len();
                message.attributes.push(AddressAttribute::Local(address.addr()));
                self.handle.address().del(message).execute().await
            }
            Change::AddRoute(ref route) => self.handle.route().add(route_message(route, self.protocol)).execute().await,
            Change::ReplaceRoute(ref route) => {
                self.handle.route().add(route_message(route, self.protocol)).replace().execute().await
            }
            Change::RemoveRoute(ref route) => {
                self.handle.route().del(route_message(route, self.protocol)).execute().await
            }
        };
        match (refusal(outcome), change) {
            (Err(Errno::ESRCH), Change::RemoveRoute(_)) => Ok(()),
            (Err(Errno::EADDRNOTAVAIL), Change::RemoveAddress { .. }) => Ok(()),
            (outcome, _) => outcome.map_err(ChangeError::from),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn route_message(route: &Route, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    let address = route.destination.network();
    message.header.address_family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.protocol = RouteProtocol::from(protocol);
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    match route.device {
        Some(index) => {
            message.header.kind = RouteType::Unicast;
            // No gateway: for IPv4 that is a destination on the link.
            message.header.scope = if address.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
            message.attributes.push(RouteAttribute::Oif(index));
        }
        None => message.header.kind = RouteType::Unreachable,
    }
    message
}

/// Reads a route of ours back. `None` for kinds we never make (they stay, and `cleanup` still removes them).
fn route_of(message: &RouteMessage) -> Option<Route> {
    let v4 = message.header.address_family == AddressFamily::Inet;
    let mut address = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let mut route_device = None;
    // The kernel omits a metric of 0, and the table attribute never.
    let (mut metric, mut table, mut mtu) = (0, u32::from(message.header.table), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = IpAddr::V4(*v4),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = IpAddr::V6(*v6),
            RouteAttribute::Oif(index) => route_device = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Metrics(metrics) => {
                let told = |metric: &RouteMetric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None };
                mtu = metrics.iter().find_map(told);
            }
            _ => {}
        }
    }
    let device = match message.header.kind {
        RouteType::Unicast => Some(route_device?),
        // IPv6 reports an unreachable route as one through `lo`.
        RouteType::Unreachable => None,
        _ => return None,
    };
    let destination = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, device, metric, mtu, table })
}

pub(super) fn device_of(link: &LinkMessage) -> ActualDevice {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    ActualDevice {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        mtu: mtu.unwrap_or(0),
        ..Default::default()
    }
}

/// Returns an address with its prefix length, except IPv6 link-local ones, which the kernel sets by itself.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    // IPv4 gives the address as Local (Address is the other end on a point-to-point link); IPv6 gives only Address.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if link_local { None } else { IpNet::new(address, message.header.prefix_len).ok() }
}

pub(super) async fn all<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, rtnetlink::Error> {
    let mut stream = pin!(stream);
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item?);
    }
    Ok(items)
}

async fn first<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Option<T>, rtnetlink::Error> {
    pin!(stream).next().await.transpose()
}

fn errno_of(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(message.raw_code().saturating_neg())),
        _ => None,
    }
}

pub(super) fn refusal(outcome: Result<(), rtnetlink::Error>) -> Result<(), Errno> {
    // A request that never reached the kernel (the connection's task has ended) counts as a broken pipe.
    outcome.map_err(|error| errno_of(&error).unwrap_or(Errno::EPIPE))
}

pub(super) fn reading(what: &'static str, error: &rtnetlink::Error) -> HostError {
    let reason = errno_of(error).map_or_else(|| error.to_string(), |errno| errno.desc().into());
    HostError::Read { what, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::host_state::{Device, ROUTE_PROTOCOL};
    use crate::platform::host_watch::{HostEvent, HostWatch};
    use crate::platform::test_namespace::{in_namespace, runtime};
    use crate::platform::tun::Tun;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    fn wanted(device: &str) -> HostState {
        let nets = ["10.77.0.0/16", "192.168.50.0/24", "fd77::/64", "fd78:1::/48"];
        let nets: BTreeSet<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
        let addresses = ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()].into();
        let device =
            Device { name: device.into(), mtu: 1420, addresses, routes: nets.clone(), sized: Default::default() };
        HostState { device: Some(device), covers: nets }
    }

    async fn foreign(host: &Host, destination: &str, metric: u32) {
        let route = Route { destination: destination.parse().unwrap(), device: None, metric, mtu: None, table: MAIN };
        host.handle.route().add(route_message(&route, 4)).execute().await.unwrap();
    }

    async fn foreign_routes(host: &Host) -> usize {
        let mut filter = RouteMessage::default();
        filter.header.protocol = RouteProtocol::Static;
        let mut count = 0;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            filter.header.address_family = family;
            let routes = all(host.handle.route().get(filter.clone()).execute()).await.unwrap();
            count += routes.iter().filter(|route| route.header.protocol == RouteProtocol::Static).count();
        }
        count
    }

    /// What a connect tells about the way to an address: the local address, or the error.
    fn way_to(address: &str) -> Result<IpAddr, Errno> {
        let wildcard = if address.contains('.') { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(wildcard).unwrap();
        let address: IpAddr = address.parse().unwrap();
        let connected = socket.connect((address, 9));
        connected.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        Ok(socket.local_addr().unwrap().ip())
    }

    const MAIN: u32 = crate::platform::host_state::MAIN_TABLE;

    #[test]
    fn applying_twice_changes_nothing_and_drift_is_repaired() {
        in_namespace("applying_twice_changes_nothing_and_drift_is_repaired", || {
            runtime().block_on(async {
                let tun = Tun::create("mesh%d").unwrap();
                let host = Host::connect().unwrap();
                let wanted = wanted(tun.name());
                let first = host.apply(&wanted).await.unwrap();
                assert_eq!((first.made.len(), first.failed), (11, vec![]));
                assert_eq!(host.apply(&wanted).await.unwrap(), Applied::default());
                // Both addresses receive from now on: the kernel knows them as local.
                for (own, bound) in [("10.77.0.1", "10.77.0.1:0"), ("fd77::1", "[fd77::1]:0")] {
                    assert_eq!(way_to(own), Ok(own.parse().unwrap()));
                    let socket = UdpSocket::bind(bound).unwrap();
                    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    assert_eq!(socket.recv(&mut [0; 2]).unwrap(), 1);
                }

                assert_eq!(way_to("10.77.9.9"), Ok("10.77.0.1".parse().unwrap()));
                assert_eq!(way_to("fd77::99"), Ok("fd77::1".parse().unwrap()));
                assert_eq!(way_to("fd78:1::99"), Ok("fd77::1".parse().unwrap()));

                // Down takes the routes through the device with it, and up does not bring them back.
                let index = host.device(tun.name()).await.unwrap().unwrap().index;
                let down = LinkUnspec::new_with_index(index).down().mtu(1400).build();
                host.handle.link().set(down).execute().await.unwrap();
                let repaired = host.apply(&wanted).await.unwrap();
                assert!(repaired.failed.is_empty(), "{repaired:?}");
                assert!(repaired.made.contains(&Change::SetLink { index, mtu: 1420 }));
                assert_eq!(host.apply(&wanted).await.unwrap(), Applied::default());
                assert_eq!(way_to("fd77::99"), Ok("fd77::1".parse().unwrap()));
            });
        });
    }

    #[test]
    fn a_part_gets_an_mtu_of_its_own_and_another_one_later() {
        in_namespace("a_part_gets_an_mtu_of_its_own_and_another_one_later", || {
            runtime().block_on(async {
                let tun = Tun::create("mesh%d").unwrap();
                let host = Host::connect().unwrap();
                let mut wanted = wanted(tun.name());
                host.apply(&wanted).await.unwrap();
                for mtus in [Some((1_280, 1_300)), Some((1_328, 1_420)), None] {
                    let (v4, v6) = mtus.unwrap_or((1_420, 1_420));
                    let parts = [("10.77.0.9/32", v4), ("fd77::9/128", v6)];
                    let sized = parts.map(|(net, mtu)| (net.parse().unwrap(), mtu));
                    let device = wanted.device.as_mut().unwrap();
                    device.sized = if mtus.is_some() { sized.into() } else { Default::default() };
                    let applied = host.apply(&wanted).await.unwrap();
                    assert_eq!((applied.made.len(), applied.failed), (2, vec![]), "{mtus:?}");
                    assert_eq!(host.apply(&wanted).await.unwrap(), Applied::default(), "{mtus:?}");
                    assert_eq!((mtu_to("10.77.0.9"), mtu_to("fd77::9")), (v4, v6));
                    assert_eq!(
                        (mtu_to("10.77.0.8"), mtu_to("fd77::8")),
                        (1_420, 1_420),
                        "the others keep the device's"
                    );
                }
            });
        });
    }

    /// The largest packet that the kernel would send to an address.
    fn mtu_to(address: &str) -> u32 {
        let wildcard = if address.contains('.') { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(wildcard).unwrap();
        socket.connect((address.parse::<IpAddr>().unwrap(), 9)).unwrap();
        let (level, name) = match address.contains('.') {
            true => (libc::IPPROTO_IP, libc::IP_MTU),
            false => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let (mut mtu, mut length) = (0u32, size_of::<u32>() as libc::socklen_t);
        // SAFETY: the pointers and the length describe two locals that outlive the call; the options write an int.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
        assert_eq!(result, 0);
        mtu
    }

    #[test]
    fn a_new_address_and_fewer_prefixes_replace_the_old_ones() {
        in_namespace("a_new_address_and_fewer_prefixes_replace_the_old_ones", || {
            runtime().block_on(async {
                let tun = Tun::create("mesh%d").unwrap();
                let host = Host::connect().unwrap();
                let mut wanted = wanted(tun.name());
                host.apply(&wanted).await.unwrap();
                let gone: IpNet = "192.168.50.0/24".parse().unwrap();
                let device = wanted.device.as_mut().unwrap();
                device.addresses = ["10.77.0.2".parse().unwrap(), "fd77::1".parse().unwrap()].into();
                device.routes.remove(&gone);
                wanted.covers.remove(&gone);
                let applied = host.apply(&wanted).await.unwrap();
                assert!(applied.failed.is_empty(), "{applied:?}");
                assert_eq!(way_to("10.77.9.9"), Ok("10.77.0.2".parse().unwrap()));
                assert_eq!(way_to("192.168.50.1"), Err(Errno::ENETUNREACH));
                assert_eq!(host.apply(&wanted).await.unwrap(), Applied::default());
            });
        });
    }

    #[test]
    fn without_the_device_the_covers_refuse_what_a_default_route_would_take() {
        in_namespace("without_the_device_the_covers_refuse_what_a_default_route_would_take", || {
            runtime().block_on(async {
                // The way out in clear: a default route through another interface.
                let outside = Tun::create("out%d").unwrap();
                let tun = Tun::create("mesh%d").unwrap();
                let (host, other) = (Host::connect().unwrap(), Host::connect_marked(4).unwrap());
                let everything: BTreeSet<IpNet> = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()].into();
                let addresses = ["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()].into();
                let device = Device {
                    name: outside.name().into(),
                    mtu: 1500,
                    addresses,
                    routes: everything,
                    sized: Default::default(),
                };
                other.apply(&HostState { device: Some(device), covers: BTreeSet::new() }).await.unwrap();

                host.apply(&wanted(tun.name())).await.unwrap();
                assert_eq!(way_to("10.77.9.9"), Ok("10.77.0.1".parse().unwrap()));
                drop(tun);
                assert_eq!(way_to("198.51.100.1"), Ok("203.0.113.1".parse().unwrap()));
                for address in ["10.77.9.9", "192.168.50.1"] {
                    assert_eq!(way_to(address), Err(Errno::EHOSTUNREACH), "{address}");
                }
                for address in ["fd77::99", "fd78:1::99"] {
                    assert_eq!(way_to(address), Err(Errno::EHOSTUNREACH), "{address}");
                }
                let missing = host.apply(&wanted("mesh0")).await;
                assert!(matches!(missing, Err(HostError::NoDevice(_))), "{missing:?}");
            });
        });
    }

    #[test]
    fn cleanup_after_a_crash_removes_all_of_ours_and_nothing_else() {
        in_namespace("cleanup_after_a_crash_removes_all_of_ours_and_nothing_else", || {
            runtime().block_on(async {
                let tun = Tun::create("mesh%d").unwrap();
                let host = Host::connect().unwrap();
                // Same destinations as ours with another metric, and others.
                foreign(&host, "10.77.0.0/16", 100).await;
                foreign(&host, "fd77::/64", 100).await;
                foreign(&host, "198.51.100.0/24", 0).await;
                let before = foreign_routes(&host).await;
                host.apply(&wanted(tun.name())).await.unwrap();

                // The crash: descriptors close, nothing is undone.
                drop((tun, host));
                let successor = Host::connect().unwrap();
                let left = successor.actual(None).await.unwrap().routes;
                assert_eq!(left.len(), 4);
                assert!(left.iter().all(|route| route.device.is_none()));
                assert_eq!(successor.cleanup().await.unwrap(), 4);
                assert_eq!(successor.cleanup().await.unwrap(), 0);
                assert!(successor.actual(None).await.unwrap().routes.is_empty());
                assert_eq!((before, foreign_routes(&successor).await), (3, 3));
            });
        });
    }

    #[test]
    fn somebody_elses_route_is_reported_and_left() {
        in_namespace("somebody_elses_route_is_reported_and_left", || {
            runtime().block_on(async {
                let host = Host::connect().unwrap();
                let cover = "10.77.0.0/16";
                foreign(&host, cover, crate::platform::host_state::COVER_METRIC).await;
                let wanted = HostState { device: None, covers: [cover.parse().unwrap()].into() };
                let applied = host.apply(&wanted).await.unwrap();
                assert!(applied.made.is_empty());
                assert_eq!(applied.failed.len(), 1);
                assert_eq!(applied.failed[0].1, ChangeError::Taken);
                assert_eq!((host.cleanup().await.unwrap(), foreign_routes(&host).await), (0, 1));
            });
        });
    }

    #[test]
    fn the_watch_tells_of_what_others_do_to_us() {
        in_namespace("the_watch_tells_of_what_others_do_to_us", || {
            runtime().block_on(async {
                let tun = Tun::create("mesh%d").unwrap();
                let host = Host::connect().unwrap();
                let wanted = wanted(tun.name());
                let mut watch = HostWatch::start(tun.name()).unwrap();
                let mut until = async |wanted: HostEvent| loop {
                    let event = watch.next().await.expect("the watch goes on");
                    if event == wanted {
                        break;
                    }
                };
                host.apply(&wanted).await.unwrap();
                until(HostEvent::DeviceChanged { up: true, mtu: 1420 }).await;
                let index = host.device(tun.name()).await.unwrap().unwrap().index;
                let route = Change::RemoveRoute(Route {
                    destination: "10.77.0.0/16".parse().unwrap(),
                    device: Some(index),
                    metric: crate::platform::host_state::TUNNEL_METRIC,
                    mtu: None,
                    table: MAIN,
                });
                host.make(&route).await.unwrap();
                until(HostEvent::RouteRemoved).await;
                let address = Change::RemoveAddress { index, address: "10.77.0.1/32".parse().unwrap() };
                host.make(&address).await.unwrap();
                until(HostEvent::AddressRemoved("10.77.0.1".parse().unwrap())).await;
                let down = LinkUnspec::new_with_index(index).down().build();
                host.handle.link().set(down).execute().await.unwrap();
                until(HostEvent::DeviceChanged { up: false, mtu: 1420 }).await;
                let other = Tun::create("other%d").unwrap();
                until(HostEvent::UnderlayChanged).await;
                drop((tun, other));
                until(HostEvent::DeviceGone).await;
            });
        });
    }

    #[test]
    fn the_protocol_number_is_not_one_the_system_names() {
        for path in ["/etc/iproute2/rt_protos", "/usr/share/iproute2/rt_protos"] {
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            let taken = text.lines().any(|line| line.split_whitespace().next() == Some(&ROUTE_PROTOCOL.to_string()));
            assert!(!taken, "{path} names protocol {ROUTE_PROTOCOL}");
        }
    }
}

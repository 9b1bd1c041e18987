//! Links, addresses and routes inside a namespace, by netlink, so that a machine without `ip` will do.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use tokio::runtime::Builder;

use super::error::{Context, Error, Result};
use super::netns::Netns;

/// Numbers the names that links bear on their way from one namespace to another.
static TRANSIT: AtomicU32 = AtomicU32::new(0);

/// A link that exists already, to be changed.
pub type LinkChange = LinkMessageBuilder<LinkUnspec>;

/// Makes a veth pair with one end in each namespace.
///
/// # Errors
/// Where a name is taken or the kernel refuses.
pub fn add_veth(left: &Netns, left_dev: &str, right: &Netns, right_dev: &str) -> Result<()> {
    // The far end is born in the near namespace under a name that nothing else there has.
    let transit = format!("far-{}", TRANSIT.fetch_add(1, Ordering::Relaxed));
    let peer_fd = right.raw_fd();
    with(left, format!("add veth {left_dev}"), async |handle| {
        handle.link().add(LinkVeth::new(left_dev, &transit).build()).execute().await?;
        let moved = LinkUnspec::new_with_name(&transit).setns_by_fd(peer_fd).build();
        handle.link().set(moved).execute().await
    })?;
    set_link(right, &transit, |link| link.name(right_dev))
}

/// Makes a bridge and sets it up.
///
/// # Errors
/// Where the kernel has no bridges.
pub fn add_bridge(netns: &Netns, dev: &str) -> Result<()> {
    with(netns, format!("add bridge {dev}"), async |handle| {
        handle.link().add(LinkBridge::new(dev).up().build()).execute().await
    })
}

/// Puts a link under a bridge.
///
/// # Errors
/// Where either does not exist.
pub fn enslave(netns: &Netns, dev: &str, bridge: &str) -> Result<()> {
    let bridge = index(netns, bridge)?;
    set_link(netns, dev, |link| link.controller(bridge))
}

/// Changes a link that exists.
///
/// # Errors
/// Where there is no such link or the kernel refuses.
pub fn set_link(netns: &Netns, dev: &str, change: impl FnOnce(LinkChange) -> LinkChange) -> Result<()> {
    let index = index(netns, dev)?;
    let message: LinkMessage = change(LinkUnspec::new_with_index(index)).build();
    with(netns, format!("change link {dev}"), async |handle| handle.link().set(message).execute().await)
}

/// Removes a link.
///
/// # Errors
/// Where there is no such link.
pub fn delete_link(netns: &Netns, dev: &str) -> Result<()> {
    let index = index(netns, dev)?;
    with(netns, format!("delete link {dev}"), async |handle| handle.link().del(index).execute().await)
}

/// Adds an address.
///
/// # Errors
/// Where there is no such link or the address is there already.
pub fn add_address(netns: &Netns, dev: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
    let index = index(netns, dev)?;
    with(netns, format!("add address {address}/{prefix_len} to {dev}"), async |handle| {
        let mut request = handle.address().add(index, address, prefix_len);
        // Without this an IPv6 address is tentative, so not to be bound to, until some later moment.
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await
    })?;
    match address {
        IpAddr::V4(_) => Ok(()),
        IpAddr::V6(v6) => wait_for_local_route(netns, v6),
    }
}

/// Waits until the host takes packets to its new IPv6 address: the kernel adds the route for that in a work queue of
/// its own, some time after the address is there and may be bound to.
fn wait_for_local_route(netns: &Netns, address: Ipv6Addr) -> Result<()> {
    let digits = format!("{:032x}", u128::from(address));
    let deadline = Instant::now() + LOCAL_ROUTE_LIMIT;
    netns.enter(|| {
        loop {
            let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").context("read the IPv6 routes")?;
            // Columns: destination, its length, source, its length, next hop, metric, references, uses, flags, device.
            let is_local = routes.lines().any(|line| {
                let columns: Vec<&str> = line.split_whitespace().collect();
                let flags = columns.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
                columns.first() == Some(&digits.as_str()) && flags & RTF_LOCAL != 0
            });
            if is_local {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("the kernel added {address} but no local route to it")));
            }
            thread::yield_now();
        }
    })
}

/// Far longer than the kernel's work queue is ever behind.
const LOCAL_ROUTE_LIMIT: Duration = Duration::from_secs(10);

/// Marks a route to the host itself (linux/ipv6_route.h).
const RTF_LOCAL: u32 = 0x8000_0000;

/// Removes an address.
///
/// # Errors
/// Where it is not there.
pub fn remove_address(netns: &Netns, dev: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
    let index = index(netns, dev)?;
    let message = match address {
        IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, prefix_len).build(),
        IpAddr::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, prefix_len).build(),
    };
    with(netns, format!("remove address {address}/{prefix_len} from {dev}"), async |handle| {
        handle.address().del(message).execute().await
    })
}

/// Adds a route to a network, through a gateway or straight out of the link.
///
/// # Errors
/// Where the kernel refuses.
pub fn add_route(netns: &Netns, to: (IpAddr, u8), via: Option<IpAddr>, dev: &str) -> Result<()> {
    add_route_of_metric(netns, to, via, dev, 0)
}

/// Adds a route as [`add_route`] does, with a metric.
///
/// # Errors
/// Where the kernel refuses.
pub fn add_route_of_metric(netns: &Netns, to: (IpAddr, u8), via: Option<IpAddr>, dev: &str, metric: u32) -> Result<()> {
    let index = index(netns, dev)?;
    let what = format!("add route {}/{} dev {dev}", to.0, to.1);
    let mut route = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    route = route.destination_prefix(to.0, to.1).context(&what)?;
    if let Some(via) = via {
        route = route.gateway(via).context(&what)?;
    }
    let message = route.priority(metric).build();
    with(netns, what, async |handle| handle.route().add(message).execute().await)
}

/// Returns a link's index.
///
/// # Errors
/// Where there is no such link.
pub fn index(netns: &Netns, dev: &str) -> Result<u32> {
    netns.enter(|| if_nametoindex(dev)).context(format_args!("find link {dev}"))
}

/// Runs one exchange with the kernel inside the namespace.
fn with(
    netns: &Netns,
    what: String,
    ask: impl AsyncFnOnce(Handle) -> std::result::Result<(), rtnetlink::Error> + Send,
) -> Result<()> {
    netns.enter(move || {
        let runtime = Builder::new_current_thread().enable_io().build().context(&what)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context(&what)?;
            tokio::spawn(connection);
            ask(handle).await.context(&what)
        })
    })
}

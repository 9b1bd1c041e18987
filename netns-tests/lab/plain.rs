//! A plain network: each host has one end of a veth pair, the other ends lie under a bridge in a namespace of its own.
//! Nothing is emulated, so it is as fast as the kernel goes: for throughput, floods and scans.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, Ordering};

use super::error::{Error, Result};
use super::host::Host;
use super::netlink;

/// The bridge's name in its namespace.
const BRIDGE: &str = "br0";

/// A bridge and the hosts on it, all in one subnet of each family.
pub struct Plain {
    switch: Host,
    number: u8,
    ports: AtomicU16,
}

/// One host's place on a plain network.
#[derive(Clone, Debug)]
pub struct PlainPort {
    /// The device in the host.
    pub dev: String,
    /// Its IPv4 address, in a /24 that all hosts of the network share.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, in a /64 that all hosts of the network share.
    pub v6: Ipv6Addr,
}

impl Plain {
    pub(super) fn start(switch: Host, number: u8) -> Result<Plain> {
        netlink::add_bridge(switch.netns(), BRIDGE)?;
        Ok(Plain { switch, number, ports: AtomicU16::new(0) })
    }

    /// Puts a host on the network as its `eth0`, with one address of each family.
    ///
    /// # Errors
    /// Where the host has an `eth0` already or the network is full (254 hosts).
    pub fn attach(&self, host: &Host) -> Result<PlainPort> {
        self.attach_as(host, "eth0")
    }

    /// Puts a host on the network by a device of the given name.
    ///
    /// # Errors
    /// Where the device exists already or the network is full (254 hosts).
    pub fn attach_as(&self, host: &Host, dev: &str) -> Result<PlainPort> {
        let number = self.ports.fetch_add(1, Ordering::Relaxed) + 1;
        let last = u8::try_from(number).ok().filter(|last| *last < 255);
        let last = last.ok_or_else(|| Error::failed("a plain network holds 254 hosts"))?;
        let port = format!("port{number}");
        netlink::add_veth(self.switch.netns(), &port, host.netns(), dev)?;
        netlink::enslave(self.switch.netns(), &port, BRIDGE)?;
        self.switch.link_up(&port)?;
        host.link_up(dev)?;
        // 203.0.113.0/24 and its like are too few for several networks; RFC 2544 sets 198.18.0.0/15 aside for benches,
        // and the emulator uses its lower half.
        let v4 = Ipv4Addr::new(198, 19, self.number, last);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x19, u16::from(self.number), 0, 0, 0, u16::from(last));
        host.add_address(dev, IpAddr::V4(v4), 24)?;
        host.add_address(dev, IpAddr::V6(v6), 64)?;
        Ok(PlainPort { dev: dev.to_owned(), v4, v6 })
    }

    /// Returns the namespace that holds the bridge; rules put there act between the hosts.
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// Takes a host's cable out (`true`) or puts it back.
    ///
    /// # Errors
    /// Where the host is not on this network.
    pub fn unplug(&self, port: &PlainPort, out: bool) -> Result<()> {
        let name = format!("port{}", port.v4.octets()[3]);
        if out { self.switch.link_down(&name) } else { self.switch.link_up(&name) }
    }
}

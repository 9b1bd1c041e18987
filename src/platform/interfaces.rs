//! The addresses of this host's network interfaces.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Lists the addresses at which others could reach this host: those of interfaces that are up, except loopback, link-local
/// and the interface `except` (the mesh's own). IPv4 first, each address once; empty where the kernel does not tell.
pub fn addresses(except: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let wanted = InterfaceFlags::IFF_UP;
        if !interface.flags.contains(wanted)
            || interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            || interface.interface_name == except
        {
            continue;
        }
        let Some(storage) = interface.address else { continue };
        let address = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if is_reachable(address) && !found.contains(&address) {
            found.push(address);
        }
    }
    found.sort_by_key(|address| address.is_ipv6());
    found
}

fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unreachable_is_listed() {
        for address in addresses("no-such-interface") {
            assert!(is_reachable(address), "{address}");
        }
    }
}

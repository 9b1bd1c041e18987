//! The PROXY protocol's header, version 2: where a connection came from and where it arrived, in front of its first byte.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What every header begins with.
const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
/// TCP over IPv4.
const TCP4: u8 = 0x11;
/// TCP over IPv6.
const TCP6: u8 = 0x21;

/// Returns the header of a connection from `client` that arrived at `arrived`. Where the families differ, the IPv4 address is
/// written as IPv6 has it.
pub fn encode(client: SocketAddr, arrived: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_AND_COMMAND);
    match (client.ip().to_canonical(), arrived.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend([TCP4, 0, 12]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (from, to) => {
            header.extend([TCP6, 0, 36]);
            header.extend(wide(from).octets());
            header.extend(wide(to).octets());
        }
    }
    header.extend(client.port().to_be_bytes());
    header.extend(arrived.port().to_be_bytes());
    header
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(client: &str, arrived: &str) -> Vec<u8> {
        encode(client.parse().unwrap(), arrived.parse().unwrap())
    }

    #[test]
    fn headers_have_their_length_and_addresses_in_place() {
        let v4 = header("192.0.2.1:4660", "198.51.100.2:3306");
        assert_eq!(&v4[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(&v4[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x0c, 0xea]);
        let v6 = header("[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!((v6[13], usize::from(v6[15]) + 16), (0x21, v6.len()));
        assert_eq!(v6[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(header("[::ffff:192.0.2.1]:4660", "198.51.100.2:3306"), v4, "a dual socket shows no other form");
        assert_eq!(header("192.0.2.1:1", "[2001:db8::2]:2").len(), 52);
    }
}

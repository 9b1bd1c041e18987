//! The TCP connections that this host opened, as its kernel lists them.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Established in the kernel's numbering (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";
/// Listening.
const LISTEN: &str = "0A";

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// This host's end.
    pub local: SocketAddr,
    /// The other.
    pub remote: SocketAddr,
}

/// Lists the established connections of this network namespace whose own port nobody listens on, `most` at most: those
/// that were opened from here.
///
/// # Errors
/// Where the kernel's lists cannot be read.
pub fn opened(most: usize) -> io::Result<Vec<Opened>> {
    let (mut established, mut listening) = (Vec::new(), std::collections::BTreeSet::new());
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let file = match File::open(path) {
            Ok(file) => file,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).lines() {
            match entry(&line?) {
                Some((local, remote, true)) if established.len() < most => established.push(Opened { local, remote }),
                Some((local, _, false)) => {
                    listening.insert(local.port());
                }
                _ => {}
            }
        }
    }
    established.retain(|opened| !listening.contains(&opened.local.port()));
    Ok(established)
}

/// Reads a line of the list: both ends, and whether they are connected or one listens. `None` for everything else.
fn entry(line: &str) -> Option<(SocketAddr, SocketAddr, bool)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    let connected = match state {
        ESTABLISHED => true,
        LISTEN => false,
        _ => return None,
    };
    Some((address(local)?, address(remote)?, connected))
}

/// Reads an address: words of four bytes in the host's order, as hexadecimal numbers, and the port.
pub(super) fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let address = match bytes.as_slice() {
        [a, b, c, d] => IpAddr::from([*a, *b, *c, *d]),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    // A socket of both families shows IPv4 as part of IPv6.
    Some(SocketAddr::new(address.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_was_opened_is_listed_and_what_was_accepted_is_not() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(loopback).unwrap();
            let opened_here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (_accepted, _) = listener.accept().unwrap();
            let (local, remote) = (opened_here.local_addr().unwrap(), opened_here.peer_addr().unwrap());
            let listed = opened(usize::MAX).unwrap();
            assert!(listed.contains(&Opened { local, remote }));
            assert!(!listed.contains(&Opened { local: remote, remote: local }));
            assert!(opened(0).unwrap().is_empty());
        }
    }

    #[test]
    fn broken_lines_are_skipped() {
        let good = "   0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1";
        assert!(entry(good).is_some());
        for cut in 0..good.find(" 01 ").unwrap() {
            assert_eq!(entry(&good[..cut]), None);
        }
        for line in ["0: 0100007F:1F90 0200007F:C350 06", "0: 010000:1F90 0200007F:C350 01", "0: ä000007F:1 0:1 01"] {
            assert_eq!(entry(line), None);
        }
    }
}

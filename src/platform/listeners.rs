//! The sockets of this host that take what arrives, as its kernel lists them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;

use super::tcp_sockets::address;

/// A socket that listens, or takes datagrams from anybody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Whether it is one of TCP; else of UDP.
    pub is_tcp: bool,
    /// Where.
    pub local: SocketAddr,
    /// The program that has it open, where this user may know.
    pub program: Option<String>,
}

/// Lists of this network namespace, whether they are of TCP, and the state of what listens in them: `TCP_LISTEN`, and
/// `TCP_CLOSE` for a UDP socket that is connected to nobody (include/net/tcp_states.h).
const LISTS: [(&str, bool, &str); 4] = [
    ("/proc/self/net/tcp", true, "0A"),
    ("/proc/self/net/tcp6", true, "0A"),
    ("/proc/self/net/udp", false, "07"),
    ("/proc/self/net/udp6", false, "07"),
];

/// Lists them by protocol and address, each once.
///
/// # Errors
/// The kernel's lists cannot be read.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let programs = programs();
    let mut found = Vec::new();
    for (path, is_tcp, state) in LISTS {
        let file = match File::open(path) {
            Ok(file) => file,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).lines() {
            if let Some((local, inode)) = entry(&line?, state) {
                found.push(Listener { is_tcp, local, program: programs.get(&inode).cloned() });
            }
        }
    }
    found.sort_by(|a, b| (!a.is_tcp, a.local.port(), a).cmp(&(!b.is_tcp, b.local.port(), b)));
    found.dedup();
    Ok(found)
}

/// Reads a line: the address and the socket's inode. `None` for everything in another state.
fn entry(line: &str, state: &str) -> Option<(SocketAddr, u64)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, found, _, _, _, _, _, inode, ..] = words.as_slice() else { return None };
    (*found == state).then_some((address(local)?, inode.parse().ok()?))
}

/// The programs by the inodes of the sockets they have open, as far as this user may look.
fn programs() -> BTreeMap<u64, String> {
    let mut programs = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = process.path();
        let Ok(descriptors) = fs::read_dir(path.join("fd")) else { continue };
        let mut name = None;
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let inode =
                target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                let name = name.get_or_insert_with(|| {
                    fs::read_to_string(path.join("comm")).map(|name| name.trim().to_owned()).unwrap_or_default()
                });
                programs.insert(inode, name.clone());
            }
        }
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn what_listens_is_listed_with_its_program() {
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        let listed = listeners().unwrap();
        for (is_tcp, local) in [(true, tcp.local_addr().unwrap()), (false, udp.local_addr().unwrap())] {
            let found = listed.iter().find(|listener| listener.is_tcp == is_tcp && listener.local == local).unwrap();
            assert!(found.program.as_ref().is_some_and(|name| !name.is_empty()), "{found:?}");
        }
        udp.connect(udp.local_addr().unwrap()).unwrap();
        let local = udp.local_addr().unwrap();
        assert!(!listeners().unwrap().iter().any(|listener| !listener.is_tcp && listener.local == local));
    }

    #[test]
    fn broken_lines_are_skipped() {
        let good = "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        assert_eq!(entry(good, "0A"), Some(("127.0.0.1:8080".parse().unwrap(), 4711)));
        assert_eq!(entry(good, "07"), None);
        for cut in 0..good.len() - 2 {
            let found = entry(&good[..cut], "0A");
            assert!(found.is_none_or(|(local, _)| local.port() == 8080), "{cut}");
        }
    }
}

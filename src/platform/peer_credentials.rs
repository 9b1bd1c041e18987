//! Who is at the other end of a Unix socket.

use nix::sys::socket::{getsockopt, sockopt};
use std::io;
use std::os::fd::AsFd;

/// The identity the kernel recorded for the other process when the socket was connected (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process id, as seen from this process's namespace; 0 where it is not visible.
    pub pid: i32,
    /// The effective user id.
    pub uid: u32,
    /// The effective group id.
    pub gid: u32,
}

impl PeerCredentials {
    /// Asks the kernel who connected `socket`. Fails for anything but a connected Unix socket.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
        Ok(PeerCredentials { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_kernel_names_this_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = PeerCredentials::of(&here).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
    }

    #[test]
    fn another_kind_of_socket_has_no_credentials() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // The kernel answers with an id of "nobody known", or refuses: never with this process.
        if let Ok(peer) = PeerCredentials::of(&socket) {
            assert_eq!((peer.pid, peer.uid), (0, u32::MAX));
        }
    }
}

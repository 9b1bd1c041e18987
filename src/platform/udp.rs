//! The UDP socket under the tunnels.

use super::udp_batch::{ReceiveBatch, SendBatch};
use super::wake::{Waited, Wake};
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Receive and send buffer asked of the kernel, in bytes: 4 MiB hold 25 ms of full-size packets at 1 Gbit/s, which is
/// what a data thread may be kept off its core for on a busy small host.
pub const BUFFER_BYTES: usize = 4 << 20;

/// How long a data thread waits for room in the send buffer before it drops, so that a stalled network card cannot
/// keep the thread from stopping.
const SEND_PATIENCE: Duration = Duration::from_millis(100);

/// Why a datagram was not sent or received. None of these closes the socket or is a reason to (the next may pass).
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// No room in the send buffer, or nothing to receive.
    #[error("the socket would block")]
    WouldBlock,
    /// The kernel or the network card has no memory or queue left for it.
    #[error("no buffer space left in the kernel or at the network card")]
    NoBuffers,
    /// A local firewall rule refused it.
    #[error("refused by a local firewall rule (look at the output chain for this port)")]
    Forbidden,
    /// The other host answered an earlier datagram with "port unreachable".
    #[error("the other host has nothing on that port")]
    Refused,
    /// There is no route to it, or the interface is down.
    #[error("the network has no way there")]
    Unreachable,
    /// It exceeds the path MTU, or 65,507 bytes.
    #[error("the datagram is larger than the path carries")]
    TooBig,
    /// The source address asked for is not, or no longer, this host's.
    #[error("the source address is not one of this host's")]
    NoSource,
    /// Anything else.
    #[error("the kernel refused the datagram: {0}")]
    Other(Errno),
}

impl From<Errno> for UdpError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EAGAIN => UdpError::WouldBlock,
            Errno::ENOBUFS | Errno::ENOMEM => UdpError::NoBuffers,
            Errno::EPERM | Errno::EACCES => UdpError::Forbidden,
            Errno::ECONNREFUSED => UdpError::Refused,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EHOSTDOWN | Errno::ENONET => {
                UdpError::Unreachable
            }
            Errno::EMSGSIZE => UdpError::TooBig,
            Errno::EADDRNOTAVAIL => UdpError::NoSource,
            other => UdpError::Other(other),
        }
    }
}

/// Whether our datagrams may be fragmented on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragmentation {
    /// Routers and this host may fragment (no DF bit): what never makes a black hole.
    #[default]
    Allowed,
    /// DF is set and the kernel's cached path MTU is not heeded: for measuring the path MTU.
    Probe,
}

/// What to ask of the kernel for a socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions {
    /// A firewall mark for everything sent, so that policy routing never sends a tunnel into itself.
    pub mark: Option<u32>,
    /// Whether datagrams may be fragmented.
    pub fragmentation: Fragmentation,
    /// For an IPv6 address: refuse IPv4 instead of serving both.
    pub only_v6: bool,
}

/// What the kernel granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpGranted {
    /// Receive buffer in payload bytes.
    pub receive_buffer: usize,
    /// Send buffer in payload bytes.
    pub send_buffer: usize,
    /// Whether the wanted mark is set (true where none was wanted).
    pub marked: bool,
    /// Whether received datagrams carry a kernel stamp.
    pub stamped: bool,
}

/// One bound UDP socket: one family, or both (`[::]` without `only_v6`). Shared by all threads; no method locks.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
    granted: UdpGranted,
}

impl UdpSocket {
    /// Binds `address` (port 0: a free one).
    ///
    /// # Errors
    /// Only what makes the socket useless: no such family, address or port. Missing privileges for marks and large
    /// buffers show in [`UdpSocket::granted`] instead.
    pub fn bind(address: SocketAddr, options: UdpOptions) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(options.only_v6)?;
        }
        socket.bind(&SockAddr::from(address))?;
        Self::configure(socket, options)
    }

    /// Takes over a bound UDP socket from a predecessor (a planned restart, or a service manager's socket).
    ///
    /// # Errors
    /// `InvalidInput` where the descriptor is no bound UDP socket.
    pub fn adopt(descriptor: OwnedFd, options: UdpOptions) -> io::Result<Self> {
        let socket = Socket::from(descriptor);
        let bound = socket.local_addr()?.as_socket().is_some_and(|local| local.port() != 0);
        if socket.r#type()? != Type::DGRAM || !bound {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not a bound UDP socket"));
        }
        Self::configure(socket, options)
    }

    /// Returns the bound address, with the real port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Returns what the kernel granted.
    pub fn granted(&self) -> UdpGranted {
        self.granted
    }

    /// Sets whether datagrams sent from now on may be fragmented.
    pub fn set_fragmentation(&self, fragmentation: Fragmentation) -> io::Result<()> {
        let (v4, v6) = match fragmentation {
            Fragmentation::Allowed => (libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_DONT),
            Fragmentation::Probe => (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE),
        };
        if self.local.is_ipv6() {
            set_option(&self.socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6)?;
        }
        if self.carries_v4() {
            set_option(&self.socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4)?;
        }
        Ok(())
    }

    /// Waits until something is there or `wake` is rung, then receives what is there into `batch` and returns how many
    /// datagrams. Zero means woken.
    ///
    /// Under load this is one system call per batch: it asks for datagrams first and waits only when there are none. After
    /// a batch of one it waits first, because then the next datagram has seldom arrived yet.
    ///
    /// # Errors
    /// Never [`UdpError::WouldBlock`]. After any other the caller counts and calls again.
    pub fn receive(&self, batch: &mut ReceiveBatch, wake: &Wake) -> Result<usize, UdpError> {
        let mut wait_first = batch.clear() == 1;
        loop {
            if !std::mem::take(&mut wait_first) {
                match batch.receive(&self.socket) {
                    Err(UdpError::WouldBlock) => {}
                    outcome => return outcome,
                }
            }
            match wake.wait_readable(self.socket.as_fd(), None) {
                Ok(Waited::Woken) => return Ok(0),
                Ok(_) => {}
                Err(error) => return Err(UdpError::Other(Errno::from_raw(error.raw_os_error().unwrap_or(0)))),
            }
        }
    }

    /// Sends everything committed to `batch` and empties it; calls `refused` for each datagram the kernel did not take.
    ///
    /// May wait up to 100 ms for room in the send buffer, which is what slows a fast sender down to the network card.
    /// Returns how many datagrams went out.
    pub fn send(&self, batch: &mut SendBatch, refused: impl FnMut(SocketAddr, UdpError)) -> usize {
        batch.flush(&self.socket, self.local.is_ipv6(), refused)
    }

    /// Sends one datagram without ever waiting: for handshakes and other rare messages.
    ///
    /// `source` asks for a source address; where that is no longer ours, the kernel chooses.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr, source: Option<IpAddr>) -> Result<(), UdpError> {
        super::udp_batch::send_one(&self.socket, self.local.is_ipv6(), bytes, to, source)
    }

    fn configure(socket: Socket, options: UdpOptions) -> io::Result<Self> {
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        // Blocking mode with a bound on the wait: receiving asks for MSG_DONTWAIT itself.
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(SEND_PATIENCE))?;
        if local.is_ipv6() {
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
        let mut result = UdpSocket { local, granted: UdpGranted::default(), socket };
        if result.carries_v4() {
            if !local.is_ipv6() {
                set_option(&result.socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            }
            set_option(&result.socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        }
        result.set_fragmentation(options.fragmentation)?;
        result.granted = UdpGranted {
            receive_buffer: grow(&result.socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            send_buffer: grow(&result.socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
            marked: options.mark.is_none_or(|mark| result.socket.set_mark(mark).is_ok()),
            stamped: set_option(&result.socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1).is_ok(),
        };
        Ok(result)
    }

    fn carries_v4(&self) -> bool {
        self.local.is_ipv4() || self.local.ip().is_unspecified() && !self.socket.only_v6().unwrap_or(true)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for [`BUFFER_BYTES`], by force where permitted, and returns what the kernel made of it.
fn grow(socket: &Socket, force: libc::c_int, plain: libc::c_int) -> usize {
    let wanted = BUFFER_BYTES as libc::c_int;
    if set_option(socket, libc::SOL_SOCKET, force, wanted).is_err() {
        // Without CAP_NET_ADMIN the kernel caps the plain request silently at rmem_max or wmem_max.
        let _ = set_option(socket, libc::SOL_SOCKET, plain, wanted);
    }
    let doubled = if plain == libc::SO_RCVBUF { socket.recv_buffer_size() } else { socket.send_buffer_size() };
    // The kernel stores and reports twice the request, the half being its own bookkeeping.
    doubled.unwrap_or(0) / 2
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let pointer = std::ptr::from_ref(&value).cast();
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which outlives the call; all options used here take a c_int.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::clock::{Reading, realtime_nanos};
    use crate::platform::host_state::{Device, HostState};
    use crate::platform::netlink::Host;
    use crate::platform::test_namespace::{in_namespace, runtime};
    use crate::platform::tun::Tun;
    use crate::platform::udp_batch::BATCH;
    use std::sync::Arc;

    fn bind(address: &str) -> UdpSocket {
        UdpSocket::bind(address.parse().unwrap(), UdpOptions::default()).unwrap()
    }

    /// Receives until `count` datagrams came, as (source, destination, stamp, bytes).
    fn gather(socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Option<IpAddr>, u64, Vec<u8>)> {
        let (wake, mut batch) = (Wake::new().unwrap(), ReceiveBatch::new(BATCH, 2_000));
        let mut all = Vec::new();
        while all.len() < count {
            for index in 0..socket.receive(&mut batch, &wake).unwrap() {
                let about = batch.about(index).unwrap();
                assert_eq!((about.stride, about.truncated), (about.length, false));
                all.push((about.source, about.destination, about.stamp.unwrap(), batch.bytes(index).to_vec()));
            }
        }
        all
    }

    fn exchange(receiver: &str, sender: &str, to: &str, from: &str) {
        let (receiver, sender) = (bind(receiver), bind(sender));
        let to = SocketAddr::new(to.parse().unwrap(), receiver.local().port());
        let from = SocketAddr::new(from.parse().unwrap(), sender.local().port());
        let mut batch = SendBatch::new(BATCH, 1_500);
        let before = realtime_nanos();
        for number in 0..100usize {
            if batch.is_full() {
                assert_eq!(sender.send(&mut batch, |to, error| panic!("{to}: {error}")), BATCH);
            }
            batch.slot().unwrap()[..number + 1].fill(number as u8);
            assert!(batch.commit(number + 1, to, None, None));
        }
        assert_eq!(sender.send(&mut batch, |to, error| panic!("{to}: {error}")), 100 - BATCH);
        let received = gather(&receiver, 100);
        let reading = Reading::take();
        for (number, (source, destination, stamp, bytes)) in received.into_iter().enumerate() {
            assert_eq!((source, destination), (from, Some(to.ip())));
            assert_eq!(bytes, vec![number as u8; number + 1]);
            assert!((before..=reading.realtime_nanos).contains(&stamp), "the stamp lies between sending and receiving");
            assert!(reading.instant_of(stamp) <= reading.now);
        }
    }

    #[test]
    fn batches_carry_source_destination_and_stamp_in_both_families() {
        in_namespace("batches_carry_source_destination_and_stamp_in_both_families", || {
            exchange("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1", "127.0.0.1");
            exchange("[::1]:0", "[::1]:0", "::1", "::1");
            // Both families through one socket at either end; IPv4 never shows as mapped.
            exchange("[::]:0", "[::]:0", "127.0.0.1", "127.0.0.1");
            exchange("[::]:0", "[::]:0", "::1", "::1");
            exchange("0.0.0.0:0", "[::]:0", "127.0.0.2", "127.0.0.1");
        });
    }

    #[test]
    fn the_source_address_can_be_chosen_and_a_lost_one_is_replaced() {
        in_namespace("the_source_address_can_be_chosen_and_a_lost_one_is_replaced", || {
            for (receiver, sender) in [("127.0.0.1:0", "0.0.0.0:0"), ("127.0.0.1:0", "[::]:0")] {
                let (receiver, sender) = (bind(receiver), bind(sender));
                let to = receiver.local();
                for (wanted, expected) in [("127.0.0.9", "127.0.0.9"), ("192.0.2.1", "127.0.0.1")] {
                    let wanted: IpAddr = wanted.parse().unwrap();
                    sender.send_to(b"one", to, Some(wanted)).unwrap();
                    let mut batch = SendBatch::new(4, 100);
                    for _ in 0..3 {
                        batch.commit(1, to, Some(wanted), None);
                    }
                    assert_eq!(sender.send(&mut batch, |to, error| panic!("{to}: {error}")), 3);
                    for (source, ..) in gather(&receiver, 4) {
                        assert_eq!(source.ip(), expected.parse::<IpAddr>().unwrap());
                    }
                }
            }
            let (receiver, sender) = (bind("[::1]:0"), bind("[::]:0"));
            sender.send_to(b"one", receiver.local(), Some("2001:db8::1".parse().unwrap())).unwrap();
            assert_eq!(gather(&receiver, 1)[0].0.ip(), "::1".parse::<IpAddr>().unwrap());
        });
    }

    #[test]
    fn a_buffer_of_several_segments_arrives_as_several_datagrams() {
        let (receiver, sender) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let mut batch = SendBatch::new(2, 1_000);
        batch.slot().unwrap()[..250].copy_from_slice(&std::array::from_fn::<u8, 250, _>(|i| (i / 100) as u8));
        batch.commit(250, receiver.local(), None, Some(100));
        assert!(!batch.commit(1_001, receiver.local(), None, None));
        assert_eq!(sender.send(&mut batch, |to, error| panic!("{to}: {error}")), 3);
        let bytes: Vec<_> = gather(&receiver, 3).into_iter().map(|(.., bytes)| bytes).collect();
        assert_eq!(bytes, [vec![0; 100], vec![1; 100], vec![2; 50]]);
    }

    #[test]
    fn a_refused_datagram_is_reported_and_the_rest_goes_out() {
        in_namespace("a_refused_datagram_is_reported_and_the_rest_goes_out", || {
            let (receiver, sender) = (bind("127.0.0.1:0"), bind("0.0.0.0:0"));
            let nowhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
            let broadcast: SocketAddr = "255.255.255.255:9".parse().unwrap();
            let mut batch = SendBatch::new(BATCH, 70_000);
            for to in [receiver.local(), nowhere, receiver.local(), broadcast] {
                batch.commit(10, to, None, None);
            }
            batch.commit(66_000, receiver.local(), None, None);
            batch.commit(11, receiver.local(), None, None);
            let mut refused = Vec::new();
            assert_eq!(sender.send(&mut batch, |to, error| refused.push((to, error))), 3);
            assert!(batch.is_empty());
            assert!(matches!(refused[0], (to, UdpError::Unreachable) if to == nowhere), "{refused:?}");
            assert!(matches!(refused[1].1, UdpError::Unreachable | UdpError::Forbidden), "{refused:?}");
            assert!(matches!(refused[2].1, UdpError::TooBig), "{refused:?}");
            assert_eq!(refused.len(), 3);
            assert_eq!(gather(&receiver, 3)[2].3.len(), 11);
            assert!(matches!(sender.send_to(b"x", nowhere, None), Err(UdpError::Unreachable)));
        });
    }

    #[test]
    fn a_truncated_datagram_is_marked() {
        let (receiver, sender) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        sender.send_to(&[7; 200], receiver.local(), None).unwrap();
        let mut batch = ReceiveBatch::new(2, 100);
        assert_eq!(receiver.receive(&mut batch, &Wake::new().unwrap()).unwrap(), 1);
        let about = batch.about(0).unwrap();
        assert_eq!((about.length, about.truncated, batch.bytes(0)), (100, true, &[7; 100][..]));
        assert_eq!((batch.about(1), batch.bytes(1)), (None, &[][..]));
    }

    #[test]
    fn ecn_bits_are_reported() {
        for (receiver, sender, to) in [("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"), ("[::]:0", "[::1]:0", "::1")] {
            let (receiver, sender) = (bind(receiver), bind(sender));
            if sender.local().is_ipv4() {
                set_option(&sender.socket, libc::IPPROTO_IP, libc::IP_TOS, 0b10).unwrap();
            } else {
                set_option(&sender.socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0b10).unwrap();
            }
            sender.send_to(b"x", SocketAddr::new(to.parse().unwrap(), receiver.local().port()), None).unwrap();
            let mut batch = ReceiveBatch::new(1, 100);
            receiver.receive(&mut batch, &Wake::new().unwrap()).unwrap();
            assert_eq!(batch.about(0).unwrap().ecn, 0b10, "{to}");
        }
    }

    #[test]
    fn a_waiting_receiver_is_woken_and_the_socket_goes_on() {
        let (receiver, sender) = (Arc::new(bind("127.0.0.1:0")), bind("127.0.0.1:0"));
        let wake = Arc::new(Wake::new().unwrap());
        let waiting = {
            let (receiver, wake) = (Arc::clone(&receiver), Arc::clone(&wake));
            std::thread::spawn(move || receiver.receive(&mut ReceiveBatch::new(1, 100), &wake).unwrap())
        };
        wake.ring();
        assert_eq!(waiting.join().unwrap(), 0);
        sender.send_to(b"after", receiver.local(), None).unwrap();
        assert_eq!(gather(&receiver, 1)[0].3, b"after");
        // The successor in a planned restart takes the same socket.
        let adopted = UdpSocket::adopt(receiver.as_fd().try_clone_to_owned().unwrap(), UdpOptions::default()).unwrap();
        sender.send_to(b"again", receiver.local(), None).unwrap();
        assert_eq!(gather(&adopted, 1)[0].3, b"again");
        let stream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(UdpSocket::adopt(OwnedFd::from(stream), UdpOptions::default()).is_err());
    }

    #[test]
    fn mark_and_buffers_are_granted_to_root() {
        in_namespace("mark_and_buffers_are_granted_to_root", || {
            let options = UdpOptions { mark: Some(0x4d), ..Default::default() };
            let socket = UdpSocket::bind("[::]:0".parse().unwrap(), options).unwrap();
            assert_eq!(socket.socket.mark().unwrap(), 0x4d);
            let granted = socket.granted();
            assert!(granted.marked && granted.stamped, "{granted:?}");
            assert_eq!((granted.receive_buffer, granted.send_buffer), (BUFFER_BYTES, BUFFER_BYTES));
        });
    }

    #[test]
    fn probing_forbids_fragments() {
        in_namespace("probing_forbids_fragments", || {
            // A way with an MTU of 1,280.
            let tun = Tun::create("small%d").unwrap();
            runtime().block_on(async {
                let addresses = ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()].into();
                let routes = ["10.77.0.0/16".parse().unwrap(), "fd77::/64".parse().unwrap()].into();
                let device = Device { name: tun.name().into(), mtu: 1280, addresses, routes };
                let state = HostState { device: Some(device), covers: Default::default() };
                Host::connect().unwrap().apply(&state).await.unwrap();
            });
            for to in ["10.77.0.2:9", "[fd77::2]:9"] {
                let (socket, to) = (bind("[::]:0"), to.parse().unwrap());
                socket.send_to(&[0; 1_400], to, None).unwrap();
                socket.set_fragmentation(Fragmentation::Probe).unwrap();
                assert!(matches!(socket.send_to(&[0; 1_400], to, None), Err(UdpError::TooBig)), "{to}");
                socket.send_to(&[0; 1_200], to, None).unwrap();
                socket.set_fragmentation(Fragmentation::Allowed).unwrap();
                socket.send_to(&[0; 1_400], to, None).unwrap();
            }
        });
    }
}

//! The UDP socket under the tunnels.

use super::steering::steer_datagrams;
use super::udp_batch::{ReceiveBatch, SendBatch};
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Receive and send buffer asked of the kernel, in bytes: 4 MiB hold 25 ms of full-size packets at 1 Gbit/s, which is
/// what a data thread may be kept off its core for on a busy small host.
pub const BUFFER_BYTES: usize = 4 << 20;

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
    /// Whether datagrams of one sender may arrive several to a buffer (Linux 5.0).
    pub coalesced: bool,
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
        Self::configure(bound(address, options, false)?, options)
    }

    /// Binds as many sockets to `address` as there are `shards`, each of which receives what is its shard's
    /// ([`steering`](super::steering)). Tells beside them why the kernel does not steer, where it does not: it then spreads
    /// datagrams by their sender, so that those of one peer still arrive at one socket.
    ///
    /// # Errors
    /// As [`UdpSocket::bind`]; an address in use is refused also where it is another daemon's that shares it.
    pub fn bind_shards(
        address: SocketAddr,
        options: UdpOptions,
        shards: u8,
    ) -> io::Result<(Vec<Self>, io::Result<()>)> {
        if shards <= 1 {
            return Ok((vec![Self::bind(address, options)?], Ok(())));
        }
        // Sockets that share may be joined by anybody's of the same user. So it is asked first whether somebody is there.
        let address = match bound(address, options, false)?.local_addr()?.as_socket() {
            Some(local) => SocketAddr::new(address.ip(), local.port()),
            None => address,
        };
        let mut sockets = Vec::with_capacity(usize::from(shards));
        for _ in 0..shards {
            sockets.push(Self::configure(bound(address, options, true)?, options)?);
        }
        let steered = steer_datagrams(sockets[0].as_fd(), shards);
        Ok((sockets, steered))
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

    /// Receives what is there into at most `most` buffers of `batch`, without waiting, and returns how many were filled:
    /// zero where nothing is there.
    ///
    /// # Errors
    /// Never [`UdpError::WouldBlock`]. After any other the caller counts and calls again.
    pub fn receive(&self, batch: &mut ReceiveBatch, most: usize) -> Result<usize, UdpError> {
        match batch.receive(&self.socket, most) {
            Err(UdpError::WouldBlock) => Ok(0),
            outcome => outcome,
        }
    }

    /// Sends everything committed to `batch`, without waiting, and returns how many datagrams went out; calls `refused` for
    /// each that the kernel did not take.
    ///
    /// Where the send buffer has no room for all, the rest stays in the batch: wait until the socket is writable and
    /// send again. A run that the way to its destination does not take is sent datagram by datagram, at once, and so are
    /// all later ones to it.
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
            coalesced: set_option(&result.socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok(),
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

fn bound(address: SocketAddr, options: UdpOptions, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(options.only_v6)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
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
    use crate::platform::udp_batch::{BATCH, Way};
    use crate::platform::wake::Wake;

    fn bind(address: &str) -> UdpSocket {
        UdpSocket::bind(address.parse().unwrap(), UdpOptions::default()).unwrap()
    }

    /// Receives until `count` datagrams came, as (source, destination, stamp, bytes).
    fn gather(socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Option<IpAddr>, u64, Vec<u8>)> {
        let mut batch = ReceiveBatch::new(BATCH, 65_536);
        let mut all = Vec::new();
        while all.len() < count {
            for index in 0..wait_and_receive(socket, &mut batch) {
                let about = batch.about(index).unwrap();
                assert!(!about.truncated);
                for bytes in batch.bytes(index).chunks(about.stride.max(1)) {
                    all.push((about.source, about.destination, about.stamp.unwrap(), bytes.to_vec()));
                }
            }
        }
        all
    }

    fn wait_and_receive(socket: &UdpSocket, batch: &mut ReceiveBatch) -> usize {
        Wake::new().unwrap().wait_readable(socket.as_fd(), None).unwrap();
        socket.receive(batch, BATCH).unwrap()
    }

    fn way(to: SocketAddr) -> Way {
        Way { to, source: None, tos: 0 }
    }

    /// Keeps datagrams of these lengths, each filled with its number.
    fn fill(batch: &mut SendBatch, lengths: &[usize], way: Way) {
        for (number, &length) in (0u8..).zip(lengths) {
            batch.slot(length).unwrap()[..length].fill(number);
            assert!(batch.commit(length, way));
        }
    }

    fn all(socket: &UdpSocket, batch: &mut SendBatch) -> usize {
        let sent = socket.send(batch, |to, error| panic!("{to}: {error}"));
        assert!(batch.is_empty());
        sent
    }

    fn exchange(receiver: &str, sender: &str, to: &str, from: &str) {
        let (receiver, sender) = (bind(receiver), bind(sender));
        let to = SocketAddr::new(to.parse().unwrap(), receiver.local().port());
        let from = SocketAddr::new(from.parse().unwrap(), sender.local().port());
        let mut batch = SendBatch::new();
        let before = realtime_nanos();
        fill(&mut batch, &std::array::from_fn::<usize, 100, _>(|number| number + 1), way(to));
        assert_eq!(all(&sender, &mut batch), 100);
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
                    let mut batch = SendBatch::new();
                    // A run, and after it one alone.
                    fill(&mut batch, &[9, 9, 9, 20], Way { source: Some(wanted), ..way(to) });
                    assert_eq!(all(&sender, &mut batch), 4);
                    for (source, ..) in gather(&receiver, 5) {
                        assert_eq!(source.ip(), expected.parse::<IpAddr>().unwrap());
                    }
                    fill(&mut batch, &[9, 9], way(to));
                    assert_eq!(all(&sender, &mut batch), 2);
                    assert_eq!(buffers(&receiver), [(18, 9)], "a lost source is no reason against runs");
                }
            }
            let (receiver, sender) = (bind("[::1]:0"), bind("[::]:0"));
            sender.send_to(b"one", receiver.local(), Some("2001:db8::1".parse().unwrap())).unwrap();
            assert_eq!(gather(&receiver, 1)[0].0.ip(), "::1".parse::<IpAddr>().unwrap());
        });
    }

    /// The lengths and strides of the buffers one receive brings.
    fn buffers(socket: &UdpSocket) -> Vec<(usize, usize)> {
        let mut batch = ReceiveBatch::new(BATCH, 65_536);
        let count = wait_and_receive(socket, &mut batch);
        (0..count).map(|index| batch.about(index).unwrap()).map(|about| (about.length, about.stride)).collect()
    }

    #[test]
    fn a_run_crosses_the_kernel_as_one_and_its_datagrams_arrive() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (receiver, sender) = (bind(address), bind(address));
            assert!(receiver.granted().coalesced, "Linux 5.0 is needed here");
            let mut batch = SendBatch::new();
            fill(&mut batch, &[100, 100, 50], way(receiver.local()));
            assert_eq!(all(&sender, &mut batch), 3);
            assert_eq!(buffers(&receiver), [(250, 100)]);
            fill(&mut batch, &[100, 100, 50], way(receiver.local()));
            fill(&mut batch, &[1_452; 46], way(receiver.local()));
            assert_eq!(all(&sender, &mut batch), 49);
            let lengths: Vec<_> =
                gather(&receiver, 49).into_iter().map(|(.., bytes)| (bytes[0], bytes.len())).collect();
            assert_eq!(lengths[..4], [(0, 100), (1, 100), (2, 50), (0, 1_452)]);
            assert_eq!(lengths[48], (45, 1_452));
        }
    }

    #[test]
    fn marks_of_the_outer_header_split_runs_and_arrive() {
        for (receiver, sender, to) in [
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
            ("[::]:0", "[::]:0", "::1"),
            ("[::]:0", "[::]:0", "127.0.0.1"),
        ] {
            let (receiver, sender) = (bind(receiver), bind(sender));
            let to = way(SocketAddr::new(to.parse().unwrap(), receiver.local().port()));
            let mut batch = SendBatch::new();
            for tos in [0b10, 0xb9, 0, 0b11] {
                fill(&mut batch, &[30, 30], Way { tos, ..to });
            }
            assert_eq!(all(&sender, &mut batch), 8);
            let mut received = ReceiveBatch::new(BATCH, 65_536);
            assert_eq!(wait_and_receive(&receiver, &mut received), 4);
            let marks: Vec<_> = (0..4).map(|index| received.about(index).unwrap()).map(|a| (a.stride, a.ecn)).collect();
            assert_eq!(marks, [(30, 0b10), (30, 0b01), (30, 0), (30, 0b11)], "{to:?}");
        }
    }

    #[test]
    fn a_way_that_takes_no_runs_gets_single_datagrams_and_loses_none() {
        in_namespace("a_way_that_takes_no_runs_gets_single_datagrams_and_loses_none", || {
            // Without UDP checksums the kernel refuses to cut.
            let (receiver, sender) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
            set_option(&sender.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
            let mut batch = SendBatch::new();
            fill(&mut batch, &[100, 100, 50], way(receiver.local()));
            fill(&mut batch, &[70], way(receiver.local()));
            assert_eq!(all(&sender, &mut batch), 4);
            let lengths: Vec<_> = gather(&receiver, 4).into_iter().map(|(.., bytes)| bytes.len()).collect();
            assert_eq!(lengths, [100, 100, 50, 70]);
            // It is remembered, for this destination and no other.
            set_option(&sender.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 0).unwrap();
            let other = bind("127.0.0.1:0");
            for (receiver, expected) in [(&receiver, &[(9, 9), (9, 9)][..]), (&other, &[(18, 9)])] {
                fill(&mut batch, &[9, 9], way(receiver.local()));
                assert_eq!(all(&sender, &mut batch), 2);
                assert_eq!(buffers(receiver), expected);
            }
        });
    }

    #[test]
    fn a_full_send_buffer_keeps_the_rest_for_later() {
        in_namespace("a_full_send_buffer_keeps_the_rest_for_later", || {
            // A way whose datagrams stay in the device until somebody reads them.
            let tun = Tun::open("slow%d", crate::platform::tun::Framing::Plain).unwrap();
            set_up(&tun, 1_500);
            let sender = bind("0.0.0.0:0");
            set_option(&sender.socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 20_000).unwrap();
            let to = way("10.77.0.2:9".parse().unwrap());
            let mut batch = SendBatch::new();
            let lengths: Vec<usize> = (0..200).map(|number| 1_000 + number).collect();
            fill(&mut batch, &lengths, to);
            let (mut sent, mut read, mut packet) = (0, Vec::new(), [0; 2_000]);
            sent += sender.send(&mut batch, |to, error| panic!("{to}: {error}"));
            if batch.is_empty() {
                // A device that takes packets off the socket's account at once never fills its buffer.
                assert_eq!(sent, 200);
            }
            while !batch.is_empty() {
                Wake::new().unwrap().wait_readable(tun.as_fd(), None).unwrap();
                read.push(tun.read(&mut packet).unwrap() - 28);
                sent += sender.send(&mut batch, |to, error| panic!("{to}: {error}"));
            }
            assert_eq!(sent, 200);
            while let Ok(length) = tun.read(&mut packet) {
                read.push(length - 28);
            }
            assert_eq!(read, lengths);
        });
    }

    #[test]
    fn a_refused_datagram_is_reported_and_the_rest_goes_out() {
        in_namespace("a_refused_datagram_is_reported_and_the_rest_goes_out", || {
            let (receiver, sender) = (bind("127.0.0.1:0"), bind("0.0.0.0:0"));
            let nowhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
            let broadcast: SocketAddr = "255.255.255.255:9".parse().unwrap();
            let mut batch = SendBatch::new();
            for to in [receiver.local(), nowhere, receiver.local(), broadcast] {
                batch.commit(10, way(to));
            }
            batch.commit(66_000, way(receiver.local()));
            batch.commit(66_001, way(nowhere));
            batch.commit(11, way(receiver.local()));
            let mut refused = Vec::new();
            assert_eq!(sender.send(&mut batch, |to, error| refused.push((to, error))), 3);
            assert!(batch.is_empty());
            assert!(matches!(refused[0], (to, UdpError::Unreachable) if to == nowhere), "{refused:?}");
            assert!(matches!(refused[1].1, UdpError::Unreachable | UdpError::Forbidden), "{refused:?}");
            assert!(matches!(refused[2].1, UdpError::TooBig), "{refused:?}");
            assert_eq!(refused.len(), 4);
            assert_eq!(gather(&receiver, 3)[2].3.len(), 11);
            assert!(matches!(sender.send_to(b"x", nowhere, None), Err(UdpError::Unreachable)));
        });
    }

    #[test]
    fn a_truncated_datagram_is_marked() {
        let (receiver, sender) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        sender.send_to(&[7; 200], receiver.local(), None).unwrap();
        let mut batch = ReceiveBatch::new(2, 100);
        assert_eq!(wait_and_receive(&receiver, &mut batch), 1);
        let about = batch.about(0).unwrap();
        assert_eq!((about.length, about.truncated, batch.bytes(0)), (100, true, &[7; 100][..]));
        assert_eq!((batch.about(1), batch.bytes(1)), (None, &[][..]));
    }

    #[test]
    fn an_empty_socket_says_so_and_a_successor_takes_it_over() {
        let (receiver, sender) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        assert_eq!(receiver.receive(&mut ReceiveBatch::new(1, 100), 1).unwrap(), 0);
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

    /// Gives the device addresses and routes.
    fn set_up(tun: &Tun, mtu: u32) {
        runtime().block_on(async {
            let addresses = ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()].into();
            let routes = ["10.77.0.0/16".parse().unwrap(), "fd77::/64".parse().unwrap()].into();
            let device = Device { name: tun.name().into(), mtu, addresses, routes, sized: Default::default() };
            let state = HostState { device: Some(device), covers: Default::default() };
            Host::connect().unwrap().apply(&state).await.unwrap();
        });
    }

    #[test]
    fn probing_forbids_fragments() {
        in_namespace("probing_forbids_fragments", || {
            let tun = Tun::create("small%d").unwrap();
            set_up(&tun, 1_280);
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

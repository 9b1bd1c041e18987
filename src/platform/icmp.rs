//! ICMP echo: what the network alone takes, as any host's `ping` sees it.
//!
//! A ping socket needs no privilege where `net.ipv4.ping_group_range` lets the user have one; else a raw socket is tried, which
//! needs CAP_NET_RAW. Answers carry the kernel's receive stamp, so that this process's own scheduling is no part of them.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use super::clock::{self, Reading};

/// Bytes of an ICMP header, in both families.
pub const HEADER_LEN: usize = 8;
/// Bytes of the header and of the mark by which an answer is known as one of ours.
const SHORTEST: usize = HEADER_LEN + MARK_LEN;
const MARK_LEN: usize = 8;
/// The longest IPv4 packet, which is the longest answer.
const LONGEST: usize = 65_535;

/// Why no echo can be sent.
#[derive(Debug, thiserror::Error)]
pub enum EchoError {
    /// Neither kind of socket is allowed.
    #[error(
        "this user may not send ICMP echoes: run it as root, or let the user's group do so with the sysctl \
         net.ipv4.ping_group_range"
    )]
    NotPermitted,
    /// The kernel refuses the packet.
    #[error("cannot send an ICMP echo to {remote}: {source}")]
    Refused {
        /// Where it was to go.
        remote: IpAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A socket that asks one host for echoes.
#[derive(Debug)]
pub struct Echo {
    socket: Socket,
    remote: IpAddr,
    /// A raw socket sees the answers to everybody's echoes, and IPv4 headers.
    raw: bool,
    mark: [u8; MARK_LEN],
}

impl Echo {
    /// Opens a socket towards a host. `mark` is a random number that no other echo to it carries.
    ///
    /// # Errors
    /// The user may not, or there is no route.
    pub fn open(remote: IpAddr, mark: u64) -> Result<Self, EchoError> {
        let (domain, protocol) = match remote {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let refused = |source| EchoError::Refused { remote, source };
        let opened = Socket::new(domain, Type::DGRAM, Some(protocol)).map(|socket| (socket, false));
        let opened = opened.or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)).map(|socket| (socket, true)));
        let (socket, raw) = opened.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => EchoError::NotPermitted,
            _ => refused(error),
        })?;
        socket.connect(&SocketAddr::new(remote, 0).into()).map_err(refused)?;
        setsockopt(&socket, ReceiveTimestampns, &true).map_err(|errno| refused(errno.into()))?;
        Ok(Echo { socket, remote, raw, mark: mark.to_be_bytes() })
    }

    /// Sends an echo of `length` bytes of ICMP, its header among them, and waits for the answer; returns the round trip, or
    /// `None` where there was no answer within `patience`.
    ///
    /// # Errors
    /// The kernel refuses to send it, or says that the host or network cannot be reached.
    pub fn round_trip(&self, sequence: u16, length: usize, patience: Duration) -> Result<Option<Duration>, EchoError> {
        let packet = self.request(sequence, length);
        let sent = clock::now();
        self.socket.send(&packet).map_err(|source| self.refused(source))?;
        let deadline = sent + patience;
        let mut buffer = vec![0; LONGEST];
        loop {
            let left = deadline.saturating_since(clock::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up, so that a rest below a millisecond does not spin.
            let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.refused(errno.into())),
            }
            let mut pieces = [IoSliceMut::new(&mut buffer)];
            let mut control = nix::cmsg_space!(TimeSpec);
            let received = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut pieces,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            );
            let (bytes, stamp) = match received {
                Ok(message) => {
                    let stamp = message.cmsgs().ok().and_then(|mut all| {
                        all.find_map(|one| match one {
                            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                            _ => None,
                        })
                    });
                    (message.bytes, stamp)
                }
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => return Err(self.refused(errno.into())),
            };
            let read = Reading::take();
            if self.answers(&buffer[..bytes], sequence) {
                let stamp = stamp.and_then(|stamp| u64::try_from(stamp.as_nanos()).ok());
                let at = stamp.map_or(read.now, |stamp| read.instant_of(stamp));
                return Ok(Some(at.saturating_since(sent)));
            }
        }
    }

    fn refused(&self, source: io::Error) -> EchoError {
        EchoError::Refused { remote: self.remote, source }
    }

    /// An echo request. On a ping socket the kernel writes the identifier and the checksum itself.
    fn request(&self, sequence: u16, length: usize) -> Vec<u8> {
        let mut packet = vec![0; length.max(SHORTEST)];
        packet[0] = if self.remote.is_ipv4() { 8 } else { 128 };
        packet[4..6].copy_from_slice(&self.mark[..2]);
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        packet[HEADER_LEN..SHORTEST].copy_from_slice(&self.mark);
        if self.remote.is_ipv4() {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// Whether a packet is the answer to our echo of that number.
    fn answers(&self, packet: &[u8], sequence: u16) -> bool {
        let header = match (self.raw, self.remote, packet.first()) {
            (true, IpAddr::V4(_), Some(first)) => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let reply = if self.remote.is_ipv4() { 0 } else { 129 };
        packet.get(header..).is_some_and(|icmp| {
            icmp.len() >= SHORTEST
                && icmp[0] == reply
                && icmp[6..8] == sequence.to_be_bytes()
                && icmp[HEADER_LEN..SHORTEST] == self.mark
        })
    }
}

/// The checksum of RFC 1071 over a packet whose own field is zero.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::super::test_namespace::in_namespace;
    use super::*;

    #[test]
    fn a_host_answers_in_both_families() {
        in_namespace("ICMP echo", || {
            for remote in ["127.0.0.1", "::1"] {
                let echo = Echo::open(remote.parse().unwrap(), 7).unwrap();
                for (sequence, length) in [(1, 0), (2, 108), (65_535, 1_460)] {
                    let rtt = echo.round_trip(sequence, length, Duration::from_secs(20)).unwrap();
                    assert!(rtt.is_some(), "{remote} with {length} bytes");
                }
            }
        });
    }

    #[test]
    fn a_network_without_a_way_is_told() {
        in_namespace("ICMP without a route", || {
            let error = Echo::open("192.0.2.1".parse().unwrap(), 7).unwrap_err();
            assert!(matches!(&error, EchoError::Refused { .. }) && error.to_string().contains("192.0.2.1"), "{error}");
        });
    }

    #[test]
    fn only_the_answer_to_our_own_echo_counts() {
        in_namespace("ICMP answers", || {
            let mut echo = Echo::open("127.0.0.1".parse().unwrap(), 7).unwrap();
            for raw in [false, true] {
                echo.raw = raw;
                let mut answer = echo.request(3, 0);
                answer[0] = 0;
                let header: &[u8] =
                    if raw { &[0x45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] } else { &[] };
                let seen = |icmp: &[u8]| echo.answers(&[header, icmp].concat(), 3);
                assert!(seen(&answer));
                for (at, byte) in [(0, 8), (0, 3), (7, 4), (9, 1)] {
                    let mut other = answer.clone();
                    other[at] = byte;
                    assert!(!seen(&other), "byte {at} is {byte}");
                }
                for length in 0..answer.len() {
                    assert!(!seen(&answer[..length]));
                }
            }
        });
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }
}

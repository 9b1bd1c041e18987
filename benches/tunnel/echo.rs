//! Round trips of ICMP echo requests, sent on a schedule that does not wait for the answers.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::error::Context;
use crate::lab::{Host, Result};
use crate::sample::Sample;

/// How long the last answers are waited for: far more than any queue here holds.
const LATE: Duration = Duration::from_secs(1);

/// An echo request with ping's usual 56 bytes of payload.
const REQUEST: usize = 64;

/// Asks `target` from `host`, `count` times with `interval` between two requests. Round trips are in microseconds, from
/// before the sending call to after the receiving one; those without an answer are counted as lost.
///
/// # Errors
/// Where the host's kernel gives no echo sockets.
pub fn run(host: &Host, target: Ipv4Addr, count: u16, interval: Duration) -> Result<Sample> {
    ask(&open(host)?, target, count, interval)
}

/// Opens an echo socket in a host: the kernel numbers its requests and gives it the replies to them alone.
///
/// # Errors
/// Where the host's kernel gives none.
pub fn open(host: &Host) -> Result<Socket> {
    host.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    let open = || Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::ICMPV4));
    host.enter(open).context("open an echo socket")
}

fn ask(socket: &Socket, target: Ipv4Addr, count: u16, interval: Duration) -> Result<Sample> {
    // Type 8, code 0; the sequence number is at 6.
    let mut request = [0; REQUEST];
    request[0] = 8;
    let mut sent: Vec<Instant> = Vec::with_capacity(usize::from(count));
    let mut round_trips = vec![f64::INFINITY; usize::from(count)];
    let mut missing = usize::from(count);
    let mut next = Instant::now();
    while missing > 0 {
        let now = Instant::now();
        let all_sent = sent.len() == usize::from(count);
        if now >= next {
            if all_sent {
                break;
            }
            let sequence = u16::try_from(sent.len()).unwrap_or(u16::MAX);
            request[6..8].copy_from_slice(&sequence.to_be_bytes());
            sent.push(Instant::now());
            // A device that is not there, or full, loses the request: so it is counted.
            let _ = socket.send_to(&request, &SocketAddrV4::new(target, 0).into());
            next += if sent.len() == usize::from(count) { interval.max(LATE.min(interval * 20)) } else { interval };
            continue;
        }
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let wait = TimeSpec::from_duration(next.saturating_duration_since(now));
        if ppoll(&mut fds, Some(wait), None).context("wait for echo replies")? == 0 {
            continue;
        }
        let mut buffer = [0; 256];
        while let Ok(len) = (&*socket).read(&mut buffer) {
            let at = Instant::now();
            let Some(&[high, low]) = buffer[..len].get(6..8) else { continue };
            let sequence = usize::from(u16::from_be_bytes([high, low]));
            if let (Some(began), Some(round_trip)) = (sent.get(sequence), round_trips.get_mut(sequence))
                && round_trip.is_infinite()
            {
                *round_trip = at.duration_since(*began).as_secs_f64() * 1e6;
                missing -= 1;
            }
        }
    }
    Ok(Sample::new(round_trips))
}

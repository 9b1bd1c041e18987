//! The kernel's answer to the same question: echo requests whose round trips end at the kernel's receive stamp, as those of
//! iputils' ping do. Debian's ping itself rounds what takes longer than 100 ms to whole milliseconds.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use meshd::platform::clock;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::error::Context;
use crate::lab::{Error, Host, Result};
use crate::sample::Sample;

/// How long the last answers are waited for: more than three of the longest round trips made here.
const LATE: Duration = Duration::from_secs(1);

/// A thread that asks.
pub struct Ping {
    thread: JoinHandle<Result<Vec<Sample>>>,
}

impl Ping {
    /// Starts to ask each of `targets` from `host`, once per `interval` for `time`.
    ///
    /// # Errors
    /// Where the host's kernel gives no echo sockets.
    pub fn start(host: &Host, targets: Vec<Ipv4Addr>, interval: Duration, time: Duration) -> Result<Ping> {
        // The kernel numbers the requests of such a socket and gives it the replies to them alone.
        host.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        let open = || Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::ICMPV4));
        let socket = host.enter(open).context("open an echo socket")?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("ask for receive stamps")?;
        let thread = thread::Builder::new().name("ping".into());
        let thread = thread.spawn(move || ask(&socket, &targets, interval, time)).context("start a thread")?;
        Ok(Ping { thread })
    }

    /// Waits for its end; round trips in microseconds, one sample for each target.
    ///
    /// # Errors
    /// Where its socket failed.
    pub fn finish(self) -> Result<Vec<Sample>> {
        self.thread.join().map_err(|_| Error::failed("a pinging thread panicked"))?
    }
}

fn ask(socket: &Socket, targets: &[Ipv4Addr], interval: Duration, time: Duration) -> Result<Vec<Sample>> {
    let rounds = (time.as_secs_f64() / interval.as_secs_f64()) as usize;
    // One after the other, evenly over the interval; a sequence number is 16 bits wide.
    let all = (rounds * targets.len()).min(usize::from(u16::MAX));
    let pause = interval / u32::try_from(targets.len()).unwrap_or(1).max(1);
    // Type 8, code 0; the sequence number is at 6; ping's usual 56 bytes of payload.
    let mut request = [0; 64];
    request[0] = 8;
    let mut sent: Vec<u64> = Vec::with_capacity(all);
    let mut round_trips = vec![f64::INFINITY; all];
    let mut next = Instant::now();
    let end = next + pause * u32::try_from(all).unwrap_or(u32::MAX) + LATE;
    while Instant::now() < end {
        let now = Instant::now();
        if now >= next && sent.len() < all {
            let sequence = u16::try_from(sent.len()).unwrap_or(u16::MAX);
            request[6..8].copy_from_slice(&sequence.to_be_bytes());
            let target = SocketAddrV4::new(targets[sent.len() % targets.len()], 0);
            sent.push(clock::realtime_nanos());
            // What the device does not take is lost, and so it is counted.
            let _ = socket.send_to(&request, &target.into());
            next += pause;
            continue;
        }
        let until = if sent.len() < all { next } else { end };
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let wait = TimeSpec::from_duration(until.saturating_duration_since(now));
        if ppoll(&mut fds, Some(wait), None).context("wait for echo replies")? == 0 {
            continue;
        }
        while let Some((sequence, stamp)) = receive(socket) {
            let round_trip = round_trips.get_mut(sequence).zip(sent.get(sequence));
            if let Some((round_trip, began)) = round_trip
                && round_trip.is_infinite()
            {
                *round_trip = stamp.saturating_sub(*began) as f64 / 1e3;
            }
        }
    }
    let of = |target: usize| round_trips.iter().skip(target).step_by(targets.len()).copied().collect();
    Ok((0..targets.len()).map(|target| Sample::new(of(target))).collect())
}

/// Takes one reply: its sequence number and the kernel's stamp (CLOCK_REALTIME, ns).
fn receive(socket: &Socket) -> Option<(usize, u64)> {
    let mut buffer = [0; 128];
    let mut control = nix::cmsg_space!(libc::timespec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()).ok()?;
    let stamp = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    })?;
    let stamp = u64::try_from(stamp.as_nanos()).ok()?;
    let sequence = [*buffer.get(6)?, *buffer.get(7)?];
    Some((usize::from(u16::from_be_bytes(sequence)), stamp))
}

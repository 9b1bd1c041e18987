//! Echo requests from one host to several addresses, again and again until each has answered.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::error::Context;
use crate::lab::{Error, Host, Result};

/// Time between two requests to an address that has not answered: fine against the seconds that are measured, and with
/// 380 pairs still few packets.
const AGAIN: Duration = Duration::from_millis(50);

/// A thread in a host that asks until all have answered.
pub struct Pinger {
    name: String,
    thread: JoinHandle<Result<Asked>>,
}

/// What came of it.
pub struct Asked {
    /// When the last one answered; `None` where the time ran out.
    done: Option<Instant>,
    silent: Vec<Ipv4Addr>,
}

impl Pinger {
    /// Begins to ask `targets` from `host`, until `deadline` at the latest.
    ///
    /// # Errors
    /// Where the host's kernel gives no echo sockets.
    pub fn start(host: &Host, targets: Vec<Ipv4Addr>, deadline: Instant) -> Result<Pinger> {
        // The kernel numbers the requests of such a socket and gives it the replies to them alone.
        host.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        let socket = host
            .enter(|| Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::ICMPV4)))
            .context("open an echo socket")?;
        let thread = thread::Builder::new()
            .name(format!("ping {}", host.name()))
            .spawn(move || ask(&socket, targets, deadline))
            .context("start a thread")?;
        Ok(Pinger { name: host.name().to_owned(), thread })
    }

    /// Waits for the last answer and returns when it came.
    ///
    /// # Errors
    /// Where the time ran out, with those that did not answer.
    pub fn finish(self) -> Result<Instant> {
        let asked = self.thread.join().map_err(|_| Error::failed("a pinging thread panicked"))??;
        asked.done.ok_or_else(|| Error::failed(format!("{} had no answer from {:?}", self.name, asked.silent)))
    }
}

fn ask(socket: &Socket, mut silent: Vec<Ipv4Addr>, deadline: Instant) -> Result<Asked> {
    // Type 8, code 0; checksum and identifier are the kernel's business; 56 bytes of payload as ping has.
    let mut request = [0; 64];
    request[0] = 8;
    let mut next = Instant::now();
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Ok(Asked { done: None, silent });
        }
        if now >= next {
            for target in &silent {
                // Until the daemon has made its device and routes there is no way; that is what is being waited for.
                let _ = socket.send_to(&request, &SocketAddrV4::new(*target, 0).into());
            }
            next += AGAIN;
            request[7] = request[7].wrapping_add(1);
        }
        let wait = next.min(deadline).saturating_duration_since(now);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::ZERO);
        if poll(&mut fds, timeout).context("wait for echo replies")? == 0 {
            continue;
        }
        let mut buffer = [MaybeUninit::uninit(); 256];
        while let Ok((_, source)) = socket.recv_from(&mut buffer) {
            silent.retain(|target| Some(*target) != v4_of(&source));
        }
        if silent.is_empty() {
            return Ok(Asked { done: Some(Instant::now()), silent });
        }
    }
}

fn v4_of(source: &SockAddr) -> Option<Ipv4Addr> {
    match source.as_socket()?.ip() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

//! Small UDP packets, as many as the sender can make; what counts is how many arrive. Sender and receiver are threads of
//! this program that hand 64 datagrams to each system call, so that they take as little as they can of the processors that
//! the tunnel needs too; the figure of the bare veth pair shows what they could do.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt};

use crate::lab::error::Context;
use crate::lab::{Error, Host, Result};

/// Bytes of UDP payload.
const SIZE: usize = 64;
/// Datagrams of one system call.
const BATCH: usize = 64;
/// What happens before the counting begins: queues fill, and the slower side finds its pace.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the receiver waits before it looks whether it is over.
const PATIENCE: Duration = Duration::from_millis(100);
/// So that what is counted is what the tunnel delivers, not what a receiver without room loses.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Datagrams of a second, over the counted time.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Those the far program received.
    pub delivered: f64,
    /// Those the near kernel took.
    pub offered: f64,
}

/// Floods `to` for `time`.
///
/// # Errors
/// Where there are no sockets.
pub fn run(near: &Host, far: &Host, to: Ipv4Addr, time: Duration) -> Result<Flood> {
    let receiver = far.enter(|| UdpSocket::bind((IpAddr::V4(to), 0))).context("open the flood's receiver")?;
    receiver.set_read_timeout(Some(PATIENCE)).context("set a socket's patience")?;
    // Without the privilege the usual buffer has to do, for every peer alike.
    let _ = setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER);
    let port = receiver.local_addr().context("the receiver's port")?.port();
    let sender = near.enter(|| UdpSocket::bind("0.0.0.0:0")).context("open the flood's sender")?;
    sender.connect((to, port)).context("aim the flood")?;

    let (over, sent, received) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| send_until(&sender, &over, &sent));
        scope.spawn(|| receive_until(&receiver, &over, &received));
        thread::sleep(WARM_UP);
        let read = || (Instant::now(), received.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
        let before = read();
        thread::sleep(time);
        let after = read();
        over.store(true, Ordering::Relaxed);
        let seconds = after.0.duration_since(before.0).as_secs_f64();
        let flood =
            Flood { delivered: (after.1 - before.1) as f64 / seconds, offered: (after.2 - before.2) as f64 / seconds };
        if after.1 == 0 { Err(Error::failed("nothing of the flood arrived")) } else { Ok(flood) }
    })
}

fn send_until(socket: &UdpSocket, over: &AtomicBool, sent: &AtomicU64) {
    let payload = [0x5a; SIZE];
    let parts = [[IoSlice::new(&payload)]; BATCH];
    let addresses: [Option<SockaddrIn>; BATCH] = [None; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    while !over.load(Ordering::Relaxed) {
        // A full queue, or a tunnel's own complaint, is no end: the next batch is tried.
        let taken = sendmmsg(socket.as_raw_fd(), &mut headers, &parts, addresses, [], MsgFlags::empty());
        sent.fetch_add(taken.map_or(0, |taken| taken.count() as u64), Ordering::Relaxed);
    }
}

fn receive_until(socket: &UdpSocket, over: &AtomicBool, received: &AtomicU64) {
    let mut buffers = [[0; SIZE]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    while !over.load(Ordering::Relaxed) {
        let mut parts: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let came = recvmmsg(socket.as_raw_fd(), &mut headers, parts.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
        received.fetch_add(came.map_or(0, |came| came.count() as u64), Ordering::Relaxed);
    }
}

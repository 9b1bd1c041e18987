//! What goes between two hosts all the time, and when it arrives.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::Socket;

use crate::echo;
use crate::lab::error::Context;
use crate::lab::{Host, Result};

/// Between two echo requests.
pub const ECHO: Duration = Duration::from_millis(20);

/// Between two messages of the connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a message: three segments of full size, so that what a network does to large packets is seen.
const MESSAGE: usize = 4_000;

/// When something came, in order.
#[derive(Clone, Default)]
pub struct Arrivals(Arc<Mutex<Vec<Instant>>>);

impl Arrivals {
    fn note(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }

    /// When the newest came.
    pub fn last(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// How long after `healed` something came; `None`: nothing did.
    pub fn after(&self, healed: Instant) -> Option<Duration> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.iter().find(|time| **time >= healed).map(|time| *time - healed)
    }

    /// The longest time in which nothing came, of those that ended after `began`; `None`: the last one has not ended.
    pub fn longest(&self, began: Instant, end: Instant) -> Option<Duration> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = times.windows(2).filter(|pair| pair[1] >= began).map(|pair| pair[1] - pair[0]).max();
        let open = times.last().map_or(Duration::MAX, |last| end.saturating_duration_since(*last));
        ended.filter(|ended| *ended >= open || open <= PAUSE * 5)
    }
}

/// Echo requests and a connection between two hosts, through whatever lies between them. Ends when dropped.
pub struct Traffic {
    /// Answers to echo requests of the first host.
    pub echoes: Arrivals,
    /// Whole messages, at either end.
    pub messages: [Arrivals; 2],
    broken: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    ends: [TcpStream; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts it between two hosts' addresses inside the tunnel, which must carry packets already.
    ///
    /// # Errors
    /// Where no connection comes about.
    pub fn start(near: &Host, far: &Host, addresses: [Ipv4Addr; 2]) -> Result<Traffic> {
        let what = format!("a connection from {} to {}", near.name(), far.name());
        let listener = far.enter(|| TcpListener::bind((addresses[1], 0))).context(&what)?;
        let there = listener.local_addr().context(&what)?;
        let connect = || crate::lab::flow::connect(IpAddr::V4(addresses[0]), there);
        let near_end = near.enter(connect).context(&what)?;
        let (far_end, _) = listener.accept().context(&what)?;
        let asking = echo::open(near)?;
        let copies = |end: &TcpStream| Ok([end.try_clone()?, end.try_clone()?]);
        let [near_copies, far_copies] =
            [copies(&near_end), copies(&far_end)].map(|copies: std::io::Result<_>| copies.context(&what));
        let mut traffic = Traffic {
            echoes: Arrivals::default(),
            messages: Default::default(),
            broken: Arc::default(),
            over: Arc::default(),
            ends: [near_end, far_end],
            threads: Vec::new(),
        };
        for (at, [reader, writer]) in [near_copies?, far_copies?].into_iter().enumerate() {
            writer.set_nodelay(true).context(&what)?;
            let (arrivals, broken) = (traffic.messages[at].clone(), Arc::clone(&traffic.broken));
            traffic.threads.push(thread::spawn(move || read(reader, &arrivals, &broken)));
            let over = Arc::clone(&traffic.over);
            traffic.threads.push(thread::spawn(move || write(writer, &over)));
        }
        let (arrivals, over) = (traffic.echoes.clone(), Arc::clone(&traffic.over));
        traffic.threads.push(thread::spawn(move || ask(&asking, addresses[1], &arrivals, &over)));
        Ok(traffic)
    }

    /// Whether the connection has ended, though nobody ended it.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether all of it has come within the last while.
    pub fn flows(&self) -> bool {
        let [there, back] = &self.messages;
        let fresh = |arrivals: &Arrivals, within| arrivals.last().is_some_and(|last| last.elapsed() < within);
        fresh(&self.echoes, ECHO * 10) && [there, back].iter().all(|arrivals| fresh(arrivals, PAUSE * 4))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for end in &self.ends {
            // One that is broken is shut already.
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ask(socket: &Socket, target: Ipv4Addr, arrivals: &Arrivals, over: &AtomicBool) {
    // Type 8, code 0, and ping's usual 56 bytes of payload.
    let mut request = [0; 64];
    request[0] = 8;
    let target = SocketAddr::V4(SocketAddrV4::new(target, 0)).into();
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= next {
            // What the device does not take is lost, and so it is counted.
            let _ = socket.send_to(&request, &target);
            next += ECHO;
            continue;
        }
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if ppoll(&mut fds, Some(TimeSpec::from_duration(next - now)), None).unwrap_or(0) > 0 {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 128];
            while let Ok(len) = socket.recv(&mut buffer) {
                if len == request.len() {
                    arrivals.note();
                }
            }
        }
    }
}

fn write(mut end: TcpStream, over: &AtomicBool) {
    let message = [0x5A; MESSAGE];
    while !over.load(Ordering::Relaxed) && end.write_all(&message).is_ok() {
        thread::sleep(PAUSE);
    }
}

fn read(mut end: TcpStream, arrivals: &Arrivals, broken: &AtomicBool) {
    let mut message = [0; MESSAGE];
    while end.read_exact(&mut message).is_ok() {
        arrivals.note();
    }
    // At the end this is said of every connection, and nobody asks any more.
    broken.store(true, Ordering::Relaxed);
}

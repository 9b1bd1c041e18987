//! Packet capture on a device of a host: into memory with the kernel's time stamps, searched by tests, written as a
//! pcap file after a failure.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, IoSliceMut, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket,
};
use nix::sys::time::TimeSpec;

use super::error::{Context, Error, Result};
use super::host::{Host, Lab};
use super::netlink;

/// How many packets are kept in memory; older ones go.
const KEPT: usize = 1 << 17;

/// How many bytes the kernel may hold for us: some hundred milliseconds of a fast link.
const KERNEL_BUFFER: usize = 64 << 20;

/// Hardware type of Ethernet devices (linux/if_arp.h).
const ARPHRD_ETHER: u16 = 1;
/// Hardware type of `lo`, which has Ethernet headers too.
const ARPHRD_LOOPBACK: u16 = 772;

/// One captured packet.
#[derive(Clone, Debug)]
pub struct Captured {
    /// When the kernel saw it: CLOCK_REALTIME in nanoseconds.
    pub time: u64,
    /// It left the host; else it arrived.
    pub outgoing: bool,
    /// It begins with an Ethernet header; else with the IP header.
    pub ethernet: bool,
    /// The whole packet.
    pub bytes: Vec<u8>,
}

impl Captured {
    /// Returns the packet from the IP header on; empty where it is not IP.
    pub fn ip(&self) -> &[u8] {
        if !self.ethernet {
            return &self.bytes;
        }
        match self.bytes.get(12..14) {
            Some([0x08, 0x00] | [0x86, 0xdd]) => &self.bytes[14..],
            _ => &[],
        }
    }

    /// Returns the source and destination port where it is UDP, over either family and without extension headers.
    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        const UDP: u8 = 17;
        let payload = self.payload_of(UDP, UDP)?;
        let port = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
        Some((port(0)?, port(2)?))
    }

    /// Returns the packet it complains about, where it says that something was unreachable.
    pub fn quoted(&self) -> Option<Captured> {
        const ICMP: u8 = 1;
        const ICMPV6: u8 = 58;
        let payload = self.payload_of(ICMP, ICMPV6)?;
        let unreachable = if self.ip()[0] >> 4 == 4 { 3 } else { 1 };
        // Type, code, checksum and four unused bytes; then the packet.
        let quote = payload.get(8..).filter(|_| payload[0] == unreachable)?;
        Some(Captured { ethernet: false, bytes: quote.to_vec(), ..self.clone() })
    }

    /// Returns what follows the IP header where it is of this protocol.
    fn payload_of(&self, over_v4: u8, over_v6: u8) -> Option<&[u8]> {
        let ip = self.ip();
        match ip.first()? >> 4 {
            4 if ip.get(9) == Some(&over_v4) => ip.get(usize::from(ip[0] & 15) * 4..),
            6 if ip.get(6) == Some(&over_v6) => ip.get(40..),
            _ => None,
        }
    }
}

/// A running capture. Cloning gives another handle; the capture ends with the last one or with its lab.
#[derive(Clone)]
pub struct Capture(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    stop: UnixDatagram,
    thread: Mutex<Option<JoinHandle<()>>>,
    socket: Arc<OwnedFd>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    packets: VecDeque<Captured>,
    seen: u64,
    dropped: u64,
}

impl Capture {
    /// Captures everything on a device from now on. The pcap file of a failed test is called `host-device.pcap`.
    ///
    /// # Errors
    /// Where there is no such device or no packet sockets.
    pub fn start(lab: &Lab, host: &Host, dev: &str) -> Result<Capture> {
        let index = netlink::index(host.netns(), dev)?;
        let what = format!("capture on {} {dev}", host.name());
        let socket = host
            .enter(|| socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll))
            .context(&what)?;
        bind(&socket, index).context(&what)?;
        // Without the privilege in a user namespace the usual buffer has to do; drops are counted.
        let _ = setsockopt(&socket, RcvBufForce, &KERNEL_BUFFER);
        setsockopt(&socket, ReceiveTimestampns, &true).context(&what)?;
        let (stop, stopped) = UnixDatagram::pair().context(&what)?;
        let shared = Arc::new(Shared::default());
        let socket = Arc::new(socket);
        let thread = {
            let (shared, socket) = (shared.clone(), socket.clone());
            let work = move || run(&shared, &socket, &stopped, index as usize);
            std::thread::Builder::new().name(what.clone()).spawn(work).context(&what)?
        };
        let capture = Capture(Arc::new(Inner { shared, stop, thread: Mutex::new(Some(thread)), socket }));
        let (evidence, name) = (capture.clone(), format!("{}-{dev}.pcap", host.name()));
        lab.on_failure(move |dir| {
            if let Err(error) = evidence.write_pcap(&dir.join(&name)) {
                eprintln!("{name}: {error}");
            }
        });
        Ok(capture)
    }

    /// Returns whether any packet kept contains these bytes; a packet's whole length is searched.
    ///
    /// # Panics
    /// Where packets were missed, for then "no" would mean nothing.
    pub fn contains_plaintext(&self, needle: &[u8]) -> bool {
        self.count(|packet| packet.bytes.windows(needle.len()).any(|window| window == needle)) > 0
    }

    /// Counts the packets for which `yes` says so.
    ///
    /// # Panics
    /// Where packets were missed, by the kernel or because more came than are kept (131,072).
    pub fn count(&self, yes: impl Fn(&Captured) -> bool) -> usize {
        let missed = self.missed();
        assert_eq!(missed, 0, "the capture missed {missed} packets, so it proves nothing");
        self.0.shared.lock().packets.iter().filter(|packet| yes(packet)).count()
    }

    /// Returns copies of the packets for which `yes` says so.
    pub fn packets(&self, yes: impl Fn(&Captured) -> bool) -> Vec<Captured> {
        self.0.shared.lock().packets.iter().filter(|packet| yes(packet)).cloned().collect()
    }

    /// Returns how many packets were missed: not taken from the kernel in time, or no longer kept.
    pub fn missed(&self) -> u64 {
        let dropped = kernel_drops(&self.0.socket);
        let mut state = self.0.shared.lock();
        // The kernel's count starts again with every reading.
        state.dropped += dropped;
        state.dropped + state.seen - state.packets.len() as u64
    }

    /// Waits until a packet for which `yes` says so has been captured.
    ///
    /// # Errors
    /// Where the time runs out.
    pub fn wait_for(&self, what: &str, limit: Duration, yes: impl Fn(&Captured) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.0.shared.lock();
        while !state.packets.iter().any(&yes) {
            let left = deadline.checked_duration_since(Instant::now());
            let left = left.ok_or_else(|| Error::failed(format!("no {what} was captured within {limit:?}")))?;
            state = self.0.shared.came.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Forgets what has been captured so far, missed packets included.
    pub fn clear(&self) {
        kernel_drops(&self.0.socket);
        *self.0.shared.lock() = State::default();
    }

    /// Writes the packets kept to a pcap file (nanosecond variant of the classic format).
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_pcap(&self, path: &Path) -> Result<()> {
        let what = format!("write {}", path.display());
        let mut file = BufWriter::new(File::create(path).context(&what)?);
        let state = self.0.shared.lock();
        // LINKTYPE_ETHERNET or LINKTYPE_RAW: one device has one kind.
        let kind: u32 = if state.packets.front().is_some_and(|packet| packet.ethernet) { 1 } else { 101 };
        let mut head = Vec::new();
        for word in [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, 1 << 18, kind] {
            head.extend(u32::to_ne_bytes(word));
        }
        file.write_all(&head).context(&what)?;
        for packet in &state.packets {
            let len = packet.bytes.len() as u64;
            for word in [packet.time / 1_000_000_000, packet.time % 1_000_000_000, len, len] {
                file.write_all(&u32::try_from(word).unwrap_or(u32::MAX).to_ne_bytes()).context(&what)?;
            }
            file.write_all(&packet.bytes).context(&what)?;
        }
        file.flush().context(&what)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.stop.send(&[1]);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Shared, socket: &OwnedFd, stopped: &UnixDatagram, index: usize) {
    let mut buffer = vec![0; 1 << 18];
    loop {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err() || fds[1].any() == Some(true) {
            return;
        }
        while let Some((packet, at)) = receive(socket, &mut buffer) {
            if at != index {
                continue;
            }
            let mut state = shared.lock();
            if state.packets.len() == KEPT {
                state.packets.pop_front();
            }
            state.packets.push_back(packet);
            state.seen += 1;
            shared.came.notify_all();
        }
    }
}

/// Lets a packet socket hear one device only; what it heard of others before is still in it.
fn bind(socket: &OwnedFd, index: u32) -> nix::Result<()> {
    // SAFETY: the structure is plain numbers, for which all zeros are values.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| nix::errno::Errno::ENODEV)?;
    let len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the call reads `len` bytes of a `sockaddr_ll`, which `address` is, and the descriptor is open.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    nix::errno::Errno::result(done).map(drop)
}

/// Takes one packet and the index of its device; `None` where there is none.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(Captured, usize)> {
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT).ok()?;
    let stamp = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    let (address, len) = (message.address?, message.bytes);
    let captured = Captured {
        time: u64::try_from(stamp.unwrap_or_default().as_nanos()).unwrap_or(0),
        outgoing: address.pkttype() == libc::PACKET_OUTGOING,
        ethernet: matches!(address.hatype(), ARPHRD_ETHER | ARPHRD_LOOPBACK),
        bytes: buffer[..len].to_vec(),
    };
    Some((captured, address.ifindex()))
}

/// Returns how many packets the kernel has dropped for want of room since this was last asked.
fn kernel_drops(socket: &OwnedFd) -> u64 {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = libc::socklen_t::try_from(mem::size_of_val(&stats)).unwrap_or(0);
    // SAFETY: the option writes at most `len` bytes of a `tpacket_stats`, which `stats` is; both live on this stack.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if done < 0 { 0 } else { stats.tp_drops.into() }
}

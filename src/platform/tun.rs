//! The TUN device: where this host's overlay packets leave and enter the kernel.

use super::steering::Steering;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a packet was not read or written, or a device not made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// Nothing to read now.
    #[error("the device has nothing to read")]
    WouldBlock,
    /// The device exists but is down; setting it up again cures it.
    #[error("the device is down")]
    Down,
    /// The device was deleted under us; this descriptor is useless for ever.
    #[error("the device was deleted: a new one must be made")]
    Deleted,
    /// The kernel has no memory for the packet.
    #[error("the kernel has no memory for the packet")]
    NoBuffers,
    /// The kernel does not take the bytes for an IP packet.
    #[error("the kernel does not take this for an IP packet")]
    BadPacket,
    /// The name is empty, longer than 15 bytes or contains a character the kernel refuses.
    #[error("{0:?} is no name for a network device: use 1 to 15 letters, digits or `-`, `%d` for a free number")]
    BadName(String),
    /// The name is another device's, or another process holds the device.
    #[error("the device {0} is in use: is another daemon running, or is it no TUN device?")]
    Busy(String),
    /// The device cannot be made.
    #[error("cannot make a TUN device: {0} (it needs CAP_NET_ADMIN and /dev/net/tun; try `modprobe tun`)")]
    Unavailable(io::Error),
    /// The kernel does not sort packets into queues.
    #[error(
        "the kernel sorts no packets into queues of the device: {0} (it takes CAP_BPF, or CAP_SYS_ADMIN before Linux 5.8)"
    )]
    Unsorted(io::Error),
    /// Anything else.
    #[error("the kernel refused the packet: {0}")]
    Other(Errno),
}

impl From<Errno> for TunError {
    fn from(errno: Errno) -> Self {
        match errno {
            // A signal is as good as nothing to read: the caller asks again.
            Errno::EAGAIN | Errno::EINTR => TunError::WouldBlock,
            Errno::EIO => TunError::Down,
            Errno::EBADFD => TunError::Deleted,
            Errno::ENOBUFS | Errno::ENOMEM => TunError::NoBuffers,
            Errno::EINVAL => TunError::BadPacket,
            other => TunError::Other(other),
        }
    }
}

/// What precedes each packet on the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The packet alone: one IP packet per read and write.
    Plain,
    /// Ten bytes in front of each packet (struct virtio_net_hdr, virtio 1.2 §5.1.6), which say how the packet is to be cut
    /// into several and what checksum is missing. One read or write then moves up to 64 KiB.
    Vnet,
}

impl Framing {
    /// Bytes in front of each packet.
    pub const fn header(self) -> usize {
        match self {
            Framing::Plain => 0,
            Framing::Vnet => VNET_HEADER,
        }
    }
}

/// Bytes of the header in front of each packet under [`Framing::Vnet`].
pub const VNET_HEADER: usize = 10;

/// The header of a packet that is whole, with its checksums.
pub const NO_OFFLOAD: [u8; VNET_HEADER] = [0; VNET_HEADER];

/// The longest read: a header, and the longest IP packet there is.
pub const LONGEST_READ: usize = VNET_HEADER + 65_535;

/// What is left to us: checksums, TCP segmentation of both families, and UDP segmentation of both (Linux 6.2). Nothing
/// beyond these bits (0x67 in all): with those for tunnels inside tunnels, reads with a header of ten bytes fail.
const TCP_SEGMENTS: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
const UDP_SEGMENTS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A TUN device, or one queue of it, removed by the kernel with its addresses and routes when the last descriptor closes,
/// unless it is made to stay ([`Tun::set_persistent`]).
#[derive(Debug)]
pub struct Tun {
    descriptor: OwnedFd,
    name: String,
    framing: Framing,
    granted: Runs,
    /// The kernel refused a packet made of several; none is given to it any more.
    refused: AtomicBool,
    /// Has [`Tun::write_run`] behave as with a kernel that takes no runs.
    #[cfg(test)]
    refusing: AtomicBool,
}

/// Which packets made of several a device takes and gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Segments of TCP.
    pub tcp: bool,
    /// Datagrams of UDP.
    pub udp: bool,
}

impl Tun {
    /// Makes a device called `pattern`, where `%d` stands for the first free number (`mesh%d`).
    ///
    /// It moves packets of up to 64 KiB, to be segmented here, as far as the kernel knows how: of TCP and UDP, or of TCP
    /// only, or else none and without a header ([`Tun::framing`]).
    pub fn create(pattern: &str) -> Result<Self, TunError> {
        match Self::open(pattern, Framing::Vnet) {
            // The descriptor is closed by now, and with it the device, so the name is free again.
            Err(TunError::Unavailable(_) | TunError::Busy(_)) => Self::open(pattern, Framing::Plain),
            outcome => outcome,
        }
    }

    /// Makes a device with as many queues as `steering` chooses among, in the order of their numbers. Each is read and
    /// written like a device of its own, with headers.
    ///
    /// # Errors
    /// Where the kernel refuses any of it; nothing is left behind then.
    pub fn create_queues(pattern: &str, steering: &Steering) -> Result<Vec<Self>, TunError> {
        let first = Self::open_as(pattern, Framing::Vnet, libc::IFF_MULTI_QUEUE)?;
        let name = first.name.clone();
        let mut queues = vec![first];
        while queues.len() < steering.queues() {
            queues.push(Self::open_as(&name, Framing::Vnet, libc::IFF_MULTI_QUEUE)?);
        }
        let program = steering.as_fd().as_raw_fd();
        // SAFETY: TUNSETSTEERINGEBPF reads one int, which `program` is, and takes a reference of its own to what it names.
        let result =
            unsafe { libc::ioctl(queues[0].descriptor.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const program) };
        Errno::result(result).map_err(|errno| TunError::Unsorted(errno.into()))?;
        Ok(queues)
    }

    /// Makes a device with the framing given, or none.
    pub fn open(pattern: &str, framing: Framing) -> Result<Self, TunError> {
        Self::open_as(pattern, framing, 0)
    }

    fn open_as(pattern: &str, framing: Framing, more: libc::c_int) -> Result<Self, TunError> {
        let mut request = interface_request(pattern)?;
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun");
        let descriptor = OwnedFd::from(file.map_err(TunError::Unavailable)?);
        let vnet = if framing == Framing::Vnet { libc::IFF_VNET_HDR } else { 0 };
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | vnet | more) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(match Errno::last() {
                Errno::EBUSY | Errno::EINVAL | Errno::EEXIST => TunError::Busy(pattern.into()),
                errno => TunError::Unavailable(errno.into()),
            });
        }
        let granted = if framing == Framing::Vnet { offload(&descriptor)? } else { Runs::default() };
        Ok(Self::of(descriptor, &request, framing, granted))
    }

    /// Takes over the descriptor of a device made by a predecessor, whatever framing it chose.
    ///
    /// # Errors
    /// [`TunError::Unavailable`] where it is no TUN descriptor or is framed in a way we do not read;
    /// [`TunError::Deleted`] where its device is gone.
    pub fn adopt(descriptor: OwnedFd) -> Result<Self, TunError> {
        let mut request = empty_request();
        // SAFETY: TUNGETIFF writes one ifreq, which `request` is.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } < 0 {
            return Err(match Errno::last() {
                Errno::EBADFD => TunError::Deleted,
                errno => TunError::Unavailable(errno.into()),
            });
        }
        // SAFETY: TUNGETIFF has set the flags member of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let framing = if flags & libc::IFF_VNET_HDR == 0 { Framing::Plain } else { Framing::Vnet };
        let framed = framing == Framing::Plain || vnet_header(&descriptor) == Some(VNET_HEADER);
        if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 || !framed {
            let reason = format!("the inherited device has flags {flags:#06x}, not those of ours");
            return Err(TunError::Unavailable(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        let granted = if framing == Framing::Vnet { offload(&descriptor)? } else { Runs::default() };
        let status = fcntl(&descriptor, FcntlArg::F_GETFL).map_err(TunError::Other)?;
        let status = OFlag::from_bits_retain(status) | OFlag::O_NONBLOCK;
        fcntl(&descriptor, FcntlArg::F_SETFL(status)).map_err(TunError::Other)?;
        Ok(Self::of(descriptor, &request, framing, granted))
    }

    fn of(descriptor: OwnedFd, request: &libc::ifreq, framing: Framing, granted: Runs) -> Self {
        Tun {
            descriptor,
            name: request_name(request),
            framing,
            granted,
            refused: AtomicBool::new(false),
            #[cfg(test)]
            refusing: AtomicBool::new(false),
        }
    }

    /// Makes the device refuse runs, as some kernels do.
    #[cfg(test)]
    pub(crate) fn refuse_runs(&self) {
        self.refusing.store(true, Ordering::Relaxed);
    }

    /// Returns the device's name at the time it was made or adopted.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what precedes each packet.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Says whether the device, with its addresses and routes, stays when the last descriptor closes. Packets for it are
    /// lost then until somebody opens it again by its name.
    ///
    /// # Errors
    /// What the kernel says; [`TunError::Deleted`] where the device is gone.
    pub fn set_persistent(&self, persistent: bool) -> Result<(), TunError> {
        let wanted = libc::c_ulong::from(persistent);
        // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
        let result = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::TUNSETPERSIST, wanted) };
        Errno::result(result).map(drop).map_err(TunError::from)
    }

    /// Reads one packet with what precedes it, without waiting, and returns the length of both. What does not fit into
    /// `buffer` is lost; [`LONGEST_READ`] is enough for everything.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, TunError> {
        Ok(nix::unistd::read(&self.descriptor, buffer)?)
    }

    /// Writes one whole packet, in full or not at all.
    pub fn write(&self, packet: &[u8]) -> Result<(), TunError> {
        match self.framing {
            Framing::Plain => self.write_pieces(&[IoSlice::new(packet)]),
            Framing::Vnet => self.write_pieces(&[IoSlice::new(&NO_OFFLOAD), IoSlice::new(packet)]),
        }
    }

    /// Tells which packets made of several may be given to the kernel: what it granted, and nothing once it refused one.
    pub fn takes_runs(&self) -> Runs {
        if self.refused.load(Ordering::Relaxed) { Runs::default() } else { self.granted }
    }

    /// Writes one packet made of several: `pieces` are its header of [`VNET_HEADER`] bytes and then its bytes, at most
    /// 65,535 in at most 1,023 pieces.
    ///
    /// # Errors
    /// [`TunError::BadPacket`] where the kernel does not take such a packet; from then on [`Tun::takes_runs`] denies, and the
    /// caller writes the packets one by one.
    pub fn write_run(&self, pieces: &[IoSlice<'_>]) -> Result<(), TunError> {
        #[cfg(test)]
        if self.refusing.load(Ordering::Relaxed) {
            self.refused.store(true, Ordering::Relaxed);
            return Err(TunError::BadPacket);
        }
        let result = self.write_pieces(pieces);
        if matches!(result, Err(TunError::BadPacket)) {
            self.refused.store(true, Ordering::Relaxed);
        }
        result
    }

    fn write_pieces(&self, pieces: &[IoSlice<'_>]) -> Result<(), TunError> {
        loop {
            match nix::sys::uio::writev(&self.descriptor, pieces) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Has the kernel leave checksums and segmentation to us, as much of it as it can.
fn offload(descriptor: &OwnedFd) -> Result<Runs, TunError> {
    let checksums = libc::TUN_F_CSUM;
    for (tcp, udp) in [(TCP_SEGMENTS, UDP_SEGMENTS), (TCP_SEGMENTS, 0), (0, 0)] {
        let wanted = checksums | tcp | udp;
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETOFFLOAD, wanted as libc::c_ulong) } >= 0 {
            return Ok(Runs { tcp: tcp != 0, udp: udp != 0 });
        }
    }
    Err(TunError::Unavailable(Errno::last().into()))
}

/// How many bytes precede each packet.
fn vnet_header(descriptor: &OwnedFd) -> Option<usize> {
    let mut size: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int, which `size` is.
    let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut size) };
    usize::try_from(size).ok().filter(|_| result >= 0)
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn interface_request(name: &str) -> Result<libc::ifreq, TunError> {
    let mut request = empty_request();
    let plain = name.replacen("%d", "", 1);
    let fits = !name.is_empty() && name.len() < request.ifr_name.len();
    if !fits || !plain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(TunError::BadName(name.into()));
    }
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = byte as libc::c_char;
    }
    Ok(request)
}

fn request_name(request: &libc::ifreq) -> String {
    request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| char::from(c as u8)).collect()
}

fn empty_request() -> libc::ifreq {
    // SAFETY: ifreq consists of integers and a union of integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::host_state::{Device, HostState};
    use crate::platform::netlink::Host;
    use crate::platform::test_namespace::{in_namespace, runtime};
    use crate::platform::wake::{Waited, Wake};
    use std::net::SocketAddr;
    use std::net::UdpSocket;
    use std::sync::Arc;

    fn wait(tun: &Tun) -> Waited {
        Wake::new().unwrap().wait_readable(tun.as_fd(), None).unwrap()
    }

    fn set_up(tun: &Tun, v4: &str) {
        runtime().block_on(async {
            let device = Device {
                name: tun.name().into(),
                mtu: 1420,
                addresses: [v4.parse().unwrap()].into(),
                routes: ["10.77.0.0/16".parse().unwrap()].into(),
                sized: Default::default(),
            };
            let state = HostState { device: Some(device), covers: Default::default() };
            let applied = Host::connect().unwrap().apply(&state).await.unwrap();
            assert!(applied.failed.is_empty(), "{applied:?}");
        });
    }

    #[test]
    fn packets_go_both_ways_in_either_framing() {
        in_namespace("packets_go_both_ways_in_either_framing", || {
            for framing in [Framing::Vnet, Framing::Plain] {
                let tun = Tun::open("mesh%d", framing).unwrap();
                assert!(tun.name().starts_with("mesh"));
                assert_eq!((tun.framing(), tun.takes_runs().tcp), (framing, framing == Framing::Vnet));
                set_up(&tun, "10.77.0.1");
                let mut buffer = [0; LONGEST_READ];
                assert!(matches!(tun.read(&mut buffer), Err(TunError::WouldBlock)));

                let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
                socket.send_to(&[7; 40], "10.77.0.2:7").unwrap();
                assert_eq!(wait(&tun), Waited::Readable);
                let length = tun.read(&mut buffer).unwrap();
                let packet = &buffer[framing.header()..length];
                assert_eq!(packet[28..], [7; 40]);
                // Send it back with addresses and ports exchanged, and without a sum of UDP (RFC 768: none was made).
                let mut answer = packet.to_vec();
                let (first, second) = answer.split_at_mut(16);
                first[12..16].swap_with_slice(&mut second[..4]);
                let (first, second) = answer.split_at_mut(22);
                first[20..22].swap_with_slice(&mut second[..2]);
                answer[26..28].fill(0);
                tun.write(&answer).unwrap();
                let mut received = [0; 100];
                let (length, from) = socket.recv_from(&mut received).unwrap();
                assert_eq!((&received[..length], from), (&[7u8; 40][..], "10.77.0.2:7".parse().unwrap()));
            }
        });
    }

    /// A device that leaves segmentation to us brings more than its MTU at once.
    #[test]
    fn one_read_brings_many_segments() {
        in_namespace("one_read_brings_many_segments", || {
            let tun = Tun::create("mesh%d").unwrap();
            assert_eq!(tun.framing(), Framing::Vnet, "Linux 2.6.27 is needed here");
            set_up(&tun, "10.77.0.1");
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
            let segment: libc::c_int = 1_000;
            // SAFETY: the pointer and length describe one int, which outlives the call.
            let set = unsafe {
                let value = (&raw const segment).cast();
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, 4)
            };
            assert_eq!(set, 0);
            socket.send_to(&[5; 30_000], &"10.77.0.2:7".parse::<SocketAddr>().unwrap().into()).unwrap();
            assert_eq!(wait(&tun), Waited::Readable);
            let mut buffer = [0; LONGEST_READ];
            // Before Linux 6.2, UDP comes cut.
            let length = tun.read(&mut buffer).unwrap();
            assert!([VNET_HEADER + 30_028, VNET_HEADER + 1_028].contains(&length), "{length}");
        });
    }

    #[test]
    fn a_run_the_kernel_refuses_ends_runs() {
        in_namespace("a_run_the_kernel_refuses_ends_runs", || {
            let tun = Tun::create("mesh%d").unwrap();
            set_up(&tun, "10.77.0.1");
            let mut packet = [0u8; 20];
            packet[0] = 0x45;
            tun.write_run(&[IoSlice::new(&NO_OFFLOAD), IoSlice::new(&packet)]).unwrap();
            assert!(tun.takes_runs().tcp);
            // Segments of a kind that does not exist.
            let header = [1, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0];
            let refused = tun.write_run(&[IoSlice::new(&header), IoSlice::new(&packet)]);
            assert!(matches!(refused, Err(TunError::BadPacket)), "{refused:?}");
            assert_eq!(tun.takes_runs(), Runs::default());
            tun.write(&packet).unwrap();
        });
    }

    #[test]
    fn a_device_that_is_down_or_deleted_says_so() {
        in_namespace("a_device_that_is_down_or_deleted_says_so", || {
            let tun = Tun::create("mesh%d").unwrap();
            let mut packet = [0u8; 20];
            packet[0] = 0x45;
            assert!(matches!(tun.write(&packet), Err(TunError::Down)));
            let write_run = || tun.write_run(&[IoSlice::new(&NO_OFFLOAD), IoSlice::new(&packet)]);
            assert!(matches!(write_run(), Err(TunError::Down)));
            assert!(tun.takes_runs().tcp, "what is down has not said what it takes");
            set_up(&tun, "10.77.0.1");
            write_run().unwrap();
            assert!(matches!(tun.write(&[0u8; 20]), Err(TunError::BadPacket)));

            // A thread is waiting while the device is deleted.
            let tun = Arc::new(tun);
            let waiting = {
                let tun = Arc::clone(&tun);
                std::thread::spawn(move || (wait(&tun), tun.read(&mut [0; 100])))
            };
            let status = std::process::Command::new("ip").args(["link", "delete", tun.name()]).status();
            assert!(status.is_ok_and(|status| status.success()), "the command `ip` is needed here");
            let (waited, read) = waiting.join().unwrap();
            assert_eq!(waited, Waited::Readable);
            assert!(matches!(read, Err(TunError::Deleted)), "{read:?}");
            assert!(matches!(tun.write(&packet), Err(TunError::Deleted)));
        });
    }

    #[test]
    fn a_descriptor_can_be_adopted_and_only_a_fitting_one() {
        in_namespace("a_descriptor_can_be_adopted_and_only_a_fitting_one", || {
            for framing in [Framing::Plain, Framing::Vnet] {
                let tun = Tun::open("mesh%d", framing).unwrap();
                let name = tun.name().to_string();
                set_up(&tun, "10.77.0.1");
                assert!(matches!(Tun::create(&name), Err(TunError::Busy(_))));
                let copy = tun.as_fd().try_clone_to_owned().unwrap();
                drop(tun);
                let adopted = Tun::adopt(copy).unwrap();
                assert_eq!((adopted.name(), adopted.framing()), (name.as_str(), framing));
                UdpSocket::bind("10.77.0.1:0").unwrap().send_to(b"x", "10.77.0.2:7").unwrap();
                assert_eq!(wait(&adopted), Waited::Readable);
                assert_eq!(adopted.read(&mut [0; 100]).unwrap(), framing.header() + 29);
            }

            let socket = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
            assert!(matches!(Tun::adopt(socket), Err(TunError::Unavailable(_))));
        });
    }

    #[test]
    fn names_the_kernel_would_misread_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", "a%s", "a%d%d", "a.b:c", "ü"] {
            assert!(matches!(Tun::create(name), Err(TunError::BadName(_))), "{name:?}");
        }
    }
}

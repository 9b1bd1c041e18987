//! The TUN device: where this host's overlay packets leave and enter the kernel.

use super::wake::{Waited, Wake};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

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
}

/// A TUN device, removed by the kernel with its addresses and routes when the last descriptor closes.
#[derive(Debug)]
pub struct Tun {
    descriptor: OwnedFd,
    name: String,
    framing: Framing,
}

impl Tun {
    /// Makes a device called `pattern`, where `%d` stands for the first free number (`mesh%d`).
    pub fn create(pattern: &str) -> Result<Self, TunError> {
        let mut request = interface_request(pattern)?;
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun");
        let descriptor = OwnedFd::from(file.map_err(TunError::Unavailable)?);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(match Errno::last() {
                Errno::EBUSY | Errno::EINVAL | Errno::EEXIST => TunError::Busy(pattern.into()),
                errno => TunError::Unavailable(errno.into()),
            });
        }
        Ok(Tun { descriptor, name: request_name(&request), framing: Framing::Plain })
    }

    /// Takes over the descriptor of a device made by a predecessor.
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
        if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 || flags & libc::IFF_VNET_HDR != 0 {
            let reason = format!("the inherited device has flags {flags:#06x}, not those of ours");
            return Err(TunError::Unavailable(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        let status = fcntl(&descriptor, FcntlArg::F_GETFL).map_err(TunError::Other)?;
        let status = OFlag::from_bits_retain(status) | OFlag::O_NONBLOCK;
        fcntl(&descriptor, FcntlArg::F_SETFL(status)).map_err(TunError::Other)?;
        Ok(Tun { descriptor, name: request_name(&request), framing: Framing::Plain })
    }

    /// Returns the device's name at the time it was made or adopted.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what precedes each packet.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Waits until there is something to read (or an error to report), or `wake` is rung.
    ///
    /// A device that is down stays silent; a deleted one is readable and reports [`TunError::Deleted`] on reading.
    pub fn wait(&self, wake: &Wake) -> io::Result<Waited> {
        wake.wait_readable(self.descriptor.as_fd(), None)
    }

    /// Reads one packet without waiting and returns its length. What does not fit into `buffer` is lost.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, TunError> {
        Ok(nix::unistd::read(&self.descriptor, buffer)?)
    }

    /// Writes one packet, in full or not at all.
    pub fn write(&self, packet: &[u8]) -> Result<(), TunError> {
        loop {
            match nix::unistd::write(&self.descriptor, packet) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads what is there, at most the batch's capacity, and returns how many packets; zero where there is nothing.
    ///
    /// # Errors
    /// Only where not even one packet was read; an error after the first shows at the next call.
    pub fn read_batch(&self, batch: &mut PacketBatch) -> Result<usize, TunError> {
        batch.lengths.clear();
        while batch.lengths.len() < batch.capacity() {
            let start = batch.lengths.len() * batch.size;
            match self.read(&mut batch.bytes[start..start + batch.size]) {
                Ok(length) => batch.lengths.push(length),
                Err(TunError::WouldBlock) => break,
                Err(error) if batch.lengths.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(batch.lengths.len())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Preallocated buffers for packets read from the device.
pub struct PacketBatch {
    bytes: Box<[u8]>,
    size: usize,
    lengths: Vec<usize>,
}

impl PacketBatch {
    /// Makes buffers for `count` packets (at least one) of at most `size` bytes.
    pub fn new(count: usize, size: usize) -> Self {
        let (count, size) = (count.max(1), size.max(1));
        PacketBatch { bytes: vec![0; count * size].into_boxed_slice(), size, lengths: Vec::with_capacity(count) }
    }

    /// Returns how many packets the last read brought.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Tells whether the last read brought nothing.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Returns packet `index`, empty past [`PacketBatch::len`].
    pub fn packet(&self, index: usize) -> &[u8] {
        let Some(&length) = self.lengths.get(index) else { return &[] };
        &self.bytes[index * self.size..index * self.size + length]
    }

    fn capacity(&self) -> usize {
        self.bytes.len() / self.size
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
    use std::net::UdpSocket;
    use std::sync::Arc;

    fn set_up(tun: &Tun, v4: &str) {
        runtime().block_on(async {
            let device = Device {
                name: tun.name().into(),
                mtu: 1420,
                addresses: [v4.parse().unwrap()].into(),
                routes: ["10.77.0.0/16".parse().unwrap()].into(),
            };
            let state = HostState { device: Some(device), covers: Default::default() };
            let applied = Host::connect().unwrap().apply(&state).await.unwrap();
            assert!(applied.failed.is_empty(), "{applied:?}");
        });
    }

    #[test]
    fn packets_go_both_ways_and_batches_hold_what_is_there() {
        in_namespace("packets_go_both_ways_and_batches_hold_what_is_there", || {
            let tun = Tun::create("mesh%d").unwrap();
            assert!(tun.name().starts_with("mesh"));
            set_up(&tun, "10.77.0.1");
            let wake = Wake::new().unwrap();
            let mut batch = PacketBatch::new(4, 2_000);
            assert_eq!(tun.read_batch(&mut batch).unwrap(), 0);

            let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
            for round in 0..6u8 {
                socket.send_to(&[round; 40], "10.77.0.2:7").unwrap();
            }
            assert_eq!(tun.wait(&wake).unwrap(), Waited::Readable);
            assert_eq!(tun.read_batch(&mut batch).unwrap(), 4);
            assert_eq!(batch.packet(3)[28..], [3; 40]);
            assert_eq!(batch.packet(4), b"");
            // Send a packet back with addresses and ports exchanged: sums over the same words stay the same.
            let mut answer = batch.packet(0).to_vec();
            let (first, second) = answer.split_at_mut(16);
            first[12..16].swap_with_slice(&mut second[..4]);
            let (first, second) = answer.split_at_mut(22);
            first[20..22].swap_with_slice(&mut second[..2]);
            assert_eq!(tun.read_batch(&mut batch).unwrap(), 2);
            tun.write(&answer).unwrap();
            let mut received = [0; 100];
            let (length, from) = socket.recv_from(&mut received).unwrap();
            assert_eq!((&received[..length], from), (&[0u8; 40][..], "10.77.0.2:7".parse().unwrap()));
        });
    }

    #[test]
    fn a_device_that_is_down_or_deleted_says_so() {
        in_namespace("a_device_that_is_down_or_deleted_says_so", || {
            let tun = Tun::create("mesh%d").unwrap();
            let mut packet = [0u8; 20];
            packet[0] = 0x45;
            assert!(matches!(tun.write(&packet), Err(TunError::Down)));
            set_up(&tun, "10.77.0.1");
            assert!(matches!(tun.write(&[0u8; 20]), Err(TunError::BadPacket)));

            // A thread is waiting while the device is deleted.
            let tun = Arc::new(tun);
            let waiting = {
                let tun = Arc::clone(&tun);
                std::thread::spawn(move || (tun.wait(&Wake::new().unwrap()).unwrap(), tun.read(&mut [0; 100])))
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
            let tun = Tun::create("mesh%d").unwrap();
            let name = tun.name().to_string();
            set_up(&tun, "10.77.0.1");
            assert!(matches!(Tun::create(&name), Err(TunError::Busy(_))));
            let copy = tun.as_fd().try_clone_to_owned().unwrap();
            drop(tun);
            let adopted = Tun::adopt(copy).unwrap();
            assert_eq!(adopted.name(), name);
            UdpSocket::bind("10.77.0.1:0").unwrap().send_to(b"x", "10.77.0.2:7").unwrap();
            assert_eq!(adopted.wait(&Wake::new().unwrap()).unwrap(), Waited::Readable);
            assert_eq!(adopted.read(&mut [0; 100]).unwrap(), 29);

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

//! A host's TUN device, opened by this process inside the host's namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::super::error::{Error, Result};
use super::super::netns::Netns;

/// Bare IP packets, without the four bytes of packet information (linux/if_tun.h: IFF_TUN | IFF_NO_PI).
const FLAGS: i16 = 0x0001 | 0x1000;

/// The kernel's `struct ifreq`, as TUNSETIFF reads it: 40 bytes on every 64-bit Linux.
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    _rest: [u8; 22],
}

/// Makes a TUN device and returns its descriptor, which does not block. The device lives as long as the descriptor.
///
/// # Errors
/// NOT RUN where `/dev/net/tun` is missing or may not be used; failed where the name is taken or too long.
pub fn open(netns: &Netns, name: &str) -> Result<File> {
    let mut request = InterfaceRequest { name: [0; 16], flags: FLAGS, _rest: [0; 22] };
    // The last byte stays zero: the kernel reads a terminated string.
    let room = request.name.get_mut(..name.len()).filter(|_| name.len() < 16);
    room.ok_or_else(|| Error::failed(format!("the device name {name} is too long")))?.copy_from_slice(name.as_bytes());
    netns.enter(move || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| Error::not_run(format!("/dev/net/tun cannot be opened: {error}")))?;
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is, and the descriptor is open.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if done < 0 {
            return Err(Error::failed(format!("make the device {name}: {}", io::Error::last_os_error())));
        }
        Ok(file)
    })
}

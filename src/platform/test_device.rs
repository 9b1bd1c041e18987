//! TUN devices of a test's own, with and without offloads.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A device as the kernel gives it, every read and write with its header if it has one.
pub(crate) struct TestDevice(OwnedFd);

impl TestDevice {
    /// Makes a device with these addresses; with `offloads`, a virtio header is in front of every packet, and all that can
    /// be left to us is.
    pub(crate) fn new(name: &str, offloads: bool, addresses: &[&str]) -> TestDevice {
        let descriptor = OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap());
        // SAFETY: ifreq consists of integers and a union of integers and pointers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(target, byte)| *target = byte as libc::c_char);
        let header = if offloads { libc::IFF_VNET_HDR } else { 0 };
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | header) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "{}", Errno::last());
        if offloads {
            // Checksums, TCP of both families, UDP of both (Linux 6.2).
            let all: libc::c_uint = 0x67;
            // SAFETY: TUNSETOFFLOAD takes its argument by value and keeps nothing.
            let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(all)) };
            assert_eq!(result, 0, "{}", Errno::last());
        }
        ip(&["link", "set", name, "mtu", "1420", "up"]);
        addresses.iter().for_each(|address| ip(&["address", "add", address, "dev", name, "nodad"]));
        TestDevice(descriptor)
    }

    /// Waits for something to read and returns it.
    pub(crate) fn read(&self) -> Vec<u8> {
        let mut waiting = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut waiting, PollTimeout::from(10_000u16)).unwrap();
        assert_eq!(ready, 1, "the kernel passed nothing on");
        let mut buffer = vec![0; 70_000];
        let length = nix::unistd::read(&self.0, &mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        assert_eq!(nix::unistd::write(&self.0, bytes), Ok(bytes.len()));
    }
}

fn ip(arguments: &[&str]) {
    let status = std::process::Command::new("ip").args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "the command `ip` is needed here: ip {arguments:?}");
}

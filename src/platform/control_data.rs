//! Ancillary data of datagrams: what the kernel says about one it received, and what it is told about one to send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for every ancillary message we ask for or send: PKTINFO, TOS or TCLASS, a time stamp, and the segment size
/// (40 + 24 + 32 + 24 bytes on a 64-bit host, rounded up).
const CAPACITY: usize = 160;

/// One datagram's buffer for ancillary data, aligned as `cmsghdr` needs.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct ControlBuffer(pub(super) [u8; CAPACITY]);

impl ControlBuffer {
    pub(super) const EMPTY: ControlBuffer = ControlBuffer([0; CAPACITY]);
}

/// What the kernel reported beside one received datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) destination: Option<IpAddr>,
    pub(super) stamp: Option<u64>,
    pub(super) ecn: u8,
    pub(super) stride: Option<u16>,
}

/// Reads the ancillary messages of `header`, whose control buffer the kernel has filled.
///
/// # Safety
/// `header.msg_control` must point to `msg_controllen` initialised bytes, aligned as `cmsghdr`.
pub(super) unsafe fn read(header: &libc::msghdr) -> Received {
    let mut received = Received::default();
    // SAFETY: the caller promises a valid control buffer; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: `next` points to a whole cmsghdr inside the buffer, or CMSG_NXTHDR would have returned null.
        let message = unsafe { &*next };
        // SAFETY: CMSG_LEN(0) is arithmetic on a constant.
        let head = unsafe { libc::CMSG_LEN(0) } as usize;
        let length = (message.cmsg_len as usize).saturating_sub(head);
        // SAFETY: CMSG_DATA points past the header; the kernel wrote `cmsg_len` bytes in all, `length` of them data.
        let data = unsafe { std::slice::from_raw_parts(libc::CMSG_DATA(next), length) };
        match (message.cmsg_level, message.cmsg_type) {
            // struct in_pktinfo: interface, local address of the interface, destination address of the header.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                if let Some(octets) = field::<4>(data, 8) {
                    received.destination = Some(IpAddr::V4(Ipv4Addr::from(octets)));
                }
            }
            // struct in6_pktinfo: destination address, interface. IPv4 datagrams arrive mapped.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(octets) = field::<16>(data, 0) {
                    received.destination = Some(Ipv6Addr::from(octets).to_canonical());
                }
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                if let Some([tos]) = field::<1>(data, 0) {
                    received.ecn = tos & 0b11;
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                if let Some(class) = field::<4>(data, 0) {
                    received.ecn = (i32::from_ne_bytes(class) & 0b11) as u8;
                }
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => received.stamp = stamp(data),
            (libc::SOL_UDP, libc::UDP_GRO) => {
                if let Some(size) = field::<4>(data, 0) {
                    received.stride = u16::try_from(i32::from_ne_bytes(size)).ok();
                }
            }
            _ => {}
        }
        // SAFETY: as for CMSG_FIRSTHDR; `next` came from it.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    received
}

/// What the kernel is told beside one datagram to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// The source address wanted.
    pub(super) source: Option<IpAddr>,
    /// DSCP and ECN of the outer header, where not zero.
    pub(super) tos: u8,
    /// Bytes per datagram, where the kernel is to cut the buffer into several.
    pub(super) segment: Option<u16>,
}

/// Writes the messages for `sent` to a datagram for an address of the family `to_v4` says, and returns the bytes used.
///
/// `mapped` says that the socket is an IPv6 one, where IPv4 addresses travel mapped.
pub(super) fn write(buffer: &mut ControlBuffer, sent: Sent, to_v4: bool, mapped: bool) -> usize {
    let mut used = 0;
    match sent.source {
        // in_pktinfo: interface 0 (any), the wanted source, no destination.
        Some(IpAddr::V4(v4)) if !mapped => {
            let mut data = [0u8; 12];
            data[4..8].copy_from_slice(&v4.octets());
            append(buffer, &mut used, libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
        }
        Some(source) => {
            let v6 = match source {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let mut data = [0u8; 20];
            data[..16].copy_from_slice(&v6.octets());
            append(buffer, &mut used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
        }
        None => {}
    }
    if sent.tos != 0 {
        let tos = libc::c_int::from(sent.tos).to_ne_bytes();
        // An IPv6 socket sends to a mapped address as an IPv4 one does, and reads that one's message.
        let (level, kind) =
            if to_v4 { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
        append(buffer, &mut used, level, kind, &tos);
    }
    if let Some(segment) = sent.segment {
        append(buffer, &mut used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    used
}

/// Appends one message at `used`, which moves behind it.
fn append(buffer: &mut ControlBuffer, used: &mut usize, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
    // SAFETY: arithmetic on a small number.
    let (length, space) = unsafe { (libc::CMSG_LEN(data.len() as _), libc::CMSG_SPACE(data.len() as _)) };
    let place = &mut buffer.0[*used..*used + space as usize];
    // SAFETY: `place` is as long as CMSG_SPACE says a message of this data is, and starts at a sum of such spaces, which
    // are multiples of a cmsghdr's alignment, in a buffer so aligned; header and data lie inside.
    unsafe {
        let header = place.as_mut_ptr().cast::<libc::cmsghdr>();
        (*header).cmsg_len = length as _;
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(header), data.len());
    }
    *used += space as usize;
}

/// Reads a socket address the kernel wrote, with IPv4-mapped addresses as IPv4.
pub(super) fn address_from(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: sockaddr_storage is larger than sockaddr_in and aligned for it; the family says which it is.
            let v4 = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(address, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6 = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(match address.to_ipv4_mapped() {
                Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, port)),
                None => SocketAddr::V6(SocketAddrV6::new(address, port, 0, v6.sin6_scope_id)),
            })
        }
        _ => None,
    }
}

/// Writes `address` for the kernel and returns its length; `mapped` as in [`write()`].
pub(super) fn address_into(storage: &mut libc::sockaddr_storage, address: SocketAddr, mapped: bool) -> libc::socklen_t {
    let v6 = match address {
        SocketAddr::V4(v4) if !mapped => {
            // SAFETY: sockaddr_storage is larger than sockaddr_in, aligned for it, and all bit patterns are valid.
            let out = unsafe { &mut *std::ptr::from_mut(storage).cast::<libc::sockaddr_in>() };
            out.sin_family = libc::AF_INET as libc::sa_family_t;
            out.sin_port = v4.port().to_be();
            out.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            out.sin_zero = [0; 8];
            return size_of::<libc::sockaddr_in>() as libc::socklen_t;
        }
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
        SocketAddr::V6(v6) => v6,
    };
    // SAFETY: as above, for sockaddr_in6.
    let out = unsafe { &mut *std::ptr::from_mut(storage).cast::<libc::sockaddr_in6>() };
    out.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    out.sin6_port = v6.port().to_be();
    out.sin6_flowinfo = 0;
    out.sin6_addr.s6_addr = v6.ip().octets();
    out.sin6_scope_id = v6.scope_id();
    size_of::<libc::sockaddr_in6>() as libc::socklen_t
}

/// Returns an all-zero socket address, family "unspecified".
pub(super) fn no_address() -> libc::sockaddr_storage {
    // SAFETY: sockaddr_storage consists of integers only, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn field<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at + N)?.try_into().ok()
}

fn stamp(data: &[u8]) -> Option<u64> {
    // struct timespec in the process's own width: two 64-bit words on every 64-bit Linux.
    let secs = u64::try_from(i64::from_ne_bytes(field::<8>(data, 0)?)).ok()?;
    let nanos = u64::try_from(i64::from_ne_bytes(field::<8>(data, 8)?)).ok()?;
    secs.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_both_ways_and_mapping_is_undone() {
        for (address, mapped) in
            [("192.0.2.1:7655", false), ("192.0.2.1:7655", true), ("[2001:db8::1]:7655", true), ("[fe80::1%7]:1", true)]
        {
            let address: SocketAddr = address.parse().unwrap();
            let mut storage = no_address();
            address_into(&mut storage, address, mapped);
            assert_eq!(address_from(&storage), Some(address));
        }
        assert_eq!(address_from(&no_address()), None);
    }
}

//! The header in front of every packet of a device with `IFF_VNET_HDR`.

/// What the kernel leaves to be done with a packet, or is asked to do: `struct virtio_net_hdr` in its 10-byte legacy form
/// (virtio 1.2 §5.1.6), with the host's byte order, which is what TUN devices use unless told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// [`VirtioHeader::NEEDS_CSUM`] or nothing; other bits mean nothing here.
    pub flags: u8,
    /// One of the `GSO_` types, perhaps with [`VirtioHeader::GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers. The kernel fills it in for some packets and not for others: never to be trusted on reading.
    pub hdr_len: u16,
    /// Bytes of payload in every segment but the last.
    pub gso_size: u16,
    /// Where the sum of [`VirtioHeader::NEEDS_CSUM`] starts: the transport header.
    pub csum_start: u16,
    /// Where the sum goes, from there.
    pub csum_offset: u16,
}

impl VirtioHeader {
    /// Its bytes.
    pub const LENGTH: usize = 10;

    /// Of a packet that is complete: nothing to cut, nothing to sum.
    pub const PLAIN: VirtioHeader =
        VirtioHeader { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// The field at `csum_start + csum_offset` holds the sum of the pseudo header only; the rest, to the end of the
    /// packet, is still to be added.
    pub const NEEDS_CSUM: u8 = 1;

    /// A single packet.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4, to be cut.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6, to be cut.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP over either, to be cut into datagrams (not fragments).
    pub const GSO_UDP_L4: u8 = 5;
    /// With a TCP type: the packet says CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header.
    pub fn read(bytes: &[u8; Self::LENGTH]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        VirtioHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Returns the header's bytes.
    pub fn write(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, word) in [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Tells whether the packet is to be cut.
    pub fn is_super(&self) -> bool {
        self.gso_type != Self::GSO_NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_kernel_has_them() {
        let header = VirtioHeader {
            flags: 1,
            gso_type: 4,
            hdr_len: u16::from_ne_bytes([2, 3]),
            gso_size: u16::from_ne_bytes([4, 5]),
            csum_start: u16::from_ne_bytes([6, 7]),
            csum_offset: u16::from_ne_bytes([8, 9]),
        };
        assert_eq!(header.write(), [1, 4, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(VirtioHeader::read(&header.write()), header);
        assert_eq!(VirtioHeader::PLAIN.write(), [0; 10]);
    }
}

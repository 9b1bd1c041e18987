//! The Internet checksum (RFC 1071).
//!
//! A [`Sum`] is kept in the host's byte order and turned at the end (RFC 1071 §2 B), so that whole words are added as they lie
//! in memory.

use std::net::IpAddr;

/// A one's complement sum that is still being added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Sums bytes, an odd last one as if a zero followed.
    pub fn of(bytes: &[u8]) -> Self {
        Sum::default().plus(bytes)
    }

    /// Sums the pseudo header of TCP and UDP (RFC 9293 §3.1, RFC 8200 §8.1): `length` counts the transport header and what
    /// follows. Addresses of two families make a sum of no meaning.
    pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Self {
        [source, destination]
            .iter()
            .fold(Sum::default(), |sum, address| match address {
                IpAddr::V4(v4) => sum.plus(&v4.octets()),
                IpAddr::V6(v6) => sum.plus(&v6.octets()),
            })
            .add_word(u16::from(protocol))
            .add_word((length >> 16) as u16)
            .add_word(length as u16)
    }

    /// Adds bytes; all that was added before had an even length.
    #[must_use]
    pub fn plus(self, bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(8);
        let mut sum = 0u64;
        for word in &mut words {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            // Halves, so that no carry is lost: 2^32 of them fit.
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        let mut last = [0; 8];
        let rest = words.remainder();
        last[..rest.len()].copy_from_slice(rest);
        let last = u64::from_ne_bytes(last);
        Sum(fold_once(self.0) + fold_once(sum) + (last & 0xffff_ffff) + (last >> 32))
    }

    /// Adds one word as it is written in a header, given by value.
    #[must_use]
    pub fn add_word(self, word: u16) -> Self {
        Sum(fold_once(self.0) + u64::from(word.to_be()))
    }

    /// Takes a word away again (RFC 1624 §3: its complement is added).
    #[must_use]
    pub fn remove_word(self, word: u16) -> Self {
        self.add_word(!word)
    }

    /// The sum itself, as the field of a packet that needs the rest added holds it.
    pub fn partial(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    /// The checksum: the complement of the sum.
    pub fn checksum(self) -> u16 {
        !self.partial()
    }
}

fn fold_once(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

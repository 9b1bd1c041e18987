//! Which of a node's prefixes it shares with other nodes, and how much each is preferred there.

use std::collections::BTreeMap;

use ipnet::IpNet;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};

use super::cbor::Octets;

/// How much a node is preferred among those that carry the same prefix: 1 to 255, the higher before the lower, as in VRRP
/// (RFC 9568 §5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// What a node has that was given none: VRRP's, with room on both sides.
    pub const DEFAULT: Priority = Priority(100);

    /// Makes one of a number; nothing for 0.
    pub const fn new(number: u8) -> Option<Priority> {
        if number == 0 { None } else { Some(Priority(number)) }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Priority::DEFAULT
    }
}

impl std::fmt::Display for Priority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Priority {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(Priority::new).ok_or("expected a number from 1 to 255; the higher one is preferred")
    }
}

/// The prefixes of one node that others may carry as well, each with the node's priority there. Absent in an encoded object
/// where there are none, so that what was signed before prefixes could be shared means what it meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares(BTreeMap<IpNet, Priority>);

impl Shares {
    /// Shares all of these prefixes, at one priority.
    pub fn all(prefixes: &[IpNet], priority: Priority) -> Shares {
        Shares(prefixes.iter().map(|prefix| (*prefix, priority)).collect())
    }

    /// The priority at which a prefix is shared; nothing for one that is this node's alone.
    pub fn get(&self, prefix: &IpNet) -> Option<Priority> {
        self.0.get(prefix).copied()
    }

    /// The shared prefixes in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Priority)> {
        self.0.iter().map(|(prefix, priority)| (*prefix, *priority))
    }

    /// Whether nothing is shared.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(IpNet, Priority)> for Shares {
    fn from_iter<T: IntoIterator<Item = (IpNet, Priority)>>(shares: T) -> Self {
        Shares(shares.into_iter().collect())
    }
}

/// An array of byte strings, ascending by network: its octets, and one byte of priority.
impl<C> Encode<C> for Shares {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.array(self.0.len() as u64)?;
        for (prefix, priority) in &self.0 {
            let mut octets = Octets::octets(prefix);
            octets.push(priority.get());
            e.bytes(&octets)?;
        }
        e.ok()
    }

    fn is_nil(&self) -> bool {
        self.is_empty()
    }
}

impl<'b, C> Decode<'b, C> for Shares {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let error = || DecodeError::message("a share that is no network and priority");
        let count = d.array()?.ok_or_else(error)?;
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            let (priority, network) = d.bytes()?.split_last().ok_or_else(error)?;
            let network = IpNet::from_octets(network).ok_or_else(error)?;
            // What stands twice, or not in order, is encoded otherwise again and so refused.
            shares.insert(network, Priority::new(*priority).ok_or_else(error)?);
        }
        Ok(Shares(shares))
    }

    fn nil() -> Option<Self> {
        Some(Shares::default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::cbor;
    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Object {
        #[n(0)]
        number: u8,
        #[n(7)]
        shares: Shares,
    }

    fn object(shares: &[(&str, u8)]) -> Object {
        let shares = shares.iter().map(|(net, number)| (net.parse().unwrap(), Priority::new(*number).unwrap()));
        Object { number: 1, shares: shares.collect() }
    }

    #[test]
    fn nothing_shared_takes_no_byte_and_all_else_one_form() {
        assert_eq!(cbor::encode(&object(&[])), [0xa1, 0x00, 0x01]);
        assert_eq!(cbor::decode_strict::<Object>(&[0xa1, 0x00, 0x01]), Ok(object(&[])));
        let two = object(&[("10.20.0.0/16", 110), ("fd00:20::/32", 1)]);
        let bytes = cbor::encode(&two);
        assert_eq!(bytes[..12], [0xa2, 0x00, 0x01, 0x07, 0x82, 0x46, 10, 20, 0, 0, 16, 110]);
        assert_eq!(cbor::decode_strict::<Object>(&bytes), Ok(two));
        let refused = [
            // An empty list.
            vec![0xa2, 0x00, 0x01, 0x07, 0x80],
            // No priority, host bits, and the same network twice.
            vec![0xa2, 0x00, 0x01, 0x07, 0x81, 0x46, 10, 20, 0, 0, 16, 0],
            vec![0xa2, 0x00, 0x01, 0x07, 0x81, 0x46, 10, 20, 1, 0, 16, 1],
            vec![0xa2, 0x00, 0x01, 0x07, 0x82, 0x46, 10, 20, 0, 0, 16, 1, 0x46, 10, 20, 0, 0, 16, 1],
            // Not in order.
            vec![0xa2, 0x00, 0x01, 0x07, 0x82, 0x46, 10, 21, 0, 0, 16, 1, 0x46, 10, 20, 0, 0, 16, 1],
        ];
        for bytes in refused {
            assert!(cbor::decode_strict::<Object>(&bytes).is_err(), "{bytes:02x?}");
        }
    }

    #[test]
    fn priorities_are_written_as_numbers() {
        assert_eq!("110".parse(), Ok(Priority(110)));
        assert_eq!(Priority::DEFAULT.to_string(), "100");
        for text in ["0", "256", "-1", "high", ""] {
            assert!(text.parse::<Priority>().is_err(), "{text}");
        }
    }
}

//! Deterministic CBOR (RFC 8949 §4.2.1): the one encoding we accept inside signed objects, and codecs for addresses.
//!
//! A payload is a map from small unsigned numbers. Fields 0 to 63 must all be understood; fields from 64 are room for
//! additions that older nodes may ignore. Because keys ascend, the understood part is a prefix of the payload, and
//! [`decode_strict`] holds it, byte for byte, against our own encoding of what was decoded: two encodings of one
//! meaning cannot both be accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};

use crate::time::UnixTime;

/// The first field number that a reader may skip when it does not know it.
pub const FIRST_OPTIONAL_FIELD: u64 = 64;
/// Book of invites, invite, admission, list of prefixes, prefix: nothing of ours nests deeper.
const MAX_DEPTH: u32 = 5;
/// The last second of the year 9999: later times have no RFC 3339 form.
const MAX_TIME: u64 = 253_402_300_799;

/// Encodes a value of ours.
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoded = minicbor::encode(value, &mut bytes);
    debug_assert!(encoded.is_ok(), "writing into a vector cannot fail");
    bytes
}

/// Decodes a payload map and refuses every encoding but the deterministic one.
pub fn decode_strict<'b, T: Decode<'b, ()> + Encode<()>>(payload: &'b [u8]) -> Result<T, String> {
    let mut walker = Walker { bytes: payload, at: 0 };
    let known = walker.payload()?;
    let value: T = minicbor::decode(payload).map_err(|error| error.to_string())?;
    let again = encode(&value);
    let mut head = Walker { bytes: &again, at: 0 };
    let (major, count) = head.head()?;
    if major != MAP || count != known.count || again[head.at..] != payload[known.start..known.end] {
        return Err("not the deterministic encoding, or an unknown field that must be understood".into());
    }
    Ok(value)
}

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;

/// Where the fields that must be understood lie in a payload.
struct Known {
    count: u64,
    start: usize,
    end: usize,
}

struct Walker<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Walker<'_> {
    fn payload(&mut self) -> Result<Known, String> {
        let (major, entries) = self.head()?;
        if major != MAP {
            return Err("the payload is not a map".into());
        }
        let mut known = Known { count: 0, start: self.at, end: self.at };
        let mut last = None;
        for _ in 0..entries {
            let key = self.key(last)?;
            last = Some(key);
            self.item(1)?;
            if key < FIRST_OPTIONAL_FIELD {
                known.count += 1;
                known.end = self.at;
            }
        }
        if self.at == self.bytes.len() { Ok(known) } else { Err("bytes after the payload".into()) }
    }

    fn key(&mut self, last: Option<u64>) -> Result<u64, String> {
        let (major, key) = self.head()?;
        if major != UNSIGNED || last.is_some_and(|last| key <= last) {
            return Err("map keys are not ascending unsigned numbers".into());
        }
        Ok(key)
    }

    fn item(&mut self, depth: u32) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err("nested too deeply".into());
        }
        let (major, argument) = self.head()?;
        match major {
            UNSIGNED | NEGATIVE => Ok(()),
            BYTES => self.skip(argument).map(drop),
            TEXT => {
                let text = self.skip(argument)?;
                std::str::from_utf8(text).map(drop).map_err(|_| "text is not UTF-8".into())
            }
            // Each element takes at least one byte, so the loops end at the end of the input at the latest.
            ARRAY => (0..argument).try_for_each(|_| self.item(depth + 1)),
            MAP => {
                let mut last = None;
                for _ in 0..argument {
                    last = Some(self.key(last)?);
                    self.item(depth + 1)?;
                }
                Ok(())
            }
            SIMPLE if argument == 20 || argument == 21 => Ok(()),
            _ => Err("a type no signed object contains".into()),
        }
    }

    /// Reads a head in its shortest form: (major type, argument).
    fn head(&mut self) -> Result<(u8, u64), String> {
        let first = self.skip(1)?[0];
        let (major, short) = (first >> 5, first & 31);
        let width = match short {
            0..=23 => return Ok((major, u64::from(short))),
            24..=27 if major != SIMPLE => 1_u64 << (short - 24),
            _ => return Err("indefinite length or a reserved head".into()),
        };
        let argument = self.skip(width)?.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let least = if width == 1 { 24 } else { 1_u64 << (width * 4) };
        if argument < least { Err("a number not in its shortest form".into()) } else { Ok((major, argument)) }
    }

    fn skip(&mut self, count: u64) -> Result<&[u8], String> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or("truncated")?;
        self.at += taken.len();
        Ok(taken)
    }
}

/// Reads a byte string of exactly `N` bytes.
pub fn fixed_bytes<const N: usize>(d: &mut Decoder<'_>) -> Result<[u8; N], DecodeError> {
    let bytes = d.bytes()?;
    bytes.try_into().map_err(|_| DecodeError::message(format!("expected {N} bytes, found {}", bytes.len())))
}

impl<C> Encode<C> for UnixTime {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.u64(self.as_secs())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for UnixTime {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let secs = d.u64()?;
        if secs > MAX_TIME {
            return Err(DecodeError::message("a time after the year 9999"));
        }
        Ok(UnixTime::from_secs(secs))
    }
}

/// One value as a byte string: addresses, networks, endpoints.
pub trait Octets: Sized {
    /// The byte string.
    fn octets(&self) -> Vec<u8>;
    /// The value, or nothing where the bytes are none.
    fn from_octets(octets: &[u8]) -> Option<Self>;
}

impl Octets for Ipv4Addr {
    fn octets(&self) -> Vec<u8> {
        Ipv4Addr::octets(self).to_vec()
    }
    fn from_octets(octets: &[u8]) -> Option<Self> {
        <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
    }
}

impl Octets for Ipv6Addr {
    fn octets(&self) -> Vec<u8> {
        Ipv6Addr::octets(self).to_vec()
    }
    fn from_octets(octets: &[u8]) -> Option<Self> {
        <[u8; 16]>::try_from(octets).ok().map(Ipv6Addr::from)
    }
}

impl Octets for IpAddr {
    fn octets(&self) -> Vec<u8> {
        match self {
            IpAddr::V4(address) => Octets::octets(address),
            IpAddr::V6(address) => Octets::octets(address),
        }
    }
    fn from_octets(octets: &[u8]) -> Option<Self> {
        let v4 = <Ipv4Addr as Octets>::from_octets(octets).map(IpAddr::V4);
        v4.or_else(|| <Ipv6Addr as Octets>::from_octets(octets).map(IpAddr::V6))
    }
}

impl Octets for IpNet {
    /// The address, then the prefix length: 5 or 17 bytes.
    fn octets(&self) -> Vec<u8> {
        let mut octets = Octets::octets(&self.addr());
        octets.push(self.prefix_len());
        octets
    }
    fn from_octets(octets: &[u8]) -> Option<Self> {
        let (length, address) = octets.split_last()?;
        let net = IpNet::new(IpAddr::from_octets(address)?, *length).ok()?;
        (net.trunc() == net).then_some(net)
    }
}

impl Octets for Ipv4Net {
    fn octets(&self) -> Vec<u8> {
        IpNet::from(*self).octets()
    }
    fn from_octets(octets: &[u8]) -> Option<Self> {
        match IpNet::from_octets(octets)? {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        }
    }
}

impl Octets for Ipv6Net {
    fn octets(&self) -> Vec<u8> {
        IpNet::from(*self).octets()
    }
    fn from_octets(octets: &[u8]) -> Option<Self> {
        match IpNet::from_octets(octets)? {
            IpNet::V6(net) => Some(net),
            IpNet::V4(_) => None,
        }
    }
}

impl Octets for SocketAddr {
    /// The address, then the port, most significant byte first: 6 or 18 bytes.
    fn octets(&self) -> Vec<u8> {
        let mut octets = Octets::octets(&self.ip());
        octets.extend(self.port().to_be_bytes());
        octets
    }
    fn from_octets(octets: &[u8]) -> Option<Self> {
        let (address, port) = octets.split_last_chunk::<2>()?;
        Some(SocketAddr::new(IpAddr::from_octets(address)?, u16::from_be_bytes(*port)))
    }
}

/// Codec of one [`Octets`] value, for `#[cbor(with = …)]`.
pub mod octets {
    use super::{DecodeError, Decoder, EncodeError, Encoder, Octets, Write};

    /// Writes the byte string.
    pub fn encode<C, T: Octets, W: Write>(
        value: &T,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&value.octets())?.ok()
    }

    /// Reads the byte string.
    pub fn decode<'b, C, T: Octets>(d: &mut Decoder<'b>, _: &mut C) -> Result<T, DecodeError> {
        T::from_octets(d.bytes()?).ok_or_else(|| DecodeError::message("malformed address, network or endpoint"))
    }
}

/// Codec of a list of [`Octets`] values, for `#[cbor(with = …)]`.
pub mod octets_list {
    use super::{DecodeError, Decoder, EncodeError, Encoder, Octets, Write};

    /// Writes an array of byte strings.
    pub fn encode<C, T: Octets, W: Write>(
        values: &[T],
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(values.len() as u64)?;
        values.iter().try_for_each(|value| super::octets::encode(value, e, ctx))
    }

    /// Reads an array of byte strings.
    pub fn decode<'b, C, T: Octets>(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Vec<T>, DecodeError> {
        let count = d.array()?.ok_or_else(|| DecodeError::message("indefinite length"))?;
        (0..count).map(|_| super::octets::decode(d, ctx)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Sample {
        #[n(0)]
        number: u64,
        #[n(1)]
        flag: bool,
        #[cbor(n(2), with = "octets_list")]
        nets: Vec<IpNet>,
    }

    fn sample() -> Sample {
        Sample { number: 24, flag: true, nets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()] }
    }

    fn refused(bytes: &[u8]) {
        assert!(decode_strict::<Sample>(bytes).is_err(), "{bytes:02x?}");
    }

    #[test]
    fn the_deterministic_encoding_is_accepted() {
        assert_eq!(decode_strict(&encode(&sample())), Ok(sample()));
    }

    #[test]
    fn later_fields_are_skipped_from_64_on_only() {
        let plain = [0xa3, 0x00, 0x01, 0x01, 0xf5, 0x02, 0x80];
        assert!(decode_strict::<Sample>(&plain).is_ok());
        assert!(decode_strict::<Sample>(&[&[0xa4], &plain[1..], &[0x18, 64, 0x81, 0x41, 7]].concat()).is_ok());
        refused(&[&[0xa4], &plain[1..], &[0x18, 63, 0x00]].concat());
    }

    #[test]
    fn second_encodings_are_refused() {
        refused(&[0xa3, 0x00, 0x18, 0x01, 0x01, 0xf5, 0x02, 0x80]); // 1 in two bytes
        refused(&[0xa3, 0x00, 0x01, 0x01, 0xf5, 0x02, 0x98, 0x00]); // array length in two bytes
        refused(&[0xa3, 0x01, 0xf5, 0x00, 0x01, 0x02, 0x80]); // order
        refused(&[0xa3, 0x00, 0x01, 0x00, 0x01, 0x02, 0x80]); // twice
        refused(&[0xbf, 0x00, 0x01, 0x01, 0xf5, 0x02, 0x80, 0xff]); // indefinite map
        refused(&[0xa3, 0x00, 0x01, 0x01, 0xf5, 0x02, 0x9f, 0xff]); // indefinite array
        refused(&[0xa3, 0x00, 0x01, 0x01, 0xf5, 0x02, 0x80, 0x00]); // more behind
        refused(&[0xa3, 0x00, 0x01, 0x01, 0xf5, 0x02, 0x81, 0x45, 10, 0, 0, 1, 8]); // host bits
        refused(&[0xa3, 0x00, 0x01, 0x01, 0xf5, 0x02, 0x81, 0x45, 10, 0, 0, 0, 33]); // prefix length
    }

    /// Reads every number as an even one.
    #[derive(Debug, PartialEq)]
    struct Lossy(u64);

    impl<C> Encode<C> for Lossy {
        fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
            e.u64(self.0)?.ok()
        }
    }

    impl<'b, C> Decode<'b, C> for Lossy {
        fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
            Ok(Lossy(d.u64()? & !1))
        }
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Forgetful {
        #[n(0)]
        number: Lossy,
    }

    #[test]
    fn what_a_decoder_would_lose_is_refused() {
        assert_eq!(decode_strict(&[0xa1, 0x00, 0x06]), Ok(Forgetful { number: Lossy(6) }));
        assert!(decode_strict::<Forgetful>(&[0xa1, 0x00, 0x07]).is_err());
    }

    #[test]
    fn depth_and_length_are_bounded() {
        refused(&[&[0xa1, 0x18, 64][..], &[0x81; 200], &[0x00]].concat());
        refused(&[0xa1, 0x18, 64, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        refused(&[0xa1, 0x18, 64, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn any_accepted_bytes_are_our_own_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(value) = decode_strict::<Sample>(&bytes) {
                prop_assert_eq!(decode_strict::<Sample>(&encode(&value)), Ok(value));
            }
        }

        #[test]
        fn endpoints_round_trip(endpoint: SocketAddr) {
            let endpoint = SocketAddr::new(endpoint.ip(), endpoint.port());
            prop_assert_eq!(SocketAddr::from_octets(&endpoint.octets()), Some(endpoint));
        }
    }
}

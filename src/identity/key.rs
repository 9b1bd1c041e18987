//! The two key pairs of a node: X25519 for its tunnels, Ed25519 for what it signs.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey};
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};
use rand_core::CryptoRngCore;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use super::armor::{self, ArmorError, ArmorKind};
use super::cbor;

/// A node's X25519 public key, as WireGuard uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardKey([u8; 32]);

/// An Ed25519 public key: a node's, or an authority's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyingKey([u8; 32]);

/// Both public keys of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKeys {
    /// The key of its tunnels.
    pub wireguard: WireguardKey,
    /// The key of its signatures.
    pub verifying: VerifyingKey,
}

/// A node's X25519 secret. Wiped when dropped; has no `Debug`.
pub struct WireguardSecret(StaticSecret);

/// An Ed25519 secret. Wiped when dropped; has no `Debug`.
pub struct SigningSecret(SigningKey);

/// Both secrets of this node: the content of its identity file.
pub struct NodeKeys {
    /// The secret of its tunnels.
    pub wireguard: WireguardSecret,
    /// The secret of its signatures.
    pub signing: SigningSecret,
}

/// Bytes or text that are no usable key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not the base64 form of 32 bytes.
    #[error("expected a key of 32 bytes in base64 (44 characters ending in `=`)")]
    Text,
    /// A point of low order: every peer would share a secret with everyone.
    #[error("the key is a point of low order, which protects nothing: generate a new key pair")]
    LowOrder,
    /// The same key has another, canonical form.
    #[error("the key is not in its canonical form: generate a new key pair")]
    NotCanonical,
    /// The bytes are no point of the curve.
    #[error("the bytes are no Ed25519 public key")]
    NoPoint,
}

/// Why an identity file was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeKeysError {
    /// The text around the bytes is wrong.
    #[error(transparent)]
    Armor(#[from] ArmorError),
    /// The bytes are no identity.
    #[error("the identity file is damaged ({0}): restore it from a copy, or make a new identity and have it signed")]
    Content(String),
}

/// u coordinates of low order on the curve or its twist, canonical forms only; [`WireguardKey::from_bytes`] refuses
/// the others before. The test multiplies each by a clamped scalar.
const LOW_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    first_byte(1),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    {
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        minus_one[31] = 0x7f;
        minus_one
    },
];

const fn first_byte(value: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = value;
    bytes
}

/// Whether a little-endian number of 255 bits is below 2^255 − 19.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    bytes[31] != 0x7f || bytes[1..31].iter().any(|byte| *byte != 0xff) || bytes[0] < 0xed
}

impl WireguardKey {
    /// Checks and takes the 32 bytes of a public key.
    ///
    /// # Errors
    /// Low-order points, and second forms of a key (top bit set, or not below 2^255 − 19): a revoked key must not come
    /// back under other bytes. RFC 7748 §5 would accept the latter.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        if bytes[31] & 0x80 != 0 || !is_reduced(&bytes) {
            return Err(KeyError::NotCanonical);
        }
        if LOW_ORDER.contains(&bytes) {
            return Err(KeyError::LowOrder);
        }
        Ok(Self(bytes))
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl VerifyingKey {
    /// Checks and takes the 32 bytes of a public key (RFC 8032 §5.1.5).
    ///
    /// # Errors
    /// Bytes that are no point, low-order points, and non-canonical forms.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let mut y = bytes;
        y[31] &= 0x7f;
        if !is_reduced(&y) {
            return Err(KeyError::NotCanonical);
        }
        let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NoPoint)?;
        if key.is_weak() { Err(KeyError::LowOrder) } else { Ok(Self(bytes)) }
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` is this key's over `message`, by the strict rules: no low-order points, no second form.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        ed25519_dalek::VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

impl WireguardSecret {
    /// Draws a new secret.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(StaticSecret::random_from_rng(rng))
    }

    /// Takes the 32 bytes of a secret.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(StaticSecret::from(*bytes))
    }

    /// Returns a copy of the secret, which wipes itself.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Returns the public key.
    pub fn public(&self) -> WireguardKey {
        WireguardKey(PublicKey::from(&self.0).to_bytes())
    }

    /// Computes the shared secret with `key` (RFC 7748 §6.1), or nothing where the key contributed nothing to it.
    pub fn agree(&self, key: &WireguardKey) -> Option<SharedSecret> {
        let shared = self.0.diffie_hellman(&PublicKey::from(key.0));
        shared.was_contributory().then_some(shared)
    }
}

impl SigningSecret {
    /// Draws a new secret.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        Self::from_bytes(&seed)
    }

    /// Takes the 32 bytes of a secret (the seed of RFC 8032 §5.1.5).
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Returns a copy of the seed, which wipes itself.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Returns the public key.
    pub fn public(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`; the same message always has the same signature.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// The identity file's payload.
#[derive(Encode, Decode, Zeroize)]
#[cbor(map)]
struct StoredKeys {
    #[n(0)]
    version: u8,
    #[cbor(n(1), with = "minicbor::bytes")]
    wireguard: [u8; 32],
    #[cbor(n(2), with = "minicbor::bytes")]
    signing: [u8; 32],
}

impl NodeKeys {
    /// Draws both key pairs.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self { wireguard: WireguardSecret::generate(rng), signing: SigningSecret::generate(rng) }
    }

    /// Returns both public keys.
    pub fn public(&self) -> PublicKeys {
        PublicKeys { wireguard: self.wireguard.public(), verifying: self.signing.public() }
    }

    /// Writes the identity file. The caller stores it readable by its owner alone.
    pub fn to_armor(&self) -> Zeroizing<String> {
        let (wireguard, signing) = (self.wireguard.to_bytes(), self.signing.to_bytes());
        let stored = Zeroizing::new(StoredKeys { version: 1, wireguard: *wireguard, signing: *signing });
        armor::write_secret(ArmorKind::Identity, &Zeroizing::new(cbor::encode(&*stored)))
    }

    /// Reads an identity file.
    ///
    /// # Errors
    /// Text that is no identity file, or a damaged one.
    pub fn from_armor(text: &str) -> Result<Self, NodeKeysError> {
        let bytes = armor::read_secret(ArmorKind::Identity, text)?;
        let stored = cbor::decode_strict::<StoredKeys>(&bytes).map_err(NodeKeysError::Content)?;
        let stored = Zeroizing::new(stored);
        if stored.version != 1 {
            return Err(NodeKeysError::Content(format!("version {} is not 1", stored.version)));
        }
        Ok(Self {
            wireguard: WireguardSecret::from_bytes(&stored.wireguard),
            signing: SigningSecret::from_bytes(&stored.signing),
        })
    }
}

macro_rules! public_key {
    ($name:ident) => {
        impl fmt::Display for $name {
            /// Writes base64 (RFC 4648 §4), as WireGuard's tools do.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&STANDARD.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> {
                let bytes = STANDARD.decode(text).map_err(|_| KeyError::Text)?;
                Self::from_bytes(bytes.try_into().map_err(|_| KeyError::Text)?)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                Self::from_bytes(cbor::fixed_bytes(d)?).map_err(|error| DecodeError::message(error.to_string()))
            }
        }
    };
}

public_key!(WireguardKey);
public_key!(VerifyingKey);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> NodeKeys {
        NodeKeys { wireguard: WireguardSecret::from_bytes(&[7; 32]), signing: SigningSecret::from_bytes(&[9; 32]) }
    }

    #[test]
    fn low_order_keys_are_refused() {
        let secret = StaticSecret::from([0x42; 32]);
        for bytes in LOW_ORDER {
            assert!(!secret.diffie_hellman(&PublicKey::from(bytes)).was_contributory());
            assert_eq!(WireguardKey::from_bytes(bytes), Err(KeyError::LowOrder));
        }
        for (weak, error) in [(first_byte(1), KeyError::LowOrder), ([0; 32], KeyError::LowOrder)] {
            assert_eq!(VerifyingKey::from_bytes(weak), Err(error));
        }
    }

    #[test]
    fn second_forms_of_a_key_are_refused() {
        let mut high = *keys().wireguard.public().as_bytes();
        high[31] |= 0x80;
        assert_eq!(WireguardKey::from_bytes(high), Err(KeyError::NotCanonical));
        let mut p_plus_nine = [0xff; 32];
        (p_plus_nine[0], p_plus_nine[31]) = (0xf6, 0x7f);
        assert_eq!(WireguardKey::from_bytes(p_plus_nine), Err(KeyError::NotCanonical));
        assert_eq!(VerifyingKey::from_bytes(p_plus_nine), Err(KeyError::NotCanonical));
    }

    #[test]
    fn keys_are_base64_of_32_bytes() {
        let public = keys().public();
        assert_eq!(public.wireguard.to_string().parse(), Ok(public.wireguard));
        assert_eq!(public.verifying.to_string().parse(), Ok(public.verifying));
        for text in ["", "AAAA", &public.wireguard.to_string()[..43], &format!(" {}", public.wireguard)] {
            assert_eq!(text.parse::<WireguardKey>(), Err(KeyError::Text), "{text}");
        }
    }

    #[test]
    fn identity_files_round_trip_and_refuse_damage() {
        let text = keys().to_armor();
        let back = NodeKeys::from_armor(&text).ok().map(|keys| keys.public());
        assert_eq!(back, Some(keys().public()));
        for end in 0..text.trim_end().len() {
            assert!(NodeKeys::from_armor(&text[..end]).is_err(), "cut at {end}");
        }
        assert!(NodeKeys::from_armor(&text.replace("IDENTITY", "AUTHORITY")).is_err());
    }

    #[test]
    fn signatures_with_a_point_of_low_order_are_refused() {
        // R is the neutral point and s = k·a, computed from the secret: the plain equation of RFC 8032 §5.1.7 holds.
        let s = [
            0x8d, 0x1e, 0x7a, 0xd3, 0xa1, 0x6b, 0xa5, 0xcf, 0x43, 0x55, 0x70, 0xcb, 0xc0, 0xa3, 0xbd, 0x34, 0xe1, 0xb3,
            0xec, 0x01, 0x3e, 0x02, 0x89, 0xdb, 0x0b, 0x7b, 0x12, 0x1a, 0xa3, 0x0f, 0xe9, 0x03,
        ];
        let mut signature = [0; 64];
        signature[0] = 1;
        signature[32..].copy_from_slice(&s);
        let key = keys().signing.public();
        let loose = ed25519_dalek::VerifyingKey::from_bytes(key.as_bytes()).unwrap();
        assert!(ed25519_dalek::Verifier::verify(&loose, b"meshd", &Signature::from_bytes(&signature)).is_ok());
        assert!(!key.verify(b"meshd", &signature));
        assert!(key.verify(b"meshd", &keys().signing.sign(b"meshd")));
    }

    #[test]
    fn two_sides_agree() {
        let (a, b) = (WireguardSecret::from_bytes(&[1; 32]), WireguardSecret::from_bytes(&[2; 32]));
        let (ab, ba) = (a.agree(&b.public()).unwrap(), b.agree(&a.public()).unwrap());
        assert_eq!(ab.as_bytes(), ba.as_bytes());
    }

    proptest! {
        #[test]
        fn every_accepted_key_contributes(bytes: [u8; 32]) {
            if let Ok(key) = WireguardKey::from_bytes(bytes) {
                prop_assert!(WireguardSecret::from_bytes(&[5; 32]).agree(&key).is_some());
            }
        }
    }
}

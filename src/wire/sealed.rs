//! Datagrams sealed to a node whose tunnel key is known to a sender it has not met: introductions and join requests.
//!
//! ```text
//! 0       type          1 byte
//! 1       version       1 byte, 1
//! 2       reserved      2 bytes, 0
//! 4       ephemeral     32 bytes, X25519 public key, new for each datagram
//! 36      sealed        ChaCha20-Poly1305 under a key only these two can compute, 16 bytes longer than its content
//! n − 16  mac           16 bytes, keyed BLAKE2s over everything before
//! ```
//!
//! Whoever does not know the receiver's public key cannot make the mac, and gets silence after one hash.

use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit as MacInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use hkdf::Hkdf;
use rand_core::CryptoRngCore;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use x25519_dalek::SharedSecret;
use zeroize::Zeroizing;

use super::drop::DropReason;
use crate::identity::{WireguardKey, WireguardSecret};

/// The only version so far.
pub(super) const VERSION: u8 = 1;
/// Type, version, reserved.
pub(super) const HEAD: usize = 4;
/// Where the sealed part begins.
const SEALED: usize = HEAD + 32;
/// Poly1305's tag.
pub(super) const TAG: usize = 16;
const MAC: usize = 16;
/// What a sealed datagram is longer than its content.
pub(super) const OVERHEAD: usize = SEALED + TAG + MAC;

/// What distinguishes two kinds of sealed datagrams.
pub(super) struct Format {
    /// The first byte.
    pub(super) kind: u8,
    /// Separates the sealing keys of kinds.
    pub(super) domain: &'static str,
    /// Separates the MAC keys of kinds.
    pub(super) mac_domain: &'static str,
    /// Datagrams of other lengths are refused unread.
    pub(super) lengths: std::ops::RangeInclusive<usize>,
}

/// A node as receiver of sealed datagrams.
pub struct Recipient<'a> {
    secret: &'a WireguardSecret,
    public: WireguardKey,
}

impl<'a> Recipient<'a> {
    /// Takes the node's tunnel secret; computes the public key, so keep it for many datagrams.
    pub fn new(secret: &'a WireguardSecret) -> Self {
        Self { secret, public: secret.public() }
    }

    /// The public key datagrams are sealed to.
    pub fn public(&self) -> &WireguardKey {
        &self.public
    }
}

/// One side's view of one sealed datagram: the key both sides have, and whose it is.
pub(super) struct Channel {
    shared: SharedSecret,
    /// The sender's key for this datagram.
    pub(super) ephemeral: [u8; 32],
    /// The receiver's key.
    pub(super) recipient: WireguardKey,
}

impl Channel {
    /// Begins a datagram to `recipient`.
    pub(super) fn to(recipient: &WireguardKey, rng: &mut impl CryptoRngCore) -> Option<Self> {
        let ephemeral = WireguardSecret::generate(rng);
        let shared = ephemeral.agree(recipient)?;
        Some(Self { shared, ephemeral: *ephemeral.public().as_bytes(), recipient: *recipient })
    }

    /// Derives a key of this channel: HKDF-SHA256 over the shared secret, and `more` where there is more to know.
    pub(super) fn key(&self, domain: &str, more: &[u8]) -> Zeroizing<[u8; 32]> {
        let secret = Zeroizing::new([self.shared.as_bytes(), more].concat());
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(domain.as_bytes()), &secret)
            .expand_multi_info(&[&self.ephemeral, self.recipient.as_bytes()], key.as_mut())
            .expect("32 bytes are below HKDF's limit of 8,160");
        key
    }

    /// Makes the datagram. The content is padded with zeros until the whole has at least the format's least length.
    pub(super) fn seal(&self, format: &Format, mut content: Zeroizing<Vec<u8>>) -> Option<Vec<u8>> {
        let least = format.lengths.start() - OVERHEAD;
        if content.len() < least {
            content.resize(least, 0);
        }
        let mut datagram = vec![format.kind, VERSION, 0, 0];
        datagram.extend(self.ephemeral);
        let sealed = encrypt(&self.key(format.domain, &[]), &datagram, &content)?;
        datagram.extend(sealed);
        let mac = mac(format, &self.recipient, &datagram);
        datagram.extend(mac);
        format.lengths.contains(&datagram.len()).then_some(datagram)
    }
}

/// Whether a datagram has the length, the version and the mac of its kind: one hash, nothing secret.
pub(super) fn check_mac(format: &Format, recipient: &WireguardKey, datagram: &[u8]) -> bool {
    if !format.lengths.contains(&datagram.len()) || datagram[..HEAD] != [format.kind, VERSION, 0, 0] {
        return false;
    }
    let Some((covered, found)) = datagram.split_last_chunk::<MAC>() else { return false };
    mac(format, recipient, covered).ct_eq(found).into()
}

/// Opens a datagram: its content, padding included.
pub(super) fn open(
    format: &Format,
    recipient: &Recipient<'_>,
    datagram: &[u8],
) -> Result<(Channel, Zeroizing<Vec<u8>>), DropReason> {
    if !format.lengths.contains(&datagram.len()) || datagram[..HEAD] != [format.kind, VERSION, 0, 0] {
        return Err(DropReason::Malformed);
    }
    if !check_mac(format, &recipient.public, datagram) {
        return Err(DropReason::BadMac);
    }
    let (head, sealed) = datagram[..datagram.len() - MAC].split_at(SEALED);
    let (_, ephemeral) = head.split_last_chunk::<32>().ok_or(DropReason::Malformed)?;
    let sender = WireguardKey::from_bytes(*ephemeral).map_err(|_| DropReason::BadSeal)?;
    let shared = recipient.secret.agree(&sender).ok_or(DropReason::BadSeal)?;
    let channel = Channel { shared, ephemeral: *ephemeral, recipient: recipient.public };
    let content = decrypt(&channel.key(format.domain, &[]), head, sealed).ok_or(DropReason::BadSeal)?;
    Ok((channel, content))
}

/// Seals under a key that is used for nothing else, so that the nonce can be zero.
pub(super) fn encrypt(key: &[u8; 32], head: &[u8], content: &[u8]) -> Option<Vec<u8>> {
    ChaCha20Poly1305::new(key.into()).encrypt(&Nonce::default(), Payload { msg: content, aad: head }).ok()
}

/// Opens what [`encrypt`] sealed.
pub(super) fn decrypt(key: &[u8; 32], head: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let payload = Payload { msg: sealed, aad: head };
    ChaCha20Poly1305::new(key.into()).decrypt(&Nonce::default(), payload).ok().map(Zeroizing::new)
}

/// Decodes a content map and refuses padding that is not zero.
pub(super) fn decode<'b, T: minicbor::Decode<'b, ()>>(content: &'b [u8]) -> Result<T, DropReason> {
    let mut decoder = minicbor::Decoder::new(content);
    let value = decoder.decode().map_err(|_| DropReason::Malformed)?;
    let padding = content.get(decoder.position()..).unwrap_or_default();
    if padding.iter().all(|byte| *byte == 0) { Ok(value) } else { Err(DropReason::Malformed) }
}

fn mac(format: &Format, recipient: &WireguardKey, covered: &[u8]) -> [u8; MAC] {
    let key =
        Blake2s256::new().chain_update(format.mac_domain.as_bytes()).chain_update(recipient.as_bytes()).finalize();
    let mut mac = <Blake2sMac<U16> as MacInit>::new_from_slice(&key).expect("BLAKE2s takes keys of 32 bytes");
    Mac::update(&mut mac, covered);
    mac.finalize().into_bytes().into()
}

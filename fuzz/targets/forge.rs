//! Locks made from their description in `docs/protocol.md`, not by the product: signatures, seals and MACs around bytes that
//! the product would never write.

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use hkdf::Hkdf;
use meshd::identity::{SigningSecret, WireguardKey};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

/// The kinds of datagrams that are sealed to a node: first byte, names of their keys, least and greatest length.
pub struct Sealed {
    kind: u8,
    domain: &'static str,
    mac_domain: &'static str,
    least: usize,
    most: usize,
}

/// Introductions.
pub const INTRODUCTION: Sealed = Sealed {
    kind: 0x10,
    domain: "meshd introduction v1",
    mac_domain: "meshd introduction mac",
    least: 256,
    most: 1232,
};
/// Join requests.
pub const JOIN: Sealed =
    Sealed { kind: 0x11, domain: "meshd join v1", mac_domain: "meshd join mac", least: 1200, most: 1200 };

/// A byte string in its shortest form.
pub fn byte_string(bytes: &[u8]) -> Vec<u8> {
    let head = match bytes.len() {
        n @ 0..=23 => vec![0x40 + n as u8],
        n @ 24..=255 => vec![0x58, n as u8],
        n => vec![0x59, (n >> 8) as u8, n as u8],
    };
    [head, bytes.to_vec()].concat()
}

/// A COSE_Sign1 around any payload.
pub fn cose(domain: &str, payload: &[u8], secret: &SigningSecret) -> Vec<u8> {
    let protected = [0xa1, 0x01, 0x27];
    let mut signed = vec![0x84, 0x6a];
    signed.extend(b"Signature1");
    signed.extend([byte_string(&protected), byte_string(domain.as_bytes()), byte_string(payload)].concat());
    let signature = secret.sign(&signed);
    [&[0xd2, 0x84], &byte_string(&protected)[..], &[0xa0], &byte_string(payload), &byte_string(&signature)].concat()
}

/// The payload of a valid signed object, which is longer than 23 bytes.
pub fn payload(bytes: &[u8]) -> Vec<u8> {
    let body = &bytes[7..bytes.len() - 66];
    let head = if body[0] == 0x59 { 3 } else { 2 };
    body[head..].to_vec()
}

/// The sender's secret of every datagram that is sealed here.
fn ephemeral() -> StaticSecret {
    StaticSecret::from([0x42; 32])
}

/// The sender's public key of every datagram that is sealed here.
pub fn ephemeral_public() -> [u8; 32] {
    PublicKey::from(&ephemeral()).to_bytes()
}

impl Sealed {
    /// Seals any content to a node.
    pub fn seal(&self, to: &WireguardKey, content: &[u8]) -> Vec<u8> {
        let mut content = content[..content.len().min(self.most - 68)].to_vec();
        content.resize(content.len().max(self.least - 68), 0);
        let shared = ephemeral().diffie_hellman(&PublicKey::from(*to.as_bytes()));
        let mut datagram = vec![self.kind, 1, 0, 0];
        datagram.extend(ephemeral_public());
        let key = channel_key(self.domain, shared.as_bytes(), &ephemeral_public(), to);
        datagram.extend(encrypt(&key, &datagram, &content));
        self.authenticate(to, &datagram)
    }

    /// Puts the MAC behind a datagram, whatever it says.
    pub fn authenticate(&self, to: &WireguardKey, covered: &[u8]) -> Vec<u8> {
        let key = Blake2s256::new().chain_update(self.mac_domain).chain_update(to.as_bytes()).finalize();
        let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).expect("a key of 32 bytes");
        Mac::update(&mut mac, covered);
        [covered, &mac.finalize().into_bytes()].concat()
    }
}

/// A key of the channel between the sender of a sealed datagram and its receiver.
pub fn channel_key(domain: &str, secret: &[u8], ephemeral: &[u8; 32], to: &WireguardKey) -> [u8; 32] {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(domain.as_bytes()), secret)
        .expand_multi_info(&[ephemeral, to.as_bytes()], &mut key)
        .expect("32 bytes are below HKDF's limit");
    key
}

/// Seals under a key that is used once.
pub fn encrypt(key: &[u8; 32], head: &[u8], content: &[u8]) -> Vec<u8> {
    let payload = Payload { msg: content, aad: head };
    ChaCha20Poly1305::new(key.into()).encrypt(&Nonce::default(), payload).expect("sealing has no limit in reach")
}

/// WireGuard's first MAC (§5.4.4 of its paper) for a handshake message to `to`, over everything before it.
pub fn wireguard_mac(to: &[u8; 32], covered: &[u8]) -> [u8; 16] {
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(to).finalize();
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).expect("a key of 32 bytes");
    Mac::update(&mut mac, covered);
    mac.finalize().into_bytes().into()
}

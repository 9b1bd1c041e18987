//! The half of a Noise IK responder that must run before boringtun: who sends this initiation, and when was it made?
//!
//! boringtun answers at once and keeps the TAI64N mark to itself. To judge the mark, and to find the peer without
//! building anything, the first two steps of the handshake are computed here (WireGuard paper §5.4.2).

use blake2::{Blake2s256, Digest};
use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};
use hkdf::SimpleHkdf;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::PeerKey;
use super::mark::Mark;
use crate::wire::DropReason;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// Bytes of a handshake initiation.
pub(super) const INITIATION: usize = 148;

/// The transcript of any initiation sent to us, as far as it does not depend on the sender.
pub(super) struct Responder {
    chain: [u8; 32],
    hash: [u8; 32],
}

/// An initiation whose sender is named but not proven: anyone who knows both public keys can get this far.
pub(super) struct Named {
    pub(super) key: PeerKey,
    chain: Zeroizing<[u8; 32]>,
    hash: [u8; 32],
}

impl Responder {
    pub(super) fn new(public: &PublicKey) -> Responder {
        let chain = hash(&[CONSTRUCTION]);
        Responder { chain, hash: hash(&[&hash(&[&chain, IDENTIFIER]), public.as_bytes()]) }
    }

    /// Decrypts the sender's static key. One X25519 multiplication.
    pub(super) fn name(&self, secret: &StaticSecret, initiation: &[u8; INITIATION]) -> Result<Named, DropReason> {
        let ephemeral: [u8; 32] = field(initiation, 8);
        let (chain, _) = derive(&self.chain, &ephemeral);
        let seen = hash(&[&self.hash, &ephemeral]);
        let shared = secret.diffie_hellman(&PublicKey::from(ephemeral));
        if !shared.was_contributory() {
            return Err(DropReason::BadSeal);
        }
        let (chain, key) = derive(&chain, shared.as_bytes());
        let sealed: [u8; 48] = field(initiation, 40);
        let mut name = [0u8; 32];
        open(&key, &seen, &sealed, &mut name)?;
        Ok(Named { key: name, chain, hash: hash(&[&seen, &sealed]) })
    }
}

impl Named {
    /// Decrypts the mark under the static-static secret, which proves that the sender holds the named key.
    pub(super) fn prove(&self, static_shared: &[u8; 32], initiation: &[u8; INITIATION]) -> Result<Mark, DropReason> {
        let (_, key) = derive(&self.chain, static_shared);
        let sealed: [u8; 28] = field(initiation, 88);
        let mut mark = [0u8; 12];
        open(&key, &self.hash, &sealed, &mut mark)?;
        Ok(Mark::from_bytes(mark))
    }
}

fn field<const N: usize>(initiation: &[u8; INITIATION], at: usize) -> [u8; N] {
    let mut bytes = [0u8; N];
    bytes.copy_from_slice(&initiation[at..at + N]);
    bytes
}

pub(super) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        state.update(part);
    }
    state.finalize().into()
}

/// Noise's HKDF with two outputs: the next chaining key, and a key to open with.
fn derive(chain: &[u8; 32], input: &[u8]) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let mut okm = Zeroizing::new([0u8; 64]);
    let expanded = SimpleHkdf::<Blake2s256>::new(Some(chain), input).expand(&[], &mut *okm);
    debug_assert!(expanded.is_ok(), "64 bytes are two blocks of at most 255");
    let (mut next, mut key) = (Zeroizing::new([0u8; 32]), Zeroizing::new([0u8; 32]));
    next.copy_from_slice(&okm[..32]);
    key.copy_from_slice(&okm[32..]);
    (next, key)
}

fn open(key: &[u8; 32], seen: &[u8; 32], sealed: &[u8], plain: &mut [u8]) -> Result<(), DropReason> {
    let (text, tag) = sealed.split_at(plain.len());
    plain.copy_from_slice(text);
    ChaCha20Poly1305::new(Key::from_slice(key))
        .decrypt_in_place_detached(&Nonce::default(), seen, plain, Tag::from_slice(tag))
        .map_err(|_| DropReason::BadSeal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(key: &[u8; 32], seen: &[u8; 32], plain: &[u8], out: &mut [u8]) {
        let (text, tag) = out.split_at_mut(plain.len());
        text.copy_from_slice(plain);
        let cipher = ChaCha20Poly1305::new(Key::from_slice(key));
        tag.copy_from_slice(&cipher.encrypt_in_place_detached(&Nonce::default(), seen, text).unwrap());
    }

    /// An initiation from `from` to `to` with a mark of our choice, up to its MACs.
    fn initiation(
        from: &StaticSecret,
        to: &PublicKey,
        ephemeral: [u8; 32],
        shared: &[u8; 32],
        mark: [u8; 12],
    ) -> [u8; INITIATION] {
        let mut message = [0u8; INITIATION];
        message[0] = 1;
        message[8..40].copy_from_slice(&ephemeral);
        let start = Responder::new(to);
        let (chain, _) = derive(&start.chain, &ephemeral);
        let seen = hash(&[&start.hash, &ephemeral]);
        let (chain, key) = derive(&chain, shared);
        seal(&key, &seen, PublicKey::from(from).as_bytes(), &mut message[40..88]);
        let seen = hash(&[&seen, &message[40..88]]);
        let (_, key) = derive(&chain, from.diffie_hellman(to).as_bytes());
        seal(&key, &seen, &mark, &mut message[88..116]);
        message
    }

    #[test]
    fn names_the_sender_and_reads_its_mark() {
        let [from, to, ephemeral] = [1u8, 2, 3].map(|byte| StaticSecret::from([byte; 32]));
        let public = PublicKey::from(&to);
        let shared = ephemeral.diffie_hellman(&public);
        let message = initiation(&from, &public, PublicKey::from(&ephemeral).to_bytes(), shared.as_bytes(), [7; 12]);
        let named = Responder::new(&public).name(&to, &message).map_err(DropReason::name).unwrap();
        assert_eq!(named.key, PublicKey::from(&from).to_bytes());
        let proof = to.diffie_hellman(&PublicKey::from(&from));
        assert_eq!(named.prove(proof.as_bytes(), &message), Ok(Mark::from_bytes([7; 12])));
        assert_eq!(named.prove(&[0; 32], &message), Err(DropReason::BadSeal), "only the key's owner can seal a mark");
        assert_eq!(Responder::new(&PublicKey::from(&from)).name(&to, &message).err(), Some(DropReason::BadSeal));
    }

    /// With an ephemeral key of low order the whole world could read who calls.
    #[test]
    fn an_ephemeral_key_of_low_order_is_refused() {
        let [from, to] = [1u8, 2].map(|byte| StaticSecret::from([byte; 32]));
        let public = PublicKey::from(&to);
        let message = initiation(&from, &public, [0; 32], &[0; 32], [7; 12]);
        assert_eq!(Responder::new(&public).name(&to, &message).err(), Some(DropReason::BadSeal));
    }
}

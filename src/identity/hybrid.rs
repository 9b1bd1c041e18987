//! A secret of two members that neither today's nor a quantum computer finds in what it recorded: ML-KEM-768 (FIPS 203) and
//! X25519 together, mixed into WireGuard's handshakes as pre-shared key (docs/protocol.md §5.9).
//!
//! One member proposes, the other answers, both inside their tunnel, which says who they are. The secret depends on both
//! exchanges, on every byte of the two messages, on both members and their WireGuard keys: whoever breaks one of the two
//! algorithms has nothing yet, and whoever plays parts of one exchange into another gets another secret.

use hkdf::Hkdf;
use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey};
use ml_kem::{B32, Key, Seed};
use rand_core::{CryptoRng, RngCore};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{MeshId, NodeId, WireguardKey};

/// Bytes of an ML-KEM-768 encapsulation key.
const ENCAPSULATION_KEY: usize = 1_184;
/// Bytes of an X25519 share.
pub const SHARE_LEN: usize = 32;
/// Bytes of an ML-KEM-768 ciphertext.
pub const CIPHERTEXT_LEN: usize = 1_088;
/// Bytes of a proposal: an encapsulation key and a share.
pub const PROPOSAL_LEN: usize = ENCAPSULATION_KEY + SHARE_LEN;

/// What the derivation is for: no other one begins with these bytes.
const PURPOSE: &[u8] = b"meshd hybrid key 1";

/// A pre-shared key that two members agreed on.
#[derive(Clone)]
pub struct HybridKey {
    /// Which of two keys in a row it is: an initiation names its key by this bit.
    pub odd: bool,
    /// The key.
    pub secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for HybridKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HybridKey").field("odd", &self.odd).finish_non_exhaustive()
    }
}

impl PartialEq for HybridKey {
    fn eq(&self, other: &HybridKey) -> bool {
        self.odd == other.odd && bool::from(self.secret.ct_eq(&*other.secret))
    }
}

impl Eq for HybridKey {}

/// What an exchange is bound to besides its own bytes.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// The mesh.
    pub mesh: MeshId,
    /// Who proposes, and its WireGuard key.
    pub proposer: (NodeId, WireguardKey),
    /// Who answers, and its WireGuard key.
    pub answerer: (NodeId, WireguardKey),
    /// The exchange's number, drawn by the proposer.
    pub number: u64,
    /// Which of two keys in a row comes of it.
    pub odd: bool,
}

/// An exchange that was proposed: what its answer is opened with. Overwritten when dropped.
pub struct Proposal {
    decapsulation: DecapsulationKey,
    secret: StaticSecret,
    message: Vec<u8>,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proposal").finish_non_exhaustive()
    }
}

impl Proposal {
    /// Draws a proposal. Costs about 0.1 ms.
    pub fn draw(rng: &mut (impl RngCore + CryptoRng)) -> Proposal {
        let mut bytes = Zeroizing::new([0u8; 64]);
        rng.fill_bytes(&mut *bytes);
        let seed = Zeroizing::new(Seed::from(*bytes));
        let decapsulation = DecapsulationKey::from_seed(*seed);
        let secret = StaticSecret::random_from_rng(rng);
        let mut message = Vec::with_capacity(PROPOSAL_LEN);
        message.extend_from_slice(&decapsulation.encapsulation_key().to_bytes());
        message.extend_from_slice(PublicKey::from(&secret).as_bytes());
        Proposal { decapsulation, secret, message }
    }

    /// What the other member must get, [`PROPOSAL_LEN`] bytes.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Takes the answer. `None` where it is none: of another length, or with a share of low order.
    ///
    /// An answer that belongs to another proposal gives a key too, which the other member does not have: a handshake with it
    /// fails.
    pub fn finish(&self, binding: &Binding, ciphertext: &[u8], share: &[u8]) -> Option<HybridKey> {
        let encapsulated = Ciphertext::try_from(ciphertext).ok()?;
        let theirs: [u8; SHARE_LEN] = share.try_into().ok()?;
        let classical = self.secret.diffie_hellman(&PublicKey::from(theirs));
        if !classical.was_contributory() {
            return None;
        }
        let quantum = Zeroizing::new(self.decapsulation.decapsulate(&encapsulated));
        derive(binding, &quantum, classical.as_bytes(), &[&self.message, ciphertext, share])
    }
}

/// An answer to a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HybridAnswer {
    /// The ML-KEM-768 ciphertext, [`CIPHERTEXT_LEN`] bytes.
    pub ciphertext: Vec<u8>,
    /// The X25519 share.
    pub share: [u8; SHARE_LEN],
}

/// Answers a proposal: what to send back, and the key. `None` where it is no proposal: of another length, no valid
/// encapsulation key, or a share of low order. Costs about 0.1 ms.
pub fn answer(
    binding: &Binding,
    proposal: &[u8],
    rng: &mut (impl RngCore + CryptoRng),
) -> Option<(HybridAnswer, HybridKey)> {
    if proposal.len() != PROPOSAL_LEN {
        return None;
    }
    let (key, share) = proposal.split_at(ENCAPSULATION_KEY);
    let encapsulation = EncapsulationKey::new(&Key::<EncapsulationKey>::try_from(key).ok()?).ok()?;
    let theirs: [u8; SHARE_LEN] = share.try_into().ok()?;
    let secret = StaticSecret::random_from_rng(&mut *rng);
    let classical = secret.diffie_hellman(&PublicKey::from(theirs));
    if !classical.was_contributory() {
        return None;
    }
    let mut bytes = Zeroizing::new([0u8; 32]);
    rng.fill_bytes(&mut *bytes);
    let (ciphertext, quantum) = encapsulation.encapsulate_deterministic(&Zeroizing::new(B32::from(*bytes)));
    let quantum = Zeroizing::new(quantum);
    let answer = HybridAnswer { ciphertext: ciphertext.to_vec(), share: PublicKey::from(&secret).to_bytes() };
    let hybrid = derive(binding, &quantum, classical.as_bytes(), &[proposal, &answer.ciphertext, &answer.share])?;
    Some((answer, hybrid))
}

/// HKDF-SHA256 over both secrets, bound to everything both sides have seen.
fn derive(binding: &Binding, quantum: &[u8], classical: &[u8], messages: &[&[u8]]) -> Option<HybridKey> {
    let mut secrets = Zeroizing::new([0u8; 64]);
    secrets[..32].copy_from_slice(quantum.get(..32)?);
    secrets[32..].copy_from_slice(classical.get(..32)?);
    let mut transcript = Sha256::new();
    transcript.update(binding.mesh.as_bytes());
    for (node, key) in [&binding.proposer, &binding.answerer] {
        transcript.update(node.as_bytes());
        transcript.update(key.as_bytes());
    }
    transcript.update(binding.number.to_be_bytes());
    transcript.update([u8::from(binding.odd)]);
    // All of fixed length, so that there is one way to read them.
    messages.iter().for_each(|message| transcript.update(message));
    let mut secret = Zeroizing::new([0u8; 32]);
    Hkdf::<Sha256>::new(Some(PURPOSE), &*secrets).expand(&transcript.finalize(), &mut *secret).ok()?;
    Some(HybridKey { odd: binding.odd, secret })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn binding() -> Binding {
        let member = |byte: u8| (NodeId::from_bytes([byte; 16]), WireguardKey::from_bytes([byte + 100; 32]).unwrap());
        Binding { mesh: MeshId::from_bytes([9; 16]), proposer: member(1), answerer: member(2), number: 7, odd: true }
    }

    fn rng(seed: u64) -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(seed)
    }

    #[test]
    fn both_ends_have_one_key_and_it_hangs_on_everything() {
        let (binding, proposal) = (binding(), Proposal::draw(&mut rng(1)));
        assert_eq!(proposal.message().len(), PROPOSAL_LEN);
        let (sent, key) = answer(&binding, proposal.message(), &mut rng(2)).unwrap();
        assert_eq!(sent.ciphertext.len(), CIPHERTEXT_LEN);
        let finish = |binding: &Binding| proposal.finish(binding, &sent.ciphertext, &sent.share).unwrap();
        assert_eq!(finish(&binding), key);
        for other in [
            Binding { mesh: MeshId::from_bytes([8; 16]), ..binding },
            Binding { proposer: (binding.answerer.0, binding.proposer.1), ..binding },
            Binding { answerer: (binding.answerer.0, binding.proposer.1), ..binding },
            Binding { proposer: binding.answerer, answerer: binding.proposer, ..binding },
            Binding { number: 8, ..binding },
        ] {
            assert_ne!(finish(&other), key, "{other:?}");
        }
        let (again, other) = answer(&binding, proposal.message(), &mut rng(3)).unwrap();
        assert_ne!(other, key, "fresh on both sides");
        // One half of another answer: whoever breaks X25519 and plays in a share of its own has another key than both ends.
        assert_ne!(proposal.finish(&binding, &sent.ciphertext, &again.share).unwrap(), key);
        assert_ne!(proposal.finish(&binding, &again.ciphertext, &sent.share).unwrap(), key);
        assert!(!format!("{key:?}{proposal:?}").contains(&format!("{}", key.secret[0])) || key.secret[0] < 2);
    }

    #[test]
    fn what_is_no_message_gives_no_key() {
        let (binding, proposal) = (binding(), Proposal::draw(&mut rng(1)));
        let mut low = proposal.message().to_vec();
        low[ENCAPSULATION_KEY..].fill(0);
        // Coefficients of the key above the modulus (FIPS 203 §7.2).
        let mut invalid = proposal.message().to_vec();
        invalid[..ENCAPSULATION_KEY - 32].fill(0xff);
        for message in [&low[..], &invalid, &[], &proposal.message()[1..]] {
            assert!(answer(&binding, message, &mut rng(2)).is_none());
        }
        let (sent, _) = answer(&binding, proposal.message(), &mut rng(2)).unwrap();
        assert!(proposal.finish(&binding, &sent.ciphertext, &[0; 32]).is_none());
        assert!(proposal.finish(&binding, &sent.ciphertext[1..], &sent.share).is_none());
        assert!(proposal.finish(&binding, &sent.ciphertext, &sent.share[1..]).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_bit_of_the_answer_is_a_bit_of_the_key(seed in any::<u64>(), at in 0..CIPHERTEXT_LEN, bit in 0u8..8) {
            let (binding, proposal) = (binding(), Proposal::draw(&mut rng(seed)));
            let (mut sent, key) = answer(&binding, proposal.message(), &mut rng(!seed)).unwrap();
            sent.ciphertext[at] ^= 1u8 << bit;
            prop_assert_ne!(proposal.finish(&binding, &sent.ciphertext, &sent.share).unwrap(), key);
        }

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..1_300)) {
            let proposal = Proposal::draw(&mut rng(1));
            let _ = answer(&binding(), &bytes, &mut rng(2));
            let _ = proposal.finish(&binding(), &bytes, &bytes);
            let mut whole = bytes;
            whole.resize(PROPOSAL_LEN, 0x5a);
            let _ = answer(&binding(), &whole, &mut rng(2));
            let _ = proposal.finish(&binding(), &whole[..CIPHERTEXT_LEN], &whole[..SHARE_LEN]);
        }
    }
}

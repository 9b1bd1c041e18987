//! The authority's file: its anchor in the open, its secret under a passphrase where one is given.
//!
//! One armored text, complete in itself: copying it copies the authority. The passphrase goes through Argon2id
//! (RFC 9106); what it costs is written in the file, and bounded when it is read, so that a hostile file can ask for
//! neither hours nor all memory. XChaCha20-Poly1305 seals the secret and authenticates anchor and cost with it.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::anchor::{AnchorError, TrustAnchor};
use super::armor::{self, ArmorError, ArmorKind};
use super::authority::Authority;
use super::cbor;
use super::key::SigningSecret;

/// What it costs to try one passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PassphraseCost {
    /// Memory in KiB.
    #[n(0)]
    pub memory_kib: u32,
    /// Passes over the memory.
    #[n(1)]
    pub passes: u32,
    /// Parallel lanes.
    #[n(2)]
    pub lanes: u32,
}

/// What can be read of an authority's file without its passphrase. Unauthenticated: good for messages and prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFile {
    /// The mesh.
    pub anchor: TrustAnchor,
    /// Whether the secret is under a passphrase.
    pub needs_passphrase: bool,
}

/// Why an authority's file was not opened or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityFileError {
    /// The text around the bytes is wrong.
    #[error(transparent)]
    Armor(#[from] ArmorError),
    /// The bytes are no authority.
    #[error("the authority file is damaged ({0}): restore it from a copy")]
    Content(String),
    /// The anchor in it breaks a rule.
    #[error("the authority file is damaged: {0}")]
    Anchor(#[from] AnchorError),
    /// It is under a passphrase and none was given.
    #[error("the authority file is protected by a passphrase: give it with --passphrase-file, or on a terminal")]
    PassphraseNeeded,
    /// It is not the passphrase, or the file was altered.
    #[error("wrong passphrase, or the authority file was altered")]
    WrongPassphrase,
    /// An empty passphrase protects nothing.
    #[error("the passphrase is empty: leave it away to store the authority unprotected, or choose one")]
    EmptyPassphrase,
    /// The cost lies outside what we are ready to pay.
    #[error("the authority file asks for {memory_kib} KiB and {passes} passes on {lanes} lanes to check a passphrase; \
             at most {} KiB, {} passes and {} lanes are accepted: it does not come from meshctl",
             PassphraseCost::MOST.memory_kib, PassphraseCost::MOST.passes, PassphraseCost::MOST.lanes)]
    Cost {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
        /// Parallel lanes.
        lanes: u32,
    },
}

impl PassphraseCost {
    /// What new files have: 64 MiB and three passes, RFC 9106's second choice (§4) with one lane, since this
    /// implementation uses one thread. A quarter of a second on a small server.
    pub const STANDARD: PassphraseCost = PassphraseCost { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
    /// The least: what a test can wait for.
    pub const LEAST: PassphraseCost = PassphraseCost { memory_kib: 1024, passes: 1, lanes: 1 };
    /// The most: 1 GiB, which the smallest server with an authority's file has, and eight passes: some ten seconds.
    pub const MOST: PassphraseCost = PassphraseCost { memory_kib: 1024 * 1024, passes: 8, lanes: 4 };

    fn check(self) -> Result<(), AuthorityFileError> {
        let Self { memory_kib, passes, lanes } = self;
        let within = |value, least, most| (least..=most).contains(&value);
        if within(memory_kib, Self::LEAST.memory_kib, Self::MOST.memory_kib)
            && within(passes, Self::LEAST.passes, Self::MOST.passes)
            && within(lanes, Self::LEAST.lanes, Self::MOST.lanes)
        {
            return Ok(());
        }
        Err(AuthorityFileError::Cost { memory_kib, passes, lanes })
    }

    fn key(self, passphrase: &[u8], salt: &[u8; 16]) -> Result<Zeroizing<[u8; 32]>, AuthorityFileError> {
        self.check()?;
        let failed = |error: argon2::Error| AuthorityFileError::Content(error.to_string());
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(passphrase, salt, key.as_mut()).map_err(failed)?;
        Ok(key)
    }
}

const VERSION: u8 = 1;

#[derive(Encode, Decode)]
#[cbor(map)]
struct Stored {
    #[n(0)]
    header: Header,
    #[n(1)]
    secret: Option<ByteVec>,
    #[n(2)]
    sealed: Option<ByteVec>,
}

/// The part in the open; its encoding is authenticated where there is a passphrase.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Header {
    #[n(0)]
    version: u8,
    #[n(1)]
    anchor: TrustAnchor,
    #[n(2)]
    cost: Option<PassphraseCost>,
    #[cbor(n(3), with = "minicbor::bytes")]
    salt: Option<[u8; 16]>,
    #[cbor(n(4), with = "minicbor::bytes")]
    nonce: Option<[u8; 24]>,
}

impl Drop for Stored {
    fn drop(&mut self) {
        if let Some(secret) = &mut self.secret {
            zeroize::Zeroize::zeroize(secret.as_mut_slice());
        }
    }
}

impl AuthorityFile {
    /// Reads what is in the open.
    ///
    /// # Errors
    /// Text that is no authority file.
    pub fn peek(text: &str) -> Result<Self, AuthorityFileError> {
        let stored = read(text)?;
        Ok(Self { anchor: stored.header.anchor.clone(), needs_passphrase: stored.sealed.is_some() })
    }
}

impl Authority {
    /// Writes the file without a passphrase. The caller stores it readable by its owner alone.
    pub fn to_armor(&self) -> Zeroizing<String> {
        let header = Header { version: VERSION, anchor: self.anchor.clone(), cost: None, salt: None, nonce: None };
        let secret = Some(ByteVec::from(self.secret.to_bytes().to_vec()));
        write(&Stored { header, secret, sealed: None })
    }

    /// Writes the file under a passphrase.
    ///
    /// # Errors
    /// An empty passphrase, or a cost outside the limits.
    pub fn to_protected_armor(
        &self,
        passphrase: &[u8],
        cost: PassphraseCost,
        rng: &mut impl CryptoRngCore,
    ) -> Result<Zeroizing<String>, AuthorityFileError> {
        if passphrase.is_empty() {
            return Err(AuthorityFileError::EmptyPassphrase);
        }
        let (mut salt, mut nonce) = ([0; 16], [0; 24]);
        rng.fill_bytes(&mut salt);
        rng.fill_bytes(&mut nonce);
        let key = cost.key(passphrase, &salt)?;
        let anchor = self.anchor.clone();
        let header = Header { version: VERSION, anchor, cost: Some(cost), salt: Some(salt), nonce: Some(nonce) };
        let secret = self.secret.to_bytes();
        let payload = Payload { msg: secret.as_ref(), aad: &cbor::encode(&header) };
        let sealed = XChaCha20Poly1305::new((&*key).into())
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| AuthorityFileError::Content("sealing failed".into()))?;
        Ok(write(&Stored { header, secret: None, sealed: Some(ByteVec::from(sealed)) }))
    }

    /// Reads the file; a passphrase that is not needed is ignored.
    ///
    /// # Errors
    /// A damaged or altered file, a missing or wrong passphrase, a cost we are not ready to pay.
    pub fn from_armor(text: &str, passphrase: Option<&[u8]>) -> Result<Self, AuthorityFileError> {
        let stored = read(text)?;
        let seed = match (&stored.secret, &stored.sealed) {
            (Some(secret), None) => seed_of(secret)?,
            (None, Some(sealed)) => {
                let passphrase = passphrase.ok_or(AuthorityFileError::PassphraseNeeded)?;
                unseal(&stored.header, sealed, passphrase)?
            }
            _ => return Err(AuthorityFileError::Content("it must hold one secret".into())),
        };
        Ok(Authority::from_parts(stored.header.anchor.clone(), SigningSecret::from_bytes(&seed))?)
    }
}

fn unseal(header: &Header, sealed: &[u8], passphrase: &[u8]) -> Result<Zeroizing<[u8; 32]>, AuthorityFileError> {
    let (Some(cost), Some(salt), Some(nonce)) = (header.cost, header.salt, header.nonce) else {
        return Err(AuthorityFileError::Content("cost, salt or nonce is missing".into()));
    };
    let key = cost.key(passphrase, &salt)?;
    let seed = XChaCha20Poly1305::new((&*key).into())
        .decrypt(XNonce::from_slice(&nonce), Payload { msg: sealed, aad: &cbor::encode(header) })
        .map_err(|_| AuthorityFileError::WrongPassphrase)?;
    seed_of(&Zeroizing::new(seed))
}

fn seed_of(bytes: &[u8]) -> Result<Zeroizing<[u8; 32]>, AuthorityFileError> {
    let seed = <[u8; 32]>::try_from(bytes);
    seed.map(Zeroizing::new).map_err(|_| AuthorityFileError::Content("the secret must have 32 bytes".into()))
}

fn write(stored: &Stored) -> Zeroizing<String> {
    armor::write_secret(ArmorKind::Authority, &Zeroizing::new(cbor::encode(stored)))
}

fn read(text: &str) -> Result<Stored, AuthorityFileError> {
    let bytes = armor::read_secret(ArmorKind::Authority, text)?;
    let stored = cbor::decode_strict::<Stored>(&bytes).map_err(AuthorityFileError::Content)?;
    if stored.header.version != VERSION {
        let found = stored.header.version;
        return Err(AuthorityFileError::Content(format!("version {found}, this program reads version {VERSION}")));
    }
    stored.header.anchor.check()?;
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{authority, rng};

    const PASSPHRASE: &[u8] = b"correct horse";

    fn protected() -> Zeroizing<String> {
        authority().to_protected_armor(PASSPHRASE, PassphraseCost::LEAST, &mut rng(1)).unwrap()
    }

    /// Changes the stored header and writes the file again, as someone without the passphrase could.
    fn altered(text: &str, change: impl FnOnce(&mut Stored)) -> Zeroizing<String> {
        let mut stored = read(text).ok().unwrap();
        change(&mut stored);
        write(&stored)
    }

    fn error(text: &str, passphrase: Option<&[u8]>) -> AuthorityFileError {
        Authority::from_armor(text, passphrase).err().unwrap()
    }

    #[test]
    fn both_forms_round_trip() {
        for text in [authority().to_armor(), protected()] {
            let back = Authority::from_armor(&text, Some(PASSPHRASE)).ok().unwrap();
            assert_eq!((back.anchor(), back.public()), (authority().anchor(), authority().public()));
        }
        assert!(AuthorityFile::peek(&protected()).unwrap().needs_passphrase);
        assert!(!AuthorityFile::peek(&authority().to_armor()).unwrap().needs_passphrase);
    }

    #[test]
    fn the_secret_is_not_in_the_protected_file() {
        let bytes = armor::read(ArmorKind::Authority, &protected()).unwrap();
        let secret = authority().secret.to_bytes();
        assert!(!bytes.windows(32).any(|window| window == secret.as_ref()));
    }

    #[test]
    fn passphrases_are_needed_and_checked() {
        assert_eq!(error(&protected(), None), AuthorityFileError::PassphraseNeeded);
        assert_eq!(error(&protected(), Some(b"correct horsf")), AuthorityFileError::WrongPassphrase);
        let empty = authority().to_protected_armor(b"", PassphraseCost::LEAST, &mut rng(1));
        assert_eq!(empty.err(), Some(AuthorityFileError::EmptyPassphrase));
    }

    #[test]
    fn what_stands_in_the_open_is_authenticated() {
        let anchor = altered(&protected(), |stored| stored.header.anchor.mesh_name = "other".into());
        assert_eq!(error(&anchor, Some(PASSPHRASE)), AuthorityFileError::WrongPassphrase);
        let rogue = SigningSecret::from_bytes(&[66; 32]).public();
        let authorities = altered(&protected(), |stored| stored.header.anchor.authorities.push(rogue));
        assert_eq!(error(&authorities, Some(PASSPHRASE)), AuthorityFileError::WrongPassphrase);
        let cheaper = altered(&protected(), |stored| {
            stored.header.cost = Some(PassphraseCost { passes: 2, ..PassphraseCost::LEAST });
        });
        assert_eq!(error(&cheaper, Some(PASSPHRASE)), AuthorityFileError::WrongPassphrase);
    }

    #[test]
    fn a_hostile_cost_is_refused_before_it_is_paid() {
        let most = PassphraseCost::MOST;
        for cost in [
            PassphraseCost { memory_kib: 100 * 1024 * 1024, ..most },
            PassphraseCost { memory_kib: u32::MAX, ..most },
            PassphraseCost { passes: u32::MAX, ..most },
            PassphraseCost { passes: 0, ..most },
            PassphraseCost { memory_kib: 0, ..most },
            PassphraseCost { lanes: 0, ..most },
            PassphraseCost { lanes: 1 << 24, ..most },
        ] {
            let text = altered(&protected(), |stored| stored.header.cost = Some(cost));
            assert!(matches!(error(&text, Some(PASSPHRASE)), AuthorityFileError::Cost { .. }), "{cost:?}");
        }
    }

    #[test]
    fn damage_is_refused() {
        let text = authority().to_armor();
        for end in 0..text.trim_end().len() {
            assert!(Authority::from_armor(&text[..end], None).is_err(), "cut at {end}");
        }
        let both = altered(&text, |stored| stored.sealed = Some(ByteVec::from(vec![0; 48])));
        assert!(matches!(error(&both, Some(PASSPHRASE)), AuthorityFileError::Content(_)));
        let none = altered(&text, |stored| stored.secret = None);
        assert!(matches!(error(&none, None), AuthorityFileError::Content(_)));
        let newer = altered(&text, |stored| stored.header.version = 2);
        assert!(error(&newer, None).to_string().contains("version 2"));
        let foreign = altered(&text, |stored| stored.secret = Some(ByteVec::from(vec![1; 32])));
        assert!(matches!(error(&foreign, None), AuthorityFileError::Anchor(_)));
    }
}

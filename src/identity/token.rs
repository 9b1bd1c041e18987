//! Invite tokens: the one line an administrator carries from a member to a new host.
//!
//! `meshd1-` and base64url (RFC 4648 §5, no padding) of a deterministic CBOR map and four bytes of checksum. The token
//! names everything the new host must believe, so that nothing it is told later can widen it; its secret is worth one
//! admission until it expires, and is no long-term key.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake2::{Blake2s256, Digest};
use hkdf::Hkdf;
use hkdf::hmac::{Hmac, Mac};
use ipnet::Ipv4Net;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};
use rand_core::CryptoRngCore;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::anchor::{AnchorError, TrustAnchor};
use super::cbor;
use super::cose::{ObjectError, ObjectKind};
use super::id::{InviteId, MeshId};
use super::key::{VerifyingKey, WireguardKey};
use super::name::NodeName;
use super::record::check_endpoints;
use crate::time::UnixTime;

/// What a token says.
#[derive(Clone, Encode, Decode)]
#[cbor(map)]
pub struct Token {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// Its name.
    #[n(1)]
    pub mesh_name: String,
    /// Its IPv4 range.
    #[cbor(n(2), with = "super::cbor::octets")]
    pub overlay_v4: Ipv4Net,
    /// The keys of its authorities.
    #[n(3)]
    pub authorities: Vec<VerifyingKey>,
    /// The tunnel key of the member to ask.
    #[n(4)]
    pub contact: WireguardKey,
    /// Where that member can be reached, one to four.
    #[cbor(n(5), with = "super::cbor::octets_list")]
    pub endpoints: Vec<SocketAddr>,
    /// The invite.
    #[n(6)]
    pub invite: InviteId,
    /// What proves the right to it.
    #[n(7)]
    pub secret: InviteSecret,
    /// The name the new node will have.
    #[n(8)]
    pub name: NodeName,
    /// The first second in which it is worth nothing.
    #[n(9)]
    pub expires: UnixTime,
}

/// An invite's secret, 32 random bytes. Wiped when dropped; has no `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct InviteSecret([u8; 32]);

/// What an invite's secret is used for, derived from it; all that the issuing member keeps. Wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct InviteKey([u8; 32]);

/// Why a text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin with `meshd1-`.
    #[error("a token begins with `meshd1-`: copy the whole line that `meshctl invite` printed")]
    Prefix,
    /// It begins with another number.
    #[error("this token is of a newer form (`meshd{0}-`): update meshctl on this host")]
    Newer(String),
    /// The checksum does not fit, or it is too long.
    #[error("the token was cut or mistyped: copy the whole line that `meshctl invite` printed")]
    Damaged,
    /// The checksum fits, the content does not.
    #[error("the token cannot be used ({0}): make a new one with `meshctl invite`")]
    Content(String),
}

const PREFIX: &str = "meshd1-";
/// The longest token, in characters: everything at its limit is 560 bytes.
const MAX_TEXT: usize = 1024;
/// Enough to catch a slip of the hand; it protects against nothing else.
const CHECKSUM: usize = 4;

impl Token {
    /// The most endpoints.
    pub const MAX_ENDPOINTS: usize = 4;

    /// The anchor the new host takes from the token.
    ///
    /// # Errors
    /// Values that no mesh can have; a token that was parsed has none.
    pub fn anchor(&self) -> Result<TrustAnchor, AnchorError> {
        TrustAnchor::new(self.mesh, &self.mesh_name, self.overlay_v4, self.authorities.clone())
    }

    /// The key derived from its secret.
    pub fn key(&self) -> InviteKey {
        self.secret.key(self.mesh, self.invite)
    }

    /// Checks its limits.
    ///
    /// # Errors
    /// Names the rule that is broken.
    pub fn check(&self) -> Result<(), TokenError> {
        self.anchor().map_err(|error| TokenError::Content(error.to_string()))?;
        let content = |error: ObjectError| TokenError::Content(error.to_string());
        check_endpoints(ObjectKind::Request, &self.endpoints, Self::MAX_ENDPOINTS).map_err(content)?;
        if self.endpoints.is_empty() {
            return Err(TokenError::Content("it names no endpoint of the inviting node".into()));
        }
        Ok(())
    }

    /// Writes the one line, without a newline.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TEXT));
        bytes.extend_from_slice(&Zeroizing::new(cbor::encode(self)));
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let base64 = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes));
        Zeroizing::new([PREFIX, base64.as_str()].concat())
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Reads a token; white space around it is forgiven.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let Some(base64) = text.strip_prefix(PREFIX) else {
            let number = text.strip_prefix("meshd").and_then(|rest| rest.split_once('-')).map(|(number, _)| number);
            let number = number.filter(|number| (1..4).contains(&number.len()));
            let number = number.filter(|number| number.bytes().all(|digit| digit.is_ascii_digit()));
            return Err(number.map_or(TokenError::Prefix, |number| TokenError::Newer(number.to_owned())));
        };
        if text.len() > MAX_TEXT {
            return Err(TokenError::Damaged);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(base64).map_err(|_| TokenError::Damaged)?);
        let (payload, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(TokenError::Damaged)?;
        if *sum != checksum(payload) {
            return Err(TokenError::Damaged);
        }
        let token: Token = cbor::decode_strict(payload).map_err(TokenError::Content)?;
        token.check()?;
        Ok(token)
    }
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let digest = Blake2s256::new().chain_update(b"meshd token v1").chain_update(payload).finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

impl InviteSecret {
    /// Draws a new secret.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        let mut secret = Self([0; 32]);
        rng.fill_bytes(&mut secret.0);
        secret
    }

    /// Takes the 32 bytes of a secret.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Derives the invite's key: HKDF-SHA256 (RFC 5869), bound to mesh and invite.
    pub fn key(&self, mesh: MeshId, invite: InviteId) -> InviteKey {
        let mut key = InviteKey([0; 32]);
        let hkdf = Hkdf::<Sha256>::new(Some(b"meshd invite v1"), &self.0);
        hkdf.expand_multi_info(&[mesh.as_bytes(), invite.as_bytes()], &mut key.0)
            .expect("32 bytes are below HKDF's limit of 8,160");
        key
    }
}

impl InviteKey {
    /// Takes the bytes of a key that was derived before.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for sealing replies and for the book of invites.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Proves the right to the invite for one transcript: HMAC-SHA256 (RFC 2104).
    pub fn prove(&self, transcript: &[u8; 32]) -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"meshd invite proof v1");
        mac.update(transcript);
        mac.finalize().into_bytes().into()
    }

    /// Checks a proof in constant time.
    pub fn check(&self, transcript: &[u8; 32], proof: &[u8; 32]) -> bool {
        self.prove(transcript).ct_eq(proof).into()
    }
}

impl<C> Encode<C> for InviteSecret {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for InviteSecret {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        cbor::fixed_bytes(d).map(Self)
    }
}

impl fmt::Debug for Token {
    /// Leaves the secret out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Token");
        shown.field("mesh", &self.mesh).field("invite", &self.invite).field("name", &self.name);
        shown.field("contact", &self.contact).field("expires", &self.expires).finish_non_exhaustive()
    }
}

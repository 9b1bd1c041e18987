//! Requests: a host's keys and wished name, signed by itself, on their way to an authority.

use std::net::SocketAddr;

use minicbor::{Decode, Encode};

use super::armor::{self, ArmorKind};
use super::cose::{self, Envelope, ObjectError, ObjectKind};
use super::key::{NodeKeys, PublicKeys, VerifyingKey, WireguardKey};
use super::name::NodeName;
use super::record::check_endpoints;
use crate::time::UnixTime;

const KIND: ObjectKind = ObjectKind::Request;

/// What a request says. The signature shows that its sender holds the Ed25519 secret, and covers the X25519 key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Request {
    /// The name it wishes for.
    #[n(0)]
    pub name: NodeName,
    /// The key of its tunnels.
    #[n(1)]
    pub wireguard_key: WireguardKey,
    /// The key of its signatures.
    #[n(2)]
    pub verifying_key: VerifyingKey,
    /// Underlay addresses at which it can be reached.
    #[cbor(n(3), with = "super::cbor::octets_list")]
    pub endpoints: Vec<SocketAddr>,
    /// When it was made, by the host's clock.
    #[n(4)]
    pub created: UnixTime,
}

/// A request whose signature and limits were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    request: Request,
    bytes: Box<[u8]>,
}

impl Request {
    /// The most endpoints.
    pub const MAX_ENDPOINTS: usize = 4;

    /// Returns both public keys.
    pub fn keys(&self) -> PublicKeys {
        PublicKeys { wireguard: self.wireguard_key, verifying: self.verifying_key }
    }
}

impl SignedRequest {
    /// Makes a request for these keys.
    ///
    /// # Errors
    /// Endpoints that break a limit.
    pub fn new(name: &NodeName, endpoints: &[SocketAddr], now: UnixTime, keys: &NodeKeys) -> Result<Self, ObjectError> {
        let PublicKeys { wireguard: wireguard_key, verifying: verifying_key } = keys.public();
        let (name, endpoints) = (name.clone(), endpoints.to_vec());
        let request = Request { name, wireguard_key, verifying_key, endpoints, created: now };
        check_endpoints(KIND, &request.endpoints, Request::MAX_ENDPOINTS)?;
        let bytes = cose::sign(KIND, &request, &keys.signing)?;
        Ok(Self { request, bytes: bytes.into() })
    }

    /// Checks a request's signature, by the key it names itself, its encoding and limits.
    ///
    /// # Errors
    /// Anything but exactly what the holder of the key signed.
    pub fn verify(bytes: &[u8]) -> Result<Self, ObjectError> {
        let envelope = Envelope::open(KIND, bytes)?;
        let request: Request = envelope.decode()?;
        check_endpoints(KIND, &request.endpoints, Request::MAX_ENDPOINTS)?;
        if !envelope.signed_by(&request.verifying_key) {
            return Err(ObjectError::Signature { kind: KIND, signer: "the key it names" });
        }
        Ok(Self { request, bytes: bytes.into() })
    }

    /// Returns what it says.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Returns the exact signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the request file.
    pub fn to_armor(&self) -> String {
        armor::write(ArmorKind::Request, &self.bytes)
    }

    /// Reads and verifies a request file.
    ///
    /// # Errors
    /// As [`SignedRequest::verify`], and text that is no request file.
    pub fn from_armor(text: &str) -> Result<Self, ObjectError> {
        Self::verify(&armor::read(ArmorKind::Request, text)?)
    }
}

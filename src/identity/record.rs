//! Records: a node's word on itself, passed on by everyone, altered by no one.

use std::net::SocketAddr;
use std::time::Duration;

use minicbor::{Decode, Encode};

use super::certificate::Certificate;
use super::cose::{self, Envelope, ObjectError, ObjectKind};
use super::id::{MeshId, NodeId};
use super::key::SigningSecret;
use crate::time::UnixTime;

const KIND: ObjectKind = ObjectKind::Record;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Record {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// The node that speaks.
    #[n(1)]
    pub node: NodeId,
    /// Of two records of one node the higher sequence holds; from 1.
    #[n(2)]
    pub sequence: u64,
    /// When it was signed.
    #[n(3)]
    pub issued: UnixTime,
    /// The first second in which it no longer holds.
    #[n(4)]
    pub expires: UnixTime,
    /// Underlay addresses at which the node can be reached, best first.
    #[cbor(n(5), with = "super::cbor::octets_list")]
    pub endpoints: Vec<SocketAddr>,
    /// Drawn at each start of the daemon; two that alternate are two hosts with one identity.
    #[n(6)]
    pub boot: u64,
    /// The protocol version the node speaks.
    #[n(7)]
    pub protocol_version: u16,
    /// The serial of the node's certificate, so that others know when theirs is old.
    #[n(8)]
    pub certificate_serial: u64,
    /// Abilities, one per bit; unknown bits are kept and ignored.
    #[n(9)]
    pub features: u32,
    /// What the node's rules of what may come in are condensed to, 0 where it has none; absent where it does not say.
    #[n(10)]
    pub policy: Option<u64>,
}

/// A record whose signature and limits were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    record: Record,
    bytes: Box<[u8]>,
}

impl Record {
    /// The most endpoints: more are no help in finding a server, and each costs everyone memory.
    pub const MAX_ENDPOINTS: usize = 16;
    /// How long one may hold at most: 30 days, after which a silent node's endpoints are only a guess.
    pub const LONGEST: Duration = Duration::from_secs(30 * 86_400);

    fn check(&self) -> Result<(), ObjectError> {
        if self.sequence == 0 {
            return Err(ObjectError::value(KIND, "sequence", "must be at least 1"));
        }
        if self.issued >= self.expires || self.expires.saturating_since(self.issued) > Record::LONGEST {
            return Err(ObjectError::value(KIND, "term", "is empty, or longer than 30 days"));
        }
        check_endpoints(KIND, &self.endpoints, Record::MAX_ENDPOINTS)
    }
}

/// Checks a list of endpoints: its length, repetitions, and addresses no server can be reached at.
pub(super) fn check_endpoints(kind: ObjectKind, endpoints: &[SocketAddr], most: usize) -> Result<(), ObjectError> {
    if endpoints.len() > most {
        return Err(ObjectError::value(kind, "endpoints", format!("are more than {most}")));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let ip = endpoint.ip();
        let broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
        if endpoint.port() == 0 || ip.is_unspecified() || ip.is_multicast() || broadcast || ip.to_canonical() != ip {
            return Err(ObjectError::value(kind, "endpoints", format!("contain {endpoint}, where nothing can listen")));
        }
        if endpoints[..i].contains(endpoint) {
            return Err(ObjectError::value(kind, "endpoints", format!("contain {endpoint} twice")));
        }
    }
    Ok(())
}

impl SignedRecord {
    /// Signs a record with the node's own key.
    ///
    /// # Errors
    /// A record that breaks a limit: nobody would accept it.
    pub fn sign(record: &Record, secret: &SigningSecret) -> Result<Self, ObjectError> {
        record.check()?;
        let bytes = cose::sign(KIND, record, secret)?;
        Ok(Self { record: record.clone(), bytes: bytes.into() })
    }

    /// Checks that the node of `certificate` signed these bytes, their encoding and limits; not the time.
    ///
    /// # Errors
    /// Anything but exactly what that node signed.
    pub fn verify(bytes: &[u8], certificate: &Certificate) -> Result<Self, ObjectError> {
        let envelope = Envelope::open(KIND, bytes)?;
        let record: Record = envelope.decode()?;
        if record.mesh != certificate.mesh {
            return Err(ObjectError::Foreign { kind: KIND, what: "mesh" });
        }
        if record.node != certificate.node {
            return Err(ObjectError::Foreign { kind: KIND, what: "node" });
        }
        record.check()?;
        if !envelope.signed_by(&certificate.verifying_key) {
            return Err(ObjectError::Signature { kind: KIND, signer: "the node it speaks for" });
        }
        Ok(Self { record, bytes: bytes.into() })
    }

    /// Says whose record the bytes claim to be, so that the certificate can be looked up. Nothing else is checked.
    pub fn peek_node(bytes: &[u8]) -> Option<NodeId> {
        Envelope::open(KIND, bytes).and_then(|envelope| envelope.decode::<Record>()).ok().map(|record| record.node)
    }

    /// Returns what it says.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the exact signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

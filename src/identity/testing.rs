//! Fixed identities for the tests of this crate.

use std::net::{Ipv4Addr, SocketAddr};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::{
    Admission, Authority, MeshId, NodeId, NodeKeys, Permissions, Record, SignedCertificate, SignedRecord,
    SigningSecret, Term, TrustAnchor, WireguardSecret,
};
use crate::time::UnixTime;

/// 2026-01-01T00:00:00Z.
pub(crate) const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);

pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

pub(crate) fn authority() -> Authority {
    let secret = SigningSecret::from_bytes(&[0xa1; 32]);
    let mesh = MeshId::from_bytes([0x33; 16]);
    let anchor = TrustAnchor::new(mesh, "prod", "10.77.0.0/16".parse().unwrap(), vec![secret.public()]).unwrap();
    Authority::from_parts(anchor, secret).ok().unwrap()
}

pub(crate) fn keys(seed: u8) -> NodeKeys {
    NodeKeys {
        wireguard: WireguardSecret::from_bytes(&[seed; 32]),
        signing: SigningSecret::from_bytes(&[seed ^ 0x80; 32]),
    }
}

pub(crate) fn admission(number: u8) -> Admission {
    Admission {
        node: NodeId::from_bytes([number; 16]),
        name: format!("web{number}").parse().unwrap(),
        address_v4: Ipv4Addr::new(10, 77, 0, number),
        prefixes: vec!["192.168.7.0/24".parse().unwrap(), "2001:db8:7::/48".parse().unwrap()],
        tags: vec!["db".parse().unwrap(), "web".parse().unwrap()],
        permissions: Permissions { authority: false, relay: true },
        serial: 7,
        shares: Default::default(),
    }
}

pub(crate) fn certificate(number: u8) -> SignedCertificate {
    authority().issue(&admission(number), &keys(number).public(), &Term::offline(NOW)).unwrap()
}

pub(crate) fn record(number: u8, endpoints: u16) -> SignedRecord {
    let endpoints = (1..=endpoints).map(|port| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], port))).collect();
    let record = Record {
        mesh: authority().anchor().mesh,
        node: NodeId::from_bytes([number; 16]),
        sequence: 3,
        issued: NOW,
        expires: NOW + Record::LONGEST,
        endpoints,
        boot: 0x0102_0304_0506_0708,
        protocol_version: 1,
        certificate_serial: 7,
        features: 0,
        policy: None,
    };
    SignedRecord::sign(&record, &keys(number).signing).unwrap()
}

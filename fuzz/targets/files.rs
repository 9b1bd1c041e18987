//! What lies on the disk and what comes over the local socket.

use std::path::Path;

use meshd::api::{InviteRequest, InviteRevokeRequest, PingRequest, RevokeRequest};
use meshd::config::Config;
use meshd::control::snapshot::Snapshot;
use meshd::daemon::state_file;
use meshd::identity::armor::{self, ArmorKind};
use meshd::identity::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fixtures::*;

const KINDS: [ArmorKind; 7] = [
    ArmorKind::Identity,
    ArmorKind::Authority,
    ArmorKind::Certificate,
    ArmorKind::Request,
    ArmorKind::Revocation,
    ArmorKind::Delegation,
    ArmorKind::Invites,
];

/// Armored text of any kind.
pub fn armor(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut readable = 0;
    for kind in KINDS {
        if let Ok(bytes) = armor::read(kind, text) {
            let written = armor::write(kind, &bytes);
            assert_eq!(written.trim_end(), text.replace("\r\n", "\n").trim_end_matches(['\r', '\n']));
            readable += 1;
        }
    }
    assert!(readable <= 1, "one text is of one kind");
    let _ = SignedCertificate::from_armor(text, &anchor());
    let _ = SignedRequest::from_armor(text);
    let _ = SignedRevocation::from_armor(text, &anchor());
    let _ = SignedDelegation::from_armor(text, &anchor());
}

/// The text itself, or any content in the armor of `kind`.
fn armored(kind: ArmorKind, data: &[u8]) -> Option<String> {
    match data.split_first()? {
        (1.., content) => Some(armor::write(kind, content)),
        (_, raw) => std::str::from_utf8(raw).ok().map(str::to_owned),
    }
}

/// A node's identity file.
pub fn identity_file(data: &[u8]) {
    let Some(text) = armored(ArmorKind::Identity, data) else { return };
    if let Ok(keys) = NodeKeys::from_armor(&text) {
        let again = NodeKeys::from_armor(&keys.to_armor()).expect("what was written is read");
        assert_eq!(again.public(), keys.public());
    }
}

/// An authority's file. The passphrase of a sealed one is not tried: what that costs is the file's own choice within
/// bounds, and their check has its unit test.
pub fn authority_file(data: &[u8]) {
    let Some(text) = armored(ArmorKind::Authority, data) else { return };
    let peeked = AuthorityFile::peek(&text);
    match Authority::from_armor(&text, None) {
        Ok(authority) => {
            let peeked = peeked.expect("what opens can be looked at");
            assert!(!peeked.needs_passphrase && peeked.anchor == *authority.anchor());
            assert!(authority.anchor().check().is_ok() && authority.anchor().authorities.contains(&authority.public()));
            let again = Authority::from_armor(&authority.to_armor(), None).expect("what was written is read");
            assert_eq!((again.public(), again.anchor()), (authority.public(), authority.anchor()));
        }
        Err(AuthorityFileError::PassphraseNeeded) => assert!(peeked.is_ok_and(|peeked| peeked.needs_passphrase)),
        Err(_) => {}
    }
}

/// An authority's ledger.
pub fn ledger(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let anchor = anchor();
    let Ok(mut ledger) = Ledger::parse(text, &anchor) else { return };
    let written = ledger.to_text();
    let back = Ledger::parse(&written, &anchor).expect("what was written is read");
    assert_eq!(back, ledger);
    assert_eq!(back.to_text(), written);
    let wish = Wish {
        name: "fresh".parse().unwrap(),
        address_v4: None,
        prefixes: vec![],
        shares: Default::default(),
        tags: vec![],
        permissions: Permissions::default(),
        keys: Some(keys(9).public()),
        replace_keys: false,
        not_after: NOW + DAY,
    };
    let taken: Vec<_> = ledger.entries().filter(|e| !e.is_lapsed(NOW)).map(|e| e.admission.address_v4).collect();
    let known = ledger.find(&wish.name).is_some();
    if let Ok(admitted) = ledger.admit(&wish, NodeId::from_bytes([0xee; 16]), &anchor, NOW) {
        assert!(anchor.is_host(admitted.address_v4));
        assert!(known || !taken.contains(&admitted.address_v4), "an address is given out once");
        assert_eq!(Ledger::parse(&ledger.to_text(), &anchor).as_ref(), Ok(&ledger));
    }
}

/// A member's file of pending invites.
pub fn invite_book(data: &[u8]) {
    let Some(text) = armored(ArmorKind::Invites, data) else { return };
    let Ok(mut book) = InviteBook::from_armor(&text, &anchor()) else { return };
    assert!(book.iter().count() <= InviteBook::MAX);
    let written = book.to_armor();
    let back = InviteBook::from_armor(&written, &anchor()).expect("what was written is read");
    assert_eq!(*back.to_armor(), *written);
    let name = "web2".parse().unwrap();
    let (transcript, keys) = ([3; 32], keys(2).public());
    let proof = token(2).key().prove(&transcript);
    let shown = Presentation { invite: token(2).invite, name: &name, keys, transcript: &transcript, proof: &proof };
    if let Ok(grant) = book.present(&shown, NOW) {
        let _ = grant.issue(Some(&authority()), &super::fixtures::keys(1).signing, &anchor(), NOW);
    }
    book.purge(NOW);
}

/// The daemon's state files: the membership, or the marks, whole or as any payload under a right checksum.
pub fn state_file(data: &[u8]) {
    let (mode, bytes) = match data.split_first() {
        Some((mode @ 2.., payload)) => (mode % 2, state_file::frame(payload)),
        Some((mode, raw)) => (*mode, raw.to_vec()),
        None => return,
    };
    let Ok(payload) = state_file::unframe(&bytes) else { return };
    assert_eq!(state_file::frame(payload), bytes);
    if mode == 0 {
        let _ = Snapshot::from_bytes(payload);
    } else if let Ok(marks) = state_file::parse_marks(payload) {
        assert_eq!(state_file::parse_marks(&state_file::encode_marks(&marks)), Ok(marks));
    }
}

/// `meshd.toml`.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("/etc/meshd/meshd.toml");
    match Config::parse(text, path) {
        Ok(config) => {
            for written in [config.to_toml(path), config.to_toml_in_full(path)] {
                let again = Config::parse(&written, path).unwrap_or_else(|problems| {
                    panic!("what was written is read: {}\n{written}", problems.render(false))
                });
                assert_eq!(again, config);
            }
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            let _ = (problems.render(true), problems.render(false));
        }
    }
}

/// Bodies of requests to the daemon's local interface.
pub fn api_request(data: &[u8]) {
    fn round_trip<T: DeserializeOwned + Serialize + PartialEq>(body: &[u8]) {
        if let Ok(request) = serde_json::from_slice::<T>(body) {
            let written = serde_json::to_vec(&request).expect("plain data serialises");
            assert!(serde_json::from_slice::<T>(&written).is_ok_and(|again| again == request));
        }
    }
    round_trip::<InviteRequest>(data);
    round_trip::<InviteRevokeRequest>(data);
    round_trip::<RevokeRequest>(data);
    round_trip::<PingRequest>(data);
}

/// Inputs to begin with.
pub mod seeds {
    use super::super::{Seed, with};
    use super::*;

    /// The content of armored text.
    fn content(kind: ArmorKind, text: &str) -> Vec<u8> {
        armor::read(kind, text).unwrap()
    }

    pub fn armor() -> Vec<Seed> {
        let certificate = super::super::fixtures::certificate(1).to_armor();
        vec![
            ("empty", vec![]),
            ("certificate", certificate.clone().into_bytes()),
            ("certificate-crlf", certificate.replace('\n', "\r\n").into_bytes()),
            ("certificate-cut", certificate.as_bytes()[..200].to_vec()),
            ("request", request(1).to_armor().into_bytes()),
            ("revocation", revocation(1).to_armor().into_bytes()),
            ("delegation", delegation(&admission(2)).to_armor().into_bytes()),
            ("empty-body", b"-----BEGIN MESHD REQUEST-----\n-----END MESHD REQUEST-----\n".to_vec()),
        ]
    }

    pub fn identity_file() -> Vec<Seed> {
        let text = keys(1).to_armor();
        vec![("text", with(0, text.as_bytes())), ("content", with(1, content(ArmorKind::Identity, &text)))]
    }

    pub fn authority_file() -> Vec<Seed> {
        let open = authority().to_armor();
        let sealed = authority().to_protected_armor(b"passphrase", PassphraseCost::LEAST, &mut rng(1)).unwrap();
        vec![
            ("text", with(0, open.as_bytes())),
            ("text-sealed", with(0, sealed.as_bytes())),
            ("content", with(1, content(ArmorKind::Authority, &open))),
            ("content-sealed", with(1, content(ArmorKind::Authority, &sealed))),
        ]
    }

    pub fn ledger() -> Vec<Seed> {
        let anchor = anchor();
        let empty = Ledger::new(&anchor);
        let mut full = empty.clone();
        for number in 1..4 {
            let Admission { name, prefixes, tags, permissions, .. } = admission(number);
            let wish = Wish {
                name,
                address_v4: None,
                prefixes: if number == 1 { prefixes } else { vec![] },
                shares: Default::default(),
                tags,
                permissions,
                keys: (number != 3).then(|| keys(number).public()),
                replace_keys: false,
                not_after: NOW + DAY,
            };
            full.admit(&wish, NodeId::from_bytes([number; 16]), &anchor, NOW).unwrap();
        }
        full.revoke(&"web2".parse().unwrap(), NOW).unwrap();
        vec![("empty", empty.to_text().into_bytes()), ("three-nodes", full.to_text().into_bytes())]
    }

    pub fn invite_book() -> Vec<Seed> {
        let mut book = InviteBook::default();
        book.add(invite(2), NOW).unwrap();
        let mut bound = invite(3);
        let certificate = super::super::fixtures::certificate(3);
        bound.state = InviteState::Bound { keys: keys(3).public(), certificate: Some(certificate) };
        book.add(bound, NOW).unwrap();
        let mut delegated = invite(4);
        delegated.delegation = Some(super::super::fixtures::delegation(&admission(4)));
        book.add(delegated, NOW).unwrap();
        book.add(invite(5), NOW).unwrap();
        book.withdraw(invite(5).id);
        let text = book.to_armor();
        let empty = InviteBook::default().to_armor();
        vec![
            ("text", with(0, text.as_bytes())),
            ("content", with(1, content(ArmorKind::Invites, &text))),
            ("content-empty", with(1, content(ArmorKind::Invites, &empty))),
        ]
    }

    pub fn state_file() -> Vec<Seed> {
        use meshd::tunnel::{Mark, Marks};
        let marks = Marks { received: Mark::from_bytes([1; 12]), sent: NOW };
        let marks = state_file::encode_marks(&[([7; 32], marks), ([8; 32], marks)]);
        let snapshot = super::super::control::filled_snapshot();
        vec![
            ("empty", vec![]),
            ("membership", with(0, state_file::frame(&snapshot))),
            ("marks", with(1, state_file::frame(&marks))),
            ("payload-membership", with(2, &snapshot)),
            ("payload-marks", with(3, &marks)),
        ]
    }

    pub fn config() -> Vec<Seed> {
        let path = Path::new("/etc/meshd/meshd.toml");
        let example = include_bytes!("../../examples/meshd.toml").to_vec();
        let text = std::str::from_utf8(&example).unwrap().to_owned();
        let config = Config::parse(&text, path).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        let minimal = Config::new(config.node.clone(), config.mesh.clone(), path).to_toml(path);
        vec![
            ("empty", vec![]),
            ("example", example),
            ("minimal", minimal.into_bytes()),
            ("wrong-types", text.replace("1420", "\"wide\"").replace('[', "[[").into_bytes()),
            ("unknown-keys", text.replace("listen", "lisen").replace("mtu", "mut").into_bytes()),
            ("control-characters", b"node = \"a\\u0007\"\n[mesh]\nname = 7\nid = \"zz\"\n".to_vec()),
        ]
    }

    pub fn api_request() -> Vec<Seed> {
        let text = |text: &str| text.as_bytes().to_vec();
        vec![
            ("empty", vec![]),
            (
                "invite",
                text(
                    r#"{"name":"web9","tags":["web"],"prefixes":["192.168.7.0/24"],"address":"10.77.0.9","lifetime_seconds":3600,"delegated":{"node_id":"00","serial":1,"delegation":"AA=="}}"#,
                ),
            ),
            ("revoke", text(r#"{"node":"web9","revocation":"AA=="}"#)),
            ("revoke-invite", text(r#"{"invite":"web9"}"#)),
            ("ping", text(r#"{"node":"web9","count":5,"interval_seconds":1.0,"mode":"full_size"}"#)),
            ("ping-extreme", text(r#"{"node":"","count":4294967295,"interval_seconds":1e308}"#)),
            ("nested", text(&"[".repeat(200))),
        ]
    }
}

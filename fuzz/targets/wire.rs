//! Datagrams of our own outside any tunnel, and the packets that carry control messages inside.

use std::net::Ipv6Addr;

use meshd::identity::*;
use meshd::wire::join::{JoinAttempt, JoinRequest};
use meshd::wire::probe::{PROBE_LEN, Probe};
use meshd::wire::{Recipient, introduction, join, overlay};
use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

use super::fixtures::*;
use super::forge::{self, INTRODUCTION, JOIN};

/// An introduction's content, as `docs/protocol.md` §3 has it.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Introduced {
    #[cbor(n(0), with = "minicbor::bytes")]
    certificate: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    record: Option<Vec<u8>>,
    #[n(2)]
    sent: u64,
    #[cbor(n(3), with = "minicbor::bytes")]
    signature: [u8; 64],
    #[n(4)]
    answer_wanted: bool,
}

/// A join request's content, as `docs/protocol.md` §4 has it.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Joining {
    #[cbor(n(0), with = "minicbor::bytes")]
    invite: [u8; 16],
    #[cbor(n(1), with = "minicbor::bytes")]
    request: Vec<u8>,
    #[cbor(n(2), with = "minicbor::bytes")]
    proof: [u8; 32],
}

/// Puts the right signature of node 1 into an introduction's content to `to`, where the content decodes.
fn signed_content(content: &[u8], to: &WireguardKey) -> Vec<u8> {
    use blake2::Blake2s256;
    let Ok(mut shown) = minicbor::decode::<Introduced>(content) else { return content.to_vec() };
    let mut signed = b"meshd introduction v1".to_vec();
    signed.extend(to.as_bytes());
    signed.extend(forge::ephemeral_public());
    signed.extend(shown.sent.to_be_bytes());
    signed.push(u8::from(shown.answer_wanted));
    signed.extend(Blake2s256::digest(&shown.certificate));
    signed.extend(Blake2s256::digest(shown.record.as_deref().unwrap_or_default()));
    shown.signature = keys(1).signing.sign(&signed);
    minicbor::to_vec(&shown).expect("writing into a vector")
}

/// A datagram that claims to be an introduction to `to`: as it is, under a MAC, sealed, or sealed and signed.
pub(super) fn introduction_to(data: &[u8], to: &WireguardKey) -> Vec<u8> {
    match data.split_first() {
        Some((0, raw)) => raw.to_vec(),
        Some((1, covered)) => INTRODUCTION.authenticate(to, covered),
        Some((2, content)) => INTRODUCTION.seal(to, content),
        Some((_, content)) => INTRODUCTION.seal(to, &signed_content(content, to)),
        None => Vec::new(),
    }
}

/// Introductions to node 2.
pub fn introduction(data: &[u8]) {
    let keys = keys(2);
    let me = Recipient::new(&keys.wireguard);
    let datagram = introduction_to(data, me.public());
    let passed = introduction::check_mac(me.public(), &datagram);
    let opened = introduction::open(&me, &anchor(), NOW, &datagram);
    assert!(passed || opened.is_err(), "nothing is opened that the cheap check refuses");
    if let Ok(introduction) = opened {
        let certificate = introduction.certificate;
        assert!((introduction::SHORTEST..=introduction::LONGEST).contains(&datagram.len()));
        assert_eq!(SignedCertificate::verify(certificate.bytes(), &anchor()), Ok(certificate.clone()));
        assert_ne!(certificate.validity(NOW), Validity::Expired);
        if let Some(record) = introduction.record {
            assert_eq!(record.record().node, certificate.certificate().node);
        }
    }
}

fn transcript(to: &WireguardKey, ephemeral: &[u8], invite: &[u8; 16], request: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"meshd join transcript v1")
        .chain_update(to.as_bytes())
        .chain_update(ephemeral)
        .chain_update(invite)
        .chain_update(request)
        .finalize()
        .into()
}

/// A datagram that claims to be a join request to node 1: as it is, under a MAC, sealed, or sealed with a right proof.
pub(super) fn join_request_to(data: &[u8], to: &WireguardKey) -> Vec<u8> {
    match data.split_first() {
        Some((0, raw)) => raw.to_vec(),
        Some((1, covered)) => JOIN.authenticate(to, covered),
        Some((2, content)) => JOIN.seal(to, content),
        Some((_, content)) => {
            let Ok(mut shown) = minicbor::decode::<Joining>(content) else { return JOIN.seal(to, content) };
            let transcript = transcript(to, &forge::ephemeral_public(), &shown.invite, &shown.request);
            shown.proof = token(2).key().prove(&transcript);
            JOIN.seal(to, &minicbor::to_vec(&shown).expect("writing into a vector"))
        }
        None => Vec::new(),
    }
}

/// Join requests to node 1, which has an invite for node 2.
pub fn join_request(data: &[u8]) {
    let keys = keys(1);
    let me = Recipient::new(&keys.wireguard);
    let datagram = join_request_to(data, me.public());
    let passed = join::check_mac(me.public(), &datagram);
    let opened = JoinRequest::open(&me, &datagram);
    assert!(passed || opened.is_err(), "nothing is opened that the cheap check refuses");
    let Ok(request) = opened else { return };
    assert_eq!(datagram.len(), join::LENGTH);
    let mut book = InviteBook::default();
    book.add(invite(2), NOW).expect("an empty book takes an invite");
    let shown = request.presentation();
    let granted = book.present(&shown, NOW);
    if let Ok(grant) = &granted {
        assert_eq!((grant.keys, &grant.admission.name), (shown.keys, shown.name));
        assert_eq!(book.present(&shown, NOW).as_ref(), Ok(grant), "the same keys may ask again");
    }
    let outcome = match granted {
        Ok(grant) => match grant.issue(Some(&authority()), &keys.signing, &anchor(), NOW) {
            Ok(certificate) => Ok(join::Joined { certificate, members: vec![] }),
            Err(_) => Err(join::JoinRefusal::Unavailable),
        },
        Err(refusal) => Err(join::JoinRefusal::Invite(refusal)),
    };
    let unproven = outcome == Err(join::JoinRefusal::Invite(Refusal::Unproven));
    let reply = request.reply(&token(2).key(), &join::JoinReply { now: NOW, outcome }, &mut rng(3));
    assert_eq!(reply.is_none(), unproven, "who proves nothing gets no answer, all others one");
    assert!(reply.is_none_or(|reply| reply.len() <= datagram.len()));
}

/// A join attempt of node 2, the key of replies to it with a salt of zeros, and the head of such replies.
fn attempt() -> (Vec<u8>, JoinAttempt, [u8; 32], [u8; 36]) {
    let token = token(2);
    let endpoints = ["203.0.113.5:7655".parse().unwrap()];
    let (datagram, attempt) = JoinAttempt::new(&token, &keys(2), &endpoints, NOW, &mut rng(7)).expect("a usable token");
    let ephemeral: [u8; 32] = datagram[4..36].try_into().unwrap();
    let request = SignedRequest::new(&token.name, &endpoints, NOW, &keys(2)).unwrap();
    let transcript = transcript(&token.contact, &ephemeral, token.invite.as_bytes(), request.bytes());
    let shared = keys(1).wireguard.agree(&WireguardKey::from_bytes(ephemeral).unwrap()).unwrap();
    let mut invite_key = [0; 32];
    hkdf::Hkdf::<Sha256>::new(Some(b"meshd invite v1"), &[2 ^ 0x55; 32])
        .expand_multi_info(&[token.mesh.as_bytes(), token.invite.as_bytes()], &mut invite_key)
        .unwrap();
    let mut head = [0; 36];
    head[..4].copy_from_slice(&[join::TYPE_REPLY, 1, 0, 0]);
    let secret = [shared.as_bytes().as_slice(), &invite_key, &transcript, &head[4..]].concat();
    let key = forge::channel_key("meshd join reply v1", &secret, &ephemeral, &token.contact);
    (datagram, attempt, key, head)
}

/// Replies to node 2's request to join: as they are, or any content under the right key.
pub fn join_reply(data: &[u8]) {
    let (_, attempt, key, head) = attempt();
    let datagram = match data.split_first() {
        Some((0, raw)) => raw.to_vec(),
        Some((_, content)) => [head.as_slice(), &forge::encrypt(&key, &head, content)].concat(),
        None => Vec::new(),
    };
    let Ok(reply) = attempt.open(&datagram) else { return };
    assert!(datagram.len() <= join::LENGTH);
    if let Ok(joined) = reply.outcome {
        let certificate = joined.certificate.certificate();
        assert_eq!((certificate.keys(), &certificate.name), (keys(2).public(), &token(2).name));
        assert!(joined.members.len() <= join::MAX_MEMBERS);
    }
}

/// Overlay packets that carry control messages.
pub fn overlay(data: &[u8]) {
    let (a, b) = (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
    if let Some(payload) = overlay::unwrap(data, b) {
        assert!(data.len() >= overlay::HEADER_LEN + payload.len());
        assert_eq!(overlay::unwrap(data, a), None);
    }
    let payload = &data[..data.len().min(meshd::wire::control::MAX_MESSAGE)];
    assert_eq!(overlay::unwrap(&overlay::wrap(a, b, payload), b), Some(payload));
}

/// Probes.
pub fn probe(data: &[u8]) {
    let Some(probe) = Probe::decode(data) else { return };
    assert!(data.len() >= PROBE_LEN);
    assert_eq!(Probe::decode(&probe.encode()), Some(probe));
}

/// Inputs to begin with.
pub mod seeds {
    use super::super::{Seed, with};
    use super::*;

    pub fn introduction() -> Vec<Seed> {
        let (certificate, record) = (super::super::fixtures::certificate(1), signed_record(1));
        let to = keys(2).public().wireguard;
        let seal = |record, answer| {
            introduction::seal(&to, &certificate, record, &keys(1).signing, NOW, answer, &mut rng(1)).unwrap()
        };
        let whole = seal(Some(&record), true);
        let content = |record: Option<&SignedRecord>| {
            let record = record.map(|record| record.bytes().to_vec());
            let (certificate, sent) = (certificate.bytes().to_vec(), NOW.as_secs());
            let content = Introduced { certificate, record, sent, signature: [0; 64], answer_wanted: true };
            minicbor::to_vec(&content).unwrap()
        };
        vec![
            ("empty", vec![]),
            ("sealed", with(0, &whole)),
            ("sealed-without-record", with(0, seal(None, false))),
            ("authenticated", with(1, &whole[..whole.len() - 16])),
            ("authenticated-rubbish", with(1, [&[0x10, 1, 0, 0][..], &[7; 300]].concat())),
            ("low-order-ephemeral", with(1, [&[0x10, 1, 0, 0][..], &[0; 300]].concat())),
            ("content-unsigned", with(2, content(Some(&record)))),
            ("content", with(3, content(Some(&record)))),
            ("content-without-record", with(3, content(None))),
        ]
    }

    fn joining(request: Vec<u8>) -> Vec<u8> {
        let invite = *token(2).invite.as_bytes();
        minicbor::to_vec(&Joining { invite, request, proof: [0; 32] }).unwrap()
    }

    pub fn join_request() -> Vec<Seed> {
        let (datagram, ..) = attempt();
        let whole = joining(request(2).bytes().to_vec());
        vec![
            ("sealed", with(0, &datagram)),
            ("authenticated", with(1, &datagram[..datagram.len() - 16])),
            ("content-unproven", with(2, &whole)),
            ("content", with(3, &whole)),
            ("content-of-another-name", with(3, joining(request(3).bytes().to_vec()))),
            ("content-without-request", with(3, joining(vec![]))),
        ]
    }

    pub fn join_reply() -> Vec<Seed> {
        let (datagram, ..) = attempt();
        let me = keys(1);
        let request = JoinRequest::open(&Recipient::new(&me.wireguard), &datagram).ok().unwrap();
        let certificate = authority().issue(&admission(2), &keys(2).public(), &Term::online(NOW)).unwrap();
        let name = admission(1).name;
        let endpoint = "203.0.113.1:7655".parse().unwrap();
        let member = join::JoinMember { name, wireguard_key: me.public().wireguard, endpoint };
        let joined = join::Joined { certificate: certificate.clone(), members: vec![member.clone(), member.clone()] };
        let reply = |outcome| {
            let reply = join::JoinReply { now: NOW, outcome };
            request.reply(&token(2).key(), &reply, &mut rng(3)).unwrap()
        };
        // {0: now, 1: certificate, 2: [member, member]} and {0: now, 3: refusal}
        let mut content = vec![0xa3, 0x00, 0x1a];
        content.extend((NOW.as_secs() as u32).to_be_bytes());
        content.push(0x01);
        content.extend(forge::byte_string(certificate.bytes()));
        content.push(0x02);
        content.extend(minicbor::to_vec([&member, &member]).unwrap());
        let mut refused = vec![0xa2, 0x00, 0x1a];
        refused.extend((NOW.as_secs() as u32).to_be_bytes());
        refused.extend([0x03, 0x02]);
        vec![
            ("empty", vec![]),
            ("sealed", with(0, reply(Ok(joined)))),
            ("sealed-refusal", with(0, reply(Err(join::JoinRefusal::KeyInUse)))),
            ("content", with(1, content)),
            ("content-refusal", with(1, refused)),
        ]
    }

    pub fn overlay() -> Vec<Seed> {
        let (a, b) = (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
        let mut lying = overlay::wrap(a, b, b"payload");
        lying[44..46].copy_from_slice(&[0xff, 0xff]);
        let mut short = overlay::wrap(a, b, b"payload");
        short[44..46].copy_from_slice(&[0, 7]);
        vec![
            ("wrapped", overlay::wrap(a, b, b"payload")),
            ("padded", [overlay::wrap(a, b, b"payload"), vec![0; 9]].concat()),
            ("wrapped-empty", overlay::wrap(a, b, b"")),
            ("length-too-long", lying),
            ("length-too-short", short),
            ("to-another", overlay::wrap(b, a, b"payload")),
        ]
    }

    pub fn probe() -> Vec<Seed> {
        let mut request = vec![0x01, 1, 0, 0];
        request.extend(1..=76);
        let mut reply = request.clone();
        reply[0] = 0x02;
        vec![("request", request.clone()), ("reply", reply), ("longer", [request, vec![0; 100]].concat())]
    }
}

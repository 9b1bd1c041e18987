//! Golden vectors: the bytes of `docs/protocol.md`, fixed. A change here is a change of the protocol.

mod fixtures;

use std::fmt::Write;
use std::time::Duration;

use fixtures::*;
use meshd::control::membership::{Membership, Merge};
use meshd::identity::*;
use meshd::wire::control::{
    BUCKETS, ControlMessage, Hearing, Hold, Holding, Items, Question, RenewalReply, RevocationSummary, Row, RowRequest,
    Summary, Want, id_bytes,
};
use meshd::wire::gateway::{GatewayHeard, GatewayState, Networks};
use meshd::wire::join::{JoinAttempt, JoinMember, JoinReply, JoinRequest, Joined};
use meshd::wire::probe::{Arrivals, Class, Leg, Probe, ProbeReply, ProbeReport, ProbeRequest};
use meshd::wire::receipts::Receipts;
use meshd::wire::row::{CELL_LEN, Cell, CellPath, CellState, short_id};
use meshd::wire::size_probe::{SizeProbe, SizeProbeKind};
use meshd::wire::{Recipient, introduction, overlay};

/// Reads `name = hex` lines; `#` begins a comment.
fn vector(file: &'static str, name: &str) -> Vec<u8> {
    let line = file
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    let hex = line.unwrap_or_else(|| panic!("no vector `{name}`"));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn assert_vector(file: &'static str, name: &str, made: &[u8]) {
    assert_eq!(hex(made), hex(&vector(file, name)), "{name}");
}

const OBJECTS: &str = include_str!("vectors/objects.txt");
const INTRODUCTION: &str = include_str!("vectors/introduction.txt");
const JOIN: &str = include_str!("vectors/join.txt");
const CONTROL: &str = include_str!("vectors/control.txt");

#[test]
fn signed_objects() {
    assert_vector(OBJECTS, "authority_seed", &[0xa1; 32]);
    assert_vector(OBJECTS, "node1_wireguard_secret", &[1; 32]);
    assert_vector(OBJECTS, "node1_wireguard_public", keys(1).public().wireguard.as_bytes());
    assert_vector(OBJECTS, "node1_signing_seed", &[0x81; 32]);
    assert_vector(OBJECTS, "node1_verifying_key", keys(1).public().verifying.as_bytes());
    assert_vector(OBJECTS, "certificate", certificate(1).bytes());
    let delegated = delegation(&admission(2))
        .issue(&admission(2), &keys(2).public(), &Term::offline(NOW), &anchor(), &keys(1).signing)
        .unwrap();
    assert_vector(OBJECTS, "shared_certificate", shared_certificate().bytes());
    assert_vector(OBJECTS, "shared_delegation", delegation(&sharing(3)).bytes());
    assert_vector(OBJECTS, "delegation", delegation(&admission(2)).bytes());
    assert_vector(OBJECTS, "delegated_certificate", delegated.bytes());
    assert_vector(OBJECTS, "record", signed_record(1).bytes());
    assert_vector(OBJECTS, "revocation", revocation(1).bytes());
    assert_vector(OBJECTS, "request", request(2).bytes());
    // What is stored is also what is read.
    let certificate = SignedCertificate::verify(&vector(OBJECTS, "certificate"), &anchor()).unwrap();
    assert_eq!(certificate.certificate().admission(), admission(1));
    assert!(SignedCertificate::verify(&vector(OBJECTS, "delegated_certificate"), &anchor()).is_ok());
    let shared = SignedCertificate::verify(&vector(OBJECTS, "shared_certificate"), &anchor()).unwrap();
    assert_eq!(shared.certificate().admission(), sharing(3));
    assert!(SignedRecord::verify(&vector(OBJECTS, "record"), certificate.certificate()).is_ok());
    assert!(SignedRevocation::verify(&vector(OBJECTS, "revocation"), &anchor()).is_ok());
    assert!(SignedRequest::verify(&vector(OBJECTS, "request")).is_ok());
}

/// As [`admission`], with its IPv4 prefix shared.
fn sharing(number: u8) -> Admission {
    let shares = [("192.168.7.0/24".parse().unwrap(), Priority::new(110).unwrap())].into_iter().collect();
    Admission { shares, ..admission(number) }
}

fn shared_certificate() -> SignedCertificate {
    authority().issue(&sharing(3), &keys(3).public(), &Term::offline(NOW)).unwrap()
}

#[test]
fn introductions() {
    let made = introduction::seal(
        &keys(2).public().wireguard,
        &certificate(1),
        Some(&signed_record(1)),
        &keys(1).signing,
        NOW,
        true,
        &mut rng(7),
    );
    assert_vector(INTRODUCTION, "receiver_wireguard_secret", &[2; 32]);
    assert_vector(INTRODUCTION, "introduction", &made.unwrap());
    let receiver = keys(2);
    let datagram = vector(INTRODUCTION, "introduction");
    let opened = introduction::open(&Recipient::new(&receiver.wireguard), &anchor(), NOW, &datagram).unwrap();
    assert!(opened.answer_wanted);
    assert_eq!((opened.certificate, opened.record), (certificate(1), Some(signed_record(1))));
}

#[test]
fn joins() {
    assert_eq!(vector(JOIN, "token_text"), token(2).to_text().as_bytes());
    let endpoints = ["203.0.113.5:7655".parse().unwrap()];
    let (datagram, attempt) = JoinAttempt::new(&token(2), &keys(2), &endpoints, NOW, &mut rng(7)).unwrap();
    assert_vector(JOIN, "request", &datagram);
    let contact = keys(1);
    let request = JoinRequest::open(&Recipient::new(&contact.wireguard), &vector(JOIN, "request")).unwrap();
    let member = JoinMember {
        name: "web1".parse().unwrap(),
        wireguard_key: keys(1).public().wireguard,
        endpoint: "203.0.113.1:7655".parse().unwrap(),
    };
    let reply = JoinReply { now: NOW, outcome: Ok(Joined { certificate: certificate(2), members: vec![member] }) };
    assert_vector(JOIN, "reply", &request.reply(&token(2).key(), &reply, &mut rng(8)).unwrap());
    assert_eq!(attempt.open(&vector(JOIN, "reply")), Ok(reply));
}

/// A membership of node 1, with its record, and of node 2, without; node 3 is revoked.
fn membership() -> Membership {
    let mut membership = Membership::new(anchor());
    for number in [1, 2] {
        assert_eq!(membership.merge_verified(certificate(number), NOW), Merge::New);
    }
    assert_eq!(membership.merge_record(record(1).node, signed_record(1).bytes()), Merge::New);
    assert_eq!(membership.merge_revocation(revocation(3).bytes()).0, Merge::New);
    membership
}

#[test]
fn digest_sums() {
    let membership = membership();
    let digest = membership.digest();
    let bucket = digest.buckets[0].to_be_bytes();
    assert_vector(CONTROL, "bucket_0", &bucket);
    assert_eq!(digest.buckets[1..], [0; BUCKETS - 1]);
    assert_vector(CONTROL, "revocations", &digest.revocations.to_be_bytes());
    // The sum is that of the lines, whatever their order.
    let line = |name| u64::from_be_bytes(vector(CONTROL, name).try_into().unwrap());
    assert_eq!(digest.buckets[0], line("line_of_node_1").wrapping_add(line("line_of_node_2")));
    let mut reduced = Membership::new(anchor());
    reduced.merge_verified(certificate(2), NOW);
    assert_vector(CONTROL, "line_of_node_2", &reduced.digest().buckets[0].to_be_bytes());
}

#[test]
fn control_messages() {
    let membership = membership();
    let id = |number| NodeId::from_bytes([number; 16]);
    let (from, to) = ([0; 16], [0x0f; 16]);
    let entries = membership.members().map(|(node, member)| Membership::summary_entry(node, member)).collect();
    let (certificate, record) = (certificate(1).bytes().to_vec(), signed_record(1).bytes().to_vec());
    let messages = [
        ("digest", ControlMessage::Digest(membership.digest())),
        ("summary", ControlMessage::Summary(Summary { from, to, entries })),
        (
            "items",
            ControlMessage::Items(Items {
                certificates: vec![certificate.clone().into()],
                records: vec![record.into()],
                revocations: vec![revocation(3).bytes().to_vec().into()],
            }),
        ),
        (
            "want",
            ControlMessage::Want(Want {
                certificates: vec![id_bytes(id(4))],
                records: vec![id_bytes(id(2)), id_bytes(id(4))],
                revocations: vec![],
            }),
        ),
        ("renewal_request", ControlMessage::RenewalRequest),
        ("renewal_reply", ControlMessage::RenewalReply(RenewalReply { certificate: certificate.into() })),
        (
            "revocation_summary",
            ControlMessage::RevocationSummary(RevocationSummary {
                from: [0; 16],
                to: [0xff; 16],
                nodes: vec![id_bytes(id(3))],
            }),
        ),
        ("question", ControlMessage::Question(Question { node: id_bytes(id(4)) })),
        ("hearing", ControlMessage::Hearing(Hearing { node: id_bytes(id(4)), heard_millis: 900 })),
        ("hold", ControlMessage::Hold(Hold { number: 0x0102_0304, millis: 2_000 })),
        ("holding", ControlMessage::Holding(Holding { number: 0x0102_0304 })),
        ("gateway_state", gateway_state(None)),
        ("gateway_state_failing", gateway_state(failing())),
        ("gateway_heard", gateway_heard(None)),
        ("gateway_heard_failing", gateway_heard(failing())),
        ("row_request", ControlMessage::RowRequest(RowRequest { number: 0x0102_0304 })),
        ("row", ControlMessage::Row(row())),
    ];
    for (name, message) in messages {
        assert_vector(CONTROL, name, &message.encode());
        assert_eq!(ControlMessage::decode(&vector(CONTROL, name)), Ok(message), "{name}");
    }
}

fn failing() -> Option<Networks> {
    Some(["192.168.7.0/24", "fd00:7::/48"].map(|network| network.parse().unwrap()).into_iter().collect())
}

fn gateway_state(failing: Option<Networks>) -> ControlMessage {
    ControlMessage::GatewayState(GatewayState { sequence: 1_767_225_600_001, drained: true, failing })
}

/// Without checks as nodes say it that know of none.
fn gateway_heard(failing: Option<Networks>) -> ControlMessage {
    ControlMessage::GatewayHeard(GatewayHeard { sequence: 1_767_225_600_001, drained: true, failing })
}

/// What node 1 says of two links: one slower than usual, one that is down and was never measured.
fn row() -> Row {
    let slow = Cell {
        peer: short_id(NodeId::from_bytes([2; 16])),
        rtt: Some(Duration::from_micros(12_610)),
        baseline: Some(Duration::from_micros(10_300)),
        loss: Some(0.01),
        jitter: Some(Duration::from_micros(210)),
        state: CellState::Degraded,
        path: CellPath::Direct,
        age: Some(Duration::from_secs(1)),
    };
    let down = Cell {
        peer: short_id(NodeId::from_bytes([4; 16])),
        rtt: None,
        baseline: None,
        loss: None,
        jitter: None,
        state: CellState::Down,
        path: CellPath::None,
        age: None,
    };
    let cells = [slow, down].iter().flat_map(Cell::encode).collect();
    Row { number: 0x0102_0304, part: 0, parts: 1, cell_len: CELL_LEN as u8, cells }
}

#[test]
fn probes() {
    let request = ProbeRequest {
        sequence: 0x0102_0304,
        sent_nanos: 0x1112_1314_1516_1718,
        run: 0x2122_2324,
        health: 2,
        interval_millis: 1_000,
        class: Class::Active,
        report: ProbeReport {
            sequence: 0x0102_0303,
            outward_nanos: -500_000_000,
            homeward_nanos: 510_281_000,
            prober_held: Duration::from_nanos(68_000),
            reflector_held: Duration::from_nanos(54_000),
            late: Some(Leg::Homeward),
            decided: 300,
            lost_outward: 2,
            lost_homeward: 1,
            lost_unknown: 4,
            lost_in_row: 3,
            reordered: 5,
            duplicated: 6,
        },
        arrived: Arrivals { expected: 70_000, accepted: 69_993 },
    };
    let reply = ProbeReply {
        sequence: 0x0102_0304,
        sent_nanos: 0x1112_1314_1516_1718,
        received_nanos: 0x3132_3334_3536_3738,
        held_since_kernel: Duration::from_nanos(122_000),
        held_since_read: Duration::from_nanos(68_000),
        unsteady: true,
        health: 1,
        receipts: Receipts { highest: 0x0102_0305, window: 0xffff_ffff_ffff_fffb, reordered: 7, duplicated: 8 },
        arrived: Arrivals { expected: 80_000, accepted: 79_999 },
    };
    for (name, probe) in [("probe_request", Probe::Request(request)), ("probe_reply", Probe::Reply(reply))] {
        assert_vector(CONTROL, name, &probe.encode());
        assert_eq!(Probe::decode(&vector(CONTROL, name)), Some(probe), "{name}");
    }
}

#[test]
fn size_probes() {
    for (name, kind) in [("size_probe_request", SizeProbeKind::Request), ("size_probe_reply", SizeProbeKind::Reply)] {
        let probe = SizeProbe { kind, size: 80, nonce: 0x2122_2324_2526_2728 };
        assert_vector(CONTROL, name, &probe.encode());
        assert_eq!(SizeProbe::decode(&vector(CONTROL, name)), Some(probe));
    }
}

#[test]
fn overlay_packets() {
    let address = |number| certificate(number).certificate().address_v6;
    let payload = ControlMessage::RenewalRequest.encode();
    assert_vector(CONTROL, "overlay_packet", &overlay::wrap(address(1), address(2), &payload));
    assert_eq!(overlay::unwrap(&vector(CONTROL, "overlay_packet"), address(2)), Some(payload.as_slice()));
}

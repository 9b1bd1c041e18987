//! Control messages, what survives a restart, and the whole engine under any sequence of inputs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use meshd::config::PostQuantum;
use meshd::control::membership::{MAX_MEMBERS, MAX_REVOCATIONS};
use meshd::control::output::Output;
use meshd::control::path::Path;
use meshd::control::snapshot::Snapshot;
use meshd::control::{Arrival, BootstrapPeer, Engine, OwnNode, SessionEvent, Settings};
use meshd::identity::*;
use meshd::time::{Instant, UnixTime};
use meshd::wire::control::{self, ControlMessage, Items};
use meshd::wire::introduction;
use minicbor::bytes::ByteVec;

use super::fixtures::*;
use super::forge::cose;
use super::wire::{introduction_to, join_request_to};

/// Control messages between nodes.
pub fn control_message(data: &[u8]) {
    let Ok(message) = ControlMessage::decode(data) else { return };
    assert!(data.len() <= control::MAX_MESSAGE);
    let written = message.encode();
    // Lists of indefinite length take a byte or two more in the form we write.
    assert!(written.len() <= data.len() + 8);
    if written.len() <= control::MAX_MESSAGE {
        assert_eq!(ControlMessage::decode(&written), Ok(message));
    }
}

/// The saved membership, and an engine that starts from it.
pub fn snapshot(data: &[u8]) {
    let Ok(snapshot) = Snapshot::from_bytes(data) else { return };
    let written = snapshot.to_bytes();
    assert_eq!(Snapshot::from_bytes(&written).as_ref(), Ok(&snapshot));
    let mut run = Run::new(Some(snapshot));
    run.settle();
    run.check();
}

/// An engine that knows two peers, driven by a script: each step is an operation, a length of two bytes, and an argument.
pub fn engine(data: &[u8]) {
    let mut run = Run::new(None);
    run.meet();
    let mut rest = data;
    for _ in 0..48 {
        let Some(([operation, high, low], tail)) = rest.split_first_chunk::<3>() else { break };
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (argument, tail) = tail.split_at(length);
        rest = tail;
        run.step(*operation, argument);
        run.settle();
    }
    run.check();
}

/// An engine of node 1, which holds the authority's key, and its clocks.
struct Run {
    engine: Engine,
    now: Instant,
    wall: UnixTime,
    /// Every node whose revocation was ever held.
    revoked: BTreeSet<NodeId>,
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn source(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 7655))
}

fn start(snapshot: Option<Snapshot>, now: Instant, wall: UnixTime) -> Engine {
    let mut invites = InviteBook::default();
    invites.add(invite(2), NOW).expect("an empty book takes an invite");
    let own =
        OwnNode { keys: keys(1), certificate: certificate(1), anchor: anchor(), authority: Some(authority()), invites };
    let settings = Settings {
        probe_interval: Duration::from_secs(1),
        endpoints: vec![source(1)],
        addresses: vec![source(1).ip(), source(9).ip()],
        mtu: 1_420,
        bootstrap: vec![BootstrapPeer { key: keys(5).public().wireguard, endpoint: source(5) }],
        post_quantum: PostQuantum::On,
        key_renewal: PostQuantum::RENEWAL,
    };
    Engine::new(own, settings, snapshot, [7; 32], now, wall)
}

impl Run {
    fn new(snapshot: Option<Snapshot>) -> Run {
        let now = Instant::from_millis(1_000);
        Run { engine: start(snapshot, now, NOW), now, wall: NOW, revoked: BTreeSet::new() }
    }

    /// Nodes 2 and 3 are members; a session stands with node 2.
    fn meet(&mut self) {
        for number in [2, 3] {
            let taken = self.engine.accept_certificate(certificate(number).bytes(), self.now, self.wall);
            taken.expect("a valid certificate");
        }
        self.engine.handle_session(node(2), SessionEvent::Established { path: Path::to(source(2)) }, self.now);
        self.settle();
    }

    fn message(&mut self, from: u8, payload: &[u8]) {
        let arrival = Arrival::at(node(from), Path::to(source(from)), self.now);
        let _ = self.engine.handle_message(arrival, payload, self.now, self.wall);
    }

    fn items(&mut self, items: Items) {
        let message = ControlMessage::Items(items).encode();
        self.message(2, &message);
    }

    fn step(&mut self, operation: u8, argument: &[u8]) {
        let list = |bytes: Vec<u8>| vec![ByteVec::from(bytes)];
        let first = argument.first().copied().unwrap_or_default();
        let me = keys(1).public().wireguard;
        match operation % 13 {
            0 => self.message(2, argument),
            1 => self.message(3, argument),
            2 => {
                let _ = self.engine.handle_datagram(source(first), argument, self.now, self.wall);
            }
            3 => {
                let datagram = introduction_to(argument, &me);
                let _ = self.engine.handle_datagram(source(4), &datagram, self.now, self.wall);
            }
            4 => {
                let datagram = join_request_to(argument, &me);
                let _ = self.engine.handle_datagram(source(4), &datagram, self.now, self.wall);
            }
            5 => {
                let signed = cose("meshd certificate v1", argument, &authority_secret(0xa1));
                self.items(Items { certificates: list(signed), ..Items::default() });
            }
            6 => {
                let signed = cose("meshd certificate v1", argument, &keys(2).signing);
                self.items(Items { certificates: list(signed), ..Items::default() });
            }
            7 => {
                let subject = keys(1 + first % 4);
                let signed = cose("meshd record v1", argument.get(1..).unwrap_or_default(), &subject.signing);
                self.items(Items { records: list(signed), ..Items::default() });
            }
            8 => {
                let signed = cose("meshd revocation v1", argument, &authority_secret(0xa1));
                self.items(Items { revocations: list(signed), ..Items::default() });
            }
            9 => {
                let pause = argument.iter().take(2).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                // Up to 65 s, so that a script crosses timers but does not live for days.
                let pause = Duration::from_millis(pause);
                (self.now, self.wall) = (self.now + pause, self.wall + pause);
                self.engine.handle_timeout(self.now, self.wall);
            }
            10 => {
                let (peer, path) = (node(first % 5), Path::to(source(first)));
                let event = if first & 0x80 == 0 { SessionEvent::Established { path } } else { SessionEvent::Lost };
                self.engine.handle_session(peer, event, self.now);
            }
            11 => self.engine.handle_roam(node(first % 5), Path::to(source(first)), self.now),
            _ => match first % 4 {
                0 => self.engine.handle_wanted(node(first % 5), self.now),
                1 => self.engine.handle_heard(node(first % 5), self.now),
                3 => self.engine.pull_rows(usize::from(first), self.now),
                _ => self.engine.handle_clock_behind(node(first % 5), self.now, self.wall),
            },
        }
    }

    /// Takes what the engine wants done and checks what must hold for each.
    fn settle(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Message { bytes, .. } => match bytes.first() {
                    Some(&control::KIND) => {
                        assert!(ControlMessage::decode(&bytes).is_ok(), "what is sent can be read");
                    }
                    _ => assert!(bytes.len() <= 65_535),
                },
                Output::Datagram { bytes, .. } => assert!(bytes.len() <= introduction::LONGEST),
                _ => {}
            }
        }
        for gone in &self.revoked {
            assert!(self.engine.membership().get(*gone).is_none(), "a revocation holds for good");
            assert!(self.engine.membership().revocation(*gone).is_some());
        }
        self.revoked.extend(self.engine.membership().revocations().map(|(node, _)| node));
    }

    fn check(&self) {
        let membership = self.engine.membership();
        assert!(membership.len() <= MAX_MEMBERS && self.revoked.len() <= MAX_REVOCATIONS);
        for (node, member) in membership.members() {
            assert_eq!(member.certificate().node, node);
            assert_eq!(membership.by_key(&member.certificate().wireguard_key), Some(node));
            assert!(!membership.is_revoked(&member.certificate));
        }
        let routing = self.engine.routing();
        assert!(routing.entries.windows(2).all(|pair| pair[0] <= pair[1]));
        let saved = self.engine.snapshot();
        assert_eq!(Snapshot::from_bytes(&saved.to_bytes()).as_ref(), Ok(&saved));
        let again = start(Some(saved), self.now, self.wall);
        let at = self.wall.max(membership.floor());
        let ids = |engine: &Engine| engine.membership().revocations().map(|(node, _)| node).collect::<BTreeSet<_>>();
        assert_eq!(ids(&again), ids(&self.engine), "no revocation is lost in a restart");
        for (node, member) in membership.members() {
            let ended = member.certificate.validity(at - meshd::control::membership::EXPIRY_GRACE) == Validity::Expired;
            let kept = again.membership().get(node).is_some_and(|kept| kept.certificate == member.certificate);
            let own = node == self.engine.node();
            assert!(kept || ended || own, "a member is lost in a restart");
        }
        for (node, _) in again.membership().members() {
            assert!(membership.get(node).is_some() || node == self.engine.node(), "a restart makes no members");
        }
    }
}

/// The saved membership of an engine that knows two members and a revoked one.
pub(super) fn filled_snapshot() -> Vec<u8> {
    let mut run = Run::new(None);
    run.meet();
    run.items(Items {
        records: vec![ByteVec::from(signed_record(2).bytes().to_vec())],
        revocations: vec![ByteVec::from(revocation(3).bytes().to_vec())],
        ..Items::default()
    });
    run.settle();
    run.engine.snapshot().to_bytes()
}

/// Inputs to begin with.
pub mod seeds {
    use super::super::forge::payload;
    use super::super::{Seed, with};
    use super::*;
    use meshd::wire::control::{
        BUCKETS, Digest, Hearing, Question, RenewalReply, RevocationSummary, Row, RowRequest, Summary, SummaryEntry,
        Want,
    };
    use meshd::wire::probe::{Probe, ProbeRequest};

    fn messages() -> Vec<Seed> {
        let entry =
            |number: u8| SummaryEntry { node: [number; 16], certificate: NOW.as_secs(), serial: 7, sequence: 3 };
        let ids = |numbers: &[u8]| numbers.iter().map(|number| ByteVec::from(vec![*number; 16])).collect::<Vec<_>>();
        let bytes = |bytes: &[u8]| vec![ByteVec::from(bytes.to_vec())];
        let (from, to) = ([0; 16], [255; 16]);
        let items = Items {
            certificates: bytes(certificate(4).bytes()),
            records: bytes(signed_record(4).bytes()),
            revocations: bytes(revocation(3).bytes()),
        };
        let want = Want { certificates: ids(&[1, 2]), records: ids(&[1, 3]), revocations: ids(&[4]) };
        let row = Row { number: 7, part: 1, parts: 2, cell_len: 20, cells: vec![2; 40] };
        let renewed = RenewalReply { certificate: ByteVec::from(certificate(1).bytes().to_vec()) };
        [
            ("digest", ControlMessage::Digest(Digest { buckets: vec![7; BUCKETS], revocations: u64::MAX })),
            ("summary", ControlMessage::Summary(Summary { from, to, entries: vec![entry(1), entry(2), entry(9)] })),
            ("summary-backwards", ControlMessage::Summary(Summary { from: to, to: from, entries: vec![entry(1)] })),
            ("revocations", ControlMessage::RevocationSummary(RevocationSummary { from, to, nodes: ids(&[2, 9]) })),
            ("items", ControlMessage::Items(items)),
            ("want", ControlMessage::Want(want)),
            ("renewal-request", ControlMessage::RenewalRequest),
            ("renewal-reply", ControlMessage::RenewalReply(renewed)),
            ("question", ControlMessage::Question(Question { node: ids(&[2]).remove(0) })),
            ("hearing", ControlMessage::Hearing(Hearing { node: ids(&[2]).remove(0), heard_millis: 900 })),
            ("row-request", ControlMessage::RowRequest(RowRequest { number: 7 })),
            ("row", ControlMessage::Row(row)),
        ]
        .into_iter()
        .map(|(name, message)| (name, message.encode()))
        .collect()
    }

    pub fn control_message() -> Vec<Seed> {
        let mut seeds = messages();
        seeds.push(("empty", vec![]));
        seeds.push(("newer-type", vec![control::KIND, 0x82, 0x18, 99, 0xa0]));
        seeds.push((
            "newer-field",
            vec![control::KIND, 0x82, 0x04, 0xa4, 0x00, 0x80, 0x01, 0x80, 0x02, 0x80, 0x07, 0x82, 0x01, 0x02],
        ));
        seeds.push(("indefinite", vec![control::KIND, 0x82, 0x04, 0xbf, 0, 0x9f, 0x40, 0xff, 1, 0x80, 2, 0x80, 0xff]));
        seeds.push(("nested", [&[control::KIND, 0x82, 0x05][..], &[0x81; 1000]].concat()));
        seeds.push(("endless-array", [&[control::KIND, 0x82, 0x03, 0xa1, 0x00, 0x9b][..], &[0xff; 8]].concat()));
        seeds
    }

    pub fn snapshot() -> Vec<Seed> {
        let empty = Run::new(None).engine.snapshot().to_bytes();
        vec![("empty", empty), ("filled", filled_snapshot())]
    }

    fn step(operation: u8, argument: &[u8]) -> Vec<u8> {
        [&[operation][..], &(argument.len() as u16).to_be_bytes(), argument].concat()
    }

    pub fn engine() -> Vec<Seed> {
        let say: Vec<u8> = messages().iter().flat_map(|(_, message)| step(0, message)).collect();
        let unknown: Vec<u8> = messages().iter().flat_map(|(_, message)| step(1, message)).collect();
        let request = ProbeRequest { sequence: 1, sent_nanos: 5, ..ProbeRequest::default() };
        let probe = Probe::Request(request).encode();
        let mut ping = probe;
        ping[4] = 0x40;
        let minute = [0xea, 0x60];
        let introduced = super::super::wire::seeds::introduction();
        let joins = super::super::wire::seeds::join_request();
        let delegated = delegation(&Admission { serial: 9, ..admission(3) });
        let delegated = delegated
            .issue(
                &Admission { serial: 9, ..admission(3) },
                &keys(3).public(),
                &Term::offline(NOW),
                &anchor(),
                &keys(1).signing,
            )
            .unwrap();
        let reused = authority()
            .issue(&Admission { serial: 8, ..admission(4) }, &keys(3).public(), &Term::offline(NOW))
            .unwrap();
        let admit = step(5, &payload(certificate(4).bytes()));
        let speak = step(7, &with(3, payload(signed_record(4).bytes())));
        let revoke = |number| step(8, &payload(revocation(number).bytes()));
        let all = |seeds: Vec<Seed>, operation| -> Vec<u8> {
            seeds.iter().flat_map(|(_, seed)| step(operation, seed)).collect()
        };
        vec![
            ("empty", vec![]),
            ("messages", say),
            ("messages-without-session", unknown),
            ("probes", [step(0, &probe), step(0, &ping), step(9, &minute), step(0, &probe)].concat()),
            ("admit-and-speak", [admit.clone(), speak.clone(), step(9, &minute)].concat()),
            ("speak-before-admitted", [speak.clone(), admit.clone(), speak.clone()].concat()),
            ("revoke", [admit.clone(), revoke(4), admit, speak, step(9, &[0xff; 2])].concat()),
            ("revoke-oneself", [revoke(1), step(9, &minute), step(10, &[3])].concat()),
            ("reuse-a-key", [step(5, &payload(reused.bytes())), step(9, &minute)].concat()),
            ("delegated", [step(5, delegated.bytes()), step(6, &payload(delegated.bytes()))].concat()),
            ("introductions", all(introduced, 3)),
            ("joins", all(joins, 4)),
            ("roam", [step(11, &[2]), step(0, &ping), step(10, &[0x82]), step(12, &[2]), step(9, &minute)].concat()),
            (
                "pull-rows",
                [step(12, &[7]), step(9, &minute), step(12, &[255]), step(10, &[0x82]), step(9, &minute)].concat(),
            ),
            ("long-silence", step(9, &[0xff; 2]).repeat(8)),
        ]
    }
}

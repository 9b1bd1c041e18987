//! A backend with fixed answers, for the tests of this room and of `cli`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::mpsc;

use super::*;
use super::{
    CheckedTarget, DrainRequest, DrainStatus, GatewayCheckStatus, GatewayList, GatewayStatus, SharedPrefixStatus,
};
use crate::time::UnixTime;

/// Answers everything from these values.
pub(crate) struct Fake {
    pub status: Status,
    pub ping: Vec<PingLine>,
}

pub(crate) fn time(secs: u64) -> Timestamp {
    Timestamp(UnixTime::from_secs(secs))
}

/// 2026-11-22T14:02:00Z.
pub(crate) const NOW: u64 = 1_795_356_120;

/// A status without peers.
pub(crate) fn empty_status() -> Status {
    Status {
        schema: SCHEMA,
        now: time(NOW),
        node: NodeStatus {
            name: "web1".into(),
            node_id: "0102030405060708090a0b0c0d0e0f10".into(),
            wireguard_key: "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=".into(),
            address_v4: [10, 77, 0, 1].into(),
            address_v6: "fd12:3456:789a::a4d:1".parse().unwrap(),
            prefixes: vec!["10.78.0.0/24".parse().unwrap()],
            interface: "mesh0".into(),
            mtu_bytes: 1420,
            listen: vec!["[::]:7655".parse().unwrap()],
            endpoints: vec!["203.0.113.5:7655".parse().unwrap()],
            version: "0.1.0".into(),
            started: time(NOW - 7_862_400),
            uptime_seconds: 7_862_400 + 14_500,
            certificate: CertificateStatus {
                expires: time(NOW + 300 * 86_400),
                expires_in_seconds: 300 * 86_400,
                serial: 1,
                warning: None,
            },
            observer_health: 0,
            clock_steps: 0,
            confinement: Some(ConfinementStatus {
                landlock: LandlockState::InForce,
                version: Some(7),
                writable: vec!["/var/lib/meshd".into(), "/run/meshd".into(), "/etc/meshd".into()],
                reason: None,
            }),
        },
        mesh: MeshStatus { name: "example".into(), mesh_id: "000102030405060708090a0b0c0d0e0f".into(), members: 1 },
        counts: Counts::default(),
        problems: Vec::new(),
        peers: Vec::new(),
        wireguard: Vec::new(),
        drops: BTreeMap::new(),
    }
}

/// A peer that is well, 10.28 ms away.
pub(crate) fn peer(name: &str, number: u8) -> PeerStatus {
    PeerStatus {
        name: name.into(),
        node_id: format!("{number:032x}"),
        address_v4: [10, 77, 0, number].into(),
        address_v6: format!("fd12:3456:789a::a4d:{number:x}").parse().unwrap(),
        prefixes: Vec::new(),
        state: PeerState::Up,
        since: time(NOW - 7_862_400),
        path: Some(PathStatus {
            kind: PathKind::Direct,
            endpoint: format!("198.51.100.{number}:7655").parse().unwrap(),
            via: None,
        }),
        link: Some(LinkMeasure {
            window_seconds: 300.0,
            rtt_min_seconds: 0.010_11,
            rtt_p50_seconds: 0.010_281,
            rtt_p99_seconds: 0.011_02,
            rtt_max_seconds: 0.014_9,
            jitter_seconds: 0.000_094,
            jitter_forward_seconds: 0.000_051,
            jitter_reverse_seconds: 0.000_078,
            variation_forward_seconds: Some(0.000_02),
            variation_reverse_seconds: Some(0.000_031),
            own_delay_p50_seconds: 0.000_042,
            own_delay_p99_seconds: 0.000_14,
            peer_delay_p50_seconds: 0.000_038,
            peer_delay_p99_seconds: 0.000_12,
            rtt_baseline_seconds: None,
            step_from_seconds: None,
        }),
        loss: Some(LossRatio { lost: 0, sent: 300, ratio: 0.0, low: 0.0, high: 0.012_643 }),
        counts: Some(LinkCounts {
            loss_forward: Some(LossRatio { lost: 0, sent: 300, ratio: 0.0, low: 0.0, high: 0.012_643 }),
            loss_reverse: Some(LossRatio { lost: 0, sent: 300, ratio: 0.0, low: 0.0, high: 0.012_643 }),
            data_loss_forward: Some(LossRatio { lost: 0, sent: 38_000, ratio: 0.0, low: 0.0, high: 0.000_101 }),
            data_loss_reverse: Some(LossRatio {
                lost: 2,
                sent: 41_000,
                ratio: 0.000_049,
                low: 0.000_013,
                high: 0.000_178,
            }),
            ..LinkCounts::default()
        }),
        class: Some(LinkClass::Active),
        probe_interval_seconds: Some(1.0),
        verdict: None,
        reasons: Vec::new(),
        mtu_bytes: 1_420,
        session_age_seconds: Some(97),
        rx_bytes: 1_234_567_890,
        tx_bytes: 98_765,
        rx_packets: 1_000_000,
        tx_packets: 1_024,
        handshakes: 65_520,
        flows_woken: 0,
        record_age_seconds: Some(720),
        certificate_expires: time(NOW + 200 * 86_400),
        pq: Some(PqState::Hybrid),
        pq_keys: 2_184,
        policy: Some(PolicyAgreement::Same),
        drops: BTreeMap::new(),
    }
}

/// A telephone that was heard two seconds ago.
pub(crate) fn phone() -> WireguardStatus {
    WireguardStatus {
        name: "phone".into(),
        public_key: "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=".into(),
        addresses: vec!["10.78.0.2/32".parse().unwrap()],
        carried: vec!["10.78.0.2/32".parse().unwrap()],
        state: WireguardState::Up,
        endpoint: Some("192.0.2.77:40112".parse().unwrap()),
        declared_endpoint: None,
        has_preshared_key: false,
        session_age_seconds: Some(61),
        heard_seconds: Some(2),
        rx_bytes: 48_213,
        tx_bytes: 1_234_567,
        rx_packets: 512,
        tx_packets: 1_311,
        handshakes: 4,
        drops: BTreeMap::from([("foreign_source".to_owned(), 2)]),
    }
}

/// Three peers, all well.
pub(crate) fn healthy_status() -> Status {
    let mut status = empty_status();
    status.peers = vec![peer("db-par-17", 2), peer("db-par-18", 3), peer("web2", 4)];
    status.peers[1].link.as_mut().unwrap().rtt_p50_seconds = 0.000_214;
    status.peers[1].link.as_mut().unwrap().rtt_p99_seconds = 0.000_388;
    status.counts = Counts::of(status.peers.iter().map(|peer| peer.state));
    status.mesh.members = 4;
    status
}

/// One peer of each state, a certificate near its end.
pub(crate) fn troubled_status() -> Status {
    let mut status = healthy_status();
    let mut down = peer("db-par-22", 5);
    (down.state, down.since, down.path, down.link) = (PeerState::Down, time(NOW - 240), None, None);
    down.loss = Some(LossRatio { lost: 60, sent: 60, ratio: 1.0, low: 0.939_83, high: 1.0 });
    (down.session_age_seconds, down.counts, down.pq) = (None, None, None);
    let mut suspect = peer("sto-lim-03", 6);
    (suspect.state, suspect.since) = (PeerState::Suspect, time(NOW - 3));
    suspect.loss = Some(LossRatio { lost: 3, sent: 300, ratio: 0.01, low: 0.003_406, high: 0.028_983 });
    suspect.counts.as_mut().unwrap().loss_forward = suspect.loss;
    suspect.path.as_mut().unwrap().kind = PathKind::Relay;
    suspect.path.as_mut().unwrap().via = Some("db-par-18".into());
    suspect.drops = BTreeMap::from([("replayed".to_owned(), 12), ("foreign_source".to_owned(), 3)]);
    let mut new = peer("web9", 7);
    (new.state, new.since, new.path, new.link, new.loss) = (PeerState::New, time(NOW - 60), None, None, None);
    (new.session_age_seconds, new.record_age_seconds, new.rx_bytes, new.tx_bytes) = (None, None, 0, 0);
    let mut expired = peer("old1", 8);
    (expired.state, expired.since, expired.path, expired.link) = (PeerState::Expired, time(NOW - 86_400), None, None);
    (expired.loss, expired.session_age_seconds) = (None, None);
    expired.certificate_expires = time(NOW - 86_400);
    status.peers = [vec![down, expired, suspect, new], status.peers].concat();
    status.wireguard = vec![phone()];
    status.counts = Counts::of(status.peers.iter().map(|peer| peer.state));
    status.node.certificate.expires = time(NOW + 5 * 86_400);
    status.node.certificate.expires_in_seconds = 5 * 86_400;
    status.node.certificate.warning = Some(Gravity::Warning);
    status.problems = vec![
        Problem {
            gravity: Gravity::Critical,
            kind: "peer_down".into(),
            peer: Some("db-par-22".into()),
            message: "db-par-22 does not answer".into(),
            advice: "look at the host, and whether UDP 7655 reaches it".into(),
            since: Some(time(NOW - 240)),
        },
        Problem {
            gravity: Gravity::Warning,
            kind: "certificate_expires".into(),
            peer: None,
            message: "this node's certificate ends in 5 days".into(),
            advice: "run `meshctl renew`".into(),
            since: None,
        },
    ];
    status.drops = BTreeMap::from([("bad_mac".to_owned(), 4_211)]);
    status
}

/// A whole ping with one loss.
pub(crate) fn ping_lines() -> Vec<PingLine> {
    let reply = |sequence, path_seconds: f64| PingLine::Reply {
        sequence,
        path_seconds,
        // Whole microseconds: what JSON gives back exactly.
        tunnel_seconds: (path_seconds * 1e6 + 130.0).round() / 1e6,
        host_seconds: 0.000_024,
    };
    vec![
        PingLine::Start {
            schema: SCHEMA,
            node: "db-par-17".into(),
            address: "10.77.0.2".into(),
            path: peer("db-par-17", 2).path,
            size_bytes: 128,
        },
        reply(1, 0.012_58),
        PingLine::Lost { sequence: 2 },
        reply(3, 0.012_61),
        PingLine::Failed { sequence: 4, reason: "no session".into() },
        PingLine::Summary {
            sent: 3,
            received: 2,
            loss: Some(LossRatio { lost: 1, sent: 3, ratio: 1.0 / 3.0, low: 0.061_5, high: 0.792_3 }),
            path_min_seconds: Some(0.012_58),
            path_p50_seconds: Some(0.012_595),
            path_max_seconds: Some(0.012_61),
            path_jitter_seconds: Some(0.000_002),
            tunnel_adds_p50_seconds: Some(0.000_13),
        },
    ]
}

/// A peer with three paths, one of them dead, and one that nothing is known of.
pub(crate) fn paths() -> PathList {
    let path = |last: u8, local: Option<u8>, in_use: bool, rtt: Option<f64>| PathState {
        kind: PathKind::Direct,
        via: None,
        endpoint: ([198, 51, 100, last], 7655).into(),
        local: local.map(|local| [203, 0, 113, local].into()),
        in_use,
        rtt_seconds: rtt,
        answered: if rtt.is_some() { 20 } else { 0 },
        looks: 20,
        heard_seconds: rtt.map(|_| 12.3),
        cost_seconds: rtt,
    };
    let peer = |name: &str, chosen, paths| PeerPaths {
        name: name.into(),
        node_id: "00112233445566778899aabbccddeeff".into(),
        chosen,
        since: chosen.map(|_| time(NOW - 3_700)),
        paths,
    };
    let of_db1 = vec![
        path(2, Some(5), true, Some(0.010_31)),
        path(3, Some(5), false, Some(0.024_9)),
        path(2, Some(6), false, None),
        PathState { kind: PathKind::Relay, via: Some("web1".into()), ..path(9, None, false, Some(0.031_2)) },
    ];
    let peers = vec![peer("db1", Some(PathReason::Silence), of_db1), peer("web9", None, Vec::new())];
    PathList { schema: SCHEMA, now: time(NOW), peers }
}

/// A link in use, one that short connections use, one that was left, one nobody knows of yet, and one that fell silent.
pub(crate) fn ledger() -> LinkLedger {
    let day = 86_400;
    let ends = |near: u16, far: u16, protocol: &str, opened_near| ConnectionEnds {
        near: ([10, 77, 0, 1], near).into(),
        near_name: Some("app1".into()),
        far: ([192, 0, 2, 9], far).into(),
        far_name: None,
        protocol: protocol.into(),
        opened_near,
    };
    let named = |ends: ConnectionEnds, name: &str| ConnectionEnds { far_name: Some(name.into()), ..ends };
    let connection = |ends, age, silent, bytes| LedgerConnection {
        ends,
        began: time(NOW - age),
        last: time(NOW - silent),
        sent_bytes: bytes,
        received_bytes: 7 * bytes,
    };
    let link = |name: &str, can_go, last: Option<u64>| LinkUsage {
        name: name.into(),
        node_id: format!("{name:x<32}"),
        can_go,
        watched_since: time(NOW - 90 * day),
        last: last.map(|ago| time(NOW - ago)),
        last_connection: last.map(|_| named(ends(41_234, 3_306, "tcp", Some(true)), name)),
        connections: Vec::new(),
        ended: Vec::new(),
    };
    let db_old = LinkUsage {
        connections: vec![
            connection(named(ends(41_234, 3_306, "tcp", Some(true)), "db-old"), 41 * day, 2, 987_654_321),
            connection(ends(22, 50_022, "tcp", Some(false)), 3_700, 60, 12_345),
            connection(ends(123, 123, "udp", None), 600, 5, 760),
        ],
        ended: vec![connection(named(ends(40_001, 3_306, "tcp", None), "db-old"), 9 * day, day, 1_000)],
        ..link("db-old", CanGo::No, Some(2))
    };
    let silent = vec![connection(named(ends(50_000, 5_432, "tcp", None), "pg1"), 30 * day, 3 * day, 1)];
    LinkLedger {
        schema: SCHEMA,
        now: time(NOW),
        evicted: 0,
        left_out: 0,
        links: vec![
            db_old,
            LinkUsage { watched_since: time(NOW - 180), ..link("new1", CanGo::Unsure, None) },
            LinkUsage { connections: silent, ..link("pg1", CanGo::Unsure, Some(3 * day)) },
            link("web3", CanGo::No, Some(30)),
            link("web9", CanGo::Yes, Some(9 * day)),
        ],
    }
}

/// Two rules, and two that were refused.
pub(crate) fn policy() -> PolicyInfo {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let rule = |number, from: &[&str], to: &[&str], ports: &[&str], let_in| PolicyRule {
        number,
        from: words(from),
        to: words(to),
        ports: words(ports),
        let_in,
    };
    let denied = |peer: &str, last: u8, service: &str, packets, ago| PolicyDenial {
        peer: peer.into(),
        source: [10, 77, 0, last].into(),
        destination: [10, 77, 0, 1].into(),
        service: service.into(),
        packets,
        last: time(NOW - ago),
    };
    PolicyInfo {
        schema: SCHEMA,
        now: time(NOW),
        restricted: true,
        rules: vec![
            rule(1, &["tag:app"], &["tag:db"], &["tcp/3306"], 8_112),
            rule(2, &["any"], &[], &["icmp", "tcp/22"], 3),
        ],
        connections: 12,
        connections_limit: 65_536,
        refused_packets: 43,
        denied: vec![denied("web9", 9, "tcp/3306", 41, 12), denied("old1", 7, "udp/161", 2, 7_200)],
    }
}

/// MySQL is allowed by the first rule, nothing else is.
pub(crate) fn policy_checked(request: &PolicyCheckRequest) -> PolicyChecked {
    let allowed = request.service == "tcp/3306";
    let (source, destination) = ([10, 77, 0, 9].into(), [10, 77, 0, 1].into());
    let verdict = PolicyVerdict { source, destination, allowed, rule: allowed.then_some(1), here: true };
    PolicyChecked { schema: SCHEMA, restricted: true, verdicts: vec![verdict] }
}

/// Names of each kind, and a server that a stranger asked.
pub(crate) fn names() -> NameList {
    let entry = |name: &str, addresses: &[&str], alias_of: Option<&str>| NameEntry {
        name: name.into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        alias_of: alias_of.map(str::to_owned),
    };
    NameList {
        schema: SCHEMA,
        now: time(NOW),
        suffix: "prod".into(),
        listen: Some("10.77.0.1:53".parse().unwrap()),
        failure: None,
        resolver: Some("hosts".into()),
        resolver_failure: None,
        questions: Some(NameQuestions { answered: 1_204, strangers: 2, too_many: 0, malformed: 0 }),
        names: vec![
            entry("db1.prod", &["10.77.0.2", "fd12:3456:789a::a4d:2"], None),
            entry("orders.forward.prod", &["192.0.2.7"], Some("192.0.2.7")),
            entry("reports.prod", &[], Some("db9")),
        ],
    }
}

/// A lock-down that is configured and was never confirmed.
pub(crate) fn lockdown(phase: LockdownPhase) -> LockdownInfo {
    LockdownInfo {
        schema: SCHEMA,
        phase,
        configured: Some(vec!["tcp/22 from 203.0.113.0/24".into()]),
        confirmed: None,
        trial_ends_seconds: None,
        tables: Vec::new(),
        closed_packets: 0,
        failure: None,
    }
}

/// A forward that was switched by hand, away from a target that is down.
pub(crate) fn certificates() -> Certificates {
    use crate::identity::testing::{authority, certificate};
    let of = |number: u8| {
        let signed = certificate(number);
        let shown = signed.certificate();
        MemberCertificate {
            name: shown.name.to_string(),
            node_id: shown.node.to_string(),
            authority: signed.root().to_string(),
            expires: shown.not_after.into(),
            is_self: number == 1,
            certificate: STANDARD.encode(signed.bytes()),
        }
    };
    let authorities = vec![authority().public().to_string()];
    Certificates { schema: SCHEMA, authorities, certificates: vec![of(1), of(2)] }
}

pub(crate) fn gateways() -> GatewayList {
    let now = Timestamp(UnixTime::from_secs(1_795_359_722));
    let before = |seconds: u64| Timestamp(UnixTime::from_secs(1_795_359_722 - seconds));
    let gateway = |name: &str, priority, fitness: &str, since, returns_in_seconds| GatewayStatus {
        name: name.into(),
        node_id: "ab".repeat(16),
        priority,
        is_self: name == "web1",
        fitness: fitness.into(),
        since,
        returns_in_seconds,
    };
    let prefix = |prefix: &str, carrier: Option<&str>, gateways| SharedPrefixStatus {
        prefix: prefix.parse().unwrap(),
        carrier: carrier.map(Into::into),
        cause: carrier.map(|_| "silence".into()),
        since: carrier.map(|_| before(85)),
        gateways,
    };
    GatewayList {
        schema: SCHEMA,
        now,
        node: "web1".into(),
        prefixes: vec![
            prefix(
                "10.20.0.0/16",
                Some("gw2"),
                vec![
                    gateway("gw1", 110, "fit", Some(before(25)), Some(275)),
                    gateway("gw2", 100, "fit", Some(before(7_300)), None),
                ],
            ),
            prefix(
                "10.30.0.0/16",
                None,
                vec![gateway("gw2", 100, "fit", None, None), gateway("web1", 100, "drained", None, None)],
            ),
        ],
        drain: Some(DrainStatus { since: before(40), flows: 3, bytes: 1_204_000, quiet_seconds: 4.2, safe: false }),
        checks: vec![GatewayCheckStatus {
            prefix: "10.30.0.0/16".parse().unwrap(),
            failing: false,
            since: None,
            targets: vec![
                checked("10.30.0.5:3306", Some(true), None, Some(0.000_3)),
                checked("10.30.0.6", Some(false), Some("no answer within 300 ms"), None),
            ],
        }],
    }
}

fn checked(target: &str, answers: Option<bool>, failure: Option<&str>, answer_seconds: Option<f64>) -> CheckedTarget {
    CheckedTarget { target: target.into(), answers, failure: failure.map(Into::into), answer_seconds }
}

/// Two forwards.
pub(crate) fn forwards() -> ForwardList {
    let target = |target: &str, in_use, health, open| ForwardTarget {
        target: target.into(),
        address: Some("10.77.0.5:3306".parse().unwrap()),
        in_use,
        health,
        failure: (health == TargetHealth::Down).then(|| "Connection refused (os error 111)".into()),
        open,
        opened: 41_000 + open,
        failed: 3,
        to_target_bytes: 1_234_567,
        to_client_bytes: 98_765_432,
        connect_p50_seconds: Some(0.010_4),
        connect_p99_seconds: Some(0.012_9),
    };
    let connection = ForwardConnection {
        client: "127.0.0.1:51200".parse().unwrap(),
        target: "db1:3306".into(),
        age_seconds: 7_862_400,
        idle_seconds: 4,
        to_target_bytes: 1_024,
        to_client_bytes: 4_096,
    };
    let orders = ForwardStatus {
        name: "orders".into(),
        listen: vec!["127.0.0.1:3306".parse().unwrap()],
        target: "db2:3306".into(),
        pinned: true,
        differs: true,
        switched: Some(time(NOW - 90)),
        previous: Some("db1:3306".into()),
        refused: 0,
        targets: vec![target("db1:3306", false, TargetHealth::Down, 1), target("db2:3306", true, TargetHealth::Up, 12)],
        connections: vec![connection],
    };
    ForwardList { schema: SCHEMA, now: time(NOW), forwards: vec![orders] }
}

/// Four nodes on two sites: one link slower than usual, one that the two ends see differently, one node that is silent.
pub(crate) fn matrix() -> Matrix {
    let nodes = [("db1", Some("par")), ("web1", Some("gra")), ("web2", Some("gra")), ("old1", None)];
    let mut nodes: Vec<MatrixNode> = nodes
        .iter()
        .enumerate()
        .map(|(at, (name, site))| MatrixNode {
            name: (*name).into(),
            node_id: format!("{at:032x}"),
            site: site.map(str::to_owned),
            is_self: *name == "web1",
        })
        .collect();
    nodes.sort_by_key(|node| (node.site.is_none(), node.site.clone(), node.name.clone()));
    // web1, web2, db1, old1.
    let row = |rtts: [Option<f64>; 4]| MatrixRow {
        age_seconds: Some(2.0),
        missing: None,
        rtt_seconds: rtts.to_vec(),
        baseline_seconds: rtts.map(|rtt| rtt.map(|rtt| if rtt == 0.012_61 { 0.010_3 } else { rtt })).to_vec(),
        loss_ratio: rtts.map(|rtt| rtt.map(|_| 0.0)).to_vec(),
        jitter_seconds: rtts.map(|rtt| rtt.map(|_| 0.000_094)).to_vec(),
        state: rtts.map(|rtt| rtt.map(|_| PeerState::Up)).to_vec(),
        path: rtts.map(|rtt| rtt.map(|_| PathKind::Direct)).to_vec(),
        measured_seconds: rtts.map(|rtt| rtt.map(|_| 1)).to_vec(),
        outside: (0..).zip(rtts).filter(|(_, rtt)| *rtt == Some(0.012_61)).map(|(at, _)| at).collect(),
        disagrees: Vec::new(),
    };
    let mut rows = vec![
        row([None, Some(0.000_21), Some(0.012_61), None]),
        row([Some(0.000_21), None, Some(0.010_28), None]),
        row([Some(0.012_61), Some(0.014_4), None, None]),
        row([None; 4]),
    ];
    rows[1].disagrees = vec![2];
    rows[2].disagrees = vec![1];
    for (at, state) in [(0, PeerState::Down), (1, PeerState::Down), (2, PeerState::Suspect)] {
        rows[at].state[3] = Some(state);
        rows[at].loss_ratio[3] = Some(1.0);
    }
    rows[3].age_seconds = Some(312.0);
    rows[3].missing = Some(RowMissing::NoSession);
    Matrix { schema: SCHEMA, now: time(NOW), nodes, rows }
}

/// The same by site.
pub(crate) fn site_matrix() -> SiteMatrix {
    let site = |name: Option<&str>, nodes| Site { name: name.map(str::to_owned), nodes };
    let pair = |links, troubled, outside, disagreeing, rtt: Option<f64>| SitePair {
        links,
        troubled,
        outside,
        disagreeing,
        rtt_p50_seconds: rtt,
        rtt_max_seconds: rtt,
        baseline_seconds: rtt,
        loss_max_ratio: rtt.map(|_| 0.0),
    };
    SiteMatrix {
        schema: SCHEMA,
        now: time(NOW),
        nodes: 4,
        rows: 3,
        missing: 1,
        oldest_seconds: Some(2.0),
        sites: vec![site(Some("gra"), 2), site(Some("par"), 1), site(None, 1)],
        pairs: vec![
            vec![pair(2, 0, 0, 0, Some(0.000_21)), pair(2, 0, 1, 1, Some(0.012_61)), pair(2, 2, 0, 0, None)],
            vec![pair(2, 0, 1, 1, Some(0.014_4)), SitePair::default(), pair(1, 1, 0, 0, None)],
            vec![SitePair::default(); 3],
        ],
    }
}
/// Three hours of the link to db-par-17: a good one, one in which it took a step and was down for a minute, and a gap.
pub(crate) fn history() -> History {
    let spread = |p50: f64| Spread {
        min_seconds: p50 - 0.000_2,
        mean_seconds: p50 + 0.000_05,
        p5_seconds: p50 - 0.000_1,
        p25_seconds: p50 - 0.000_05,
        p50_seconds: p50,
        p75_seconds: p50 + 0.000_05,
        p95_seconds: p50 + 0.000_22,
        p99_seconds: p50 + 0.000_6,
        max_seconds: p50 + 0.038,
    };
    let none = HistoryPoint {
        start: time(NOW / 3_600 * 3_600 - 10_800),
        gap: true,
        partial: true,
        probes_sent: 0,
        probes_answered: 0,
        probes_late: 0,
        probes_slow: 0,
        probes_lost_in_outages: 0,
        probes_duplicate: 0,
        probes_reordered: 0,
        longest_loss_run: 0,
        path: None,
        tunnel: None,
        host_delay: None,
        loss: None,
        loss_forward: None,
        loss_reverse: None,
        data_loss_forward: None,
        data_loss_reverse: None,
        own_delay_mean_seconds: None,
        jitter_seconds: None,
        jitter_forward_seconds: None,
        jitter_reverse_seconds: None,
        states: StateSeconds::default(),
        outage_seconds: 0.0,
        path_changes: 0,
        handshakes: 0,
        rx_bytes: 0,
        tx_bytes: 0,
    };
    let lost = |lost: u64, sent: u64| {
        let ratio = lost as f64 / sent as f64;
        Some(LossRatio { lost, sent, ratio, low: ratio * 0.6, high: (ratio * 1.6).max(0.001_1) })
    };
    let good = HistoryPoint {
        start: time(NOW / 3_600 * 3_600 - 7_200),
        gap: false,
        partial: false,
        probes_sent: 3_600,
        probes_answered: 3_600,
        path: Some(spread(0.010_31)),
        tunnel: Some(spread(0.010_44)),
        host_delay: Some(spread(0.000_31)),
        loss: lost(0, 3_600),
        loss_forward: lost(0, 3_600),
        loss_reverse: lost(0, 3_600),
        data_loss_forward: lost(0, 1_000_000),
        data_loss_reverse: lost(40, 1_000_000),
        own_delay_mean_seconds: Some(0.000_04),
        jitter_seconds: Some(0.000_03),
        jitter_forward_seconds: Some(0.000_02),
        jitter_reverse_seconds: Some(0.000_02),
        states: StateSeconds { up: 3_600.0, ..StateSeconds::default() },
        handshakes: 30,
        rx_bytes: 123_456,
        tx_bytes: 65_432,
        ..none.clone()
    };
    let mut bad =
        HistoryPoint { start: time(NOW / 3_600 * 3_600 - 3_600), path: Some(spread(0.012_6)), ..good.clone() };
    bad.states = StateSeconds { up: 1_680.0, degraded: 60.0, suspect: 2.0, down: 58.0, ..StateSeconds::default() };
    (bad.probes_sent, bad.probes_answered, bad.longest_loss_run) = (1_830, 1_768, 61);
    (bad.loss, bad.loss_forward, bad.loss_reverse) = (lost(62, 1_830), lost(62, 1_830), lost(0, 1_768));
    bad.partial = true;
    (bad.probes_lost_in_outages, bad.outage_seconds) = (61, 60.0);
    History {
        schema: SCHEMA,
        peer: "db-par-17".into(),
        node_id: format!("{:032x}", 2),
        since: none.start,
        until: time(NOW / 3_600 * 3_600),
        step_seconds: 3_600,
        tier_seconds: 600,
        baseline_seconds: Some(0.010_3),
        points: vec![none.clone(), good.clone(), bad.clone()],
        total: HistoryPoint { path: Some(spread(0.010_4)), loss: lost(62, 5_430), states: bad.states, ..good },
    }
}

/// What happened in those hours.
pub(crate) fn event_items() -> Vec<EventItem> {
    let event = |sequence, ago: u64, kind: &str, peer: Option<&str>, text: &str| EventItem {
        sequence,
        at: time(NOW / 3_600 * 3_600 - ago),
        kind: kind.into(),
        peer: peer.map(str::to_owned),
        text: text.into(),
    };
    vec![
        event(41, 7_300, "started", None, "meshd 0.1.0 started"),
        event(42, 3_000, "latency_step", Some("db-par-17"), "10.30 ms to 12.61 ms, on the way back"),
        event(43, 1_200, "down", Some("db-par-17"), "Suspect to Down"),
        event(44, 1_142, "up", Some("db-par-17"), "Down to Up"),
    ]
}

impl Backend for Fake {
    async fn status(&self) -> Answer<Status> {
        Ok(self.status.clone())
    }

    async fn node(&self) -> Answer<NodeInfo> {
        let (node, mesh) = (&self.status.node, &self.status.mesh);
        Ok(NodeInfo {
            schema: SCHEMA,
            name: node.name.clone(),
            node_id: node.node_id.clone(),
            wireguard_key: node.wireguard_key.clone(),
            verifying_key: "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".into(),
            mesh_name: mesh.name.clone(),
            mesh_id: mesh.mesh_id.clone(),
            overlay_v4: "10.77.0.0/16".parse().unwrap(),
            overlay_v6: "fd12:3456:789a::/64".parse().unwrap(),
            authorities: vec!["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".into()],
            endpoints: node.endpoints.clone(),
            holds_authority: false,
        })
    }

    async fn members(&self) -> Answer<Members> {
        let member = |peer: &PeerStatus| Member {
            name: peer.name.clone(),
            node_id: peer.node_id.clone(),
            wireguard_key: self.status.node.wireguard_key.clone(),
            verifying_key: "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".into(),
            address_v4: peer.address_v4,
            address_v6: peer.address_v6,
            prefixes: vec!["192.0.2.0/24".parse().unwrap()],
            tags: vec!["db".into()],
            endpoints: vec!["198.51.100.2:7655".parse().unwrap()],
            certificate_expires: peer.certificate_expires,
            protocol_version: Some(1),
            relays: peer.name == "web2",
            revoked: peer.name == "old1",
            is_self: false,
        };
        Ok(Members { schema: SCHEMA, members: self.status.peers.iter().map(member).collect() })
    }

    async fn matrix(&self) -> Answer<Matrix> {
        Ok(matrix())
    }

    async fn site_matrix(&self) -> Answer<SiteMatrix> {
        Ok(site_matrix())
    }

    async fn paths(&self) -> Answer<PathList> {
        Ok(paths())
    }

    async fn ledger(&self) -> Answer<LinkLedger> {
        Ok(ledger())
    }

    async fn policy(&self) -> Answer<PolicyInfo> {
        Ok(policy())
    }

    async fn policy_check(&self, request: PolicyCheckRequest) -> Answer<PolicyChecked> {
        Ok(policy_checked(&request))
    }

    async fn certificates(&self) -> Answer<Certificates> {
        Ok(certificates())
    }

    async fn take_certificates(&self, request: CertificatesRequest) -> Answer<CertificatesTaken> {
        Ok(CertificatesTaken { schema: SCHEMA, taken: request.certificates.len() as u64 })
    }

    async fn gateways(&self) -> Answer<GatewayList> {
        Ok(gateways())
    }

    async fn drain(&self, request: DrainRequest) -> Answer<GatewayList> {
        if request.node.is_some_and(|node| node != "web1") {
            return Err(ApiError::new(ErrorKind::NotFound, "this node is web1"));
        }
        let list = gateways();
        Ok(GatewayList { drain: list.drain.filter(|_| !request.undo), ..list })
    }

    async fn lockdown(&self) -> Answer<LockdownInfo> {
        Ok(lockdown(LockdownPhase::Open))
    }

    async fn try_lockdown(&self, request: LockdownTrialRequest) -> Answer<LockdownInfo> {
        Ok(LockdownInfo { trial_ends_seconds: Some(request.seconds), ..lockdown(LockdownPhase::Trial) })
    }

    async fn confirm_lockdown(&self) -> Answer<LockdownInfo> {
        Err(ApiError::new(ErrorKind::Conflict, "there is no trial"))
    }

    async fn lift_lockdown(&self) -> Answer<LockdownInfo> {
        Ok(lockdown(LockdownPhase::Off))
    }

    async fn policy_trace(&self, _: PolicyTraceRequest) -> Answer<mpsc::Receiver<TraceLine>> {
        let lines = trace_lines();
        let (send, receive) = mpsc::channel(lines.len());
        for line in lines {
            send.try_send(line)
                .map_err(|_| ApiError::new(ErrorKind::Internal, "the channel has room for all lines"))?;
        }
        Ok(receive)
    }

    async fn forwards(&self) -> Answer<ForwardList> {
        Ok(forwards())
    }

    async fn names(&self) -> Answer<NameList> {
        Ok(names())
    }

    async fn switch_forward(&self, request: SwitchRequest) -> Answer<Switched> {
        if request.forward != "orders" {
            return Err(ApiError::new(ErrorKind::NotFound, format!("there is no forward `{}`", request.forward)));
        }
        let to = request.to.unwrap_or_else(|| "db1:3306".into());
        Ok(Switched { schema: SCHEMA, forward: request.forward, from: "db2:3306".into(), to, old_connections: 1 })
    }

    async fn health(&self) -> Answer<Health> {
        let problems = self.status.problems.clone();
        Ok(Health { schema: SCHEMA, healthy: problems.is_empty(), problems })
    }

    async fn version(&self) -> Answer<Version> {
        Ok(Version { schema: SCHEMA, version: "0.1.0".into(), protocol_version: 1, restarts: 0 })
    }

    async fn ping(&self, request: PingRequest) -> Answer<mpsc::Receiver<PingLine>> {
        if !self.status.peers.iter().any(|peer| peer.name == request.node) {
            return Err(ApiError::new(ErrorKind::NotFound, format!("there is no peer `{}`", request.node))
                .advise("`meshctl members` lists them"));
        }
        let (sender, receiver) = mpsc::channel(16);
        for line in &self.ping {
            sender.try_send(line.clone()).unwrap();
        }
        Ok(receiver)
    }

    async fn history(&self, request: HistoryRequest) -> Answer<History> {
        if request.peer == "db-par-17" {
            return Ok(history());
        }
        Err(ApiError::new(ErrorKind::NotFound, format!("there is no peer `{}`", request.peer)))
    }

    async fn events(&self, request: EventsRequest) -> Answer<Events> {
        let mut events = event_items();
        events.retain(|event| request.peer.is_none() || event.peer == request.peer);
        events.retain(|event| request.since.is_none_or(|since| event.at >= since));
        Ok(Events { schema: SCHEMA, events, truncated: false })
    }

    async fn invite(&self, request: InviteRequest) -> Answer<Invited> {
        Ok(Invited {
            schema: SCHEMA,
            invite: "aa".repeat(16),
            name: request.name,
            address: request.address.unwrap_or([10, 77, 0, 9].into()),
            expires: time(NOW + request.lifetime_seconds),
            token: "meshd1-dG9rZW4".into(),
        })
    }

    async fn invites(&self) -> Answer<InviteList> {
        let invite = |name: &str, state| InviteSummary {
            invite: "aa".repeat(16),
            name: name.into(),
            address: [10, 77, 0, 9].into(),
            state,
            expires: time(NOW + 3_600),
        };
        Ok(InviteList {
            schema: SCHEMA,
            invites: vec![invite("web9", InviteState::Open), invite("db1", InviteState::Used)],
        })
    }

    async fn revoke_invite(&self, request: InviteRevokeRequest) -> Answer<InviteRevoked> {
        let mut list = self.invites().await?.invites;
        match list.iter().position(|invite| invite.name == request.invite) {
            Some(at) => Ok(InviteRevoked { schema: SCHEMA, invite: list.remove(at) }),
            None => Err(ApiError::new(ErrorKind::NotFound, format!("there is no invite `{}`", request.invite))),
        }
    }

    async fn revoke(&self, request: RevokeRequest) -> Answer<Revoked> {
        Ok(Revoked {
            schema: SCHEMA,
            name: request.node,
            node_id: "0".repeat(32),
            addresses: vec![[10, 77, 0, 8].into()],
            sent_to: 3,
        })
    }

    async fn alerts(&self) -> Answer<AlertList> {
        let alert = |rule: &str, what: &str, phase, severity, peer: &str, secs| AlertStatus {
            rule: rule.into(),
            what: what.into(),
            phase,
            severity,
            peer: Some(peer.into()),
            since: time(NOW - secs),
            value: None,
            threshold: None,
            baseline_seconds: None,
            summary: format!("{peer}: {what}"),
            command: format!("meshctl status {peer}"),
            untold: None,
        };
        let mut step =
            alert("latency-step", "latency_step", AlertPhase::Firing, AlertSeverity::Ticket, "db-par-17", 7_260);
        (step.value, step.threshold) = (Some("2.31 ms".into()), Some("1.00 ms".into()));
        step.baseline_seconds = Some(0.010_3);
        let mut down = alert("link-down", "link_down", AlertPhase::Pending, AlertSeverity::Page, "db-par-23", 12);
        down.untold = Some("node-down says it".into());
        let rule = |name: &str, what: &str, threshold: Option<&str>| AlertRule {
            name: name.into(),
            what: what.into(),
            threshold: threshold.map(str::to_owned),
            for_seconds: 30,
        };
        let receiver = |name: &str, kind: &str, place: &str, failure: Option<&str>| ReceiverStatus {
            name: name.into(),
            kind: kind.into(),
            place: place.into(),
            delivered: 12,
            failed: if failure.is_some() { 7 } else { 0 },
            dropped: 0,
            queued: u64::from(failure.is_some()),
            last_success: Some(time(NOW - 240)),
            failure: failure.map(str::to_owned),
        };
        Ok(AlertList {
            schema: SCHEMA,
            now: time(NOW),
            alerts: vec![
                alert("node-down", "node_down", AlertPhase::Firing, AlertSeverity::Page, "db-par-22", 240),
                step,
                down,
            ],
            rules: vec![rule("node-down", "node_down", None), rule("latency-step", "latency_step", Some("1ms"))],
            receivers: vec![
                receiver("ops", "webhook", "https://alerts.example.com", None),
                receiver("pager", "command", "/usr/local/bin/page", Some("it ended with exit status: 3")),
            ],
        })
    }

    async fn test_alert(&self, request: AlertTestRequest) -> Answer<AlertTested> {
        let known = self.alerts().await?.receivers.into_iter().find(|receiver| receiver.name == request.receiver);
        let missing = || ApiError::new(ErrorKind::NotFound, format!("there is no receiver `{}`", request.receiver));
        let place = known.ok_or_else(missing)?.place;
        Ok(AlertTested { schema: SCHEMA, receiver: request.receiver, place, seconds: 0.012 })
    }

    async fn metrics(&self, accept: Option<String>) -> Answer<(&'static str, String)> {
        Ok(("text/plain", format!("accepts {}\n", accept.unwrap_or_default())))
    }

    async fn renew(&self) -> Answer<Renewed> {
        Err(ApiError::new(ErrorKind::Conflict, "no member that issues certificates is reachable"))
    }

    async fn plan(&self) -> Answer<Plan> {
        Ok(plan())
    }

    async fn reload(&self) -> Answer<Plan> {
        match plan().needs_restart() {
            true => Err(ApiError::new(ErrorKind::Conflict, "nothing was taken over: underlay.listen")),
            false => Ok(plan()),
        }
    }

    async fn restart(&self) -> Answer<Restarting> {
        Err(ApiError::new(ErrorKind::Conflict, "not restarted, everything goes on as it was: /usr/sbin/meshd refuses"))
    }
}

/// A change of most kinds.
pub(crate) fn plan() -> Plan {
    let entry = |action, name: &str| PlannedEntry { action, name: name.into() };
    let change = |key: &str, needs_restart, entries| PlannedChange { key: key.into(), needs_restart, entries };
    Plan {
        schema: SCHEMA,
        changes: vec![
            change("underlay.listen", true, Vec::new()),
            change("wireguard", false, vec![entry(PlannedAction::Remove, "phone")]),
            change(
                "allow",
                false,
                vec![
                    entry(PlannedAction::Change, "1: from tag:app to tag:db by tcp/3306"),
                    entry(PlannedAction::Change, "2: from any by icmp"),
                ],
            ),
            change("forward", false, vec![entry(PlannedAction::Add, "orders")]),
            change("probe.interval", false, Vec::new()),
        ],
        touched: vec![TouchedLink { peer: "phone".into(), action: PlannedAction::Remove }],
        untouched: 13,
    }
}

/// A query that was let in, its answer, and a stranger.
pub(crate) fn trace_lines() -> Vec<TraceLine> {
    let packet = |forward: bool, stage, rule, reason: Option<&str>| {
        let ends = [("10.77.0.9", 40_000), ("10.77.0.1", 3_306)];
        let [from, to] = if forward { ends } else { [ends[1], ends[0]] };
        TraceLine::Packet {
            at: time(NOW),
            source: from.0.parse().unwrap(),
            source_port: from.1,
            destination: to.0.parse().unwrap(),
            destination_port: to.1,
            protocol: 6,
            length_bytes: 60,
            stage,
            allowed: reason.is_none(),
            rule,
            reason: reason.map(str::to_owned),
        }
    };
    vec![
        TraceLine::Start { schema: SCHEMA },
        packet(true, PacketStage::New, Some(1), None),
        packet(false, PacketStage::Departing, None, None),
        packet(true, PacketStage::Established, Some(1), None),
        packet(true, PacketStage::New, None, Some("no rule allows it")),
        TraceLine::Summary { allowed: 3, refused: 1, missed: 0 },
    ]
}

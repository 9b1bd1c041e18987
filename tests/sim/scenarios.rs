//! What a mesh must do, whatever happens to it.

use std::time::Duration;

use meshd::control::output::Event;
use meshd::control::probe::LinkState;
use meshd::identity::{
    Authority, Certificate, Record, SignedCertificate, SignedRecord, SignedRevocation, SigningSecret, Term,
    TrustAnchor, VerifyingKey,
};
use meshd::time::UnixTime;
use meshd::wire::control::{BUCKETS, ControlMessage, Digest, Items, Summary, Want, id_bytes};
use meshd::wire::probe::PROBE_LEN;
use minicbor::bytes::ByteVec;
use rand_core::RngCore;

use crate::matrix::sees_every_link;
use crate::mesh::{Mesh, NodeKeysSeed, START, admit};

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn all(mesh: &Mesh) -> Vec<usize> {
    (0..mesh.hosts.len()).collect()
}

/// A mesh in which everybody has started and found everybody.
pub fn formed(seed: u64, count: usize) -> Mesh {
    let mut mesh = Mesh::new(seed, count);
    for host in 0..count {
        mesh.start(host);
    }
    let hosts = all(&mesh);
    let done = mesh.run_until(secs(30), |mesh| mesh.agree(&hosts, count) && mesh.connected(&hosts));
    assert!(done, "seed {seed}: the mesh did not form\n{}", mesh.describe());
    mesh
}

#[test]
fn two_hundred_nodes_agree_within_ten_seconds_of_a_cold_start() {
    let mut mesh = Mesh::new(1, 200);
    for host in 0..200 {
        mesh.start(host);
    }
    let hosts = all(&mesh);
    assert!(mesh.run_until(secs(10), |mesh| mesh.agree(&hosts, 200)), "{}", mesh.describe());
    let agreed = mesh.now;
    assert!(mesh.run_until(secs(20), |mesh| mesh.connected(&hosts)), "{}", mesh.describe());
    let busiest = mesh.net.sent.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    println!(
        "200 nodes: all views equal after {agreed:?}, all pairs linked after {:?}, busiest host sent {busiest} bytes",
        mesh.now
    );
    sees_every_link(&mut mesh);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = || {
        let mut mesh = Mesh::new(77, 12);
        mesh.net.loss = 100;
        for host in 0..12 {
            mesh.start(host);
        }
        mesh.run(secs(5));
        mesh.kill(3);
        mesh.net.cuts.extend([(1, 2), (2, 1), (4, 5)]);
        mesh.run(secs(10));
        mesh.start(3);
        mesh.revoke(7, 0);
        mesh.run(secs(10));
        mesh.trace.digest()
    };
    let first = run();
    println!("trace: {first}");
    assert_eq!(first, run());
}

#[test]
fn a_mesh_forms_although_every_fifth_packet_is_lost() {
    for seed in 10..15 {
        let mut mesh = Mesh::new(seed, 10);
        mesh.net.loss = 200;
        for host in 0..10 {
            mesh.start(host);
        }
        let hosts = all(&mesh);
        // Probes get lost as well, so that all links answer at one instant only now and then: each must have answered once.
        let done = mesh.run_until(secs(60), |mesh| {
            mesh.agree(&hosts, 10) && hosts.iter().all(|host| mesh.hosts[*host].reached.len() == 9)
        });
        assert!(done, "seed {seed}: {}", mesh.describe());
    }
}

#[test]
fn a_node_joins_a_running_mesh() {
    let mut mesh = Mesh::new(21, 20);
    for host in 0..19 {
        mesh.start(host);
    }
    mesh.run(secs(20));
    mesh.start(19);
    let before = mesh.now;
    let hosts = all(&mesh);
    assert!(mesh.run_until(secs(3), |mesh| mesh.agree(&hosts, 20) && mesh.connected(&hosts)), "{}", mesh.describe());
    println!("a new node reached all 19 others after {:?}", mesh.now.saturating_since(before));
}

#[test]
fn a_quiet_node_probes_all_its_links_in_few_wakings() {
    let mut mesh = formed(23, 20);
    mesh.run(secs(20));
    let before: Vec<(u64, u64)> =
        mesh.hosts.iter().zip(&mesh.net.sent).map(|(host, sent)| (host.woken, sent.0)).collect();
    mesh.run(secs(60));
    let after = mesh.hosts.iter().zip(&mesh.net.sent).map(|(host, sent)| (host.woken, sent.0));
    let spent: Vec<(u64, u64)> = before.iter().zip(after).map(|(a, b)| (b.0 - a.0, b.1 - a.1)).collect();
    println!("wakings and packets sent in a minute: {spent:?}");
    for (host, (woken, sent)) in spent.into_iter().enumerate() {
        // 19 links, a probe or an answer each second on every one of them, probes between 0.9 and 1.1 s apart.
        assert!(sent >= 19 * 54, "host {host} sent {sent} packets in a minute");
        // At most two companies a second, and the housekeeping of the mesh.
        assert!(woken <= 60 * 3, "host {host} woke {woken} times in a minute");
    }
}

#[test]
fn every_node_restarts_while_the_bootstrap_node_is_dead() {
    let mut mesh = formed(31, 10);
    mesh.kill(0);
    let rest: Vec<usize> = (1..10).collect();
    for host in &rest {
        mesh.kill(*host);
    }
    mesh.run(secs(5));
    for host in &rest {
        mesh.start(*host);
    }
    assert!(mesh.run_until(secs(10), |mesh| mesh.connected(&rest)), "{}", mesh.describe());
}

#[test]
fn one_reachable_member_is_enough_to_enter() {
    let mut mesh = Mesh::new(41, 8);
    for host in 1..8 {
        mesh.hosts[host].bootstrap = vec![0, 3];
    }
    mesh.hosts[3].bootstrap = vec![];
    // Host 0, the first in everybody's list, never starts.
    for host in 1..8 {
        mesh.start(host);
    }
    let hosts: Vec<usize> = (1..8).collect();
    assert!(mesh.run_until(secs(10), |mesh| mesh.agree(&hosts, 7) && mesh.connected(&hosts)), "{}", mesh.describe());
}

#[test]
fn a_revoked_node_is_cut_off_everywhere_and_for_good() {
    let mut mesh = formed(51, 20);
    let victim = 7;
    let node = mesh.node(victim);
    let old_disk = mesh.hosts[3].disk.clone();
    mesh.revoke(victim, 4);
    let others: Vec<usize> = (0..20).filter(|host| *host != victim).collect();
    let cut = |mesh: &Mesh| others.iter().all(|host| !mesh.has_tunnel(*host, victim));
    assert!(mesh.run_until(secs(5), cut), "{}", mesh.describe());
    println!("revoked everywhere after {:?}", mesh.now);
    let told = mesh.hosts[victim].events.iter().any(|(_, event)| *event == Event::Revoked);
    assert!(told, "it can tell its operator why it is alone");
    // It goes on asking, with its certificate and a fresh start; a node comes back with a disk from before the revocation.
    mesh.kill(victim);
    mesh.start(victim);
    mesh.kill(3);
    mesh.hosts[3].disk = old_disk;
    mesh.start(3);
    mesh.run(secs(2));
    for _ in 0..60 {
        mesh.run(secs(1));
        assert!(cut(&mesh), "{}", mesh.describe());
    }
    // The whole mesh restarts: the revocation is on every disk.
    for host in &others {
        mesh.kill(*host);
        mesh.start(*host);
    }
    mesh.run(secs(20));
    assert!(cut(&mesh));
    for host in &others {
        let engine = mesh.hosts[*host].engine.as_ref().expect("running");
        assert!(engine.membership().revocation(node).is_some() && engine.membership().get(node).is_none());
    }
}

#[test]
fn a_fresh_certificate_for_revoked_keys_is_refused() {
    let mut mesh = formed(52, 6);
    mesh.revoke(2, 0);
    mesh.run(secs(3));
    // The authority is tricked into signing the same keys under a new name and node id.
    let keys: NodeKeysSeed = mesh.hosts[2].keys;
    let mut rng = mesh.net.rng.clone();
    let term = Term::offline(UnixTime::from_secs(START.as_secs() + 60));
    let again = admit(&mesh.authority, &mut rng, 100, keys, &term);
    let (now, wall) = (mesh.now, mesh.wall(0));
    let engine = mesh.hosts[0].engine.as_mut().expect("running");
    assert!(engine.accept_certificate(again.bytes(), now, wall).is_err());
}

#[test]
fn partitions_heal_by_merging_and_revocations_win() {
    let mut mesh = formed(61, 20);
    let (left, right): (Vec<usize>, Vec<usize>) = (0..20).partition(|host| *host < 10);
    for a in &left {
        for b in &right {
            mesh.net.cuts.extend([(*a, *b), (*b, *a)]);
        }
    }
    mesh.run(secs(30));
    mesh.revoke(5, 1);
    for host in [2, 12] {
        mesh.kill(host);
        mesh.start(host);
    }
    mesh.run(secs(600));
    assert!(right.iter().all(|host| mesh.has_tunnel(*host, 5)), "the other half cannot know yet");
    mesh.net.cuts.clear();
    let honest: Vec<usize> = (0..20).filter(|host| *host != 5).collect();
    let healed = mesh.now;
    let done = mesh.run_until(secs(10), |mesh| {
        mesh.agree(&honest, 19) && honest.iter().all(|host| !mesh.has_tunnel(*host, 5)) && mesh.connected(&honest)
    });
    assert!(done, "{}", mesh.describe());
    println!("merged {:?} after the cut ended", mesh.now.saturating_since(healed));
}

#[test]
fn everybody_restarting_at_once_is_no_storm() {
    let mut mesh = formed(71, 50);
    let hosts = all(&mesh);
    for host in &hosts {
        mesh.kill(*host);
    }
    mesh.net.sent.iter_mut().for_each(|sent| *sent = (0, 0));
    for host in &hosts {
        mesh.start(*host);
    }
    assert!(mesh.run_until(secs(10), |mesh| mesh.agree(&hosts, 50) && mesh.connected(&hosts)), "{}", mesh.describe());
    mesh.run(secs(20));
    let (packets, bytes) = mesh.net.sent.iter().max().copied().unwrap_or_default();
    println!(
        "50 nodes restarted at once: busiest host sent {packets} packets, {bytes} bytes in its first {:?}",
        mesh.now
    );
    // 49 peers, two probes or replies a second for half a minute, and 49 introductions and handshakes: anything above
    // some four times that would be a storm.
    assert!(packets < 49 * 30 * 2 * 4 && bytes < 4 << 20, "{packets} packets, {bytes} bytes");
}

#[test]
fn wrong_clocks_do_not_keep_anyone_out() {
    let mut mesh = Mesh::new(81, 8);
    for (host, skew) in [(1, -86_400), (2, 86_400), (3, -23 * 3600), (4, -800_000_000)] {
        mesh.hosts[host].skew = skew;
    }
    for host in 0..8 {
        mesh.start(host);
    }
    let hosts = all(&mesh);
    assert!(mesh.run_until(secs(15), |mesh| mesh.agree(&hosts, 8) && mesh.connected(&hosts)), "{}", mesh.describe());
    // The one that woke in 2001 steps to the right time and restarts: its newer record still wins.
    mesh.hosts[4].skew = 0;
    mesh.kill(4);
    mesh.start(4);
    assert!(mesh.run_until(secs(15), |mesh| mesh.agree(&hosts, 8) && mesh.connected(&hosts)), "{}", mesh.describe());
    // And the other way round: a clock that falls back a day at a restart, with the state lost, too.
    mesh.hosts[5].skew = -86_400;
    mesh.kill(5);
    mesh.hosts[5].disk = None;
    mesh.start(5);
    assert!(mesh.run_until(secs(30), |mesh| mesh.agree(&hosts, 8) && mesh.connected(&hosts)), "{}", mesh.describe());
}

#[test]
fn an_expired_certificate_ends_its_link_after_the_grace_and_not_before() {
    let mut mesh = formed(91, 4);
    let year = 365 * 86_400;
    // Eleven hours after the certificates ended: links stand, a stranger with such a certificate would not be let in.
    for host in 0..4 {
        mesh.hosts[host].skew = year + 11 * 3600;
    }
    mesh.run(secs(180));
    let hosts = all(&mesh);
    assert!(mesh.connected(&hosts), "{}", mesh.describe());
    for host in 0..4 {
        mesh.hosts[host].skew = year + 25 * 3600;
    }
    mesh.run(secs(180));
    assert!(hosts.iter().all(|a| hosts.iter().all(|b| a == b || !mesh.has_tunnel(*a, *b))), "{}", mesh.describe());
}

#[test]
fn certificates_are_renewed_at_half_their_life_and_no_link_notices() {
    let mut mesh = Mesh::new(95, 6);
    mesh.admit_for_a_month();
    mesh.hosts[0].signs = true;
    for host in 0..6 {
        mesh.start(host);
    }
    let hosts = all(&mesh);
    assert!(mesh.run_until(secs(15), |mesh| mesh.connected(&hosts)), "{}", mesh.describe());
    let first: Vec<_> = hosts.iter().map(|host| mesh.hosts[*host].certificate.certificate().not_after).collect();
    let day = |mesh: &mut Mesh, day: i64| {
        mesh.hosts.iter_mut().for_each(|host| host.skew = day * 86_400);
        mesh.run(secs(400));
    };
    day(&mut mesh, 14);
    let held = |mesh: &Mesh, host: usize| mesh.hosts[host].certificate.certificate().not_after;
    assert!(hosts.iter().all(|host| held(&mesh, *host) == first[*host]), "not before half of a month");
    day(&mut mesh, 16);
    assert!(hosts.iter().all(|host| held(&mesh, *host) > first[*host]), "each has a new one");
    assert!(mesh.agree(&hosts, 6) && mesh.connected(&hosts), "{}", mesh.describe());
    for host in &hosts {
        let disturbed = mesh.hosts[*host].events.iter().any(|(_, event)| {
            matches!(event, Event::Link { to: LinkState::Suspect | LinkState::Down, .. } | Event::PeerGone { .. })
        });
        assert!(!disturbed, "host {host} lost a link over it");
    }
}

#[test]
fn a_liar_changes_nothing_that_honest_nodes_believe() {
    for seed in 100..110 {
        let mut mesh = formed(seed, 8);
        let liar = 5;
        let honest: Vec<usize> = (0..8).filter(|host| *host != liar).collect();
        let before: Vec<_> = honest.iter().map(|host| digest(&mesh, *host)).collect();
        let mut lies = lies(&mut mesh, liar);
        for round in 0..40 {
            for victim in &honest {
                let lie = &lies[round % lies.len()];
                mesh.whisper(liar, *victim, lie);
            }
            mesh.run(Duration::from_millis(100));
            lies.push(random_bytes(&mut mesh));
        }
        mesh.run(secs(5));
        let after: Vec<_> = honest.iter().map(|host| digest(&mesh, *host)).collect();
        assert_eq!(before, after, "seed {seed}");
        assert!(mesh.connected(&honest), "seed {seed}: {}", mesh.describe());
        for host in &honest {
            let states = mesh.hosts[*host].events.iter().filter(|(_, event)| {
                matches!(event, Event::Link { to: LinkState::Suspect | LinkState::Down, .. } | Event::PeerGone { .. })
            });
            assert_eq!(states.count(), 0, "seed {seed}: the lies moved a link of host {host}");
        }
    }
}

/// What `host` believes of everybody.
fn digest(mesh: &Mesh, host: usize) -> Digest {
    mesh.hosts[host].engine.as_ref().expect("running").membership().digest()
}

/// Messages that a member with a valid certificate may try on the others.
fn lies(mesh: &mut Mesh, liar: usize) -> Vec<Vec<u8>> {
    let keys = mesh.hosts[liar].keys.keys();
    let victim = mesh.hosts[1].certificate.clone();
    let engine = mesh.hosts[liar].engine.as_ref().expect("running");
    let theirs = engine.membership().get(victim.certificate().node).expect("known").record.clone().expect("known");
    let forged = Record { sequence: u64::MAX, endpoints: vec![], ..theirs.record().clone() };
    let forged = SignedRecord::sign(&forged, &keys.signing).expect("well-formed");
    let mut flipped = theirs.bytes().to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let mut other_authority_rng = mesh.net.rng.clone();
    let other =
        meshd::identity::Authority::generate("sim", "10.77.0.0/16".parse().expect("valid"), &mut other_authority_rng)
            .expect("valid");
    let foreign = admit(&other, &mut other_authority_rng, 9, mesh.hosts[liar].keys, &Term::offline(START));
    let false_revocation: SignedRevocation = {
        let mut revocation = meshd::identity::Revocation::of(victim.certificate(), START);
        revocation.mesh = other.anchor().mesh;
        other.revoke(&revocation).expect("its own mesh")
    };
    let bytes = |bytes: &[u8]| ByteVec::from(bytes.to_vec());
    let items = |certificates: Vec<ByteVec>, records: Vec<ByteVec>, revocations: Vec<ByteVec>| {
        ControlMessage::Items(Items { certificates, records, revocations }).encode()
    };
    vec![
        items(vec![], vec![bytes(forged.bytes())], vec![]),
        items(vec![], vec![bytes(&flipped)], vec![]),
        items(vec![bytes(foreign.bytes())], vec![], vec![]),
        items(vec![], vec![], vec![bytes(false_revocation.bytes())]),
        ControlMessage::Digest(Digest { buckets: vec![0; BUCKETS], revocations: 0 }).encode(),
        ControlMessage::Summary(Summary { from: [0; 16], to: [255; 16], entries: vec![] }).encode(),
        ControlMessage::Summary(Summary { from: [255; 16], to: [0; 16], entries: vec![] }).encode(),
        ControlMessage::Want(Want { certificates: vec![id_bytes(victim.certificate().node); 60], ..Want::default() })
            .encode(),
        ControlMessage::RenewalRequest.encode(),
        vec![],
        vec![0x01; PROBE_LEN],
        vec![0x02; PROBE_LEN],
        vec![0x10; 1200],
    ]
}

fn random_bytes(mesh: &mut Mesh) -> Vec<u8> {
    let len = mesh.net.rng.next_u32() as usize % 1300;
    let mut bytes = vec![0u8; len];
    mesh.net.rng.fill_bytes(&mut bytes);
    if let Some(first) = bytes.first_mut() {
        *first = if *first < 128 { 0x10 } else { *first };
    }
    bytes
}

#[test]
fn a_member_cannot_make_another_one_shout() {
    let mut mesh = formed(111, 30);
    let (liar, victim) = (5, 1);
    let digest = ControlMessage::Digest(Digest { buckets: vec![0; BUCKETS], revocations: 0 }).encode();
    let before = mesh.net.sent[victim].1;
    for _ in 0..1000 {
        mesh.whisper(liar, victim, &digest);
    }
    mesh.run(Duration::from_millis(200));
    let shouted = mesh.net.sent[victim].1 - before;
    assert!(shouted < 16 << 10, "{shouted} bytes in answer to a thousand digests");
}

#[test]
fn a_cloned_host_is_noticed_and_disturbs_nobody_else() {
    let mut mesh = formed(121, 6);
    // A copy of host 2 starts on the place of a seventh machine, with the same keys and disk.
    let copy = &mesh.hosts[2];
    let (keys, certificate, disk) = (copy.keys, copy.certificate.clone(), copy.disk.clone());
    mesh.add_host(keys, certificate, disk);
    mesh.start(6);
    mesh.run(secs(60));
    let cloned = |host: usize| mesh.hosts[host].events.iter().any(|(_, event)| *event == Event::Cloned);
    assert!(cloned(2) || cloned(6), "{}", mesh.describe());
    let others = [0, 1, 3, 4, 5];
    for host in others {
        let disturbed = mesh.hosts[host].events.iter().any(|(_, event)| {
            matches!(event, Event::Link { node, to: LinkState::Down, .. } if others.iter().any(|o| mesh.node(*o) == *node))
        });
        assert!(!disturbed, "host {host}: {}", mesh.describe());
    }
}

#[test]
fn random_faults_for_many_seeds_end_in_one_connected_mesh() {
    for seed in 1000..1030 {
        let mut mesh = Mesh::new(seed, 9);
        mesh.net.loss = 30;
        for host in 0..9 {
            mesh.start(host);
        }
        let mut revoked: Option<usize> = None;
        for _ in 0..20 {
            let roll = mesh.net.rng.next_u32();
            let (a, b) = ((roll >> 8) as usize % 9, (roll >> 16) as usize % 9);
            match roll % 8 {
                0 => mesh.kill(a),
                1 => {
                    mesh.kill(a);
                    mesh.start(a);
                }
                2 => {
                    mesh.net.cuts.insert((a, b));
                }
                3 => mesh.net.cuts.clear(),
                4 => {
                    mesh.kill(a);
                    mesh.hosts[a].disk = None;
                    mesh.start(a);
                }
                5 => mesh.hosts[a].skew = i64::from(roll % 80_000) - 40_000,
                6 if revoked.is_none() && a != 0 => {
                    let teller = mesh.running().find(|host| *host != a);
                    if let Some(teller) = teller {
                        mesh.revoke(a, teller);
                        revoked = Some(a);
                    }
                }
                _ => {}
            }
            mesh.run(Duration::from_millis(u64::from(roll % 4000)));
        }
        mesh.net.cuts.clear();
        mesh.net.loss = 0;
        if let Some(victim) = revoked {
            // A node that lost its disk before anybody heard of the revocation has lost it: the operator says it again.
            let node = mesh.node(victim);
            let known = |host: usize| {
                mesh.hosts[host].engine.as_ref().is_some_and(|engine| engine.membership().revocation(node).is_some())
            };
            let teller = mesh.running().find(|host| *host != victim);
            let heard = mesh.running().any(known);
            if let (false, Some(teller)) = (heard, teller) {
                mesh.revoke(victim, teller);
            }
        }
        // Host 0 knows nobody by configuration: it is found by the others, so it must run, and so must the rest.
        let honest: Vec<usize> = (0..9).filter(|host| Some(*host) != revoked).collect();
        for host in &honest {
            if mesh.hosts[*host].engine.is_none() {
                mesh.start(*host);
            }
        }
        let done = mesh.run_until(secs(60), |mesh| mesh.agree(&honest, honest.len()) && mesh.connected(&honest));
        assert!(done, "seed {seed}, revoked {revoked:?}: {}", mesh.describe());
        if let Some(victim) = revoked {
            assert!(honest.iter().all(|host| !mesh.has_tunnel(*host, victim)), "seed {seed}");
        }
    }
}

/// The way after the authority's key is lost: another one is trusted beside it, certifies everybody at one node, and then stands
/// alone. A node that learns of it last, and one that was away, come along.
#[test]
fn an_authority_is_exchanged_and_no_link_notices() {
    let mut mesh = formed(81, 12);
    let hosts = all(&mesh);
    let secret = SigningSecret::generate(&mut mesh.net.rng.clone());
    let former = mesh.authority.public();
    let both = vec![former, secret.public()];
    let anchor = TrustAnchor { authorities: both.clone(), ..mesh.authority.anchor().clone() };
    let new = Authority::from_parts(anchor, secret).expect("the anchor names it");
    let (late, away) = (10, 11);
    // Every link has its first answers.
    mesh.run(secs(3));
    let began = mesh.now;
    let trust = |mesh: &mut Mesh, host: usize, authorities: &[VerifyingKey]| {
        let now = mesh.now;
        mesh.command(host, |engine| engine.set_authorities(authorities.to_vec(), now).expect("it rests on one"));
    };
    let rest_on = |mesh: &Mesh, host: usize, key: &VerifyingKey| {
        let engine = mesh.hosts[host].engine.as_ref().expect("running");
        engine.membership().members().filter(|(_, member)| member.certificate.root() == *key).count()
    };
    hosts.iter().filter(|host| **host != late).for_each(|host| trust(&mut mesh, *host, &both));
    for other in hosts.iter().filter(|host| **host != away) {
        mesh.net.cuts.extend([(*other, away), (away, *other)]);
    }
    mesh.run(secs(1));
    let (now, wall) = (mesh.now, mesh.wall(0));
    let certificates: Vec<SignedCertificate> = {
        let engine = mesh.hosts[0].engine.as_ref().expect("running");
        let members = engine.membership().members();
        let again =
            |certificate: &Certificate| new.issue(&certificate.admission(), &certificate.keys(), &Term::offline(wall));
        members.map(|(_, member)| again(member.certificate()).expect("valid")).collect()
    };
    mesh.command(0, |engine| {
        for signed in &certificates {
            engine.accept_certificate(signed.bytes(), now, wall).expect("trusted");
        }
    });
    let here: Vec<usize> = hosts.iter().copied().filter(|host| ![late, away].contains(host)).collect();
    let done = mesh.run_until(secs(20), |mesh| here.iter().all(|host| rest_on(mesh, *host, &new.public()) == 12));
    assert!(done, "{}", mesh.describe());
    println!("certified everywhere {:?} after the command", mesh.now.saturating_since(now));
    assert_eq!(rest_on(&mesh, late, &former), 12, "who does not trust it goes on as before");
    // Who would be cut off is known before.
    let engine = mesh.hosts[late].engine.as_mut().expect("running");
    assert_eq!(engine.outsiders(&[new.public()]).len(), 11);
    assert!(engine.set_authorities(vec![new.public()], now).is_err(), "its own certificate is of the former");
    trust(&mut mesh, late, &both);
    mesh.net.cuts.clear();
    let done = mesh.run_until(secs(60), |mesh| {
        hosts.iter().all(|host| rest_on(mesh, *host, &new.public()) == 12) && mesh.connected(&hosts)
    });
    assert!(done, "{}", mesh.describe());
    for host in &hosts {
        trust(&mut mesh, *host, &[new.public()]);
    }
    mesh.run(secs(60));
    assert!(mesh.agree(&hosts, 12) && mesh.connected(&hosts), "{}", mesh.describe());
    for host in &here {
        let noticed = mesh.hosts[*host].events.iter().any(|(at, event)| {
            *at >= began
                && match event {
                    Event::PeerGone { .. } => true,
                    Event::Link { node, .. } => *node != mesh.node(away),
                    _ => false,
                }
        });
        assert!(!noticed, "host {host}\n{}", mesh.describe());
    }
    // What the former one signs is nothing any more.
    let keys = mesh.hosts[3].keys.keys().public();
    let admission = mesh.hosts[3].certificate.certificate().admission();
    let (now, wall) = (mesh.now, mesh.wall(0));
    let stolen = mesh.authority.issue(&admission, &keys, &Term::offline(wall)).expect("valid");
    let engine = mesh.hosts[0].engine.as_mut().expect("running");
    assert!(engine.accept_certificate(stolen.bytes(), now, wall).is_err());
}

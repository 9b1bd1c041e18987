//! What a pair of tunnels does to packets, whatever the network does to the pair.

mod network;

use std::time::Duration;

use meshd::time::Instant;
use meshd::tunnel::{Outbox, Role, TunnelOptions};
use meshd::wire::DropReason;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use network::{A, B, FAIR, Pair, Weather};

fn on_demand() -> TunnelOptions {
    TunnelOptions { keep_up: false, ..TunnelOptions::default() }
}

#[test]
fn a_packet_makes_its_session_and_arrives() {
    let mut pair = Pair::new(1, FAIR, on_demand());
    let first = pair.send(B);
    let second = pair.send(B);
    assert_eq!(pair.nodes[B].tunnel.status(pair.now).held, 2);
    let took = pair.run_till(Duration::from_secs(1), |pair| pair.stands());
    assert!(took <= Duration::from_millis(41), "one round trip, and half of one to hear the greeting: {took:?}");
    assert_eq!(pair.nodes[A].received, [first, second]);
    assert_eq!(pair.nodes[B].tunnel.status(pair.now).session.map(|session| session.role), Some(Role::Initiator));
    assert_eq!(pair.nodes[A].tunnel.status(pair.now).session.map(|session| session.role), Some(Role::Responder));
    pair.check_packets();
    pair.check_agreement();

    // Data confirms a session as well as a keepalive does, and is greeted as soon.
    let mut pair = Pair::new(1, FAIR, on_demand());
    pair.thief = Some(Box::new(|from, kind, _| from == B && kind == 5));
    pair.send(B);
    let took = pair.run_till(Duration::from_secs(1), |pair| pair.stands());
    assert!(took <= Duration::from_millis(41), "{took:?}");
}

#[test]
fn an_hour_of_rekeying_loses_nothing() {
    let mut pair = Pair::new(2, FAIR, TunnelOptions::default());
    pair.start();
    pair.run_for(Duration::from_secs(3_600), Some(Duration::from_millis(100)));
    pair.run_for(Duration::from_secs(1), None);
    assert_eq!(pair.copies.len(), pair.sent.len(), "a fair network takes nothing");
    assert!(pair.sent.len() >= 72_000);
    pair.check_packets();
    pair.check_agreement();
    for at in [A, B] {
        let rekeys = pair.handshakes(at);
        assert!((27..=31).contains(&rekeys), "one session in 120 to 128 s: {rekeys}");
        assert!(pair.nodes[at].drops.is_empty(), "{:?}", pair.nodes[at].drops);
        assert!(pair.nodes[at].tunnel.status(pair.now).sessions <= 2);
    }
    let initiations = [A, B].map(|at| pair.nodes[at].tunnel.status(pair.now).initiations);
    assert!(initiations[B] <= 1, "only the lower key rekeys: {initiations:?}");
}

#[test]
fn an_hour_in_bad_weather_loses_what_the_network_loses() {
    let weather = Weather { jitter: Duration::from_millis(60), loss: 0.1, duplication: 0.05, ..FAIR };
    let mut pair = Pair::new(3, weather, TunnelOptions::default());
    pair.start();
    pair.run_for(Duration::from_secs(3_600), Some(Duration::from_millis(100)));
    pair.weather = FAIR;
    pair.run_for(Duration::from_secs(10), None);
    let arrived = pair.copies.len() as f64 / pair.sent.len() as f64;
    assert!((0.89..0.91).contains(&arrived), "the weather was as ordered: {arrived}");
    pair.check_packets();
    pair.check_agreement();
    assert!((27..=32).contains(&pair.handshakes(A)), "{}", pair.handshakes(A));
}

/// F45: whichever single message of a handshake is lost, both directions work within a second.
#[test]
fn any_one_lost_message_costs_less_than_a_second() {
    // Initiation, response, confirmation; the first data message on top of its confirmation.
    for (side, kinds) in
        [(A, &[1u8][..]), (B, &[2]), (A, &[5]), (A, &[4]), (A, &[4, 5]), (B, &[4]), (B, &[5]), (B, &[4, 5])]
    {
        for seed in 0..20 {
            let mut pair = Pair::new(100 + seed, FAIR, on_demand());
            let kinds_stolen = kinds.to_vec();
            pair.thief =
                Some(Box::new(move |from, kind, nth| from == side && nth == 1 && kinds_stolen.contains(&kind)));
            pair.start();
            pair.send(A);
            pair.run_for(Duration::from_millis(15), None);
            pair.send(B);
            let took = pair.run_till(Duration::from_secs(3), |pair| pair.stands());
            assert!(took <= Duration::from_secs(1), "{kinds:?} of {side} lost, seed {seed}: {took:?}");
            pair.send(A);
            pair.send(B);
            pair.run_for(Duration::from_millis(100), None);
            pair.check_packets();
            pair.check_agreement();
        }
    }
}

/// The same, while a session is in use and must not be disturbed.
#[test]
fn a_lost_message_of_a_rekey_is_not_noticed() {
    for (side, kind, nth) in [(A, 1u8, 2usize), (B, 2, 2), (A, 5, 2), (A, 1, 3)] {
        let mut pair = Pair::new(200, FAIR, TunnelOptions::default());
        // B is silent at first, so that the first handshake is A's alone.
        pair.nodes[A].tick = pair.now;
        pair.thief = Some(Box::new(move |from, k, n| from == side && k == kind && n == nth));
        pair.run_for(Duration::from_secs(1), None);
        pair.start();
        pair.run_for(Duration::from_secs(400), Some(Duration::from_millis(50)));
        pair.run_for(Duration::from_secs(1), None);
        assert!(pair.handshakes(A) >= 3, "message {kind}");
        assert_eq!(pair.copies.len(), pair.sent.len());
        pair.check_packets();
        pair.check_agreement();
    }
}

/// F46: both start at once, on a fair network: one session comes of it.
#[test]
fn crossing_initiations_make_one_session() {
    for seed in 0..50 {
        let mut pair = Pair::new(300 + seed, FAIR, TunnelOptions::default());
        pair.start();
        pair.send(A);
        pair.send(B);
        pair.run_for(Duration::from_secs(2), None);
        for at in [A, B] {
            let status = pair.nodes[at].tunnel.status(pair.now);
            assert_eq!((status.handshakes, status.initiations, status.sessions), (1, 1, 1), "side {at}, seed {seed}");
            assert_eq!(status.session.map(|session| session.role == Role::Initiator), Some(at == A));
        }
        pair.check_packets();
        pair.check_agreement();
    }
}

/// A start that crosses, on a slow path and under a thousand packets a second: all of them wait, and arrive in order.
#[test]
fn a_busy_start_on_a_slow_path_loses_nothing() {
    for (seed, millis) in [50u64, 100, 150, 200].into_iter().enumerate() {
        let weather = Weather { delay: Duration::from_millis(millis), ..FAIR };
        let mut pair = Pair::new(350 + seed as u64, weather, TunnelOptions::default());
        pair.start();
        pair.run_for(Duration::from_secs(2), Some(Duration::from_millis(1)));
        pair.run_for(Duration::from_secs(1), None);
        assert_eq!(pair.copies.len(), pair.sent.len(), "one way {millis} ms: refused or still waiting");
        pair.check_packets();
        for node in &pair.nodes {
            assert!(node.received.is_sorted(), "one way {millis} ms: out of order");
        }
        pair.check_agreement();
    }
}

/// F46, a thousand times, on networks that lose, reorder and duplicate: it converges, and no packet the network
/// delivered is lost.
#[test]
fn a_thousand_simultaneous_starts_in_bad_weather() {
    for seed in 0..1_000u64 {
        let mut dice = ChaCha20Rng::seed_from_u64(seed);
        let mut share = |most: f64| most * f64::from(dice.next_u32()) / f64::from(u32::MAX);
        let weather = Weather {
            delay: Duration::from_millis(1) + Duration::from_millis(400).mul_f64(share(1.0)),
            jitter: Duration::from_millis(300).mul_f64(share(1.0)),
            loss: share(0.4),
            duplication: share(0.3),
        };
        let apart = Duration::from_millis(600).mul_f64(share(1.0));
        let mut pair = Pair::new(10_000 + seed, weather, TunnelOptions::default());
        pair.nodes[(seed % 2) as usize].tick = pair.now;
        pair.run_for(apart, None);
        pair.start();
        pair.run_for(Duration::from_secs(5), Some(Duration::from_millis(80)));
        // Rekeys at once, too: both sides ask for a new session while the old one is in use.
        for at in [A, B] {
            let mut out = Outbox::new();
            let _ = pair.nodes[at].tunnel.initiate(pair.now, pair.wall(), &mut out);
            pair.empty(at, None, &mut out);
        }
        pair.run_for(Duration::from_secs(5), Some(Duration::from_millis(80)));
        pair.weather = FAIR;
        pair.run_for(Duration::from_secs(20), None);
        assert!(pair.stands(), "seed {seed}");
        pair.check_packets();
        pair.check_agreement();
        for node in &pair.nodes {
            let (waiting, _) = node.host.load();
            assert_eq!(waiting, 0);
            assert!(node.tunnel.status(pair.now).sessions <= 3, "seed {seed}");
        }
    }
}

/// Every datagram is delivered again, in order and out of it: nothing is accepted, nothing changes.
#[test]
fn replays_change_nothing() {
    let mut pair = Pair::new(4, FAIR, TunnelOptions::default());
    pair.tape = Some(Vec::new());
    pair.start();
    pair.run_for(Duration::from_secs(140), Some(Duration::from_millis(250)));
    pair.run_for(Duration::from_secs(1), None);
    let tape = pair.tape.take().expect("it was running");
    assert!(tape.iter().any(|(_, bytes)| bytes[0] == 1) && tape.iter().any(|(_, bytes)| bytes[0] == 2));
    let before = pair.nodes.each_ref().map(|node| (node.received.clone(), node.tunnel.status(pair.now)));
    for (to, bytes) in tape.iter().chain(tape.iter().rev()) {
        let drops = pair.nodes[*to].drops.len();
        pair.deliver(*to, bytes);
        assert_eq!(pair.nodes[*to].drops.len(), drops + 1, "a replay of type {} was accepted", bytes[0]);
    }
    for (node, (received, status)) in pair.nodes.iter().zip(before) {
        let now = node.tunnel.status(pair.now);
        assert_eq!(node.received, received);
        assert_eq!((now.session, now.handshakes, now.sessions), (status.session, status.handshakes, status.sessions));
        assert_eq!((now.last_received, now.keepalives), (status.last_received, status.keepalives));
    }
    assert!(pair.wire.is_empty(), "no replay was answered");
}

/// A restarted responder that kept its marks answers no initiation of before; one that lost them is not harmed.
#[test]
fn a_replayed_initiation_takes_nothing_from_a_restarted_host() {
    let mut pair = Pair::new(5, FAIR, on_demand());
    pair.tape = Some(Vec::new());
    pair.send(A);
    pair.run_for(Duration::from_secs(1), None);
    let tape = pair.tape.take().expect("it was running");
    let (_, initiation) = tape.iter().find(|(to, bytes)| *to == B && bytes[0] == 1).expect("A started");
    let key = pair.nodes[A].host.public_key();
    let marks = pair.nodes[B].host.marks();
    assert_eq!(marks.len(), 1);

    // B restarts: same key, no state. (The simulation gives seeds to hosts by position, so a new pair is the same two hosts.)
    let mut again = Pair::new(5, FAIR, on_demand());
    again.nodes[B].host.import_marks(marks);
    again.deliver(B, initiation);
    assert_eq!(again.nodes[B].drops, [DropReason::StaleHandshake]);

    let mut forgetful = Pair::new(5, FAIR, on_demand());
    forgetful.deliver(B, initiation);
    forgetful.wire.clear();
    let tunnel = forgetful.nodes[B].host.get(&key).expect("a peer");
    assert_eq!(tunnel.status(forgetful.now).session, None, "a replay puts nothing into use");
    forgetful.send(A);
    forgetful.send(B);
    let took = forgetful.run_till(Duration::from_secs(3), |pair| pair.stands());
    assert!(took < Duration::from_secs(2), "{took:?}");
    forgetful.check_packets();
}

/// One host sleeps for eight hours: its first tick starts a handshake, and what waited goes out.
#[test]
fn after_a_suspend_the_pair_meets_at_once() {
    for sleeper in [A, B] {
        let mut pair = Pair::new(6, FAIR, TunnelOptions::default());
        pair.start();
        pair.run_for(Duration::from_secs(30), Some(Duration::from_millis(100)));
        pair.run_for(Duration::from_secs(1), None);
        // Both clocks move on; only one side runs, the other hears nothing and says nothing.
        let awake = 1 - sleeper;
        pair.thief = Some(Box::new(|_, _, _| true));
        pair.nodes[sleeper].tick = Instant::from_nanos(u64::MAX);
        pair.run_for(Duration::from_secs(8 * 3_600), None);
        pair.thief = None;
        assert_eq!(pair.nodes[awake].tunnel.status(pair.now).session, None);
        pair.nodes[sleeper].tick = pair.now;
        pair.send(sleeper);
        let took = pair.run_till(Duration::from_secs(3), |pair| pair.stands());
        assert!(took <= Duration::from_secs(1), "{took:?}");
        pair.send(awake);
        pair.run_for(Duration::from_secs(1), None);
        pair.check_packets();
        pair.check_agreement();
    }
}

/// Hours without a peer: it is asked at least every 30 s and not much more, and found as soon as it is there.
#[test]
fn the_reconnect_loop_never_gives_up() {
    let mut pair = Pair::new(7, FAIR, TunnelOptions::default());
    pair.thief = Some(Box::new(|_, _, _| true));
    pair.nodes[A].tick = pair.now;
    pair.run_for(Duration::from_secs(6 * 3_600), None);
    let initiations = pair.nodes[A].tunnel.status(pair.now).initiations;
    assert!((720..=1_500).contains(&initiations), "every 15 to 30 s: {initiations}");
    pair.thief = None;
    let took = pair.run_till(Duration::from_secs(31), |pair| pair.stands());
    assert!(took <= Duration::from_millis(30_100), "{took:?}");
    pair.check_agreement();

    // A word from the caller spares it the wait.
    let mut pair = Pair::new(8, FAIR, TunnelOptions::default());
    pair.thief = Some(Box::new(|_, _, _| true));
    pair.nodes[A].tick = pair.now;
    pair.run_for(Duration::from_secs(3_600), None);
    pair.thief = None;
    let mut out = Outbox::new();
    let _ = pair.nodes[A].tunnel.initiate(pair.now, pair.wall(), &mut out);
    pair.empty(A, None, &mut out);
    let took = pair.run_till(Duration::from_secs(1), |pair| pair.stands());
    assert!(took <= Duration::from_millis(41), "{took:?}");
}

/// A rekey falls into an outage: when the peer is heard again, it is asked at once, not after the wait that has grown.
#[test]
fn a_sign_of_life_cuts_the_wait_short() {
    for seed in 0..10 {
        let mut pair = Pair::new(600 + seed, FAIR, TunnelOptions::default());
        pair.nodes[A].tick = pair.now;
        pair.run_for(Duration::from_secs(110), None);
        let session = pair.nodes[A].tunnel.status(pair.now).session;
        assert!(session.is_some_and(|session| session.proven));
        pair.thief = Some(Box::new(|_, _, _| true));
        // Waits of up to 16 s by now; B, which does not run its timers here, will not help.
        pair.run_for(Duration::from_secs(50), None);
        assert_eq!(pair.nodes[A].tunnel.status(pair.now).session, session);
        pair.thief = None;
        pair.send(B);
        let took =
            pair.run_till(Duration::from_secs(20), |pair| pair.nodes[A].tunnel.status(pair.now).session != session);
        assert!(took <= Duration::from_millis(10 + 250 + 20), "seed {seed}: {took:?}");
    }
}

/// The peer forgets everything (killed, restarted): data without an answer starts a new handshake after 15 s at the latest.
#[test]
fn silence_after_data_starts_a_handshake() {
    let mut pair = Pair::new(9, FAIR, on_demand());
    pair.start();
    pair.send(A);
    pair.run_for(Duration::from_secs(20), None);
    assert_eq!(pair.handshakes(A), 1, "the peer's keepalive after 10 s was an answer");
    assert!(pair.nodes[B].tunnel.status(pair.now).keepalives.0 >= 2, "its greeting and its keepalive");

    let fresh = Pair::new(9, FAIR, on_demand());
    let [_, b] = fresh.nodes;
    pair.nodes[B].host = b.host;
    pair.nodes[B].tunnel = b.tunnel;
    let start = pair.now;
    while pair.handshakes(A) == 1 {
        pair.send(A);
        pair.run_for(Duration::from_millis(500), None);
        assert!(pair.now.saturating_since(start) < Duration::from_secs(17));
    }
    assert!(pair.now.saturating_since(start) >= Duration::from_secs(15), "not sooner: replies may take their time");
    pair.run_for(Duration::from_secs(2), None);
    assert!(pair.stands());
}

/// A link nobody uses and nobody wants kept up costs nothing: no rekey, no keepalive, and no session in the end.
#[test]
fn an_idle_tunnel_on_demand_falls_silent() {
    let mut pair = Pair::new(10, FAIR, on_demand());
    pair.start();
    pair.send(A);
    pair.run_for(Duration::from_secs(60), None);
    pair.counts.clear();
    pair.run_for(Duration::from_secs(3_600), None);
    assert!(pair.counts.is_empty(), "{:?}", pair.counts);
    assert_eq!(pair.nodes[A].tunnel.status(pair.now).sessions, 0);
    assert_eq!(pair.nodes[A].host.load(), (0, 0));
}

/// The side with the lower key is mute when a rekey is due: the other steps in before the session dies.
#[test]
fn the_second_side_rekeys_when_the_first_does_not() {
    let mut pair = Pair::new(11, FAIR, TunnelOptions::default());
    pair.start();
    pair.run_for(Duration::from_secs(1), None);
    pair.thief = Some(Box::new(|from, kind, _| from == A && kind == 1));
    pair.run_for(Duration::from_secs(1_000), Some(Duration::from_millis(100)));
    pair.run_for(Duration::from_secs(1), None);
    assert_eq!(pair.copies.len(), pair.sent.len());
    assert!(pair.handshakes(B) >= 6);
    assert_eq!(pair.nodes[B].tunnel.status(pair.now).session.map(|session| session.role), Some(Role::Initiator));
    pair.check_packets();
    pair.check_agreement();
}

/// Two attempts under way span a round trip that one wait does not: no later than the third of them is answered.
#[test]
fn a_response_finds_an_earlier_attempt() {
    for seed in 0..50 {
        let weather = Weather { delay: Duration::from_millis(400), ..FAIR };
        let mut pair = Pair::new(500 + seed, weather, on_demand());
        pair.start();
        pair.send(A);
        let took = pair.run_till(Duration::from_secs(5), |pair| pair.stands());
        // Sent after 0.25 + 0.5 s at the latest, and two round trips until the greeting is heard.
        assert!(took <= Duration::from_millis(2_360), "seed {seed}: {took:?}");
        pair.check_packets();
    }
}

/// A stock peer keeps one unconfirmed session, the newest: an initiation on the heels of another would take away the session
/// in use. So there is none within a round trip, and where the round trip is longer than the wait, the last one counts.
#[test]
fn a_stock_peer_is_asked_once_in_a_round_trip() {
    let stock = TunnelOptions { stock: true, ..on_demand() };
    for seed in 0..20 {
        let weather = Weather { delay: Duration::from_millis(450), ..FAIR };
        let mut pair = Pair::new(800 + seed, weather, stock.clone());
        pair.start();
        pair.send(A);
        // The caller's wishes are no reason either.
        pair.run_for(Duration::from_millis(500), None);
        let mut out = Outbox::new();
        let _ = pair.nodes[A].tunnel.initiate(pair.now, pair.wall(), &mut out);
        pair.empty(A, None, &mut out);
        pair.run_for(Duration::from_secs(8), None);
        assert_eq!(pair.counts.get(&(A, 1)), Some(&1), "seed {seed}");
        pair.check_packets();

        let weather = Weather { delay: Duration::from_millis(1_200), ..FAIR };
        let mut pair = Pair::new(900 + seed, weather, stock.clone());
        pair.tape = Some(Vec::new());
        pair.start();
        pair.send(A);
        pair.run_till(Duration::from_secs(15), |pair| pair.stands());
        let tape = pair.tape.take().expect("it was running");
        let (_, last) = tape.iter().rfind(|(to, bytes)| *to == B && bytes[0] == 1).expect("A started");
        let session = pair.nodes[A].tunnel.status(pair.now).session.expect("it stands");
        assert_eq!(last[4..8], session.local_index.to_le_bytes(), "seed {seed}: the last one B answered");
        pair.check_packets();
    }
}

/// One side knows no way to the other and calls into the void. That its initiations would stand must not keep out those
/// that do arrive.
#[test]
fn a_side_that_is_not_heard_can_still_be_reached() {
    for mute in [A, B] {
        for seed in 0..20 {
            let mut pair = Pair::new(700 + seed, FAIR, TunnelOptions::default());
            pair.thief = Some(Box::new(move |from, kind, _| from == mute && kind == 1));
            pair.start();
            pair.send(mute);
            let took = pair.run_till(Duration::from_secs(5), |pair| pair.stands());
            assert!(took <= Duration::from_secs(3), "seed {seed}: {took:?}");
            pair.check_packets();
            pair.check_agreement();
        }
    }
}

/// Round trips longer than the first waits: the response still finds its attempt.
#[test]
fn slow_networks_connect() {
    for (seed, millis) in [100u64, 200, 400, 800, 1_500, 3_000].into_iter().enumerate() {
        let weather = Weather { delay: Duration::from_millis(millis), ..FAIR };
        let mut pair = Pair::new(400 + seed as u64, weather, TunnelOptions::default());
        pair.start();
        pair.run_for(Duration::from_secs(1), Some(Duration::from_millis(100)));
        pair.run_for(Duration::from_secs(40), None);
        assert!(pair.stands(), "one way {millis} ms");
        pair.check_packets();
        pair.check_agreement();
    }
}

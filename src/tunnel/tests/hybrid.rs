//! Hybrid keys: which one a handshake uses, when one is forgotten, and what waits for one.

use super::doors::MacOf;
use super::*;
use crate::identity::HybridKey;
use crate::wire::overlay;
use std::time::Duration;

fn key(odd: bool, byte: u8) -> HybridKey {
    HybridKey { odd, secret: Zeroizing::new([byte; 32]) }
}

fn second(nth: u64) -> Instant {
    START + Duration::from_secs(nth)
}

/// An initiation of a side's, at a time when nothing else is due.
fn initiation(two: &Two, from: usize, now: Instant) -> Vec<u8> {
    let mut out = Outbox::new();
    let _ = two.tunnels[from].initiate(now, wall(), &mut out);
    std::iter::from_fn(|| out.pop()).find(|outgoing| outgoing.bytes[0] == 1).unwrap().bytes
}

fn knock(two: &Two, at: usize, now: Instant, datagram: &[u8]) -> (HandshakeEvent, Outbox) {
    let mut out = Outbox::new();
    let event = two.hosts[at].handle_handshake(now, wall(), address(1 - at as u8), datagram, &mut out);
    (event.unwrap(), out)
}

/// Gives both sides a key, as an exchange does, and makes the session that comes of it.
fn agree(two: &Two, now: Instant, key: &HybridKey) {
    two.tunnels[1].offer_key(key.clone(), false);
    two.tunnels[0].offer_key(key.clone(), true);
    two.meet(now);
}

fn in_use(two: &Two, now: Instant) -> [Option<bool>; 2] {
    [0, 1].map(|side| two.tunnels[side].key_in_use(now))
}

fn hybrid(two: &Two, now: Instant) -> [Option<bool>; 2] {
    [0, 1].map(|side| two.tunnels[side].status(now).session.map(|session| session.hybrid))
}

#[test]
fn an_initiation_names_its_key_and_one_without_looks_as_ever() {
    let two = Two::met(70);
    let plain = initiation(&two, 0, second(1));
    assert_eq!(plain[4], 1, "boringtun's own count");
    two.tunnels[0].offer_key(key(false, 1), true);
    assert_eq!(initiation(&two, 0, second(2))[4], 2);
    two.tunnels[0].offer_key(key(true, 2), true);
    assert_eq!(initiation(&two, 0, second(3))[4], 3);
    two.tunnels[0].offer_key(key(false, 3), false);
    assert_eq!(initiation(&two, 0, second(4))[4], 1, "the peer may not have it yet, and none stands");
}

#[test]
fn a_key_takes_over_once_it_was_heard_and_the_one_before_serves_until_then() {
    let two = Two::met(71);
    assert_eq!(hybrid(&two, START), [Some(false); 2]);
    agree(&two, second(1), &key(true, 1));
    assert_eq!(in_use(&two, second(1)), [Some(true); 2]);
    assert_eq!(hybrid(&two, second(1)), [Some(true); 2]);

    // The next one is agreed on; the answerer, which does not know that the answer arrived, starts a handshake under the old one.
    two.tunnels[1].offer_key(key(false, 2), false);
    two.tunnels[0].offer_key(key(false, 2), true);
    let mut out = Outbox::new();
    let _ = two.tunnels[1].initiate(second(2), wall(), &mut out);
    two.settle(second(2), 1, out);
    assert_eq!(in_use(&two, second(2)), [Some(true); 2]);
    two.meet(second(3));
    assert_eq!(in_use(&two, second(3)), [Some(false); 2]);
    assert_eq!([0, 1].map(|side| two.tunnels[side].status(second(3)).hybrid_keys), [2, 2]);

    // What names the forgotten one is answered with nothing but an initiation back.
    two.tunnels.iter().for_each(|tunnel| tunnel.set_hybrid(true, false));
    let mut stale = initiation(&two, 0, second(4));
    stale[4] = 3;
    MacOf(two.hosts[1].public_key()).sign(&mut stale);
    let (event, mut out) = knock(&two, 1, second(4), &stale);
    assert!(matches!(event, HandshakeEvent::Countered(_)));
    let back = out.pop().unwrap();
    assert_eq!((back.to, back.bytes[0], back.bytes[4]), (Destination::Source, 1, 2));
    assert!(std::iter::from_fn(|| out.pop()).all(|outgoing| outgoing.bytes[0] != 2), "and no response");
}

/// The byte is in the clear. Whoever turns it takes one handshake, and no key.
#[test]
fn a_turned_name_takes_no_key() {
    let two = Two::met(72);
    agree(&two, second(1), &key(true, 1));
    for (turn, tag) in [1u8, 2, 3].into_iter().cycle().take(6).enumerate() {
        let now = second(2 + turn as u64);
        let mut turned = initiation(&two, 0, now);
        turned[4] = tag;
        MacOf(two.hosts[1].public_key()).sign(&mut turned);
        let (_, out) = knock(&two, 1, now, &turned);
        // Its answer names an index that nobody has, or is sealed under another key.
        two.settle(now, 1, out);
        assert_eq!(hybrid(&two, now), [Some(true); 2], "tag {tag}");
    }
    two.meet(second(20));
    assert_eq!(in_use(&two, second(20)), [Some(true); 2], "the key is still there, on both sides");
}

/// Only a session that the peer has used says that it has no key any more.
#[test]
fn a_peer_that_lost_its_memory_is_followed() {
    for (loser, keeper) in [(0, 1), (1, 0)] {
        let two = Two::met(73);
        agree(&two, second(1), &key(true, 1));
        two.tunnels.iter().for_each(|tunnel| tunnel.set_hybrid(true, false));
        two.tunnels[loser].forget_keys();
        // The one that kept it asks; the answer is an initiation that names none.
        let asked = initiation(&two, keeper, second(2));
        assert_eq!(asked[4], 3);
        let (event, out) = knock(&two, loser, second(2), &asked);
        assert!(matches!(event, HandshakeEvent::Countered(_)));
        two.settle(second(2), loser, out);
        assert_eq!(hybrid(&two, second(2)), [Some(false); 2]);
        assert_eq!(initiation(&two, keeper, second(3))[4], 1, "it has forgotten too");
    }
}

#[test]
fn of_two_that_cross_the_newer_key_stands() {
    for first in [0, 1] {
        let two = Two::met(74);
        two.tunnels[1].offer_key(key(true, 1), false);
        two.tunnels[0].offer_key(key(true, 1), true);
        let [plain, named] = [initiation(&two, 1, second(1)), initiation(&two, 0, second(1))];
        assert_eq!([plain[4], named[4]], [1, 3]);
        let order = if first == 0 { [(0, &plain), (1, &named)] } else { [(1, &named), (0, &plain)] };
        // Both are on their way before either is answered.
        let answers = order.map(|(at, datagram)| (at, knock(&two, at, second(1), datagram).1));
        answers.into_iter().for_each(|(at, out)| drop(two.settle(second(1), at, out)));
        assert_eq!(in_use(&two, second(1)), [Some(true); 2], "side {first} heard the other first");
    }
}

#[test]
fn data_waits_for_a_required_key_and_what_comes_without_one_is_dropped() {
    let two = Two::met(75);
    let [from, to] = [1u16, 2].map(|host| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host));
    let control = overlay::wrap(from, to, b"\x10 what the daemons say");
    two.tunnels[0].set_hybrid(true, true);
    let mut buffer = vec![0; 2_048];
    let mut seal = |packet: &[u8], now| two.tunnels[0].lock().seal(now, packet, &mut buffer);
    assert_eq!(seal(&packet(100), START), Ok(Sealed::Held));
    assert!(matches!(seal(&control, START), Ok(Sealed::Datagram(_))), "which is how they come to a key");
    let stray = two.seal(1, START, &packet(80));
    assert_eq!(two.open(0, START, &stray), Err(DropReason::NotHybrid));
    let said = two.seal(1, START, &control);
    assert!(two.open(0, START, &said).is_ok());
    assert!(!two.tunnels[0].lock().has_session(START), "for data there is none");
    assert_eq!(two.tunnels[0].status(second(1)).held, 1);

    // A session of no key comes and goes; what waits still waits, and asks for nothing.
    two.meet(second(2));
    assert_eq!(two.tunnels[0].status(second(2)).held, 1);
    two.tunnels[1].offer_key(key(true, 1), false);
    two.tunnels[0].offer_key(key(true, 1), true);
    let mut out = Outbox::new();
    let _ = two.tunnels[0].initiate(second(3), wall(), &mut out);
    let arrived = two.settle(second(3), 0, out);
    assert_eq!(arrived[1], [packet(100)]);
    assert!(two.tunnels[0].lock().has_session(second(3)));
}

/// A host that was set back in time has a key that the peer has replaced, under the same name.
#[test]
fn after_half_a_minute_every_second_initiation_names_no_key() {
    let two = Two::with(76, [TunnelOptions::default(), on_demand()]);
    two.tunnels[0].offer_key(key(true, 1), true);
    let (mut now, mut out, mut names) = (START, Outbox::new(), Vec::new());
    while now < second(400) {
        now = two.tunnels[0].tick(now, wall(), &mut out).max(now + Duration::from_millis(1));
        while let Some(outgoing) = out.pop() {
            names.push((now, outgoing.bytes[4]));
        }
    }
    let (early, late): (Vec<_>, Vec<_>) = names.into_iter().partition(|(at, _)| *at < second(30));
    assert!(!early.is_empty() && early.iter().all(|(_, name)| *name == 3), "{early:?}");
    assert!(late.len() >= 10 && late.windows(2).skip(1).all(|pair| pair[0].1 != pair[1].1), "{late:?}");
    assert!(late.iter().any(|(_, name)| *name == 1));
}

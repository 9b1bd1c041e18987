//! Initiations that cross, one message at a time.

use super::*;
use std::time::Duration;

/// Carries one handshake message to a host; returns what it says.
fn carry(two: &Two, now: Instant, to: usize, message: &[u8]) -> (HandshakeEvent, Vec<Outgoing>) {
    let mut out = Outbox::new();
    let event = two.hosts[to].handle_handshake(now, wall(), address(1 - to as u8), message, &mut out);
    let event = event.unwrap_or_else(|reason| panic!("dropped: {}", reason.name()));
    (event, std::iter::from_fn(|| out.pop()).collect())
}

fn initiate(two: &Two, from: usize, now: Instant) -> Vec<u8> {
    let mut out = Outbox::new();
    assert_eq!(two.tunnels[from].initiate(now, wall(), &mut out), Initiation::Sent);
    out.pop().unwrap().bytes
}

fn index_in_use(two: &Two, at: usize, now: Instant) -> u32 {
    two.tunnels[at].status(now).session.unwrap().local_index
}

/// Both sides complete a handshake of their own: the lower side gave up insisting, and its slow initiation arrives after
/// all. The confirmation of the first comes last, and must not lead back to it.
#[test]
fn a_late_confirmation_does_not_lead_back() {
    let two = Two::new(60);
    let later = START + Duration::from_millis(1_200);
    let slow = initiate(&two, 0, START);
    let higher = initiate(&two, 1, later);
    let (event, answer) = carry(&two, later, 0, &higher);
    assert!(matches!(event, HandshakeEvent::Answered(_)), "after a second of insisting");
    let (_, confirmation) = carry(&two, later, 1, &answer[0].bytes);
    let first = two.tunnels[1].status(later).session.unwrap();

    let (event, answer) = carry(&two, later, 1, &slow);
    assert!(matches!(event, HandshakeEvent::Answered(_)));
    let (_, second_confirmation) = carry(&two, later, 0, &answer[0].bytes);
    let second = index_in_use(&two, 0, later);
    assert_eq!(two.open(0, later, &confirmation[0].bytes), Ok(Opened { length: 0, confirmed: false }));
    assert_eq!(index_in_use(&two, 0, later), second, "the newer one stays in use");

    // Until the higher side hears of the newer session, it goes on under the older, and is heard.
    assert_eq!(two.tunnels[1].status(later).session, Some(first));
    assert!(two.open(0, later, &two.seal(1, later, &packet(64))).is_ok());
    assert_eq!(two.open(1, later, &second_confirmation[0].bytes), Ok(Opened { length: 0, confirmed: true }));
    assert_ne!(two.tunnels[1].status(later).session, Some(first));
    for from in [0, 1] {
        let datagram = two.seal(from, later, &packet(64));
        assert_eq!(datagram[4..8], index_in_use(&two, 1 - from, later).to_le_bytes());
        assert!(two.open(1 - from, later, &datagram).is_ok());
    }
}

/// The side that gave way does not wait for ever: the winner may have died right after its initiation.
#[test]
fn who_gave_way_starts_again_when_nothing_comes() {
    let two = Two::with(61, [on_demand(), TunnelOptions::default()]);
    let lower = initiate(&two, 0, START);
    let _ = initiate(&two, 1, START);
    let (event, _lost) = carry(&two, START, 1, &lower);
    assert!(matches!(event, HandshakeEvent::Answered(_)));
    assert!(!two.tunnels[1].status(START).initiating, "its own is given up");
    let mut out = Outbox::new();
    let mut now = START;
    while out.is_empty() {
        let next = two.tunnels[1].tick(now, wall(), &mut out);
        now = if out.is_empty() { next } else { now };
    }
    let waited = now.saturating_since(START);
    assert!(waited >= Duration::from_secs(1) && waited <= Duration::from_millis(1_300), "{waited:?}");
    assert_eq!(out.pop().map(|outgoing| outgoing.bytes[0]), Some(1));
}

/// A host that has just answered an initiation waits for its session rather than starting one of its own.
#[test]
fn a_packet_after_an_answer_waits_for_the_confirmation() {
    let two = Two::new(62);
    let lower = initiate(&two, 0, START);
    let (_, answer) = carry(&two, START, 1, &lower);
    let mut out = Outbox::new();
    let mut guard = two.tunnels[1].lock();
    assert_eq!(guard.seal(START, &packet(64), &mut [0; 256]), Ok(Sealed::Held));
    guard.flush(START, wall(), &mut out);
    drop(guard);
    assert!(out.is_empty());
    let (_, confirmation) = carry(&two, START, 0, &answer[0].bytes);
    let mut guard = two.tunnels[1].lock();
    assert!(guard.open(START, &confirmation[0].bytes, &mut [0; 256]).is_ok());
    guard.flush(START, wall(), &mut out);
    assert_eq!(out.pop().map(|outgoing| (outgoing.bytes[0], outgoing.bytes.len())), Some((4, 64 + OVERHEAD)));
    assert!(out.is_empty(), "the packet is the greeting");
}

#[test]
fn waits_double_up_to_thirty_seconds_and_differ() {
    let two = Two::new(63);
    let mut state = two.tunnels[0].state();
    for tries in (0..20).chain([u32::MAX]) {
        state.tries = tries;
        let whole = Duration::from_millis(250 << tries.min(7)).min(Duration::from_secs(30));
        let waits: std::collections::BTreeSet<_> = (0..200).map(|_| state.backoff()).collect();
        assert!(waits.iter().all(|wait| (whole / 2..=whole).contains(wait)), "after {tries}");
        assert!(waits.len() > 150);
    }
}

//! Who gets in: keys, marks, limits, cookies.

use super::*;
use std::time::Duration;

/// An initiation from the first host, made now.
fn initiation(two: &Two, now: Instant) -> Vec<u8> {
    let mut out = Outbox::new();
    assert_eq!(two.tunnels[0].initiate(now, wall(), &mut out), Initiation::Sent);
    std::iter::from_fn(|| out.pop()).find(|outgoing| outgoing.bytes[0] == 1).unwrap().bytes
}

fn knock(two: &Two, now: Instant, from: SocketAddr, datagram: &[u8]) -> (Result<HandshakeEvent, DropReason>, Outbox) {
    let mut out = Outbox::new();
    let event = two.hosts[1].handle_handshake(now, wall(), from, datagram, &mut out);
    (event, out)
}

#[test]
fn keys_of_low_order_and_our_own_are_refused() {
    let host = Host::new(secret(1), [1; 32]);
    // All encodings of the points of order 1, 2, 4 and 8 (RFC 7748 §6.1; cr.yp.to/ecdh.html), the last three unreduced.
    let order_8 = [
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ];
    let mut keys = vec![[0u8; 32], [0u8; 32]];
    keys[1][0] = 1;
    for hex in order_8 {
        keys.push(std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()));
    }
    for low in [0xec, 0xed, 0xee] {
        let mut key = [0xffu8; 32];
        (key[0], key[31]) = (low, 0x7f);
        keys.push(key);
    }
    for key in keys {
        assert_eq!(host.add(key, on_demand()).err(), Some(AddError::LowOrderKey), "{key:02x?}");
    }
    assert_eq!(host.add(host.public_key(), on_demand()).err(), Some(AddError::OwnKey));
    assert!(host.tunnels().is_empty());
}

#[test]
fn a_stranger_hears_nothing() {
    let two = Two::new(30);
    let stranger = Host::new(secret(99), [9; 32]);
    let tunnel = stranger.add(two.hosts[1].public_key(), on_demand()).unwrap();
    let mut out = Outbox::new();
    let _ = tunnel.initiate(START, wall(), &mut out);
    let mut datagram = out.pop().unwrap().bytes;
    let (event, answer) = knock(&two, START, address(9), &datagram);
    assert_eq!((event.err(), answer.is_empty()), (Some(DropReason::UnknownPeer), true));
    datagram[147 - 16] ^= 1;
    let (event, answer) = knock(&two, START, address(9), &datagram);
    assert_eq!((event.err(), answer.is_empty()), (Some(DropReason::BadMac), true));
    let response = [&[2, 0, 0, 0], &[7; 88][..]].concat();
    assert_eq!(knock(&two, START, address(9), &response).0.err(), Some(DropReason::BadMac), "before any lookup");
    datagram[1] = 1;
    assert_eq!(knock(&two, START, address(9), &datagram).0.err(), Some(DropReason::Malformed));
    assert_eq!(knock(&two, START, address(9), &[1, 0, 0, 0]).0.err(), Some(DropReason::Malformed));
    let drops = two.hosts[1].drops();
    assert_eq!(drops[DropReason::UnknownPeer as usize], 1);
    assert_eq!(drops[DropReason::BadMac as usize], 2);
    assert_eq!(drops[DropReason::Malformed as usize], 2);
    assert_eq!(two.hosts[1].load(), (0, 0));
}

/// Whoever knows both public keys can name a member, but not use up that member's allowance.
#[test]
fn naming_a_member_is_not_being_one() {
    let two = Two::new(31);
    let real = initiation(&two, START);
    let mut forged = real.clone();
    forged[100] ^= 1; // inside the sealed mark
    let mac1 = MacOf(two.hosts[1].public_key());
    for nth in 0..60 {
        mac1.sign(&mut forged);
        let (event, _) = knock(&two, START, address(100 + nth), &forged);
        assert_eq!(event.err(), Some(DropReason::BadSeal));
    }
    assert!(matches!(knock(&two, START, address(0), &real).0, Ok(HandshakeEvent::Answered(_))));
}

/// Makes MAC1 as any scanner could who knows the public key.
pub(super) struct MacOf(pub(super) PeerKey);

impl MacOf {
    pub(super) fn sign(&self, message: &mut [u8]) {
        use blake2::digest::{Mac, consts::U16};
        let at = message.len() - 32;
        let key = super::super::noise::hash(&[b"mac1----", &self.0]);
        let mut mac = <blake2::Blake2sMac<U16> as Mac>::new_from_slice(&key).unwrap();
        Mac::update(&mut mac, &message[..at]);
        message[at..at + 16].copy_from_slice(&mac.finalize().into_bytes());
    }
}

#[test]
fn a_mark_counts_once_and_only_forwards() {
    let two = Two::new(32);
    let first = initiation(&two, START);
    let second = initiation(&two, START + Duration::from_secs(1));
    assert!(matches!(knock(&two, START, address(0), &second).0, Ok(HandshakeEvent::Answered(_))));
    assert_eq!(knock(&two, START, address(0), &second).0.err(), Some(DropReason::StaleHandshake));
    assert_eq!(knock(&two, START, address(0), &first).0.err(), Some(DropReason::StaleHandshake));
    assert_eq!(two.drops(1, DropReason::StaleHandshake), 2);
}

#[test]
fn marks_survive_removal_and_restart_and_only_rise() {
    let two = Two::new(33);
    let before = initiation(&two, START);
    assert!(two.hosts[1].marks().is_empty(), "nothing to remember yet");
    assert!(knock(&two, START, address(0), &before).0.is_ok());
    let marks = two.hosts[1].marks();
    let key = two.hosts[0].public_key();
    assert_eq!(marks.len(), 1);
    assert_eq!(marks[0].0, key);

    assert!(two.hosts[1].remove(START, &key));
    assert!(!two.hosts[1].remove(START, &key));
    assert_eq!(two.hosts[1].marks(), marks, "remembered without the peer");
    assert_eq!(knock(&two, START, address(0), &before).0.err(), Some(DropReason::UnknownPeer));
    two.hosts[1].add(key, on_demand()).unwrap();
    assert_eq!(knock(&two, START, address(0), &before).0.err(), Some(DropReason::StaleHandshake));

    let again = Two::new(33);
    again.hosts[1].import_marks(marks.clone());
    again.hosts[1].import_marks([(key, Marks::default())]);
    assert_eq!(again.hosts[1].marks(), marks);
    assert_eq!(knock(&again, START, address(0), &before).0.err(), Some(DropReason::StaleHandshake));
    assert!(knock(&again, START, address(0), &initiation(&two, START + Duration::from_secs(1))).0.is_ok());
}

/// CVE-2021-46873: a mark from the far future must not be taken, and one taken while our clock was unset must not stay.
#[test]
fn a_mark_from_the_future_locks_nobody_out() {
    let two = Two::new(34);
    let datagram = initiation(&two, START);
    let mut out = Outbox::new();
    let day = Duration::from_secs(24 * 3_600);
    let behind = wall() - 2 * day;
    let event = two.hosts[1].handle_handshake(START, behind, address(0), &datagram, &mut out);
    assert_eq!(event.err(), Some(DropReason::StaleHandshake), "our clock is two days behind the peer's");
    let unset = UnixTime::from_secs(1_000);
    let event = two.hosts[1].handle_handshake(START, unset, address(0), &datagram, &mut out);
    assert!(event.is_ok(), "a clock that was never set judges nobody");

    let two = Two::new(35);
    let far = Marks { received: Mark::from_bytes([0x7f; 12]), sent: UnixTime::EPOCH };
    two.hosts[1].import_marks([(two.hosts[0].public_key(), far)]);
    assert!(knock(&two, START, address(0), &initiation(&two, START)).0.is_ok());
}

#[test]
fn a_clock_set_back_is_reported() {
    let two = Two::met(36);
    let mut out = Outbox::new();
    let now = START + Duration::from_secs(1);
    let set_back = wall() - Duration::from_secs(3_600);
    assert_eq!(two.tunnels[0].initiate(now, set_back, &mut out), Initiation::ClockBehind);
    assert!(two.tunnels[0].status(now).clock_behind);
    let marks = two.hosts[0].marks();
    assert!(marks[0].1.sent > set_back, "the mark does not go back with the clock");

    // The same after a restart, from what was persisted.
    let again = Two::new(36);
    again.hosts[0].import_marks(marks);
    assert_eq!(again.tunnels[0].initiate(now, set_back, &mut out), Initiation::ClockBehind);
    let later = now + Duration::from_secs(1);
    assert_eq!(again.tunnels[0].initiate(later, wall() + Duration::from_secs(5), &mut out), Initiation::Sent);
    assert!(!again.tunnels[0].status(later).clock_behind);
}

#[test]
fn a_member_gets_fifty_handshakes_a_second() {
    let two = Two::new(37);
    let mut limited = 0;
    for nth in 0..60u64 {
        // From ever new addresses, so that only the limit of the peer is in the way.
        let datagram = initiation(&two, START + Duration::from_secs(nth));
        let (event, _) = knock(&two, START, address(nth as u8), &datagram);
        limited += u32::from(event.err() == Some(DropReason::RateLimited));
    }
    assert_eq!(limited, 10);
    assert!(two.tunnels[1].status(START).sessions <= 2, "however many were answered");
    assert!(two.hosts[1].load().1 <= 2);
    let later = START + Duration::from_secs(1);
    let datagram = initiation(&two, START + Duration::from_secs(61));
    assert!(knock(&two, later, address(0), &datagram).0.is_ok());
}

/// An observer who forges responses to our initiation gets fifty computed a second, and stops neither side's handshakes.
#[test]
fn forged_responses_are_limited_and_stop_nobody() {
    let two = Two::new(44);
    let ours = initiation(&two, START);
    let mut forged = vec![0u8; 92];
    forged[0] = 2;
    forged[8..12].copy_from_slice(&ours[4..8]);
    MacOf(two.hosts[0].public_key()).sign(&mut forged);
    let mut out = Outbox::new();
    let mut tried = [0; 2];
    for _ in 0..60 {
        match two.hosts[0].handle_handshake(START, wall(), address(66), &forged, &mut out).err() {
            Some(DropReason::BadSeal) => tried[0] += 1,
            Some(DropReason::RateLimited) => tried[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tried, [50, 10]);
    assert!(out.is_empty());

    // The peer's own initiation is not in the forger's allowance, and the real response is good a moment later.
    let later = START + Duration::from_millis(1_100);
    let (_, mut answer) = knock(&two, START, address(0), &ours);
    let response = answer.pop().unwrap().bytes;
    let _ = two.tunnels[1].initiate(later, wall(), &mut answer);
    let theirs = std::iter::from_fn(|| answer.pop()).find(|outgoing| outgoing.bytes[0] == 1).unwrap().bytes;
    assert!(matches!(
        two.hosts[0].handle_handshake(later, wall(), address(1), &theirs, &mut out),
        Ok(HandshakeEvent::Answered(_))
    ));
    assert!(matches!(
        two.hosts[0].handle_handshake(later, wall(), address(1), &response, &mut out),
        Ok(HandshakeEvent::Established(_))
    ));
}

#[test]
fn an_address_that_asks_too_often_must_show_that_it_listens() {
    let two = Two::new(38);
    let source = address(0);
    let mut now = START;
    let mut challenge = None;
    for nth in 0..6 {
        let datagram = initiation(&two, START + Duration::from_secs(nth));
        let (event, mut out) = knock(&two, now, source, &datagram);
        match (nth, event) {
            (0..=4, Ok(HandshakeEvent::Answered(_))) => {}
            (5, Ok(HandshakeEvent::Challenged)) => challenge = out.pop(),
            (nth, event) => panic!("{nth}: {:?}", event.err()),
        }
    }
    let challenge = challenge.unwrap();
    assert_eq!((challenge.to, challenge.bytes.len()), (Destination::Source, 64));

    // The sender takes the cookie and asks again at once, with proof.
    let mut out = Outbox::new();
    let event =
        two.hosts[0].handle_handshake(START + Duration::from_secs(5), wall(), address(1), &challenge.bytes, &mut out);
    assert!(matches!(event, Ok(HandshakeEvent::CookieTaken(_))));
    let proof = std::iter::from_fn(|| out.pop()).find(|outgoing| outgoing.bytes[0] == 1).unwrap().bytes;
    let neighbour = SocketAddr::new(source.ip(), source.port() + 1);
    assert!(matches!(knock(&two, now, neighbour, &proof).0, Ok(HandshakeEvent::Challenged)), "another port");
    assert!(matches!(knock(&two, now, source, &proof).0, Ok(HandshakeEvent::Answered(_))));

    // Even with proof there is a limit: five at once, twenty a second, and silence beyond.
    let mut answered = 0;
    for nth in 0..300 {
        now += Duration::from_millis(10);
        let datagram = initiation(&two, START + Duration::from_secs(10) + Duration::from_millis(300 * nth));
        match knock(&two, now, source, &datagram).0 {
            Ok(HandshakeEvent::Answered(_)) => answered += 1,
            Ok(_) => panic!("challenged again"),
            Err(reason) => assert_eq!(reason, DropReason::RateLimited),
        }
    }
    // Two allowances (unproven and proven) of twenty a second, for three seconds.
    assert!((110..=130).contains(&answered), "{answered}");
}

/// Under a flood from everywhere, strangers get cookies, and our own handshakes go on.
#[test]
fn under_load_everybody_proves_an_address_and_our_own_handshakes_go_on() {
    let two = Two::new(39);
    let mut junk = vec![0u8; 148];
    junk[0] = 1;
    let mac = MacOf(two.hosts[1].public_key());
    let mut challenged = 0;
    for nth in 0..1_000u32 {
        junk[8..12].copy_from_slice(&nth.to_le_bytes());
        mac.sign(&mut junk);
        let source = SocketAddr::from(([10, 0, (nth >> 8) as u8, nth as u8], 1_000));
        let (event, out) = knock(&two, START, source, &junk);
        match event {
            Ok(HandshakeEvent::Challenged) => challenged += 1,
            Ok(_) => panic!("junk was answered"),
            Err(reason) => assert!(reason == DropReason::BadSeal && out.is_empty()),
        }
    }
    assert_eq!(challenged, 800);

    // A member gets in with one more round trip.
    let datagram = initiation(&two, START);
    let (event, mut out) = knock(&two, START, address(0), &datagram);
    assert!(matches!(event, Ok(HandshakeEvent::Challenged)));
    let cookie = out.pop().unwrap().bytes;
    let _ = two.hosts[0].handle_handshake(START, wall(), address(1), &cookie, &mut out);
    let proof = out.pop().unwrap().bytes;
    assert!(matches!(knock(&two, START, address(0), &proof).0, Ok(HandshakeEvent::Answered(_))));

    // What we start ourselves is not held up at all.
    let two = Two::new(40);
    let mac = MacOf(two.hosts[0].public_key());
    for nth in 0..1_000u32 {
        mac.sign(&mut junk);
        let source = SocketAddr::from(([10, 0, (nth >> 8) as u8, nth as u8], 1_000));
        let _ = two.hosts[0].handle_handshake(START, wall(), source, &junk, &mut Outbox::new());
    }
    two.meet(START);
    assert!(two.tunnels[0].status(START).session.is_some_and(|session| session.proven));

    // The load is over two seconds after it ended.
    let later = START + Duration::from_secs(3);
    let (back, mut out) = (two.tunnels[1].initiate(later, wall(), &mut Outbox::new()), Outbox::new());
    assert_eq!(back, Initiation::Sent);
    let _ = two.tunnels[1].initiate(later + Duration::from_secs(1), wall(), &mut out);
    let datagram = std::iter::from_fn(|| out.pop()).find(|outgoing| outgoing.bytes[0] == 1).unwrap().bytes;
    let event = two.hosts[0].handle_handshake(later, wall(), address(1), &datagram, &mut Outbox::new());
    assert!(matches!(event, Ok(HandshakeEvent::Answered(_))));
}

#[test]
fn a_preshared_key_is_part_of_the_next_handshake() {
    let with = |byte: u8| TunnelOptions { preshared_key: Some(Zeroizing::new([byte; 32])), ..on_demand() };
    let two = Two::with(41, [with(1), with(2)]);
    two.meet(START);
    assert!(two.tunnels[0].status(START).session.is_none(), "different keys");
    assert_eq!(two.hosts[0].drops()[DropReason::BadSeal as usize], 1);
    two.tunnels[1].set_options(with(1));
    two.meet(START + Duration::from_secs(5));
    assert!(two.tunnels[0].status(START).session.is_some(), "the same key");

    // Rotation: the session stands while the options change, and the next handshake uses the new key.
    two.tunnels[0].set_options(with(3));
    two.tunnels[1].set_options(with(3));
    assert!(two.open(1, START, &two.seal(0, START, &packet(64))).is_ok());
    let now = START + Duration::from_secs(10);
    two.meet(now);
    assert_eq!(two.tunnels[0].status(now).session.map(|session| session.established), Some(now));
}

/// Indices tell nothing: no two alike, no pattern of neighbours, and freed with their handshake.
#[test]
fn indices_are_random_and_freed() {
    let two = Two::new(42);
    let mut seen = std::collections::BTreeSet::new();
    for nth in 0..64 {
        let datagram = initiation(&two, START + Duration::from_secs(nth));
        seen.insert(u32::from_le_bytes(datagram[4..8].try_into().unwrap()) >> 8);
        assert!(two.hosts[0].load().1 <= 2, "two attempts at most");
    }
    assert_eq!(seen.len(), 64);
    let spread: Vec<_> = seen.iter().collect();
    assert!(spread.windows(2).filter(|pair| pair[1] - pair[0] < 1_000).count() < 5);
}

/// Threads that seal, open, shake hands, add and remove at the same time do not wait for each other for ever.
#[test]
fn the_locks_have_an_order() {
    let two = Two::met(43);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let two = &two;
            scope.spawn(move || {
                let mut out = Outbox::new();
                for nth in 0..200u64 {
                    let now = START + Duration::from_millis(250 * nth);
                    match (thread + nth) % 4 {
                        0 => {
                            let _ = two.tunnels[0].initiate(now, wall(), &mut out);
                            while let Some(outgoing) = out.pop() {
                                for host in &two.hosts {
                                    let _ = host.handle_handshake(now, wall(), address(0), &outgoing.bytes, &mut out);
                                }
                            }
                        }
                        1 => {
                            let key = PublicKey::from(&secret(1_000 + nth % 3)).to_bytes();
                            let _ = two.hosts[0].add(key, on_demand());
                            two.hosts[0].remove(now, &key);
                        }
                        2 => {
                            two.hosts[0].import_marks(two.hosts[0].marks());
                            two.tunnels[0].set_options(on_demand());
                        }
                        _ => {
                            let mut buffer = [0u8; 256];
                            let _ = two.tunnels[0].lock().seal(now, &packet(64), &mut buffer);
                            let index = u32::from_le_bytes(buffer[4..8].try_into().unwrap());
                            let found = two.hosts[1].by_index(index);
                            let _ = found.map(|tunnel| tunnel.lock().open(now, &buffer[..96], &mut [0; 256]));
                            two.tunnels[1].tick(now, wall(), &mut out);
                        }
                    }
                }
            });
        }
    });
}

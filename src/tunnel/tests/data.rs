//! Packets: bounds of counters, ages, buffers and lengths.

use super::super::session::{COUNTER_CEILING, REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES};
use super::*;
use std::time::Duration;

#[test]
fn a_counter_at_the_ceiling_never_reaches_the_window() {
    let two = Two::met(1);
    let mut datagram = two.seal(0, START, &packet(64));
    for (counter, expected) in [
        (COUNTER_CEILING - 1, DropReason::BadSeal),
        (COUNTER_CEILING, DropReason::CounterCeiling),
        (u64::MAX, DropReason::CounterCeiling),
    ] {
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(two.open(1, START, &datagram), Err(expected));
    }
    assert_eq!(two.drops(1, DropReason::CounterCeiling), 2);
    datagram[8..16].copy_from_slice(&two.seal(0, START, &packet(64))[8..16]);
    assert_eq!(two.open(1, START, &datagram), Err(DropReason::BadSeal), "still listening, still checking");
    assert!(two.open(1, START, &two.seal(0, START, &packet(64))).is_ok());
}

#[test]
fn messages_wear_a_session_out() {
    let two = Two::met(2);
    two.tunnels[0].state().sessions[0].sent = REKEY_AFTER_MESSAGES - 1;
    let mut out = Outbox::new();
    let datagram = two.seal(0, START, &packet(64));
    assert!(two.tunnels[0].lock().flush(START, wall(), &mut out) <= START);
    assert!(out.is_empty(), "packets do not wait for a handshake's arithmetic");
    two.tunnels[0].tick(START, wall(), &mut out);
    assert_eq!(out.pop().map(|outgoing| outgoing.bytes[0]), Some(1), "the next tick asks for a new session");
    assert!(two.open(1, START, &datagram).is_ok(), "and the old one serves until then");

    two.tunnels[0].state().sessions[0].sent = REJECT_AFTER_MESSAGES;
    let mut buffer = [0u8; 256];
    assert_eq!(two.tunnels[0].lock().seal(START, &packet(64), &mut buffer), Ok(Sealed::Held));
    assert_eq!(two.tunnels[0].status(START).session, None);
}

#[test]
fn a_session_is_dead_at_180_seconds_by_our_clock() {
    let two = Two::met(3);
    let last = START + Duration::from_millis(179_999);
    let dead = START + Duration::from_secs(180);
    let (early, late) = (two.seal(0, last, &packet(64)), two.seal(0, last, &packet(64)));
    assert!(two.open(1, last, &early).is_ok());
    assert_eq!(two.open(1, dead, &late), Err(DropReason::UnknownSession), "no tick was needed to notice");
    let mut buffer = [0u8; 256];
    assert_eq!(two.tunnels[0].lock().seal(dead, &packet(64), &mut buffer), Ok(Sealed::Held));
    two.tunnels[1].tick(dead, wall(), &mut Outbox::new());
    assert_eq!(two.tunnels[1].status(dead).sessions, 0);
    assert_eq!(two.hosts[1].load().1, 0, "its index is free again");
}

#[test]
fn packets_are_padded_up_to_the_mtu_and_trimmed_again() {
    let mut options = on_demand();
    options.mtu = 1_299;
    let two = Two::with(4, [options.clone(), options]);
    two.meet(START);
    for (length, on_wire) in
        [(20, 32), (32, 32), (33, 48), (1_280, 1_280), (1_281, 1_296), (1_297, 1_299), (1_299, 1_299), (1_400, 1_400)]
    {
        let datagram = two.seal(0, START, &packet(length));
        assert_eq!(datagram.len(), on_wire + OVERHEAD, "a packet of {length}");
        assert_eq!(two.open(1, START, &datagram), Ok(Opened { length, confirmed: false }));
    }
    let bytes: u64 = [20, 32, 33, 1_280, 1_281, 1_297, 1_299, 1_400].iter().sum();
    assert_eq!(two.tunnels[0].status(START).sent, Traffic { packets: 8, bytes });
    assert_eq!(two.tunnels[1].status(START).received, Traffic { packets: 8, bytes });
}

#[test]
fn an_ipv6_packet_is_trimmed_too() {
    let two = Two::met(5);
    let mut packet = vec![7u8; 45];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&5u16.to_be_bytes());
    let datagram = two.seal(0, START, &packet);
    assert_eq!(two.open(1, START, &datagram), Ok(Opened { length: 45, confirmed: false }));
}

#[test]
fn sealed_rubbish_is_dropped_but_shows_that_the_peer_lives() {
    let two = Two::met(6);
    let short_v4 = |claimed: u16| {
        let mut packet = packet(40);
        packet[2..4].copy_from_slice(&claimed.to_be_bytes());
        packet
    };
    let mut long_v6 = vec![0u8; 48];
    (long_v6[0], long_v6[5]) = (0x60, 9);
    let rubbish =
        [vec![0xff; 40], vec![0; 1], vec![0x45; 16], short_v4(0), short_v4(19), short_v4(49), long_v6, vec![0x60; 39]];
    for (nth, packet) in rubbish.iter().enumerate() {
        let now = START + Duration::from_secs(nth as u64);
        let datagram = two.seal(0, now, packet);
        assert_eq!(two.open(1, now, &datagram), Err(DropReason::BadInnerPacket), "{packet:?}");
        assert_eq!(two.tunnels[1].status(now).last_received, Some(now));
    }
    assert_eq!(two.tunnels[1].status(START).received, Traffic::default());
}

#[test]
fn small_buffers_are_refused_without_a_panic() {
    let two = Two::met(7);
    let mut guard = two.tunnels[0].lock();
    for room in [0, 31, 96, 147] {
        assert_eq!(guard.seal(START, &packet(64), &mut vec![0; room]), Err(DropReason::TooBig), "{room} bytes");
    }
    assert_eq!(guard.seal(START, &packet(200), &mut [0; 239]), Err(DropReason::TooBig));
    assert_eq!(guard.seal(START, &packet(200), &mut [0; 240]), Ok(Sealed::Datagram(240)));
    drop(guard);
    let datagram = two.seal(0, START, &packet(64));
    let mut guard = two.tunnels[1].lock();
    for room in [0, 63, 95] {
        assert_eq!(guard.open(START, &datagram, &mut vec![0; room]), Err(DropReason::TooBig), "{room} bytes");
    }
    assert!(guard.open(START, &datagram, &mut [0; 96]).is_ok(), "and the datagram was not used up");
    drop(guard);
    for length in 0..OVERHEAD {
        assert_eq!(two.open(1, START, &datagram[..length]), Err(DropReason::Malformed));
    }
}

/// A batch that several queues have shuffled reaches further back than boringtun's window of 1,024.
#[test]
fn a_shuffled_batch_is_opened_in_its_own_order() {
    const MANY: usize = 3_000;
    let two = Two::met(8);
    let datagrams: Vec<_> = (0..MANY).map(|nth| two.seal(0, START, &packet(28 + nth % 50))).collect();
    let mut batch: Vec<_> = datagrams.iter().enumerate().rev().map(|(tag, bytes)| Datagram { bytes, tag }).collect();
    batch.push(Datagram { bytes: &datagrams[5], tag: MANY });
    batch.push(Datagram { bytes: &[4, 0, 0, 0], tag: MANY + 1 });
    let mut order = Vec::new();
    let mut failed = Vec::new();
    let mut guard = two.tunnels[1].lock();
    guard.open_batch(START, &mut batch, &mut [0; 2_048], |tag, opened, packet| match opened {
        Ok(opened) => {
            assert_eq!((packet.len(), opened.length), (28 + tag % 50, 28 + tag % 50));
            order.push(tag);
        }
        Err(reason) => failed.push((tag, reason)),
    });
    drop(guard);
    assert!(order.is_sorted() && order.len() == MANY);
    failed.sort();
    assert_eq!(failed, [(MANY, DropReason::Replayed), (MANY + 1, DropReason::Malformed)]);

    // One by one and backwards, whatever lies more than the window behind falls out, and is counted.
    let two = Two::met(8);
    let datagrams: Vec<_> = (0..MANY).map(|_| two.seal(0, START, &packet(28))).collect();
    let opened = datagrams.iter().rev().filter(|datagram| two.open(1, START, datagram).is_ok()).count();
    assert!((1_024..=1_025).contains(&opened), "{opened}");
    assert_eq!(two.drops(1, DropReason::TooOld), (MANY - opened) as u64);
}

#[test]
fn what_waits_goes_out_first_and_in_order() {
    let two = Two::new(9);
    let mut out = Outbox::new();
    let mut buffer = [0u8; 256];
    for length in 30..40 {
        let mut guard = two.tunnels[0].lock();
        assert_eq!(guard.seal(START, &packet(length), &mut buffer), Ok(Sealed::Held));
        guard.flush(START, wall(), &mut out);
    }
    let Some(initiation) = out.pop() else { panic!("no initiation") };
    assert!(out.is_empty(), "one initiation for all of them");
    let _ = two.hosts[1].handle_handshake(START, wall(), address(0), &initiation.bytes, &mut out);
    let Some(response) = out.pop() else { panic!("no response") };

    // The session stands, but the batch is not flushed yet: a new packet must not overtake.
    let tunnel = &two.tunnels[0];
    let index = u32::from_le_bytes(response.bytes[8..12].try_into().unwrap());
    let received =
        tunnel.state().receive_response(START, response.bytes[..].try_into().unwrap(), index, &tunnel.peer, &mut out);
    assert_eq!(received, Ok(()));
    let mut guard = tunnel.lock();
    assert_eq!(guard.seal(START, &packet(40), &mut buffer), Ok(Sealed::Held));
    guard.flush(START, wall(), &mut out);
    assert_eq!(guard.seal(START, &packet(41), &mut buffer), Ok(Sealed::Datagram(48 + OVERHEAD)));
    drop(guard);
    let [_, arrived] = two.settle(START, 0, out);
    let lengths: Vec<_> = arrived.iter().map(Vec::len).collect();
    assert_eq!(lengths, (30..=40).collect::<Vec<_>>());
}

#[test]
fn a_full_queue_refuses_and_old_packets_leave_it() {
    let two = Two::new(10);
    let mut buffer = [0u8; 256];
    let mut guard = two.tunnels[0].lock();
    for _ in 0..1_024 {
        assert_eq!(guard.seal(START, &packet(64), &mut buffer), Ok(Sealed::Held));
    }
    assert_eq!(guard.seal(START, &packet(64), &mut buffer), Err(DropReason::HoldFull));
    drop(guard);
    assert_eq!(two.hosts[0].load().0, 1_024 * (64 + 64), "a place in the queue is memory too");
    let later = START + Duration::from_secs(30);
    two.tunnels[0].tick(later, wall(), &mut Outbox::new());
    assert_eq!(two.hosts[0].load().0, 0);
    assert_eq!(two.drops(0, DropReason::HoldFull), 1_025);
}

#[test]
fn what_is_held_back_for_a_restart_goes_out_in_order_once_the_next_session_stands() {
    let two = Two::met(13);
    let mut buffer = [0u8; 256];
    let [ours, theirs] = &two.tunnels;
    theirs.hold(START + Duration::from_secs(2));
    let now = START + Duration::from_millis(100);
    for length in 30..40 {
        assert_eq!(
            theirs.lock().seal(now, &packet(length), &mut buffer),
            Ok(Sealed::Held),
            "the session is left alone"
        );
    }
    let mut out = Outbox::new();
    theirs.tick(now, wall(), &mut out);
    assert!(out.is_empty() && theirs.is_holding(now), "nothing leaves before there is a new session");
    // The one that restarts starts the next session, and is answered.
    let _ = ours.initiate(now, wall(), &mut out);
    let [arrived, _] = two.settle(now, 0, out);
    assert_eq!(arrived.iter().map(Vec::len).collect::<Vec<_>>(), (30..40).collect::<Vec<_>>());
    assert!(!theirs.is_holding(now));
    assert!(matches!(theirs.lock().seal(now, &packet(64), &mut buffer), Ok(Sealed::Datagram(_))), "as ever");
}

#[test]
fn what_is_held_back_for_nobody_goes_out_under_the_old_session_when_the_time_is_over() {
    let two = Two::met(14);
    let until = START + Duration::from_secs(2);
    two.tunnels[1].hold(until);
    let mut buffer = [0u8; 256];
    let before = until - Duration::from_millis(1);
    assert_eq!(two.tunnels[1].lock().seal(before, &packet(64), &mut buffer), Ok(Sealed::Held));
    assert!(two.tunnels[1].deadline() <= until, "it wakes by itself");
    let mut out = Outbox::new();
    two.tunnels[1].tick(until, wall(), &mut out);
    let [arrived, _] = two.settle(until, 1, out);
    assert_eq!(arrived.len(), 1);
    // No longer than a peer without a session, and in no more room.
    two.tunnels[1].hold(until + Duration::from_secs(2));
    for _ in 0..1_024 {
        assert_eq!(two.tunnels[1].lock().seal(until, &packet(64), &mut buffer), Ok(Sealed::Held));
    }
    assert_eq!(two.tunnels[1].lock().seal(until, &packet(64), &mut buffer), Err(DropReason::HoldFull));
}

#[test]
fn a_closed_tunnel_passes_nothing_and_keeps_nothing() {
    let two = Two::met(11);
    let datagram = two.seal(0, START, &packet(64));
    let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
    assert!(two.hosts[1].by_index(index).is_some());
    two.tunnels[1].close(START);
    assert!(two.hosts[1].by_index(index).is_none());
    assert_eq!(two.open(1, START, &datagram), Err(DropReason::NotAdmitted));
    assert_eq!(two.tunnels[1].lock().seal(START, &packet(64), &mut [0; 256]), Err(DropReason::NotAdmitted));
    let mut out = Outbox::new();
    assert_eq!(two.tunnels[1].initiate(START, wall(), &mut out), Initiation::Closed);
    two.tunnels[1].tick(START + Duration::from_secs(600), wall(), &mut out);
    assert!(out.is_empty());
    let status = two.tunnels[1].status(START);
    assert!(status.closed && status.session.is_none() && status.sessions == 0);
    assert_eq!(two.hosts[1].load(), (0, 0));

    // The peer's next initiation is understood, and refused.
    let now = START + Duration::from_secs(1);
    let _ = two.tunnels[0].initiate(now, wall(), &mut out);
    let Some(initiation) = out.pop() else { panic!("no initiation") };
    let refused = two.hosts[1].handle_handshake(now, wall(), address(0), &initiation.bytes, &mut out);
    assert_eq!(refused.err(), Some(DropReason::NotAdmitted));
    assert!(out.is_empty());
}

/// What a peer costs. Run with `--nocapture` for the figures.
#[test]
fn memory_per_peer_is_bounded() {
    let idle = size_of::<Tunnel>();
    let live = idle + size_of::<super::super::session::Session>() + size_of::<boringtun::noise::Tunn>();
    println!("idle peer: {idle} bytes; with one session: {live} bytes; each further session kept: {}", live - idle);
    assert!(idle <= 2_048, "{idle}");
    assert!(live <= 14 * 1_024, "{live}");

    // After a rekey the old session is kept for ten seconds, and no longer.
    let two = Two::met(12);
    two.meet(START + Duration::from_secs(1));
    assert_eq!(two.tunnels.each_ref().map(|tunnel| tunnel.status(START).sessions), [2, 2]);
    let later = START + Duration::from_secs(11);
    for tunnel in &two.tunnels {
        tunnel.tick(later, wall(), &mut Outbox::new());
        assert_eq!(tunnel.status(later).sessions, 1);
    }
}

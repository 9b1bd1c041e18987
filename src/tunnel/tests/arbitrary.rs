//! Datagrams from anyone: never a panic, never memory for a stranger beyond the bounded tables.

use super::doors::MacOf;
use super::*;
use proptest::prelude::*;

/// Messages of the three handshake types from the first host to the second, to be mangled.
fn messages(two: &Two) -> Vec<Vec<u8>> {
    let mut out = Outbox::new();
    let _ = two.tunnels[0].initiate(START, wall(), &mut out);
    let initiation = out.pop().unwrap().bytes;
    let _ = two.tunnels[1].initiate(START, wall(), &mut out);
    let theirs = out.pop().unwrap().bytes;
    let later = START + std::time::Duration::from_secs(2);
    let _ = two.hosts[0].handle_handshake(later, wall(), address(1), &theirs, &mut out);
    let response = out.pop().unwrap().bytes;
    let mut cookie = vec![0u8; 64];
    cookie[0] = 3;
    cookie[4..8].copy_from_slice(&theirs[4..8]);
    vec![initiation, response, cookie]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn rubbish_of_any_length(kind in 0u8..6, length in 0usize..300, bytes in proptest::collection::vec(any::<u8>(), 300)) {
        let two = Two::met(50);
        let before = (two.hosts[1].load(), two.tunnels[1].status(START));
        let mut datagram = bytes[..length].to_vec();
        if let Some(first) = datagram.first_chunk_mut::<4>() {
            *first = [kind, 0, 0, 0];
        }
        let mut out = Outbox::new();
        prop_assert!(two.hosts[1].handle_handshake(START, wall(), address(9), &datagram, &mut out).is_err());
        let mut buffer = [0u8; 300];
        prop_assert!(two.tunnels[1].lock().open(START, &datagram, &mut buffer).is_err());
        prop_assert!(out.is_empty());
        let after = two.tunnels[1].status(START);
        prop_assert_eq!(before.0, two.hosts[1].load());
        prop_assert_eq!(before.1.session, after.session);
        prop_assert_eq!(before.1.last_received, after.last_received);
    }

    #[test]
    fn mangled_messages_with_a_good_mac(
        which in 0usize..3,
        changes in proptest::collection::vec((4usize..148, 1u8..), 1..4),
    ) {
        let two = Two::new(51);
        let mut datagram = messages(&two).swap_remove(which);
        let body = datagram.len() - if which == 2 { 0 } else { 32 };
        let original = datagram.clone();
        for (at, change) in changes {
            datagram[4 + (at - 4) % (body - 4)] ^= change;
        }
        prop_assume!(datagram != original);
        if which < 2 {
            MacOf(two.hosts[1].public_key()).sign(&mut datagram);
        }
        let load = two.hosts[1].load();
        let mut out = Outbox::new();
        let result = two.hosts[1].handle_handshake(START, wall(), address(0), &datagram, &mut out);
        // WireGuard seals everything but the sender's index; whoever changes that could as well drop the message.
        let only_index = original[8..] [..body - 8] == datagram[8..][..body - 8];
        if !only_index {
            prop_assert!(result.is_err());
            prop_assert!(out.is_empty());
            prop_assert_eq!(two.hosts[1].load(), load);
            prop_assert!(two.tunnels[1].status(START).session.is_none());
        }
    }

    #[test]
    fn mangled_data(at in 0usize..96, change in 1u8..) {
        let two = Two::met(52);
        let mut datagram = two.seal(0, START, &packet(64));
        datagram[at] ^= change;
        let before = two.tunnels[1].status(START);
        prop_assert!(two.open(1, START, &datagram).is_err());
        prop_assert_eq!(two.tunnels[1].status(START).received, before.received);
        datagram[at] ^= change;
        prop_assert!(two.open(1, START, &datagram).is_ok(), "the forgery did not use up the counter");
    }

    #[test]
    fn any_packet_is_sealed_and_judged(bytes in proptest::collection::vec(any::<u8>(), 1..200), mtu in 0usize..300) {
        let options = TunnelOptions { mtu, ..on_demand() };
        let two = Two::with(53, [options, on_demand()]);
        two.meet(START);
        let datagram = two.seal(0, START, &bytes);
        prop_assert!(datagram.len() - OVERHEAD <= mtu.max(bytes.len()));
        match two.open(1, START, &datagram) {
            Ok(opened) => prop_assert!(opened.length >= 20 && opened.length <= bytes.len() + 15),
            Err(reason) => prop_assert_eq!(reason, DropReason::BadInnerPacket),
        }
    }
}

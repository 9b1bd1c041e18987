//! Several threads, each with queues and a socket of its own: every flow in order, whichever of them moves it.

use super::*;
use crate::platform::steering::Steering;
use crate::tunnel::Shard;
use std::sync::atomic::{AtomicU32, Ordering};

/// Addresses beside a node's own, so that one peer's packets are several threads' work.
const MORE: u8 = 4;

/// Flows to each of them.
const FLOWS: usize = 3;

/// Datagrams of a flow under way at once: what a socket's usual buffer (208 KiB) holds even where the kernel, having cut a run,
/// counts a page and more for each.
const WINDOW: u32 = 24;

/// Datagrams of a flow.
const LENGTH: u32 = 2_000;

/// Queues of each shard.
const LANES: u8 = 3;

fn more(number: u8) -> IpNet {
    format!("10.1.{}.0/24", 100 + number).parse().unwrap()
}

fn start(number: u8, shards: u8) -> Node {
    let (sockets, steered) =
        UdpSocket::bind_shards("127.0.0.1:0".parse().unwrap(), UdpOptions::default(), shards).unwrap();
    steered.unwrap();
    let make = move || Tun::create_queues("mesh%d", &Steering::load(shards, LANES).unwrap()).unwrap();
    Node::start_with(number, make, sockets)
}

/// Makes the nodes peers of each other with all their addresses.
fn acquaint_with_more(a: &Node, b: &Node, shard: Shard) -> [Arc<Peer>; 2] {
    [(a, b), (b, a)].map(|(here, there)| {
        let tunnel = here.host.add(there.host.public_key(), TunnelOptions::default()).unwrap();
        tunnel.set_shard(shard);
        let peer = Peer::new(node(there.number), tunnel, 1420);
        peer.set_shared(shard.of > 1);
        peer.set_path(Some(Path::Direct { remote: there.address(), local: None }));
        let mut networks = nets(there.number);
        networks.push(more(there.number));
        let own = Local { prefixes: vec![more(here.number)], ..local(here.number) };
        here.table.store(Arc::new(ForwardingTable::new(own, vec![(Arc::clone(&peer), networks)])));
        peer
    })
}

/// One flow from `from` to address `last` of `to`, all of it, in order. Returns where to look how far it is.
fn flow(from: &Node, to: &Node, last: u8) -> (Arc<AtomicU32>, [std::thread::JoinHandle<()>; 2]) {
    let receiver = to.socket(&format!("10.1.{}.{last}", 100 + to.number));
    let sender = from.socket(&v4(from.number));
    let (target, seen) = (receiver.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
    let (heard, told) = (Arc::clone(&seen), Arc::clone(&seen));
    let receiving = std::thread::spawn(move || {
        let mut buffer = [0; 2_000];
        for expected in 0..LENGTH {
            let length = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("datagram {expected}: {error}"));
            let number = u32::from_le_bytes(buffer[..4].try_into().unwrap());
            assert_eq!((number, length), (expected, size(expected)), "out of order, or lost");
            heard.store(expected + 1, Ordering::Release);
        }
    });
    let sending = std::thread::spawn(move || {
        for number in 0..LENGTH {
            let end = clock::now() + PATIENCE;
            while number - told.load(Ordering::Acquire) >= WINDOW {
                assert!(clock::now() < end, "datagram {number} waits for one that never came");
                std::thread::yield_now();
            }
            let mut data = vec![0; size(number)];
            data[..4].copy_from_slice(&number.to_le_bytes());
            sender.send_to(&data, target).unwrap();
        }
    });
    (seen, [receiving, sending])
}

/// Of many lengths, so that some share a run and some do not.
fn size(number: u32) -> usize {
    4 + (number / 8 * 97 % 1_200) as usize
}

#[test]
fn every_flow_arrives_in_order_across_rekeys_whichever_thread_moves_it() {
    in_namespace("every_flow_arrives_in_order_across_rekeys", || {
        for (shards, received_by) in [(1, 0), (2, 0), (2, 1), (4, 3)] {
            if let Err(error) = Steering::load(shards, LANES) {
                return eprintln!("NOT RUN: the kernel takes no programs here: {error}");
            }
            let (a, b) = (start(1, shards), start(2, shards));
            let peers = acquaint_with_more(&a, &b, Shard { number: received_by, of: shards });
            // The first packets find no session and wait for it.
            streams_pass(&a, &b);
            let mut flows = Vec::new();
            for last in 1..=MORE {
                flows.extend((0..FLOWS).map(|_| flow(&a, &b, last)));
                flows.extend((0..FLOWS).map(|_| flow(&b, &a, last)));
            }
            // A new session after each quarter, asked for by either side in turns.
            for quarter in 1..4 {
                while flows.iter().any(|(seen, threads)| {
                    seen.load(Ordering::Acquire) < LENGTH * quarter / 4 && !threads[0].is_finished()
                }) {
                    std::thread::yield_now();
                }
                let (node, peer) = [(&a, &peers[0]), (&b, &peers[1])][quarter as usize % 2];
                let before = peer.tunnel().status(clock::now()).handshakes;
                let _ = node.plane.transmitter().initiate(peer, None);
                let end = clock::now() + PATIENCE;
                while peer.tunnel().status(clock::now()).handshakes == before {
                    assert!(clock::now() < end, "no new session");
                    std::thread::yield_now();
                }
            }
            for thread in flows.into_iter().flat_map(|(_, threads)| threads) {
                thread.join().unwrap();
            }
            for (node, peer) in [(&a, &peers[0]), (&b, &peers[1])] {
                let index = peer.tunnel().status(clock::now()).session.unwrap().local_index;
                assert_eq!(index.to_le_bytes()[1] % shards, received_by);
                let none = [0; DropReason::ALL.len()];
                assert_eq!((node.plane.outbound().drops, node.plane.inbound().drops), (none, none));
            }
        }
    });
}

#[test]
fn what_waits_in_another_lane_does_not_wait_for_a_stream_to_end() {
    in_namespace("what_waits_in_another_lane_does_not_wait_for_a_stream_to_end", || {
        if let Err(error) = Steering::load(1, LANES) {
            return eprintln!("NOT RUN: the kernel takes no programs here: {error}");
        }
        let a = start(1, 1);
        let (hand, _) = Hand::shake(&a);
        let (stream, other) = (a.socket(&v4(1)), a.socket(&v4(1)));
        // Stopped, so that all of it waits in the device.
        let Node { ports, table, host, plane, .. } = a;
        plane.stop();
        let target = format!("{}:7", v4(9));
        (0..200).for_each(|_| assert_eq!(stream.send_to(&[1; 100], &target).unwrap(), 100));
        // In fragments, which have a lane without ports.
        other.send_to(&[2; 2_000], &target).unwrap();
        let (plane, _receivers) = Node::plane(ports, &table, &host, false);
        let (mut datagram, mut packet, mut before) = ([0; 2_000], [0; 2_000], 0);
        loop {
            let length = hand.socket.recv(&mut datagram).unwrap();
            let opened = hand.tunnel.lock().open(clock::now(), &datagram[..length], &mut packet).unwrap();
            match InnerPacket::parse(&packet[..opened.length]) {
                Ok(inner) if inner.is_fragment => break,
                _ => before += 1,
            }
        }
        assert!(before < 200, "sent last, and it came last");
        plane.stop();
    });
}

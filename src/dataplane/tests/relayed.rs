//! Three nodes: the first and the third reach each other through the second alone.

use super::*;
use crate::wire::relayed;

/// The nodes 1, 2 and 3, of which 2 relays if `permitted`; each knows the two others, and 1 and 3 go by 2.
struct Relayed {
    nodes: [Node; 3],
    /// The peers of each, in the order of the others' numbers.
    peers: [Vec<Arc<Peer>>; 3],
}

impl Relayed {
    fn start(permitted: bool) -> Relayed {
        let nodes = [Node::start(1), Node::start(2), Node::start(3)];
        let key = |at: usize| nodes[at].host.public_key();
        let address = |at: usize| Some(nodes[at].address());
        let peers = [
            nodes[0].know(&[(2, key(1), address(1)), (3, key(2), None)]),
            nodes[1].know(&[(1, key(0), address(0)), (3, key(2), address(2))]),
            nodes[2].know(&[(1, key(0), None), (2, key(1), address(1))]),
        ];
        let relayed = Relayed { nodes, peers };
        relayed.permit(permitted);
        for (peer, via, own, other) in
            [(relayed.to(0, 1), relayed.to(0, 0), 1, 3), (relayed.to(2, 0), relayed.to(2, 1), 3, 1)]
        {
            let (source, destination) = (v6(own).parse().unwrap(), v6(other).parse().unwrap());
            let via = Arc::clone(via);
            peer.set_path(Some(Path::Relay(RelayPath { via, source, destination })));
        }
        // The sessions with the relay.
        for (at, peer) in [(0, relayed.to(0, 0)), (2, relayed.to(2, 1))] {
            assert_eq!(relayed.nodes[at].plane.transmitter().initiate(peer, None), Initiation::Sent);
            wait_for_session(peer);
        }
        for peer in &relayed.peers[1] {
            wait_for_session(peer);
        }
        relayed
    }

    fn to(&self, at: usize, peer: usize) -> &Arc<Peer> {
        &self.peers[at][peer]
    }

    /// What the members know of the second one's certificate, all of them.
    fn permit(&self, permitted: bool) {
        let node = &self.nodes[1];
        let networks = |number| nets(number);
        let peers = self.peers[1].iter().zip([1, 3]).map(|(peer, number)| (Arc::clone(peer), networks(number)));
        let own = Local { relays: permitted, ..local(2) };
        node.table.store(Arc::new(ForwardingTable::new(own, peers.collect())));
        self.to(0, 0).set_relay(permitted);
        self.to(2, 1).set_relay(permitted);
    }

    /// Puts a packet, said to be a sealed datagram on its way, into the first node's tunnel to the relay.
    fn say(&self, source: u8, destination: u8, passed: u8) {
        let (source, destination) = (v6(source).parse().unwrap(), v6(destination).parse().unwrap());
        let mut packet = relayed::wrap(source, destination, &[4; 64]);
        packet[7] -= passed;
        self.nodes[0].plane.transmitter().send_packet(self.to(0, 0), None, &packet).unwrap();
    }
}

fn wait_for_session(peer: &Peer) {
    let end = clock::now() + PATIENCE;
    while peer.tunnel().status(clock::now()).session.is_none() {
        assert!(clock::now() < end, "no session");
        std::thread::yield_now();
    }
}

#[test]
fn what_one_member_seals_another_opens_and_the_relay_does_not() {
    in_namespace("what_one_member_seals_another_opens_and_the_relay_does_not", || {
        let relayed = Relayed::start(true);
        let [a, relay, b] = &relayed.nodes;
        assert_eq!(a.plane.transmitter().initiate(relayed.to(0, 1), None), Initiation::Sent);
        wait_for_session(relayed.to(0, 1));
        for (from, to) in [(v4(1), v4(3)), (v6(1), v6(3))] {
            let (here, there) = (a.socket(&from), b.socket(&to));
            for round in 0..100usize {
                let data = vec![round as u8; 1 + round * 12];
                here.send_to(&data, there.local_addr().unwrap()).unwrap();
                let mut buffer = [0; 2_000];
                let (length, source) = there.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], source), (&data[..], here.local_addr().unwrap()));
                there.send_to(&buffer[..length], source).unwrap();
                assert_eq!(here.recv_from(&mut buffer).unwrap().0, length);
            }
        }
        let passed = relay.plane.inbound();
        assert!(passed.relayed_packets >= 400 && passed.relayed_bytes >= 400 * 100, "{passed:?}");
        assert_eq!((passed.packets, passed.drops), (0, [0; DropReason::ALL.len()]), "none of it is the relay's");
        assert_eq!(b.plane.inbound().drops, [0; DropReason::ALL.len()]);
        assert_eq!(relayed.to(0, 1).mtu(), 1_328, "of 1,420 to the relay");
    });
}

#[test]
fn streams_fit_a_relayed_link() {
    in_namespace("streams_fit_a_relayed_link", || {
        let relayed = Relayed::start(true);
        let [a, _, b] = &relayed.nodes;
        assert_eq!(a.plane.transmitter().initiate(relayed.to(0, 1), None), Initiation::Sent);
        wait_for_session(relayed.to(0, 1));
        let listener = b.inside.run(|| TcpListener::bind((v4(3).as_str(), 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let mut client = a.inside.run(move || TcpStream::connect(target).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        let data: Vec<u8> = (0..500_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let expected = data.clone();
        let sending = std::thread::spawn(move || client.write_all(&data).unwrap());
        let mut received = vec![0; expected.len()];
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        server.read_exact(&mut received).unwrap();
        sending.join().unwrap();
        assert!(received == expected);
    });
}

#[test]
fn what_may_not_be_relayed_is_dropped_for_its_reason() {
    in_namespace("what_may_not_be_relayed_is_dropped_for_its_reason", || {
        let relayed = Relayed::start(true);
        let [_, relay, b] = &relayed.nodes;
        // To nobody's address, and to its sender.
        relayed.say(1, 77, 0);
        relay.until_dropped(DropReason::ReservedPort, 1);
        relayed.say(1, 1, 0);
        relay.until_dropped(DropReason::NoRelay, 1);
        // What a relay has passed on, and what has been passed on twice.
        relayed.say(1, 3, 1);
        relayed.say(1, 3, 2);
        relay.until_dropped(DropReason::NoRelay, 3);
        // In another member's name.
        relayed.say(3, 1, 0);
        relay.until_dropped(DropReason::ForeignSource, 1);
        assert_eq!(relay.plane.inbound().relayed_packets, 0);
        // The permission is withdrawn: the relay refuses, and so does who is brought something by it.
        relayed.to(2, 1).set_relay(false);
        relayed.say(1, 3, 0);
        b.until_dropped(DropReason::NoRelay, 1);
        relayed.permit(false);
        relayed.say(1, 3, 0);
        relay.until_dropped(DropReason::NoRelay, 4);
        assert_eq!(relay.plane.inbound().relayed_packets, 1);
    });
}

#[test]
fn what_came_by_a_relay_goes_to_no_other() {
    in_namespace("what_came_by_a_relay_goes_to_no_other", || {
        let relayed = Relayed::start(true);
        let [a, _, b] = &relayed.nodes;
        assert_eq!(a.plane.transmitter().initiate(relayed.to(0, 1), None), Initiation::Sent);
        wait_for_session(relayed.to(0, 1));
        // The third node may relay too, and is asked to, inside what the second one relays to it.
        let own = Local { relays: true, ..local(3) };
        let peers = relayed.peers[2].iter().zip([1, 2]).map(|(peer, number)| (Arc::clone(peer), nets(number)));
        b.table.store(Arc::new(ForwardingTable::new(own, peers.collect())));
        let packet = relayed::wrap(v6(1).parse().unwrap(), v6(2).parse().unwrap(), &[4; 64]);
        a.plane.transmitter().send_packet(relayed.to(0, 1), None, &packet).unwrap();
        b.until_dropped(DropReason::NoRelay, 1);
        assert_eq!(b.plane.inbound().relayed_packets, 0);
    });
}

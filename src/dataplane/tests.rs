//! The data plane against the real kernel: devices in namespaces of their own, datagrams over loopback.

use super::inner::tests::{packet, udp};
use super::*;
use crate::identity::NodeId;
use crate::platform::clock;
use crate::platform::host_state::{Device, HostState};
use crate::platform::netlink;
use crate::platform::test_namespace::{Beside, in_namespace, runtime};
use crate::platform::tun::{Framing, Runs, Tun};
use crate::platform::udp::{UdpOptions, UdpSocket};
use crate::tunnel::{Host, Initiation, Outbox, Sealed, Tunnel, TunnelOptions};
use crate::wire::DropReason;
use crate::wire::overlay::{CONTROL_PORT, wrap};
use crate::wire::probe::{PING, Probe, ProbeRequest};
use crate::wire::receipts::Receipts;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use std::io::{ErrorKind, Read, Write};
use std::net::{self, IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

mod relayed;
mod sharded;

/// A wait that only a failing test sees the end of.
const PATIENCE: Duration = Duration::from_secs(20);

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn v4(number: u8) -> String {
    format!("10.1.0.{number}")
}

fn v6(number: u8) -> String {
    format!("fd00::{number}")
}

fn nets(number: u8) -> Vec<IpNet> {
    let addresses: [IpAddr; 2] = [v4(number).parse().unwrap(), v6(number).parse().unwrap()];
    addresses.map(IpNet::from).into()
}

fn local(number: u8) -> Local {
    Local {
        address_v4: v4(number).parse().unwrap(),
        address_v6: v6(number).parse().unwrap(),
        overlay_v4: "10.1.0.0/16".parse().unwrap(),
        overlay_v6: "fd00::/64".parse().unwrap(),
        prefixes: vec![],
        relays: false,
    }
}

fn make_host(number: u8) -> Arc<Host> {
    Host::new([number; 32].into(), [number; 32])
}

/// A node with a device in a namespace of its own and a stand-in for the control task.
struct Node {
    inside: Beside,
    host: Arc<Host>,
    tun: Arc<Tun>,
    udp: Arc<UdpSocket>,
    ports: Vec<Ports>,
    table: Arc<ArcSwap<ForwardingTable>>,
    plane: Dataplane,
    events: mpsc::Receiver<Event>,
    control: mpsc::Receiver<ControlPacket>,
    probes: std::sync::mpsc::Receiver<ControlPacket>,
    number: u8,
}

impl Node {
    fn start(number: u8) -> Node {
        Node::start_on(number, Framing::Vnet, "127.0.0.1:0")
    }

    fn start_on(number: u8, framing: Framing, listen: &str) -> Node {
        let make = move || vec![Tun::open("mesh%d", framing).unwrap()];
        let udp = UdpSocket::bind(listen.parse().unwrap(), UdpOptions::default()).unwrap();
        Node::start_with(number, make, vec![udp])
    }

    /// With queues of the device for each of the sockets, as many for each.
    fn start_with(number: u8, make: impl FnOnce() -> Vec<Tun> + Send + 'static, sockets: Vec<UdpSocket>) -> Node {
        let inside = Beside::new();
        let queues = inside.run(move || {
            let queues = make();
            let own = [v4(number).parse().unwrap(), v6(number).parse().unwrap()];
            // And some of a prefix that only `sharded` has it carry.
            let more = (1..5).map(|last| IpAddr::from([10, 1, 100 + number, last]));
            let addresses: Vec<IpAddr> = own.into_iter().chain(more).collect();
            let device = Device {
                name: queues[0].name().into(),
                mtu: 1420,
                addresses: addresses.into_iter().collect(),
                routes: ["10.1.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()].into(),
                sized: Default::default(),
            };
            let state = HostState { device: Some(device), covers: Default::default() };
            let applied = runtime().block_on(async { netlink::Host::connect().unwrap().apply(&state).await.unwrap() });
            assert!(applied.failed.is_empty(), "{applied:?}");
            queues
        });
        let host = make_host(number);
        let table = Arc::new(ArcSwap::from_pointee(ForwardingTable::new(local(number), vec![])));
        let lanes = queues.len() / sockets.len();
        let mut queues = queues.into_iter().map(Arc::new);
        let ports = |udp| Ports { lanes: queues.by_ref().take(lanes).collect(), udp: Arc::new(udp) };
        let ports: Vec<Ports> = sockets.into_iter().map(ports).collect();
        let (tun, udp) = (Arc::clone(&ports[0].lanes[0]), Arc::clone(&ports[0].udp));
        // Of a pair, one of each kind.
        let polls = number == 2;
        let (plane, receivers) = Self::plane(ports.clone(), &table, &host, polls);
        let Receivers { events, control, probes, datagrams } = receivers;
        Self::answer_handshakes(datagrams, Arc::clone(&host), Arc::clone(&table), plane.transmitter().clone());
        Node { inside, host, tun, udp, ports, table, plane, events, control, probes, number }
    }

    fn plane(
        ports: Vec<Ports>,
        table: &Arc<ArcSwap<ForwardingTable>>,
        host: &Arc<Host>,
        polls: bool,
    ) -> (Dataplane, Receivers) {
        let (queues, receivers) = queues();
        (
            Dataplane::start(ports, table, host, &queues, Habits { polls, longest_sleep: None, confined: true })
                .unwrap(),
            receivers,
        )
    }

    /// Does what the control task does with handshakes; ends with the data plane.
    fn answer_handshakes(
        mut datagrams: mpsc::Receiver<UnopenedDatagram>,
        host: Arc<Host>,
        table: Arc<ArcSwap<ForwardingTable>>,
        transmitter: Transmitter,
    ) {
        std::thread::spawn(move || {
            while let Some(datagram) = datagrams.blocking_recv() {
                let mut outbox = Outbox::new();
                let (now, wall) = (clock::now(), clock::wall());
                assert!(datagram.at <= now);
                let event = host.handle_handshake(now, wall, datagram.origin.source(), &datagram.bytes, &mut outbox);
                let source = back(&table.load(), &datagram.origin);
                use crate::tunnel::HandshakeEvent::*;
                if let Ok(Answered(tunnel) | Established(tunnel) | Outranked(tunnel) | CookieTaken(tunnel)) = event {
                    let path = table.load().by_tunnel(&tunnel).and_then(|(_, peer)| peer.path().as_deref().cloned());
                    transmitter.drain_by(path.as_ref(), Some(&source), &mut outbox);
                }
            }
        });
    }

    fn address(&self) -> SocketAddr {
        self.udp.local()
    }

    /// Makes the nodes peers of this one, with direct paths.
    fn know(&self, others: &[(u8, [u8; 32], Option<SocketAddr>)]) -> Vec<Arc<Peer>> {
        let peers = others.iter().map(|&(number, key, remote)| {
            let tunnel = self.host.add(key, TunnelOptions::default()).unwrap();
            let peer = Peer::new(node(number), tunnel, 1420);
            peer.set_path(remote.map(|remote| Path::Direct { remote, local: Some(self.address().ip()) }));
            (peer, nets(number))
        });
        let peers: Vec<_> = peers.collect();
        let known = peers.iter().map(|(peer, _)| Arc::clone(peer)).collect();
        self.table.store(Arc::new(ForwardingTable::new(local(self.number), peers)));
        known
    }

    fn socket(&self, address: &str) -> net::UdpSocket {
        let address = address.to_string();
        let socket = self.inside.run(move || net::UdpSocket::bind((address.as_str(), 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Waits for a counter by asking for it: each look is one turn of the data thread at most away.
    fn until(&self, what: &str, mut holds: impl FnMut(&CountersReading, &CountersReading) -> bool) {
        let end = clock::now() + PATIENCE;
        while !holds(&self.plane.outbound(), &self.plane.inbound()) {
            assert!(clock::now() < end, "{what}: {:?} {:?}", self.plane.outbound(), self.plane.inbound());
            std::thread::yield_now();
        }
    }

    fn until_dropped(&self, reason: DropReason, times: u64) {
        self.until(reason.name(), |outbound, inbound| outbound.dropped(reason) + inbound.dropped(reason) == times);
    }
}

/// Where an answer goes to what came from there.
fn back(table: &ForwardingTable, origin: &Origin) -> Path {
    match *origin {
        Origin::Underlay { source, local } => Path::Direct { remote: source, local },
        Origin::Relay { via, from } => Path::Relay(RelayPath {
            via: table.peers().iter().find(|peer| peer.node() == via).cloned().expect("a relay is a peer"),
            source: table.local().address_v6,
            destination: v6(from.as_bytes()[0]).parse().unwrap(),
        }),
    }
}

fn pair() -> (Node, Node) {
    acquaint(Node::start(1), Node::start(2))
}

fn acquaint(a: Node, b: Node) -> (Node, Node) {
    a.know(&[(2, b.host.public_key(), Some(b.address()))]);
    b.know(&[(1, a.host.public_key(), Some(a.address()))]);
    (a, b)
}

/// A peer that is driven by hand and so can say anything inside its tunnel.
struct Hand {
    host: Arc<Host>,
    tunnel: Arc<Tunnel>,
    socket: net::UdpSocket,
    to: SocketAddr,
}

impl Hand {
    /// Makes `node` know a peer 9 and brings its session up.
    fn shake(node: &Node) -> (Hand, Arc<Peer>) {
        let host = make_host(9);
        let socket = net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let remote = socket.local_addr().unwrap();
        let peers = node.know(&[(2, make_host(2).public_key(), None), (9, host.public_key(), Some(remote))]);
        let tunnel = host.add(node.host.public_key(), TunnelOptions::default()).unwrap();
        let hand = Hand { host, tunnel, socket, to: node.address() };
        let mut outbox = Outbox::new();
        assert_eq!(hand.tunnel.initiate(clock::now(), clock::wall(), &mut outbox), Initiation::Sent);
        hand.drain(&mut outbox);
        let mut response = [0; 200];
        let (length, from) = hand.socket.recv_from(&mut response).unwrap();
        let handled = hand.host.handle_handshake(clock::now(), clock::wall(), from, &response[..length], &mut outbox);
        assert!(matches!(handled, Ok(crate::tunnel::HandshakeEvent::Established(_))));
        hand.drain(&mut outbox);
        // The node uses the session from the confirmation on.
        let end = clock::now() + PATIENCE;
        while peers[1].tunnel().status(clock::now()).session.is_none() {
            assert!(clock::now() < end, "the confirmation never arrived");
            std::thread::yield_now();
        }
        (hand, Arc::clone(&peers[1]))
    }

    fn drain(&self, outbox: &mut Outbox) {
        while let Some(outgoing) = outbox.pop() {
            self.socket.send_to(&outgoing.bytes, self.to).unwrap();
        }
    }

    fn seal(&self, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 2_000];
        let Ok(Sealed::Datagram(length)) = self.tunnel.lock().seal(clock::now(), packet, &mut out) else {
            panic!("the session stands");
        };
        out.truncate(length);
        out
    }

    fn say(&self, packet: &[u8]) {
        self.socket.send_to(&self.seal(packet), self.to).unwrap();
    }
}

#[test]
fn applications_talk_both_ways_in_both_families() {
    in_namespace("applications_talk_both_ways_in_both_families", || {
        let (a, b) = pair();
        for (from, to) in [(v4(1), v4(2)), (v6(1), v6(2))] {
            let (here, there) = (a.socket(&from), b.socket(&to));
            let target = there.local_addr().unwrap();
            // The very first packet finds no session, waits for it and arrives.
            for round in 0..300usize {
                let data = vec![round as u8; 1 + round * 4];
                here.send_to(&data, target).unwrap();
                let mut buffer = [0; 2_000];
                let (length, source) = there.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], source), (&data[..], here.local_addr().unwrap()));
                there.send_to(&buffer[..length], source).unwrap();
                let (length, source) = here.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], source), (&data[..], target));
            }
        }
        b.until("passed", |_, inbound| inbound.packets >= 600);
        let (sent, received) = (a.plane.outbound(), b.plane.inbound());
        assert_eq!(sent.drops, [0; DropReason::ALL.len()]);
        assert_eq!(received.drops, [0; DropReason::ALL.len()]);
    });
}

/// Sends a stream there and back in both families.
fn streams_pass(a: &Node, b: &Node) {
    for address in [v4(2), v6(2)] {
        let listener = b.inside.run({
            let address = address.clone();
            move || TcpListener::bind((address.as_str(), 0)).unwrap()
        });
        let target = listener.local_addr().unwrap();
        let mut client = a.inside.run(move || TcpStream::connect(target).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        let data: Vec<u8> = (0..4_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let echo = std::thread::spawn(move || {
            let mut received = Vec::new();
            server.read_to_end(&mut received).unwrap();
            server.write_all(&received).unwrap();
        });
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client.write_all(&data).unwrap();
        client.shutdown(net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        echo.join().unwrap();
        assert!(back == data, "the stream came back changed");
    }
}

#[test]
fn streams_arrive_whole_over_either_family() {
    in_namespace("streams_arrive_whole_over_either_family", || {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = acquaint(Node::start_on(1, Framing::Vnet, listen), Node::start_on(2, Framing::Vnet, listen));
            streams_pass(&a, &b);
            assert_eq!(b.tun.takes_runs(), Runs { tcp: true, udp: true }, "Linux 6.2 is needed here");
            let sent = a.plane.outbound();
            assert!(sent.packets > 4 * sent.batches, "one read brings many packets: {sent:?}");
        }
    });
}

#[test]
fn a_node_without_runs_and_one_with_them_understand_each_other() {
    in_namespace("a_node_without_runs_and_one_with_them_understand_each_other", || {
        let old = |number| Node::start_on(number, Framing::Plain, "127.0.0.1:0");
        for (a, b) in [(old(1), Node::start(2)), (Node::start(1), old(2)), (old(1), old(2))] {
            let (a, b) = acquaint(a, b);
            streams_pass(&a, &b);
        }
    });
}

#[test]
fn a_device_that_refuses_runs_gets_every_packet_all_the_same() {
    in_namespace("a_device_that_refuses_runs_gets_every_packet_all_the_same", || {
        let (a, b) = pair();
        a.tun.refuse_runs();
        b.tun.refuse_runs();
        streams_pass(&a, &b);
        for node in [&a, &b] {
            assert_eq!(node.tun.takes_runs(), Runs::default(), "it was asked once, and never again");
            assert_eq!(node.plane.inbound().dropped(DropReason::SystemRefused), 0);
        }
    });
}

#[test]
fn congestion_of_the_underlay_reaches_those_who_can_heed_it() {
    in_namespace("congestion_of_the_underlay_reaches_those_who_can_heed_it", || {
        let a = Node::start(1);
        let (hand, _) = Hand::shake(&a);
        let app = a.socket(&v4(1));
        socket2::SockRef::from(&app).set_recv_tos_v4(true).unwrap();
        let port = app.local_addr().unwrap().port();
        // From here on every datagram arrives as if a router had met congestion.
        socket2::SockRef::from(&hand.socket).set_tos_v4(0b11).unwrap();
        hand.say(&packet(&v4(9), &v4(1), 17, &udp(port, b"cannot be told")));
        a.until_dropped(DropReason::Congestion, 1);
        let mut capable = packet(&v4(9), &v4(1), 17, &udp(port, b"can"));
        capable[1] = 0b10;
        capable[10..12].fill(0);
        let sum = super::offload::checksum::Sum::of(&capable[..20]).checksum();
        capable[10..12].copy_from_slice(&sum.to_be_bytes());
        hand.say(&capable);
        let mut buffer = [0; 100];
        let mut vector = [std::io::IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(u8);
        let flags = nix::sys::socket::MsgFlags::empty();
        let received = nix::sys::socket::recvmsg::<()>(
            std::os::fd::AsRawFd::as_raw_fd(&app),
            &mut vector,
            Some(&mut control),
            flags,
        );
        let received = received.unwrap();
        let tos: Vec<_> = received.cmsgs().unwrap().collect();
        assert!(matches!(tos[..], [nix::sys::socket::ControlMessageOwned::Ipv4Tos(0b11)]), "{tos:?}");
        assert_eq!(received.bytes, 3);
    });
}

#[test]
fn what_a_peer_may_not_say_is_dropped_for_its_reason() {
    in_namespace("what_a_peer_may_not_say_is_dropped_for_its_reason", || {
        let a = Node::start(1);
        let (hand, _) = Hand::shake(&a);
        let app = a.socket(&v4(1));
        let port = app.local_addr().unwrap().port();
        let say = |source: &str, destination: &str, payload: &[u8]| hand.say(&packet(source, destination, 17, payload));

        say(&v4(2), &v4(1), &udp(port, b"another peer's address"));
        say("10.1.0.77", &v4(1), &udp(port, b"nobody's address"));
        say(&v4(1), &v4(1), &udp(port, b"our own address"));
        say("192.0.2.1", &v4(1), &udp(port, b"the internet"));
        say(&v6(2), &v6(1), &udp(CONTROL_PORT, b"a control message of another"));
        a.until_dropped(DropReason::ForeignSource, 5);
        say(&v4(9), "192.0.2.1", &udp(port, b"out through us"));
        say(&v4(9), &v4(2), &udp(port, b"on to another peer"));
        a.until_dropped(DropReason::NoRoute, 2);
        say(&v4(9), &v4(1), &udp(CONTROL_PORT, b"the reserved port"));
        let behind = [&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp(CONTROL_PORT, b"hidden")].concat();
        hand.say(&packet(&v6(9), &v6(1), 60, &behind));
        a.until_dropped(DropReason::ReservedPort, 2);
        hand.say(&packet("::ffff:10.1.0.9", &v6(1), 17, &udp(port, b"")));
        hand.say(&[0x45; 40]);
        a.until_dropped(DropReason::BadInnerPacket, 2);
        say(&v6(9), "ff02::1", &udp(port, b"everybody"));
        a.until("ignored", |_, inbound| inbound.ignored == 1);

        say(&v4(9), &v4(1), &udp(port, b"an honest packet"));
        let mut buffer = [0; 100];
        let (length, source) = app.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], source), (&b"an honest packet"[..], "10.1.0.9:12345".parse().unwrap()));
        // Counted once the whole batch is delivered, which the application need not wait for.
        a.until("passed", |_, inbound| inbound.packets == 1);
    });
}

#[test]
fn datagrams_of_no_use_are_dropped_and_handshakes_handed_up() {
    in_namespace("datagrams_of_no_use_are_dropped_and_handshakes_handed_up", || {
        let a = Node::start(1);
        let (hand, _) = Hand::shake(&a);
        let send = |bytes: &[u8]| hand.socket.send_to(bytes, a.address()).unwrap();
        let before = a.plane.inbound().dropped(DropReason::UnknownSession);
        for bytes in [&[][..], &[0], &[5; 100], &[4; 31], &[255; 10]] {
            send(bytes);
        }
        a.until("malformed", |_, inbound| inbound.dropped(DropReason::Malformed) == 5);
        send(&[4; 100]);
        a.until_dropped(DropReason::UnknownSession, before + 1);
        send(&vec![4; 5_000]);
        a.until_dropped(DropReason::UnknownSession, before + 2);
        let sealed = hand.seal(&packet(&v4(9), &v4(1), 17, &udp(9, b"once")));
        send(&sealed);
        send(&sealed);
        a.until_dropped(DropReason::Replayed, 1);
        let mut forged = hand.seal(&packet(&v4(9), &v4(1), 17, &udp(9, b"forged")));
        *forged.last_mut().unwrap() ^= 1;
        send(&forged);
        a.until_dropped(DropReason::BadSeal, 1);
        // The control task sees what is no data, and its gate counts it.
        send(&[1; 148]);
        let end = clock::now() + PATIENCE;
        while a.host.drops().iter().sum::<u64>() == 0 {
            assert!(clock::now() < end, "the handshake never came up");
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_shuffled_batch_is_opened_in_order() {
    in_namespace("a_shuffled_batch_is_opened_in_order", || {
        let a = Node::start(1);
        let (hand, _) = Hand::shake(&a);
        let app = a.socket(&v4(1));
        let port = app.local_addr().unwrap().port();
        // Stopped, so that all of it waits in the socket for one batch.
        let Node { tun, udp: socket, table, host, plane, .. } = a;
        plane.stop();
        let mut sealed: Vec<_> = (0..30u8).map(|n| hand.seal(&packet(&v4(9), &v4(1), 17, &udp(port, &[n])))).collect();
        sealed.reverse();
        sealed.swap(3, 20);
        for datagram in &sealed {
            hand.socket.send_to(datagram, hand.to).unwrap();
        }
        let ports = Ports { lanes: vec![tun], udp: socket };
        let (plane, _receivers) = Node::plane(vec![ports], &table, &host, false);
        let mut buffer = [0; 10];
        for expected in 0..30u8 {
            assert_eq!(app.recv_from(&mut buffer).unwrap().0, 1);
            assert_eq!(buffer[0], expected);
        }
        drop(plane);
    });
}

#[test]
fn control_packets_go_past_the_kernel_with_their_source_and_time() {
    in_namespace("control_packets_go_past_the_kernel_with_their_source_and_time", || {
        let (mut a, b) = pair();
        let (from, to): (Ipv6Addr, Ipv6Addr) = (v6(2).parse().unwrap(), v6(1).parse().unwrap());
        let table = b.table.load();
        let before = clock::now();
        for payload in [&b"probe"[..], b"", &[7; 1_300]] {
            let message = wrap(from, to, payload);
            b.plane.transmitter().send_packet(&table.peers()[0], None, &message).unwrap();
            let packet = a.control.blocking_recv().unwrap();
            let origin = Origin::Underlay { source: b.address(), local: Some("127.0.0.1".parse().unwrap()) };
            assert_eq!((packet.node, packet.origin, &packet.bytes[..]), (node(2), origin, payload));
            assert!(before <= packet.at && packet.at <= clock::now());
        }
        assert_eq!(a.plane.inbound().packets, 0);

        // A local process cannot say such things.
        for (source, target) in [(v6(2), v6(1)), (v4(2), v4(1))] {
            let socket = b.socket(&source);
            socket.send_to(b"forged", (target.as_str(), CONTROL_PORT)).unwrap();
        }
        b.until_dropped(DropReason::ReservedPort, 2);
        assert!(a.control.try_recv().is_err());
    });
}

#[test]
fn probes_of_a_calm_link_are_answered_at_once_and_wake_nobody() {
    in_namespace("probes_of_a_calm_link_are_answered_at_once_and_wake_nobody", || {
        let (mut a, mut b) = pair();
        let (from, to): (Ipv6Addr, Ipv6Addr) = (v6(2).parse().unwrap(), v6(1).parse().unwrap());
        let (table, others) = (b.table.load_full(), a.table.load_full());
        let request = |sequence| ProbeRequest { sequence, sent_nanos: 77, run: 8, ..ProbeRequest::default() };
        let ask = |sequence| {
            let message = wrap(from, to, &Probe::Request(request(sequence)).encode());
            b.plane.transmitter().send_packet(&table.peers()[0], None, &message).unwrap();
        };
        let mut answer = || {
            let answer = b.control.blocking_recv().unwrap();
            let Some(Probe::Reply(reply)) = Probe::decode(&answer.bytes) else { panic!("{answer:?}") };
            reply
        };
        // Not calm: the control task hears of it at once.
        ask(1);
        assert_eq!(Probe::decode(&a.control.blocking_recv().unwrap().bytes), Some(Probe::Request(request(1))));
        assert_eq!(answer().sequence, 1);

        others.peers()[0].set_calm(true);
        others.peers()[0].set_health(3);
        // Number 2 never comes, and number 3 comes twice: as far as the tunnel goes, they are two messages.
        ask(3);
        ask(3);
        ask(4);
        let (reply, last) = (answer(), answer());
        assert_eq!((reply.sequence, reply.sent_nanos, reply.health, reply.unsteady), (3, 77, 3, false));
        assert!(reply.held_since_read <= reply.held_since_kernel);
        assert_eq!(last.sequence, 4, "a copy is not answered");
        let Receipts { highest, window, reordered, duplicated } = last.receipts;
        assert_eq!((highest, window, reordered, duplicated), (4, 0b1011, 0, 1));
        assert!(last.arrived.expected >= 4 && last.arrived.accepted == last.arrived.expected, "{last:?}");
        let kept = a.probes.recv().unwrap();
        assert_eq!((kept.node, Probe::decode(&kept.bytes)), (node(2), Some(Probe::Request(request(3)))));
        assert!(kept.steady);
        assert!(a.control.try_recv().is_err());

        // An operator waits for a ping, so it goes the short way.
        ask(5 | PING);
        assert_eq!(Probe::decode(&a.control.blocking_recv().unwrap().bytes), Some(Probe::Request(request(5 | PING))));

        // Requests that nobody takes in are not answered for ever.
        for sequence in 0..2_000 {
            ask(6 + sequence);
        }
        a.until("a full queue", |_, inbound| inbound.dropped(DropReason::QueueFull) > 0);
    });
}

#[test]
fn an_application_learns_at_once_that_nobody_is_there() {
    in_namespace("an_application_learns_at_once_that_nobody_is_there", || {
        let (a, _b) = pair();
        for (own, nobody) in [(v4(1), v4(200)), (v6(1), v6(200))] {
            let socket = a.socket(&own);
            // Without this, Linux tells a UDP socket only of closed ports.
            if own.contains(':') {
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6RecvErr, &true).unwrap();
            } else {
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &true).unwrap();
            }
            socket.connect((nobody.as_str(), 9)).unwrap();
            socket.send(b"hello?").unwrap();
            let error = socket.recv(&mut [0; 10]).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error:?}");
            let target: SocketAddr =
                format!("[{nobody}]:9").parse().or_else(|_| format!("{nobody}:9").parse()).unwrap();
            let refused = a.inside.run(move || TcpStream::connect_timeout(&target, PATIENCE).unwrap_err());
            assert!(matches!(refused.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable));
        }
        assert!(a.plane.outbound().dropped(DropReason::NoRoute) >= 4);
    });
}

#[test]
fn an_application_learns_the_size_a_link_carries() {
    in_namespace("an_application_learns_the_size_a_link_carries", || {
        let (a, b) = pair();
        a.table.load().peers()[0].set_mtu(1_300);
        for (own, target) in [(v4(1), v4(2)), (v6(1), v6(2))] {
            let listener = b.inside.run(move || TcpListener::bind((target.as_str(), 0)).unwrap());
            let target = listener.local_addr().unwrap();
            let mut client = a.inside.run(move || TcpStream::connect(target).unwrap());
            assert_eq!(client.local_addr().unwrap().ip(), own.parse::<IpAddr>().unwrap());
            let (mut server, _) = listener.accept().unwrap();
            client.set_write_timeout(Some(PATIENCE)).unwrap();
            client.write_all(&[3; 100_000]).unwrap();
            let mut received = vec![0; 100_000];
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            server.read_exact(&mut received).unwrap();
            assert!(received == [3; 100_000]);
        }
        assert!(a.plane.outbound().dropped(DropReason::TooBig) >= 2);
    });
}

#[test]
fn large_packets_are_told_of_and_their_errors_are_at_hand() {
    in_namespace("large_packets_are_told_of_and_their_errors_are_at_hand", || {
        let (mut a, b) = pair();
        let receiver = b.socket(&v4(2));
        let target = receiver.local_addr().unwrap();
        let taken = |a: &Node| a.table.load().peers()[0].take_errors(clock::now());
        let large = |event: &Event| matches!(event, Event::Large { .. });
        let socket = a.socket(&v4(1));
        socket.send_to(&[0; 1_252], target).unwrap();
        b.until("the packet", |_, inbound| inbound.packets == 1);
        assert!(!std::iter::from_fn(|| a.events.try_recv().ok()).any(|event| large(&event)));
        assert!(taken(&a).is_empty(), "1,280 bytes pass everywhere");
        let began = clock::now();
        (0..20).for_each(|_| assert_eq!(socket.send_to(&[0; 1_392], target).unwrap(), 1_392));
        b.until("the packets", |_, inbound| inbound.packets == 21);
        let most = 1 + clock::now().saturating_since(began).as_millis() / 500;
        let told = std::iter::from_fn(|| a.events.try_recv().ok());
        let told = told.filter(large).count();
        assert!((1..=most).contains(&(told as u128)), "{told} told of, {most} at most");
        let errors = taken(&a);
        assert_eq!((errors.len(), errors[0][20..22].to_vec()), (1, vec![3, 4]), "of one flow, one too big");
    });
}

#[test]
fn chatter_of_the_link_is_ignored_quietly() {
    in_namespace("chatter_of_the_link_is_ignored_quietly", || {
        let (a, _b) = pair();
        let before = a.plane.outbound().ignored;
        let socket = a.socket(&v6(1));
        let index = a.inside.run({
            let name = a.tun.name().to_string();
            move || nix::net::if_::if_nametoindex(name.as_str()).unwrap()
        });
        socket.send_to(b"hello", net::SocketAddrV6::new("ff02::1".parse().unwrap(), 9, 0, index)).unwrap();
        a.until("ignored", |outbound, _| outbound.ignored > before);
        assert_eq!(a.plane.outbound().drops, [0; DropReason::ALL.len()]);
    });
}

#[test]
fn a_peer_that_moved_is_reported_once() {
    in_namespace("a_peer_that_moved_is_reported_once", || {
        let mut a = Node::start(1);
        let (hand, _) = Hand::shake(&a);
        let app = a.socket(&v4(1));
        let port = app.local_addr().unwrap().port();
        let other = net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffer = [0; 10];
        let began = clock::now();
        for round in 0..20u8 {
            let sealed = hand.seal(&packet(&v4(9), &v4(1), 17, &udp(port, &[round])));
            let socket = if round < 5 { &hand.socket } else { &other };
            // Forged copies from a third place are no reason.
            let mut forged = sealed.clone();
            *forged.last_mut().unwrap() ^= 1;
            net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&forged, a.address()).unwrap();
            socket.send_to(&sealed, a.address()).unwrap();
            app.recv_from(&mut buffer).unwrap();
        }
        let source = other.local_addr().unwrap();
        let confirmed = a.events.blocking_recv().unwrap();
        assert!(matches!(confirmed, Event::Confirmed { node: n, .. } if n == node(9)), "{confirmed:?}");
        let moved = a.events.blocking_recv().unwrap();
        assert!(
            matches!(moved, Event::Moved { node: n, origin: Origin::Underlay { source: s, local: Some(_) }, .. } if n == node(9) && s == source),
            "{moved:?}"
        );
        let more = std::iter::from_fn(|| a.events.try_recv().ok()).count();
        let seconds = clock::now().saturating_since(began).as_secs() as usize;
        assert!(more <= seconds, "{more} more reports within {seconds} s");
    });
}

#[test]
fn a_removed_peer_is_silenced_at_once() {
    in_namespace("a_removed_peer_is_silenced_at_once", || {
        let a = Node::start(1);
        let (hand, peer) = Hand::shake(&a);
        a.table.store(Arc::new(ForwardingTable::new(local(1), vec![])));
        hand.say(&packet(&v4(9), &v4(1), 17, &udp(9, b"still here")));
        a.until_dropped(DropReason::NotAdmitted, 1);
        peer.tunnel().close(clock::now());
        hand.say(&packet(&v4(9), &v4(1), 17, &udp(9, b"still here")));
        a.until("closed", |_, inbound| inbound.dropped(DropReason::UnknownSession) == 1);
        assert_eq!(a.plane.inbound().packets, 0);
    });
}

#[test]
fn packets_for_a_peer_without_path_make_a_wish() {
    in_namespace("packets_for_a_peer_without_path_make_a_wish", || {
        let mut a = Node::start(1);
        let b = Node::start(2);
        let peers = a.know(&[(2, b.host.public_key(), None)]);
        b.know(&[(1, a.host.public_key(), Some(a.address()))]);
        let (here, there) = (a.socket(&v4(1)), b.socket(&v4(2)));
        here.send_to(b"first", there.local_addr().unwrap()).unwrap();
        assert_eq!(a.events.blocking_recv(), Some(Event::Wanted { node: node(2) }));
        // The control task finds a path, and the packet that waited goes out.
        peers[0].set_path(Some(Path::Direct { remote: b.address(), local: None }));
        assert_ne!(a.plane.transmitter().initiate(&peers[0], None), Initiation::Closed);
        let mut buffer = [0; 10];
        // The initiation that found no path counts as sent, so the tunnel asks again by its own schedule.
        let received = loop {
            let mut outbox = Outbox::new();
            peers[0].tunnel().tick(clock::now(), clock::wall(), &mut outbox);
            a.plane.transmitter().drain(&peers[0], &mut outbox);
            there.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            match there.recv_from(&mut buffer) {
                Ok((length, _)) => break length,
                Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
            }
        };
        assert_eq!(&buffer[..received], b"first");
    });
}

#[test]
fn a_stopped_plane_leaves_its_descriptors_to_the_next() {
    in_namespace("a_stopped_plane_leaves_its_descriptors_to_the_next", || {
        let (a, b) = pair();
        let (here, there) = (a.socket(&v4(1)), b.socket(&v4(2)));
        let target = there.local_addr().unwrap();
        let mut buffer = [0; 10];
        let Node { tun, udp: socket, table, host, mut plane, .. } = a;
        for round in 0..5u8 {
            here.send_to(&[round], target).unwrap();
            there.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[0], round);
            plane.stop();
            // What is sent meanwhile waits in the device.
            here.send_to(&[100 + round], target).unwrap();
            let receivers;
            let ports = Ports { lanes: vec![Arc::clone(&tun)], udp: Arc::clone(&socket) };
            (plane, receivers) = Node::plane(vec![ports], &table, &host, false);
            Node::answer_handshakes(
                receivers.datagrams,
                Arc::clone(&host),
                Arc::clone(&table),
                plane.transmitter().clone(),
            );
            there.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[0], 100 + round);
        }
        assert!(tun.as_fd().try_clone_to_owned().is_ok());
    });
}

#[test]
fn a_deleted_device_is_reported_and_the_plane_still_stops() {
    in_namespace("a_deleted_device_is_reported_and_the_plane_still_stops", || {
        let (mut a, _b) = pair();
        let name = a.tun.name().to_string();
        let deleted = a.inside.run(move || std::process::Command::new("ip").args(["link", "delete", &name]).status());
        assert!(deleted.is_ok_and(|status| status.success()), "the command `ip` is needed here");
        assert_eq!(a.events.blocking_recv(), Some(Event::DeviceGone));
        a.plane.stop();
    });
}

/// Prints what the data plane moves; run in release as root:
/// `cargo test --release --lib dataplane::tests::throughput -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a test"]
fn throughput() {
    in_namespace("throughput", || {
        let (a, b) = pair();
        for (name, address) in [("IPv4", v4(2)), ("IPv6", v6(2))] {
            let listener = b.inside.run(move || TcpListener::bind((address.as_str(), 0)).unwrap());
            let target = listener.local_addr().unwrap();
            let mut client = a.inside.run(move || TcpStream::connect(target).unwrap());
            let (mut server, _) = listener.accept().unwrap();
            let sink = std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 17];
                while server.read(&mut buffer).unwrap() > 0 {}
            });
            let (before, began) = (a.plane.outbound(), clock::now());
            let (mut sent, chunk) = (0u64, vec![0; 1 << 17]);
            while clock::now().saturating_since(began) < Duration::from_secs(5) {
                client.write_all(&chunk).unwrap();
                sent += chunk.len() as u64;
            }
            drop(client);
            sink.join().unwrap();
            let seconds = clock::now().saturating_since(began).as_secs_f64();
            let after = a.plane.outbound();
            let (packets, batches) = (after.packets - before.packets, after.batches - before.batches);
            println!(
                "TCP over {name}: {:.2} Gbit/s, {:.0} packets/s, {:.1} packets a batch, drops {:?}",
                sent as f64 * 8.0 / seconds / 1e9,
                packets as f64 / seconds,
                packets as f64 / batches.max(1) as f64,
                b.plane.inbound().drops.iter().sum::<u64>(),
            );
        }
        let (here, there) = (a.socket(&v4(1)), b.socket(&v4(2)));
        let target = there.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = there.recv_from(&mut buffer) {
                there.send_to(&buffer[..length], from).unwrap();
                if length == 1 {
                    return;
                }
            }
        });
        let mut times: Vec<u64> = (0..10_000)
            .map(|_| {
                let began = clock::now();
                here.send_to(&[0; 64], target).unwrap();
                here.recv_from(&mut [0; 64]).unwrap();
                clock::now().saturating_since(began).as_nanos() as u64
            })
            .collect();
        here.send_to(&[0], target).unwrap();
        echo.join().unwrap();
        times.sort_unstable();
        println!("UDP echo, idle: p50 {} µs, p99 {} µs", times[5_000] / 1_000, times[9_900] / 1_000);
    });
}

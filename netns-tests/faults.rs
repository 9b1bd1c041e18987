//! Each fault the lab can make, seen from inside a host: what a test asks for is what the host gets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::harness::Case;
use crate::lab::capture::Captured;
use crate::lab::error::Context;
use crate::lab::wan::pipe::{Pipe, Verdict};
use crate::lab::wan::{Burst, Packet, Rate, Settings, WanPort};
use crate::lab::{Capture, Fate, Firewall, Host, Lab, Open, Result, Wan, package};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "faults::a_cut_takes_what_is_under_way", needs: &[], run: cut_takes_all },
    Case { name: "faults::a_black_hole_is_one_way", needs: &[], run: black_hole_is_one_way },
    Case { name: "faults::a_filter_takes_the_packets_it_names", needs: &[], run: filter_takes_named },
    Case { name: "faults::too_big_is_told_or_not", needs: &[], run: too_big_is_told },
    Case { name: "faults::a_renumbered_host_is_found_at_its_new_address", needs: &[], run: renumbered },
    Case { name: "faults::bursts_have_the_loss_and_length_set", needs: &[], run: bursts_as_set },
    Case { name: "faults::a_rate_limit_spaces_packets_and_bounds_its_queue", needs: &[], run: rate_spaces },
    Case { name: "faults::changing_settings_does_not_shift_chance", needs: &[], run: chance_is_not_shifted },
    Case { name: "faults::a_closed_host_opens_one_port_only", needs: &[&package::NFTABLES], run: one_port_only },
    Case { name: "faults::a_firewall_cuts_and_heals", needs: &[&package::NFTABLES], run: firewall_cuts },
    Case { name: "faults::a_capture_sees_plain_text_and_its_absence", needs: &[], run: capture_sees },
    Case { name: "faults::a_partition_parts_its_sides_only", needs: &[], run: partition_parts },
    Case { name: "faults::a_nat_router_hides_a_host", needs: &[&package::NFTABLES], run: nat_hides },
];

/// Longer than anything local takes; reached only in failure.
const LONG: Duration = Duration::from_secs(10);

/// Two hosts on an emulated network, a socket on each in each family.
struct Pair {
    wan: Wan,
    hosts: [Host; 2],
    ports: [WanPort; 2],
    v4: [UdpSocket; 2],
    v6: [UdpSocket; 2],
}

impl Pair {
    fn new(lab: &Lab) -> Result<Pair> {
        let wan = lab.wan(5)?;
        let hosts = [lab.host("a")?, lab.host("b")?];
        let ports = [wan.attach(&hosts[0])?, wan.attach(&hosts[1])?];
        let v4 = [bind(&hosts[0], ports[0].v4.into(), 0)?, bind(&hosts[1], ports[1].v4.into(), 0)?];
        let v6 = [bind(&hosts[0], ports[0].v6.into(), 0)?, bind(&hosts[1], ports[1].v6.into(), 0)?];
        Ok(Pair { wan, hosts, ports, v4, v6 })
    }
}

fn bind(host: &Host, address: IpAddr, port: u16) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind(SocketAddr::new(address, port))).context("bind")?;
    socket.set_read_timeout(Some(LONG))?;
    Ok(socket)
}

/// Sends a text and checks that it is the next thing received.
fn passes(from: &UdpSocket, to: &UdpSocket, text: &[u8]) -> Result<()> {
    from.send_to(text, to.local_addr()?).context("send")?;
    let mut buffer = [0; 2048];
    let (len, _) = to.recv_from(&mut buffer).context("receive")?;
    assert_eq!(String::from_utf8_lossy(&buffer[..len]), String::from_utf8_lossy(text));
    Ok(())
}

fn cut_takes_all(lab: &Lab) -> Result<()> {
    let Pair { wan, v4: [a, b], .. } = Pair::new(lab)?;
    // Far enough away to be still under way when the link is cut, on any machine: it is the cut that ends it.
    wan.way("a", "b").delay(Duration::from_secs(5));
    a.send_to(b"under way", b.local_addr()?)?;
    wan.wait(LONG, "the packet", |core| core.count("a", "b").entered == 1)?;
    wan.link("a", "b").delay(Duration::ZERO).cut(true);
    a.send_to(b"too late", b.local_addr()?)?;
    wan.wait(LONG, "both packets' end", |core| core.count("a", "b").cut == 2)?;
    wan.link("a", "b").cut(false);
    // Order is kept, but nothing may queue up behind what was cut.
    passes(&a, &b, b"healed")
}

fn black_hole_is_one_way(lab: &Lab) -> Result<()> {
    let Pair { wan, v4: [a, b], .. } = Pair::new(lab)?;
    wan.way("a", "b").blackhole(true);
    a.send_to(b"lost", b.local_addr()?)?;
    wan.wait(LONG, "the packet", |core| core.count("a", "b").cut == 1)?;
    passes(&b, &a, b"the other way")?;
    wan.way("a", "b").blackhole(false);
    passes(&a, &b, b"healed")
}

fn filter_takes_named(lab: &Lab) -> Result<()> {
    let Pair { wan, v4: [a, b], .. } = Pair::new(lab)?;
    let seen = AtomicU32::new(0);
    let target = b.local_addr()?.port();
    // The second packet to this port, and only that.
    wan.way("a", "b").filter(move |packet| {
        packet.destination_port == target && packet.payload != b"other" && seen.fetch_add(1, Ordering::Relaxed) == 1
    });
    for text in [&b"first"[..], b"second", b"third"] {
        a.send_to(text, b.local_addr()?)?;
    }
    wan.wait(LONG, "all three", |core| core.count("a", "b").entered == 3)?;
    let mut buffer = [0; 64];
    for expected in [&b"first"[..], b"third"] {
        let (len, _) = b.recv_from(&mut buffer).context("receive")?;
        assert_eq!(&buffer[..len], expected);
    }
    assert_eq!(wan.counts("a", "b").filtered, 1);
    Ok(())
}

fn too_big_is_told(lab: &Lab) -> Result<()> {
    let Pair { wan, v4, v6, .. } = Pair::new(lab)?;
    for [a, b] in [v4, v6] {
        let before = wan.counts("a", "b").too_big;
        a.connect(b.local_addr()?)?;
        // A black hole first: the sender learns nothing, however often it tries.
        wan.way("a", "b").mtu(1300, false);
        for _ in 0..3 {
            a.send(&[0; 1400]).context("send into the black hole")?;
        }
        wan.wait(LONG, "the big packets", |core| core.count("a", "b").too_big == before + 3)?;
        wan.way("a", "b").mtu(1300, true);
        a.send(&[0; 1400]).context("send what is too big")?;
        let mut buffer = [0; 64];
        let told = a.recv(&mut buffer).expect_err("the router's message is an error of the socket");
        assert_eq!(told.raw_os_error(), Some(libc::EMSGSIZE), "{told}");
        // The kernel has learnt the path's MTU, so the next one does not even leave whole.
        assert_eq!(wan.counts("a", "b").too_big, before + 4);
        a.send(b"small enough")?;
        let (len, _) = b.recv_from(&mut buffer).context("receive")?;
        assert_eq!(&buffer[..len], b"small enough");
    }
    Ok(())
}

fn renumbered(lab: &Lab) -> Result<()> {
    let Pair { wan, hosts: [_, host], ports: [_, port], v4: [a, _], .. } = Pair::new(lab)?;
    let (old, new) = (IpAddr::V4(port.v4), IpAddr::from([198, 18, 200, 7]));
    wan.add_address(&host, &port, new)?;
    wan.remove_address(&host, &port, old)?;
    let moved = bind(&host, new, 0)?;
    passes(&a, &moved, b"to the new address")?;
    a.send_to(b"to the old one", SocketAddr::new(old, 9))?;
    wan.wait(LONG, "the stray packet", |core| core.ports[0].unrouted > 0)
}

fn partition_parts(lab: &Lab) -> Result<()> {
    let wan = lab.wan(5)?;
    let mut sockets = Vec::new();
    for name in ["a", "b", "c"] {
        let host = lab.host(name)?;
        let port = wan.attach(&host)?;
        sockets.push(bind(&host, port.v4.into(), 0)?);
        // A second way into the same host is a port of its own, not touched by the first one's faults.
        let second = wan.attach_as(&host, "eth1")?;
        assert_eq!(second.name, format!("{name}/eth1"));
    }
    let [a, b, c] = &sockets[..] else { unreachable!("three hosts were made") };
    wan.partition(&["a"], &["b", "c"]);
    a.send_to(b"lost", b.local_addr()?)?;
    c.send_to(b"lost", a.local_addr()?)?;
    wan.wait(LONG, "both losses", |core| core.count("a", "b").cut == 1 && core.count("c", "a").cut == 1)?;
    passes(b, c, b"within a side")?;
    wan.all().cut(false);
    passes(a, b, b"healed")?;
    passes(c, a, b"healed")?;
    wan.uplink("c").blackhole(true);
    b.send_to(b"lost", c.local_addr()?)?;
    wan.wait(LONG, "the loss", |core| core.count("b", "c").cut == 1)?;
    passes(b, a, b"not c's uplink")
}

fn nat_hides(lab: &Lab) -> Result<()> {
    let wan = lab.wan(5)?;
    let (inside, router, outside) = (lab.host("inside")?, lab.host("router")?, lab.host("outside")?);
    let on_router = wan.attach(&router)?;
    let on_outside = wan.attach(&outside)?;
    lab.wire(&router, "lan0", &inside, "eth0")?;
    let (gateway, own) = (IpAddr::from([192, 168, 7, 1]), IpAddr::from([192, 168, 7, 2]));
    router.add_address("lan0", gateway, 24)?;
    inside.add_address("eth0", own, 24)?;
    inside.add_route((IpAddr::from([0, 0, 0, 0]), 0), Some(gateway), "eth0")?;
    Firewall::new(&router)?.masquerade("eth0", false)?;
    let (hidden, seen) = (bind(&inside, own, 0)?, bind(&outside, on_outside.v4.into(), 0)?);
    hidden.send_to(b"from behind", seen.local_addr()?)?;
    let mut buffer = [0; 64];
    let (_, source) = seen.recv_from(&mut buffer).context("receive from behind the router")?;
    assert_eq!(source.ip(), IpAddr::V4(on_router.v4));
    seen.send_to(b"back", source)?;
    let (len, from) = hidden.recv_from(&mut buffer).context("receive behind the router")?;
    assert_eq!((&buffer[..len], from), (&b"back"[..], seen.local_addr()?));
    Ok(())
}

/// A datagram as it enters the emulator: IPv4 and UDP headers, then zeros.
fn datagram(len: u16) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(len)];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes[9] = 17;
    bytes
}

fn bursts_as_set(_: &Lab) -> Result<()> {
    let bytes = datagram(100);
    let packet = Packet::parse(&bytes).expect("it was made as a whole packet");
    for (loss, length) in [(0.01, 3.0), (0.05, 8.0), (0.2, 20.0)] {
        let settings = Settings { burst: Some(Burst::of(loss, length)), ..Settings::default() };
        let mut pipe = Pipe::new(9, "a", "b", settings);
        let count = 400_000;
        let lost: Vec<bool> = (0..count).map(|at| matches!(pipe.offer(at, &packet), Verdict::Drop(_))).collect();
        let total = lost.iter().filter(|lost| **lost).count() as f64;
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
        // One fixed seed, so this either always holds or never; a tenth is several standard deviations.
        assert!((total / count as f64 / loss - 1.0).abs() < 0.1, "{loss}: {total} of {count}");
        assert!((total / bursts / length - 1.0).abs() < 0.1, "{length}: {}", total / bursts);
    }
    Ok(())
}

fn rate_spaces(_: &Lab) -> Result<()> {
    let bytes = datagram(1000);
    let packet = Packet::parse(&bytes).expect("it was made as a whole packet");
    // A megabit a second: eight milliseconds a packet, ten of which may wait.
    let rate = Some(Rate { bits_per_second: 1_000_000, queue_bytes: 10_000 });
    let mut pipe = Pipe::new(1, "a", "b", Settings { rate, ..Settings::default() });
    let due = |verdict| if let Verdict::Pass { due, .. } = verdict { Some(due) } else { None };
    let first: Vec<_> = (0..30).map(|_| due(pipe.offer(0, &packet))).collect();
    let expected: Vec<_> = (1..=30_u64).map(|n| (n <= 10).then_some(n * 8_000_000)).collect();
    assert_eq!(first, expected);
    // Half of the queue has gone: five more find room.
    let later: Vec<_> = (0..6).map(|_| due(pipe.offer(40_000_000, &packet))).collect();
    let expected: Vec<_> = (11..=16_u64).map(|n| (n <= 15).then_some(n * 8_000_000)).collect();
    assert_eq!(later, expected);
    Ok(())
}

fn chance_is_not_shifted(_: &Lab) -> Result<()> {
    let bytes = datagram(100);
    let packet = Packet::parse(&bytes).expect("it was made as a whole packet");
    let fates = |meanwhile: &dyn Fn(&mut Settings)| {
        let mut pipe = Pipe::new(4, "a", "b", Settings { loss: 0.3, ..Settings::default() });
        let mut fates = Vec::new();
        for at in 0..300 {
            if at == 100 {
                pipe.change(meanwhile);
            }
            if at == 200 {
                pipe.change(|s| *s = Settings { loss: 0.3, ..Settings::default() });
            }
            fates.push(pipe.offer(at, &packet) == Verdict::Drop(Fate::Lost));
        }
        fates
    };
    let quiet = fates(&|_| {});
    for disturbed in [fates(&|s| s.cut = true), fates(&|s| (s.jitter, s.duplicate) = (LONG, 0.5))] {
        assert_eq!(quiet[..100], disturbed[..100]);
        assert_eq!(quiet[200..], disturbed[200..]);
    }
    assert!(quiet[200..].contains(&true) && quiet[200..].contains(&false));
    Ok(())
}

fn one_port_only(lab: &Lab) -> Result<()> {
    let Pair { wan, hosts: [_, host], ports: [_, port], v4: [a, b], .. } = Pair::new(lab)?;
    let open = bind(&host, port.v4.into(), 7655)?;
    let firewall = Firewall::new(&host)?;
    firewall.open_only("eth0", &[Open::Udp(7655)])?;
    a.send_to(b"to a closed port", b.local_addr()?)?;
    wan.wait(LONG, "the packet", |core| core.count("a", "b").delivered == 1)?;
    passes(&a, &open, b"to the open port")?;
    // The host's own conversation is answered.
    passes(&b, &a, b"a question")?;
    passes(&a, &b, b"its answer")?;
    assert!(firewall.list()?.contains("packets 1"), "{}", firewall.list()?);
    Ok(())
}

fn firewall_cuts(lab: &Lab) -> Result<()> {
    let Pair { hosts: [host, _], ports: [_, port], v4: [a, b], .. } = Pair::new(lab)?;
    let firewall = Firewall::new(&host)?;
    passes(&a, &b, b"before")?;
    firewall.cut(port.v4.into())?;
    // What the output hook drops, the sender is told (EPERM).
    let refused = a.send_to(b"during", b.local_addr()?).expect_err("the rule drops it");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    firewall.heal()?;
    passes(&a, &b, b"after")?;
    firewall.lose_arriving("eth0", 100)?;
    b.send_to(b"lost", a.local_addr()?)?;
    firewall.reset()?;
    passes(&b, &a, b"found")
}

fn capture_sees(lab: &Lab) -> Result<()> {
    let Pair { hosts: [host, _], v4: [a, b], .. } = Pair::new(lab)?;
    let wide = Capture::start(lab, &host, "eth0")?;
    let lan = lab.plain("lan")?;
    let third = lab.host("c")?;
    let (on_host, on_third) = (lan.attach_as(&host, "eth1")?, lan.attach(&third)?);
    let near = Capture::start(lab, &host, "eth1")?;
    passes(&a, &b, b"secret of the wide network")?;
    let (left, right) = (bind(&host, on_host.v4.into(), 0)?, bind(&third, on_third.v4.into(), 0)?);
    passes(&left, &right, b"secret of the near network")?;
    passes(&right, &left, b"and its answer")?;
    let text = |needle: &'static [u8]| move |packet: &Captured| packet.bytes.ends_with(needle);
    wide.wait_for("secret", LONG, text(b"secret of the wide network"))?;
    near.wait_for("answer", LONG, text(b"and its answer"))?;
    assert!(!wide.contains_plaintext(b"near network"));
    assert!(!near.contains_plaintext(b"wide network"));
    let answers =
        near.packets(|packet| !packet.outgoing && Packet::parse(packet.ip()).is_some_and(|ip| ip.protocol == 17));
    assert_eq!(answers.len(), 1);
    assert!(answers[0].time > 0 && answers[0].ethernet);
    for (capture, kind) in [(&wide, 101), (&near, 1)] {
        let path = lab.dir().join("capture.pcap");
        capture.write_pcap(&path)?;
        let bytes = std::fs::read(&path)?;
        let packets = capture.packets(|_| true);
        assert_eq!(bytes[20..24], u32::to_ne_bytes(kind));
        assert_eq!(bytes.len(), 24 + packets.iter().map(|packet| 16 + packet.bytes.len()).sum::<usize>());
    }
    near.clear();
    assert_eq!(near.count(|_| true), 0);
    Ok(())
}

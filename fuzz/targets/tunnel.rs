//! What comes from the wire to the tunnels, and the packets that come out of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use meshd::dataplane::InnerPacket;
use meshd::time::{Instant, UnixTime};
use meshd::tunnel::{Destination, Host, LEAST_BUFFER, Outbox, Sealed, Tunnel, TunnelOptions};
use x25519_dalek::StaticSecret;

use super::forge::wireguard_mac;

const START: Instant = Instant::from_millis(1_000_000);
const SOURCE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 7655);

/// boringtun stamps its handshakes with the system's clock.
fn wall() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    UnixTime::from_secs(since.as_secs())
}

/// Two hosts that know each other; a session stands, that the second started.
struct Pair {
    hosts: [Arc<Host>; 2],
    tunnels: [Arc<Tunnel>; 2],
}

impl Pair {
    fn strangers() -> Pair {
        let hosts = [1, 2].map(|number| Host::new(StaticSecret::from([number; 32]), [number; 32]));
        let options = || TunnelOptions { keep_up: false, ..TunnelOptions::default() };
        let tunnel = |at: usize| hosts[at].add(hosts[1 - at].public_key(), options()).expect("a good key");
        let tunnels = [tunnel(0), tunnel(1)];
        Pair { hosts, tunnels }
    }

    fn met() -> Pair {
        let pair = Pair::strangers();
        let mut out = Outbox::new();
        let _ = pair.tunnels[1].initiate(START, wall(), &mut out);
        for to in [0, 1, 0, 1] {
            let mut answers = Outbox::new();
            while let Some(datagram) = out.pop() {
                pair.deliver(to, &datagram.bytes, &mut answers);
            }
            out = answers;
        }
        assert!(pair.tunnels[0].status(START).session.is_some());
        pair
    }

    /// What the inbound thread and the driver do with a datagram.
    fn deliver(&self, to: usize, datagram: &[u8], out: &mut Outbox) -> bool {
        let mut plain = vec![0; datagram.len().max(LEAST_BUFFER)];
        match (datagram.first(), datagram.get(4..8)) {
            (Some(4), Some(index)) => {
                let index = u32::from_le_bytes(index.try_into().expect("four bytes"));
                let Some(tunnel) = self.hosts[to].by_index(index) else { return false };
                let mut guard = tunnel.lock();
                let opened = guard.open(START, datagram, &mut plain);
                guard.flush(START, wall(), out);
                if let Ok(opened) = opened {
                    assert!(opened.length <= datagram.len());
                    let _ = InnerPacket::parse(&plain[..opened.length]);
                }
                opened.is_ok()
            }
            _ => self.hosts[to].handle_handshake(START, wall(), SOURCE, datagram, out).is_ok(),
        }
    }
}

/// Datagrams from anywhere to a host with one peer: as they are, with a good MAC, or as the packet inside a sealed one.
pub fn datagram(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let pair = Pair::met();
    let before = pair.tunnels[0].status(START);
    let mut out = Outbox::new();
    let datagram = match mode {
        0 => rest.to_vec(),
        1 => {
            // A handshake message: the first MAC stands 32 bytes before the end.
            let mut datagram = rest.to_vec();
            if let Some(at) = datagram.len().checked_sub(32) {
                let mac = wireguard_mac(&pair.hosts[0].public_key(), &datagram[..at]);
                datagram[at..at + 16].copy_from_slice(&mac);
            }
            datagram
        }
        2 => {
            // A data message of the standing session: its index is put in.
            let mut sealed = sealed(&pair, b"\x45");
            let from = rest.len().min(sealed.len()).min(8);
            sealed.truncate(8);
            [&sealed[..], &rest[from..]].concat()
        }
        _ => sealed(&pair, &rest[..rest.len().min(1400)]),
    };
    let accepted = pair.deliver(0, &datagram, &mut out);
    let mut answered = 0;
    while let Some(answer) = out.pop() {
        if answer.to == Destination::Source {
            answered += answer.bytes.len();
        }
    }
    assert!(answered <= datagram.len(), "no answer is larger than what it answers");
    if *mode == 2 {
        assert!(!accepted, "nobody without the session's key makes a datagram of it");
        assert_eq!(before.last_received, pair.tunnels[0].status(START).last_received);
    }
    assert!(pair.tunnels[0].status(START).session.is_some(), "no datagram takes a session away");
}

/// A packet sealed by the second host to the first.
fn sealed(pair: &Pair, packet: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    match pair.tunnels[1].lock().seal(START, packet, &mut buffer) {
        Ok(Sealed::Datagram(length)) => buffer[..length].to_vec(),
        _ => Vec::new(),
    }
}

/// Packets inside a tunnel.
pub fn inner_packet(data: &[u8]) {
    let Ok(read) = InnerPacket::parse(data) else { return };
    assert!(read.payload <= read.length && read.length <= data.len());
    assert!(read.udp_port.is_none() || read.payload + 8 <= read.length);
    assert_eq!(InnerPacket::parse(&data[..read.length]), Ok(read), "padding changes nothing");
    let _ = read.is_link_scoped();
}

/// Inputs to begin with.
pub mod seeds {
    use super::super::{Seed, with};

    /// An initiation's shape: only the peer can make a real one, so these stop at the first lock behind the MAC.
    pub fn datagram() -> Vec<Seed> {
        let message = |kind: u8, length: usize| {
            let mut bytes = vec![0x5a; length];
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            bytes
        };
        vec![
            ("empty", vec![]),
            ("initiation", with(0, message(1, 148))),
            ("initiation-authenticated", with(1, message(1, 148))),
            ("initiation-of-zeros", with(1, [&[1, 0, 0, 0][..], &[0; 144]].concat())),
            ("response-authenticated", with(1, message(2, 92))),
            ("cookie-reply", with(0, message(3, 64))),
            ("data", with(0, message(4, 96))),
            ("data-of-the-session", with(2, message(4, 96))),
            ("data-too-short", with(2, message(4, 20))),
            ("packet-v4", with(3, packet_v4())),
            ("packet-v6", with(3, packet_v6())),
            ("packet-rubbish", with(3, [0xff; 64])),
            ("keepalive", with(3, [])),
        ]
    }

    fn packet_v4() -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
        bytes.extend([0x30, 0x39, 0x1d, 0xe7, 0, 12, 0, 0, 1, 2, 3, 4]);
        bytes
    }

    fn packet_v6() -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        bytes.extend([0x30, 0x39, 0x1d, 0xe7, 0, 12, 0, 0, 1, 2, 3, 4]);
        bytes
    }

    pub fn inner_packet() -> Vec<Seed> {
        let mut fragment = packet_v4();
        fragment[6] = 0x20;
        // Hop-by-hop, routing, fragment, authentication, destination options, and UDP.
        let chain = [[43, 0, 0, 0, 0, 0, 0, 0], [44, 0, 0, 0, 0, 0, 0, 0], [51, 0, 0, 0, 0, 0, 0, 1]].concat();
        let rest =
            [[60, 0, 0, 0, 0, 0, 0, 0], [17, 0, 0, 0, 0, 0, 0, 0], [0x30, 0x39, 0x1d, 0xe7, 0, 8, 0, 0]].concat();
        let mut extended = packet_v6()[..40].to_vec();
        extended[5] = (chain.len() + rest.len()) as u8;
        extended[6] = 0;
        extended.extend(chain);
        extended.extend(rest);
        let mut mapped = packet_v6();
        mapped[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        vec![
            ("empty", vec![]),
            ("v4", packet_v4()),
            ("v4-padded", [packet_v4(), vec![0; 15]].concat()),
            ("v4-fragment", fragment),
            ("v6", packet_v6()),
            ("v6-extended", extended),
            ("v6-mapped", mapped),
        ]
    }
}

//! A plain boringtun `Tunn`, with its own limiter and timers, as the peer.

use super::*;
use boringtun::noise::{Tunn, TunnResult};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

struct Plain {
    tunn: Tunn,
    /// Packets it has opened.
    opened: Vec<Vec<u8>>,
    /// Datagrams it wants sent.
    outgoing: VecDeque<Vec<u8>>,
}

impl Plain {
    /// A host with one tunnel, and a plain peer behind it.
    fn beside(seed: u64, ours_is_lower: bool) -> (Arc<Host>, Arc<Tunnel>, Plain) {
        Plain::beside_with(seed, ours_is_lower, on_demand())
    }

    fn beside_with(seed: u64, ours_is_lower: bool, options: TunnelOptions) -> (Arc<Host>, Arc<Tunnel>, Plain) {
        let [lower, higher] = secrets(seed);
        let (ours, theirs) = if ours_is_lower { (lower, higher) } else { (higher, lower) };
        let host = Host::new(ours.clone(), [seed as u8; 32]);
        let tunnel = host.add(PublicKey::from(&theirs).to_bytes(), options).unwrap();
        let tunn = Tunn::new(theirs, PublicKey::from(&ours), None, None, 77, None);
        (host, tunnel, Plain { tunn, opened: Vec::new(), outgoing: VecDeque::new() })
    }

    fn take(&mut self, datagram: &[u8]) {
        let mut buffer = vec![0u8; 2_048];
        let source: IpAddr = address(1).ip();
        let mut input = datagram;
        loop {
            match self.tunn.decapsulate(Some(source), input, &mut buffer) {
                TunnResult::WriteToNetwork(bytes) => self.outgoing.push_back(bytes.to_vec()),
                TunnResult::WriteToTunnelV4(packet, _) => return self.opened.push(packet.to_vec()),
                TunnResult::Done => return,
                TunnResult::WriteToTunnelV6(..) => panic!("no such packet was sent"),
                TunnResult::Err(error) => panic!("refused: {error:?}"),
            }
            input = &[];
        }
    }

    fn send(&mut self, packet: &[u8]) {
        let mut buffer = vec![0u8; 2_048];
        match self.tunn.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(bytes) => self.outgoing.push_back(bytes.to_vec()),
            TunnResult::Done => {}
            _ => panic!("not sealed"),
        }
        if let TunnResult::WriteToNetwork(bytes) = self.tunn.update_timers(&mut buffer) {
            self.outgoing.push_back(bytes.to_vec());
        }
    }
}

/// Carries everything between the two until nothing is left to say; returns what the host received.
fn settle(now: Instant, host: &Host, tunnel: &Tunnel, plain: &mut Plain, mut out: Outbox) -> Vec<Vec<u8>> {
    let mut received = Vec::new();
    loop {
        while let Some(outgoing) = out.pop() {
            plain.take(&outgoing.bytes);
        }
        let Some(datagram) = plain.outgoing.pop_front() else { return received };
        if datagram[0] != 4 {
            assert!(host.handle_handshake(now, wall(), address(0), &datagram, &mut out).is_ok());
            continue;
        }
        let mut buffer = vec![0u8; 2_048];
        let mut guard = tunnel.lock();
        let opened = guard.open(now, &datagram, &mut buffer).unwrap();
        guard.flush(now, wall(), &mut out);
        buffer.truncate(opened.length);
        if opened.length > 0 {
            received.push(buffer);
        }
    }
}

fn seal(now: Instant, tunnel: &Tunnel, packet: &[u8], out: &mut Outbox) -> Option<Vec<u8>> {
    let mut buffer = vec![0u8; 2_048];
    let mut guard = tunnel.lock();
    let sealed = guard.seal(now, packet, &mut buffer).unwrap();
    guard.flush(now, wall(), out);
    match sealed {
        Sealed::Datagram(length) => {
            buffer.truncate(length);
            Some(buffer)
        }
        Sealed::Held => None,
    }
}

#[test]
fn a_plain_peer_answers_us_across_rekeys() {
    for ours_is_lower in [true, false] {
        let (host, tunnel, mut plain) = Plain::beside(20, ours_is_lower);
        let mut out = Outbox::new();
        for length in 40..50 {
            assert_eq!(seal(START, &tunnel, &packet(length), &mut out), None);
        }
        settle(START, &host, &tunnel, &mut plain, out);
        assert_eq!(plain.opened.iter().map(Vec::len).collect::<Vec<_>>(), (40..50).collect::<Vec<_>>());

        for round in 1..5u64 {
            // Within the 15 s after which unanswered data would ask for a session by itself.
            let now = START + Duration::from_secs(3 * round);
            // On the way while the session changes.
            let ours = seal(now, &tunnel, &packet(60), &mut Outbox::new()).unwrap();
            plain.send(&packet(61));
            let theirs = plain.outgoing.pop_front().unwrap();
            let mut out = Outbox::new();
            assert_eq!(tunnel.initiate(now, wall(), &mut out), Initiation::Sent);
            settle(now, &host, &tunnel, &mut plain, out);
            let status = tunnel.status(now);
            assert_eq!((status.handshakes, status.session.map(|s| s.established)), (round + 1, Some(now)));
            plain.opened.clear();
            plain.take(&ours);
            assert_eq!(plain.opened.len(), 1, "the peer opened what was sealed before");
            plain.outgoing.push_back(theirs);
            assert_eq!(settle(now, &host, &tunnel, &mut plain, Outbox::new()).len(), 1, "and so did we");

            let ours = seal(now, &tunnel, &packet(62), &mut Outbox::new()).unwrap();
            plain.take(&ours);
            plain.send(&packet(63));
            assert_eq!(settle(now, &host, &tunnel, &mut plain, Outbox::new()), [packet(63)]);
            assert_eq!(plain.opened.last(), Some(&packet(62)));
        }
        assert!(tunnel.status(START).drops.iter().all(|count| *count == 0));
    }
}

#[test]
fn a_plain_peer_starts_and_rekeys() {
    for ours_is_lower in [true, false] {
        let (host, tunnel, mut plain) = Plain::beside(21, ours_is_lower);
        plain.send(&packet(50));
        plain.send(&packet(51));
        let received = settle(START, &host, &tunnel, &mut plain, Outbox::new());
        assert_eq!(received, [packet(50), packet(51)], "what it had waiting");
        assert_eq!(tunnel.status(START).session.map(|session| session.role), Some(Role::Responder));

        for round in 1..5u64 {
            let now = START + Duration::from_secs(30 * round);
            let mut buffer = vec![0u8; 2_048];
            let TunnResult::WriteToNetwork(initiation) = plain.tunn.format_handshake_initiation(&mut buffer, true)
            else {
                panic!("no initiation")
            };
            let mut out = Outbox::new();
            let event = host.handle_handshake(now, wall(), address(0), initiation, &mut out).unwrap();
            assert!(matches!(event, HandshakeEvent::Answered(_)));
            let response = out.pop().unwrap();
            assert_eq!(response.to, Destination::Source);
            // Not confirmed yet: we go on under the old session, and the peer opens it.
            let before = tunnel.status(now).session;
            let ours = seal(now, &tunnel, &packet(52), &mut Outbox::new()).unwrap();
            plain.take(&ours);
            assert_eq!(plain.opened.last(), Some(&packet(52)));
            plain.take(&response.bytes);
            settle(now, &host, &tunnel, &mut plain, Outbox::new());
            let after = tunnel.status(now).session;
            assert_ne!(before.map(|session| session.local_index), after.map(|session| session.local_index));
            let ours = seal(now, &tunnel, &packet(53), &mut Outbox::new()).unwrap();
            plain.take(&ours);
            assert_eq!(plain.opened.last(), Some(&packet(53)));
            plain.send(&packet(54));
            assert_eq!(settle(now, &host, &tunnel, &mut plain, Outbox::new()), [packet(54)]);
        }
        assert!(tunnel.status(START).drops.iter().all(|count| *count == 0));
    }
}

/// boringtun's limiter asks everybody for a cookie after ten handshakes in a second.
#[test]
fn a_plain_peers_cookie_is_honoured() {
    let (host, tunnel, mut plain) = Plain::beside(22, true);
    let mut now = START;
    let mut cookies = 0;
    for round in 0..16u64 {
        now += Duration::from_secs(2);
        let mut out = Outbox::new();
        assert_eq!(tunnel.initiate(now, wall(), &mut out), Initiation::Sent);
        // A plain peer has nothing to say, so the last confirmation may be repeated first.
        let initiation = std::iter::from_fn(|| out.pop()).find(|outgoing| outgoing.bytes[0] == 1).unwrap();
        assert_eq!(initiation.bytes[132..] != [0; 16], cookies > 0, "MAC2 once there is a cookie");
        plain.take(&initiation.bytes);
        let mut answer = plain.outgoing.pop_front().unwrap();
        if answer[0] == 3 {
            cookies += 1;
            let event = host.handle_handshake(now, wall(), address(0), &answer, &mut out).unwrap();
            assert!(matches!(event, HandshakeEvent::CookieTaken(_)));
            plain.take(&out.pop().unwrap().bytes);
            answer = plain.outgoing.pop_front().unwrap();
        }
        assert_eq!(answer[0], 2, "round {round}");
        let event = host.handle_handshake(now, wall(), address(0), &answer, &mut out).unwrap();
        assert!(matches!(event, HandshakeEvent::Established(_)));
        settle(now, &host, &tunnel, &mut plain, out);
    }
    assert_eq!(cookies, 1, "one cookie serves all that follow");
}

/// Both start at once. The plain peer answers us and forgets its own initiation; so must we stand by ours, whoever has
/// the lower key.
#[test]
fn crossing_a_stock_peer_takes_one_round() {
    for ours_is_lower in [true, false] {
        let options = TunnelOptions { stock: true, ..on_demand() };
        let (host, tunnel, mut plain) = Plain::beside_with(23, ours_is_lower, options);
        let mut out = Outbox::new();
        assert_eq!(seal(START, &tunnel, &packet(40), &mut out), None);
        plain.send(&packet(41));
        let initiation = plain.outgoing.pop_front().unwrap();
        let event = host.handle_handshake(START, wall(), address(0), &initiation, &mut out).unwrap();
        assert!(matches!(event, HandshakeEvent::Outranked(_)));

        // Answer without asking the peer for packets it has waiting: that would make it start over.
        let mut buffer = vec![0u8; 2_048];
        let ours = out.pop().unwrap();
        let TunnResult::WriteToNetwork(response) = plain.tunn.decapsulate(None, &ours.bytes, &mut buffer) else {
            panic!("no response")
        };
        let event = host.handle_handshake(START, wall(), address(0), response, &mut out).unwrap();
        assert!(matches!(event, HandshakeEvent::Established(_)));
        settle(START, &host, &tunnel, &mut plain, out);
        assert_eq!(plain.opened, [packet(40)]);
        plain.send(&packet(42));
        let received = settle(START, &host, &tunnel, &mut plain, Outbox::new());
        assert_eq!(received.last(), Some(&packet(42)));
        let status = tunnel.status(START);
        assert_eq!((status.handshakes, status.initiations), (1, 1));
    }
}

/// Keepalives towards a NAT go out at their interval after whatever was sent last, and the session stands without any
/// packet.
#[test]
fn a_persistent_keepalive_counts_from_what_was_sent_last() {
    let interval = Duration::from_secs(25);
    let options = TunnelOptions { stock: true, persistent_keepalive: Some(interval), ..TunnelOptions::default() };
    let (host, tunnel, mut plain) = Plain::beside_with(24, true, options);
    let (mut now, mut sent_at, mut gaps) = (START, START, Vec::new());
    let data_at = START + Duration::from_secs(40);
    while now < START + Duration::from_secs(110) {
        let before = tunnel.status(now).keepalives.0;
        let mut out = Outbox::new();
        tunnel.tick(now, wall(), &mut out);
        settle(now, &host, &tunnel, &mut plain, out);
        if tunnel.status(now).keepalives.0 > before {
            gaps.push(now.saturating_since(sent_at));
            sent_at = now;
        }
        if now == data_at {
            plain.take(&seal(now, &tunnel, &packet(60), &mut Outbox::new()).unwrap());
            // Answered, so that nothing asks for a new session.
            plain.send(&packet(61));
            settle(now, &host, &tunnel, &mut plain, Outbox::new());
            plain.take(&seal(now, &tunnel, &packet(60), &mut Outbox::new()).unwrap());
            plain.send(&packet(61));
            settle(now, &host, &tunnel, &mut plain, Outbox::new());
            sent_at = now;
            // That answer is acknowledged after ten seconds of saying nothing.
        }
        let step = tunnel.deadline().max(now + Duration::from_millis(1));
        now = if now < data_at { step.min(data_at) } else { step };
    }
    // Confirmations come first, since the peer has nothing to say to the session.
    let late: Vec<u64> = gaps.iter().map(Duration::as_secs).filter(|gap| *gap >= 9).collect();
    assert_eq!(late, [25, 10, 25, 25], "{gaps:?}");
}

/// A phone that was switched off is not called for ever; the next packet for it starts over.
#[test]
fn a_stock_peer_that_is_gone_is_given_up_after_90_s() {
    let options = TunnelOptions { stock: true, ..on_demand() };
    let (_, tunnel, _plain) = Plain::beside_with(25, true, options);
    let mut out = Outbox::new();
    assert_eq!(seal(START, &tunnel, &packet(40), &mut out), None);
    let mut now = START;
    while now < START + Duration::from_secs(600) {
        let next = tunnel.tick(now, wall(), &mut out).min(START + Duration::from_secs(600));
        now = next.max(now + Duration::from_millis(100));
    }
    let asked = tunnel.status(now).initiations;
    assert!((4..12).contains(&asked), "{asked} initiations");
    let last = now;
    assert_eq!(seal(last, &tunnel, &packet(40), &mut out), None);
    assert_eq!(tunnel.status(last).initiations, asked + 1, "a new packet, a new search");
}

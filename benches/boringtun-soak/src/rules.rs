//! `Tunn` with the rules that keep handshakes from losing packets; the bench's model of the seam.
//!
//! The rules use nothing but `Tunn`'s public calls, take time as an argument and do no I/O.

use crate::packet::Message;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Packets held while there is no session; the number `Tunn`'s own queue has.
const HELD: usize = 256;
/// How long our own initiation is preferred over one that crosses it, and how long an answered
/// peer may take to confirm before we initiate ourselves. Longer than any round trip worth using.
const PATIENCE: Duration = Duration::from_secs(1);
const BUFFER: usize = 2048;

/// A datagram for the wire and the step that made it.
pub type Outgoing = (&'static str, Vec<u8>);

/// A tunnel that never lets `Tunn` hold a packet and never answers against itself.
pub struct Ruled {
    tunnel: Tunn,
    /// Whether our initiation wins where two cross. Exactly one of two ends with these rules leads;
    /// against any other implementation we always do.
    leads: bool,
    held: VecDeque<Vec<u8>>,
    /// True once the session in use was confirmed by the peer.
    confirmed: bool,
    /// When our initiation that has no answer yet was sent.
    initiated: Option<Instant>,
    /// When we answered an initiation that is not confirmed yet, and the index we gave that session.
    answered: Option<(Instant, u32)>,
    parked: Option<Vec<u8>>,
}

impl Ruled {
    pub fn new(tunnel: Tunn, leads: bool) -> Ruled {
        Ruled { tunnel, leads, held: VecDeque::new(), confirmed: false, initiated: None, answered: None, parked: None }
    }

    /// Seals a packet, or holds it and starts a handshake. Datagrams to send are added to `out`.
    pub fn send(&mut self, inner: &[u8], now: Instant, out: &mut Vec<Outgoing>) {
        if self.ready() {
            self.seal(inner, out);
            return;
        }
        if self.held.len() == HELD {
            self.held.pop_front();
        }
        self.held.push_back(inner.to_vec());
        self.initiate(now, out);
    }

    /// Opens a datagram. Returns the inner packet, if it carried one.
    pub fn receive(
        &mut self,
        datagram: &[u8],
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Result<Option<Vec<u8>>, WireGuardError> {
        let initiation = matches!(Message::read(datagram), Message::Initiation { .. });
        if initiation && self.leads && self.waits(now) {
            self.parked = Some(datagram.to_vec());
            return Ok(None);
        }
        self.open(datagram, now, out)
    }

    /// Runs the timers; call it every 250 ms or so.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Outgoing>) -> Result<(), WireGuardError> {
        if !self.waits(now)
            && let Some(datagram) = self.parked.take()
        {
            // Ours was not answered in time, so theirs counts. A bad one is no reason to stop.
            let _ = self.open(&datagram, now, out);
        }
        let result = self.run_timers(now, out);
        // Also after 90 s of failed tries, where `Tunn` gives up and returns an error for ever.
        if !self.held.is_empty() && !self.ready() {
            self.initiate(now, out);
        }
        result
    }

    fn run_timers(&mut self, now: Instant, out: &mut Vec<Outgoing>) -> Result<(), WireGuardError> {
        let mut buffer = [0u8; BUFFER];
        match self.tunnel.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(datagram) => {
                if matches!(Message::read(datagram), Message::Initiation { .. }) {
                    self.initiated = Some(now);
                }
                out.push(("timers", datagram.to_vec()));
                Ok(())
            }
            TunnResult::Err(error) => Err(error),
            _ => Ok(()),
        }
    }

    fn open(
        &mut self,
        datagram: &[u8],
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Result<Option<Vec<u8>>, WireGuardError> {
        if Message::read(datagram).is_handshake() {
            // A session is stamped with the time of the last `update_timers`, and of two sessions with
            // one stamp `Tunn` seals with whichever it heard on last. Distinct stamps keep the newer.
            // An expired tunnel returns an error here that this very message may end.
            let _ = self.run_timers(now, out);
        }
        let from = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut buffer = [0u8; BUFFER];
        let inner = match self.tunnel.decapsulate(from, datagram, &mut buffer) {
            TunnResult::Err(error) => {
                self.refuse(datagram, &error, now, out);
                return Err(error);
            }
            TunnResult::WriteToNetwork(answer) => {
                out.push(("decapsulate", answer.to_vec()));
                match Message::read(answer) {
                    Message::Response { sender, .. } => {
                        self.answered = Some((now, sender));
                        return Ok(None);
                    }
                    // The keepalive that confirms a session of ours: the handshake is complete.
                    Message::Keepalive { .. } => self.complete(),
                    // A cookie.
                    _ => return Ok(None),
                }
                None
            }
            TunnResult::WriteToTunnelV4(inner, _) | TunnResult::WriteToTunnelV6(inner, _) => Some(inner.to_vec()),
            TunnResult::Done if matches!(Message::read(datagram), Message::Cookie { .. }) => {
                return Ok(None);
            }
            TunnResult::Done => None,
        };
        if let Message::Data { receiver, .. } | Message::Keepalive { receiver, .. } = Message::read(datagram)
            && self.answered.is_some_and(|(_, index)| index == receiver)
        {
            self.complete();
        }
        self.confirmed = true;
        while self.ready()
            && let Some(inner) = self.held.pop_front()
        {
            self.seal(&inner, out);
        }
        Ok(inner)
    }

    /// Starts a handshake when the peer seals for a session we do not have: we started anew, and it
    /// would notice by itself only after 15 s. Anyone can forge such a datagram; the answer goes to
    /// the peer alone and at most once per `PATIENCE`.
    fn refuse(&mut self, datagram: &[u8], error: &WireGuardError, now: Instant, out: &mut Vec<Outgoing>) {
        let sealed = matches!(Message::read(datagram), Message::Data { .. } | Message::Keepalive { .. });
        let unknown = matches!(
            error,
            WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::InvalidAeadTag
        );
        if sealed && unknown && !self.ready() && !self.waits(now) {
            self.initiate(now, out);
        }
    }

    fn complete(&mut self) {
        self.answered = None;
        self.initiated = None;
        self.parked = None;
    }

    /// Whether `encapsulate` would seal with a session the peer is known to have.
    fn ready(&mut self) -> bool {
        // `time_since_last_handshake` looks at the very slot `encapsulate` takes its session from.
        self.confirmed &= self.tunnel.time_since_last_handshake().is_some();
        self.confirmed
    }

    fn waits(&self, now: Instant) -> bool {
        let fresh = |at: Instant| now.saturating_duration_since(at) < PATIENCE;
        self.initiated.is_some_and(fresh)
    }

    fn initiate(&mut self, now: Instant, out: &mut Vec<Outgoing>) {
        let fresh = |(at, _): (Instant, u32)| now.saturating_duration_since(at) < PATIENCE;
        if self.answered.is_some_and(fresh) {
            return;
        }
        let mut buffer = [0u8; BUFFER];
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.format_handshake_initiation(&mut buffer, false) {
            self.initiated = Some(now);
            out.push(("initiate", datagram.to_vec()));
        }
    }

    fn seal(&mut self, inner: &[u8], out: &mut Vec<Outgoing>) {
        let mut buffer = [0u8; BUFFER];
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.encapsulate(inner, &mut buffer) {
            out.push(("seal", datagram.to_vec()));
        }
    }
}

/// `Tunn` used exactly as its documentation says.
pub struct Plain(pub Tunn);

impl Plain {
    pub fn send(&mut self, inner: &[u8], out: &mut Vec<Outgoing>) {
        let mut buffer = [0u8; BUFFER];
        if let TunnResult::WriteToNetwork(datagram) = self.0.encapsulate(inner, &mut buffer) {
            out.push(("encapsulate", datagram.to_vec()));
        }
    }

    pub fn receive(&mut self, datagram: &[u8], out: &mut Vec<Outgoing>) -> Result<Option<Vec<u8>>, WireGuardError> {
        let from = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut buffer = [0u8; BUFFER];
        match self.0.decapsulate(from, datagram, &mut buffer) {
            TunnResult::WriteToNetwork(answer) => out.push(("decapsulate", answer.to_vec())),
            TunnResult::WriteToTunnelV4(inner, _) | TunnResult::WriteToTunnelV6(inner, _) => {
                return Ok(Some(inner.to_vec()));
            }
            TunnResult::Err(error) => return Err(error),
            TunnResult::Done => return Ok(None),
        }
        // The documented flush: repeat with an empty datagram until Done.
        while let TunnResult::WriteToNetwork(held) = self.0.decapsulate(from, &[], &mut buffer) {
            out.push(("flush", held.to_vec()));
        }
        Ok(None)
    }

    pub fn tick(&mut self, out: &mut Vec<Outgoing>) -> Result<(), WireGuardError> {
        let mut buffer = [0u8; BUFFER];
        match self.0.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(datagram) => out.push(("timers", datagram.to_vec())),
            TunnResult::Err(error) => return Err(error),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{inner_sequence, ipv4_udp, payload};
    use boringtun::x25519::{PublicKey, StaticSecret};

    fn tunnels() -> [Tunn; 2] {
        let (a, b) = (StaticSecret::from([1u8; 32]), StaticSecret::from([2u8; 32]));
        let (public_a, public_b) = (PublicKey::from(&a), PublicKey::from(&b));
        [(a, public_b, 10), (b, public_a, 20)].map(|(own, peer, index)| {
            let tunnel = Tunn::new(own, peer, None, None, index, None);
            #[cfg(feature = "v06")]
            let tunnel = tunnel.expect("0.6.0 has no failing path here");
            tunnel
        })
    }

    fn inner(sequence: u32) -> Vec<u8> {
        let [a, b] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        ipv4_udp(a, b, &payload(sequence))
    }

    fn kinds(sent: &[Outgoing]) -> Vec<Message> {
        sent.iter().map(|(_, datagram)| Message::read(datagram)).collect()
    }

    fn initiations(sent: &[Outgoing]) -> usize {
        kinds(sent).iter().filter(|kind| matches!(kind, Message::Initiation { .. })).count()
    }

    /// Two ends whose datagrams cross: what both sent in a round arrives in the next.
    struct Pair {
        ends: [Ruled; 2],
        on_the_way: [Vec<Outgoing>; 2],
        sent: Vec<Outgoing>,
        arrived: [Vec<u32>; 2],
    }

    impl Pair {
        fn new() -> Pair {
            let [a, b] = tunnels();
            Pair {
                ends: [Ruled::new(a, true), Ruled::new(b, false)],
                on_the_way: Default::default(),
                sent: Vec::new(),
                arrived: Default::default(),
            }
        }

        fn send(&mut self, end: usize, sequence: u32, now: Instant) {
            self.ends[end].send(&inner(sequence), now, &mut self.on_the_way[end]);
        }

        fn deliver(&mut self, now: Instant) {
            while self.on_the_way.iter().any(|way| !way.is_empty()) {
                let crossing = std::mem::take(&mut self.on_the_way);
                for (from, datagrams) in crossing.into_iter().enumerate() {
                    let to = 1 - from;
                    for outgoing in datagrams {
                        let answers = &mut self.on_the_way[to];
                        let opened = self.ends[to].receive(&outgoing.1, now, answers);
                        if let Ok(Some(packet)) = opened {
                            self.arrived[to].extend(inner_sequence(&packet));
                        }
                        self.sent.push(outgoing);
                    }
                }
            }
        }
    }

    #[test]
    fn crossing_initiations_make_one_session_and_lose_nothing() {
        let (mut pair, now) = (Pair::new(), Instant::now());
        for sequence in 0..5 {
            pair.send(0, sequence, now);
            pair.send(1, sequence, now);
        }
        pair.deliver(now);
        assert_eq!(pair.arrived, [vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]]);
        assert_eq!(initiations(&pair.sent), 2);
        let answers = kinds(&pair.sent).into_iter().filter(|kind| matches!(kind, Message::Response { .. })).count();
        assert_eq!(answers, 1);
    }

    #[test]
    fn a_parked_initiation_is_answered_when_ours_stays_without_an_answer() {
        let (mut pair, now) = (Pair::new(), Instant::now());
        pair.send(0, 7, now);
        pair.on_the_way[0].clear();
        pair.send(1, 8, now);
        pair.deliver(now);
        assert_eq!(pair.arrived, [vec![], vec![]]);
        let later = now + PATIENCE;
        pair.ends[0].tick(later, &mut pair.on_the_way[0]).expect("timers have nothing to refuse");
        pair.deliver(later);
        assert_eq!(pair.arrived, [vec![8], vec![7]]);
    }

    #[test]
    fn an_answered_peer_has_time_to_confirm() {
        let (mut pair, now) = (Pair::new(), Instant::now());
        pair.send(0, 0, now);
        let [(_, initiation)] = &pair.on_the_way[0][..] else { panic!("one initiation") };
        let mut answer = Vec::new();
        pair.ends[1].receive(initiation, now, &mut answer).expect("a good initiation");
        assert!(matches!(kinds(&answer)[..], [Message::Response { .. }]));
        let mut out = Vec::new();
        pair.ends[1].send(&inner(1), now, &mut out);
        pair.ends[1].tick(now, &mut out).expect("timers have nothing to refuse");
        assert_eq!(kinds(&out), []);
        pair.ends[1].tick(now + PATIENCE, &mut out).expect("timers have nothing to refuse");
        assert_eq!(initiations(&out), 1);
    }

    #[test]
    fn an_end_that_started_anew_asks_for_a_session_when_it_is_sealed_to() {
        let (mut pair, now) = (Pair::new(), Instant::now());
        pair.send(1, 0, now);
        pair.deliver(now);
        assert_eq!(pair.arrived[0], [0]);
        let [fresh, _] = tunnels();
        pair.ends[0] = Ruled::new(fresh, true);
        pair.send(1, 1, now);
        pair.send(1, 2, now);
        let before = initiations(&pair.sent);
        pair.deliver(now);
        assert_eq!(initiations(&pair.sent), before + 1);
        pair.send(1, 3, now);
        pair.deliver(now);
        assert_eq!(pair.arrived[0], [0, 3]);
    }

    #[test]
    fn a_late_packet_of_an_older_session_does_not_bring_it_back() {
        let (mut pair, now) = (Pair::new(), Instant::now());
        pair.send(0, 0, now);
        pair.deliver(now);
        let mut late = Vec::new();
        pair.ends[1].send(&inner(1), now, &mut late);
        let Message::Data { receiver: older, .. } = kinds(&late)[0] else { panic!("{late:?}") };
        pair.ends[1].initiate(now, &mut pair.on_the_way[1]);
        pair.deliver(now);
        let mut newer = Vec::new();
        pair.ends[1].send(&inner(2), now, &mut newer);
        assert!(!matches!(kinds(&newer)[0], Message::Data { receiver, .. } if receiver == older));
        pair.send(0, 1, now);
        let with_newer = kinds(&pair.on_the_way[0])[0];
        pair.ends[0].receive(&late[0].1, now, &mut Vec::new()).expect("the older session is valid");
        pair.send(0, 2, now);
        match (with_newer, kinds(&pair.on_the_way[0])[1]) {
            (Message::Data { receiver: before, .. }, Message::Data { receiver: after, .. }) => {
                assert_eq!(before, after);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Pins the defect the rules exist for: when this fails, boringtun has changed.
    #[test]
    fn plain_flush_gives_up_the_initiation_in_progress() {
        let mut ends = tunnels().map(Plain);
        let mut sent = [Vec::new(), Vec::new()];
        for (end, out) in ends.iter_mut().zip(&mut sent) {
            end.send(&inner(0), out);
        }
        let (mut answer_to_a, mut after_a) = (Vec::new(), Vec::new());
        ends[1].receive(&sent[0][0].1, &mut answer_to_a).expect("a good initiation");
        ends[0].receive(&sent[1][0].1, &mut after_a).expect("a good initiation");
        assert!(matches!(kinds(&after_a)[..], [Message::Response { .. }, Message::Initiation { .. }]));
        let refused = ends[0].receive(&answer_to_a[0].1, &mut Vec::new());
        assert!(matches!(refused, Err(WireGuardError::UnexpectedPacket)));
    }
}

//! boringtun's `Tunn` used exactly as its documentation says.

use crate::end::{Outgoing, Tunnel};
use boringtun::noise::{Tunn, TunnResult};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// How often `update_timers` is called; boringtun's own device uses the same 250 ms.
const TIMER_PERIOD: Duration = Duration::from_millis(250);
const BUFFER: usize = 2048;

pub struct Plain {
    tunnel: Tunn,
    next_tick: Instant,
}

impl Plain {
    pub fn new(tunnel: Tunn) -> Plain {
        Plain { tunnel, next_tick: Instant::now() }
    }
}

impl Tunnel for Plain {
    fn send(&mut self, inner: &[u8], out: &mut Vec<Outgoing>) -> Result<(), String> {
        let mut buffer = [0u8; BUFFER];
        match self.tunnel.encapsulate(inner, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => out.push(("encapsulate", datagram.to_vec())),
            TunnResult::Err(error) => return Err(format!("{error:?}")),
            _ => {}
        }
        Ok(())
    }

    fn receive(&mut self, datagram: &[u8], out: &mut Vec<Outgoing>) -> Result<Option<Vec<u8>>, String> {
        let from = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut buffer = [0u8; BUFFER];
        match self.tunnel.decapsulate(from, datagram, &mut buffer) {
            TunnResult::WriteToNetwork(answer) => out.push(("decapsulate", answer.to_vec())),
            TunnResult::WriteToTunnelV4(inner, _) | TunnResult::WriteToTunnelV6(inner, _) => {
                return Ok(Some(inner.to_vec()));
            }
            TunnResult::Err(error) => return Err(format!("{error:?}")),
            TunnResult::Done => return Ok(None),
        }
        // The documented flush: repeat with an empty datagram until Done.
        while let TunnResult::WriteToNetwork(held) = self.tunnel.decapsulate(from, &[], &mut buffer) {
            out.push(("flush", held.to_vec()));
        }
        Ok(None)
    }

    fn tick(&mut self, out: &mut Vec<Outgoing>) -> Result<(), String> {
        self.next_tick = Instant::now() + TIMER_PERIOD;
        let mut buffer = [0u8; BUFFER];
        match self.tunnel.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(datagram) => out.push(("timers", datagram.to_vec())),
            TunnResult::Err(error) => return Err(format!("{error:?}")),
            _ => {}
        }
        Ok(())
    }

    fn wait(&self) -> Duration {
        self.next_tick.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Message, ipv4_udp, payload};
    use boringtun::x25519::{PublicKey, StaticSecret};

    fn kinds(sent: &[Outgoing]) -> Vec<Message> {
        sent.iter().map(|(_, datagram)| Message::read(datagram)).collect()
    }

    /// Pins the defect that costs plain starts 5 s: when this fails, boringtun has changed.
    #[test]
    fn the_flush_gives_up_the_initiation_in_progress() {
        let (a, b) = (StaticSecret::from([1u8; 32]), StaticSecret::from([2u8; 32]));
        let (public_a, public_b) = (PublicKey::from(&a), PublicKey::from(&b));
        let mut ends = [(a, public_b, 10), (b, public_a, 20)].map(|(own, peer, index)| {
            let tunnel = Tunn::new(own, peer, None, None, index, None);
            #[cfg(feature = "v06")]
            let tunnel = tunnel.expect("0.6.0 has no failing path here");
            Plain::new(tunnel)
        });
        let inner = ipv4_udp(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), &payload(0));
        let mut sent = [Vec::new(), Vec::new()];
        for (end, out) in ends.iter_mut().zip(&mut sent) {
            end.send(&inner, out).expect("a packet can wait");
        }
        let (mut answer_to_a, mut after_a) = (Vec::new(), Vec::new());
        ends[1].receive(&sent[0][0].1, &mut answer_to_a).expect("a good initiation");
        ends[0].receive(&sent[1][0].1, &mut after_a).expect("a good initiation");
        assert!(matches!(kinds(&after_a)[..], [Message::Response { .. }, Message::Initiation { .. }]));
        let refused = ends[0].receive(&answer_to_a[0].1, &mut Vec::new());
        assert_eq!(refused, Err("UnexpectedPacket".into()));
    }
}

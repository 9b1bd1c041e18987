//! Reaching a peer: which endpoint to try next, when, and whether to introduce ourselves first.
//!
//! A peer that does not know our key drops our handshake without a word. So a first contact sends an introduction and the
//! handshake right behind it; a peer that has had a session with us before gets the introduction from the second attempt on.
//! Attempts never end: the time between them doubles up to a cap, with jitter, and evidence of life starts it afresh.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::RngCore;

use crate::time::Instant;

/// What an attempt does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Where to send it.
    pub endpoint: SocketAddr,
    /// Whether to introduce ourselves before the handshake.
    pub introduce: bool,
    /// How often each endpoint was tried before.
    pub round: usize,
}

/// One peer's reachability, as far as sessions go.
#[derive(Debug)]
pub struct Contact {
    /// What the peer announces in its record, in its order.
    announced: Vec<SocketAddr>,
    /// What our configuration says.
    configured: Vec<SocketAddr>,
    /// Where its authentic packets or its introduction came from.
    observed: Option<SocketAddr>,
    /// Where the newest session runs.
    current: Option<SocketAddr>,
    /// Whether the peer is known to know us.
    met: bool,
    session_since: Option<Instant>,
    attempts: u32,
    next: Option<Instant>,
    /// The last evidence that the peer exists: it was learned, or a session with it ended.
    last_evidence: Instant,
}

impl Contact {
    /// Time between the first two attempts: two of the longest round trips on earth, roughly.
    const FIRST_RETRY: Duration = Duration::from_millis(250);
    /// Longest time between attempts to a peer that was reachable, or learned of, in the last hour: a partition that heals must not wait
    /// for a back-off, and a handshake every three seconds costs a ten-thousandth of a core.
    const RECENT_CAP: Duration = Duration::from_secs(3);
    /// Longest time between attempts to a peer that has been away for longer, or never answered.
    const CAP: Duration = Duration::from_secs(30);
    /// What counts as recent.
    const RECENT: Duration = Duration::from_secs(3600);

    /// Makes the contact of a peer that was just learned. `met` says that a session stood in an earlier life of this daemon.
    pub fn new(met: bool, now: Instant) -> Self {
        Contact {
            announced: Vec::new(),
            configured: Vec::new(),
            observed: None,
            current: None,
            met,
            session_since: None,
            attempts: 0,
            next: None,
            last_evidence: now,
        }
    }

    /// Replaces the announced endpoints.
    pub fn set_announced(&mut self, endpoints: &[SocketAddr]) {
        self.announced = endpoints.to_vec();
    }

    /// Adds an endpoint that our configuration names.
    pub fn add_configured(&mut self, endpoint: SocketAddr) {
        if !self.configured.contains(&endpoint) {
            self.configured.push(endpoint);
        }
    }

    /// Notes where an authentic packet of the peer came from.
    pub fn set_observed(&mut self, endpoint: SocketAddr) {
        self.observed = Some(endpoint);
    }

    /// The endpoints that the peer announces, and those that our configuration names.
    pub fn told(&self) -> (&[SocketAddr], &[SocketAddr]) {
        (&self.announced, &self.configured)
    }

    /// Whether any endpoint is known.
    pub fn is_reachable(&self) -> bool {
        self.current.is_some() || self.observed.is_some() || !self.announced.is_empty() || !self.configured.is_empty()
    }

    /// The endpoint of the newest session, if there has been one.
    pub fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// The first endpoint to try.
    pub fn first_candidate(&self) -> Option<SocketAddr> {
        self.candidates().first().copied()
    }

    /// Whether a session stands.
    pub fn has_session(&self) -> bool {
        self.session_since.is_some()
    }

    /// When the standing session was first established, rekeys not counted.
    pub fn session_since(&self) -> Option<Instant> {
        self.session_since
    }

    /// Whether the peer is known to know our key.
    pub fn met(&self) -> bool {
        self.met
    }

    /// Attempts since the last session.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A session stands with the peer at `endpoint`, or by a relay.
    pub fn on_session(&mut self, endpoint: Option<SocketAddr>, now: Instant) {
        self.current = endpoint.or(self.current);
        self.met = true;
        self.attempts = 0;
        self.next = None;
        self.session_since = self.session_since.or(Some(now));
    }

    /// The session is gone or carries nothing any more: begin to try, the next attempt at `at`.
    pub fn on_session_lost(&mut self, at: Instant, now: Instant) {
        if self.session_since.take().is_some() {
            self.last_evidence = now;
        }
        self.start(at);
    }

    /// Asks for an attempt at `at`, or earlier where one is planned earlier; the back-off starts afresh.
    pub fn start(&mut self, at: Instant) {
        self.attempts = 0;
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Ends the attempts: the link answers.
    pub fn stop(&mut self) {
        self.next = None;
        self.attempts = 0;
    }

    /// Returns when [`Contact::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next.filter(|_| self.is_reachable())
    }

    /// Returns the attempt that is due and plans the one after it.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut impl RngCore) -> Option<Attempt> {
        if self.next.is_none_or(|next| now < next) {
            return None;
        }
        let candidates = self.candidates();
        let endpoint = *candidates.get(self.attempts as usize % candidates.len().max(1))?;
        let round = self.attempts as usize / candidates.len();
        let introduce = !self.met || self.attempts > 0;
        let recent = now.saturating_since(self.last_evidence) < Self::RECENT;
        let cap = if recent { Self::RECENT_CAP } else { Self::CAP };
        let base = Self::FIRST_RETRY.saturating_mul(1 << self.attempts.min(10)).min(cap);
        // Between half and the whole of the base: nodes that lost each other together do not retry together.
        let pause = base.mul_f64(0.5 + 0.5 * f64::from(rng.next_u32()) / f64::from(u32::MAX));
        self.attempts = self.attempts.saturating_add(1);
        self.next = Some(now + pause);
        Some(Attempt { endpoint, introduce, round })
    }

    /// The endpoints in the order of trust, each once: where it worked, what the peer says, where it was seen.
    fn candidates(&self) -> Vec<SocketAddr> {
        let mut candidates: Vec<SocketAddr> = Vec::with_capacity(self.announced.len() + self.configured.len() + 2);
        for endpoint in self.current.iter().chain(&self.announced).chain(&self.configured).chain(&self.observed) {
            if !candidates.contains(endpoint) {
                candidates.push(*endpoint);
            }
        }
        candidates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 7655))
    }

    fn attempts(contact: &mut Contact, from: Instant, count: usize) -> Vec<(Instant, Attempt)> {
        let mut rng = ChaCha12Rng::seed_from_u64(5);
        contact.start(from);
        (0..count)
            .map(|_| {
                let at = contact.poll_timeout().expect("never gives up");
                (at, contact.handle_timeout(at, &mut rng).expect("due"))
            })
            .collect()
    }

    #[test]
    fn attempts_go_on_for_ever_with_a_bounded_pause() {
        let mut contact = Contact::new(false, Instant::ZERO);
        contact.set_announced(&[endpoint(1)]);
        let tried = attempts(&mut contact, Instant::ZERO, 3000);
        assert_eq!(tried[0].0, Instant::ZERO);
        assert!(tried[1].0 <= Instant::from_millis(250));
        let longest = tried.windows(2).map(|w| w[1].0.saturating_since(w[0].0)).max();
        assert!(longest <= Some(Contact::CAP) && longest > Some(Contact::CAP / 2));
    }

    #[test]
    fn every_endpoint_gets_its_turn() {
        let mut contact = Contact::new(true, Instant::ZERO);
        contact.set_announced(&[endpoint(1), endpoint(2)]);
        contact.set_observed(endpoint(3));
        contact.on_session(Some(endpoint(2)), Instant::ZERO);
        contact.on_session_lost(Instant::ZERO, Instant::ZERO);
        let tried: Vec<_> = attempts(&mut contact, Instant::ZERO, 4).iter().map(|(_, a)| a.endpoint).collect();
        assert_eq!(tried, [endpoint(2), endpoint(1), endpoint(3), endpoint(2)]);
    }

    #[test]
    fn a_peer_that_knows_us_is_not_introduced_to_first() {
        let mut stranger = Contact::new(false, Instant::ZERO);
        stranger.set_announced(&[endpoint(1)]);
        assert!(attempts(&mut stranger, Instant::ZERO, 1)[0].1.introduce);
        let mut met = Contact::new(true, Instant::ZERO);
        met.set_announced(&[endpoint(1)]);
        let tried = attempts(&mut met, Instant::ZERO, 2);
        assert_eq!(tried.iter().map(|(_, a)| a.introduce).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn without_an_endpoint_there_is_nothing_to_do() {
        let mut contact = Contact::new(false, Instant::ZERO);
        contact.start(Instant::ZERO);
        assert_eq!(contact.poll_timeout(), None);
    }

    #[test]
    fn a_recent_peer_is_tried_more_often() {
        let mut contact = Contact::new(true, Instant::ZERO);
        contact.set_announced(&[endpoint(1)]);
        contact.on_session(Some(endpoint(1)), Instant::ZERO);
        contact.on_session_lost(Instant::ZERO, Instant::ZERO);
        let tried = attempts(&mut contact, Instant::ZERO, 2000);
        let early = tried.windows(2).filter(|w| w[1].0 < Instant::ZERO + Contact::RECENT);
        assert!(early.clone().count() > 20);
        assert!(early.into_iter().all(|w| w[1].0.saturating_since(w[0].0) <= Contact::RECENT_CAP));
    }
}

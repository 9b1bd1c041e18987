//! How sessions come to be: our initiations, the peer's, and who gives way when they cross.

use std::cmp::Ordering;
use std::sync::Weak;
use std::time::Duration;

use rand_core::RngCore;

use super::cookie::{COOKIE_LIFE, REPLY, stamp};
use super::host::Shared;
use super::keyring::Choice;
use super::mark::Mark;
use super::noise::INITIATION;
use super::outbox::{Destination, Outbox};
use super::session::{Mixed, Party, RESPONSE};
use super::state::State;
use super::tunnel::{Peer, Tunnel};
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;

/// Two initiations may be under way, so that a response slower than our first wait still finds its handshake.
const MOST_ATTEMPTS: usize = 2;

/// And so the peer's two newest may be unconfirmed here: it uses the one whose response arrives first.
const MOST_UNCONFIRMED: usize = 2;

/// Sessions in use or replaced. A third replaced one within ten seconds would need three handshakes in that time.
const MOST_CONFIRMED: usize = 3;

/// How long the side that outranks the other insists on its own initiation, and how long the side that answered one
/// waits for its session to be confirmed before it starts one itself.
pub(super) const CONTEST: Duration = Duration::from_secs(1);

/// The wait after the first initiation, doubled with each, and its cap.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The same towards a stock peer: half of it, the shortest wait, is longer than round trips are. Such a peer keeps one
/// unconfirmed session. A second initiation on the heels of the first makes it throw away the session that we are
/// already using, and it says nothing of that for 5 s.
const FIRST_WAIT_STOCK: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Initiations and responses served per peer: 50 a second (the kernel's figure), in any spacing.
const PER_PEER: (Duration, u32) = (Duration::from_millis(20), 50);

/// The first repetition of a confirmation; each further one waits twice as long.
pub(super) const FIRST_CONFIRMATION: Duration = Duration::from_millis(250);

/// Age at which the side with the lower key replaces a session, and at which the other does if that did not happen
/// (paper §6.2 has 120 s for whoever sends). Up to [`REKEY_JITTER`] later each, so that a mesh started at once does not
/// rekey at once; both well before the session dies at 180 s.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_AFTER_SECOND: Duration = Duration::from_secs(140);
const REKEY_JITTER: Duration = Duration::from_secs(8);

/// What became of an initiation that was understood.
pub(super) enum Verdict {
    Answered,
    Outranked,
    /// It names a hybrid key that is not here.
    Countered,
}

impl State {
    /// Sends an initiation, to the peer or to where its own came from.
    pub(super) fn start_attempt(
        &mut self,
        now: Instant,
        wall: UnixTime,
        peer: &Peer,
        links: &Links<'_>,
        to: Destination,
        out: &mut Outbox,
    ) {
        let hybrid = self.keys.for_initiation(self.series, self.tries, now);
        let mixed = hybrid.map_or_else(|| self.configured(), Mixed::Hybrid);
        let wait = self.backoff();
        self.retry_at = now + wait;
        self.tries = self.tries.saturating_add(1);
        let Some(slot) = links.shared.indices.claim(&mut self.rng, links.owner, self.shard) else {
            return self.count_drop(DropReason::QueueFull);
        };
        let party = Party { public: &peer.public, mixed };
        let (attempt, mut message) = match links.shared.forge.initiate(&party, slot, now) {
            Ok(started) => started,
            Err(reason) => return self.count_drop(reason),
        };
        self.stamp(now, &mut message);
        self.clock_behind = wall < self.marks.sent;
        self.marks.sent = self.marks.sent.max(wall);
        // To a stock peer, only the last one counts by now.
        let most = if self.options.stock { 1 } else { MOST_ATTEMPTS };
        while self.attempts.len() >= most {
            self.attempts.remove(0);
        }
        self.attempts.push(attempt);
        self.series.get_or_insert(now);
        self.initiations += 1;
        out.push(to, message);
    }

    /// A peer's initiation, proven to be its own, with its mark.
    #[expect(clippy::too_many_arguments, reason = "time, place and message of one event")]
    pub(super) fn receive_initiation(
        &mut self,
        now: Instant,
        wall: UnixTime,
        mark: Mark,
        initiation: &[u8; INITIATION],
        peer: &Peer,
        links: &Links<'_>,
        out: &mut Outbox,
    ) -> Result<Verdict, DropReason> {
        if self.closed {
            return Err(DropReason::NotAdmitted);
        }
        if !self.initiation_limit.take(now, PER_PEER.0, PER_PEER.1) {
            return Err(DropReason::RateLimited);
        }
        if self.marks.received.is_too_far_ahead(wall) {
            // Taken while our own clock was unset. Kept, it would lock the peer out.
            self.marks.received = Mark::default();
        }
        if mark <= self.marks.received || mark.is_too_far_ahead(wall) {
            return Err(DropReason::StaleHandshake);
        }
        self.marks.received = mark;
        self.evidence(now);
        let mixed = match self.keys.named_by(initiation[4]).filter(|_| !self.options.stock) {
            Some(Choice::Key(named)) => Mixed::Hybrid(named),
            // We cannot answer, because we have restarted since; an initiation of ours tells the peer so, in a way that nobody else
            // can forge: it ends in a session without that key.
            Some(Choice::Unknown) if self.names_keys => {
                if self.attempts.last().is_none_or(|attempt| now >= attempt.started + self.first_wait() / 2) {
                    self.start_attempt(now, wall, peer, links, Destination::Source, out);
                }
                return Ok(Verdict::Countered);
            }
            Some(Choice::Unknown) | None => self.configured(),
        };
        if let Some(since) = self.series {
            // Of two that cross, that of the newer key stands: the other side may not have it, or not know yet that we do.
            let ours = self.keys.rank(self.attempts.last().and_then(|attempt| attempt.key));
            match self.keys.rank(mixed.number()).cmp(&ours) {
                Ordering::Less => {}
                Ordering::Greater => self.settle(now),
                Ordering::Equal if !self.outranks(peer) => self.settle(now),
                Ordering::Equal if now.saturating_since(since) < CONTEST => return Ok(Verdict::Outranked),
                Ordering::Equal => {}
            }
        }
        let slot = links.shared.indices.claim(&mut self.rng, links.owner, self.shard).ok_or(DropReason::QueueFull)?;
        let party = Party { public: &peer.public, mixed };
        let (mut session, mut message) = links.shared.forge.respond(&party, slot, now, initiation)?;
        session.rekey_at = self.rekey_at(now, peer);
        self.stamp(now, &mut message);
        self.sessions.push(session);
        self.thin_out();
        self.urgent = true;
        out.push(Destination::Source, message);
        Ok(Verdict::Answered)
    }

    /// A response that names one of our attempts.
    pub(super) fn receive_response(
        &mut self,
        now: Instant,
        response: &[u8; RESPONSE],
        index: u32,
        peer: &Peer,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let at = self.attempts.iter().position(|attempt| attempt.index == index).ok_or(DropReason::UnknownSession)?;
        if !self.response_limit.take(now, PER_PEER.0, PER_PEER.1) {
            return Err(DropReason::RateLimited);
        }
        let confirmation = self.attempts[at].receive(response)?;
        let mut session = self.attempts.swap_remove(at).into_session(now);
        session.rekey_at = self.rekey_at(now, peer);
        session.confirm = Some((now + FIRST_CONFIRMATION, 0));
        self.evidence(now);
        let index = session.index;
        self.sessions.push(session);
        self.take_into_use(now, index);
        self.thin_out();
        self.keepalives.0 += 1;
        out.push(Destination::Peer, confirmation);
        Ok(())
    }

    /// A cookie reply to one of our messages: the next ones carry its cookie.
    pub(super) fn receive_cookie(
        &mut self,
        now: Instant,
        reply: &[u8; REPLY],
        index: u32,
        peer: &Peer,
    ) -> Result<(), DropReason> {
        let ours = self.attempts.iter().map(|attempt| (attempt.index, Some(attempt.mac1)));
        let theirs = self.sessions.iter().map(|session| (session.index, session.mac1));
        let mac1 = ours.chain(theirs).find(|(known, _)| *known == index).and_then(|(_, mac1)| mac1);
        let cookie =
            peer.macs.open_reply(reply, &mac1.ok_or(DropReason::UnknownSession)?).ok_or(DropReason::BadSeal)?;
        let fresh = self.cookie.as_ref().is_some_and(|(_, since)| now.saturating_since(*since) < CONTEST);
        self.cookie = Some((cookie, now));
        if !fresh && !self.attempts.is_empty() {
            // Ask again at once, but at most once a second: the reply may be one that an observer plays to us.
            self.retry_at = now;
            self.urgent = true;
        }
        Ok(())
    }

    /// The next wait of the reconnect loop: between half and all of a time that doubles. Never less than half, so that
    /// two attempts span the round trip; never the same for two hosts, so that a hub's restart is not a storm.
    pub(super) fn backoff(&mut self) -> Duration {
        let whole = self.first_wait().saturating_mul(1 << self.tries.min(7)).min(LONGEST_WAIT);
        whole / 2 + self.jitter(whole / 2)
    }

    /// The longest that the wait after a first initiation can be.
    pub(super) fn first_wait(&self) -> Duration {
        if self.options.stock { FIRST_WAIT_STOCK } else { FIRST_WAIT }
    }

    fn rekey_at(&mut self, now: Instant, peer: &Peer) -> Instant {
        let after = if self.outranks(peer) { REKEY_AFTER } else { REKEY_AFTER_SECOND };
        now + after + self.jitter(REKEY_JITTER)
    }

    /// Whether we rekey first, and our initiation stands where two cross.
    fn outranks(&self, peer: &Peer) -> bool {
        peer.ours_is_lower || self.options.stock
    }

    fn jitter(&mut self, most: Duration) -> Duration {
        most.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX))
    }

    fn stamp(&mut self, now: Instant, message: &mut [u8]) {
        if let Some((cookie, since)) = &self.cookie
            && now.saturating_since(*since) < COOKIE_LIFE
        {
            stamp(cookie, message);
        }
    }

    /// Keeps the number of sessions bounded, the newest of each kind.
    fn thin_out(&mut self) {
        let (mut unconfirmed, mut confirmed) = (0, 0);
        let sending = self.sending;
        for at in (0..self.sessions.len()).rev() {
            let session = &self.sessions[at];
            let (count, most) = match session.is_confirmed() {
                true => (&mut confirmed, MOST_CONFIRMED),
                false => (&mut unconfirmed, MOST_UNCONFIRMED),
            };
            *count += 1;
            if *count > most && Some(session.index) != sending {
                self.sessions.remove(at);
            }
        }
    }
}

/// What a peer's state needs of its surroundings.
pub(super) struct Links<'a> {
    pub(super) shared: &'a Shared,
    pub(super) owner: &'a Weak<Tunnel>,
}

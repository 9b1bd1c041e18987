//! What is due when: expiry, confirmations, keepalives, new handshakes.

use std::time::Duration;

use super::handshake::{CONTEST, FIRST_CONFIRMATION, Links};
use super::hold::LIFE;
use super::outbox::{Destination, Outbox};
use super::session::{LEAST_BUFFER, OVERHEAD, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, padded};
use super::state::{KEEPALIVE, State, UNANSWERED};
use super::tunnel::Peer;
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;

/// How long a replaced session still receives once the peer was heard on a newer one. It sends nothing on the old one
/// from then on, so this only has to outlast packets on their way; the network does not hold any for ten seconds.
const OVERLAP: Duration = Duration::from_secs(10);

/// How long a response may be on its way after we lost interest.
const LATE_RESPONSE: Duration = Duration::from_secs(5);

/// Repetitions of a confirmation: after 0.25, 0.75, 1.75, 3.75 and 7.75 s. A peer of another make that has nothing to
/// say never answers one; it must not be asked for ever.
const MOST_CONFIRMATIONS: u8 = 5;

/// A tunnel that is not always kept up is rekeyed only while it is used.
const IN_USE: Duration = Duration::from_secs(60);

/// How long a stock peer is asked for a session that only packets want (paper §6.4, Rekey-Attempt-Time).
const GIVE_UP: Duration = Duration::from_secs(90);

/// What a call may cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// Initiations included: 0.3 ms each.
    All,
    /// None that can wait: not while a session serves.
    Little,
}

impl State {
    /// Does everything that is due at `now`; returns when to come back at the latest.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        wall: UnixTime,
        peer: &Peer,
        links: &Links<'_>,
        effort: Effort,
        out: &mut Outbox,
    ) -> Instant {
        self.urgent = false;
        if self.closed {
            self.deadline = Instant::from_nanos(u64::MAX);
            return self.deadline;
        }
        self.expire(now);
        self.give_up(now);
        self.send_held(now, out);
        self.send_keepalives(now, out);
        if self.wants_session(now) {
            if self.initiate_at() <= now && (effort == Effort::All || self.current(now).is_none()) {
                self.start_attempt(now, wall, peer, links, Destination::Peer, out);
            }
        } else if self.attempts.last().is_none_or(|attempt| now >= attempt.started + LATE_RESPONSE) {
            self.settle(now);
        }
        self.deadline = self.next_deadline(now);
        self.deadline
    }

    fn expire(&mut self, now: Instant) {
        let proven = self.proven_current();
        let sending = self.sending;
        self.sessions.retain(|session| {
            let replaced = Some(session.index) != sending
                && proven.is_some_and(|proven| session.established <= proven && now >= proven + OVERLAP);
            !session.is_expired(now) && !replaced
        });
        if !self.sessions.iter().any(|session| Some(session.index) == sending) {
            self.sending = None;
        }
        while self.held.deadline().is_some_and(|deadline| deadline <= now) {
            self.held.pop();
            self.count_drop(DropReason::HoldFull);
        }
    }

    /// Ends the search for a stock peer that is not there. The next packet to it starts another.
    fn give_up(&mut self, now: Instant) {
        let patient = self.options.keep_up || !self.options.stock;
        if patient || self.series.is_none_or(|since| now < since + GIVE_UP) {
            return;
        }
        while self.held.pop().is_some() {
            self.count_drop(DropReason::HoldFull);
        }
        self.settle(now);
        self.demanded = false;
        self.unanswered = None;
    }

    /// When the peer was first heard on the session in use.
    fn proven_current(&self) -> Option<Instant> {
        self.sessions.iter().find(|session| Some(session.index) == self.sending)?.proven
    }

    /// Sends the packets that waited for a session, in their order.
    pub(super) fn send_held(&mut self, now: Instant, out: &mut Outbox) {
        let mtu = self.options.mtu;
        while !self.held.is_empty() && !self.is_holding(now) && self.current_for_data(now).is_some() {
            let Some(packet) = self.held.pop() else { return };
            let mut bytes = vec![0u8; (padded(packet.len(), mtu) + OVERHEAD).max(LEAST_BUFFER)];
            let Some(session) = self.current(now) else { return };
            match session.seal(&packet, mtu, &mut bytes) {
                Ok(length) => {
                    bytes.truncate(length);
                    out.push(Destination::Peer, bytes);
                    self.count_sent(now, packet.len());
                }
                Err(reason) => self.count_drop(reason),
            }
        }
    }

    fn send_keepalives(&mut self, now: Instant, out: &mut Outbox) {
        let passive = self.unreplied.is_some_and(|since| now >= since + KEEPALIVE);
        let mut confirmation = false;
        if let Some(session) = self.current(now)
            && let Some((at, repeated)) = session.confirm
            && at <= now
        {
            confirmation = true;
            let next = repeated + 1;
            session.confirm = (next < MOST_CONFIRMATIONS).then(|| (now + FIRST_CONFIRMATION * (1 << next), next));
        }
        let persistent = self.options.persistent_keepalive.is_some_and(|interval| now >= self.last_sealed + interval);
        if (passive || persistent || confirmation || self.greet) && self.send_keepalive(now, out) {
            self.greet = false;
            self.unreplied = None;
        }
    }

    fn send_keepalive(&mut self, now: Instant, out: &mut Outbox) -> bool {
        let mut bytes = vec![0u8; LEAST_BUFFER];
        let Some(Ok(length)) = self.current(now).map(|session| session.seal(&[], 0, &mut bytes)) else { return false };
        bytes.truncate(length);
        out.push(Destination::Peer, bytes);
        self.keepalives.0 += 1;
        self.last_sealed = now;
        true
    }

    /// Whether a new session is wanted.
    fn wants_session(&mut self, now: Instant) -> bool {
        let in_use = self.options.keep_up || self.last_data.is_some_and(|last| now.saturating_since(last) < IN_USE);
        let unanswered = self.unanswered.is_some_and(|since| now >= since + UNANSWERED);
        let asked = self.demanded || unanswered;
        match self.current(now) {
            None => asked || self.options.keep_up || !self.held.is_empty(),
            Some(session) => asked || session.sent >= REKEY_AFTER_MESSAGES || (in_use && now >= session.rekey_at),
        }
    }

    /// When the next initiation may go out: after the wait of the reconnect loop, and not while a session that the peer
    /// has just started may still be confirmed.
    pub(super) fn initiate_at(&self) -> Instant {
        let contest = self.sessions.iter().filter(|session| !session.is_confirmed()).map(|s| s.established + CONTEST);
        contest.max().map_or(self.retry_at, |contest| contest.max(self.retry_at))
    }

    fn next_deadline(&mut self, now: Instant) -> Instant {
        let proven = self.proven_current();
        let (keep_up, sending) = (self.options.keep_up, self.sending);
        let mut next = Instant::from_nanos(u64::MAX);
        let mut due = |at: Instant| next = next.min(at);
        for session in &self.sessions {
            due(session.established + REJECT_AFTER_TIME);
            match proven {
                Some(proven) if Some(session.index) != sending && session.established <= proven => {
                    due(proven + OVERLAP)
                }
                _ => {}
            }
            if Some(session.index) == sending {
                session.confirm.into_iter().for_each(|(at, _)| due(at));
                if session.rekey_at > now && (keep_up || self.last_data.is_some()) {
                    due(session.rekey_at);
                }
            }
        }
        if self.sending.is_some() {
            self.unreplied.into_iter().for_each(|since| due(since + KEEPALIVE));
            let persistent = self.options.persistent_keepalive;
            persistent.into_iter().for_each(|interval| due(self.last_sealed + interval));
        }
        self.unanswered.map(|since| since + UNANSWERED).filter(|at| *at > now).into_iter().for_each(&mut due);
        self.held.deadline().into_iter().for_each(&mut due);
        self.holding.filter(|until| *until > now).into_iter().for_each(&mut due);
        self.attempts
            .last()
            .map(|attempt| attempt.started + LATE_RESPONSE)
            .filter(|at| *at > now)
            .into_iter()
            .for_each(&mut due);
        if self.wants_session(now) {
            let at = self.initiate_at();
            next = next.min(at);
        }
        next
    }
}

const _: () = assert!(LIFE.as_secs() >= 30, "a held packet outlives the longest wait of the reconnect loop");

//! One peer's sessions and the packets that pass through them. Handshakes are in `handshake`, timers in `timers`.

use rand_chacha::ChaCha20Rng;
use std::time::Duration;

use super::cookie::Cookie;
use super::hold::HoldQueue;
use super::keyring::Keyring;
use super::mark::Marks;
use super::session::{Attempt, Content, Mixed, OVERHEAD, REKEY_AFTER_MESSAGES, Session, counter_of, word};
use super::sources::Bucket;
use super::status::{Role, SessionStatus, Traffic, TunnelStatus};
use super::{Opened, Sealed, Shard, TunnelOptions};
use crate::time::Instant;
use crate::wire::probe::Arrivals;
use crate::wire::{DropReason, overlay};

/// Silence after which a packet from the peer is news: the reconnect loop starts over from its shortest wait.
const SILENCE: Duration = Duration::from_secs(5);

/// How long after unanswered data a new handshake is due: the peer's keepalive would have come after 10 s (paper §6.5).
pub(super) const UNANSWERED: Duration = Duration::from_secs(15);

/// How long after received data, with nothing sent, a keepalive is due (paper §6.5).
pub(super) const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long an initiator may repeat its confirmation (see `timers`); a keepalive of that age is one, and is answered. An
/// initiator answers none, so this ends.
const CONFIRMING: Duration = Duration::from_secs(9);

/// Everything of one peer that its lock guards.
pub(super) struct State {
    pub(super) options: TunnelOptions,
    /// Whose the next sessions are.
    pub(super) shard: Shard,
    pub(super) closed: bool,
    /// The hybrid keys shared with the peer.
    pub(super) keys: Keyring,
    /// The peer's initiations name the hybrid keys they use.
    pub(super) names_keys: bool,
    /// Data passes under a session of a hybrid key alone.
    pub(super) required: bool,
    /// Oldest first, by the time their keys were made here.
    pub(super) sessions: Vec<Session>,
    /// The local index of the session packets are sealed under.
    pub(super) sending: Option<u32>,
    /// Initiations of ours that wait for a response, oldest first; at most two.
    pub(super) attempts: Vec<Attempt>,
    /// When the first of the current series of attempts was made.
    pub(super) series: Option<Instant>,
    pub(super) tries: u32,
    pub(super) retry_at: Instant,
    /// A new session was asked for, whatever the state of the old one.
    pub(super) demanded: bool,
    pub(super) held: HoldQueue,
    /// Until when packets wait although there is a session: the peer restarts, and the session ends with its program.
    pub(super) holding: Option<Instant>,
    pub(super) cookie: Option<(Cookie, Instant)>,
    pub(super) marks: Marks,
    pub(super) clock_behind: bool,
    /// Allowances for the peer's initiations and for responses that name an attempt of ours. Apart, because a response
    /// is not known to be the peer's until it was computed: a forger must not use up what the peer needs.
    pub(super) initiation_limit: Bucket,
    pub(super) response_limit: Bucket,
    pub(super) last_received: Option<Instant>,
    pub(super) last_data: Option<Instant>,
    /// When anything was last sealed, keepalives included.
    pub(super) last_sealed: Instant,
    /// Since when data was sent and nothing heard.
    pub(super) unanswered: Option<Instant>,
    /// Since when data was received and nothing sent.
    pub(super) unreplied: Option<Instant>,
    /// The peer's session was confirmed and we have not spoken on it yet.
    pub(super) greet: bool,
    /// Something is to be done before the deadline: `advance` must run after this batch.
    pub(super) urgent: bool,
    pub(super) deadline: Instant,
    pub(super) rng: ChaCha20Rng,
    pub(super) handshakes: u64,
    pub(super) initiations: u64,
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
    pub(super) arrived: Arrivals,
    pub(super) keepalives: (u64, u64),
    drops: [u64; DropReason::ALL.len()],
}

impl State {
    pub(super) fn new(options: TunnelOptions, held: HoldQueue, marks: Marks, rng: ChaCha20Rng) -> State {
        State {
            options,
            shard: Shard::default(),
            closed: false,
            keys: Keyring::default(),
            names_keys: false,
            required: false,
            sessions: Vec::new(),
            sending: None,
            attempts: Vec::new(),
            series: None,
            tries: 0,
            retry_at: Instant::ZERO,
            demanded: false,
            held,
            holding: None,
            cookie: None,
            marks,
            clock_behind: false,
            initiation_limit: Bucket::default(),
            response_limit: Bucket::default(),
            last_received: None,
            last_data: None,
            last_sealed: Instant::ZERO,
            unanswered: None,
            unreplied: None,
            greet: false,
            urgent: true,
            deadline: Instant::ZERO,
            rng,
            handshakes: 0,
            initiations: 0,
            sent: Traffic::default(),
            received: Traffic::default(),
            arrived: Arrivals::default(),
            keepalives: (0, 0),
            drops: [0; DropReason::ALL.len()],
        }
    }

    /// The session packets are sealed under, if it still may.
    pub(super) fn current(&mut self, now: Instant) -> Option<&mut Session> {
        let sending = self.sending?;
        self.sessions.iter_mut().find(|session| session.index == sending && session.is_usable(now))
    }

    /// The session that data is sealed under, which is none while a hybrid key is required and missing.
    pub(super) fn current_for_data(&mut self, now: Instant) -> Option<&mut Session> {
        let required = self.required;
        self.current(now).filter(|session| !required || session.key.is_some())
    }

    pub(super) fn is_ready(&mut self, now: Instant) -> bool {
        self.held.is_empty() && self.current_for_data(now).is_some()
    }

    pub(super) fn seal(&mut self, now: Instant, packet: &[u8], out: &mut [u8]) -> Result<Sealed, DropReason> {
        let result = self.try_seal(now, packet, out);
        if let Err(reason) = result {
            self.count_drop(reason);
        }
        result
    }

    fn try_seal(&mut self, now: Instant, packet: &[u8], out: &mut [u8]) -> Result<Sealed, DropReason> {
        if self.closed {
            return Err(DropReason::NotAdmitted);
        }
        if packet.is_empty() {
            return Err(DropReason::BadInnerPacket);
        }
        let mtu = self.options.mtu;
        // What the daemons say to each other is not held back by a missing key: it is how they come to one.
        let among_us = self.required && overlay::is_reserved(packet);
        let free = !self.is_holding(now) && (among_us || self.held.is_empty());
        let session = if among_us { self.current(now) } else { self.current_for_data(now) };
        if let Some(session) = session.filter(|_| free) {
            let length = session.seal(packet, mtu, out)?;
            if now >= session.rekey_at || session.sent >= REKEY_AFTER_MESSAGES {
                self.deadline = self.deadline.min(now);
            }
            self.count_sent(now, packet.len());
            return Ok(Sealed::Datagram(length));
        }
        // Packets already waiting go first, so this one waits with them even if a session stands by now.
        if !self.held.push(now, packet) {
            return Err(DropReason::HoldFull);
        }
        self.urgent = true;
        Ok(Sealed::Held)
    }

    pub(super) fn is_holding(&self, now: Instant) -> bool {
        self.holding.is_some_and(|until| now < until)
    }

    pub(super) fn count_sent(&mut self, now: Instant, bytes: usize) {
        self.sent.count(bytes);
        self.last_data = Some(now);
        self.last_sealed = now;
        self.unreplied = None;
        self.greet = false;
        if self.unanswered.is_none() {
            self.unanswered = Some(now);
            self.deadline = self.deadline.min(now + UNANSWERED);
        }
    }

    pub(super) fn open(&mut self, now: Instant, datagram: &[u8], out: &mut [u8]) -> Result<Opened, DropReason> {
        let result = self.try_open(now, datagram, out);
        if let Err(reason) = result {
            self.count_drop(reason);
        }
        result
    }

    fn try_open(&mut self, now: Instant, datagram: &[u8], out: &mut [u8]) -> Result<Opened, DropReason> {
        if self.closed {
            return Err(DropReason::NotAdmitted);
        }
        if datagram.len() < OVERHEAD || word(datagram, 0) != 4 {
            return Err(DropReason::Malformed);
        }
        let index = word(datagram, 4);
        let named = self.sessions.iter().position(|session| session.index == index);
        let at = named.filter(|at| !self.sessions[*at].is_expired(now)).ok_or(DropReason::UnknownSession)?;
        let content = self.sessions[at].open(datagram, out)?;
        // Messages are numbered from 0 in each session, so that those which are missing can be counted.
        let newly_expected = self.sessions[at].reach(counter_of(datagram));
        self.arrived.expected = self.arrived.expected.wrapping_add(newly_expected as u32);
        self.arrived.accepted = self.arrived.accepted.wrapping_add(1);
        let confirmed = self.heard(now, at);
        let keyed = self.sessions[at].key.is_some() || !self.required;
        let length = match content {
            Content::Nonsense => return Err(DropReason::BadInnerPacket),
            Content::Keepalive => {
                self.keepalives.1 += 1;
                let session = &self.sessions[at];
                if session.role == Role::Responder && now.saturating_since(session.established) < CONFIRMING {
                    // The initiator confirms because it has not heard us yet: our greeting, or what went instead, is lost.
                    self.greet = self.sending == Some(session.index);
                    self.urgent |= self.greet;
                }
                0
            }
            Content::Packet(length) if !keyed && !overlay::is_reserved(&out[..length]) => {
                return Err(DropReason::NotHybrid);
            }
            Content::Packet(length) => {
                self.received.count(length);
                self.last_data = Some(now);
                if self.unreplied.is_none() {
                    self.unreplied = Some(now);
                    self.deadline = self.deadline.min(now + KEEPALIVE);
                }
                length
            }
        };
        Ok(Opened { length, confirmed })
    }

    /// Notes that the peer was heard on the session at `at`; returns whether that put the session into use.
    fn heard(&mut self, now: Instant, at: usize) -> bool {
        self.unanswered = None;
        self.evidence(now);
        let session = &mut self.sessions[at];
        if session.proven.is_some() {
            return false;
        }
        session.proven = Some(now);
        session.confirm = None;
        session.mac1 = None;
        self.keys.heard(session.key, session.established, now);
        // Which older sessions may go, and when, depends on it.
        self.urgent = true;
        let (index, role) = (session.index, session.role);
        let current = self.sending.and_then(|sending| self.sessions.iter().position(|other| other.index == sending));
        if role == Role::Initiator || current.is_some_and(|current| current > at) {
            return false;
        }
        self.take_into_use(now, index);
        self.greet = true;
        true
    }

    /// Packets are sealed under the session `index` from now on; whatever was under way to get one is over.
    pub(super) fn take_into_use(&mut self, now: Instant, index: u32) {
        self.sending = Some(index);
        self.holding = None;
        self.handshakes += 1;
        self.settle(now);
        self.demanded = false;
        self.unanswered = None;
        self.urgent = true;
    }

    /// Gives up the attempts and starts the reconnect loop afresh.
    pub(super) fn settle(&mut self, now: Instant) {
        self.attempts.clear();
        self.series = None;
        self.tries = 0;
        self.retry_at = now;
    }

    /// Something of the peer's was authenticated. After silence, the reconnect loop need not wait any longer.
    pub(super) fn evidence(&mut self, now: Instant) {
        let silent = self.last_received.is_none_or(|last| now.saturating_since(last) >= SILENCE);
        self.last_received = Some(now);
        if silent && self.tries > 0 {
            self.tries = 0;
            let soon = now + self.backoff();
            self.retry_at = self.retry_at.min(soon);
            self.deadline = self.deadline.min(soon);
        }
    }

    /// Sorts datagrams by session, oldest first, and within a session by counter.
    pub(super) fn rank(&self, datagram: &[u8]) -> (usize, u64) {
        if datagram.len() < OVERHEAD {
            return (usize::MAX, 0);
        }
        let index = word(datagram, 4);
        let session = self.sessions.iter().position(|session| session.index == index);
        (session.unwrap_or(usize::MAX), counter_of(datagram))
    }

    pub(super) fn close(&mut self, now: Instant) {
        self.closed = true;
        self.sessions = Vec::new();
        self.sending = None;
        self.settle(now);
        self.held.clear();
        self.holding = None;
        self.cookie = None;
        self.options.preshared_key = None;
        self.keys.clear();
    }

    pub(super) fn count_drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    pub(super) fn status(&self, now: Instant) -> TunnelStatus {
        let current = self.sessions.iter().find(|s| Some(s.index) == self.sending && s.is_usable(now));
        TunnelStatus {
            session: current.map(|session| SessionStatus {
                established: session.established,
                role: session.role,
                local_index: session.index,
                proven: session.proven.is_some(),
                hybrid: session.key.is_some(),
            }),
            hybrid_keys: self.keys.stood(),
            sessions: self.sessions.len(),
            handshakes: self.handshakes,
            initiations: self.initiations,
            initiating: !self.attempts.is_empty(),
            sent: self.sent,
            received: self.received,
            arrived: self.arrived,
            keepalives: self.keepalives,
            last_received: self.last_received,
            held: self.held.len(),
            clock_behind: self.clock_behind,
            closed: self.closed,
            drops: self.drops,
        }
    }

    /// The key that the session in use came of, by its bit.
    pub(super) fn key_in_use(&mut self, now: Instant) -> Option<bool> {
        let number = self.current(now)?.key?;
        self.keys.bit_of(number)
    }

    /// What is mixed into a handshake that names no hybrid key.
    pub(super) fn configured(&self) -> Mixed {
        self.options.preshared_key.clone().map_or(Mixed::Nothing, Mixed::Configured)
    }
}

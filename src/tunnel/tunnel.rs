//! One peer: [`Tunnel`], and the [`Guard`] under which a batch of its packets is sealed or opened.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use x25519_dalek::PublicKey;
use zeroize::Zeroizing;

use super::cookie::MacKeys;
use super::handshake::Links;
use super::host::Shared;
use super::mark::Marks;
use super::outbox::Outbox;
use super::state::State;
use super::status::TunnelStatus;
use super::timers::Effort;
use super::{Datagram, Initiation, Opened, PeerKey, Sealed, Shard, TunnelOptions};
use crate::identity::HybridKey;
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;
use crate::wire::probe::Arrivals;

/// The tunnel to one peer: its sessions, its handshakes, and packets waiting for either.
///
/// It owns no socket and no endpoint. Whoever sends for it decides on the path, and learns addresses only from
/// datagrams that [`Guard::open`] accepted.
pub struct Tunnel {
    pub(super) peer: Peer,
    shared: Arc<Shared>,
    owner: Weak<Tunnel>,
    state: Mutex<State>,
}

/// What is known of the peer and never changes.
pub(super) struct Peer {
    pub(super) key: PeerKey,
    pub(super) public: PublicKey,
    pub(super) static_shared: Zeroizing<[u8; 32]>,
    pub(super) macs: MacKeys,
    /// Our key is the lower one: we rekey first, and of two crossing initiations ours stands.
    pub(super) ours_is_lower: bool,
}

impl Tunnel {
    pub(super) fn new(peer: Peer, shared: Arc<Shared>, state: State) -> Arc<Tunnel> {
        Arc::new_cyclic(|owner| Tunnel { peer, shared, owner: owner.clone(), state: Mutex::new(state) })
    }

    /// The peer's public key.
    pub fn peer_key(&self) -> &PeerKey {
        &self.peer.key
    }

    /// Locks the tunnel for a batch of packets. Nothing may be sent or received while the guard lives.
    pub fn lock(&self) -> Guard<'_> {
        Guard { tunnel: self, state: self.state() }
    }

    /// Asks for a new session now, whatever the state of the old one, and keeps at it until there is one.
    ///
    /// For a changed endpoint, a peer heard of after a long silence, or an operator's wish. The old session stays in use
    /// until the new one stands.
    pub fn initiate(&self, now: Instant, wall: UnixTime, out: &mut Outbox) -> Initiation {
        let mut guard = self.lock();
        if guard.state.closed {
            return Initiation::Closed;
        }
        guard.state.demanded = true;
        let wait = guard.state.first_wait();
        let young = guard.state.attempts.last().is_some_and(|attempt| now < attempt.started + wait);
        if !young {
            guard.state.tries = 0;
            guard.state.retry_at = now;
        }
        let before = guard.state.initiations;
        guard.advance(now, wall, Effort::All, out);
        match guard.state.initiations > before {
            true if guard.state.clock_behind => Initiation::ClockBehind,
            true => Initiation::Sent,
            false => Initiation::Pending,
        }
    }

    /// Does everything that is due at `now`: expiry, confirmations, keepalives, handshakes. Returns when to call again
    /// at the latest. What happens meanwhile may bring that forward: [`Guard::flush`] returns the new time, and
    /// [`deadline`](Self::deadline) has it after a handshake message.
    pub fn tick(&self, now: Instant, wall: UnixTime, out: &mut Outbox) -> Instant {
        self.lock().advance(now, wall, Effort::All, out)
    }

    /// Has packets wait from now on, although there is a session, until the next session stands or `until` comes. For a peer
    /// that restarts: its sessions end with its program.
    pub fn hold(&self, until: Instant) {
        let mut state = self.state();
        if !state.closed {
            state.holding = Some(until);
            state.deadline = state.deadline.min(until);
        }
    }

    /// Tells whether packets wait although there is a session.
    pub fn is_holding(&self, now: Instant) -> bool {
        self.state().is_holding(now)
    }

    /// When [`tick`](Self::tick) should be called at the latest.
    pub fn deadline(&self) -> Instant {
        self.state().deadline
    }

    /// The state of the tunnel, for display.
    pub fn status(&self, now: Instant) -> TunnelStatus {
        self.state().status(now)
    }

    /// What was seen of the peer's messages, by the numbers they carry.
    pub fn arrived(&self) -> Arrivals {
        self.state().arrived
    }

    /// Takes the tunnel out of service at once: sessions, attempts and waiting packets are dropped, and nothing passes any
    /// more in either direction.
    pub fn close(&self, now: Instant) {
        self.state().close(now);
    }

    /// Replaces the options. A changed pre-shared key takes effect with the next handshake.
    pub fn set_options(&self, options: TunnelOptions) {
        let mut state = self.state();
        state.options = options;
        state.urgent = true;
    }

    /// Takes a hybrid key that the peer shares. Where it leads, the peer has it for sure, and the next initiations name it;
    /// otherwise they name the one before, and the peer's are answered with either. It stands once something was opened under
    /// it.
    pub fn offer_key(&self, key: HybridKey, leads: bool) {
        let mut state = self.state();
        if !state.closed {
            state.keys.offer(key, leads);
        }
    }

    /// Gives up the key that was offered last, unless it stands.
    pub fn withdraw_key(&self) {
        self.state().keys.withdraw();
    }

    /// Forgets all hybrid keys. Sessions that came of them go on.
    pub fn forget_keys(&self) {
        self.state().keys.clear();
    }

    /// The bit of the hybrid key that the session in use came of; `None` where it came of none, or there is no session.
    pub fn key_in_use(&self, now: Instant) -> Option<bool> {
        self.state().key_in_use(now)
    }

    /// Says whether the peer's initiations name the hybrid keys they use, and whether data passes under a session of such a key
    /// alone. Until there is one, packets wait then; what the daemons say to each other passes.
    pub fn set_hybrid(&self, names: bool, required: bool) {
        let mut state = self.state();
        (state.names_keys, state.required) = (names, required);
        state.urgent = true;
        state.deadline = Instant::ZERO;
    }

    /// Says which thread the next sessions' datagrams are for. Those of the others are opened all the same.
    pub fn set_shard(&self, shard: Shard) {
        self.state().shard = shard;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock ends the process in production; in tests the state is still worth reading.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn links(&self) -> Links<'_> {
        Links { shared: &self.shared, owner: &self.owner }
    }

    pub(super) fn marks(&self) -> Marks {
        self.state().marks
    }
}

/// A locked tunnel. After a batch, call [`flush`](Self::flush).
pub struct Guard<'a> {
    tunnel: &'a Tunnel,
    state: MutexGuard<'a, State>,
}

impl Guard<'_> {
    /// Seals one packet into `out`, which must have room for the padded packet and 32 bytes more, and 148 at least.
    ///
    /// # Errors
    /// [`DropReason::HoldFull`] when there is no session and no room to wait for one, [`DropReason::TooBig`] when `out`
    /// is too small, [`DropReason::NotAdmitted`] on a closed tunnel. Each is counted.
    pub fn seal(&mut self, now: Instant, packet: &[u8], out: &mut [u8]) -> Result<Sealed, DropReason> {
        self.state.seal(now, packet, out)
    }

    /// Returns when something of the peer's was authenticated last.
    pub fn last_heard(&self) -> Option<Instant> {
        self.state.last_received
    }

    /// Whether a packet sealed now would be a datagram at once.
    pub fn has_session(&mut self, now: Instant) -> bool {
        self.state.is_ready(now)
    }

    /// Opens one data message (type 4) into `out`, which must be at least as long; the packet starts at its first byte.
    ///
    /// Success means that the peer made the datagram and that it was not seen before, so that its source address may be
    /// learned. It says nothing of the addresses inside the packet.
    ///
    /// # Errors
    /// The reason to drop the datagram, counted. [`DropReason::BadInnerPacket`] is authenticated rubbish.
    pub fn open(&mut self, now: Instant, datagram: &[u8], out: &mut [u8]) -> Result<Opened, DropReason> {
        self.state.open(now, datagram, out)
    }

    /// Puts datagrams into the order in which to open them: by session, oldest first, then by counter.
    ///
    /// boringtun remembers the last 1,024 counters. A batch that several queues or paths have shuffled can reach further
    /// back than that; sorted, it cannot.
    pub fn sort_batch(&self, batch: &mut [Datagram<'_>]) {
        batch.sort_by_cached_key(|datagram| self.state.rank(datagram.bytes));
    }

    /// Sorts a batch and opens it through one buffer. `deliver` gets each datagram's tag, the result, and the packet
    /// (empty for a keepalive or an error).
    pub fn open_batch(
        &mut self,
        now: Instant,
        batch: &mut [Datagram<'_>],
        out: &mut [u8],
        mut deliver: impl FnMut(usize, Result<Opened, DropReason>, &mut [u8]),
    ) {
        self.sort_batch(batch);
        for datagram in batch {
            let opened = self.open(now, datagram.bytes, out);
            let length = opened.as_ref().map_or(0, |opened| opened.length);
            deliver(datagram.tag, opened, &mut out[..length]);
        }
    }

    /// Ends a batch: sends what it made due, such as an initiation, an answer to a confirmation, or packets that waited
    /// for the session that now stands. Costs nothing when there is no such thing. Returns when [`Tunnel::tick`] should be
    /// called at the latest.
    ///
    /// It leaves the replacement of a session that still serves to [`Tunnel::tick`], so that packets of other peers do not
    /// wait for a handshake's arithmetic.
    pub fn flush(&mut self, now: Instant, wall: UnixTime, out: &mut Outbox) -> Instant {
        if self.state.urgent || now >= self.state.deadline {
            self.advance(now, wall, Effort::Little, out);
        }
        self.state.deadline
    }

    /// Counts a packet that was dropped for this peer outside the tunnel, so that all its drops stand in one place.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.state.count_drop(reason);
    }

    fn advance(&mut self, now: Instant, wall: UnixTime, effort: Effort, out: &mut Outbox) -> Instant {
        self.state.advance(now, wall, &self.tunnel.peer, &self.tunnel.links(), effort, out)
    }
}

//! This host's side of all tunnels: its key, its peers, and the way of a handshake message from the wire to its tunnel.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::cookie::{MacKeys, REPLY};
use super::gate::{Gate, Passage};
use super::handshake::Verdict;
use super::hold::{BUDGET, HoldBudget, HoldQueue};
use super::index::IndexTable;
use super::mark::Marks;
use super::noise::{INITIATION, Responder};
use super::outbox::{Destination, Outbox};
use super::session::{Forge, RESPONSE, word};
use super::state::State;
use super::tunnel::{Peer, Tunnel};
use super::{AddError, HandshakeEvent, PeerKey, TunnelOptions};
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;

/// Keys whose marks are remembered although they are no peers now: a removed peer that returns must not fall to a replay.
const MOST_REMEMBERED: usize = 65_536;

/// This host among its peers. All methods take `&self`; none blocks for longer than one handshake.
pub struct Host {
    shared: Arc<Shared>,
    responder: Responder,
    gate: Gate,
    peers: RwLock<HashMap<PeerKey, Arc<Tunnel>>>,
    remembered: Mutex<HashMap<PeerKey, Marks>>,
    drops: [AtomicU64; DropReason::ALL.len()],
}

/// What every tunnel of a host needs.
pub(super) struct Shared {
    pub(super) forge: Forge,
    pub(super) indices: Arc<IndexTable>,
    budget: Arc<HoldBudget>,
    seeds: Mutex<ChaCha20Rng>,
}

impl Host {
    /// Makes a host without peers. `seed` must be secret and fresh: indices, jitter and cookies come of it. (Ephemeral
    /// keys do not; boringtun takes them from the operating system.)
    pub fn new(secret: StaticSecret, seed: [u8; 32]) -> Arc<Host> {
        let forge = Forge::new(secret);
        let mut seeds = ChaCha20Rng::from_seed(seed);
        let gate_rng = child(&mut seeds);
        Arc::new(Host {
            responder: Responder::new(&forge.public),
            gate: Gate::new(MacKeys::of(forge.public.as_bytes()), gate_rng),
            peers: RwLock::default(),
            remembered: Mutex::default(),
            drops: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
            shared: Arc::new(Shared {
                forge,
                indices: IndexTable::new(),
                budget: HoldBudget::new(BUDGET),
                seeds: Mutex::new(seeds),
            }),
        })
    }

    /// This host's public key.
    pub fn public_key(&self) -> PeerKey {
        self.shared.forge.public.to_bytes()
    }

    /// Adds a peer, or gives a known one new options.
    ///
    /// # Errors
    /// Refuses this host's own key, and the few keys of low order under which everything is public.
    pub fn add(&self, key: PeerKey, options: TunnelOptions) -> Result<Arc<Tunnel>, AddError> {
        let public = PublicKey::from(key);
        let forge = &self.shared.forge;
        if public == forge.public {
            return Err(AddError::OwnKey);
        }
        let static_shared = forge.secret.diffie_hellman(&public);
        if !static_shared.was_contributory() {
            return Err(AddError::LowOrderKey);
        }
        if let Some(known) = self.get(&key) {
            known.set_options(options);
            return Ok(known);
        }
        let peer = Peer {
            key,
            public,
            static_shared: Zeroizing::new(static_shared.to_bytes()),
            macs: MacKeys::of(&key),
            ours_is_lower: forge.public.as_bytes() < &key,
        };
        let marks = self.remembered().remove(&key).unwrap_or_default();
        let rng = child(&mut self.shared.seeds.lock().unwrap_or_else(PoisonError::into_inner));
        let state = State::new(options, HoldQueue::new(self.shared.budget.clone()), marks, rng);
        let tunnel = Tunnel::new(peer, self.shared.clone(), state);
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        Ok(peers.entry(key).or_insert(tunnel).clone())
    }

    /// Closes a peer's tunnel and forgets the peer, except for its marks. Returns whether it was there.
    pub fn remove(&self, now: Instant, key: &PeerKey) -> bool {
        let removed = self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        let Some(tunnel) = removed else { return false };
        tunnel.close(now);
        self.remember(*key, tunnel.marks());
        true
    }

    /// The tunnel to the peer with this key.
    pub fn get(&self, key: &PeerKey) -> Option<Arc<Tunnel>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// All tunnels, in no order.
    pub fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The tunnel a data message belongs to, by its bytes 4 to 8. One short read lock of one shard.
    pub fn by_index(&self, receiver_index: u32) -> Option<Arc<Tunnel>> {
        self.shared.indices.find(receiver_index)
    }

    /// Handles a handshake message: types 1 (initiation), 2 (response) and 3 (cookie reply).
    ///
    /// Costs up to 0.3 ms of processor time: call it on a thread that moves no packets. Afterwards the tunnel's
    /// [`deadline`](Tunnel::deadline) may have come nearer. What it puts into `out` with [`Destination::Source`] goes back to `source`; the rest goes to the peer. A message
    /// relayed by another node needs a `source` of its own per relaying node, so that its limits and cookies hold for it.
    ///
    /// # Errors
    /// The reason to drop the message, counted for the host, and for the peer too where one is proven.
    pub fn handle_handshake(
        &self,
        now: Instant,
        wall: UnixTime,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut Outbox,
    ) -> Result<HandshakeEvent, DropReason> {
        let event = match (datagram.first_chunk::<4>(), datagram.len()) {
            (Some([1, 0, 0, 0]), INITIATION) => self.initiation(now, wall, source, datagram, out),
            (Some([2, 0, 0, 0]), RESPONSE) => self.response(now, wall, datagram, out),
            (Some([3, 0, 0, 0]), REPLY) => self.cookie_reply(now, wall, datagram, out),
            _ => Err(DropReason::Malformed),
        };
        event.inspect_err(|reason| {
            self.drops[*reason as usize].fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Drops of handshake messages by reason, in the order of [`DropReason::ALL`].
    pub fn drops(&self) -> [u64; DropReason::ALL.len()] {
        std::array::from_fn(|at| self.drops[at].load(Ordering::Relaxed))
    }

    /// Memory of all packets waiting for sessions, in bytes, and session indices in use.
    pub fn load(&self) -> (usize, usize) {
        (self.shared.budget.used(), self.shared.indices.len())
    }

    /// What must survive a restart: the marks of every key, ordered by key.
    pub fn marks(&self) -> Vec<(PeerKey, Marks)> {
        let mut marks: Vec<_> = self.tunnels().iter().map(|tunnel| (tunnel.peer.key, tunnel.marks())).collect();
        marks.extend(self.remembered().iter().map(|(key, marks)| (*key, *marks)));
        marks.retain(|(_, marks)| *marks != Marks::default());
        marks.sort_unstable_by_key(|(key, _)| *key);
        marks
    }

    /// Takes back what [`marks`](Self::marks) gave before a restart. Marks only ever rise.
    pub fn import_marks(&self, marks: impl IntoIterator<Item = (PeerKey, Marks)>) {
        for (key, marks) in marks {
            match self.get(&key) {
                Some(tunnel) => raise(&mut tunnel.state().marks, marks),
                None => self.remember(key, marks),
            }
        }
    }

    fn initiation(
        &self,
        now: Instant,
        wall: UnixTime,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut Outbox,
    ) -> Result<HandshakeEvent, DropReason> {
        let initiation: &[u8; INITIATION] = datagram.try_into().map_err(|_| DropReason::Malformed)?;
        match self.gate.pass(now, source, initiation)? {
            Passage::Free => {}
            Passage::Challenged(reply) => {
                out.push(Destination::Source, reply.to_vec());
                return Ok(HandshakeEvent::Challenged);
            }
        }
        let named = self.responder.name(&self.shared.forge.secret, initiation)?;
        let tunnel = self.get(&named.key).ok_or(DropReason::UnknownPeer)?;
        let mark = named.prove(&tunnel.peer.static_shared, initiation)?;
        let verdict = {
            let mut state = tunnel.state();
            let verdict = state.receive_initiation(now, wall, mark, initiation, &tunnel.peer, &tunnel.links(), out);
            verdict.inspect_err(|reason| state.count_drop(*reason))?
        };
        tunnel.tick(now, wall, out);
        Ok(match verdict {
            Verdict::Answered => HandshakeEvent::Answered(tunnel),
            Verdict::Outranked => HandshakeEvent::Outranked(tunnel),
            Verdict::Countered => HandshakeEvent::Countered(tunnel),
        })
    }

    fn response(
        &self,
        now: Instant,
        wall: UnixTime,
        datagram: &[u8],
        out: &mut Outbox,
    ) -> Result<HandshakeEvent, DropReason> {
        let response: &[u8; RESPONSE] = datagram.try_into().map_err(|_| DropReason::Malformed)?;
        self.gate.check_mac(response)?;
        let index = word(response, 8);
        let tunnel = self.by_index(index).ok_or(DropReason::UnknownSession)?;
        {
            let mut state = tunnel.state();
            let received = state.receive_response(now, response, index, &tunnel.peer, out);
            received.inspect_err(|reason| state.count_drop(*reason))?;
        }
        tunnel.tick(now, wall, out);
        Ok(HandshakeEvent::Established(tunnel))
    }

    fn cookie_reply(
        &self,
        now: Instant,
        wall: UnixTime,
        datagram: &[u8],
        out: &mut Outbox,
    ) -> Result<HandshakeEvent, DropReason> {
        let reply: &[u8; REPLY] = datagram.try_into().map_err(|_| DropReason::Malformed)?;
        let index = word(reply, 4);
        let tunnel = self.by_index(index).ok_or(DropReason::UnknownSession)?;
        {
            let mut state = tunnel.state();
            let received = state.receive_cookie(now, reply, index, &tunnel.peer);
            received.inspect_err(|reason| state.count_drop(*reason))?;
        }
        tunnel.tick(now, wall, out);
        Ok(HandshakeEvent::CookieTaken(tunnel))
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<PeerKey, Marks>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: PeerKey, marks: Marks) {
        let mut remembered = self.remembered();
        let room = remembered.len() < MOST_REMEMBERED;
        match remembered.entry(key) {
            Entry::Occupied(mut known) => raise(known.get_mut(), marks),
            Entry::Vacant(free) if room => {
                free.insert(marks);
            }
            Entry::Vacant(_) => {}
        }
    }
}

fn raise(known: &mut Marks, marks: Marks) {
    known.received = known.received.max(marks.received);
    known.sent = known.sent.max(marks.sent);
}

fn child(rng: &mut ChaCha20Rng) -> ChaCha20Rng {
    let mut seed = Zeroizing::new([0u8; 32]);
    rng.fill_bytes(&mut *seed);
    ChaCha20Rng::from_seed(*seed)
}

//! A peer as the data threads see it.

use super::forwarding::Local;
use super::icmp::MAX_MESSAGE;
use super::inner::InnerPacket;
use super::large::Errors;
use super::queues::Origin;
use super::relay::RelayPath;
use crate::identity::NodeId;
use crate::time::Instant;
use crate::tunnel::Tunnel;
use crate::wire::probe::ProbeRequest;
use crate::wire::receipts::{Receipt, Receipts, Requests};
use arc_swap::{ArcSwapOption, Guard};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The shortest time between two events of one kind about one peer, in nanoseconds: the control task needs to learn of
/// a move or a wish once, and a second is shorter than anything it decides.
const EVENT_INTERVAL: u64 = 1_000_000_000;

/// The same for connections that hear nothing: the kernel's shortest pause between two attempts.
const UNANSWERED_INTERVAL: u64 = 200_000_000;

/// The same for large packets, which are asked after once a second.
const LARGE_INTERVAL: u64 = 500_000_000;

/// One way for a peer's datagrams.
#[derive(Clone)]
pub enum Path {
    /// Straight to the peer.
    Direct {
        /// The peer's endpoint.
        remote: SocketAddr,
        /// The address of ours to send from; `None` leaves the choice to the kernel.
        local: Option<IpAddr>,
    },
    /// Through another member.
    Relay(RelayPath),
}

impl Path {
    /// Tells whether a datagram that came from `origin` came by this path.
    pub(super) fn is_of(&self, origin: &Origin) -> bool {
        match (self, origin) {
            (Path::Direct { remote, local }, Origin::Underlay { source, local: to }) => {
                remote == source && local.is_none_or(|local| Some(local) == *to)
            }
            (Path::Relay(path), Origin::Relay { via, .. }) => path.via.node() == *via,
            _ => false,
        }
    }
}

/// One peer: who it is, its tunnel, and the path its packets take now.
///
/// Lives across forwarding tables, so that a change of path needs no new table.
pub struct Peer {
    node: NodeId,
    tunnel: Arc<Tunnel>,
    path: ArcSwapOption<Path>,
    mtu: AtomicU16,
    stock: bool,
    relays: AtomicBool,
    calm: AtomicBool,
    /// Whether segments were kept for it that have most likely arrived once it is heard again.
    kept: AtomicBool,
    requests: Mutex<Requests>,
    health: AtomicU8,
    shared: AtomicBool,
    turn: Mutex<()>,
    /// When the link last carried data, nanoseconds since boot.
    last_data: AtomicU64,
    /// When a packet of a flow last did: ICMP aside. Nanoseconds since boot.
    last_flow: AtomicU64,
    moved: Throttle,
    wanted: Throttle,
    large: Throttle,
    unanswered: Throttle,
    errors: Mutex<Option<Box<Errors>>>,
}

impl Peer {
    /// Makes a peer without a path. `mtu` is the largest inner packet its link carries, in bytes.
    pub fn new(node: NodeId, tunnel: Arc<Tunnel>, mtu: u16) -> Arc<Self> {
        Peer::of_kind(node, tunnel, mtu, false)
    }

    /// Makes a stock WireGuard peer without a path: no member, known to this node alone. `node` only has to be unlike any
    /// member's.
    pub fn new_stock(node: NodeId, tunnel: Arc<Tunnel>, mtu: u16) -> Arc<Self> {
        Peer::of_kind(node, tunnel, mtu, true)
    }

    fn of_kind(node: NodeId, tunnel: Arc<Tunnel>, mtu: u16, stock: bool) -> Arc<Self> {
        Arc::new(Peer {
            stock,
            node,
            tunnel,
            path: ArcSwapOption::empty(),
            mtu: AtomicU16::new(mtu),
            relays: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            requests: Mutex::default(),
            health: AtomicU8::new(0),
            shared: AtomicBool::new(false),
            turn: Mutex::new(()),
            last_data: AtomicU64::new(0),
            last_flow: AtomicU64::new(0),
            moved: Throttle::default(),
            wanted: Throttle::default(),
            large: Throttle::default(),
            unanswered: Throttle::default(),
            errors: Mutex::new(None),
        })
    }

    /// Returns the peer's node id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Tells whether it is a stock WireGuard peer: it speaks no control messages and has no certificate.
    pub fn is_stock(&self) -> bool {
        self.stock
    }

    /// Returns the peer's tunnel.
    pub fn tunnel(&self) -> &Arc<Tunnel> {
        &self.tunnel
    }

    /// Returns the path in use; `None` while none is known.
    pub fn path(&self) -> Guard<Option<Arc<Path>>> {
        self.path.load()
    }

    /// Sends everything from now on by `path`.
    pub fn set_path(&self, path: Option<Path>) {
        self.path.store(path.map(Arc::new));
    }

    /// Returns the largest inner packet the link carries by the path in use, in bytes.
    pub fn mtu(&self) -> u16 {
        match self.path().as_deref() {
            Some(Path::Relay(path)) => self.own_mtu().min(path.mtu()),
            _ => self.own_mtu(),
        }
    }

    /// Returns the largest inner packet the link carries by a direct path, in bytes.
    pub(super) fn own_mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Tells whether its certificate lets others send through it.
    pub fn is_relay(&self) -> bool {
        self.relays.load(Ordering::Relaxed)
    }

    /// Says whether its certificate lets others send through it.
    pub fn set_relay(&self, relays: bool) {
        self.relays.store(relays, Ordering::Relaxed);
    }

    /// Sets the largest inner packet the link carries by a direct path, in bytes.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Tells whether the link answers its probes, so that one more says nothing that is urgent.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Says whether the link answers its probes.
    ///
    /// The probes of a calm link wake the control task for none of them.
    pub fn set_calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::Relaxed);
    }

    /// Notes that segments are kept for a peer that may yet answer. Returns whether some were kept before.
    pub(super) fn note_kept(&self) -> bool {
        self.kept.swap(true, Ordering::Relaxed)
    }

    /// Tells whether segments were kept since the last time this was asked.
    pub(super) fn take_kept(&self) -> bool {
        // Nearly always not: then nothing is written that other threads read.
        self.kept.load(Ordering::Relaxed) && self.kept.swap(false, Ordering::Relaxed)
    }

    /// Returns when a packet of the host's, or of a network behind it, last crossed the link in either direction.
    pub fn last_data(&self) -> Option<Instant> {
        Some(Instant::from_nanos(self.last_data.load(Ordering::Relaxed))).filter(|at| *at > Instant::ZERO)
    }

    pub(super) fn note_data(&self, now: Instant) {
        self.last_data.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// Returns when a packet of a flow last crossed the link in either direction: as [`Peer::last_data`], ICMP aside.
    pub fn last_flow(&self) -> Option<Instant> {
        Some(Instant::from_nanos(self.last_flow.load(Ordering::Relaxed))).filter(|at| *at > Instant::ZERO)
    }

    pub(super) fn note_flow(&self, now: Instant) {
        self.last_flow.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// How unwell this node says it is when it answers the peer's probes.
    pub fn health(&self) -> u8 {
        self.health.load(Ordering::Relaxed)
    }

    /// Sets how unwell this node says it is: 0 is well.
    pub fn set_health(&self, health: u8) {
        self.health.store(health, Ordering::Relaxed);
    }

    /// Takes note of a request of the schedule; returns which ones came so far, or `None` where this one came before.
    pub(super) fn note_request(&self, request: &ProbeRequest) -> Option<Receipts> {
        // A panic under the lock ends the process in production; in tests the row is still worth reading.
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let receipt = requests.note(request.run, request.sequence);
        (receipt != Receipt::Duplicated).then(|| requests.receipts())
    }

    /// Says whether packets for the peer are the work of several threads: where networks lie behind it.
    pub fn set_shared(&self, shared: bool) {
        self.shared.store(shared, Ordering::Relaxed);
    }

    /// Of a shared peer, what one thread holds from sealing until it has sent. boringtun remembers 1,024 counters: what a thread
    /// had sealed before it lost its core would come too late, once the others have sent as many.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        // Nothing is behind it that a panic could leave half done.
        let lock = || self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.load(Ordering::Relaxed).then(lock)
    }

    /// Keeps what would tell the sender of a large packet of its size, should it vanish. Never waits.
    pub(super) fn note_large(
        &self,
        packet: &[u8],
        inner: &InnerPacket,
        local: &Local,
        room: &mut [u8; MAX_MESSAGE],
        now: Instant,
    ) {
        // Held elsewhere only while a path turns out to be smaller, or another thread notes a packet.
        if let Ok(mut errors) = self.errors.try_lock() {
            let errors = errors.get_or_insert_with(|| Box::new(Errors::new(now)));
            errors.note(packet, inner, local, room, now);
        }
    }

    /// Takes the errors that tell this host's senders that their newest large packets were too large.
    pub fn take_errors(&self, now: Instant) -> Vec<Vec<u8>> {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.as_mut().map_or_else(Vec::new, |errors| errors.take(now))
    }

    pub(super) fn may_report_move(&self, now: Instant) -> bool {
        self.moved.allow(now, EVENT_INTERVAL)
    }

    pub(super) fn may_report_want(&self, now: Instant) -> bool {
        self.wanted.allow(now, EVENT_INTERVAL)
    }

    pub(super) fn may_report_unanswered(&self, now: Instant) -> bool {
        self.unanswered.allow(now, UNANSWERED_INTERVAL)
    }

    pub(super) fn may_report_large(&self, now: Instant) -> bool {
        self.large.allow(now, LARGE_INTERVAL)
    }
}

/// Lets one event through per interval; shared by threads without a lock.
#[derive(Default)]
struct Throttle {
    /// When the next event may pass, nanoseconds since boot.
    next: AtomicU64,
}

impl Throttle {
    fn allow(&self, now: Instant, interval: u64) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        let after = now.as_nanos().saturating_add(interval);
        now.as_nanos() >= next && self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_event_a_second() {
        let throttle = Throttle::default();
        let now = Instant::from_millis(5);
        assert!(throttle.allow(now, EVENT_INTERVAL));
        assert!(!throttle.allow(now + Duration::from_millis(999), EVENT_INTERVAL));
        assert!(throttle.allow(now + Duration::from_secs(1), EVENT_INTERVAL));
    }
}

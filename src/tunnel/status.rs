//! What can be seen of a tunnel from outside.

use crate::time::Instant;
use crate::wire::DropReason;
use crate::wire::probe::Arrivals;

/// Who started the handshake of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This host.
    Initiator,
    /// The peer.
    Responder,
}

/// The session packets are sealed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// When its keys were made, by this host's clock.
    pub established: Instant,
    /// Who started its handshake.
    pub role: Role,
    /// The index by which the peer addresses it.
    pub local_index: u32,
    /// Whether the peer was heard on it.
    pub proven: bool,
    /// Whether it came of a hybrid key.
    pub hybrid: bool,
}

/// A snapshot of one tunnel. Counters start at the creation of the tunnel and never reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The session in use; `None` while there is none that may seal.
    pub session: Option<SessionStatus>,
    /// Hybrid keys under which the peer was heard.
    pub hybrid_keys: u64,
    /// Sessions kept, with those that only receive.
    pub sessions: usize,
    /// Handshakes that led to a session in use.
    pub handshakes: u64,
    /// Initiations sent.
    pub initiations: u64,
    /// Whether an initiation of ours waits for its response.
    pub initiating: bool,
    /// Packets and bytes of packets sealed, without keepalives and padding.
    pub sent: Traffic,
    /// Packets and bytes of packets opened, without keepalives and padding.
    pub received: Traffic,
    /// The peer's messages by the numbers they carry: what is expected and did not come is lost.
    pub arrived: Arrivals,
    /// Keepalives sent and received, confirmations among them.
    pub keepalives: (u64, u64),
    /// When anything of the peer's was last authenticated.
    pub last_received: Option<Instant>,
    /// Packets waiting for a session.
    pub held: usize,
    /// Our wall clock stands below a mark we sent: the peer refuses our initiations and should be asked for one.
    pub clock_behind: bool,
    /// Revoked or removed: nothing passes any more.
    pub closed: bool,
    /// Drops by reason, in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many packets.
    pub packets: u64,
    /// How many bytes they had before padding.
    pub bytes: u64,
}

impl Traffic {
    pub(super) fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

//! Tunnels to peers: WireGuard's messages 1 to 4, by boringtun, behind a seam of our own.
//!
//! boringtun does the cryptography of each handshake and each packet. It does not decide anything: every handshake gets
//! a `Tunn` of its own, which carries that one handshake and the one session that comes of it, and is dropped with it.
//! Which session is used, how long it lives, when the next one is started, who may start one and how often, which
//! packets wait: all that is decided here, on the caller's clock.
//!
//! # Sessions of a peer
//!
//! ```text
//!        we initiate                                 the peer initiates
//!             │                                              │
//!             ▼                                              ▼ answered
//!      ┌────────────┐ response, authentic             ┌─────────────┐
//!      │ attempts   ├──────────────┐                  │ next        │  receives only; the two newest are kept
//!      │ (two)      │              │                  │ (unproven)  │
//!      └─────┬──────┘              │                  └──────┬──────┘
//!            │ wait over:          ▼                         │ first packet opened under it
//!            │ another one   ┌───────────┐                   │
//!            └───────────────│  current  │◀──────────────────┘
//!                            └─────┬─────┘  seals; confirmed by keepalives until the peer is heard on it
//!                                  │ a newer session becomes current
//!                                  ▼
//!                            ┌───────────┐
//!                            │ previous  │  receives only, until 10 s after the peer was heard on a newer one
//!                            └───────────┘
//!
//!      every session is gone at 180 s of age
//! ```
//!
//! *Make before break.* The initiator seals under the new session from the response on; the responder stays with the old
//! one until it has opened something under the new one, because only then it knows that its response arrived. The
//! initiator therefore repeats its confirmation until it hears the peer, and the responder greets at once.
//! A replaced session receives until ten seconds after the peer was heard on a newer one: from that packet on the
//! peer seals nothing under the old session, and no network holds packets back for ten seconds. Until that packet there
//! is no bound but the session's age, since the peer may not know of the new session at all.
//!
//! *One side rekeys.* The side with the lower public key at 120 s and up to 8 s more, the other at 140 s and up to 8 s more
//! if the first did not succeed. Both replace a session after 2^60 messages.
//!
//! *Crossing initiations.* While both sides have an initiation under way, the one of the side with the lower key
//! stands: that side ignores the other's for a second, the other gives up its own and answers. After that second the lower side
//! answers too, since its own initiations do not seem to arrive. Sessions are ordered by the time their keys were made on
//! each host, and an older one never displaces a newer one, so both sides end on the same. A stock peer knows no such order:
//! it answers whatever comes and forgets its own. Towards one, we are always the side that stands
//! ([`TunnelOptions::stock`]). Nor does it keep two unconfirmed sessions: towards one, the waits below start at 2 s, and only
//! the last initiation counts.
//!
//! *Never giving up.* A wanted session is asked for after waits of 250 ms, doubling to 30 s, each shortened at random by up to
//! half. Success, [`Tunnel::initiate`], and the first sign of life after silence start the waits over. Only towards a stock
//! peer whose session is wanted for packets alone the wish ends, after 90 s (paper §6.4): a phone that was switched off
//! leaves an address that is soon somebody else's.
//!
//! # What stands in front of a handshake
//!
//! Length and type; MAC1; the source's allowance (20 a second, 5 at once, per IPv4 address or IPv6 /64) or else, and
//! always under load, a cookie bound to address and port with an allowance of its own; one X25519 multiplication, which names the
//! sender; its TAI64N mark, opened with the static secret both share, which proves the sender; 50 a second per peer; the
//! mark's place after the last one and at most a day ahead; and only then boringtun.
//!
//! # What is not promised
//!
//! Session keys live in memory of `ring`, which does not overwrite it when a session is dropped. Our own secrets are
//! overwritten. What boringtun sends as mark is the system's clock and cannot be set; where that clock has been set back,
//! [`Initiation::ClockBehind`] tells the caller to have the peer initiate.
#![forbid(unsafe_code)]

mod cookie;
mod gate;
mod handshake;
mod hold;
mod host;
mod index;
mod keyring;
mod mark;
mod noise;
mod outbox;
mod session;
mod sources;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod timers;
#[expect(clippy::module_inception, reason = "the room is named for its main noun")]
mod tunnel;

use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

pub use host::Host;
pub use mark::{Mark, Marks};
pub use outbox::{Destination, Outbox, Outgoing};
pub use status::{Role, SessionStatus, Traffic, TunnelStatus};
pub use tunnel::{Guard, Tunnel};

/// A peer's X25519 public key.
pub type PeerKey = [u8; 32];

/// How much a data message is longer than its padded packet.
pub const OVERHEAD: usize = session::OVERHEAD;

/// The least size of any buffer packets are sealed into.
pub const LEAST_BUFFER: usize = session::LEAST_BUFFER;

/// How one tunnel is to behave.
#[derive(Clone)]
pub struct TunnelOptions {
    /// Bytes of the largest inner packet. Padding stops there.
    pub mtu: usize,
    /// Whether a session is wanted at all times, or only while there are packets to send.
    pub keep_up: bool,
    /// The peer is a stock WireGuard implementation, which gives up its own handshake to answer ours and knows no order of
    /// keys: ours always stands, and we rekey first.
    pub stock: bool,
    /// How long nothing may have been sent before a keepalive is, while there is a session: for a NAT on the way. A session
    /// that must also be renewed without traffic needs [`keep_up`](Self::keep_up).
    pub persistent_keepalive: Option<Duration>,
    /// Mixed into the next handshakes.
    pub preshared_key: Option<Zeroizing<[u8; 32]>>,
}

/// Which of several threads receives a tunnel's datagrams: its sessions are numbered so that byte 5 of their data messages,
/// modulo the number of threads, says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Less than `of`.
    pub number: u8,
    /// How many there are, at least one.
    pub of: u8,
}

impl Default for Shard {
    fn default() -> Shard {
        Shard { number: 0, of: 1 }
    }
}

impl Shard {
    /// Tells whether a session's 24-bit number is one of this shard's.
    fn owns(self, number: u32) -> bool {
        number as u8 % self.of.max(1) == self.number
    }
}

impl Default for TunnelOptions {
    /// A mesh link: always up, over an underlay of 1,500 bytes.
    fn default() -> TunnelOptions {
        TunnelOptions { mtu: 1_420, keep_up: true, stock: false, persistent_keepalive: None, preshared_key: None }
    }
}

/// Why a peer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The key is this host's own.
    #[error("the peer's WireGuard key is this node's own; give each node a key of its own")]
    OwnKey,
    /// The key is one of the points of low order.
    #[error("the peer's WireGuard key is of low order and protects nothing; make a new key on that node")]
    LowOrderKey,
}

/// What became of a handshake message.
pub enum HandshakeEvent {
    /// The peer's initiation was answered; its session is used once it is confirmed.
    Answered(Arc<Tunnel>),
    /// Our initiation was answered; its session is in use.
    Established(Arc<Tunnel>),
    /// The peer's initiation crossed ours and was left, because ours stands.
    Outranked(Arc<Tunnel>),
    /// The peer's initiation names a hybrid key that is not here; one of ours went out instead of an answer.
    Countered(Arc<Tunnel>),
    /// The peer is under load; our next initiation proves our address.
    CookieTaken(Arc<Tunnel>),
    /// The sender was asked to prove its address.
    Challenged,
}

/// What became of a wish for a new session.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiation {
    /// An initiation was sent.
    Sent,
    /// One is under way already, ours or the peer's.
    Pending,
    /// One was sent, but our wall clock stands below an earlier one's mark, so that the peer is going to refuse it: ask
    /// the peer to initiate, by whatever way there is.
    ClockBehind,
    /// The tunnel is closed.
    Closed,
}

/// What became of a packet to be sealed.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// It stands sealed at the start of the buffer, in this many bytes.
    Datagram(usize),
    /// It waits for a session; [`Guard::flush`] asks for one.
    Held,
}

/// A datagram that was opened.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the packet at the start of the buffer; zero for a keepalive.
    pub length: usize,
    /// It put a new session into use.
    pub confirmed: bool,
}

/// A datagram to be opened in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The caller's own number for it.
    pub tag: usize,
}

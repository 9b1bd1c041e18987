//! One handshake, one boringtun `Tunn`, one session. The only file that names boringtun.
//!
//! A `Tunn` keeps eight sessions, a queue, a clock and timers of its own. Here it carries exactly one handshake and the
//! session that comes of it: its timers are never run, its queue never fills (nothing is encapsulated before the session
//! stands), and its rate limiter never limits. Life and choice of sessions are [`State`](super::state::State)'s.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::cookie::mac1_of;
use super::index::Slot;
use super::keyring::tag_of;
use super::noise::INITIATION;
use super::status::Role;
use crate::identity::HybridKey;
use crate::time::Instant;
use crate::wire::DropReason;

/// Bytes of a handshake response.
pub(super) const RESPONSE: usize = 92;

/// Bytes a data message adds to its packet: type, index, counter, tag.
pub(super) const OVERHEAD: usize = 32;

/// The smallest buffer boringtun accepts for any output; it panics below.
pub(super) const LEAST_BUFFER: usize = 148;

/// After this age a session neither seals nor opens (paper §6.1).
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Messages after which a session is replaced, and after which it is dead (paper §6.1).
pub(super) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
pub(super) const REJECT_AFTER_MESSAGES: u64 = COUNTER_CEILING;

/// The first received counter refused: 2^64 − 2^13 − 1. Above 2^64 − 1024, boringtun's window arithmetic overflows: a
/// debug build panics, a release build never hears this session again.
pub(super) const COUNTER_CEILING: u64 = u64::MAX - 8_192;

/// boringtun asks for an address to bind its cookie to; it makes none, because its limiter has no limit.
const NOWHERE: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

thread_local! {
    /// Where short packets are padded; packets that need no padding are sealed from where they lie.
    static PADDED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes the `Tunn`s of one host.
pub(super) struct Forge {
    pub(super) secret: StaticSecret,
    pub(super) public: PublicKey,
    limiter: Arc<RateLimiter>,
}

/// A hybrid key, and its name among those of its tunnel.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) number: u64,
    pub(super) key: HybridKey,
}

/// What is mixed into a handshake.
#[derive(Clone)]
pub(super) enum Mixed {
    Nothing,
    /// A secret that somebody configured, which has no name.
    Configured(Zeroizing<[u8; 32]>),
    Hybrid(Named),
}

impl Mixed {
    /// The number of the hybrid key.
    pub(super) fn number(&self) -> Option<u64> {
        self.named().map(|named| named.number)
    }

    fn named(&self) -> Option<&Named> {
        if let Mixed::Hybrid(named) = self { Some(named) } else { None }
    }

    fn secret(&self) -> Option<[u8; 32]> {
        match self {
            Mixed::Nothing => None,
            Mixed::Configured(secret) => Some(**secret),
            Mixed::Hybrid(named) => Some(*named.key.secret),
        }
    }
}

/// What a handshake needs to know about the other side.
pub(super) struct Party<'a> {
    pub(super) public: &'a PublicKey,
    pub(super) mixed: Mixed,
}

impl Forge {
    pub(super) fn new(secret: StaticSecret) -> Forge {
        let public = PublicKey::from(&secret);
        Forge { limiter: Arc::new(RateLimiter::new(&public, u64::MAX)), secret, public }
    }

    fn tunn(&self, party: &Party<'_>, slot: &Slot) -> Result<Box<Tunn>, DropReason> {
        if SystemTime::now() < SystemTime::UNIX_EPOCH {
            return Err(DropReason::SystemRefused); // boringtun panics on such a clock
        }
        let (secret, limiter) = (party.mixed.secret(), Some(self.limiter.clone()));
        Ok(Box::new(Tunn::new(self.secret.clone(), *party.public, secret, None, slot.number(), limiter)))
    }

    /// Starts a handshake; returns it with its initiation.
    pub(super) fn initiate(
        &self,
        party: &Party<'_>,
        slot: Slot,
        now: Instant,
    ) -> Result<(Attempt, Vec<u8>), DropReason> {
        let mut tunn = self.tunn(party, &slot)?;
        let mut message = vec![0u8; INITIATION];
        // boringtun counts the initiations of a `Tunn` in the last byte of their indices, from 1: that byte names the key, so
        // those before the right one are made and thrown away. (0.1 ms each, once in two minutes.)
        for _ in 0..tag_of(party.mixed.named()) {
            let TunnResult::WriteToNetwork(_) = tunn.format_handshake_initiation(&mut message, true) else {
                return Err(DropReason::SystemRefused);
            };
        }
        let key = party.mixed.number();
        let attempt = Attempt { index: word(&message, 4), mac1: mac1_of(&message), started: now, key, tunn, slot };
        Ok((attempt, message))
    }

    /// Answers an initiation; returns the session, not yet confirmed, with its response.
    pub(super) fn respond(
        &self,
        party: &Party<'_>,
        slot: Slot,
        now: Instant,
        initiation: &[u8; INITIATION],
    ) -> Result<(Session, Vec<u8>), DropReason> {
        let mut tunn = self.tunn(party, &slot)?;
        let mut message = vec![0u8; LEAST_BUFFER];
        match tunn.decapsulate(NOWHERE, initiation, &mut message) {
            TunnResult::WriteToNetwork(response) if response.len() == RESPONSE => {}
            TunnResult::Err(error) => return Err(reason(&error)),
            _ => return Err(DropReason::Malformed),
        }
        message.truncate(RESPONSE);
        let (index, key) = (word(&message, 4), party.mixed.number());
        let mut session = Session::new(tunn, slot, index, Role::Responder, key, now);
        session.mac1 = Some(mac1_of(&message));
        Ok((session, message))
    }
}

/// An initiation of ours that waits for its response.
pub(super) struct Attempt {
    tunn: Box<Tunn>,
    slot: Slot,
    /// The index the response must name.
    pub(super) index: u32,
    /// The initiation's MAC1: a cookie reply is sealed to it.
    pub(super) mac1: [u8; 16],
    pub(super) started: Instant,
    /// The hybrid key it uses.
    pub(super) key: Option<u64>,
}

impl Attempt {
    /// Checks a response. On success the attempt is ready to become a session; returns the message that confirms it.
    pub(super) fn receive(&mut self, response: &[u8; RESPONSE]) -> Result<Vec<u8>, DropReason> {
        let mut message = vec![0u8; LEAST_BUFFER];
        let length = match self.tunn.decapsulate(NOWHERE, response, &mut message) {
            TunnResult::WriteToNetwork(keepalive) => keepalive.len(),
            TunnResult::Err(error) => return Err(reason(&error)),
            _ => return Err(DropReason::Malformed),
        };
        message.truncate(length);
        Ok(message)
    }

    /// The session of an attempt whose response was good.
    pub(super) fn into_session(self, now: Instant) -> Session {
        let mut session = Session::new(self.tunn, self.slot, self.index, Role::Initiator, self.key, now);
        session.sent = 1; // the confirmation
        session
    }
}

/// What a data message held.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Keepalive,
    Packet(usize),
    /// Sealed by the peer, but neither IPv4 nor IPv6.
    Nonsense,
}

/// A key pair in use.
pub(super) struct Session {
    tunn: Box<Tunn>,
    _slot: Slot,
    /// The index by which the peer addresses it.
    pub(super) index: u32,
    pub(super) role: Role,
    /// The hybrid key it came of.
    pub(super) key: Option<u64>,
    pub(super) established: Instant,
    /// Messages sealed so far.
    pub(super) sent: u64,
    /// One more than the highest counter opened.
    reached: u64,
    /// When the peer was first heard on it.
    pub(super) proven: Option<Instant>,
    /// When the initiator confirms it again if nothing was heard, and how often it did.
    pub(super) confirm: Option<(Instant, u8)>,
    /// When it should be replaced, by our reckoning.
    pub(super) rekey_at: Instant,
    /// The response's MAC1, as long as a cookie reply to it may come.
    pub(super) mac1: Option<[u8; 16]>,
}

impl Session {
    fn new(tunn: Box<Tunn>, slot: Slot, index: u32, role: Role, key: Option<u64>, now: Instant) -> Session {
        Session {
            tunn,
            _slot: slot,
            index,
            role,
            key,
            established: now,
            sent: 0,
            reached: 0,
            proven: None,
            confirm: None,
            rekey_at: now + REJECT_AFTER_TIME,
            mac1: None,
        }
    }

    /// Whether we may send on it at all: a responder's session belongs to the initiator until the initiator was heard.
    pub(super) fn is_confirmed(&self) -> bool {
        self.role == Role::Initiator || self.proven.is_some()
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        now.saturating_since(self.established) >= REJECT_AFTER_TIME
    }

    /// Whether it may seal another message.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.is_confirmed() && !self.is_expired(now) && self.sent < REJECT_AFTER_MESSAGES
    }

    /// Takes note of the counter of a message that was opened; returns how many more messages than before the peer is known
    /// to have sealed.
    pub(super) fn reach(&mut self, counter: u64) -> u64 {
        let before = self.reached;
        self.reached = before.max(counter.saturating_add(1));
        self.reached - before
    }

    /// Seals a packet, padded with zeros to a multiple of 16 bytes but never above `mtu` (paper §5.4.6). An empty packet
    /// is a keepalive. The caller has checked [`is_usable`](Self::is_usable).
    pub(super) fn seal(&mut self, packet: &[u8], mtu: usize, out: &mut [u8]) -> Result<usize, DropReason> {
        let length = padded(packet.len(), mtu);
        if out.len() < (length + OVERHEAD).max(LEAST_BUFFER) {
            return Err(DropReason::TooBig);
        }
        let sealed = if length == packet.len() {
            encapsulate(&mut self.tunn, packet, out)
        } else {
            PADDED.with_borrow_mut(|scratch| {
                scratch.clear();
                scratch.extend_from_slice(packet);
                scratch.resize(length, 0);
                encapsulate(&mut self.tunn, scratch, out)
            })
        }?;
        self.sent += 1;
        Ok(sealed)
    }

    /// Opens a data message of at least [`OVERHEAD`] bytes that names this session, into `out`, which is at least as long.
    pub(super) fn open(&mut self, datagram: &[u8], out: &mut [u8]) -> Result<Content, DropReason> {
        if counter_of(datagram) >= COUNTER_CEILING {
            return Err(DropReason::CounterCeiling);
        }
        if out.len() < datagram.len() {
            return Err(DropReason::TooBig);
        }
        let length = match self.tunn.decapsulate(NOWHERE, datagram, out) {
            TunnResult::Done => return Ok(Content::Keepalive),
            TunnResult::WriteToTunnelV4(packet, _) if packet.len() >= 20 => packet.len(),
            TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
            TunnResult::WriteToTunnelV4(..) => return Ok(Content::Nonsense),
            // The shape of the datagram was checked before, so this is boringtun's word on the packet inside.
            TunnResult::Err(WireGuardError::InvalidPacket) => return Ok(Content::Nonsense),
            TunnResult::Err(error) => return Err(reason(&error)),
            TunnResult::WriteToNetwork(_) => return Err(DropReason::Malformed),
        };
        Ok(Content::Packet(length))
    }
}

/// The counter of a data message of at least [`OVERHEAD`] bytes.
pub(super) fn counter_of(datagram: &[u8]) -> u64 {
    let mut counter = [0u8; 8];
    counter.copy_from_slice(&datagram[8..16]);
    u64::from_le_bytes(counter)
}

/// A little-endian word of a message that is long enough.
pub(super) fn word(message: &[u8], at: usize) -> u32 {
    let mut bytes = [0u8; 4];
    bytes.copy_from_slice(&message[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// The length of a packet after padding.
pub(super) fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(16).min(mtu.max(length))
}

fn encapsulate(tunn: &mut Tunn, packet: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
    match tunn.encapsulate(packet, out) {
        TunnResult::WriteToNetwork(datagram) => Ok(datagram.len()),
        _ => Err(DropReason::UnknownSession),
    }
}

fn reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter => DropReason::TooOld,
        WireGuardError::DuplicateCounter => DropReason::Replayed,
        WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => DropReason::BadSeal,
        WireGuardError::InvalidMac => DropReason::BadMac,
        WireGuardError::WrongTai64nTimestamp | WireGuardError::InvalidTai64nTimestamp => DropReason::StaleHandshake,
        WireGuardError::WrongIndex | WireGuardError::NoCurrentSession | WireGuardError::UnexpectedPacket => {
            DropReason::UnknownSession
        }
        _ => DropReason::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stops_at_the_mtu() {
        assert_eq!(padded(1, 1_420), 16);
        assert_eq!(padded(16, 1_420), 16);
        assert_eq!(padded(1_297, 1_299), 1_299);
        assert_eq!(padded(1_420, 1_420), 1_420);
        assert_eq!(padded(1_500, 1_420), 1_500);
        assert_eq!(padded(0, 1_420), 0);
    }
}

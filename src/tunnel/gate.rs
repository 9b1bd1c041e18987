//! What an initiation must pass before it costs a multiplication: MAC1, then its source's allowance, then a cookie.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;

use super::cookie::{CookieJar, MacKeys, REPLY};
use super::sources::{Sources, Standing};
use crate::time::Instant;
use crate::wire::DropReason;

/// Initiations a host serves in a second before it wants every sender to show that it receives at its address. One
/// costs about 0.3 ms of processor time, so this is a twentieth of one core; a mesh of two hundred restarts within it.
const FREE_PER_WINDOW: u32 = 200;
const WINDOW: Duration = Duration::from_secs(1);

/// The gate in front of all initiations.
///
/// Responses pass by [`check_mac`](Self::check_mac) alone: they must name a random index that a handshake of ours claimed
/// moments ago, and so stay possible while strangers flood the host with initiations.
pub(super) struct Gate {
    keys: MacKeys,
    inner: Mutex<Inner>,
}

struct Inner {
    rng: ChaCha20Rng,
    jar: CookieJar,
    sources: Sources,
    window: Instant,
    served: u32,
    /// The window before this one was full, too: the host stays under load for one more.
    loaded: bool,
}

/// How an initiation gets on.
pub(super) enum Passage {
    Free,
    /// To be answered with this cookie, and forgotten.
    Challenged([u8; REPLY]),
}

impl Gate {
    pub(super) fn new(keys: MacKeys, rng: ChaCha20Rng) -> Gate {
        let inner = Inner {
            rng,
            jar: CookieJar::new(),
            sources: Sources::new(),
            window: Instant::ZERO,
            served: 0,
            loaded: false,
        };
        Gate { keys, inner: Mutex::new(inner) }
    }

    /// Whether the message was made for our key.
    pub(super) fn check_mac(&self, message: &[u8]) -> Result<(), DropReason> {
        self.keys.fits(message).then_some(()).ok_or(DropReason::BadMac)
    }

    /// Judges an initiation by its outside.
    ///
    /// A source that has used up what it may do unproven, or any source while the host is under load, gets a cookie.
    /// With the cookie it has an allowance of its own, which nobody else can use up; beyond that it gets nothing.
    pub(super) fn pass(&self, now: Instant, source: SocketAddr, initiation: &[u8]) -> Result<Passage, DropReason> {
        self.check_mac(initiation)?;
        let inner = &mut *self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = inner.count(now);
        if !loaded && inner.sources.take(now, Standing::Claimed, source.ip()) {
            return Ok(Passage::Free);
        }
        if inner.jar.fits(now, &mut inner.rng, source, initiation) {
            let served = inner.sources.take(now, Standing::Proven, source.ip());
            return served.then_some(Passage::Free).ok_or(DropReason::RateLimited);
        }
        let reply = inner.jar.reply(now, &mut inner.rng, &self.keys, source, initiation);
        reply.map(Passage::Challenged).ok_or(DropReason::Malformed)
    }
}

impl Inner {
    /// Counts an initiation; returns whether the host is under load.
    fn count(&mut self, now: Instant) -> bool {
        let since = now.saturating_since(self.window);
        if since >= WINDOW {
            self.loaded = self.served > FREE_PER_WINDOW && since < 2 * WINDOW;
            self.window = now;
            self.served = 0;
        }
        self.served = self.served.saturating_add(1);
        self.loaded || self.served > FREE_PER_WINDOW
    }
}

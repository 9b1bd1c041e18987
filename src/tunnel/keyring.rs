//! The hybrid keys two members share, and which one a handshake uses (docs/protocol.md §5.9).
//!
//! WireGuard mixes the pre-shared key in with the response. Who starts a handshake has chosen its key by then, and must say
//! which: in the last byte of its session's index, which is 1 without such a key (what boringtun puts there, and every
//! version before this layer) and 2 or 3 with one, by its bit.
//!
//! ```text
//!             proposer                                    answerer
//!                │  the answer is here                        │ the proposal is answered
//!                ▼                                            ▼
//!        coming, leads: initiations use it            coming: initiations that name it are answered with it
//!                │                                            │
//!                └──────── something was opened under it ─────┘
//!                                     ▼
//!                        standing; the one before is overwritten
//!                                     │ a session without any key was confirmed later: the peer has lost its memory
//!                                     ▼
//!                                    none
//! ```
//!
//! Each side holds the other's choice at any time: the answerer has the coming key before the proposer can use it, and the
//! proposer keeps the standing one until it has heard the peer under the coming one. Nobody gives up a key for a sign that
//! somebody on the way can forge: the byte of an index is one, a confirmed session is none.

use super::session::Named;
use crate::identity::HybridKey;
use crate::time::Instant;
use std::time::Duration;

/// After so long without an answer, every second initiation names no key. Only a host that was set back to an earlier state of its
/// memory needs it (it has a key that the peer has long replaced), and to whoever can cut a link it is a way to a session
/// without such a key where `pq = "required"` does not forbid it: so it is longer than the outages of every day, and much
/// longer than a monitor needs to call the link down.
const FALLBACK_AFTER: Duration = Duration::from_secs(30);

/// A key, and its name among those of this tunnel.
struct Held {
    number: u64,
    key: HybridKey,
}

/// The keys of one peer.
#[derive(Default)]
pub(super) struct Keyring {
    standing: Option<(Held, Instant)>,
    coming: Option<Held>,
    /// Initiations use the coming key: the peer has it.
    leads: bool,
    numbers: u64,
    /// Keys that came to stand.
    stood: u64,
}

/// What an initiation that names a key is answered with.
pub(super) enum Choice {
    Key(Named),
    /// A key that is not here.
    Unknown,
}

/// The byte by which an initiation names its key.
pub(super) fn tag_of(named: Option<&Named>) -> u8 {
    named.map_or(1, |named| 2 + u8::from(named.key.odd))
}

impl Held {
    fn named(&self) -> Named {
        Named { number: self.number, key: self.key.clone() }
    }
}

impl Keyring {
    /// Takes a key that the peer has, or is about to have. Initiations use it where it leads.
    pub(super) fn offer(&mut self, key: HybridKey, leads: bool) {
        self.numbers += 1;
        self.coming = Some(Held { number: self.numbers, key });
        self.leads = leads;
    }

    /// Gives up a coming key that the peer does not have.
    pub(super) fn withdraw(&mut self) {
        self.coming = None;
        self.leads = false;
    }

    /// The key of an initiation, in a series of attempts that began at `series`, as the `tries`th.
    pub(super) fn for_initiation(&self, series: Option<Instant>, tries: u32, now: Instant) -> Option<Named> {
        let long = series.is_some_and(|since| now.saturating_since(since) >= FALLBACK_AFTER);
        if long && tries.is_multiple_of(2) {
            return None;
        }
        let coming = self.coming.as_ref().filter(|_| self.leads);
        coming.or(self.standing.as_ref().map(|(held, _)| held)).map(Held::named)
    }

    /// The key that an initiation names.
    pub(super) fn named_by(&self, tag: u8) -> Option<Choice> {
        let odd = match tag {
            2 => false,
            3 => true,
            // 1, and whatever other implementations put there.
            _ => return None,
        };
        let standing = self.standing.as_ref().map(|(held, _)| held);
        let held = self.coming.iter().chain(standing).find(|held| held.key.odd == odd);
        Some(held.map_or(Choice::Unknown, |held| Choice::Key(held.named())))
    }

    /// How new a key is: none, the standing one, the coming one.
    pub(super) fn rank(&self, number: Option<u64>) -> u8 {
        let is = |held: &Held| Some(held.number) == number;
        if self.coming.as_ref().is_some_and(is) {
            2
        } else {
            u8::from(self.standing.as_ref().is_some_and(|(held, _)| is(held)))
        }
    }

    /// The bit of a key that is here.
    pub(super) fn bit_of(&self, number: u64) -> Option<bool> {
        let standing = self.standing.as_ref().map(|(held, _)| held);
        let held = self.coming.iter().chain(standing).find(|held| held.number == number);
        held.map(|held| held.key.odd)
    }

    /// Something was opened for the first time under a session that was established then, under this key or none.
    pub(super) fn heard(&mut self, number: Option<u64>, established: Instant, now: Instant) {
        match number {
            Some(number) if self.coming.as_ref().is_some_and(|held| held.number == number) => {
                self.standing = self.coming.take().map(|held| (held, now));
                self.leads = false;
                self.stood += 1;
            }
            None if self.standing.as_ref().is_some_and(|(_, since)| *since <= established) => self.standing = None,
            _ => {}
        }
    }

    /// Forgets all keys.
    pub(super) fn clear(&mut self) {
        self.standing = None;
        self.withdraw();
    }

    /// How many keys came to stand.
    pub(super) fn stood(&self) -> u64 {
        self.stood
    }
}

//! One direction between two ports: what happens to a packet, decided at the moment it enters. Pure: time comes in as
//! nanoseconds, chance from a seeded generator, so the same packets with the same seed meet the same fates.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::log::Fate;
use super::packet::Packet;

/// Decides whether a packet is to be dropped.
pub type Filter = Arc<dyn Fn(&Packet<'_>) -> bool + Send + Sync>;

/// What one direction does to packets. The default does nothing to them.
#[derive(Clone)]
pub struct Settings {
    /// Time from entry to exit; never undercut.
    pub delay: Duration,
    /// Added to the delay, uniformly distributed between zero and this.
    pub jitter: Duration,
    /// Jitter does not reorder: a packet leaves no earlier than the one before it.
    pub ordered: bool,
    /// Probability that a packet is lost, independent of all others.
    pub loss: f64,
    /// Loss in bursts, besides `loss`.
    pub burst: Option<Burst>,
    /// Probability that a packet is held back for `reorder_by` while others overtake it.
    pub reorder: f64,
    /// How long a held-back packet is held.
    pub reorder_by: Duration,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// Probability that one bit behind the IP header is flipped.
    pub corrupt: f64,
    /// Bits per second of IP packets, and how many bytes may wait.
    pub rate: Option<Rate>,
    /// Largest IP packet that passes, and whether the sender is told (ICMP). Nothing is ever fragmented.
    pub mtu: Option<(usize, bool)>,
    /// Packets disappear on entry.
    pub blackhole: bool,
    /// Packets disappear on entry, and those under way at the exit.
    pub cut: bool,
    /// Packets for which this says yes disappear on entry.
    pub filter: Option<Filter>,
}

/// A rate limit with a bounded queue in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second, more than 0.
    pub bits_per_second: u64,
    /// Bytes that may wait; a packet that does not fit is dropped.
    pub queue_bytes: u64,
}

/// The Gilbert–Elliott model: a good and a bad state with a loss probability each, and a step between them per packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burst {
    /// Probability per packet of going from good to bad.
    pub enter: f64,
    /// Probability per packet of going from bad to good.
    pub leave: f64,
    /// Loss probability in the good state.
    pub loss_good: f64,
    /// Loss probability in the bad state.
    pub loss_bad: f64,
}

impl Burst {
    /// Makes the model in which everything is lost in the bad state, from the mean loss (0 up to but not 1) and the
    /// mean length of a burst in packets (at least 1).
    pub fn of(mean_loss: f64, mean_packets: f64) -> Self {
        let leave = 1.0 / mean_packets;
        Burst { enter: leave * mean_loss / (1.0 - mean_loss), leave, loss_good: 0.0, loss_bad: 1.0 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            ordered: true,
            loss: 0.0,
            burst: None,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            duplicate: 0.0,
            corrupt: 0.0,
            rate: None,
            mtu: None,
            blackhole: false,
            cut: false,
            filter: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delay {:?} jitter {:?} loss {} burst {:?}", self.delay, self.jitter, self.loss, self.burst)?;
        write!(f, " reorder {} duplicate {} corrupt {}", self.reorder, self.duplicate, self.corrupt)?;
        write!(f, " rate {:?} mtu {:?} blackhole {} cut {}", self.rate, self.mtu, self.blackhole, self.cut)
    }
}

/// What is to become of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves at `due` (ns).
    Pass {
        /// When it leaves, ns.
        due: u64,
        /// A second copy follows it.
        twice: bool,
        /// It is held back so that others overtake it.
        held: bool,
        /// Random number that picks the bit to be flipped.
        flip: Option<u64>,
    },
    /// It disappears.
    Drop(Fate),
}

/// One direction between two ports.
pub struct Pipe {
    settings: Settings,
    rng: ChaCha8Rng,
    bad: bool,
    busy_until: u64,
    last_due: u64,
}

impl Pipe {
    /// Makes the direction `from` → `to` of the network with this seed.
    pub fn new(seed: u64, from: &str, to: &str, settings: Settings) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.to_be_bytes())
            .chain_update(from.as_bytes())
            .chain_update([0])
            .chain_update(to.as_bytes())
            .finalize();
        Pipe { settings, rng: ChaCha8Rng::from_seed(digest.into()), bad: false, busy_until: 0, last_due: 0 }
    }

    /// Returns what it does now.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes what it does, from the next packet on, without shifting the sequence of chance.
    pub fn change(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        if self.settings.cut {
            // What was under way will not arrive, so nothing need queue up behind it.
            (self.busy_until, self.last_due) = (0, 0);
        }
    }

    /// Decides about a packet that enters at `now` (ns).
    pub fn offer(&mut self, now: u64, packet: &Packet<'_>) -> Verdict {
        // The same number of draws for every packet, whatever is set, so that the n-th packet's chance does not depend
        // on what happened to those before it.
        let [step, lose, jitter, hold, twice, corrupt] = std::array::from_fn(|_| unit(self.rng.next_u64()));
        let flip = self.rng.next_u64();
        let s = &self.settings;
        if let Some(burst) = s.burst {
            self.bad = if self.bad { step >= burst.leave } else { step < burst.enter };
        }
        if s.cut {
            return Verdict::Drop(Fate::Cut);
        }
        if s.blackhole {
            return Verdict::Drop(Fate::Blackhole);
        }
        if s.filter.as_ref().is_some_and(|filter| filter(packet)) {
            return Verdict::Drop(Fate::Filtered);
        }
        if s.mtu.is_some_and(|(mtu, _)| packet.bytes.len() > mtu) {
            return Verdict::Drop(Fate::TooBig);
        }
        let in_burst = s.burst.map_or(0.0, |burst| if self.bad { burst.loss_bad } else { burst.loss_good });
        if lose < s.loss + (1.0 - s.loss) * in_burst {
            return Verdict::Drop(Fate::Lost);
        }
        let mut start = now;
        if let Some(rate) = s.rate {
            let waiting = u128::from(self.busy_until.saturating_sub(now)) * u128::from(rate.bits_per_second) / 8;
            if waiting / 1_000_000_000 + packet.bytes.len() as u128 > u128::from(rate.queue_bytes) {
                return Verdict::Drop(Fate::QueueFull);
            }
            let on_wire = packet.bytes.len() as u128 * 8_000_000_000 / u128::from(rate.bits_per_second.max(1));
            self.busy_until = self.busy_until.max(now).saturating_add(nanos(on_wire));
            start = self.busy_until;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a short duration")]
        let extra = (jitter * s.jitter.as_nanos() as f64) as u64;
        let held = hold < s.reorder;
        let mut due = start.saturating_add(nanos(s.delay.as_nanos())).saturating_add(extra);
        if held {
            due = due.saturating_add(nanos(s.reorder_by.as_nanos()));
        } else if s.ordered {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        Verdict::Pass { due, twice: twice < s.duplicate, held, flip: (corrupt < s.corrupt).then_some(flip) }
    }
}

/// Maps a random number to [0, 1).
fn unit(random: u64) -> f64 {
    // 53 bits are what an f64 holds exactly.
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

fn nanos(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

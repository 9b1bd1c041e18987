//! The single probes of one link's last hour.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Bucket, Standing};
use crate::control::measurement::Direction;
use crate::time::{Instant, UnixTime};

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was answered.
    Answered {
        /// Round trip on the network.
        path: Duration,
        /// This host's own part of the host delay.
        own: Duration,
        /// What both hosts added.
        host: Duration,
    },
    /// It was lost.
    Lost(Direction),
    /// It was answered, with stamps that cannot be right.
    Discarded,
}

/// How long probes are kept.
const KEPT: Duration = Duration::from_secs(3_600);
/// Probes kept at most: an hour of the fastest class, five a second. 16 bytes each.
const LIMIT: usize = 18_000;
/// Changes of state kept at most: more of them in an hour say no more.
const STANDINGS: usize = 256;
/// Nanoseconds of a tick, as everywhere in the history.
const TICK_NANOS: u128 = 100;

/// A probe in 16 bytes: an hour of one a second takes 58 kB.
#[derive(Clone, Copy, Debug)]
struct Raw {
    /// When it was sent, in milliseconds of the monotonic clock modulo 2^32: what is kept spans an hour.
    sent: u32,
    /// Round trip on the network in ticks.
    path: u32,
    /// What both hosts added, in ticks.
    host: u32,
    /// This host's part of it in ticks of at most 24 bits (1.6 s), and what became of the probe in the lowest byte.
    own_and_fate: u32,
}

const ANSWERED: u32 = 0;
const DISCARDED: u32 = 1;
const LOST: u32 = 2;

/// One link's last hour.
#[derive(Debug)]
pub(super) struct RawRing {
    /// In the order of sending.
    probes: VecDeque<Raw>,
    /// From when on the link was in which state, oldest first and never empty; `None` while nobody watched.
    standings: VecDeque<(Instant, Option<Standing>)>,
}

impl RawRing {
    pub(super) fn new(standing: Standing, now: Instant) -> Self {
        RawRing { probes: VecDeque::new(), standings: VecDeque::from([(now, Some(standing))]) }
    }

    /// Adds a probe. Returns how many lost ones in a row it stands among, itself included; 0 for one that was not lost.
    pub(super) fn put(&mut self, sent: Instant, fate: Fate, now: Instant) -> u64 {
        let oldest = millis(now - KEPT);
        // Every time within the last hour and the next is on the right side of the half that wraps.
        while self.probes.front().is_some_and(|probe| before(probe.sent, oldest)) || self.probes.len() >= LIMIT {
            self.probes.pop_front();
        }
        let probe = Raw::new(millis(sent), fate);
        let behind = self.probes.iter().rev().take_while(|other| before(probe.sent, other.sent)).count();
        let at = self.probes.len() - behind;
        self.probes.insert(at, probe);
        if !probe.is_lost() {
            return 0;
        }
        let earlier = self.probes.range(..at).rev().take_while(|probe| probe.is_lost()).count();
        let later = self.probes.range(at..).take_while(|probe| probe.is_lost()).count();
        (earlier + later) as u64
    }

    /// Changes what became of a lost probe.
    pub(super) fn replace(&mut self, sent: Instant, fate: Fate) {
        let sent = millis(sent);
        if let Some(probe) = self.probes.iter_mut().rev().find(|probe| probe.sent == sent && probe.is_lost()) {
            *probe = Raw::new(sent, fate);
        }
    }

    /// The link is in this state from now on.
    pub(super) fn stands(&mut self, standing: Standing, now: Instant) {
        self.push(Some(standing), now);
    }

    /// Nobody watched from `since` until now, when the link is in this state.
    pub(super) fn slept(&mut self, since: Instant, standing: Standing, now: Instant) {
        self.push(None, since);
        self.push(Some(standing), now);
    }

    fn push(&mut self, standing: Option<Standing>, now: Instant) {
        self.standings.push_back((now, standing));
        let old = |ring: &Self| ring.standings.get(1).is_some_and(|(since, _)| *since <= now - KEPT);
        while old(self) || self.standings.len() > STANDINGS {
            self.standings.pop_front();
        }
    }

    /// Returns buckets of what is kept, each under the time that `start_of` gives for the moment of a probe.
    pub(super) fn buckets(&self, now: Instant, start_of: impl Fn(Instant) -> UnixTime) -> BTreeMap<UnixTime, Bucket> {
        let mut buckets = BTreeMap::<UnixTime, Bucket>::new();
        let (now_millis, mut before_path, mut run) = (millis(now), None, 0);
        for probe in &self.probes {
            let age = Duration::from_millis(u64::from(now_millis.wrapping_sub(probe.sent)));
            // What was sent in this very millisecond may be a fraction ahead.
            let at = if age > KEPT * 2 { now } else { now - age };
            let bucket = buckets.entry(start_of(at)).or_default();
            run = if probe.is_lost() { run + 1 } else { 0 };
            match probe.fate() {
                Fate::Answered { path, own, host } => {
                    bucket.answer(path, path + host, own, host);
                    if let Some(before) = before_path.replace(path) {
                        bucket.vary([path.abs_diff(before).as_nanos() as u64, 0, 0]);
                    }
                }
                Fate::Lost(direction) => bucket.lose(direction, run),
                Fate::Discarded => bucket.discarded += 1,
            }
        }
        self.count_time(now, &start_of, &mut buckets);
        buckets
    }

    /// Adds the time in each state, second by second: steps are whole seconds.
    fn count_time(
        &self,
        now: Instant,
        start_of: &impl Fn(Instant) -> UnixTime,
        buckets: &mut BTreeMap<UnixTime, Bucket>,
    ) {
        let ends = self.standings.iter().skip(1).map(|(since, _)| *since).chain([now]);
        for ((since, standing), end) in self.standings.iter().zip(ends) {
            let Some(standing) = standing else { continue };
            let mut at = (*since).max(now - KEPT);
            while at < end {
                let next = (at + Duration::from_secs(1)).min(end);
                buckets.entry(start_of(at)).or_default().stood(*standing, next.saturating_since(at));
                at = next;
            }
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.probes.capacity() * size_of::<Raw>() + self.standings.capacity() * size_of::<(Instant, Option<Standing>)>()
    }
}

impl Raw {
    fn new(sent: u32, fate: Fate) -> Raw {
        let ticks = |time: Duration| u32::try_from(time.as_nanos() / TICK_NANOS).unwrap_or(u32::MAX);
        match fate {
            Fate::Answered { path, own, host } => {
                let own = ticks(own).min((1 << 24) - 1);
                Raw { sent, path: ticks(path), host: ticks(host), own_and_fate: own << 8 | ANSWERED }
            }
            Fate::Discarded => Raw { sent, path: 0, host: 0, own_and_fate: DISCARDED },
            Fate::Lost(direction) => Raw { sent, path: 0, host: 0, own_and_fate: LOST + direction as u32 },
        }
    }

    fn is_lost(&self) -> bool {
        self.own_and_fate & 0xff >= LOST
    }

    fn fate(&self) -> Fate {
        let time = |ticks: u32| Duration::from_nanos(u64::from(ticks) * TICK_NANOS as u64);
        match self.own_and_fate & 0xff {
            ANSWERED => {
                Fate::Answered { path: time(self.path), own: time(self.own_and_fate >> 8), host: time(self.host) }
            }
            DISCARDED => Fate::Discarded,
            lost => Fate::Lost(Direction::ALL[(lost - LOST) as usize % Direction::ALL.len()]),
        }
    }
}

fn millis(at: Instant) -> u32 {
    (at.as_nanos() / 1_000_000) as u32
}

/// Whether a time lies before another, on a clock of 32 bits that wraps every 49 days.
fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > u32::MAX / 2
}

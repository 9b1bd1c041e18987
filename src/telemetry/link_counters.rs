//! What a link's probes came to since the daemon started: counts that only rise, for monitors.

use std::collections::VecDeque;
use std::time::Duration;

use crate::control::measurement::{Direction, Discard, Disorder, Measurement, Sample};
use crate::control::probe::LinkState;
use crate::time::Instant;

/// How long a loss may still turn out to be late, or to have happened on the other way: the answer that tells comes within
/// five seconds, and the peer's counts with the next probe after it.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Losses held until they are settled: those of a link that is down, probed four times a second, with room.
const HELD_LIMIT: usize = 128;
/// What is slower than the baseline by more than this is bad for whoever waits for it.
pub(super) const SLOW: Duration = Duration::from_millis(5);

/// Counts of one link, since the daemon started. About one KiB.
#[derive(Clone, Debug, Default)]
pub struct LinkCounters {
    /// Probes whose fate is known or will be in a moment.
    pub sent: u64,
    lost: [u64; 3],
    /// Lost, but not for long enough to be sure.
    held: VecDeque<(Instant, Direction)>,
    /// Answers after their time.
    pub late: u64,
    /// Answers of no use: a clock was set, or a round trip was negative.
    pub discarded: [u64; 2],
    /// Packets that were overtaken, forward and reverse.
    pub reordered: [u64; 2],
    /// Packets that came twice, forward and reverse.
    pub duplicated: [u64; 2],
    /// Data packets sent, forward and reverse, as far as both ends have compared.
    pub data_packets: [u64; 2],
    /// Those of them that did not arrive.
    pub data_lost: [u64; 2],
    /// Probes that were lost, or slower than the link's baseline by more than 5 ms.
    pub bad_latency: u64,
    /// Round trips on the network.
    pub path: DelayHistogram,
    /// Round trips as an application feels them.
    pub tunnel: DelayHistogram,
    /// What the two hosts add.
    pub host: DelayHistogram,
    transitions: [u64; 5],
}

/// Delays, counted in buckets whose bounds double.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DelayHistogram {
    counts: [u64; DelayHistogram::BOUNDS + 1],
    sum: Duration,
}

impl LinkCounters {
    /// Takes what a probe gave; `baseline` is the link's own median of seven days, where it is known.
    pub fn measured(&mut self, measurement: &Measurement, baseline: Option<Duration>, now: Instant) {
        self.settle(now);
        match *measurement {
            Measurement::Sample(Sample { sent, path_rtt, tunnel_rtt, own_delay, peer_delay, late, .. }) => {
                let slow = baseline.is_some_and(|baseline| path_rtt > baseline + SLOW);
                match late {
                    Some(_) => self.take_back(sent),
                    None => {
                        self.sent += 1;
                        self.bad_latency += u64::from(slow);
                    }
                }
                self.path.record(path_rtt);
                self.tunnel.record(tunnel_rtt);
                self.host.record(own_delay + peer_delay);
            }
            Measurement::Lost { sent, direction, .. } => {
                self.sent += 1;
                self.bad_latency += 1;
                if self.held.len() == HELD_LIMIT
                    && let Some((_, direction)) = self.held.pop_front()
                {
                    self.lost[direction as usize] += 1;
                }
                self.held.push_back((sent, direction));
            }
            Measurement::Placed { sent, direction } => {
                let of_unknown = |held: &&mut (Instant, Direction)| held.1 == Direction::Unknown;
                let exact = self.held.iter_mut().filter(of_unknown).find(|held| held.0 == sent);
                // The reflector knows only about when a probe was sent.
                let place = match exact {
                    Some(held) => Some(held),
                    None => self.held.iter_mut().find(of_unknown),
                };
                if let Some(held) = place {
                    held.1 = direction;
                }
            }
            Measurement::Discarded { sent, reason, late } => {
                match late {
                    Some(_) => self.take_back(sent),
                    None => self.sent += 1,
                }
                self.discarded[usize::from(reason == Discard::Negative)] += 1;
            }
            Measurement::Disorder { direction, kind, .. } => {
                let counts = match kind {
                    Disorder::Reordered => &mut self.reordered,
                    Disorder::Duplicated => &mut self.duplicated,
                };
                counts[usize::from(direction == Direction::Reverse)] += 1;
            }
            Measurement::Data { direction, packets, lost, .. } => {
                let way = usize::from(direction == Direction::Reverse);
                self.data_packets[way] += u64::from(packets);
                self.data_lost[way] += u64::from(lost);
            }
        }
    }

    /// Takes note that the link entered a state.
    pub fn entered(&mut self, state: LinkState) {
        self.transitions[state as usize] += 1;
    }

    /// A probe that was lost has been answered after all.
    fn take_back(&mut self, sent: Instant) {
        self.late += 1;
        let exact = self.held.iter().position(|(of, _)| *of == sent);
        if let Some(at) = exact.or(if self.held.is_empty() { None } else { Some(0) }) {
            self.held.remove(at);
        }
    }

    /// Counts the losses that nothing will change any more.
    fn settle(&mut self, now: Instant) {
        while self.held.front().is_some_and(|(sent, _)| now.saturating_since(*sent) >= SETTLED_AFTER) {
            if let Some((_, direction)) = self.held.pop_front() {
                self.lost[direction as usize] += 1;
            }
        }
    }

    /// Returns the losses of each direction that nothing will change any more, in the order of [`Direction::ALL`].
    pub fn lost(&self, now: Instant) -> [u64; 3] {
        let mut lost = self.lost;
        for (_, direction) in self.held.iter().filter(|(sent, _)| now.saturating_since(*sent) >= SETTLED_AFTER) {
            lost[*direction as usize] += 1;
        }
        lost
    }

    /// Returns how many probes of the last seconds are lost so far.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Returns how often the link entered each state.
    pub fn transitions(&self) -> impl Iterator<Item = (LinkState, u64)> {
        let states = [LinkState::New, LinkState::Up, LinkState::Suspect, LinkState::Down, LinkState::Unknown];
        states.into_iter().map(|state| (state, self.transitions[state as usize]))
    }
}

impl DelayHistogram {
    /// Bounds there are: up to 6.55 s, beyond which no answer counts.
    pub const BOUNDS: usize = 18;
    /// The first bound: a fraction of the way between two hosts of one rack.
    const FIRST: Duration = Duration::from_micros(50);

    /// Makes one of what others counted in the same buckets, the last of which has no bound.
    pub fn of(counts: [u64; Self::BOUNDS + 1], sum: Duration) -> Self {
        DelayHistogram { counts, sum }
    }

    /// Takes a delay.
    pub fn record(&mut self, delay: Duration) {
        let bucket = Self::bounds().position(|bound| delay <= bound).unwrap_or(Self::BOUNDS);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(delay);
    }

    /// Returns the bounds, the smallest first; what lies above the last has a bucket of its own.
    pub fn bounds() -> impl Iterator<Item = Duration> {
        (0..Self::BOUNDS as u32).map(|doublings| Self::FIRST * (1 << doublings))
    }

    /// Returns the count of each bucket with its bound in seconds, the last without one.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = Self::bounds().map(|bound| bound.as_secs_f64()).chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }

    /// Returns the sum of all delays.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Returns how many delays there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another one's counts.
    pub fn merge(&mut self, other: &DelayHistogram) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn sample(sent: u64, micros: u64, late: Option<Direction>) -> Measurement {
        let rtt = Duration::from_micros(micros);
        Measurement::Sample(Sample {
            sent: at(sent),
            path_rtt: rtt,
            tunnel_rtt: rtt + Duration::from_micros(300),
            own_delay: Duration::from_micros(100),
            peer_delay: Duration::from_micros(200),
            forward_transit: 0,
            reverse_transit: 0,
            late,
        })
    }

    #[test]
    fn counts_only_rise_whatever_a_loss_turns_out_to_be() {
        let mut counters = LinkCounters::default();
        let lost = |sent| Measurement::Lost { sent: at(sent), direction: Direction::Unknown, in_row: 1 };
        let mut before = [0; 3];
        let events = [
            (2_000, lost(0)),
            (3_000, lost(1_000)),
            (3_500, sample(0, 3_400_000, Some(Direction::Unknown))),
            (4_000, Measurement::Placed { sent: at(1_000), direction: Direction::Reverse }),
            (5_000, lost(3_000)),
            (6_000, sample(4_000, 10_000, None)),
            (20_000, sample(19_000, 10_000, None)),
        ];
        for (now, event) in events {
            counters.measured(&event, None, at(now));
            let after = counters.lost(at(now));
            assert!(before.iter().zip(after).all(|(before, after)| *before <= after), "{before:?} {after:?}");
            before = after;
        }
        assert_eq!(before, [0, 1, 1], "one on the way back, one nobody knows where");
        assert_eq!((counters.sent, counters.late, counters.path.count()), (5, 1, 3));
    }

    #[test]
    fn what_is_held_is_bounded_and_not_forgotten() {
        let mut counters = LinkCounters::default();
        for millis in 0..1_000 {
            counters.measured(
                &Measurement::Lost { sent: at(millis), direction: Direction::Forward, in_row: 1 },
                None,
                at(millis),
            );
        }
        assert!(counters.held.len() <= HELD_LIMIT);
        assert_eq!(counters.lost(at(60_000))[Direction::Forward as usize], 1_000);
    }

    #[test]
    fn bad_is_lost_or_slower_than_usual() {
        let mut counters = LinkCounters::default();
        let baseline = Some(Duration::from_millis(10));
        counters.measured(&sample(0, 14_000, None), baseline, at(10));
        counters.measured(&sample(0, 16_000, None), baseline, at(10));
        counters.measured(&sample(0, 16_000, None), None, at(10));
        counters.measured(
            &Measurement::Lost { sent: at(0), direction: Direction::Forward, in_row: 1 },
            baseline,
            at(10),
        );
        assert_eq!((counters.sent, counters.bad_latency), (4, 2));
    }

    #[test]
    fn bounds_double_from_50_microseconds() {
        let bounds: Vec<Duration> = DelayHistogram::bounds().collect();
        assert_eq!((bounds[0], bounds[1]), (Duration::from_micros(50), Duration::from_micros(100)));
        assert_eq!(bounds.last(), Some(&Duration::from_micros(6_553_600)));
        let mut histogram = DelayHistogram::default();
        for micros in [0, 50, 51, 100, 10_000, 60_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let buckets = histogram.buckets();
        assert_eq!((buckets[0].1, buckets[1].1, buckets[DelayHistogram::BOUNDS].1), (2, 2, 1));
        assert_eq!(histogram.count(), 6);
    }
}

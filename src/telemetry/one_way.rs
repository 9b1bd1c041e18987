//! Which way of a link a delay lies on, with clocks that agree on nothing.

use std::collections::VecDeque;
use std::time::Duration;

use crate::control::measurement::Sample;
use crate::time::Instant;

/// How much longer each way takes than it can: the one-way variation.
///
/// A transit is the way's delay and the difference of the two clocks; half the difference of the two transits is the clocks'
/// difference and half the difference of the two delays. While the delays are what they always are, it moves with the clocks
/// alone: on a line, since their rates differ by a little that hardly changes. That line is fitted through the quickest
/// exchanges of the last hour; what a transit has beyond it and beyond the hour's minimum is that way's variation.
///
/// Some 1.6 KiB per link.
#[derive(Clone, Debug, Default)]
pub struct OneWay {
    /// The quickest exchange of each slot, oldest first; at most [`POINTS`].
    points: VecDeque<Point>,
    /// How long a slot is. It doubles when the slots no longer cover an hour, so that a young link has points, too.
    slot: Duration,
    line: Option<Line>,
}

/// An exchange.
#[derive(Clone, Copy, Debug)]
struct Point {
    at: Instant,
    /// Half the difference of the transits, nanoseconds: the clocks' difference, give or take a constant.
    difference: i64,
    rtt: i64,
}

/// The clocks' difference as it runs, and the least each way takes by it.
#[derive(Clone, Copy, Debug)]
struct Line {
    start: Instant,
    difference: i64,
    /// Nanoseconds a nanosecond.
    slope: f64,
    least: [i64; 2],
}

/// Points kept. An hour of minutes.
const POINTS: usize = 60;
/// The first slots: with points every other second a line stands after half a minute.
const FIRST_SLOT: Duration = Duration::from_secs(2);
/// The longest slots.
const LAST_SLOT: Duration = Duration::from_secs(60);
/// Points a line needs at least.
const FEWEST: usize = 8;
/// Of the quick points so many of the newest are fitted: rates of clocks change over hours, with the temperature.
const FITTED: usize = 24;
/// A point is quick where it took no more than the hour's minimum and this part of it, or this much.
const QUICK_PART: i64 = 50;
const QUICK: i64 = 60_000;

impl OneWay {
    /// Takes a sample; returns by how much the way to the peer and the way back took longer than they can, once the line
    /// stands.
    pub fn record(&mut self, sample: &Sample) -> Option<[Duration; 2]> {
        let [forward, reverse] = [sample.forward_transit, sample.reverse_transit];
        let difference = ((i128::from(forward) - i128::from(reverse)) / 2) as i64;
        let rtt = i64::try_from(sample.path_rtt.as_nanos()).unwrap_or(i64::MAX);
        let point = Point { at: sample.sent, difference, rtt };
        // Two clocks that agree on the round trip cannot be further from the line than half of it: one was set, or began
        // anew with its host.
        if self.line.is_some_and(|line| line.apart(&point).unsigned_abs() > rtt.unsigned_abs() / 2 + 1_000_000) {
            *self = OneWay::default();
        }
        self.keep(point);
        let line = self.line.as_mut()?;
        let ways = [line.remove(forward, sample.sent, 1), line.remove(reverse, sample.sent, -1)];
        for (least, way) in line.least.iter_mut().zip(ways) {
            *least = way.min(*least);
        }
        let variation =
            |place: usize| Duration::from_nanos(ways[place].saturating_sub(line.least[place]).max(0) as u64);
        Some([variation(0), variation(1)])
    }

    fn keep(&mut self, point: Point) {
        self.slot = self.slot.max(FIRST_SLOT);
        let slot_of = |at: Instant, slot: Duration| at.as_nanos() / slot.as_nanos().max(1) as u64;
        match self.points.back_mut() {
            Some(last) if slot_of(last.at, self.slot) >= slot_of(point.at, self.slot) => {
                if point.rtt < last.rtt {
                    *last = point;
                }
                return;
            }
            _ => self.points.push_back(point),
        }
        if self.points.len() > POINTS && self.slot < LAST_SLOT {
            self.slot = (self.slot * 2).min(LAST_SLOT);
            let mut merged: VecDeque<Point> = VecDeque::with_capacity(POINTS + 1);
            for point in self.points.drain(..) {
                match merged.back_mut() {
                    Some(last) if slot_of(last.at, self.slot) == slot_of(point.at, self.slot) => {
                        if point.rtt < last.rtt {
                            *last = point;
                        }
                    }
                    _ => merged.push_back(point),
                }
            }
            self.points = merged;
        }
        while self.points.len() > POINTS {
            self.points.pop_front();
        }
        self.line = self.fit();
    }

    /// Fits a line through the quick points by least squares.
    fn fit(&self) -> Option<Line> {
        let least = self.points.iter().map(|point| point.rtt).min()?;
        let quick = least.saturating_add((least / QUICK_PART).max(QUICK));
        let chosen: Vec<&Point> = self.points.iter().rev().filter(|point| point.rtt <= quick).take(FITTED).collect();
        let origin = **chosen.last()?;
        if chosen.len() < FEWEST {
            return None;
        }
        // Numbers near zero keep their nanoseconds in a float.
        let near = |point: &Point| {
            let x = point.at.saturating_since(origin.at).as_nanos() as f64;
            (x, (i128::from(point.difference) - i128::from(origin.difference)) as f64)
        };
        let count = chosen.len() as f64;
        let (sum_x, sum_y) =
            chosen.iter().map(|point| near(point)).fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x, sum.1 + y));
        let (mean_x, mean_y) = (sum_x / count, sum_y / count);
        let (mut above, mut below) = (0.0, 0.0);
        for (x, y) in chosen.iter().map(|point| near(point)) {
            above += (x - mean_x) * (y - mean_y);
            below += (x - mean_x) * (x - mean_x);
        }
        let slope = if below > 0.0 { above / below } else { 0.0 };
        let difference = origin.difference.saturating_add((mean_y - slope * mean_x) as i64);
        let mut line = Line { start: origin.at, difference, slope, least: [i64::MAX; 2] };
        for point in chosen {
            // The two ways of a quick point are half its round trip, give or take what it is beside the line.
            let apart = line.apart(point);
            for (least, sign) in line.least.iter_mut().zip([1, -1]) {
                *least = (*least).min((point.rtt / 2).saturating_add(apart.saturating_mul(sign)));
            }
        }
        Some(line)
    }

    /// Returns the bytes it holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.points.capacity() * size_of::<Point>()
    }
}

impl Line {
    fn at(&self, at: Instant) -> i64 {
        let passed = at.as_nanos() as f64 - self.start.as_nanos() as f64;
        self.difference.saturating_add((self.slope * passed) as i64)
    }

    /// How far a point lies from the line.
    fn apart(&self, point: &Point) -> i64 {
        point.difference.saturating_sub(self.at(point.at))
    }

    /// Takes the clocks' difference out of a transit.
    fn remove(&self, transit: i64, at: Instant, sign: i64) -> i64 {
        transit.saturating_sub(self.at(at).saturating_mul(sign))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::{RngCore, SeedableRng};

    /// Samples of a link whose clocks are `apart` ns apart and drift by `drift`; `delays` gives both ways' at a second.
    fn run(apart: i64, drift: f64, seconds: u64, delays: impl Fn(u64) -> [i64; 2]) -> Vec<Option<[Duration; 2]>> {
        let (mut ways, mut rng) = (OneWay::default(), ChaCha12Rng::seed_from_u64(5));
        (0..seconds)
            .map(|second| {
                let sent = Instant::from_millis(50_000 + second * 1_000);
                let noise = [(); 2].map(|()| i64::from(rng.next_u32() % 40_000));
                let [out, home] = [0, 1].map(|way| delays(second)[way] + noise[way]);
                let clocks = apart + (drift * sent.as_nanos() as f64) as i64;
                let path_rtt = Duration::from_nanos((out + home) as u64);
                ways.record(&Sample {
                    sent,
                    path_rtt,
                    tunnel_rtt: path_rtt,
                    own_delay: Duration::ZERO,
                    peer_delay: Duration::ZERO,
                    forward_transit: out + clocks,
                    reverse_transit: home - clocks,
                    late: None,
                })
            })
            .collect()
    }

    /// The median of what is found on one way from a second on.
    fn median(found: &[Option<[Duration; 2]>], from: usize, way: usize) -> f64 {
        let mut all: Vec<f64> = found[from..].iter().flatten().map(|ways| ways[way].as_secs_f64() * 1e3).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }

    #[test]
    fn five_milliseconds_are_found_on_the_way_they_lie_on() {
        for (way, drift, change) in [(0, 50e-6, 60), (1, 50e-6, 300), (0, -50e-6, 3_000), (1, 0.0, 5_000)] {
            let found = run(500_000_000, drift, change + 900, |second| {
                let mut delays = [5_000_000, 5_000_000];
                delays[way] += if second < change { 0 } else { 5_000_000 };
                delays
            });
            assert!(found[30].is_some(), "a line stands after half a minute");
            for span in [60, 300, 900] {
                let upto = &found[..(change + span) as usize];
                let [there, elsewhere] = [way, 1 - way].map(|way| median(upto, change as usize, way));
                println!(
                    "way {way}, drift {drift:e}, {span} s after: {there:.3} ms there, {elsewhere:.3} ms on the other way"
                );
                assert!((there - 5.0).abs() < 0.2 && elsewhere < 0.2);
            }
        }
    }

    #[test]
    fn a_host_that_started_anew_is_a_new_beginning() {
        let found = run(0, 20e-6, 200, |_| [1_000_000, 1_000_000]);
        assert!(found.iter().flatten().all(|ways| ways.iter().all(|way| *way < Duration::from_micros(200))));
        let mut ways = OneWay::default();
        let sample = |millis, forward_transit| Sample {
            sent: Instant::from_millis(millis),
            path_rtt: Duration::from_millis(2),
            tunnel_rtt: Duration::from_millis(2),
            own_delay: Duration::ZERO,
            peer_delay: Duration::ZERO,
            forward_transit,
            reverse_transit: 2_000_000i64.wrapping_sub(forward_transit),
            late: None,
        };
        let told: Vec<bool> = (0..60).map(|i| ways.record(&sample(i * 1_000, 1_000_000)).is_some()).collect();
        assert!(told[59]);
        assert_eq!(ways.record(&sample(60_000, 7_000_000_000)), None, "the line is drawn anew");
        for hostile in [i64::MIN, i64::MAX, 0] {
            let _ = ways.record(&sample(61_000, hostile));
        }
    }

    #[test]
    fn an_hour_takes_few_bytes() {
        let mut ways = OneWay::default();
        for second in 0..7_200 {
            ways.keep(Point { at: Instant::from_millis(second * 1_000), difference: 0, rtt: 1 });
        }
        assert!(ways.points.len() <= POINTS && ways.heap_bytes() <= 2_048, "{} bytes", ways.heap_bytes());
    }
}

//! What the probes of one link say, beside what became of every packet: two probers with clocks of their own, a wire that
//! logs each packet's fate, and the statistics of both ends.

use std::collections::BTreeSet;
use std::time::Duration;

use meshd::control::Arrival;
use meshd::control::class::{IDLE_BUDGET, PROBE_BYTES, idle_interval};
use meshd::control::measurement::{Direction, Discard, Disorder, Measurement};
use meshd::control::path::Path;
use meshd::control::probe::{LinkState, Pace, Prober};
use meshd::identity::NodeId;
use meshd::platform::clock::{Reading, StepWatch};
use meshd::telemetry::{LinkStatistics, LossEstimate};
use meshd::time::Instant;
use meshd::wire::probe::{Class, Probe, ProbeReply};
use meshd::wire::receipts::{Receipt, Requests};
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

const SECOND: u64 = 1_000_000_000;

/// One end: its prober, and a host with clocks.
struct End {
    prober: Prober,
    requests: Requests,
    /// Its monotonic clock, less the true time, at the start; and how much faster it runs.
    ahead: u64,
    drift: f64,
    /// Its wall clock, less its monotonic one.
    wall: u64,
    watch: StepWatch,
    steps: Vec<i64>,
    statistics: LinkStatistics,
    measured: Vec<Measurement>,
    states: Vec<(u64, LinkState)>,
}

impl End {
    fn new(initiator: bool, ahead: u64, drift: f64) -> Self {
        End {
            prober: Prober::new(
                initiator,
                Pace::new(Class::Active, Duration::from_secs(1)),
                Instant::from_nanos(ahead),
            ),
            requests: Requests::default(),
            ahead,
            drift,
            wall: 1_800_000_000 * SECOND,
            watch: StepWatch::default(),
            steps: Vec::new(),
            statistics: LinkStatistics::new(),
            measured: Vec::new(),
            states: Vec::new(),
        }
    }

    fn local(&self, at: u64) -> Instant {
        Instant::from_nanos(self.ahead + at + (self.drift * at as f64) as u64)
    }

    /// The true time of a local one, a nanosecond late rather than early.
    fn global(&self, local: Instant) -> u64 {
        ((local.as_nanos().saturating_sub(self.ahead)) as f64 / (1.0 + self.drift)) as u64 + 1
    }

    fn reading(&self, at: u64) -> Reading {
        let now = self.local(at);
        Reading { now, realtime_nanos: now.as_nanos() + self.wall }
    }
}

/// What happens to a packet: the delays of the copies that arrive, beyond the usual; none where it is lost.
type Fates = Vec<u64>;

/// What the wire did to what end 0 can know of, by way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Log {
    lost: u64,
    duplicated: u64,
    reordered: u64,
}

struct Link {
    at: u64,
    ends: [End; 2],
    rng: ChaCha12Rng,
    /// Read at, stamped at (by the receiver's wall clock), order, receiver, packet.
    wire: Vec<(u64, u64, u64, usize, Probe)>,
    order: u64,
    delay: u64,
    dwell: u64,
    log: [Log; 2],
    /// Packets sent, by end.
    sent: [u64; 2],
    /// What arrived, by way and kind.
    came: [[BTreeSet<u32>; 2]; 2],
}

impl Link {
    /// A link of five milliseconds each way between clocks 500 ms apart that drift by 50 ppm.
    fn new(seed: u64) -> Self {
        Link {
            at: 0,
            ends: [End::new(true, 40 * SECOND, 0.0), End::new(false, 40 * SECOND + SECOND / 2, 50e-6)],
            rng: ChaCha12Rng::seed_from_u64(seed),
            wire: Vec::new(),
            order: 0,
            delay: 5_000_000,
            dwell: 30_000,
            log: [Log::default(); 2],
            sent: [0; 2],
            came: Default::default(),
        }
    }

    /// A number between 0 and 1.
    fn roll(rng: &mut ChaCha12Rng) -> f64 {
        f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }

    /// Runs until a true time; `fate` decides on each packet by its sender and time.
    fn run(&mut self, until: u64, mut fate: impl FnMut(&mut ChaCha12Rng, usize, u64) -> Fates) {
        while self.at < until {
            let timers = self.ends.iter().map(|end| end.global(end.prober.poll_timeout()));
            let next = timers.chain(self.wire.iter().map(|packet| packet.0)).min().unwrap_or(until);
            // Rounding must not let time stand still.
            self.at = next.clamp(self.at + 1, until.max(self.at + 1));
            self.wire.sort_by_key(|packet| (packet.0, packet.2));
            while self.wire.first().is_some_and(|packet| packet.0 <= self.at) {
                let (_, stamp, _, to, probe) = self.wire.remove(0);
                self.receive(stamp, to, probe, &mut fate);
            }
            for from in 0..2 {
                let now = self.ends[from].local(self.at);
                if let Some(request) = self.ends[from].prober.handle_timeout(now, &mut self.rng) {
                    self.send(from, Probe::Request(request), &mut fate);
                }
                self.collect(from, now);
            }
        }
    }

    fn send(&mut self, from: usize, probe: Probe, fate: &mut impl FnMut(&mut ChaCha12Rng, usize, u64) -> Fates) {
        // Some tens of microseconds of jitter in any case.
        let jitter = u64::from(self.rng.next_u32() % 40_000);
        let fates = fate(&mut self.rng, from, self.at);
        self.sent[from] += 1;
        if is_exchange(from, &probe) {
            self.log[from].lost += u64::from(fates.is_empty());
        }
        if is_seen(from, &probe) {
            self.log[from].duplicated += fates.len().saturating_sub(1) as u64;
        }
        for extra in fates {
            self.order += 1;
            let to = 1 - from;
            let arrives = self.at + self.delay + jitter + extra;
            let stamp = self.ends[to].reading(arrives).realtime_nanos;
            self.wire.push((arrives + self.dwell, stamp, self.order, to, probe));
        }
    }

    fn receive(
        &mut self,
        stamp: u64,
        to: usize,
        probe: Probe,
        fate: &mut impl FnMut(&mut ChaCha12Rng, usize, u64) -> Fates,
    ) {
        let reading = self.ends[to].reading(self.at);
        let end = &mut self.ends[to];
        end.steps.extend(end.watch.look(&reading));
        let now = reading.now;
        let (stamped, steady) = (reading.instant_of(stamp), end.watch.is_steady(now));
        let path = Path::to(crate::net::Net::endpoint(1));
        let arrival = Arrival { stamped, read: now, steady, ..Arrival::at(NodeId::from_bytes([1; 16]), path, now) };
        if is_seen(1 - to, &probe) {
            let (kind, sequence) = match probe {
                Probe::Request(request) => (0, request.sequence),
                Probe::Reply(reply) => (1, reply.sequence),
            };
            let came = &mut self.came[1 - to][kind];
            // A copy of what came already is a copy, not overtaken.
            let overtaken = came.last().is_some_and(|highest| sequence < *highest);
            self.log[1 - to].reordered += u64::from(came.insert(sequence) && overtaken);
        }
        match probe {
            Probe::Request(request) => {
                let receipt = end.requests.note(request.run, request.sequence);
                let receipts = end.requests.receipts();
                let reply = ProbeReply::to(&request, stamped, now, now);
                let reply = ProbeReply { receipts, unsteady: !steady, ..reply };
                end.prober.on_request(&request, &arrival, now);
                if receipt != Receipt::Duplicated {
                    self.send(to, Probe::Reply(reply), fate);
                }
            }
            Probe::Reply(reply) => {
                end.prober.on_reply(&reply, &arrival, now);
            }
        }
        self.collect(to, now);
    }

    fn collect(&mut self, end: usize, now: Instant) {
        let end = &mut self.ends[end];
        while let Some(measurement) = end.prober.poll_measurement() {
            end.statistics.take(&measurement, now);
            end.measured.push(measurement);
        }
        let state = end.prober.state();
        if end.states.last().is_none_or(|(_, last)| *last != state) {
            end.states.push((self.at, state));
        }
    }

    fn summary(&self, end: usize) -> meshd::telemetry::LinkSummary {
        let end = &self.ends[end];
        end.statistics.summary(end.local(self.at))
    }

    fn downs(&self, end: usize) -> usize {
        self.ends[end].states.iter().filter(|(_, state)| *state == LinkState::Down).count()
    }
}

/// Whether a packet belongs to what end 0 asks: its losses are told by its answers.
fn is_exchange(from: usize, probe: &Probe) -> bool {
    matches!((from, probe), (0, Probe::Request(_)) | (1, Probe::Reply(_)))
}

/// Whether end 0 gets to know of a packet's place among the others: of its own requests, and of all that comes to it.
fn is_seen(from: usize, probe: &Probe) -> bool {
    from == 1 || is_exchange(from, probe)
}

fn well(_: &mut ChaCha12Rng, _: usize, _: u64) -> Fates {
    vec![0]
}

fn covers(loss: Option<LossEstimate>, truth: f64) -> bool {
    loss.is_some_and(|loss| loss.low <= truth && truth <= loss.high)
}

/// Three hundred: of a hundred runs of a right interval, one set in five has fewer than 93.
const RUNS: u64 = 300;

#[test]
fn the_interval_of_a_loss_covers_the_truth() {
    let rates = [0.03, 0.02];
    let both = 1.0 - (1.0 - rates[0]) * (1.0 - rates[1]);
    let mut covered = [[0; 3]; 2];
    for seed in 0..RUNS {
        let mut link = Link::new(seed);
        let lossy =
            |rng: &mut ChaCha12Rng, from: usize, _| if Link::roll(rng) < rates[from] { vec![] } else { vec![0] };
        link.run(306 * SECOND, lossy);
        for (end, covered) in covered.iter_mut().enumerate() {
            let summary = link.summary(end);
            let [forward, reverse] = [rates[end], rates[1 - end]];
            covered[0] += u32::from(covers(summary.loss, both));
            covered[1] += u32::from(covers(summary.loss_forward, forward));
            covered[2] += u32::from(covers(summary.loss_reverse, reverse));
        }
    }
    println!(
        "of {RUNS} runs, the 95 % interval covered the truth (both ways, forward, reverse): {covered:?} at the two ends"
    );
    assert!(covered.iter().flatten().all(|runs| u64::from(*runs) * 100 >= RUNS * 93), "{covered:?}");
}

#[test]
fn losses_are_told_on_the_way_they_lie_on() {
    for faulty in [0, 1] {
        let mut told = 0;
        for seed in 0..20 {
            let mut link = Link::new(seed);
            // Single losses, and bursts of a dozen at five probes a second, with answers that overtake each other.
            let pace = Pace::new(Class::Critical, Duration::from_millis(200));
            link.ends[0].prober.set_pace(pace, Instant::from_nanos(40 * SECOND));
            link.run(280 * SECOND, |rng, from, at| {
                let late = if Link::roll(rng) < 0.05 { u64::from(rng.next_u32() % 600_000_000) } else { 0 };
                let burst = at / SECOND % 60 > 57 && at > 30 * SECOND;
                if from == faulty && (burst || Link::roll(rng) < 0.02) { vec![] } else { vec![late] }
            });
            link.run(290 * SECOND, well);
            let counts = link.summary(0).counts;
            let elsewhere = counts.lost[1 - faulty] + counts.lost[Direction::Unknown as usize];
            assert_eq!(
                (u64::from(counts.lost[faulty]), elsewhere),
                (link.log[faulty].lost, 0),
                "way {faulty}, seed {seed}"
            );
            // What it asked by itself while it was worried is among its losses.
            let other = link.summary(1).counts;
            assert!(
                other.lost[1 - faulty] >= counts.lost[faulty] && other.lost[faulty] == 0,
                "the other end, seed {seed}"
            );
            told += counts.lost[faulty];
        }
        println!(
            "way {faulty}: {told} of {told} losses told on the right way, at both ends, clocks 500 ms apart and drifting"
        );
    }
}

#[test]
fn five_milliseconds_on_one_way_are_told_on_it() {
    for faulty in [0, 1] {
        let mut link = Link::new(3 + faulty as u64);
        link.run(300 * SECOND, well);
        link.run(600 * SECOND, |_, from, _| vec![if from == faulty { 5_000_000 } else { 0 }]);
        for end in [0, 1] {
            let ways = link.summary(end).variation.expect("known after five minutes");
            let way = if end == 0 { faulty } else { 1 - faulty };
            println!(
                "+5 ms on way {faulty}: end {end} tells {:?} on it and {:?} on the other",
                ways[way],
                ways[1 - way]
            );
            assert!(ways[way].abs_diff(Duration::from_millis(5)) < Duration::from_micros(200));
            assert!(ways[1 - way] < Duration::from_micros(200));
        }
    }
}

#[test]
fn overtaken_and_repeated_probes_are_counted_as_they_were() {
    for seed in 0..20 {
        let mut link = Link::new(seed);
        link.run(290 * SECOND, |rng, _, at| {
            if at < 2 * SECOND {
                return vec![0];
            }
            match (Link::roll(rng) * 100.0) as u32 {
                0..4 => vec![0, 1_000_000],
                4..8 => vec![1_300_000_000],
                _ => vec![0],
            }
        });
        link.run(299 * SECOND, well);
        let counts = link.summary(0).counts;
        for (way, log) in link.log.iter().enumerate() {
            assert_eq!(u64::from(counts.duplicated[way]), log.duplicated, "way {way}, seed {seed}: {counts:?}");
            assert_eq!(u64::from(counts.reordered[way]), log.reordered, "way {way}, seed {seed}: {counts:?}");
        }
        assert_eq!(counts.lost, [0; 3], "late is not lost, seed {seed}");
    }
}

#[test]
fn a_cut_is_known_within_seconds_and_never_falsely() {
    let mut found: [Vec<f64>; 2] = [vec![], vec![]];
    for seed in 0..200 {
        let mut link = Link::new(seed);
        link.run(20 * SECOND, well);
        let cut = 20 * SECOND + u64::from(link.rng.next_u32()) % SECOND;
        link.run(cut, well);
        link.run(cut + 5 * SECOND, |_, _, _| vec![]);
        for (end, found) in found.iter_mut().enumerate() {
            let (at, state) = *link.ends[end].states.last().expect("it had states");
            assert_eq!(state, LinkState::Down, "seed {seed}, end {end}");
            found.push((at - cut) as f64 / SECOND as f64);
        }
    }
    for (end, found) in found.iter().enumerate() {
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        let max = found.iter().copied().fold(0.0, f64::max);
        println!("200 cuts, end {end}: down after {mean:.2} s on average, {max:.2} s at most");
        assert!(mean <= 2.7 && max <= 3.2, "{mean} {max}");
    }
}

#[test]
fn a_day_of_loss_calls_nobody_down() {
    let mut link = Link::new(7);
    link.run(86_400 * SECOND, |rng, _, _| if Link::roll(rng) < 0.01 { vec![] } else { vec![0] });
    let independent = [link.downs(0), link.downs(1)];
    println!("a day at 1 % loss: {independent:?} times down at the two ends");
    assert_eq!(independent, [0, 0]);
}

/// A day of Gilbert's channel, each way bad 5 % of the time for bursts of 200 ms; the length of a burst follows from a
/// number between 0 and 1.
fn day_of_bursts(seed: u64, burst: impl Fn(f64) -> f64) -> [usize; 2] {
    let mut link = Link::new(seed);
    let mut changes = [(0, true); 2];
    link.run(86_400 * SECOND, |rng, from, at| {
        let (until, bad) = &mut changes[from];
        while *until <= at {
            *bad = !*bad;
            let roll = 1.0 - Link::roll(rng);
            let length = if *bad { burst(roll) } else { -3.8 * roll.ln() };
            *until += (length * SECOND as f64) as u64 + 1;
        }
        if *bad { vec![] } else { vec![0] }
    });
    [link.downs(0), link.downs(1)]
}

#[test]
fn a_day_of_bursts_calls_nobody_down() {
    let equal = day_of_bursts(8, |_| 0.2);
    println!("a day at 5 % in bursts of 200 ms: {equal:?} times down");
    // Some of these last for two seconds in truth: such a link is down while they do.
    let spread = day_of_bursts(8, |roll| -0.2 * roll.ln());
    println!("the same with exponential bursts of 200 ms on average: {spread:?} times down");
    assert!(equal.iter().all(|downs| *downs <= 1), "{equal:?}");
}

#[test]
fn a_set_clock_spoils_no_sample() {
    for (host, step) in
        [(0, SECOND as i64), (0, -(SECOND as i64)), (1, SECOND as i64), (1, -(SECOND as i64)), (1, 5_000_000)]
    {
        let mut link = Link::new(11);
        // Packets lie in the buffer for 400 ms, so that many are stamped before the step and read after.
        link.dwell = 400_000_000;
        for round in 1..40 {
            link.run(round * 5 * SECOND, well);
            link.ends[host].wall = link.ends[host].wall.wrapping_add_signed(if round % 2 == 0 { -step } else { step });
        }
        link.run(205 * SECOND, well);
        let mut discarded = 0;
        for end in &link.ends {
            for measurement in &end.measured {
                match measurement {
                    Measurement::Sample(sample) => {
                        let wrong = sample.path_rtt.abs_diff(Duration::from_nanos(10_040_000));
                        assert!(wrong < Duration::from_micros(100), "off by {wrong:?}");
                    }
                    Measurement::Discarded { reason: Discard::ClockStep, .. } => discarded += 1,
                    _ => {}
                }
            }
        }
        assert_eq!(link.ends[host].steps.len(), 39, "each step is noticed");
        println!(
            "39 steps of {step} ns at host {host}: all noticed, {discarded} samples discarded, none off by 100 us"
        );
    }
}

#[test]
fn idle_links_of_a_thousand_nodes_cost_what_the_budget_says() {
    let mut link = Link::new(13);
    let interval = idle_interval(1_000, Duration::from_secs(1));
    for end in &mut link.ends {
        end.prober.set_pace(Pace::new(Class::Idle, interval), end.local(0));
    }
    let seconds = 20_000;
    link.run(seconds * SECOND, well);
    for (end, sent) in link.sent.into_iter().enumerate() {
        let bits = |bytes: u64| sent as f64 / seconds as f64 * (bytes * 8) as f64 * 999.0;
        let (v6, v4) = (bits(PROBE_BYTES), bits(PROBE_BYTES - 20));
        println!(
            "999 idle links, a probe every {interval:?} on each: end {end} sends {v6:.0} bit/s on IPv6, {v4:.0} on IPv4"
        );
        // What the spread of the intervals makes of it in five hours.
        assert!(v6 <= IDLE_BUDGET as f64 * 1.01 && v4 <= IDLE_BUDGET as f64, "{v6} {v4}");
    }
}

#[test]
fn the_disorder_of_a_quiet_link_is_none() {
    let mut link = Link::new(5);
    link.run(600 * SECOND, well);
    let disorder = |kind: Disorder| {
        let of = |m: &&Measurement| matches!(m, Measurement::Disorder { kind: found, .. } if *found == kind);
        link.ends.iter().map(|end| end.measured.iter().filter(of).count()).sum::<usize>()
    };
    assert_eq!((disorder(Disorder::Reordered), disorder(Disorder::Duplicated)), (0, 0));
    assert_eq!([0, 1].map(|end| link.summary(end).counts.lost), [[0; 3]; 2]);
}

//! The last five minutes of one link.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use super::step::{Step, StepChange, StepWatch};
use super::{Degradation, Jitter, LossEstimate, OneWay, Sketch};
use crate::control::measurement::{Direction, Discard, Disorder, Measurement, Sample};
use crate::control::probe::Prober;
use crate::time::Instant;

/// Rolling statistics of one link: what its probes told in the last five minutes.
///
/// A probe belongs to the moment it was sent. It is `answered`, or it is `lost` once its time is over; an answer after
/// that is `late`, which takes the loss back: late is not lost. Below 12 KiB per link at one probe a second (measured by a
/// test).
#[derive(Clone, Debug, Default)]
pub struct LinkStatistics {
    /// Oldest first, by strictly rising `slot`; at most [`BUCKETS`].
    buckets: VecDeque<Bucket>,
    jitter: Jitter,
    one_way_jitter: [Jitter; 2],
    /// What the jitter has been over the last quarter of an hour or so.
    usual_jitter: Option<Duration>,
    one_way: OneWay,
    variation: Option<[Duration; 2]>,
    steps: StepWatch,
    /// The median round trip of the last week.
    baseline: Option<Duration>,
    degradation: Degradation,
    /// The slot in which the link was judged last.
    judged: u64,
}

/// How long a bucket is, and so by how much the window's start moves at once.
const BUCKET: Duration = Duration::from_secs(10);
/// Buckets kept: five minutes, long enough to see one loss in a hundred, short enough to be about now.
const BUCKETS: u64 = 30;
/// Probes lost in a row that make an outage.
pub(super) const OUTAGE: u16 = Prober::MISSED_BEFORE_DOWN as u16;
/// The part of a new jitter that goes into the usual one.
const USUAL_PART: u32 = 1_024;

#[derive(Clone, Debug)]
struct Bucket {
    slot: u64,
    min: Duration,
    max: Duration,
    rtt: Sketch,
    /// This host's own delay, and the peer's.
    delays: [Sketch; 2],
    counts: Counts,
    longest_run: u16,
}

/// What is counted of probes and of messages. Places are those of [`Direction`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Probes answered, late ones and those that were not measured among them.
    pub answered: u32,
    /// Probes answered after their time.
    pub late: u32,
    /// Probes lost, by direction.
    pub lost: [u32; 3],
    /// Of those, the ones that were lost in an outage: eight in a row and more, with which a link goes down.
    pub outage: [u32; 3],
    /// How often probes began to be lost, outages apart: those lost in a row are one occasion.
    pub occasions: u32,
    /// Answers that were not measured: because a clock was set, because the result would be negative.
    pub discarded: [u32; 2],
    /// Probes or answers that were overtaken, by direction.
    pub reordered: [u32; 2],
    /// Probes or answers that came twice, by direction.
    pub duplicated: [u32; 2],
    /// Messages of all kinds, by direction.
    pub packets: [u32; 2],
    /// Of those, the ones that are missing.
    pub packets_lost: [u32; 2],
    /// How many of the comparisons that counted them found some missing.
    pub packets_occasions: [u32; 2],
}

/// What a link's window holds.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSummary {
    /// How much time it covers: from the oldest bucket in it until now, at most five minutes.
    pub window: Duration,
    /// What was counted in it.
    pub counts: Counts,
    /// Loss with its interval, outages apart; `None` without a probe.
    pub loss: Option<LossEstimate>,
    /// Loss on the way to the peer: of all probes whose way of loss is not unknown.
    pub loss_forward: Option<LossEstimate>,
    /// Loss on the way back: of the probes that reached the peer.
    pub loss_reverse: Option<LossEstimate>,
    /// Loss of messages of all kinds, forward and reverse; `None` without a message.
    pub data_loss: [Option<LossEstimate>; 2],
    /// The most probes lost in a row.
    pub longest_loss_run: u16,
    /// Round trips; `None` without an answer.
    pub rtt: Option<RttSummary>,
    /// This host's own delay; `None` without an answer.
    pub own_delay: Option<DelaySummary>,
    /// The peer's host's delay.
    pub peer_delay: Option<DelaySummary>,
    /// Jitter of the round trip.
    pub jitter: Duration,
    /// Jitter of each way.
    pub one_way_jitter: [Duration; 2],
    /// What the round trip's jitter usually is.
    pub usual_jitter: Option<Duration>,
    /// By how much each way took longer than it can, at the newest sample; `None` until that can be told.
    pub variation: Option<[Duration; 2]>,
    /// The step that the round trip has taken.
    pub step: Option<Step>,
    /// The median round trip of the last half minute.
    pub rtt_now: Option<Duration>,
}

/// Round trips of a window: the ends exact, the quantiles within 0.1 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RttSummary {
    /// The smallest.
    pub min: Duration,
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The largest.
    pub max: Duration,
}

/// A host's delay in a window, within 0.1 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelaySummary {
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
}

impl LinkStatistics {
    /// Starts without any probe.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what a probe gave; tells where the round trip took a step.
    pub fn take(&mut self, measurement: &Measurement, now: Instant) -> Option<StepChange> {
        match *measurement {
            Measurement::Sample(sample) => return self.answered(now, &sample),
            Measurement::Lost { sent, direction, in_row } => {
                if let Some(bucket) = self.bucket(now, sent) {
                    let lost = &mut bucket.counts.lost[direction as usize];
                    *lost = lost.saturating_add(1);
                    bucket.counts.occasions = bucket.counts.occasions.saturating_add(u32::from(in_row == 1));
                    bucket.longest_run = bucket.longest_run.max(in_row);
                }
                match in_row.cmp(&OUTAGE) {
                    Ordering::Less => {}
                    // The ones before belong to it as well.
                    Ordering::Equal => {
                        self.assign_to_outage(OUTAGE);
                        let mut began = self.buckets.iter_mut().rev().map(|bucket| &mut bucket.counts.occasions);
                        if let Some(occasions) = began.find(|occasions| **occasions > 0) {
                            *occasions -= 1;
                        }
                    }
                    Ordering::Greater => self.assign_to_outage(1),
                }
            }
            Measurement::Placed { sent, direction } => {
                if let Some(bucket) = self.bucket(now, sent) {
                    bucket.counts.place(direction);
                }
            }
            Measurement::Discarded { sent, reason, late } => {
                if let Some(bucket) = self.bucket(now, sent) {
                    bucket.answer(late);
                    let place = usize::from(reason == Discard::Negative);
                    bucket.counts.discarded[place] = bucket.counts.discarded[place].saturating_add(1);
                }
            }
            Measurement::Disorder { at, direction, kind } => {
                if let Some(bucket) = self.bucket(now, at) {
                    let counts = match kind {
                        Disorder::Reordered => &mut bucket.counts.reordered,
                        Disorder::Duplicated => &mut bucket.counts.duplicated,
                    };
                    if let Some(count) = counts.get_mut(direction as usize) {
                        *count = count.saturating_add(1);
                    }
                }
            }
            Measurement::Data { at, direction, packets, lost } => {
                if let Some(bucket) = self.bucket(now, at) {
                    let counts = &mut bucket.counts;
                    for (sums, more) in [
                        (&mut counts.packets, packets),
                        (&mut counts.packets_lost, lost),
                        (&mut counts.packets_occasions, u32::from(lost > 0)),
                    ] {
                        if let Some(sum) = sums.get_mut(direction as usize) {
                            *sum = sum.saturating_add(more);
                        }
                    }
                }
            }
        }
        None
    }

    /// The newest `count` losses belong to an outage.
    fn assign_to_outage(&mut self, count: u16) {
        let mut left = u32::from(count);
        for bucket in self.buckets.iter_mut().rev() {
            let counts = &mut bucket.counts;
            for (outage, lost) in counts.outage.iter_mut().zip(counts.lost) {
                let taken = lost.saturating_sub(*outage).min(left);
                (*outage, left) = (*outage + taken, left - taken);
            }
            if left == 0 {
                return;
            }
        }
    }

    fn answered(&mut self, now: Instant, sample: &Sample) -> Option<StepChange> {
        if let Some(bucket) = self.bucket(now, sample.sent) {
            bucket.answer(sample.late);
            bucket.min = bucket.min.min(sample.path_rtt);
            bucket.max = bucket.max.max(sample.path_rtt);
            bucket.rtt.record(sample.path_rtt);
            for (sketch, delay) in bucket.delays.iter_mut().zip([sample.own_delay, sample.peer_delay]) {
                sketch.record(delay);
            }
        }
        self.jitter.record(i64::try_from(sample.path_rtt.as_nanos()).unwrap_or(i64::MAX));
        for (jitter, transit) in self.one_way_jitter.iter_mut().zip([sample.forward_transit, sample.reverse_transit]) {
            jitter.record(transit);
        }
        let jitter = self.jitter.estimate();
        let usual = self.usual_jitter.unwrap_or(jitter);
        self.usual_jitter = Some(usual - usual / USUAL_PART + jitter / USUAL_PART);
        self.variation = self.one_way.record(sample).or(self.variation);
        let change = self.steps.record(sample.sent, sample.path_rtt);
        if change.is_some() {
            // What it makes of the link is told with it, not at the next look.
            self.judged = u64::MAX;
        }
        change
    }

    /// Sets the median round trip of the last week, against which a slow change is told.
    pub fn set_baseline(&mut self, baseline: Option<Duration>) {
        self.baseline = baseline;
    }

    /// The median round trip of the last week, where it is known.
    pub fn baseline(&self) -> Option<Duration> {
        self.baseline
    }

    /// Looks, once every ten seconds, whether the link is degraded; returns whether it became so, or well again.
    pub fn judge(&mut self, now: Instant) -> Option<bool> {
        if slot_of(now) == self.judged {
            return None;
        }
        self.judged = slot_of(now);
        let (summary, baseline) = (self.summary(now), self.baseline);
        self.degradation.update(&summary, baseline, now)
    }

    /// Jitter of each way (RFC 3550 §6.4.1).
    pub fn jitter(&self) -> [Duration; 2] {
        self.one_way_jitter.map(|jitter| jitter.estimate())
    }

    /// By how much each way took longer than it can, at the newest sample; `None` until that can be told.
    pub fn variation(&self) -> Option<[Duration; 2]> {
        self.variation
    }

    /// The step that the round trip has taken.
    pub fn step(&self) -> Option<Step> {
        self.steps.standing()
    }

    /// Why the link is degraded, and since when.
    pub fn degradation(&self) -> &Degradation {
        &self.degradation
    }

    /// Forgets everything, as after the path has changed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns what the last five minutes before `now` hold.
    pub fn summary(&self, now: Instant) -> LinkSummary {
        let oldest = oldest_slot(now);
        let window = || self.buckets.iter().filter(move |bucket| bucket.slot >= oldest);
        let mut counts = Counts::default();
        window().for_each(|bucket| counts.add(&bucket.counts));
        let first = window().next().map_or(now, |bucket| start_of(bucket.slot));
        let [min, max] = [window().map(|b| b.min).min(), window().map(|b| b.max).max()];
        let quantiles = Sketch::quantiles(window().map(|bucket| &bucket.rtt), [0.5, 0.99]);
        let rtt = match (min, max, quantiles) {
            (Some(min), Some(max), Some([p50, p99])) => {
                Some(RttSummary { min, p50: p50.clamp(min, max), p99: p99.clamp(min, max), max })
            }
            _ => None,
        };
        let delay = |host: usize| {
            let quantiles = Sketch::quantiles(window().map(|bucket| &bucket.delays[host]), [0.5, 0.99]);
            quantiles.map(|[p50, p99]| DelaySummary { p50, p99 })
        };
        // An outage is told by the link's state: counted as loss as well, a link that is back would look bad for minutes.
        let [forward, reverse, unknown] = counts.lost_apart().map(u64::from);
        let answered = u64::from(counts.answered);
        let data = |way: usize| LossEstimate::new(counts.packets_lost[way].into(), counts.packets[way].into());
        LinkSummary {
            window: now.saturating_since(first),
            counts,
            loss: LossEstimate::new(forward + reverse + unknown, answered + forward + reverse + unknown),
            loss_forward: LossEstimate::new(forward, answered + forward + reverse),
            loss_reverse: LossEstimate::new(reverse, answered + reverse),
            data_loss: [data(0), data(1)],
            longest_loss_run: window().map(|bucket| bucket.longest_run).max().unwrap_or(0),
            rtt,
            own_delay: delay(0),
            peer_delay: delay(1),
            jitter: self.jitter.estimate(),
            one_way_jitter: self.one_way_jitter.map(|jitter| jitter.estimate()),
            usual_jitter: self.usual_jitter,
            variation: self.variation,
            step: self.steps.standing(),
            rtt_now: self.steps.now(),
        }
    }

    /// Returns the bytes it holds, itself included.
    pub fn memory_bytes(&self) -> usize {
        let buckets = self.buckets.capacity() * size_of::<Bucket>();
        let sketches = self.buckets.iter().flat_map(|bucket| bucket.delays.iter().chain([&bucket.rtt]));
        size_of::<Self>()
            + buckets
            + sketches.map(Sketch::heap_bytes).sum::<usize>()
            + self.one_way.heap_bytes()
            + self.steps.heap_bytes()
    }

    /// The bucket of a probe; `None` where it was sent before the window.
    fn bucket(&mut self, now: Instant, sent: Instant) -> Option<&mut Bucket> {
        let oldest = oldest_slot(now);
        while self.buckets.front().is_some_and(|bucket| bucket.slot < oldest) {
            self.buckets.pop_front();
        }
        // A probe cannot be sent after its answer; a caller that says so means now.
        let slot = slot_of(sent.min(now));
        if slot < oldest {
            return None;
        }
        let at = self.buckets.partition_point(|bucket| bucket.slot < slot);
        if self.buckets.get(at).is_none_or(|bucket| bucket.slot != slot) {
            if let Some(before) = at.checked_sub(1).and_then(|before| self.buckets.get_mut(before)) {
                before.rtt.shrink();
                before.delays.iter_mut().for_each(Sketch::shrink);
            }
            self.buckets.insert(at, Bucket::new(slot));
        }
        self.buckets.get_mut(at)
    }
}

impl Counts {
    /// Probes lost by direction, but for those of outages.
    pub fn lost_apart(&self) -> [u32; 3] {
        std::array::from_fn(|way| self.lost[way].saturating_sub(self.outage[way]))
    }

    /// On which way a probe was lost is known now.
    fn place(&mut self, direction: Direction) {
        let unknown = Direction::Unknown as usize;
        // Of an outage only where nothing else can be meant.
        let apart = self.lost[unknown] > self.outage[unknown];
        let counts: &mut [&mut [u32; 3]] =
            if apart { &mut [&mut self.lost] } else { &mut [&mut self.lost, &mut self.outage] };
        for counts in counts {
            if let Some(fewer) = counts[unknown].checked_sub(1) {
                counts[unknown] = fewer;
                counts[direction as usize] = counts[direction as usize].saturating_add(1);
            }
        }
    }

    fn add(&mut self, more: &Counts) {
        let sums = |into: &mut [u32], more: &[u32]| {
            into.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(*more));
        };
        self.answered = self.answered.saturating_add(more.answered);
        self.late = self.late.saturating_add(more.late);
        sums(&mut self.lost, &more.lost);
        sums(&mut self.outage, &more.outage);
        self.occasions = self.occasions.saturating_add(more.occasions);
        sums(&mut self.discarded, &more.discarded);
        sums(&mut self.reordered, &more.reordered);
        sums(&mut self.duplicated, &more.duplicated);
        sums(&mut self.packets, &more.packets);
        sums(&mut self.packets_lost, &more.packets_lost);
        sums(&mut self.packets_occasions, &more.packets_occasions);
    }
}

impl Bucket {
    fn new(slot: u64) -> Self {
        Bucket {
            slot,
            min: Duration::MAX,
            max: Duration::ZERO,
            rtt: Sketch::default(),
            delays: [Sketch::default(), Sketch::default()],
            counts: Counts::default(),
            longest_run: 0,
        }
    }

    fn answer(&mut self, late: Option<Direction>) {
        self.counts.answered = self.counts.answered.saturating_add(1);
        if let Some(direction) = late {
            self.counts.late = self.counts.late.saturating_add(1);
            let lost = &mut self.counts.lost[direction as usize];
            *lost = lost.saturating_sub(1);
        }
    }
}

fn slot_of(at: Instant) -> u64 {
    at.as_nanos() / BUCKET.as_nanos() as u64
}

fn start_of(slot: u64) -> Instant {
    Instant::from_nanos(slot.saturating_mul(BUCKET.as_nanos() as u64))
}

fn oldest_slot(now: Instant) -> u64 {
    (slot_of(now) + 1).saturating_sub(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Reason;
    use proptest::prelude::*;

    fn ms(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn rtt(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn sample(sent: Instant, path_rtt: Duration, late: Option<Direction>) -> Measurement {
        let (half, delay) = (path_rtt.as_nanos() as i64 / 2, Duration::from_micros(80));
        Measurement::Sample(Sample {
            sent,
            path_rtt,
            tunnel_rtt: path_rtt + delay * 2,
            own_delay: delay,
            peer_delay: delay,
            forward_transit: half,
            reverse_transit: half,
            late,
        })
    }

    impl LinkStatistics {
        fn answered_at(&mut self, now: Instant, sent: Instant, rtt: Duration) {
            self.take(&sample(sent, rtt, None), now);
        }

        fn lost_at(&mut self, now: Instant, sent: Instant, direction: Direction) {
            self.take(&Measurement::Lost { sent, direction, in_row: 1 }, now);
        }
    }

    #[test]
    fn a_link_without_probes_claims_nothing() {
        let summary = LinkStatistics::new().summary(ms(1_000_000));
        assert_eq!((summary.loss, summary.rtt, summary.window), (None, None, Duration::ZERO));
    }

    #[test]
    fn probes_leave_the_window_after_five_minutes() {
        let mut link = LinkStatistics::new();
        link.lost_at(ms(0), ms(0), Direction::Forward);
        link.answered_at(ms(100_000), ms(100_000), rtt(10_000));
        assert_eq!(link.summary(ms(299_999)).loss.unwrap().lost, 1);
        assert_eq!(link.summary(ms(300_000)).loss.unwrap().lost, 0);
        assert_eq!(link.summary(ms(300_000)).counts.answered, 1);
        assert_eq!(link.summary(ms(400_000)).rtt, None);
    }

    #[test]
    fn late_is_not_lost() {
        let mut link = LinkStatistics::new();
        link.lost_at(ms(2_000), ms(0), Direction::Forward);
        assert_eq!(link.summary(ms(2_000)).loss.unwrap().lost, 1);
        link.take(&sample(ms(0), rtt(2_500_000), Some(Direction::Forward)), ms(2_500));
        let summary = link.summary(ms(2_500));
        assert_eq!((summary.loss.unwrap().lost, summary.counts.late, summary.counts.answered), (0, 1, 1));
        assert_eq!(summary.rtt.unwrap().max, Duration::from_micros(2_500_000));
    }

    #[test]
    fn what_an_outage_lost_is_no_loss_of_the_link_that_is_back() {
        let mut link = LinkStatistics::new();
        (0..200).for_each(|i| link.answered_at(ms(i * 1_000), ms(i * 1_000), rtt(1_000)));
        let lose = |link: &mut LinkStatistics, from: u64, count: u16| {
            for in_row in 1..=count {
                let sent = ms(from + u64::from(in_row) * 250);
                link.take(&Measurement::Lost { sent, direction: Direction::Unknown, in_row }, sent);
            }
        };
        // Across the end of a bucket.
        lose(&mut link, 208_500, 7);
        let summary = link.summary(ms(215_000));
        assert_eq!((summary.loss.unwrap().lost, summary.counts.outage), (7, [0; 3]), "a burst is no outage");
        assert_eq!((summary.counts.occasions, Reason::find(&summary, None)), (1, vec![]), "one burst is over");
        // A second one may be chance; with a third the link works badly.
        lose(&mut link, 218_500, 7);
        assert_eq!(Reason::find(&link.summary(ms(225_000)), None), []);
        lose(&mut link, 228_500, 7);
        assert_eq!(Reason::find(&link.summary(ms(235_000)), None), [Reason::Loss]);
        let mut link = LinkStatistics::new();
        (0..200).for_each(|i| link.answered_at(ms(i * 1_000), ms(i * 1_000), rtt(1_000)));
        lose(&mut link, 208_500, 12);
        for i in 212..230 {
            link.answered_at(ms(i * 1_000), ms(i * 1_000), rtt(1_000));
        }
        link.lost_at(ms(231_000), ms(231_000), Direction::Unknown);
        link.take(&Measurement::Placed { sent: ms(209_000), direction: Direction::Forward }, ms(231_000));
        let summary = link.summary(ms(232_000));
        assert_eq!((summary.counts.lost, summary.counts.occasions), ([1, 0, 12], 1));
        assert_eq!((summary.loss.unwrap().lost, summary.loss.unwrap().sent), (1, 219));
        assert_eq!(summary.loss_forward.unwrap().lost, 0, "which way an outage was is no loss of that way");
        assert_eq!(Reason::find(&summary, None), []);
    }

    #[test]
    fn a_step_makes_the_link_degraded_at_once() {
        let mut link = LinkStatistics::new();
        for second in 0..400u64 {
            let (now, millis) = (ms(second * 1_000), if second < 200 { 10 } else { 11 });
            let change = link.take(&sample(now, Duration::from_millis(millis), None), now);
            let judged = link.judge(now);
            if change.is_some() {
                assert!(second > 200 && matches!(change, Some(StepChange::Began(_))), "{second}: {change:?}");
                assert_eq!((judged, link.degradation().reasons().len()), (Some(true), 1));
                return;
            }
            assert_eq!(judged, None, "{second}");
        }
        panic!("the step was not found");
    }

    #[test]
    fn answers_that_come_out_of_order_find_their_bucket() {
        let mut link = LinkStatistics::new();
        link.answered_at(ms(50_000), ms(45_000), rtt(1_000));
        link.answered_at(ms(50_000), ms(15_000), rtt(3_000));
        link.answered_at(ms(50_000), ms(25_000), rtt(2_000));
        let slots: Vec<u64> = link.buckets.iter().map(|bucket| bucket.slot).collect();
        assert_eq!(slots, [1, 2, 4]);
        assert_eq!(link.summary(ms(50_000)).window, Duration::from_secs(40));
    }

    #[test]
    fn each_way_has_its_own_loss() {
        let mut link = LinkStatistics::new();
        (0..96).for_each(|i| link.answered_at(ms(i * 1_000), ms(i * 1_000), rtt(1_000)));
        let now = ms(100_000);
        for (sent, direction) in [(96, Direction::Forward), (97, Direction::Reverse), (98, Direction::Unknown)] {
            link.lost_at(now, ms(sent * 1_000), direction);
        }
        link.take(&Measurement::Placed { sent: ms(98_000), direction: Direction::Reverse }, now);
        link.take(&Measurement::Lost { sent: ms(99_000), direction: Direction::Unknown, in_row: 4 }, now);
        link.take(&Measurement::Discarded { sent: ms(99_500), reason: Discard::ClockStep, late: None }, now);
        link.take(&Measurement::Data { at: now, direction: Direction::Reverse, packets: 10_000, lost: 1 }, now);
        for kind in [Disorder::Reordered, Disorder::Duplicated, Disorder::Duplicated] {
            link.take(&Measurement::Disorder { at: now, direction: Direction::Forward, kind }, now);
        }
        let summary = link.summary(now);
        let of = |loss: Option<LossEstimate>| loss.map(|loss| (loss.lost, loss.sent));
        assert_eq!(of(summary.loss), Some((4, 101)));
        assert_eq!((of(summary.loss_forward), of(summary.loss_reverse)), (Some((1, 100)), Some((2, 99))));
        assert_eq!(summary.data_loss.map(of), [None, Some((1, 10_000))]);
        assert_eq!((summary.longest_loss_run, summary.counts.discarded), (4, [1, 0]));
        assert_eq!((summary.counts.reordered, summary.counts.duplicated), ([1, 0], [2, 0]));
        assert_eq!(summary.peer_delay.map(|delay| delay.p50.as_micros()), Some(80));
    }

    #[test]
    fn five_minutes_of_a_link_take_few_bytes() {
        let mut link = LinkStatistics::new();
        for second in 0..600u64 {
            // Round trips that spread over a decade, so that no two of a bucket share a bin.
            link.answered_at(ms(second * 1_000), ms(second * 1_000), rtt(5_000 + (second * 7_919) % 50_000));
        }
        assert!(link.memory_bytes() <= 12_288, "{} bytes", link.memory_bytes());
    }

    proptest! {
        #[test]
        fn nothing_is_counted_twice_or_forgotten(
            fates in prop::collection::vec((0u64..299_000, 0u8..3, 1u64..5_000_000), 0..300),
        ) {
            let now = ms(299_000);
            let mut link = LinkStatistics::new();
            let (mut answered, mut lost, mut late) = (0, 0, 0);
            for (sent, fate, micros) in fates {
                match fate {
                    0 => { link.answered_at(now, ms(sent), rtt(micros)); answered += 1; }
                    1 => { link.lost_at(now, ms(sent), Direction::Forward); lost += 1; }
                    _ => { link.lost_at(now, ms(sent), Direction::Forward); link.take(&sample(ms(sent), rtt(micros), Some(Direction::Forward)), now); late += 1; }
                }
            }
            let summary = link.summary(now);
            prop_assert_eq!(summary.counts.answered, answered + late);
            prop_assert_eq!(summary.counts.late, late);
            prop_assert_eq!(summary.loss.map_or(0, |loss| loss.lost), lost);
            prop_assert_eq!(summary.loss.map_or(0, |loss| loss.sent), u64::from(answered + late) + lost);
            if let Some(rtt) = summary.rtt {
                prop_assert!(rtt.min <= rtt.p50 && rtt.p50 <= rtt.p99 && rtt.p99 <= rtt.max);
            }
        }

        #[test]
        fn any_times_are_taken_without_panic(times in prop::collection::vec((any::<u64>(), any::<u64>()), 0..200)) {
            let mut link = LinkStatistics::new();
            for (now, sent) in times {
                link.answered_at(Instant::from_nanos(now), Instant::from_nanos(sent), rtt(sent));
                link.lost_at(Instant::from_nanos(now), Instant::from_nanos(sent), Direction::Forward);
                let _ = link.summary(Instant::from_nanos(now));
                prop_assert!(link.buckets.len() as u64 <= BUCKETS + 1);
            }
        }
    }
}

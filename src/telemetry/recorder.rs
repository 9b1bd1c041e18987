//! Fills the buckets of all links, and hands them over when nothing more can come.

use std::collections::BTreeMap;
use std::time::Duration;

use super::link::OUTAGE;
use super::link_counters::SLOW;
use super::raw::{Fate, RawRing};
use super::{Bucket, Standing};
use crate::control::measurement::{Direction, Disorder, Measurement, Sample};
use crate::identity::NodeId;
use crate::time::{Instant, UnixTime};

/// How long a bucket is open. A minute is handed over in two halves, which add up to it wherever it is kept, so that a crash
/// costs half a minute and the time an answer may take.
const SLOT_SECS: u64 = 30;
/// How long after its end a bucket is still open: an answer within five seconds takes a loss back.
const LATE_SECS: u64 = 5;
/// A wall clock that differs by more from what it should show was set. Less is drift, and the fraction that whole seconds lack.
const STEP: Duration = Duration::from_secs(2);

/// A bucket that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The peer.
    pub node: NodeId,
    /// Its name then.
    pub name: String,
    /// Where the minute begins that it belongs to, by the wall clock.
    pub minute: UnixTime,
    /// What the link did in it, or in a part of it: to be merged with the rest.
    pub bucket: Bucket,
}

/// The wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockStep {
    /// What it should have shown.
    pub from: UnixTime,
    /// What it showed.
    pub to: UnixTime,
}

/// What a tunnel has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelTotals {
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Sessions made.
    pub handshakes: u64,
}

/// Fills the buckets of all links.
///
/// A probe belongs to the minute it was sent in, by a wall clock that runs with the monotonic one. Where the wall clock is
/// set, what is open is handed over under the old time and the new time begins: set back, minutes that were there already get
/// more probes, set forward, there is a gap. No probe is counted twice, and none under a time that no clock showed.
#[derive(Debug)]
pub struct Recorder {
    line: WallLine,
    tracks: BTreeMap<NodeId, Track>,
    /// What links that are gone left behind.
    left: Vec<Sealed>,
}

/// Time is counted at each sealing. Where that was so long ago, this host was asleep, or this process stopped: a gap.
const ASLEEP: Duration = Duration::from_secs(4 * SLOT_SECS);

/// Minutes that links which are gone may leave behind until the next sealing: more than there are members.
const LEFT_LIMIT: usize = 8_192;

#[derive(Debug)]
struct Track {
    name: String,
    standing: Standing,
    /// Whether it works badly when it works.
    degraded: bool,
    /// Until when the time in its state is counted.
    counted: Instant,
    /// Since when it is under suspicion.
    suspect_since: Option<Instant>,
    /// The median round trip of the last seven days.
    baseline: Option<Duration>,
    /// By slot; three at most, the present one and those that wait for late answers.
    open: BTreeMap<u64, Bucket>,
    /// Round trip and both transits of the answer before.
    before: Option<[i64; 3]>,
    totals: TunnelTotals,
    raw: RawRing,
}

impl Recorder {
    /// Starts without links.
    pub fn new(now: Instant, wall: UnixTime) -> Self {
        Recorder { line: WallLine::new(now, wall), tracks: BTreeMap::new(), left: Vec::new() }
    }

    /// Looks at the wall clock, and returns a step where it was set. To be called before anything else at `now`.
    pub fn follow(&mut self, now: Instant, wall: UnixTime) -> Option<ClockStep> {
        let shown = self.line.at(now);
        let off = shown.saturating_since(wall).max(wall.saturating_since(shown));
        if off <= STEP {
            return None;
        }
        let open = self.seal_all(now);
        self.left.extend(open);
        self.line = WallLine::new(now, wall);
        Some(ClockStep { from: shown, to: wall })
    }

    /// A link is there under this name; it may have been before.
    pub fn watch(&mut self, node: NodeId, name: &str, standing: Standing, now: Instant) {
        let track = self.tracks.entry(node).or_insert_with(|| Track::new(standing, now));
        if track.name != name {
            name.clone_into(&mut track.name);
        }
    }

    /// Returns whether a link is watched.
    pub fn watches(&self, node: NodeId) -> bool {
        self.tracks.contains_key(&node)
    }

    /// A link is no more: what it did until now is kept.
    pub fn forget(&mut self, node: NodeId, now: Instant) {
        if let Some(mut track) = self.tracks.remove(&node) {
            track.count_time(&self.line, now);
            let room = LEFT_LIMIT.saturating_sub(self.left.len());
            self.left.extend(track.take(node, u64::MAX).into_iter().take(room));
        }
    }

    /// A link is in this state from now on.
    pub fn stands(&mut self, node: NodeId, standing: Standing, now: Instant) {
        if let Some(track) = self.tracks.get_mut(&node) {
            track.count_time(&self.line, now);
            match (standing, track.suspect_since) {
                (Standing::Suspect, since) => track.suspect_since = since.or(Some(now)),
                (Standing::Down, Some(since)) => {
                    let bucket = track.open.entry(self.line.slot(now)).or_default();
                    bucket.outage_millis += now.saturating_since(since).as_millis() as u64;
                    track.suspect_since = None;
                }
                _ => track.suspect_since = None,
            }
            track.standing = standing;
            track.raw.stands(track.shown(), now);
        }
    }

    /// A link works badly, or well again, from now on; time in which it is up counts as degraded meanwhile.
    pub fn degrades(&mut self, node: NodeId, degraded: bool, now: Instant) {
        if let Some(track) = self.tracks.get_mut(&node) {
            track.count_time(&self.line, now);
            track.degraded = degraded;
            track.raw.stands(track.shown(), now);
        }
    }

    /// These are the medians of the links' last seven days, against which an answer is slow.
    pub fn set_baselines(&mut self, baselines: &BTreeMap<NodeId, Duration>) {
        for (node, track) in &mut self.tracks {
            track.baseline = baselines.get(node).copied();
        }
    }

    /// Packets of a link take another path.
    pub fn path_changed(&mut self, node: NodeId, now: Instant) {
        if let Some(bucket) = self.bucket(node, now) {
            bucket.path_changes += 1;
        }
    }

    /// What a link's tunnel has counted so far; what is new of it belongs to the bucket that is sealed next.
    pub fn count(&mut self, node: NodeId, totals: TunnelTotals, now: Instant) {
        let Some(track) = self.tracks.get_mut(&node) else { return };
        let before = std::mem::replace(&mut track.totals, totals);
        // A tunnel that was made anew counts from zero again.
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let bucket = track.open.entry(self.line.slot(now - Duration::from_secs(LATE_SECS))).or_default();
        bucket.tx_bytes += more(totals.tx_bytes, before.tx_bytes);
        bucket.rx_bytes += more(totals.rx_bytes, before.rx_bytes);
        bucket.handshakes += more(totals.handshakes, before.handshakes);
    }

    /// A probe of a link told something.
    pub fn measured(&mut self, node: NodeId, measurement: &Measurement, now: Instant) {
        let Some(track) = self.tracks.get_mut(&node) else { return };
        // What is sealed already takes nothing more: a loss in it stays one.
        let oldest = self.line.slot(now - Duration::from_secs(LATE_SECS));
        let line = &self.line;
        let open = |track: &mut Track, at: Instant| -> Option<u64> {
            let slot = line.slot(at.min(now));
            (slot >= oldest || track.open.contains_key(&slot)).then_some(slot)
        };
        match measurement {
            Measurement::Sample(sample) => {
                let Some(slot) = open(track, sample.sent) else { return };
                track.answered(slot, sample, now);
            }
            Measurement::Lost { sent, direction, in_row } => {
                let Some(slot) = open(track, *sent) else { return };
                let run = track.raw.put(*sent, Fate::Lost(*direction), now);
                track.open.entry(slot).or_default().lose(*direction, run);
                track.assign_to_outage(*in_row);
            }
            Measurement::Placed { sent, direction } => {
                let Some(slot) = open(track, *sent) else { return };
                let bucket = track.open.entry(slot).or_default();
                if bucket.find_again(Direction::Unknown) {
                    bucket.lose(*direction, 0);
                    track.raw.replace(*sent, Fate::Lost(*direction));
                }
            }
            Measurement::Discarded { sent, late, .. } => {
                let Some(slot) = open(track, *sent) else { return };
                let bucket = track.open.entry(slot).or_default();
                match late {
                    Some(direction) if !bucket.find_again(*direction) => return,
                    Some(_) => track.raw.replace(*sent, Fate::Discarded),
                    None => drop(track.raw.put(*sent, Fate::Discarded, now)),
                }
                bucket.discarded += 1;
            }
            Measurement::Disorder { at, kind, .. } => {
                let Some(slot) = open(track, *at) else { return };
                let bucket = track.open.entry(slot).or_default();
                match kind {
                    Disorder::Reordered => bucket.reordered += 1,
                    Disorder::Duplicated => bucket.duplicates += 1,
                }
            }
            Measurement::Data { at, direction, packets, lost } => {
                let Some(slot) = open(track, *at) else { return };
                let bucket = track.open.entry(slot).or_default();
                let (sum, missing) = match direction {
                    Direction::Reverse => (&mut bucket.data_received, &mut bucket.data_received_lost),
                    Direction::Forward | Direction::Unknown => (&mut bucket.data_sent, &mut bucket.data_sent_lost),
                };
                *sum += u64::from(*packets);
                *missing += u64::from(*lost);
            }
        }
    }

    /// Returns when the next bucket is complete.
    pub fn poll_timeout(&self, now: Instant) -> Instant {
        self.line.end_of(self.line.slot(now - Duration::from_secs(LATE_SECS))) + Duration::from_secs(LATE_SECS)
    }

    /// Returns what is complete.
    pub fn seal(&mut self, now: Instant) -> Vec<Sealed> {
        let first_open = self.line.slot(now - Duration::from_secs(LATE_SECS));
        self.seal_before(first_open, now)
    }

    /// Returns everything, as at the end.
    pub fn seal_all(&mut self, now: Instant) -> Vec<Sealed> {
        self.seal_before(u64::MAX, now)
    }

    fn seal_before(&mut self, slot: u64, now: Instant) -> Vec<Sealed> {
        let mut sealed = std::mem::take(&mut self.left);
        for (node, track) in &mut self.tracks {
            track.count_time(&self.line, now);
            sealed.extend(track.take(*node, slot));
        }
        sealed
    }

    /// Returns what is open of a link, by minute: what the store cannot know yet.
    pub fn open(&self, node: NodeId) -> impl Iterator<Item = (UnixTime, &Bucket)> {
        let open = self.tracks.get(&node).into_iter().flat_map(|track| &track.open);
        open.map(|(slot, bucket)| (minute_of(*slot), bucket))
    }

    /// Returns the last hour of a link from its single probes, in buckets of `step` seconds that begin at whole steps of the
    /// wall clock.
    pub fn last_hour(&self, node: NodeId, step: u64, now: Instant) -> BTreeMap<UnixTime, Bucket> {
        let Some(track) = self.tracks.get(&node) else { return BTreeMap::new() };
        track.raw.buckets(now, |at| {
            let secs = self.line.at(at).as_secs();
            UnixTime::from_secs(secs - secs % step.max(1))
        })
    }

    /// Returns the bytes that single probes take.
    pub fn raw_bytes(&self) -> usize {
        self.tracks.values().map(|track| track.raw.heap_bytes()).sum()
    }

    fn bucket(&mut self, node: NodeId, at: Instant) -> Option<&mut Bucket> {
        Some(self.tracks.get_mut(&node)?.open.entry(self.line.slot(at)).or_default())
    }
}

impl Track {
    fn new(standing: Standing, now: Instant) -> Self {
        Track {
            name: String::new(),
            standing,
            degraded: false,
            counted: now,
            suspect_since: None,
            baseline: None,
            open: BTreeMap::new(),
            before: None,
            totals: TunnelTotals::default(),
            raw: RawRing::new(standing, now),
        }
    }

    fn answered(&mut self, slot: u64, sample: &Sample, now: Instant) {
        let bucket = self.open.entry(slot).or_default();
        let fate = Fate::Answered { path: sample.path_rtt, own: sample.own_delay, host: host_delay(sample) };
        match sample.late {
            Some(direction) if !bucket.find_again(direction) => return,
            Some(_) => {
                bucket.late += 1;
                self.raw.replace(sample.sent, fate);
            }
            None => {
                self.raw.put(sample.sent, fate, now);
                let nanos = i64::try_from(sample.path_rtt.as_nanos()).unwrap_or(i64::MAX);
                let these = [nanos, sample.forward_transit, sample.reverse_transit];
                if let Some(before) = self.before.replace(these) {
                    bucket.vary([0, 1, 2].map(|i| these[i].abs_diff(before[i])));
                }
            }
        }
        let slow = self.baseline.is_some_and(|baseline| sample.path_rtt > baseline + SLOW);
        bucket.slow += u64::from(slow || sample.late.is_some());
        bucket.answer(sample.path_rtt, sample.tunnel_rtt, sample.own_delay, host_delay(sample));
    }

    /// A probe was lost, the `in_row`-th of a row: from [`OUTAGE`] on all of them belong to an outage.
    fn assign_to_outage(&mut self, in_row: u16) {
        let mut left = match in_row {
            0..OUTAGE => 0,
            OUTAGE => u64::from(OUTAGE),
            _ => 1,
        };
        for bucket in self.open.values_mut().rev() {
            let taken = bucket.lost().saturating_sub(bucket.outage_lost).min(left);
            (bucket.outage_lost, left) = (bucket.outage_lost + taken, left - taken);
        }
    }

    fn shown(&self) -> Standing {
        if self.standing == Standing::Up && self.degraded { Standing::Degraded } else { self.standing }
    }

    /// Counts the time in the present state, slot by slot; not a time in which nobody counted, as of a host asleep.
    fn count_time(&mut self, line: &WallLine, now: Instant) {
        if now.saturating_since(self.counted) > ASLEEP {
            self.raw.slept(self.counted, self.shown(), now);
            self.counted = now;
        }
        while self.counted < now {
            let slot = line.slot(self.counted);
            let (until, standing) = (line.end_of(slot).min(now), self.shown());
            let (time, bucket) = (until.saturating_since(self.counted), self.open.entry(slot).or_default());
            bucket.stood(standing, time);
            if standing == Standing::Down {
                bucket.outage_millis = bucket.outage_millis.saturating_add(time.as_millis() as u64);
            }
            // A line that ends, at the end of time, moves nothing any more.
            self.counted = if until > self.counted { until } else { now };
        }
    }

    fn take(&mut self, node: NodeId, before: u64) -> Vec<Sealed> {
        let later = self.open.split_off(&before);
        let sealed = std::mem::replace(&mut self.open, later);
        let full = sealed.into_iter().filter(|(_, bucket)| !bucket.is_empty());
        full.map(|(slot, bucket)| Sealed { node, name: self.name.clone(), minute: minute_of(slot), bucket }).collect()
    }
}

/// What both hosts added to the network's round trip.
fn host_delay(sample: &Sample) -> Duration {
    sample.own_delay + sample.peer_delay
}

fn minute_of(slot: u64) -> UnixTime {
    UnixTime::from_secs(slot * SLOT_SECS / 60 * 60)
}

/// The wall clock as a line through one reading of both clocks.
#[derive(Clone, Copy, Debug)]
struct WallLine {
    /// Nanoseconds since 1970 less nanoseconds of the monotonic clock.
    offset: i128,
}

const NANOS: i128 = 1_000_000_000;

impl WallLine {
    fn new(now: Instant, wall: UnixTime) -> Self {
        WallLine { offset: i128::from(wall.as_secs()) * NANOS - i128::from(now.as_nanos()) }
    }

    fn at(&self, at: Instant) -> UnixTime {
        let secs = (i128::from(at.as_nanos()) + self.offset).max(0) / NANOS;
        UnixTime::from_secs(u64::try_from(secs).unwrap_or(u64::MAX))
    }

    fn slot(&self, at: Instant) -> u64 {
        self.at(at).as_secs() / SLOT_SECS
    }

    fn end_of(&self, slot: u64) -> Instant {
        let nanos = i128::from(slot + 1) * i128::from(SLOT_SECS) * NANOS - self.offset;
        Instant::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WALL: UnixTime = UnixTime::from_secs(1_795_356_000);
    const NODE: NodeId = NodeId::from_bytes([7; 16]);

    fn s(secs: u64) -> Instant {
        Instant::from_millis(1_000_000 + secs * 1_000)
    }

    fn sample(sent: Instant, micros: u64, late: Option<Direction>) -> Measurement {
        let path_rtt = Duration::from_micros(micros);
        let (own_delay, peer_delay) = (Duration::from_micros(40), Duration::from_micros(60));
        let tunnel_rtt = path_rtt + own_delay + peer_delay;
        let (forward_transit, reverse_transit) = (micros as i64 * 400 + 5_000_000, micros as i64 * 600 - 5_000_000);
        let sample =
            Sample { sent, path_rtt, tunnel_rtt, own_delay, peer_delay, forward_transit, reverse_transit, late };
        Measurement::Sample(sample)
    }

    fn recorder() -> Recorder {
        let mut recorder = Recorder::new(s(0), WALL);
        recorder.watch(NODE, "db1", Standing::Up, s(0));
        recorder
    }

    fn merged(sealed: impl IntoIterator<Item = Sealed>) -> BTreeMap<UnixTime, Bucket> {
        let mut minutes = BTreeMap::<UnixTime, Bucket>::new();
        for sealed in sealed {
            minutes.entry(sealed.minute).or_default().merge(&sealed.bucket);
        }
        minutes
    }

    #[test]
    fn a_minute_comes_in_two_halves_five_seconds_after_their_ends() {
        let mut recorder = recorder();
        assert_eq!((recorder.poll_timeout(s(34)), recorder.poll_timeout(s(35))), (s(35), s(65)));
        for second in 0..70 {
            recorder.measured(NODE, &sample(s(second), 10_000, None), s(second));
        }
        assert!(recorder.seal(s(34)).is_empty());
        let first = recorder.seal(s(35));
        assert_eq!(
            first.iter().map(|sealed| (sealed.minute, sealed.bucket.answered)).collect::<Vec<_>>(),
            [(WALL, 30)]
        );
        let minutes = merged(first.into_iter().chain(recorder.seal(s(65))));
        assert_eq!((minutes.len(), minutes[&WALL].answered), (1, 60));
        assert_eq!(minutes[&WALL].observed(), Duration::from_secs(60));
        assert_eq!(recorder.seal_all(s(70))[0].bucket.answered, 10);
    }

    #[test]
    fn an_outage_counts_from_its_suspicion_and_its_probes_apart() {
        let mut recorder = recorder();
        recorder.set_baselines(&[(NODE, Duration::from_millis(10))].into());
        let lost = |at, in_row| Measurement::Lost { sent: s(at), direction: Direction::Unknown, in_row };
        for (second, micros) in [(0, 10_000), (1, 14_900), (2, 15_100)] {
            recorder.measured(NODE, &sample(s(second), micros, None), s(second));
        }
        recorder.measured(NODE, &lost(3, 1), s(5));
        // Suspicion that passes is no outage.
        recorder.stands(NODE, Standing::Suspect, s(6));
        recorder.stands(NODE, Standing::Up, s(7));
        recorder.stands(NODE, Standing::Suspect, s(10));
        recorder.stands(NODE, Standing::Down, s(13));
        (1..=10).for_each(|in_row| recorder.measured(NODE, &lost(9 + u64::from(in_row), in_row), s(20)));
        recorder.stands(NODE, Standing::Up, s(43));
        let all = recorder.seal_all(s(60)).into_iter().fold(Bucket::default(), |mut all, sealed| {
            all.merge(&sealed.bucket);
            all
        });
        assert_eq!((all.slow, all.lost(), all.outage_lost), (1, 11, 10));
        assert_eq!((all.outage_millis, all.down_millis, all.suspect_millis), (33_000, 30_000, 4_000));
    }

    #[test]
    fn late_is_not_lost_until_the_bucket_is_sealed() {
        let mut recorder = recorder();
        let lost = |sent| Measurement::Lost { sent, direction: Direction::Reverse, in_row: 1 };
        recorder.measured(NODE, &lost(s(28)), s(30));
        recorder.measured(NODE, &lost(s(29)), s(31));
        recorder.measured(NODE, &sample(s(28), 4_000_000, Some(Direction::Reverse)), s(32));
        let first = merged(recorder.seal(s(35)));
        assert_eq!((first[&WALL].late, first[&WALL].answered, first[&WALL].lost_reverse), (1, 1, 1));
        assert_eq!(first[&WALL].longest_loss_run, 2);
        // This one is too late: the loss stays, and nothing is counted beside it.
        recorder.measured(NODE, &sample(s(29), 6_000_000, Some(Direction::Reverse)), s(36));
        assert!(recorder.seal_all(s(36)).iter().all(|sealed| sealed.bucket.sent() == 0));
    }

    #[test]
    fn a_loss_that_gets_its_direction_moves() {
        let mut recorder = recorder();
        recorder.measured(NODE, &Measurement::Lost { sent: s(1), direction: Direction::Unknown, in_row: 1 }, s(3));
        recorder.measured(NODE, &Measurement::Placed { sent: s(1), direction: Direction::Forward }, s(4));
        let minutes = merged(recorder.seal_all(s(5)));
        assert_eq!((minutes[&WALL].lost_unknown, minutes[&WALL].lost_forward), (0, 1));
    }

    #[test]
    fn time_is_counted_in_the_state_it_was_spent_in() {
        let mut recorder = recorder();
        recorder.stands(NODE, Standing::Down, s(50));
        recorder.stands(NODE, Standing::Up, s(80));
        recorder.degrades(NODE, true, s(90));
        recorder.degrades(NODE, false, s(100));
        let minutes = merged(recorder.seal_all(s(120)));
        let next = WALL + Duration::from_secs(60);
        assert_eq!((minutes[&WALL].up_millis, minutes[&WALL].down_millis), (50_000, 10_000));
        assert_eq!(
            (minutes[&next].up_millis, minutes[&next].degraded_millis, minutes[&next].down_millis),
            (30_000, 10_000, 20_000)
        );
    }

    #[test]
    fn traffic_is_what_is_new_of_it() {
        let mut recorder = recorder();
        let totals = |tx_bytes| TunnelTotals { tx_bytes, rx_bytes: 10, handshakes: 1 };
        recorder.count(NODE, totals(1_000), s(35));
        recorder.count(NODE, totals(1_500), s(65));
        // The tunnel was made anew.
        recorder.count(NODE, totals(200), s(95));
        let minutes = merged(recorder.seal_all(s(96)));
        assert_eq!(minutes.values().map(|bucket| bucket.tx_bytes).sum::<u64>(), 1_700);
        assert_eq!(minutes.values().map(|bucket| bucket.handshakes).sum::<u64>(), 1);
    }

    #[test]
    fn a_clock_set_back_or_forward_counts_every_probe_once_under_a_time_it_showed() {
        for step in [-3_600i64, -20, 20, 7_200] {
            let mut recorder = recorder();
            let mut sealed = Vec::new();
            for second in 0..240u64 {
                let shown = WALL.as_secs() + second;
                let wall = if second < 100 { shown } else { shown.wrapping_add_signed(step) };
                let seen = recorder.follow(s(second), UnixTime::from_secs(wall));
                assert_eq!(seen.is_some(), second == 100, "{step} at {second}");
                if let Some(seen) = seen {
                    assert_eq!((seen.from.as_secs(), seen.to.as_secs()), (shown, shown.wrapping_add_signed(step)));
                }
                // Answered two seconds later: some were sent before the step.
                if let Some(sent) = second.checked_sub(2) {
                    recorder.measured(NODE, &sample(s(sent), 2_000_000, None), s(second));
                }
                sealed.extend(recorder.seal(s(second)));
            }
            sealed.extend(recorder.seal_all(s(240)));
            let minutes = merged(sealed);
            assert_eq!(minutes.values().map(|bucket| bucket.answered).sum::<u64>(), 238, "{step}");
            let observed: Duration = minutes.values().map(Bucket::observed).sum();
            assert_eq!(observed, Duration::from_secs(240), "{step}");
            let (before, after) = (WALL.as_secs(), WALL.as_secs().wrapping_add_signed(step));
            for minute in minutes.keys().map(|minute| minute.as_secs()) {
                let old = (before..before + 100).contains(&minute);
                let new = (after + 38..after + 240).contains(&minute);
                assert!(old || new, "{step}: {minute} is a minute that no clock showed");
            }
        }
    }

    #[test]
    fn drift_is_no_step_and_a_suspended_host_is_none_either() {
        let mut recorder = recorder();
        for hour in 0..48 {
            // 100 ppm fast: a third of a second an hour, and the line follows.
            let at = s(hour * 3_600);
            let wall = UnixTime::from_secs(WALL.as_secs() + hour * 3_600 + hour * 36 / 100);
            if recorder.follow(at, wall).is_some() {
                assert!(hour > 5, "a second is no step");
            }
        }
    }

    #[test]
    fn a_host_asleep_is_a_gap() {
        let mut recorder = recorder();
        let mut sealed = recorder.seal(s(20));
        // The wall clock went on, as it does.
        assert_eq!(recorder.follow(s(3_600), WALL + Duration::from_secs(3_600)), None);
        sealed.extend(recorder.seal(s(3_600)));
        sealed.extend(recorder.seal_all(s(3_610)));
        let observed: Duration = merged(sealed).values().map(Bucket::observed).sum();
        assert_eq!(observed, Duration::from_secs(30));
        let steps = recorder.last_hour(NODE, 10, s(3_610));
        assert_eq!(steps.values().map(Bucket::observed).sum::<Duration>(), Duration::from_secs(20));
    }

    #[test]
    fn what_a_link_that_went_did_is_kept() {
        let mut recorder = recorder();
        recorder.measured(NODE, &sample(s(1), 10_000, None), s(1));
        recorder.forget(NODE, s(2));
        assert!(!recorder.watches(NODE));
        let left = recorder.seal(s(3));
        assert_eq!((left.len(), left[0].bucket.answered, left[0].name.as_str()), (1, 1, "db1"));
        recorder.measured(NODE, &sample(s(3), 10_000, None), s(3));
        assert!(recorder.seal_all(s(9)).is_empty());
    }

    #[test]
    fn the_last_hour_shows_what_the_minutes_do_in_smaller_steps() {
        let mut recorder = recorder();
        let mut sealed = Vec::new();
        for second in 0..1_200u64 {
            let sent = s(second);
            if (300..310).contains(&second) {
                recorder.measured(NODE, &Measurement::Lost { sent, direction: Direction::Forward, in_row: 1 }, sent);
            } else {
                let micros = if second < 600 { 10_000 } else { 12_000 } + second % 7;
                recorder.measured(NODE, &sample(sent, micros, None), sent);
            }
            sealed.extend(recorder.seal(sent));
        }
        let now = s(1_200);
        let mut from_minutes = merged(sealed.into_iter().chain(recorder.seal_all(now)));
        let steps = recorder.last_hour(NODE, 10, now);
        assert_eq!(steps.len(), 120);
        assert_eq!(steps[&(WALL + Duration::from_secs(300))].lost_forward, 10);
        assert_eq!(steps[&(WALL + Duration::from_secs(300))].longest_loss_run, 10);
        assert_eq!(steps[&(WALL + Duration::from_secs(600))].path.min(), Duration::from_micros(12_000));
        let mut from_steps = BTreeMap::<UnixTime, Bucket>::new();
        for (at, bucket) in steps {
            let minute = UnixTime::from_secs(at.as_secs() / 60 * 60);
            from_steps.entry(minute).or_default().merge(&bucket);
        }
        for bucket in from_minutes.values_mut() {
            // Single probes keep no transits.
            (bucket.jitter_forward_nanos, bucket.jitter_reverse_nanos) = (0, 0);
        }
        assert_eq!(from_steps, from_minutes);
    }

    #[test]
    fn an_hour_of_a_link_takes_sixteen_bytes_a_probe() {
        let mut recorder = recorder();
        for second in 0..9_000 {
            recorder.measured(NODE, &sample(s(second), 10_000, None), s(second));
            recorder.seal(s(second));
        }
        assert_eq!(recorder.last_hour(NODE, 600, s(9_000)).values().map(|bucket| bucket.answered).sum::<u64>(), 3_601);
        // A ring doubles its room when it is full: between 58 and 116 kB, and some for the states.
        assert!(recorder.raw_bytes() <= 3_600 * 16 * 2 + 8_192, "{} bytes", recorder.raw_bytes());
    }

    proptest! {
        #[test]
        fn any_times_are_taken_without_panic(
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), 0u8..7), 0..60),
        ) {
            let mut recorder = Recorder::new(Instant::ZERO, UnixTime::EPOCH);
            recorder.watch(NODE, "db1", Standing::New, Instant::ZERO);
            for (now, sent, wall, what) in steps {
                // A monotonic clock of some thousand years; the sent time is anything.
                let (now, sent) = (Instant::from_nanos(now >> 14), Instant::from_nanos(sent >> 14));
                recorder.follow(now, UnixTime::from_secs(wall >> 30));
                let measurement = match what {
                    0 => sample(sent, now.as_nanos() >> 20, None),
                    1 => sample(sent, 1, Some(Direction::Unknown)),
                    2 => Measurement::Lost { sent, direction: Direction::Unknown, in_row: 1 },
                    3 => Measurement::Placed { sent, direction: Direction::Forward },
                    _ => Measurement::Data { at: sent, direction: Direction::Reverse, packets: u32::MAX, lost: 1 },
                };
                recorder.measured(NODE, &measurement, now);
                prop_assert!(recorder.tracks.values().all(|track| track.open.len() < 8));
            }
        }
    }
}

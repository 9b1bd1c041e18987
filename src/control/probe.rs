//! One link's probes: when to send one, what an answer says, when silence means trouble.
//!
//! ```text
//!             answer                    silence after a probe > RTO
//!   New ───────────────▶ Up ─────────────────────────────────▶ Suspect
//!                         ▲                                       │ 8 probes missed in a row,
//!                         └──────── answer, or any authentic ◀────┤ nothing authentic heard
//!                         ▲         packet                        ▼
//!                         └──────────────── answer ◀── Down, or Unknown where this node itself is unwell
//! ```
//!
//! Only the node with the lower id probes; the other one reflects, learns the figures from the next request's report, and
//! probes by itself when the requests stay out. The schedule is open-loop: an outstanding probe never delays the next one,
//! so that a slow link is not measured less often than a fast one.
//!
//! Each reply says which of the last 64 requests came, so that of a probe without an answer the prober knows on which way
//! it was lost, however many are lost together and in whatever order the others come.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::RngCore;

use super::Arrival;
use super::data_loss::DataLoss;
use super::measurement::{Direction, Measurement};
use super::series::{leg_of, sample_of};
use crate::time::Instant;
use crate::wire::probe::{Arrivals, Class, ProbeReply, ProbeReport, ProbeRequest};
use crate::wire::receipts::{Receipt, Receipts, Requests};

/// How a link is, as its probes see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkState {
    /// No answer yet since this node started or the peer was learned.
    New,
    /// Probes are answered.
    Up,
    /// The newest probes are not answered.
    Suspect,
    /// Eight probes in a row were missed and nothing else was heard.
    Down,
    /// As [`LinkState::Down`], but this node is unwell: it may be the one that does not hear.
    Unknown,
}

impl LinkState {
    /// Whether nothing is heard of the peer any more, whoever's fault it is.
    pub fn is_silent(self) -> bool {
        matches!(self, LinkState::Down | LinkState::Unknown)
    }
}

/// How closely a link is probed, and how well the one who probes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The class this node finds the link in.
    pub class: Class,
    /// Time between two probes of a link that is up.
    pub interval: Duration,
    /// How unwell this node is: 0 is well. Timeouts are that many times longer, and once.
    pub health: u8,
}

impl Pace {
    /// A well node's pace.
    pub fn new(class: Class, interval: Duration) -> Self {
        Pace { class, interval, health: 0 }
    }
}

/// A probe in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outstanding {
    pub(super) sequence: u32,
    pub(super) sent: Instant,
    missed: bool,
    /// On which way it was lost, once it was given as lost.
    pub(super) lost: Option<Direction>,
    /// Whether it reached the peer, where a later answer has told.
    pub(super) reached: Option<bool>,
}

impl Outstanding {
    /// Where it is lost if no answer comes any more.
    pub(super) fn direction(&self) -> Direction {
        match self.reached {
            Some(true) => Direction::Reverse,
            Some(false) => Direction::Forward,
            None => Direction::Unknown,
        }
    }
}

/// One link's probe state.
#[derive(Debug)]
pub struct Prober {
    initiator: bool,
    pace: Pace,
    state: LinkState,
    since: Instant,
    pub(super) outstanding: VecDeque<Outstanding>,
    /// Drawn with the first request; requests of two runs are counted apart.
    run: Option<u32>,
    next_sequence: u32,
    next_probe: Instant,
    smoothed: Option<(Duration, Duration)>,
    missed_in_row: u32,
    first_missed: Option<Instant>,
    /// When a probe or an answer of the peer's came last.
    heard: Option<Instant>,
    /// A probe is wanted, whoever's turn it is.
    demanded: bool,
    last_request: Instant,
    /// What the peer said of its schedule and of itself in its last request.
    announced: Option<Pace>,
    /// The sequence of the newest lost probe.
    last_lost: u32,
    pub(super) report: ProbeReport,
    pub(super) peer_report: Option<ProbeReport>,
    /// The peer's requests, and its answers to ours.
    requests: Requests,
    replies: Receipts,
    /// What the peer counted of our requests when it answered last.
    pub(super) peer_receipts: Option<Receipts>,
    peer_health: u8,
    /// What our tunnel saw of the peer's messages, and what the peer's saw of ours.
    pub(super) arrived: Arrivals,
    pub(super) data: [DataLoss; 2],
    measurements: VecDeque<Measurement>,
}

impl Prober {
    /// Probes missed in a row before a silent link is called down: at 250 ms apart some two seconds, which a burst of loss
    /// seldom lasts; at 1 % independent loss one false alarm in a million link-years.
    pub const MISSED_BEFORE_DOWN: u32 = 8;
    /// Time between probes of a link under suspicion.
    const SUSPECT_INTERVAL: Duration = Duration::from_millis(250);
    /// Time between probes of a link that went down less than a minute ago, so that its return is seen at once; an idle link's
    /// are those of one under suspicion, since half of a large mesh may go down together.
    const DOWN_INTERVAL: Duration = Duration::from_millis(100);
    /// Time between probes of a link that is down for longer.
    const LONG_DOWN_INTERVAL: Duration = Duration::from_secs(1);
    /// When a link counts as down for long.
    const LONG_DOWN_AFTER: Duration = Duration::from_secs(60);
    /// Shortest time an answer may take before the probe counts as missed: the delayed scheduling of a busy host is far
    /// below it.
    const MIN_RTO: Duration = Duration::from_millis(200);
    /// How much longer than usual an answer may take at least, however steady the path: a host's hiccup is no loss.
    const MIN_MARGIN: Duration = Duration::from_millis(100);
    /// Time an answer may take before the first one has shown what is normal.
    const FIRST_RTO: Duration = Duration::from_secs(1);
    /// An unanswered probe is lost after this time, or after four round trips where that is longer.
    const LOSS_AFTER: Duration = Duration::from_secs(2);
    /// An answer within this time takes the loss back.
    const LATE_WITHIN: Duration = Duration::from_secs(5);
    /// A request that had not come when one sent so much later came is taken for lost: packets overtake each other by less.
    pub(super) const SETTLED: Duration = Duration::from_millis(750);
    /// Sequences stay below the bits that mark challenges and pings.
    const SEQUENCES: u32 = 1 << 30;
    /// Probes in flight at once: five seconds of them at the fastest schedule, and a bound.
    pub(super) const MAX_OUTSTANDING: usize = 64;
    /// Measurements that wait to be taken; more than one call to the engine can make.
    const MAX_MEASUREMENTS: usize = 256;

    /// Makes the state of a link whose session just came up, or that was just learned.
    ///
    /// `initiator` is true on the node with the lower id.
    pub fn new(initiator: bool, pace: Pace, now: Instant) -> Self {
        Prober {
            initiator,
            pace,
            state: LinkState::New,
            since: now,
            outstanding: VecDeque::new(),
            run: None,
            next_sequence: 1,
            next_probe: now,
            smoothed: None,
            missed_in_row: 0,
            first_missed: None,
            heard: None,
            demanded: false,
            last_request: now,
            announced: None,
            last_lost: 0,
            report: ProbeReport::default(),
            peer_report: None,
            requests: Requests::default(),
            replies: Receipts::default(),
            peer_receipts: None,
            peer_health: 0,
            arrived: Arrivals::default(),
            data: [DataLoss::default(); 2],
            measurements: VecDeque::new(),
        }
    }

    /// The link's state.
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// When the link entered its state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The smoothed round trip, once known (RFC 6298 §2).
    pub fn smoothed_rtt(&self) -> Option<Duration> {
        self.smoothed.map(|(srtt, _)| srtt)
    }

    /// When anything authentic of the peer's was last heard of.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// When the first of the probes was sent that are missed in a row.
    pub fn lost_since(&self) -> Option<Instant> {
        self.first_missed
    }

    /// Wants a probe now, also of the end that only answers.
    pub fn demand(&mut self, now: Instant) {
        self.demanded = true;
        self.next_probe = now;
    }

    /// Takes the next measurement.
    pub fn poll_measurement(&mut self) -> Option<Measurement> {
        self.measurements.pop_front()
    }

    /// A session stands: probe at once, and judge from here on.
    pub fn on_session(&mut self, now: Instant) {
        self.next_probe = now;
        self.last_request = now;
        self.missed_in_row = 0;
        self.first_missed = None;
        for probe in &mut self.outstanding {
            probe.missed = true;
        }
    }

    /// The class and schedule that count for this link: the prober's.
    pub fn pace(&self) -> Pace {
        match self.announced {
            Some(announced) if !self.initiator => Pace { health: self.pace.health, ..announced },
            _ => self.pace,
        }
    }

    /// How unwell the peer says it is: 0 is well.
    pub fn peer_health(&self) -> u8 {
        self.peer_health
    }

    /// Changes the schedule. A probe that is due later than a faster one allows is brought forward.
    pub fn set_pace(&mut self, pace: Pace, now: Instant) {
        if pace.interval < self.pace.interval {
            self.next_probe = self.next_probe.min(now + pace.interval);
        }
        self.pace = pace;
    }

    /// Returns when [`Prober::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Instant {
        let rto = self.rto();
        let judged = self.outstanding.iter().filter(|probe| !probe.missed).map(|probe| probe.sent + rto).min();
        let lost = self
            .outstanding
            .iter()
            .filter(|probe| probe.lost.is_none())
            .map(|probe| probe.sent + self.loss_after())
            .min();
        let forgotten = self.outstanding.front().map(|probe| probe.sent + Self::LATE_WITHIN.max(self.loss_after()));
        let probe = if self.initiator || self.demanded {
            self.next_probe
        } else {
            self.next_probe.max(self.silence_deadline())
        };
        [judged, lost, forgotten].into_iter().flatten().fold(probe, Instant::min)
    }

    /// Makes the next probe due now, where the link is up and the probe is due within `window` anyway. Returns whether it
    /// did.
    pub fn bring_forward(&mut self, window: Duration, now: Instant) -> bool {
        let soon = now < self.next_probe && self.next_probe <= now + window;
        let brought = self.initiator && self.state == LinkState::Up && soon;
        if brought {
            self.next_probe = now;
        }
        brought
    }

    /// Moves the next probe to `next`, where the link is up: it goes out in company of others again.
    pub fn keep_company(&mut self, next: Instant) {
        if self.state == LinkState::Up {
            self.next_probe = next;
        }
    }

    /// Judges what is due and returns the request to send, if one is due.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut impl RngCore) -> Option<ProbeRequest> {
        self.judge(now);
        if now < self.next_probe || !self.is_active(now) {
            return None;
        }
        self.demanded = false;
        let sequence = self.next_sequence;
        self.next_sequence =
            (self.next_sequence + 1) % Self::SEQUENCES + u32::from(self.next_sequence + 1 == Self::SEQUENCES);
        if self.outstanding.len() >= Self::MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Outstanding { sequence, sent: now, missed: false, lost: None, reached: None });
        self.next_probe = now + jittered(self.current_interval(now), rng);
        Some(ProbeRequest {
            sequence,
            sent_nanos: now.as_nanos(),
            run: *self.run.get_or_insert_with(|| rng.next_u32()),
            health: self.pace.health,
            interval_millis: u16::try_from(self.pace.interval.as_millis()).unwrap_or(u16::MAX),
            class: self.pace.class,
            report: self.report,
            arrived: self.arrived,
        })
    }

    /// Takes over what a request reports. It was answered where it arrived.
    pub fn on_request(&mut self, request: &ProbeRequest, arrival: &Arrival, now: Instant) {
        self.last_request = now;
        self.on_heard(now);
        if request.run != self.requests.run() {
            // It began to count anew: nothing of what it counts can be compared with what it counted before.
            self.peer_report = None;
        }
        let receipt = self.requests.note(request.run, request.sequence);
        self.disorder(receipt, now);
        if receipt != Receipt::InOrder {
            // What it reports is older than what was reported before.
            return;
        }
        self.take_arrivals(request.arrived, arrival.arrived, now);
        self.peer_health = request.health;
        if !self.initiator {
            let interval = match request.interval_millis {
                0 => self.pace.interval,
                millis => Duration::from_millis(millis.into()),
            };
            self.announced = Some(Pace { class: request.class, interval, health: request.health });
            self.take_report(&request.report, now);
            if self.state != LinkState::Up && request.report.sequence != 0 {
                self.come_up(now);
            }
        }
    }

    /// Takes an answer. An answer to no probe of ours, or a second one, changes nothing and returns false.
    pub fn on_reply(&mut self, reply: &ProbeReply, arrival: &Arrival, now: Instant) -> bool {
        let Some(index) = self
            .outstanding
            .iter()
            .position(|probe| probe.sequence == reply.sequence && probe.sent.as_nanos() == reply.sent_nanos)
        else {
            if self.replies.tells(reply.sequence) == Some(true) {
                let receipt = self.replies.note(reply.sequence);
                self.disorder(receipt, now);
                self.report.duplicated = self.replies.duplicated;
            }
            return false;
        };
        let Some(probe) = self.outstanding.remove(index) else { return false };
        let receipt = self.replies.note(reply.sequence);
        self.disorder(receipt, now);
        self.report.reordered = self.replies.reordered;
        self.take_receipts(&reply.receipts, probe.sent, now);
        if receipt == Receipt::InOrder {
            self.take_arrivals(reply.arrived, arrival.arrived, now);
            self.peer_health = reply.health;
        }
        self.missed_in_row = 0;
        self.first_missed = None;
        self.on_heard(now);
        match probe.lost {
            Some(direction) => {
                let lost = self.report.lost_mut(leg_of(direction));
                *lost = lost.wrapping_sub(1);
            }
            None => self.report.decided = self.report.decided.wrapping_add(1),
        }
        match sample_of(&probe, reply, arrival) {
            Ok(sample) => {
                self.smooth(sample.path_rtt);
                self.report.sequence = probe.sequence;
                self.report.outward_nanos = sample.forward_transit;
                self.report.homeward_nanos = sample.reverse_transit;
                self.report.prober_held = sample.own_delay;
                self.report.reflector_held = sample.peer_delay;
                self.report.late = sample.late.map(leg_of);
                self.measure(Measurement::Sample(sample));
            }
            Err(reason) => {
                self.measure(Measurement::Discarded { sent: probe.sent, reason, late: probe.lost });
            }
        }
        if self.state != LinkState::Up {
            // At once: the next request tells the reflector that the link answers.
            self.next_probe = now;
            self.come_up(now);
        }
        true
    }

    /// Something authentic was received from the peer at `heard`: the link is not dead, whatever became of the probes.
    ///
    /// It is proof of life, not of an answer: the count of missed probes starts again, the state stays.
    pub fn on_heard(&mut self, heard: Instant) {
        self.heard = self.heard.max(Some(heard));
        if self.first_missed.is_some_and(|missed| heard > missed) {
            self.missed_in_row = 0;
            self.first_missed = None;
        }
    }

    /// The link answers. What went out into the silence before, and is still under way, says nothing of it as it is now.
    fn come_up(&mut self, now: Instant) {
        self.outstanding.iter_mut().for_each(|probe| probe.missed = true);
        self.enter(LinkState::Up, now);
    }

    fn judge(&mut self, now: Instant) {
        let rto = self.rto();
        let loss_after = self.loss_after();
        let mut newly_lost = Vec::new();
        let mut missed = 0;
        for probe in &mut self.outstanding {
            if !probe.missed && now >= probe.sent + rto {
                probe.missed = true;
                missed += 1;
                self.first_missed = self.first_missed.or(Some(probe.sent));
            }
            if probe.lost.is_none() && now >= probe.sent + loss_after {
                probe.lost = Some(probe.direction());
                newly_lost.push(*probe);
            }
        }
        if !self.initiator && self.state == LinkState::Up && now >= self.silence_deadline() {
            // The request that stays out is the first one missed.
            missed += 1;
            self.first_missed = self.first_missed.or(Some(self.last_request + self.pace().interval));
        }
        self.missed_in_row = self.missed_in_row.saturating_add(missed);
        for probe in newly_lost {
            let direction = probe.direction();
            self.report.decided = self.report.decided.wrapping_add(1);
            let lost = self.report.lost_mut(leg_of(direction));
            *lost = lost.wrapping_add(1);
            let in_row =
                if probe.sequence == self.last_lost + 1 { self.report.lost_in_row.saturating_add(1) } else { 1 };
            (self.last_lost, self.report.lost_in_row) = (probe.sequence, in_row);
            self.measure(Measurement::Lost { sent: probe.sent, direction, in_row });
        }
        let forget = Self::LATE_WITHIN.max(loss_after);
        while self.outstanding.front().is_some_and(|probe| now >= probe.sent + forget) {
            self.outstanding.pop_front();
        }
        if self.state == LinkState::Up && missed > 0 {
            self.next_probe = now;
            self.enter(LinkState::Suspect, now);
        }
        if self.missed_in_row >= Self::MISSED_BEFORE_DOWN {
            match (self.state, self.pace.health) {
                (LinkState::Down, _) | (LinkState::Unknown, 1..) => {}
                (_, 0) => self.enter(LinkState::Down, now),
                (_, 1..) => self.enter(LinkState::Unknown, now),
            }
        }
    }

    /// Whether this end sends probes now: always as initiator, as reflector only while requests stay out.
    fn is_active(&self, at: Instant) -> bool {
        self.initiator || self.demanded || at >= self.silence_deadline()
    }

    /// When a reflector begins to worry: one interval with its jitter, and the time a request may take.
    fn silence_deadline(&self) -> Instant {
        self.last_request + self.pace().interval.mul_f64(1.1) + self.rto()
    }

    fn current_interval(&self, now: Instant) -> Duration {
        match self.state {
            LinkState::New | LinkState::Up => self.pace.interval,
            LinkState::Suspect => Self::SUSPECT_INTERVAL.min(self.pace.interval),
            LinkState::Down | LinkState::Unknown if now.saturating_since(self.since) < Self::LONG_DOWN_AFTER => {
                let interval =
                    if self.pace.class == Class::Idle { Self::SUSPECT_INTERVAL } else { Self::DOWN_INTERVAL };
                interval.min(self.pace.interval)
            }
            LinkState::Down | LinkState::Unknown => Self::LONG_DOWN_INTERVAL.max(self.pace.interval),
        }
    }

    /// Retransmission time-out of RFC 6298 §2.3, with our floor; longer while this node is unwell.
    fn rto(&self) -> Duration {
        let patience = 1 + u32::from(self.pace.health);
        match self.smoothed {
            Some((srtt, variation)) => (srtt + (variation * 4).max(Self::MIN_MARGIN)).max(Self::MIN_RTO) * patience,
            None => Self::FIRST_RTO * patience,
        }
    }

    fn loss_after(&self) -> Duration {
        match self.smoothed {
            Some((srtt, _)) => (srtt * 4).max(Self::LOSS_AFTER),
            None => Self::LOSS_AFTER,
        }
    }

    pub(super) fn smooth(&mut self, rtt: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((srtt, variation)) => (srtt * 7 / 8 + rtt / 8, variation * 3 / 4 + srtt.abs_diff(rtt) / 4),
        });
    }

    pub(super) fn measure(&mut self, measurement: Measurement) {
        if self.measurements.len() < Self::MAX_MEASUREMENTS {
            self.measurements.push_back(measurement);
        }
    }

    fn enter(&mut self, state: LinkState, now: Instant) {
        self.state = state;
        self.since = now;
    }
}

/// The interval times a random factor between 0.9 and 1.1, so that the probes of different nodes do not fall into step.
pub(super) fn jittered(interval: Duration, rng: &mut impl RngCore) -> Duration {
    interval.mul_f64(0.9 + 0.2 * f64::from(rng.next_u32()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::measurement::{Discard, Sample};
    use crate::control::path::Path;
    use crate::identity::NodeId;
    use crate::wire::probe::Probe;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    fn pace() -> Pace {
        Pace::new(Class::Active, Duration::from_secs(1))
    }

    fn arrival(now: Instant) -> Arrival {
        Arrival::at(NodeId::from_bytes([9; 16]), Path::to(([192, 0, 2, 9], 7655).into()), now)
    }

    /// Two ends of one link in virtual time; `up` decides whether a packet sent at an instant arrives.
    struct Pair {
        now: Instant,
        ends: [Prober; 2],
        /// What the ends' data threads note of the other's requests.
        requests: [Requests; 2],
        rng: ChaCha12Rng,
        delay: Duration,
        wire: Vec<(Instant, usize, Probe)>,
        sent: usize,
    }

    impl Pair {
        fn new(delay: Duration) -> Self {
            let ends = [true, false].map(|initiator| Prober::new(initiator, pace(), Instant::ZERO));
            let (requests, rng) = ([Requests::default(); 2], ChaCha12Rng::seed_from_u64(1));
            Pair { now: Instant::ZERO, ends, requests, rng, delay, wire: vec![], sent: 0 }
        }

        fn run(&mut self, until: Instant, up: impl Fn(Instant) -> bool) {
            while self.now < until {
                let timer = self.ends.iter().map(Prober::poll_timeout).min().unwrap_or(until);
                let next = self.wire.iter().map(|(at, ..)| *at).min().unwrap_or(until);
                self.now = timer.min(next).min(until).max(self.now);
                let (due, rest): (Vec<_>, Vec<_>) = self.wire.drain(..).partition(|(at, ..)| *at <= self.now);
                self.wire = rest;
                for (_, to, probe) in due {
                    let now = self.now;
                    match probe {
                        Probe::Request(request) => {
                            self.requests[to].note(request.run, request.sequence);
                            let receipts = self.requests[to].receipts();
                            let reply = ProbeReply { receipts, ..ProbeReply::to(&request, now, now, now) };
                            self.ends[to].on_request(&request, &arrival(now), now);
                            self.send(1 - to, Probe::Reply(reply), &up);
                        }
                        Probe::Reply(reply) => {
                            self.ends[to].on_reply(&reply, &arrival(now), now);
                        }
                    }
                }
                for from in 0..2 {
                    if let Some(request) = self.ends[from].handle_timeout(self.now, &mut self.rng) {
                        self.send(1 - from, Probe::Request(request), &up);
                    }
                }
            }
        }

        fn send(&mut self, to: usize, probe: Probe, up: &impl Fn(Instant) -> bool) {
            self.sent += 1;
            if up(self.now) {
                self.wire.push((self.now + self.delay, to, probe));
            }
        }

        fn measurements(&mut self, end: usize) -> Vec<Measurement> {
            std::iter::from_fn(|| self.ends[end].poll_measurement()).collect()
        }
    }

    fn path_rtt(measurement: &Measurement) -> Option<Duration> {
        match measurement {
            Measurement::Sample(sample) => Some(sample.path_rtt),
            _ => None,
        }
    }

    fn is_lost(measurement: &Measurement) -> bool {
        matches!(measurement, Measurement::Lost { .. })
    }

    #[test]
    fn both_ends_hold_the_same_series_with_two_packets_per_interval() {
        let mut pair = Pair::new(Duration::from_millis(5));
        pair.run(Instant::from_millis(60_000), |_| true);
        let [first, second] = [0, 1].map(|end| pair.measurements(end));
        assert!((55..=67).contains(&first.len()), "{}", first.len());
        let rtts = |all: &[Measurement]| -> Vec<Duration> { all.iter().filter_map(path_rtt).collect() };
        assert_eq!(rtts(&second), rtts(&first)[..second.len()], "the reflector learns each one with the next request");
        assert!(first.len() - second.len() <= 1);
        assert!(pair.sent <= 2 * 67);
        assert!(first.iter().all(|m| path_rtt(m) == Some(Duration::from_millis(10))));
        assert_eq!(pair.ends.each_ref().map(Prober::state), [LinkState::Up; 2]);
    }

    #[test]
    fn a_cut_is_seen_by_both_ends_and_so_is_its_end() {
        let mut pair = Pair::new(Duration::from_millis(5));
        let cut = Instant::from_millis(30_300);
        let healed = Instant::from_millis(50_000);
        let up = |at: Instant| at < cut || at >= healed;
        pair.run(cut, up);
        pair.run(cut + Duration::from_millis(1_800), up);
        assert_eq!(pair.ends.each_ref().map(Prober::state), [LinkState::Suspect; 2]);
        pair.run(cut + Duration::from_millis(4_000), up);
        assert_eq!(pair.ends.each_ref().map(Prober::state), [LinkState::Down; 2]);
        pair.run(healed + Duration::from_millis(400), up);
        assert_eq!(pair.ends.each_ref().map(Prober::state), [LinkState::Up; 2]);
        let lost = [pair.measurements(0), pair.measurements(1)].map(|all| all.iter().filter(|m| is_lost(m)).count());
        assert!(lost[0] > 20 && lost[1] > 20, "{lost:?}");
    }

    #[test]
    fn other_traffic_keeps_a_link_from_being_called_down() {
        let mut pair = Pair::new(Duration::from_millis(5));
        let cut = Instant::from_millis(10_000);
        pair.run(cut, |at| at < cut);
        for step in 0..100 {
            let now = cut + Duration::from_millis(100 * step);
            pair.run(now, |at| at < cut);
            pair.ends[0].on_heard(now);
            assert_ne!(pair.ends[0].state(), LinkState::Down);
        }
        assert_eq!(pair.ends[0].state(), LinkState::Suspect);
    }

    #[test]
    fn a_late_answer_takes_its_loss_back() {
        let mut pair = Pair::new(Duration::from_millis(1_500));
        pair.run(Instant::from_millis(20_000), |_| true);
        let measured = pair.measurements(0);
        let lost = measured.iter().filter(|m| is_lost(m)).count();
        let late = measured.iter().filter(|m| matches!(m, Measurement::Sample(Sample { late: Some(_), .. }))).count();
        assert!(late > 0 && lost >= late, "lost {lost}, late {late}");
        assert!(late + 4 >= lost, "each answered loss was taken back: lost {lost}, late {late}");
    }

    #[test]
    fn forged_and_repeated_answers_change_nothing() {
        let mut prober = Prober::new(true, pace(), Instant::ZERO);
        let mut rng = ChaCha12Rng::seed_from_u64(2);
        let request = prober.handle_timeout(Instant::ZERO, &mut rng).expect("due at once");
        let now = Instant::from_millis(10);
        let reply = ProbeReply::to(&request, now, now, now);
        assert!(!prober.on_reply(&ProbeReply { sequence: 77, ..reply }, &arrival(now), now));
        assert!(!prober.on_reply(&ProbeReply { sent_nanos: 1, ..reply }, &arrival(now), now));
        assert!(prober.on_reply(&reply, &arrival(now), now));
        assert!(!prober.on_reply(&reply, &arrival(now), now), "the second copy");
        assert_eq!(prober.poll_measurement().into_iter().count(), 1);
    }

    #[test]
    fn a_probe_is_brought_forward_only_where_nothing_hangs_on_its_time() {
        let mut pair = Pair::new(Duration::from_millis(5));
        let window = Duration::from_millis(125);
        assert!(!pair.ends[0].bring_forward(window, Instant::ZERO), "not up yet");
        pair.run(Instant::from_millis(10_000), |_| true);
        let due = pair.ends[0].next_probe;
        let early = due - window;
        assert!(!pair.ends[0].bring_forward(window, early - Duration::from_nanos(1)), "too early");
        assert!(!pair.ends[1].bring_forward(Duration::from_secs(9), early), "the reflector sends none");
        assert!(pair.ends[0].bring_forward(window, early));
        assert!(!pair.ends[0].bring_forward(window, early), "once");
        assert!(pair.ends[0].handle_timeout(early, &mut pair.rng).is_some());
        assert!(pair.ends[0].next_probe >= early + Duration::from_millis(900));
        pair.ends[0].keep_company(due);
        assert_eq!(pair.ends[0].next_probe, due);
        pair.ends[0].enter(LinkState::Suspect, due);
        pair.ends[0].keep_company(due + window);
        assert_eq!(pair.ends[0].next_probe, due, "a suspect keeps its own pace");
    }

    #[test]
    fn a_reflector_cannot_make_a_round_trip_negative() {
        let mut prober = Prober::new(true, pace(), Instant::ZERO);
        let mut rng = ChaCha12Rng::seed_from_u64(3);
        let request = prober.handle_timeout(Instant::ZERO, &mut rng).expect("due at once");
        let now = Instant::from_millis(10);
        let reply = ProbeReply { held_since_kernel: Duration::MAX, ..ProbeReply::to(&request, now, now, now) };
        assert!(prober.on_reply(&reply, &arrival(now), now));
        let discarded = Measurement::Discarded { sent: Instant::ZERO, reason: Discard::Negative, late: None };
        assert_eq!(prober.poll_measurement(), Some(discarded), "dropped and counted, never clamped");
        assert_eq!((prober.poll_measurement(), prober.smoothed_rtt()), (None, None));
    }
}

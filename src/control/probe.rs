//! One link's probes: when to send one, what an answer says, when silence means trouble.
//!
//! ```text
//!             answer                    silence after a probe > RTO
//!   New ───────────────▶ Up ─────────────────────────────────▶ Suspect
//!                         ▲                                       │ 8 probes missed in a row,
//!                         └──────── answer, or any authentic ◀────┤ nothing authentic heard
//!                         ▲         packet                        ▼
//!                         └──────────────── answer ◀──────────── Down
//! ```
//!
//! Only the node with the lower id probes; the other one reflects, learns the figures from the next request's report, and
//! probes by itself when the requests stay out. The schedule is open-loop: an outstanding probe never delays the next one,
//! so that a slow link is not measured less often than a fast one.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::RngCore;

use crate::time::Instant;
use crate::wire::probe::{ProbeReply, ProbeReport, ProbeRequest};

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
}

/// What a probe gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurement {
    /// An answered probe.
    Sample {
        /// When it was sent.
        sent: Instant,
        /// Round trip on the network alone.
        path_rtt: Duration,
        /// Round trip with both daemons' queues.
        tunnel_rtt: Duration,
        /// Whether the answer came after the probe was reported as lost, and takes that loss back.
        late: bool,
    },
    /// A probe without an answer.
    Lost {
        /// When it was sent.
        sent: Instant,
    },
}

/// A probe in flight.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    sequence: u32,
    sent: Instant,
    missed: bool,
    lost: bool,
}

/// One link's probe state.
#[derive(Debug)]
pub struct Prober {
    initiator: bool,
    interval: Duration,
    state: LinkState,
    since: Instant,
    outstanding: VecDeque<Outstanding>,
    next_sequence: u32,
    next_probe: Instant,
    smoothed: Option<(Duration, Duration)>,
    missed_in_row: u32,
    first_missed: Option<Instant>,
    last_request: Instant,
    report: ProbeReport,
    peer_report: Option<ProbeReport>,
    measurements: VecDeque<Measurement>,
}

impl Prober {
    /// Probes missed in a row before a silent link is called down: at 250 ms apart some two seconds, which a burst of loss
    /// seldom lasts; at 1 % independent loss one false alarm in a million link-years.
    pub const MISSED_BEFORE_DOWN: u32 = 8;
    /// Time between probes of a link under suspicion.
    const SUSPECT_INTERVAL: Duration = Duration::from_millis(250);
    /// Time between probes of a link that went down less than a minute ago, so that its return is seen at once.
    const DOWN_INTERVAL: Duration = Duration::from_millis(250);
    /// Time between probes of a link that is down for longer.
    const LONG_DOWN_INTERVAL: Duration = Duration::from_secs(1);
    /// When a link counts as down for long.
    const LONG_DOWN_AFTER: Duration = Duration::from_secs(60);
    /// Shortest time an answer may take before the probe counts as missed: the delayed scheduling of a busy host is far
    /// below it.
    const MIN_RTO: Duration = Duration::from_millis(200);
    /// Time an answer may take before the first one has shown what is normal.
    const FIRST_RTO: Duration = Duration::from_secs(1);
    /// An unanswered probe is lost after this time, or after four round trips where that is longer.
    const LOSS_AFTER: Duration = Duration::from_secs(2);
    /// An answer within this time takes the loss back.
    const LATE_WITHIN: Duration = Duration::from_secs(5);
    /// Sequences stay below the bits that mark challenges and pings.
    const SEQUENCES: u32 = 1 << 30;
    /// Probes in flight at once: five seconds of them at the fastest schedule, and a bound.
    const MAX_OUTSTANDING: usize = 64;
    /// Measurements that wait to be taken; more than one call to the engine can make.
    const MAX_MEASUREMENTS: usize = 256;

    /// Makes the state of a link whose session just came up, or that was just learned.
    ///
    /// `initiator` is true on the node with the lower id.
    pub fn new(initiator: bool, interval: Duration, now: Instant) -> Self {
        Prober {
            initiator,
            interval,
            state: LinkState::New,
            since: now,
            outstanding: VecDeque::new(),
            next_sequence: 1,
            next_probe: now,
            smoothed: None,
            missed_in_row: 0,
            first_missed: None,
            last_request: now,
            report: ProbeReport::default(),
            peer_report: None,
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

    /// Changes the schedule.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Returns when [`Prober::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Instant {
        let rto = self.rto();
        let judged = self.outstanding.iter().filter(|probe| !probe.missed).map(|probe| probe.sent + rto).min();
        let lost =
            self.outstanding.iter().filter(|probe| !probe.lost).map(|probe| probe.sent + self.loss_after()).min();
        let forgotten = self.outstanding.front().map(|probe| probe.sent + Self::LATE_WITHIN.max(self.loss_after()));
        let probe = if self.initiator { self.next_probe } else { self.next_probe.max(self.silence_deadline()) };
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
        let sequence = self.next_sequence;
        self.next_sequence =
            (self.next_sequence + 1) % Self::SEQUENCES + u32::from(self.next_sequence + 1 == Self::SEQUENCES);
        if self.outstanding.len() >= Self::MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Outstanding { sequence, sent: now, missed: false, lost: false });
        self.next_probe = now + jittered(self.current_interval(now), rng);
        Some(ProbeRequest { sequence, sent_nanos: now.as_nanos(), report: self.report })
    }

    /// Answers a request and takes over what it reports. `stamped` is when the kernel received it, `read` when the daemon
    /// saw it first.
    pub fn on_request(&mut self, request: &ProbeRequest, stamped: Instant, read: Instant, now: Instant) -> ProbeReply {
        self.last_request = now;
        self.on_heard(now);
        if !self.initiator {
            self.take_report(&request.report, now);
            if self.state != LinkState::Up && request.report.sequence != 0 {
                self.enter(LinkState::Up, now);
            }
        }
        ProbeReply {
            sequence: request.sequence,
            sent_nanos: request.sent_nanos,
            held_since_kernel: now.saturating_since(stamped),
            held_since_read: now.saturating_since(read),
        }
    }

    /// Takes an answer. An answer to no probe of ours, or a second one, changes nothing and returns false.
    pub fn on_reply(&mut self, reply: &ProbeReply, stamped: Instant, read: Instant, now: Instant) -> bool {
        let Some(index) = self
            .outstanding
            .iter()
            .position(|probe| probe.sequence == reply.sequence && probe.sent.as_nanos() == reply.sent_nanos)
        else {
            return false;
        };
        let Some(probe) = self.outstanding.remove(index) else { return false };
        let on_path = stamped.saturating_since(probe.sent);
        let in_tunnel = read.saturating_since(probe.sent);
        // A peer that claims to have held a probe for longer than it was away would make the round trip negative.
        let (Some(path_rtt), Some(tunnel_rtt)) =
            (on_path.checked_sub(reply.held_since_kernel), in_tunnel.checked_sub(reply.held_since_read))
        else {
            return false;
        };
        self.smooth(path_rtt);
        self.missed_in_row = 0;
        self.first_missed = None;
        self.on_heard(now);
        if probe.lost {
            self.report.lost = self.report.lost.wrapping_sub(1);
        } else {
            self.report.sent = self.report.sent.wrapping_add(1);
        }
        self.measure(Measurement::Sample { sent: probe.sent, path_rtt, tunnel_rtt, late: probe.lost });
        self.report.sequence = probe.sequence;
        self.report.path_rtt = path_rtt;
        self.report.tunnel_rtt = tunnel_rtt;
        if self.state != LinkState::Up {
            // At once: the next request tells the reflector that the link answers.
            self.next_probe = now;
            self.enter(LinkState::Up, now);
        }
        true
    }

    /// Something authentic was received from the peer at `heard`: the link is not dead, whatever became of the probes.
    ///
    /// It is proof of life, not of an answer: the count of missed probes starts again, the state stays.
    pub fn on_heard(&mut self, heard: Instant) {
        if self.first_missed.is_some_and(|missed| heard > missed) {
            self.missed_in_row = 0;
            self.first_missed = None;
        }
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
            if !probe.lost && now >= probe.sent + loss_after {
                probe.lost = true;
                newly_lost.push(probe.sent);
            }
        }
        self.missed_in_row = self.missed_in_row.saturating_add(missed);
        for sent in newly_lost {
            self.report.sent = self.report.sent.wrapping_add(1);
            self.report.lost = self.report.lost.wrapping_add(1);
            self.measure(Measurement::Lost { sent });
        }
        let forget = Self::LATE_WITHIN.max(loss_after);
        while self.outstanding.front().is_some_and(|probe| now >= probe.sent + forget) {
            self.outstanding.pop_front();
        }
        if self.state == LinkState::Up && missed > 0 {
            self.next_probe = now;
            self.enter(LinkState::Suspect, now);
        }
        if self.missed_in_row >= Self::MISSED_BEFORE_DOWN && self.state != LinkState::Down {
            self.enter(LinkState::Down, now);
        }
    }

    /// Whether this end sends probes now: always as initiator, as reflector only while requests stay out.
    fn is_active(&self, at: Instant) -> bool {
        self.initiator || at >= self.silence_deadline()
    }

    /// When a reflector begins to worry: one interval with its jitter, and the time a request may take.
    fn silence_deadline(&self) -> Instant {
        self.last_request + self.interval.mul_f64(1.1) + self.rto()
    }

    fn current_interval(&self, now: Instant) -> Duration {
        match self.state {
            LinkState::New | LinkState::Up => self.interval,
            LinkState::Suspect => Self::SUSPECT_INTERVAL.min(self.interval),
            LinkState::Down if now.saturating_since(self.since) < Self::LONG_DOWN_AFTER => {
                Self::DOWN_INTERVAL.min(self.interval)
            }
            LinkState::Down => Self::LONG_DOWN_INTERVAL.max(self.interval),
        }
    }

    /// Retransmission time-out of RFC 6298 §2.3, with our floor.
    fn rto(&self) -> Duration {
        match self.smoothed {
            Some((srtt, variation)) => (srtt + variation * 4).max(Self::MIN_RTO),
            None => Self::FIRST_RTO,
        }
    }

    fn loss_after(&self) -> Duration {
        match self.smoothed {
            Some((srtt, _)) => (srtt * 4).max(Self::LOSS_AFTER),
            None => Self::LOSS_AFTER,
        }
    }

    fn smooth(&mut self, rtt: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((srtt, variation)) => (srtt * 7 / 8 + rtt / 8, variation * 3 / 4 + srtt.abs_diff(rtt) / 4),
        });
    }

    /// Turns the prober's report into measurements of this end. When each probe was sent is known to the prober alone; here
    /// they count as sent just before the report.
    fn take_report(&mut self, report: &ProbeReport, now: Instant) {
        let before = self.peer_report.replace(*report);
        // The first report, or a prober that started anew (its counters went back), is only a starting point.
        let old = before.filter(|old| report.sent.wrapping_sub(old.sent) < u32::MAX / 2).unwrap_or(*report);
        let lost = report.lost.wrapping_sub(old.lost);
        let known = before.map_or(0, |old| old.sequence);
        for _ in 0..lost.min(Self::MAX_OUTSTANDING as u32) * u32::from(lost < u32::MAX / 2) {
            self.measure(Measurement::Lost { sent: now });
        }
        if report.sequence != known && report.sequence != 0 {
            let (path_rtt, tunnel_rtt) = (report.path_rtt, report.tunnel_rtt);
            self.smooth(path_rtt);
            let late = lost > u32::MAX / 2;
            self.measure(Measurement::Sample { sent: now - tunnel_rtt, path_rtt, tunnel_rtt, late });
        }
    }

    fn measure(&mut self, measurement: Measurement) {
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
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    /// Two ends of one link in virtual time; `up` decides whether a packet sent at an instant arrives.
    struct Pair {
        now: Instant,
        ends: [Prober; 2],
        rng: ChaCha12Rng,
        delay: Duration,
        wire: Vec<(Instant, usize, crate::wire::probe::Probe)>,
        sent: usize,
    }

    impl Pair {
        fn new(delay: Duration) -> Self {
            let interval = Duration::from_secs(1);
            let ends = [Prober::new(true, interval, Instant::ZERO), Prober::new(false, interval, Instant::ZERO)];
            Pair { now: Instant::ZERO, ends, rng: ChaCha12Rng::seed_from_u64(1), delay, wire: vec![], sent: 0 }
        }

        fn run(&mut self, until: Instant, up: impl Fn(Instant) -> bool) {
            use crate::wire::probe::Probe;
            while self.now < until {
                let timer = self.ends.iter().map(Prober::poll_timeout).min().unwrap_or(until);
                let arrival = self.wire.iter().map(|(at, ..)| *at).min().unwrap_or(until);
                self.now = timer.min(arrival).min(until).max(self.now);
                let (due, rest): (Vec<_>, Vec<_>) = self.wire.drain(..).partition(|(at, ..)| *at <= self.now);
                self.wire = rest;
                for (_, to, probe) in due {
                    let now = self.now;
                    match probe {
                        Probe::Request(request) => {
                            let reply = self.ends[to].on_request(&request, now, now, now);
                            self.send(1 - to, Probe::Reply(reply), &up);
                        }
                        Probe::Reply(reply) => {
                            self.ends[to].on_reply(&reply, now, now, now);
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

        fn send(&mut self, to: usize, probe: crate::wire::probe::Probe, up: &impl Fn(Instant) -> bool) {
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
            Measurement::Sample { path_rtt, .. } => Some(*path_rtt),
            Measurement::Lost { .. } => None,
        }
    }

    fn is_lost(measurement: &Measurement) -> bool {
        matches!(measurement, Measurement::Lost { .. })
    }

    #[test]
    fn both_ends_hold_the_same_series_with_two_packets_per_interval() {
        let mut pair = Pair::new(Duration::from_millis(5));
        pair.run(Instant::from_millis(60_000), |_| true);
        let first = pair.measurements(0);
        let second = pair.measurements(1);
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
        let late = measured.iter().filter(|m| matches!(m, Measurement::Sample { late: true, .. })).count();
        assert!(late > 0 && lost >= late, "lost {lost}, late {late}");
        assert!(late + 4 >= lost, "each answered loss was taken back: lost {lost}, late {late}");
    }

    #[test]
    fn forged_and_repeated_answers_change_nothing() {
        let mut prober = Prober::new(true, Duration::from_secs(1), Instant::ZERO);
        let mut rng = ChaCha12Rng::seed_from_u64(2);
        let request = prober.handle_timeout(Instant::ZERO, &mut rng).expect("due at once");
        let now = Instant::from_millis(10);
        let reply = ProbeReply {
            sequence: request.sequence,
            sent_nanos: request.sent_nanos,
            held_since_kernel: Duration::ZERO,
            held_since_read: Duration::ZERO,
        };
        assert!(!prober.on_reply(&ProbeReply { sequence: 77, ..reply }, now, now, now));
        assert!(!prober.on_reply(&ProbeReply { sent_nanos: 1, ..reply }, now, now, now));
        assert!(prober.on_reply(&reply, now, now, now));
        assert!(!prober.on_reply(&reply, now, now, now), "the second copy");
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
        let mut prober = Prober::new(true, Duration::from_secs(1), Instant::ZERO);
        let mut rng = ChaCha12Rng::seed_from_u64(3);
        let request = prober.handle_timeout(Instant::ZERO, &mut rng).expect("due at once");
        let now = Instant::from_millis(10);
        let reply = ProbeReply {
            sequence: request.sequence,
            sent_nanos: request.sent_nanos,
            held_since_kernel: Duration::MAX,
            held_since_read: Duration::ZERO,
        };
        assert!(!prober.on_reply(&reply, now, now, now));
        assert_eq!(prober.poll_measurement(), None);
    }
}

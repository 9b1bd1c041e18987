//! The largest packet a path carries, found by probes of that size (RFC 8899). One direction: each end sizes its own way.
//!
//! ```text
//!   presumed ──┐                                                    no larger size passes
//!   (session)  ▼                     every 10 minutes        ┌──────────────────────────────┐
//!          ┌─ trial of the size ─ passes ─▶ settled ──────▶ search upwards ─ passes ─▶ a larger size
//!          │   in use      ▲                  │                ▲
//!          │               └─ every minute, ──┘                │
//!          │                  or suspicion                     │
//!          ├─ vanishes, FLOOR passes: a black hole ─▶ FLOOR ───┘
//!          └─ FLOOR vanishes, small ones pass: narrow ─▶ FLOOR in fragments, an hour
//! ```
//!
//! A size is presumed lost only where packets of it vanish while smaller ones that left beside them arrive: loss that
//! asks for no size changes nothing. What a router or this host's kernel says about sizes is not heard at all, so that
//! nobody outside the tunnel can shrink a link.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::RngCore;

use super::path::{MOST_PATHS, Path};
use super::probe::jittered;
use crate::time::Instant;
use crate::wire::size_probe::{FLOOR, LEAST, SizeProbe, SizeProbeKind};

/// What the path is like when its sizes are tried.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// The smoothed round trip, once known.
    pub rtt: Option<Duration>,
    /// Whether anything may be heard of the peer; a silent link is left alone.
    pub answers: bool,
    /// Time between two trials of the size in use where nothing asks for one earlier.
    pub validate_every: Duration,
}

/// The sizes of one direction of a link, in bytes of inner packets.
#[derive(Debug)]
pub struct PathMtu {
    /// The interface's MTU, and what of it the path may carry at most.
    interface: u16,
    ceiling: u16,
    size: u16,
    narrow: bool,
    suspended: bool,
    trial: Option<Trial>,
    search: Option<Search>,
    /// When the size in use is tried next, when a search begins or goes on.
    validate_at: Instant,
    search_at: Option<Instant>,
    /// When the last trial of the size in use began.
    tried: Option<Instant>,
    /// When a packet above [`FLOOR`] left last, and when the peer last told what arrived.
    large: Option<Instant>,
    reported: Option<Instant>,
    probes: VecDeque<SizeProbe>,
    /// The path that is sized.
    path: Option<Path>,
    /// What the paths carried that were left, the one left last at the end; at most [`MOST_PATHS`].
    left: VecDeque<Left>,
}

/// What a path carried when it was left.
#[derive(Clone, Copy, Debug)]
struct Left {
    path: Path,
    size: u16,
    narrow: bool,
}

/// A size that is being tried.
#[derive(Debug)]
struct Trial {
    size: u16,
    searching: bool,
    /// Rounds that went out.
    rounds: u8,
    /// When the next round goes, or the trial is judged.
    due: Instant,
    /// Probes without an answer yet.
    outstanding: Vec<SizeProbe>,
    /// Answers to probes that went out beside the tried size: of [`FLOOR`], and of [`LEAST`].
    floors: u8,
    leasts: u8,
}

/// A search for a larger size.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// The largest size known to pass.
    passes: u16,
    /// The smallest known to vanish; above the ceiling where none is.
    vanishes: u16,
    /// Whether the range between the two is halved. Otherwise one step up is tried first, and the search ends where that
    /// vanishes: most often nothing has changed.
    halves: bool,
}

impl PathMtu {
    /// Sizes are tried in these steps, in bytes: the tunnel pads packets to multiples of 16, so that none between would tell
    /// more.
    const STEP: u16 = 16;
    /// Times a size in use must vanish. At 5 % loss each way one probe in ten stays without an answer; with one trial a
    /// second, eight in a row are seen once in four years, and three would be every twenty minutes.
    const ROUNDS: u8 = 8;
    /// Times a larger size must vanish: a search that ends too low costs some throughput for ten minutes.
    const SEARCH_ROUNDS: u8 = 5;
    /// Smaller probes that must pass beside a size that vanishes.
    const EVIDENCE: u8 = 2;
    /// Time between two rounds, the first one apart.
    const ROUND: Duration = Duration::from_millis(50);
    /// Bounds of the time an answer may take, which is else two round trips: the trial of a black hole takes 0.7 s, and
    /// 1.9 s where the round trip is 400 ms.
    const PATIENCE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(800));
    /// Shortest time between two trials of the size in use, and before what told nothing is tried again.
    const PAUSE: Duration = Duration::from_secs(1);
    /// How long a large packet makes losses suspicious: losses are told within a second or two.
    const SUSPICIOUS: Duration = Duration::from_secs(3);
    /// Where the peer has told nothing for so long, large packets alone are suspicious: it reports once a second on a link
    /// that is closely watched, and less often on others.
    const UNTOLD: Duration = Duration::from_millis(1_500);
    /// Time between two searches for a larger size (RFC 8899 §5.1.1).
    const RAISE: Duration = Duration::from_secs(600);
    /// How long a narrow path stays so: each look costs a second of its large packets.
    const NARROW: Duration = Duration::from_secs(3_600);

    /// Makes the state of a link without a session. `ceiling` is the interface's MTU; it is presumed to pass, since that is
    /// what the operator set it for.
    pub fn new(ceiling: u16, now: Instant) -> Self {
        let ceiling = ceiling.max(FLOOR);
        PathMtu {
            interface: ceiling,
            ceiling,
            size: ceiling,
            narrow: false,
            suspended: true,
            trial: None,
            search: None,
            validate_at: now,
            search_at: None,
            tried: None,
            large: None,
            reported: None,
            probes: VecDeque::new(),
            path: None,
            left: VecDeque::new(),
        }
    }

    /// The path that is sized; `None` before there was one.
    pub fn path(&self) -> Option<Path> {
        self.path
    }

    /// The largest packet that may be sent.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the path carries less than [`FLOOR`], so that datagrams must be allowed to be fragmented.
    pub fn is_narrow(&self) -> bool {
        self.narrow
    }

    /// Takes the next probe to send.
    pub fn poll_probe(&mut self) -> Option<SizeProbe> {
        self.probes.pop_front()
    }

    /// Returns when [`PathMtu::handle_timeout`] wants to be called; `None` while the link is silent.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.suspended {
            return None;
        }
        Some(match &self.trial {
            Some(trial) => trial.due,
            None => self.search_at.map_or(self.validate_at, |at| at.min(self.validate_at)),
        })
    }

    /// The link answers again: where it was left alone meanwhile, the size in use is tried at once.
    pub fn on_answers(&mut self, has_session: bool, now: Instant) {
        if self.suspended && has_session {
            self.resume(now);
        }
    }

    /// The link has a session: the size in use is tried at once.
    pub fn resume(&mut self, now: Instant) {
        self.suspended = false;
        self.trial = None;
        self.validate_at = now;
    }

    /// Packets take another path, which carries no more than `most`, or [`FLOOR`]. One that was in use before carries what it
    /// did then, any other is presumed to carry what the last one did; that is tried at once, and then more.
    pub fn on_path(&mut self, path: Path, most: u16, now: Instant) {
        if let Some(before) = self.path.replace(path).filter(|before| *before != path) {
            self.left.push_back(Left { path: before, size: self.size, narrow: self.narrow });
        }
        let known = self.left.iter().position(|left| left.path == path).and_then(|at| self.left.remove(at));
        if self.left.len() > MOST_PATHS {
            self.left.pop_front();
        }
        self.ceiling = self.interface.min(most).max(FLOOR);
        self.size = known.map_or(self.size, |known| known.size).min(self.ceiling);
        self.narrow = known.is_some_and(|known| known.narrow);
        self.search = None;
        self.search_at = (self.size < self.ceiling && !self.narrow).then_some(now);
        self.resume(now);
        if self.narrow {
            self.validate_at = now + Self::NARROW;
        }
    }

    /// The link has no session: nothing is tried until [`PathMtu::resume`].
    pub fn suspend(&mut self) {
        self.suspended = true;
        self.trial = None;
        self.probes.clear();
    }

    /// A packet above [`FLOOR`] was sent.
    pub fn on_large(&mut self, now: Instant) {
        self.large = Some(now);
        if self.reported.is_none_or(|reported| now.saturating_since(reported) >= Self::UNTOLD) {
            self.suspect(now);
        }
    }

    /// The peer told how many of our packets arrived: all that were sent, or not.
    pub fn on_report(&mut self, lost: bool, now: Instant) {
        self.reported = Some(now);
        // While larger sizes are tried, the losses are ours.
        let searching = self.trial.as_ref().is_some_and(|trial| trial.searching);
        if lost && !searching && self.large.is_some_and(|large| now.saturating_since(large) < Self::SUSPICIOUS) {
            self.suspect(now);
        }
    }

    /// Tries the size in use now, unless that was done lately.
    fn suspect(&mut self, now: Instant) {
        let trying = self.trial.as_ref().is_some_and(|trial| !trial.searching);
        let lately = self.tried.is_some_and(|tried| now.saturating_since(tried) < Self::PAUSE);
        if !trying && !lately && !self.narrow && !self.suspended {
            // A search goes on afterwards.
            self.trial = None;
            self.validate_at = now;
        }
    }

    /// Takes a reply. One to no probe of ours changes nothing.
    pub fn on_reply(&mut self, reply: &SizeProbe, now: Instant) {
        let Some(trial) = &mut self.trial else { return };
        let asked = trial.outstanding.iter().position(|probe| (probe.nonce, probe.size) == (reply.nonce, reply.size));
        let Some(asked) = asked else { return };
        trial.outstanding.swap_remove(asked);
        match reply.size {
            size if size == trial.size => {
                let searching = trial.searching;
                self.trial = None;
                self.passed(size, searching, now);
            }
            FLOOR => trial.floors += 1,
            _ => trial.leasts += 1,
        }
    }

    /// Sends what is due and judges what has had its time.
    pub fn handle_timeout(&mut self, conditions: &Conditions, now: Instant, rng: &mut impl RngCore) {
        if self.suspended {
            return;
        }
        if let Some(trial) = &mut self.trial {
            if now < trial.due {
                return;
            }
            if trial.rounds < trial.most() {
                return self.send_round(conditions, now, rng);
            }
            self.judge(now);
        }
        if !conditions.answers {
            return self.suspend();
        }
        if now >= self.validate_at {
            self.narrow = false;
            self.validate_at = now + jittered(conditions.validate_every, rng);
            self.tried = Some(now);
            self.begin(self.size, false, conditions, now, rng);
        } else if self.search_at.is_some_and(|at| now >= at) {
            let raise = Search { passes: self.size, vanishes: self.above(), halves: false };
            let search = *self.search.get_or_insert(raise);
            match search.next(self.ceiling) {
                Some(size) => {
                    self.search_at = Some(now);
                    self.begin(size, true, conditions, now, rng);
                }
                None => self.settle(search.passes, now),
            }
        }
    }

    fn begin(&mut self, size: u16, searching: bool, conditions: &Conditions, now: Instant, rng: &mut impl RngCore) {
        let outstanding = Vec::with_capacity(usize::from(2 * Self::ROUNDS));
        self.trial = Some(Trial { size, searching, rounds: 0, due: now, outstanding, floors: 0, leasts: 0 });
        self.send_round(conditions, now, rng);
    }

    /// One probe of the size, and from the second round on a smaller one beside it.
    fn send_round(&mut self, conditions: &Conditions, now: Instant, rng: &mut impl RngCore) {
        let Some(trial) = &mut self.trial else { return };
        let beside = match trial.rounds {
            0 => None,
            round if round % 2 == 1 && !trial.searching && trial.size > FLOOR => Some(FLOOR),
            _ => Some(LEAST),
        };
        for size in [Some(trial.size), beside].into_iter().flatten() {
            let probe = SizeProbe { kind: SizeProbeKind::Request, size, nonce: rng.next_u64() };
            trial.outstanding.push(probe);
            self.probes.push_back(probe);
        }
        trial.rounds += 1;
        let patience = conditions.rtt.unwrap_or_default().saturating_mul(2).clamp(Self::PATIENCE.0, Self::PATIENCE.1);
        trial.due = now + if trial.rounds == 1 || trial.rounds == trial.most() { patience } else { Self::ROUND };
    }

    /// A size passed.
    fn passed(&mut self, size: u16, searching: bool, now: Instant) {
        match &mut self.search {
            Some(search) if searching => {
                search.halves |= size != self.ceiling;
                search.passes = size;
            }
            _ if self.size < self.ceiling && self.search_at.is_none() => self.search_at = Some(now + Self::RAISE),
            _ => {}
        }
    }

    /// All rounds went out and the size has no answer.
    fn judge(&mut self, now: Instant) {
        let Some(trial) = self.trial.take() else { return };
        let least_passes = trial.leasts >= Self::EVIDENCE;
        match (&mut self.search, trial.searching) {
            (Some(search), true) if least_passes => search.vanishes = trial.size,
            (_, true) => self.search_at = Some(now + Self::PAUSE),
            (_, false) if trial.floors >= Self::EVIDENCE => {
                self.size = FLOOR;
                self.search = Some(Search { passes: FLOOR, vanishes: self.above(), halves: true });
                self.search_at = Some(now);
            }
            (_, false) if trial.floors == 0 && least_passes => {
                self.size = FLOOR;
                self.narrow = true;
                self.search = None;
                self.search_at = None;
                self.validate_at = now + Self::NARROW;
            }
            (_, false) => self.validate_at = now + Self::PAUSE,
        }
    }

    /// The search is over.
    fn settle(&mut self, size: u16, now: Instant) {
        self.size = size;
        self.search = None;
        self.search_at = (size < self.ceiling).then_some(now + Self::RAISE);
    }

    /// A size that is known to vanish before any was tried.
    fn above(&self) -> u16 {
        self.ceiling.saturating_add(Self::STEP)
    }
}

impl Trial {
    fn most(&self) -> u8 {
        if self.searching { PathMtu::SEARCH_ROUNDS } else { PathMtu::ROUNDS }
    }
}

impl Search {
    /// The size to try next; `None` where there is none between what passes and what vanishes.
    fn next(&self, ceiling: u16) -> Option<u16> {
        if self.passes >= ceiling {
            return None;
        }
        if self.vanishes > ceiling {
            return Some(ceiling);
        }
        let between = self.vanishes - self.passes;
        if between <= PathMtu::STEP {
            return None;
        }
        let up = if self.halves { between / 2 / PathMtu::STEP * PathMtu::STEP } else { 0 };
        Some(self.passes + up.max(PathMtu::STEP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::{RngCore, SeedableRng};
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    const MINUTE: Duration = Duration::from_secs(60);

    fn numbered(number: u8) -> Path {
        Path::to(([198, 18, 0, number], 7655).into())
    }

    /// A link in virtual time: the sizes of one direction, and a path that loses what is too large, and some of all else.
    struct Link {
        now: Instant,
        mtu: PathMtu,
        rng: ChaCha12Rng,
        /// The largest packet that passes.
        limit: u16,
        /// Probability that a packet is lost, each way.
        loss: f64,
        rtt: Duration,
        silent: bool,
        replies: BinaryHeap<Reverse<(Instant, u64, u16)>>,
        /// When the next data packet of full size leaves, and how far apart they are.
        traffic: Option<(Instant, Duration)>,
        /// When the peer reports next, and how many data packets were lost since it did.
        report_at: Instant,
        missing: u32,
        /// Probes and their bytes on the wire, replies included: IPv4, UDP and WireGuard take 60.
        probes: u64,
        bytes: u64,
        /// Each size in use, since when.
        sizes: Vec<(Instant, u16)>,
    }

    impl Link {
        fn new(ceiling: u16, limit: u16, seed: u64) -> Self {
            let now = Instant::from_millis(1_000);
            let mut mtu = PathMtu::new(ceiling, now);
            mtu.on_path(numbered(0), u16::MAX, now);
            Link {
                now,
                mtu,
                rng: ChaCha12Rng::seed_from_u64(seed),
                limit,
                loss: 0.0,
                rtt: Duration::from_millis(20),
                silent: false,
                replies: BinaryHeap::new(),
                traffic: None,
                report_at: now,
                missing: 0,
                probes: 0,
                bytes: 0,
                sizes: vec![(now, ceiling)],
            }
        }

        fn lost(&mut self) -> bool {
            f64::from(self.rng.next_u32()) / f64::from(u32::MAX) < self.loss
        }

        fn send_traffic(&mut self, every: Duration) {
            self.traffic = Some((self.now, every));
        }

        /// Runs for a while, or until `done`; returns whether it was done.
        fn run(&mut self, time: Duration, mut done: impl FnMut(&Link) -> bool) -> bool {
            let end = self.now + time;
            while self.now < end && !done(self) {
                let reply = self.replies.peek().map(|Reverse((at, ..))| *at);
                let traffic = self.traffic.map(|(at, _)| at);
                let report = (!self.silent).then_some(self.report_at);
                let next = [self.mtu.poll_timeout(), reply, traffic, report].into_iter().flatten().min();
                self.now = self.now.max(next.unwrap_or(end).min(end));
                self.step();
            }
            done(self)
        }

        fn step(&mut self) {
            let now = self.now;
            if let Some((at, every)) = self.traffic.filter(|(at, _)| *at <= now) {
                self.traffic = Some((at + every, every));
                self.mtu.on_large(now);
                self.missing += u32::from(self.mtu.size() > self.limit || self.silent || self.lost());
            }
            if self.report_at <= now && !self.silent {
                self.report_at = now + jittered(Duration::from_secs(1), &mut self.rng);
                if !self.lost() && !self.lost() {
                    self.mtu.on_report(std::mem::take(&mut self.missing) > 0, now);
                }
            }
            while let Some(Reverse((_, nonce, size))) = self.replies.pop_if_due(now) {
                self.mtu.on_reply(&SizeProbe { kind: SizeProbeKind::Reply, size, nonce }, now);
            }
            let conditions = Conditions { rtt: Some(self.rtt), answers: !self.silent, validate_every: MINUTE };
            if self.mtu.poll_timeout().is_some_and(|at| at <= now) {
                self.mtu.handle_timeout(&conditions, now, &mut self.rng);
            }
            while let Some(probe) = self.mtu.poll_probe() {
                self.probes += 1;
                self.bytes += u64::from(probe.size) + 60;
                if probe.size <= self.limit && !self.silent && !self.lost() {
                    self.bytes += u64::from(LEAST) + 60;
                    if !self.lost() {
                        self.replies.push(Reverse((now + self.rtt, probe.nonce, probe.size)));
                    }
                } else {
                    self.missing += 1;
                }
            }
            if self.sizes.last().is_some_and(|(_, size)| *size != self.mtu.size()) {
                self.sizes.push((now, self.mtu.size()));
            }
        }

        /// Runs until the size stays for a minute, and returns it.
        fn settled(&mut self) -> u16 {
            self.run(MINUTE, |_| false);
            self.mtu.size()
        }

        fn changes(&self) -> Vec<u16> {
            self.sizes.iter().map(|(_, size)| *size).collect()
        }
    }

    trait PopIfDue {
        fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<(Instant, u64, u16)>>;
    }

    impl PopIfDue for BinaryHeap<Reverse<(Instant, u64, u16)>> {
        fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<(Instant, u64, u16)>> {
            if self.peek().is_some_and(|Reverse((at, ..))| *at <= now) { self.pop() } else { None }
        }
    }

    /// The largest size that is tried and passes.
    fn best(ceiling: u16, limit: u16) -> u16 {
        if limit >= ceiling { ceiling } else { FLOOR + (limit - FLOOR) / PathMtu::STEP * PathMtu::STEP }
    }

    #[test]
    fn what_the_operator_set_is_presumed_and_confirmed_by_one_probe() {
        let mut link = Link::new(1_420, 1_440, 1);
        link.run(Duration::from_secs(50), |_| false);
        assert_eq!((link.changes(), link.probes), (vec![1_420], 1));
    }

    #[test]
    fn a_path_that_carries_less_from_the_start_is_found_by_halves() {
        for (ceiling, limit) in [(1_420, 1_340), (1_420, 1_412), (1_420, 1_280), (9_000, 1_440), (9_000, 8_500)] {
            let mut link = Link::new(ceiling, limit, 2);
            assert_eq!(link.settled(), best(ceiling, limit), "{ceiling} over {limit}");
            assert_eq!(link.changes()[..2], [ceiling, FLOOR], "at once to what every path carries");
            assert!(link.probes < 140, "{} probes", link.probes);
        }
    }

    #[test]
    fn a_black_hole_under_traffic_is_found_within_three_seconds() {
        let mut worst = Duration::ZERO;
        for (number, rtt) in (0..400).map(|number| (number, [1, 20, 100, 300][number as usize % 4])) {
            let mut link = Link::new(1_420, 1_440, number);
            link.rtt = Duration::from_millis(rtt);
            link.send_traffic(Duration::from_millis(7));
            link.run(Duration::from_secs(20) + Duration::from_millis(37 * number), |_| false);
            link.limit = 1_340;
            let began = link.now;
            assert!(link.run(MINUTE, |link| link.mtu.size() <= link.limit));
            worst = worst.max(link.now.saturating_since(began));
            assert_eq!(link.settled(), 1_328);
        }
        println!("black hole under traffic, 400 links with round trips of 1 to 300 ms: found within {worst:?}");
        assert!(worst <= Duration::from_secs(3), "{worst:?}");
    }

    #[test]
    fn a_black_hole_is_found_without_reports_and_under_loss() {
        let mut link = Link::new(1_420, 1_440, 3);
        link.send_traffic(Duration::from_millis(50));
        link.report_at = Instant::from_millis(u64::from(u32::MAX));
        link.run(Duration::from_secs(10), |_| false);
        link.limit = 1_340;
        let began = link.now;
        assert!(
            link.run(Duration::from_secs(3), |link| link.mtu.size() == FLOOR),
            "large packets alone are suspicious"
        );
        println!("black hole under traffic, no reports: found after {:?}", link.now.saturating_since(began));
        for seed in 0..50 {
            let mut link = Link::new(1_420, 1_440, seed);
            link.loss = 0.05;
            link.send_traffic(Duration::from_millis(50));
            link.run(Duration::from_secs(10), |_| false);
            link.limit = 1_340;
            assert!(link.run(Duration::from_secs(6), |link| link.mtu.size() == FLOOR), "seed {seed}");
            assert_eq!(link.settled(), 1_328, "seed {seed}");
        }
    }

    #[test]
    fn a_black_hole_without_traffic_is_found_within_a_minute_and_it_grows_back_in_ten() {
        let mut link = Link::new(1_420, 1_440, 4);
        link.run(MINUTE * 3, |_| false);
        link.limit = 1_360;
        let began = link.now;
        assert!(link.run(MINUTE * 2, |link| link.mtu.size() == 1_360));
        println!("black hole without traffic: found and sized after {:?}", link.now.saturating_since(began));
        link.run(MINUTE * 60, |_| false);
        assert_eq!(link.changes(), [1_420, FLOOR, 1_360], "nothing changes while nothing changed");
        link.limit = 1_440;
        let began = link.now;
        assert!(link.run(MINUTE * 10 + Duration::from_secs(1), |link| link.mtu.size() == 1_420));
        println!("grew back after {:?}", link.now.saturating_since(began));
        link.limit = 1_300;
        link.run(MINUTE * 3, |_| false);
        link.limit = 1_345;
        link.run(MINUTE * 11, |_| false);
        assert_eq!(link.mtu.size(), 1_344, "it grows to something in between as well");
    }

    #[test]
    fn loss_alone_changes_nothing_in_a_day() {
        for (loss, traffic) in [(0.05, true), (0.05, false), (0.01, true)] {
            let mut link = Link::new(1_420, 1_440, 5);
            link.loss = loss;
            if traffic {
                link.send_traffic(Duration::from_millis(250));
            }
            link.run(MINUTE * 60 * 24, |_| false);
            assert_eq!(link.changes(), [1_420], "{loss} with traffic: {traffic}");
            println!("{loss} loss each way, traffic {traffic}: {} bytes of size probes an hour", link.bytes / 24);
        }
    }

    #[test]
    fn the_cost_is_small() {
        for (what, limit, traffic) in
            [("idle, full size", 1_440, false), ("idle, 1,340", 1_340, false), ("busy, full size", 1_440, true)]
        {
            let mut link = Link::new(1_420, limit, 6);
            if traffic {
                link.send_traffic(Duration::from_millis(5));
            }
            link.run(MINUTE * 10, |_| false);
            let (probes, bytes) = (link.probes, link.bytes);
            link.run(MINUTE * 60 * 10, |_| false);
            let bytes = (link.bytes - bytes) / 10;
            println!(
                "{what}: {} size probes and {bytes} bytes an hour, both ways together",
                (link.probes - probes) / 10
            );
            assert!(bytes < 250_000, "{what}: {bytes}");
        }
    }

    #[test]
    fn an_outage_says_nothing_of_sizes() {
        let mut link = Link::new(1_420, 1_440, 7);
        link.send_traffic(Duration::from_millis(20));
        for length in [300, 700, 1_500, 4_000] {
            link.run(Duration::from_secs(30), |_| false);
            link.loss = 1.0;
            link.run(Duration::from_millis(length), |_| false);
            link.loss = 0.0;
        }
        link.silent = true;
        link.run(MINUTE * 60, |_| false);
        let probes = link.probes;
        link.run(MINUTE * 60, |_| false);
        assert_eq!(link.probes, probes, "a silent link is left alone");
        link.silent = false;
        link.mtu.on_answers(true, link.now);
        link.run(MINUTE, |_| false);
        assert_eq!(link.changes(), [1_420]);
    }

    #[test]
    fn a_path_below_the_floor_is_narrow_until_it_is_another() {
        let mut link = Link::new(1_420, 1_200, 8);
        assert!(link.run(Duration::from_secs(10), |link| link.mtu.is_narrow()));
        println!("narrow after {:?}", link.now.saturating_since(Instant::from_millis(1_000)));
        let probes = link.probes;
        link.run(MINUTE * 50, |_| false);
        assert_eq!((link.mtu.size(), link.probes), (FLOOR, probes), "it is left alone");
        link.limit = 1_440;
        link.mtu.on_path(numbered(1), u16::MAX, link.now);
        assert_eq!(link.settled(), 1_420);
        assert!(!link.mtu.is_narrow());
        link.limit = 1_200;
        link.mtu.on_path(numbered(0), u16::MAX, link.now);
        assert!(link.mtu.is_narrow(), "nothing is lost for finding out again");
        let probes = link.probes;
        link.run(MINUTE * 50, |_| false);
        assert_eq!((link.mtu.size(), link.probes), (FLOOR, probes));
    }

    #[test]
    fn a_path_that_is_taken_again_carries_at_once_what_it_did() {
        let mut link = Link::new(1_420, 1_340, 10);
        assert_eq!(link.settled(), 1_328);
        for _ in 0..3 {
            link.limit = 1_440;
            link.mtu.on_path(numbered(1), u16::MAX, link.now);
            assert_eq!(link.settled(), 1_420);
            link.limit = 1_340;
            link.mtu.on_path(numbered(0), u16::MAX, link.now);
            assert_eq!(link.mtu.size(), 1_328, "before any probe");
            assert_eq!(link.settled(), 1_328);
        }
        // What it did is no promise: it is tried like any size.
        link.mtu.on_path(numbered(1), u16::MAX, link.now);
        assert_eq!((link.mtu.size(), link.settled()), (1_420, 1_328));
        link.limit = 1_440;
        link.mtu.on_path(numbered(0), u16::MAX, link.now);
        assert_eq!((link.mtu.size(), link.settled()), (1_328, 1_420));
        for number in 0..=255 {
            link.mtu.on_path(numbered(number), u16::MAX, link.now);
            assert!(link.mtu.left.len() <= MOST_PATHS);
        }
    }

    #[test]
    fn replies_to_nothing_are_nothing() {
        let mut link = Link::new(1_420, 1_340, 9);
        link.step();
        let forged = SizeProbe { kind: SizeProbeKind::Reply, size: 1_420, nonce: 77 };
        link.mtu.on_reply(&forged, link.now);
        assert_eq!(link.settled(), 1_328);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the path does, the size stays between floor and ceiling, what is kept is bounded, and in the end it is
        /// the best that passes.
        #[test]
        fn it_always_ends_at_what_passes(
            seed in any::<u64>(),
            ceiling in 1_280u16..9_001,
            path in proptest::collection::vec((1_100u16..9_100, 0u64..200_000, 0.0f64..0.3), 1..8),
        ) {
            let mut link = Link::new(ceiling, 9_100, seed);
            link.send_traffic(Duration::from_millis(200));
            for (limit, millis, loss) in path {
                (link.limit, link.loss) = (limit, loss);
                link.run(Duration::from_millis(millis), |link| {
                    assert!((FLOOR..=ceiling.max(FLOOR)).contains(&link.mtu.size()));
                    assert!(link.mtu.trial.as_ref().is_none_or(|trial| trial.outstanding.len() <= 16));
                    false
                });
            }
            (link.limit, link.loss) = (1_340, 0.0);
            link.run(MINUTE * 73, |_| false);
            prop_assert_eq!(link.mtu.size(), best(ceiling.max(FLOOR), 1_340));
        }
    }
}

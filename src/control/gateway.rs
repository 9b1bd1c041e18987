//! Which of the nodes that hold a shared prefix carries it. Each node chooses for itself, by what its own links and the
//! gateways' own words tell.
//!
//! A gateway that serves outdoes one that does not: fit before drained before one whose check behind it fails before a silent
//! one. Among equals priority decides, and then whoever carries it already, for a change gains nothing. What has failed and came
//! back is preferred again only after it has been fit for [`RETURN_AFTER`]: a gateway that flaps would take its flows with it
//! each time.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::identity::{NodeId, Priority};
use crate::time::Instant;

/// How long a gateway must have been fit again before its priority counts. A host that starts, its checks and what lies behind
/// it settle within a minute or two, and one that fails again does it mostly then; five minutes with the lesser gateway cost
/// nothing, since it serves.
pub const RETURN_AFTER: Duration = Duration::from_secs(300);

/// How much longer a silent gateway is waited for where another one that was silent meanwhile answers again: it was this node's
/// own way out that was cut, and of the two one answers first. A link that was down for long is probed every second.
const TOGETHER: Duration = Duration::from_millis(1_500);

/// A node that holds a shared prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// How much it is preferred.
    pub priority: Priority,
}

/// Whether packets reach a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Its link has not answered since it is known.
    Never,
    /// Its link answers.
    Answers {
        /// When anything of it was heard last; `None` for never.
        heard: Option<Instant>,
        /// Since when it has answered without a break.
        since: Instant,
    },
    /// Its link does not answer since then, and counts as silent from the second time on.
    Suspect {
        /// Since when.
        since: Instant,
        /// From when on it is no chance any more.
        silent_at: Instant,
    },
    /// Its link does not answer since then.
    Silent {
        /// Since when.
        since: Instant,
    },
}

/// What is known of a gateway at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who it is.
    pub holder: Holder,
    /// Whether packets reach it.
    pub reach: Reach,
    /// Whether what lies behind it answers its check; also where it checks nothing.
    pub healthy: bool,
    /// Whether its operator has told flows to go elsewhere.
    pub drained: bool,
}

/// How fit a gateway is, the fittest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// It serves.
    Fit,
    /// It serves, and its operator would rather it did not.
    Drained,
    /// It is reached, and what lies behind it does not answer: a check can be wrong where silence is not.
    Failing,
    /// It is not reached.
    Silent,
}

impl Standing {
    /// How fit it is.
    pub fn fitness(&self, now: Instant) -> Fitness {
        match self.reach {
            Reach::Never | Reach::Silent { .. } => Fitness::Silent,
            Reach::Suspect { silent_at, .. } if now >= silent_at => Fitness::Silent,
            _ if !self.healthy => Fitness::Failing,
            _ if self.drained => Fitness::Drained,
            _ => Fitness::Fit,
        }
    }

    /// Since when nothing comes of it.
    fn silence(&self) -> Option<Instant> {
        match self.reach {
            Reach::Suspect { since, .. } | Reach::Silent { since } => Some(since),
            Reach::Never | Reach::Answers { .. } => None,
        }
    }
}

impl Fitness {
    /// Its name in JSON and on the screen.
    pub const fn name(self) -> &'static str {
        match self {
            Fitness::Fit => "fit",
            Fitness::Drained => "drained",
            Fitness::Failing => "failing",
            Fitness::Silent => "silent",
        }
    }
}

/// Why a gateway carries the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Of those that serve it has the highest priority, or the lowest id of these.
    Priority,
    /// The one before fell silent.
    Silence,
    /// What lies behind the one before did not answer.
    Health,
    /// The one before was drained.
    Drained,
    /// The one before does not hold the prefix any more.
    Gone,
}

impl Cause {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Priority => "priority",
            Cause::Silence => "silence",
            Cause::Health => "health",
            Cause::Drained => "drained",
            Cause::Gone => "gone",
        }
    }
}

/// Another gateway carries a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The one before, where there was one.
    pub from: Option<NodeId>,
    /// The one from now on.
    pub to: NodeId,
    /// Why.
    pub cause: Cause,
}

/// Who carries a prefix, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The node.
    pub node: NodeId,
    /// Why.
    pub cause: Cause,
    /// Since when.
    pub since: Instant,
}

/// The choice of one prefix.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    known: BTreeMap<NodeId, Known>,
    carrier: Option<Carrier>,
    next: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    fitness: Fitness,
    /// Since when it is as fit as it is.
    since: Instant,
    /// Whether it was ever fit.
    served: bool,
    /// Whether it has failed after it was fit.
    failed: bool,
}

impl Known {
    /// When its priority counts.
    fn trusted_at(&self) -> Instant {
        if self.failed { self.since + RETURN_AFTER } else { self.since }
    }
}

impl Choice {
    /// Who carries the prefix.
    pub fn carrier(&self) -> Option<Carrier> {
        self.carrier
    }

    /// How fit a gateway was when it was last weighed, and since when.
    pub fn fitness(&self, node: NodeId) -> Option<(Fitness, Instant)> {
        self.known.get(&node).map(|known| (known.fitness, known.since))
    }

    /// When a gateway that is preferred to the carrier may have the prefix back, where that is all it waits for.
    pub fn returns_at(&self, node: NodeId) -> Option<Instant> {
        self.known.get(&node).filter(|known| known.failed).map(Known::trusted_at)
    }

    /// When [`Choice::weigh`] wants to be called again, whatever happens until then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Weighs the gateways anew. Returns what changes.
    pub fn weigh(&mut self, standings: &[Standing], now: Instant) -> Option<Switch> {
        self.known.retain(|node, _| standings.iter().any(|standing| standing.holder.node == *node));
        for standing in standings {
            self.note(standing, now);
        }
        self.next = None;
        let switch = self.decide(standings, now);
        if let Some(Switch { to, cause, .. }) = switch {
            self.carrier = Some(Carrier { node: to, cause, since: now });
        }
        self.plan(standings, now);
        switch
    }

    fn note(&mut self, standing: &Standing, now: Instant) {
        let fitness = standing.fitness(now);
        let fresh = Known { fitness, since: now, served: false, failed: false };
        let known = self.known.entry(standing.holder.node).or_insert(fresh);
        if known.fitness != fitness {
            known.failed |= known.served;
            (known.fitness, known.since) = (fitness, now);
        }
        known.served |= fitness == Fitness::Fit;
        // What was long enough fit has a clean slate.
        if known.failed && fitness == Fitness::Fit && now >= known.trusted_at() {
            known.failed = false;
        }
    }

    fn fitness_of(&self, standing: &Standing) -> Fitness {
        self.known.get(&standing.holder.node).map_or(Fitness::Silent, |known| known.fitness)
    }

    fn decide(&self, standings: &[Standing], now: Instant) -> Option<Switch> {
        let rank = |standing: &&Standing| {
            let Holder { node, priority } = standing.holder;
            (self.fitness_of(standing), Reverse(priority), node)
        };
        let Some(carrier) = self.carrier else {
            let best = standings.iter().min_by_key(rank)?;
            return Some(Switch { from: None, to: best.holder.node, cause: Cause::Priority });
        };
        let Some(present) = standings.iter().find(|standing| standing.holder.node == carrier.node) else {
            let best = standings.iter().min_by_key(rank)?;
            return Some(Switch { from: Some(carrier.node), to: best.holder.node, cause: Cause::Gone });
        };
        let worth = self.fitness_of(present);
        // Whoever is not heard since the carrier fell silent may be as silent as it is, and who was silent too came back first.
        let silence = present.silence().filter(|_| worth == Fitness::Silent);
        let answers = |standing: &&Standing| match (standing.reach, silence) {
            (Reach::Answers { .. }, None) => true,
            (Reach::Answers { heard, since }, Some(silence)) => {
                heard.is_some_and(|heard| heard >= silence) && (since <= silence || now >= since + TOGETHER)
            }
            _ => false,
        };
        let best = standings.iter().filter(answers).min_by_key(rank).filter(|best| self.fitness_of(best) < worth);
        if let Some(best) = best {
            let cause = match worth {
                _ if present.reach == Reach::Never => Cause::Priority,
                Fitness::Silent => Cause::Silence,
                Fitness::Failing => Cause::Health,
                Fitness::Fit | Fitness::Drained => Cause::Drained,
            };
            return Some(Switch { from: Some(carrier.node), to: best.holder.node, cause });
        }
        let ripe = |standing: &&Standing| {
            self.is_preferred(standing, present)
                && self.known.get(&standing.holder.node).is_some_and(|known| now >= known.trusted_at())
        };
        let best = standings.iter().filter(answers).filter(ripe).min_by_key(rank)?;
        Some(Switch { from: Some(carrier.node), to: best.holder.node, cause: Cause::Priority })
    }

    /// Whether one as fit as the carrier goes before it.
    fn is_preferred(&self, standing: &Standing, carrier: &Standing) -> bool {
        standing.holder.priority > carrier.holder.priority && self.fitness_of(standing) == self.fitness_of(carrier)
    }

    fn plan(&mut self, standings: &[Standing], now: Instant) {
        let Some(carrier) = self.carrier else { return };
        let Some(present) = standings.iter().find(|standing| standing.holder.node == carrier.node) else { return };
        let doubts = standings.iter().filter_map(|standing| match standing.reach {
            Reach::Suspect { silent_at, .. } => Some(silent_at),
            Reach::Answers { since, .. } if present.silence().is_some() => Some(since + TOGETHER),
            _ => None,
        });
        let preferred = standings.iter().filter(|standing| self.is_preferred(standing, present));
        let returns = preferred.filter_map(|standing| self.known.get(&standing.holder.node).map(Known::trusted_at));
        self.next = doubts.chain(returns).filter(|at| *at > now).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: u8 = 1;
    const B: u8 = 2;

    /// Two gateways, of which the first is preferred, and what they are like now.
    struct Pair {
        now: Instant,
        standings: Vec<Standing>,
        choice: Choice,
        switches: Vec<(u64, u8, Cause)>,
        /// For how long the new carrier's fitness had not changed, at each switch; `None` where it never had.
        steady: Vec<Option<u64>>,
        /// When whose fitness changed, once it had served.
        changes: Vec<(u64, u8)>,
    }

    fn standing(number: u8, priority: u8) -> Standing {
        let holder = Holder { node: NodeId::from_bytes([number; 16]), priority: Priority::new(priority).unwrap() };
        Standing { holder, reach: Reach::Never, healthy: true, drained: false }
    }

    impl Pair {
        fn new(priorities: [u8; 2]) -> Pair {
            let standings = vec![standing(A, priorities[0]), standing(B, priorities[1])];
            let choice = Choice::default();
            Pair { now: Instant::ZERO, standings, choice, switches: vec![], steady: vec![], changes: vec![] }
        }

        fn up(priorities: [u8; 2]) -> Pair {
            let mut pair = Pair::new(priorities);
            pair.answers(A).answers(B).run(1);
            pair
        }

        fn of(&mut self, number: u8) -> &mut Standing {
            &mut self.standings[usize::from(number) - 1]
        }

        fn answers(&mut self, number: u8) -> &mut Self {
            if !matches!(self.of(number).reach, Reach::Answers { .. }) {
                self.of(number).reach = Reach::Answers { heard: Some(self.now), since: self.now };
            }
            self
        }

        fn suspect(&mut self, number: u8) -> &mut Self {
            let since = self.now;
            self.of(number).reach = Reach::Suspect { since, silent_at: since + Duration::from_millis(200) };
            self
        }

        /// Lets time pass, with those that answer heard all the time, and weighs whenever it is wanted.
        fn run(&mut self, seconds: u64) -> &mut Self {
            let end = self.now + Duration::from_secs(seconds);
            self.weigh();
            while let Some(next) = self.choice.poll_timeout().filter(|next| *next <= end) {
                assert!(next > self.now, "no standing still");
                self.now = next;
                self.weigh();
            }
            self.now = end;
            self.weigh();
            self
        }

        fn weigh(&mut self) {
            let now = self.now;
            for standing in &mut self.standings {
                if let Reach::Answers { heard, .. } = &mut standing.reach {
                    *heard = Some(now);
                }
            }
            let fitness =
                |choice: &Choice, number: u8| choice.fitness(NodeId::from_bytes([number; 16])).map(|found| found.0);
            let before = [A, B].map(|number| fitness(&self.choice, number));
            let switch = self.choice.weigh(&self.standings, now);
            for (number, before) in [A, B].into_iter().zip(before) {
                if before.is_some_and(|before| before != Fitness::Silent || self.now > Instant::from_millis(1_000))
                    && before != fitness(&self.choice, number)
                {
                    self.changes.push((now.as_nanos() / 1_000_000, number));
                }
            }
            if let Some(switch) = switch {
                assert_ne!(switch.from, Some(switch.to));
                let (at, to) = (now.as_nanos() / 1_000_000, switch.to.as_bytes()[0]);
                let changed = self.changes.iter().rev().find(|(_, whom)| *whom == to);
                self.steady.push(changed.map(|(when, _)| at - when));
                self.switches.push((at, to, switch.cause));
            }
        }

        fn carrier(&self) -> u8 {
            self.choice.carrier().unwrap().node.as_bytes()[0]
        }
    }

    #[test]
    fn priority_decides_at_the_start_in_whatever_order_the_links_come_up() {
        for (first, second) in [(A, B), (B, A)] {
            let mut pair = Pair::new([110, 100]);
            pair.run(1).answers(first).run(1).answers(second).run(1);
            assert_eq!(pair.carrier(), A, "{first} first: {:?}", pair.switches);
        }
        let pair = Pair::up([100, 100]);
        assert_eq!(pair.carrier(), A, "of equals the lower id, everywhere alike");
    }

    #[test]
    fn silence_moves_it_as_soon_as_it_is_no_chance_and_the_other_is_heard() {
        let mut pair = Pair::up([110, 100]);
        pair.suspect(A);
        let since = pair.now;
        assert_eq!(pair.choice.weigh(&pair.standings, pair.now), None);
        assert_eq!(pair.choice.poll_timeout(), Some(since + Duration::from_millis(200)));
        // The other has not been heard since: it may be this node's own uplink.
        pair.now = since + Duration::from_millis(200);
        let mut unheard = pair.standings.clone();
        let earlier = Some(since - Duration::from_millis(1));
        unheard[1].reach = Reach::Answers { heard: earlier, since: Instant::ZERO };
        assert_eq!(pair.choice.clone().weigh(&unheard, pair.now), None);
        // Nor where it was silent as well and came back first.
        let back = since + Duration::from_millis(150);
        unheard[1].reach = Reach::Answers { heard: Some(back), since: back };
        let mut choice = pair.choice.clone();
        assert_eq!(choice.weigh(&unheard, pair.now), None);
        let late = choice.poll_timeout().expect("it will not wait for ever");
        assert_eq!(choice.weigh(&unheard, late).map(|switch| switch.to), Some(unheard[1].holder.node));
        pair.weigh();
        assert_eq!((pair.carrier(), pair.switches.last().unwrap().2), (B, Cause::Silence));
    }

    #[test]
    fn a_lost_probe_moves_nothing() {
        let mut pair = Pair::up([110, 100]);
        for _ in 0..100 {
            pair.suspect(A).weigh();
            pair.now += Duration::from_millis(150);
            pair.answers(A).weigh();
        }
        assert_eq!(pair.switches.len(), 1, "{:?}", pair.switches);
    }

    #[test]
    fn what_came_back_waits_and_then_its_priority_counts() {
        let mut pair = Pair::up([110, 100]);
        pair.suspect(A).run(1);
        assert_eq!(pair.carrier(), B);
        pair.answers(A).run(299);
        assert_eq!(pair.carrier(), B);
        pair.run(2);
        assert_eq!((pair.carrier(), pair.switches.last().unwrap().2), (A, Cause::Priority));
        let mut equals = Pair::up([100, 100]);
        equals.suspect(A).run(1).answers(A).run(10_000);
        assert_eq!(equals.carrier(), B, "a change would gain nothing");
    }

    #[test]
    fn a_flapping_gateway_is_left_once() {
        let mut pair = Pair::up([110, 100]);
        for _ in 0..100 {
            pair.suspect(A).run(10);
            pair.answers(A).run(60);
        }
        assert_eq!(pair.switches.len(), 2, "{:?}", pair.switches);
        pair.run(300);
        assert_eq!(pair.carrier(), A);
    }

    #[test]
    fn fit_before_drained_before_failing_before_silent() {
        let mut pair = Pair::up([110, 100]);
        pair.of(A).drained = true;
        pair.run(1);
        assert_eq!((pair.carrier(), pair.switches.last().unwrap().2), (B, Cause::Drained));
        pair.of(B).healthy = false;
        pair.run(1);
        assert_eq!((pair.carrier(), pair.switches.last().unwrap().2), (A, Cause::Health), "a drained one still serves");
        pair.of(B).healthy = true;
        pair.of(B).drained = true;
        pair.run(1_000);
        assert_eq!(pair.carrier(), A, "both are drained: nothing is gained");
        pair.of(A).healthy = false;
        pair.of(B).healthy = false;
        pair.run(1_000);
        assert_eq!(pair.carrier(), A);
        pair.suspect(A).run(1);
        assert_eq!((pair.carrier(), pair.switches.last().unwrap().2), (B, Cause::Silence), "a check can be wrong");
    }

    #[test]
    fn who_holds_it_no_more_does_not_carry_it() {
        let mut pair = Pair::up([110, 100]);
        pair.standings.remove(0);
        pair.weigh();
        assert_eq!((pair.carrier(), pair.switches.last().unwrap().2), (B, Cause::Gone));
    }

    proptest! {
        /// Whatever happens, in whatever order: a carrier that is worse than one that answers is left at once, priority alone
        /// takes it from none sooner than [`RETURN_AFTER`] after a failure of the other, and no deadline stands still.
        #[test]
        fn it_is_always_with_the_fittest_and_returns_late(
            steps in proptest::collection::vec((0u8..6, 1u8..=2, 1u64..400), 1..60),
            priorities in proptest::array::uniform2(1u8..4),
        ) {
            let mut pair = Pair::up(priorities);
            let begun = pair.switches.len();
            for (what, whom, seconds) in steps {
                match what {
                    0 => drop(pair.suspect(whom)),
                    1 | 2 => drop(pair.answers(whom)),
                    3 => pair.of(whom).healthy ^= true,
                    4 => pair.of(whom).drained ^= true,
                    _ => {}
                }
                pair.run(seconds);
                let worth = |number: u8| pair.choice.fitness(NodeId::from_bytes([number; 16])).unwrap().0;
                let (carrier, other) = (pair.carrier(), A + B - pair.carrier());
                let other_answers = match pair.standings[usize::from(other) - 1].reach {
                    Reach::Answers { since, .. } => pair.now >= since + TOGETHER,
                    _ => false,
                };
                prop_assert!(!other_answers || worth(carrier) <= worth(other), "{:?}", pair.switches);
            }
            // What changed in the same moment, but after the switch, is not what it went by.
            for ((_, _, cause), steady) in pair.switches[begun..].iter().zip(&pair.steady[begun..]) {
                let long = 1_000 * RETURN_AFTER.as_secs();
                prop_assert!(*cause != Cause::Priority || steady.is_none_or(|steady| steady >= long), "{:?}", pair.switches);
            }
        }
    }
}

//! Which target is in use. Pure: time is an argument.

use std::time::Duration;

use crate::time::Instant;

/// Looks in a row that must fail before a target counts as down: one lost SYN is no outage.
pub const FAILURES: u8 = 2;
/// Looks in a row that must succeed before it counts as up again.
pub const SUCCESSES: u8 = 3;
/// How soon a target is looked at again after a look or a connection to it failed, however many do.
pub const RETRY: Duration = Duration::from_millis(500);

/// How a target is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It has not been looked at often enough.
    #[default]
    Unknown,
    /// It takes connections.
    Up,
    /// It does not.
    Down,
}

/// A target in use, and whether an operator said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The target's place in the list.
    pub target: usize,
    /// Whether it stays whatever its health: it was chosen by hand.
    pub pinned: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    health: Health,
    /// Looks in a row that came out the other way.
    streak: u8,
    looked: Option<Instant>,
    due: Instant,
}

/// Chooses among targets by their order, their health and what an operator says.
///
/// It never goes back by itself: a target that was left is taken again only when the present one fails, or by hand.
#[derive(Clone, Debug)]
pub struct Selection {
    targets: Vec<Watched>,
    failover: bool,
    choice: Choice,
}

impl Selection {
    /// Starts with the first of `count` targets, each looked at now.
    pub fn new(count: usize, failover: bool, now: Instant) -> Self {
        let watched = Watched { due: now, ..Watched::default() };
        Selection { targets: vec![watched; count], failover, choice: Choice { target: 0, pinned: false } }
    }

    /// Says whether another target is taken when the one in use fails.
    pub fn set_failover(&mut self, failover: bool) {
        self.failover = failover;
        self.settle();
    }

    /// What is in use.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// Whether connections may come to be made to another target without anybody's saying so.
    pub fn may_move(&self) -> bool {
        self.failover && !self.choice.pinned && self.targets.len() > 1
    }

    /// Uses a target. Nothing happens where there is no such one.
    pub fn choose(&mut self, choice: Choice) {
        if choice.target < self.targets.len() {
            self.choice = choice;
            self.settle();
        }
    }

    /// How a target is.
    pub fn health(&self, target: usize) -> Health {
        self.targets.get(target).map_or(Health::Unknown, |watched| watched.health)
    }

    /// Takes the targets that are to be looked at now; each is looked at again after `interval`.
    pub fn take_due(&mut self, now: Instant, interval: Duration) -> Vec<usize> {
        let mut due = Vec::new();
        for (target, watched) in self.targets.iter_mut().enumerate().filter(|(_, watched)| watched.due <= now) {
            watched.due = now + interval;
            watched.looked = Some(now);
            due.push(target);
        }
        due
    }

    /// When the next target is to be looked at; `None` without targets.
    pub fn next_due(&self) -> Option<Instant> {
        self.targets.iter().map(|watched| watched.due).min()
    }

    /// Hears how a look came out.
    pub fn looked(&mut self, target: usize, good: bool, now: Instant) {
        let Some(watched) = self.targets.get_mut(target) else { return };
        let agrees = watched.health == if good { Health::Up } else { Health::Down };
        watched.streak = if agrees { 0 } else { watched.streak.saturating_add(1) };
        // What was never seen down is up at its first answer.
        let enough = match (good, watched.health) {
            (true, Health::Down) => SUCCESSES,
            (true, _) => 1,
            (false, _) => FAILURES,
        };
        if !good {
            watched.due = watched.due.min(now + RETRY);
        } else if agrees || watched.streak >= enough {
            watched.health = Health::Up;
            watched.streak = 0;
        }
        if !good && !agrees && watched.streak >= enough {
            watched.health = Health::Down;
            watched.streak = 0;
        }
        self.settle();
    }

    /// Hears that a connection could not be made: the target is looked at soon. Connections alone make nothing down, since
    /// hundreds of them may fail in one moment.
    pub fn connection_failed(&mut self, target: usize, now: Instant) {
        if let Some(watched) = self.targets.get_mut(target) {
            let soon = watched.looked.map_or(now, |looked| (looked + RETRY).max(now));
            watched.due = watched.due.min(soon);
        }
    }

    /// Leaves a target that is down for the first that is up.
    fn settle(&mut self) {
        if self.may_move()
            && self.health(self.choice.target) == Health::Down
            && let Some(target) = self.targets.iter().position(|watched| watched.health == Health::Up)
        {
            self.choice.target = target;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn looked(selection: &mut Selection, looks: &[(usize, bool)]) {
        for (target, good) in looks {
            selection.looked(*target, *good, at(0));
        }
    }

    #[test]
    fn the_first_is_used_until_it_fails_twice_in_a_row() {
        let mut selection = Selection::new(3, true, at(0));
        looked(&mut selection, &[(0, true), (1, true), (2, true), (0, false), (0, true), (0, false)]);
        assert_eq!(selection.choice().target, 0);
        looked(&mut selection, &[(0, false)]);
        assert_eq!((selection.choice().target, selection.health(0)), (1, Health::Down));
    }

    #[test]
    fn it_does_not_flap_back() {
        let mut selection = Selection::new(2, true, at(0));
        looked(&mut selection, &[(0, true), (1, true), (0, false), (0, false), (0, true), (0, true)]);
        assert_eq!(selection.health(0), Health::Down, "two good looks do not make up for an outage");
        looked(&mut selection, &[(0, true)]);
        assert_eq!((selection.health(0), selection.choice().target), (Health::Up, 1));
        looked(&mut selection, &[(1, false), (1, false)]);
        assert_eq!(selection.choice().target, 0, "only when the present one fails");
    }

    #[test]
    fn where_none_is_up_it_stays() {
        let mut selection = Selection::new(2, true, at(0));
        looked(&mut selection, &[(0, false), (0, false), (1, false), (1, false)]);
        assert_eq!(selection.choice().target, 0);
        looked(&mut selection, &[(1, true), (1, true), (1, true)]);
        assert_eq!(selection.choice().target, 1, "whoever comes first is taken");
    }

    #[test]
    fn what_was_chosen_by_hand_stays() {
        for (failover, pinned) in [(true, true), (false, false)] {
            let mut selection = Selection::new(2, failover, at(0));
            selection.choose(Choice { target: 0, pinned });
            looked(&mut selection, &[(1, true), (0, false), (0, false), (0, false)]);
            assert_eq!((selection.health(0), selection.choice().target), (Health::Down, 0));
        }
        let mut selection = Selection::new(2, true, at(0));
        let before = selection.choice();
        selection.choose(Choice { target: 7, pinned: true });
        assert_eq!(selection.choice(), before, "there is no such target");
    }

    #[test]
    fn failed_connections_bring_a_look_forward_but_never_a_storm() {
        let mut selection = Selection::new(1, true, at(0));
        let interval = Duration::from_secs(60);
        assert_eq!(selection.take_due(at(0), interval), [0]);
        selection.looked(0, true, at(1));
        assert!(selection.take_due(at(59_999), interval).is_empty());
        for _ in 0..500 {
            selection.connection_failed(0, at(100));
        }
        assert_eq!((selection.next_due(), selection.health(0)), (Some(at(500)), Health::Up));
        assert_eq!(selection.take_due(at(500), interval), [0]);
        selection.looked(0, false, at(510));
        assert_eq!(selection.next_due(), Some(at(1_010)), "a failed look is repeated soon");
    }
}

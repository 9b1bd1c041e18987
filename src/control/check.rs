//! Whether what lies behind a gateway answers. Pure: looks come in, a verdict goes out.

/// Looks in a row that a target must answer before it counts again. A network that comes and goes does it within a second or two;
/// with the usual interval this is three.
pub const GOOD_AGAIN: u8 = 10;

/// The check of one prefix: its targets, of which one that answers is enough.
#[derive(Clone, Debug)]
pub struct Check {
    tries: u8,
    targets: Vec<Target>,
    failing: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Target {
    /// Whether it answers; `None` until enough is known.
    answers: Option<bool>,
    /// Looks in a row that came out other than that.
    streak: u8,
}

impl Check {
    /// Starts with targets that nobody has looked at, and that are presumed to answer until `tries` looks in a row have failed.
    pub fn new(targets: usize, tries: u8) -> Check {
        Check { tries, targets: vec![Target::default(); targets], failing: false }
    }

    /// Whether none of the targets answers.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// Whether a target answers; `None` until enough is known.
    pub fn answers(&self, target: usize) -> Option<bool> {
        self.targets.get(target)?.answers
    }

    /// Hears how a look came out. Returns whether the check fails now, where that changed.
    pub fn looked(&mut self, target: usize, good: bool) -> Option<bool> {
        let target = self.targets.get_mut(target)?;
        let enough = match (target.answers, good) {
            (None, true) => 1,
            (Some(false), true) => GOOD_AGAIN,
            (_, false) => self.tries,
            (Some(true), true) => 0,
        };
        if target.answers == Some(good) {
            target.streak = 0;
            return None;
        }
        target.streak = target.streak.saturating_add(1);
        if target.streak < enough {
            return None;
        }
        (target.answers, target.streak) = (Some(good), 0);
        let failing = self.targets.iter().all(|target| target.answers == Some(false));
        let changed = failing != self.failing;
        self.failing = failing;
        changed.then_some(failing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(check: &mut Check, target: usize, good: bool, count: u8) -> Vec<Option<bool>> {
        (0..count).map(|_| check.looked(target, good)).collect()
    }

    #[test]
    fn it_takes_some_looks_to_fail_and_more_to_be_good_again() {
        let mut check = Check::new(1, 3);
        assert_eq!((check.answers(0), check.is_failing()), (None, false));
        assert_eq!(looks(&mut check, 0, false, 2), [None, None]);
        assert_eq!(check.looked(0, true), None, "not looked at often enough to fail");
        assert_eq!(looks(&mut check, 0, false, 3), [None, None, Some(true)]);
        assert_eq!(looks(&mut check, 0, false, 9), [None; 9]);
        assert_eq!(looks(&mut check, 0, true, GOOD_AGAIN - 1), [None; GOOD_AGAIN as usize - 1]);
        // One miss among the good ones begins it anew: nothing flaps.
        assert_eq!(check.looked(0, false), None);
        assert_eq!(looks(&mut check, 0, true, GOOD_AGAIN - 1), [None; GOOD_AGAIN as usize - 1]);
        assert!(check.is_failing());
        assert_eq!(check.looked(0, true), Some(false));
        assert_eq!(check.answers(0), Some(true));
    }

    #[test]
    fn one_target_that_answers_is_enough_and_one_never_looked_at_is_presumed_to() {
        let mut check = Check::new(2, 1);
        assert_eq!(check.looked(0, false), None, "nobody looked at the other one yet");
        assert_eq!(check.looked(1, true), None);
        assert_eq!(check.looked(1, false), Some(true));
        assert_eq!(looks(&mut check, 1, true, GOOD_AGAIN).last(), Some(&Some(false)));
        assert_eq!((check.answers(0), check.answers(1)), (Some(false), Some(true)));
        assert_eq!(check.looked(7, true), None, "there is no such target");
    }
}

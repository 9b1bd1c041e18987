//! The faults.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::{Lab, Result, Wan};
use crate::report::{Figures, Report};
use crate::team::{Player, Team};

/// How long everything has to pass before a fault is made: longer than any of them takes to find a direct way.
const SETTLE: Duration = Duration::from_secs(8);

/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long everything has to pass afterwards, so that nothing more is to be expected.
const CALM: Duration = Duration::from_secs(4);

/// How long it is waited for that: a user has given up by then.
const LIMIT: Duration = Duration::from_secs(40);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Something that goes wrong.
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens, and from when on the silence is measured.
    pub about: &'static str,
    /// How long it lasts until it is healed; `None`: it stays.
    lasts: Option<Duration>,
    /// Whether it is one for those who have a third host.
    needs_third: bool,
    make: fn(&Wan, &mut Team<'_>) -> Result<()>,
}

/// All of them, in the order in which they are made.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "cut",
        about: "one end has no network for 10 s: silence after it is back",
        lasts: Some(Duration::from_secs(10)),
        needs_third: false,
        make: |wan, team| {
            wan.uplink(&team.ends[0]).cut(true);
            Ok(())
        },
    },
    Fault {
        name: "direct",
        about: "the direct way dies, a third host reaches both: longest silence",
        lasts: None,
        needs_third: true,
        make: |wan, team| {
            wan.link(&team.ends[0], &team.ends[1]).cut(true);
            Ok(())
        },
    },
    Fault {
        name: "term",
        about: "one end's daemon is ended by SIGTERM and started at once: longest silence",
        lasts: None,
        needs_third: false,
        make: |_, team| team.restart(Signal::SIGTERM),
    },
    Fault {
        name: "kill",
        about: "one end's daemon is killed and started at once: longest silence",
        lasts: None,
        needs_third: false,
        make: |_, team| team.restart(Signal::SIGKILL),
    },
    Fault {
        name: "address",
        about: "one end has another address on the network: longest silence",
        lasts: None,
        needs_third: false,
        make: |wan, team| team.renumber(wan),
    },
    Fault {
        name: "mtu",
        about: "packets of more than 1,400 bytes vanish without a word: longest silence",
        lasts: None,
        needs_third: false,
        make: |wan, team| {
            wan.uplink(&team.ends[0]).mtu(1_400, false);
            Ok(())
        },
    },
];

impl Fault {
    /// Starts everybody anew, makes the fault for all of them and reports what each of them lost.
    ///
    /// # Errors
    /// Where the network cannot be made, or the fault.
    pub fn run(&self, lab: &Lab, players: &[Player], seed: u64, report: &mut Report) -> Result<()> {
        let wan = lab.wan(seed)?;
        let mut teams = Vec::new();
        for player in players.iter().filter(|player| player.has_third() || !self.needs_third) {
            match Team::start(lab, &wan, player) {
                Ok(team) => teams.push(team),
                Err(error) => report.miss(format!("{}, {}: {error}", self.name, player.name())),
            }
        }
        calm(&teams, SETTLE, PATIENCE);
        // What does not pass now would be taken for the fault's.
        let (mut teams, unready): (Vec<_>, Vec<_>) = teams.into_iter().partition(|team| team.traffic.flows());
        for team in unready {
            report.miss(format!("{}, {}: not everything passes before the fault", self.name, team.player.name()));
        }
        let mut began = Vec::new();
        for team in &mut teams {
            began.push(Instant::now());
            (self.make)(&wan, team)?;
        }
        let healed = self.lasts.map(|lasts| {
            thread::sleep(lasts);
            wan.all().cut(false);
            Instant::now()
        });
        calm(&teams, CALM, LIMIT);
        let end = Instant::now();
        for (team, began) in teams.iter().zip(began) {
            let of = |arrivals: &crate::traffic::Arrivals| match healed {
                Some(healed) => arrivals.after(healed),
                None => arrivals.longest(began, end),
            };
            let [there, back] = team.traffic.messages.each_ref().map(of);
            // Of the two directions the slower one.
            let messages = there.zip(back).map(|(there, back)| there.max(back));
            let figures = Figures { echoes: of(&team.traffic.echoes), messages, broken: team.traffic.is_broken() };
            println!("{}: {}: {figures}", self.name, team.player.name());
            report.add(self, team.player, figures);
        }
        Ok(())
    }
}

/// Waits until everything has passed for so long without a pause, or the patience is over.
fn calm(teams: &[Team<'_>], time: Duration, patience: Duration) {
    let deadline = Instant::now() + patience;
    let mut since = Instant::now();
    while since.elapsed() < time && Instant::now() < deadline {
        if !teams.iter().all(|team| team.traffic.flows()) {
            since = Instant::now();
        }
        thread::sleep(LOOK);
    }
}

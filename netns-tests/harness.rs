//! Runs the cases one after another, as `cargo test` shows them, and counts what this machine could not run. Cases that
//! mostly wait run beside the others.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::package::{self, Set};
use crate::lab::{Error, Lab, Result, reexec};

/// One test: a name and what it does in a lab of its own.
pub struct Case {
    /// `area::what_is_true`.
    pub name: &'static str,
    /// Programs it cannot do without.
    pub needs: &'static [&'static Set],
    /// The test; it fails by an error or a panic.
    pub run: fn(&Lab) -> Result<()>,
}

/// How a case ended.
enum Outcome {
    Passed,
    Failed(String),
    NotRun(String),
}

/// What the command line asks for; the words are those of the standard test harness.
#[derive(Default)]
struct Options {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    ignored_only: bool,
    /// Ours: fetch packages, run nothing.
    fetch: bool,
}

/// Runs the chosen cases and returns the program's exit code. Those of `beside` need minutes and little of the
/// machine: they run while the others do.
pub fn run(groups: &[&'static [Case]], beside: &[&'static [Case]]) -> ExitCode {
    let options = Options::parse(std::env::args().skip(1));
    let wanted = |case: &&Case| options.wants(case.name);
    let all = groups.iter().chain(beside).map(|group| group.len()).sum::<usize>();
    let slow: Vec<&Case> = beside.iter().flat_map(|group| group.iter()).filter(wanted).collect();
    let others: Vec<&Case> = groups.iter().flat_map(|group| group.iter()).filter(wanted).collect();
    let chosen = [slow.as_slice(), others.as_slice()].concat();
    if options.list {
        chosen.iter().for_each(|case| println!("{}: test", case.name));
        println!("\n{} tests, 0 benchmarks", chosen.len());
        return ExitCode::SUCCESS;
    }
    if options.fetch {
        return fetch_all();
    }
    // Before a user namespace is entered, from which there is no way out to fetch anything.
    let needed: BTreeSet<&str> = chosen.iter().flat_map(|case| case.needs).map(|set| set.name).collect();
    let lacking: BTreeMap<&str, Error> = package::ALL
        .iter()
        .filter(|set| needed.contains(set.name))
        .filter_map(|set| Some((set.name, set.fetch().err()?)))
        .collect();
    let privilege = if chosen.is_empty() { Ok(reexec::Privilege::Root) } else { reexec::ensure_namespaces() };
    println!("\nrunning {} tests", chosen.len());
    let began = Instant::now();
    let run_all = |cases: &[&'static Case]| -> Vec<(&'static str, Outcome)> {
        let run_one = |case: &&'static Case| {
            let lacks = case.needs.iter().find_map(|set| lacking.get(set.name));
            let outcome = privilege.as_ref().err().or(lacks).map_or_else(|| attempt(case), Outcome::from_error);
            outcome.tell(case.name);
            (case.name, outcome)
        };
        cases.iter().map(run_one).collect()
    };
    let outcomes = thread::scope(|scope| {
        let slow = scope.spawn(|| run_all(&slow));
        let mut outcomes = run_all(&others);
        // A case that panics has failed; the thread around it does not panic.
        outcomes.extend(slow.join().unwrap_or_default());
        outcomes
    });
    let (mut failures, mut not_run, mut passed) = (Vec::new(), Vec::new(), 0);
    for (name, outcome) in outcomes {
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::NotRun(reason) => not_run.push((name, reason)),
            Outcome::Failed(what) => failures.push((name, what)),
        }
    }
    report(passed, &failures, &not_run, all - chosen.len(), began.elapsed());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// Fetches everything that any case may need, and says what came of it.
fn fetch_all() -> ExitCode {
    for set in package::ALL {
        match set.fetch() {
            Ok(tree) => println!("{}: {}", set.name, tree.root().display()),
            Err(error) => println!("{}: {error}", set.name),
        }
    }
    ExitCode::SUCCESS
}

/// How long one case may take. Every wait inside has a limit of its own; this one is for the wait somebody forgot.
const CASE_LIMIT: Duration = Duration::from_secs(600);

fn attempt(case: &Case) -> Outcome {
    let (done, watched) = channel::<()>();
    let name = case.name;
    thread::spawn(move || {
        if watched.recv_timeout(CASE_LIMIT) == Err(RecvTimeoutError::Timeout) {
            // The kernel kills the lab's processes with this one, and the next run sweeps their namespaces' names.
            eprintln!("test {name} did not end within {CASE_LIMIT:?}: giving up on the whole run");
            std::process::exit(101);
        }
    });
    let outcome = attempt_unwatched(case);
    drop(done);
    outcome
}

fn attempt_unwatched(case: &Case) -> Outcome {
    let lab = match Lab::new(&case.name.replace("::", "-")) {
        Ok(lab) => lab,
        Err(error) => return Outcome::from_error(&error),
    };
    let outcome = match catch_unwind(AssertUnwindSafe(|| (case.run)(&lab))) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(error)) => Outcome::from_error(&error),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Outcome::Failed(text.unwrap_or_else(|| "panicked".to_owned()))
        }
    };
    if let Outcome::Failed(_) = outcome {
        lab.fail();
    }
    outcome
}

fn report(passed: usize, failures: &[(&str, String)], not_run: &[(&str, String)], filtered: usize, took: Duration) {
    if !failures.is_empty() {
        println!("\nfailures:");
        failures.iter().for_each(|(name, what)| println!("\n---- {name} ----\n{what}"));
    }
    if !not_run.is_empty() {
        println!();
        not_run.iter().for_each(|(name, reason)| println!("NOT RUN: {name}: {reason}"));
        println!("{} of these tests could not be run on this machine", not_run.len());
    }
    let result = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {} failed; {} ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        failures.len(),
        not_run.len(),
        took.as_secs_f64()
    );
}

impl Outcome {
    fn tell(&self, name: &str) {
        match self {
            Outcome::Passed => println!("test {name} ... ok"),
            Outcome::NotRun(reason) => println!("test {name} ... ignored, NOT RUN: {reason}"),
            Outcome::Failed(_) => println!("test {name} ... FAILED"),
        }
    }

    fn from_error(error: &Error) -> Self {
        match error {
            Error::Failed(what) => Outcome::Failed(what.clone()),
            Error::NotRun(reason) => Outcome::NotRun(reason.clone()),
        }
    }
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Self {
        let mut options = Options::default();
        let mut args = args;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => options.exact = true,
                "--fetch" => options.fetch = true,
                "--list" => options.list = true,
                "--ignored" => options.ignored_only = true,
                "--skip" => options.skip.extend(args.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" | "--shuffle-seed" => drop(args.next()),
                flag if flag.starts_with('-') => {}
                filter => options.filters.push(filter.to_owned()),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        let fits = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        !self.ignored_only && (self.filters.is_empty() || self.filters.iter().any(fits)) && !self.skip.iter().any(fits)
    }
}

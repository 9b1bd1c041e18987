//! A network namespace of a test's own.

use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// How many kernel tests this machine did not allow, over the whole test run.
static NOT_RUN: AtomicUsize = AtomicUsize::new(0);

/// Runs `test` on a thread in a fresh network namespace with `lo` up, which vanishes when it returns or panics.
///
/// Where the machine does not permit it, prints `NOT RUN` with the reason and the running count. Setting
/// `MESHD_REQUIRE_KERNEL_TESTS` makes that a failure.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        std::fs::metadata("/dev/net/tun").map_err(|error| format!("no /dev/net/tun: {error}"))?;
        enter()?;
        test();
        Ok::<(), String>(())
    });
    match thread.join() {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            let count = NOT_RUN.fetch_add(1, Ordering::Relaxed) + 1;
            // Past the harness, which swallows what a passing test prints.
            let _ = writeln!(std::io::stderr(), "NOT RUN: {name}: {reason} (number {count} in this run)");
            assert!(std::env::var_os("MESHD_REQUIRE_KERNEL_TESTS").is_none(), "{name} was required to run: {reason}");
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A runtime that stays on the calling thread, and so in its namespace.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Another network namespace beside a test's own: what is done in it is done by a thread that stays there.
pub(crate) struct Beside {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Beside {
    pub(crate) fn new() -> Self {
        let (jobs, received) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || {
            enter().unwrap();
            received.iter().for_each(|job| job());
        });
        Beside { jobs }
    }

    /// Runs `job` inside and returns what it returns.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job = move || answer.send(job()).unwrap();
        self.jobs.send(Box::new(job)).unwrap();
        answered.recv().expect("the job did not panic")
    }
}

/// Moves the calling thread into a fresh network namespace and sets `lo` up there.
fn enter() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("no network namespace: {errno}"))?;
    runtime().block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let task = tokio::spawn(connection);
        handle.link().set(rtnetlink::LinkUnspec::new_with_name("lo").up().build()).execute().await.unwrap();
        task.abort();
    });
    Ok(())
}

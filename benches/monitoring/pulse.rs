//! A daemon that is stopped for a moment, again and again: what a host does to its programs when it has too much to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::error::Context;
use crate::lab::{Proc, Result};

/// Stops and continues a daemon until this is dropped; then the daemon runs.
pub struct Pulse {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Lets `daemon` stand for `stand` and then run for `run`, by turns.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(daemon: Arc<Proc>, stand: Duration, run: Duration) -> Result<Pulse> {
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let work = move || {
            while !ended.load(Ordering::Relaxed) {
                daemon.signal(Signal::SIGSTOP);
                thread::sleep(stand);
                daemon.signal(Signal::SIGCONT);
                thread::sleep(run);
            }
        };
        let thread = thread::Builder::new().name("pulse".into()).spawn(work).context("start a thread")?;
        Ok(Pulse { over, thread: Some(thread) })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

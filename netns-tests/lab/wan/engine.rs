//! The emulator's thread: takes packets from the devices, hands them over when they are due.
//!
//! It sleeps in `ppoll` until shortly before the next hand-over and watches the clock for the rest, because a sleeping
//! thread wakes tens of microseconds late, which is more than the accuracy wanted.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use super::super::error::{Context, Result};
use super::core::Core;

/// How long before a hand-over the thread stops sleeping. Wake-ups on a busy two-core virtual machine come up to about
/// this late; watching the clock for longer would take a core from the hosts.
const WATCH: u64 = 80_000;

/// Packets taken from one device before the others get their turn.
const BATCH: usize = 64;

/// What the engine's thread and the test share.
pub struct Shared {
    core: Mutex<Core>,
    /// Signalled after packets have moved.
    pub moved: Condvar,
    wake: UnixDatagram,
    woken: UnixDatagram,
    stop: std::sync::atomic::AtomicBool,
}

/// Returns CLOCK_MONOTONIC in nanoseconds.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or(TimeSpec::new(0, 0));
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}

impl Shared {
    /// Makes the shared state.
    ///
    /// # Errors
    /// Where no socket pair can be made.
    pub fn new(core: Core) -> Result<Self> {
        let (wake, woken) = UnixDatagram::pair().context("make the emulator's wake-up pair")?;
        wake.set_nonblocking(true).context("make the emulator's wake-up pair")?;
        woken.set_nonblocking(true).context("make the emulator's wake-up pair")?;
        Ok(Shared { core: Mutex::new(core), moved: Condvar::new(), wake, woken, stop: false.into() })
    }

    /// Locks the state.
    pub fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread look again, because ports or settings have changed.
    pub fn wake(&self) {
        // A full socket means that a wake-up is pending already.
        let _ = self.wake.send(&[1]);
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        self.wake();
    }
}

/// Starts the thread.
///
/// # Errors
/// Where no thread can be started.
pub fn start(shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name("wan".into()).spawn(move || run(&shared)).context("start the emulator's thread")
}

fn run(shared: &Shared) {
    hurry();
    let mut devices: Vec<Arc<File>> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while !shared.stop.load(std::sync::atomic::Ordering::Acquire) {
        let (next, more) = {
            let mut core = shared.lock();
            if devices.len() != core.ports.len() {
                devices = core.ports.iter().map(|port| port.device.clone()).collect();
            }
            let mut moved = core.leave(now(), now);
            let mut more = false;
            for (port, device) in devices.iter().enumerate() {
                let taken = take(&mut core, port, device, &mut buffer);
                more |= taken == BATCH;
                moved |= taken > 0;
            }
            moved |= core.leave(now(), now);
            if moved {
                shared.moved.notify_all();
            }
            (core.next_due(), more)
        };
        if !more {
            sleep(shared, &devices, next);
        }
    }
}

/// Takes what one device has, up to a batch, and returns how much it was.
fn take(core: &mut Core, port: usize, mut device: &File, buffer: &mut [u8]) -> usize {
    for taken in 0..BATCH {
        match device.read(buffer) {
            Ok(len) => core.enter(port, now(), &buffer[..len]),
            Err(_) => return taken,
        }
    }
    BATCH
}

/// Returns when a packet is due, a device has one, or the test wants attention.
fn sleep(shared: &Shared, devices: &[Arc<File>], next: Option<u64>) {
    let mut fds: Vec<PollFd<'_>> =
        devices.iter().map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN)).collect();
    fds.push(PollFd::new(shared.woken.as_fd(), PollFlags::POLLIN));
    loop {
        let left = next.map(|due| due.saturating_sub(now()));
        if left == Some(0) {
            return;
        }
        let timeout = left.map(|left| TimeSpec::from_duration(Duration::from_nanos(left.saturating_sub(WATCH))));
        match ppoll(&mut fds, timeout, None) {
            Ok(0) => continue,
            Ok(_) => break,
            Err(_) => return,
        }
    }
    let mut drained = [0];
    while shared.woken.recv(&mut drained).is_ok() {}
}

/// Asks for precise timers and, where allowed, for precedence over the hosts' processes. Neither is needed for
/// correctness, and what was reached shows in the calibration.
fn hurry() {
    let _ = nix::sys::prctl::set_timerslack(1);
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads one sched_param, which lives on this stack; 0 means the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
}

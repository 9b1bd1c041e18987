//! When a thread that found nothing more looks again at once instead of sleeping.
//!
//! Waking a sleeping thread, and the core it slept on, takes longer than sealing a packet: it is most of what a short request
//! and its answer take. So a thread may look again for [`WINDOW`] after each arrival. What that costs is bounded twice:
//!
//! - it looks again only where the arrival before came less than [`CLOSE`] earlier, so that lone packets (probes, keepalives)
//!   cost nothing;
//! - a window in which nothing came is charged to an allowance that grows by [`SHARE`] of the time that passes and is at
//!   most [`ALLOWANCE`]. Traffic whose packets follow each other more slowly than the window thus costs at most that share of
//!   a core. A window in which something came is free: there, a whole core is spent, and the latency is what it buys.

use std::time::{Duration, Instant};

/// How long after an arrival the next is looked for. More than a request and its answer take where every thread on their way
/// must be woken (100 to 170 µs on two virtual processors): were it less, two ends that sleep would never meet each other awake.
/// Less than what a query that waits for a disk takes, which no looking makes faster.
const WINDOW: Duration = Duration::from_micros(200);

/// How close two arrivals must be for the second to be worth looking for a third. Longer than a quick query and its answer;
/// shorter than the gap between the probes of a mesh of twenty, which is some 10 ms.
const CLOSE: Duration = Duration::from_millis(2);

/// Windows in vain take at most one part of so many of the time.
const SHARE: u32 = 10;

/// What can be saved up for windows in vain: 25 of them, the pauses of a transaction of some dozen queries.
const ALLOWANCE: Duration = Duration::from_millis(5);

/// Decides whether to look again. Time comes in as an argument.
#[derive(Debug, Default)]
pub(super) struct Polling {
    /// The last arrival.
    last: Option<Instant>,
    /// Whether the window that the last arrival opened may be used.
    open: bool,
    /// What windows in vain may still cost.
    allowance: Duration,
}

impl Polling {
    /// Something arrived.
    pub(super) fn arrived(&mut self, now: Instant) {
        let since = self.last.map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        self.allowance = self.allowance.saturating_add(since / SHARE).min(ALLOWANCE);
        self.open = since < CLOSE && self.allowance >= WINDOW;
        self.last = Some(now);
    }

    /// Tells whether to look again at once. Once it has said no, it says no until something has arrived.
    pub(super) fn looks_again(&mut self, now: Instant) -> bool {
        let Some(last) = self.last.filter(|_| self.open) else { return false };
        if now.saturating_duration_since(last) >= WINDOW {
            self.open = false;
            self.allowance = self.allowance.saturating_sub(WINDOW);
        }
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much longer than it must a look takes here.
    const LOOK: Duration = Duration::from_micros(1);

    /// Arrivals at equal gaps for a second: how long the thread stayed awake for them between one and the next.
    fn awake_in_a_second(gap: Duration) -> Duration {
        let (mut polling, start) = (Polling::default(), Instant::now());
        let (mut arrival, mut awake) = (Duration::ZERO, Duration::ZERO);
        while arrival < Duration::from_secs(1) {
            polling.arrived(start + arrival);
            let mut looked = Duration::ZERO;
            while looked < gap && polling.looks_again(start + arrival + looked) {
                looked += LOOK;
            }
            awake += looked;
            arrival += gap;
        }
        awake
    }

    #[test]
    fn lone_packets_cost_nothing() {
        assert_eq!(awake_in_a_second(CLOSE), Duration::ZERO);
        let (mut polling, now) = (Polling::default(), Instant::now());
        assert!(!polling.looks_again(now));
        polling.arrived(now);
        assert!(!polling.looks_again(now));
    }

    #[test]
    fn while_packets_follow_closely_the_thread_never_sleeps() {
        for gap in [1, 10, 199] {
            let awake = awake_in_a_second(Duration::from_micros(gap));
            // All but the first gap.
            assert!(awake > Duration::from_millis(999), "gaps of {gap} µs: {awake:?}");
        }
    }

    #[test]
    fn windows_in_vain_take_a_tenth_of_the_time_and_what_was_saved() {
        let most = Duration::from_secs(1) / SHARE + ALLOWANCE + WINDOW;
        for gap in [201, 240, 400, 700, 1999] {
            let awake = awake_in_a_second(Duration::from_micros(gap));
            assert!(awake <= most, "gaps of {gap} µs: {awake:?}");
            // The bound is met because windows end, not because none was opened.
            assert!(awake >= Duration::from_millis(20), "gaps of {gap} µs: {awake:?}");
        }
    }

    #[test]
    fn a_window_ends_and_stays_closed_until_something_arrives() {
        let (mut polling, start) = (Polling::default(), Instant::now());
        polling.arrived(start);
        let second = start + CLOSE / 2;
        polling.arrived(second);
        assert!(polling.looks_again(second) && polling.looks_again(second + WINDOW - LOOK));
        let left = polling.allowance;
        assert!(!polling.looks_again(second + WINDOW));
        assert!(!polling.looks_again(second), "closed, whatever the time");
        assert_eq!(left - polling.allowance, WINDOW, "charged once");
    }
}

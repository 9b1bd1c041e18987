//! How soon a thread gets a processor when it has something to do.

use nix::errno::Errno;
use std::fmt;

/// The slice asked for, in nanoseconds: the shortest the kernel grants (`fair.c`, Linux 6.12). A batch of packets takes
/// about as long, so nothing is lost by being asked to give way after it.
const SLICE: u64 = 100_000;

/// The nice value asked for: half way to the most urgent. What the kernel's own network code does for a packet goes before
/// every program; this much goes before most.
const NICE: libc::c_int = -10;

/// What the kernel granted to the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promptness {
    /// A short slice: by its earlier deadline a thread that wakes goes before one with a longer slice (Linux 6.12; older
    /// kernels accept it and take no notice). Takes no privilege.
    pub short_slice: Result<(), Errno>,
    /// A larger weight. Takes `CAP_SYS_NICE`, so it is asked for before privileges are given up; threads inherit it.
    pub weight: Result<(), Errno>,
}

impl fmt::Display for Promptness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |step: &Result<(), Errno>| step.map_or_else(|errno| errno.desc(), |()| "yes");
        write!(f, "short slice: {}, nice {NICE}: {}", word(&self.short_slice), word(&self.weight))
    }
}

/// Asks that the calling thread, and those it starts from now on, wait as little as possible for a processor.
///
/// On a host whose processors are busy, a packet otherwise waits several milliseconds at each end for the thread that moves
/// it. Nothing is reserved: a thread that uses its share waits like any other.
pub fn ask_for_promptness() -> Promptness {
    // The nice value first: setting the attributes sets it again.
    // SAFETY: setpriority takes no pointers; zero is the calling thread.
    let weight = Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) }).map(drop);
    // SAFETY: getpriority takes no pointers. -1 may be a value or an error; of the calling thread it is a value.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: SLICE,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the pointer is to a sched_attr that says its own size, which the kernel only reads.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Promptness { short_slice: Errno::result(set).map(drop), weight }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_what_it_may_ask_for_and_its_children_inherit_it() {
        std::thread::spawn(|| {
            let granted = ask_for_promptness();
            assert_eq!(granted.short_slice, Ok(()), "{granted}");
            let nice = || {
                // SAFETY: getpriority takes no pointers.
                unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
            };
            match granted.weight {
                Ok(()) => assert_eq!((nice(), std::thread::spawn(nice).join().unwrap()), (NICE, NICE)),
                Err(errno) => assert!(matches!(errno, Errno::EACCES | Errno::EPERM), "{granted}"),
            }
        })
        .join()
        .unwrap();
    }
}

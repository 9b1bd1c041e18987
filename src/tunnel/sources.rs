//! How many handshakes one source may start: a token bucket per IPv4 address or IPv6 /64.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;

/// Sources remembered at once. A table this full is itself the sign of a flood, and refuses whoever is not in it.
const MOST_SOURCES: usize = 65_536;

/// How often forgotten sources are swept out.
const SWEEP: Duration = Duration::from_secs(1);

/// A token bucket in one word: the time at which it would be full again.
#[derive(Clone, Copy, Default)]
pub(super) struct Bucket(Instant);

impl Bucket {
    /// Takes one token of a bucket that refills one per `interval` and holds `burst`.
    pub(super) fn take(&mut self, now: Instant, interval: Duration, burst: u32) -> bool {
        let full = self.0.max(now) + interval;
        let within = full.saturating_since(now) <= interval * burst;
        if within {
            self.0 = full;
        }
        within
    }

    fn is_full(&self, now: Instant) -> bool {
        self.0 <= now
    }
}

/// Whether the sender has shown that it receives at its address (by MAC2). The two have separate allowances, so that
/// whoever forges a source address cannot use up the allowance of its owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    Claimed,
    Proven,
}

#[derive(PartialEq, Eq, Hash)]
enum Source {
    V4(u32),
    V6(u64),
}

impl Source {
    fn of(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V4(v4) => Source::V4(u32::from(v4)),
            IpAddr::V6(v6) => Source::V6((u128::from(v6) >> 64) as u64),
        }
    }
}

/// The buckets of all sources seen in the last moments.
pub(super) struct Sources {
    buckets: HashMap<(Standing, Source), Bucket>,
    swept: Instant,
}

impl Sources {
    /// Twenty a second, five at once: the kernel's figures (ratelimiter.c).
    const INTERVAL: Duration = Duration::from_millis(50);
    const BURST: u32 = 5;

    pub(super) fn new() -> Sources {
        Sources { buckets: HashMap::new(), swept: Instant::ZERO }
    }

    /// Takes one handshake off the source's allowance.
    pub(super) fn take(&mut self, now: Instant, standing: Standing, address: IpAddr) -> bool {
        if now.saturating_since(self.swept) >= SWEEP {
            self.sweep(now);
        }
        let room = self.buckets.len() < MOST_SOURCES;
        match self.buckets.entry((standing, Source::of(address))) {
            Entry::Occupied(mut known) => known.get_mut().take(now, Self::INTERVAL, Self::BURST),
            Entry::Vacant(free) if room => free.insert(Bucket::default()).take(now, Self::INTERVAL, Self::BURST),
            Entry::Vacant(_) => false,
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        if self.buckets.capacity() > 4 * self.buckets.len() + 1_024 {
            self.buckets.shrink_to_fit();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn five_at_once_then_twenty_a_second() {
        let mut sources = Sources::new();
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let mut served = 0;
        for millis in 0..2_000 {
            served += u32::from(sources.take(Instant::from_millis(millis), Standing::Claimed, address));
        }
        assert_eq!(served, 4 + 40, "a burst, then one per 50 ms");
        assert!(sources.take(Instant::from_millis(2_000), Standing::Proven, address), "an allowance of its own");
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_source() {
        let mut sources = Sources::new();
        let served = (0..100u128)
            .filter(|host| {
                let address = Ipv6Addr::from((0x2001_0db8_u128 << 96) | host);
                sources.take(Instant::ZERO, Standing::Claimed, IpAddr::V6(address))
            })
            .count();
        assert_eq!(served, 5);
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let plain: IpAddr = "192.0.2.1".parse().unwrap();
        assert!((0..5).all(|_| sources.take(Instant::ZERO, Standing::Claimed, mapped)));
        assert!(!sources.take(Instant::ZERO, Standing::Claimed, plain));
    }

    #[test]
    fn a_full_table_refuses_strangers_and_recovers() {
        let mut sources = Sources::new();
        for host in 0..100_000u32 {
            let served = sources.take(Instant::ZERO, Standing::Claimed, IpAddr::V4(Ipv4Addr::from(host)));
            assert_eq!(served, (host as usize) < MOST_SOURCES);
        }
        assert_eq!(sources.len(), MOST_SOURCES);
        assert!(sources.take(Instant::from_millis(1_000), Standing::Claimed, IpAddr::V4(Ipv4Addr::from(99_999))));
        assert_eq!(sources.len(), 1);
    }
}

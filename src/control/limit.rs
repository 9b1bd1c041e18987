//! Token buckets: how much a source or a member may ask of this node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;

/// A token bucket in virtual time.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    /// Makes a full bucket that holds `burst` tokens and gains `per_second` tokens a second.
    pub fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        Bucket { tokens: burst, burst, per_second, filled: now }
    }

    /// Takes `amount` tokens, or none and returns false.
    pub fn take(&mut self, amount: f64, now: Instant) -> bool {
        self.fill(now);
        if self.tokens < amount {
            return false;
        }
        self.tokens -= amount;
        true
    }

    /// Returns how long until `amount` tokens are there (zero where they are).
    pub fn wait(&mut self, amount: f64, now: Instant) -> Duration {
        self.fill(now);
        let missing = (amount.min(self.burst) - self.tokens).max(0.0);
        Duration::from_secs_f64(missing / self.per_second)
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    fn fill(&mut self, now: Instant) {
        let gained = now.saturating_since(self.filled).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.filled = self.filled.max(now);
    }
}

/// Limits what strangers cost: introductions and joins need a Diffie-Hellman operation each before we know who asks.
#[derive(Debug)]
pub struct StrangerLimit {
    all: Bucket,
    sources: BTreeMap<[u8; 8], Bucket>,
    swept: Instant,
}

impl StrangerLimit {
    /// A source may ask this often per second, after a burst: a node retries its introduction four times in its first
    /// second, and a NAT may hide a rack of them.
    const SOURCE_PER_SECOND: f64 = 20.0;
    const SOURCE_BURST: f64 = 50.0;
    /// All strangers together: 0.15 ms each, so at most a tenth of one core.
    const ALL_PER_SECOND: f64 = 600.0;
    const ALL_BURST: f64 = 1200.0;
    /// Sources remembered at once; some 100 bytes each. A full table refuses new sources, not known ones.
    const SOURCES: usize = 4096;
    /// Shortest time between two looks for sources that can be forgotten: a look costs as much as a stranger does.
    const SWEEP_PAUSE: Duration = Duration::from_millis(100);

    /// Makes a limit with nothing used up.
    pub fn new(now: Instant) -> Self {
        let all = Bucket::new(Self::ALL_PER_SECOND, Self::ALL_BURST, now);
        StrangerLimit { all, sources: BTreeMap::new(), swept: now }
    }

    /// Says whether a request from `source` may be served now, and counts it.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        if !self.all.wait(1.0, now).is_zero() {
            return false;
        }
        let key = source_key(source);
        if !self.sources.contains_key(&key) {
            if self.sources.len() >= Self::SOURCES && now.saturating_since(self.swept) >= Self::SWEEP_PAUSE {
                self.swept = now;
                self.sources.retain(|_, bucket| !bucket.is_full(now));
            }
            if self.sources.len() >= Self::SOURCES {
                return false;
            }
            self.sources.insert(key, Bucket::new(Self::SOURCE_PER_SECOND, Self::SOURCE_BURST, now));
        }
        let within = self.sources.get_mut(&key).is_some_and(|bucket| bucket.take(1.0, now));
        within && self.all.take(1.0, now)
    }
}

/// One key per IPv4 address or IPv6 /64: whoever holds a /64 holds all its addresses.
fn source_key(source: IpAddr) -> [u8; 8] {
    let mut key = [0u8; 8];
    match source.to_canonical() {
        IpAddr::V4(address) => {
            key[..2].copy_from_slice(&[0xff, 0xff]);
            key[4..].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => key.copy_from_slice(&address.octets()[..8]),
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn a_bucket_refills_with_time() {
        let mut bucket = Bucket::new(10.0, 2.0, Instant::ZERO);
        assert!(bucket.take(2.0, Instant::ZERO));
        assert!(!bucket.take(1.0, Instant::ZERO));
        assert_eq!(bucket.wait(1.0, Instant::ZERO), Duration::from_millis(100));
        assert!(bucket.take(1.0, Instant::from_millis(100)));
        assert!(!bucket.take(2.1, Instant::from_millis(100_000)), "never more than the burst");
    }

    #[test]
    fn one_loud_source_leaves_the_others_served() {
        let mut limit = StrangerLimit::new(Instant::ZERO);
        let loud = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let served = (0..1000).filter(|_| limit.admit(loud, Instant::ZERO)).count();
        assert_eq!(served, 50);
        assert!(limit.admit(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), Instant::ZERO));
    }

    #[test]
    fn a_flood_of_sources_is_bounded_in_work_and_memory() {
        let mut limit = StrangerLimit::new(Instant::ZERO);
        let served = (0..100_000u32).filter(|i| limit.admit(IpAddr::V4(Ipv4Addr::from(*i)), Instant::ZERO)).count();
        assert_eq!(served, StrangerLimit::ALL_BURST as usize);
        assert!(limit.sources.len() <= StrangerLimit::SOURCES);
        assert!(limit.admit(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), Instant::from_millis(60_000)), "it passes");
        assert!(limit.sources.len() <= StrangerLimit::SOURCES);
    }

    #[test]
    fn a_full_table_is_looked_through_at_times_and_not_for_every_stranger() {
        let source = |i: u32| IpAddr::V4(Ipv4Addr::from(i));
        let mut limit = StrangerLimit::new(Instant::ZERO);
        // As a flood over many seconds leaves it, without living through them.
        let tired = Bucket { tokens: 0.0, ..Bucket::new(0.1, 50.0, Instant::ZERO) };
        (0..StrangerLimit::SOURCES as u32)
            .for_each(|i| assert!(limit.sources.insert(source_key(source(i)), tired).is_none()));
        let now = Instant::from_millis(1_000);
        assert!(!limit.admit(source(1 << 20), now), "all of them are still in use");
        let rested = Bucket::new(0.1, 50.0, now);
        limit.sources.insert(source_key(source(7)), rested);
        assert!(!limit.admit(source(1 << 20), now), "looked through a moment ago");
        assert!(limit.admit(source(1 << 20), now + StrangerLimit::SWEEP_PAUSE));
        assert_eq!(limit.sources.len(), StrangerLimit::SOURCES);
    }

    #[test]
    fn a_prefix_of_addresses_is_one_source() {
        let a = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
        let b = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 9, 9, 9, 9);
        assert_eq!(source_key(a.into()), source_key(b.into()));
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped();
        assert_eq!(source_key(mapped.into()), source_key(Ipv4Addr::new(192, 0, 2, 7).into()));
    }
}

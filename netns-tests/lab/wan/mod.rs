//! The WAN emulator: a seeded internet between hosts, in one thread of this process.
//!
//! Each host's device is a TUN whose far end is here. IPv4 and IPv6 packets go to the port that has their destination
//! address, through a direction ([`pipe::Pipe`]) that delays, loses, reorders, duplicates, corrupts or drops them.
//! Every direction has a generator of its own, seeded by the network's seed and the two names, so the n-th packet on
//! it meets the same chance in every run. What happened to each packet is in the log ([`Record`]), and settings may be
//! changed at any time.

pub mod core;
mod engine;
pub mod log;
pub mod packet;
pub mod pipe;
mod tun;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::core::Core;
pub use engine::now;
pub use log::{Counts, Fate, Record};
pub use packet::Packet;
pub use pipe::{Burst, Rate, Settings};

use super::error::{Error, Result};
use super::host::Host;
use engine::Shared;

/// An emulated network. Cloning gives another handle; it ends with the last one.
#[derive(Clone)]
pub struct Wan(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// One host's place on an emulated network.
#[derive(Clone, Debug)]
pub struct WanPort {
    /// Its name in the log and in [`Wan::way`]: the host's, or `host/device` for another device than `eth0`.
    pub name: String,
    /// The device in the host.
    pub dev: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Wan {
    pub(super) fn start(seed: u64) -> Result<Wan> {
        let shared = Arc::new(Shared::new(Core::new(seed))?);
        let thread = engine::start(shared.clone())?;
        Ok(Wan(Arc::new(Inner { shared, thread: Mutex::new(Some(thread)) })))
    }

    /// Puts a host on the network as its `eth0`: one address of each family and default routes through it.
    ///
    /// # Errors
    /// NOT RUN where TUN devices cannot be made; failed where the host has an `eth0` already.
    pub fn attach(&self, host: &Host) -> Result<WanPort> {
        self.attach_at(host, "eth0", None)
    }

    /// Puts a host on the network by another device. Default routes go through the first one only.
    ///
    /// # Errors
    /// As [`Wan::attach`].
    pub fn attach_as(&self, host: &Host, dev: &str) -> Result<WanPort> {
        self.attach_at(host, dev, None)
    }

    /// Returns a site; ports attached through it share what [`Wan::sites`] sets.
    pub fn site(&self, name: &str) -> Site {
        Site { wan: self.clone(), name: name.into() }
    }

    fn attach_at(&self, host: &Host, dev: &str, site: Option<Arc<str>>) -> Result<WanPort> {
        let name = if dev == "eth0" { host.name().to_owned() } else { format!("{}/{dev}", host.name()) };
        let device = Arc::new(tun::open(host.netns(), dev)?);
        host.link_up(dev)?;
        let number = {
            let mut core = self.0.shared.lock();
            core.attach(self::core::Port { name: name.as_str().into(), site, device, unrouted: 0 })
        };
        self.0.shared.wake();
        let last = u16::try_from(number + 1).map_err(|_| Error::failed("an emulated network holds 65534 ports"))?;
        let [high, low] = last.to_be_bytes();
        // RFC 2544 sets 198.18.0.0/15 aside for benches; the plain networks use its upper half.
        let v4 = Ipv4Addr::new(198, 18, high, low);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, last);
        let port = WanPort { name, dev: dev.to_owned(), v4, v6 };
        self.add_address(host, &port, IpAddr::V4(v4))?;
        self.add_address(host, &port, IpAddr::V6(v6))?;
        if dev == "eth0" {
            host.add_route((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), None, dev)?;
            host.add_route((IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0), None, dev)?;
        }
        Ok(port)
    }

    /// Gives a port another address, on the host and on the network.
    ///
    /// # Errors
    /// Where the host has it already.
    pub fn add_address(&self, host: &Host, port: &WanPort, address: IpAddr) -> Result<()> {
        host.add_address(&port.dev, address, full(address))?;
        self.route(address, &port.name);
        Ok(())
    }

    /// Takes an address away from a port, on the host and on the network.
    ///
    /// # Errors
    /// Where the host does not have it.
    pub fn remove_address(&self, host: &Host, port: &WanPort, address: IpAddr) -> Result<()> {
        self.0.shared.lock().routes.remove(&address);
        host.remove_address(&port.dev, address, full(address))
    }

    /// Makes the network deliver an address to a port, whatever the host knows about it.
    ///
    /// # Panics
    /// Where there is no such port.
    pub fn route(&self, address: IpAddr, port: &str) {
        let mut core = self.0.shared.lock();
        let number = core.find(port);
        core.routes.insert(address, number);
    }

    /// Chooses one direction.
    ///
    /// # Panics
    /// Where there is no such port, or both are the same.
    pub fn way(&self, from: impl AsRef<str>, to: impl AsRef<str>) -> Ways {
        let core = self.0.shared.lock();
        let way = (core.find(from.as_ref()), core.find(to.as_ref()));
        assert!(way.0 != way.1, "a port has no way to itself");
        self.ways(vec![way])
    }

    /// Chooses both directions between two ports.
    ///
    /// # Panics
    /// As [`Wan::way`].
    pub fn link(&self, a: impl AsRef<str>, b: impl AsRef<str>) -> Ways {
        let mut ways = self.way(a, b);
        let (from, to) = ways.ways[0];
        ways.ways.push((to, from));
        ways
    }

    /// Chooses both directions between all ports of two different sites, also of ports attached later.
    pub fn sites(&self, a: &str, b: &str) -> Ways {
        let core = self.0.shared.lock();
        let at = |number: usize, site: &str| core.ports[number].site.as_deref() == Some(site);
        let between = |&(from, to): &(usize, usize)| (at(from, a) && at(to, b)) || (at(from, b) && at(to, a));
        let ways = core.pipes.keys().copied().filter(between).collect();
        Ways { sites: Some((a.into(), b.into())), ..self.ways(ways) }
    }

    /// Chooses all directions from and to a port: its uplink.
    ///
    /// # Panics
    /// Where there is no such port.
    pub fn uplink(&self, port: impl AsRef<str>) -> Ways {
        let core = self.0.shared.lock();
        let number = core.find(port.as_ref());
        self.ways(core.pipes.keys().copied().filter(|(from, to)| *from == number || *to == number).collect())
    }

    /// Chooses all directions between ports attached so far.
    pub fn all(&self) -> Ways {
        self.ways(self.0.shared.lock().pipes.keys().copied().collect())
    }

    fn ways(&self, ways: Vec<(usize, usize)>) -> Ways {
        Ways { wan: self.clone(), ways, sites: None }
    }

    /// Cuts every link between the two groups, and heals nothing else. [`Ways::cut`] on [`Wan::all`] heals.
    ///
    /// # Panics
    /// Where there is no such port.
    pub fn partition(&self, left: &[&str], right: &[&str]) {
        for a in left {
            for b in right {
                self.link(a, b).cut(true);
            }
        }
    }

    /// Returns the totals of one direction.
    ///
    /// # Panics
    /// As [`Wan::way`].
    pub fn counts(&self, from: impl AsRef<str>, to: impl AsRef<str>) -> Counts {
        let core = self.0.shared.lock();
        let way = (core.find(from.as_ref()), core.find(to.as_ref()));
        core.counts.get(&way).copied().unwrap_or_default()
    }

    /// Returns how many packets a port sent to addresses that nobody has.
    ///
    /// # Panics
    /// Where there is no such port.
    pub fn unrouted(&self, port: impl AsRef<str>) -> u64 {
        let core = self.0.shared.lock();
        core.ports[core.find(port.as_ref())].unrouted
    }

    /// Returns the number that the next record of the log will get.
    pub fn mark(&self) -> u64 {
        self.0.shared.lock().log.next()
    }

    /// Returns the records from `mark` on that are still kept (the last 262,144 are).
    pub fn log(&self, mark: u64) -> Vec<Record> {
        self.0.shared.lock().log.since(mark).cloned().collect()
    }

    /// Waits until `look` says yes; it is asked at once and after each movement of packets.
    ///
    /// # Errors
    /// Where the time runs out.
    pub fn wait(&self, limit: Duration, what: &str, look: impl Fn(&Core) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut core = self.0.shared.lock();
        while !look(&core) {
            let left = deadline.checked_duration_since(Instant::now());
            let left = left.ok_or_else(|| Error::failed(format!("the network did not see {what} within {limit:?}")))?;
            core = self.0.shared.moved.wait_timeout(core, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Writes the log to a file, one record a line; for the evidence of a failed test.
    pub fn write_log(&self, path: &Path) {
        let mut text = String::new();
        for record in self.0.shared.lock().log.since(0) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{record}");
        }
        let _ = std::fs::write(path, text);
    }
}

impl Core {
    /// Returns the number of a port that must exist: a wrong name is a bug in the test.
    fn find(&self, name: &str) -> usize {
        self.port(name).unwrap_or_else(|| panic!("the emulated network has no port {name}"))
    }

    /// Returns the totals of one direction, zeros where there is none.
    pub fn count(&self, from: &str, to: &str) -> Counts {
        let way = self.port(from).zip(self.port(to));
        way.and_then(|way| self.counts.get(&way)).copied().unwrap_or_default()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

/// A place where hosts are close to each other.
pub struct Site {
    wan: Wan,
    name: Arc<str>,
}

impl Site {
    /// Puts a host on the network at this site; see [`Wan::attach`].
    ///
    /// # Errors
    /// As [`Wan::attach`].
    pub fn attach(&self, host: &Host) -> Result<WanPort> {
        self.wan.attach_at(host, "eth0", Some(self.name.clone()))
    }

    /// Puts a host on the network at this site by another device; see [`Wan::attach_as`].
    ///
    /// # Errors
    /// As [`Wan::attach`].
    pub fn attach_as(&self, host: &Host, dev: &str) -> Result<WanPort> {
        self.wan.attach_at(host, dev, Some(self.name.clone()))
    }
}

/// Some directions of the network; each method changes one thing on all of them, at once and for new packets.
pub struct Ways {
    wan: Wan,
    ways: Vec<(usize, usize)>,
    sites: Option<(Arc<str>, Arc<str>)>,
}

impl Ways {
    /// Changes the settings of each direction.
    pub fn change(&self, change: impl Fn(&mut Settings)) -> &Self {
        let mut core = self.wan.0.shared.lock();
        for way in &self.ways {
            if let Some(pipe) = core.pipes.get_mut(way) {
                pipe.change(&change);
            }
        }
        if let Some((a, b)) = &self.sites {
            for pair in [(a.clone(), b.clone()), (b.clone(), a.clone())] {
                change(core.sites.entry(pair).or_default());
            }
        }
        drop(core);
        self.wan.0.shared.wake();
        self
    }

    /// Sets the time each packet takes, one way.
    pub fn delay(&self, delay: Duration) -> &Self {
        self.change(|s| s.delay = delay)
    }

    /// Adds a random time between zero and `most` to each packet's delay, without reordering.
    pub fn jitter(&self, most: Duration) -> &Self {
        self.change(|s| (s.jitter, s.ordered) = (most, true))
    }

    /// Adds a random time between zero and `most` to each packet's delay, independent of all others, so that packets
    /// overtake each other.
    pub fn unordered_jitter(&self, most: Duration) -> &Self {
        self.change(|s| (s.jitter, s.ordered) = (most, false))
    }

    /// Loses packets with this probability, each independent of all others.
    pub fn loss(&self, probability: f64) -> &Self {
        self.change(|s| s.loss = probability)
    }

    /// Loses packets in bursts.
    pub fn burst(&self, burst: impl Into<Option<Burst>>) -> &Self {
        let burst = burst.into();
        self.change(|s| s.burst = burst)
    }

    /// Holds packets back for `by` with this probability, so that others overtake them.
    pub fn reorder(&self, probability: f64, by: Duration) -> &Self {
        self.change(|s| (s.reorder, s.reorder_by) = (probability, by))
    }

    /// Delivers packets twice with this probability.
    pub fn duplicate(&self, probability: f64) -> &Self {
        self.change(|s| s.duplicate = probability)
    }

    /// Flips one bit behind the IP header with this probability.
    pub fn corrupt(&self, probability: f64) -> &Self {
        self.change(|s| s.corrupt = probability)
    }

    /// Limits each direction's rate in bits per second, with a queue of this many bytes in front; or lifts the limit.
    pub fn rate(&self, rate: impl Into<Option<Rate>>) -> &Self {
        let rate = rate.into();
        self.change(|s| s.rate = rate)
    }

    /// Drops IP packets larger than `bytes`, telling the sender by ICMP or (`tell: false`, a black hole) not.
    pub fn mtu(&self, bytes: usize, tell: bool) -> &Self {
        self.change(|s| s.mtu = Some((bytes, tell)))
    }

    /// Makes packets disappear on entry; those under way still arrive.
    pub fn blackhole(&self, on: bool) -> &Self {
        self.change(|s| s.blackhole = on)
    }

    /// Makes packets disappear on entry and on exit, so also those under way; or heals that.
    pub fn cut(&self, on: bool) -> &Self {
        self.change(|s| s.cut = on)
    }

    /// Drops the packets for which `drop` says yes: the third one, all handshakes, everything but TCP.
    pub fn filter(&self, drop: impl Fn(&Packet<'_>) -> bool + Send + Sync + 'static) -> &Self {
        let drop: pipe::Filter = Arc::new(drop);
        self.change(move |s| s.filter = Some(drop.clone()))
    }

    /// Takes every impairment away; delay included.
    pub fn clear(&self) -> &Self {
        self.change(|s| *s = Settings::default())
    }
}

/// Returns the prefix length of a single address.
fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

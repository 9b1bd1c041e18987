//! Many nodes, each pair as far apart as any other: many links from few programs.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use meshd::api::Status;

use crate::contender::node_name;
use crate::lab::{Error, Host, Lab, Mesh, Result, Wan};
use crate::stage::PATIENCE;

/// Between two looks at a daemon's log.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// The hosts, the network and the mesh.
pub struct Many {
    /// The emulated network.
    pub wan: Wan,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The mesh of all of them.
    pub mesh: Mesh,
}

impl Many {
    /// Makes `count` hosts, `delay` apart one way, and their mesh, in which nothing runs yet. Every node probes each
    /// `interval`.
    ///
    /// # Errors
    /// Where the network cannot be made, or a program of meshd fails.
    pub fn new(lab: &Lab, seed: u64, count: usize, delay: Duration, interval: Duration) -> Result<Many> {
        let wan = lab.wan(seed)?;
        let hosts: Vec<Host> = (0..count).map(|number| lab.host(&node_name(number))).collect::<Result<_>>()?;
        let underlay = hosts.iter().map(|host| Ok(wan.attach(host)?.v4)).collect::<Result<Vec<_>>>()?;
        wan.all().delay(delay);
        let mesh = Mesh::init(&hosts[0], underlay[0])?;
        for (host, underlay) in hosts.iter().zip(underlay).skip(1) {
            mesh.admit_offline(host, underlay)?;
        }
        for host in &hosts {
            mesh.change_config(host, |config| config.probe.interval = interval)?;
        }
        Ok(Many { wan, hosts, mesh })
    }

    /// Starts every daemon and waits until each has measured its links to all others.
    ///
    /// # Errors
    /// Where one does not come up.
    pub fn start(&self) -> Result<()> {
        let all: Vec<&Host> = self.hosts.iter().collect();
        self.mesh.start(&all)?;
        let measured = |status: &Status| status.peers.iter().filter(|peer| peer.link.is_some()).count();
        for host in &self.hosts {
            self.mesh.wait_for(host, "all others", PATIENCE, |status| measured(status) + 1 == self.hosts.len())?;
        }
        Ok(())
    }

    /// All pairs of numbers of hosts, the smaller one first.
    pub fn links(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let count = self.hosts.len();
        (0..count).flat_map(move |low| (low + 1..count).map(move |high| (low, high)))
    }

    /// How often the daemons so far said that a link is down.
    ///
    /// # Errors
    /// Where one does not run.
    pub fn times_down(&self) -> Result<usize> {
        let count = |host| Ok(self.mesh.daemon(host)?.stderr().lines().filter(|line| is_change(line, "Down")).count());
        self.hosts.iter().map(count).sum()
    }

    /// Waits until the daemon of one host has said, at `after` or later, that its link to another has come into a state;
    /// returns when it said so first.
    ///
    /// # Errors
    /// Where it does not say so in time.
    pub fn wait_for_change(
        &self,
        [from, to]: [usize; 2],
        state: &str,
        after: SystemTime,
        limit: Duration,
    ) -> Result<SystemTime> {
        let daemon = self.mesh.daemon(&self.hosts[from])?;
        let (host, peer) = (self.hosts[from].name(), self.hosts[to].name());
        let named = format!("peer={peer}");
        let deadline = Instant::now() + limit;
        loop {
            let stderr = daemon.stderr();
            let about = stderr.lines().filter(|line| line.split_whitespace().any(|word| word == named));
            let times = about.filter(|line| is_change(line, state)).filter_map(time_of);
            if let Some(time) = times.into_iter().find(|time| *time >= after) {
                return Ok(time);
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("{host} did not say within {limit:?} that {peer} is {state}")));
            }
            thread::sleep(LOOK_PAUSE);
        }
    }
}

/// When a line of a daemon's log was written.
fn time_of(line: &str) -> Option<SystemTime> {
    let stamp: jiff::Timestamp = line.split_whitespace().next()?.parse().ok()?;
    Some(stamp.into())
}

/// Whether a line of a daemon's log tells that a link has come into a state.
fn is_change(line: &str, state: &str) -> bool {
    line.contains(" link peer=") && line.split_whitespace().any(|word| word.strip_prefix("to=") == Some(state))
}

//! Programs that make a mesh, here one of two: meshd, tinc and Nebula as `benches/mesh` sets them up.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::contender::{Contender, Place};
use crate::lab::error::Context;
use crate::lab::{Error, Proc, Result, place};
use crate::nebula::Nebula;
use crate::ours;
use crate::peer::{Pair, Peer, Running};
use crate::tinc::Tinc;

/// Which mode of meshd's data plane is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// The default.
    Normal,
    /// `[dataplane] latency = "low"`.
    Low,
}

/// meshd.
pub struct Meshd {
    contender: ours::Meshd,
    programs: [PathBuf; 2],
    latency: Latency,
}

impl Meshd {
    /// Takes `meshd` and `meshctl` of this build, or those given.
    ///
    /// # Errors
    /// NOT RUN where they are missing.
    pub fn new(meshd: Option<PathBuf>, meshctl: Option<PathBuf>, latency: Latency) -> Result<Meshd> {
        let or_built = |given: Option<PathBuf>, name| match given {
            // The daemons run in directories of their own.
            Some(path) => {
                fs::canonicalize(&path).map_err(|error| Error::not_run(format!("{}: {error}", path.display())))
            }
            None => place::binary(name),
        };
        let programs = [or_built(meshd, "meshd")?, or_built(meshctl, "meshctl")?];
        let [daemon, command] = programs.clone();
        Ok(Meshd { contender: ours::Meshd::new(Some(daemon), Some(command))?, programs, latency })
    }

    /// Starts it on the near host alone, as the first node of a mesh.
    ///
    /// # Errors
    /// Where one of its programs fails.
    pub fn start_alone(&self, pair: &Pair) -> Result<Proc> {
        let ready = self.contender.prepare(&pair.places[..1])?;
        let first = ready.first().ok_or_else(|| Error::failed("nothing to start"))?;
        (first.daemon)().spawn()
    }

    /// Asks for the mode in a node's configuration, and `meshctl` whether there is such a thing.
    fn apply(&self, place: &Place) -> Result<()> {
        let path = place.host.dir().join("mesh/meshd.toml");
        let text = fs::read_to_string(&path).context("read a configuration")?;
        let text = match text.split_once("[dataplane]\n") {
            Some((before, after)) => format!("{before}[dataplane]\nlatency = \"low\"\n{after}"),
            None => format!("{text}\n[dataplane]\nlatency = \"low\"\n"),
        };
        fs::write(&path, text).context("write a configuration")?;
        let checked = place.host.command(&self.programs[1]).arg("check").arg(&path).check();
        checked.map(drop).map_err(|_| Error::not_run("this meshd knows no `[dataplane] latency`"))
    }
}

impl Peer for Meshd {
    fn name(&self) -> &'static str {
        match self.latency {
            Latency::Normal => "meshd",
            Latency::Low => "meshd-low",
        }
    }

    fn version(&self) -> String {
        let output = Command::new(&self.programs[0]).arg("--version").output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        format!("{said}, {}", self.programs[0].display())
    }

    fn start(&self, pair: &Pair) -> Result<Running> {
        start(&self.contender, pair, |place| match self.latency {
            Latency::Normal => Ok(()),
            Latency::Low => self.apply(place),
        })
    }
}

impl Peer for Nebula {
    fn name(&self) -> &'static str {
        Contender::name(self)
    }

    fn version(&self) -> String {
        Contender::version(self).to_owned()
    }

    fn start(&self, pair: &Pair) -> Result<Running> {
        start(self, pair, |_| Ok(()))
    }
}

impl Peer for Tinc {
    fn name(&self) -> &'static str {
        Contender::name(self)
    }

    fn version(&self) -> String {
        Contender::version(self).to_owned()
    }

    fn start(&self, pair: &Pair) -> Result<Running> {
        start(self, pair, |_| Ok(()))
    }

    /// tinc sends what is larger than any probe that has been answered over TCP, until it has found the path's MTU.
    fn settle(&self, running: &Running) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_fixed = |said: &str| {
            let other = said.lines().rev().find(|line| line.contains("(min ") && !line.contains("MYSELF"));
            let mtus = other.and_then(|line| line.rsplit_once("(min ")).map_or("", |(_, mtus)| mtus);
            let mut numbers = mtus.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
            matches!((numbers.next(), numbers.next()), (Some(min), Some(max)) if min == max && min != "0")
        };
        while !running.daemons.iter().all(|daemon| is_fixed(&daemon.stderr())) {
            if Instant::now() > deadline {
                return Err(Error::failed("tinc did not find the path's MTU within 20 s"));
            }
            // It then writes all it knows of the other nodes.
            running.daemons.iter().for_each(|daemon| daemon.signal(Signal::SIGUSR2));
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }
}

fn start(contender: &dyn Contender, pair: &Pair, configure: impl Fn(&Place) -> Result<()>) -> Result<Running> {
    let ready = contender.prepare(&pair.places)?;
    pair.places.iter().try_for_each(configure)?;
    let [first, second] = &ready[..] else { return Err(Error::failed("a pair has two ends")) };
    let daemons = vec![(first.daemon)().spawn()?, (second.daemon)().spawn()?];
    Ok(Running { addresses: [first.overlay, second.overlay], daemons })
}

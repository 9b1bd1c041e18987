//! One program on its hosts.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand_core::OsRng;
use x25519_dalek::StaticSecret;

use crate::contender::{Contender, Place, Ready, overlay_address};
use crate::lab::wan::WanPort;
use crate::lab::{Error, Host, Lab, Proc, Result, Wan};
use crate::nebula::Nebula;
use crate::peer::Pair;
use crate::tinc::Tinc;
use crate::traffic::Traffic;
use crate::wireguard::Wireguard;
use crate::{echo, ours};

/// One way between any two hosts.
const DELAY: Duration = Duration::from_millis(5);

/// How long a program may take until the two ends reach each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a daemon may take to end.
const STOP: Duration = Duration::from_secs(20);

/// A program that can be put on hosts.
pub enum Player {
    /// One that makes a mesh of three.
    Mesh(Box<dyn Contender>),
    /// One that makes a tunnel between two.
    Tunnel(Wireguard),
}

impl Player {
    /// All there are, by name.
    pub fn all() -> Vec<(&'static str, Result<Player>)> {
        fn mesh(contender: impl Contender + 'static) -> Player {
            Player::Mesh(Box::new(contender))
        }
        vec![
            ("meshd", ours::Meshd::new(None, None).map(mesh)),
            ("tinc", Tinc::new().map(mesh)),
            ("nebula", Nebula::new().map(mesh)),
            ("wireguard-go", Wireguard::go().map(Player::Tunnel)),
        ]
    }

    /// Its name in the tables.
    pub fn name(&self) -> &'static str {
        match self {
            Player::Mesh(contender) => contender.name(),
            Player::Tunnel(_) => "wireguard-go",
        }
    }

    /// What was run, as it says itself.
    pub fn version(&self) -> String {
        match self {
            Player::Mesh(contender) => contender.version().to_owned(),
            Player::Tunnel(wireguard) => crate::peer::Peer::version(wireguard),
        }
    }

    /// Whether a third host could carry what two cannot send each other.
    pub fn has_third(&self) -> bool {
        matches!(self, Player::Mesh(_))
    }
}

/// How the far end's daemon is started again.
enum Start {
    Mesh(Ready),
    Tunnel { pair: Box<Pair>, secrets: [StaticSecret; 2] },
}

/// A program that runs, with what goes through it.
pub struct Team<'a> {
    /// The program.
    pub player: &'a Player,
    /// The two ends.
    pub ends: [Host; 2],
    /// The far end's place on the network.
    pub port: WanPort,
    /// What goes between them.
    pub traffic: Traffic,
    far: Option<Proc>,
    start: Start,
    _others: Vec<Proc>,
}

impl<'a> Team<'a> {
    /// Starts a program on hosts of its own and waits until the two ends reach each other.
    ///
    /// # Errors
    /// Where one of its programs fails, or they do not within a minute.
    pub fn start(lab: &Lab, wan: &Wan, player: &'a Player) -> Result<Team<'a>> {
        let name = player.name();
        let count = if player.has_third() { 3 } else { 2 };
        let mut hosts = Vec::new();
        let mut ports = Vec::new();
        for number in 1..=count {
            let host = lab.host(&format!("{name}-{number}"))?;
            ports.push(wan.attach(&host)?);
            for other in &hosts {
                wan.link(other, &host).delay(DELAY);
            }
            hosts.push(host);
        }
        let place = |index: usize| Place { host: hosts[index].clone(), underlay: ports[index].v4 };
        let ends = [hosts[count - 2].clone(), hosts[count - 1].clone()];
        let mut daemons = Vec::new();
        let (start, addresses) = match player {
            Player::Mesh(contender) => {
                let mut ready = contender.prepare(&[place(0), place(1), place(2)])?;
                for ready in &ready {
                    daemons.push((ready.daemon)().spawn()?);
                }
                let (far, near) = (ready.pop(), ready.pop());
                let (far, near) = far.zip(near).ok_or_else(|| Error::failed("a mesh without nodes"))?;
                let addresses = [near.overlay, far.overlay];
                (Start::Mesh(far), addresses)
            }
            Player::Tunnel(wireguard) => {
                let pair = Box::new(Pair { places: [place(0), place(1)] });
                let secrets = [StaticSecret::random_from_rng(OsRng), StaticSecret::random_from_rng(OsRng)];
                for index in [0, 1] {
                    daemons.push(wireguard.start_end(&pair, &secrets, index)?);
                }
                (Start::Tunnel { pair, secrets }, [overlay_address(0), overlay_address(1)])
            }
        };
        wait(&ends[0], addresses[1], name)?;
        let traffic = Traffic::start(&ends[0], &ends[1], addresses)?;
        let port = ports.pop().ok_or_else(|| Error::failed("a host without a network"))?;
        Ok(Team { player, ends, port, traffic, far: daemons.pop(), start, _others: daemons })
    }

    /// Ends the far end's daemon by a signal and starts it again as soon as it has ended.
    ///
    /// # Errors
    /// Where it does not end, or not start.
    pub fn restart(&mut self, signal: Signal) -> Result<()> {
        if let Some(daemon) = self.far.take() {
            daemon.signal(signal);
            daemon.wait(STOP)?;
        }
        self.far = Some(match (&self.start, self.player) {
            (Start::Mesh(ready), _) => (ready.daemon)().spawn()?,
            (Start::Tunnel { pair, secrets }, Player::Tunnel(wireguard)) => wireguard.start_end(pair, secrets, 1)?,
            (Start::Tunnel { .. }, Player::Mesh(_)) => return Err(Error::failed("a mesh is no tunnel")),
        });
        Ok(())
    }

    /// Gives the far end another address on the network and takes the one it had.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn renumber(&self, wan: &Wan) -> Result<()> {
        let [a, b, c, d] = self.port.v4.octets();
        // The network gives its ports the lower half of each octet pair; nobody has this one.
        let new = IpAddr::V4(Ipv4Addr::new(a, b, c.wrapping_add(128), d));
        wan.add_address(&self.ends[1], &self.port, new)?;
        wan.remove_address(&self.ends[1], &self.port, IpAddr::V4(self.port.v4))
    }
}

/// Waits until an address answers.
fn wait(from: &Host, to: Ipv4Addr, name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while echo::run(from, to, 1, Duration::from_millis(200))?.lost() > 0 {
        if Instant::now() > deadline {
            return Err(Error::failed(format!("{name}: the ends do not reach each other within {PATIENCE:?}")));
        }
    }
    Ok(())
}

//! What is compared: something that carries packets between two hosts.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use crate::contender::{Place, node_name};
use crate::echo;
use crate::lab::{Error, Host, Lab, Proc, Result};

/// How long a tunnel may take to carry its first packet.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two hosts joined by one veth pair with an MTU of 1,500 bytes; the kernel's offloads are as it makes them.
pub struct Pair {
    /// The two, each with its address on the wire. Traffic goes from the first to the second.
    pub places: [Place; 2],
}

impl Pair {
    /// Makes the hosts.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn new(lab: &Lab) -> Result<Pair> {
        let place = |index: usize| -> Result<Place> {
            // RFC 2544 sets 198.18.0.0/15 aside for benches.
            let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
            Ok(Place { host: lab.host(&node_name(index))?, underlay: Ipv4Addr::new(198, 19, 0, last) })
        };
        let places = [place(0)?, place(1)?];
        lab.wire(&places[0].host, "eth0", &places[1].host, "eth0")?;
        for place in &places {
            place.host.set_mtu("eth0", 1_500)?;
            place.host.add_address("eth0", IpAddr::V4(place.underlay), 24)?;
        }
        Ok(Pair { places })
    }

    /// Where the traffic comes from.
    pub fn near(&self) -> &Host {
        &self.places[0].host
    }

    /// Where it goes.
    pub fn far(&self) -> &Host {
        &self.places[1].host
    }
}

/// A tunnel that runs.
pub struct Running {
    /// The two hosts' addresses through it, in the order of the pair.
    pub addresses: [Ipv4Addr; 2],
    /// Its daemons; none where the kernel does it all. They are killed with this.
    pub daemons: Vec<Proc>,
}

impl Running {
    /// Waits until the far host answers.
    ///
    /// # Errors
    /// Where it stays silent, with what an ended daemon said last.
    pub fn wait(&self, pair: &Pair) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while echo::run(pair.near(), self.addresses[1], 1, Duration::from_millis(50))?.lost() > 0 {
            if let Some(ended) = self.daemons.iter().find(|daemon| !daemon.is_running()) {
                return Err(Error::failed(format!("a daemon ended: {}{}", ended.stdout(), ended.stderr())));
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("no answer through the tunnel within {PATIENCE:?}")));
            }
            // A device that is not there yet refuses at once.
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// One way of carrying packets between two hosts.
pub trait Peer {
    /// Its name in the table.
    fn name(&self) -> &'static str;

    /// What was run, as it says itself.
    fn version(&self) -> String;

    /// Starts it on both hosts and returns as soon as it is configured.
    ///
    /// # Errors
    /// Where one of its programs fails.
    fn start(&self, pair: &Pair) -> Result<Running>;

    /// Waits for what it still does after the first packet has passed, where that changes how it carries the rest.
    ///
    /// # Errors
    /// Where that does not come to an end.
    fn settle(&self, _running: &Running) -> Result<()> {
        Ok(())
    }
}

/// No tunnel at all: the veth pair itself.
pub struct Bare;

impl Peer for Bare {
    fn name(&self) -> &'static str {
        "veth"
    }

    fn version(&self) -> String {
        "the bare veth pair".to_owned()
    }

    fn start(&self, pair: &Pair) -> Result<Running> {
        Ok(Running { addresses: [pair.places[0].underlay, pair.places[1].underlay], daemons: Vec::new() })
    }
}

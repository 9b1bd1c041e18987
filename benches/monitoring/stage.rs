//! A hub and its spokes on an emulated network, each spoke at a distance of its own.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use meshd::api::{PeerStatus, Status};

use crate::lab::{Error, Host, Lab, Mesh, Result, Wan};

/// How long a mesh may take to form.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The hosts, the network and the mesh.
pub struct Stage {
    /// The emulated network.
    pub wan: Wan,
    /// The one in the middle.
    pub hub: Host,
    /// Its address on the network.
    pub address: Ipv4Addr,
    /// The others.
    pub spokes: Vec<Spoke>,
    /// The mesh of all of them.
    pub mesh: Mesh,
}

/// A host around the hub.
pub struct Spoke {
    /// Its host.
    pub host: Host,
    /// Its address on the network.
    pub underlay: Ipv4Addr,
    /// The round trip between it and the hub, as set.
    pub rtt: Duration,
}

impl Stage {
    /// Makes a hub, one spoke for each round trip, and their mesh, in which nothing runs yet. Every node probes each
    /// `interval`.
    ///
    /// # Errors
    /// Where the network cannot be made, or a program of meshd fails.
    pub fn new(lab: &Lab, seed: u64, round_trips: &[Duration], interval: Duration) -> Result<Stage> {
        let wan = lab.wan(seed)?;
        let hub = lab.host("hub")?;
        let on_hub = wan.attach(&hub)?;
        let mesh = Mesh::init(&hub, on_hub.v4)?;
        let mut spokes = Vec::with_capacity(round_trips.len());
        for (number, rtt) in round_trips.iter().enumerate() {
            let host = lab.host(&format!("s{number}"))?;
            let underlay = wan.attach(&host)?.v4;
            wan.link(&hub, &host).delay(*rtt / 2);
            mesh.admit_offline(&host, underlay)?;
            spokes.push(Spoke { host, underlay, rtt: *rtt });
        }
        let stage = Stage { wan, hub, address: on_hub.v4, spokes, mesh };
        for host in stage.all() {
            stage.mesh.change_config(host, |config| config.probe.interval = interval)?;
        }
        Ok(stage)
    }

    /// All hosts, the hub first.
    pub fn all(&self) -> Vec<&Host> {
        std::iter::once(&self.hub).chain(self.spokes.iter().map(|spoke| &spoke.host)).collect()
    }

    /// Starts every daemon and waits until the hub sees all spokes as up.
    ///
    /// # Errors
    /// Where one does not come up.
    pub fn start(&self) -> Result<()> {
        self.mesh.start(&self.all())?;
        let up = |status: &Status| {
            self.spokes.iter().all(|spoke| peer(status, spoke.host.name()).is_ok_and(|peer| peer.link.is_some()))
        };
        self.mesh.wait_for(&self.hub, "all spokes", PATIENCE, up).map(drop)
    }

    /// Whether the hub probes a spoke, and not the spoke the hub: the lower identifier does.
    ///
    /// # Errors
    /// Where the hub does not know the spoke.
    pub fn hub_probes(&self, status: &Status, spoke: &Spoke) -> Result<bool> {
        Ok(status.node.node_id < peer(status, spoke.host.name())?.node_id)
    }
}

/// Finds a peer in a status.
///
/// # Errors
/// Where it is not there.
pub fn peer<'a>(status: &'a Status, name: &str) -> Result<&'a PeerStatus> {
    let found = status.peers.iter().find(|peer| peer.name == name);
    found.ok_or_else(|| Error::failed(format!("the status names no peer {name}")))
}

/// Lets `time` pass from `began` on: the only thing a measurement over time can do.
pub fn pass(began: Instant, time: Duration) {
    thread::sleep(time.saturating_sub(began.elapsed()));
}

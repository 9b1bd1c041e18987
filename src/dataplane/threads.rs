//! Starting and stopping the data threads.

use super::counters::{Counters, CountersReading};
use super::forwarding::ForwardingTable;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::peer::Peer;
use super::polling::Polling;
use super::queues::Queues;
use super::retained::Retained;
use super::shard::Shard;
use super::transmit::Transmitter;
use crate::identity::NodeId;
use crate::platform::clock;
use crate::platform::tun::Tun;
use crate::platform::udp::UdpSocket;
use crate::platform::wake::Wake;
use crate::tunnel::Host;
use arc_swap::ArcSwap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the data plane: {0} (is the limit of threads or open files reached?)")]
pub struct StartError(#[from] io::Error);

/// The running data threads. Stopped when dropped.
pub struct Dataplane {
    wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
    outbound: Arc<Counters>,
    inbound: Arc<Counters>,
    retained: Arc<Retained>,
    transmitter: Transmitter,
}

impl Dataplane {
    /// Starts the thread that moves packets both ways.
    ///
    /// Where it `polls`, it looks again for a moment before it sleeps, while packets follow each other closely: at most
    /// one core while they do, a tenth of one in vain, nothing when idle.
    ///
    /// It does not own the descriptors alone: after a stop they work on, for a successor.
    pub fn start(
        tun: Arc<Tun>,
        udp: Arc<UdpSocket>,
        table: Arc<ArcSwap<ForwardingTable>>,
        host: Arc<Host>,
        queues: Queues,
        polls: bool,
    ) -> Result<Self, StartError> {
        let mut dataplane = Dataplane {
            wake: Arc::new(Wake::new()?),
            threads: Vec::with_capacity(1),
            outbound: Arc::default(),
            inbound: Arc::default(),
            retained: Arc::default(),
            transmitter: Transmitter::new(Arc::clone(&udp)),
        };
        let outbound = Outbound::new(
            Arc::clone(&tun),
            Arc::clone(&udp),
            Arc::clone(&table),
            queues.clone(),
            Arc::clone(&dataplane.outbound),
            Arc::clone(&dataplane.retained),
        );
        let inbound =
            Inbound::new(Arc::clone(&tun), Arc::clone(&udp), table, host, queues, Arc::clone(&dataplane.inbound));
        let (wake, counters) = (Arc::clone(&dataplane.wake), Arc::clone(&dataplane.inbound));
        let polling = polls.then(Polling::default);
        let shard = Shard { tun, udp, wake, outbound, inbound, polling, counters };
        dataplane.spawn("mesh-shard", move || shard.run())?;
        Ok(dataplane)
    }

    /// Reads the counters of the way from the TUN to the peers.
    pub fn outbound(&self) -> CountersReading {
        self.outbound.read()
    }

    /// Reads the counters of the way from the peers to the TUN.
    pub fn inbound(&self) -> CountersReading {
        self.inbound.read()
    }

    /// Returns the sender for single packets and handshakes.
    pub fn transmitter(&self) -> &Transmitter {
        &self.transmitter
    }

    /// Sends the newest segment of each TCP flow that passed for `peer` while it did not answer, and returns how many the
    /// kernel took: the flows go on at once, instead of at their kernel's next attempt.
    pub fn wake_flows(&self, peer: &Peer) -> usize {
        let segments = self.retained.take(clock::now(), peer.node());
        segments.iter().filter(|segment| self.transmitter.send_packet(peer, None, segment).is_ok()).count()
    }

    /// Forgets the segments kept for a peer: it is gone, or they have most likely arrived.
    pub fn forget_flows(&self, node: NodeId) {
        self.retained.take(clock::now(), node);
    }

    /// Stops the threads and waits for them: at most one turn of each.
    pub fn stop(self) {}

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.wake.ring();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; the others must be joined all the same.
            let _ = thread.join();
        }
    }
}

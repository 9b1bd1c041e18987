//! Starting and stopping the data threads.

use super::counters::{Counters, CountersReading};
use super::forwarding::ForwardingTable;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::queues::Queues;
use super::transmit::Transmitter;
use crate::platform::tun::Tun;
use crate::platform::udp::UdpSocket;
use crate::platform::wake::Wake;
use crate::tunnel::Host;
use arc_swap::ArcSwap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// How the data plane is sized.
#[derive(Clone, Copy, Debug)]
pub struct DataplaneOptions {
    /// Bytes of the largest inner packet in either direction: at least the device's MTU.
    pub largest_packet: usize,
}

impl Default for DataplaneOptions {
    /// Room for a device on an underlay of 1,500 bytes, and for peers whose underlay carries a little more.
    fn default() -> Self {
        DataplaneOptions { largest_packet: 2_048 }
    }
}

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
    transmitter: Transmitter,
}

impl Dataplane {
    /// Starts one thread per direction.
    ///
    /// Neither thread owns the descriptors alone: after a stop they work on, for a successor.
    pub fn start(
        tun: Arc<Tun>,
        udp: Arc<UdpSocket>,
        table: Arc<ArcSwap<ForwardingTable>>,
        host: Arc<Host>,
        queues: Queues,
        options: DataplaneOptions,
    ) -> Result<Self, StartError> {
        let mut dataplane = Dataplane {
            wake: Arc::new(Wake::new()?),
            threads: Vec::with_capacity(2),
            outbound: Arc::default(),
            inbound: Arc::default(),
            transmitter: Transmitter::new(Arc::clone(&udp)),
        };
        let outbound = Outbound::new(
            Arc::clone(&tun),
            Arc::clone(&udp),
            Arc::clone(&table),
            queues.clone(),
            Arc::clone(&dataplane.outbound),
            Arc::clone(&dataplane.wake),
            options.largest_packet,
        );
        let inbound = Inbound::new(
            tun,
            udp,
            table,
            host,
            queues,
            Arc::clone(&dataplane.inbound),
            Arc::clone(&dataplane.wake),
            options.largest_packet,
        );
        // If the second does not start, dropping `dataplane` stops the first.
        dataplane.spawn("mesh-outbound", move || outbound.run())?;
        dataplane.spawn("mesh-inbound", move || inbound.run())?;
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

    /// Stops both threads and waits for them: at most the 100 ms a send may be waiting for room.
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

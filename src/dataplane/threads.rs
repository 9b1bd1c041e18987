//! Starting and stopping the data threads.

use super::counters::{Counters, CountersReading};
use super::flows::{FlowReading, Flows};
use super::forwarding::ForwardingTable;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::peer::Peer;
use super::polling::Polling;
use super::pulse::Pulse;
use super::queues::Queues;
use super::retained::{Retained, fitting};
use super::shard::Shard;
use super::transmit::Transmitter;
use crate::identity::NodeId;
use crate::platform::clock;
use crate::platform::confinement::confine_thread;
use crate::platform::tun::Tun;
use crate::platform::udp::{Fragmentation, UdpSocket};
use crate::platform::wake::{Wake, Watch};
use crate::tunnel::Host;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the data plane: {0} (is the limit of threads or open files reached?)")]
pub struct StartError(#[from] io::Error);

/// What one shard reads and writes: queues of the device, at least one, and a socket. No two shards have any in common.
#[derive(Clone, Debug)]
pub struct Ports {
    /// The device's queues, of which each gets its turn.
    pub lanes: Vec<Arc<Tun>>,
    /// The socket.
    pub udp: Arc<UdpSocket>,
}

/// How the data threads wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// A thread looks again for a moment before it sleeps, while packets follow each other closely: at most one core while
    /// they do, a tenth of one in vain, nothing when idle.
    pub polls: bool,
    /// How long a thread sleeps at most, so that it can be seen to turn; `None`: until there is something.
    pub longest_sleep: Option<Duration>,
    /// The kernel refuses the threads whatever they do not need, where it can: they parse what strangers send, and open no file,
    /// execute nothing and connect to nobody.
    pub confined: bool,
}

/// The running data threads. Stopped when dropped.
pub struct Dataplane {
    wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
    /// Of each shard.
    outbound: Vec<Arc<Counters>>,
    inbound: Vec<Arc<Counters>>,
    pulses: Vec<Arc<Pulse>>,
    /// Of each shard.
    flows: Vec<Arc<Flows>>,
    retained: Arc<Retained>,
    transmitter: Transmitter,
    /// One queue of the device.
    device: Arc<Tun>,
    /// Of each shard.
    sockets: Vec<Arc<UdpSocket>>,
}

impl Dataplane {
    /// Starts a thread for each shard, which moves packets both ways.
    ///
    /// It does not own the descriptors alone: after a stop they work on, for a successor.
    pub fn start(
        shards: Vec<Ports>,
        table: &Arc<ArcSwap<ForwardingTable>>,
        host: &Arc<Host>,
        queues: &Queues,
        habits: Habits,
    ) -> Result<Self, StartError> {
        let first = shards.first().ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from)?;
        let mut dataplane = Dataplane {
            wake: Arc::new(Wake::new()?),
            threads: Vec::with_capacity(shards.len()),
            outbound: Vec::with_capacity(shards.len()),
            inbound: Vec::with_capacity(shards.len()),
            pulses: Vec::with_capacity(shards.len()),
            flows: Vec::with_capacity(shards.len()),
            retained: Arc::default(),
            transmitter: Transmitter::new(Arc::clone(&first.udp)),
            device: Arc::clone(first.lanes.first().ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from)?),
            sockets: shards.iter().map(|ports| Arc::clone(&ports.udp)).collect(),
        };
        for (number, Ports { lanes, udp }) in shards.into_iter().enumerate() {
            let device = lanes.first().map(Arc::clone).ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from)?;
            let [outgoing, incoming] = [Arc::<Counters>::default(), Arc::default()];
            let (table, host) = (Arc::clone(table), Arc::clone(host));
            let flows = Arc::<Flows>::default();
            let outbound = Outbound::new(
                lanes.clone(),
                Arc::clone(&udp),
                Arc::clone(&table),
                queues.clone(),
                Arc::clone(&outgoing),
                Arc::clone(&dataplane.retained),
                Arc::clone(&flows),
            );
            let counters = Arc::clone(&incoming);
            let inbound =
                Inbound::new(device, Arc::clone(&udp), table, host, queues.clone(), counters, Arc::clone(&flows));
            dataplane.flows.push(flows);
            let wake = Arc::clone(&dataplane.wake);
            let watch = Watch::new(Arc::clone(&wake), 1 + lanes.len())?;
            let polling = habits.polls.then(Polling::default);
            let (counters, pulse) = (Arc::clone(&incoming), Arc::<Pulse>::default());
            dataplane.pulses.push(Arc::clone(&pulse));
            let sleep = habits.longest_sleep.map(|sleep| u16::try_from(sleep.as_millis()).unwrap_or(u16::MAX).max(1));
            let shard = Shard { lanes, udp, wake, watch, outbound, inbound, polling, counters, pulse, sleep };
            dataplane.outbound.push(outgoing);
            dataplane.inbound.push(incoming);
            let run = move || {
                if habits.confined
                    && let Err(error) = confine_thread()
                {
                    tracing::warn!("data thread {number} is not confined: {error}");
                }
                shard.run();
            };
            dataplane.spawn(&format!("mesh-shard-{number}"), run)?;
        }
        Ok(dataplane)
    }

    /// Counts the turns of each thread so far. Where a thread sleeps no longer than some time, one that has not turned for
    /// longer hangs.
    pub fn turns(&self) -> Vec<u64> {
        self.pulses.iter().map(|pulse| pulse.count()).collect()
    }

    /// Reads the counters of the way from the TUN to the peers.
    pub fn outbound(&self) -> CountersReading {
        self.outbound.iter().fold(CountersReading::default(), |sum, shard| sum.plus(&shard.read()))
    }

    /// Reads the counters of the way from the peers to the TUN.
    pub fn inbound(&self) -> CountersReading {
        self.inbound.iter().fold(CountersReading::default(), |sum, shard| sum.plus(&shard.read()))
    }

    /// Reads the flows of each shard, those included that have ended a moment ago.
    pub fn flows(&self) -> Vec<Vec<FlowReading>> {
        self.flows.iter().map(|flows| flows.read()).collect()
    }

    /// How many long-lived flows had to make room for others while they may have been open.
    pub fn evicted_flows(&self) -> u64 {
        self.flows.iter().map(|flows| flows.evicted()).sum()
    }

    /// Returns the sender for single packets and handshakes.
    pub fn transmitter(&self) -> &Transmitter {
        &self.transmitter
    }

    /// Sends the newest segment of each TCP flow that passed for `peer` while it did not answer, and returns how many the
    /// kernel took: the flows go on at once, instead of at their kernel's next attempt.
    pub fn wake_flows(&self, peer: &Peer) -> usize {
        self.send_again(self.retained.take(clock::now(), peer.node()), peer)
    }

    /// Sends what is kept for one peer and goes to a network by another one, which carries that network now. Returns how many
    /// flows were woken.
    pub fn move_flows(&self, from: NodeId, network: &IpNet, to: &Peer) -> usize {
        self.send_again(self.retained.take_within(clock::now(), from, network), to)
    }

    /// Sends kept segments, one of each flow; returns how many the kernel took.
    fn send_again(&self, segments: Vec<Vec<u8>>, to: &Peer) -> usize {
        let mut flows = 0;
        for mut segment in segments {
            let Ok(mut pieces) = fitting(to.mtu(), &mut segment) else { continue };
            let mut taken = false;
            while let Some(piece) = pieces.next() {
                taken |= self.transmitter.send_packet(to, None, piece).is_ok();
            }
            flows += usize::from(taken);
        }
        flows
    }

    /// Forgets the segments kept for a peer: it is gone, or they have most likely arrived.
    pub fn forget_flows(&self, node: NodeId) {
        self.retained.forget(node);
    }

    /// Hands this host one packet, as if it had come through a tunnel. Returns whether the device took it.
    pub fn deliver(&self, packet: &[u8]) -> bool {
        self.device.write(packet).is_ok()
    }

    /// Sets whether datagrams sent from now on may be fragmented on their way.
    ///
    /// # Errors
    /// Where the kernel refuses it for one of the sockets.
    pub fn set_fragmentation(&self, fragmentation: Fragmentation) -> io::Result<()> {
        self.sockets.iter().try_for_each(|socket| socket.set_fragmentation(fragmentation))
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

//! What packets come and go by: the device and the UDP socket, divided among the threads that move packets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::startup::StartError;
use crate::dataplane::Ports;
use crate::platform::steering::Steering;
use crate::platform::tun::{Tun, TunError};
use crate::platform::udp::{Fragmentation, UdpOptions, UdpSocket};

/// Queues of the device for each thread. One is for all that is neither TCP nor UDP; of the others, a short question finds
/// the one of a long stream once in seven times. Each costs an entry in a list that the kernel walks.
pub(super) const LANES: u8 = 8;

/// The open device and sockets.
pub(super) struct OpenPorts {
    /// One for each thread, at least one.
    pub(super) shards: Vec<Ports>,
    /// The device's name.
    pub(super) interface: String,
    /// Where the sockets are bound.
    pub(super) bound: SocketAddr,
}

impl OpenPorts {
    /// Makes the device and binds the sockets.
    ///
    /// Where the kernel does not sort packets into queues (no `CAP_BPF`, a container, an old kernel), the device has a single
    /// queue and one thread moves everything, whatever number was asked for: several that take packets from one another
    /// would put flows out of order.
    pub(super) fn open(
        interface: &str,
        listen: SocketAddr,
        wanted: u8,
        steering: io::Result<Steering>,
    ) -> Result<OpenPorts, StartError> {
        let queues = steering.map_err(TunError::Unsorted).and_then(|steering| Tun::create_queues(interface, &steering));
        let (queues, lanes) = match queues {
            Ok(queues) => (queues, usize::from(LANES)),
            Err(error) => {
                let plain = Tun::create(interface)?;
                match wanted {
                    1 => tracing::info!("short packets may wait behind long streams: {error}"),
                    _ => tracing::warn!("one thread moves all packets instead of {wanted}: {error}"),
                }
                (vec![plain], 1)
            }
        };
        let interface = queues[0].name().to_owned();
        let shards = u8::try_from(queues.len() / lanes).unwrap_or(1);
        // What is too large for a path must vanish, or it could not be found out.
        let options = UdpOptions { fragmentation: Fragmentation::Probe, ..UdpOptions::default() };
        let (sockets, steered) = UdpSocket::bind_shards(listen, options, shards)
            .map_err(|source| StartError::Listen { address: listen, source })?;
        if let Err(error) = steered {
            tracing::info!("a peer's two directions may be two threads' work: the kernel does not steer: {error}");
        }
        let bound = sockets[0].local();
        let mut queues = queues.into_iter().map(Arc::new);
        let ports = |udp| Ports { lanes: queues.by_ref().take(lanes).collect(), udp: Arc::new(udp) };
        Ok(OpenPorts { shards: sockets.into_iter().map(ports).collect(), interface, bound })
    }

    /// How many threads these are for.
    pub(super) fn count(&self) -> u8 {
        u8::try_from(self.shards.len()).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::test_namespace::in_namespace;

    fn open(wanted: u8, steering: io::Result<Steering>) -> OpenPorts {
        OpenPorts::open("mesh%d", ([127, 0, 0, 1], 0).into(), wanted, steering).unwrap()
    }

    #[test]
    fn where_the_kernel_does_not_sort_there_is_one_of_each() {
        in_namespace("where_the_kernel_does_not_sort_there_is_one_of_each", || {
            for wanted in [1, 4] {
                let ports = open(wanted, Err(io::ErrorKind::PermissionDenied.into()));
                assert_eq!((ports.count(), ports.shards[0].lanes.len()), (1, 1));
            }
        });
    }

    #[test]
    fn each_thread_has_its_queues_and_its_socket() {
        in_namespace("each_thread_has_its_queues_and_its_socket", || {
            for wanted in [1, 2, 4] {
                let Ok(steering) = Steering::load(wanted, LANES) else {
                    return eprintln!("NOT RUN: the kernel takes no programs here");
                };
                let ports = open(wanted, Ok(steering));
                assert_eq!(ports.count(), wanted);
                assert!(ports.shards.iter().all(|shard| shard.lanes.len() == usize::from(LANES)));
                assert!(ports.shards.iter().all(|shard| shard.udp.local() == ports.bound));
                // Nobody else is let in, whatever they would share.
                let other = OpenPorts::open("mesh%d", ports.bound, wanted, Steering::load(wanted, LANES));
                assert!(matches!(other, Err(StartError::Listen { .. })));
            }
        });
    }
}

//! What packets come and go by: the device and the UDP socket, divided among the threads that move packets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::startup::StartError;
use crate::dataplane::Ports;
use crate::platform::handover::Handover;
use crate::platform::steering::Steering;
use crate::platform::tun::{Tun, TunError};
use crate::platform::udp::{Fragmentation, UdpOptions, UdpSocket};

/// Queues of the device for each thread. One is for all that is neither TCP nor UDP; of the others, a short question finds
/// the one of a long stream once in seven times. Each costs an entry in a list that the kernel walks.
pub(super) const LANES: u8 = 8;

/// What is too large for a path must vanish, or it could not be found out.
const OPTIONS: UdpOptions = UdpOptions { mark: None, fragmentation: Fragmentation::Probe, only_v6: false };

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
        steering: &io::Result<Steering>,
    ) -> Result<OpenPorts, StartError> {
        let queues = match steering {
            Ok(steering) => Tun::create_queues(interface, steering),
            Err(error) => Err(TunError::Unsorted(io::Error::new(error.kind(), error.to_string()))),
        };
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
        let (sockets, steered) = UdpSocket::bind_shards(listen, OPTIONS, shards)
            .map_err(|source| StartError::Listen { address: listen, source })?;
        if let Err(error) = steered {
            tracing::info!("a peer's two directions may be two threads' work: the kernel does not steer: {error}");
        }
        Ok(OpenPorts::of(queues, sockets, interface))
    }

    /// Takes over the device and the sockets of the program before this one, with their queues and what waits in them.
    /// Nothing where they are not those wanted now, or of no use any more: they are closed then, and the names are free.
    pub(super) fn adopt(handover: Handover, interface: &str, listen: SocketAddr) -> Option<OpenPorts> {
        match Self::adopt_fitting(handover, interface, listen) {
            Ok(ports) => Some(ports),
            Err(why) => {
                tracing::warn!("device and port are made anew, and connections stand still for a moment: {why}");
                None
            }
        }
    }

    fn adopt_fitting(handover: Handover, interface: &str, listen: SocketAddr) -> Result<OpenPorts, String> {
        let queues: Vec<Tun> =
            handover.device.into_iter().map(Tun::adopt).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let sockets = handover.sockets.into_iter().map(|socket| UdpSocket::adopt(socket, OPTIONS));
        let sockets: Vec<UdpSocket> = sockets.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let (Some(queue), Some(socket)) = (queues.first(), sockets.first()) else {
            return Err("something is missing".to_owned());
        };
        let (name, bound) = (queue.name().to_owned(), socket.local());
        if !is_named(&name, interface) {
            return Err(format!("the device is {name}, and the configuration wants {interface}"));
        }
        if bound.ip() != listen.ip() || listen.port() != 0 && bound.port() != listen.port() {
            return Err(format!("the port is {bound}, and the configuration wants {listen}"));
        }
        if !queues.len().is_multiple_of(sockets.len()) {
            return Err(format!("{} queues cannot be divided among {} sockets", queues.len(), sockets.len()));
        }
        Ok(OpenPorts::of(queues, sockets, name))
    }

    /// Divides the queues evenly among the sockets.
    fn of(queues: Vec<Tun>, sockets: Vec<UdpSocket>, interface: String) -> OpenPorts {
        let (lanes, bound) = (queues.len() / sockets.len(), sockets[0].local());
        let mut queues = queues.into_iter().map(Arc::new);
        let ports = |udp| Ports { lanes: queues.by_ref().take(lanes).collect(), udp: Arc::new(udp) };
        OpenPorts { shards: sockets.into_iter().map(ports).collect(), interface, bound }
    }

    /// What the next program would take over: the same device and sockets, kept open beside these.
    ///
    /// # Errors
    /// Where the limit of open files is reached.
    pub(super) fn hand_over(&self, restarts: u32) -> io::Result<Handover> {
        let queues = self.shards.iter().flat_map(|shard| shard.lanes.iter().map(|queue| queue.as_fd()));
        Handover::of(queues, self.shards.iter().map(|shard| shard.udp.as_fd()), restarts)
    }

    /// How many threads these are for.
    pub(super) fn count(&self) -> u8 {
        u8::try_from(self.shards.len()).unwrap_or(u8::MAX)
    }
}

/// Whether a device's name is one that `pattern` asks for, where `%d` stands for a number.
pub(super) fn is_named(name: &str, pattern: &str) -> bool {
    match pattern.split_once("%d") {
        Some((before, after)) => {
            let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        }
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::test_namespace::in_namespace;

    fn open(wanted: u8, steering: io::Result<Steering>) -> OpenPorts {
        OpenPorts::open("mesh%d", ([127, 0, 0, 1], 0).into(), wanted, &steering).unwrap()
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
                let other = OpenPorts::open("mesh%d", ports.bound, wanted, &Steering::load(wanted, LANES));
                assert!(matches!(other, Err(StartError::Listen { .. })));
            }
        });
    }

    #[test]
    fn a_successor_has_the_same_device_and_port() {
        in_namespace("a_successor_has_the_same_device_and_port", || {
            let first = open(2, Steering::load(2, LANES));
            let (count, bound, interface) = (first.count(), first.bound, first.interface.clone());
            let handover = first.hand_over(0).unwrap();
            drop(first);
            let second = OpenPorts::adopt(handover, "mesh%d", bound).unwrap();
            assert_eq!((second.count(), second.bound, &second.interface), (count, bound, &interface));
            // Another name or address is made anew, and what was there is gone.
            let elsewhere: SocketAddr = ([127, 0, 0, 2], bound.port()).into();
            assert!(OpenPorts::adopt(second.hand_over(1).unwrap(), "other0", bound).is_none());
            assert!(OpenPorts::adopt(second.hand_over(1).unwrap(), "mesh%d", elsewhere).is_none());
            drop(second);
            assert!(Tun::open(&interface, crate::platform::tun::Framing::Plain).is_ok(), "the name is free");
        });
    }

    #[test]
    fn patterns_name_devices() {
        for (name, pattern, fits) in
            [("mesh0", "mesh0", true), ("mesh1", "mesh0", false), ("mesh12", "mesh%d", true), ("mesh", "mesh%d", false)]
        {
            assert_eq!(is_named(name, pattern), fits, "{name} {pattern}");
        }
    }
}

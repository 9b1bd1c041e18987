//! Sending what is not a batch: handshakes, held packets, control messages.

use super::peer::{Path, Peer};
use super::relay::RelayPath;
use crate::platform::clock;
use crate::platform::udp::{UdpError, UdpSocket};
use crate::tunnel::{Destination, Initiation, LEAST_BUFFER, OVERHEAD, Outbox, Sealed};
use crate::wire::DropReason;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Sends single datagrams and packets by the data plane's own socket, without ever waiting. For the control task; the
/// data threads send the same way what their batches make due.
#[derive(Clone, Debug)]
pub struct Transmitter {
    udp: Arc<UdpSocket>,
}

impl Transmitter {
    /// Makes a transmitter on `udp`.
    pub fn new(udp: Arc<UdpSocket>) -> Self {
        Transmitter { udp }
    }

    /// Seals one inner packet for `peer` and sends it by `path`, or by the path in use where that is `None`.
    ///
    /// Without a session the packet waits in the tunnel and goes out by the path in use then, after the handshake this
    /// starts.
    ///
    /// # Errors
    /// The tunnel's reason; [`DropReason::NoRoute`] where there is no path; [`DropReason::SystemRefused`].
    pub fn send_packet(&self, peer: &Peer, path: Option<Path>, packet: &[u8]) -> Result<(), DropReason> {
        let mut datagram = vec![0; (packet.len().next_multiple_of(16) + OVERHEAD).max(LEAST_BUFFER)];
        let mut outbox = Outbox::new();
        let now = clock::now();
        let sealed = {
            let mut guard = peer.tunnel().lock();
            let sealed = guard.seal(now, packet, &mut datagram);
            guard.flush(now, clock::wall(), &mut outbox);
            sealed
        };
        self.drain(peer, &mut outbox);
        match sealed? {
            Sealed::Held => Ok(()),
            Sealed::Datagram(length) => {
                let path = path.or_else(|| peer.path().as_deref().cloned()).ok_or(DropReason::NoRoute)?;
                self.send_along(&path, &datagram[..length])
            }
        }
    }

    /// Asks `peer`'s tunnel for a new session and sends what that makes due, by `path` or the path in use.
    pub fn initiate(&self, peer: &Peer, path: Option<Path>) -> Initiation {
        let mut outbox = Outbox::new();
        let initiation = peer.tunnel().initiate(clock::now(), clock::wall(), &mut outbox);
        let path = path.or_else(|| peer.path().as_deref().cloned());
        self.drain_by(path.as_ref(), None, &mut outbox);
        initiation
    }

    /// Sends everything in `outbox` by `peer`'s path. Returns how many the kernel took.
    ///
    /// What has nowhere to go is dropped; the tunnel's own timers repeat what matters.
    pub fn drain(&self, peer: &Peer, outbox: &mut Outbox) -> usize {
        if outbox.is_empty() {
            return 0;
        }
        self.drain_by(peer.path().as_deref(), None, outbox)
    }

    /// Sends one sealed datagram by a path.
    ///
    /// # Errors
    /// [`DropReason::SystemRefused`]; why a relay cannot take it.
    pub fn send_along(&self, path: &Path, datagram: &[u8]) -> Result<(), DropReason> {
        let sent = match path {
            Path::Direct { remote, local } => self.udp.send_to(datagram, *remote, *local),
            Path::Relay(path) => {
                let mut carrying = vec![0; RelayPath::room(datagram.len())];
                let carried = path.carry(clock::now(), datagram, &mut carrying)?;
                self.udp.send_to(&carrying[..carried.length], carried.remote, carried.local)
            }
        };
        sent.map_err(|_| DropReason::SystemRefused)
    }

    /// Sends one datagram that belongs to no tunnel, such as an introduction or a cookie.
    pub fn send_datagram(&self, bytes: &[u8], to: SocketAddr, local: Option<IpAddr>) -> Result<(), UdpError> {
        self.udp.send_to(bytes, to, local)
    }

    /// Sends everything in `outbox`: answers by `source`, the rest by `path`. Returns how many the kernel took.
    pub fn drain_by(&self, path: Option<&Path>, source: Option<&Path>, outbox: &mut Outbox) -> usize {
        let mut sent = 0;
        while let Some(outgoing) = outbox.pop() {
            let way = match outgoing.to {
                Destination::Peer => path,
                Destination::Source => source,
            };
            if let Some(way) = way {
                sent += usize::from(self.send_along(way, &outgoing.bytes).is_ok());
            }
        }
        sent
    }
}

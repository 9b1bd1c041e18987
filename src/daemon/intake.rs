//! What came from the network for the control task: handshakes, introductions, control messages and probes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::driver::Driver;
use crate::control::{self, Arrival, SessionEvent};
use crate::dataplane::{self, ControlPacket, UnopenedDatagram};
use crate::identity::NodeId;
use crate::platform::clock;
use crate::time::{Instant, UnixTime};
use crate::tunnel::{HandshakeEvent, Outbox};

impl Driver {
    pub(super) fn take_datagram(&mut self, datagram: UnopenedDatagram) {
        let (now, wall) = (clock::now(), clock::wall());
        let result = match datagram.bytes.first() {
            Some(1..=3) => return self.take_handshake(&datagram, now, wall),
            _ => self.engine.handle_datagram(datagram.source, &datagram.bytes, now, wall),
        };
        if let Err(reason) = result {
            self.drops[reason as usize] += 1;
            tracing::debug!(source = %datagram.source, reason = reason.name(), "datagram dropped");
        }
    }

    /// WireGuard's messages 1 to 3. The tunnel room counts what it drops.
    fn take_handshake(&mut self, datagram: &UnopenedDatagram, now: Instant, wall: UnixTime) {
        let mut outbox = Outbox::new();
        let host = Arc::clone(self.links.host());
        let event = host.handle_handshake(now, wall, datagram.source, &datagram.bytes, &mut outbox);
        let source = Some(dataplane::Path { remote: datagram.source, local: datagram.local });
        let tunnel = match &event {
            Ok(
                HandshakeEvent::Answered(tunnel)
                | HandshakeEvent::Established(tunnel)
                | HandshakeEvent::Outranked(tunnel)
                | HandshakeEvent::CookieTaken(tunnel),
            ) => Some(Arc::clone(tunnel)),
            Ok(HandshakeEvent::Challenged) => None,
            Err(reason) => {
                tracing::debug!(source = %datagram.source, reason = reason.name(), "handshake dropped");
                None
            }
        };
        let node = tunnel.and_then(|tunnel| self.links.node_of(tunnel.peer_key()));
        if let (Some(node), Ok(HandshakeEvent::Established(_))) = (node, &event) {
            // The response proves that the peer is where it came from.
            self.establish(node, datagram.source, datagram.local, now);
        }
        let path =
            node.and_then(|node| self.links.get(node)).and_then(|link| link.peer.path().as_deref().copied()).or(source);
        if let Some(dataplane) = &self.dataplane {
            dataplane.transmitter().drain_by(path, source, &mut outbox);
        }
        if let Some(node) = node {
            self.links.set_tick(node, now, now);
        }
    }

    /// A session stands and was proven.
    pub(super) fn establish(&mut self, node: NodeId, source: SocketAddr, local: Option<IpAddr>, now: Instant) {
        self.sessions.insert(node);
        if self.links.stock(node).is_some() {
            return self.follow(node, source, local);
        }
        self.links.note_arrival(node, source, local);
        let path = control::path::Path { remote: source, local };
        self.engine.handle_session(node, SessionEvent::Established { path }, now);
        self.drain();
    }

    pub(super) fn take_control(&mut self, packet: ControlPacket) {
        let (now, wall) = (clock::now(), clock::wall());
        if !self.sessions.contains(&packet.node) {
            // The event that says so is in another queue and may come after.
            self.establish(packet.node, packet.source, packet.local, now);
        }
        let arrival = self.arrival(&packet);
        if let Err(reason) = self.engine.handle_message(arrival, &packet.bytes, now, wall) {
            self.drops[reason as usize] += 1;
            tracing::debug!(peer = %packet.node, reason = reason.name(), "control message dropped");
        }
    }

    /// A probe that woke nobody when it came.
    pub(super) fn take_late_probe(&mut self, packet: &ControlPacket) {
        let arrival = self.arrival(packet);
        if let Err(reason) = self.engine.handle_late_probe(arrival, &packet.bytes, clock::now()) {
            self.drops[reason as usize] += 1;
        }
    }

    fn arrival(&self, packet: &ControlPacket) -> Arrival {
        let arrived = self.links.get(packet.node).map(|link| link.peer.tunnel().arrived()).unwrap_or_default();
        let path = control::path::Path { remote: packet.source, local: packet.local };
        Arrival { peer: packet.node, path, stamped: packet.at, read: packet.read, steady: packet.steady, arrived }
    }
}

//! WireGuard's handshakes, and the sessions that come of them.

use std::sync::Arc;

use super::driver::Driver;
use super::paths::path_of;
use crate::control::SessionEvent;
use crate::dataplane::{Origin, UnopenedDatagram};
use crate::identity::NodeId;
use crate::time::{Instant, UnixTime};
use crate::tunnel::{HandshakeEvent, Outbox};

impl Driver {
    /// WireGuard's messages 1 to 3. The tunnel room counts what it drops.
    pub(super) fn take_handshake(&mut self, datagram: &UnopenedDatagram, now: Instant, wall: UnixTime) {
        let mut outbox = Outbox::new();
        let host = Arc::clone(self.links.host());
        let source = datagram.origin.source();
        let event = host.handle_handshake(now, wall, source, &datagram.bytes, &mut outbox);
        let tunnel = match &event {
            Ok(
                HandshakeEvent::Answered(tunnel)
                | HandshakeEvent::Established(tunnel)
                | HandshakeEvent::Outranked(tunnel)
                | HandshakeEvent::Countered(tunnel)
                | HandshakeEvent::CookieTaken(tunnel),
            ) => Some(Arc::clone(tunnel)),
            Ok(HandshakeEvent::Challenged) => None,
            Err(reason) => {
                tracing::debug!(%source, reason = reason.name(), "handshake dropped");
                None
            }
        };
        let node = tunnel.and_then(|tunnel| self.links.node_of(tunnel.peer_key()));
        if let (Some(node), Ok(HandshakeEvent::Established(_))) = (node, &event) {
            // The response proves that the peer is where it came from.
            self.establish(node, &datagram.origin, now);
        }
        let back = self.links.back(&datagram.origin);
        let used = node.and_then(|node| self.links.get(node)).map(|link| link.peer.path());
        let path = used.as_ref().and_then(|path| path.as_deref()).or(back.as_ref());
        if let Some(dataplane) = &self.dataplane {
            dataplane.transmitter().drain_by(path, back.as_ref(), &mut outbox);
        }
        if let Some(node) = node {
            self.links.set_tick(node, now, now);
        }
    }

    /// A session stands and was proven.
    pub(super) fn establish(&mut self, node: NodeId, origin: &Origin, now: Instant) {
        self.sessions.insert(node);
        if self.links.stock(node).is_some() {
            return self.follow(node, origin);
        }
        self.links.note_arrival(node, origin);
        self.engine.handle_session(node, SessionEvent::Established { path: path_of(origin) }, now);
        if let Some(link) = self.links.get(node) {
            let in_use = link.peer.tunnel().key_in_use(now);
            self.engine.handle_key_in_use(node, in_use, now);
        }
        self.drain();
    }
}

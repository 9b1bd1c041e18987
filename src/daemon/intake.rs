//! What came from the network for the control task: introductions, control messages and probes; handshakes are told apart.

use super::driver::Driver;
use super::paths::path_of;
use crate::control::Arrival;
use crate::dataplane::{ControlPacket, UnopenedDatagram};
use crate::platform::clock;

impl Driver {
    pub(super) fn take_datagram(&mut self, datagram: UnopenedDatagram) {
        let (now, wall) = (clock::now(), clock::wall());
        let result = match datagram.bytes.first() {
            // The peer tries again, and finds the next program.
            Some(1..=3) if self.leaving.is_some() => return,
            Some(1..=3) => return self.take_handshake(&datagram, now, wall),
            _ => self.engine.handle_datagram(datagram.origin.source(), &datagram.bytes, now, wall),
        };
        if let Err(reason) = result {
            self.drops[reason as usize] += 1;
            tracing::debug!(source = %datagram.origin.source(), reason = reason.name(), "datagram dropped");
        }
    }

    pub(super) fn take_control(&mut self, packet: ControlPacket) {
        let (now, wall) = (clock::now(), clock::wall());
        if !self.sessions.contains(&packet.node) {
            // The event that says so is in another queue and may come after.
            self.establish(packet.node, &packet.origin, now);
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
        let path = path_of(&packet.origin);
        Arrival { peer: packet.node, path, stamped: packet.at, read: packet.read, steady: packet.steady, arrived }
    }
}

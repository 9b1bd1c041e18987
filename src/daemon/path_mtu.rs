//! What follows where a path carries less than before, or more: the data plane, the host and the operator hear of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::driver::Driver;
use crate::identity::NodeId;
use crate::platform::udp::Fragmentation;
use crate::telemetry::EventKind;
use crate::time::Instant;

impl Driver {
    /// The path to a peer carries packets up to `mtu` bytes.
    pub(super) fn set_path_mtu(&mut self, node: NodeId, mtu: u16, now: Instant) {
        let Some(link) = self.links.get_mut(node) else { return };
        let fell = mtu < link.peer.mtu();
        link.sized = true;
        link.peer.set_mtu(mtu);
        if fell && let Some(dataplane) = &self.dataplane {
            for error in link.peer.take_errors(now) {
                // The kernel takes no error about what has arrived meanwhile; a packet that is sent again gets its own.
                dataplane.deliver(&error);
            }
        }
        self.look_at_host();
    }

    /// The networks that are routed to peers whose paths are or were smaller than the interface's MTU, each with the size of
    /// the largest packet.
    pub(super) fn sized_networks(&self) -> BTreeMap<IpNet, u32> {
        let sized = self.links.iter().filter(|(_, link)| link.sized && link.stock.is_none());
        let networks = sized.filter_map(|(node, link)| {
            let certificate = self.engine.membership().get(node)?.certificate();
            let own = [IpNet::from(IpAddr::V4(certificate.address_v4)), IpAddr::V6(certificate.address_v6).into()];
            let mtu = u32::from(link.peer.mtu());
            Some(own.into_iter().chain(certificate.prefixes.iter().copied()).map(move |network| (network, mtu)))
        });
        // Of a network that several hold, any may carry it in the next moment.
        let mut sizes = BTreeMap::new();
        for (network, mtu) in networks.flatten() {
            sizes.entry(network).and_modify(|least: &mut u32| *least = mtu.min(*least)).or_insert(mtu);
        }
        sizes
    }

    pub(super) fn allow_fragmentation(&mut self, allowed: bool) {
        let Some(dataplane) = &self.dataplane else { return };
        let fragmentation = if allowed { Fragmentation::Allowed } else { Fragmentation::Probe };
        if let Err(error) = dataplane.set_fragmentation(fragmentation) {
            tracing::warn!("cannot set whether datagrams may be fragmented: {error}");
        }
    }

    pub(super) fn note_path_mtu(&mut self, node: NodeId, from: u16, to: u16, narrow: bool) {
        let name = self.name_of(node);
        let text = match narrow {
            true => format!("the path carries less than {to} B: datagrams may be fragmented"),
            false if to < from => format!("path MTU fell from {from} to {to} B: larger packets vanish on the way"),
            false => format!("path MTU grew from {from} to {to} B"),
        };
        if to > from {
            tracing::info!(peer = %name, "{text}");
        } else {
            tracing::warn!(peer = %name, "{text}");
        }
        self.note(EventKind::PathMtu, Some(name), text);
    }
}

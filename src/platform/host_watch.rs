//! Being told when somebody changes the host's network under us.

use super::host_state::ROUTE_PROTOCOL;
use super::netlink::{HostError, address_of, device_of};
use futures_util::StreamExt;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use std::net::IpAddr;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::AbortHandle;

/// Events held for a consumer that is busy. Every event means "look and apply again", so what is lost when the queue
/// is full is contained in what already waits.
const QUEUE: usize = 64;

/// A change that somebody made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// Our device changed: it went down or up, or its MTU was set.
    DeviceChanged {
        /// Whether it is administratively up.
        up: bool,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// Our device was deleted.
    DeviceGone,
    /// An address was taken from our device.
    AddressRemoved(IpAddr),
    /// A route of ours was removed.
    RouteRemoved,
    /// Another link, an address on it or a default route changed: the way to peers may have too.
    UnderlayChanged,
    /// The kernel sent more than we could read: anything may have happened.
    Lost,
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct HostWatch {
    events: mpsc::Receiver<HostEvent>,
    tasks: [AbortHandle; 2],
}

impl HostWatch {
    /// Watches the network namespace of the calling thread for changes to `device`, to routes marked with
    /// [`ROUTE_PROTOCOL`] and to the underlay. Must be called inside a tokio runtime.
    pub fn start(device: &str) -> Result<Self, HostError> {
        Self::start_marked(device, ROUTE_PROTOCOL)
    }

    /// Watches as [`HostWatch::start`] does, for another route protocol number.
    pub fn start_marked(device: &str, protocol: u8) -> Result<Self, HostError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, mut messages) = new_multicast_connection(&groups).map_err(HostError::Connect)?;
        let (sender, events) = mpsc::channel(QUEUE);
        let mut filter = Filter { device: device.into(), index: None, protocol };
        let connection = tokio::spawn(connection).abort_handle();
        let reader = tokio::spawn(async move {
            // The connection ends when its handle is gone, so the reader keeps it.
            let _handle = handle;
            while let Some((message, _)) = messages.next().await {
                let event = match message.payload {
                    NetlinkPayload::InnerMessage(inner) => filter.event(inner),
                    NetlinkPayload::Overrun(_) => Some(HostEvent::Lost),
                    _ => None,
                };
                if let Some(Err(TrySendError::Closed(_))) = event.map(|event| sender.try_send(event)) {
                    return;
                }
            }
        });
        Ok(HostWatch { events, tasks: [connection, reader.abort_handle()] })
    }

    /// Returns the next event, or `None` when the netlink socket has failed and the watch must be started again.
    pub async fn next(&mut self) -> Option<HostEvent> {
        self.events.recv().await
    }
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Filter {
    device: String,
    index: Option<u32>,
    protocol: u8,
}

impl Filter {
    fn event(&mut self, message: RouteNetlinkMessage) -> Option<HostEvent> {
        match message {
            RouteNetlinkMessage::NewLink(link) if self.is_ours(&link) => {
                self.index = Some(link.header.index);
                let device = device_of(&link);
                Some(HostEvent::DeviceChanged { up: device.up, mtu: device.mtu })
            }
            RouteNetlinkMessage::DelLink(link) if self.is_ours(&link) => {
                self.index = None;
                Some(HostEvent::DeviceGone)
            }
            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Some(HostEvent::UnderlayChanged),
            RouteNetlinkMessage::NewAddress(message) if self.index == Some(message.header.index) => None,
            RouteNetlinkMessage::DelAddress(message) if self.index == Some(message.header.index) => {
                address_of(&message).map(|net| HostEvent::AddressRemoved(net.addr()))
            }
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Some(HostEvent::UnderlayChanged),
            RouteNetlinkMessage::DelRoute(route) if u8::from(route.header.protocol) == self.protocol => {
                Some(HostEvent::RouteRemoved)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => self.underlay(&route),
            _ => None,
        }
    }

    fn is_ours(&self, link: &LinkMessage) -> bool {
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if *name == self.device))
    }

    /// Only default routes of others concern us: host and prefix routes follow addresses, which are reported anyway.
    fn underlay(&self, route: &RouteMessage) -> Option<HostEvent> {
        let through_us = route
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, RouteAttribute::Oif(index) if Some(*index) == self.index));
        let ours = u8::from(route.header.protocol) == self.protocol;
        (route.header.destination_prefix_length == 0 && !through_us && !ours).then_some(HostEvent::UnderlayChanged)
    }
}

//! The addresses of this host on the public network: what is announced of them, and what a change of them sets off.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::driver::Driver;
use crate::config::Config;
use crate::control::path::{Path, Reason};
use crate::identity::NodeId;
use crate::platform::host_watch::HostEvent;
use crate::platform::{clock, interfaces};
use crate::telemetry::EventKind;
use crate::time::{Instant, UnixTime};

/// How long changes of the underlay are gathered: the kernel tells of an address and its routes one after the other, within
/// a millisecond or two, and what peers notice is a tenth of this longer at most.
const GATHER: Duration = Duration::from_millis(20);

/// The endpoints to announce: the configured ones, else the address we listen on, else all of this host's own addresses.
pub(super) fn endpoints(config: &Config, bound: SocketAddr, interface: &str) -> Vec<SocketAddr> {
    if !config.underlay.endpoints.is_empty() {
        return config.underlay.endpoints.clone();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    addresses(bound, interface).into_iter().map(|address| SocketAddr::new(address, bound.port())).collect()
}

/// The addresses from which datagrams can leave: the one we listen on, else all of this host's own.
pub(super) fn addresses(bound: SocketAddr, interface: &str) -> Vec<IpAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound.ip()];
    }
    interfaces::addresses(interface).into_iter().filter(|address| address.is_ipv4() || bound.is_ipv6()).collect()
}

impl Driver {
    /// Somebody changed the host's network.
    pub(super) fn note_underlay(&mut self, event: &HostEvent) {
        if matches!(event, HostEvent::UnderlayChanged | HostEvent::Lost) {
            self.underlay_due = self.underlay_due.or(Some(clock::now() + GATHER));
        }
    }

    /// Looks at the underlay's addresses and tells the engine, which tells the peers.
    pub(super) fn look_at_underlay(&mut self, now: Instant, wall: UnixTime) {
        self.underlay_due = None;
        let addresses = addresses(self.bound, &self.interface);
        let endpoints = endpoints(&self.config, self.bound, &self.interface);
        self.engine.handle_underlay(addresses, endpoints, now, wall);
        self.drain();
    }

    /// A link's packets take another path.
    pub(super) fn note_path(&mut self, node: NodeId, from: Option<Path>, to: Path, reason: Reason) {
        let name = self.name_of(node);
        let why = match reason {
            Reason::Session => "a session was made there",
            Reason::Moved => "the peer, or this host, has moved",
            Reason::Silence => "the path before did not answer",
            Reason::Better => "it is better",
            Reason::Direct => "it is direct, and answers again",
        };
        self.monitor.path_changed(node, clock::now());
        let (from, to) = (from.map_or("none".to_owned(), |path| self.shown(path)), self.shown(to));
        tracing::info!(peer = %name, %from, %to, "path changed: {why}");
        let text = format!("path changed from {from} to {to}: {why}");
        self.note(EventKind::PathChanged, Some(name), text);
    }

    /// A path for people: the endpoint, and our address where it is chosen; or the relay.
    fn shown(&self, path: Path) -> String {
        match path {
            Path::Direct { remote, local: None } => remote.to_string(),
            Path::Direct { remote, local: Some(local) } => format!("{remote} from {local}"),
            Path::Relay { via } => format!("the relay {}", self.name_of(via)),
        }
    }
}

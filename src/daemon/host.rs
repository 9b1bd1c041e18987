//! What this host has of ours: the device, its addresses, the routes and their covers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::driver::Driver;
use crate::platform::clock;
use crate::platform::host_state::{Device, HostState};

/// How long what the kernel refused is left alone before it is tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

impl Driver {
    /// What the host should have of ours: the device with our addresses, a route for everything the mesh carries, and a
    /// cover under each.
    pub(super) fn wanted_host(&self) -> HostState {
        let certificate = self.engine.certificate().certificate();
        let mut routes: BTreeSet<IpNet> =
            [certificate.overlay_v4.into(), certificate.overlay_v6.into()].into_iter().collect();
        routes.extend(self.carried().into_iter().filter(|prefix| self.endpoint_within(prefix).is_none()));
        let device = Device {
            name: self.interface.clone(),
            mtu: u32::from(self.config.interface.mtu),
            addresses: [certificate.address_v4.into(), certificate.address_v6.into()].into_iter().collect(),
            sized: self.sized_within(&routes),
            routes: routes.clone(),
        };
        HostState { device: Some(device), covers: routes }
    }

    /// The networks with an MTU of their own, as far as there is a route to them at all.
    fn sized_within(&self, routes: &BTreeSet<IpNet>) -> BTreeMap<IpNet, u32> {
        let sized = self.sized_networks().into_iter();
        sized.filter(|(network, _)| routes.iter().any(|route| route.contains(network))).collect()
    }

    /// Asks for a look at the host's routes.
    pub(super) fn look_at_host(&mut self) {
        self.host_due = Some(clock::now());
    }

    /// The prefixes that other members carry and this one does not, and those of its stock peers.
    fn carried(&self) -> BTreeSet<IpNet> {
        let own = &self.engine.certificate().certificate().prefixes;
        let members = self.engine.membership().members();
        let prefixes = members.flat_map(|(_, member)| member.certificate().prefixes.iter().copied());
        prefixes.filter(|prefix| !own.contains(prefix)).chain(self.stock_networks()).collect()
    }

    /// A peer's endpoint inside a prefix: a route for that prefix would lead the tunnel into itself.
    fn endpoint_within(&self, prefix: &IpNet) -> Option<IpAddr> {
        let records = self.engine.membership().members().filter_map(|(_, member)| member.record.as_ref());
        let announced = records.flat_map(|record| record.record().endpoints.iter().map(SocketAddr::ip));
        let used = self.links.iter().filter_map(|(_, link)| link.endpoint()).map(|endpoint| endpoint.ip());
        announced.chain(used).map(|address| address.to_canonical()).find(|address| prefix.contains(address))
    }

    /// Prefixes that get no route here, with the endpoint that forbids it.
    pub(super) fn looping_prefixes(&self) -> Vec<(IpNet, IpAddr)> {
        let carried = self.carried().into_iter();
        carried.filter_map(|prefix| Some((prefix, self.endpoint_within(&prefix)?))).collect()
    }

    /// Brings the host to what it should have, and keeps what the kernel refused for the status.
    pub(super) async fn apply_host(&mut self) {
        self.host_due = None;
        let wanted = self.wanted_host();
        let failures: Vec<String> = match self.host.apply(&wanted).await {
            Ok(applied) => {
                for change in &applied.made {
                    tracing::info!("host: {change}");
                }
                applied.failed.iter().map(|(change, error)| format!("{change}: {error}")).collect()
            }
            Err(error) => vec![error.to_string()],
        };
        for failure in &failures {
            if !self.host_failures.contains(failure) {
                tracing::warn!("host: {failure}");
            }
        }
        if !failures.is_empty() {
            self.host_due = Some(clock::now() + REFUSED_PAUSE);
        }
        self.host_failures = failures;
    }
}

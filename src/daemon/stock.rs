//! Stock WireGuard peers: what the configuration declares, made into links, and what is shown of them.
//!
//! They are no members: no certificate, no record, no control messages, no probes. The control engine never hears of
//! them. Their links stand among the others' (`links`), with a key, a tunnel and a path; their addresses are what the
//! configuration says, as far as no certificate says otherwise (`control::placement`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use base64::Engine as _;
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::driver::Driver;
use super::links::Link;
use super::startup::StartError;
use crate::api::{Gravity, PlannedAction, Problem, TouchedLink, WireguardState, WireguardStatus};
use crate::config::{Config, Wireguard};
use crate::control::placement::{Placement, place};
use crate::dataplane::Origin;
use crate::identity::{Certificate, NodeId, NodeName};
use crate::platform::clock;
use crate::platform::file;
use crate::telemetry::EventKind;
use crate::time::Instant;
use crate::tunnel::TunnelOptions;

/// Bytes of a pre-shared key's file at most: 44 and an end of line, and room for somebody's blanks.
const KEY_LIMIT: u64 = 256;

/// One declared peer with its secret. Has no `Debug`.
#[derive(Clone, PartialEq)]
pub(super) struct Stock {
    pub(super) declared: Wireguard,
    preshared_key: Option<Zeroizing<[u8; 32]>>,
}

impl Stock {
    /// Its tunnel's options; `reachable` says whether there is somewhere to send an initiation to.
    pub(super) fn options(&self, mtu: u16, reachable: bool) -> TunnelOptions {
        let persistent_keepalive = self.declared.persistent_keepalive;
        TunnelOptions {
            mtu: usize::from(mtu),
            // A keepalive needs a session at all times, and a session a place to ask for it.
            keep_up: persistent_keepalive.is_some() && reachable,
            stock: true,
            persistent_keepalive,
            preshared_key: self.preshared_key.clone(),
        }
    }
}

/// What must be done to the links of stock peers.
pub(super) struct StockDifference {
    /// Links that end.
    gone: Vec<NodeId>,
    /// Links that begin or change.
    declared: Vec<(Stock, PlannedAction)>,
}

/// Reads the secrets of the declared peers and checks what the configuration alone cannot know.
///
/// # Errors
/// A key file that is missing, exposed or no key; a peer that would be this node itself.
pub(super) fn read_declared(config: &Config, certificate: &Certificate) -> Result<Vec<Stock>, StartError> {
    config.wireguard.iter().map(|declared| read_one(declared, certificate)).collect()
}

fn read_one(declared: &Wireguard, certificate: &Certificate) -> Result<Stock, StartError> {
    let refuse = |why: String| StartError::Wireguard { peer: declared.name.clone(), why };
    if declared.public_key == certificate.wireguard_key {
        return Err(refuse("public_key is this node's own; the peer has a key of its own".to_owned()));
    }
    let own = [IpAddr::from(certificate.address_v4), IpAddr::from(certificate.address_v6)];
    if let Some((network, address)) =
        declared.addresses.iter().find_map(|network| Some((network, own.iter().find(|own| network.contains(*own))?)))
    {
        return Err(refuse(format!("its address {network} contains {address}, which is this node's own")));
    }
    let preshared_key = declared.preshared_key_file.as_deref().map(read_preshared_key).transpose()?;
    Ok(Stock { declared: declared.clone(), preshared_key })
}

fn read_preshared_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, StartError> {
    let bytes = file::read_private(path, KEY_LIMIT)?;
    let mut key = Zeroizing::new([0; 32]);
    let text = bytes.trim_ascii();
    // One byte of room more than the key, as the decoder estimates; what is decoded is wiped too.
    let mut decoded = Zeroizing::new([0; 33]);
    match base64::engine::general_purpose::STANDARD.decode_slice(text, &mut *decoded) {
        Ok(32) => key.copy_from_slice(&decoded[..32]),
        // The content is a secret, also one that is no key.
        _ => {
            let why = "it holds no pre-shared key: expected 32 bytes in base64, as `wg genpsk` prints them".to_owned();
            return Err(StartError::Content { path: path.display().to_string(), why });
        }
    }
    Ok(key)
}

impl Driver {
    /// What making the links of the stock peers what is wanted takes: the one answer for those who plan it and those who do it.
    pub(super) fn stock_difference(&self, wanted: &[Stock]) -> StockDifference {
        let stays = |link: &Link| wanted.iter().any(|stock| stock.declared.public_key == link.key);
        let gone = self.links.stocks().filter(|(_, link, _)| !stays(link)).map(|(node, _, _)| node).collect();
        let mut declared = Vec::new();
        for stock in wanted {
            let holder = self.links.node_of(stock.declared.public_key.as_bytes());
            let known = holder.and_then(|node| self.links.stock(node));
            // Where a member has the key, its certificate wins; the status says so.
            if known == Some(stock) || (holder.is_some() && known.is_none()) {
                continue;
            }
            declared.push((stock.clone(), if known.is_some() { PlannedAction::Change } else { PlannedAction::Add }));
        }
        StockDifference { gone, declared }
    }

    /// The links that a difference touches, by name.
    pub(super) fn touched(&self, difference: &StockDifference) -> Vec<TouchedLink> {
        let gone = difference.gone.iter().map(|node| (self.name_of(*node), PlannedAction::Remove));
        let declared = difference.declared.iter().map(|(stock, action)| (stock.declared.name.to_string(), *action));
        gone.chain(declared).map(|(peer, action)| TouchedLink { peer, action }).collect()
    }

    /// Makes the links of the stock peers what was declared. The others', and those that stay as they are, are left alone.
    pub(super) fn declare_stocks(&mut self) {
        let now = clock::now();
        let StockDifference { gone, declared } = self.stock_difference(&self.stocks);
        for node in gone {
            tracing::info!(peer = %self.name_of(node), "stock WireGuard peer removed");
            self.forget_session(node);
            self.links.remove(node, now);
        }
        for (stock, _) in declared {
            let name = stock.declared.name.clone();
            match self.links.declare(stock, now) {
                Ok(_) => tracing::info!(peer = %name, "stock WireGuard peer declared"),
                Err(error) => tracing::warn!(peer = %name, %error, "a stock WireGuard peer's key cannot be used"),
            }
        }
        self.publish();
        self.look_at_host();
    }

    /// Makes room for a member with the key of a stock peer: a certificate wins over a declaration.
    pub(super) fn yield_key(&mut self, key: &crate::identity::WireguardKey) {
        let holder = self.links.node_of(key.as_bytes()).filter(|node| self.links.stock(*node).is_some());
        if let Some(node) = holder {
            tracing::warn!(peer = %self.name_of(node), "a member of the mesh has the key of this stock peer, which yields");
            self.forget_session(node);
            self.links.remove(node, clock::now());
        }
    }

    /// A stock peer's datagram was authenticated, and it came from there.
    ///
    /// That moves the peer at once. A member is challenged first, since whoever stands in the middle could send on a copy;
    /// a stock peer cannot answer a challenge. What such a copy gains is what WireGuard grants everywhere: sealed packets
    /// go to the copier, who could have taken them on their way anyhow, until the peer's next packet moves it back.
    pub(super) fn follow(&mut self, node: NodeId, origin: &Origin) {
        // Nothing of a stock peer's comes by a relay.
        let Origin::Underlay { source, .. } = *origin else { return };
        let first = self.links.get(node).is_none_or(|link| link.peer.path().is_none());
        if !self.links.follow_stock(node, origin, source) {
            return;
        }
        let name = self.name_of(node);
        if !first {
            tracing::info!(peer = %name, endpoint = %source, "stock WireGuard peer moved");
            self.note(EventKind::PathChanged, Some(name), format!("moved to {source}"));
        }
        // A route that now contains an endpoint has to go.
        self.look_at_host();
    }

    /// A stock peer's session has ended: where it was may be somebody else's place by now, so the next attempt goes where
    /// it is declared to be.
    pub(super) fn stock_lost(&mut self, node: NodeId) {
        if let Some(endpoint) = self.links.stock(node).and_then(|stock| stock.declared.endpoint) {
            self.links.set_endpoint(node, endpoint);
        }
    }

    /// The networks outside the overlay that stock peers hold here.
    pub(super) fn stock_networks(&self) -> BTreeSet<IpNet> {
        let certificate = self.engine.certificate().certificate();
        let overlay = [IpNet::from(certificate.overlay_v4), IpNet::from(certificate.overlay_v6)];
        let (routing, own) = (self.engine.routing(), self.engine.node());
        let held = self.links.stocks().flat_map(|(_, _, stock)| self.links.placed(stock, &routing, own));
        held.map(|(network, _)| network).filter(|net| !overlay.iter().any(|range| range.contains(net))).collect()
    }

    /// What the status shows of the stock peers, in the order of the configuration.
    pub(super) fn wireguard_status(&self, now: Instant) -> Vec<WireguardStatus> {
        let certificate = self.engine.certificate().certificate();
        let links: Vec<_> = self.links.stocks().collect();
        let statuses = self.stocks.iter().map(|stock| {
            let declared = &stock.declared;
            let carried = |network: &IpNet| certificate.prefixes.iter().any(|prefix| prefix.contains(network));
            let mut status = WireguardStatus {
                name: declared.name.to_string(),
                public_key: declared.public_key.to_string(),
                addresses: declared.addresses.clone(),
                carried: declared.addresses.iter().filter(|network| carried(network)).copied().collect(),
                state: WireguardState::Refused,
                endpoint: None,
                declared_endpoint: declared.endpoint,
                has_preshared_key: stock.preshared_key.is_some(),
                session_age_seconds: None,
                heard_seconds: None,
                rx_bytes: 0,
                tx_bytes: 0,
                rx_packets: 0,
                tx_packets: 0,
                handshakes: 0,
                drops: Default::default(),
            };
            let Some((_, link, _)) = links.iter().find(|(_, link, _)| link.key == declared.public_key) else {
                return status;
            };
            let tunnel = link.peer.tunnel().status(now);
            status.state = match (tunnel.session, tunnel.last_received) {
                (Some(_), _) => WireguardState::Up,
                (None, Some(_)) => WireguardState::Idle,
                (None, None) => WireguardState::New,
            };
            status.endpoint = link.endpoint();
            status.session_age_seconds =
                tunnel.session.map(|session| now.saturating_since(session.established).as_secs());
            status.heard_seconds = tunnel.last_received.map(|last| now.saturating_since(last).as_secs());
            (status.rx_bytes, status.rx_packets) = (tunnel.received.bytes, tunnel.received.packets);
            (status.tx_bytes, status.tx_packets) = (tunnel.sent.bytes, tunnel.sent.packets);
            status.handshakes = tunnel.handshakes;
            status.drops = super::status::by_reason(&tunnel.drops);
            status
        });
        statuses.collect()
    }

    /// What is wrong with the stock peers: what they declare and do not get.
    pub(super) fn wireguard_problems(&self, problems: &mut Vec<Problem>) {
        let (routing, own) = (self.engine.routing(), self.engine.node());
        let certificate = self.engine.certificate().certificate();
        let addresses = [certificate.address_v4.into(), certificate.address_v6.into()];
        let mut warn = |name: &NodeName, kind: &str, message: String, advice: &str| {
            problems.push(Problem {
                gravity: Gravity::Warning,
                kind: kind.into(),
                peer: Some(name.to_string()),
                message,
                advice: advice.into(),
                since: None,
            });
        };
        for stock in &self.stocks {
            let Wireguard { name, public_key, addresses: networks, .. } = &stock.declared;
            if let Some(node) =
                self.links.node_of(public_key.as_bytes()).filter(|node| self.links.stock(*node).is_none())
            {
                let message =
                    format!("{name} has no tunnel: {} has the same key by its certificate", self.name_of(node));
                warn(name, "wireguard_key", message, "give one of the two a key of its own");
            }
            for network in networks {
                let (all, entry) = match place(network, &routing, own, &addresses) {
                    Placement::Whole => continue,
                    Placement::But(entry) => ("a part of", entry),
                    Placement::Nothing(entry) => ("all of", entry),
                };
                let holder = self.name_of(entry.node);
                let message = format!(
                    "{name} is declared with {network}, {all} which is {holder}'s by its certificate ({})",
                    entry.network
                );
                warn(name, "wireguard_address", message, "give the peer another address in [[wireguard]] and reload");
            }
        }
    }
}

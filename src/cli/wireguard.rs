//! `meshctl wireguard`: the configuration of a stock WireGuard peer, as text and as a picture to scan.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine as _;
use ipnet::IpNet;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::args::WireguardArgs;
use super::context::Context;
use super::exit::{Exit, Failure};
use crate::api::{NodeInfo, SCHEMA, Status, WireguardStatus};
use crate::config::{Wireguard, nearest};
use crate::identity::{NodeName, WireguardKey};
use crate::platform::random;

/// What stands where the peer's own private key belongs.
const PRIVATE_KEY: &str = "REPLACE-WITH-THE-PRIVATE-KEY-OF-THIS-DEVICE";
/// What stands where the pre-shared key belongs: the daemon tells it to nobody.
const PRESHARED_KEY: &str = "REPLACE-WITH-THE-PRE-SHARED-KEY";
/// Seconds between two keepalives of a peer behind a NAT: most keep a mapping for 30 s at least (RFC 4787 §4.3 asks for
/// two minutes, and is not followed).
const KEEPALIVE: u32 = 25;

/// What a peer's configuration is made of.
struct Sheet<'a> {
    node: &'a NodeInfo,
    mtu: u32,
    addresses: &'a [IpNet],
    /// Whether the peer takes part in the whole mesh, by family (IPv4, IPv6).
    whole: (bool, bool),
    /// The overlay addresses of the node, for a peer that reaches nothing else.
    own: [IpNet; 2],
    private_key: &'a str,
    has_preshared_key: bool,
    endpoint: SocketAddr,
    /// The peer's port, where it has a fixed place; it then needs no keepalives.
    listen: Option<u16>,
}

/// Prints a declared peer's configuration, or makes a new peer.
pub async fn run(context: &Context, args: &WireguardArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let (status, node) = (client.status().await?, client.node().await?);
    let endpoint = args.endpoint.or_else(|| node.endpoints.first().copied()).ok_or_else(|| {
        Failure::failed("this node announces no endpoint: say where the peer reaches it, --endpoint ADDRESS:PORT")
    })?;
    if args.new { make(context, args, &status, &node, endpoint) } else { show(context, args, &status, &node, endpoint) }
}

fn show(
    context: &Context,
    args: &WireguardArgs,
    status: &Status,
    node: &NodeInfo,
    endpoint: SocketAddr,
) -> Result<(), Failure> {
    let peer = find(status, args.node.as_str())?;
    let sheet = Sheet {
        node,
        mtu: status.node.mtu_bytes,
        addresses: &peer.addresses,
        whole: families(&peer.carried),
        own: own(status),
        private_key: PRIVATE_KEY,
        has_preshared_key: peer.has_preshared_key,
        endpoint,
        listen: peer.declared_endpoint.map(|endpoint| endpoint.port()),
    };
    let config = sheet.render();
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA, "name": peer.name, "public_key": peer.public_key, "config": config,
        }));
    }
    print(context, args.qr, &config)?;
    context.output.note("Put the device's own private key in its place; it never leaves the device.");
    Ok(())
}

fn make(
    context: &Context,
    args: &WireguardArgs,
    status: &Status,
    node: &NodeInfo,
    endpoint: SocketAddr,
) -> Result<(), Failure> {
    refuse_taken(status, &args.node)?;
    let addresses: Vec<IpNet> = args.address.clone();
    let seed = random::seed().map_err(|error| Failure::failed(format!("the system gives no randomness: {error}")))?;
    let mut bytes = Zeroizing::new([0; 32]);
    ChaCha20Rng::from_seed(*seed).fill_bytes(&mut *bytes);
    let secret = StaticSecret::from(*bytes);
    let public_key = WireguardKey::from_bytes(PublicKey::from(&secret).to_bytes())
        .map_err(|error| Failure::failed(format!("the new key cannot be used: {error}; run the command again")))?;
    let private_key = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(secret.as_bytes()));
    let carried = node_prefixes(status, &addresses);
    let sheet = Sheet {
        node,
        mtu: status.node.mtu_bytes,
        addresses: &addresses,
        whole: families(&carried),
        own: own(status),
        private_key: &private_key,
        has_preshared_key: false,
        endpoint,
        listen: None,
    };
    let config = Zeroizing::new(sheet.render());
    let declared = Wireguard {
        name: args.node.clone(),
        public_key,
        addresses,
        endpoint: None,
        preshared_key_file: None,
        persistent_keepalive: None,
    };
    let block = declared.to_toml(Path::new(""));
    if context.output.json {
        return context.output.json(&serde_json::json!({
            "schema": SCHEMA, "name": args.node.as_str(), "public_key": public_key.to_string(), "config": *config,
            "block": block,
        }));
    }
    print(context, args.qr, &config)?;
    context.output.note(&format!(
        "The private key above is shown this once and kept nowhere. For {}, add to {} and reload meshd:\n\n{block}",
        status.node.name,
        context.config.display()
    ));
    Ok(())
}

/// Writes the configuration, and its picture below it on a terminal or where it was asked for.
fn print(context: &Context, qr: bool, config: &str) -> Result<(), Failure> {
    context.output.data(config)?;
    if qr || io::stdout().is_terminal() {
        context.output.data(&format!("\n{}\n", picture(config)?))?;
    }
    Ok(())
}

/// Draws a QR code in block characters, two modules a character.
fn picture(config: &str) -> Result<String, Failure> {
    let code = QrCode::new(config.as_bytes())
        .map_err(|error| Failure::failed(format!("the configuration does not fit a QR code: {error}")))?;
    // Light modules are drawn and dark ones left blank, which is right on a terminal that is dark; readers take the other
    // sort too.
    let (drawn, blank) = (Dense1x2::Dark, Dense1x2::Light);
    Ok(code.render::<Dense1x2>().light_color(drawn).dark_color(blank).quiet_zone(true).build())
}

impl Sheet<'_> {
    /// Renders the peer's file in the form of wg-quick(8).
    fn render(&self) -> String {
        let shown = |networks: &[IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        // The device's own addresses; networks behind it are its own business.
        let hosts: Vec<IpNet> = self.addresses.iter().filter(|net| is_host(net)).copied().collect();
        let mut lines = vec!["[Interface]".to_owned(), format!("PrivateKey = {}", self.private_key)];
        if !hosts.is_empty() {
            lines.push(format!("Address = {}", shown(&hosts)));
        }
        lines.extend(self.listen.map(|port| format!("ListenPort = {port}")));
        lines.push(format!("MTU = {}", self.mtu));
        lines.push(String::new());
        lines.push("[Peer]".to_owned());
        lines.push(format!("PublicKey = {}", self.node.wireguard_key));
        if self.has_preshared_key {
            lines.push(format!("PresharedKey = {PRESHARED_KEY}"));
        }
        lines.push(format!("Endpoint = {}", self.endpoint));
        lines.push(format!("AllowedIPs = {}", shown(&self.allowed())));
        if self.listen.is_none() {
            lines.push(format!("PersistentKeepalive = {KEEPALIVE}"));
        }
        lines.join("\n") + "\n"
    }

    /// What the peer reaches through this node: of each family that it has an address of, the overlay, or this node alone.
    fn allowed(&self) -> Vec<IpNet> {
        let mut allowed = Vec::new();
        if self.addresses.iter().any(|net| matches!(net, IpNet::V4(_))) {
            allowed.push(if self.whole.0 { self.node.overlay_v4.into() } else { self.own[0] });
        }
        if self.addresses.iter().any(|net| matches!(net, IpNet::V6(_))) {
            allowed.push(if self.whole.1 { self.node.overlay_v6.into() } else { self.own[1] });
        }
        allowed
    }
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn families(networks: &[IpNet]) -> (bool, bool) {
    let has = |wanted: fn(&IpNet) -> bool| networks.iter().any(wanted);
    (has(|net| matches!(net, IpNet::V4(_))), has(|net| matches!(net, IpNet::V6(_))))
}

fn own(status: &Status) -> [IpNet; 2] {
    [std::net::IpAddr::from(status.node.address_v4).into(), std::net::IpAddr::from(status.node.address_v6).into()]
}

/// Those of the addresses that this node's certificate carries.
fn node_prefixes(status: &Status, addresses: &[IpNet]) -> Vec<IpNet> {
    let carried = |network: &&IpNet| status.node.prefixes.iter().any(|prefix| prefix.contains(*network));
    addresses.iter().filter(carried).copied().collect()
}

fn refuse_taken(status: &Status, name: &NodeName) -> Result<(), Failure> {
    let taken = status.node.name == name.as_str()
        || status.peers.iter().any(|peer| peer.name == name.as_str())
        || status.wireguard.iter().any(|peer| peer.name == name.as_str());
    match taken {
        true => Err(Failure::failed(format!("`{name}` is taken already; choose another name for the peer"))),
        false => Ok(()),
    }
}

fn find<'a>(status: &'a Status, name: &str) -> Result<&'a WireguardStatus, Failure> {
    status.wireguard.iter().find(|peer| peer.name == name).ok_or_else(|| {
        let advice = match nearest(name, status.wireguard.iter().map(|peer| peer.name.as_str())) {
            Some(near) => format!("did you mean `{near}`?"),
            None if status.peers.iter().any(|peer| peer.name == name) => "it is a member of the mesh".to_owned(),
            None => format!("make one: meshctl wireguard --new {name} --address ADDRESS"),
        };
        Failure::new(Exit::NotFound, format!("no stock WireGuard peer `{name}` is declared on this node; {advice}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Backend;
    use crate::api::fake::{Fake, healthy_status};

    async fn sheet_of(addresses: &[&str], whole: (bool, bool), listen: Option<u16>) -> String {
        let status = healthy_status();
        let node = Fake { status: status.clone(), ping: Vec::new() }.node().await.unwrap();
        let addresses: Vec<IpNet> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Sheet {
            node: &node,
            mtu: 1420,
            addresses: &addresses,
            whole,
            own: own(&status),
            private_key: PRIVATE_KEY,
            has_preshared_key: listen.is_some(),
            endpoint: "203.0.113.5:7655".parse().unwrap(),
            listen,
        }
        .render()
    }

    #[tokio::test]
    async fn what_a_phone_reaches_follows_from_its_addresses() {
        let whole = sheet_of(&["10.78.0.2/32", "fd78::2/128"], (true, true), None).await;
        assert!(whole.contains("Address = 10.78.0.2/32, fd78::2/128\n"), "{whole}");
        assert!(whole.contains("AllowedIPs = 10.77.0.0/16, fd"), "{whole}");
        assert!(whole.ends_with("PersistentKeepalive = 25\n") && !whole.contains("PresharedKey"), "{whole}");
        let alone = sheet_of(&["10.77.200.2/32", "192.168.50.0/24"], (false, false), Some(51_820)).await;
        assert!(alone.contains("Address = 10.77.200.2/32\nListenPort = 51820\nMTU = 1420\n"), "{alone}");
        assert!(alone.contains("AllowedIPs = 10.77.0.1/32\n") && !alone.contains("Keepalive"), "{alone}");
        assert!(alone.contains(&format!("PresharedKey = {PRESHARED_KEY}\n")), "{alone}");
    }

    #[test]
    fn a_configuration_is_drawn_light_on_dark() {
        let drawn = picture(&"PublicKey = 0123456789\n".repeat(30)).unwrap();
        let lines: Vec<&str> = drawn.lines().collect();
        // The quiet zone is light, and so drawn; the corner of the first finder behind it is dark, and so blank.
        assert!(lines[0].chars().all(|module| module == '█'), "{drawn}");
        assert_eq!(lines[2].chars().nth(4), Some(' '), "{drawn}");
        assert!(picture(&"x".repeat(4_000)).is_err());
    }
}

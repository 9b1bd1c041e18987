//! The one list of keys: the parser's known names, the comments of the written file, the manual's reference.

/// One key of `meshd.toml`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The section it stands in: empty for the top, `bootstrap` for the entries of `[[bootstrap]]`,
    /// `wireguard` for those of `[[wireguard]]`.
    pub section: &'static str,
    /// Its name inside the section.
    pub name: &'static str,
    /// What its value is, with the unit and the range.
    pub value: &'static str,
    /// Its default as people read it; empty for a key that must be given.
    pub default: &'static str,
    /// What it does.
    pub about: &'static str,
}

const fn key(
    section: &'static str,
    name: &'static str,
    value: &'static str,
    default: &'static str,
    about: &'static str,
) -> Key {
    Key { section, name, value, default, about }
}

/// Sections in the order of the file; the first is the top of the file.
pub const SECTIONS: [(&str, &str); 25] = [
    ("", ""),
    ("mesh", "The mesh and who may admit nodes to it: the same on every node."),
    ("underlay", "The sockets on the public network."),
    ("bootstrap", "Members to greet before any other is known; any one that answers is enough."),
    (
        "wireguard",
        "Stock WireGuard peers of this node (phones, routers): `meshctl wireguard --new NAME` makes an entry.",
    ),
    (
        "allow",
        "What the others may reach here: without an entry everything, with any entry nothing else. The same entries may stand on every node.",
    ),
    (
        "lockdown",
        "What everybody may reach on the other interfaces of this host. Nothing is closed before `meshctl lockdown trial` and `confirm`.",
    ),
    (
        "forward",
        "TCP connections taken here and made again to a target in the mesh; `meshctl forward switch` moves them to another.",
    ),
    (
        "gateway_check",
        "What must answer behind this node for a prefix that it shares; while nothing does, the others send by another gateway.",
    ),
    (
        "names",
        "The members' names: `meshctl names` shows them. By default nobody is answered, and the host's resolver is left alone.",
    ),
    ("alias", "Other names of members, on this node only; those of its forwards are there without an entry."),
    ("interface", "The network interface of the mesh on this host."),
    ("gateway", "What this node does for the networks that its certificate carries."),
    ("dataplane", "How packets are moved."),
    ("tunnel", "The tunnels to the other members."),
    ("files", "Where things lie. Relative paths start at this file's directory."),
    ("probe", "How the links to the other members are measured."),
    (
        "history",
        "What is kept of the links' past, in one file of the state directory: minutes for 30 days, days for years.",
    ),
    (
        "metrics",
        "What monitors such as Prometheus read: GET /metrics, without a password, on this host or in the mesh alone.",
    ),
    (
        "alert",
        "When somebody is told. Without an entry, sane rules hold as soon as there is a [[receiver]]; `meshctl alerts` shows them.",
    ),
    ("receiver", "Who is told of alerts: a webhook, Alertmanager, or a program. `meshctl alerts test NAME` tries one."),
    (
        "web",
        "The page for browsers: the mesh and each link's history, without a password, on this host or in the mesh alone.",
    ),
    ("api", "Who may ask the daemon, besides root and the daemon's own user."),
    ("security", "What the daemon takes from itself on this host."),
    ("log", "What is written to the log (standard error)."),
];

/// Sections of which there may be several, as in `[[bootstrap]]`.
pub const LISTS: [&str; 8] =
    ["bootstrap", "wireguard", "allow", "forward", "gateway_check", "alias", "alert", "receiver"];

/// Every key, in the order of the file.
pub const KEYS: [Key; 77] = [
    key("", "node", "a name: 1 to 63 of [a-z0-9-]", "", "This node's name, as in its certificate."),
    key("mesh", "name", "a name: 1 to 63 of [a-z0-9-]", "", "The mesh's name, for people."),
    key("mesh", "id", "32 hexadecimal digits", "", "The mesh's identifier, drawn by `meshctl init`."),
    key("mesh", "overlay", "an IPv4 range between /8 and /29", "", "The range the nodes' addresses come from."),
    key(
        "mesh",
        "authorities",
        "a list of 1 to 4 Ed25519 public keys in base64",
        "",
        "The keys whose signature admits a node.",
    ),
    key("underlay", "listen", "ADDRESS:PORT", "\"[::]:7655\"", "The UDP address to listen on; [::] takes IPv4 too."),
    key(
        "underlay",
        "endpoints",
        "a list of up to 16 ADDRESS:PORT",
        "[]",
        "Where the other members can reach this node; empty if they cannot.",
    ),
    key("bootstrap", "name", "a node's name", "", "The member's name."),
    key("bootstrap", "key", "a WireGuard public key in base64", "", "The member's WireGuard key."),
    key("bootstrap", "endpoint", "ADDRESS:PORT", "", "Where the member listens."),
    key("wireguard", "name", "a name: 1 to 63 of [a-z0-9-]", "", "The peer's name, on this node only."),
    key("wireguard", "public_key", "a WireGuard public key in base64", "", "The peer's public key."),
    key(
        "wireguard",
        "addresses",
        "a list of 1 to 16 addresses or prefixes",
        "",
        "What the peer may send from and is reached at; others reach it where this node's certificate carries that.",
    ),
    key("wireguard", "endpoint", "ADDRESS:PORT", "none", "Where the peer listens, if it has a fixed place."),
    key("wireguard", "preshared_key_file", "a path", "none", "A file with the pre-shared key in base64, mode 0600."),
    key(
        "wireguard",
        "persistent_keepalive",
        "a duration in whole seconds, 1s to 1h",
        "none",
        "How often this node sends at least something, so that a NAT in front of it keeps its mapping.",
    ),
    key(
        "allow",
        "from",
        "a list of up to 64 of tag:TAG, a node's name, an address or prefix, any",
        "",
        "Who may. Names and tags are the certificates'; networks behind a node are named by their prefix.",
    ),
    key(
        "allow",
        "to",
        "a list of up to 64 of tag:TAG, a node's name, an address or prefix, any",
        "all of this node",
        "What may be reached, as far as it is this node's, behind it, or a stock peer of it.",
    ),
    key(
        "allow",
        "ports",
        "a list of up to 64 of tcp/PORT, tcp/FIRST-LAST, udp/…, icmp, any",
        "any",
        "By what. Answers to what this node began always pass.",
    ),
    key(
        "lockdown",
        "allow",
        "a list of up to 256 of tcp/PORT, tcp/FIRST-LAST, udp/…, each also with ` from PREFIX`, any from PREFIX",
        "everything",
        "What stays open besides the mesh's port. Answers, echoes and what else a host needs of ICMP and DHCP always pass.",
    ),
    key("forward", "name", "a name: 1 to 63 of [a-z0-9-]", "", "The forward's name, on this node only."),
    key("forward", "listen", "a list of 1 to 8 ADDRESS:PORT", "", "The TCP addresses to take connections at."),
    key(
        "forward",
        "targets",
        "a list of 1 to 8 NODE:PORT or ADDRESS:PORT",
        "",
        "Where they are made again: the first, until it fails or `meshctl forward switch` says otherwise.",
    ),
    key(
        "forward",
        "failover",
        "true or false",
        "true",
        "Whether the next healthy target is taken when one fails; false for databases of which only one may be written to.",
    ),
    key(
        "forward",
        "check_interval",
        "a duration, 1s to 1h",
        "\"2s\"",
        "Time between two looks at each target: a TCP connect.",
    ),
    key(
        "forward",
        "connect_timeout",
        "a duration, 100ms to 60s",
        "\"3s\"",
        "How long a new connection waits for a target, also for one that restarts.",
    ),
    key(
        "forward",
        "source",
        "none or proxy_v2",
        "\"none\"",
        "Whether the target is told where a connection came from, by a PROXY protocol header (version 2).",
    ),
    key("forward", "max_connections", "1 to 20000", "1000", "Connections at a time; more are refused."),
    key("gateway_check", "prefix", "a prefix", "", "The prefix, as this node's certificate shares it."),
    key(
        "gateway_check",
        "check",
        "a list of 1 to 4 ADDRESS:PORT or ADDRESS",
        "",
        "What is looked at, inside the prefix: by a TCP connect, or by an ICMP echo where there is no port. One that answers is enough.",
    ),
    key(
        "gateway_check",
        "interval",
        "a duration, 100ms to 60s",
        "\"300ms\"",
        "Time between two looks, and how long each waits, up to 1s.",
    ),
    key(
        "gateway_check",
        "tries",
        "1 to 10",
        "3",
        "How many looks in a row must fail. The others switch after at most interval × (tries + 1), and a message's way.",
    ),
    key(
        "names",
        "listen",
        "ADDRESS:PORT with a loopback address or this node's overlay address",
        "none",
        "The UDP address of the name server, for this host and the mesh; it is not there without it.",
    ),
    key(
        "names",
        "suffix",
        "a domain of up to 100 bytes, such as prod or mesh.example.com",
        "the mesh's name",
        "What stands behind every name: db1.prod. The same on every node.",
    ),
    key(
        "names",
        "resolver",
        "off, auto, resolved, resolvconf or hosts",
        "\"off\"",
        "How this host's own resolver learns of them: systemd-resolved, resolvconf, or a marked block in /etc/hosts. Undone at a stop.",
    ),
    key(
        "alias",
        "name",
        "a name: 1 to 63 of [a-z0-9-]",
        "",
        "The other name. Where a member has it, it is the member's.",
    ),
    key(
        "alias",
        "to",
        "a node's name, or the name of a [[forward]] with .forward behind it",
        "",
        "What it stands for: a member, or wherever a forward of this node leads now.",
    ),
    key("interface", "name", "1 to 15 bytes without `/` and blanks", "\"mesh0\"", "The interface's name."),
    key("interface", "mtu", "bytes, 1280 to 9000", "1420", "The largest packet inside the mesh, in bytes."),
    key(
        "gateway",
        "masquerade",
        "true or false",
        "false",
        "Whether hosts there see this host's own address instead of the mesh's: for networks without a way back. Needs nft.",
    ),
    key(
        "dataplane",
        "latency",
        "normal or low",
        "\"normal\"",
        "With low, packets that follow each other closely find the daemon awake, at the price of up to one core while they do.",
    ),
    key(
        "dataplane",
        "shards",
        "1 to 16",
        "1",
        "How many threads move packets, each the traffic of its part of the peers; more than one core's worth needs several.",
    ),
    key(
        "tunnel",
        "pq",
        "on, off or required",
        "\"on\"",
        "Mixes a key of ML-KEM-768 and X25519 into every tunnel, so that what is recorded today stays secret from the quantum computers of tomorrow. With required, data waits for that key, on the other side too.",
    ),
    key(
        "tunnel",
        "pq_renewal",
        "a duration, 2s to 24h",
        "\"1h\"",
        "How long such a key serves; the next one takes over without a gap.",
    ),
    key("files", "identity", "a path", "identity.key, here", "This node's private keys, mode 0600."),
    key("files", "certificate", "a path", "node.cert, here", "This node's certificate."),
    key(
        "files",
        "state_directory",
        "a path",
        "state, here; /var/lib/meshd for /etc/meshd",
        "Where the daemon keeps the membership it learned.",
    ),
    key(
        "files",
        "socket",
        "a path",
        "meshd.sock, here; /run/meshd/meshd.sock for /etc/meshd",
        "The daemon's Unix socket, which `meshctl` talks to.",
    ),
    key("files", "authority", "a path", "none", "The authority's key, on a node that answers invites and renewals."),
    key("files", "authority_passphrase_file", "a path", "none", "A file with the authority key's passphrase."),
    key("files", "ledger", "a path", "beside the authority's key", "What the authority has issued."),
    key("probe", "interval", "a duration, 100ms to 60s", "\"1s\"", "Time between two probes of a link."),
    key(
        "probe",
        "critical_tags",
        "a list of up to 16 tags",
        "[]",
        "Links from and to nodes with one of these tags are probed five times a second; the same on every node.",
    ),
    key(
        "history",
        "enabled",
        "true or false",
        "true",
        "Whether the past is recorded; the last hour is there without it.",
    ),
    key(
        "history",
        "max_size",
        "a size, 16MiB to 4TiB",
        "\"1GiB\"",
        "How large the file may become; beyond it the oldest minutes go first.",
    ),
    key(
        "metrics",
        "listen",
        "ADDRESS:PORT with a loopback address or this node's overlay address",
        "none",
        "The TCP address of the metrics; they are not served without it.",
    ),
    key(
        "metrics",
        "per_link",
        "auto, all or worst",
        "\"auto\"",
        "Which links have series of their own. With auto: all of up to 200, else the 50 worst and the critical, and sums by site.",
    ),
    key("alert", "name", "a name: 1 to 63 of [a-z0-9-]", "", "The rule's name, as alerts carry it."),
    key(
        "alert",
        "what",
        "link_down, latency_above, loss_above, data_loss, latency_step, host_delay, certificate, node_down or burn_rate",
        "",
        "What must be the case.",
    ),
    key(
        "alert",
        "threshold",
        "a delay or \"baseline + 5ms\" (latency_above, burn_rate), a percentage (loss_above, data_loss), a duration (the others)",
        "by what",
        "Above which value; the baseline is the link's own median of seven days.",
    ),
    key(
        "alert",
        "objective",
        "a percentage",
        "\"99.9%\"",
        "Of burn_rate: how many probes must be good in the long run.",
    ),
    key("alert", "peers", "a list of up to 64 names or tag:TAG", "[], all", "Which peers it is about."),
    key("alert", "for", "a duration up to 1d", "by what", "How long it must be the case before anybody is told."),
    key("alert", "severity", "page or ticket", "by what", "Whether somebody should be woken."),
    key("alert", "receivers", "a list of up to 8 receivers' names", "[], all", "Who is told."),
    key("receiver", "name", "a name: 1 to 63 of [a-z0-9-]", "", "The receiver's name, on this node only."),
    key("receiver", "type", "webhook, alertmanager or command", "", "How it is told."),
    key(
        "receiver",
        "url",
        "an address that begins with http:// or https://",
        "none",
        "Where to POST: the webhook's address, or Alertmanager's without a path.",
    ),
    key(
        "receiver",
        "header_file",
        "a path",
        "none",
        "A file with one header line, such as `Authorization: Bearer …`, mode 0600.",
    ),
    key(
        "receiver",
        "command",
        "a list of a program's whole path and up to 31 arguments",
        "none",
        "What to run, with the alert as JSON on its standard input and no environment; never a shell.",
    ),
    key("receiver", "timeout", "a duration, 1s to 60s", "\"10s\"", "How long one delivery may take."),
    key("receiver", "repeat", "a duration, 1m to 7d", "\"4h\"", "How often it is told again while an alert fires."),
    key(
        "web",
        "listen",
        "ADDRESS:PORT with a loopback address or this node's overlay address",
        "none",
        "The TCP address of the page; it is not served without it.",
    ),
    key(
        "api",
        "group",
        "a group's name: 1 to 32 of [a-z0-9_-]",
        "none",
        "The group of this host whose members may look (`meshctl status`); changes are for root and the daemon's user.",
    ),
    key(
        "security",
        "landlock",
        "auto or off",
        "\"auto\"",
        "Whether the kernel refuses the daemon, and what it executes, to write elsewhere than in its own directories, where it has Landlock.",
    ),
    key(
        "security",
        "writable",
        "a list of up to 32 paths of directories",
        "[]",
        "What may be written besides, for programs of receivers; the packaged unit needs them as ReadWritePaths=, too.",
    ),
    key("log", "level", "error, warn, info, debug or trace", "\"info\"", "The least important level still written."),
];

/// Returns the names of a section's keys.
pub fn names(section: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(move |key| key.section == section).map(|key| key.name)
}

/// Returns the key of that section and name.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_in_sections_that_exist_and_once_each() {
        for (i, key) in KEYS.iter().enumerate() {
            assert!(SECTIONS.iter().any(|(name, _)| *name == key.section), "{}", key.section);
            let twins = KEYS.iter().skip(i + 1).filter(|k| k.section == key.section && k.name == key.name);
            assert_eq!(twins.count(), 0, "{}.{}", key.section, key.name);
        }
    }
}

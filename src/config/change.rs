//! What changed between two configurations, and whether a running daemon can take it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::{
    Alert, Alias, Allow, Bootstrap, Config, Forward, GatewayCheck, Landlock, Latency, Level, Lockdown, PerLink,
    PostQuantum, Receiver, Resolver, Suffix, Wireguard,
};
use crate::identity::{MeshId, NodeName, Tag, VerifyingKey};

/// Whether a change can be taken by a running daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A reload takes it; no session, socket or interface is lost.
    Live,
    /// It takes effect at the next start of the daemon.
    NeedsRestart,
}

/// One setting that differs, with its new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting and its new value.
    pub setting: Setting,
}

impl Change {
    /// Returns the key in full, as in `interface.mtu`.
    pub fn key(&self) -> &'static str {
        self.setting.key()
    }

    /// Returns whether a running daemon can take it.
    pub fn effect(&self) -> Effect {
        self.setting.effect()
    }

    /// Puts the new value into a configuration.
    pub fn apply(&self, config: &mut Config) {
        self.setting.apply(config);
    }
}

/// One list for the setting's name, type, place and effect, so that none can be forgotten in one of the four.
macro_rules! settings {
    ($($(#[$doc:meta])* $variant:ident($ty:ty) $key:literal $effect:ident $($place:ident).+;)*) => {
        /// A setting and its value.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Setting {
            $($(#[$doc])* $variant($ty),)*
        }

        impl Setting {
            /// Returns the key in full.
            pub fn key(&self) -> &'static str {
                match self { $(Setting::$variant(_) => $key,)* }
            }

            /// Returns whether a running daemon can take it.
            pub fn effect(&self) -> Effect {
                match self { $(Setting::$variant(_) => Effect::$effect,)* }
            }

            fn apply(&self, config: &mut Config) {
                match self { $(Setting::$variant(value) => config.$($place).+ = value.clone(),)* }
            }
        }

        /// Returns what must change in `old` to make it `new`, in the order of the file.
        pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
            let mut changes = Vec::new();
            $(if old.$($place).+ != new.$($place).+ {
                changes.push(Change { setting: Setting::$variant(new.$($place).+.clone()) });
            })*
            changes
        }
    };
}

settings! {
    /// This node's name.
    Node(NodeName) "node" NeedsRestart node;
    /// The mesh's name.
    MeshName(String) "mesh.name" NeedsRestart mesh.name;
    /// The mesh's identifier.
    MeshId(MeshId) "mesh.id" NeedsRestart mesh.id;
    /// The overlay range.
    MeshOverlay(Ipv4Net) "mesh.overlay" NeedsRestart mesh.overlay;
    /// The authorities; no link of a member that rests on one of them is touched.
    MeshAuthorities(Vec<VerifyingKey>) "mesh.authorities" Live mesh.authorities;
    /// The listening sockets.
    Listen(Vec<SocketAddr>) "underlay.listen" NeedsRestart underlay.listen;
    /// The announced endpoints.
    Endpoints(Vec<SocketAddr>) "underlay.endpoints" Live underlay.endpoints;
    /// The bootstrap members.
    Bootstrap(Vec<Bootstrap>) "bootstrap" Live bootstrap;
    /// The stock WireGuard peers; those that stay as they are keep their sessions.
    Wireguard(Vec<Wireguard>) "wireguard" Live wireguard;
    /// What members may reach here; no link is touched.
    Allow(Vec<Allow>) "allow" Live allow;
    /// What stays open on the underlay; what was confirmed holds until the change is.
    Lockdown(Option<Lockdown>) "lockdown" Live lockdown;
    /// The forwards; those that stay as they are are left alone, and connections outlive every change.
    Forwards(Vec<Forward>) "forward" Live forwards;
    /// What is checked behind this node; checks that stay as they are are left alone.
    GatewayChecks(Vec<GatewayCheck>) "gateway_check" Live gateway_checks;
    /// Where names are answered.
    NamesListen(Option<SocketAddr>) "names.listen" Live names.listen;
    /// What stands behind every name.
    NamesSuffix(Option<Suffix>) "names.suffix" Live names.suffix;
    /// How the host's resolver learns of the names.
    NamesResolver(Resolver) "names.resolver" Live names.resolver;
    /// The other names.
    Aliases(Vec<Alias>) "alias" Live aliases;
    /// The interface's name.
    InterfaceName(String) "interface.name" NeedsRestart interface.name;
    /// The interface's MTU in bytes.
    InterfaceMtu(u16) "interface.mtu" NeedsRestart interface.mtu;
    /// Whether hosts behind this node see its own address.
    GatewayMasquerade(bool) "gateway.masquerade" Live gateway.masquerade;
    /// Whether the data threads look again before they sleep.
    DataplaneLatency(Latency) "dataplane.latency" NeedsRestart dataplane.latency;
    /// How many threads move packets.
    DataplaneShards(u8) "dataplane.shards" NeedsRestart dataplane.shards;
    /// How much hybrid keys are worth.
    TunnelPq(PostQuantum) "tunnel.pq" Live tunnel.pq;
    /// How long a hybrid key serves.
    TunnelPqRenewal(Duration) "tunnel.pq_renewal" Live tunnel.pq_renewal;
    /// The identity file.
    Identity(PathBuf) "files.identity" NeedsRestart files.identity;
    /// The certificate file.
    Certificate(PathBuf) "files.certificate" NeedsRestart files.certificate;
    /// The state directory.
    StateDirectory(PathBuf) "files.state_directory" NeedsRestart files.state_directory;
    /// The socket.
    Socket(PathBuf) "files.socket" NeedsRestart files.socket;
    /// The authority's key.
    Authority(Option<PathBuf>) "files.authority" NeedsRestart files.authority;
    /// The file with the authority key's passphrase.
    AuthorityPassphraseFile(Option<PathBuf>) "files.authority_passphrase_file" NeedsRestart
        files.authority_passphrase_file;
    /// The authority's ledger.
    Ledger(Option<PathBuf>) "files.ledger" NeedsRestart files.ledger;
    /// Time between two probes of a link.
    ProbeInterval(Duration) "probe.interval" Live probe.interval;
    /// The tags that make links critical.
    ProbeCriticalTags(Vec<Tag>) "probe.critical_tags" Live probe.critical_tags;
    /// Whether the past is recorded.
    HistoryEnabled(bool) "history.enabled" NeedsRestart history.enabled;
    /// How large its file may become, in bytes.
    HistoryMaxSize(u64) "history.max_size" NeedsRestart history.max_size;
    /// Where the metrics are served.
    MetricsListen(Option<SocketAddr>) "metrics.listen" Live metrics.listen;
    /// Which links have series of their own.
    MetricsPerLink(PerLink) "metrics.per_link" Live metrics.per_link;
    /// The rules of alerts; those that stay as they are go on firing.
    Alerts(Vec<Alert>) "alert" Live alerts;
    /// Who is told of alerts; those that stay as they are keep what they still have to be told.
    Receivers(Vec<Receiver>) "receiver" Live receivers;
    /// Where the page for browsers is served.
    WebListen(Option<SocketAddr>) "web.listen" Live web.listen;
    /// The group that may look.
    ApiGroup(Option<String>) "api.group" NeedsRestart api.group;
    /// Whether the kernel refuses the daemon what it does not need.
    SecurityLandlock(Landlock) "security.landlock" NeedsRestart security.landlock;
    /// What may be written besides the daemon's own directories.
    SecurityWritable(Vec<PathBuf>) "security.writable" NeedsRestart security.writable;
    /// The log level.
    LogLevel(Level) "log.level" Live log.level;
}

//! The text of `meshd.toml` read key by key, so that one run finds every error.

mod alerts;
mod allow;
mod forwards;
mod gateway_checks;
mod lockdown;
mod names;
mod value;

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Api, Bootstrap, Config, DataplaneSettings, Files, HistorySettings, Interface, Latency, Level, Log, Mesh, Metrics,
};
use super::{Gateway, Probe, Problems, Security, TunnelSettings, Underlay, Web, Wireguard};
use crate::identity::{NodeName, TrustAnchor};

use super::layers::{Layer, lay_over, shifted};
use super::{default_listen, directory_of, keys, metrics, nearest, wireguard};

use value::{
    endpoint, flag, found, group, interface_name, interval, keepalive, landlock, latency, level, listen_address,
    mesh_name, mtu, no_socket_address, number, one_of, overlay, path, per_link, post_quantum, renewal, shards,
    shortened, size, text, text_as, within,
};

type Value<'i> = Spanned<DeValue<'i>>;

/// A file larger than this is no configuration: 64 bootstrap members, 256 WireGuard peers of a few addresses each,
/// 256 rules of a few words and every other list full stay below 160 KiB.
const SIZE_LIMIT: usize = 256 * 1024;

pub(super) fn parse(layers: &[Layer<'_>]) -> Result<Config, Problems> {
    let (mut reader, document) = document(layers);
    let is_toml = reader.problems.is_empty();
    let config = reader.config(&document, main_path(layers));
    // Where the text is no TOML, keys may be missing only because of that: the syntax is what must be mended first.
    if !is_toml {
        reader.problems.keep_syntax();
        reader.problems.sort();
        return Err(reader.problems);
    }
    reader.problems.sort();
    match config {
        Some(config) if reader.problems.is_empty() => Ok(config),
        _ => Err(reader.problems),
    }
}

/// Where the files are; what the text says wrongly, or not at all, is where it is by default.
pub(super) fn files(layers: &[Layer<'_>]) -> Files {
    let (mut reader, document) = document(layers);
    reader.files(&document, main_path(layers))
}

fn main_path<'a>(layers: &[Layer<'a>]) -> &'a Path {
    layers.first().map_or(Path::new(""), |main| main.path)
}

/// Reads what is TOML of all layers, one laid over the other; the reader holds what is none.
fn document<'a>(layers: &[Layer<'a>]) -> (Reader, DeTable<'a>) {
    let mut reader = Reader { problems: Problems::new(layers), directory: directory_of(main_path(layers)) };
    let mut document = DeTable::new();
    let bytes: usize = layers.iter().map(|layer| layer.text.len()).sum();
    if bytes > SIZE_LIMIT || layers.len() > Layer::LIMIT {
        let limits = "at most 262144 bytes in 64 files";
        reader.problems.add(0..0, "", format!("the configuration has {bytes} bytes in {} files", layers.len()), limits);
        return (reader, document);
    }
    for (number, layer) in layers.iter().enumerate() {
        let (table, errors) = DeTable::parse_recoverable(layer.text);
        let start = reader.problems.start_of(number);
        for error in &errors {
            let span = error.span().unwrap_or(0..0);
            let message = error.message().lines().next().unwrap_or("invalid TOML");
            reader.problems.add(start + span.start..start + span.end, "", message, "");
        }
        lay_over(&mut document, shifted(table.into_inner(), start));
    }
    (reader, document)
}

struct Reader {
    problems: Problems,
    directory: PathBuf,
}

/// A section that is being read.
struct Section<'a, 'i> {
    name: &'static str,
    /// How problems name it: `bootstrap[2]` for an entry of a list.
    label: String,
    table: Option<&'a DeTable<'i>>,
    span: Range<usize>,
}

impl<'a, 'i> Section<'a, 'i> {
    fn get(&self, name: &str) -> Option<&'a Value<'i>> {
        self.table?.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
    }

    fn key(&self, name: &str) -> String {
        if self.label.is_empty() { name.to_owned() } else { format!("{}.{name}", self.label) }
    }
}

impl Reader {
    /// Reads the whole document; `None` where a value is missing, which is then among the problems.
    fn config(&mut self, document: &DeTable<'_>, path: &Path) -> Option<Config> {
        let top = Section { name: "", label: String::new(), table: Some(document), span: 0..0 };
        let sections = keys::SECTIONS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty());
        self.refuse_unknown(&top, sections.collect());
        let node = self.required(&top, "node", text_as);
        let mesh = self.mesh(document);
        let underlay = self.underlay(document);
        let bootstrap = self.bootstrap(document);
        let wireguard = self.wireguard(document, node.as_ref(), mesh.as_ref(), &bootstrap);
        let allow = self.allow(document);
        let lockdown = self.lockdown(document);
        let forwards = self.forwards(document);
        let gateway_checks = self.gateway_checks(document);
        let names = self.names(document, mesh.as_ref());
        let aliases = self.aliases(document, node.as_ref(), &forwards);
        let interface = self.interface(document);
        let gateway = self.section(document, "gateway");
        let masquerade = self.optional(&gateway, "masquerade", flag).unwrap_or(false);
        let dataplane = self.section(document, "dataplane");
        let latency = self.optional(&dataplane, "latency", latency).unwrap_or(Latency::Normal);
        let shards = self.optional(&dataplane, "shards", shards).unwrap_or(1);
        let tunnel = self.tunnel(document);
        let files = self.files(document, path);
        let probe = self.section(document, "probe");
        let interval = self.optional(&probe, "interval", interval).unwrap_or(Duration::from_secs(1));
        let critical_tags = self.list(&probe, "critical_tags", Probe::CRITICAL_TAGS_LIMIT, text_as).unwrap_or_default();
        let history = self.history(document);
        let metrics = self.metrics(document, mesh.as_ref());
        let receivers = self.receivers(document);
        let alerts = self.alerts(document, &receivers);
        let web = self.web(document, mesh.as_ref(), metrics.listen);
        let api = self.section(document, "api");
        let group = self.optional(&api, "group", group);
        let security = self.security(document);
        let log = self.section(document, "log");
        let level = self.optional(&log, "level", level).unwrap_or(Level::Info);
        Some(Config {
            node: node?,
            mesh: mesh?,
            underlay,
            bootstrap,
            wireguard,
            allow,
            lockdown,
            forwards,
            names,
            gateway_checks,
            aliases,
            interface,
            gateway: Gateway { masquerade },
            dataplane: DataplaneSettings { latency, shards },
            tunnel,
            files,
            probe: Probe { interval, critical_tags },
            history,
            metrics,
            alerts,
            receivers,
            web,
            api: Api { group },
            security,
            log: Log { level },
        })
    }

    fn tunnel(&mut self, document: &DeTable<'_>) -> TunnelSettings {
        let (section, plain) = (self.section(document, "tunnel"), TunnelSettings::default());
        let pq = self.optional(&section, "pq", post_quantum).unwrap_or(plain.pq);
        TunnelSettings { pq, pq_renewal: self.optional(&section, "pq_renewal", renewal).unwrap_or(plain.pq_renewal) }
    }

    fn mesh(&mut self, document: &DeTable<'_>) -> Option<Mesh> {
        let section = self.section(document, "mesh");
        let name = self.required(&section, "name", mesh_name);
        let id = self.required(&section, "id", text_as);
        let overlay = self.required(&section, "overlay", overlay);
        let authorities = self.filled(&section, "authorities", TrustAnchor::MAX_AUTHORITIES, text_as);
        let mesh = Mesh { name: name?, id: id?, overlay: overlay?, authorities: authorities? };
        // What makes a mesh is the identity room's to say; what was not said above is said here.
        if !mesh.authorities.is_empty()
            && let Err(error) = mesh.trust_anchor()
        {
            self.complain(&section, error.field, &error.problem);
        }
        Some(mesh)
    }

    fn underlay(&mut self, document: &DeTable<'_>) -> Underlay {
        let section = self.section(document, "underlay");
        let listen = match section.get("listen").map(|value| value.get_ref()) {
            Some(DeValue::String(_)) => self.optional(&section, "listen", listen_address).map(|one| vec![one]),
            _ => self.given(&section, "listen", Underlay::LISTEN_LIMIT, listen_address),
        };
        let endpoints = self.list(&section, "endpoints", Underlay::ENDPOINT_LIMIT, endpoint).unwrap_or_default();
        Underlay { listen: listen.unwrap_or_else(|| vec![default_listen()]), endpoints }
    }

    /// Finds the entries of a list of sections, at most `limit`, and complains of everything else in its place.
    fn entries<'a, 'i>(&mut self, document: &'a DeTable<'i>, name: &'static str, limit: usize) -> Vec<Section<'a, 'i>> {
        let top = Section { name: "", label: String::new(), table: Some(document), span: 0..0 };
        let Some(value) = top.get(name) else { return Vec::new() };
        let Some(entries) = value.get_ref().as_array() else {
            self.problems.add(value.span(), name, found(value), &format!("[[{name}]] entries"));
            return Vec::new();
        };
        if entries.len() > limit {
            let message = format!("{} entries", entries.len());
            self.problems.add(value.span(), name, message, &format!("at most {limit} entries"));
            return Vec::new();
        }
        let mut sections = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let label = format!("{name}[{}]", i + 1);
            let Some(table) = entry.get_ref().as_table() else {
                self.problems.add(entry.span(), &label, found(entry), &format!("a [[{name}]] entry"));
                continue;
            };
            let section = Section { name, label, table: Some(table), span: entry.span() };
            self.refuse_unknown(&section, Vec::new());
            sections.push(section);
        }
        sections
    }

    fn bootstrap(&mut self, document: &DeTable<'_>) -> Vec<Bootstrap> {
        let mut list: Vec<Bootstrap> = Vec::new();
        for section in self.entries(document, "bootstrap", Bootstrap::LIMIT) {
            let name = self.required(&section, "name", text_as);
            let key = self.required(&section, "key", text_as);
            let endpoint = self.required(&section, "endpoint", endpoint);
            if let (Some(name), Some(key), Some(endpoint)) = (name, key, endpoint) {
                if list.iter().any(|other| other.key == key && other.endpoint == endpoint) {
                    self.complain(&section, "endpoint", "the same key and endpoint stand in an entry above");
                }
                list.push(Bootstrap { name, key, endpoint });
            }
        }
        list
    }

    fn wireguard(
        &mut self,
        document: &DeTable<'_>,
        node: Option<&NodeName>,
        mesh: Option<&Mesh>,
        bootstrap: &[Bootstrap],
    ) -> Vec<Wireguard> {
        let anchor = mesh.and_then(|mesh| mesh.trust_anchor().ok());
        let mut list: Vec<Wireguard> = Vec::new();
        for section in self.entries(document, "wireguard", Wireguard::LIMIT) {
            let name = self.required(&section, "name", text_as);
            let public_key = self.required(&section, "public_key", text_as);
            let addresses = self.filled(&section, "addresses", Wireguard::ADDRESS_LIMIT, |value| {
                wireguard::network(text(value)?, anchor.as_ref())
            });
            let endpoint = self.optional(&section, "endpoint", endpoint);
            let preshared_key_file = self.path(&section, "preshared_key_file");
            let persistent_keepalive = self.optional(&section, "persistent_keepalive", keepalive);
            let (Some(name), Some(public_key), Some(addresses)) = (name, public_key, addresses) else { continue };
            let peer = Wireguard { name, public_key, addresses, endpoint, preshared_key_file, persistent_keepalive };
            for (key, problem) in peer.clashes(node, bootstrap, &list) {
                self.complain(&section, key, &problem);
            }
            list.push(peer);
        }
        list
    }

    fn history(&mut self, document: &DeTable<'_>) -> HistorySettings {
        let (section, plain) = (self.section(document, "history"), HistorySettings::default());
        HistorySettings {
            enabled: self.optional(&section, "enabled", flag).unwrap_or(plain.enabled),
            max_size: self.optional(&section, "max_size", size).unwrap_or(plain.max_size),
        }
    }

    fn metrics(&mut self, document: &DeTable<'_>, mesh: Option<&Mesh>) -> Metrics {
        let section = self.section(document, "metrics");
        let listen = self.page_listen(&section, Metrics::PORT, mesh);
        let per_link = self.optional(&section, "per_link", per_link).unwrap_or_default();
        Metrics { listen, per_link }
    }

    fn web(&mut self, document: &DeTable<'_>, mesh: Option<&Mesh>, metrics: Option<SocketAddr>) -> Web {
        let section = self.section(document, "web");
        let listen = self.page_listen(&section, Web::PORT, mesh);
        if listen.is_some() && listen == metrics {
            self.complain(&section, "listen", "metrics.listen has this address already");
        }
        Web { listen }
    }

    /// Where a section's page is served, usually at `port`: an address that only this host or the mesh reaches.
    fn page_listen(&mut self, section: &Section<'_, '_>, port: u16, mesh: Option<&Mesh>) -> Option<SocketAddr> {
        let anchor = mesh.and_then(|mesh| mesh.trust_anchor().ok());
        self.optional(section, "listen", |value| {
            let address = text(value)?.parse().map_err(|_| no_socket_address(value, port))?;
            metrics::page_address(address, anchor.as_ref())
        })
    }

    fn interface(&mut self, document: &DeTable<'_>) -> Interface {
        let section = self.section(document, "interface");
        let name = self.optional(&section, "name", interface_name).unwrap_or_else(|| "mesh0".to_owned());
        let mtu = self.optional(&section, "mtu", mtu).unwrap_or(super::DEFAULT_MTU);
        Interface { name, mtu }
    }

    fn files(&mut self, document: &DeTable<'_>, path: &Path) -> Files {
        let section = self.section(document, "files");
        let beside = Files::beside(path);
        let files = Files {
            identity: self.path(&section, "identity").unwrap_or(beside.identity),
            certificate: self.path(&section, "certificate").unwrap_or(beside.certificate),
            state_directory: self.path(&section, "state_directory").unwrap_or(beside.state_directory),
            socket: self.path(&section, "socket").unwrap_or(beside.socket),
            authority: self.path(&section, "authority"),
            authority_passphrase_file: self.path(&section, "authority_passphrase_file"),
            ledger: self.path(&section, "ledger"),
        };
        if files.authority.is_none() {
            for name in ["authority_passphrase_file", "ledger"] {
                if section.get(name).is_some() {
                    self.complain(&section, name, "it belongs to files.authority, which is not given");
                }
            }
        }
        files
    }

    fn security(&mut self, document: &DeTable<'_>) -> Security {
        let section = self.section(document, "security");
        let landlock = self.optional(&section, "landlock", landlock).unwrap_or_default();
        let directory = self.directory.clone();
        let place = |value: &Value<'_>| path(value).map(|path| directory.join(path));
        let writable = self.list(&section, "writable", Security::WRITABLE_LIMIT, place).unwrap_or_default();
        Security { landlock, writable }
    }

    /// Finds a section, and complains of what is no table and of keys it does not have.
    fn section<'a, 'i>(&mut self, document: &'a DeTable<'i>, name: &'static str) -> Section<'a, 'i> {
        let found_at = document.iter().find(|(key, _)| key.get_ref() == name);
        let mut section = Section { name, label: name.to_owned(), table: None, span: 0..0 };
        if let Some((key, value)) = found_at {
            section.span = key.span();
            section.table = value.get_ref().as_table();
            match section.table {
                Some(_) => self.refuse_unknown(&section, Vec::new()),
                None => self.problems.add(value.span(), name, found(value), &format!("a section, [{name}]")),
            }
        }
        section
    }

    fn refuse_unknown(&mut self, section: &Section<'_, '_>, also: Vec<&'static str>) {
        let Some(table) = section.table else { return };
        let known: Vec<&'static str> = keys::names(section.name).chain(also).collect();
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let message = match (nearest(name, known.iter().copied()), elsewhere(name)) {
                (Some(near), _) => format!("unknown key; did you mean `{near}`?"),
                (None, Some(place)) => format!("unknown key here; it belongs to [{place}]"),
                (None, None) => "unknown key".to_owned(),
            };
            self.problems.add(key.span(), &section.key(name), message, &format!("one of {}", known.join(", ")));
        }
    }

    fn optional<T>(
        &mut self,
        section: &Section<'_, '_>,
        name: &str,
        read: impl Fn(&Value<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let value = section.get(name)?;
        match read(value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problems.add(value.span(), &section.key(name), message, expected(section, name));
                None
            }
        }
    }

    fn required<T>(
        &mut self,
        section: &Section<'_, '_>,
        name: &str,
        read: impl Fn(&Value<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if section.get(name).is_none() {
            self.missing(section, name);
        }
        self.optional(section, name, read)
    }

    /// A list without twins that must be there and hold something.
    fn filled<T: PartialEq>(
        &mut self,
        section: &Section<'_, '_>,
        name: &str,
        limit: usize,
        read: impl Fn(&Value<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        if section.get(name).is_none() {
            self.missing(section, name);
        }
        self.given(section, name, limit, read)
    }

    /// A list without twins that holds something where it is there: an empty one could mean nothing as well as everything.
    fn given<T: PartialEq>(
        &mut self,
        section: &Section<'_, '_>,
        name: &str,
        limit: usize,
        read: impl Fn(&Value<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let list = self.list(section, name, limit, read);
        if list.as_ref().is_some_and(Vec::is_empty) {
            self.complain(section, name, "the list is empty");
        }
        list
    }

    /// A list without twins.
    fn list<T: PartialEq>(
        &mut self,
        section: &Section<'_, '_>,
        name: &str,
        limit: usize,
        read: impl Fn(&Value<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let list = self.list_of(section, name, limit, read)?;
        let twin = list.iter().enumerate().find(|(i, item)| list[..*i].contains(item));
        if let Some((at, _)) = twin {
            let span = section.get(name)?.get_ref().as_array()?.get(at)?.span();
            self.problems.add(span, &section.key(name), "it stands in the list twice", expected(section, name));
            return None;
        }
        Some(list)
    }

    /// A list in which an item may stand several times.
    fn list_of<T>(
        &mut self,
        section: &Section<'_, '_>,
        name: &str,
        limit: usize,
        read: impl Fn(&Value<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = section.get(name)?;
        let Some(items) = value.get_ref().as_array() else {
            self.complain(section, name, &found(value));
            return None;
        };
        if items.len() > limit {
            self.complain(section, name, &format!("{} entries", items.len()));
            return None;
        }
        let mut list = Vec::new();
        let mut whole = true;
        for item in items {
            match read(item) {
                Ok(item) => list.push(item),
                Err(message) => {
                    whole = false;
                    self.problems.add(item.span(), &section.key(name), message, expected(section, name));
                }
            }
        }
        whole.then_some(list)
    }

    fn path(&mut self, section: &Section<'_, '_>, name: &str) -> Option<PathBuf> {
        let text = self.optional(section, name, path)?;
        Some(self.directory.join(text))
    }

    fn complain(&mut self, section: &Section<'_, '_>, name: &str, message: &str) {
        let span = section.get(name).map_or(section.span.clone(), |value| value.span());
        self.problems.add(span, &section.key(name), message, expected(section, name));
    }

    fn missing(&mut self, section: &Section<'_, '_>, name: &str) {
        let key = section.key(name);
        self.problems.add(section.span.clone(), &key, "it is missing", expected(section, name));
    }
}

fn expected(section: &Section<'_, '_>, name: &str) -> &'static str {
    keys::find(section.name, name).map_or("", |key| key.value)
}

/// The section another key of that name stands in.
fn elsewhere(name: &str) -> Option<&'static str> {
    keys::KEYS.iter().find(|key| key.name == name && !key.section.is_empty()).map(|key| key.section)
}

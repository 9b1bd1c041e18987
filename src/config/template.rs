//! The commented file that `meshctl init` and `meshctl join` write.

use std::fmt::Write;
use std::path::Path;

use super::history::format_size;
use super::{Config, Files, directory_of, duration, keys};

/// What becomes of keys that stand at their default.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Defaults {
    /// They are comments, so that a later default reaches this host.
    Commented,
    /// They are written out.
    Written,
}

pub(super) fn render(config: &Config, path: &Path, defaults: Defaults) -> String {
    let plain = Config::new(config.node.clone(), config.mesh.clone(), path);
    let mut writer = Writer { out: String::new(), defaults };
    writer.out.push_str(
        "# meshd.toml: one node of a mesh. Check it with `meshctl check`, take it over with `meshctl reload`.\n\
         # Lines that start with `#` and a key show that key's default.\n\n",
    );
    writer.key("", "node", &quoted(config.node.to_string()), false);

    writer.section("mesh");
    writer.key("mesh", "name", &quoted(&config.mesh.name), false);
    writer.key("mesh", "id", &quoted(config.mesh.id.to_string()), false);
    writer.key("mesh", "overlay", &quoted(config.mesh.overlay.to_string()), false);
    writer.key("mesh", "authorities", &list(&config.mesh.authorities), false);

    writer.section("underlay");
    let listen = match config.underlay.listen.as_slice() {
        [one] => quoted(one.to_string()),
        several => list(several),
    };
    writer.key("underlay", "listen", &listen, config.underlay.listen == plain.underlay.listen);
    let endpoints = list(&config.underlay.endpoints);
    writer.key("underlay", "endpoints", &endpoints, config.underlay.endpoints.is_empty());

    writer.bootstrap(config);
    writer.wireguard(config, path);
    writer.allow(config);
    writer.lockdown(config);
    writer.forwards(config);
    writer.gateway_checks(config);

    writer.section("names");
    writer.given_or_example("names", "listen", config.names.listen, "127.0.0.1:53");
    writer.given_or_example("names", "suffix", config.names.suffix.as_ref(), &config.mesh.name);
    let resolver = quoted(config.names.resolver.name());
    writer.key("names", "resolver", &resolver, config.names.resolver == plain.names.resolver);
    writer.aliases(config);

    writer.section("interface");
    let interface = &config.interface;
    writer.key("interface", "name", &quoted(&interface.name), interface.name == plain.interface.name);
    writer.key("interface", "mtu", &interface.mtu.to_string(), interface.mtu == plain.interface.mtu);

    writer.section("gateway");
    let masquerade = config.gateway.masquerade.to_string();
    writer.key("gateway", "masquerade", &masquerade, config.gateway == plain.gateway);

    writer.section("dataplane");
    let (dataplane, plain_dataplane) = (&config.dataplane, &plain.dataplane);
    let latency = quoted(dataplane.latency.name());
    writer.key("dataplane", "latency", &latency, dataplane.latency == plain_dataplane.latency);
    writer.key("dataplane", "shards", &dataplane.shards.to_string(), dataplane.shards == plain_dataplane.shards);

    writer.section("tunnel");
    let (tunnel, plain_tunnel) = (&config.tunnel, &plain.tunnel);
    writer.key("tunnel", "pq", &quoted(tunnel.pq.name()), tunnel.pq == plain_tunnel.pq);
    let renewal = quoted(duration::format(tunnel.pq_renewal));
    writer.key("tunnel", "pq_renewal", &renewal, tunnel.pq_renewal == plain_tunnel.pq_renewal);

    writer.files(&config.files, &plain.files, path);

    writer.section("probe");
    let interval = quoted(duration::format(config.probe.interval));
    writer.key("probe", "interval", &interval, config.probe.interval == plain.probe.interval);
    let tags = list(&config.probe.critical_tags);
    writer.key("probe", "critical_tags", &tags, config.probe.critical_tags.is_empty());

    writer.section("history");
    let history = config.history;
    writer.key("history", "enabled", &history.enabled.to_string(), history.enabled == plain.history.enabled);
    let size = quoted(format_size(history.max_size));
    writer.key("history", "max_size", &size, history.max_size == plain.history.max_size);

    writer.section("metrics");
    writer.given_or_example("metrics", "listen", config.metrics.listen, "127.0.0.1:9655");
    let per_link = quoted(config.metrics.per_link.name());
    writer.key("metrics", "per_link", &per_link, config.metrics.per_link == plain.metrics.per_link);

    writer.alerts(config);
    writer.receivers(config, path);

    writer.section("web");
    writer.given_or_example("web", "listen", config.web.listen, "127.0.0.1:7656");

    writer.section("api");
    writer.given_or_example("api", "group", config.api.group.as_deref(), "meshd");

    writer.section("security");
    let (security, plain_security) = (&config.security, &plain.security);
    let landlock = quoted(security.landlock.name());
    writer.key("security", "landlock", &landlock, security.landlock == plain_security.landlock);
    let writable: Vec<_> = security.writable.iter().map(|place| place.to_string_lossy()).collect();
    writer.key("security", "writable", &list(&writable), writable.is_empty());

    writer.section("log");
    writer.key("log", "level", &quoted(config.log.level.name()), config.log == plain.log);
    writer.out
}

struct Writer {
    out: String,
    defaults: Defaults,
}

impl Writer {
    fn section(&mut self, name: &str) {
        self.comment_of_section(name);
        self.line(&format!("[{name}]"));
    }

    fn comment_of_section(&mut self, name: &str) {
        let about = keys::SECTIONS.iter().find(|(section, _)| *section == name).map_or("", |(_, about)| about);
        self.line(&format!("\n# {about}"));
    }

    /// Writes a key with what it means; as a comment where it stands at its default.
    fn key(&mut self, section: &str, name: &str, value: &str, is_default: bool) {
        self.comment_of_key(section, name);
        let mark = if is_default && self.defaults == Defaults::Commented { "# " } else { "" };
        self.line(&format!("{mark}{name} = {value}"));
    }

    fn comment_of_key(&mut self, section: &str, name: &str) {
        if let Some(key) = keys::find(section, name) {
            let default = if key.default.is_empty() { String::new() } else { format!(" Default: {}.", key.default) };
            self.line(&format!("# {} Value: {}.{default}", key.about, key.value));
        }
    }

    fn bootstrap(&mut self, config: &Config) {
        self.comment_of_section("bootstrap");
        for name in ["name", "key", "endpoint"] {
            self.comment_of_key("bootstrap", name);
        }
        if config.bootstrap.is_empty() {
            self.line("# [[bootstrap]]\n# name = \"web1\"\n# key = \"…\"\n# endpoint = \"198.51.100.1:7655\"");
        }
        for member in &config.bootstrap {
            self.line("[[bootstrap]]");
            self.line(&format!("name = {}", quoted(member.name.to_string())));
            self.line(&format!("key = {}", quoted(member.key.to_string())));
            self.line(&format!("endpoint = {}", quoted(member.endpoint.to_string())));
        }
    }

    fn wireguard(&mut self, config: &Config, path: &Path) {
        self.comment_of_entries("wireguard");
        if config.wireguard.is_empty() {
            self.line("# [[wireguard]]\n# name = \"phone\"\n# public_key = \"…\"\n# addresses = [\"10.78.0.2\"]");
        }
        for peer in &config.wireguard {
            self.out.push_str(&peer.to_toml(&directory_of(path)));
        }
    }

    fn allow(&mut self, config: &Config) {
        self.comment_of_entries("allow");
        if config.allow.is_empty() {
            self.line("# [[allow]]\n# from = [\"tag:app\"]\n# to = [\"tag:db\"]\n# ports = [\"tcp/3306\"]");
        }
        for rule in &config.allow {
            self.out.push_str(&rule.to_toml());
        }
    }

    fn lockdown(&mut self, config: &Config) {
        self.section("lockdown");
        self.comment_of_key("lockdown", "allow");
        match &config.lockdown {
            Some(lockdown) => self.line(&format!("allow = {}", list(&lockdown.allow))),
            None => self.line("# allow = [\"tcp/22 from 203.0.113.0/24\", \"tcp/80\", \"tcp/443\"]"),
        }
    }

    fn forwards(&mut self, config: &Config) {
        self.comment_of_entries("forward");
        if config.forwards.is_empty() {
            self.line("# [[forward]]\n# name = \"orders\"\n# listen = [\"127.0.0.1:3306\"]\n# targets = [\"db1:3306\", \"db2:3306\"]");
        }
        for forward in &config.forwards {
            self.out.push_str(&forward.to_toml());
        }
    }

    fn gateway_checks(&mut self, config: &Config) {
        self.comment_of_entries("gateway_check");
        if config.gateway_checks.is_empty() {
            self.line(
                "# [[gateway_check]]\n# prefix = \"10.20.0.0/16\"\n# check = [\"10.20.0.5:3306\", \"10.20.0.6\"]",
            );
        }
        for gateway in &config.gateway_checks {
            self.out.push_str(&gateway.to_toml());
        }
    }

    fn aliases(&mut self, config: &Config) {
        self.comment_of_entries("alias");
        if config.aliases.is_empty() {
            self.line("# [[alias]]\n# name = \"orders-db\"\n# to = \"db1\"");
        }
        for alias in &config.aliases {
            self.out.push_str(&alias.to_toml());
        }
    }

    fn alerts(&mut self, config: &Config) {
        self.comment_of_entries("alert");
        if config.alerts.is_empty() {
            self.line("# [[alert]]\n# name = \"slow-database\"\n# what = \"latency_above\"\n# threshold = \"15ms\"\n# peers = [\"tag:db\"]");
        }
        for alert in &config.alerts {
            self.out.push_str(&alert.to_toml());
        }
    }

    fn receivers(&mut self, config: &Config, path: &Path) {
        self.comment_of_entries("receiver");
        if config.receivers.is_empty() {
            self.line(
                "# [[receiver]]\n# name = \"ops\"\n# type = \"webhook\"\n# url = \"https://alerts.example.com/meshd\"",
            );
        }
        for receiver in &config.receivers {
            self.out.push_str(&receiver.to_toml(&directory_of(path)));
        }
    }

    fn comment_of_entries(&mut self, section: &str) {
        self.comment_of_section(section);
        for name in keys::names(section) {
            self.comment_of_key(section, name);
        }
    }

    fn files(&mut self, files: &Files, plain: &Files, path: &Path) {
        self.section("files");
        let directory = directory_of(path);
        let shown = |file: &Path| quoted(file.strip_prefix(&directory).unwrap_or(file).to_string_lossy());
        for (name, file, default) in [
            ("identity", &files.identity, &plain.identity),
            ("certificate", &files.certificate, &plain.certificate),
            ("state_directory", &files.state_directory, &plain.state_directory),
            ("socket", &files.socket, &plain.socket),
        ] {
            self.key("files", name, &shown(file), file == default);
        }
        for (name, file, example) in [
            ("authority", &files.authority, "authority.key"),
            ("authority_passphrase_file", &files.authority_passphrase_file, "authority.passphrase"),
            ("ledger", &files.ledger, "authority.ledger"),
        ] {
            match file {
                Some(file) => self.key("files", name, &shown(file), false),
                None => {
                    self.comment_of_key("files", name);
                    self.line(&format!("# {name} = \"{example}\""));
                }
            }
        }
    }

    /// Writes an address that is given, or a comment with an example.
    fn given_or_example(&mut self, section: &str, name: &str, value: Option<impl ToString>, example: &str) {
        match value {
            Some(value) => self.key(section, name, &quoted(value.to_string()), false),
            None => {
                self.comment_of_key(section, name);
                self.line(&format!("# {name} = \"{example}\""));
            }
        }
    }

    fn line(&mut self, line: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.out, "{line}");
    }
}

/// A TOML string with everything escaped that must be.
pub(super) fn quoted(text: impl AsRef<str>) -> String {
    let mut out = String::from("\"");
    for c in text.as_ref().chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(super) fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

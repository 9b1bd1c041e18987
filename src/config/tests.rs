//! Tests of the whole room: text to values, values to text, differences.

use std::path::Path;

use proptest::prelude::*;

use super::alert::{Condition, Limit, Severity};
use super::receiver::{HttpReceiver, ReceiverKind};
use super::*;

const MINIMAL: &str = r#"
node = "web1"

[mesh]
name = "example"
id = "000102030405060708090a0b0c0d0e0f"
overlay = "10.77.0.0/16"
authorities = ["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="]
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(text, Path::new("/srv/mesh/meshd.toml"))
}

fn errors(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = parse(MINIMAL).unwrap();
    let defaults = Config::new(config.node.clone(), config.mesh.clone(), Path::new("/srv/mesh/meshd.toml"));
    assert_eq!(config, defaults);
    assert_eq!(config.files.identity, Path::new("/srv/mesh/identity.key"));
    assert_eq!(config.files.state_directory, Path::new("/srv/mesh/state"));
    assert_eq!(config.files.socket, Path::new("/srv/mesh/meshd.sock"));
    assert_eq!(config.interface.mtu, 1420);
}

#[test]
fn a_system_file_keeps_to_the_hierarchy() {
    let config = Config::parse(MINIMAL, Path::new("/etc/meshd/meshd.toml")).unwrap();
    assert_eq!(config.files.certificate, Path::new("/etc/meshd/node.cert"));
    assert_eq!(config.files.state_directory, Path::new("/var/lib/meshd"));
    assert_eq!(config.files.socket, Path::new("/run/meshd/meshd.sock"));
    assert_eq!(config.files.state_directory.as_os_str(), "/var/lib/meshd");
    // One of several meshes of a host, for the unit `meshd@blue`.
    let config = Config::parse(MINIMAL, Path::new("/etc/meshd/blue/meshd.toml")).unwrap();
    assert_eq!(config.files.identity, Path::new("/etc/meshd/blue/identity.key"));
    assert_eq!(config.files.state_directory, Path::new("/var/lib/meshd/blue"));
    assert_eq!(config.files.socket, Path::new("/run/meshd/blue/meshd.sock"));
    let deeper = Config::parse(MINIMAL, Path::new("/etc/meshd/blue/old/meshd.toml")).unwrap();
    assert_eq!(deeper.files.state_directory, Path::new("/etc/meshd/blue/old/state"));
}

#[test]
fn a_ledger_has_one_lock_for_all_who_write_it() {
    let ledger = ledger_beside(Path::new("/etc/meshd/authority.key"));
    assert_eq!(ledger_lock(&ledger), Path::new("/etc/meshd/authority.ledger.lock"));
}

#[test]
fn relative_places_start_at_the_file_and_absolute_ones_stay() {
    let text = format!("{MINIMAL}[files]\nidentity = \"keys/id\"\nauthority = \"/root/a.key\"\n");
    let files = parse(&text).unwrap().files;
    assert_eq!(files.identity, Path::new("/srv/mesh/keys/id"));
    assert_eq!(files.authority.as_deref(), Some(Path::new("/root/a.key")));
    assert_eq!(files.ledger_path().as_deref(), Some(Path::new("/root/a.ledger")));
}

#[test]
fn every_error_is_told_at_once_with_its_place() {
    let text = r#"node = "Web 1"
[mesh]
name = "example"
id = "0001"
overlay = "10.77.0.1/16"
[underlay]
lisen = "0.0.0.0:7655"
listen = "203.0.113.5"
endpoints = ["0.0.0.0:7655", "db.example.com:7655"]
[interface]
mtu = 65536
level = "info"
[prob]
interval = "1s"
"#;
    insta::assert_snapshot!(errors(text), @r#"
        /srv/mesh/meshd.toml:1:8: node: `Web 1` is no node name (expected a name: 1 to 63 of [a-z0-9-])
        /srv/mesh/meshd.toml:2:2: mesh.authorities: it is missing (expected a list of 1 to 4 Ed25519 public keys in base64)
        /srv/mesh/meshd.toml:4:6: mesh.id: `0001` is no identifier (expected 32 hexadecimal digits)
        /srv/mesh/meshd.toml:5:11: mesh.overlay: the range starts at another address; did you mean 10.77.0.0/16? (expected an IPv4 range between /8 and /29)
        /srv/mesh/meshd.toml:7:1: underlay.lisen: unknown key; did you mean `listen`? (expected one of listen, endpoints)
        /srv/mesh/meshd.toml:8:10: underlay.listen: the port is missing; did you mean 203.0.113.5:7655? (expected ADDRESS:PORT)
        /srv/mesh/meshd.toml:9:14: underlay.endpoints: nobody can send to 0.0.0.0 (expected a list of up to 16 ADDRESS:PORT)
        /srv/mesh/meshd.toml:9:30: underlay.endpoints: found "db.example.com:7655"; names are not looked up (expected a list of up to 16 ADDRESS:PORT)
        /srv/mesh/meshd.toml:11:7: interface.mtu: found the number 65536 (expected bytes, 1280 to 9000)
        /srv/mesh/meshd.toml:12:1: interface.level: unknown key here; it belongs to [log] (expected one of name, mtu)
        /srv/mesh/meshd.toml:13:2: prob: unknown key; did you mean `probe`? (expected one of node, mesh, underlay, bootstrap, wireguard, allow, lockdown, forward, gateway_check, names, alias, interface, gateway, dataplane, tunnel, files, probe, history, metrics, alert, receiver, web, api, security, log)
    "#);
}

#[test]
fn broken_toml_is_told_without_the_noise_it_causes() {
    insta::assert_snapshot!(errors("node = \"web1\nmesh = ["), @r#"
        /srv/mesh/meshd.toml:1:13: invalid basic string, expected `"`
        /srv/mesh/meshd.toml:2:9: unclosed array, expected `]`
    "#);
}

#[test]
fn a_problem_shows_its_line() {
    let text = MINIMAL.replace("10.77.0.0/16", "10.77.0.1/16");
    insta::assert_snapshot!(parse(&text).unwrap_err().render(false), @r#"
        error: mesh.overlay: the range starts at another address; did you mean 10.77.0.0/16?
         --> /srv/mesh/meshd.toml:7:11
          |
        7 | overlay = "10.77.0.1/16"
          |           ^^^^^^^^^^^^^^ expected an IPv4 range between /8 and /29

        /srv/mesh/meshd.toml: 1 problem
    "#);
}

#[test]
fn lists_are_bounded_and_without_twins() {
    let listen = format!("{MINIMAL}[underlay]\nlisten = [{}]", "\"[::]:1\",".repeat(2));
    assert!(errors(&listen).contains("underlay.listen: 2 entries"));
    let twin = format!("{MINIMAL}[underlay]\nendpoints = [\"192.0.2.1:1\", \"192.0.2.1:1\"]");
    assert!(errors(&twin).contains("it stands in the list twice"));
    let none = MINIMAL.replace("\"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\"", "");
    assert!(errors(&none).contains("mesh.authorities: the list is empty"));
}

#[test]
fn latency_is_one_of_two_and_needs_a_restart() {
    let with = |value: &str| format!("{MINIMAL}[dataplane]\nlatency = {value}\n");
    let (plain, low) = (parse(MINIMAL).unwrap(), parse(&with("\"low\"")).unwrap());
    assert_eq!(low.dataplane.latency, Latency::Low);
    let [change] = &diff(&plain, &low)[..] else { panic!("one change") };
    assert_eq!((change.key(), change.effect()), ("dataplane.latency", Effect::NeedsRestart));
    assert_eq!(parse(&with("\"normal\"")).unwrap(), plain);
    assert!(errors(&with("\"lwo\"")).contains("found \"lwo\"; did you mean \"low\"? (expected normal or low)"));
    assert!(errors(&with("50")).contains("dataplane.latency: found the number 50 (expected normal or low)"));
}

#[test]
fn what_a_daemon_takes_from_itself_changes_at_a_restart() {
    let with = |text: &str| format!("{MINIMAL}[security]\n{text}\n");
    let plain = parse(MINIMAL).unwrap();
    assert_eq!(plain.security, Security { landlock: Landlock::Auto, writable: Vec::new() });
    let changed = parse(&with("landlock = \"off\"\nwritable = [\"/srv/alerts\", \"mail\"]")).unwrap();
    assert_eq!(changed.security.writable, [Path::new("/srv/alerts"), Path::new("/srv/mesh/mail")]);
    let changes: Vec<_> = diff(&plain, &changed).iter().map(|change| (change.key(), change.effect())).collect();
    assert_eq!(changes, [("security.landlock", Effect::NeedsRestart), ("security.writable", Effect::NeedsRestart)]);
    assert!(errors(&with("landlock = \"on\"")).contains("security.landlock: found \"on\" (expected auto or off)"));
    assert!(errors(&with("writable = [\"\"]")).contains("security.writable: the path is empty"));
    assert!(errors(&with("writable = [\"/a\", \"/a\"]")).contains("it stands in the list twice"));
}

#[test]
fn the_tunnels_have_a_layer_of_three_kinds_and_take_it_over_at_once() {
    let with = |value: &str| format!("{MINIMAL}[tunnel]\n{value}\n");
    let plain = parse(MINIMAL).unwrap();
    assert_eq!((plain.tunnel.pq, plain.tunnel.pq_renewal), (PostQuantum::On, Duration::from_secs(3_600)));
    let strict = parse(&with("pq = \"required\"\npq_renewal = \"2s\"")).unwrap();
    let changes: Vec<_> = diff(&plain, &strict).iter().map(|change| (change.key(), change.effect())).collect();
    assert_eq!(changes, [("tunnel.pq", Effect::Live), ("tunnel.pq_renewal", Effect::Live)]);
    for (wrong, told) in [
        ("pq = \"require\"", "found \"require\"; did you mean \"required\"? (expected on, off or required)"),
        ("pq = true", "tunnel.pq: found true or false (expected on, off or required)"),
        ("pq_renewal = \"1s\"", "(expected a duration, 2s to 24h)"),
        ("pq_renewal = \"25h\"", "(expected a duration, 2s to 24h)"),
    ] {
        assert!(errors(&with(wrong)).contains(told), "{}", errors(&with(wrong)));
    }
}

#[test]
fn the_history_has_a_size_with_a_unit() {
    let with = |value: &str| format!("{MINIMAL}[history]\n{value}\n");
    let plain = parse(MINIMAL).unwrap();
    let small = parse(&with("max_size = \"64MiB\"")).unwrap();
    assert_eq!((plain.history.max_size, small.history.max_size), (1 << 30, 64 << 20));
    let [change] = &diff(&plain, &small)[..] else { panic!("one change") };
    assert_eq!((change.key(), change.effect()), ("history.max_size", Effect::NeedsRestart));
    assert!(!parse(&with("enabled = false")).unwrap().history.enabled);
    let told = |value: &str| errors(&with(value));
    assert!(told("max_size = \"1\"").contains("`1` has no unit; did you mean `1MiB`?"));
    assert!(told("max_size = \"1GB\"").contains("`GB` is no unit of size"));
    assert!(told("max_size = \"1MiB\"").contains("history.max_size: found \"1MiB\" (expected a size, 16MiB to 4TiB)"));
    assert!(told("max_size = \"99999999TiB\"").contains("too large"));
    assert!(told("enabled = \"yes\"").contains("history.enabled: found"));
}

#[test]
fn the_page_for_browsers_has_an_address_of_its_own() {
    let plain = parse(MINIMAL).unwrap();
    assert_eq!(plain.web.listen, None);
    let web = "[web]\nlisten = \"127.0.0.1:7656\"\n";
    let config = parse(&format!("{MINIMAL}{web}")).unwrap();
    assert_eq!(config.web.listen, Some(([127, 0, 0, 1], Web::PORT).into()));
    let [change] = &diff(&plain, &config)[..] else { panic!("one change") };
    assert_eq!((change.key(), change.effect()), ("web.listen", Effect::Live));
    let twin = format!("{MINIMAL}[metrics]\nlisten = \"127.0.0.1:7656\"\n{web}");
    assert!(errors(&twin).contains("web.listen: metrics.listen has this address already"));
    let open = format!("{MINIMAL}[web]\nlisten = \"0.0.0.0:7656\"\n");
    assert!(errors(&open).contains("web.listen: on 0.0.0.0 the whole internet could read it"));
    let portless = format!("{MINIMAL}[web]\nlisten = \"127.0.0.1\"\n");
    assert!(errors(&portless).contains("did you mean 127.0.0.1:7656?"));
}

/// The minimal file with drop-ins laid over it.
fn layered(drop_ins: &[&str]) -> Result<Config, Problems> {
    let names = ["/srv/mesh/conf.d/10.toml", "/srv/mesh/conf.d/20.toml", "/srv/mesh/conf.d/30.toml"];
    let main = Layer { path: Path::new("/srv/mesh/meshd.toml"), text: MINIMAL };
    let rest = names.iter().zip(drop_ins).map(|(name, text)| Layer { path: Path::new(name), text });
    let layers: Vec<Layer<'_>> = [main].into_iter().chain(rest).collect();
    Config::parse_layers(&layers)
}

#[test]
fn a_drop_in_replaces_keys_and_adds_entries() {
    assert_eq!(layered(&[]).unwrap(), parse(MINIMAL).unwrap());
    let tablet = format!(
        "[[wireguard]]\nname = \"tablet\"\npublic_key = \"{}A=\"\naddresses = [\"10.78.0.3\"]\n",
        "B".repeat(42)
    );
    let config = layered(&[
        &format!("[underlay]\nendpoints = [\"203.0.113.5:7655\", \"203.0.113.6:7655\"]\n{PEER}"),
        &format!("[interface]\nmtu = 1400\n{tablet}"),
        "[underlay]\nendpoints = [\"203.0.113.7:7655\"]\n[files]\nidentity = \"keys/identity.key\"\n",
    ]);
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.underlay.endpoints, ["203.0.113.7:7655".parse().unwrap()]);
    assert_eq!(config.interface.mtu, 1400);
    assert_eq!(config.wireguard.iter().map(|peer| peer.name.to_string()).collect::<Vec<_>>(), ["phone", "tablet"]);
    // Places follow from the main file.
    assert_eq!(config.files.identity, Path::new("/srv/mesh/keys/identity.key"));
}

#[test]
fn what_is_wrong_in_a_drop_in_is_told_with_its_file() {
    let told = |drop_ins: &[&str]| layered(drop_ins).unwrap_err().to_string();
    let wrong = "\n[interface]\nmut = 1\nmtu = 12\n[log]\nlevel = 3";
    insta::assert_snapshot!(told(&["[interface]\nmtu = 1400\n", wrong]), @r#"
        /srv/mesh/conf.d/20.toml:3:1: interface.mut: unknown key; did you mean `mtu`? (expected one of name, mtu)
        /srv/mesh/conf.d/20.toml:4:7: interface.mtu: found the number 12 (expected bytes, 1280 to 9000)
        /srv/mesh/conf.d/20.toml:6:9: log.level: found the number 3 (expected error, warn, info, debug or trace)
    "#);
    // A good value that a bad one replaces helps nobody, and a bad one that is replaced harms nobody.
    assert_eq!(layered(&["[interface]\nmtu = 12\n", "[interface]\nmtu = 1300"]).unwrap().interface.mtu, 1300);
    let syntax = told(&["mtu = ", "[interface]\nmtu = 12"]);
    assert!(syntax.starts_with("/srv/mesh/conf.d/10.toml:1:") && !syntax.contains("20.toml"), "{syntax}");
    let rendered = layered(&["[log]\nlevel = \"lot\""]).unwrap_err().render(false);
    assert!(rendered.contains("--> /srv/mesh/conf.d/10.toml:2:9"), "{rendered}");
    assert!(Config::parse_layers(&[]).unwrap_err().to_string().contains("node: it is missing"));
    let small = Layer { path: Path::new("/x"), text: "" };
    assert!(Config::parse_layers(&[small; Layer::LIMIT + 1]).unwrap_err().to_string().contains("in 65 files"));
}

#[test]
fn a_group_that_may_look_has_a_name_the_system_takes() {
    let plain = parse(MINIMAL).unwrap();
    assert_eq!(plain.api.group, None);
    let with = |value: &str| format!("{MINIMAL}[api]\ngroup = {value}\n");
    let config = parse(&with("\"meshd\"")).unwrap();
    assert_eq!(config.api.group.as_deref(), Some("meshd"));
    let [change] = &diff(&plain, &config)[..] else { panic!("one change") };
    assert_eq!((change.key(), change.effect()), ("api.group", Effect::NeedsRestart));
    for wrong in ["\"\"", "\"Meshd\"", "\"a b\"", "\"-x\"", "\"1000\"", "1000", &format!("\"{}\"", "x".repeat(33))] {
        let told = errors(&with(wrong));
        assert!(told.contains("api.group: found") && told.contains("1 to 32 of [a-z0-9_-]"), "{wrong}: {told}");
    }
}

#[test]
fn pages_are_for_this_host_and_the_mesh_alone() {
    let with = |value: &str| format!("{MINIMAL}[metrics]\nlisten = \"{value}\"\n");
    let plain = parse(MINIMAL).unwrap();
    assert_eq!(plain.metrics.listen, None);
    let own = parse(MINIMAL).unwrap().mesh.trust_anchor().unwrap().overlay_v6.addr();
    for address in ["127.0.0.1:9655", "[::1]:9655", "127.9.9.9:1", "10.77.3.4:9655", &format!("[{own}]:9655")] {
        let config = parse(&with(address)).unwrap();
        assert_eq!(config.metrics.listen, Some(address.parse().unwrap()));
        let [change] = &diff(&plain, &config)[..] else { panic!("one change") };
        assert_eq!((change.key(), change.effect()), ("metrics.listen", Effect::Live));
    }
    let told = |value: &str| errors(&with(value)).replace("/srv/mesh/meshd.toml:10:10: metrics.listen: ", "");
    let expected = "(expected ADDRESS:PORT with a loopback address or this node's overlay address)";
    for (address, why) in [
        ("0.0.0.0:9655", "on 0.0.0.0 the whole internet could read it"),
        ("[::]:9655", "on :: the whole internet could read it"),
        ("198.51.100.7:9655", "198.51.100.7 is neither of this host alone nor of the mesh"),
        ("10.78.0.1:9655", "10.78.0.1 is neither of this host alone nor of the mesh"),
        ("127.0.0.1:0", "port 0 means any port, and its readers must know it"),
        ("127.0.0.1", "the port is missing; did you mean 127.0.0.1:9655?"),
        ("localhost:9655", "found \"localhost:9655\"; names are not looked up"),
    ] {
        assert_eq!(told(address), format!("{why} {expected}"));
    }
    let wrong = format!("{MINIMAL}[metrics]\nper_link = \"wosrt\"\n");
    assert!(errors(&wrong).contains("found \"wosrt\"; did you mean \"worst\"? (expected auto, all or worst)"));
}

const RECEIVER: &str = r#"
[[receiver]]
name = "ops"
type = "webhook"
url = "https://alerts.example.com/meshd"
"#;

#[test]
fn alerts_have_their_usual_values() {
    let plain = parse(MINIMAL).unwrap();
    let text = format!(
        "{MINIMAL}{RECEIVER}[[alert]]\nname = \"dbs\"\nwhat = \"latency_above\"\npeers = [\"tag:db\", \"web9\"]\n"
    );
    let config = parse(&text).unwrap();
    let [alert] = &config.alerts[..] else { panic!("one alert") };
    assert_eq!(alert.condition, Condition::LatencyAbove(Limit::OverBaseline(Duration::from_millis(5))));
    assert_eq!((alert.lasting, alert.severity), (Duration::from_secs(300), None));
    let db: Vec<crate::identity::Tag> = vec!["db".parse().unwrap()];
    assert!(alert.is_about("web9", &[]) && alert.is_about("db1", &db) && !alert.is_about("web8", &[]));
    let [receiver] = &config.receivers[..] else { panic!("one receiver") };
    assert_eq!((receiver.timeout, receiver.repeat), (Receiver::TIMEOUT, Receiver::REPEAT));
    let changes = diff(&plain, &config);
    let keys: Vec<_> = changes.iter().map(|change| (change.key(), change.effect())).collect();
    assert_eq!(keys, [("alert", Effect::Live), ("receiver", Effect::Live)]);
}

#[test]
fn every_error_of_alerts_and_receivers_is_told() {
    let text = format!(
        r#"{MINIMAL}
[[alert]]
name = "a"
what = "latency_abvoe"
[[alert]]
name = "a"
what = "link_down"
threshold = "5ms"
objective = "99%"
for = "2d"
[[alert]]
name = "b"
what = "loss_above"
threshold = "0.5"
peers = ["tag:DB"]
severity = "pager"
receivers = ["opps"]
[[alert]]
name = "c"
what = "certificate"
peers = ["web9"]
{RECEIVER}
[[receiver]]
name = "ops"
type = "command"
url = "https://x"
command = ["page.sh"]
[[receiver]]
name = "am"
type = "alertmanager"
url = "alerts.example.com"
timeout = "2m"
[[receiver]]
name = "none"
type = "webhook"
"#
    );
    insta::assert_snapshot!(errors(&text), @r#"
        /srv/mesh/meshd.toml:12:8: alert[1].what: found "latency_abvoe"; did you mean "latency_above"? (expected link_down, latency_above, loss_above, data_loss, latency_step, host_delay, certificate, node_down or burn_rate)
        /srv/mesh/meshd.toml:16:13: alert[2].threshold: link_down has no threshold (expected a delay or "baseline + 5ms" (latency_above, burn_rate), a percentage (loss_above, data_loss), a duration (the others))
        /srv/mesh/meshd.toml:17:13: alert[2].objective: only burn_rate has one (expected a percentage)
        /srv/mesh/meshd.toml:18:7: alert[2].for: found "2d" (expected a duration up to 1d)
        /srv/mesh/meshd.toml:22:13: alert[3].threshold: `0.5` has no unit; did you mean `0.5%`? (expected a delay or "baseline + 5ms" (latency_above, burn_rate), a percentage (loss_above, data_loss), a duration (the others))
        /srv/mesh/meshd.toml:23:10: alert[3].peers: `DB` is no tag (expected a list of up to 64 names or tag:TAG)
        /srv/mesh/meshd.toml:24:12: alert[3].severity: found "pager"; did you mean "page"? (expected page or ticket)
        /srv/mesh/meshd.toml:25:14: alert[3].receivers: there is no receiver "opps"; did you mean "ops"? (expected a list of up to 8 receivers' names)
        /srv/mesh/meshd.toml:29:9: alert[4].peers: it is about this node's own certificate (expected a list of up to 64 names or tag:TAG)
        /srv/mesh/meshd.toml:37:8: receiver[2].name: a receiver above has the same name (expected a name: 1 to 63 of [a-z0-9-])
        /srv/mesh/meshd.toml:39:7: receiver[2].url: a receiver of type command has no url (expected an address that begins with http:// or https://)
        /srv/mesh/meshd.toml:40:11: receiver[2].command: the program is not named by its whole path (expected a list of a program's whole path and up to 31 arguments)
        /srv/mesh/meshd.toml:44:7: receiver[3].url: it begins with neither http:// nor https:// (expected an address that begins with http:// or https://)
        /srv/mesh/meshd.toml:45:11: receiver[3].timeout: found "2m" (expected a duration, 1s to 60s)
        /srv/mesh/meshd.toml:46:1: receiver[4].url: it is missing (expected an address that begins with http:// or https://)
    "#);
}

#[test]
fn shards_are_few_and_need_a_restart() {
    let with = |value: &str| format!("{MINIMAL}[dataplane]\nshards = {value}\n");
    let (plain, four) = (parse(MINIMAL).unwrap(), parse(&with("4")).unwrap());
    assert_eq!((plain.dataplane.shards, four.dataplane.shards), (1, 4));
    let [change] = &diff(&plain, &four)[..] else { panic!("one change") };
    assert_eq!((change.key(), change.effect()), ("dataplane.shards", Effect::NeedsRestart));
    for wrong in ["0", "17", "-1", "\"two\""] {
        assert!(errors(&with(wrong)).contains("dataplane.shards: found"), "{wrong}");
    }
}

#[test]
fn an_authority_s_companions_need_the_authority() {
    let text = format!("{MINIMAL}[files]\nledger = \"x\"");
    assert!(errors(&text).contains("files.ledger: it belongs to files.authority"));
}

const PEER: &str = r#"
[[wireguard]]
name = "phone"
public_key = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
addresses = ["10.77.200.2", "192.168.50.0/24"]
"#;

#[test]
fn a_wireguard_peer_needs_three_keys() {
    let text = format!(
        "{MINIMAL}{PEER}endpoint = \"198.51.100.7:51820\"\npreshared_key_file = \"phone.psk\"\npersistent_keepalive = \"25s\""
    );
    let [peer] = &parse(&text).unwrap().wireguard[..] else { panic!("one peer") };
    assert_eq!(peer.addresses, ["10.77.200.2/32".parse().unwrap(), "192.168.50.0/24".parse().unwrap()]);
    assert_eq!(peer.preshared_key_file.as_deref(), Some(Path::new("/srv/mesh/phone.psk")));
    assert_eq!(peer.persistent_keepalive, Some(Duration::from_secs(25)));
    let plain = parse(&format!("{MINIMAL}{PEER}")).unwrap();
    assert_eq!((plain.wireguard[0].endpoint, plain.wireguard[0].persistent_keepalive), (None, None));
}

#[test]
fn every_error_of_wireguard_peers_is_told() {
    let text = format!(
        r#"{MINIMAL}
[[bootstrap]]
name = "web2"
key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "198.51.100.1:7655"
{PEER}
[[wireguard]]
name = "phone"
public_key = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
addresses = ["192.168.0.0/16"]
endpoint = "192.168.3.4:51820"
[[wireguard]]
name = "web1"
public_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
addresses = []
persistent_keepalive = "1500ms"
[[wireguard]]
name = "web2"
public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
adresses = ["10.1.0.1"]
addresses = ["10.77.0.0/16", "10.1.2.3/24", "::1", "phone.example.com", "0.0.0.0/0"]
[[wireguard]]
name = "web2"
public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
addresses = ["10.77.0.9"]
[[wireguard]]
name = "web1"
public_key = "L+V9o0fNYkMVKNqsX7spBzD/9oSvxM/C7ZCZX1jLO3Q="
addresses = ["10.77.0.10"]
"#
    );
    insta::assert_snapshot!(errors(&text), @r#"
        /srv/mesh/meshd.toml:21:8: wireguard[2].name: an entry above has the same name (expected a name: 1 to 63 of [a-z0-9-])
        /srv/mesh/meshd.toml:22:14: wireguard[2].public_key: `phone` above has the same key (expected a WireGuard public key in base64)
        /srv/mesh/meshd.toml:23:13: wireguard[2].addresses: 192.168.0.0/16 overlaps 192.168.50.0/24 of `phone` above (expected a list of 1 to 16 addresses or prefixes)
        /srv/mesh/meshd.toml:24:12: wireguard[2].endpoint: it lies in 192.168.0.0/16, which is reached through it (expected ADDRESS:PORT)
        /srv/mesh/meshd.toml:27:14: wireguard[3].public_key: the key is a point of low order, which protects nothing: generate a new key pair (expected a WireGuard public key in base64)
        /srv/mesh/meshd.toml:28:13: wireguard[3].addresses: the list is empty (expected a list of 1 to 16 addresses or prefixes)
        /srv/mesh/meshd.toml:29:24: wireguard[3].persistent_keepalive: found "1500ms" (expected a duration in whole seconds, 1s to 1h)
        /srv/mesh/meshd.toml:33:1: wireguard[4].adresses: unknown key; did you mean `addresses`? (expected one of name, public_key, addresses, endpoint, preshared_key_file, persistent_keepalive)
        /srv/mesh/meshd.toml:34:14: wireguard[4].addresses: 10.77.0.0/16 covers 10.77.0.0/16, the overlay of the mesh (expected a list of 1 to 16 addresses or prefixes)
        /srv/mesh/meshd.toml:34:30: wireguard[4].addresses: the prefix starts at another address; did you mean 10.1.2.0/24? (expected a list of 1 to 16 addresses or prefixes)
        /srv/mesh/meshd.toml:34:45: wireguard[4].addresses: ::1 is, or contains, a range with a meaning of its own (expected a list of 1 to 16 addresses or prefixes)
        /srv/mesh/meshd.toml:34:52: wireguard[4].addresses: `phone.example.com` is neither (expected a list of 1 to 16 addresses or prefixes)
        /srv/mesh/meshd.toml:34:73: wireguard[4].addresses: 0.0.0.0/0 is, or contains, a range with a meaning of its own (expected a list of 1 to 16 addresses or prefixes)
        /srv/mesh/meshd.toml:36:8: wireguard[5].name: `web2` is a member of the mesh, see [[bootstrap]] (expected a name: 1 to 63 of [a-z0-9-])
        /srv/mesh/meshd.toml:37:14: wireguard[5].public_key: it is the key of `web2`, a member of the mesh (expected a WireGuard public key in base64)
        /srv/mesh/meshd.toml:40:8: wireguard[6].name: it is this node's own name (expected a name: 1 to 63 of [a-z0-9-])
    "#);
}

#[test]
fn rules_are_read_and_wrong_ones_told() {
    let text = format!(
        "{MINIMAL}[[allow]]\nfrom = [\"tag:app\", \"web1\"]\nto = [\"10.77.0.3\"]\nports = [\"tcp/3306\"]\n[[allow]]\nfrom = [\"any\"]\n"
    );
    let rules = parse(&text).unwrap().allow;
    assert_eq!(rules[0].ports, [Service::Tcp(3306, 3306)]);
    assert_eq!(rules[1], Allow { from: vec![Selector::Any], to: vec![], ports: vec![] });
    let wrong = format!(
        "{MINIMAL}[[allow]]\nto = []\n[[allow]]\nfrom = [\"10.77.0.1/16\"]\nports = [\"tcp\", \"tcp/9-8\"]\n[[allow]]\nfrom = []\n"
    );
    insta::assert_snapshot!(errors(&wrong), @"
        /srv/mesh/meshd.toml:9:1: allow[1].from: it is missing (expected a list of up to 64 of tag:TAG, a node's name, an address or prefix, any)
        /srv/mesh/meshd.toml:10:6: allow[1].to: the list is empty (expected a list of up to 64 of tag:TAG, a node's name, an address or prefix, any)
        /srv/mesh/meshd.toml:12:9: allow[2].from: the prefix starts at another address; did you mean 10.77.0.0/16? (expected a list of up to 64 of tag:TAG, a node's name, an address or prefix, any)
        /srv/mesh/meshd.toml:13:10: allow[2].ports: the ports are missing; all are tcp/1-65535 (expected a list of up to 64 of tcp/PORT, tcp/FIRST-LAST, udp/…, icmp, any)
        /srv/mesh/meshd.toml:13:17: allow[2].ports: the range ends before it begins; did you mean tcp/8-9? (expected a list of up to 64 of tcp/PORT, tcp/FIRST-LAST, udp/…, icmp, any)
        /srv/mesh/meshd.toml:15:8: allow[3].from: the list is empty (expected a list of up to 64 of tag:TAG, a node's name, an address or prefix, any)
        ");
    let many = format!("{MINIMAL}{}", "[[allow]]\nfrom = [\"any\"]\n".repeat(Allow::LIMIT + 1));
    assert!(errors(&many).contains("allow: 257 entries (expected at most 256 entries)"));
}

#[test]
fn wireguard_peers_are_bounded() {
    let many = format!("{MINIMAL}{}", PEER.repeat(Wireguard::LIMIT + 1));
    assert!(errors(&many).contains("wireguard: 257 entries (expected at most 256 entries)"));
}

#[test]
fn the_shipped_example_is_what_the_code_writes() {
    let path = Path::new("/etc/meshd/meshd.toml");
    let example = include_str!("../../examples/meshd.toml");
    let config = Config::parse(example, path).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.to_toml_in_full(path), example);
    for key in keys::KEYS {
        assert!(example.contains(&format!("\n{} = ", key.name)), "{}.{}", key.section, key.name);
    }
}

fn addresses(limit: usize) -> impl Strategy<Value = Vec<SocketAddr>> {
    let v4 = (1u32..0x7f00_0000, 1u16..).prop_map(|(ip, port)| SocketAddr::from((std::net::Ipv4Addr::from(ip), port)));
    let v6 = (any::<u64>(), 1u16..).prop_map(|(ip, port)| {
        SocketAddr::from((std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(ip)), port))
    });
    let one = prop_oneof![v4, v6];
    prop::collection::btree_set(one, 0..=limit).prop_map(|set| set.into_iter().collect())
}

fn path() -> impl Strategy<Value = std::path::PathBuf> {
    prop_oneof!["[a-z][a-z0-9 \"\\\\éü-]{0,12}", "/[a-z][a-z0-9/]{0,12}[a-z]"]
        .prop_map(|text| Path::new("/srv/mesh").join(text))
}

/// A stock peer that clashes with none of another number.
fn stock_peer(number: u8, (file, seconds, fixed): (Option<PathBuf>, Option<u64>, bool)) -> Wireguard {
    Wireguard {
        name: format!("phone{number}").parse().expect("a valid name"),
        public_key: WireguardKey::from_bytes([number + 9; 32]).expect("a valid key"),
        addresses: vec![
            format!("172.20.{number}.0/24").parse().expect("a prefix"),
            format!("fd78::{number:x}/128").parse().expect("an address"),
        ],
        endpoint: fixed.then(|| SocketAddr::from(([198, 51, 100, number], 51_820))),
        preshared_key_file: file,
        persistent_keepalive: seconds.map(Duration::from_secs),
    }
}

fn alert() -> impl Strategy<Value = Alert> {
    let ms = Duration::from_millis;
    let limit = prop_oneof![
        (1u64..60_000).prop_map(move |millis| Limit::Fixed(ms(millis))),
        (1u64..60_000).prop_map(move |millis| Limit::OverBaseline(ms(millis))),
    ];
    let share = (1u32..1_000_000).prop_map(|m| format!("{}.{:04}%", m / 10_000, m % 10_000).parse().expect("a share"));
    let condition =
        (0..Condition::KINDS.len(), limit, share, 1u64..60_000).prop_map(move |(kind, limit, share, millis)| {
            match Condition::usual(Condition::KINDS[kind]).expect("a kind") {
                Condition::LatencyAbove(_) => Condition::LatencyAbove(limit),
                Condition::LossAbove(_) => Condition::LossAbove(share),
                Condition::DataLoss(_) => Condition::DataLoss(share),
                Condition::LatencyStep(_) => Condition::LatencyStep(ms(millis)),
                Condition::HostDelay(_) => Condition::HostDelay(ms(millis)),
                Condition::Certificate(_) => Condition::Certificate(ms(millis)),
                Condition::BurnRate { .. } => Condition::BurnRate { allowed: share, limit },
                plain => plain,
            }
        });
    let target = prop::sample::select(vec!["web9", "tag:db", "tag:site-paris"]);
    let peers = prop::collection::btree_set(target, 0..3);
    let severity = prop::option::of(prop::sample::select(&Severity::ALL[..]));
    let told = prop::collection::btree_set(prop::sample::select(vec!["name0", "name1"]), 0..3);
    (condition, peers, 0u64..86_400, severity, told).prop_map(|(condition, peers, secs, severity, told)| Alert {
        name: "alert".parse().expect("a name"),
        peers: match condition {
            Condition::Certificate(_) => Vec::new(),
            _ => peers.into_iter().map(|peer| peer.parse().expect("a target")).collect(),
        },
        condition,
        lasting: Duration::from_secs(secs),
        severity,
        receivers: told.into_iter().map(|name| name.parse().expect("a name")).collect(),
    })
}

fn receiver() -> impl Strategy<Value = Receiver> {
    let http = ("[a-z]{1,9}", prop::option::of(path())).prop_map(|(word, header_file)| HttpReceiver {
        url: format!("https://{word}.example/{word}?token={word}"),
        header_file,
    });
    let words = prop::collection::vec("[^\\x00]{0,9}", 0..4)
        .prop_map(|words| ["/bin/tell".to_owned()].into_iter().chain(words).collect::<Vec<String>>());
    let kind = prop_oneof![
        (http, any::<bool>()).prop_map(|(http, itself)| match itself {
            true => ReceiverKind::Alertmanager(http),
            false => ReceiverKind::Webhook(http),
        }),
        words.prop_map(ReceiverKind::Command),
    ];
    (kind, 1u64..=60, 60u64..=86_400).prop_map(|(kind, timeout, repeat)| Receiver {
        name: "receiver".parse().expect("a name"),
        kind,
        timeout: Duration::from_secs(timeout),
        repeat: Duration::from_secs(repeat),
    })
}

fn forward(number: u16, port: u16) -> Forward {
    Forward {
        name: format!("forward{number}").parse().expect("a name"),
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 10_000 + number)), SocketAddr::from(([127, 0, 0, 2], port))],
        targets: vec!["db1:3306".parse().expect("a target"), format!("[fd00::1]:{port}").parse().expect("a target")],
        failover: port.is_multiple_of(2),
        check_interval: Duration::from_millis(u64::from(port)),
        connect_timeout: Duration::from_millis(u64::from(port)),
        source: ForwardSource::ALL[usize::from(port % 2)],
        max_connections: port,
    }
}

fn gateway_check(number: u8) -> GatewayCheck {
    let check = [format!("10.20.{number}.5:3306"), format!("10.20.{number}.6")];
    GatewayCheck {
        prefix: format!("10.20.{number}.0/24").parse().expect("a prefix"),
        check: check.map(|target| target.parse().expect("a target"))[..1 + usize::from(number % 2)].to_vec(),
        interval: Duration::from_millis(100 + u64::from(number)),
        tries: 1 + number,
    }
}

/// Gives each a name of its own.
fn numbered<T>(mut list: Vec<T>, give: impl Fn(&mut T, NodeName)) -> Vec<T> {
    for (i, one) in list.iter_mut().enumerate() {
        give(one, format!("name{i}").parse().expect("a name"));
    }
    list
}

fn config() -> impl Strategy<Value = Config> {
    let files = (
        path(),
        path(),
        path(),
        path(),
        prop::option::of((path(), prop::option::of(path()), prop::option::of(path()))),
    );
    let peers = prop::collection::vec((prop::option::of(path()), prop::option::of(1u64..=3600), any::<bool>()), 0..4);
    let rest =
        ("[a-z][a-z0-9]{0,14}", 1280u16..=9000, 100u64..=60_000, 0usize..5, 8u8..=29, any::<[u8; 16]>(), any::<bool>());
    let metrics =
        (prop::option::of(1u16..=9_999), prop::sample::select(&PerLink::ALL[..]), prop::option::of(10_000u16..));
    let alerting = (prop::collection::vec(alert(), 0..4), prop::collection::vec(receiver(), 0..3));
    let history = (any::<bool>(), 16u64 << 10..4 << 30)
        .prop_map(|(enabled, kib)| HistorySettings { enabled, max_size: kib << 10 });
    let rest = (rest, metrics, alerting, history);
    (addresses(1), addresses(16), addresses(8), files, peers, rest).prop_map(
        |(listen, endpoints, members, files, peers, rest)| {
            let minimal = parse(MINIMAL).expect("the minimal file is valid");
            let ((name, mtu, millis, level, length, id, low), (port, per_link, web_port), (alerts, receivers), history) =
                rest;
            let receivers = numbered(receivers, |receiver: &mut Receiver, name| receiver.name = name);
            let mut alerts = numbered(alerts, |alert: &mut Alert, name| alert.name = name);
            // Rules tell only receivers that there are.
            for alert in &mut alerts {
                alert.receivers.retain(|name| receivers.iter().any(|receiver| receiver.name == *name));
            }
            let key = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=".parse().expect("a valid key");
            let authority: (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>) = match files.4 {
                Some((authority, passphrase, ledger)) => (Some(authority), passphrase, ledger),
                None => (None, None, None),
            };
            Config {
                node: minimal.node.clone(),
                mesh: Mesh {
                    id: MeshId::from_bytes(id),
                    overlay: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0), length).trunc(),
                    ..minimal.mesh.clone()
                },
                underlay: Underlay {
                    listen: if listen.is_empty() { minimal.underlay.listen } else { listen },
                    endpoints,
                },
                bootstrap: members
                    .into_iter()
                    .map(|endpoint| Bootstrap { name: minimal.node.clone(), key, endpoint })
                    .collect(),
                wireguard: peers.into_iter().zip(0u8..).map(|(peer, number)| stock_peer(number, peer)).collect(),
                allow: ["tag:db", "web1", "10.9.0.0/16", "any"][level..4.min(level + 2).max(level)]
                    .iter()
                    .map(|from| Allow {
                        from: vec![from.parse().expect("a valid selector")],
                        to: if low { vec![Selector::Any] } else { Vec::new() },
                        ports: if low { Vec::new() } else { vec![Service::Tcp(mtu, 9_000), Service::Icmp] },
                    })
                    .collect(),
                lockdown: low.then(|| Lockdown {
                    allow: ["tcp/22 from 203.0.113.0/24", "udp/1-9"][..level.min(2)]
                        .iter()
                        .map(|opening| opening.parse().expect("a valid opening"))
                        .collect(),
                }),
                forwards: (0..u16::from(low)).map(|number| forward(number, mtu)).collect(),
                gateway_checks: (0..if low { level as u8 } else { 0 }).map(gateway_check).collect(),
                names: Names {
                    listen: low.then(|| SocketAddr::from(([127, 0, 0, 1], Names::PORT))),
                    resolver: if low { Resolver::ALL[level] } else { Resolver::Hosts },
                    suffix: (millis % 2 == 0).then(|| "mesh.example.internal".parse().expect("a suffix")),
                },
                aliases: [("orders-db", "db9"), ("orders", "forward0.forward")][usize::from(!low)..]
                    .iter()
                    .filter(|_| low)
                    .map(|(name, to)| Alias {
                        name: name.parse().expect("a name"),
                        to: to.parse().expect("a target"),
                    })
                    .collect(),
                interface: Interface { name, mtu },
                gateway: Gateway { masquerade: !low },
                dataplane: DataplaneSettings { latency: Latency::ALL[usize::from(low)], shards: 1 + millis as u8 % 16 },
                tunnel: TunnelSettings {
                    pq: PostQuantum::ALL[level.min(2)],
                    pq_renewal: Duration::from_secs(10 + millis),
                },
                files: Files {
                    identity: files.0,
                    certificate: files.1,
                    state_directory: files.2,
                    socket: files.3,
                    authority: authority.0,
                    authority_passphrase_file: authority.1,
                    ledger: authority.2,
                },
                probe: Probe { interval: Duration::from_millis(millis), critical_tags: vec!["db".parse().unwrap()] },
                history,
                metrics: Metrics { listen: port.map(|port| SocketAddr::from(([127, 0, 0, 1], port))), per_link },
                alerts,
                receivers,
                web: Web { listen: web_port.map(|port| SocketAddr::from(([127, 0, 0, 1], port))) },
                api: Api { group: low.then(|| "readers_2-a".to_owned()) },
                security: Security {
                    landlock: Landlock::ALL[usize::from(low)],
                    writable: if low { vec!["/srv/alerts".into(), "/srv/a \"b".into()] } else { Vec::new() },
                },
                log: Log { level: Level::ALL[level] },
            }
        },
    )
}

#[test]
fn a_forward_needs_three_keys_and_every_error_is_told() {
    let text =
        format!("{MINIMAL}[[forward]]\nname = \"orders\"\nlisten = [\"127.0.0.1:3306\"]\ntargets = [\"db1:3306\"]\n");
    let [forward] = &parse(&text).unwrap().forwards[..] else { panic!("one forward") };
    let settings = (forward.failover, forward.connect_timeout, forward.max_connections);
    assert_eq!(settings, (true, Duration::from_secs(3), 1_000));
    let changes = diff(&parse(MINIMAL).unwrap(), &parse(&text).unwrap());
    let changes: Vec<_> = changes.iter().map(|change| (change.key(), change.effect())).collect();
    assert_eq!(changes, [("forward", Effect::Live)]);
    for (wrong, told) in [
        ("", "forward[2].targets: it is missing"),
        ("targets = []", "the list is empty"),
        ("targets = [\"db1\"]", "the port is missing"),
        ("targets = [\"db1:3306\", \"db1:3306\"]", "it stands in the list twice"),
        ("targets = [\"127.0.0.1:3306\"]", "127.0.0.1:3306 is where this forward listens"),
        ("targets = [\"db2:1\"]", "127.0.0.1:3306 is taken by the forward orders above"),
        ("targets = [\"db2:1\"]\nsource = \"proxy\"", "forward[2].source: found \"proxy\""),
        ("targets = [\"db2:1\"]\nmax_connections = 0", "forward[2].max_connections: found the number 0"),
        ("targets = [\"db2:1\"]\ncheck_interval = \"10ms\"", "forward[2].check_interval: found"),
    ] {
        let second = format!("{text}[[forward]]\nname = \"more\"\nlisten = [\"127.0.0.1:3306\"]\n{wrong}\n");
        let errors = errors(&second);
        assert!(errors.contains(told), "{wrong}: {errors}");
    }
}

#[test]
fn a_gateway_s_check_lies_behind_it_and_every_error_is_told() {
    let text =
        format!("{MINIMAL}[[gateway_check]]\nprefix = \"10.20.0.0/16\"\ncheck = [\"10.20.0.5:3306\", \"10.20.0.6\"]\n");
    let [gateway] = &parse(&text).unwrap().gateway_checks[..] else { panic!("one entry") };
    assert_eq!((gateway.interval, gateway.tries), (Duration::from_millis(300), 3));
    assert!(gateway.interval * (u32::from(gateway.tries) + 1) < Duration::from_millis(1_500), "a cut is known in time");
    let [change] = &diff(&parse(MINIMAL).unwrap(), &parse(&text).unwrap())[..] else { panic!("one change") };
    assert_eq!((change.key(), change.effect()), ("gateway_check", Effect::Live));
    assert_eq!(change.setting.entries(&parse(MINIMAL).unwrap())[0].name, "10.20.0.0/16");
    for (wrong, told) in [
        ("prefix = \"10.21.0.0/16\"", "gateway_check[2].check: it is missing"),
        ("check = [\"10.20.0.5\"]", "gateway_check[2].prefix: it is missing"),
        (
            "prefix = \"10.20.0.0/16\"\ncheck = [\"10.20.0.5\"]",
            "gateway_check[2].prefix: an entry above has the same prefix",
        ),
        ("prefix = \"10.21.0.0/16\"\ncheck = [\"10.20.0.5\"]", "gateway_check[2].check: 10.20.0.5 does not lie behind"),
        ("prefix = \"10.21.0.1/16\"\ncheck = [\"10.21.0.5\"]", "did you mean 10.21.0.0/16?"),
        ("prefix = \"10.21.0.0/16\"\ncheck = [\"db1:3306\"]", "it is no address; names are not looked up"),
        ("prefix = \"10.21.0.0/16\"\ncheck = []", "the list is empty"),
        ("prefix = \"10.21.0.0/16\"\ncheck = [\"10.21.0.5\"]\ntries = 0", "gateway_check[2].tries: found the number 0"),
        ("prefix = \"10.21.0.0/16\"\ncheck = [\"10.21.0.5\"]\ninterval = \"9ms\"", "gateway_check[2].interval: found"),
    ] {
        let errors = errors(&format!("{text}[[gateway_check]]\n{wrong}\n"));
        assert!(errors.contains(told), "{wrong}: {errors}");
    }
}

#[test]
fn names_have_an_address_and_a_domain_of_their_own() {
    let plain = parse(MINIMAL).unwrap();
    assert_eq!(plain.names, Names::default());
    let with = |lines: &str| format!("{MINIMAL}[names]\n{lines}\n");
    let config = parse(&with("listen = \"10.77.0.1:53\"\nsuffix = \"mesh.example.com\"")).unwrap();
    assert_eq!(config.names.listen, Some(([10, 77, 0, 1], Names::PORT).into()));
    let changes = diff(&plain, &config);
    let changes: Vec<_> = changes.iter().map(|change| (change.key(), change.effect())).collect();
    assert_eq!(changes, [("names.listen", Effect::Live), ("names.suffix", Effect::Live)]);
    for (wrong, told) in [
        ("listen = \"0.0.0.0:53\"", "names.listen: on 0.0.0.0 the whole internet could read it"),
        ("listen = \"198.51.100.7:53\"", "names.listen: 198.51.100.7 is neither of this host alone nor of the mesh"),
        ("listen = \"127.0.0.1\"", "did you mean 127.0.0.1:53?"),
        ("resolver = \"host\"", "names.resolver: found \"host\"; did you mean \"hosts\"?"),
        ("resolver = \"resolved\"", "names.listen: resolver = \"resolved\" needs it"),
        ("resolver = \"resolvconf\"\nlisten = \"127.0.0.1:5353\"", "names.listen: resolver = \"resolvconf\" can only"),
        ("suffix = \"prod.\"", "names.suffix: a label is empty"),
        ("suffix = \"Prod\"", "names.suffix: `Prod` is no label"),
        ("suffix = \"my.local\"", "names.suffix: `local` means something else to every resolver"),
    ] {
        let errors = errors(&with(wrong));
        assert!(errors.contains(told), "{wrong}: {errors}");
    }
    let local = MINIMAL.replace("\"example\"", "\"local\"");
    assert!(parse(&local).is_ok());
    let told = errors(&format!("{local}[names]\nresolver = \"hosts\"\n"));
    assert!(told.contains("names.suffix: the mesh's name"), "{told}");
    assert_eq!(parse(&with("resolver = \"auto\"")).unwrap().names.resolver, Resolver::Auto);
    let told = errors(&format!("{local}[names]\nlisten = \"127.0.0.1:53\"\n"));
    assert!(told.contains("names.suffix: the mesh's name cannot stand for it: `local` means"), "{told}");
}

#[test]
fn an_alias_stands_for_a_member_or_a_forward_and_every_error_is_told() {
    let forward = "[[forward]]\nname = \"orders\"\nlisten = [\"127.0.0.1:3306\"]\ntargets = [\"db1:3306\"]\n";
    let text = format!("{MINIMAL}{forward}[[alias]]\nname = \"orders-db\"\nto = \"orders.forward\"\n");
    let config = parse(&text).unwrap();
    assert_eq!(config.aliases[0].to, AliasTarget::Forward("orders".parse().unwrap()));
    let plain = parse(&format!("{MINIMAL}{forward}")).unwrap();
    let [change] = &diff(&plain, &config)[..] else { panic!("one change") };
    assert_eq!((change.key(), change.effect()), ("alias", Effect::Live));
    for (wrong, told) in [
        ("name = \"x\"", "alias[2].to: it is missing"),
        ("name = \"web1\"\nto = \"db1\"", "alias[2].name: this node itself has that name"),
        ("name = \"orders-db\"\nto = \"db1\"", "alias[2].name: an alias above has the same name"),
        ("name = \"x\"\nto = \"x\"", "alias[2].to: it stands for itself"),
        ("name = \"x\"\nto = \"orders-db\"", "alias[2].to: `orders-db` is an alias itself"),
        ("name = \"x\"\nto = \"order.forward\"", "alias[2].to: there is no [[forward]] `order`"),
        ("name = \"x\"\nto = \"db1.prod\"", "alias[2].to: it has a domain: the suffix is left out"),
    ] {
        let errors = errors(&format!("{text}[[alias]]\n{wrong}\n"));
        assert!(errors.contains(told), "{wrong}: {errors}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(config in config()) {
        let path = Path::new("/srv/mesh/meshd.toml");
        for text in [config.to_toml(path), config.to_toml_in_full(path)] {
            let read = Config::parse(&text, path);
            prop_assert_eq!(read.as_ref(), Ok(&config), "{}", text);
        }
    }

    #[test]
    fn applying_the_difference_gives_the_new_one(old in config(), new in config()) {
        let mut changed = old.clone();
        let changes = diff(&old, &new);
        changes.iter().for_each(|change| change.apply(&mut changed));
        prop_assert_eq!(&changed, &new);
        prop_assert!(diff(&changed, &new).is_empty());
    }

    #[test]
    fn any_text_is_read_without_panic(text in "(?s).{0,200}") {
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.is_empty());
            let _ = problems.render(true);
        }
    }

    #[test]
    fn a_damaged_file_is_read_without_panic(at in 0usize..220, byte in "[\\[\\]\"=#\n.é0]") {
        let mut text = MINIMAL.to_owned();
        let at = at.min(text.len() - 1);
        if text.is_char_boundary(at) {
            text.replace_range(at..=at, &byte);
        }
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.render(false).is_empty());
        }
    }
}

#[test]
fn a_lockdown_is_there_by_its_one_key() {
    let of = |text: &str| parse(&format!("{MINIMAL}{text}")).unwrap().lockdown;
    assert_eq!(of(""), None);
    assert_eq!(of("[lockdown]\n"), None);
    assert_eq!(of("[lockdown]\nallow = []\n"), Some(Lockdown { allow: Vec::new() }));
    let allow = of("[lockdown]\nallow = [\"tcp/22 from 203.0.113.0/24\", \"tcp/80\"]\n").unwrap().allow;
    assert_eq!(allow.iter().map(ToString::to_string).collect::<Vec<_>>(), ["tcp/22 from 203.0.113.0/24", "tcp/80"]);
    for (wrong, why) in [
        ("any", "that opens everything; say from where"),
        ("tcp/22 from 203.0.113.1/24", "did you mean 203.0.113.0/24?"),
        ("icmp", "always pass"),
        ("tcp", "the ports are missing"),
    ] {
        let told = errors(&format!("{MINIMAL}[lockdown]\nallow = [\"{wrong}\"]\n"));
        assert!(told.contains("lockdown.allow") && told.contains(why), "{wrong}: {told}");
    }
}

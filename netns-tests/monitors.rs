//! Those who watch: Prometheus, and the receivers of alerts.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver as Bodies, channel};
use std::thread;
use std::time::Duration;

use meshd::api::{AlertList, AlertPhase, AlertStatus};
use meshd::config::alert::{Alert, Condition};
use meshd::config::receiver::{HttpReceiver, Receiver, ReceiverKind};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::Case;
use crate::lab::error::{Context, Error};
use crate::lab::look::wait;
use crate::lab::package::PROMETHEUS;
use crate::lab::{Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file. They wait most of the time: for alerts that must last before anybody is told.
pub const LONG_CASES: &[Case] = &[
    Case { name: "monitors::prometheus_scrapes_and_its_alert_fires", needs: &[&PROMETHEUS], run: prometheus },
    Case { name: "monitors::receivers_hear_of_a_cut_link_and_of_its_return", needs: &[], run: receivers },
    Case { name: "monitors::a_dead_node_is_told_once_by_one_of_all", needs: &[], run: dead_node },
];

/// Longer than an alert takes to be told, and told to be over: 30 s, 50 s, and the looks between them.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where the metrics are; each host has a loopback of its own.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9655);

/// Where Prometheus is.
const PROMETHEUS_PORT: u16 = 9090;

/// Asks a server on a host's loopback, and returns the status line and the body.
fn get(host: &Host, port: u16, path: &str, accept: &str) -> Result<(String, String)> {
    let mut stream = host.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port))).context(path)?;
    stream.set_read_timeout(Some(LONG)).context(path)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context(path)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context(path)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// Takes a changed configuration over, and waits until the daemon says so.
fn reload(scene: &Scene, host: &Host) -> Result<()> {
    let daemon = scene.mesh.daemon(host)?;
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_output("reloaded:", LONG)?;
    Ok(())
}

/// The samples that a query of Prometheus gives.
fn query(host: &Host, query: &str) -> Vec<Value> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = get(host, PROMETHEUS_PORT, &format!("/api/v1/query?query={encoded}"), "application/json");
    // Chunks and not yet started servers make no JSON, and are asked again.
    let body = answer.ok().map(|(_, body)| body).unwrap_or_default();
    let json = body.find('{').zip(body.rfind('}')).map(|(first, last)| &body[first..=last]).unwrap_or_default();
    let value: Value = serde_json::from_str(json).unwrap_or_default();
    value["data"]["result"].as_array().cloned().unwrap_or_default()
}

/// The names of meshd's metrics in a text.
fn metrics_in(text: &str) -> impl Iterator<Item = String> + '_ {
    let part = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_';
    text.match_indices("meshd_").map(move |(at, _)| text[at..].chars().take_while(part).collect())
}

/// Whether a series of this name belongs to one of the families.
fn is_served(name: &str, families: &BTreeSet<&str>) -> bool {
    let family = ["_bucket", "_count", "_sum", "_total", "_info"].iter().find_map(|end| name.strip_suffix(end));
    families.contains(name) || family.is_some_and(|family| families.contains(family))
}

fn value_of(sample: &Value) -> f64 {
    sample["value"][1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// ```text
///     a---b           Prometheus on a scrapes the daemon of a; a---b is cut
///      \ /
///       c
/// ```
fn prometheus(lab: &Lab) -> Result<()> {
    let tree = PROMETHEUS.fetch()?;
    let scene = Scene::running(lab, &["a", "b", "c"])?;
    let a = scene.all()[0];
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prometheus");
    let place = a.dir().join("prometheus");
    fs::create_dir(&place).context(place.display())?;
    for file in ["alerts.yml", "alerts.test.yml", "prometheus.yml"] {
        fs::copy(shipped.join(file), place.join(file)).context(file)?;
    }
    let config = place.join("prometheus.yml");
    let checked = a.command_from(&tree, "promtool")?.args(["check", "config"]).arg(&config).check()?;
    assert!(checked.contains("SUCCESS"), "{checked}");
    let tested =
        a.command_from(&tree, "promtool")?.args(["test", "rules"]).arg(place.join("alerts.test.yml")).check()?;
    assert!(tested.contains("SUCCESS"), "{tested}");

    // Nothing is served until the configuration says so, and then without a restart.
    assert!(get(a, METRICS.port(), "/metrics", "*/*").is_err(), "it is off by default");
    scene.mesh.change_config(a, |config| config.metrics.listen = Some(METRICS))?;
    reload(&scene, a)?;
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"traffic to be counted")?;
    let (status, plain) =
        wait("the metrics are served", PATIENCE, || Ok(get(a, METRICS.port(), "/metrics", "text/plain").ok()))?;
    assert!(
        status.contains("200") && plain.contains("# TYPE meshd_link_probes_sent_total counter"),
        "{status} {plain}"
    );
    let metrics = place.join("metrics.txt");
    fs::write(&metrics, &plain).context(metrics.display())?;
    let lint = a.command_from(&tree, "promtool")?.args(["check", "metrics"]).input(plain.clone()).output()?;
    assert!(!format!("{}{}", lint.stdout, lint.stderr).contains("error while linting"), "{lint:?}");
    let (_, open) = get(a, METRICS.port(), "/metrics", "application/openmetrics-text; version=1.0.0")?;
    assert!(open.trim_end().ends_with("# EOF"), "{open}");
    let families: BTreeSet<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for file in ["prometheus/alerts.yml", "grafana/dashboard.json"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
        let text = fs::read_to_string(&path).context(path.display())?;
        let unknown: Vec<String> = metrics_in(&text).filter(|name| !is_served(name, &families)).collect();
        assert!(unknown.is_empty() && metrics_in(&text).count() > 10, "{file} names what is not served: {unknown:?}");
    }

    let text = fs::read_to_string(&config).context(config.display())?;
    fs::write(&config, text.replace("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s"))
        .context(config.display())?;
    let _prometheus = a
        .command_from(&tree, "prometheus")?
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", place.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}"))
        .spawn()?;
    wait("Prometheus sees both links up", PATIENCE, || Ok((query(a, "meshd_link_up == 1").len() == 2).then_some(())))?;
    assert_eq!(query(a, "up{job=\"meshd\"}").first().map(value_of), Some(1.0));
    let rtt = "histogram_quantile(0.5, meshd_link_path_rtt_seconds_bucket{peer=\"c\"})";
    let rtt = wait("Prometheus knows a round trip", PATIENCE, || Ok(query(a, rtt).first().map(value_of)))?;
    // Two milliseconds of the emulated network, in a bucket that reaches from 1.6 to 3.2.
    assert!((0.0016..=0.0064).contains(&rtt), "{rtt}");
    assert!(query(a, "meshd_link_data_bytes_total{peer=\"b\", direction=\"sent\"} > 0").len() == 1);

    scene.wan.link("a", "b").cut(true);
    let firing = "ALERTS{alertname=\"MeshLinkDown\", alertstate=\"firing\"}";
    let alert = wait("the alert for the cut link fires", PATIENCE, || Ok(query(a, firing).first().cloned()))?;
    assert_eq!((&alert["metric"]["peer"], &alert["metric"]["instance"]), (&"b".into(), &"web1".into()), "{alert}");
    assert_eq!(query(a, firing).len(), 1, "the other link is well");
    assert!(
        query(a, "meshd_link_probes_lost_total{peer=\"b\"} > 0").len()
            + query(a, "meshd_link_up{peer=\"b\"} == 0").len()
            > 0
    );
    Ok(())
}

/// A web server on a host's loopback, which answers everything with 200 and hands the bodies over.
fn listen(host: &Host) -> Result<(SocketAddr, Bodies<Value>)> {
    let listener = host.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).context("listen for alerts")?;
    let address = listener.local_addr().context("listen for alerts")?;
    let (told, bodies) = channel();
    let serve = move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(&stream);
            let (mut length, mut line) = (0, String::new());
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                let lower = line.to_ascii_lowercase();
                length = lower.strip_prefix("content-length:").map_or(length, |rest| rest.trim().parse().unwrap_or(0));
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            let answered = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // The case is over once nobody takes them any more.
            if answered.is_ok() && told.send(serde_json::from_slice(&body).unwrap_or_default()).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().spawn(serve).context("listen for alerts")?;
    Ok((address, bodies))
}

/// ```text
///     a---b           a tells a webhook and a program on its own host; a---b is cut, and healed
///      \ /
///       c
/// ```
fn receivers(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c"])?;
    let (mesh, a) = (&scene.mesh, scene.all()[0]);
    let (address, bodies) = listen(a)?;
    let told = mesh.directory(a).join("told");
    let name = |text: &str| text.parse().expect("a valid name");
    let receiver =
        |text: &str, kind| Receiver { name: name(text), kind, timeout: Receiver::TIMEOUT, repeat: Receiver::REPEAT };
    mesh.change_config(a, |config| {
        let url = format!("http://{address}/hook");
        let script = format!("cat >> {0}; echo >> {0}", told.display());
        let words = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        config.receivers = vec![
            receiver("ops", ReceiverKind::Webhook(HttpReceiver { url, header_file: None })),
            receiver("pager", ReceiverKind::Command(words)),
        ];
        config.alerts = vec![Alert {
            name: name("link-down"),
            condition: Condition::LinkDown,
            peers: Vec::new(),
            lasting: Duration::ZERO,
            severity: None,
            receivers: Vec::new(),
        }];
    })?;
    reload(&scene, a)?;

    let tested = mesh.ctl(a).args(["alerts", "test", "ops"]).check()?;
    assert!(tested.contains("ops was told"), "{tested}");
    let test = bodies.recv_timeout(PATIENCE).map_err(|_| Error::failed("the test did not arrive"))?;
    assert_eq!(test["commonLabels"]["alertname"], "meshd-test", "{test}");
    let unknown = mesh.ctl(a).args(["alerts", "test", "opps"]).output()?;
    assert!(!unknown.status.success() && unknown.stderr.contains("there are: ops, pager"), "{unknown:?}");

    scene.wan.link("a", "b").cut(true);
    let firing = bodies.recv_timeout(PATIENCE).map_err(|_| Error::failed("nobody was told of the cut"))?;
    assert_eq!(
        (&firing["version"], &firing["status"], &firing["receiver"]),
        (&"4".into(), &"firing".into(), &"ops".into())
    );
    let alert = &firing["alerts"][0];
    assert_eq!(alert["labels"]["peer"], "b", "{firing}");
    assert_eq!(alert["annotations"]["command"], "meshctl status b", "{firing}");
    let shown: AlertList =
        serde_json::from_str(&mesh.ctl(a).args(["--json", "alerts"]).check()?).context("meshctl alerts")?;
    assert_eq!(shown.alerts.len(), 1, "{shown:?}");
    assert!(shown.receivers.iter().all(|receiver| receiver.failure.is_none()), "{shown:?}");

    scene.wan.link("a", "b").cut(false);
    let over = bodies.recv_timeout(PATIENCE).map_err(|_| Error::failed("nobody was told that it is over"))?;
    assert_eq!(
        (&over["status"], &over["alerts"][0]["fingerprint"]),
        (&"resolved".into(), &alert["fingerprint"]),
        "{over}"
    );
    let lines = wait("the program has both", PATIENCE, || {
        let text = fs::read_to_string(&told).unwrap_or_default();
        Ok((text.lines().count() == 2).then_some(text))
    })?;
    let statuses: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect();
    assert_eq!((&statuses[0]["status"], &statuses[1]["status"]), (&"firing".into(), &"resolved".into()));
    assert!(bodies.try_recv().is_err(), "one alert, and its end");
    Ok(())
}

/// ```text
///     a---b           all four tell the same kind of webhook, each on its own host, by the rules that are built in; d is killed
///     |\ /|
///     | X |
///     |/ \|
///     c---d
/// ```
fn dead_node(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c", "d"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut bodies = Vec::new();
    for host in &all {
        let (address, told) = listen(host)?;
        mesh.change_config(host, |config| {
            let url = format!("http://{address}/hook");
            config.receivers = vec![Receiver {
                name: "ops".parse().expect("a valid name"),
                kind: ReceiverKind::Webhook(HttpReceiver { url, header_file: None }),
                timeout: Receiver::TIMEOUT,
                repeat: Receiver::REPEAT,
            }];
        })?;
        reload(&scene, host)?;
        bodies.push(told);
    }
    mesh.kill(all[3])?;
    let told =
        wait("somebody tells of the dead node", PATIENCE, || Ok(bodies.iter().find_map(|told| told.try_recv().ok())))?;
    let labels = &told["alerts"][0]["labels"];
    assert_eq!(
        (&labels["what"], &labels["peer"], &labels["node"]),
        (&"node_down".into(), &"d".into(), &Value::Null),
        "{told}"
    );
    // The others know, and leave it to the one.
    let shown = all[..3].iter().map(|host| {
        let list = wait("everybody sees the dead node", PATIENCE, || {
            let text = mesh.ctl(host).args(["--json", "alerts"]).check()?;
            let list: AlertList = serde_json::from_str(&text).context(text)?;
            let firing =
                |what: &str| list.alerts.iter().any(|alert| alert.what == what && alert.phase == AlertPhase::Firing);
            Ok((firing("node_down") && firing("link_down")).then_some(list))
        });
        list.map(|list| list.alerts)
    });
    let shown: Vec<Vec<AlertStatus>> = shown.collect::<Result<_>>()?;
    let left = shown.iter().filter(|alerts| {
        let says = |alert: &AlertStatus| alert.what == "node_down" && alert.untold.is_some();
        alerts.iter().any(says)
    });
    assert_eq!(left.count(), 2, "{shown:?}");
    let links = |alerts: &&Vec<AlertStatus>| {
        alerts.iter().any(|alert| alert.what == "link_down" && alert.untold.as_deref() == Some("node-down says it"))
    };
    assert_eq!(shown.iter().filter(links).count(), 3, "{shown:?}");
    let more: Vec<Value> = bodies.iter().flat_map(|told| told.try_iter()).collect();
    assert!(more.is_empty(), "one alert, not one of each node: {more:?}");
    Ok(())
}

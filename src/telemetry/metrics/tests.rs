//! The text of metrics, read back by the rules of its format.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::config::PerLink;
use crate::config::alert::Severity;
use crate::control::probe::LinkState;
use crate::telemetry::alert::Health;
use crate::telemetry::{DelayHistogram, LinkCounters};
use crate::time::{Instant, UnixTime};
use crate::wire::DropReason;

fn link(peer: &str, state: LinkState) -> LinkSnapshot {
    LinkSnapshot {
        peer: peer.to_owned(),
        site: Some("paris".to_owned()),
        is_critical: false,
        path: (state == LinkState::Up).then(|| ("direct", String::new())),
        smoothed_rtt: Some(Duration::from_millis(10)),
        is_degraded: peer == "db3",
        baseline: Some(Duration::from_millis(9)),
        step: Duration::from_millis(2),
        jitter: [Duration::from_millis(3), Duration::from_millis(4)],
        variation: Some([Duration::from_micros(50), Duration::from_millis(3)]),
        counters: LinkCounters::default(),
        state,
        path_mtu: 1_420,
        since: UnixTime::from_secs(1_795_000_000),
        last_handshake: (state == LinkState::Up).then(|| UnixTime::from_secs(1_795_000_060)),
        handshakes: 3,
        pq: Some("hybrid"),
        pq_keys: 2,
        received: Traffic { packets: 10, bytes: 1_000 },
        sent: Traffic { packets: 20, bytes: 2_000 },
    }
}

/// One delay of 60 µs, and one of a minute.
fn delays() -> DelayHistogram {
    let mut delays = DelayHistogram::default();
    [60, 60_000_000].map(Duration::from_micros).into_iter().for_each(|delay| delays.record(delay));
    delays
}

fn target((target, up, in_use): (&str, Option<bool>, bool)) -> ForwardTargetSnapshot {
    let mut connects = DelayHistogram::default();
    connects.record(Duration::from_millis(2));
    let target = target.to_owned();
    ForwardTargetSnapshot { target, up, in_use, open: 2, made: 9, failed: 1, bytes: [100, 200], connects }
}

fn snapshot() -> Snapshot {
    Snapshot {
        version: "0.1.0".to_owned(),
        protocol_version: 1,
        node: "web1".to_owned(),
        mesh: "example".to_owned(),
        started: UnixTime::from_secs(1_794_000_000),
        certificate_not_after: UnixTime::from_secs(1_797_000_000),
        members: 3,
        received: Traffic { packets: 1, bytes: 100 },
        sent: Traffic { packets: 2, bytes: 200 },
        relayed: Traffic { packets: 3, bytes: 900 },
        drops: [0; DropReason::ALL.len()],
        stages: vec![("tun_rx", DelayHistogram::default()), ("udp_rx", delays())],
        probe_lag: delays(),
        forwards: vec![ForwardSnapshot {
            name: "orders".to_owned(),
            refused: 3,
            targets: [("db1:3306", Some(true), true), ("db2:3306", None, false)].map(target).into(),
        }],
        gateways: [("gw1", false), ("gw2", true)]
            .map(|(name, in_use)| GatewaySnapshot {
                prefix: "10.20.0.0/16".to_owned(),
                name: name.to_owned(),
                in_use,
                fit: in_use,
            })
            .into(),
        gateway_checks: [("10.30.0.5:3306", Some(false)), ("10.30.0.6", None)]
            .map(|(target, up)| GatewayCheckSnapshot {
                prefix: "10.30.0.0/16".to_owned(),
                target: target.to_owned(),
                up,
            })
            .into(),
        health: 1,
        clock_steps: 2,
        history_bytes: Some(4_096),
        site: Some("gra".to_owned()),
        now: Instant::from_millis(100_000),
        per_link: PerLink::Auto,
        firing: [(Severity::Ticket, 2), (Severity::Page, 0)],
        receivers: vec![ReceiverSnapshot {
            name: "ops".to_owned(),
            health: Health { delivered: 7, ..Health::default() },
        }],
        links: vec![link("db1", LinkState::Up), link("db2", LinkState::Down), link("db3", LinkState::Up)],
    }
}

#[test]
fn a_link_is_told_in_both_formats() {
    let open = render(snapshot(), Format::OpenMetrics);
    assert!(open.ends_with("# EOF\n"));
    for line in [
        "# TYPE meshd_link_data_bytes counter",
        "meshd_link_data_bytes_total{peer=\"db1\",site=\"gra\",peer_site=\"paris\",direction=\"received\"} 1000",
        "# TYPE meshd_build info",
        "meshd_build_info{version=\"0.1.0\",protocol=\"1\"} 1",
        "meshd_link_up{peer=\"db1\",site=\"gra\",peer_site=\"paris\"} 1.0",
        "meshd_link_up{peer=\"db2\",site=\"gra\",peer_site=\"paris\"} 0.0",
        "# UNIT meshd_link_path_mtu_bytes bytes",
        "meshd_link_path_mtu_bytes{peer=\"db1\",site=\"gra\",peer_site=\"paris\"} 1420.0",
        "meshd_link_state_info{peer=\"db3\",site=\"gra\",peer_site=\"paris\",state=\"degraded\"} 1",
        "meshd_link_baseline_rtt_seconds{peer=\"db1\",site=\"gra\",peer_site=\"paris\"} 0.009",
        "meshd_link_latency_step_seconds{peer=\"db1\",site=\"gra\",peer_site=\"paris\"} 0.002",
        "meshd_link_jitter_seconds{peer=\"db1\",site=\"gra\",peer_site=\"paris\",direction=\"forward\"} 0.003",
        "meshd_link_owd_variation_seconds{peer=\"db1\",site=\"gra\",peer_site=\"paris\",direction=\"reverse\"} 0.003",
        "meshd_clock_steps_total 2",
        "# TYPE meshd_host_delay_seconds histogram",
        "meshd_host_delay_seconds_bucket{le=\"0.0001\",stage=\"udp_rx\"} 1",
        "meshd_host_delay_seconds_bucket{le=\"6.5536\",stage=\"udp_rx\"} 1",
        "meshd_host_delay_seconds_bucket{le=\"+Inf\",stage=\"udp_rx\"} 2",
        "meshd_host_delay_seconds_count{stage=\"tun_rx\"} 0",
        "meshd_probe_lag_seconds_count 2",
        "meshd_probe_lag_seconds_sum 60.00006",
        "meshd_observer_unwell 1.0",
        "meshd_history_bytes 4096.0",
        "meshd_members 3.0",
        "meshd_alerts_firing{severity=\"ticket\"} 2.0",
        "meshd_alert_deliveries_total{receiver=\"ops\"} 7",
        "# TYPE meshd_forward_bytes counter",
        "meshd_forward_connections{forward=\"orders\",target=\"db1:3306\"} 2.0",
        "meshd_forward_connections_made_total{forward=\"orders\",target=\"db1:3306\"} 9",
        "meshd_forward_connect_failures_total{forward=\"orders\",target=\"db2:3306\"} 1",
        "meshd_forward_refused_connections_total{forward=\"orders\"} 3",
        "meshd_forward_bytes_total{forward=\"orders\",target=\"db1:3306\",direction=\"to_client\"} 200",
        "meshd_forward_connect_seconds_sum{forward=\"orders\",target=\"db1:3306\"} 0.002",
        "meshd_forward_target_in_use{forward=\"orders\",target=\"db2:3306\"} 0.0",
        "meshd_forward_target_up{forward=\"orders\",target=\"db1:3306\"} 1.0",
        "meshd_gateway_in_use{prefix=\"10.20.0.0/16\",gateway=\"gw2\"} 1.0",
        "meshd_gateway_fit{prefix=\"10.20.0.0/16\",gateway=\"gw1\"} 0.0",
        "meshd_gateway_check_up{prefix=\"10.30.0.0/16\",target=\"10.30.0.5:3306\"} 0.0",
    ] {
        assert!(open.lines().any(|found| found == line), "{line} in {open}");
    }
    assert!(!open.contains("meshd_forward_target_up{forward=\"orders\",target=\"db2:3306\"}"), "nobody looked yet");
    assert!(!open.contains("target=\"10.30.0.6\""), "nor here");
    let plain = render(snapshot(), Format::Plain);
    for line in ["# TYPE meshd_link_data_bytes_total counter", "# TYPE meshd_build_info gauge"] {
        assert!(plain.lines().any(|found| found == line), "{line} in {plain}");
    }
    assert!(!plain.contains("# EOF") && !plain.contains("# UNIT") && !plain.contains(" info\n"), "{plain}");
}

#[test]
fn who_names_open_metrics_gets_it() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
    for accept in [None, Some("*/*"), Some("text/plain"), Some("application/openmetrics-text;q=0.0")] {
        assert_eq!(Format::accepted(accept), Format::Plain);
    }
}

/// A family as a reader sees it: its kind, its unit, and its samples by name and labels.
#[derive(Debug, Default)]
struct Read {
    kind: String,
    unit: Option<String>,
    samples: BTreeMap<String, f64>,
}

/// Reads OpenMetrics as its specification says, and refuses everything that it does not allow.
fn read(text: &str) -> BTreeMap<String, Read> {
    let mut families: BTreeMap<String, Read> = BTreeMap::new();
    let mut current = String::new();
    let lines: Vec<&str> = text.strip_suffix("# EOF\n").expect("it ends with EOF").lines().collect();
    for line in lines {
        assert!(!line.is_empty() && line.trim() == line, "`{line}`");
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let (kind, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
            assert!(
                name.starts_with("meshd_")
                    && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
            );
            if name != current {
                assert!(!families.contains_key(name), "{name} begins twice");
                current = name.to_owned();
            }
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.samples.is_empty(), "{name}: what it is comes before its samples");
            match kind {
                "HELP" => assert!(!rest.is_empty(), "{name} says what it is"),
                "TYPE" => family.kind = rest.to_owned(),
                "UNIT" => {
                    assert!(name.ends_with(&format!("_{rest}")), "{name} ends with its unit");
                    family.unit = Some(rest.to_owned());
                }
                _ => panic!("`{line}`"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(value.is_finite(), "{line}");
        let (name, labels) =
            series.split_once('{').map_or((series, ""), |(name, rest)| (name, rest.strip_suffix('}').unwrap()));
        let family = families.get_mut(&current).unwrap_or_else(|| panic!("{line} belongs to no family"));
        let suffix = name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{name} is not of {current}"));
        let fits = match family.kind.as_str() {
            "counter" => suffix == "_total",
            "gauge" => suffix.is_empty(),
            "info" => suffix == "_info" && value == 1.0,
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            kind => panic!("{current} is of the unknown kind {kind}"),
        };
        assert!(fits && (family.kind == "gauge" || value >= 0.0), "{line}");
        let mut names = BTreeSet::new();
        for label in labels.split("\",").filter(|label| !label.is_empty()) {
            let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(names.insert(name), "{line} has {name} twice");
            assert!(!value.trim_end_matches('"').contains('"'), "{line}");
        }
        assert_eq!(names.contains("le"), suffix == "_bucket", "{line}");
        assert!(family.samples.insert(series.to_owned(), value).is_none(), "{line} stands there twice");
    }
    families
}

/// A picture with many links and something of everything.
fn crowd(links: usize, per_link: PerLink) -> Snapshot {
    use crate::control::measurement::{Direction, Measurement, Sample};
    let mut crowd = snapshot();
    crowd.per_link = per_link;
    crowd.links = (0..links)
        .map(|number| {
            let state = [LinkState::Up, LinkState::Suspect, LinkState::Down][usize::from(number == 7) * 2];
            let mut link = link(&format!("n{number:04}"), state);
            link.smoothed_rtt = Some(Duration::from_micros(200 + number as u64));
            link.is_critical = number == 0;
            for second in 0..60u64 {
                let sent = Instant::from_millis(second * 1_000);
                let rtt = Duration::from_micros(100 + second * second * 100);
                let measurement = match second % 10 {
                    9 => Measurement::Lost { sent, direction: Direction::Forward, in_row: 1 },
                    _ => Measurement::Sample(Sample {
                        sent,
                        path_rtt: rtt,
                        tunnel_rtt: rtt * 2,
                        own_delay: Duration::from_micros(60),
                        peer_delay: Duration::from_micros(70),
                        forward_transit: 0,
                        reverse_transit: 0,
                        late: None,
                    }),
                };
                link.counters.measured(&measurement, Some(Duration::from_millis(10)), sent);
            }
            link
        })
        .collect();
    crowd
}

#[test]
fn every_family_keeps_the_rules_of_open_metrics() {
    let families = read(&render(crowd(3, PerLink::Auto), Format::OpenMetrics));
    assert!(families.len() > 30, "{}", families.len());
    for (name, family) in &families {
        assert!(!family.samples.is_empty(), "{name} has no sample");
        if family.kind == "histogram" {
            assert_eq!(family.unit.as_deref(), Some("seconds"), "{name}");
            let counts = family.samples.iter().filter(|(series, _)| series.contains("_count"));
            for (series, count) in counts {
                let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
                let mut buckets: Vec<(f64, f64)> = family
                    .samples
                    .iter()
                    .filter(|(bucket, _)| bucket.contains("_bucket") && bucket.contains(labels))
                    .map(|(bucket, value)| {
                        let bound = bucket.split_once("le=\"").unwrap().1.split('"').next().unwrap();
                        (if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() }, *value)
                    })
                    .collect();
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert_eq!(buckets.len(), crate::telemetry::DelayHistogram::BOUNDS + 1, "{series}");
                assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{series}: {buckets:?}");
                assert_eq!(buckets.last().unwrap(), &(f64::INFINITY, *count), "{series}");
            }
        }
    }
    let sent = "meshd_link_probes_sent_total{peer=\"n0001\",site=\"gra\",peer_site=\"paris\"}";
    assert_eq!(families["meshd_link_probes_sent"].samples[sent], 60.0);
}

#[test]
fn a_large_mesh_shows_its_worst_and_sums() {
    let shown = |snapshot: &Snapshot| snapshot.shown().len();
    assert_eq!(shown(&crowd(200, PerLink::Auto)), 200);
    assert_eq!(shown(&crowd(201, PerLink::Auto)), 51);
    assert_eq!(shown(&crowd(201, PerLink::All)), 201);
    assert_eq!(shown(&crowd(60, PerLink::Worst)), 51);
    let large = crowd(1_000, PerLink::Auto);
    let peers: Vec<&str> = large.shown().iter().map(|link| link.peer.as_str()).collect();
    assert!(peers.contains(&"n0000"), "the critical one");
    assert!(peers.contains(&"n0007"), "the one that is down");
    assert!(peers.contains(&"n0999") && !peers.contains(&"n0500"), "the longest, not the others");
    let families = read(&render(large, Format::OpenMetrics));
    let sent = "meshd_site_probes_sent_total{site=\"gra\",peer_site=\"paris\"}";
    assert_eq!(families["meshd_site_probes_sent"].samples[sent], 60_000.0);
    let series: usize = families.values().map(|family| family.samples.len()).sum();
    assert!(series < 6_000, "{series} series");
}

/// The names of meshd's metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.match_indices("meshd_").map(|(at, _)| text[at..].chars().take_while(|c| part(*c)).collect()).collect()
}

#[test]
fn the_shipped_rules_and_the_dashboard_name_what_there_is() {
    let families = read(&render(crowd(3, PerLink::Auto), Format::OpenMetrics));
    let series = families.values().flat_map(|family| family.samples.keys());
    let mut there: BTreeSet<String> = series.map(|series| series.split('{').next().unwrap().to_owned()).collect();
    // Text for people names a histogram as a whole; a query of that name finds nothing.
    let whole: BTreeSet<String> = families.keys().cloned().collect();
    for (file, text) in [
        ("alerts.yml", include_str!("../../../examples/prometheus/alerts.yml")),
        ("alerts.test.yml", include_str!("../../../examples/prometheus/alerts.test.yml")),
        ("dashboard.json", include_str!("../../../examples/grafana/dashboard.json")),
        ("monitoring.md", include_str!("../../../docs/monitoring.md")),
    ] {
        if file.ends_with(".md") {
            there.extend(whole.iter().cloned());
        }
        let missing: Vec<String> = names(text).difference(&there).cloned().collect();
        assert!(missing.is_empty(), "{file} names what there is not: {missing:?}");
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../examples/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10 && panels.iter().all(|panel| panel["datasource"]["uid"] == "${datasource}"));
}

#[test]
fn what_a_scrape_costs() {
    for (links, per_link) in [(200, PerLink::All), (1_000, PerLink::Auto), (1_000, PerLink::All)] {
        let snapshot = crowd(links, per_link);
        let copied = std::time::Instant::now();
        let copy = snapshot.clone();
        let (copied, rendered) = (copied.elapsed(), std::time::Instant::now());
        let text = render(copy, Format::OpenMetrics);
        println!(
            "{links} links, {}: copied in {copied:?}, {} bytes in {:?}",
            per_link.name(),
            text.len(),
            rendered.elapsed()
        );
        assert!(text.len() < links * 10_000);
    }
}

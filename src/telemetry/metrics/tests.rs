//! The text of metrics, read back by the rules of its format.

use super::*;
use crate::config::alert::Severity;
use crate::control::probe::LinkState;
use crate::telemetry::alert::Health;
use crate::time::UnixTime;
use crate::wire::DropReason;

fn link(peer: &str, state: LinkState) -> LinkSnapshot {
    LinkSnapshot {
        peer: peer.to_owned(),
        state,
        since: UnixTime::from_secs(1_795_000_000),
        last_handshake: (state == LinkState::Up).then(|| UnixTime::from_secs(1_795_000_060)),
        handshakes: 3,
        received: Traffic { packets: 10, bytes: 1_000 },
        sent: Traffic { packets: 20, bytes: 2_000 },
    }
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
        drops: [0; DropReason::ALL.len()],
        firing: [(Severity::Ticket, 2), (Severity::Page, 0)],
        receivers: vec![ReceiverSnapshot {
            name: "ops".to_owned(),
            health: Health { delivered: 7, ..Health::default() },
        }],
        links: vec![link("db1", LinkState::Up), link("db2", LinkState::Down)],
    }
}

#[test]
fn a_link_is_told_in_both_formats() {
    let open = render(snapshot(), Format::OpenMetrics);
    assert!(open.ends_with("# EOF\n"));
    for line in [
        "# TYPE meshd_link_data_bytes counter",
        "meshd_link_data_bytes_total{peer=\"db1\",direction=\"received\"} 1000",
        "# TYPE meshd_build info",
        "meshd_build_info{version=\"0.1.0\",protocol=\"1\"} 1",
        "meshd_link_up{peer=\"db1\"} 1.0",
        "meshd_link_up{peer=\"db2\"} 0.0",
        "meshd_members 3.0",
        "meshd_alerts_firing{severity=\"ticket\"} 2.0",
        "meshd_alert_deliveries_total{receiver=\"ops\"} 7",
    ] {
        assert!(open.lines().any(|found| found == line), "{line} in {open}");
    }
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

//! What the commands show of a network whose truth is known: one link is slower than the others.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Case;
use crate::lab::{Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[Case { name: "views::commands_tell_the_slow_link", needs: &[], run: slow_link }];

/// One way of the slow link: ten times that of the others, so that no noise of a busy machine turns the order.
const SLOW: Duration = Duration::from_millis(10);

/// ```text
///     a---b           1 ms one way
///      \ :            b..c: 10 ms one way
///       c
/// ```
fn slow_link(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    scene.wan.link("b", "c").delay(SLOW);
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    mesh.admit_offline(all[2], scene.underlay[2])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    the_matrix(mesh, &all)?;
    the_ping(mesh, all[1])?;
    the_cost(mesh, all[1])?;
    the_page(mesh, all[1])
}

fn json(mesh: &Mesh, host: &Host, command: &[&str]) -> Result<Value> {
    let text = mesh.ctl(host).arg("--json").args(command).check()?;
    Ok(serde_json::from_str(&text).expect("JSON on standard output"))
}

/// From the host that has no part in the slow link: both its ends say so.
fn the_matrix(mesh: &Mesh, all: &[&Host]) -> Result<()> {
    let matrix = json(mesh, all[0], &["matrix"])?;
    let names: Vec<&str> =
        matrix["nodes"].as_array().expect("nodes").iter().filter_map(|n| n["name"].as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let rtt = |from: usize, to: usize| matrix["rows"][from]["rtt_seconds"][to].as_f64();
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        let rtt = rtt(from, to).unwrap_or_else(|| panic!("{} says nothing of {}: {matrix}", names[from], names[to]));
        let slow = (from, to) == (1, 2) || (from, to) == (2, 1);
        // The emulator never delivers early; how late it is, is this machine's business.
        assert!(rtt >= if slow { 0.019_9 } else { 0.001_99 }, "{} to {}: {rtt}", names[from], names[to]);
    }
    assert!(rtt(1, 2) > rtt(1, 0) && rtt(2, 1) > rtt(2, 0) && rtt(1, 2) > rtt(0, 1), "{matrix}");
    for row in matrix["rows"].as_array().expect("rows") {
        assert!(row["missing"].is_null() && row["age_seconds"].is_number(), "every node has answered: {row}");
    }
    let sites = json(mesh, all[0], &["matrix", "--by", "site"])?;
    assert_eq!((sites["nodes"].as_u64(), sites["pairs"][0][0]["links"].as_u64()), (Some(3), Some(6)), "{sites}");
    let csv = mesh.ctl(all[0]).args(["matrix", "--csv"]).check()?;
    assert_eq!(csv.lines().count(), 7, "a heading and six links:\n{csv}");
    // Whoever is away keeps the row he gave, with its age.
    mesh.kill(all[2])?;
    mesh.wait_until_seen(&all[..2], all[2], meshd::api::PeerState::Down, LONG)?;
    // What was asked a moment ago is shown again for some seconds.
    let began = Instant::now();
    let matrix = loop {
        let matrix = json(mesh, all[0], &["matrix"])?;
        if matrix["rows"][1]["state"][2] == "down" || began.elapsed() > LONG {
            break matrix;
        }
    };
    let (near, gone) = (&matrix["rows"][1], &matrix["rows"][2]);
    assert_eq!(near["state"][2], "down", "{near}");
    assert!(!gone["missing"].is_null() && gone["age_seconds"].is_number(), "{gone}");
    mesh.start(&all[2..])?;
    mesh.wait_until_all_up(all, LONG)?;
    Ok(())
}

/// Both kinds of ping see the emulated delay, and the tunnel's is not the shorter one by more than noise.
fn the_ping(mesh: &Mesh, from: &Host) -> Result<()> {
    let text = mesh.ctl(from).args(["--json", "ping", "c", "--underlay", "--interval", "50ms"]).check()?;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let last =
        |kind: &str| lines.iter().rfind(|line| line["kind"] == kind).unwrap_or_else(|| panic!("no {kind}:\n{text}"));
    let path = last("summary")["path_p50_seconds"].as_f64().expect("answered");
    let icmp = last("underlay_summary")["rtt_p50_seconds"].as_f64().expect("ICMP is answered here");
    println!("    path {:.2} ms, ICMP {:.2} ms", path * 1e3, icmp * 1e3);
    assert!(path >= 0.02 && icmp >= 0.02, "{text}");
    Ok(())
}

fn the_cost(mesh: &Mesh, from: &Host) -> Result<()> {
    let cost = |to: &str| json(mesh, from, &["dbcost", to, "--queries", "50"]);
    let (near, far) = (cost("a")?, cost("c")?);
    let page = |cost: &Value| cost["page_seconds"].as_f64().expect("a page");
    println!("    50 queries: {:.0} ms near, {:.0} ms far", page(&near) * 1e3, page(&far) * 1e3);
    assert!(page(&near) >= 50.0 * 0.002 && page(&far) >= 50.0 * 0.02 && page(&far) > page(&near), "{near} {far}");
    assert!(far["week_ago"].is_null(), "a week is not made up: {far}");
    Ok(())
}

fn the_page(mesh: &Mesh, from: &Host) -> Result<()> {
    let page = mesh.ctl(from).args(["status", "c"]).check()?;
    // Degraded where too many of its probes were lost while it was away.
    assert!(page.starts_with("c  up") || page.starts_with("c  degraded"), "{page}");
    for part in ["round trip", "loss", "last 24 h", "budget", "events"] {
        assert!(page.contains(part), "{part} is missing:\n{page}");
    }
    // Here is no terminal to draw on, and that is said.
    let top = mesh.ctl(from).arg("top").output()?;
    assert_eq!(top.status.code(), Some(2), "{}", top.stderr);
    assert!(top.stderr.contains("meshctl status --watch"), "{}", top.stderr);
    Ok(())
}

//! The links' past, kept by real daemons: what the network did is in it, and stays in it over a kill; a full disk stops
//! the recording and nothing else.

use std::fs;
use std::path::Path;
use std::time::Duration;

use meshd::api::{Events, History, HistoryPoint};
use meshd::history::{Batch, Reader, Report, Tier, Writer};
use meshd::identity::NodeId;
use meshd::telemetry::{Bucket, Sealed};
use meshd::time::UnixTime;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::wait;
use crate::lab::mesh::Mesh;
use crate::lab::{Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "past::a_step_and_a_cut_are_shown_and_outlive_a_kill", needs: &[], run: step_and_cut },
    Case { name: "past::a_full_disk_stops_the_recording_and_nothing_else", needs: &[], run: full_disk },
];

/// Longer than a half minute and its late answers take to reach the disk on a loaded machine; reached only in failure.
const WRITTEN: Duration = Duration::from_secs(120);

fn history(mesh: &Mesh, host: &Host, step: &str) -> Result<History> {
    let told = mesh.ctl(host).args(["--json", "history", "b", "--since", "50m", "--step", step]).check()?;
    Ok(serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}")))
}

fn events(mesh: &Mesh, host: &Host) -> Result<Vec<String>> {
    let told = mesh.ctl(host).args(["--json", "events"]).check()?;
    let events: Events = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
    Ok(events.events.into_iter().map(|event| event.kind).collect())
}

/// Waits until b answers again, well or badly: after a cut it is degraded for some minutes.
fn answers(mesh: &Mesh, host: &Host) -> Result<()> {
    mesh.wait_for(host, "b answers", LONG, |status| status.peers.iter().any(|peer| peer.state.answers())).map(drop)
}

/// The median round trip of a point with some probes in it.
fn median(point: &HistoryPoint) -> Option<f64> {
    point.path.filter(|_| point.probes_answered >= 5).map(|path| path.p50_seconds)
}

/// ```text
///     a---b           one millisecond each way, then six from a to b, then cut, then healed; then a is killed
/// ```
fn step_and_cut(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, a) = (&scene.mesh, &scene.hosts[0]);
    let near = wait("a quiet link in the history", LONG, || {
        Ok(history(mesh, a, "10s")?.points.iter().filter_map(median).next_back())
    })?;
    assert!((0.002..0.006).contains(&near), "two milliseconds and what a busy machine adds: {near}");
    scene.wan.way("a", "b").delay(Duration::from_millis(6));
    let far = wait("the step", LONG, || {
        Ok(history(mesh, a, "10s")?.points.iter().filter_map(median).find(|median| *median >= 0.007))
    })?;
    assert!(far < 0.012, "seven milliseconds and what a busy machine adds: {far}");
    scene.wan.link("a", "b").cut(true);
    let cut = wait("the cut", LONG, || {
        let down = |point: &HistoryPoint| point.states.down > 0.0 && point.longest_loss_run >= 3;
        Ok(history(mesh, a, "10s")?.points.into_iter().find(down))
    })?;
    assert!(cut.loss.is_some_and(|loss| loss.lost >= 3), "{cut:?}");
    scene.wan.link("a", "b").cut(false);
    answers(mesh, a)?;
    let kinds = events(mesh, a)?;
    let down = kinds.iter().rposition(|kind| kind == "down");
    let up = kinds.iter().rposition(|kind| kind == "up");
    assert!(down.is_some() && up > down, "{kinds:?}");
    let shown = mesh.ctl(a).args(["history", "b", "--since", "10m", "--step", "1m", "--events"]).check()?;
    assert!(shown.contains("FROM (UTC)") && shown.contains("gap") && shown.contains("p50"), "{shown}");
    let csv = mesh.ctl(a).args(["history", "b", "--since", "10m", "--step", "1m", "--export", "csv"]).check()?;
    assert!(csv.lines().count() > 10, "{csv}");
    // What was handed to the disk outlives a kill: the time of the cut among it.
    let file = mesh.state(a).join("history.db");
    let node = history(mesh, a, "1m")?.node_id.parse::<NodeId>().expect("an identifier");
    let until = UnixTime::from_secs(cut.start.0.as_secs() + 3_600);
    let written = wait("the cut on the disk", WRITTEN, || {
        let mut found = Bucket::default();
        let reader = Reader::open(&file, LONG).map_err(|error| crate::lab::error::Error::failed(error.to_string()))?;
        let read = reader.buckets(node, Tier::Minute, UnixTime::EPOCH, until, |_, bucket| found.merge(bucket));
        read.map_err(|error| crate::lab::error::Error::failed(error.to_string()))?;
        Ok(Some(found).filter(|found| found.down_millis > 0 && found.lost() >= 3))
    })?;
    mesh.kill(a)?;
    mesh.start(&[a])?;
    answers(mesh, a)?;
    let after = history(mesh, a, "1m")?;
    assert!(after.total.probes_sent >= written.sent() && after.total.states.down > 0.0, "{:?}", after.total);
    assert!(after.points.iter().any(|point| point.gap && point.path.is_none()), "what was before the mesh is a gap");
    let kinds = events(mesh, a)?;
    assert_eq!(kinds.iter().filter(|kind| *kind == "started").count(), 2, "{kinds:?}");
    assert!(kinds.iter().any(|kind| kind == "down"), "{kinds:?}");
    Ok(())
}

/// The beginning of an hour.
const WALL: UnixTime = UnixTime::from_secs(1_795_392_000);
const NODE: NodeId = NodeId::from_bytes([7; 16]);

fn minute(number: u64) -> Batch {
    let mut bucket = Bucket { up_millis: 60_000, ..Bucket::default() };
    let path = Duration::from_millis(10);
    (0..60).for_each(|_| bucket.answer(path, path, Duration::ZERO, Duration::ZERO));
    let sealed = Sealed { node: NODE, name: "b".into(), minute: at(number), bucket };
    Batch { buckets: vec![sealed], events: Vec::new() }
}

fn at(number: u64) -> UnixTime {
    WALL + Duration::from_secs(number * 60)
}

/// A file system of two megabytes that fills up under the history, and gets room again.
fn full_disk(lab: &Lab) -> Result<()> {
    let directory = lab.dir().join("small");
    fs::create_dir_all(&directory)?;
    // A thread of its own, because its mounts are to be its own too; the writer's thread inherits them.
    std::thread::scope(|scope| scope.spawn(|| on_small_disk(&directory)).join().expect("it ended"))
}

fn on_small_disk(directory: &Path) -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("mounts of one's own")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=2m")).context("a small file system")?;
    let file = directory.join("history.db");
    let writer = Writer::start(&file, 1 << 30, WALL)?;
    let mut next = 0;
    let mut until = |what: &str, wanted: &dyn Fn(&Report) -> bool| -> Result<u64> {
        wait(what, LONG, || {
            // Never waits, whatever the disk does; a batch that is not taken would be kept by whoever offers it.
            if writer.offer(minute(next), at(next)).is_ok() {
                next += 1;
            }
            Ok(wanted(&writer.report()).then_some(next))
        })
    };
    until("the first minutes", &|report| report.written.is_some_and(|written| written >= at(3)))?;
    // As much as there is room for.
    let mut chunk = vec![0x5a; 64 << 10];
    let filler = directory.join("filler");
    let mut filled = fs::File::create(&filler)?;
    while !chunk.is_empty() {
        match std::io::Write::write_all(&mut filled, &chunk) {
            Ok(()) => {}
            Err(_) => chunk.truncate(chunk.len() / 2),
        }
    }
    let full = until("a full disk", &|report| report.failing.is_some())?;
    let report = writer.report();
    assert!(report.failing.as_deref().is_some_and(|why| why.contains("no room")), "{report:?}");
    // Longer than the backlog is.
    let lost = until("minutes that are given up", &|report| report.lost_minutes >= 5)?;
    assert!(lost > full);
    drop(filled);
    fs::remove_file(&filler)?;
    let again = until("room again", &|report| report.failing.is_none())?;
    let report = writer.report();
    assert!(report.set_aside.is_empty(), "a full disk damages nothing: {report:?}");
    assert!(writer.stop(minute(again), at(again)));
    let mut found = std::collections::BTreeMap::new();
    let reader = Reader::open(&file, LONG).expect("readable");
    let visit = |at: UnixTime, bucket: &Bucket| *found.entry(at.as_secs()).or_insert(0) += bucket.answered;
    reader.buckets(NODE, Tier::Minute, WALL, at(again + 10), visit).expect("readable");
    assert!(found.values().all(|answered| *answered == 60), "{found:?}");
    let missing = (0..again).filter(|number| !found.contains_key(&at(*number).as_secs())).count() as u64;
    assert_eq!(missing, report.lost_minutes, "what was given up is a gap, and counted");
    assert!(found.contains_key(&WALL.as_secs()) && found.contains_key(&at(again - 1).as_secs()));
    Ok(())
}

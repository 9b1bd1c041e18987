//! Restarts, planned and not: the device and every connection outlive the program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::{Flow, Host, Lab, Proc, Result, place};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "restart::connections_outlive_restarts", needs: &[], run: connections },
    Case { name: "restart::a_successor_that_refuses_changes_nothing", needs: &[], run: refused },
    Case { name: "restart::a_new_program_and_back", needs: &[], run: upgrade_and_back },
    Case { name: "restart::a_crash_keeps_the_device_and_connections", needs: &[], run: crash },
];

/// Restarts of each node, one after the other.
const ROUNDS: usize = 3;

/// How often it is looked whether something listens.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// The device: its number in the kernel, which a new one of the same name would not have, and its routes.
pub fn device(host: &Host) -> Result<(String, String)> {
    let link = host.command("ip").args(["-oneline", "link", "show", "dev", "mesh0"]).check()?;
    let index = link.split(':').next().unwrap_or_default().to_owned();
    let routes = ["-4", "-6"].map(|family| host.command("ip").args([family, "route", "show", "dev", "mesh0"]).check());
    let [v4, v6] = routes;
    Ok((index, v4? + &v6?))
}

/// Returns what the kernel tells of the device's addresses and routes while `work` is done.
pub fn changes_during(host: &Host, work: impl FnOnce() -> Result<()>) -> Result<String> {
    let monitor = host.command("ip").args(["monitor", "route", "address"]).spawn()?;
    // It listens once it tells of a change that is made here for it; another one comes after all that is of interest.
    while !monitor.stdout().contains("198.51.100.7") {
        assert!(monitor.is_running(), "{}", monitor.stderr());
        for what in ["add", "del"] {
            host.command("ip").args(["route", what, "198.51.100.7/32", "dev", "lo"]).check()?;
        }
        thread::sleep(LOOK_PAUSE);
    }
    work()?;
    for what in ["add", "del"] {
        host.command("ip").args(["route", what, "198.51.100.8/32", "dev", "lo"]).check()?;
    }
    monitor.wait_for_output("198.51.100.8", LONG)?;
    let told = monitor.stdout();
    let ours = told.lines().filter(|line| line.contains("mesh0"));
    Ok(ours.collect::<Vec<_>>().join("\n"))
}

/// Exchanges something over a connection again and again until told to stop. Returns how often, and the longest exchange.
fn talk(mut flow: Flow, until: &AtomicBool) -> Result<(u32, Duration)> {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !until.load(Ordering::Relaxed) {
        let began = Instant::now();
        flow.exchange(b"a query")?;
        longest = longest.max(began.elapsed());
        count += 1;
    }
    Ok((count, longest))
}

/// Restarts a host's daemon as an operator does, and returns what was told.
fn restart(scene: &Scene, host: &Host) -> Result<Value> {
    let told = scene.mesh.ctl(host).args(["--json", "restart"]).check()?;
    serde_json::from_str(&told).context(told)
}

/// How often a host's daemon was restarted in its process.
fn restarts(scene: &Scene, host: &Host) -> Result<Option<u64>> {
    let told = scene.mesh.ctl(host).args(["--json", "version"]).check()?;
    let version: Value = serde_json::from_str(&told).context(&told)?;
    Ok(version["daemon"]["restarts"].as_u64())
}

/// ```text
///     a---b           connections in both directions, in use all the time; both restarted in turns
/// ```
fn connections(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let before = [device(all[0])?, device(all[1])?];
    let pids = [mesh.daemon(all[0])?.pid(), mesh.daemon(all[1])?.pid()];
    let over = Arc::new(AtomicBool::new(false));
    let flows = [scene.flow(0, 1)?, scene.flow(1, 0)?];
    let talks = flows.map(|flow| {
        let over = Arc::clone(&over);
        thread::spawn(move || talk(flow, &over))
    });
    let restarted: Result<()> = (1..=ROUNDS).try_for_each(|round| {
        for host in &all {
            let changes = changes_during(host, || {
                let told = restart(&scene, host)?;
                assert_eq!(
                    (told["restarts"].as_u64(), told["links"].as_u64()),
                    (Some(round as u64), Some(1)),
                    "{told}"
                );
                Ok(())
            })?;
            assert_eq!(changes, "", "no address or route of the device was touched");
        }
        Ok(())
    });
    over.store(true, Ordering::Relaxed);
    for talk in talks {
        let (count, longest) = talk.join().expect("the thread ends")?;
        println!("    {count} exchanges, the longest {longest:.0?}, over {} restarts", 2 * ROUNDS);
        assert!(count > 0);
    }
    restarted?;
    for (number, host) in all.iter().enumerate() {
        assert_eq!(device(host)?, before[number]);
        let daemon = mesh.daemon(host)?;
        assert!(daemon.is_running() && daemon.pid() == pids[number]);
        assert_eq!(restarts(&scene, host)?, Some(ROUNDS as u64));
    }
    scene.check_every_pair(&all)?;
    // A stop is a stop: nothing keeps the device.
    mesh.stop(&all)?;
    assert!(!all[0].command("ip").args(["link", "show", "dev", "mesh0"]).output()?.status.success());
    Ok(())
}

/// ```text
///     a---b           b's configuration is bad; b's daemon is asked to restart
/// ```
fn refused(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut flow = scene.flow(0, 1)?;
    let before = device(all[1])?;
    let path = mesh.config(all[1]);
    let good = fs::read(&path).context(path.display())?;
    fs::write(&path, [&good[..], b"\nnonsense = 1\n"].concat()).context(path.display())?;
    // It finds the daemon all the same, and leaves it to the next program to read that.
    let asked = mesh.ctl(all[1]).arg("restart").output()?;
    assert!(!asked.status.success(), "{asked:?}");
    assert!(asked.stderr.contains("everything goes on as it was") && asked.stderr.contains("nonsense"), "{asked:?}");
    fs::write(&path, &good).context(path.display())?;
    assert_eq!((device(all[1])?, restarts(&scene, all[1])?), (before, Some(0)));
    flow.exchange(b"as before")
}

/// Puts a program where another one is or was, in one step, as packages do.
pub fn place_program(at: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = at.with_extension("new");
    fs::write(&fresh, bytes).context(fresh.display())?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).context(fresh.display())?;
    fs::File::open(&fresh).and_then(|file| file.sync_all()).context(fresh.display())?;
    fs::rename(&fresh, at).context(at.display())
}

/// ```text
///     a---b           b's program is replaced by one that does not work, by another one, and again
/// ```
fn upgrade_and_back(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    let binary = place::binary("meshd")?;
    let bytes = fs::read(&binary).context(binary.display())?;
    let program = all[1].dir().join("meshd");
    place_program(&program, &bytes)?;
    let daemon: Proc = all[1].command(&program).arg("--config").arg(mesh.config(all[1])).spawn()?;
    daemon.wait_for_output(" is up", LONG)?;
    mesh.wait_until_all_up(&all, LONG)?;
    let mut flow = scene.flow(0, 1)?;
    let before = device(all[1])?;
    let named = fs::canonicalize(&program).context(program.display())?;
    let running = || fs::read_link(format!("/proc/{}/exe", daemon.pid())).context("what runs");
    // One that knows nothing of taking over, as one from before there was such a thing.
    place_program(&program, b"#!/bin/sh\necho 'error: unexpected argument' >&2\nexit 2\n")?;
    let asked = mesh.ctl(all[1]).arg("restart").output()?;
    assert!(!asked.status.success() && asked.stderr.contains("unexpected argument"), "{asked:?}");
    assert_eq!(restarts(&scene, all[1])?, Some(0));
    flow.exchange(b"as before")?;
    for round in 1..=2 {
        place_program(&program, &bytes)?;
        assert!(running()?.to_string_lossy().ends_with("(deleted)"), "the old file is gone from the directory");
        restart(&scene, all[1])?;
        assert_eq!(running()?, named);
        assert_eq!((device(all[1])?, restarts(&scene, all[1])?), (before.clone(), Some(round)));
        flow.exchange(b"as before")?;
    }
    daemon.stop(LONG).map(drop)
}

/// ```text
///     a---b           b's daemon is killed and started again; and then somebody else has a device of that name
/// ```
fn crash(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut flows = [scene.flow(0, 1)?, scene.flow(1, 0)?];
    let before = device(all[1])?;
    for _ in 0..ROUNDS {
        let changes = changes_during(all[1], || {
            mesh.kill(all[1])?;
            mesh.start(&all[1..])?;
            flows.iter_mut().try_for_each(|flow| flow.exchange(b"as before"))
        })?;
        assert_eq!(changes, "", "no address or route of the device was touched");
        assert_eq!(device(all[1])?, before);
        assert!(mesh.daemon(all[1])?.stderr().contains("taken over from a daemon that did not stop"));
    }
    // What a killed daemon left goes when it is told to, and not while a daemon uses it.
    let cleanup = || all[1].command(place::binary("meshd")?).arg("--cleanup").check();
    let has_device = || all[1].command("ip").args(["link", "show", "dev", "mesh0"]).output();
    mesh.kill(all[1])?;
    cleanup()?;
    assert!(!has_device()?.status.success());
    mesh.start(&all[1..])?;
    flows.iter_mut().try_for_each(|flow| flow.exchange(b"as before"))?;
    cleanup()?;
    assert!(has_device()?.status.success(), "it is in use");
    // A stop is a stop, also after a crash.
    mesh.stop(&all[1..])?;
    assert!(!has_device()?.status.success());
    // What somebody else made is not taken, although it would do.
    all[1].command("ip").args(["tuntap", "add", "dev", "mesh0", "mode", "tun", "multi_queue", "vnet_hdr"]).check()?;
    let stranger = device(all[1])?;
    let refused = mesh.meshd(all[1]).output()?;
    assert!(!refused.status.success() && refused.stderr.contains("mesh0 is in use"), "{refused:?}");
    assert_eq!(device(all[1])?, stranger);
    Ok(())
}

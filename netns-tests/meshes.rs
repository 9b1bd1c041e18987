//! Whole meshes of real daemons: they form from one bootstrap, grow while they run, and outlive any of their nodes.

use std::collections::BTreeSet;
use std::time::Instant;
use std::{fs, io};

use meshd::api::PeerState;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::mesh::brief;
use crate::lab::{Lab, Result, footprint};
use crate::scene::{DELAY, LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "meshes::five_nodes_form_from_one_bootstrap", needs: &[], run: five_nodes },
    Case { name: "meshes::a_node_joins_a_running_mesh", needs: &[], run: joins_while_running },
    Case { name: "meshes::the_bootstrap_is_not_needed_any_more", needs: &[], run: bootstrap_dies },
    Case { name: "meshes::a_killed_node_comes_back_and_connections_live", needs: &[], run: killed_and_back },
    Case { name: "meshes::nodes_of_one_two_and_four_threads", needs: &[], run: several_threads },
    Case { name: "meshes::stop_and_cleanup_leave_nothing", needs: &[], run: stop_and_cleanup },
];

/// ```text
///        a            a: authority and only bootstrap
///     / / \ \         b, d: joined over the network
///    b-c---d-e        c, e: signed offline
/// ```
fn five_nodes(lab: &Lab) -> Result<()> {
    let names = ["a", "b", "c", "d", "e"];
    let scene = Scene::founded(lab, &names)?;
    scene.mesh.start(&[&scene.hosts[0]])?;
    for number in [1, 3] {
        scene.mesh.join(&scene.hosts[number], scene.underlay[number])?;
    }
    for number in [2, 4] {
        scene.mesh.admit_offline(&scene.hosts[number], scene.underlay[number])?;
    }
    let all = scene.all();
    let began = Instant::now();
    scene.mesh.start(&all[1..])?;
    scene.mesh.wait_until_all_up(&all, LONG)?;
    println!("    five nodes: all 20 links up and measured {:.2?} after four daemons were started", began.elapsed());
    scene.check_every_pair(&all)?;
    let mut addresses = BTreeSet::new();
    for host in &all {
        let status = scene.mesh.status(host)?;
        let shown = brief(&status);
        assert_eq!((status.counts.peers, status.counts.up, status.mesh.members), (4, 4, 5), "{}: {shown}", host.name());
        assert!(status.problems.is_empty(), "{}: {shown}", host.name());
        for peer in &status.peers {
            let link = peer.link.as_ref().expect("every link is measured");
            // The emulator never delivers early, so less than both ways' delay is no measurement.
            assert!(link.rtt_min_seconds >= 2.0 * DELAY.as_secs_f64(), "{} to {}: {link:?}", host.name(), peer.name);
        }
        assert_eq!((status.node.address_v4, status.node.address_v6), scene.mesh.overlay(host));
        addresses.insert(status.node.address_v4);
    }
    assert_eq!(addresses.len(), names.len(), "no address is given out twice");
    Ok(())
}

/// ```text
///    a---b            c: invited at b's request to a, joins while a and b talk
///     \ /             d: signed offline, started while all others run
///     c,d
/// ```
fn joins_while_running(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c", "d"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    mesh.start(&all[1..2])?;
    mesh.wait_until_all_up(&all[..2], LONG)?;
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before")?;
    mesh.join(all[2], scene.underlay[2])?;
    let began = Instant::now();
    mesh.start(&all[2..3])?;
    mesh.wait_until_all_up(&all[..3], LONG)?;
    println!("    joined over the network: up with all {:.2?} after its daemon was started", began.elapsed());
    flow.exchange(b"while c came")?;
    mesh.admit_offline(all[3], scene.underlay[3])?;
    let began = Instant::now();
    mesh.start(&all[3..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    println!("    signed offline: up with all {:.2?} after its daemon was started", began.elapsed());
    flow.exchange(b"while d came")?;
    scene.check_every_pair(&all)
}

/// ```text
///       (a)           a: the only bootstrap; killed, and stays dead
///     b--c--d         all stopped and started again without it
/// ```
fn bootstrap_dies(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c", "d"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let rest = &all[1..];
    let mut flow = scene.flow(1, 2)?;
    mesh.kill(all[0])?;
    flow.exchange(b"the bootstrap is dead")?;
    let took = mesh.wait_until_seen(rest, all[0], PeerState::Down, LONG)?;
    println!("    the others show the dead bootstrap as down after {took:.2?}");
    scene.check_every_pair(rest)?;
    let began = Instant::now();
    mesh.restart(rest)?;
    mesh.wait_until_all_up(rest, LONG)?;
    println!("    all others stopped and up again without it after {:.2?}", began.elapsed());
    flow.exchange(b"all daemons are new")?;
    scene.check_every_pair(rest)?;
    for host in rest {
        let status = mesh.status(host)?;
        assert_eq!((status.counts.peers, status.counts.up), (3, 2), "{}: {}", host.name(), brief(&status));
    }
    // And back it comes, with nobody told.
    mesh.start(&all[..1])?;
    mesh.wait_until_all_up(&all, LONG)?;
    scene.check_every_pair(&all)
}

/// ```text
///     a---b           c: killed by SIGKILL, started again
///      \ /            TCP a-b: never notices
///       c             TCP a-c: retransmits until c is back
/// ```
fn killed_and_back(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let before = footprint(all[2])?;
    let (mut bystanders, mut struck) = (scene.flow(0, 1)?, scene.flow(0, 2)?);
    struck.exchange(b"before")?;
    mesh.kill(all[2])?;
    bystanders.exchange(b"c is dead")?;
    // Given to the kernel now, delivered when there is a c again.
    struck.send(b"to the dead")?;
    mesh.wait_until_seen(&all[..2], all[2], PeerState::Down, LONG)?;
    bystanders.exchange(b"c is down")?;
    let began = Instant::now();
    mesh.start(&all[2..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let up = began.elapsed();
    struck.receive(b"to the dead")?;
    println!(
        "    killed node: links up {up:.2?} after its start, its TCP connection goes on after {:.2?}",
        began.elapsed()
    );
    struck.exchange(b"after")?;
    bystanders.exchange(b"after")?;
    // The start found what the killed one left, and made of it what a first start makes.
    assert_eq!(footprint(all[2])?, before);
    assert!(mesh.status(all[2])?.problems.is_empty());
    // Killed before anybody could notice: the others still hold sessions with its last life.
    mesh.kill(all[2])?;
    mesh.start(&all[2..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    struck.exchange(b"after the second time")?;
    scene.check_every_pair(&all)
}

/// ```text
///     a---b           a: one thread; b: two, restarted in the middle; c: four
///      \ /
///       c
/// ```
fn several_threads(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    for (number, shards) in [(1, 2), (2, 4)] {
        mesh.admit_offline(all[number], scene.underlay[number])?;
        mesh.change_config(all[number], |config| config.dataplane.shards = shards)?;
    }
    mesh.start(&all)?;
    mesh.wait_until_all_up(&all, LONG)?;
    scene.check_every_pair(&all)?;
    for (number, host) in (0..).zip(&all) {
        let daemon = mesh.daemon(host)?;
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).context("a daemon's threads")?;
        let name = |entry: io::Result<fs::DirEntry>| fs::read_to_string(entry?.path().join("comm"));
        let names: Vec<String> = threads.map(name).collect::<io::Result<_>>().context("a thread's name")?;
        let moving = names.iter().filter(|name| name.starts_with("mesh-shard")).count();
        // Without the right to sort packets by a program, one thread moves them all, and the log says so.
        let alone = daemon.stderr().contains("one thread moves all packets");
        assert_eq!(moving, if alone { 1 } else { 1 << number }, "{}: {names:?}", host.name());
        if alone {
            println!("    {}: the kernel sorts no packets here, so one thread moves them all", host.name());
        }
    }
    let mut flows = [scene.flow(0, 1)?, scene.flow(1, 2)?, scene.flow(2, 1)?, scene.flow(2, 0)?];
    flows.iter_mut().try_for_each(|flow| flow.exchange(&[1; 300_000]))?;
    mesh.restart(&all[1..2])?;
    mesh.wait_until_all_up(&all, LONG)?;
    flows.iter_mut().try_for_each(|flow| flow.exchange(&[2; 300_000]))?;
    scene.check_every_pair(&all)?;
    for host in &all {
        let status = mesh.status(host)?;
        assert!(status.problems.is_empty(), "{}: {}", host.name(), brief(&status));
    }
    Ok(())
}

/// ```text
///     a---b           b: stopped as planned, cleaned up; killed, cleaned up
/// ```
fn stop_and_cleanup(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let untouched = footprint(all[1])?;
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    assert_eq!(footprint(all[1])?, untouched, "joining changes files only");
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let running = footprint(all[1])?;
    assert!(running.iter().any(|line| line.starts_with("dev: mesh0")), "{running:#?}");
    let ended = mesh.stop(&all[1..])?;
    assert!(ended[0].success(), "{:?}", ended[0]);
    let stopped = footprint(all[1])?;
    assert!(!stopped.iter().any(|line| line.contains("mesh0")), "{stopped:#?}");
    assert!(untouched.is_subset(&stopped), "what others made stays");
    assert_ne!(stopped, untouched, "the covers stay while the mesh is configured");
    let took = mesh.wait_until_seen(&all[..1], all[1], PeerState::Down, LONG)?;
    println!("    a planned stop shows as down after {took:.2?}");
    mesh.meshd(all[1]).arg("--cleanup").check()?;
    assert_eq!(footprint(all[1])?, untouched);
    // Also after a crash, and twice is as good as once.
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    assert_eq!(footprint(all[1])?, running);
    mesh.kill(all[1])?;
    for _ in 0..2 {
        mesh.meshd(all[1]).arg("--cleanup").check()?;
        assert_eq!(footprint(all[1])?, untouched);
    }
    // Started after the cleanup it is a node as before.
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    scene.check_every_pair(&all)
}

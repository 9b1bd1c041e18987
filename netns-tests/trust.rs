//! One authority after another: the key is lost, another one is made, and the mesh moves over to it while everything flows.

use std::fs;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::mesh::brief;
use crate::lab::{Error, Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "trust::a_lost_authority_is_replaced_and_nothing_notices", needs: &[], run: replaced }];

/// Pings of each link while the authority is exchanged, 10 ms apart.
const PINGS: u64 = 600;

/// Lays a list of authorities over a host's configuration, as a configuration management does.
fn trust(mesh: &Mesh, host: &Host, text: &str) -> Result<()> {
    let directory = mesh.directory(host).join("conf.d");
    fs::create_dir_all(&directory).context(directory.display())?;
    fs::write(directory.join("authorities.toml"), text).context("conf.d/authorities.toml")
}

/// ```text
///     a---b           the authority's key is on no node, and gone; every link is pinged, three connections stand
///      \ /            another one is made at a, trusted by all, certifies all, and then is the only one
///       c
/// ```
fn replaced(lab: &Lab) -> Result<()> {
    let scene = Scene::founded_with(lab, &["a", "b", "c"], &["--offline-authority"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    for number in [1, 2] {
        mesh.admit_offline(all[number], scene.underlay[number])?;
    }
    for file in ["authority.key", "authority.ledger"] {
        fs::remove_file(mesh.directory(all[0]).join(file)).context(file)?;
    }
    mesh.start(&all)?;
    mesh.wait_until_all_up(&all, LONG)?;
    // Times of issue are whole seconds, and only a later one makes a certificate newer.
    mesh.wait_for(all[2], "a second's passing", LONG, |status| status.node.uptime_seconds >= 2)?;
    let links = [(0, 1), (1, 2), (2, 0)];
    let mut flows = links.iter().map(|(from, to)| scene.flow(*from, *to)).collect::<Result<Vec<_>>>()?;
    flows.iter_mut().try_for_each(|flow| flow.exchange(b"before"))?;
    let handshakes = |host: &Host| -> Result<Vec<(String, u64)>> {
        let peers = mesh.status(host)?.peers;
        Ok(peers.into_iter().map(|peer| (peer.name, peer.handshakes)).collect())
    };
    let before = all.iter().map(|host| handshakes(host)).collect::<Result<Vec<_>>>()?;
    let ping = |(from, to): &(usize, usize)| {
        let arguments = ["--json", "ping", all[*to].name(), "--interval", "10ms", "--count"];
        mesh.ctl(all[*from]).args(arguments).arg(PINGS.to_string()).spawn()
    };
    let pings = links.iter().map(ping).collect::<Result<Vec<_>>>()?;
    pings.iter().try_for_each(|ping| ping.wait_for_output("reply", LONG).map(drop))?;

    let key = lab.dir().join("new").join("authority.key");
    fs::create_dir(lab.dir().join("new")).context("a directory for the new key")?;
    let list = mesh.ctl(all[0]).args(["authority", "new"]).arg(&key).check()?;
    let certify =
        |more: &[&str]| mesh.ctl(all[0]).args(["authority", "certify", "--authority"]).arg(&key).args(more).output();
    let early = certify(&[])?;
    assert_eq!(early.status.code(), Some(1), "nobody trusts it yet: {early:?}");
    for host in &all {
        trust(mesh, host, &list)?;
        let plan = mesh.ctl(host).arg("plan").check()?;
        assert!(plan.contains("adds 1 authority; 0 links touched, 2 left alone"), "{plan}");
        mesh.ctl(host).arg("reload").check()?;
    }
    let certified = certify(&["--dry-run"])?;
    assert!(certified.stdout.contains("would certify 3 members: a b c"), "{certified:?}");
    // One first: the mesh rests on two authorities now, and says so.
    mesh.ctl(all[0]).args(["authority", "certify", "b", "--authority"]).arg(&key).check()?;
    mesh.wait_for(all[2], "b's new certificate", LONG, |status| {
        status.problems.iter().any(|problem| problem.kind == "authorities")
    })?;
    let new_alone = {
        let list: toml::Table = toml::from_str(&list).context(&list)?;
        let keys = list["mesh"]["authorities"].as_array().map(Vec::as_slice).unwrap_or_default();
        format!("[mesh]\nauthorities = [{}]\n", keys.last().ok_or_else(|| Error::failed("no authority"))?)
    };
    // Who took the former one out now would cut members off: refused, by name.
    trust(mesh, all[1], &new_alone)?;
    let refused = mesh.ctl(all[1]).arg("reload").output()?;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("connected members (a, c)"), "{}", refused.stderr);
    let refused = mesh.ctl(all[1]).arg("plan").output()?;
    assert!(refused.stderr.contains("connected members (a, c)"), "{}", refused.stderr);
    certify(&[])?;
    for host in &all {
        mesh.wait_for(host, "everybody's new certificate", LONG, |status| {
            status.problems.iter().all(|problem| problem.kind != "authorities")
        })?;
    }
    flows.iter_mut().try_for_each(|flow| flow.exchange(b"certified"))?;
    for host in &all {
        trust(mesh, host, &new_alone)?;
        let plan = mesh.ctl(host).arg("plan").check()?;
        assert!(plan.contains("removes 1 authority; 0 links touched, 2 left alone"), "{plan}");
        mesh.ctl(host).arg("reload").check()?;
        let shown = mesh.ctl(host).arg("authority").check()?;
        assert!(shown.trim_end().ends_with("a b c"), "{shown}");
    }
    flows.iter_mut().try_for_each(|flow| flow.exchange(b"the new one alone"))?;
    for (ping, (from, to)) in pings.iter().zip(links) {
        let still = ping.is_running();
        let status = ping.wait(LONG)?;
        assert!(status.success(), "{}", ping.stderr());
        let summary = ping.stdout().lines().last().unwrap_or_default().to_owned();
        let summary: serde_json::Value = serde_json::from_str(&summary).context(summary)?;
        let counts = (summary["sent"].as_u64(), summary["received"].as_u64());
        assert_eq!(counts, (Some(PINGS), Some(PINGS)), "{summary}");
        println!("    {} to {}: {PINGS} pings, none lost (over all of it: {still})", all[from].name(), all[to].name());
    }
    for (host, before) in all.iter().zip(&before) {
        assert_eq!(&handshakes(host)?, before, "{}: the sessions are the same", host.name());
        let status = mesh.status(host)?;
        assert!(status.problems.is_empty(), "{}", brief(&status));
    }
    // It is on disk, not only in memory.
    mesh.restart(&all)?;
    mesh.wait_until_all_up(&all, LONG)?;
    flows.iter_mut().try_for_each(|flow| flow.exchange(b"after a restart"))
}

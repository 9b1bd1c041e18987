//! Out for good: a revoked node is cut off everywhere within seconds and no restart, old file or new token brings its
//! keys back.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use meshd::api::{Members, Status};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::mesh::{brief, peer_state};
use crate::lab::wan::Packet;
use crate::lab::{Capture, Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "revocation::a_revoked_node_stays_out", needs: &[], run: stays_out },
    Case { name: "revocation::by_an_authority_on_no_node", needs: &[], run: by_authority_file },
];

/// Within this time a revoked node is to be cut off from all that can be reached: printed beside what was measured.
const TARGET: Duration = Duration::from_secs(5);

/// Knocks of the revoked node at each survivor, after the revocation.
const KNOCKS: usize = 20;

/// ```text
///     a---b           d is revoked at a
///     | X |           then: all restarted; d's old state put back; b's old state put back;
///     c---d           d's keys presented with a new token, and for a new certificate
/// ```
fn stays_out(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c", "d"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let (survivors, revoked) = (&all[..3], all[3]);
    let (mut among, mut to_revoked) = (scene.flow(0, 1)?, scene.flow(1, 3)?);
    to_revoked.exchange(b"before")?;
    // What everybody knew while d was a member. A stop writes it down.
    mesh.restart(&[all[1], revoked])?;
    mesh.wait_until_all_up(&all, LONG)?;
    for host in [all[1], revoked] {
        copy_files(&mesh.state(host), &host.dir().join("old-state"))?;
    }
    let began = Instant::now();
    let told = mesh.ctl(all[0]).args(["revoke", "d", "--yes"]).check()?;
    assert!(told.starts_with("d ("), "{told}");
    wait_until_forgotten(mesh, survivors, "d")?;
    println!(
        "    no survivor knows the revoked node any more {:.2?} after the command (target: {TARGET:?})",
        began.elapsed()
    );
    knock_in_vain(&scene, lab, survivors, revoked)?;
    among.exchange(b"after")?;
    mesh.wait_for(revoked, "its own revocation", LONG, |status| {
        status.problems.iter().any(|problem| problem.kind == "revoked")
    })?;

    mesh.restart(&all)?;
    mesh.wait_until_all_up(survivors, LONG)?;
    knock_in_vain(&scene, lab, survivors, revoked)?;

    mesh.kill(revoked)?;
    put_back(&revoked.dir().join("old-state"), &mesh.state(revoked))?;
    mesh.start(&[revoked])?;
    knock_in_vain(&scene, lab, survivors, revoked)?;

    // A survivor that forgot hears it again from the others, also where the revoked one speaks to it first.
    mesh.kill(all[1])?;
    mesh.kill(revoked)?;
    put_back(&all[1].dir().join("old-state"), &mesh.state(all[1]))?;
    put_back(&revoked.dir().join("old-state"), &mesh.state(revoked))?;
    let began = Instant::now();
    mesh.start(&[all[1], revoked])?;
    mesh.wait_until_all_up(survivors, LONG)?;
    wait_until_forgotten(mesh, survivors, "d")?;
    println!("    a survivor with its old state has heard of it again {:.2?} after its start", began.elapsed());
    knock_in_vain(&scene, lab, survivors, revoked)?;
    among.exchange(b"after all restarts")?;

    mesh.stop(&[revoked])?;
    refuse_old_keys(&scene, all[0], revoked)?;
    // With new keys it is a new node, and welcome.
    fs::remove_dir_all(mesh.directory(revoked)).context("a host set up anew")?;
    mesh.join(revoked, scene.underlay[3])?;
    mesh.start(&[revoked])?;
    mesh.wait_until_all_up(&all, LONG)?;
    scene.check_every_pair(&all)
}

/// Waits until none of these hosts counts a node among the members.
fn wait_until_forgotten(mesh: &Mesh, hosts: &[&Host], name: &str) -> Result<()> {
    for host in hosts {
        mesh.wait_for(host, &format!("no {name} any more"), LONG, |status| peer_state(status, name).is_none())?;
        let told = mesh.ctl(host).args(["--json", "members"]).check()?;
        let members: Members = serde_json::from_str(&told).context(told)?;
        assert!(members.members.iter().all(|member| member.name != name || member.revoked), "{}", host.name());
    }
    Ok(())
}

/// Lets the revoked node send to all survivors inside the mesh, and checks that nothing of it comes out of their
/// tunnels, nor anything of theirs out of its.
fn knock_in_vain(scene: &Scene, lab: &Lab, survivors: &[&Host], revoked: &Host) -> Result<()> {
    let mesh = &scene.mesh;
    let (outcast, _) = mesh.overlay(revoked);
    let ears: Vec<Capture> = survivors.iter().map(|host| Capture::start(lab, host, "mesh0")).collect::<Result<_>>()?;
    let own_ear = Capture::start(lab, revoked, "mesh0")?;
    let knocker = revoked.enter(|| UdpSocket::bind((outcast, 0))).context("bind on the revoked node")?;
    for _ in 0..KNOCKS {
        for (number, host) in survivors.iter().enumerate() {
            let (address, _) = mesh.overlay(host);
            // The kernel may answer for it: that nobody is there.
            let _ = knocker.send_to(b"let me in", SocketAddr::from((address, 4711)));
            let socket = host.enter(|| UdpSocket::bind((address, 0))).context("bind on a survivor")?;
            let _ = socket.send_to(b"are you there", SocketAddr::from((outcast, 4711)));
            // The others' traffic goes on between two knocks, so the knock before it had its time.
            let other = survivors[(number + 1) % survivors.len()];
            let (to, _) = mesh.overlay(other);
            crate::lab::flow::datagram(host, address.into(), other, to.into(), b"among us")?;
        }
    }
    for (ear, host) in ears.iter().zip(survivors) {
        // Not what the daemon itself says about it, which bears its address, too.
        let heard =
            ear.count(|packet| Packet::parse(packet.ip()).is_some_and(|ip| ip.source == outcast && ip.protocol == 17));
        assert_eq!(heard, 0, "{} still hears the revoked node", host.name());
        assert!(ear.count(|packet| packet.bytes.ends_with(b"among us")) > 0, "the capture sees what passes");
    }
    let heard = own_ear.count(|packet| packet.bytes.ends_with(b"are you there"));
    assert_eq!(heard, 0, "the revoked node still hears the others");
    for host in survivors {
        let status = mesh.status(host)?;
        assert_eq!(peer_state(&status, revoked.name()), None, "{}: {}", host.name(), brief(&status));
    }
    Ok(())
}

/// Checks that keys that were revoked are refused under every name.
fn refuse_old_keys(scene: &Scene, authority: &Host, revoked: &Host) -> Result<()> {
    let mesh = &scene.mesh;
    let directory = mesh.directory(revoked);
    for file in ["meshd.toml", "node.cert"] {
        fs::rename(directory.join(file), directory.join(format!("{file}.old"))).context(file)?;
    }
    let token = mesh.invite(authority, "reborn", &[])?;
    let refusal = mesh.join_command(revoked, scene.underlay[3], &token)?.output()?;
    assert_eq!(refusal.status.code(), Some(1), "{refusal:?}");
    assert!(refusal.stderr.contains("join with new keys"), "{}", refusal.stderr);
    let request = mesh.ctl(revoked).args(["request", "--node", "reborn-again"]).check()?;
    let sign = mesh.ctl(authority).args(["sign", "-", "--authority"]).arg(mesh.authority()).input(request).output()?;
    assert_eq!(sign.status.code(), Some(1), "{sign:?}");
    assert!(sign.stdout.is_empty(), "no certificate is printed");
    mesh.ctl(authority).args(["invite", "--revoke", "reborn"]).check().map(drop)
}

/// Copies the plain files of a directory.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context(to.display())?;
    for entry in fs::read_dir(from).context(from.display())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).context(entry.path().display())?;
        }
    }
    Ok(())
}

/// Makes a directory what it was when it was copied.
fn put_back(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(to).context(to.display())? {
        fs::remove_file(entry?.path()).context("clear the state")?;
    }
    copy_files(from, to)
}

/// ```text
///     a---b---c       the authority's key lies on no node; c is revoked at b with a copy of it
/// ```
fn by_authority_file(lab: &Lab) -> Result<()> {
    let scene = Scene::founded_with(lab, &["a", "b", "c"], &["--offline-authority"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    for number in [1, 2] {
        mesh.admit_offline(all[number], scene.underlay[number])?;
    }
    let stick = lab.dir().join("stick");
    fs::create_dir(&stick)?;
    for file in ["authority.key", "authority.ledger"] {
        fs::rename(mesh.directory(all[0]).join(file), stick.join(file)).context("move the authority to the stick")?;
    }
    mesh.start(&all)?;
    mesh.wait_until_all_up(&all, LONG)?;
    let alone = mesh.ctl(all[0]).args(["revoke", "c", "--yes"]).output()?;
    assert_eq!(alone.status.code(), Some(1), "no node can revoke by itself: {alone:?}");
    assert!(alone.stderr.contains("--authority"), "{}", alone.stderr);
    let began = Instant::now();
    let key = stick.join("authority.key");
    mesh.ctl(all[1]).args(["revoke", "c", "--yes", "--authority"]).arg(&key).check()?;
    wait_until_forgotten(mesh, &all[..2], "c")?;
    println!("    revoked with the authority's file: cut off after {:.2?} (target: {TARGET:?})", began.elapsed());
    let is_told = |status: &Status| status.problems.iter().any(|problem| problem.kind == "revoked");
    mesh.wait_for(all[2], "its own revocation", LONG, is_told)?;
    knock_in_vain(&scene, lab, &all[..2], all[2])?;
    let again = mesh.ctl(all[1]).args(["revoke", "c", "--yes", "--authority"]).arg(&key).output()?;
    assert_eq!(again.status.code(), Some(4), "it is no member any more: {again:?}");
    Ok(())
}

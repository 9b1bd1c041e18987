//! Files that are damaged, daemons that meet: a node starts from whatever is left of what it learned, and never makes
//! itself another identity.

use std::fs::{self, Permissions};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::mesh::{PORT, brief};
use crate::lab::{Lab, Result, footprint};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "state::damaged_files_are_set_aside", needs: &[], run: damaged_files },
    Case { name: "state::a_damaged_identity_is_never_replaced", needs: &[], run: damaged_identity },
    Case { name: "state::a_second_daemon_is_refused", needs: &[], run: second_daemon },
    Case { name: "state::a_taken_port_is_told", needs: &[], run: port_taken },
];

/// A daemon that must refuse to start has this long to say so.
const REFUSAL_LIMIT: Duration = Duration::from_secs(20);

/// A way to damage a file: its name, and the bytes it makes of good ones.
type Damage = (&'static str, fn(&[u8]) -> Vec<u8>);

const FLIPPED: &str = "one bit flipped";

const DAMAGES: [Damage; 5] = [
    ("emptied", |_| Vec::new()),
    ("cut in half", |good| good[..good.len() / 2].to_vec()),
    (FLIPPED, |good| {
        let mut bytes = good.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        bytes
    }),
    ("its end overwritten with zeros", |good| {
        let mut bytes = good.to_vec();
        let half = bytes.len() / 2;
        bytes[half..].fill(0);
        bytes
    }),
    ("random", |good| {
        let mut bytes = vec![0; good.len() + 100];
        ChaCha12Rng::seed_from_u64(5).fill_bytes(&mut bytes);
        bytes
    }),
];

/// Plain files in a directory that end or do not end in what marks those set aside.
fn files(directory: &Path, set_aside: bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).context(directory.display())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The past has its own file and its own way of being set aside: see `past`.
        if name != "lock" && !name.starts_with("history.db") && name.contains(".bad-") == set_aside {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// ```text
///     a---b           every state file of b, and then of a, is damaged between a stop and a start
///      \ /            (a keeps invites, too)
///       c
/// ```
fn damaged_files(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut flow = scene.flow(1, 2)?;
    for number in [1, 0] {
        let host = all[number];
        let state = mesh.state(host);
        for (what, damage) in DAMAGES {
            mesh.stop(&[host])?;
            let damaged = files(&state, false)?;
            assert!(damaged.len() >= 2, "{damaged:?}");
            for path in &damaged {
                let good = fs::read(path).context(path.display())?;
                fs::write(path, damage(&good)).context(path.display())?;
            }
            let before = files(&state, true)?.len();
            mesh.start(&[host])?;
            mesh.wait_until_all_up(&all, LONG)?;
            let status = mesh.status(host)?;
            let name = host.name();
            let complaints: Vec<_> = status.problems.iter().filter(|problem| problem.kind == "state_files").collect();
            for path in &damaged {
                let shown = path.display().to_string();
                assert!(
                    complaints.iter().any(|problem| problem.message.contains(&shown)),
                    "{name}, {what}: {shown} in {}",
                    brief(&status)
                );
            }
            let kept = files(&state, true)?.len() - before;
            assert_eq!(kept, damaged.len(), "{name}, {what}: each is kept for somebody to look at");
            flow.exchange(what.as_bytes())?;
        }
        mesh.restart(&[host])?;
        mesh.wait_until_all_up(&all, LONG)?;
        assert!(mesh.status(host)?.problems.is_empty(), "the new files are good");
    }
    scene.check_every_pair(&all)
}

/// ```text
///     a   b           b's identity.key is damaged in every way; b's daemon must refuse and leave it alone
/// ```
fn damaged_identity(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.stop(&all[1..])?;
    mesh.meshd(all[1]).arg("--cleanup").check()?;
    let untouched = footprint(all[1])?;
    let directory = mesh.directory(all[1]);
    let (identity, certificate) = (directory.join("identity.key"), directory.join("node.cert"));
    let good = fs::read(&identity).context("identity.key")?;
    let good_certificate = fs::read(&certificate).context("node.cert")?;
    let refuses = |what: &str, words: &str| -> Result<()> {
        let found = fs::read(&identity).ok();
        let done = mesh.meshd(all[1]).limit(REFUSAL_LIMIT).output()?;
        assert!(done.status.code().is_some_and(|code| code != 0), "{what}: {done:?}");
        let shown = identity.display().to_string();
        assert!(done.stderr.contains(&shown) && done.stderr.contains(words), "{what}: {}", done.stderr);
        assert_eq!(fs::read(&identity).ok(), found, "{what}: nothing was written");
        assert_eq!(fs::read(&certificate).context("node.cert")?, good_certificate);
        assert_eq!(footprint(all[1])?, untouched, "{what}: nothing is left on the host");
        Ok(())
    };
    for (what, damage) in DAMAGES {
        fs::write(&identity, damage(&good)).context("damage the identity")?;
        refuses(what, "")?;
        // Nor does the command make new keys where there were some.
        let request = mesh.ctl(all[1]).args(["request", "--node", "b"]).output()?;
        // A flipped bit may leave a well-formed file of other keys: what tells is the certificate, which is not read here.
        let is_told = what != FLIPPED;
        assert!(!is_told || (request.status.code() == Some(1) && request.stdout.is_empty()), "{what}: {request:?}");
        assert_eq!(fs::read(&identity).context("identity.key")?, damage(&good), "{what}: nothing was written");
    }
    fs::write(&identity, &good)?;
    fs::set_permissions(&identity, Permissions::from_mode(0o644))?;
    refuses("open to others", "chmod 600")?;
    fs::set_permissions(&identity, Permissions::from_mode(0o600))?;
    let aside = directory.join("aside");
    fs::rename(&identity, &aside)?;
    refuses("gone", "")?;
    assert!(!identity.exists(), "none is made");
    symlink(&aside, &identity)?;
    refuses("a link", "links are not followed")?;
    fs::remove_file(&identity)?;
    // Somebody else's keys are no less wrong than none.
    fs::copy(mesh.directory(all[0]).join("identity.key"), &identity)?;
    let done = mesh.meshd(all[1]).limit(REFUSAL_LIMIT).output()?;
    assert!(done.stderr.contains("other keys"), "{}", done.stderr);
    fs::rename(&aside, &identity)?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG).map(drop)
}

/// ```text
///     a---b           a second meshd is started on b with the same configuration
/// ```
fn second_daemon(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut flow = scene.flow(0, 1)?;
    let before = footprint(all[1])?;
    let pid = mesh.daemon(all[1])?.pid();
    for _ in 0..3 {
        let second = mesh.meshd(all[1]).limit(REFUSAL_LIMIT).output()?;
        assert_eq!(second.status.code(), Some(1), "{second:?}");
        assert!(second.stderr.contains("is the daemon running already?"), "{}", second.stderr);
        flow.exchange(b"the first goes on")?;
    }
    assert!(mesh.daemon(all[1])?.is_running());
    assert_eq!(mesh.daemon(all[1])?.pid(), pid);
    assert_eq!(footprint(all[1])?, before);
    let status = mesh.status(all[1])?;
    assert!(status.counts.up == 1 && status.problems.is_empty(), "{}", brief(&status));
    // And when the first has ended, however it ended, the next may start.
    mesh.kill(all[1])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG).map(drop)
}

/// ```text
///     b               another program has UDP port 7655
/// ```
fn port_taken(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["b"])?;
    let (mesh, host) = (&scene.mesh, &scene.hosts[0]);
    let untouched = footprint(host)?;
    let squatter = host.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))).context("take the port")?;
    let done = mesh.meshd(host).limit(REFUSAL_LIMIT).output()?;
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let told = format!("cannot listen on [::]:{PORT}");
    assert!(done.stderr.contains(&told) && done.stderr.contains("another meshd"), "{}", done.stderr);
    assert_eq!(footprint(host)?, untouched, "nothing is left of the attempt");
    drop(squatter);
    mesh.start(&[host])
}

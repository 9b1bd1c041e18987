//! What the kernel refuses a running daemon, and what that leaves possible.

use std::fs;
use std::path::Path;
use std::time::Duration;

use meshd::config::receiver::ReceiverKind;
use meshd::config::{Landlock, Receiver};
use serde_json::Value;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::{Error, Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "confined::a_daemon_writes_beneath_its_own_directories_alone", needs: &[], run: own_directories }];

/// Restarts in one process: more than the kernel takes domains upon each other, which are sixteen.
const RESTARTS: usize = 17;

/// A program that is told of alerts and writes beneath a directory; it does not end well where it cannot.
fn writer(name: &str, directory: &Path) -> Receiver {
    let script = format!("echo told > {}/told", directory.display());
    Receiver {
        name: name.parse().expect("a name"),
        kind: ReceiverKind::Command(["/bin/sh", "-c", &script].map(str::to_owned).to_vec()),
        timeout: Duration::from_secs(10),
        repeat: Duration::from_secs(3_600),
    }
}

/// What the daemon says of its confinement.
fn told(scene: &Scene, host: &Host) -> Result<Value> {
    let text = scene.mesh.ctl(host).args(["--json", "status"]).check()?;
    let status: Value = serde_json::from_str(&text).context(&text)?;
    Ok(status["node"]["confinement"].clone())
}

/// ```text
///     a---b           a's programs write inside and outside of what a may write; a is restarted, and started again
/// ```
fn own_directories(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let a = all[0];
    // Not in /tmp, where programs may put what they need for a moment.
    let (outside, named) = (a.dir().join("outside"), a.dir().join("named"));
    for directory in [&outside, &named] {
        fs::create_dir(directory).context(directory.display())?;
    }
    let state = mesh.state(a);
    mesh.change_config(a, |config| {
        config.receivers = vec![writer("in", &state), writer("out", &outside), writer("named", &named)];
        config.security.writable = vec![named.clone()];
    })?;
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let confinement = told(&scene, a)?;
    match confinement["landlock"].as_str() {
        Some("in_force") => {}
        Some("absent") => return Err(Error::not_run("this kernel has no Landlock")),
        _ => panic!("{confinement}"),
    }
    let alert = |name: &str| mesh.ctl(a).args(["alerts", "test", name]).output();
    let check = |reason: &str| -> Result<()> {
        for (name, directory) in [("in", &state), ("named", &named)] {
            let done = alert(name)?;
            assert!(done.status.success(), "{reason}: {done:?}");
            fs::remove_file(directory.join("told")).context(directory.display())?;
        }
        let refused = alert("out")?;
        assert!(!refused.status.success(), "{reason}: {refused:?}");
        assert!(!outside.join("told").exists(), "{reason}");
        Ok(())
    };
    check("as it was started")?;
    let doctor = mesh.ctl(a).args(["doctor", "--all"]).output()?;
    assert!(doctor.stdout.contains("confinement: Landlock"), "{doctor:?}");

    // Programs that follow each other in one process are bound by the first one's, and never by too many.
    for _ in 0..RESTARTS {
        mesh.ctl(a).arg("restart").check()?;
    }
    let reason = told(&scene, a)?["reason"].to_string();
    assert!(reason.contains("the program before this one"), "{reason}");
    check("after restarts")?;
    // One that would need more is refused before anything is stopped.
    let elsewhere = outside.join("state");
    mesh.change_config(a, |config| config.files.state_directory = elsewhere.clone())?;
    let refused = mesh.ctl(a).arg("restart").output()?;
    assert!(!refused.status.success(), "{refused:?}");
    for part in ["everything goes on as it was", "files.state_directory", "stop it and start it"] {
        assert!(refused.stderr.contains(part), "no `{part}`: {}", refused.stderr);
    }
    mesh.change_config(a, |config| config.files.state_directory = state.clone())?;
    mesh.wait_until_all_up(&all, LONG)?;

    // Where something stands in its way, it can be left out.
    mesh.stop(&all[..1])?;
    mesh.change_config(a, |config| config.security.landlock = Landlock::Off)?;
    mesh.start(&all[..1])?;
    assert_eq!(told(&scene, a)?["landlock"], "off");
    alert("out").map(|done| assert!(done.status.success(), "{done:?}"))?;
    assert!(outside.join("told").exists());
    Ok(())
}

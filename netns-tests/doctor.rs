//! `meshctl doctor` and `meshctl bugreport` on hosts that something is wrong with.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use meshd::api::PeerState;
use serde_json::Value;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::{Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[Case { name: "doctor::finds_what_is_wrong", needs: &[], run: finds }];

/// Asks the doctor, and returns the exit code with what it found of one thing.
fn ask(scene: &Scene, host: &Host, check: &str) -> Result<(Option<i32>, String, Value)> {
    let done = scene.mesh.ctl(host).args(["--json", "doctor"]).output()?;
    let told: Value = serde_json::from_str(&done.stdout).context(&done.stdout)?;
    let findings = told["findings"].as_array().cloned().unwrap_or_default();
    let found = findings.into_iter().find(|finding| finding["check"] == check).unwrap_or_default();
    Ok((done.status.code(), found["outcome"].as_str().unwrap_or_default().to_owned(), found))
}

/// ```text
///     a---b     keys opened to others, UDP cut, the daemon stopped
/// ```
fn finds(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (a, b) = (&scene.hosts[0], &scene.hosts[1]);
    let expect = |check: &str, outcome: &str, words: &str| -> Result<()> {
        let (code, found, finding) = ask(&scene, a, check)?;
        assert_eq!(found, outcome, "{check}: {finding}");
        assert!(finding.to_string().contains(words), "{check}: {finding}");
        assert!(outcome != "trouble" || code == Some(1), "{check}: {code:?}");
        Ok(())
    };
    for (check, words) in
        [("configuration", "node a"), ("files", ""), ("daemon", "is up"), ("port", "1 of 1"), ("mtu", "1420")]
    {
        expect(check, "good", words)?;
    }
    let key = scene.mesh.directory(a).join("identity.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).context("open the keys")?;
    expect("files", "trouble", "chmod 600")?;
    fs::set_permissions(&key, Permissions::from_mode(0o600)).context("close the keys")?;
    scene.wan.link(a, b).cut(true);
    scene.mesh.wait_until_seen(&[a], b, PeerState::Down, LONG)?;
    expect("port", "trouble", "UDP 7655 is closed")?;
    scene.wan.link(a, b).cut(false);
    scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
    // The report of a host that is well has all parts and neither key nor token.
    let token = scene.mesh.invite(a, "c", &[])?;
    let report = a.dir().join("report.json");
    scene.mesh.ctl(a).arg("bugreport").arg(&report).check()?;
    let text = fs::read_to_string(&report).context(report.display())?;
    let told: Value = serde_json::from_str(&text).context("the report")?;
    assert_eq!(told["daemon"]["status"]["node"]["name"], "a");
    assert!(told["host"].to_string().contains("mesh0"), "{}", told["host"]);
    let secrets = [&key, &scene.mesh.authority()].map(|path| fs::read_to_string(path).unwrap_or_default());
    for secret in secrets.iter().flat_map(|text| text.lines()).chain([token.as_str()]).filter(|line| line.len() > 30) {
        assert!(!text.contains(secret), "a secret is in the report");
    }
    scene.mesh.stop(&[a])?;
    expect("daemon", "trouble", "systemctl start meshd")
}

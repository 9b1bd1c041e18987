//! WireGuard's own tools at our interface.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::package::WIREGUARD_TOOLS;
use crate::lab::{Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "tools::wg_shows_the_mesh_and_sets_nothing", needs: &[&WIREGUARD_TOOLS], run: wg }];

/// ```text
///     a---b           on a, another mesh besides, in a network namespace of its own; both hosts' /run has a directory for wg
/// ```
fn wg(lab: &Lab) -> Result<()> {
    let directory = |host: &Host| host.run_dir().join("wireguard");
    let scene = Scene::prepared(lab, &["a", "b"], &[], |host| fs::create_dir(directory(host)).context(host.name()))?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    scene.flow(0, 1)?.exchange(&[7; 10_000])?;
    let tree = WIREGUARD_TOOLS.fetch()?;
    let wg = |words: &[&str]| all[0].command_from(&tree, "wg")?.args(words).output();

    let told = wg(&["show", "mesh0"])?;
    assert!(told.status.success(), "{told:?}");
    let key = mesh.keys(all[1])?.public().wireguard.to_string();
    let (v4, v6) = mesh.overlay(all[1]);
    let peer = format!(
        "peer: {key}\n  endpoint: {}:7655\n  allowed ips: {v4}/32, {v6}/128\n  latest handshake: ",
        scene.underlay[1]
    );
    assert!(told.stdout.starts_with("interface: mesh0\n  listening port: 7655\n"), "{}", told.stdout);
    assert!(told.stdout.contains(&peer) && told.stdout.contains("  transfer: "), "{}", told.stdout);
    // No secret, neither by name nor by its text.
    let dump = wg(&["show", "mesh0", "dump"])?.stdout;
    assert!(dump.starts_with("(none)\t(none)\t7655\toff\n") && dump.contains(&format!("{key}\t(none)\t")), "{dump}");

    // Nothing can be set, and nothing is.
    for words in [&["set", "mesh0", "listen-port", "1"][..], &["set", "mesh0", "peer", &key, "remove"]] {
        let refused = wg(words)?;
        assert!(!refused.status.success() && refused.stderr.contains("not permitted"), "{refused:?}");
    }
    assert!(wg(&["show", "mesh0", "peers"])?.stdout.contains(&key));
    scene.check_every_pair(&all)?;

    let socket = directory(all[0]).join("mesh0.sock");
    let made = fs::symlink_metadata(&socket).context(socket.display())?;
    assert!(made.file_type().is_socket() && made.mode() & 0o777 == 0o600, "{made:?}");
    // A restart in place makes its socket anew, and another mesh has one of its own name; a third daemon's name is taken.
    mesh.ctl(all[0]).arg("restart").check()?;
    let others = ["mesh1", "mesh0"].map(|interface| second(&scene, all[0], interface));
    let [other, same] = others;
    let (other, same) = (other?, same?);
    assert!(same.stderr().contains("`wg show` is not answered: another daemon answers"), "{}", same.stderr());
    let mut names: Vec<String> = wg(&["show", "interfaces"])?.stdout.split_whitespace().map(str::to_owned).collect();
    names.sort();
    assert_eq!(names, ["mesh0", "mesh1"]);
    for daemon in [same, other] {
        daemon.stop(LONG)?;
    }
    assert!(wg(&["show", "mesh0", "peers"])?.stdout.contains(&key), "the socket was not the other's to remove");
    mesh.stop(&all)?;
    assert_eq!(fs::read_dir(directory(all[0])).context("what is left")?.count(), 0);
    Ok(())
}

/// Founds and starts another mesh on a host, in a network namespace of its own.
fn second(scene: &Scene, host: &Host, interface: &str) -> Result<crate::lab::Proc> {
    let directory = host.dir().join(format!("second-{interface}"));
    let config = directory.join("meshd.toml");
    let words = ["init", "--mesh", "second", "--node", "x", "--endpoint", "192.0.2.1:7655", "--dir"];
    scene.mesh.ctl(host).args(words).arg(&directory).check()?;
    let text = fs::read_to_string(&config).context(config.display())?;
    let named = text.replace("# name = \"mesh0\"", &format!("name = \"{interface}\""));
    fs::write(&config, named).context(config.display())?;
    let binary = crate::lab::place::binary("meshd")?;
    let daemon = host.command("unshare").arg("--net").arg(&binary).arg("--config").arg(&config).spawn()?;
    daemon.wait_for_output(" is up", LONG)?;
    Ok(daemon)
}

//! A mesh from files, as configuration management makes it: applied, destroyed and applied again.

use std::fs;
use std::path::Path;

use meshd::api::Plan;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::{Error, Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "rebuilt::the_same_files_make_the_same_mesh_ten_times", needs: &[], run: ten_times }];

/// How often everything is made and destroyed.
const ROUNDS: usize = 10;

/// What configuration management holds of a host: files and their bytes, by name.
struct Recipe(Vec<(String, Vec<u8>)>);

impl Recipe {
    /// Takes the files that were placed for a host: keys, certificate, configuration, no state.
    fn taken(mesh: &Mesh, host: &Host) -> Result<Recipe> {
        let directory = mesh.directory(host);
        let mut files = Vec::new();
        for entry in fs::read_dir(&directory).context(directory.display())? {
            let path = entry.context(directory.display())?.path();
            if path.is_file() {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                files.push((name, fs::read(&path).context(path.display())?));
            }
        }
        Ok(Recipe(files))
    }

    /// Places what is not as it should be, and returns how many files that were.
    fn apply(&self, directory: &Path) -> Result<usize> {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir_all(directory).context(directory.display())?;
        let mut changed = 0;
        for (name, bytes) in &self.0 {
            let path = directory.join(name);
            if fs::read(&path).is_ok_and(|there| there == *bytes) {
                continue;
            }
            fs::write(&path, bytes).context(path.display())?;
            let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context(path.display())?;
            changed += 1;
        }
        Ok(changed)
    }
}

/// What a second run could have changed: the device, the process, the sessions made, and where packets go.
fn fingerprint(mesh: &Mesh, host: &Host) -> Result<String> {
    let device = host.command("ip").args(["-oneline", "address", "show", "dev", "mesh0"]).check()?;
    let routes = host.command("ip").args(["route", "show", "dev", "mesh0"]).check()?;
    let status = mesh.status(host)?;
    let sessions: Vec<_> =
        status.peers.iter().map(|peer| (&peer.name, peer.node_id.clone(), peer.handshakes)).collect();
    Ok(format!("{device}{routes}pid {} {sessions:?}", mesh.daemon(host)?.pid()))
}

/// ```text
///     a───b           a holds the authority's key; all three are made of files alone, ten times
///      ╲ ╱
///       c
/// ```
fn ten_times(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    for number in [1, 2] {
        mesh.admit_offline(all[number], scene.underlay[number])?;
    }
    let recipes: Vec<Recipe> = all.iter().map(|host| Recipe::taken(mesh, host)).collect::<Result<_>>()?;
    let apply = || -> Result<usize> {
        let placed = all.iter().zip(&recipes).map(|(host, recipe)| recipe.apply(&mesh.directory(host)));
        placed.sum()
    };
    let files: usize = recipes.iter().map(|recipe| recipe.0.len()).sum();
    let mut identities = Vec::new();
    for round in 1..=ROUNDS {
        if round > 1 {
            assert_eq!(apply()?, files, "round {round}: nothing was left of the one before");
        }
        mesh.start(&all)?;
        mesh.wait_until_all_up(&all, LONG)?;
        scene.check_every_pair(&all)?;
        let nodes: Vec<String> = mesh.status(all[0])?.peers.into_iter().map(|peer| peer.node_id).collect();
        identities.push(nodes);
        assert_eq!(identities[0], identities[round - 1], "round {round}: the same members");

        let before: Vec<String> = all.iter().map(|host| fingerprint(mesh, host)).collect::<Result<_>>()?;
        assert_eq!(apply()?, 0, "round {round}: the second run finds all files as they should be");
        for host in &all {
            let told = mesh.ctl(host).args(["--json", "reload"]).check()?;
            let plan: Plan = serde_json::from_str(&told).context(&told)?;
            assert!(plan.changes.is_empty() && plan.touched.is_empty(), "round {round}: {told}");
        }
        let after: Vec<String> = all.iter().map(|host| fingerprint(mesh, host)).collect::<Result<_>>()?;
        assert_eq!(before, after, "round {round}: the second run changes nothing");

        mesh.stop(&all)?;
        for host in &all {
            mesh.meshd(host).arg("--cleanup").check()?;
            let directory = mesh.directory(host);
            fs::remove_dir_all(&directory).context(directory.display())?;
            let links = host.command("ip").args(["-oneline", "link"]).check()?;
            let routes = host.command("ip").args(["route", "show", "table", "all"]).check()?;
            for (what, left) in [("device", &links), ("route", &routes)] {
                if left.contains("mesh0") || left.contains("10.77.") {
                    return Err(Error::failed(format!("round {round}: a {what} is left on {}: {left}", host.name())));
                }
            }
        }
    }
    println!(
        "    {ROUNDS} times from {files} files: the same mesh, a second run that changes nothing, and nothing left"
    );
    Ok(())
}

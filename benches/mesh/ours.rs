//! meshd, set up the offline way: requests signed by the authority of the first node.

use std::fs;
use std::path::{Path, PathBuf};

use meshd::config::{Bootstrap, Config, DEFAULT_PORT};
use meshd::identity::SignedCertificate;

use crate::contender::{Contender, Place, Ready, node_name};
use crate::lab::error::Context;
use crate::lab::{Error, Result, place};

/// meshd and meshctl.
pub struct Meshd {
    meshd: PathBuf,
    meshctl: PathBuf,
}

impl Meshd {
    /// Takes `meshd` and `meshctl` as given, or those of this build.
    ///
    /// # Errors
    /// NOT RUN where they were not built.
    pub fn new(meshd: Option<PathBuf>, meshctl: Option<PathBuf>) -> Result<Self> {
        let or_built = |given: Option<PathBuf>, name| given.map_or_else(|| place::binary(name), Ok);
        Ok(Meshd { meshd: or_built(meshd, "meshd")?, meshctl: or_built(meshctl, "meshctl")? })
    }

    fn first(&self, place: &Place, dir: &Path) -> Result<()> {
        let endpoint = format!("{}:{DEFAULT_PORT}", place.underlay);
        let init = place.host.command(&self.meshctl).args(["init", "--relay", "--mesh", "bench"]);
        let init = init.args(["--overlay", "10.88.0.0/16"]);
        init.args(["--node", &node_name(0), "--endpoint", &endpoint, "--dir"]).arg(dir).check().map(drop)
    }

    /// Makes a node's keys and lets the first node's authority sign them.
    fn sign(&self, place: &Place, name: &str, dir: &Path, authority: &Path) -> Result<String> {
        let request = place.host.command(&self.meshctl).args(["request", "--node", name, "--dir"]).arg(dir).check()?;
        let sign = place.host.command(&self.meshctl).args(["sign", "-", "--authority"]).arg(authority);
        sign.input(request).check()
    }
}

impl Contender for Meshd {
    fn name(&self) -> &'static str {
        "meshd"
    }

    fn version(&self) -> &str {
        concat!("meshd ", env!("CARGO_PKG_VERSION"))
    }

    fn prepare(&self, places: &[Place]) -> Result<Vec<Ready>> {
        let first = places.first().ok_or_else(|| Error::failed("a mesh of no nodes"))?;
        let first_dir = first.host.dir().join("mesh");
        self.first(first, &first_dir)?;
        let config_path = first_dir.join("meshd.toml");
        let text = fs::read_to_string(&config_path).context("read the first node's configuration")?;
        let model = Config::parse(&text, &config_path).context("the first node's configuration")?;
        let anchor = model.mesh.trust_anchor().context("the first node's mesh")?;
        let mut nodes = Vec::with_capacity(places.len());
        let mut bootstrap = Vec::new();
        for (index, place) in places.iter().enumerate() {
            let dir = place.host.dir().join("mesh");
            let path = dir.join("meshd.toml");
            let name = node_name(index);
            let armor = if index == 0 {
                fs::read_to_string(dir.join("node.cert")).context("read the first node's certificate")?
            } else {
                fs::create_dir_all(&dir).context("make a node's directory")?;
                let armor = self.sign(place, &name, &dir, &first_dir.join("authority.key"))?;
                fs::write(dir.join("node.cert"), &armor).context("write a certificate")?;
                let name = name.parse().context("a node's name")?;
                let mut config = Config::new(name, model.mesh.clone(), &path);
                config.underlay.endpoints = vec![(place.underlay, DEFAULT_PORT).into()];
                config.bootstrap.clone_from(&bootstrap);
                fs::write(&path, config.to_toml(&path)).context("write a configuration")?;
                armor
            };
            let signed = SignedCertificate::from_armor(&armor, &anchor).context("a certificate just made")?;
            let certificate = signed.certificate();
            if index == 0 {
                let (name, key) = (certificate.name.clone(), certificate.wireguard_key);
                bootstrap = vec![Bootstrap { name, key, endpoint: (place.underlay, DEFAULT_PORT).into() }];
            }
            let (program, host) = (self.meshd.clone(), place.host.clone());
            nodes.push(Ready {
                overlay: certificate.address_v4,
                daemon: Box::new(move || host.command(&program).arg("--config").arg(&path)),
            });
        }
        Ok(nodes)
    }
}

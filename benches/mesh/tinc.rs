//! tinc 1.0 from Debian. The first node has everybody's public key, the others have the first one's: what they need to
//! enter by it; the rest tinc passes on by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::contender::{Contender, Place, Ready, node_name, overlay_address};
use crate::lab::error::Context;
use crate::lab::package::{self, Tree};
use crate::lab::{Error, Result};

/// The unpacked package, and `ip` for the script that tinc calls.
pub struct Tinc {
    tinc: Tree,
    ip: Tree,
    version: String,
}

impl Tinc {
    /// Makes the programs ready.
    ///
    /// # Errors
    /// NOT RUN where they cannot be had.
    pub fn new() -> Result<Self> {
        let (tinc, ip) = (package::TINC.fetch()?, package::IPROUTE2.fetch()?);
        let mut command = std::process::Command::new(tinc.program("tincd")?);
        let output = command.envs(tinc.environment()).arg("--version").output().context("start tincd")?;
        let version = String::from_utf8_lossy(&output.stdout);
        let version = version.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        Ok(Tinc { tinc, ip, version })
    }
}

impl Contender for Tinc {
    fn name(&self) -> &'static str {
        "tinc"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn prepare(&self, places: &[Place]) -> Result<Vec<Ready>> {
        let mut nodes = Vec::with_capacity(places.len());
        for (index, place) in places.iter().enumerate() {
            let (name, overlay) = (node_name(index), overlay_address(index));
            let dir = place.host.dir().join("mesh");
            let hosts = dir.join("hosts");
            fs::create_dir_all(&hosts).context("make a node's directory")?;
            let connect = if index == 0 { String::new() } else { format!("ConnectTo = {}\n", node_name(0)) };
            let text = format!("Name = {name}\nInterface = tinc0\nAddressFamily = ipv4\n{connect}");
            fs::write(dir.join("tinc.conf"), text).context("write tinc.conf")?;
            let about = format!("Address = {}\nSubnet = {overlay}/32\n", place.underlay);
            fs::write(hosts.join(&name), about).context("write a tinc host file")?;
            let up = format!("#!/bin/sh\nip address add {overlay}/16 dev $INTERFACE\nip link set $INTERFACE up\n");
            fs::write(dir.join("tinc-up"), up).context("write tinc-up")?;
            fs::set_permissions(dir.join("tinc-up"), fs::Permissions::from_mode(0o755)).context("chmod tinc-up")?;
            place.host.command_from(&self.tinc, "tincd")?.arg("-c").arg(&dir).arg("-K2048").check()?;
            let daemon = self.tinc.program("tincd")?;
            let (host, tinc, ip) = (place.host.clone(), self.tinc.clone(), self.ip.clone());
            nodes.push(Ready {
                overlay,
                daemon: Box::new(move || {
                    let command = host.command(&daemon).with(&tinc).with(&ip).arg("-c").arg(&dir);
                    command.arg("--pidfile").arg(dir.join("pid")).arg("-D")
                }),
            });
        }
        self.introduce(places)?;
        Ok(nodes)
    }
}

impl Tinc {
    /// Hands the first node's public key to all others, and theirs to it.
    fn introduce(&self, places: &[Place]) -> Result<()> {
        let (first, others) = places.split_first().ok_or_else(|| Error::failed("a mesh of no nodes"))?;
        let file = |place: &Place, name: &str| place.host.dir().join("mesh/hosts").join(name);
        for (index, place) in others.iter().enumerate() {
            let (own, theirs) = (node_name(index + 1), node_name(0));
            fs::copy(file(place, &own), file(first, &own)).context("hand over a tinc key")?;
            fs::copy(file(first, &theirs), file(place, &theirs)).context("hand over a tinc key")?;
        }
        Ok(())
    }
}

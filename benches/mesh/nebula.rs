//! Nebula from Debian, with the first node as the lighthouse.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::contender::{Contender, Place, Ready, node_name, overlay_address};
use crate::lab::error::Context;
use crate::lab::package::{self, Tree};
use crate::lab::{Error, Result};

/// Nebula's usual port.
const PORT: u16 = 4242;

/// The unpacked package.
pub struct Nebula {
    tree: Tree,
    version: String,
}

impl Nebula {
    /// Makes the programs ready.
    ///
    /// # Errors
    /// NOT RUN where they cannot be had.
    pub fn new() -> Result<Self> {
        let tree = package::NEBULA.fetch()?;
        let output = std::process::Command::new(tree.program("nebula")?).arg("-version").output();
        let version = String::from_utf8_lossy(&output.context("start nebula")?.stdout).trim().to_lowercase();
        Ok(Nebula { tree, version: version.replace("version: ", "nebula ") })
    }

    fn configuration(&self, dir: &Path, index: usize, lighthouse: &Place) -> String {
        let mut text = String::new();
        let dir = dir.display();
        // Writing into a String cannot fail.
        let _ = write!(text, "pki:\n  ca: {dir}/ca.crt\n  cert: {dir}/node.crt\n  key: {dir}/node.key\n");
        let _ = if index == 0 {
            // It may relay as well, as its manual has it.
            let relay = "relay:\n  am_relay: true\n";
            write!(text, "static_host_map: {{}}\nlighthouse:\n  am_lighthouse: true\n{relay}")
        } else {
            let (inside, outside) = (overlay_address(0), lighthouse.underlay);
            write!(
                text,
                "static_host_map:\n  \"{inside}\": [\"{outside}:{PORT}\"]\n\
                 lighthouse:\n  am_lighthouse: false\n  hosts: [\"{inside}\"]\n\
                 relay:\n  relays: [\"{inside}\"]\n  use_relays: true\n"
            )
        };
        let _ = write!(
            text,
            "listen:\n  host: 0.0.0.0\n  port: {PORT}\ntun:\n  dev: nebula0\n\
             firewall:\n  outbound:\n    - {{port: any, proto: any, host: any}}\n  \
             inbound:\n    - {{port: any, proto: any, host: any}}\n"
        );
        text
    }
}

impl Contender for Nebula {
    fn name(&self) -> &'static str {
        "nebula"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn prepare(&self, places: &[Place]) -> Result<Vec<Ready>> {
        let first = places.first().ok_or_else(|| Error::failed("a mesh of no nodes"))?;
        let authority = first.host.dir().join("authority");
        fs::create_dir_all(&authority).context("make the authority's directory")?;
        let tool = || first.host.command_from(&self.tree, "nebula-cert");
        let ca = ["-out-crt", "ca.crt", "-out-key", "ca.key"];
        let ca = ca.map(|arg| if arg.starts_with('-') { arg.into() } else { authority.join(arg) });
        tool()?.args(["ca", "-name", "bench"]).args(&ca).check()?;
        let mut nodes = Vec::with_capacity(places.len());
        for (index, place) in places.iter().enumerate() {
            let overlay = overlay_address(index);
            let dir = place.host.dir().join("mesh");
            fs::create_dir_all(&dir).context("make a node's directory")?;
            let sign = tool()?.args(["sign", "-name", &node_name(index), "-ip", &format!("{overlay}/16")]);
            let sign = sign.arg("-ca-crt").arg(authority.join("ca.crt")).arg("-ca-key").arg(authority.join("ca.key"));
            sign.arg("-out-crt").arg(dir.join("node.crt")).arg("-out-key").arg(dir.join("node.key")).check()?;
            fs::copy(authority.join("ca.crt"), dir.join("ca.crt")).context("hand over the authority's certificate")?;
            let path = dir.join("config.yml");
            fs::write(&path, self.configuration(&dir, index, first)).context("write a configuration")?;
            let (program, host) = (self.tree.program("nebula")?, place.host.clone());
            nodes.push(Ready { overlay, daemon: Box::new(move || host.command(&program).arg("-config").arg(&path)) });
        }
        Ok(nodes)
    }
}

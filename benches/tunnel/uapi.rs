//! The little of WireGuard's configuration protocol that two peers need
//! (<https://www.wireguard.com/xplatform/#configuration-protocol>).

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use x25519_dalek::{PublicKey, StaticSecret};

use crate::lab::error::Context;
use crate::lab::{Error, Result};

/// The port of every daemon here; each is alone on its host.
const PORT: u16 = 51_820;

/// One end of a tunnel between two.
pub struct End<'a> {
    /// Its own key.
    pub secret: &'a StaticSecret,
    /// The other's key.
    pub peer: PublicKey,
    /// Where the other is.
    pub endpoint: Ipv4Addr,
    /// The other's address inside.
    pub inside: Ipv4Addr,
}

impl End<'_> {
    /// Configures the daemon that listens there.
    ///
    /// # Errors
    /// Where it does not listen, or refuses.
    pub fn set(&self, socket: &Path) -> Result<()> {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "set=1\nprivate_key={}\nlisten_port={PORT}\nreplace_peers=true\npublic_key={}\nendpoint={}:{PORT}\n\
             replace_allowed_ips=true\nallowed_ip={}/32\n\n",
            hex(self.secret.as_bytes()),
            hex(self.peer.as_bytes()),
            self.endpoint,
            self.inside
        );
        let what = format!("configure {}", socket.display());
        let mut stream = UnixStream::connect(socket).context(&what)?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).context(&what)?;
        stream.write_all(text.as_bytes()).context(&what)?;
        let mut told = String::new();
        let mut buffer = [0; 256];
        while !told.contains("errno=") || !told.ends_with("\n\n") {
            let count = stream.read(&mut buffer).context(&what)?;
            if count == 0 {
                break;
            }
            told.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        if told.contains("errno=0") { Ok(()) } else { Err(Error::failed(format!("{what}: it says {told:?}"))) }
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! wireguard-go on a host: a stock WireGuard peer, set up from a configuration in the form of wg-quick(8).

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::{Context, Error, Result};
use super::host::Host;
use super::package::WIREGUARD_GO;
use super::process::Proc;

/// The device's name.
pub const DEVICE: &str = "wg0";

/// How long it may take to open its control socket; reached only in failure.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A running wireguard-go with its device up.
pub struct WireguardGo {
    proc: Proc,
    socket: PathBuf,
}

impl WireguardGo {
    /// Starts it and does with `config` what wg-quick does: keys, the peer, addresses, MTU, routes.
    ///
    /// # Errors
    /// NOT RUN where the program cannot be had; failed where it does not take the configuration.
    pub fn start(host: &Host, config: &str) -> Result<WireguardGo> {
        let command = host.command_from(&WIREGUARD_GO.fetch()?, "wireguard-go")?;
        let proc = command.args(["-f", DEVICE]).env("LOG_LEVEL", "verbose").spawn()?;
        let socket = host.run_dir().join("wireguard").join(format!("{DEVICE}.sock"));
        let wireguard = WireguardGo { proc, socket };
        wireguard.tell(&requests(config)?)?;
        host.set_mtu(DEVICE, 1420)?;
        for net in values(config, "Address") {
            let (address, length) = split(&net)?;
            host.add_address(DEVICE, address, length)?;
        }
        host.link_up(DEVICE)?;
        for net in values(config, "AllowedIPs") {
            host.add_route(split(&net)?, None, DEVICE)?;
        }
        Ok(wireguard)
    }

    /// Ends it, as `ip link delete` does: its sessions are gone, and the other side is not told.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn stop(self) -> Result<()> {
        self.proc.stop(READY_LIMIT).map(drop)
    }

    /// Sends a request of the cross-platform userspace interface and checks the answer.
    fn tell(&self, request: &str) -> Result<()> {
        let mut control = self.connect()?;
        control.write_all(format!("set=1\n{request}\n").as_bytes()).context("write to wireguard-go")?;
        control.shutdown(Shutdown::Write).context("write to wireguard-go")?;
        let mut answer = String::new();
        control.read_to_string(&mut answer).context("read from wireguard-go")?;
        if answer.contains("errno=0") {
            return Ok(());
        }
        Err(Error::failed(format!("wireguard-go refused its configuration: {answer:?}")))
    }

    fn connect(&self) -> Result<UnixStream> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > deadline || !self.proc.is_running() => {
                    return Err(Error::failed(format!("wireguard-go: {error}: {}", self.proc.stderr())));
                }
                // Nothing tells when a socket can be connected to.
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// A configuration's keys and peer as the userspace interface wants them.
fn requests(config: &str) -> Result<String> {
    let mut out = String::new();
    for (from, to) in [("PrivateKey", "private_key"), ("ListenPort", "listen_port"), ("PublicKey", "public_key")] {
        for value in values(config, from) {
            let value = if from == "ListenPort" { value } else { hex(&value)? };
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{to}={value}");
        }
    }
    for value in values(config, "PresharedKey") {
        let _ = writeln!(out, "preshared_key={}", hex(&value)?);
    }
    for (from, to) in [("Endpoint", "endpoint"), ("PersistentKeepalive", "persistent_keepalive_interval")] {
        values(config, from).iter().for_each(|value| {
            let _ = writeln!(out, "{to}={value}");
        });
    }
    for value in values(config, "AllowedIPs") {
        let _ = writeln!(out, "allowed_ip={value}");
    }
    Ok(out)
}

/// The values of a key, those of a list apart.
fn values(config: &str, key: &str) -> Vec<String> {
    let lines = config.lines().filter_map(|line| line.split_once(" = ")).filter(|(name, _)| *name == key);
    lines.flat_map(|(_, value)| value.split(", ").map(str::to_owned)).collect()
}

fn split(net: &str) -> Result<(IpAddr, u8)> {
    let (address, length) = net.split_once('/').ok_or_else(|| Error::failed(format!("{net} has no length")))?;
    Ok((address.parse().context(net)?, length.parse().context(net)?))
}

fn hex(base64: &str) -> Result<String> {
    let bytes = STANDARD.decode(base64).context("a key in base64")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

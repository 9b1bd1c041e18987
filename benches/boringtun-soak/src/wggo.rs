//! wireguard-go as the other end, in a network and mount namespace of the calling thread's own.
//!
//! Both namespaces are anonymous: the kernel removes them, the TUN device and the control socket
//! when the rig's threads and the child are gone, also after a crash.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The device's name; it lives in the rig's own namespace, so it cannot meet another.
const DEVICE: &str = "soak0";
const CONTROL_DIR: &str = "/run/wireguard";
/// How long wireguard-go may take to open its control socket.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Moves the calling thread, and every thread it starts later, into namespaces of its own.
pub fn enter_namespaces() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    fs::create_dir_all("/run")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID, Some("size=1m"))?;
    fs::create_dir_all(CONTROL_DIR)?;
    ip(&["link", "set", "lo", "up"])
}

/// How wireguard-go is set up.
pub struct Setup<'a> {
    pub program: &'a Path,
    pub private_key: [u8; 32],
    pub peer_public_key: [u8; 32],
    pub listen_port: u16,
    pub endpoint: SocketAddr,
    pub own_address: Ipv4Addr,
    pub peer_address: Ipv4Addr,
    /// Where its own log goes.
    pub log: Option<File>,
}

/// A running wireguard-go; dropping it ends the process.
pub struct WireguardGo {
    child: Child,
}

impl WireguardGo {
    /// Starts the program and configures one peer. Call it from a thread in its own namespaces.
    pub fn start(setup: Setup<'_>) -> io::Result<WireguardGo> {
        let began = Instant::now();
        // The child dies with the thread that started it, whatever ends that thread.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(setup.program)
            .args(["-f", DEVICE])
            .env("LOG_LEVEL", "verbose")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        if let (Some(output), Some(mut log)) = (child.stdout.take(), setup.log) {
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = writeln!(log, "{:.3} {line}", began.elapsed().as_secs_f64());
                }
            });
        }
        let mut device = WireguardGo { child };
        device.configure(
            setup.private_key,
            setup.peer_public_key,
            setup.listen_port,
            setup.endpoint,
            setup.peer_address,
        )?;
        ip(&["addr", "add", &format!("{}/24", setup.own_address), "dev", DEVICE])?;
        ip(&["link", "set", DEVICE, "mtu", "1420", "up"])?;
        Ok(device)
    }

    fn configure(
        &mut self,
        private_key: [u8; 32],
        peer: [u8; 32],
        port: u16,
        endpoint: SocketAddr,
        allowed: Ipv4Addr,
    ) -> io::Result<()> {
        let mut control = self.control()?;
        let request = format!(
            "set=1\nprivate_key={}\nlisten_port={port}\nreplace_peers=true\npublic_key={}\n\
             endpoint={endpoint}\nreplace_allowed_ips=true\nallowed_ip={allowed}/32\n\n",
            hex(&private_key),
            hex(&peer),
        );
        control.write_all(request.as_bytes())?;
        control.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        control.read_to_string(&mut answer)?;
        if answer.contains("errno=0") {
            return Ok(());
        }
        Err(io::Error::other(format!("wireguard-go refused its configuration: {answer:?}")))
    }

    fn control(&mut self) -> io::Result<UnixStream> {
        let path = format!("{CONTROL_DIR}/{DEVICE}.sock");
        let give_up = Instant::now() + READY_WITHIN;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() >= give_up => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("wireguard-go ended at start: {status}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new("ip").args(arguments).stdout(Stdio::null()).status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip {} failed: {status}", arguments.join(" "))))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_written_as_lower_case_hex() {
        assert_eq!(super::hex(&[0x00, 0xab, 0x10]), "00ab10");
    }
}

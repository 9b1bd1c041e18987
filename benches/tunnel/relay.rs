//! What no tunnel of this kind goes below: packets from a TUN to a UDP socket and back, one thread, one system call for each
//! way in and out, nothing looked up and nothing sealed.
//!
//! It bounds delays only. It moves one packet at a time, so that what a tunnel saves by moving many at once is not in its
//! rates.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use meshd::platform::scheduling::ask_for_promptness;
use meshd::platform::tun::{Framing, LONGEST_READ, Tun, TunError};
use meshd::platform::wake::{Interest, Wake, Watch};

use crate::contender::overlay_address;
use crate::lab::error::Context;
use crate::lab::{Error, Result};
use crate::member::Latency;
use crate::peer::{Pair, Peer, Running};

/// The argument that makes this program the relay of one host.
pub const ARGUMENT: &str = "--relay";

/// The device on either host, and what fits into it: as with the other tunnels.
const DEVICE: &str = "relay0";
const MTU: u32 = 1_420;
/// Both addresses are in one network, as [`overlay_address`] makes them.
const PREFIX: u8 = 16;
/// Of the sockets on both hosts.
const PORT: u16 = 7_655;
/// How long one that polls looks again after a packet: as long as meshd does.
const WINDOW: Duration = Duration::from_micros(200);
/// What it says once it moves packets.
const READY: &str = "ready";

/// The relay as a tunnel to compare with.
pub struct Relay {
    latency: Latency,
}

impl Relay {
    /// One that sleeps when it has nothing to do, or looks again before it does.
    pub fn new(latency: Latency) -> Relay {
        Relay { latency }
    }
}

impl Peer for Relay {
    fn name(&self) -> &'static str {
        match self.latency {
            Latency::Normal => "relay",
            Latency::Low => "relay-low",
        }
    }

    fn version(&self) -> String {
        let how = if self.latency == Latency::Low { "looking again before it sleeps" } else { "sleeping at once" };
        format!("this benchmark's own, without cryptography, {how}")
    }

    fn start(&self, pair: &Pair) -> Result<Running> {
        let program = std::env::current_exe().context("find this program")?;
        let polls = if self.latency == Latency::Low { "yes" } else { "no" };
        let addresses = [overlay_address(0), overlay_address(1)];
        let mut daemons = Vec::new();
        for (index, place) in pair.places.iter().enumerate() {
            let [own, other] = [place.underlay, pair.places[1 - index].underlay].map(|address| address.to_string());
            let daemon = place.host.command(&program).args([ARGUMENT, &own, &other, polls]).spawn()?;
            daemon.wait_for_output(READY, Duration::from_secs(5))?;
            place.host.set_mtu(DEVICE, MTU)?;
            place.host.add_address(DEVICE, IpAddr::V4(addresses[index]), PREFIX)?;
            place.host.link_up(DEVICE)?;
            daemons.push(daemon);
        }
        Ok(Running { addresses, daemons })
    }
}

/// Relays between the device and the other host until it is killed: its own address, the other's, whether it polls.
///
/// # Errors
/// Where it cannot begin, or the device is gone.
pub fn serve(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut next = || arguments.next().ok_or_else(|| Error::failed(format!("{ARGUMENT} OWN OTHER yes|no")));
    let own: Ipv4Addr = next()?.parse().context("read the own address")?;
    let other: Ipv4Addr = next()?.parse().context("read the other address")?;
    let window = if next()? == "yes" { WINDOW } else { Duration::ZERO };

    let tun = Tun::open(DEVICE, Framing::Plain).context("make the device")?;
    let socket = UdpSocket::bind(SocketAddrV4::new(own, PORT)).context("bind the socket")?;
    socket.connect(SocketAddrV4::new(other, PORT)).context("connect the socket")?;
    socket.set_nonblocking(true).context("have the socket not wait")?;
    let mut watch = Wake::new().and_then(|wake| Watch::new(Arc::new(wake), 2)).context("make a watch")?;
    for (place, descriptor) in [tun.as_fd(), socket.as_fd()].into_iter().enumerate() {
        watch.set(place, descriptor, Interest::Reading).context("watch a descriptor")?;
    }
    // As meshd does; without privileges it goes on without.
    ask_for_promptness();
    println!("{READY}");

    let mut buffer = vec![0; LONGEST_READ];
    let mut last = Instant::now();
    loop {
        let mut moved = false;
        match tun.read(&mut buffer) {
            Ok(length) => {
                // A datagram that finds no room is lost, as on a wire.
                let _ = socket.send(&buffer[..length]);
                moved = true;
            }
            Err(TunError::Deleted) => return Err(Error::failed("the device is gone")),
            Err(_) => {}
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let _ = tun.write(&buffer[..length]);
                moved = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The other end is not there yet: its host says that nothing listens.
            Err(_) => continue,
        }
        if moved {
            last = Instant::now();
        } else if last.elapsed() < window {
            thread::yield_now();
        } else {
            watch.wait(None).context("wait for packets")?;
        }
    }
}

//! Paths that carry less than they did: connections through the mesh live on, and both ends of a link size their own way.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::flow::{connect, datagram};
use crate::lab::{Error, Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "path_mtu::connections_outlive_a_black_hole", needs: &[], run: black_hole },
    Case { name: "path_mtu::connections_outlive_a_router_that_tells", needs: &[], run: told },
    Case { name: "path_mtu::a_smaller_device_is_adapted_to", needs: &[], run: smaller_device },
    Case { name: "path_mtu::a_path_below_the_floor_is_crossed_in_fragments", needs: &[], run: narrow },
];

/// Packets on the network when 1,328 B cross the mesh over IPv4: the most that is a multiple of 16 below 1,400.
const SMALL: u32 = 1_328;

/// Bytes that must arrive for a transfer to count as going on: more than any buffer on the way holds.
const GOES_ON: u64 = 16 << 20;

/// A TCP transfer that goes on until it is ended, with every byte checked.
struct Transfer {
    progress: Arc<Mutex<Progress>>,
    stop: Arc<AtomicBool>,
    near: socket2::Socket,
    ends: Vec<JoinHandle<Result<u64>>>,
}

/// How far a transfer has come.
#[derive(Clone, Copy)]
struct Progress {
    bytes: u64,
    last: Instant,
    /// The longest time without a byte since this was set to zero.
    stall: Duration,
}

impl Transfer {
    fn start(from: &Host, source: IpAddr, to: &Host, target: IpAddr) -> Result<Transfer> {
        let listener = to.enter(|| TcpListener::bind(SocketAddr::new(target, 0))).context("listen")?;
        let address = listener.local_addr().context("listen")?;
        let mut near = from.enter(|| connect(source, address)).context("connect")?;
        let (mut far, _) = listener.accept().context("accept")?;
        near.set_write_timeout(Some(LONG))?;
        far.set_read_timeout(Some(LONG))?;
        let begun = Progress { bytes: 0, last: Instant::now(), stall: Duration::ZERO };
        let (progress, stop) = (Arc::new(Mutex::new(begun)), Arc::new(AtomicBool::new(false)));
        let (ended, seen) = (stop.clone(), progress.clone());
        let watched = socket2::Socket::from(near.try_clone()?);
        let writer = std::thread::spawn(move || {
            let mut sent = 0u64;
            let mut chunk = vec![0; 32 << 10];
            while !ended.load(Ordering::Relaxed) {
                fill(&mut chunk, sent);
                near.write_all(&chunk).context("send")?;
                sent += chunk.len() as u64;
            }
            near.shutdown(Shutdown::Write).context("end")?;
            Ok(sent)
        });
        let reader = std::thread::spawn(move || {
            let (mut buffer, mut expected) = (vec![0; 32 << 10], vec![0; 32 << 10]);
            let mut bytes = 0;
            loop {
                let length = far.read(&mut buffer).context("receive")?;
                if length == 0 {
                    return Ok(bytes);
                }
                fill(&mut expected, bytes);
                assert!(buffer[..length] == expected[..length], "TCP delivers what was sent");
                bytes += length as u64;
                let now = Instant::now();
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                *seen = Progress { bytes, last: now, stall: seen.stall.max(now - seen.last) };
            }
        });
        Ok(Transfer { progress, stop, near: watched, ends: vec![writer, reader] })
    }

    fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The payload of the segments that the sender makes now, in bytes.
    fn segment(&self) -> Result<u32> {
        self.near.tcp_mss().context("ask for the segments' size")
    }

    /// Measures stalls anew from here on.
    fn mark(&self) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        (progress.stall, progress.last) = (Duration::ZERO, Instant::now());
    }

    /// Waits until much more has arrived.
    fn goes_on(&self) -> Result<()> {
        let (from, deadline) = (self.progress().bytes, Instant::now() + LONG);
        while self.progress().bytes < from + GOES_ON {
            if Instant::now() > deadline || self.ends.iter().any(JoinHandle::is_finished) {
                return Err(Error::failed(format!("the transfer stands still at {} bytes", self.progress().bytes)));
            }
            std::thread::yield_now();
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it; all that was sent must have arrived. Returns the longest stall since the mark.
    fn end(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        for end in self.ends {
            ends.push(end.join().map_err(|_| Error::failed("a transfer's thread panicked"))??);
        }
        assert_eq!(ends[0], ends[1], "what was sent has arrived");
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(progress.stall)
    }
}

/// Bytes that depend on their place.
fn fill(chunk: &mut [u8], from: u64) {
    for (at, byte) in (from..).zip(chunk) {
        *byte = (at ^ at >> 8 ^ at >> 16) as u8;
    }
}

/// Waits until a host's status shows this path MTU to a peer.
fn wait_for_mtu(scene: &Scene, host: usize, peer: usize, bytes: u32) -> Result<()> {
    let name = scene.hosts[peer].name();
    let what = format!("{bytes} B to {name}");
    let shows =
        |status: &meshd::api::Status| status.peers.iter().any(|peer| peer.name == name && peer.mtu_bytes == bytes);
    scene.mesh.wait_for(&scene.hosts[host], &what, LONG, shows).map(drop)
}

fn transfers(scene: &Scene) -> Result<[Transfer; 2]> {
    let (a, b) = (&scene.hosts[0], &scene.hosts[1]);
    let (near, far) = (scene.mesh.overlay(a), scene.mesh.overlay(b));
    Ok([Transfer::start(a, near.0.into(), b, far.0.into())?, Transfer::start(a, near.1.into(), b, far.1.into())?])
}

fn black_hole(lab: &Lab) -> Result<()> {
    shrinks(lab, "a black hole", false)
}

fn told(lab: &Lab) -> Result<()> {
    shrinks(lab, "a router that tells", true)
}

/// One way of two shrinks in the middle of two transfers, one over IPv4 and one over IPv6.
fn shrinks(lab: &Lab, what: &str, tell: bool) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (a, b) = (&scene.hosts[0], &scene.hosts[1]);
    let transfers = transfers(&scene)?;
    transfers.iter().try_for_each(Transfer::goes_on)?;
    wait_for_mtu(&scene, 0, 1, 1_420)?;
    transfers.iter().for_each(Transfer::mark);
    scene.wan.way("a", "b").mtu(1_400, tell);
    scene.mesh.daemon(a)?.wait_for_output("path MTU fell from 1420 to 1280 B", LONG)?;
    wait_for_mtu(&scene, 0, 1, SMALL)?;
    transfers.iter().try_for_each(Transfer::goes_on)?;
    // The errors told the kernel of 1,280 B, the routes of what passes: both headers and the time stamps' option go off.
    let segments = [SMALL - 20 - 20 - 12, SMALL - 40 - 20 - 12];
    for (transfer, segment) in transfers.iter().zip(segments) {
        assert_eq!(transfer.segment()?, segment);
    }
    let status = scene.mesh.status(b)?;
    assert_eq!(status.peers[0].mtu_bytes, 1_420, "the other way carries what it did");
    let too_big = scene.wan.counts("a", "b").too_big;
    transfers.iter().try_for_each(Transfer::goes_on)?;
    let since = scene.wan.counts("a", "b").too_big - too_big;
    assert!(since <= 16, "{since} packets too large after the path was sized: more than probes are");
    let (near, far) = (scene.mesh.overlay(a), scene.mesh.overlay(b));
    datagram(a, near.0.into(), b, far.0.into(), &[7; 1_380])?;
    for (transfer, family) in transfers.into_iter().zip(["IPv4", "IPv6"]) {
        println!("{what}, {family}: stalled for {:.2} s", transfer.end()?.as_secs_f64());
    }
    Ok(())
}

fn smaller_device(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let transfers = transfers(&scene)?;
    transfers.iter().try_for_each(Transfer::goes_on)?;
    scene.hosts[0].set_mtu("eth0", 1_400)?;
    wait_for_mtu(&scene, 0, 1, SMALL)?;
    transfers.iter().try_for_each(Transfer::goes_on)?;
    transfers.into_iter().try_for_each(|transfer| transfer.end().map(drop))
}

fn narrow(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    for host in &scene.hosts {
        host.set_mtu("eth0", 1_300)?;
    }
    scene.mesh.start(&[&scene.hosts[0]])?;
    scene.mesh.join(&scene.hosts[1], scene.underlay[1])?;
    scene.mesh.start(&[&scene.hosts[1]])?;
    scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
    for host in &scene.hosts {
        scene.mesh.daemon(host)?.wait_for_output("datagrams may be fragmented", LONG)?;
    }
    let transfers = transfers(&scene)?;
    transfers.iter().try_for_each(Transfer::goes_on)?;
    transfers.into_iter().try_for_each(|transfer| transfer.end().map(drop))
}

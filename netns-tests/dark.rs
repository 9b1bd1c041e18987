//! While the daemon is away nothing that belongs into the mesh leaves in clear by the default route.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::Case;
use crate::lab::capture::Captured;
use crate::lab::error::Context;
use crate::lab::wan::Packet;
use crate::lab::{Capture, Error, Flow, Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[Case {
    name: "dark::nothing_leaves_in_clear_while_the_daemon_is_down",
    needs: &[],
    run: nothing_leaves_in_clear,
}];

/// How often the daemon is stopped and killed under traffic.
const ROUNDS: usize = 3;

/// Datagrams to each target that must have been tried in each state.
const TRIED: u64 = 20;

/// A network that b carries for the others.
const CARRIED: [&str; 2] = ["192.0.2.0/24", "2001:db8:beef::/48"];

/// ```text
///     a ~~~~ b        a's default route leads to the same wire; everything on it is captured while a's daemon
///                     is up, stopped, killed and coming back, and a sends to b's addresses and networks all the time
/// ```
fn nothing_leaves_in_clear(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["b", "a"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let (b, a) = (all[0], all[1]);
    mesh.admit_offline_with(a, scene.underlay[1], &[])?;
    // b carries its networks by a certificate that says so: the same host, signed again.
    let request = mesh.ctl(b).args(["request", "--node", "b"]).check()?;
    let sign = mesh.ctl(b).args(["sign", "-", "--authority"]).arg(mesh.authority());
    let sign = sign.args(CARRIED.iter().flat_map(|network| ["--route", network])).input(request);
    std::fs::write(mesh.directory(b).join("node.cert"), sign.check()?).context("place the certificate")?;
    let (b4, b6) = mesh.overlay(b);
    let inside = Inside { v6: u128::from(b6) >> 64 };
    let nobody = Ipv4Addr::new(10, 77, 200, 200);
    let targets: [IpAddr; 5] = [
        b4.into(),
        b6.into(),
        nobody.into(),
        Ipv4Addr::new(192, 0, 2, 7).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0xbeef, 0, 0, 0, 0, 7).into(),
    ];
    let wire = Capture::start(lab, a, "eth0")?;
    // Before the first start nothing is set up: the same packets leave, and the capture sees them.
    for target in targets {
        send_one(a, target)?;
        wire.wait_for("packet in clear", LONG, |packet| {
            Packet::parse(packet.ip()).is_some_and(|ip| ip.destination == target)
        })?;
    }
    mesh.start(&[b, a])?;
    mesh.wait_until_all_up(&all, LONG)?;
    mesh.wait_for(a, "the networks that b carries", LONG, |status| status.peers[0].prefixes.len() == CARRIED.len())?;
    wire.clear();
    let traffic = Traffic::start(a, &targets)?;
    let check = |state: &str| -> Result<()> {
        traffic.wait_for_more()?;
        let leaked = wire.packets(|packet| inside.goes_there(packet));
        let first = leaked.first().and_then(|packet| Packet::parse(packet.ip())).map(|ip| ip.destination);
        assert_eq!(leaked.len(), 0, "in clear while {state}: the first to {first:?}");
        assert_eq!(wire.missed(), 0);
        Ok(())
    };
    check("up")?;
    for _ in 0..ROUNDS {
        mesh.stop(&[a])?;
        check("stopped")?;
        let began = Instant::now();
        let error = connect(a, b, b4).expect_err("nobody is there");
        println!("    stopped: a connection is refused at once ({:.2?}): {error}", began.elapsed());
        mesh.start(&[a])?;
        mesh.wait_until_all_up(&all, LONG)?;
        connect(a, b, b4)?.exchange(b"opened after it came back")?;
        check("started")?;
        mesh.kill(a)?;
        check("killed")?;
        connect(a, b, b4).expect_err("nobody is there");
        mesh.start(&[a])?;
        mesh.wait_until_all_up(&all, LONG)?;
        check("back")?;
    }
    // A flow from before lives through both, and its retransmissions stay inside, too.
    let mut flow = connect(a, b, b4)?;
    flow.exchange(b"before")?;
    mesh.kill(a)?;
    flow.send(b"while it is dead")?;
    check("killed, with a connection open")?;
    mesh.start(&[a])?;
    flow.receive(b"while it is dead")?;
    mesh.stop(&[a])?;
    check("stopped again")?;
    println!("    {} datagrams were tried, none left in clear", traffic.stop()?);
    // The covers did it: without them the same packet leaves again.
    mesh.meshd(a).arg("--cleanup").check()?;
    send_one(a, b4.into())?;
    wire.wait_for("packet in clear", LONG, |packet| inside.goes_there(packet))
}

/// Connects as an application would that knows nothing of the mesh: the kernel chooses the way.
fn connect(from: &Host, to: &Host, target: Ipv4Addr) -> Result<Flow> {
    Flow::open(from, IpAddr::V4(Ipv4Addr::UNSPECIFIED), to, target.into())
}

/// What belongs into the mesh.
struct Inside {
    /// The upper half of the overlay's IPv6 range.
    v6: u128,
}

impl Inside {
    fn goes_there(&self, packet: &Captured) -> bool {
        Packet::parse(packet.ip()).is_some_and(|ip| match ip.destination {
            IpAddr::V4(v4) => matches!(v4.octets(), [10, 77, ..] | [192, 0, 2, _]),
            IpAddr::V6(v6) => u128::from(v6) >> 64 == self.v6 || v6.segments()[..3] == [0x2001, 0xdb8, 0xbeef],
        })
    }
}

fn unspecified(target: IpAddr) -> SocketAddr {
    match target {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn send_one(host: &Host, target: IpAddr) -> Result<()> {
    let socket = host.enter(|| UdpSocket::bind(unspecified(target))).context("bind")?;
    socket.send_to(b"private", SocketAddr::new(target, 4711)).context(format_args!("send to {target}")).map(drop)
}

/// Sends to all targets again and again, each time from a fresh socket, so that no route is remembered.
struct Traffic {
    tried: std::sync::Arc<AtomicU64>,
    stop: Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Traffic {
    fn start(host: &Host, targets: &[IpAddr]) -> Result<Traffic> {
        let tried = std::sync::Arc::new(AtomicU64::new(0));
        let (stop, stopped) = channel();
        let (host, targets, counted) = (host.clone(), targets.to_vec(), tried.clone());
        let work = move || loop {
            for target in &targets {
                match host.enter(|| UdpSocket::bind(unspecified(*target))?.send_to(b"private", (*target, 4711))) {
                    Ok(_) => {}
                    // What the covers say, and what a tunnel without a peer says.
                    Err(error) if is_refusal(error.kind()) => {}
                    Err(error) => return Err(Error::failed(format!("send to {target}: {error}"))),
                }
            }
            counted.fetch_add(targets.len() as u64, Ordering::Relaxed);
            match stopped.recv_timeout(Duration::from_millis(1)) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return Ok(()),
            }
        };
        Ok(Traffic { tried, stop, thread: thread::Builder::new().spawn(work).context("start the traffic")? })
    }

    /// Returns once every target was tried often enough from now on.
    fn wait_for_more(&self) -> Result<()> {
        let enough = self.tried.load(Ordering::Relaxed) + TRIED * 5;
        let deadline = Instant::now() + LONG;
        while self.tried.load(Ordering::Relaxed) < enough {
            if self.thread.is_finished() || Instant::now() > deadline {
                return Err(Error::failed("the traffic has ceased"));
            }
            thread::yield_now();
        }
        Ok(())
    }

    fn stop(self) -> Result<u64> {
        let _ = self.stop.send(());
        let ended = self.thread.join().map_err(|_| Error::failed("the traffic's thread panicked"))?;
        ended.map(|()| self.tried.load(Ordering::Relaxed))
    }
}

fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable)
}

//! What a restart costs applications: packets, and how long nothing comes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::flow::connect;
use crate::lab::{Error, Host, Lab, Proc, Result, ServiceManager, look, place};
use crate::restart::place_program;
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "hold::a_planned_restart_loses_no_packet_at_a_thousand_a_second", needs: &[], run: restarts }];

/// Between two packets of a stream: a thousand a second.
const PACE: Duration = Duration::from_millis(1);
/// Between two questions that are echoed: fifty a second.
const QUESTION_PACE: Duration = Duration::from_millis(20);
/// Bytes of a packet: a query of a database.
const PACKET: usize = 200;
/// Bytes of a transfer at each turn: 13 Mbit/s, which is no load.
const CHUNK: usize = 8_192;
const CHUNK_PACE: Duration = Duration::from_millis(5);
/// What is judged of a stream behind a restart.
const AFTER: Duration = Duration::from_millis(500);
/// The ways to restart: `meshctl restart` as it is, and after another program was put in place; by signals without a service
/// manager, and with one that keeps the device and the port.
const KINDS: [&str; 6] = [
    "meshctl restart",
    "another program, meshctl restart",
    "SIGTERM and a start",
    "SIGKILL and a start",
    "SIGTERM and a start, under a manager",
    "SIGKILL and a start, under a manager",
];
/// How often each kind of restart is made.
const ROUNDS: usize = 3;

/// Numbered packets at a pace, and when each came.
pub struct Stream {
    sent: Arc<AtomicU64>,
    arrivals: Arc<Mutex<BTreeMap<u64, Instant>>>,
    threads: Vec<JoinHandle<()>>,
    /// Packets of [`AFTER`].
    after: u64,
}

/// A socket that a test which is late loses nothing at.
fn socket(host: &Host, address: IpAddr) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind(SocketAddr::new(address, 0))).context("a socket")?;
    // Where the kernel allows no more than its limit, that much.
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20));
    socket.set_read_timeout(Some(Duration::from_millis(200))).context("a socket's patience")?;
    Ok(socket)
}

impl Stream {
    /// Sends from one host to another; with `echoed`, there and back, and what counts is when each is back.
    pub fn start(
        scene: &Scene,
        way: (usize, usize),
        pace: Duration,
        echoed: bool,
        over: &Arc<AtomicBool>,
    ) -> Result<Stream> {
        let (from, to) = (&scene.hosts[way.0], &scene.hosts[way.1]);
        let near = socket(from, scene.mesh.overlay(from).0.into())?;
        let far = socket(to, scene.mesh.overlay(to).0.into())?;
        let target = far.local_addr().context("an address")?;
        let (sent, arrivals) = (Arc::<AtomicU64>::default(), Arc::<Mutex<BTreeMap<u64, Instant>>>::default());
        let sender = near.try_clone().context("a socket")?;
        let (counter, ended) = (Arc::clone(&sent), Arc::clone(over));
        let send = move || {
            let (mut packet, began) = ([0; PACKET], Instant::now());
            while !ended.load(Ordering::Relaxed) {
                let number = counter.load(Ordering::Relaxed);
                packet[..8].copy_from_slice(&number.to_be_bytes());
                // Refused is lost, and counted as such.
                let _ = sender.send_to(&packet, target);
                counter.store(number + 1, Ordering::Relaxed);
                let due = pace * u32::try_from(number + 1).unwrap_or(u32::MAX);
                thread::sleep(due.saturating_sub(began.elapsed()));
            }
        };
        let (end, other) = if echoed { (near, Some(far)) } else { (far, None) };
        let (seen, ended) = (Arc::clone(&arrivals), Arc::clone(over));
        let receive = move || {
            let mut packet = [0; PACKET];
            while !ended.load(Ordering::Relaxed) {
                if end.recv_from(&mut packet).is_ok() {
                    let number = u64::from_be_bytes(packet[..8].try_into().expect("eight bytes"));
                    seen.lock().unwrap_or_else(PoisonError::into_inner).entry(number).or_insert_with(Instant::now);
                }
            }
        };
        let mut threads = vec![thread::spawn(send), thread::spawn(receive)];
        if let Some(other) = other {
            let ended = Arc::clone(over);
            threads.push(thread::spawn(move || {
                let mut packet = [0; PACKET];
                while !ended.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = other.recv_from(&mut packet) {
                        let _ = other.send_to(&packet[..length], from);
                    }
                }
            }));
        }
        let after = (AFTER.as_micros() / pace.as_micros()) as u64;
        Ok(Stream { sent, arrivals, threads, after })
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until a packet sent from now on has come.
    pub fn wait_for(&self, number: u64) -> Result<()> {
        look::wait("packets pass", LONG, || {
            let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = arrivals.last_key_value().map(|(newest, _)| *newest);
            Ok(match newest {
                Some(newest) if newest >= number => look::Look::Found(()),
                newest => look::Look::NotYet(format!("{newest:?} of {number}")),
            })
        })
    }

    /// Of the packets with these numbers: how many did not come, and the longest time between two that did.
    pub fn judge(&self, from: u64, to: u64) -> (u64, Duration) {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times: Vec<Instant> = arrivals.range(from..to).map(|(_, at)| *at).collect();
        let lost = (to - from).saturating_sub(times.len() as u64);
        times.sort();
        let silence = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        (lost, silence)
    }

    /// Waits for its threads, which end once `over` is said.
    pub fn end(self) {
        self.threads.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
    }
}

/// A transfer over one TCP connection, which never ends by itself; returns the bytes that came.
fn transfer(scene: &Scene, over: &Arc<AtomicBool>) -> Result<(JoinHandle<std::io::Result<u64>>, Arc<AtomicU64>)> {
    let (from, to) = (&scene.hosts[0], &scene.hosts[1]);
    let (source, target): (IpAddr, IpAddr) = (scene.mesh.overlay(from).0.into(), scene.mesh.overlay(to).0.into());
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(target, 0))).context("a listener")?;
    let address = listener.local_addr().context("an address")?;
    let mut near: TcpStream = from.enter(|| connect(source, address)).context("a connection")?;
    let (mut far, _) = listener.accept().context("a connection")?;
    near.set_write_timeout(Some(LONG)).context("patience")?;
    let (count, ended) = (Arc::<AtomicU64>::default(), Arc::clone(over));
    let counter = Arc::clone(&count);
    let read = thread::spawn(move || {
        let mut buffer = [0; CHUNK];
        loop {
            match far.read(&mut buffer)? {
                0 => return Ok(()),
                length => counter.fetch_add(length as u64, Ordering::Relaxed),
            };
        }
    });
    let write = thread::spawn(move || {
        let (chunk, mut sent) = ([7; CHUNK], 0);
        while !ended.load(Ordering::Relaxed) {
            near.write_all(&chunk)?;
            sent += CHUNK as u64;
            thread::sleep(CHUNK_PACE);
        }
        drop(near);
        read.join().expect("the thread ends").map(|()| sent)
    });
    Ok((write, count))
}

/// The manager's patience; nothing hangs here.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Starts a daemon from a file, by itself or under a manager, and waits until it says that it serves.
fn start(scene: &Scene, host: &Host, program: &Path, manager: Option<&ServiceManager>) -> Result<Proc> {
    let command = match manager {
        Some(manager) => manager.command(program, WATCHDOG)?,
        None => host.command(program),
    };
    let daemon = command.arg("--config").arg(scene.mesh.config(host)).spawn()?;
    daemon.wait_for_output(" is up", LONG)?;
    Ok(daemon)
}

/// ```text
///     a---b           a thousand packets a second each way, fifty echoes a second, and a transfer; b is restarted in all ways
/// ```
fn restarts(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let b = all[1];
    mesh.start(&all[..1])?;
    mesh.join(b, scene.underlay[1])?;
    let binary = place::binary("meshd")?;
    let bytes = std::fs::read(&binary).context(binary.display())?;
    let program = b.dir().join("meshd");
    place_program(&program, &bytes)?;
    let mut daemon = start(&scene, b, &program, None)?;
    let manager = ServiceManager::start(b)?;
    mesh.wait_until_all_up(&all, LONG)?;

    let over = Arc::new(AtomicBool::new(false));
    let streams = [
        ("to it", Stream::start(&scene, (0, 1), PACE, false, &over)?),
        ("from it", Stream::start(&scene, (1, 0), PACE, false, &over)?),
        ("echoed", Stream::start(&scene, (0, 1), QUESTION_PACE, true, &over)?),
    ];
    let (writer, transferred) = transfer(&scene, &over)?;
    streams.iter().try_for_each(|(_, stream)| stream.wait_for(10))?;

    let mut lost_when_planned = Vec::new();
    for kind in KINDS {
        let manager = kind.ends_with("under a manager").then_some(&manager);
        if manager.is_some_and(|manager| manager.kept().is_empty()) {
            daemon.stop(LONG)?;
            daemon = start(&scene, b, &program, manager)?;
            mesh.wait_until_all_up(&all, LONG)?;
            // What that cost is not judged.
            streams.iter().try_for_each(|(_, stream)| stream.wait_for(stream.sent() + 2 * stream.after))?;
        }
        for _ in 0..ROUNDS {
            let first: Vec<u64> = streams.iter().map(|(_, stream)| stream.sent()).collect();
            let mut told = String::new();
            match kind {
                "meshctl restart" => told = mesh.ctl(b).arg("restart").check()?,
                "another program, meshctl restart" => {
                    place_program(&program, &bytes)?;
                    told = mesh.ctl(b).arg("restart").check()?;
                }
                _ => {
                    daemon.signal(if kind.starts_with("SIGTERM") { Signal::SIGTERM } else { Signal::SIGKILL });
                    daemon.wait(LONG)?;
                    daemon = start(&scene, b, &program, manager)?;
                }
            }
            let last: Vec<u64> = streams.iter().map(|(_, stream)| stream.sent()).collect();
            let mut figures = Vec::new();
            for (number, (name, stream)) in streams.iter().enumerate() {
                // Twice as far, so that what is judged is not on its way past others any more.
                stream.wait_for(last[number] + 2 * stream.after)?;
                // From some time before, so that the last that came before the silence is among them.
                let from = first[number].saturating_sub(stream.after);
                let (lost, silence) = stream.judge(from, last[number] + stream.after);
                figures.push(format!("{name}: {lost} lost, longest silence {silence:.1?}"));
                if kind.ends_with("meshctl restart") || kind == "SIGTERM and a start, under a manager" {
                    lost_when_planned.push((kind, *name, lost));
                }
            }
            println!("    {kind}: {}", figures.join("; "));
            assert!(told.is_empty() || told.contains("no packet was lost here"), "{told}");
        }
    }
    let before = transferred.load(Ordering::Relaxed);
    look::wait("the transfer goes on", LONG, || Ok((transferred.load(Ordering::Relaxed) > before).then_some(())))?;
    over.store(true, Ordering::Relaxed);
    let sent = writer.join().expect("the thread ends").context("the transfer's connection")?;
    assert_eq!(transferred.load(Ordering::Relaxed), sent, "every byte came, over the same connection");
    for (_, stream) in streams {
        stream.end();
    }
    let lost: Vec<_> = lost_when_planned.iter().filter(|(_, _, lost)| *lost > 0).collect();
    if !lost.is_empty() {
        return Err(Error::failed(format!("packets lost by planned restarts: {lost:?}")));
    }
    daemon.stop(LONG).map(drop)
}

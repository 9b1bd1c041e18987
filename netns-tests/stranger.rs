//! A machine on the same wire that is no member: what it can see, and what it can do.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::mesh::{PORT, brief};
use crate::lab::wan::Packet;
use crate::lab::{Capture, Lab, Result};
use crate::scene::{LONG, Scene};
use meshd::api::Status;

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "stranger::sees_no_plaintext", needs: &[], run: sees_no_plaintext },
    Case { name: "stranger::gets_no_answer_to_a_flood_of_rubbish", needs: &[], run: gets_no_answer },
    Case { name: "stranger::copies_of_datagrams_move_nothing", needs: &[], run: copies_move_nothing },
];

/// Datagrams of rubbish that the stranger sends.
const FLOOD: usize = 100_000;

/// Sent before the stranger waits for the network to have carried them: half of what a device queues.
const BURST: usize = 250;

/// Sent before the stranger waits for the daemon to have dropped them: what its socket's buffer holds.
const ROUND: usize = 1_000;

/// How much larger a daemon may be after the flood than before: its table of sources, its queues filled for the first
/// time, and what an allocator keeps.
const GROWTH_KIB: u64 = 4 * 1024;

/// The generator's seed: a failure repeats with the same rubbish.
const SEED: u64 = 0x7655;

/// ```text
///   observatory-one ===== observatory-two        everything on this wire is captured, from before the first contact
/// ```
fn sees_no_plaintext(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["observatory-one", "observatory-two"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let wire = Capture::start(lab, all[0], "eth0")?;
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let inside = Capture::start(lab, all[0], "mesh0")?;
    // No two windows of it are alike, so that any part of it would be found.
    let needle = b"the transfer of 4711 marks to account 0815 is approved by the board";
    let payload: Vec<u8> = needle.iter().copied().cycle().take(64 * 1024).collect();
    scene.flow(0, 1)?.exchange(&payload)?;
    scene.check_every_pair(&all)?;
    inside.wait_for("payload", LONG, |packet| find(&packet.bytes, needle))?;
    let carried: usize = wire.packets(is_mesh).iter().map(|packet| packet.bytes.len()).sum();
    assert!(carried > 2 * payload.len(), "the flow went over this wire: {carried} bytes");
    assert_eq!(wire.count(|packet| !is_mesh(packet)), 0, "nothing but the mesh's own port is used");
    for window in needle.windows(8) {
        assert!(!wire.contains_plaintext(window), "{:?} is on the wire", String::from_utf8_lossy(window));
    }
    for name in ["observatory-one", "observatory-two"] {
        assert!(!wire.contains_plaintext(name.as_bytes()), "the wire tells the name {name}");
    }
    Ok(())
}

fn is_mesh(packet: &crate::lab::capture::Captured) -> bool {
    Packet::parse(packet.ip())
        .is_some_and(|ip| ip.protocol == 17 && (ip.source_port == PORT || ip.destination_port == PORT))
}

fn find(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// ```text
///     a---b           a, b: a mesh, with a conversation that goes on
///      \              s: no member; knows a's address and has copies of what a and b sent
///       s
/// ```
fn gets_no_answer(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let stranger = lab.host("s")?;
    let on_stranger = scene.wan.attach(&stranger)?;
    let wire = Capture::start(lab, all[1], "eth0")?;
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before the flood")?;
    let genuine: Vec<Vec<u8>> = wire
        .packets(|packet| packet.outgoing && is_mesh(packet))
        .iter()
        .filter_map(|packet| Packet::parse(packet.ip()).map(|ip| ip.payload.to_vec()))
        .collect();
    let kinds: BTreeSet<u8> = genuine.iter().filter_map(|bytes| bytes.first().copied()).collect();
    assert!([0x10, 0x11, 4].iter().all(|kind| kinds.contains(kind)), "b sent {kinds:x?}");
    drop(wire);
    let targets = [SocketAddr::from((scene.underlay[0], PORT)), SocketAddr::from((scene.v6[0], PORT))];
    let bind = |address: IpAddr| stranger.enter(|| UdpSocket::bind(SocketAddr::new(address, 0))).context("bind");
    let sockets = [bind(on_stranger.v4.into())?, bind(on_stranger.v6.into())?];
    let mut rubbish = Rubbish { rng: ChaCha12Rng::seed_from_u64(SEED), genuine, number: 0 };
    let dropped_before = dropped(&mesh.status(all[0])?);
    let resident_before = mesh.resident_kib(all[0])?;
    let began = Instant::now();
    for sent in 1..=FLOOD {
        let number = usize::from(sent % 4 == 0);
        let datagram = rubbish.next();
        sockets[number].send_to(&datagram, targets[number]).context("send rubbish")?;
        if sent % BURST == 0 {
            let all_sent = sent as u64;
            scene.wan.wait(LONG, "the rubbish", |core| core.count("s", "a").delivered >= all_sent)?;
        }
        if sent % ROUND == 0 {
            let all_sent = sent as u64;
            let what = format!("{sent} datagrams as dropped");
            mesh.wait_for(all[0], &what, LONG, |status| dropped(status) - dropped_before >= all_sent)?;
            flow.exchange(b"during the flood")?;
        }
    }
    let took = began.elapsed();
    let resident = mesh.resident_kib(all[0])?;
    let status = mesh.status(all[0])?;
    println!("    {FLOOD} datagrams in {took:.2?}, seed {SEED:#x}, dropped: {:?}", status.drops);
    println!("    resident before {resident_before} KiB, after {resident} KiB (bound: {GROWTH_KIB} KiB more)");
    assert_eq!(scene.wan.counts("s", "a").delivered, FLOOD as u64);
    for member in ["a", "b"] {
        let answers = scene.wan.counts(member, "s");
        assert_eq!(answers.entered, 0, "{member} answered the stranger: {answers:?}");
    }
    for socket in &sockets {
        socket.set_nonblocking(true)?;
        let heard = socket.recv(&mut [0; 2048]).expect_err("nothing was sent to the stranger");
        assert_eq!(heard.kind(), ErrorKind::WouldBlock);
    }
    assert!(resident <= resident_before + GROWTH_KIB, "{resident_before} KiB before, {resident} KiB after");
    assert_eq!(status.counts.up, 1, "{}", brief(&status));
    assert!(status.problems.is_empty(), "{}", brief(&status));
    for target in targets {
        let what = format!("a TCP connection to {target}");
        let error = stranger.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(2))).expect_err(&what);
        assert!(matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::TimedOut), "{what}: {error}");
    }
    flow.exchange(b"after the flood")?;
    scene.check_every_pair(&all)
}

/// ```text
///     a---b           b joined over the network, c was signed offline; s has copies of all that both sent to a, and
///     |\               sends them to a from its own address
///     c s
/// ```
fn copies_move_nothing(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let stranger = lab.host("s")?;
    let on_stranger = scene.wan.attach(&stranger)?;
    let wire = Capture::start(lab, all[0], "eth0")?;
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    mesh.admit_offline(all[2], scene.underlay[2])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before the copies")?;
    let paths = |status: &Status| -> Vec<_> { status.peers.iter().map(|peer| peer.path.clone()).collect() };
    // A second and more after they were sent, for what is fresh might be taken for a repetition.
    let before = mesh.wait_for(all[0], "some age", LONG, |status| status.node.uptime_seconds >= 3)?;
    let copies: Vec<Vec<u8>> = wire
        .packets(|packet| !packet.outgoing && is_mesh(packet))
        .iter()
        .filter_map(|packet| Packet::parse(packet.ip()).map(|ip| ip.payload.to_vec()))
        .collect();
    let kinds: BTreeSet<u8> = copies.iter().filter_map(|bytes| bytes.first().copied()).collect();
    assert!([0x10, 0x11, 4].iter().all(|kind| kinds.contains(kind)), "a was sent {kinds:x?}");
    let socket = stranger.enter(|| UdpSocket::bind((on_stranger.v4, 0))).context("bind")?;
    let target = SocketAddr::from((scene.underlay[0], PORT));
    let dropped_before = dropped(&before);
    for (number, copy) in (1..).zip(&copies) {
        socket.send_to(copy, target).context("send a copy")?;
        scene.wan.wait(LONG, "the copy", |core| core.count("s", "a").delivered == number)?;
    }
    let what = format!("{} copies as dropped", copies.len());
    let after = mesh.wait_for(all[0], &what, LONG, |status| dropped(status) - dropped_before >= copies.len() as u64)?;
    println!("    {} copies, types {kinds:x?}, dropped: {:?}", copies.len(), after.drops);
    let answers = scene.wan.counts("a", "s");
    assert_eq!(answers.entered, 0, "a copy was answered: {answers:?}");
    assert_eq!(paths(&after), paths(&before), "the tunnels still lead where they led");
    assert_eq!(after.counts.up, 2, "{}", brief(&after));
    flow.exchange(b"after the copies")
}

/// All that a daemon dropped, for whatever reason.
fn dropped(status: &Status) -> u64 {
    status.drops.values().sum()
}

/// Makes datagrams that no node has reason to answer.
struct Rubbish {
    rng: ChaCha12Rng,
    /// What a member sent to another.
    genuine: Vec<Vec<u8>>,
    number: usize,
}

impl Rubbish {
    fn next(&mut self) -> Vec<u8> {
        self.number += 1;
        match self.number % 10 {
            0 => self.random(1400),
            1 => self.headed(&[(self.number / 10) as u8], 1400),
            2 => self.shaped(&[1, 0, 0, 0], 148),
            3 => self.cut(&[1, 0, 0, 0], 148),
            4 => {
                let (head, len) = [([2, 0, 0, 0], 92), ([3, 0, 0, 0], 64)][self.number / 10 % 2];
                self.shaped(&head, len)
            }
            5 => self.data(),
            6 => self.introduction(),
            7 => self.join(),
            8 => self.flipped(),
            _ => self.genuine_cut(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.next_u32() as usize % bound.max(1)
    }

    fn random(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.below(most + 1)];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// A given beginning and a random rest of random length.
    fn headed(&mut self, head: &[u8], most: usize) -> Vec<u8> {
        let rest = self.random(most - head.len());
        [head, &rest].concat()
    }

    /// A given beginning, random after that, of the right length.
    fn shaped(&mut self, head: &[u8], len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes[..head.len()].copy_from_slice(head);
        bytes
    }

    fn cut(&mut self, head: &[u8], len: usize) -> Vec<u8> {
        let shorter = head.len() + self.below(len - head.len());
        self.shaped(head, shorter)
    }

    /// Data messages of no session, with counters from both ends of the range.
    fn data(&mut self) -> Vec<u8> {
        let len = 32 + 16 * self.below(80);
        let mut bytes = self.shaped(&[4, 0, 0, 0], len);
        let counter = [u64::from(self.rng.next_u32()), u64::MAX, u64::MAX - 8192][self.number / 10 % 3];
        bytes[8..16].copy_from_slice(&counter.to_le_bytes());
        bytes
    }

    fn introduction(&mut self) -> Vec<u8> {
        let len = 256 + self.below(1144);
        self.shaped(&[0x10, 1, 0, 0], len)
    }

    fn join(&mut self) -> Vec<u8> {
        let kind = [0x11, 0x12][self.number / 10 % 2];
        self.shaped(&[kind, 1, 0, 0], 1200)
    }

    /// What a member really sent, with one bit flipped. The last sixteen bytes of a handshake are left alone: with them
    /// flipped it is a copy with a wrong cookie, which a loaded node answers with a right one.
    fn flipped(&mut self) -> Vec<u8> {
        let choice = self.below(self.genuine.len());
        let mut bytes = self.genuine[choice].clone();
        let covered = if matches!(bytes[0], 1 | 2) { bytes.len() - 16 } else { bytes.len() };
        let bit = self.below(covered * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    }

    /// What a member really sent, cut off.
    fn genuine_cut(&mut self) -> Vec<u8> {
        let choice = self.below(self.genuine.len());
        let bytes = self.genuine[choice].clone();
        let len = self.below(bytes.len());
        bytes[..len].to_vec()
    }
}

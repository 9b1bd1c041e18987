//! Peers of one real daemon that are made here, from this crate's own identity, wire and tunnel rooms.
//!
//! Each has keys, a certificate of the mesh's authority, a signed record, an address and a socket of its own on another host,
//! makes itself known with an introduction and a WireGuard handshake, keeps the session alive, answers the daemon's probes,
//! and probes it where its identifier is the lower one. They do not gossip, so the daemon tells them of each other and hears
//! nothing new; they carry no user traffic.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshd::config::DEFAULT_PORT;
use meshd::control::PROTOCOL_VERSION;
use meshd::identity::{
    Admission, Authority, NodeId, NodeKeys, Permissions, Record, SignedCertificate, SignedRecord, Term, WireguardKey,
};
use meshd::platform::clock;
use meshd::tunnel::{Host as TunnelHost, LEAST_BUFFER, Outbox, Sealed, Tunnel, TunnelOptions};
use meshd::wire::probe::{Probe, ProbeReply, ProbeReport, ProbeRequest};
use meshd::wire::{introduction, overlay};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand_core::{OsRng, RngCore};
use x25519_dalek::StaticSecret;

use crate::contender::Place;
use crate::lab::error::Context;
use crate::lab::{Error, Host, Result};

/// How long all of them may take to have a session.
const PATIENCE: Duration = Duration::from_secs(90);
/// Introductions of a second: below what the daemon takes from strangers altogether (600).
const PACE: f64 = 300.0;
/// How long a peer waits for its session until it introduces itself again.
const AGAIN: Duration = Duration::from_secs(3);
/// Each peer has its own address in here: the daemon counts strangers by address.
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);

/// The peers of one daemon.
pub struct Circle {
    server: Server,
    members: Vec<Member>,
}

impl Circle {
    /// Makes `count` peers (at most 30,000) on `far` for the daemon at `near`, whose configuration and keys lie in its host's
    /// directory and which is the first of its mesh. Those that probe do so each `interval`.
    ///
    /// # Errors
    /// Where its files cannot be read, or the sockets cannot be had.
    pub fn new(near: &Place, far: &Place, count: usize, interval: Duration) -> Result<Circle> {
        let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit).context("raise the limit of open files")?;
        // An address with a prefix on the loopback device makes the whole network the host's own.
        far.host.add_address("lo", IpAddr::V4(Ipv4Addr::from_bits(NETWORK.0.to_bits() + 1)), NETWORK.1)?;
        near.host.add_route((IpAddr::V4(NETWORK.0), NETWORK.1), Some(IpAddr::V4(far.underlay)), "eth0")?;
        let dir = near.host.dir().join("mesh");
        let text = fs::read_to_string(dir.join("authority.key")).context("read the authority's key")?;
        let authority = Authority::from_armor(&text, None).context("open the authority's key")?;
        let armor = fs::read_to_string(dir.join("node.cert")).context("read the daemon's certificate")?;
        let signed = SignedCertificate::from_armor(&armor, authority.anchor()).context("the daemon's certificate")?;
        let daemon = signed.certificate();
        let server = Server {
            node: daemon.node,
            key: daemon.wireguard_key,
            address_v6: daemon.address_v6,
            endpoint: (near.underlay, DEFAULT_PORT).into(),
            interval,
        };
        let mut members = Vec::with_capacity(count);
        while members.len() < count {
            let address = overlay_address(members.len());
            if address == daemon.address_v4 {
                return Err(Error::failed(format!("the daemon has {address}, which is for a peer: run it again")));
            }
            members.push(Member::new(&authority, &server, &far.host, members.len(), address)?);
        }
        Ok(Circle { server, members })
    }

    /// Lets all of them make themselves known; returns how long it took until each had its session, in seconds.
    ///
    /// # Errors
    /// Where one has none in time.
    pub fn gather(&mut self) -> Result<f64> {
        let began = Instant::now();
        serve(&mut self.members, &self.server, || began.elapsed() > PATIENCE, true)?;
        let seconds = began.elapsed().as_secs_f64();
        match self.members.iter().filter(|member| !member.has_session()).count() {
            0 => Ok(seconds),
            silent => {
                let count = self.members.len();
                Err(Error::failed(format!("{silent} of {count} peers had no session after {seconds:.0} s")))
            }
        }
    }

    /// Lets all of them live for `time`.
    ///
    /// # Errors
    /// Where the sockets cannot be waited for.
    pub fn live(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        serve(&mut self.members, &self.server, || Instant::now() > until, false)
    }
}

/// The upper half of 10.88.0.0/16, where the mesh of the benchmarks lies.
fn overlay_address(index: usize) -> Ipv4Addr {
    let number = u32::try_from(index).unwrap_or(u32::MAX).min(0x7ffe);
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 88, 128, 1).to_bits() + number)
}

/// The daemon as its peers know it.
struct Server {
    node: NodeId,
    key: WireguardKey,
    address_v6: Ipv6Addr,
    endpoint: SocketAddr,
    /// Time between two probes of those that probe it.
    interval: Duration,
}

/// One peer.
struct Member {
    keys: NodeKeys,
    certificate: SignedCertificate,
    record: SignedRecord,
    address_v6: Ipv6Addr,
    host: Arc<TunnelHost>,
    tunnel: Arc<Tunnel>,
    socket: UdpSocket,
    introduced: Option<Instant>,
    /// When it probes next; `None` where the daemon probes it.
    next_probe: Option<Instant>,
    run: u32,
    sent: u32,
    answered: u32,
}

impl Member {
    fn new(authority: &Authority, server: &Server, far: &Host, index: usize, address_v4: Ipv4Addr) -> Result<Member> {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        // Beyond the network's first addresses, one of which is the loopback device's own.
        let underlay = Ipv4Addr::from_bits(NETWORK.0.to_bits() + 256 + number);
        let endpoint = SocketAddr::from((underlay, DEFAULT_PORT));
        let socket =
            far.enter(|| UdpSocket::bind(endpoint)).context(format_args!("open a peer's socket on {endpoint}"))?;
        socket.set_nonblocking(true).context("set up a peer's socket")?;
        let keys = NodeKeys::generate(&mut OsRng);
        let serial = u64::from(number) + 1_000;
        let admission = Admission {
            node: NodeId::generate(&mut OsRng),
            name: format!("peer-{index}").parse().context("a peer's name")?,
            address_v4,
            prefixes: Vec::new(),
            tags: Vec::new(),
            permissions: Permissions { authority: false, relay: false },
            serial,
            shares: Default::default(),
        };
        let now = clock::wall();
        let certificate =
            authority.issue(&admission, &keys.public(), &Term::offline(now)).context("sign a peer's certificate")?;
        let record = Record {
            mesh: authority.anchor().mesh,
            node: admission.node,
            sequence: 1,
            issued: now,
            expires: now + Record::LONGEST,
            endpoints: vec![endpoint],
            boot: OsRng.next_u64(),
            protocol_version: PROTOCOL_VERSION,
            certificate_serial: serial,
            features: 0,
            policy: None,
        };
        let record = SignedRecord::sign(&record, &keys.signing).context("sign a peer's record")?;
        let mut seed = [0; 32];
        OsRng.fill_bytes(&mut seed);
        let host = TunnelHost::new(StaticSecret::from(*keys.wireguard.to_bytes()), seed);
        let tunnel = host.add(*server.key.as_bytes(), TunnelOptions::default()).context("make a peer's tunnel")?;
        let address_v6 = certificate.certificate().address_v6;
        // Any moment of the first interval: peers do not begin together.
        let phase = server.interval.mul_f64(f64::from(OsRng.next_u32()) / f64::from(u32::MAX));
        let next_probe = (admission.node < server.node).then(|| Instant::now() + phase);
        Ok(Member {
            keys,
            certificate,
            record,
            address_v6,
            host,
            tunnel,
            socket,
            introduced: None,
            next_probe,
            run: OsRng.next_u32(),
            sent: 0,
            answered: 0,
        })
    }

    fn has_session(&self) -> bool {
        self.tunnel.status(clock::now()).session.is_some_and(|session| session.proven)
    }

    /// Makes itself known, and asks for a session.
    fn introduce(&mut self, server: &Server) {
        let (now, wall) = (clock::now(), clock::wall());
        let (key, signing) = (&server.key, &self.keys.signing);
        let made = introduction::seal(key, &self.certificate, Some(&self.record), signing, wall, false, &mut OsRng);
        if let Some(datagram) = made {
            let _ = self.socket.send_to(&datagram, server.endpoint);
        }
        let mut out = Outbox::new();
        let _ = self.tunnel.initiate(now, wall, &mut out);
        self.send(server, &mut out);
        self.introduced = Some(Instant::now());
    }

    /// Takes what has arrived.
    fn receive(&mut self, server: &Server, buffer: &mut [u8], opened: &mut [u8]) {
        while let Ok((len, source)) = self.socket.recv_from(buffer) {
            let (datagram, now, wall) = (&buffer[..len], clock::now(), clock::wall());
            let mut out = Outbox::new();
            match datagram.first() {
                Some(1..=3) => {
                    let _ = self.host.handle_handshake(now, wall, source, datagram, &mut out);
                }
                Some(4) => {
                    let mut guard = self.tunnel.lock();
                    let packet = guard.open(now, datagram, opened).map_or(0, |done| done.length);
                    let payload = overlay::unwrap(&opened[..packet], self.address_v6);
                    drop(guard);
                    match payload.and_then(Probe::decode) {
                        Some(Probe::Request(request)) => {
                            self.seal(server, &Probe::Reply(ProbeReply::to(&request, now, now, now)));
                        }
                        Some(Probe::Reply(reply)) if reply.sequence == self.sent => self.answered = self.sent,
                        _ => {}
                    }
                    self.tunnel.lock().flush(now, wall, &mut out);
                }
                _ => {}
            }
            self.send(server, &mut out);
        }
    }

    fn tick(&mut self, server: &Server) {
        let now = clock::now();
        if self.introduced.is_some() && self.tunnel.deadline() <= now {
            let mut out = Outbox::new();
            self.tunnel.tick(now, clock::wall(), &mut out);
            self.send(server, &mut out);
        }
        if self.next_probe.is_some_and(|due| due <= Instant::now()) && self.has_session() {
            self.probe(server);
            self.next_probe = self.next_probe.map(|due| due + server.interval);
        }
    }

    /// Probes the daemon, and tells it what the last probe gave.
    fn probe(&mut self, server: &Server) {
        let report = ProbeReport { sequence: self.answered, decided: self.sent, ..ProbeReport::default() };
        self.sent += 1;
        self.seal(
            server,
            &Probe::Request(ProbeRequest {
                sequence: self.sent,
                sent_nanos: clock::now().as_nanos(),
                run: self.run,
                interval_millis: u16::try_from(server.interval.as_millis()).unwrap_or(u16::MAX),
                report,
                ..ProbeRequest::default()
            }),
        );
    }

    fn seal(&self, server: &Server, probe: &Probe) {
        let packet = overlay::wrap(self.address_v6, server.address_v6, &probe.encode());
        let mut sealed = [0; LEAST_BUFFER + 512];
        if let Ok(Sealed::Datagram(len)) = self.tunnel.lock().seal(clock::now(), &packet, &mut sealed) {
            let _ = self.socket.send_to(&sealed[..len], server.endpoint);
        }
    }

    fn send(&self, server: &Server, out: &mut Outbox) {
        while let Some(datagram) = out.pop() {
            // What is lost is repeated, as on any network.
            let _ = self.socket.send_to(&datagram.bytes, server.endpoint);
        }
    }
}

/// Lets all of them live until `over`, or until each has a session where that is what is waited for.
fn serve(members: &mut [Member], server: &Server, over: impl Fn() -> bool, until_live: bool) -> Result<()> {
    let (mut buffer, mut opened) = (vec![0; 65_536], vec![0; 65_536]);
    let began = Instant::now();
    let mut introductions = 0_u32;
    loop {
        let mut live = true;
        for member in members.iter_mut() {
            member.tick(server);
            if !until_live || member.has_session() {
                continue;
            }
            live = false;
            let due = member.introduced.is_none_or(|at| at.elapsed() > AGAIN);
            if due && f64::from(introductions) < began.elapsed().as_secs_f64() * PACE {
                introductions += 1;
                member.introduce(server);
            }
        }
        if over() || (live && until_live) {
            return Ok(());
        }
        let mut fds: Vec<PollFd<'_>> =
            members.iter().map(|member| PollFd::new(member.socket.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::from(5_u8)).context("wait for the daemon")?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        for (member, _) in members.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            member.receive(server, &mut buffer, &mut opened);
        }
    }
}

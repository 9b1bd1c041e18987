//! One meshd among many peers with live sessions: what memory it takes.
//!
//! The daemon is a real one. Its peers are made here, from this crate's own identity, wire and tunnel rooms: each has keys,
//! a certificate of the mesh's authority, a signed record, an address and a socket of its own on the other host, makes
//! itself known with an introduction and a WireGuard handshake, keeps the session alive and answers the daemon's probes. They do
//! not gossip, so the daemon tells them of each other and hears nothing new; they carry no user traffic.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshd::api::{Client, PeerState};
use meshd::config::DEFAULT_PORT;
use meshd::control::PROTOCOL_VERSION;
use meshd::identity::{
    Admission, Authority, NodeId, NodeKeys, Permissions, Record, SignedCertificate, SignedRecord, Term, WireguardKey,
};
use meshd::platform::clock;
use meshd::tunnel::{Host as TunnelHost, LEAST_BUFFER, Outbox, Sealed, Tunnel, TunnelOptions};
use meshd::wire::probe::{Probe, ProbeReply};
use meshd::wire::{introduction, overlay};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand_core::{OsRng, RngCore};
use serde_json::{Value, json};
use x25519_dalek::StaticSecret;

use crate::lab::error::Context;
use crate::lab::{Error, Lab, Result};
use crate::member::Meshd;
use crate::meter::{self, Memory};
use crate::peer::Pair;

/// How long all of them may take to have a session.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the daemon then lives with them before its memory is read: some rounds of probes and digests.
const HOLD: Duration = Duration::from_secs(20);
/// Introductions of a second: below what the daemon takes from strangers altogether (600).
const PACE: f64 = 300.0;
/// How long a peer waits for its session until it introduces itself again.
const AGAIN: Duration = Duration::from_secs(3);
/// Each peer has its own address in here: the daemon counts strangers by address.
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);

/// What a run showed.
pub struct Crowd {
    peers: usize,
    /// Peers with which the daemon says it has a session and a link that is up.
    live: usize,
    /// How long it took until all had a session, seconds.
    seconds: f64,
    alone: Memory,
    together: Memory,
}

/// Lets `count` peers (at most 30,000) make themselves known to one daemon.
///
/// # Errors
/// Where the daemon does not start, or not all of them get a session.
pub fn run(meshd: &Meshd, count: usize) -> Result<Crowd> {
    let lab = Lab::new("tunnel-crowd")?;
    let crowd = among(&lab, meshd, count);
    if matches!(crowd, Err(Error::Failed(_))) {
        lab.fail();
    }
    crowd
}

fn among(lab: &Lab, meshd: &Meshd, count: usize) -> Result<Crowd> {
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).context("raise the limit of open files")?;
    let pair = Pair::new(lab)?;
    // An address with a prefix on the loopback device makes the whole network the host's own.
    pair.far().add_address("lo", IpAddr::V4(Ipv4Addr::from_bits(NETWORK.0.to_bits() + 1)), NETWORK.1)?;
    let gateway = IpAddr::V4(pair.places[1].underlay);
    pair.near().add_route((IpAddr::V4(NETWORK.0), NETWORK.1), Some(gateway), "eth0")?;
    let daemon = meshd.start_alone(&pair)?;
    daemon.wait_for_output(" is up", Duration::from_secs(20))?;
    let alone = meter::memory(daemon.pid())?;

    let dir = pair.near().dir().join("mesh");
    let text = fs::read_to_string(dir.join("authority.key")).context("read the authority's key")?;
    let authority = Authority::from_armor(&text, None).context("open the authority's key")?;
    let armor = fs::read_to_string(dir.join("node.cert")).context("read the daemon's certificate")?;
    let signed = SignedCertificate::from_armor(&armor, authority.anchor()).context("the daemon's certificate")?;
    let daemon_is = signed.certificate();
    let server = Server {
        key: daemon_is.wireguard_key,
        address_v6: daemon_is.address_v6,
        endpoint: (pair.places[0].underlay, DEFAULT_PORT).into(),
    };
    let mut members = Vec::with_capacity(count);
    while members.len() < count {
        let address = overlay_address(members.len());
        if address == daemon_is.address_v4 {
            return Err(Error::failed(format!("the daemon has {address}, which is for a peer: run it again")));
        }
        members.push(pair.far().enter(|| Member::new(&authority, &server, members.len(), address))?);
    }

    let began = Instant::now();
    serve(&mut members, &server, || began.elapsed() > PATIENCE, true)?;
    let seconds = began.elapsed().as_secs_f64();
    let silent = members.iter().filter(|member| !member.has_session()).count();
    if silent > 0 {
        return Err(Error::failed(format!("{silent} of {count} peers had no session after {seconds:.0} s")));
    }
    let until = Instant::now() + HOLD;
    serve(&mut members, &server, || Instant::now() > until, false)?;
    // Before the daemon is asked for anything: its answer is large and takes memory too.
    let together = meter::memory(daemon.pid())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let status = runtime.block_on(Client::new(dir.join("meshd.sock")).status()).context("ask the daemon")?;
    let live = status.peers.iter().filter(|peer| peer.state == PeerState::Up && peer.session_age_seconds.is_some());
    Ok(Crowd { peers: count, live: live.count(), seconds, alone, together })
}

/// The upper half of 10.88.0.0/16, where the mesh of the benchmarks lies.
fn overlay_address(index: usize) -> Ipv4Addr {
    let number = u32::try_from(index).unwrap_or(u32::MAX).min(0x7ffe);
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 88, 128, 1).to_bits() + number)
}

/// The daemon as its peers know it.
struct Server {
    key: WireguardKey,
    address_v6: Ipv6Addr,
    endpoint: SocketAddr,
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
}

impl Member {
    fn new(authority: &Authority, server: &Server, index: usize, address_v4: Ipv4Addr) -> Result<Member> {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        // Beyond the network's first addresses, one of which is the loopback device's own.
        let underlay = Ipv4Addr::from_bits(NETWORK.0.to_bits() + 256 + number);
        let endpoint = SocketAddr::from((underlay, DEFAULT_PORT));
        let socket = UdpSocket::bind(endpoint).context(format_args!("open a peer's socket on {endpoint}"))?;
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
        };
        let record = SignedRecord::sign(&record, &keys.signing).context("sign a peer's record")?;
        let mut seed = [0; 32];
        OsRng.fill_bytes(&mut seed);
        let host = TunnelHost::new(StaticSecret::from(*keys.wireguard.to_bytes()), seed);
        let tunnel = host.add(*server.key.as_bytes(), TunnelOptions::default()).context("make a peer's tunnel")?;
        let address_v6 = certificate.certificate().address_v6;
        Ok(Member { keys, certificate, record, address_v6, host, tunnel, socket, introduced: None })
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
    fn receive(&self, server: &Server, buffer: &mut [u8], opened: &mut [u8]) {
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
                    if let Some(Probe::Request(request)) = payload.and_then(Probe::decode) {
                        let reply = Probe::Reply(ProbeReply::to(&request, now, now, now));
                        let reply = overlay::wrap(self.address_v6, server.address_v6, &reply.encode());
                        let mut sealed = [0; LEAST_BUFFER + 512];
                        if let Ok(Sealed::Datagram(len)) = guard.seal(now, &reply, &mut sealed) {
                            let _ = self.socket.send_to(&sealed[..len], server.endpoint);
                        }
                    }
                    guard.flush(now, wall, &mut out);
                }
                _ => {}
            }
            self.send(server, &mut out);
        }
    }

    fn tick(&self, server: &Server) {
        let now = clock::now();
        if self.introduced.is_some() && self.tunnel.deadline() <= now {
            let mut out = Outbox::new();
            self.tunnel.tick(now, clock::wall(), &mut out);
            self.send(server, &mut out);
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
        for (member, _) in members.iter().zip(ready).filter(|(_, ready)| *ready) {
            member.receive(server, &mut buffer, &mut opened);
        }
    }
}

impl Crowd {
    /// Returns everything seen.
    pub fn to_json(&self) -> Value {
        json!({
            "peers": self.peers, "live": self.live, "seconds_until_all_live": self.seconds,
            "memory_alone_mib": self.alone.now, "memory_mib": self.together.now, "memory_peak_mib": self.together.peak,
        })
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "meshd with {} peers ({} up with a session, the last after {:.1} s): {:.1} MiB resident (peak {:.1}, alone {:.1}), \
             {:.1} KiB a peer; target for 1,000: ≤ 40 MiB",
            self.peers,
            self.live,
            self.seconds,
            self.together.now,
            self.together.peak,
            self.alone.now,
            (self.together.now - self.alone.now) * 1024.0 / self.peers as f64
        )
    }
}

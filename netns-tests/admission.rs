//! Coming in: a token admits one host and no other, tells a listener nothing, and can be taken back; certificates are
//! renewed under running traffic, and a ledger gone wrong is seen by everybody.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use meshd::api::{Gravity, InviteList, InviteState};
use meshd::identity::{NodeKeys, Refusal, SignedCertificate, Token};
use meshd::platform::clock;
use meshd::wire::join::{JoinAttempt, JoinRefusal, JoinReply};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand_core::OsRng;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::mesh::{PORT, brief};
use crate::lab::process::Finished;
use crate::lab::{Capture, Error, Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "admission::a_hundred_hosts_with_one_token", needs: &[], run: hundred_joins },
    Case { name: "admission::expired_and_withdrawn_tokens_are_refused", needs: &[], run: expired_and_withdrawn },
    Case { name: "admission::a_delegate_admits_without_the_authority", needs: &[], run: delegated },
    Case { name: "admission::a_listener_learns_nothing_from_a_join", needs: &[], run: nothing_in_clear },
    Case { name: "admission::two_ledgers_collide_and_everybody_says_so", needs: &[], run: collision },
    Case { name: "admission::a_renewal_interrupts_nothing", needs: &[], run: renewal },
];

/// Hosts that present the same token at the same time.
const RIVALS: usize = 100;

/// How many of them are `meshctl join`, each on a host of its own; the others are sockets of this process that speak
/// the same protocol.
const REAL: usize = 3;

/// A rival that has heard nothing asks again after this time.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// One rival without a process.
struct Rival {
    keys: NodeKeys,
    socket: UdpSocket,
    endpoint: SocketAddr,
    attempts: Vec<JoinAttempt>,
    reply: Option<JoinReply>,
}

impl Rival {
    fn new(host: &Host, address: IpAddr) -> Result<Rival> {
        let socket = host.enter(|| UdpSocket::bind(SocketAddr::new(address, 0))).context("bind a rival's socket")?;
        socket.set_nonblocking(true)?;
        let endpoint = SocketAddr::new(address, PORT);
        Ok(Rival { keys: NodeKeys::generate(&mut OsRng), socket, endpoint, attempts: Vec::new(), reply: None })
    }

    fn ask(&mut self, token: &Token) -> Result<()> {
        let made = JoinAttempt::new(token, &self.keys, &[self.endpoint], clock::wall(), &mut OsRng);
        let (datagram, attempt) = made.ok_or_else(|| Error::failed("the token's contact has an unusable key"))?;
        self.attempts.push(attempt);
        self.socket.send_to(&datagram, token.endpoints[0]).context("send a join request")?;
        Ok(())
    }

    fn listen(&mut self) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let len = match self.socket.recv(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let opened = self.attempts.iter().find_map(|attempt| attempt.open(&buffer[..len]).ok());
            let reply = opened.ok_or_else(|| Error::failed("a reply that no attempt opens"))?;
            self.reply.get_or_insert(reply);
        }
    }

    fn outcome(&self) -> std::result::Result<&SignedCertificate, JoinRefusal> {
        let reply = self.reply.as_ref().expect("every rival was answered");
        reply.outcome.as_ref().map(|joined| &joined.certificate).map_err(|refusal| *refusal)
    }
}

/// Lets all rivals ask until each was answered.
fn compete(rivals: &mut [Rival], token: &Token) -> Result<()> {
    let deadline = Instant::now() + LONG;
    while rivals.iter().any(|rival| rival.reply.is_none()) {
        if Instant::now() > deadline {
            let silent = rivals.iter().filter(|rival| rival.reply.is_none()).count();
            return Err(Error::failed(format!("{silent} rivals were never answered")));
        }
        for rival in rivals.iter_mut().filter(|rival| rival.reply.is_none()) {
            rival.ask(token)?;
        }
        let again = Instant::now() + ASK_AGAIN;
        while let Some(left) = again.checked_duration_since(Instant::now()) {
            let waiting: Vec<&mut Rival> = rivals.iter_mut().filter(|rival| rival.reply.is_none()).collect();
            if waiting.is_empty() {
                break;
            }
            let mut fds: Vec<PollFd<'_>> =
                waiting.iter().map(|rival| PollFd::new(rival.socket.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)).context("poll")?;
            drop(fds);
            waiting.into_iter().try_for_each(Rival::listen)?;
        }
    }
    Ok(())
}

/// ```text
///   r1 r2 .. (97 sockets on two hosts)  \
///   x, y, z  (meshctl join)             -- one token --> a, the authority
/// ```
fn hundred_joins(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "left", "right", "x", "y", "z"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    let text = mesh.invite(all[0], "newcomer", &[])?;
    let token = Token::from_str(&text).context("the token")?;
    let mut rivals = (0..RIVALS - REAL)
        .map(|number| {
            let side = 1 + number % 2;
            Rival::new(all[side], scene.underlay[side].into())
        })
        .collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let processes: Vec<_> = (3..3 + REAL)
        .map(|host| mesh.join_command(all[host], scene.underlay[host], &text)?.spawn())
        .collect::<Result<_>>()?;
    compete(&mut rivals, &token)?;
    let took = began.elapsed();
    let mut winners: Vec<NodeKeys> = Vec::new();
    for (process, host) in processes.iter().zip(&all[3..]) {
        match process.wait(LONG)?.code() {
            Some(0) => winners.push(mesh.keys(host)?),
            Some(1) => assert!(process.stderr().contains("already used by another host"), "{}", process.stderr()),
            other => return Err(Error::failed(format!("meshctl join ended with {other:?}: {}", process.stderr()))),
        }
    }
    let by_process = winners.len();
    for rival in &rivals {
        match rival.outcome() {
            Ok(certificate) => {
                assert_eq!(certificate.certificate().keys(), rival.keys.public());
                winners.push(NodeKeys::from_armor(&rival.keys.to_armor()).context("a rival's keys")?);
            }
            Err(refusal) => assert_eq!(refusal, JoinRefusal::Invite(Refusal::Used)),
        }
    }
    println!(
        "    {RIVALS} joins with one token: {} admitted ({by_process} by a process), all answered in {took:.2?}",
        winners.len()
    );
    assert_eq!(winners.len(), 1, "exactly one host is admitted");
    let winner = winners.remove(0);
    let admitted = |mesh: &Mesh| -> Result<Vec<String>> {
        let told = mesh.ctl(all[0]).args(["--json", "members"]).check()?;
        let members: meshd::api::Members = serde_json::from_str(&told).context("members")?;
        Ok(members.members.into_iter().filter(|member| !member.is_self).map(|member| member.wireguard_key).collect())
    };
    assert_eq!(admitted(mesh)?, [winner.public().wireguard.to_string()]);
    assert_eq!(invites(mesh, all[0])?, [("newcomer".to_owned(), InviteState::Used)]);
    // The winner may lose the answer and ask again, and nobody else: also of a daemon that was killed meanwhile.
    mesh.kill(all[0])?;
    mesh.start(&all[..1])?;
    let mut again = Rival { keys: winner, ..Rival::new(all[1], scene.underlay[1].into())? };
    compete(std::slice::from_mut(&mut again), &token)?;
    let certificate = again.outcome().expect("the winner gets its certificate again");
    assert_eq!(certificate.certificate().keys(), again.keys.public());
    if let Some(first) = rivals.iter().find_map(|rival| rival.outcome().ok()) {
        assert_eq!(first.bytes(), certificate.bytes(), "and no other one");
    }
    let mut late = [Rival::new(all[2], scene.underlay[2].into())?];
    compete(&mut late, &token)?;
    assert_eq!(late[0].outcome().err(), Some(JoinRefusal::Invite(Refusal::Used)));
    assert_eq!(admitted(mesh)?, [again.keys.public().wireguard.to_string()]);
    Ok(())
}

/// Names and states of a node's invites.
fn invites(mesh: &Mesh, host: &Host) -> Result<Vec<(String, InviteState)>> {
    let told = mesh.ctl(host).args(["--json", "invite", "--list"]).check()?;
    let list: InviteList = serde_json::from_str(&told).context(told)?;
    Ok(list.invites.into_iter().map(|invite| (invite.name, invite.state)).collect())
}

/// Checks that a command failed with this exit code and these words.
fn refused(done: &Finished, code: i32, words: &str) {
    assert_eq!(done.status.code(), Some(code), "{done:?}");
    assert!(done.stderr.contains(words), "expected {words:?}: {}", done.stderr);
}

/// ```text
///     a <-- b, c, d        with tokens that are too old, taken back, torn, used
/// ```
fn expired_and_withdrawn(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c", "d"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    let short = mesh.invite(all[0], "b", &["--expires", "1s"])?;
    let taken_back = mesh.invite(all[0], "c", &[])?;
    let good = mesh.invite(all[0], "d", &["--tag", "db"])?;
    let open = |name: &str| (name.to_owned(), InviteState::Open);
    let listed = invites(mesh, all[0])?;
    assert!(listed.contains(&open("c")) && listed.contains(&open("d")), "{listed:?}");
    let told = mesh.ctl(all[0]).args(["invite", "--list"]).check()?;
    assert!(!told.contains("meshd1-"), "a list shows no tokens: {told}");
    mesh.ctl(all[0]).args(["invite", "--revoke", "c"]).check()?;
    let withdrawn = mesh.join_command(all[2], scene.underlay[2], &taken_back)?.output()?;
    refused(&withdrawn, 1, "withdrawn");
    let deadline = Instant::now() + LONG;
    while !invites(mesh, all[0])?.contains(&("b".to_owned(), InviteState::Expired)) {
        assert!(Instant::now() < deadline, "an invite of one second never expires");
    }
    let expired = mesh.join_command(all[1], scene.underlay[1], &short)?.output()?;
    refused(&expired, 1, "expired");
    let torn = mesh.join_command(all[3], scene.underlay[3], &good[..good.len() - 5])?.output()?;
    refused(&torn, 2, "cut or mistyped");
    for number in [1, 2, 3] {
        assert!(!mesh.config(all[number]).exists(), "a refused host is left without a configuration");
    }
    mesh.join_with(all[3], scene.underlay[3], &good)?;
    let mut states = invites(mesh, all[0])?;
    states.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [("b", InviteState::Expired), ("c", InviteState::Revoked), ("d", InviteState::Used)];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
    let used = mesh.ctl(all[0]).args(["invite", "--revoke", "d"]).output()?;
    refused(&used, 1, "already used");
    let unknown = mesh.ctl(all[0]).args(["invite", "--revoke", "nobody"]).output()?;
    refused(&unknown, 4, "nobody");
    mesh.start(&all[3..])?;
    mesh.wait_until_all_up(&[all[0], all[3]], LONG).map(drop)
}

/// ```text
///     a---b           the authority's key is on no node: it comes to b on a stick, and goes again
///        /
///       c             joins at b while the stick is away
/// ```
fn delegated(lab: &Lab) -> Result<()> {
    let names = ["a", "b", "c"];
    let scene = Scene::founded_with(lab, &names, &["--offline-authority"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let stick = lab.dir().join("stick");
    fs::create_dir(&stick)?;
    let key = stick.join("authority.key");
    mesh.start(&all[..1])?;
    let refusal = mesh.ctl(all[0]).args(["invite", "b"]).output()?;
    refused(&refusal, 1, "authority");
    mesh.admit_offline(all[1], scene.underlay[1])?;
    for file in ["authority.key", "authority.ledger"] {
        fs::rename(mesh.directory(all[0]).join(file), stick.join(file)).context("move the authority to the stick")?;
    }
    mesh.start(&all[1..2])?;
    mesh.wait_until_all_up(&all[..2], LONG)?;
    let authority = key.to_str().ok_or_else(|| Error::failed("the lab's path is no text"))?;
    let token = mesh.invite(all[1], "c", &["--authority", authority, "--tag", "web"])?;
    fs::rename(&stick, lab.dir().join("drawer")).context("take the stick away")?;
    mesh.join_with(all[2], scene.underlay[2], &token)?;
    let mut late = [Rival::new(all[0], scene.underlay[0].into())?];
    compete(&mut late, &Token::from_str(&token).context("the token")?)?;
    assert_eq!(late[0].outcome().err(), Some(JoinRefusal::Invite(Refusal::Used)), "a delegate admits one, too");
    mesh.start(&all[2..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    scene.check_every_pair(&all)?;
    let status = mesh.status(all[0])?;
    assert!(status.problems.is_empty(), "{}", brief(&status));
    // Nobody here can renew; the command says so.
    let renewal = mesh.ctl(all[2]).arg("renew").output()?;
    assert_eq!(renewal.status.code(), Some(1), "{renewal:?}");
    assert!(!renewal.stderr.is_empty());
    Ok(())
}

/// ```text
///     database-primary ===== newcomer-on-the-wire      everything on this wire is captured while the newcomer joins
/// ```
fn nothing_in_clear(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["database-primary", "newcomer-on-the-wire"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    let wire = Capture::start(lab, all[1], "eth0")?;
    let text = mesh.invite(all[0], all[1].name(), &["--tag", "ledger-of-secrets"])?;
    mesh.join_with(all[1], scene.underlay[1], &text)?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let requests = wire.count(|packet| packet.bytes.len() >= 1228);
    assert!(requests >= 1, "the join went over this wire");
    let mut secrets: Vec<(String, Vec<u8>)> = Vec::new();
    for host in &all {
        let (name, keys) = (host.name(), mesh.keys(host)?);
        secrets.push((format!("{name}'s tunnel key"), keys.wireguard.to_bytes().to_vec()));
        secrets.push((format!("{name}'s signing key"), keys.signing.to_bytes().to_vec()));
        secrets.push((format!("{name}'s public tunnel key"), keys.public().wireguard.as_bytes().to_vec()));
        secrets.push((format!("{name}'s public signing key"), keys.public().verifying.as_bytes().to_vec()));
        let certificate = fs::read_to_string(mesh.directory(host).join("node.cert")).context("node.cert")?;
        secrets.push((format!("{name}'s certificate"), armored(&certificate)?));
    }
    let authority = fs::read_to_string(mesh.authority()).context("the authority's key")?;
    secrets.push(("the authority's key".to_owned(), armored(&authority)?));
    let token = URL_SAFE_NO_PAD.decode(text.trim_start_matches("meshd1-")).context("the token")?;
    // Bytes 0 to 20 and so on hold the secret somewhere; not even what is no secret may be readable.
    secrets.push(("the token".to_owned(), token));
    let mut windows: BTreeSet<Vec<u8>> = BTreeSet::new();
    for (_, bytes) in &secrets {
        assert!(bytes.len() >= 16);
        windows.extend(bytes.windows(16).map(<[u8]>::to_vec));
        windows.extend(STANDARD.encode(bytes).as_bytes().windows(16).map(<[u8]>::to_vec));
    }
    windows.extend(text.as_bytes().windows(16).map(<[u8]>::to_vec));
    for name in ["database-primary", "newcomer-on-the-wire", "ledger-of-secrets"] {
        windows.extend(name.as_bytes().windows(16).map(<[u8]>::to_vec));
    }
    let leaks = wire.packets(|packet| packet.bytes.windows(16).any(|window| windows.contains(window)));
    assert_eq!(wire.missed(), 0);
    let names: Vec<&String> = leaks
        .iter()
        .flat_map(|packet| secrets.iter().filter(|(_, bytes)| shares_window(&packet.bytes, bytes)))
        .map(|(name, _)| name)
        .collect();
    assert!(leaks.is_empty(), "{} packets show {names:?}", leaks.len());
    Ok(())
}

fn shares_window(packet: &[u8], bytes: &[u8]) -> bool {
    bytes.windows(16).any(|window| packet.windows(16).any(|other| other == window))
}

/// The bytes inside an armored file.
fn armored(text: &str) -> Result<Vec<u8>> {
    let lines: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(lines).context("an armored file")
}

/// ```text
///     a---b           c and d were signed with two copies of one ledger: both have the same address
///     c   d
/// ```
fn collision(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c", "d"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    mesh.join(all[1], scene.underlay[1])?;
    let ledger = mesh.authority().with_extension("ledger");
    let before = fs::read(&ledger).context("the ledger")?;
    mesh.admit_offline(all[2], scene.underlay[2])?;
    // A grant that is asked for and taken is refused at once.
    let request = mesh.ctl(all[3]);
    fs::create_dir_all(mesh.directory(all[3]))?;
    let request = request.args(["request", "--node", "d"]).check()?;
    let taken = mesh.overlay(all[2]).0.to_string();
    let sign = mesh.ctl(all[0]).args(["sign", "-", "--authority"]).arg(mesh.authority());
    let refusal = sign.args(["--address", &taken]).input(request).output()?;
    refused(&refusal, 1, &taken);
    // The copy of the ledger that knows nothing of c gives its address out again.
    fs::write(&ledger, before).context("put the old ledger back")?;
    mesh.admit_offline(all[3], scene.underlay[3])?;
    assert_eq!(mesh.overlay(all[2]), mesh.overlay(all[3]));
    mesh.start(&all[1..])?;
    let mut views = BTreeSet::new();
    for host in &all {
        let shows = |status: &meshd::api::Status| status.problems.iter().any(|problem| problem.kind == "collision");
        let status = mesh.wait_for(host, "the collision", LONG, shows)?;
        let found: Vec<_> = status.problems.iter().filter(|problem| problem.kind == "collision").collect();
        assert!(found.iter().all(|problem| problem.gravity == Gravity::Critical));
        assert!(found.iter().any(|problem| problem.message.contains(&taken)), "{}", brief(&status));
        assert!(found.iter().all(|problem| !problem.advice.is_empty()));
        views.insert(found.iter().map(|problem| problem.message.clone()).collect::<BTreeSet<_>>());
        let check = mesh.ctl(host).args(["status", "--check"]).output()?;
        assert_eq!(check.status.code(), Some(1), "{check:?}");
    }
    assert_eq!(views.len(), 1, "all nodes decide alike: {views:#?}");
    scene.check_every_pair(&all[..2])
}

/// ```text
///     a---b           a: authority; b: a certificate of one day, renewed while it is pinged
/// ```
fn renewal(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    mesh.start(&all[..1])?;
    mesh.admit_offline_with(all[1], scene.underlay[1], &["--days", "1"])?;
    mesh.start(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    // Times of issue are whole seconds, and only a later one makes a certificate newer.
    let before = mesh.wait_for(all[1], "a second's passing", LONG, |status| status.node.uptime_seconds >= 2)?;
    assert_eq!(before.node.certificate.warning, Some(Gravity::Warning), "{:?}", before.node.certificate);
    assert!(before.problems.iter().any(|problem| problem.kind == "certificate_expires"), "{}", brief(&before));
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before")?;
    let count = 300;
    let arguments = ["--json", "ping", "a", "--interval", "10ms", "--count"];
    let ping = mesh.ctl(all[1]).args(arguments).arg(count.to_string()).spawn()?;
    ping.wait_for_output("reply", LONG)?;
    let began = Instant::now();
    let told = mesh.ctl(all[1]).arg("renew").check()?;
    println!("    renewed in {:.2?}: {}", began.elapsed(), told.trim());
    flow.exchange(b"renewed")?;
    assert!(ping.is_running(), "the pings go on while the certificate is renewed");
    let status = ping.wait(LONG)?;
    assert!(status.success(), "{}", ping.stderr());
    let summary = ping.stdout().lines().last().unwrap_or_default().to_owned();
    let summary: serde_json::Value = serde_json::from_str(&summary).context(summary)?;
    assert_eq!((summary["sent"].as_u64(), summary["received"].as_u64()), (Some(count), Some(count)), "{summary}");
    let after = mesh.status(all[1])?;
    let days = after.node.certificate.expires_in_seconds / 86_400;
    assert!((29..=30).contains(&days), "{:?}", after.node.certificate);
    assert!(after.problems.is_empty(), "{}", brief(&after));
    assert_eq!(after.peers[0].handshakes, before.peers[0].handshakes, "the session is the same");
    let expires = after.node.certificate.expires;
    mesh.wait_for(all[0], "the renewed certificate", LONG, |status| {
        status.peers.iter().any(|peer| peer.certificate_expires == expires)
    })?;
    // It is on disk, not only in memory.
    mesh.restart(&all[1..])?;
    mesh.wait_until_all_up(&all, LONG)?;
    assert_eq!(mesh.status(all[1])?.node.certificate.expires, expires);
    flow.exchange(b"after a restart")
}

//! What the kernel's packet filter does for a node: the mesh's addresses are the mesh interface's alone, and its public side
//! is closed but for what `[lockdown]` says.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Instant;

use meshd::api::{LockdownInfo, LockdownPhase};
use meshd::config::Lockdown;
use meshd::policy::Purpose;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::package::{NFTABLES, Tree};
use crate::lab::{Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "firewall::addresses_of_the_mesh_are_its_interfaces_alone", needs: &[&NFTABLES], run: addresses },
    Case { name: "firewall::a_scanner_sees_what_the_lockdown_leaves_open", needs: &[&NFTABLES], run: lockdown },
];

/// A table that somebody else made.
const THEIRS: &str = "table inet theirs { chain input { type filter hook input priority 0; policy accept; \
                      tcp dport 9 drop; }; }";

/// A host's packet filter, as an operator sees it.
struct Filter<'a> {
    host: &'a Host,
    tree: &'a Tree,
}

impl Filter<'_> {
    fn apply(&self, script: &str) -> Result<()> {
        self.host.command_from(self.tree, "nft")?.args(["-f", "-"]).input(script).check().map(drop)
    }

    /// A table as it is printed; `None` where there is none.
    fn table(&self, name: &str) -> Result<Option<String>> {
        let done = self.host.command_from(self.tree, "nft")?.args(["list", "table", "inet", name]).output()?;
        Ok(done.status.success().then_some(done.stdout))
    }

    /// The names of all tables.
    fn tables(&self) -> Result<Vec<String>> {
        let told = self.host.command_from(self.tree, "nft")?.args(["list", "tables"]).check()?;
        Ok(told.lines().map(str::to_owned).collect())
    }

    /// Packets that the rules with these words have counted.
    fn counted(&self, table: &str, words: &str) -> Result<u64> {
        let text = self.table(table)?.unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains(words));
        Ok(lines.filter_map(|line| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok()).sum())
    }

    fn wait_until_there(&self, table: &str) -> Result<()> {
        wait(format_args!("table {table}"), LONG, || self.table(table))?;
        Ok(())
    }
}

/// ```text
///     a---b        a, b: a mesh
///     |
///     s            no member, on another wire of a
/// ```
fn addresses(lab: &Lab) -> Result<()> {
    let tree = NFTABLES.fetch()?;
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let (a, b) = (all[0], all[1]);
    let stranger = lab.host("s")?;
    let [near, far] = wired(lab, a, &stranger)?;
    let filter = Filter { host: a, tree: &tree };
    filter.apply(THEIRS)?;
    let theirs = filter.table("theirs")?;
    mesh.admit_offline(b, scene.underlay[1])?;
    mesh.start_with(&[a], &tree)?;
    mesh.start(&[b])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let table = Purpose::Addresses.table("mesh0");
    filter.wait_until_there(&table)?;

    // To this node's addresses in the mesh, by the way that any neighbour has.
    let to_us = "for this node's address";
    for ((overlay, gateway), source) in mesh.addresses(a).into_iter().zip(near).zip(far) {
        stranger.add_route((overlay, if overlay.is_ipv4() { 32 } else { 128 }), Some(gateway), "lan0")?;
        let before = filter.counted(&table, to_us)?;
        let listener = sent(&stranger, source, a, overlay)?;
        wait("the datagram as dropped", LONG, || counts(&filter, &table, to_us, before + 1))?;
        assert!(heard(&listener)?.is_none(), "{overlay} was reached from another wire");
    }
    // As if from the mesh, to an address of the wire.
    let from_it = "claims to come from the mesh";
    for (claimed, target) in mesh.addresses(b).into_iter().zip(near) {
        stranger.add_address("lo", claimed, if claimed.is_ipv4() { 32 } else { 128 })?;
        let before = filter.counted(&table, from_it)?;
        let listener = sent(&stranger, claimed, a, target)?;
        wait("the datagram as dropped", LONG, || counts(&filter, &table, from_it, before + 1))?;
        assert!(heard(&listener)?.is_none(), "a stranger passed for {claimed}");
    }
    scene.check_every_pair(&all)?;

    // The way to a peer leads into the mesh: nothing of the daemon's goes there, however long it tries.
    a.add_route((scene.underlay[1].into(), 32), None, "mesh0")?;
    wait("the daemon's own packets as dropped", LONG, || counts(&filter, &table, "the daemon's own packets", 1))?;
    a.command("ip").args(["route", "del", &scene.underlay[1].to_string(), "dev", "mesh0"]).check()?;
    mesh.wait_until_all_up(&all, LONG)?;

    // Somebody starts another firewall.
    filter.apply("flush ruleset")?;
    let flushed = Instant::now();
    filter.wait_until_there(&table)?;
    println!("    the table is back {:.0?} after everything was flushed", flushed.elapsed());
    filter.apply(&format!("flush table inet {table}"))?;
    wait("the rules again", LONG, || Ok(filter.table(&table)?.filter(|text| text.contains(to_us))))?;
    filter.apply(THEIRS)?;
    // While the daemon can do nothing about it, the datagram arrives: it was the table that dropped it.
    let daemon = mesh.daemon(a)?;
    daemon.signal(Signal::SIGSTOP);
    filter.apply(&format!("delete table inet {table}"))?;
    let overlay = mesh.addresses(a)[0];
    let listener = sent(&stranger, far[0], a, overlay)?;
    wait("the datagram", LONG, || heard(&listener))?;
    daemon.signal(Signal::SIGCONT);
    filter.wait_until_there(&table)?;

    mesh.stop(&[a])?;
    assert_eq!(filter.tables()?, ["table inet theirs"], "nothing of ours is left, and theirs is");
    assert_eq!(filter.table("theirs")?, theirs, "what is theirs is as it was");
    mesh.start_with(&[a], &tree)?;
    mesh.kill(a)?;
    assert!(filter.table(&table)?.is_some(), "a killed daemon leaves it");
    mesh.meshd(a).with(&tree).arg("--cleanup").check()?;
    assert_eq!(filter.tables()?, ["table inet theirs"]);
    mesh.start_with(&[a], &tree)?;
    mesh.wait_until_all_up(&all, LONG)?;
    let asked = mesh.ctl(a).with(&tree).args(["--json", "doctor"]).output()?;
    assert!(asked.stdout.contains(&format!("nft table inet {table}")), "{}", asked.stdout);
    Ok(())
}

/// Sends one datagram from an address of a host to one of another, and returns the socket that would receive it.
fn sent(from: &Host, source: IpAddr, to: &Host, target: IpAddr) -> Result<UdpSocket> {
    // Bound to no address, for the weak host model is what is tried.
    let any = if target.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = to.enter(|| UdpSocket::bind(SocketAddr::new(any, 0))).context("listen")?;
    listener.set_nonblocking(true).context("listen")?;
    let port = listener.local_addr().context("listen")?.port();
    let socket = from.enter(|| UdpSocket::bind(SocketAddr::new(source, 0))).context("bind")?;
    socket.send_to(b"from a stranger", SocketAddr::new(target, port)).context("send")?;
    Ok(listener)
}

/// What a socket has received.
fn heard(listener: &UdpSocket) -> Result<Option<()>> {
    match listener.recv(&mut [0; 64]) {
        Ok(_) => Ok(Some(())),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("receive"),
    }
}

fn counts(filter: &Filter<'_>, table: &str, words: &str, least: u64) -> Result<Look<()>> {
    let counted = filter.counted(table, words)?;
    Ok(if counted >= least { Look::Found(()) } else { Look::NotYet(format!("{counted} packets")) })
}

/// Ports of UDP that scanners look at first, and some more.
const UDP_PORTS: [u16; 20] =
    [53, 67, 68, 69, 111, 123, 137, 161, 500, 514, 520, 623, 1194, 1434, 1900, 3478, 4500, 5353, 11211, 51820];

/// Connections that are tried at a time: descriptors of this process.
const BATCH: usize = 512;

/// What a scanner finds open of a host, of all 65,535 ports of TCP. The host is asked how many packets it has dropped, which
/// are all but those for a few ports.
fn open_ports(
    stranger: &Host,
    target: IpAddr,
    allowed: usize,
    dropped: &dyn Fn() -> Result<u64>,
) -> Result<BTreeSet<u16>> {
    let mut open = BTreeSet::new();
    let ports: Vec<u16> = (1..=u16::MAX).collect();
    for batch in ports.chunks(BATCH) {
        let before = dropped()?;
        let sockets = stranger.enter(|| batch.iter().map(|port| knock(target, *port)).collect::<Result<Vec<_>>>())?;
        // Each is dropped, or open: nothing else is to be waited for.
        let least = before + (batch.len().saturating_sub(allowed)) as u64;
        wait("every knock as dropped", LONG, || {
            let now = dropped()?;
            Ok(if now >= least { Look::Found(()) } else { Look::NotYet(format!("{now} of {least}")) })
        })?;
        open.extend(batch.iter().zip(&sockets).filter(|(_, socket)| socket.peer_addr().is_ok()).map(|(port, _)| *port));
    }
    Ok(open)
}

/// Begins a connection and does not wait for it.
fn knock(target: IpAddr, port: u16) -> Result<Socket> {
    let domain = if target.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, None).context("a socket")?;
    socket.set_nonblocking(true).context("a socket")?;
    // It is under way when this returns, or refused already.
    let _ = socket.connect(&SocketAddr::new(target, port).into());
    Ok(socket)
}

/// Whether a connection from a host to a port comes about.
fn connects(from: &Host, target: SocketAddr) -> bool {
    from.enter(|| TcpStream::connect_timeout(&target, LONG)).is_ok()
}

fn phase(mesh: &Mesh, host: &Host) -> Result<LockdownPhase> {
    let told = mesh.ctl(host).args(["--json", "lockdown"]).check()?;
    Ok(serde_json::from_str::<LockdownInfo>(&told).context("what meshctl lockdown told")?.phase)
}

/// ```text
///     b---a---c     a, b: a mesh; c: a container of a, with two ports published there
///         |
///         s         no member, on another wire of a; it scans a
/// ```
fn lockdown(lab: &Lab) -> Result<()> {
    let tree = NFTABLES.fetch()?;
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let (a, b) = (all[0], all[1]);
    let (stranger, container) = (lab.host("s")?, lab.host("c")?);
    let [near, far] = wired(lab, a, &stranger)?;
    let filter = Filter { host: a, tree: &tree };
    // Open to all, to the stranger, to somebody else, to nobody.
    let listeners: Vec<TcpListener> =
        (0..4).map(|_| a.enter(|| TcpListener::bind("[::]:0")).context("listen")).collect::<Result<_>>()?;
    let port = |number: usize| listeners[number].local_addr().map(|address| address.port()).context("a port");
    let [to_all, to_stranger, to_other, to_nobody] = [port(0)?, port(1)?, port(2)?, port(3)?];
    let _contained = contained(lab, a, &container)?;
    publish(&filter)?;
    let theirs = filter.table("theirs")?;
    let [(_, published), (_, hidden)] = PUBLISHED;
    mesh.change_config(a, |config| {
        let allow = [
            format!("tcp/{to_all}"),
            format!("tcp/{to_stranger} from {}", far[0]),
            format!("tcp/{to_stranger} from {}", far[1]),
            format!("tcp/{to_other} from 203.0.113.0/24"),
            format!("tcp/{published}"),
        ];
        let allow = allow.iter().map(|opening| opening.parse().expect("the test's own openings are valid")).collect();
        config.lockdown = Some(Lockdown { allow });
    })?;
    mesh.admit_offline(b, scene.underlay[1])?;
    mesh.start_with(&[a], &tree)?;
    mesh.start(&[b])?;
    mesh.wait_until_all_up(&all, LONG)?;
    let [trial, confirmed] = [Purpose::Trial, Purpose::Lockdown].map(|purpose| purpose.table("mesh0"));

    // Nothing is closed yet; the plan says what would be, and which other table drops what would stay open.
    for port in [to_all, to_stranger, to_other, to_nobody, published, hidden] {
        assert!(connects(&stranger, SocketAddr::new(near[0], port)), "{port} is closed before anything was done");
    }
    filter.apply(&format!(
        "table inet other {{ chain c {{ type filter hook input priority 0; tcp dport {to_all} drop; }}; }}"
    ))?;
    let told = mesh.ctl(a).with(&tree).args(["--json", "lockdown", "plan"]).check()?;
    let plan: Value = serde_json::from_str(&told).context("the plan")?;
    let listed = |port: u16| {
        let listening = plan["listening"].as_array().into_iter().flatten();
        let found = listening.filter(|one| one["address"].as_str().is_some_and(|at| at.ends_with(&format!(":{port}"))));
        found.map(|one| one["reached_from"].clone()).next().unwrap_or_default()
    };
    assert_eq!([listed(to_all), listed(to_nobody)], [json!(["everybody"]), json!([])], "{plan}");
    let others = json!([{ "opening": format!("tcp/{to_all}"), "table": "inet other", "chain": "c", "certain": true }]);
    assert_eq!(plan["others"], others, "{plan}");
    let doctor = mesh.ctl(a).with(&tree).args(["--json", "doctor"]).output()?;
    assert!(doctor.stdout.contains("table inet other (chain c)"), "{}", doctor.stdout);
    filter.apply("delete table inet other")?;
    assert_eq!(phase(mesh, a)?, LockdownPhase::Open);
    mesh.ctl(a).args(["lockdown", "confirm"]).output().map(|done| assert!(!done.status.success(), "{done:?}"))?;

    // A trial that nobody confirms is over by itself, and one whose daemon is killed as well.
    mesh.ctl(a).args(["lockdown", "trial", "--for", "1s"]).check()?;
    wait("the end of the trial", LONG, || Ok(filter.table(&trial)?.is_none().then_some(())))?;
    assert_eq!(phase(mesh, a)?, LockdownPhase::Open);
    mesh.ctl(a).args(["lockdown", "trial", "--for", "10m"]).check()?;
    assert!(filter.table(&trial)?.is_some());
    filter.apply("flush ruleset")?;
    assert!(filter.table(&trial)?.is_some(), "a flush took the trial");
    mesh.kill(a)?;
    let killed = Instant::now();
    wait("the end of the trial", LONG, || Ok(filter.table(&trial)?.is_none().then_some(())))?;
    println!("    the trial is gone {:.0?} after its daemon was killed", killed.elapsed());
    publish(&filter)?;
    assert!(connects(&stranger, SocketAddr::new(near[0], to_nobody)));

    mesh.start_with(&[a], &tree)?;
    mesh.wait_until_all_up(&all, LONG)?;
    mesh.ctl(a).args(["lockdown", "trial"]).check()?;
    assert_eq!(phase(mesh, a)?, LockdownPhase::Trial);
    mesh.ctl(a).args(["lockdown", "confirm"]).check()?;
    assert_eq!(phase(mesh, a)?, LockdownPhase::Confirmed);
    assert!(filter.table(&trial)?.is_none() && filter.table(&confirmed)?.is_some());
    assert_eq!(filter.table("theirs")?, theirs, "what is theirs is as it was");

    // What a scanner sees.
    let dropped = || filter.counted(&confirmed, "closed");
    for target in near {
        let began = Instant::now();
        // The container has no IPv6, so that nobody listens there at that port, although it is open.
        let expected: BTreeSet<u16> =
            [to_all, to_stranger].into_iter().chain(target.is_ipv4().then_some(published)).collect();
        let open = open_ports(&stranger, target, 3, &dropped)?;
        println!("    65,535 ports of {target} scanned in {:.1?}: open are {open:?}", began.elapsed());
        assert_eq!(open, expected);
        let sockets: Vec<UdpSocket> = UDP_PORTS
            .iter()
            .map(|port| {
                let decoy = a.enter(|| UdpSocket::bind(SocketAddr::new(target, *port)));
                let before = dropped()?;
                let socket = stranger.enter(|| -> std::io::Result<UdpSocket> {
                    let any = if target.is_ipv4() {
                        IpAddr::from(Ipv4Addr::UNSPECIFIED)
                    } else {
                        Ipv6Addr::UNSPECIFIED.into()
                    };
                    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
                    socket.connect(SocketAddr::new(target, *port))?;
                    socket.send(b"anybody there?")?;
                    Ok(socket)
                });
                wait(format_args!("udp/{port} as dropped"), LONG, || {
                    counts(&filter, &confirmed, "closed", before + 1)
                })?;
                if let Ok(decoy) = decoy {
                    decoy.set_nonblocking(true).context("a decoy")?;
                    assert!(heard(&decoy)?.is_none(), "udp/{port} was reached");
                }
                socket.context("ask by UDP")
            })
            .collect::<Result<_>>()?;
        for socket in &sockets {
            socket.set_nonblocking(true).context("a socket")?;
            let answer = socket.recv(&mut [0; 64]).expect_err("a closed port answered");
            assert_eq!(answer.kind(), std::io::ErrorKind::WouldBlock, "a closed port shows that it is closed");
        }
    }
    // What those accepted whose ports are closed is what came while nothing was.
    for (listener, before) in [(&listeners[2], 1), (&listeners[3], 2)] {
        listener.set_nonblocking(true).context("look")?;
        let accepted = std::iter::from_fn(|| listener.accept().ok()).count();
        assert_eq!(accepted, before, "a closed port was reached");
    }
    // Answers come in, and the mesh is as it was.
    let elsewhere = stranger.enter(|| TcpListener::bind(SocketAddr::new(far[0], 0))).context("listen")?;
    assert!(connects(a, elsewhere.local_addr().context("an address")?));
    scene.check_every_pair(&all)?;

    // Kept when it is flushed, over a stop, and at boot by its file.
    filter.apply("flush ruleset")?;
    filter.wait_until_there(&confirmed)?;
    mesh.stop(&[a])?;
    assert!(filter.table(&confirmed)?.is_some(), "a stop lifted it");
    filter.apply(&format!("delete table inet {confirmed}"))?;
    let file = mesh.state(a).join("lockdown.nft");
    a.command_from(&tree, "nft")?.arg("-f").arg(&file).check()?;
    assert!(filter.table(&confirmed)?.is_some());
    mesh.start_with(&[a], &tree)?;
    assert_eq!(phase(mesh, a)?, LockdownPhase::Confirmed);
    mesh.wait_until_all_up(&all, LONG)?;

    // What a reload changes is tried again.
    mesh.change_config(a, |config| config.lockdown = Some(Lockdown { allow: Vec::new() }))?;
    mesh.ctl(a).arg("reload").check()?;
    wait("a new trial", LONG, || Ok((phase(mesh, a)? == LockdownPhase::Trial).then_some(())))?;
    mesh.ctl(a).args(["lockdown", "confirm"]).check()?;
    let text = filter.table(&confirmed)?.unwrap_or_default();
    assert!(!text.contains(&format!("tcp dport {to_all} ")), "{text}");
    mesh.ctl(a).args(["lockdown", "off"]).check()?;
    assert!(filter.table(&confirmed)?.is_none() && !file.exists());
    assert!(connects(&stranger, SocketAddr::new(near[0], to_nobody)));

    // It is lifted without a daemon, too; and without nft a node that wants it does not start.
    mesh.ctl(a).args(["lockdown", "trial"]).check()?;
    mesh.ctl(a).args(["lockdown", "confirm"]).check()?;
    mesh.stop(&[a])?;
    mesh.ctl(a).with(&tree).args(["lockdown", "off"]).check()?;
    assert!(filter.table(&confirmed)?.is_none() && !file.exists());
    if tree.root() != Path::new("/") {
        let done = mesh.meshd(a).output()?;
        assert!(!done.status.success() && done.stderr.contains("apt-get install nftables"), "{done:?}");
    }
    Ok(())
}

/// Wires two hosts, and gives each an address of both families.
fn wired(lab: &Lab, a: &Host, other: &Host) -> Result<[[IpAddr; 2]; 2]> {
    lab.wire(a, "lan0", other, "lan0")?;
    let addresses = |last: u8| -> [IpAddr; 2] {
        [Ipv4Addr::new(192, 0, 2, last).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()]
    };
    let both = [addresses(1), addresses(2)];
    for (host, own) in [a, other].into_iter().zip(both) {
        for (address, length) in own.into_iter().zip([24, 64]) {
            host.add_address("lan0", address, length)?;
        }
    }
    Ok(both)
}

/// What the container listens on, and where its host publishes that.
const PUBLISHED: [(u16, u16); 2] = [(81, 8081), (82, 8082)];

/// Wires a container to its host and lets it listen.
fn contained(lab: &Lab, a: &Host, container: &Host) -> Result<Vec<TcpListener>> {
    lab.wire(a, "veth0", container, "eth0")?;
    let [outer, inner] = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(172, 31, 0, last)));
    a.add_address("veth0", outer, 24)?;
    container.add_address("eth0", inner, 24)?;
    container.add_route((Ipv4Addr::UNSPECIFIED.into(), 0), Some(outer), "eth0")?;
    a.sysctl("net/ipv4/ip_forward", "1")?;
    let listen = |(port, _)| container.enter(|| TcpListener::bind(SocketAddr::new(inner, port))).context("listen");
    PUBLISHED.into_iter().map(listen).collect()
}

/// Publishes the container's ports as container engines do: by a table that is none of ours.
fn publish(filter: &Filter<'_>) -> Result<()> {
    let rules =
        PUBLISHED.map(|(inner, outer)| format!("iifname lan0 tcp dport {outer} dnat ip to 172.31.0.2:{inner};"));
    let rules = rules.concat();
    filter.apply(&format!("table inet theirs {{ chain c {{ type nat hook prerouting priority dstnat; {rules} }}; }}"))
}

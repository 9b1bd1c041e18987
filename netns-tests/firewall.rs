//! What the kernel's packet filter does for a node: the mesh's addresses are the mesh interface's alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use meshd::policy::Purpose;
use nix::sys::signal::Signal;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::package::{NFTABLES, Tree};
use crate::lab::{Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "firewall::addresses_of_the_mesh_are_its_interfaces_alone", needs: &[&NFTABLES], run: addresses }];

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
    lab.wire(a, "lan0", &stranger, "lan0")?;
    let near: [IpAddr; 2] = [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let far: [IpAddr; 2] = [Ipv4Addr::new(192, 0, 2, 2).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into()];
    for (host, addresses) in [(a, near), (&stranger, far)] {
        for (address, length) in addresses.into_iter().zip([24, 64]) {
            host.add_address("lan0", address, length)?;
        }
    }
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

//! The members' names: asked by the system's own resolver and by `dig`, followed through joins, revocations and switches.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use meshd::api::NameList;
use meshd::config::{Alias, AliasTarget, Forward, Resolver, Target};
use nix::sys::signal::Signal;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::package::DNSUTILS;
use crate::lab::{Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "names::follow_members_and_switches", needs: &[], run: follow },
    Case { name: "names::stand_in_a_file_of_hosts", needs: &[], run: hosts },
    Case { name: "names::go_to_the_programs_of_a_resolver", needs: &[], run: programs },
    Case { name: "names::are_what_dig_asks_for", needs: &[&DNSUTILS], run: dig },
];

/// Answers names on a host's own overlay address from its next start or reload on; returns where.
fn answer(mesh: &Mesh, host: &Host) -> Result<SocketAddr> {
    let listen = SocketAddr::new(mesh.overlay(host).0.into(), 53);
    mesh.change_config(host, |config| config.names.listen = Some(listen))?;
    Ok(listen)
}

/// Has a host's own resolver ask there.
fn ask_at(host: &Host, server: IpAddr) -> Result<()> {
    let text = format!("nameserver {server}\noptions timeout:1 attempts:2\n");
    fs::write(host.run_dir().join("resolv.conf"), text).context("a host's resolv.conf")
}

/// What the system's resolver says of a name or an address, in one line; empty where it says nothing.
fn getent(host: &Host, database: &str, name: &str) -> Result<String> {
    let done = host.command("getent").args([database, name]).output()?;
    Ok(done.stdout.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Asks the system's resolver again and again until it says that.
fn wait_for(host: &Host, name: &str, said: &str) -> Result<()> {
    wait(format_args!("{} knows {name} as `{said}`", host.name()), LONG, || {
        let told = getent(host, "ahostsv4", name)?;
        let first = told.split(' ').next().unwrap_or_default();
        Ok(if first == said { Look::Found(()) } else { Look::NotYet(told) })
    })
}

fn names(mesh: &Mesh, host: &Host) -> Result<NameList> {
    let told = mesh.ctl(host).args(["--json", "names"]).check()?;
    serde_json::from_str(&told).context("what meshctl names told")
}

/// ```text
///    a: answers names; forward orders -> b, c          b, c: members; c joins while a answers, b is revoked
/// ```
fn follow(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b", "c"])?;
    let (mesh, [a, b, c]) = (&scene.mesh, [0, 1, 2].map(|number| &scene.hosts[number]));
    let target = |host: &Host| -> Target { format!("{}:3306", host.name()).parse().expect("a target") };
    let server = answer(mesh, a)?;
    mesh.change_config(a, |config| {
        config.forwards = vec![Forward {
            name: "orders".parse().expect("a name"),
            listen: vec!["127.0.0.1:3306".parse().expect("an address")],
            targets: vec![target(b), target(c)],
            failover: false,
            check_interval: Forward::CHECK_INTERVAL,
            connect_timeout: Forward::CONNECT_TIMEOUT,
            source: Default::default(),
            max_connections: Forward::CONNECTIONS,
        }];
        let to = AliasTarget::Forward("orders".parse().expect("a name"));
        config.aliases = vec![Alias { name: "orders-db".parse().expect("a name"), to }];
    })?;
    mesh.start(&[a])?;
    mesh.join(b, scene.underlay[1])?;
    mesh.start(&[b])?;
    mesh.wait_until_all_up(&[a, b], LONG)?;
    for host in [a, b] {
        ask_at(host, server.ip())?;
    }

    // From the host itself, and from a member by the mesh; both families, and back.
    let (b_v4, b_v6) = mesh.overlay(b);
    for host in [a, b] {
        wait_for(host, "b.lab", &b_v4.to_string())?;
        assert_eq!(getent(host, "ahostsv6", "B.LAB")?.split(' ').next(), Some(&*b_v6.to_string()));
        for address in [b_v4.to_string(), b_v6.to_string()] {
            assert_eq!(getent(host, "hosts", &address)?, format!("{address} b.lab"));
        }
    }
    for name in ["orders.forward.lab", "orders-db.lab"] {
        wait_for(a, name, &b_v4.to_string())?;
    }
    for unknown in ["c.lab", "example.com", "lab", "10.77.9.9"] {
        assert_eq!(getent(a, "hosts", unknown)?, "", "{unknown}");
    }

    mesh.join(c, scene.underlay[2])?;
    mesh.start(&[c])?;
    let began = Instant::now();
    let c_v4 = mesh.overlay(c).0.to_string();
    wait_for(a, "c.lab", &c_v4)?;
    println!("    a node is there by name {:.0?} after its daemon is up", began.elapsed());

    // A switch moves the name, and is not told of before it has.
    mesh.ctl(a).args(["forward", "switch", "orders", "--to", "c", "--force"]).check()?;
    for name in ["orders.forward.lab", "orders-db.lab"] {
        assert_eq!(getent(a, "ahostsv4", name)?.split(' ').next(), Some(&*c_v4), "{name}");
    }
    mesh.ctl(a).args(["forward", "switch", "orders", "--back", "--force"]).check()?;
    assert_eq!(getent(a, "ahostsv4", "orders-db.lab")?.split(' ').next(), Some(&*b_v4.to_string()));

    // Somebody else than this host and the mesh gets silence, and is counted.
    let stranger = a.enter(|| UdpSocket::bind((scene.underlay[0], 0))).context("bind")?;
    let before = names(mesh, a)?.questions.map(|questions| questions.strangers);
    assert_eq!(before, Some(0));
    stranger.send_to(b"any question", server).context("send")?;
    wait("the stranger is counted", LONG, || {
        let questions = names(mesh, a)?.questions;
        Ok(questions.filter(|questions| questions.strangers == 1).map(drop))
    })?;
    stranger.set_nonblocking(true).context("look")?;
    assert!(stranger.recv(&mut [0; 512]).is_err(), "a stranger was answered");

    mesh.wait_until_all_up(&[a, b, c], LONG)?;
    let began = Instant::now();
    mesh.ctl(a).args(["revoke", "b", "--yes"]).check()?;
    wait_for(a, "b.lab", "")?;
    println!("    a revoked node's name is gone {:.0?} after the command began", began.elapsed());
    assert_eq!(getent(a, "hosts", &b_v4.to_string())?, "");
    // The forward's target is the revoked node: nobody is sent there.
    assert_eq!(getent(a, "hosts", "orders-db.lab")?, "");

    // Without an address nobody is answered any more; with one that is taken, the status says so until it is free.
    mesh.change_config(a, |config| config.names.listen = None)?;
    mesh.daemon(a)?.signal(Signal::SIGHUP);
    wait_for(a, "c.lab", "")?;
    assert_eq!(names(mesh, a)?.listen, None);
    let taken = a.enter(|| UdpSocket::bind(server)).context("bind where names were answered")?;
    answer(mesh, a)?;
    mesh.daemon(a)?.signal(Signal::SIGHUP);
    mesh.wait_for(a, "the port that is taken", LONG, |status| {
        status.problems.iter().any(|problem| problem.kind == "names" && problem.message.contains(&server.to_string()))
    })?;
    drop(taken);
    wait_for(a, "c.lab", &c_v4)?;
    mesh.wait_for(a, "nothing wrong with names", LONG, |status| {
        !status.problems.iter().any(|problem| problem.kind == "names")
    })?;
    Ok(())
}

/// A resolver of others, with its own idea of what an answer is.
fn dig(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a"])?;
    let (mesh, a, tree) = (&scene.mesh, &scene.hosts[0], DNSUTILS.fetch()?);
    let server = answer(mesh, a)?;
    mesh.start(&[a])?;
    wait("the server answers", LONG, || Ok(names(mesh, a)?.listen))?;
    let ask = |words: &[&str]| -> Result<String> {
        let at = format!("@{}", server.ip());
        a.command_from(&tree, "dig")?.args([&*at, "+time=5", "+tries=1"]).args(words).check()
    };
    let (v4, v6) = mesh.overlay(a);
    let said = ask(&["a.lab", "A"])?;
    for part in ["status: NOERROR", "flags: qr aa rd;", &format!("a.lab.\t\t\t0\tIN\tA\t{v4}"), "udp: 1232"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(ask(&["A.lab", "AAAA", "+noedns"])?.contains(&v6.to_string()));
    assert_eq!(ask(&["-x", &v4.to_string(), "+short"])?, "a.lab.\n");
    assert_eq!(ask(&["-x", &v6.to_string(), "+short"])?, "a.lab.\n");
    for (name, status) in [("nobody.lab", "NXDOMAIN"), ("lab", "NOERROR"), ("example.com", "REFUSED")] {
        let said = ask(&[name, "MX"])?;
        assert!(said.contains(&format!("status: {status}")), "{name}: {said}");
        assert_eq!(said.contains("SOA\ta.lab. hostmaster.lab."), status != "REFUSED", "{name}: {said}");
    }
    assert!(ask(&["lab", "SOA", "+short"])?.starts_with("a.lab. hostmaster.lab. "));
    assert!(ask(&["a.lab", "+ednsopt=100:61", "+cookie", "+dnssec"])?.contains("status: NOERROR"));
    Ok(())
}

/// What this file of hosts holds besides ours: its last line has no end.
const THEIRS: &str = "127.0.0.1 localhost a\n# by hand\n192.0.2.9 printer printer.example";

/// ```text
///    a: names in /etc/hosts, which is mounted alone, as in a container           b joins and is revoked
/// ```
fn hosts(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, [a, b]) = (&scene.mesh, [0, 1].map(|number| &scene.hosts[number]));
    let file = a.run_dir().join("hosts");
    let read = || fs::read_to_string(&file).context("a host's file of hosts");
    fs::write(&file, THEIRS).context("a host's file of hosts")?;
    mesh.change_config(a, |config| config.names.resolver = Resolver::Hosts)?;
    mesh.start(&[a])?;
    let (own, own_v6) = mesh.overlay(a);
    wait_for(a, "a.lab", &own.to_string())?;
    assert_eq!(getent(a, "hosts", &own_v6.to_string())?, format!("{own_v6} a.lab"));
    mesh.join(b, scene.underlay[1])?;
    mesh.start(&[b])?;
    let b_v4 = mesh.overlay(b).0.to_string();
    wait_for(a, "b.lab", &b_v4)?;
    assert_eq!(getent(a, "hosts", "printer")?, "192.0.2.9 printer printer.example");
    wait("the daemon finds its names in force", LONG, || {
        let list = names(mesh, a)?;
        let good = list.resolver.as_deref() == Some("hosts") && list.resolver_failure.is_none();
        Ok(if good { Look::Found(()) } else { Look::NotYet(format!("{list:?}")) })
    })?;

    // Somebody else writes the file anew, without our block: it comes back, and theirs stays.
    fs::write(&file, format!("{THEIRS}\n192.0.2.10 scanner\n")).context("a host's file of hosts")?;
    wait_for(a, "b.lab", &b_v4)?;
    assert!(read()?.starts_with(&format!("{THEIRS}\n192.0.2.10 scanner\n# meshd lab begin\n")), "{}", read()?);

    // A crash leaves the block; the next daemon makes it right, although something in it is wrong by now.
    mesh.kill(a)?;
    fs::write(&file, read()?.replace(&b_v4, "10.77.9.9")).context("a host's file of hosts")?;
    mesh.start(&[a])?;
    wait_for(a, "b.lab", &b_v4)?;

    mesh.wait_until_all_up(&[a, b], LONG)?;
    let began = Instant::now();
    mesh.ctl(a).args(["revoke", "b", "--yes"]).check()?;
    wait_for(a, "b.lab", "")?;
    println!("    a revoked node's line is gone {:.0?} after the command began", began.elapsed());
    mesh.stop(&[a])?;
    assert_eq!(read()?, format!("{THEIRS}\n192.0.2.10 scanner\n"), "as if there never had been a mesh");

    // Off at a reload: the same. What had no end has none again.
    fs::write(&file, THEIRS).context("a host's file of hosts")?;
    mesh.start(&[a])?;
    wait_for(a, "a.lab", &own.to_string())?;
    mesh.change_config(a, |config| config.names.resolver = Resolver::Off)?;
    mesh.daemon(a)?.signal(Signal::SIGHUP);
    wait("the names are taken out", LONG, || {
        let told = read()?;
        Ok(if told == THEIRS { Look::Found(()) } else { Look::NotYet(told) })
    })
}

/// Programs that write down what they are told; no systemd-resolved and no resolvconf runs here.
fn programs(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a"])?;
    let (mesh, a) = (&scene.mesh, &scene.hosts[0]);
    let (bin, told) = (a.dir().join("bin"), a.dir().join("told"));
    fs::create_dir(&bin).context(bin.display())?;
    for program in ["resolvectl", "resolvconf"] {
        let script = format!("#!/bin/sh\necho \"{program} $* $(cat)\" >> {}\n", told.display());
        let place = bin.join(program);
        fs::write(&place, script).context(place.display())?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).context(place.display())?;
    }
    let lines = || fs::read_to_string(&told).unwrap_or_default();
    let wait_for_line = |line: &str| {
        wait(format_args!("somebody is told `{line}`"), LONG, || {
            let all = lines();
            Ok(if all.lines().any(|told| told.trim_end() == line) { Look::Found(()) } else { Look::NotYet(all) })
        })
    };
    let server = answer(mesh, a)?;
    // What the programs write of what they were told lies elsewhere than a resolver keeps it.
    mesh.change_config(a, |config| {
        config.names.resolver = Resolver::Resolved;
        config.security.writable = vec![a.dir().to_path_buf()];
    })?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let daemon = mesh.meshd(a).env("PATH", path).spawn()?;
    daemon.wait_for_output(" is up", LONG)?;
    wait_for_line("resolvectl default-route mesh0 no")?;
    let v6 = meshd::names::ReverseZones::of(
        "10.77.0.0/16".parse().expect("a range"),
        ipnet::Ipv6Net::new_assert(mesh.overlay(a).1, 64).trunc(),
    );
    let domains = format!("resolvectl domain mesh0 ~lab ~77.10.in-addr.arpa ~{}", v6.v6[0]);
    let first = format!("resolvectl dns mesh0 {}", server.ip());
    let said: Vec<String> = lines().lines().take(3).map(|line| line.trim_end().to_owned()).collect();
    assert_eq!(said, [first, domains, "resolvectl default-route mesh0 no".to_owned()]);

    // They did nothing, so the host's resolver knows nothing: the daemon says so, until it does.
    let is_told = |status: &meshd::api::Status| status.problems.iter().any(|problem| problem.kind == "names");
    mesh.wait_for(a, "names that are not in force", LONG, is_told)?;
    ask_at(a, server.ip())?;
    mesh.wait_for(a, "names in force", LONG, |status| !is_told(status))?;

    mesh.change_config(a, |config| config.names.resolver = Resolver::Resolvconf)?;
    daemon.signal(Signal::SIGHUP);
    wait_for_line(&format!("resolvconf -a mesh0.meshd nameserver {}", server.ip()))?;
    wait_for_line("resolvectl revert mesh0")?;
    assert!(!lines().contains("resolvconf -d"), "{}", lines());
    daemon.signal(Signal::SIGTERM);
    daemon.wait(LONG)?;
    wait_for_line("resolvconf -d mesh0.meshd")?;
    assert!(!a.run_dir().join("meshd-names/lab").exists(), "a note of what is undone");
    Ok(())
}

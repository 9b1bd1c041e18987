//! What members may reach: rules by tag, taken over by a reload, and connections that outlive a restart.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use meshd::api::{PolicyInfo, PolicyRule, Status};
use meshd::config::Allow;
use nix::sys::signal::Signal;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::flow::datagram;
use crate::lab::look::{Look, wait};
use crate::lab::{Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[Case { name: "policy::rules_follow_tags_and_reloads", needs: &[], run: follow }];

/// ```text
///    web (app) ---- db: only app may, by TCP          late (app) joins afterwards
///    other     ---- db
/// ```
fn follow(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["other", "web", "db", "late"])?;
    let (mesh, [other, web, db, late]) = (&scene.mesh, [0, 1, 2, 3].map(|number| &scene.hosts[number]));
    mesh.admit_offline_with(web, scene.underlay[1], &["--tag", "app"])?;
    mesh.admit_offline(db, scene.underlay[2])?;
    mesh.change_config(db, |config| config.allow = vec![rule("tag:app", "tcp/1-65535")])?;
    mesh.start(&[other, web, db])?;
    mesh.wait_until_all_up(&[other, web, db], LONG)?;

    // The others have none, which each side says.
    tells_difference(
        mesh,
        db,
        Some("policy differs from 2 of 2 peers: other, web; without any [[allow]]: other, web"),
    )?;
    tells_difference(mesh, web, Some("policy differs from 1 of 2 peers: db; this node has no [[allow]]"))?;
    let mut allowed = scene.flow(1, 2)?;
    allowed.exchange(&[7; 100_000])?;
    for (number, host) in [(1, web), (0, other)] {
        for address in mesh.addresses(host) {
            refuses_datagram(mesh, host, address, db)?;
        }
        let verdict = mesh.ctl(db).args(["policy", "check", host.name(), "db", "tcp/3306"]).output()?;
        assert_eq!(verdict.status.success(), number == 1, "{verdict:?}");
    }
    refuses_connection(mesh, other, db)?;
    traces(mesh, web, other, db)?;

    // Answers to what db began, by TCP, UDP and with errors of ICMP; nobody else is restricted.
    let mut begun = scene.flow(2, 0)?;
    begun.exchange(b"begun")?;
    for (own, theirs) in mesh.addresses(db).into_iter().zip(mesh.addresses(other)) {
        datagram(db, own, other, theirs, b"asked")?;
        fails_at_once(db, own, theirs)?;
    }

    mesh.admit_offline_with(late, scene.underlay[3], &["--tag", "app"])?;
    mesh.start(&[late])?;
    mesh.wait_until_all_up(&scene.all(), LONG)?;
    let joined = Instant::now();
    scene.flow(3, 2)?.exchange(b"late")?;
    println!("    a node that has just joined is let in {:.0?} after its links are up", joined.elapsed());

    // After a restart, the far end is the next to speak.
    mesh.restart(&[db])?;
    mesh.wait_until_all_up(&scene.all(), LONG)?;
    begun.answer(b"unasked")?;
    allowed.exchange(b"after")?;

    mesh.change_config(db, |config| config.allow = vec![rule("tag:nobody", "any")])?;
    mesh.daemon(db)?.signal(Signal::SIGHUP);
    wait_for_policy(mesh, db, "the other rule", |info| rules_are(info, &["tag:nobody"]))?;
    refuses_connection(mesh, web, db)?;
    begun.exchange(b"still")?;

    mesh.change_config(db, |config| config.allow = Vec::new())?;
    mesh.daemon(db)?.signal(Signal::SIGHUP);
    wait_for_policy(mesh, db, "no rule", |info| !info.restricted)?;
    scene.all().into_iter().try_for_each(|host| tells_difference(mesh, host, None))?;
    allowed.exchange(b"open again")?;
    scene.flow(0, 2)?.exchange(b"to everybody")
}

/// Watches packets at one node while somebody who may and somebody who may not connect to it.
fn traces(mesh: &Mesh, may: &Host, may_not: &Host, to: &Host) -> Result<()> {
    let target = SocketAddr::new(mesh.overlay(to).0.into(), 0);
    let far = to.enter(|| std::net::TcpListener::bind(target)).context("listen")?;
    let address = far.local_addr().context("where the far end is")?;
    let watch = |from: &Host, count: &str| -> Result<_> {
        let service = format!("tcp/{}", address.port());
        let words = ["policy", "check", from.name(), to.name(), &service, "--trace", "--for", "10m", "--count", count];
        let watching = mesh.ctl(to).args(words).spawn()?;
        watching.wait_for_output("watching", LONG)?;
        Ok(watching)
    };
    // The opening segment, the answer to it and what acknowledges that.
    let watching = watch(may, "3")?;
    let second = mesh.ctl(to).args(["policy", "check", may.name(), to.name(), "tcp/1", "--trace"]).output()?;
    assert!(!second.status.success() && second.stderr.contains("somebody else watches"), "{second:?}");
    let near = may.enter(|| std::net::TcpStream::connect(address)).context("connect")?;
    watching.wait_for_output("3 packets passed, 0 refused", LONG)?;
    let told = watching.stdout();
    for part in [" B new: allowed by [[allow]] 1", " B leaves: sent", " B established: allowed by [[allow]] 1"] {
        assert_eq!(told.matches(part).count(), 1, "{told}");
    }
    drop((near, far.accept().context("accept")?));
    let watching = watch(may_not, "1")?;
    refuses_connection_at(mesh, may_not, to, &far)?;
    watching.wait_for_output("new: refused: no rule allows it", LONG)?;
    // It has ended by itself: another one can watch, and goes without being told to.
    watching.wait_for_output("0 packets passed, 1 refused", LONG)?;
    drop(watch(may, "1")?);
    wait("the watcher that went is forgotten", LONG, || match watch(may, "1") {
        Ok(_) => Ok(Look::Found(())),
        Err(error) => Ok(Look::NotYet(error.to_string())),
    })
}

/// Waits until a node says which peers have other rules, or that none has.
fn tells_difference(mesh: &Mesh, host: &Host, message: Option<&str>) -> Result<()> {
    let told = |status: &Status| {
        let problem = status.problems.iter().find(|problem| problem.kind == "policy_differs");
        problem.map(|problem| problem.message.as_str()) == message
    };
    mesh.wait_for(host, &format!("{message:?} of its peers' rules"), LONG, told).map(drop)
}

fn rule(from: &str, ports: &str) -> Allow {
    let valid = "the test's own rules are valid";
    Allow { from: vec![from.parse().expect(valid)], to: Vec::new(), ports: vec![ports.parse().expect(valid)] }
}

fn rules_are(info: &PolicyInfo, from: &[&str]) -> bool {
    info.rules.iter().flat_map(|PolicyRule { from, .. }| from).eq(from)
}

/// Asks the daemon again and again, until what it says of its rules is as wanted.
fn wait_for_policy(mesh: &Mesh, host: &Host, what: &str, look: impl Fn(&PolicyInfo) -> bool) -> Result<()> {
    wait(format_args!("{} has {what}", host.name()), LONG, || {
        let told = mesh.ctl(host).args(["--json", "policy"]).check()?;
        let info: PolicyInfo = serde_json::from_str(&told).context("what meshctl policy told")?;
        Ok(if look(&info) { Look::Found(()) } else { Look::NotYet(told) })
    })
}

fn refused(info: &PolicyInfo, source: IpAddr, service: &str) -> bool {
    info.denied.iter().any(|denial| denial.source == source && denial.service == service)
}

/// Sends a datagram and waits until the other node says that it refused it.
fn refuses_datagram(mesh: &Mesh, from: &Host, source: IpAddr, to: &Host) -> Result<()> {
    let target = mesh.addresses(to).into_iter().find(|target| target.is_ipv4() == source.is_ipv4());
    let target = target.expect("a node has an address of each family");
    let near = from.enter(|| UdpSocket::bind(SocketAddr::new(source, 0))).context("bind")?;
    let far = to.enter(|| UdpSocket::bind(SocketAddr::new(target, 0))).context("bind")?;
    let address = far.local_addr().context("where the far end is")?;
    near.send_to(b"refused", address).context("send")?;
    let service = format!("udp/{}", address.port());
    wait_for_policy(mesh, to, "a datagram refused", |info| refused(info, source, &service))?;
    far.set_nonblocking(true).context("look")?;
    assert!(far.recv(&mut [0; 10]).is_err(), "what was refused arrived");
    Ok(())
}

/// Begins to connect and waits until the other node says that it refused it.
fn refuses_connection(mesh: &Mesh, from: &Host, to: &Host) -> Result<()> {
    let target = mesh.overlay(to).0.into();
    let far = to.enter(|| std::net::TcpListener::bind(SocketAddr::new(target, 0))).context("listen")?;
    refuses_connection_at(mesh, from, to, &far)
}

/// The same at something that listens.
fn refuses_connection_at(mesh: &Mesh, from: &Host, to: &Host, far: &std::net::TcpListener) -> Result<()> {
    let source: IpAddr = mesh.overlay(from).0.into();
    let address = far.local_addr().context("where the far end is")?;
    let near = from.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.set_nonblocking(true)?;
        // It is under way when this returns.
        let _ = socket.connect(&address.into());
        Ok::<_, std::io::Error>(socket)
    });
    let near = near.context("connect")?;
    let service = format!("tcp/{}", address.port());
    wait_for_policy(mesh, to, "a connection refused", |info| refused(info, source, &service))?;
    far.set_nonblocking(true).context("look")?;
    assert!(far.accept().is_err(), "what was refused arrived");
    drop(near);
    Ok(())
}

/// Asks at a port where nobody listens: the error of ICMP comes back, or the read waits for ever.
fn fails_at_once(from: &Host, own: IpAddr, theirs: IpAddr) -> Result<()> {
    let near = from.enter(|| UdpSocket::bind(SocketAddr::new(own, 0))).context("bind")?;
    // The discard port, where the lab's hosts have nobody.
    near.connect(SocketAddr::new(theirs, 9)).context("connect")?;
    near.set_read_timeout(Some(LONG)).context("wait")?;
    near.send(b"?").context("send")?;
    let told = near.recv(&mut [0; 10]).expect_err("nobody is there to answer");
    assert_eq!(told.kind(), std::io::ErrorKind::ConnectionRefused, "{told}");
    Ok(())
}

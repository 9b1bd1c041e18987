//! Stock WireGuard peers: wireguard-go, declared on one node, set up with what `meshctl wireguard` prints.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use meshd::api::{Plan, PlannedAction, Problem, Status, TouchedLink, WireguardState, WireguardStatus};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::Case;
use crate::lab::error::{Context, Error};
use crate::lab::flow::datagram;
use crate::lab::package::{PING, WIREGUARD_GO};
use crate::lab::wan::WanPort;
use crate::lab::wireguard_go::{DEVICE, WireguardGo};
use crate::lab::{Flow, Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "wireguard::a_phone_reaches_the_whole_mesh", needs: &[&WIREGUARD_GO], run: whole_mesh },
    Case { name: "wireguard::a_phone_moves_and_packets_overtake", needs: &[&WIREGUARD_GO], run: moves },
    Case { name: "wireguard::a_phone_on_an_ipv6_network", needs: &[&WIREGUARD_GO, &PING], run: over_v6 },
    Case {
        name: "wireguard::what_is_too_big_for_the_next_link_is_told_so",
        needs: &[&WIREGUARD_GO, &PING],
        run: too_big,
    },
    Case { name: "wireguard::a_reload_touches_what_its_plan_names", needs: &[&WIREGUARD_GO], run: planned },
    Case { name: "wireguard::a_router_is_called_at_its_place", needs: &[&WIREGUARD_GO], run: router },
    Case { name: "wireguard::strangers_and_foreign_sources_get_silence", needs: &[&WIREGUARD_GO], run: silence },
    Case { name: "wireguard::a_certificate_wins_over_a_declaration", needs: &[], run: certificate_wins },
];

/// Cases that wait for real times.
pub const LONG_CASES: &[Case] =
    &[Case { name: "wireguard::sessions_are_renewed_under_traffic", needs: &[&WIREGUARD_GO], run: renewed }];

/// ```text
///    phone ~~~ hub ----- web        hub, web: a mesh; hub's certificate carries 10.78.0.0/24 and fd78::/64
/// ```
struct Office {
    scene: Scene,
    phone: Host,
    port: WanPort,
}

impl Office {
    fn open(lab: &Lab) -> Result<Office> {
        let scene = Scene::founded(lab, &["web", "hub"])?;
        let routes = ["--route", "10.78.0.0/24", "--route", "fd78::/64"];
        scene.mesh.admit_offline_with(&scene.hosts[1], scene.underlay[1], &routes)?;
        let phone = lab.host("phone")?;
        let port = scene.wan.attach(&phone)?;
        scene.mesh.start(&scene.all())?;
        scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
        Ok(Office { scene, phone, port })
    }

    fn mesh(&self) -> &Mesh {
        &self.scene.mesh
    }

    fn web(&self) -> &Host {
        &self.scene.hosts[0]
    }

    fn hub(&self) -> &Host {
        &self.scene.hosts[1]
    }

    /// Makes a peer as the manual says: `meshctl wireguard --new`, its entry into the file, a reload. Returns the
    /// peer's own configuration.
    fn declare(&self, name: &str, addresses: &[&str], more: &str) -> Result<String> {
        let config = self.write(name, addresses, more)?;
        self.reload(&format!("{name} as declared"), |status| peer(status, name).is_some())?;
        Ok(config)
    }

    /// The same without the reload.
    fn write(&self, name: &str, addresses: &[&str], more: &str) -> Result<String> {
        let command = self.mesh().ctl(self.hub()).args(["--json", "wireguard", "--new", name]);
        let told = command.args(addresses.iter().flat_map(|address| ["--address", address])).check()?;
        let told: Value = serde_json::from_str(&told).context("what meshctl wireguard told")?;
        let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
        append(self.mesh(), self.hub(), &format!("\n{}{more}", text("block")))?;
        Ok(text("config"))
    }

    fn reload(&self, what: &str, look: impl Fn(&Status) -> bool) -> Result<Status> {
        self.mesh().daemon(self.hub())?.signal(Signal::SIGHUP);
        self.mesh().wait_for(self.hub(), what, LONG, look)
    }

    fn wait(&self, what: &str, look: impl Fn(&WireguardStatus) -> bool) -> Result<Status> {
        self.mesh().wait_for(self.hub(), what, LONG, |status| peer(status, "phone").is_some_and(&look))
    }
}

fn append(mesh: &Mesh, host: &Host, block: &str) -> Result<()> {
    let path = mesh.config(host);
    let text = fs::read_to_string(&path).context(path.display())?;
    fs::write(&path, text + block).context(path.display())
}

fn peer<'a>(status: &'a Status, name: &str) -> Option<&'a WireguardStatus> {
    status.wireguard.iter().find(|peer| peer.name == name)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("the test's own addresses are valid")
}

/// Datagrams and a connection each way, over both families, between the phone and a node.
fn talk(phone: &Host, node: &Host, overlay: [IpAddr; 2]) -> Result<()> {
    for (own, theirs) in [address("10.78.0.2"), address("fd78::2")].into_iter().zip(overlay) {
        // TCP first: it waits for a session where there is none yet.
        Flow::open(phone, own, node, theirs)?.exchange(&[7; 100_000])?;
        Flow::open(node, theirs, phone, own)?.exchange(&[9; 100_000])?;
        datagram(phone, own, node, theirs, b"from the phone")?;
        datagram(node, theirs, phone, own, b"to the phone")?;
    }
    Ok(())
}

fn whole_mesh(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub, web) = (office.mesh(), office.hub(), office.web());
    let told = office.declare("phone", &["10.78.0.2", "fd78::2"], "")?;
    assert_eq!(peer(&mesh.status(hub)?, "phone").map(|peer| peer.state), Some(WireguardState::New));
    // A port of its own, at which it is found again after it was off.
    let config = told.replace("MTU", "ListenPort = 51820\nMTU");
    let phone = WireguardGo::start(&office.phone, &config)?;
    talk(&office.phone, hub, mesh.addresses(hub))?;
    talk(&office.phone, web, mesh.addresses(web))?;
    let status = office.wait("the phone as up", |peer| peer.state == WireguardState::Up)?;
    let shown = peer(&status, "phone").map(|peer| (peer.carried.len(), peer.drops.clone()));
    assert_eq!(shown, Some((2, Default::default())), "nothing of it was dropped");
    // It is shown as what it is, and not measured.
    assert!(mesh.ctl(hub).args(["--color", "never", "status"]).check()?.contains(" wireguard "));
    let ping = mesh.ctl(hub).args(["ping", "phone"]).output()?;
    assert!(!ping.status.success() && ping.stderr.contains("stock WireGuard"), "{}", ping.stderr);
    let printed = mesh.ctl(hub).args(["wireguard", "phone"]).check()?;
    assert_eq!(printed.lines().skip(2).collect::<Vec<_>>(), told.lines().skip(2).collect::<Vec<_>>());
    // Switched off and on again: its sessions are gone, and this time the mesh calls first, at its last place.
    let handshakes = peer(&mesh.status(hub)?, "phone").map_or(0, |peer| peer.handshakes);
    phone.stop()?;
    let silent = config.replace("PersistentKeepalive = 25\n", "");
    let _phone = WireguardGo::start(&office.phone, &silent)?;
    Flow::open(web, mesh.addresses(web)[0], &office.phone, address("10.78.0.2"))?.exchange(b"back again")?;
    office.wait("a new handshake", |peer| peer.handshakes > handshakes)?;
    Ok(())
}

fn moves(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub) = (office.mesh(), office.hub());
    let config = office.declare("phone", &["10.78.0.2", "fd78::2"], "")?;
    let _phone = WireguardGo::start(&office.phone, &config)?;
    let mut flow = Flow::open(&office.phone, address("10.78.0.2"), hub, mesh.addresses(hub)[0])?;
    flow.exchange(b"at home")?;
    let home = IpAddr::V4(office.port.v4);
    office
        .wait("the phone at home", |peer| peer.endpoint.is_some_and(|endpoint| endpoint.ip().to_canonical() == home))?;
    // Another network, in the middle of a conversation.
    let away = address("198.18.77.1");
    office.scene.wan.add_address(&office.phone, &office.port, away)?;
    office.scene.wan.remove_address(&office.phone, &office.port, home)?;
    flow.exchange(b"on the road")?;
    office.wait("the phone away", |peer| peer.endpoint.is_some_and(|endpoint| endpoint.ip().to_canonical() == away))?;
    // What was sent later arrives earlier, one in three.
    office.scene.wan.link("phone", "hub").reorder(0.3, Duration::from_millis(3));
    (0..20).try_for_each(|_| flow.exchange(&[3; 20_000]))?;
    let drops = peer(&mesh.status(hub)?, "phone").map(|peer| peer.drops.clone());
    assert_eq!(drops, Some(Default::default()), "reordered packets are no replays");
    Ok(())
}

/// IPv6 outside, both families inside, and ICMP as well as TCP and UDP; with the hub and beyond it.
fn over_v6(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub, web) = (office.mesh(), office.hub(), office.web());
    let config = office.declare("phone", &["10.78.0.2", "fd78::2"], "")?;
    let outside = IpAddr::V6(office.scene.v6[1]);
    let endpoint = |line: &str| match line.starts_with("Endpoint") {
        true => format!("Endpoint = [{outside}]:7655\n"),
        false => format!("{line}\n"),
    };
    let _phone = WireguardGo::start(&office.phone, &config.lines().map(endpoint).collect::<String>())?;
    let ping = PING.fetch()?;
    for node in [hub, web] {
        talk(&office.phone, node, mesh.addresses(node))?;
        for (own, theirs) in [address("10.78.0.2"), address("fd78::2")].into_iter().zip(mesh.addresses(node)) {
            for (from, to) in [(&office.phone, theirs), (node, own)] {
                let command = from.command_from(&ping, "ping")?.args(["-c", "1", "-W", "10"]);
                let told = command.arg(to.to_string()).check()?;
                assert!(told.contains("1 received"), "{told}");
            }
        }
    }
    office.wait("the phone at its IPv6 address", |peer| peer.endpoint.is_some_and(|endpoint| endpoint.is_ipv6()))?;
    let drops = peer(&mesh.status(hub)?, "phone").map(|peer| peer.drops.clone());
    assert_eq!(drops, Some(Default::default()));
    Ok(())
}

/// ```text
///    phone ~~1420~~ hub --1300-- web
/// ```
fn too_big(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub, web) = (office.mesh(), office.hub(), office.web());
    mesh.change_config(hub, |config| config.interface.mtu = 1_300)?;
    let config = office.write("phone", &["10.78.0.2", "fd78::2"], "")?;
    mesh.restart(&[hub])?;
    mesh.wait_until_all_up(&[hub, web], LONG)?;
    let _phone = WireguardGo::start(&office.phone, &config)?;
    let ping = PING.fetch()?;
    for (size, target, error) in
        [("1392", mesh.addresses(web)[0], "Frag needed"), ("1372", mesh.addresses(web)[1], "too big")]
    {
        let ask = |size: &str| -> Result<_> {
            let command =
                office.phone.command_from(&ping, "ping")?.args(["-c", "1", "-W", "10", "-M", "do", "-s", size]);
            command.arg(target.to_string()).output()
        };
        // A whole packet of 1,420 bytes, which may not be cut: the hub names what would pass, and that does.
        let refused = ask(size)?;
        assert!(!refused.status.success() && refused.stdout.contains(error), "{}{}", refused.stdout, refused.stderr);
        assert!(refused.stdout.contains("1300"), "{}", refused.stdout);
        let smaller = (size.parse::<u16>().unwrap_or_default() - 120).to_string();
        let answered = ask(&smaller)?;
        assert!(answered.status.success(), "{}{}", answered.stdout, answered.stderr);
    }
    let drops = peer(&mesh.status(hub)?, "phone").map(|peer| peer.drops.clone());
    assert_eq!(drops.and_then(|drops| drops.get("too_big").copied()), Some(2));
    Ok(())
}

/// What a reload does is what its plan says, to the last link: the sessions of all others go on.
fn planned(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub) = (office.mesh(), office.hub());
    let ask = |what: &[&str]| -> Result<Plan> {
        let told = mesh.ctl(hub).arg("--json").args(what).check()?;
        serde_json::from_str(&told).context(told)
    };
    let exit = |expected: i32| -> Result<()> {
        let ended = mesh.ctl(hub).args(["plan", "--detailed-exitcode"]).output()?;
        assert_eq!(ended.status.code(), Some(expected), "{ended:?}");
        Ok(())
    };
    let config = office.declare("phone", &["10.78.0.2", "fd78::2"], "")?;
    let _phone = WireguardGo::start(&office.phone, &config)?;
    Flow::open(&office.phone, address("10.78.0.2"), hub, mesh.addresses(hub)[0])?.exchange(b"a session")?;
    let aged = |age: Option<u64>| age.is_some_and(|age| age >= 2);
    mesh.wait_for(hub, "sessions of some age", LONG, |status| {
        let stock = peer(status, "phone").and_then(|peer| peer.session_age_seconds);
        aged(stock) && status.peers.iter().all(|peer| aged(peer.session_age_seconds))
    })?;
    // Another session would be younger, and had a handshake of its own.
    let sessions = || -> Result<Vec<(String, u64, bool)>> {
        let status = mesh.status(hub)?;
        let members = status.peers.iter().map(|peer| (&peer.name, peer.handshakes, peer.session_age_seconds));
        let stocks = status.wireguard.iter().filter(|peer| peer.name == "phone");
        let stocks = stocks.map(|peer| (&peer.name, peer.handshakes, peer.session_age_seconds));
        Ok(members.chain(stocks).map(|(name, count, age)| (name.clone(), count, aged(age))).collect())
    };
    let before = sessions()?;
    assert_eq!(before.len(), 2, "{before:?}");

    assert!(ask(&["plan"])?.is_empty());
    exit(0)?;
    mesh.change_config(hub, |config| config.probe.interval = Duration::from_millis(900))?;
    office.write("tablet", &["10.78.0.3"], "")?;
    let plan = ask(&["plan"])?;
    let touched = |peer: &str, action| vec![TouchedLink { peer: peer.into(), action }];
    assert_eq!((plan.touched.clone(), plan.untouched), (touched("tablet", PlannedAction::Add), 2));
    let keys: Vec<&str> = plan.changes.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys, ["wireguard", "probe.interval"]);
    exit(7)?;
    assert_eq!(ask(&["plan"])?, plan, "a plan changes nothing");
    assert!(peer(&mesh.status(hub)?, "tablet").is_none());
    assert_eq!(ask(&["reload"])?, plan, "exactly what was planned");
    assert!(peer(&mesh.status(hub)?, "tablet").is_some() && ask(&["plan"])?.is_empty());
    assert_eq!(sessions()?, before);

    // The tablet goes, and something else besides that only a restart takes: then nothing happens.
    mesh.change_config(hub, |config| {
        config.wireguard.retain(|peer| peer.name.as_str() != "tablet");
        config.interface.mtu -= 20;
    })?;
    exit(8)?;
    let refused = mesh.ctl(hub).arg("reload").output()?;
    assert!(!refused.status.success() && refused.stderr.contains("interface.mtu"), "{refused:?}");
    assert!(peer(&mesh.status(hub)?, "tablet").is_some());
    mesh.change_config(hub, |config| config.interface.mtu += 20)?;
    let plan = ask(&["plan"])?;
    assert_eq!((plan.touched.clone(), plan.untouched), (touched("tablet", PlannedAction::Remove), 2));
    assert_eq!(ask(&["reload"])?, plan);
    assert!(peer(&mesh.status(hub)?, "tablet").is_none());
    assert_eq!(sessions()?, before);

    // The phone's own link, which the plan then names.
    mesh.change_config(hub, |config| config.wireguard.clear())?;
    let plan = ask(&["reload"])?;
    assert_eq!((plan.touched, plan.untouched), (touched("phone", PlannedAction::Remove), 1));
    assert_eq!(sessions()?, before[..1]);
    let file = mesh.config(hub);
    let good = fs::read_to_string(&file).context(file.display())?;
    fs::write(&file, good + "nonsense = T0PSECRET\n").context(file.display())?;
    let refused = mesh.ctl(hub).arg("plan").output()?;
    assert!(refused.status.code() == Some(1) && !refused.stderr.contains("T0PSECRET"), "{refused:?}");
    Ok(())
}

/// The other kind of peer: a fixed place, a pre-shared key, kept up by keepalives of ours. It does not know where we are.
fn router(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub) = (office.mesh(), office.hub());
    let secret = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
    let file = mesh.directory(hub).join("phone.psk");
    fs::write(&file, format!("{secret}\n")).context(file.display())?;
    let permit = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).context(file.display());
    permit(0o644)?;
    let endpoint = format!("endpoint = \"{}:51820\"\n", office.port.v4);
    let more = format!("{endpoint}preshared_key_file = \"phone.psk\"\npersistent_keepalive = \"1s\"\n");
    // Others may read the key: the reload is refused whole, and says so.
    let command = mesh.ctl(hub).args(["--json", "wireguard", "--new", "phone", "--address", "10.78.0.2"]);
    let told: Value = serde_json::from_str(&command.check()?).context("what meshctl wireguard told")?;
    let text = |key: &str| told[key].as_str().unwrap_or_default();
    append(mesh, hub, &format!("\n{}{more}", text("block")))?;
    let daemon = mesh.daemon(hub)?;
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_output("not reloaded", LONG)?;
    let is_refusal = |problem: &Problem| problem.kind == "reload_refused" && problem.message.contains("phone.psk");
    let status = mesh.status(hub)?;
    assert!(status.wireguard.is_empty() && status.problems.iter().any(is_refusal), "{:?}", status.problems);
    permit(0o600)?;
    office.reload("the router", |status| peer(status, "phone").is_some() && !status.problems.iter().any(is_refusal))?;
    let printed = mesh.ctl(hub).args(["wireguard", "phone"]).check()?;
    let own = text("config").lines().find(|line| line.starts_with("PrivateKey")).unwrap_or_default();
    let config: String = printed
        .lines()
        .filter(|line| !line.starts_with("Endpoint"))
        .map(|line| match line.split_once(" = ") {
            Some(("PrivateKey", _)) => format!("{own}\n"),
            Some(("PresharedKey", _)) => format!("PresharedKey = {secret}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let _router = WireguardGo::start(&office.phone, &config)?;
    // Nobody sends anything, and the session stands all the same.
    office.wait("the router as up", |peer| peer.state == WireguardState::Up)?;
    Flow::open(&office.phone, address("10.78.0.2"), hub, mesh.addresses(hub)[0])?.exchange(&[1; 10_000])?;
    // Taken out of the file, it is gone, and its neighbours have not noticed.
    let handshakes = mesh.status(hub)?.peers.iter().map(|peer| peer.handshakes).sum::<u64>();
    mesh.change_config(hub, |config| config.wireguard.clear())?;
    let status = office.reload("no router", |status| status.wireguard.is_empty())?;
    assert_eq!(status.peers.iter().map(|peer| peer.handshakes).sum::<u64>(), handshakes);
    Ok(())
}

fn silence(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub) = (office.mesh(), office.hub());
    let config = office.declare("phone", &["10.78.0.2", "fd78::2"], "")?;
    let _phone = WireguardGo::start(&office.phone, &config)?;
    let target = mesh.addresses(hub)[0];
    Flow::open(&office.phone, address("10.78.0.2"), hub, target)?.exchange(b"hello")?;
    // A neighbour's address, a member's, and the mesh's control port.
    for foreign in ["10.78.0.3", "10.77.0.1"] {
        office.phone.add_address(DEVICE, address(foreign), 32)?;
        let send = || UdpSocket::bind((address(foreign), 0))?.send_to(b"forged", (target, 9));
        office.phone.enter(send).context("send from a foreign source")?;
    }
    let dropped = |peer: &WireguardStatus, reason: &str| peer.drops.get(reason).copied();
    office.wait("two foreign sources", |peer| dropped(peer, "foreign_source") == Some(2))?;
    let send = || UdpSocket::bind((address("fd78::2"), 0))?.send_to(b"control", (mesh.addresses(hub)[1], 7655));
    office.phone.enter(send).context("send to the control port")?;
    office.wait("a reserved port", |peer| dropped(peer, "reserved_port") == Some(1))?;
    // A key that nobody declared: counted, and not one byte in answer.
    let stranger = lab.host("stranger")?;
    office.scene.wan.attach(&stranger)?;
    let new = mesh.ctl(hub).args(["--json", "wireguard", "--new", "stranger", "--address", "10.78.0.9"]).check()?;
    let told: Value = serde_json::from_str(&new).context("what meshctl wireguard told")?;
    let _stranger = WireguardGo::start(&stranger, told["config"].as_str().unwrap_or_default())?;
    let knocked = |status: &Status| status.drops.get("unknown_peer").is_some_and(|count| *count > 0);
    mesh.wait_for(hub, "a handshake of an undeclared key", LONG, knocked)?;
    assert_eq!(office.scene.wan.counts("hub", "stranger").entered, 0, "no answer of any kind");
    Ok(())
}

fn certificate_wins(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub, web) = (office.mesh(), office.hub(), office.web());
    // The next node's address, given to a peer by somebody who did not look.
    office.declare("phone", &["10.77.0.3", "10.78.0.2"], "")?;
    let late = lab.host("late")?;
    let port = office.scene.wan.attach(&late)?;
    mesh.admit_offline_with(&late, port.v4, &["--address", "10.77.0.3"])?;
    mesh.start(&[&late])?;
    mesh.wait_until_all_up(&[web, hub, &late], LONG)?;
    let warned = |status: &Status| status.problems.iter().any(|problem| problem.kind == "wireguard_address");
    mesh.wait_for(hub, "the collision", LONG, warned)?;
    let mut flow = Flow::open(hub, mesh.addresses(hub)[0], &late, address("10.77.0.3"))?;
    flow.exchange(b"the member has its address")?;
    // This node's own address is refused at once, with nothing changed.
    let path = mesh.config(hub);
    let text = fs::read_to_string(&path).context(path.display())?;
    let own = mesh.addresses(hub)[0].to_string();
    fs::write(&path, text.replace("10.78.0.2/32", &own).replace("\"10.78.0.2\"", &format!("\"{own}\"")))
        .context(path.display())?;
    let daemon = mesh.daemon(hub)?;
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_output("which is this node's own", LONG)?;
    let shown = peer(&mesh.status(hub)?, "phone").map(|peer| peer.addresses.len());
    (shown == Some(2)).then_some(()).ok_or_else(|| Error::failed(format!("{shown:?} addresses")))
}

/// Both sides renew after 120 s. A connection that is used all the time does not notice.
fn renewed(lab: &Lab) -> Result<()> {
    let office = Office::open(lab)?;
    let (mesh, hub) = (office.mesh(), office.hub());
    let config = office.declare("phone", &["10.78.0.2", "fd78::2"], "")?;
    let _phone = WireguardGo::start(&office.phone, &config)?;
    let mut flow = Flow::open(&office.phone, address("10.78.0.2"), hub, mesh.addresses(hub)[0])?;
    let deadline = std::time::Instant::now() + Duration::from_secs(400);
    loop {
        flow.exchange(&[5; 2_000])?;
        let status = mesh.status(hub)?;
        let phone = peer(&status, "phone").ok_or_else(|| Error::failed("the phone is gone"))?;
        assert!(phone.drops.is_empty(), "{:?}", phone.drops);
        if phone.handshakes >= 3 {
            return Ok(());
        }
        if std::time::Instant::now() > deadline {
            return Err(Error::failed(format!("{} handshakes in 400 s", phone.handshakes)));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

//! Gateways in pairs: a network behind two nodes, and what a connection through them notices when one goes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use meshd::api::GatewayList;
use meshd::config::{CheckTarget, GatewayCheck};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::firewall::Firewall;
use crate::lab::look::{Look, wait};
use crate::lab::package::NFTABLES;
use crate::lab::{Flow, Host, Lab, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "gateways::a_connection_outlives_its_gateway", needs: &[], run: outlives_its_gateway },
    Case { name: "gateways::a_drained_one_says_what_still_passes", needs: &[], run: drained },
    Case { name: "gateways::a_masquerading_one_needs_no_way_back", needs: &[&NFTABLES], run: masqueraded },
    Case { name: "gateways::one_whose_own_network_is_gone_is_left", needs: &[&NFTABLES], run: cut_behind },
];

/// The network behind the pair, its gateways there, and the host that knows nothing of the mesh.
const NETWORK: &str = "10.20.0.0/16";
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 20, 0, 1), Ipv4Addr::new(10, 20, 0, 2)];
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 5);
/// Above the metric of the daemon's routes, below that of its covers: taken while there is no daemon.
const FALLBACK: u32 = 1_000_000;

/// ```text
///     app ── gw1 (110) ──┬── db, 10.20.0.5, whose way to the mesh is gw1
///      └──── gw2 (100) ──┘       and gw1's own way to it, without its daemon, is gw2
/// ```
struct Pair {
    scene: Scene,
    behind: Host,
}

impl Pair {
    fn running(lab: &Lab) -> Result<Pair> {
        Pair::running_with(lab, INSIDE[0], &[])
    }

    /// A pair whose host behind sends to the mesh by `back`, and whose gateways check these.
    fn running_with(lab: &Lab, back: Ipv4Addr, check: &[CheckTarget]) -> Result<Pair> {
        let scene = Scene::founded(lab, &["app", "gw1", "gw2"])?;
        let behind = lab.host("db")?;
        let lan = lab.plain("lan")?;
        let overlay = (IpAddr::from([10, 77, 0, 0]), 16);
        lan.attach_as(&behind, "lan0")?;
        behind.add_address("lan0", BEHIND.into(), 16)?;
        behind.add_route(overlay, Some(back.into()), "lan0")?;
        scene.mesh.start(&[&scene.hosts[0]])?;
        for (number, priority) in [(1, "110"), (2, "100")] {
            let (host, own, other) = (&scene.hosts[number], INSIDE[number - 1], INSIDE[2 - number]);
            lan.attach_as(host, "lan0")?;
            host.add_address("lan0", own.into(), 16)?;
            host.sysctl("net/ipv4/ip_forward", "1")?;
            // The device outlives its daemon, without a carrier.
            host.sysctl("net/ipv4/conf/default/ignore_routes_with_linkdown", "1")?;
            host.add_route_of_metric(overlay, other.into(), "lan0", FALLBACK)?;
            let grant = ["--route", NETWORK, "--shared", "--priority", priority];
            match number {
                1 => scene.mesh.admit_offline_with(host, scene.underlay[number], &grant)?,
                _ => {
                    let token = scene.mesh.invite(&scene.hosts[0], host.name(), &grant)?;
                    scene.mesh.join_with(host, scene.underlay[number], &token)?;
                }
            }
        }
        for host in scene.hosts[1..].iter().filter(|_| !check.is_empty()) {
            // As systemd sets it for everybody.
            host.sysctl("net/ipv4/ping_group_range", "0 0")?;
            let prefix = NETWORK.parse().expect("a constant");
            let gateway = GatewayCheck {
                prefix,
                check: check.to_vec(),
                interval: GatewayCheck::INTERVAL,
                tries: GatewayCheck::TRIES,
            };
            scene.mesh.change_config(host, |config| config.gateway_checks.push(gateway))?;
        }
        let all = scene.all();
        scene.mesh.start(&all[1..])?;
        scene.mesh.wait_until_all_up(&all, LONG)?;
        Ok(Pair { scene, behind })
    }

    fn flow(&self) -> Result<Flow> {
        let app = &self.scene.hosts[0];
        Flow::open(app, self.scene.mesh.overlay(app).0.into(), &self.behind, BEHIND.into())
    }
}

/// ```text
///     app ── gw ── printer, which knows of no mesh and has no way to it
/// ```
fn masqueraded(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["app", "gw"])?;
    let (mesh, app, gw) = (&scene.mesh, &scene.hosts[0], &scene.hosts[1]);
    let (printer, lan, tree) = (lab.host("printer")?, lab.plain("lan")?, NFTABLES.fetch()?);
    lan.attach_as(&printer, "lan0")?;
    printer.add_address("lan0", BEHIND.into(), 16)?;
    lan.attach_as(gw, "lan0")?;
    gw.add_address("lan0", INSIDE[0].into(), 16)?;
    gw.sysctl("net/ipv4/ip_forward", "1")?;
    mesh.start(&[app])?;
    mesh.admit_offline_with(gw, scene.underlay[1], &["--route", NETWORK])?;
    mesh.change_config(gw, |config| config.gateway.masquerade = true)?;
    // Nobody on that network answers the mesh's addresses: without what it needs, the daemon does not start.
    let alone = mesh.meshd(gw).env("PATH", "/nonexistent").output()?;
    assert!(
        !alone.status.success() && alone.stderr.contains("gateway.masquerade needs the program `nft`"),
        "{alone:?}"
    );
    mesh.start_with(&[gw], &tree)?;
    mesh.wait_until_all_up(&scene.all(), LONG)?;
    let open = || Flow::open(app, mesh.overlay(app).0.into(), &printer, BEHIND.into());
    let mut flow = open()?;
    flow.exchange(b"a page")?;
    let nft = |words: &[&str]| gw.command_from(&tree, "nft")?.args(words).check();
    assert!(nft(&["list", "table", "inet", "meshd_mesh0"])?.contains("masquerade"));
    // Somebody flushes it: what is under way goes on, and what is new is masqueraded again.
    nft(&["flush", "ruleset"])?;
    flow.exchange(b"another page")?;
    wait("the table again", LONG, || {
        let tables = nft(&["list", "ruleset"])?;
        Ok(if tables.contains("masquerade") { Look::Found(()) } else { Look::NotYet(tables) })
    })?;
    open()?.exchange(b"a new one")?;
    // A reload takes it away, and gives it back.
    for (wanted, word) in [(false, "no rule"), (true, "the rule")] {
        mesh.change_config(gw, |config| config.gateway.masquerade = wanted)?;
        mesh.ctl(gw).with(&tree).arg("reload").check()?;
        wait(word, LONG, || {
            let tables = nft(&["list", "ruleset"])?;
            let found = tables.contains("masquerade") == wanted && tables.contains("meshd_mesh0");
            Ok(if found { Look::Found(()) } else { Look::NotYet(tables) })
        })?;
    }
    open()?.exchange(b"and one more")
}

/// Exchanges bytes without a pause until `until` says yes; returns how many there were, and the longest.
fn exchange_until(flow: &mut Flow, mut until: impl FnMut() -> Result<bool>) -> Result<(u32, Duration)> {
    let (mut count, mut longest) = (0, Duration::ZERO);
    loop {
        let began = Instant::now();
        flow.exchange(b"a query and its answer")?;
        longest = longest.max(began.elapsed());
        count += 1;
        if until()? {
            return Ok((count, longest));
        }
    }
}

fn outlives_its_gateway(lab: &Lab) -> Result<()> {
    let pair = Pair::running(lab)?;
    let mesh = &pair.scene.mesh;
    let gateways = [&pair.scene.hosts[1], &pair.scene.hosts[2]];
    let mut flow = pair.flow()?;
    // Both ends know by then that the link carries data.
    mesh.wait_for(gateways[0], "the link to app as one with data", LONG, |status| {
        status.peers.iter().any(|peer| peer.name == "app" && peer.probe_interval_seconds == Some(0.5))
    })?;
    let (_, usual) = exchange_until(&mut flow, || Ok(true))?;
    mesh.kill(gateways[0])?;
    let (_, gap) = exchange_until(&mut flow, || Ok(true))?;
    println!(
        "    the gateway in use was killed: the connection stood still for {gap:.2?} (usual exchange {usual:.1?})"
    );
    for _ in 0..100 {
        flow.exchange(&[7; 10_000])?;
    }
    pair.flow()?.exchange(b"a new one")?;
    // It is back, and its flows are not: not before minutes have passed.
    mesh.start(&gateways[..1])?;
    mesh.wait_until_all_up(&pair.scene.all(), LONG)?;
    flow.exchange(b"after it came back")?;
    // The other way round, with the gateway that is back.
    mesh.kill(gateways[1])?;
    let (_, gap) = exchange_until(&mut flow, || Ok(true))?;
    println!("    so was the other one, after the first had come back: {gap:.2?}");
    flow.exchange(b"still")?;
    pair.flow()?.exchange(b"another new one")
}

fn gateways(pair: &Pair, host: &Host) -> Result<GatewayList> {
    let told = pair.scene.mesh.ctl(host).args(["--json", "gateways"]).check()?;
    serde_json::from_str(&told).context("what meshctl gateways told")
}

fn wait_for_carrier(pair: &Pair, name: &str) -> Result<()> {
    let app = &pair.scene.hosts[0];
    wait(format_args!("{name} carries {NETWORK}"), LONG, || {
        let list = gateways(pair, app)?;
        let carrier = list.prefixes.first().and_then(|prefix| prefix.carrier.clone());
        Ok(if carrier.as_deref() == Some(name) { Look::Found(()) } else { Look::NotYet(format!("{list:?}")) })
    })
}

fn drained(lab: &Lab) -> Result<()> {
    let pair = Pair::running(lab)?;
    let (mesh, [app, gw1, gw2]) = (&pair.scene.mesh, [0, 1, 2].map(|number| &pair.scene.hosts[number]));
    wait_for_carrier(&pair, "gw1")?;
    let mut flow = pair.flow()?;
    flow.exchange(b"before")?;
    for (host, node) in [(app, "app"), (gw1, "gw2")] {
        assert!(!mesh.ctl(host).args(["drain", node]).output()?.status.success(), "only on the gateway itself");
    }
    mesh.ctl(gw1).args(["drain", "gw1"]).check()?;
    let (count, longest) = exchange_until(&mut flow, || {
        Ok(gateways(&pair, app)?.prefixes.iter().all(|prefix| prefix.carrier.as_deref() == Some("gw2")))
    })?;
    println!("    the gateway in use was drained: the slowest of {count} exchanges took {longest:.1?}");
    flow.exchange(b"by the other")?;
    // The answers still come by the drained one, and it says so.
    let passing = gateways(&pair, gw1)?.drain.expect("it is drained");
    assert!(passing.flows == 1 && passing.bytes > 0 && !passing.safe, "{passing:?}");
    let shown = mesh.status(gw1)?.problems.into_iter().any(|problem| problem.message.contains("drained"));
    assert!(shown, "and so does its status");
    mesh.restart(&[gw1])?;
    mesh.wait_until_all_up(&pair.scene.all(), LONG)?;
    flow.exchange(b"after a restart")?;
    wait_for_carrier(&pair, "gw2")?;
    assert!(gateways(&pair, gw1)?.drain.is_some(), "it outlives a restart");
    // Of two drained ones it stays where it is, and goes as soon as one is not.
    mesh.ctl(gw2).args(["drain"]).check()?;
    flow.exchange(b"both are drained")?;
    mesh.ctl(gw1).args(["drain", "--undo"]).check()?;
    wait_for_carrier(&pair, "gw1")?;
    assert_eq!(gateways(&pair, gw1)?.drain, None);
    flow.exchange(b"and back")
}

/// What a node says of the checks behind it: whether each target answers.
fn answers(pair: &Pair, host: &Host) -> Result<Vec<Option<bool>>> {
    let checks = gateways(pair, host)?.checks.into_iter();
    Ok(checks.flat_map(|check| check.targets.into_iter().map(|target| target.answers)).collect())
}

fn wait_for_answers(pair: &Pair, host: &Host, wanted: [bool; 2]) -> Result<()> {
    let wanted = wanted.map(Some);
    wait(format_args!("{} sees {wanted:?} behind it", host.name()), LONG, || {
        let seen = answers(pair, host)?;
        Ok(if seen == wanted { Look::Found(()) } else { Look::NotYet(format!("{seen:?}")) })
    })
}

fn cut_behind(lab: &Lab) -> Result<()> {
    // A host that answers echoes, and a port of it at which nobody listens: one of them is enough.
    let check = [CheckTarget::Echo(BEHIND.into()), CheckTarget::Connect((BEHIND, 9).into())];
    let pair = Pair::running_with(lab, INSIDE[1], &check)?;
    let [app, gw1, gw2] = [0, 1, 2].map(|number| &pair.scene.hosts[number]);
    for gateway in [gw1, gw2] {
        wait_for_answers(&pair, gateway, [true, false])?;
    }
    wait_for_carrier(&pair, "gw1")?;
    let mut flow = pair.flow()?;
    let (_, usual) = exchange_until(&mut flow, || Ok(true))?;
    let firewall = Firewall::new(gw1)?;
    firewall.apply(
        "add rule inet lab in_rules iifname lan0 drop
         add rule inet lab through_rules iifname lan0 drop
         add rule inet lab through_rules oifname lan0 drop",
    )?;
    // Its daemon runs and its links to everybody are up all the while.
    let (_, gap) = exchange_until(&mut flow, || Ok(true))?;
    println!(
        "    the link behind the gateway was cut: the connection stood still for {gap:.2?} (usual exchange {usual:.1?})"
    );
    wait_for_carrier(&pair, "gw2")?;
    let seen = gateways(&pair, app)?;
    assert_eq!(seen.prefixes[0].cause.as_deref(), Some("health"), "{seen:?}");
    assert_eq!(seen.prefixes[0].gateways[0].fitness, "failing", "{seen:?}");
    let told = pair.scene.mesh.status(gw1)?.problems;
    let told = told.into_iter().find(|problem| problem.message.contains("nothing behind this gateway answers"));
    let told = told.expect("its status says so").message;
    assert!(told.contains("10.20.0.5: no answer within 300 ms"), "{told}");
    pair.flow()?.exchange(b"a new one")?;
    // The cut heals, and the flows stay where they are: not before minutes have passed.
    firewall.heal()?;
    wait_for_answers(&pair, gw1, [true, false])?;
    wait(format_args!("gw1 is fit again"), LONG, || {
        let list = gateways(&pair, app)?;
        let fit = list.prefixes[0].gateways[0].fitness == "fit";
        Ok(if fit { Look::Found(()) } else { Look::NotYet(format!("{list:?}")) })
    })?;
    let list = gateways(&pair, app)?;
    assert_eq!(list.prefixes[0].carrier.as_deref(), Some("gw2"), "{list:?}");
    assert!(list.prefixes[0].gateways[0].returns_in_seconds.is_some(), "{list:?}");
    flow.exchange(b"after it healed")
}

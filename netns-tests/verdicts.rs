//! What the daemon's rules let in, against the same rules in the kernel's packet filter.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use meshd::api::PolicyInfo;
use meshd::config::{Allow, Service};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::package::{NFTABLES, Tree};
use crate::lab::{Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "verdicts::of_random_rules_are_those_of_nftables", needs: &[&NFTABLES], run: verdicts }];

/// Sets of rules.
const SETS: usize = 100;

/// Packets for each; their numbers are their hop limits, which nobody rules about.
const NUMBERS: std::ops::Range<u8> = 100..200;

/// The generator's seed: a failure repeats with the same rules and packets.
const SEED: u64 = 0x7655;

/// What a rule may say.
const FROM: [&str; 9] =
    ["any", "tag:app", "tag:none", "from", "10.1.0.0/31", "10.1.0.4", "10.0.0.0/8", "fd00:1::/126", "fd00:1::4"];
const TO: [&str; 7] = ["any", "to", "from", "10.2.0.2/31", "10.2.0.1", "fd00:2::/127", "::/0"];
const PORTS: [&str; 8] =
    ["any", "icmp", "tcp/3306", "tcp/3300-3306", "udp/53", "udp/1-65535", "tcp/1-1023", "udp/3306-3307"];

/// What a packet may be: the protocols of both families, a question and an answer of ICMP among them.
const KINDS: [Kind; 5] = [Kind::Tcp, Kind::Udp, Kind::Question, Kind::Answer, Kind::Other];
const DESTINATION_PORTS: [u16; 10] = [1, 22, 53, 1_023, 1_024, 3_299, 3_300, 3_306, 3_307, 65_535];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Udp,
    Question,
    Answer,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    number: u8,
    source: IpAddr,
    destination: IpAddr,
    kind: Kind,
    port: u16,
}

/// ```text
///     from ===== to        from carries 10.1.0.0/24, to carries 10.2.0.0/24; the rules are to's. nftables has the same rules
///       \   m   /          where packets leave `from`, and notes on `to` what came out of the tunnel
/// ```
fn verdicts(lab: &Lab) -> Result<()> {
    let tree = NFTABLES.fetch()?;
    let scene = Scene::founded(lab, &["m", "from", "to"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let (from, to) = (all[1], all[2]);
    let carried = ["--route", "10.1.0.0/24", "--route", "fd00:1::/64", "--tag", "app"];
    mesh.admit_offline_with(from, scene.underlay[1], &carried)?;
    mesh.admit_offline_with(to, scene.underlay[2], &["--route", "10.2.0.0/24", "--route", "fd00:2::/64"])?;
    mesh.change_config(to, |config| config.allow = vec![allow(&["tag:none"], &[], &[])])?;
    mesh.start(&all)?;
    mesh.wait_until_all_up(&all, LONG)?;
    let places = Places {
        sources: places(
            mesh,
            from,
            ["10.1.0.0", "10.1.0.1", "10.1.0.2", "10.1.0.4", "fd00:1::1", "fd00:1::4", "fd00:1::9"],
        ),
        destinations: places(
            mesh,
            to,
            ["10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.9", "fd00:2::1", "fd00:2::2", "fd00:2::9"],
        ),
        from: mesh.addresses(from).map(IpNet::from).into(),
        to: mesh.addresses(to).map(IpNet::from).into(),
    };
    apply(to, &tree, ARRIVED)?;
    let raw = |domain: Domain| from.enter(|| Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))));
    let sockets = [raw(Domain::IPV4).context("a raw socket")?, raw(Domain::IPV6).context("a raw socket")?];
    let mut rng = ChaCha12Rng::seed_from_u64(SEED);
    let (began, mut sent, mut passed) = (Instant::now(), 0, 0);
    for set in 0..SETS {
        let rules = some_rules(&mut rng);
        apply(from, &tree, &asked(&rules, &places))?;
        apply(to, &tree, "flush set inet arrived v4\nflush set inet arrived v6")?;
        mesh.change_config(to, |config| config.allow = rules.clone())?;
        mesh.ctl(to).arg("reload").check()?;
        let probes: Vec<Probe> = NUMBERS.map(|number| some_probe(&mut rng, number, &places)).collect();
        for probe in &probes {
            let socket = &sockets[usize::from(probe.source.is_ipv6())];
            socket
                .send_to(&bytes(probe), &SocketAddr::new(probe.destination, 0).into())
                .context(format!("{probe:?}"))?;
        }
        sent += probes.len() as u64;
        wait(format_args!("packets of set {set}"), LONG, || {
            let (arrived, refused) = (counted(to, &tree)?, refused(mesh, to)?);
            Ok(match arrived + refused == sent {
                true => Look::Found(()),
                false => Look::NotYet(format!("{arrived} arrived, {refused} refused of {sent}")),
            })
        })?;
        let (expected, found) = (numbers(from, &tree, "asked")?, numbers(to, &tree, "arrived")?);
        let differ = probes.iter().find(|probe| {
            let key = (probe.source.is_ipv6(), probe.number);
            expected.contains(&key) != found.contains(&key)
        });
        assert!(differ.is_none(), "seed {SEED:#x}, set {set}: {differ:?} is judged differently by {rules:?}");
        passed += found.len() as u64;
    }
    println!("    {sent} packets, {SETS} sets of rules, seed {SEED:#x}: {passed} let in, in {:.1?}", began.elapsed());
    assert!(passed > sent / 10 && passed < sent * 9 / 10, "one verdict is hardly tried: {passed} of {sent}");
    Ok(())
}

/// Notes what came out of the tunnel, and lets nothing of it be answered: an answer would open the way for the next.
const ARRIVED: &str = "
table inet arrived {
    set v4 { typeof ip ttl; flags dynamic; size 256; }
    set v6 { typeof ip6 hoplimit; flags dynamic; size 256; }
    chain c {
        type filter hook prerouting priority raw; policy accept;
        iifname != \"mesh0\" accept
        ip ttl 100-199 add @v4 { ip ttl } counter drop
        ip6 hoplimit 100-199 add @v6 { ip6 hoplimit } counter drop
    }
}
";

/// Where packets come from and go to, and whom names mean.
struct Places {
    sources: Vec<IpAddr>,
    destinations: Vec<IpAddr>,
    from: Vec<IpNet>,
    to: Vec<IpNet>,
}

impl Places {
    /// The networks that a selector means; `None` for everybody.
    fn meant(&self, selector: &str) -> Option<Vec<IpNet>> {
        match selector {
            "any" => None,
            "tag:app" | "from" => Some(self.from.clone()),
            "to" => Some(self.to.clone()),
            "tag:none" => Some(Vec::new()),
            network => {
                let address = network.parse::<IpAddr>().map(IpNet::from);
                Some(vec![address.or_else(|_| network.parse()).expect("the test's own selectors are valid")])
            }
        }
    }
}

fn places(mesh: &Mesh, host: &Host, carried: [&str; 7]) -> Vec<IpAddr> {
    let carried = carried.into_iter().map(|address| address.parse().expect("the test's own addresses are valid"));
    carried.chain(mesh.addresses(host)).collect()
}

fn one<T: Copy>(rng: &mut ChaCha12Rng, of: &[T]) -> T {
    of[rng.next_u32() as usize % of.len()]
}

/// Some of them, none twice.
fn some<'a>(rng: &mut ChaCha12Rng, least: usize, of: &[&'a str]) -> Vec<&'a str> {
    let count = least + rng.next_u32() as usize % 2;
    let chosen: BTreeSet<&str> = (0..count).map(|_| one(rng, of)).collect();
    chosen.into_iter().collect()
}

fn allow(from: &[&str], to: &[&str], ports: &[&str]) -> Allow {
    let valid = "the test's own rules are valid";
    Allow {
        from: from.iter().map(|text| text.parse().expect(valid)).collect(),
        to: to.iter().map(|text| text.parse().expect(valid)).collect(),
        ports: ports.iter().map(|text| text.parse().expect(valid)).collect(),
    }
}

fn some_rules(rng: &mut ChaCha12Rng) -> Vec<Allow> {
    let count = 1 + rng.next_u32() % 4;
    (0..count).map(|_| allow(&some(rng, 1, &FROM), &some(rng, 0, &TO), &some(rng, 1, &PORTS))).collect()
}

fn some_probe(rng: &mut ChaCha12Rng, number: u8, places: &Places) -> Probe {
    let source = one(rng, &places.sources);
    let alike: Vec<IpAddr> =
        places.destinations.iter().copied().filter(|address| address.is_ipv4() == source.is_ipv4()).collect();
    Probe { number, source, destination: one(rng, &alike), kind: one(rng, &KINDS), port: one(rng, &DESTINATION_PORTS) }
}

/// The same rules as nftables has them, each combination a rule of its own.
fn asked(rules: &[Allow], places: &Places) -> String {
    let mut chain = String::new();
    let ends = |selectors: &[String], word: &str| -> Vec<String> {
        let mut conditions = Vec::new();
        for selector in selectors {
            match places.meant(selector) {
                None => conditions.push(String::new()),
                Some(networks) => conditions.extend(networks.iter().map(|network| {
                    let family = if network.addr().is_ipv4() { "ip" } else { "ip6" };
                    format!("{family} {word} {network}")
                })),
            }
        }
        conditions
    };
    let texts = |selectors: &[meshd::config::Selector]| selectors.iter().map(ToString::to_string).collect::<Vec<_>>();
    for rule in rules {
        let to = if rule.to.is_empty() { vec!["any".to_owned()] } else { texts(&rule.to) };
        let ports = if rule.ports.is_empty() { vec![Service::Any] } else { rule.ports.clone() };
        for source in ends(&texts(&rule.from), "saddr") {
            for destination in ends(&to, "daddr") {
                // No packet is of both families.
                if (source.starts_with("ip ") && destination.starts_with("ip6"))
                    || (source.starts_with("ip6") && destination.starts_with("ip "))
                {
                    continue;
                }
                for service in ports.iter().flat_map(conditions) {
                    // Writing into a String cannot fail.
                    let _ = writeln!(chain, "{source} {destination} {service} goto passed");
                }
            }
        }
    }
    format!(
        "table inet asked {{ }}
         delete table inet asked
         table inet asked {{
             set v4 {{ typeof ip ttl; flags dynamic; size 256; }}
             set v6 {{ typeof ip6 hoplimit; flags dynamic; size 256; }}
             chain passed {{
                 add @v4 {{ ip ttl }}
                 add @v6 {{ ip6 hoplimit }}
             }}
             chain c {{
                 type filter hook output priority raw; policy accept;
                 oifname != \"mesh0\" accept
                 {chain}
             }}
         }}"
    )
}

fn conditions(service: &Service) -> Vec<String> {
    match service {
        Service::Any => vec![String::new()],
        Service::Icmp => {
            vec!["icmp type { echo-request, timestamp-request }".into(), "icmpv6 type echo-request".into()]
        }
        Service::Tcp(first, last) => vec![format!("tcp dport {first}-{last}")],
        Service::Udp(first, last) => vec![format!("udp dport {first}-{last}")],
    }
}

/// A packet as it leaves, without checksums that nobody on its way looks at.
fn bytes(probe: &Probe) -> Vec<u8> {
    let is_v4 = probe.source.is_ipv4();
    let ports = [40_000u16.to_be_bytes(), probe.port.to_be_bytes()].concat();
    let (protocol, payload) = match (probe.kind, is_v4) {
        // A segment that asks for a connection.
        (Kind::Tcp, _) => (6, [&ports[..], &[0; 8], &[0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]].concat()),
        (Kind::Udp, _) => (17, [&ports[..], &[0, 8, 0, 0]].concat()),
        (Kind::Question, true) => (1, vec![8, 0, 0, 0, 0, 7, 0, 1]),
        (Kind::Question, false) => (58, vec![128, 0, 0, 0, 0, 7, 0, 1]),
        (Kind::Answer, true) => (1, vec![0, 0, 0, 0, 0, 7, 0, 1]),
        (Kind::Answer, false) => (58, vec![129, 0, 0, 0, 0, 7, 0, 1]),
        (Kind::Other, _) => (47, vec![0; 4]),
    };
    let length = u16::try_from(payload.len()).expect("a short packet");
    match (probe.source, probe.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (length + 20).to_be_bytes();
            let head = [0x45, 0, total[0], total[1], 0, 0, 0, 0, probe.number, protocol, 0, 0];
            [&head[..], &source.octets(), &destination.octets(), &payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = length.to_be_bytes();
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol, probe.number];
            [&head[..], &source.octets(), &destination.octets(), &payload].concat()
        }
        _ => unreachable!("both ends of a probe are of one family"),
    }
}

fn apply(host: &Host, tree: &Tree, script: &str) -> Result<()> {
    let nft = host.command_from(tree, "nft")?.args(["-f", "-"]).input(script);
    nft.check().map(drop).context(format!("nft script {script}"))
}

/// The packets that a table has noted, by family and number.
fn numbers(host: &Host, tree: &Tree, table: &str) -> Result<BTreeSet<(bool, u8)>> {
    let mut found = BTreeSet::new();
    for (is_v6, set) in [(false, "v4"), (true, "v6")] {
        let text = host.command_from(tree, "nft")?.args(["list", "set", "inet", table, set]).check()?;
        let elements = text.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}'));
        let elements = elements.map(|(elements, _)| elements).unwrap_or_default();
        let numbers = elements.split(',').filter_map(|number| number.trim().parse::<u8>().ok());
        found.extend(numbers.map(|number| (is_v6, number)));
    }
    Ok(found)
}

/// How many packets came out of the tunnel.
fn counted(host: &Host, tree: &Tree) -> Result<u64> {
    let text = host.command_from(tree, "nft")?.args(["list", "chain", "inet", "arrived", "c"]).check()?;
    let counts =
        text.lines().filter_map(|line| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// How many packets the daemon has refused.
fn refused(mesh: &Mesh, host: &Host) -> Result<u64> {
    let told = mesh.ctl(host).args(["--json", "policy"]).check()?;
    Ok(serde_json::from_str::<PolicyInfo>(&told).context("what meshctl policy told")?.refused_packets)
}

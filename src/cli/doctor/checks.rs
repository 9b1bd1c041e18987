//! What the facts mean, and what to do about them.

use super::super::lockdown::Other;
use super::facts::{AddressTable, Daemon, Facts};
use super::{Finding, Outcome};
use crate::api::{ConfinementStatus, Gravity, LandlockState, Status};
use crate::cli::quantity;
use crate::config::Config;

/// The oldest kernel with everything that makes the data plane fast: batches of datagrams in both directions (UDP_GRO).
const FAST_KERNEL: (u32, u32) = (5, 0);

/// Free bytes below which the state may soon not be written: the history alone writes some MiB a day.
const LITTLE_SPACE: u64 = 256 << 20;

/// Judges everything that was found.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![configuration(facts), kernel(facts), clock(facts), device(facts)];
    found.extend(files(facts));
    if let Ok(config) = &facts.config {
        found.push(space(facts, config));
        found.push(policy(config));
    }
    found.push(daemon(facts));
    if let Daemon::Up(status) = &facts.daemon {
        found.extend([port(status), path_mtu(status), forwarding(facts, status)]);
        found.extend(status.node.confinement.as_ref().map(confinement));
        found.extend(status.problems.iter().map(|problem| {
            let outcome = if problem.gravity == Gravity::Notice { Outcome::Notice } else { Outcome::Trouble };
            finding(outcome, "status", problem.message.clone(), &problem.advice)
        }));
    }
    found.push(addresses(facts));
    found.extend(facts.others.as_ref().map(other_tables));
    found
}

fn finding(outcome: Outcome, check: &'static str, message: impl Into<String>, remedy: &str) -> Finding {
    Finding { outcome, check, message: message.into(), remedy: remedy.to_owned() }
}

fn good(check: &'static str, message: impl Into<String>) -> Finding {
    finding(Outcome::Good, check, message, "")
}

fn configuration(facts: &Facts) -> Finding {
    match &facts.config {
        Ok(config) => good("configuration", format!("node {} of mesh {}", config.node, config.mesh.name)),
        Err(why) => finding(
            Outcome::Trouble,
            "configuration",
            why.clone(),
            "`meshctl check` shows each place; `meshctl join` or `init` makes a first one",
        ),
    }
}

fn kernel(facts: &Facts) -> Finding {
    let Some(release) = &facts.kernel else {
        return finding(Outcome::Unknown, "kernel", "its release is not told", "");
    };
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= FAST_KERNEL => good("kernel", format!("Linux {release}")),
        (Some(_), Some(_)) => {
            let message = format!("Linux {release} moves datagrams one by one");
            finding(Outcome::Notice, "kernel", message, "everything works; Linux 5.0 or later is several times faster")
        }
        _ => finding(Outcome::Unknown, "kernel", format!("`{release}` is no release this knows"), ""),
    }
}

fn clock(facts: &Facts) -> Finding {
    match facts.clock_is_disciplined {
        Some(true) => good("clock", "something keeps it right"),
        Some(false) => finding(
            Outcome::Notice,
            "clock",
            "nothing keeps it right, as far as the kernel knows: certificates are judged by it",
            "start chrony or systemd-timesyncd; in a virtual machine whose host sets the clock there is nothing to do",
        ),
        None => finding(Outcome::Unknown, "clock", "the kernel does not tell whether it is kept right", ""),
    }
}

fn device(facts: &Facts) -> Finding {
    match &facts.tun {
        Ok(()) => good("device", "/dev/net/tun opens"),
        Err(why) => finding(
            Outcome::Trouble,
            "device",
            format!("/dev/net/tun does not open: {why}"),
            "`modprobe tun`; in a container, give it the device; where only root may open it, `chmod 666 /dev/net/tun`",
        ),
    }
}

fn files(facts: &Facts) -> Vec<Finding> {
    let told = |trouble: &super::facts::FileTrouble| {
        if trouble.is_permission {
            let message = format!("{} cannot be read by this user", trouble.path.display());
            return finding(Outcome::Unknown, "files", message, "run this as root");
        }
        finding(Outcome::Trouble, "files", trouble.why.clone(), "meshd does not start with it; docs: operations, Files")
    };
    match facts.files.as_slice() {
        [] if facts.config.is_ok() => {
            vec![good("files", "keys and certificate are there, and nobody else can read the keys")]
        }
        troubles => troubles.iter().map(told).collect(),
    }
}

fn space(facts: &Facts, config: &Config) -> Finding {
    let place = config.files.state_directory.display();
    match facts.free_bytes {
        Some(bytes) if bytes >= LITTLE_SPACE => good("space", format!("{} MiB free at {place}", bytes >> 20)),
        Some(bytes) => finding(
            Outcome::Trouble,
            "space",
            format!("{} MiB free at {place}: what the daemon learns is lost at a restart once it is full", bytes >> 20),
            "make room, or lower history.max_size",
        ),
        None => finding(Outcome::Unknown, "space", format!("what is free at {place} is not told"), ""),
    }
}

fn policy(config: &Config) -> Finding {
    if !config.allow.is_empty() {
        let rules = quantity::count(config.allow.len() as u64, "rule");
        return good("policy", format!("{rules} of [[allow]]; nothing else is let in from the mesh"));
    }
    finding(
        Outcome::Notice,
        "policy",
        "nothing is restricted: every member reaches every port that this host itself does not close",
        "say in [[allow]] what members may reach",
    )
}

fn daemon(facts: &Facts) -> Finding {
    match &facts.daemon {
        Daemon::Up(status) => good("daemon", format!("meshd {} is up", status.node.version)),
        Daemon::Closed(why) => {
            finding(Outcome::Unknown, "daemon", first_line(why), "run this as root, or join the group of api.group")
        }
        Daemon::Down(why) => finding(
            Outcome::Trouble,
            "daemon",
            first_line(why),
            "`systemctl start meshd`; `journalctl -u meshd -n 50` says why one that was started does not run",
        ),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// From inside a host only the answers of others show whether its port is open.
fn port(status: &Status) -> Finding {
    let up = status.peers.iter().filter(|peer| peer.state.answers()).count();
    let port = status.node.listen.first().map_or(0, std::net::SocketAddr::port);
    match status.peers.len() {
        0 => finding(Outcome::Unknown, "port", format!("UDP {port}: no other node is known that could try it"), ""),
        all if up == 0 => finding(
            Outcome::Trouble,
            "port",
            format!("none of {all} nodes answers: UDP {port} is closed here, or there"),
            &format!("open UDP {port} in both directions, here (`ufw allow {port}/udp`), at the provider, and there"),
        ),
        all => good("port", format!("UDP {port}: {up} of {all} nodes answer")),
    }
}

fn path_mtu(status: &Status) -> Finding {
    let own = status.node.mtu_bytes;
    let smaller = status.peers.iter().filter(|peer| peer.mtu_bytes != 0 && peer.mtu_bytes < own);
    let named: Vec<String> = smaller.map(|peer| format!("{} {}", peer.name, peer.mtu_bytes)).collect();
    if named.is_empty() {
        return good("mtu", format!("every path carries {own} B"));
    }
    finding(
        Outcome::Notice,
        "mtu",
        format!("these paths carry less than {own} B: {}", named.join(", ")),
        "they work with smaller packets; look for a tunnel or PPPoE on the way, or lower interface.mtu if all are like that",
    )
}

fn forwarding(facts: &Facts, status: &Status) -> Finding {
    let carried = |v6: bool| status.node.prefixes.iter().any(|prefix| prefix.addr().is_ipv6() == v6);
    let missing: Vec<&str> = [(false, "net.ipv4.ip_forward"), (true, "net.ipv6.conf.all.forwarding")]
        .into_iter()
        .zip(facts.forwards)
        .filter(|((v6, _), forwards)| carried(*v6) && *forwards == Some(false))
        .map(|((_, name), _)| name)
        .collect();
    if missing.is_empty() {
        return good(
            "forwarding",
            if status.node.prefixes.is_empty() { "not needed here" } else { "the kernel forwards" },
        );
    }
    finding(
        Outcome::Trouble,
        "forwarding",
        format!("this node carries prefixes and the kernel does not forward: {} is 0", missing.join(", ")),
        "`sysctl -w` it to 1, and in /etc/sysctl.d for the next boot; hosts that reach only this node's own peers need none",
    )
}

/// What the kernel refuses the daemon: a help against what is not known yet, so nothing works worse without it.
fn confinement(status: &ConfinementStatus) -> Finding {
    let reason = status.reason.as_deref().unwrap_or_default();
    match status.landlock {
        LandlockState::InForce => {
            let version = status.version.unwrap_or_default();
            let places = status.writable.join(", ");
            good("confinement", format!("Landlock (version {version}): the daemon writes beneath {places} alone"))
        }
        LandlockState::Absent => finding(
            Outcome::Notice,
            "confinement",
            format!("a daemon that is taken over may write whatever its user may: {reason}"),
            "the packaged unit holds it by other means; a kernel of a current distribution has Landlock",
        ),
        LandlockState::Off => finding(
            Outcome::Notice,
            "confinement",
            "a daemon that is taken over may write whatever its user may: security.landlock is off",
            "name what programs of receivers write in security.writable, and take that line out",
        ),
        LandlockState::Refused => finding(
            Outcome::Notice,
            "confinement",
            format!("a daemon that is taken over may write whatever its user may: {reason}"),
            "a filter of system calls may refuse it (containers); the daemon works all the same",
        ),
    }
}

/// A packet comes in only where no table drops it, so no rule of ours can open what another closes.
fn other_tables(others: &Result<Vec<Other>, String>) -> Finding {
    let others = match others {
        Ok(others) => others,
        Err(why) => return finding(Outcome::Unknown, "other_tables", first_line(why), "run this as root"),
    };
    let told = |certain: bool| {
        let told = others.iter().filter(|other| other.certain == certain);
        let told = told.map(|Other { opening, table, chain, .. }| format!("table {table} (chain {chain}): {opening}"));
        told.collect::<Vec<_>>().join("; ")
    };
    let (certain, perhaps) = (told(true), told(false));
    if !certain.is_empty() {
        let remedy = "allow it there, too, with whatever made that table (`ufw allow`, `firewall-cmd --add-port`)";
        return finding(
            Outcome::Trouble,
            "other_tables",
            format!("another firewall drops what is to come in: {certain}"),
            remedy,
        );
    }
    if !perhaps.is_empty() {
        let message =
            format!("another firewall may drop what is to come in, by rules that are not understood here: {perhaps}");
        return finding(
            Outcome::Unknown,
            "other_tables",
            message,
            "look at its own status (`ufw status`, `firewall-cmd --list-all`)",
        );
    }
    good("other_tables", "no other firewall of this host drops what is to come in")
}

/// Whether the mesh's addresses are its interface's alone; without `nft` the kernel's own check is the next best, for IPv4.
fn addresses(facts: &Facts) -> Finding {
    let is_up = matches!(facts.daemon, Daemon::Up(_));
    match &facts.addresses {
        AddressTable::There(name) => {
            good("addresses", format!("what arrives for them on other interfaces is dropped (nft table inet {name})"))
        }
        AddressTable::Missing(name) if is_up => finding(
            Outcome::Trouble,
            "addresses",
            format!("there is no nft table inet {name}: what arrives for them on other interfaces is let in"),
            "`meshctl status` and the daemon's log say why; a kernel without nf_tables has none",
        ),
        AddressTable::Missing(_) => {
            finding(Outcome::Unknown, "addresses", "the daemon that keeps them apart does not run", "")
        }
        AddressTable::Untold(why) => finding(Outcome::Unknown, "addresses", first_line(why), "run this as root"),
        AddressTable::NoProgram => {
            let reverse_path = match facts.reverse_path.as_deref() {
                Some(value) => format!("net.ipv4.conf.all.rp_filter is {value}"),
                None => "net.ipv4.conf.all.rp_filter is not told".to_owned(),
            };
            finding(
                Outcome::Notice,
                "addresses",
                format!(
                    "there is no nft: packets for addresses of the mesh are taken from any interface (CVE-2019-14899; \
                     {reverse_path}), and there can be no [lockdown]"
                ),
                "`apt-get install nftables`, then `systemctl restart meshd`",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::FileTrouble;
    use super::*;
    use crate::api::PeerState;
    use crate::api::fake::{healthy_status, troubled_status};

    fn facts(status: Status) -> Facts {
        let example = include_str!("../../../examples/meshd.toml");
        Facts {
            kernel: Some("6.1.0-18-amd64".into()),
            clock_is_disciplined: Some(true),
            tun: Ok(()),
            addresses: AddressTable::There("meshd_mesh0".into()),
            others: Some(Ok(Vec::new())),
            forwards: [Some(true), Some(true)],
            reverse_path: Some("2".into()),
            config: Ok(Config::parse(example, "/etc/meshd/meshd.toml".as_ref()).unwrap()),
            files: Vec::new(),
            free_bytes: Some(1 << 40),
            daemon: Daemon::Up(Box::new(status)),
        }
    }

    fn outcome(facts: &Facts, check: &str) -> Outcome {
        let found = findings(facts);
        let found = found.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("{check}: {found:?}"));
        assert!(!found.message.is_empty());
        // Trouble without a remedy helps nobody.
        assert!(found.outcome != Outcome::Trouble || !found.remedy.is_empty(), "{found:?}");
        found.outcome
    }

    #[test]
    fn a_healthy_host_has_no_trouble() {
        let found = findings(&facts(healthy_status()));
        let bad: Vec<_> = found.iter().filter(|finding| finding.outcome != Outcome::Good).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }

    /// Something that happens to a healthy host.
    type Change<'a> = &'a dyn Fn(&mut Facts);

    #[test]
    fn each_thing_that_is_wrong_is_found() {
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = facts(healthy_status());
            change(&mut facts);
            facts
        };
        let cases: [(&str, Outcome, Change<'_>); 18] = [
            ("configuration", Outcome::Trouble, &|facts| {
                facts.config = Err("meshd.toml:1:1: node: it is missing".into())
            }),
            ("kernel", Outcome::Notice, &|facts| facts.kernel = Some("4.19.0-26-amd64".into())),
            ("kernel", Outcome::Unknown, &|facts| facts.kernel = Some("rolling".into())),
            ("clock", Outcome::Notice, &|facts| facts.clock_is_disciplined = Some(false)),
            ("device", Outcome::Trouble, &|facts| facts.tun = Err("No such device".into())),
            ("addresses", Outcome::Notice, &|facts| facts.addresses = AddressTable::NoProgram),
            ("addresses", Outcome::Trouble, &|facts| facts.addresses = AddressTable::Missing("meshd_mesh0".into())),
            ("other_tables", Outcome::Trouble, &|facts| facts.others = Some(Ok(vec![other(false), other(true)]))),
            ("other_tables", Outcome::Unknown, &|facts| facts.others = Some(Ok(vec![other(false)]))),
            ("other_tables", Outcome::Unknown, &|facts| facts.others = Some(Err("not permitted".into()))),
            ("addresses", Outcome::Unknown, &|facts| facts.addresses = AddressTable::Untold("not permitted".into())),
            ("space", Outcome::Trouble, &|facts| facts.free_bytes = Some(1 << 20)),
            ("daemon", Outcome::Trouble, &|facts| facts.daemon = Daemon::Down("no daemon answers".into())),
            ("daemon", Outcome::Unknown, &|facts| facts.daemon = Daemon::Closed("you may not".into())),
            ("forwarding", Outcome::Trouble, &|facts| facts.forwards = [Some(false), Some(true)]),
            ("files", Outcome::Trouble, &|facts| facts.files.push(file_trouble(false))),
            ("files", Outcome::Unknown, &|facts| facts.files.push(file_trouble(true))),
            ("policy", Outcome::Notice, &|facts| {
                if let Ok(config) = &mut facts.config {
                    config.allow.clear();
                }
            }),
        ];
        for (check, expected, change) in cases {
            assert_eq!(outcome(&with(change), check), expected, "{check}");
        }
    }

    fn other(certain: bool) -> Other {
        let [opening, table, chain] = ["tcp/22", "ip filter", "INPUT"].map(str::to_owned);
        Other { opening, table, chain, certain }
    }

    fn file_trouble(is_permission: bool) -> FileTrouble {
        FileTrouble { path: "/etc/meshd/identity.key".into(), why: "it is open to others".into(), is_permission }
    }

    #[test]
    fn what_the_daemon_sees_is_judged() {
        let mut status = healthy_status();
        status.peers.iter_mut().for_each(|peer| peer.mtu_bytes = 1420);
        assert_eq!(outcome(&facts(status.clone()), "mtu"), Outcome::Good);
        status.peers[0].mtu_bytes = 1300;
        assert_eq!(outcome(&facts(status.clone()), "mtu"), Outcome::Notice);
        assert_eq!(outcome(&facts(status.clone()), "port"), Outcome::Good);
        status.peers.iter_mut().for_each(|peer| peer.state = PeerState::Down);
        assert_eq!(outcome(&facts(status.clone()), "port"), Outcome::Trouble);
        status.peers.clear();
        assert_eq!(outcome(&facts(status), "port"), Outcome::Unknown);
        let troubled = findings(&facts(troubled_status()));
        assert!(troubled.iter().any(|finding| finding.check == "status" && finding.outcome == Outcome::Trouble));
    }
}

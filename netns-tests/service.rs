//! The daemon as packages start it: a user of its own with the unit's capabilities, and the units themselves.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meshd::config::receiver::ReceiverKind;
use meshd::config::{Receiver, Resolver};
use meshd::policy::Purpose;
use nix::sys::signal::Signal;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::wait;
use crate::lab::package;
use crate::lab::process::{Finished, HostCommand};
use crate::lab::reexec::{Privilege, privilege};
use crate::lab::{Error, Host, Lab, Mesh, Proc, Result, place};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "service::a_user_of_its_own_is_enough", needs: &[&package::NFTABLES], run: own_user },
    Case { name: "service::a_group_may_look_and_not_change", needs: &[&package::NFTABLES], run: readers },
    Case {
        name: "service::units_are_valid_and_locked_down",
        needs: &[&package::SYSTEMD, &package::NFTABLES],
        run: units,
    },
    Case { name: "service::names_go_through_root", needs: &[&package::NFTABLES], run: names },
];

/// The daemon's user and group: numbers that no database knows.
const DAEMON: u32 = 47_110;
/// Somebody else.
const SOMEBODY: u32 = 47_111;
/// The group of readers: one that every host has, since it is looked up by name.
const READERS: (&str, u32) = ("daemon", 1);

/// What the unit grants, and what must be left once the daemon is up.
const GRANTED: &str = "+net_admin,+net_bind_service,+bpf";
const KEPT: u64 = 1 << 12 | 1 << 10;

/// Bounds of `systemd-analyze security`: exposure times ten, at most.
const EXPOSURE: &str = "20";

/// A receiver of alerts that writes down what it is.
const RECEIVER: &str = "pager";

/// What the kernel tells of a process.
struct ProcessStatus(String);

impl ProcessStatus {
    fn field(&self, name: &str) -> &str {
        self.0.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
    }

    /// A set of capabilities; all of them where it cannot be read.
    fn mask(&self, name: &str) -> u64 {
        u64::from_str_radix(self.field(name), 16).unwrap_or(u64::MAX)
    }
}

/// Prepares a program to be run as a user and group without anything else.
fn as_user(host: &Host, user: u32, group: u32, program: &Path) -> HostCommand {
    let ids = [format!("--reuid={user}"), format!("--regid={group}")];
    host.command("setpriv").args(ids).args(["--clear-groups", "--inh-caps=-all", "--"]).arg(program)
}

/// Prepares a daemon as the unit does: the user, its capabilities and no others, and no way to more.
fn daemon(scene: &Scene, host: &Host) -> Result<HostCommand> {
    let caps = ["--inh-caps", "--ambient-caps"].map(|set| format!("{set}={GRANTED}"));
    let command = host.command("setpriv").args([format!("--reuid={DAEMON}"), format!("--regid={DAEMON}")]);
    let command =
        command.arg(format!("--groups={}", READERS.1)).args(caps).arg(format!("--bounding-set=-all,{GRANTED}"));
    let command = command.args(["--no-new-privs", "--"]).arg(place::binary("meshd")?).with(&package::NFTABLES.fetch()?);
    Ok(command.arg("--config").arg(scene.mesh.config(host)))
}

fn start(scene: &Scene, host: &Host) -> Result<Arc<Proc>> {
    let daemon = Arc::new(daemon(scene, host)?.spawn()?);
    daemon.wait_for_output(" is up", LONG)?;
    Ok(daemon)
}

/// Gives a host's configuration directory to the daemon's user, as tmpfiles does, and lets everybody open the device, as
/// udev does.
fn prepare(host: &Host) -> Result<()> {
    let directory = Mesh::directory_on(host);
    fs::create_dir_all(&directory).context(directory.display())?;
    chown(&directory, Some(DAEMON), Some(DAEMON)).context(directory.display())?;
    // As tmpfiles makes it, for `wg show`.
    let tools = tools(host);
    fs::create_dir(&tools).context(tools.display())?;
    chown(&tools, Some(0), Some(DAEMON)).context(tools.display())?;
    fs::set_permissions(&tools, Permissions::from_mode(0o1770)).context(tools.display())?;
    let node = host.run_dir().join("tun");
    host.command("mknod").args(["--mode=0666"]).arg(&node).args(["c", "10", "200"]).check()?;
    host.command("mount").arg("--bind").arg(&node).arg("/dev/net/tun").check().map(drop)
}

/// Where the sockets for WireGuard's tools are.
fn tools(host: &Host) -> PathBuf {
    host.run_dir().join("wireguard")
}

/// Two hosts that are one mesh, both with daemons of their own user; the founder's files were made by root.
fn scene(lab: &Lab) -> Result<(Scene, Vec<Arc<Proc>>)> {
    if privilege() != Some(Privilege::Root) {
        return Err(Error::not_run("a user namespace has no second user; needs root"));
    }
    let scene = Scene::prepared(lab, &["a", "b"], &[], prepare)?;
    let (a, b) = (&scene.hosts[0], &scene.hosts[1]);
    let told = format!("cat /proc/self/status > {}", scene.mesh.directory(a).join("told").display());
    scene.mesh.change_config(a, |config| {
        config.api.group = Some(READERS.0.to_owned());
        config.receivers = vec![Receiver {
            name: RECEIVER.parse().expect("a name"),
            kind: ReceiverKind::Command(["/bin/sh", "-c", &told].map(str::to_owned).to_vec()),
            timeout: Duration::from_secs(10),
            repeat: Duration::from_secs(3600),
        }];
    })?;
    let first = start(&scene, a)?;
    scene.mesh.join(b, scene.underlay[1])?;
    let daemons = vec![first, start(&scene, b)?];
    scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
    Ok((scene, daemons))
}

/// ```text
///     a---b     both daemons as user 47110; `meshctl` as root and as that user
/// ```
fn own_user(lab: &Lab) -> Result<()> {
    let (scene, daemons) = scene(lab)?;
    let (a, b) = (&scene.hosts[0], &scene.hosts[1]);
    for daemon in &daemons {
        let path = format!("/proc/{}/status", daemon.pid());
        let process = ProcessStatus(fs::read_to_string(&path).context(&path)?);
        assert_eq!(["CapEff:", "CapPrm:", "CapAmb:"].map(|set| process.mask(set)), [KEPT; 3], "{}", process.0);
        assert_eq!(process.field("NoNewPrivs:"), "1");
        assert!(process.field("Uid:").starts_with(&format!("{DAEMON}\t{DAEMON}")), "{}", process.0);
        assert!(!daemon.stderr().contains("behind long streams"), "no program for the queues: {}", daemon.stderr());
    }
    scene.check_every_pair(&scene.all())?;
    let nft = a.command_from(&package::NFTABLES.fetch()?, "nft")?;
    nft.args(["list", "table", "inet", &Purpose::Addresses.table("mesh0")]).check()?;
    let socket = tools(a).join("mesh0.sock");
    let socket = fs::symlink_metadata(&socket).context(socket.display())?;
    assert_eq!((socket.uid(), socket.mode() & 0o777), (DAEMON, 0o600));
    // What root's meshctl and the daemon wrote in turns belongs to the daemon, whichever wrote last.
    let signed = scene.mesh.ctl(b).args(["request", "--node", "c"]).arg("--dir").arg(b.dir().join("c")).check()?;
    let authority = scene.mesh.authority();
    scene.mesh.ctl(a).args(["sign", "-", "--authority"]).arg(&authority).input(signed).check()?;
    scene.mesh.invite(a, "d", &[])?;
    for directory in [scene.mesh.directory(a), scene.mesh.directory(b), scene.mesh.state(a)] {
        for entry in fs::read_dir(&directory).context(directory.display())? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path).context(path.display())?;
            assert!(path.ends_with("meshd.toml") || metadata.uid() == DAEMON, "{}: {}", path.display(), metadata.uid());
        }
    }
    // A program that is told of alerts is the operator's own and gets none of it.
    let told = scene.mesh.directory(a).join("told");
    scene.mesh.ctl(a).args(["alerts", "test", RECEIVER]).check()?;
    let program = ProcessStatus(fs::read_to_string(&told).context(told.display())?);
    assert_eq!(["CapEff:", "CapPrm:", "CapAmb:"].map(|set| program.mask(set)), [0; 3], "{}", program.0);
    // A planned restart loses none of what the daemon needs, and gains nothing.
    let mut flow = scene.flow(0, 1)?;
    scene.mesh.ctl(b).arg("restart").check()?;
    flow.exchange(b"over a restart")?;
    let path = format!("/proc/{}/status", daemons[1].pid());
    let process = ProcessStatus(fs::read_to_string(&path).context(&path)?);
    assert_eq!(["CapEff:", "CapPrm:", "CapAmb:"].map(|set| process.mask(set)), [KEPT; 3], "{}", process.0);
    // The daemon goes and comes as it likes: nothing it left keeps it from starting.
    daemons[1].signal(Signal::SIGTERM);
    assert!(daemons[1].wait(LONG)?.success());
    let again = start(&scene, b)?;
    scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
    let wait = scene.mesh.ctl(b).args(["wait", "a", "--timeout", "60s"]).output()?;
    assert!(wait.status.success(), "{wait:?}");
    again.signal(Signal::SIGTERM);
    again.wait(LONG).map(drop)
}

/// ```text
///     a     asked by a reader, by the daemon's user and by somebody else
/// ```
fn readers(lab: &Lab) -> Result<()> {
    let (scene, daemons) = scene(lab)?;
    let (a, b) = (&scene.hosts[0], &scene.hosts[1]);
    let meshctl = place::binary("meshctl")?;
    let ask = |host: &Host, user: u32, group: u32, words: &[&str]| -> Result<Finished> {
        as_user(host, user, group, &meshctl).arg("--config").arg(scene.mesh.config(host)).args(words).output()
    };
    let code = |done: &Finished| done.status.code();
    for (user, group) in [(SOMEBODY, READERS.1), (DAEMON, DAEMON)] {
        let done = ask(a, user, group, &["status"])?;
        assert!(code(&done) == Some(0) && done.stdout.contains('b'), "{user}: {done:?}");
    }
    let done = ask(a, SOMEBODY, READERS.1, &["invite", "c"])?;
    assert!(code(&done) == Some(5) && done.stdout.is_empty(), "{done:?}");
    assert_eq!(code(&ask(a, DAEMON, DAEMON, &["invite", "c"])?), Some(0));
    let done = ask(a, SOMEBODY, SOMEBODY, &["status"])?;
    assert!(code(&done) == Some(5) && done.stdout.is_empty(), "{done:?}");
    // No group is configured on the other host.
    assert_eq!(code(&ask(b, SOMEBODY, READERS.1, &["status"])?), Some(5));
    // A group that is not there is told by name, and the daemon does not start without it.
    daemons[1].signal(Signal::SIGTERM);
    daemons[1].wait(LONG)?;
    scene.mesh.change_config(b, |config| config.api.group = Some("no-such-group".to_owned()))?;
    let done = daemon(&scene, b)?.limit(Duration::from_secs(20)).output()?;
    assert!(code(&done) == Some(1) && done.stderr.contains("groupadd --system no-such-group"), "{done:?}");
    Ok(())
}

/// ```text
///     packaging/systemd/*     read by systemd's own tools
/// ```
fn units(lab: &Lab) -> Result<()> {
    let host = lab.host("units")?;
    let tree = package::SYSTEMD.fetch()?;
    let analyze = |words: &[&str], unit: &Path| -> Result<Finished> {
        host.command_from(&tree, "systemd-analyze")?.args(words).arg(unit).output()
    };
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    let units = host.dir().join("units");
    fs::create_dir(&units).context(units.display())?;
    let nft = package::NFTABLES.fetch()?.program("nft")?.display().to_string();
    let others = ["meshd-wait-online.service", "meshd-lockdown.service", "meshd-names.path", "meshd-names.service"];
    for name in ["meshd.service", "meshd@.service"].into_iter().chain(others) {
        let text = fs::read_to_string(packaged.join(name)).context(name)?;
        // Programs are installed by the package; here they lie beside the build.
        let there = |program: &str| place::binary(program).map(|path| path.display().to_string());
        let text = text.replace("/usr/sbin/meshd ", &format!("{} ", there("meshd")?));
        let text = text.replace("/usr/bin/meshctl ", &format!("{} ", there("meshctl")?));
        let text = text.replace("/usr/sbin/nft ", &format!("{nft} "));
        fs::write(units.join(name), text).context(name)?;
    }
    for name in ["meshd.service", "meshd@blue.service"].into_iter().chain(others) {
        let unit = units.join(name);
        let done = analyze(&["verify", "--man=no"], &unit)?;
        assert!(done.status.success() && done.stderr.is_empty(), "{name}: {done:?}");
    }
    for name in ["meshd.service", "meshd@.service"]
        .into_iter()
        .chain(others.into_iter().filter(|name| name.ends_with(".service")))
    {
        let threshold = format!("--threshold={EXPOSURE}");
        let done = analyze(&["security", "--offline=true", "--no-pager", &threshold], &units.join(name))?;
        let told = done.stdout.lines().find(|line| line.contains("Overall exposure")).unwrap_or_default();
        println!("{name}: {}", told.trim());
        assert!(done.status.success() && !told.is_empty(), "{name}: {}{}", done.stdout, done.stderr);
    }
    // Not in every systemd's set of what services may call.
    let text = fs::read_to_string(packaged.join("meshd.service")).context("the unit")?;
    for call in ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"] {
        assert!(text.lines().any(|line| line.starts_with("SystemCallFilter=") && line.contains(call)), "{call}");
    }
    check_twins(&packaged)?;
    Ok(())
}

/// The unit for several meshes differs from the other by the mesh's name and its namespace alone.
fn check_twins(packaged: &Path) -> Result<()> {
    let lines = |name: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(packaged.join(name)).context(name)?;
        let without = text.replace("/%i", "").replace(" (%i)", "");
        // The host's resolver is for its own namespace.
        let own = ["#", "NetworkNamespacePath=", "Wants=meshd-names.path"];
        let setting = |line: &&str| !own.iter().any(|start| line.starts_with(start));
        Ok(without.lines().filter(setting).map(str::to_owned).collect())
    };
    assert_eq!(lines("meshd.service")?, lines("meshd@.service")?);
    Ok(())
}

/// ```text
///     a: a daemon of its own user, which hands its names over; root applies them, as meshd-names.service does
/// ```
fn names(lab: &Lab) -> Result<()> {
    if privilege() != Some(Privilege::Root) {
        return Err(Error::not_run("a user namespace has no second user; needs root"));
    }
    let scene = Scene::prepared(lab, &["a"], &[], prepare)?;
    let (mesh, a) = (&scene.mesh, &scene.hosts[0]);
    let (file, handed) = (a.run_dir().join("hosts"), mesh.directory(a).join("names"));
    let before = fs::read_to_string(&file).context("a host's file of hosts")?;
    let read = || fs::read_to_string(&file).context("a host's file of hosts");
    mesh.change_config(a, |config| config.names.resolver = Resolver::Hosts)?;
    chown(mesh.config(a), Some(DAEMON), Some(DAEMON)).context("the configuration")?;
    let daemon = start(&scene, a)?;
    let code = |done: &Finished| done.status.code();
    let apply = || mesh.ctl(a).args(["names", "apply"]).output();
    wait("the names are handed over", LONG, || Ok(handed.exists().then_some(())))?;
    assert_eq!(read()?, before, "the daemon itself may not write the file");
    mesh.wait_for(a, "names that root has not applied", LONG, |status| {
        status.problems.iter().any(|problem| problem.kind == "names")
    })?;
    assert_eq!(code(&apply()?), Some(0));
    let (v4, v6) = mesh.overlay(a);
    assert_eq!(read()?, format!("{before}# meshd lab begin\n{v4} a.lab\n{v6} a.lab\n# meshd lab end\n"));
    mesh.wait_for(a, "names in force", LONG, |status| !status.problems.iter().any(|problem| problem.kind == "names"))?;

    // What whoever holds the daemon's user could hand over.
    let applied = read()?;
    daemon.signal(Signal::SIGSTOP);
    for line in ["192.0.2.1 a.lab", "10.77.0.1 www.example.com", "10.77.0.1 a.lab localhost"] {
        fs::write(&handed, format!("meshd names 1\n{line}\n")).context("what is handed over")?;
        let done = apply()?;
        assert!(code(&done) == Some(1) && done.stderr.contains("line 2: "), "{line}: {done:?}");
        assert_eq!(read()?, applied, "{line}");
    }
    fs::remove_file(&handed).context("what is handed over")?;
    std::os::unix::fs::symlink("/etc/shadow", &handed).context("a link in its place")?;
    assert!(!apply()?.status.success());
    assert_eq!(read()?, applied);
    daemon.signal(Signal::SIGCONT);

    daemon.signal(Signal::SIGTERM);
    daemon.wait(LONG)?;
    assert!(handed.symlink_metadata().is_err(), "a daemon that stops hands nothing over");
    assert_eq!(code(&apply()?), Some(0));
    assert_eq!(read()?, before);
    Ok(())
}

//! The operator's guide, `docs/operations.md`: every block of commands in it is run as it is written, in its order, each on the
//! host that is named with it.
//!
//! Hosts have the machine's own `/etc`, `/usr` and `/var` with a layer of their own above, so that paths are what they are on a
//! server. What a server has and a namespace lacks is mapped, by the programs of [`STAND_INS`]:
//!
//! | written | run |
//! |---|---|
//! | `systemctl start`, `stop`, `restart`, `reload meshd` | what `packaging/systemd/meshd.service` has as `ExecStart=` and `ExecReload=`, as root; a start ends when the daemon says that it is up, as Type=notify does |
//! | `apt-get install ./meshd_*.deb` | the built programs are put where the package puts them; then what its `postinst` asks for where a daemon runs: the configuration checked, `meshctl restart` |
//! | `apt-get purge meshd` | programs, `/etc/meshd` and `/var/lib/meshd` are removed, as `postrm` does |
//! | `scp HOST:FILE PLACE` | a copy from that host's working directory |
//! | `ssh ADDRESS true` | a new TCP connection to port 22 there, where something listens |
//!
//! The package itself, its scripts and its upgrade are `packaging/check install`'s; so is the host `builder`, which takes the network
//! and a quarter of an hour.

use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::process::HostCommand;
use crate::lab::{Host, Lab, Result, package, place};

/// The cases of this file.
pub const CASES: &[Case] =
    &[Case { name: "guide::is_what_an_operator_types", needs: &[&package::NFTABLES], run: as_written }];

const GUIDE: &str = include_str!("../docs/operations.md");
const CHECK: &str = include_str!("../packaging/check");

/// Hosts of the guide and their addresses.
const HOSTS: [(&str, Ipv4Addr); 4] = [
    ("web1", Ipv4Addr::new(203, 0, 113, 11)),
    ("web2", Ipv4Addr::new(203, 0, 113, 12)),
    ("db1", Ipv4Addr::new(203, 0, 113, 13)),
    ("hub", Ipv4Addr::new(203, 0, 113, 14)),
];
/// Where releases are built, which is not here.
const BUILDER: &str = "builder";

/// How long a block may take; reached only in failure.
const BLOCK_LIMIT: Duration = Duration::from_secs(120);

/// What stands in for programs that need a booted system; `@…@` is filled in.
const STAND_INS: [(&str, &str); 4] = [
    (
        "systemctl",
        r#"#!/bin/sh
set -eu
[ "$2" = meshd ] || { echo "no unit $2 here" >&2; exit 1; }
setting() { sed -n "s/^$1=//p" @SOURCES@/packaging/systemd/meshd.service; }
running() { [ -e /run/meshd.pid ] && kill -0 "$(cat /run/meshd.pid)" 2>/dev/null; }
start() {
    [ -e "$(setting ConditionPathExists)" ] || { echo "the unit's condition is not met" >&2; exit 1; }
    mkdir -p "/run/$(setting RuntimeDirectory)"
    mkdir -p -m "$(setting StateDirectoryMode)" "/var/lib/$(setting StateDirectory)"
    command=$(setting ExecStart | sed 's/ \$MESHD_OPTS//')
    setsid $command </dev/null >/run/meshd.log 2>&1 &
    echo $! >/run/meshd.pid
    until grep -q ' is up' /run/meshd.log; do
        running || { cat /run/meshd.log >&2; exit 1; }
        sleep 0.02
    done
}
stop() {
    kill -TERM "$(cat /run/meshd.pid)"
    while running; do sleep 0.02; done
}
case $1 in
    start) running || start ;;
    stop) stop ;;
    restart) stop && start ;;
    reload) eval "$(setting ExecReload)" ;;
    *) echo "no stand-in for systemctl $1" >&2; exit 1 ;;
esac
"#,
    ),
    (
        "apt-get",
        r#"#!/bin/sh
set -eu
place() { cp "$1" "$2.new" && mv "$2.new" "$2"; }
case "$1 $2" in
    "install ./meshd_"*)
        place @MESHD@ /usr/sbin/meshd
        place @MESHCTL@ /usr/bin/meshctl
        mkdir -p /etc/meshd
        if [ -e /run/meshd.pid ]; then meshd --check-config && meshctl restart; fi
        ;;
    "purge meshd") rm -r /usr/sbin/meshd /usr/bin/meshctl /etc/meshd /var/lib/meshd ;;
    *) echo "no stand-in for apt-get $*" >&2; exit 1 ;;
esac
"#,
    ),
    ("scp", "#!/bin/sh\nset -eu\ncp \"@LAB@/${1%%:*}/home/${1#*:}\" \"$2\"\n"),
    ("ssh", "#!/bin/bash\nset -eu\n[ \"$2\" = true ]\nexec 3<>\"/dev/tcp/$1/22\"\n"),
];

/// What is done with a block of the guide.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Its lines are typed.
    Commands,
    /// It is written into a file.
    File(PathBuf),
}

/// One block of the guide.
#[derive(Debug)]
struct Block {
    /// The line of the guide that it begins after.
    line: usize,
    kind: Kind,
    hosts: Vec<String>,
    text: String,
}

/// Finds what is to be done in the guide, in its order. Commands that name no host are a mistake of the guide's.
fn blocks(guide: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = guide.lines().zip(1..);
    while let Some((fence, line)) = lines.next() {
        let Some(info) = fence.strip_prefix("```") else { continue };
        let text: Vec<&str> = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```").collect();
        let text = text.join("\n") + "\n";
        let mut words = info.split_whitespace();
        match (words.next(), words.map(str::to_owned).collect::<Vec<_>>()) {
            (Some("sh"), hosts) => {
                assert!(!hosts.is_empty(), "docs/operations.md:{line}: name the host: ```sh web1");
                found.push(Block { line, kind: Kind::Commands, hosts, text });
            }
            (_, places) if !places.is_empty() => {
                let (host, path) = places[0].split_once(':').expect("HOST:PATH behind the language");
                found.push(Block { line, kind: Kind::File(path.into()), hosts: vec![host.to_owned()], text });
            }
            _ => {}
        }
    }
    found
}

/// A host with directories of its own above the machine's, and what stands in for what it lacks.
struct Server {
    host: Host,
    home: PathBuf,
    path: String,
    nft: package::Tree,
}

impl Server {
    fn make(lab: &Lab, host: Host) -> Result<Server> {
        let (home, programs, layers) =
            (host.dir().join("home"), host.dir().join("stand-ins"), host.dir().join("layers"));
        for directory in [&home, &programs, &layers] {
            fs::create_dir(directory).context(directory.display())?;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).display().to_string();
        for (name, text) in STAND_INS {
            let text = text
                .replace("@SOURCES@", &source)
                .replace("@MESHD@", &place::binary("meshd")?.display().to_string())
                .replace("@MESHCTL@", &place::binary("meshctl")?.display().to_string())
                .replace("@LAB@", &lab.dir().display().to_string());
            let program = programs.join(name);
            fs::write(&program, text).context(program.display())?;
            fs::set_permissions(&program, Permissions::from_mode(0o755)).context(program.display())?;
        }
        // A layer cannot lie on every file system, but on this one.
        host.command("mount").args(["-t", "tmpfs", "layers"]).arg(&layers).check()?;
        for directory in ["etc", "usr", "var"] {
            let (upper, work) = (layers.join(directory), layers.join(format!("{directory}.work")));
            host.command("mkdir").arg(&upper).arg(&work).check()?;
            let options = format!("lowerdir=/{directory},upperdir={},workdir={}", upper.display(), work.display());
            host.command("mount")
                .args(["-t", "overlay", "overlay", "-o", &options, &format!("/{directory}")])
                .check()?;
        }
        // What the layer hides of the host's own files.
        host.command("cp").args(["/run/hosts", "/run/resolv.conf", "/etc/"]).check()?;
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
        Ok(Server { host, home, path, nft: package::NFTABLES.fetch()? })
    }

    /// Prepares lines to be typed in the host's working directory.
    fn shell(&self, text: &str) -> HostCommand {
        let command = self.host.command("/bin/sh").env("PATH", &self.path).with(&self.nft).limit(BLOCK_LIMIT);
        command.args(["-c", "cd \"$0\" && exec sh -euc \"$1\""]).arg(&self.home).arg(text)
    }
}

/// ```text
///     web1---web2---db1---hub     one network, 203.0.113.0/24; nothing else is there before the guide begins
/// ```
fn as_written(lab: &Lab) -> Result<()> {
    let network = lab.plain("network")?;
    let mut servers = Vec::new();
    for (name, address) in HOSTS {
        let host = lab.host(name)?;
        let port = network.attach(&host)?;
        host.add_address(&port.dev, IpAddr::V4(address), 24)?;
        servers.push(Server::make(lab, host)?);
    }
    let server = |name: &str| servers.iter().find(|server| server.host.name() == name);
    // Who logs in at a host finds this; connections wait here, and nobody answers.
    let web1 = server("web1").expect("named above");
    let _sshd = web1.host.enter(|| TcpListener::bind((HOSTS[0].1, 22))).context("listen on port 22")?;
    let blocks = blocks(GUIDE);
    for block in &blocks {
        for name in &block.hosts {
            let place = format!("docs/operations.md:{}, on {name}", block.line);
            if name == BUILDER {
                for line in block.text.lines() {
                    assert!(CHECK.contains(line), "{place}: packaging/check does not run `{line}`");
                }
                continue;
            }
            let server = server(name).unwrap_or_else(|| panic!("{place}: there is no such host"));
            let began = Instant::now();
            let text = match &block.kind {
                Kind::Commands => block.text.clone(),
                Kind::File(path) => {
                    let directory = path.parent().unwrap_or(Path::new("/")).display();
                    format!("mkdir -p {directory}\ncat > {} <<'END'\n{}END\n", path.display(), block.text)
                }
            };
            let done = server.shell(&text).output()?;
            assert!(done.status.success(), "{place}:\n{}{}{}", block.text, done.stdout, done.stderr);
            println!("    {place}: {:.0?}", began.elapsed());
        }
    }
    // What the guide says of its own end.
    let told = |name: &str, text: &str| server(name).expect("named above").shell(text).output();
    let members = told("web1", "meshctl members")?.stdout;
    assert!(members.contains("web2, relay") && !members.contains("db1"), "{members}");
    for peer in ["web2", "hub"] {
        assert!(told("web1", &format!("meshctl wait {peer} --timeout 60s"))?.status.success(), "{peer}");
    }
    let lockdown = told("web1", "meshctl lockdown")?;
    assert!(lockdown.stdout.contains("confirmed"), "{lockdown:?}");
    let left = told(
        "db1",
        "ip route show table all proto 77; ip -br link show type tun; ls -d /etc/meshd /var/lib/meshd /usr/bin/meshctl || true",
    )?;
    assert_eq!(left.stdout.trim(), "", "db1 is as it was");
    Ok(())
}

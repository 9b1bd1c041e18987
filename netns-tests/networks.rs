//! The lab's own promises: hosts are separate, networks carry packets, nothing is left behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::{Capture, Error, Fate, Host, Lab, Result, place, sweep};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "networks::hosts_are_separate", needs: &[], run: hosts_are_separate },
    Case { name: "networks::a_plain_network_carries_both_families", needs: &[], run: plain_carries },
    Case { name: "networks::a_wan_carries_both_families", needs: &[], run: wan_carries },
    Case { name: "networks::nothing_is_left_behind", needs: &[], run: nothing_is_left },
    Case { name: "networks::a_dead_run_is_swept_and_a_stranger_is_not", needs: &[], run: dead_run_is_swept },
    Case { name: "networks::a_failed_lab_leaves_its_evidence", needs: &[], run: failure_leaves_evidence },
    Case { name: "networks::a_service_that_refuses_root_can_run", needs: &[], run: ordinary_user },
];

/// Longer than anything local takes; reached only in failure.
const LONG: Duration = Duration::from_secs(10);

fn hosts_are_separate(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    assert_ne!(a.netns().inode(), b.netns().inode());
    // One port, twice: two machines.
    let first = a.enter(|| UdpSocket::bind("127.0.0.1:7655")).context("bind on a")?;
    let second = b.enter(|| UdpSocket::bind("127.0.0.1:7655")).context("bind on b")?;
    assert_eq!(first.local_addr()?, second.local_addr()?);
    assert_eq!(a.command("cat").arg("/proc/sys/kernel/hostname").check()?.trim(), "a");
    b.command("sh").args(["-c", "echo here > /run/mark"]).check()?;
    assert_eq!(fs::read_to_string(b.run_dir().join("mark"))?, "here\n");
    assert!(!a.run_dir().join("mark").exists());
    Ok(())
}

fn failure_leaves_evidence(lab: &Lab) -> Result<()> {
    let name = format!("evidence-{}", std::process::id());
    let inner = Lab::new(&name)?;
    let wan = inner.wan(1)?;
    let (a, b) = (inner.host("a")?, inner.host("b")?);
    let (on_a, on_b) = (wan.attach(&a)?, wan.attach(&b)?);
    let capture = Capture::start(&inner, &b, "eth0")?;
    exchange(&a, on_a.v4.into(), &b, on_b.v4.into())?;
    capture.wait_for("datagram", LONG, |packet| packet.bytes.ends_with(b"to the right"))?;
    a.command("sh").args(["-c", "echo said; echo complained >&2"]).check()?;
    inner.fail();
    drop((wan, capture, a, b, inner));
    let kept = place::lab()?.join("failed").join(name);
    let read = |path: &str| fs::read(kept.join(path)).context(path);
    let log = String::from_utf8_lossy(&read("wan.log")?).into_owned();
    assert!(log.lines().count() >= 2 && log.contains("a->b") && log.contains("Delivered"), "{log}");
    assert!(read("b-eth0.pcap")?.windows(12).any(|window| window == b"to the right"));
    assert_eq!(read("a/log/000-sh.out")?, b"said\n");
    assert_eq!(read("a/log/000-sh.err")?, b"complained\n");
    fs::remove_dir_all(&kept)?;
    // What failed was the inner lab; the outer one is untouched.
    assert!(lab.dir().exists());
    Ok(())
}

fn ordinary_user(lab: &Lab) -> Result<()> {
    let host = lab.host("h")?;
    let script = "id -u; id -g; echo mine > file; stat -c %u file";
    assert_eq!(host.command_as_user("sh").args(["-c", script]).check()?, "1000\n1000\n1000\n");
    assert_eq!(fs::read_to_string(host.dir().join("file"))?, "mine\n");
    Ok(())
}

/// Sends one datagram each way between two hosts.
fn exchange(a: &Host, a_ip: IpAddr, b: &Host, b_ip: IpAddr) -> Result<()> {
    let left = a.enter(|| UdpSocket::bind(SocketAddr::new(a_ip, 0))).context("bind on the left")?;
    let right = b.enter(|| UdpSocket::bind(SocketAddr::new(b_ip, 0))).context("bind on the right")?;
    for (from, to, text) in [(&left, &right, b"to the right"), (&right, &left, b"back to left")] {
        to.set_read_timeout(Some(LONG))?;
        from.send_to(text, to.local_addr()?).context("send")?;
        let mut buffer = [0; 64];
        let (len, source) = to.recv_from(&mut buffer).context("receive")?;
        assert_eq!((&buffer[..len], source), (&text[..], from.local_addr()?));
    }
    Ok(())
}

fn plain_carries(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let lan = lab.plain("lan")?;
    let (on_a, on_b) = (lan.attach(&a)?, lan.attach(&b)?);
    exchange(&a, on_a.v4.into(), &b, on_b.v4.into())?;
    exchange(&a, on_a.v6.into(), &b, on_b.v6.into())?;
    // An address given to a link that is down works as soon as the link is up.
    lab.wire(&a, "spare", &b, "spare")?;
    a.link_down("spare")?;
    let (left, right) = (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]));
    a.add_address("spare", left, 64)?;
    b.add_address("spare", right, 64)?;
    a.link_up("spare")?;
    exchange(&a, left, &b, right)
}

fn wan_carries(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let wan = lab.wan(1)?;
    wan.sites("paris", "london").delay(Duration::from_millis(5));
    let on_a = wan.site("paris").attach(&a)?;
    let on_b = wan.site("london").attach(&b)?;
    exchange(&a, on_a.v4.into(), &b, on_b.v4.into())?;
    exchange(&a, on_a.v6.into(), &b, on_b.v6.into())?;
    let log = wan.log(0);
    assert_eq!(log.len(), 4, "{log:?}");
    assert!(
        log.iter().all(|packet| packet.fate == Fate::Delivered && packet.left >= packet.entered + 5_000_000),
        "{log:?}"
    );
    Ok(())
}

fn nothing_is_left(_: &Lab) -> Result<()> {
    let inner = Lab::new("inner")?;
    let host = inner.host("h")?;
    let (inode, name, dir) = (host.netns().inode(), host.netns_name().map(str::to_owned), inner.dir().to_owned());
    // A child that ignores polite signals, and a grandchild that has left its parent's session.
    let script = "trap '' TERM; setsid sleep 1000 & echo $!; while :; do sleep 1000; done";
    let child = host.command("sh").args(["-c", script]).spawn()?;
    let grandchild = child.wait_for_output("", LONG)?;
    child.signal(Signal::SIGTERM);
    assert!(child.is_running());
    let pids = [child.pid().to_string(), grandchild.trim().to_owned()];
    std::mem::forget(child);
    drop((host, inner));
    for pid in &pids {
        wait_gone(pid, inode)?;
    }
    assert!(!dir.exists());
    assert!(name.is_none_or(|name| !Path::new("/run/netns").join(name).exists()));
    Ok(())
}

/// Waits until a killed process is no longer in the namespace: dead, or dead and not yet buried.
fn wait_gone(pid: &str, inode: u64) -> Result<()> {
    let deadline = std::time::Instant::now() + LONG;
    while fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode) {
        if std::time::Instant::now() > deadline {
            return Err(Error::failed(format!("process {pid} outlived its lab")));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Set for a second copy of this program that is to leave a run behind.
const LEAVE: &str = "MESHD_LAB_LEAVE_A_RUN_BEHIND";

/// In the second copy: makes a host, says so, and waits to be killed.
pub fn leave_a_run_behind() -> Result<()> {
    if std::env::var_os(LEAVE).is_none() {
        return Ok(());
    }
    let lab = Lab::new("left")?;
    let host = lab.host("left")?;
    let grandchild = host.command("sh").args(["-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"]).output()?;
    let run = lab.dir().parent().unwrap_or(lab.dir());
    println!("{} {} {}", run.display(), grandchild.stdout.trim(), host.netns_name().unwrap_or("-"));
    loop {
        std::thread::park();
    }
}

fn dead_run_is_swept(lab: &Lab) -> Result<()> {
    let host = lab.host("h")?;
    // Outside any host, so that it gives names where everybody sees them.
    let exe = std::env::current_exe()?;
    let mut copy = Command::new(exe).env(LEAVE, "1").stdout(Stdio::piped()).spawn().context("start the second copy")?;
    let mut line = String::new();
    let read = copy.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    copy.kill()?;
    copy.wait()?;
    read.transpose()?;
    let parts: Vec<&str> = line.trim().split(' ').collect();
    let &[dir, grandchild, name] = &parts[..] else { return Err(Error::failed(format!("odd line {line:?}"))) };
    let inode = fs::metadata(format!("/proc/{grandchild}/ns/net"))?.ino();
    assert!(fs::symlink_metadata(dir).is_ok(), "the killed run should have left its link");
    // A living run's traces and a stranger's of the same shape must survive.
    let stranger = std::env::temp_dir().join(format!("mlab-0-stranger-{}", std::process::id()));
    fs::write(&stranger, "")?;
    let swept = sweep::sweep_now();
    let stranger_lives = stranger.exists();
    fs::remove_file(&stranger)?;
    swept?;
    assert!(stranger_lives);
    assert!(lab.dir().exists() && host.command("true").output()?.status.success());
    assert!(fs::symlink_metadata(dir).is_err());
    assert!(!Path::new("/run/netns").join(name).exists());
    wait_gone(grandchild, inode)
}

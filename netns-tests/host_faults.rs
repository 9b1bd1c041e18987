//! What befalls a host, and not its network: what others take from the mesh's interface, descriptors that are used up, a kernel
//! that refuses to send, and things that a host lacks from the start.

use std::fs;
use std::time::Instant;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::firewall::Firewall;
use crate::lab::look::{Look, wait};
use crate::lab::{Host, Lab, Result, package};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "host_faults::what_others_take_is_set_right", needs: &[], run: taken },
    Case { name: "host_faults::without_descriptors_packets_pass", needs: &[], run: descriptors },
    Case { name: "host_faults::a_refusal_to_send_is_over_when_it_is_over", needs: &[&package::NFTABLES], run: refusal },
    Case { name: "host_faults::what_is_missing_is_said_or_done_without", needs: &[], run: missing },
];

/// Exchanges while something is wrong.
const EXCHANGES: usize = 200;

/// What `ip` says of the mesh's interface.
fn shown(host: &Host, what: &[&str]) -> Result<String> {
    host.command("ip").args(what).args(["dev", "mesh0"]).check()
}

/// ```text
///     a---b           b's address, route and interface are taken away, one after the other, under a connection
/// ```
fn taken(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let b = all[1];
    let mut flow = scene.flow(0, 1)?;
    flow.exchange(b"before")?;
    let (v4, v6) = mesh.overlay(b);
    // A look at what is there now, and what takes it away.
    let losses: [(&str, &[&str], String, Vec<String>); 4] = [
        ("an IPv4 address", &["-4", "address", "show"], format!("inet {v4}"), words(&["address", "flush", "-4"])),
        ("an IPv6 address", &["-6", "address", "show"], format!("inet6 {v6}"), words(&["address", "flush", "-6"])),
        (
            "a route",
            &["-4", "route", "show", "proto", "77"],
            "10.77.0.0/16".into(),
            words(&["route", "del", "10.77.0.0/16"]),
        ),
        (
            "the interface, set down",
            &["-4", "route", "show", "proto", "77"],
            "10.77.0.0/16".into(),
            words(&["link", "set", "down"]),
        ),
    ];
    for (what, look, there, take) in losses {
        assert!(shown(b, look)?.contains(&there), "{what}: {}", shown(b, look)?);
        let began = Instant::now();
        let family = take.iter().find(|word| word.starts_with('-')).cloned();
        let rest: Vec<_> = take.iter().filter(|word| !word.starts_with('-')).cloned().collect();
        let (last, first) = rest.split_last().expect("a command");
        // `ip link set DEVICE down`, `ip … dev DEVICE`.
        match last.as_str() {
            "down" => b.command("ip").args(first).args(["mesh0", "down"]).check()?,
            _ => b.command("ip").args(family).args(&rest).args(["dev", "mesh0"]).check()?,
        };
        wait(format_args!("{what} to be back"), LONG, || {
            let now = shown(b, look)?;
            Ok(if now.contains(&there) { Look::Found(()) } else { Look::NotYet(now) })
        })?;
        println!("    {what} is back after {:.2?}", began.elapsed());
        flow.exchange(b"and it goes on")?;
    }
    // Without its interface a daemon ends, for whoever keeps services running.
    let daemon = mesh.daemon(b)?;
    let began = Instant::now();
    b.delete_link("mesh0")?;
    assert!(!daemon.wait(LONG)?.success());
    assert!(daemon.stderr().contains("was deleted by somebody else; start meshd again"), "{}", daemon.stderr());
    let ended = began.elapsed();
    let _ = mesh.kill(b);
    mesh.start(&[b])?;
    flow.exchange(b"and it goes on")?;
    println!(
        "    the interface deleted: the daemon ends after {ended:.0?}, and packets pass {:.0?} after the deletion",
        began.elapsed()
    );
    mesh.wait_until_all_up(&all, LONG)?;
    scene.check_every_pair(&all)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// ```text
///     a---b           b's daemon may open nothing more, while packets pass and operators ask
/// ```
fn descriptors(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let b = all[1];
    let pid = mesh.daemon(b)?.pid().to_string();
    let mut flow = scene.flow(0, 1)?;
    let before = fs::read_to_string(format!("/proc/{pid}/limits")).context("limits")?;
    let before = before.lines().find(|line| line.starts_with("Max open files")).expect("a limit").to_owned();
    let soft = before.split_whitespace().nth(3).expect("a number").to_owned();
    let limit = |number: &str| b.command("prlimit").args(["--pid", &pid, &format!("--nofile={number}:")]).check();
    // The lowest number that is free stays forbidden, whatever is closed above it.
    limit("3")?;
    let asked = mesh.ctl(b).arg("status").output()?;
    assert!(!asked.status.success(), "a connection was taken without a descriptor: {asked:?}");
    let began = Instant::now();
    for _ in 0..EXCHANGES {
        flow.exchange(b"meanwhile")?;
    }
    println!("    {EXCHANGES} exchanges without descriptors in {:.0?}", began.elapsed());
    limit(&soft)?;
    wait("an answer to operators", LONG, || {
        let asked = mesh.ctl(b).arg("status").output()?;
        Ok(if asked.status.success() { Look::Found(()) } else { Look::NotYet(asked.stderr) })
    })?;
    assert!(mesh.daemon(b)?.is_running());
    mesh.wait_until_all_up(&all, LONG)?;
    Ok(())
}

/// ```text
///     a---b           b's own packet filter refuses what the daemon sends (EPERM), until the link is not answered any more
/// ```
fn refusal(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let mut flow = scene.flow(0, 1)?;
    let filter = Firewall::new(all[1])?;
    filter.leaving("udp dport 7655 counter drop")?;
    mesh.wait_for(all[0], "b as not answering", LONG, |status| status.counts.suspect + status.counts.down == 1)?;
    let healed = Instant::now();
    filter.heal()?;
    flow.exchange(b"after it")?;
    println!("    a connection goes on {:.0?} after sending is allowed again", healed.elapsed());
    mesh.wait_until_all_up(&all, LONG)?;
    Ok(())
}

/// ```text
///     a---b           b has no IPv6, then no device
/// ```
fn missing(lab: &Lab) -> Result<()> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let b = all[1];
    mesh.start(&all[..1])?;
    b.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
    b.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    mesh.join(b, scene.underlay[1])?;
    mesh.start(&[b])?;
    mesh.wait_until_all_up(&all, LONG)?;
    scene.flow(0, 1)?.exchange(b"by IPv4 alone")?;
    mesh.stop(&[b])?;

    let nothing = b.run_dir().join("nothing");
    fs::write(&nothing, "").context(nothing.display())?;
    b.command("mount").arg("--bind").arg(&nothing).arg("/dev/net/tun").check()?;
    let began = Instant::now();
    let done = mesh.meshd(b).output()?;
    println!("    without a device it ends after {:.0?}", began.elapsed());
    assert!(!done.status.success() && done.stderr.contains("/dev/net/tun"), "{done:?}");
    b.command("umount").arg("/dev/net/tun").check()?;
    mesh.start(&[b])?;
    mesh.wait_until_all_up(&all, LONG)?;
    Ok(())
}

//! A daemon under a service manager: what it tells, what is kept for it, and that a crash costs no connection.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::{Error, Host, Lab, Proc, Result, ServiceManager, place};
use crate::restart::{changes_during, device};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "supervised::a_crash_and_a_restart_keep_the_device_and_the_port", needs: &[], run: kept },
    Case { name: "supervised::what_does_not_fit_is_made_anew", needs: &[], run: unfit },
    Case { name: "supervised::a_data_thread_that_stands_still_is_told_of", needs: &[], run: hung },
];

/// The manager's patience: short, so that the test is.
const WATCHDOG: Duration = Duration::from_secs(2);

/// A mesh of two, of which the second's daemon is to run under a manager.
fn scene(lab: &Lab) -> Result<(Scene, ServiceManager)> {
    let scene = Scene::founded(lab, &["a", "b"])?;
    scene.mesh.start(&scene.all()[..1])?;
    scene.mesh.join(&scene.hosts[1], scene.underlay[1])?;
    let manager = ServiceManager::start(&scene.hosts[1])?;
    Ok((scene, manager))
}

/// Starts the daemon of the second host with all that is kept for it, and waits until it says that it serves.
fn start(scene: &Scene, manager: &ServiceManager) -> Result<Proc> {
    let before = manager.count("READY=1");
    let program: PathBuf = place::binary("meshd")?;
    let command = manager.command(&program, WATCHDOG)?.arg("--config").arg(scene.mesh.config(&scene.hosts[1]));
    let daemon = command.spawn()?;
    manager.wait_for("READY=1", before, LONG)?;
    Ok(daemon)
}

/// ```text
///     a---b     b is killed, and told to stop and started, as `systemctl restart` does; a connection is open
/// ```
fn kept(lab: &Lab) -> Result<()> {
    let (scene, manager) = scene(lab)?;
    let b = &scene.hosts[1];
    let daemon = start(&scene, &manager)?;
    // Who says that it serves does.
    scene.mesh.ctl(b).arg("status").check()?;
    let kept = manager.kept();
    assert!(kept.iter().any(|name| name == "meshd-device-0") && kept.iter().any(|name| name == "meshd-socket-0"));
    scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
    manager.wait_for("STATUS=b in ", 0, LONG)?;
    // A reload is told of, and its end.
    let before = manager.count("READY=1");
    daemon.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1\nMONOTONIC_USEC=", 0, LONG)?;
    manager.wait_for("READY=1", before, LONG)?;

    let mut flow = scene.flow(0, 1)?;
    let before = device(b)?;
    let mut running = daemon;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        let changes = changes_during(b, || {
            running.signal(signal);
            running.wait(LONG)?;
            // Nobody reads; what is sent meanwhile waits in the device that is kept.
            flow.send(b"sent to nobody")?;
            running = start(&scene, &manager)?;
            flow.receive(b"sent to nobody")?;
            flow.exchange(b"as before")
        })?;
        assert_eq!(changes, "", "{signal}: no address or route of the device was touched");
        assert_eq!(device(b)?, before, "{signal}");
        assert!(!running.stderr().contains("made anew"), "{signal}: {}", running.stderr());
        assert_eq!(manager.kept(), kept, "{signal}");
    }
    assert_eq!(manager.count("STOPPING=1"), 1);
    // In its process it keeps what is kept, and tells the same manager.
    let told = manager.count("READY=1");
    scene.mesh.ctl(b).arg("restart").check()?;
    manager.wait_for("READY=1", told, LONG)?;
    flow.exchange(b"as before")?;
    assert_eq!((device(b)?, manager.kept()), (before, kept));
    // A stop for good is one when the manager lets go.
    running.stop(LONG)?;
    assert!(has_device(b)?, "the manager does not know yet whether this is a restart");
    manager.discard();
    assert!(!has_device(b)?, "the device went with the last descriptor");
    Ok(())
}

fn has_device(host: &Host) -> Result<bool> {
    Ok(host.command("ip").args(["link", "show", "dev", "mesh0"]).output()?.status.success())
}

/// ```text
///     a---b     b's device gets another name, while the manager keeps the former one
/// ```
fn unfit(lab: &Lab) -> Result<()> {
    let (scene, manager) = scene(lab)?;
    let b = &scene.hosts[1];
    let daemon = start(&scene, &manager)?;
    daemon.stop(LONG)?;
    scene.mesh.change_config(b, |config| config.interface.name = "other0".to_owned())?;
    let again = start(&scene, &manager)?;
    assert!(again.stderr().contains("made anew") && again.stderr().contains("other0"), "{}", again.stderr());
    assert!(!has_device(b)?, "the former device is gone");
    assert!(manager.count("FDSTOREREMOVE=1") > 0);
    scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
    // What is kept now is what is used now.
    again.signal(Signal::SIGKILL);
    again.wait(LONG)?;
    let third = start(&scene, &manager)?;
    assert!(!third.stderr().contains("made anew"), "{}", third.stderr());
    scene.mesh.wait_until_all_up(&scene.all(), LONG)?;
    third.stop(LONG).map(drop)
}

/// A thread of another process that is held still until this is dropped.
struct Held {
    release: Option<Sender<()>>,
    holder: Option<JoinHandle<nix::Result<()>>>,
}

impl Held {
    /// Holds the thread of that name.
    fn hold(process: u32, name: &str) -> Result<Held> {
        let tasks = format!("/proc/{process}/task");
        let mut found = None;
        for task in fs::read_dir(&tasks).context(&tasks)? {
            let path = task?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                found = path.file_name().and_then(|number| number.to_string_lossy().parse().ok());
            }
        }
        let thread = Pid::from_raw(found.ok_or_else(|| Error::failed(format!("no thread {name} in {process}")))?);
        let ((release, released), (stopped, is_stopped)) = (channel::<()>(), channel());
        // Whoever attaches is the only one that may release.
        let holder = thread::spawn(move || {
            let attached = ptrace::seize(thread, ptrace::Options::empty())
                .and_then(|()| ptrace::interrupt(thread))
                .and_then(|()| waitpid(thread, Some(WaitPidFlag::__WALL)).map(drop));
            let _ = stopped.send(attached);
            let _ = released.recv();
            ptrace::detach(thread, None)
        });
        let attached = is_stopped.recv().map_err(|_| Error::failed("the holder is gone"))?;
        attached.map_err(|errno| Error::failed(format!("cannot hold {name}: {errno}")))?;
        Ok(Held { release: Some(release), holder: Some(holder) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

/// ```text
///     b     one thread is held still for a while
/// ```
fn hung(lab: &Lab) -> Result<()> {
    let (scene, manager) = scene(lab)?;
    let daemon = start(&scene, &manager)?;
    // Idle threads turn too.
    manager.wait_for("WATCHDOG=1", 2, LONG)?;
    let held = Held::hold(daemon.pid(), "mesh-shard-0")?;
    daemon.wait_for_output("a data thread stands still", LONG)?;
    let fed = manager.count("WATCHDOG=1");
    // The control task goes on.
    scene.mesh.ctl(&scene.hosts[1]).arg("version").check()?;
    assert_eq!(manager.count("WATCHDOG=1"), fed, "a thread stands still, and yet all is said to be well");
    drop(held);
    manager.wait_for("WATCHDOG=1", fed, LONG)?;
    daemon.stop(LONG).map(drop)
}

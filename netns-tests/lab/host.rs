//! The lab and its hosts: each host is a network namespace with its own host name, name files and `/run`.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::error::{Context, Error, Result};
use super::netlink;
use super::netns::Netns;
use super::package::Tree;
use super::plain::Plain;
use super::process::HostCommand;
use super::sweep::{self, Run};
use super::wan::Wan;

/// What to write into a lab's directory when it is kept after a failure.
type Evidence = Box<dyn Fn(&Path) + Send + Sync>;

/// Several hosts and the networks between them. Everything is removed on drop.
///
/// After a failure ([`Lab::fail`], or a drop while panicking) its directory is kept below `failed/` in the lab's part
/// of the build directory, with the output of every process, the captures and the emulator's log.
pub struct Lab {
    name: String,
    dir: PathBuf,
    hosts: Mutex<Vec<Host>>,
    evidence: Mutex<Vec<Evidence>>,
    failed: AtomicBool,
    run: Arc<Run>,
}

impl Lab {
    /// Makes an empty lab. `name` is for people and directories; two labs may share one.
    ///
    /// # Errors
    /// NOT RUN without the privilege to make namespaces.
    pub fn new(name: &str) -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        if super::reexec::privilege().is_none() {
            return Err(Error::not_run("needs root or a user namespace (reexec::ensure_namespaces was not called)"));
        }
        let run = Run::current()?;
        let dir = run.dir().join(LABS.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&dir).context(format_args!("create {}", dir.display()))?;
        Ok(Lab {
            name: name.to_owned(),
            dir,
            hosts: Mutex::default(),
            evidence: Mutex::default(),
            failed: AtomicBool::new(false),
            run,
        })
    }

    /// Returns the lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the lab's directory: a short path, so that Unix sockets may lie in it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a host: a network namespace with `lo` up and nothing else. Names are unique within the lab.
    ///
    /// # Errors
    /// Where the name is taken or the kernel refuses.
    pub fn host(&self, name: &str) -> Result<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.iter().any(|host| host.name() == name) {
            return Err(Error::failed(format!("the lab already has a host {name}")));
        }
        let host = Host::start(name, &self.dir.join(name), &self.run)?;
        hosts.push(host.clone());
        Ok(host)
    }

    /// Makes an emulated wide-area network; the same seed gives the same fates to the same packets.
    ///
    /// # Errors
    /// NOT RUN where `/dev/net/tun` cannot be used.
    pub fn wan(&self, seed: u64) -> Result<Wan> {
        let wan = Wan::start(seed)?;
        let log = wan.clone();
        self.on_failure(move |dir| log.write_log(&dir.join("wan.log")));
        Ok(wan)
    }

    /// Makes a plain network: veth pairs into a bridge, as fast as the kernel goes.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn plain(&self, name: &str) -> Result<Plain> {
        let number = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).len();
        Plain::start(self.host(name)?, u8::try_from(number % 250).unwrap_or(0))
    }

    /// Joins two hosts by one veth pair with the given device names, both up, without addresses.
    ///
    /// # Errors
    /// Where a device name is taken or the kernel refuses.
    pub fn wire(&self, left: &Host, left_dev: &str, right: &Host, right_dev: &str) -> Result<()> {
        netlink::add_veth(left.netns(), left_dev, right.netns(), right_dev)?;
        left.link_up(left_dev)?;
        right.link_up(right_dev)
    }

    /// Adds evidence to be written into the kept directory if the lab fails.
    pub fn on_failure(&self, write: impl Fn(&Path) + Send + Sync + 'static) {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(write));
    }

    /// Marks the lab as failed, so that its directory is kept.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let failed = self.failed.load(Ordering::Relaxed) || thread::panicking();
        if failed {
            for write in self.evidence.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                write(&self.dir);
            }
        }
        // Evidence holds the emulator and the captures: both end here, before the hosts they serve.
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for host in self.hosts.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            host.stop();
        }
        if !failed {
            let _ = fs::remove_dir_all(&self.dir);
            return;
        }
        match self.run.keep(&self.dir, &self.name) {
            Ok(kept) => eprintln!("lab {}: kept in {}", self.name, kept.display()),
            Err(error) => eprintln!("lab {}: could not be kept: {error}", self.name),
        }
    }
}

/// One host. Cloning gives another handle to the same host; the lab ends it.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    dir: PathBuf,
    netns: Netns,
    named: Option<String>,
    run_id: String,
    resident: Mutex<Option<Resident>>,
    logs: AtomicU32,
}

/// Work for a host's resident thread.
type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts the host's processes. It stays inside the host while the host lives, and the kernel kills
/// its children when it ends, however it ends.
struct Resident {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

impl AsRef<str> for Host {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

impl Host {
    fn start(name: &str, dir: &Path, run: &Run) -> Result<Host> {
        fs::create_dir_all(dir.join("run")).context(format_args!("create {}", dir.display()))?;
        fs::create_dir_all(dir.join("log")).context(format_args!("create {}", dir.display()))?;
        let netns = Netns::new()?;
        let resident = Resident::start(name, &dir.join("run"), netns.clone())?;
        let named = run.name_netns(&netns, name);
        let inner = Inner {
            name: name.to_owned(),
            dir: dir.to_owned(),
            netns,
            named,
            run_id: run.id().to_owned(),
            resident: Mutex::new(Some(resident)),
            logs: AtomicU32::new(0),
        };
        let host = Host(Arc::new(inner));
        // Nothing here has a router to ask or a double to fear, and waiting for either would slow every test.
        for key in ["accept_dad", "accept_ra", "router_solicitations"] {
            for scope in ["all", "default"] {
                host.sysctl(&format!("net/ipv6/conf/{scope}/{key}"), "0")?;
            }
        }
        host.link_up("lo")?;
        Ok(host)
    }

    /// Returns the host's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the host's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// Returns the name under which `ip netns exec` finds the host, where it could be given one.
    pub fn netns_name(&self) -> Option<&str> {
        self.0.named.as_deref()
    }

    /// Returns the host's own directory, for state and configuration; a short path.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Returns the directory that the host's processes see as `/run`, as this process sees it.
    pub fn run_dir(&self) -> PathBuf {
        self.0.dir.join("run")
    }

    /// Runs `work` on a thread inside the host's network; see [`Netns::enter`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.netns.enter(work)
    }

    /// Returns how many TCP segments the host's kernel has sent again (`TcpRetransSegs`).
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn segments_sent_again(&self) -> Result<u64> {
        let read = self.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"));
        let text = read.context("read the host's TCP counters")?;
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
        let count = match (lines.next(), lines.next()) {
            (Some(names), Some(values)) => names.zip(values).find(|(name, _)| *name == "RetransSegs"),
            _ => None,
        };
        let count = count.and_then(|(_, value)| value.parse().ok());
        count.ok_or_else(|| Error::failed("the kernel tells no RetransSegs"))
    }

    /// Prepares a program to be run on the host.
    pub fn command(&self, program: impl AsRef<Path>) -> HostCommand {
        HostCommand::new(self.clone(), program.as_ref())
    }

    /// Prepares a program to be run on the host as user and group 1000, in a user namespace of its own: for services
    /// that refuse to run as root. Files they make belong to whoever runs the lab, and the network is out of their hands.
    pub fn command_as_user(&self, program: impl AsRef<Path>) -> HostCommand {
        let unshare = self.command("unshare").args(["--user", "--map-user=1000", "--map-group=1000", "--"]);
        unshare.arg(program.as_ref())
    }

    /// Prepares a program of an unpacked set to be run on the host.
    ///
    /// # Errors
    /// NOT RUN where the set has no such program.
    pub fn command_from(&self, tree: &Tree, program: &str) -> Result<HostCommand> {
        Ok(self.command(tree.program(program)?).with(tree))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// Where there is no such link.
    pub fn link_up(&self, dev: &str) -> Result<()> {
        netlink::set_link(self.netns(), dev, |link| link.up())
    }

    /// Sets a link down.
    ///
    /// # Errors
    /// Where there is no such link.
    pub fn link_down(&self, dev: &str) -> Result<()> {
        netlink::set_link(self.netns(), dev, |link| link.down())
    }

    /// Sets a link's MTU in bytes.
    ///
    /// # Errors
    /// Where there is no such link or the kernel refuses the size.
    pub fn set_mtu(&self, dev: &str, mtu: u32) -> Result<()> {
        netlink::set_link(self.netns(), dev, move |link| link.mtu(mtu))
    }

    /// Removes a link.
    ///
    /// # Errors
    /// Where there is no such link.
    pub fn delete_link(&self, dev: &str) -> Result<()> {
        netlink::delete_link(self.netns(), dev)
    }

    /// Adds an address.
    ///
    /// # Errors
    /// Where there is no such link or the address is there already.
    pub fn add_address(&self, dev: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        netlink::add_address(self.netns(), dev, address, prefix_len)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn remove_address(&self, dev: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        netlink::remove_address(self.netns(), dev, address, prefix_len)
    }

    /// Adds a route to a network, through a gateway or straight out of the link.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn add_route(&self, to: (IpAddr, u8), via: Option<IpAddr>, dev: &str) -> Result<()> {
        netlink::add_route(self.netns(), to, via, dev)
    }

    /// Adds a route to a network through a gateway, which is taken where there is none of a lower metric.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn add_route_of_metric(&self, to: (IpAddr, u8), via: IpAddr, dev: &str, metric: u32) -> Result<()> {
        netlink::add_route_of_metric(self.netns(), to, Some(via), dev, metric)
    }

    /// Writes a network setting, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// Where there is no such setting.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| fs::write(&path, value)).context(format_args!("{}: write {path}", self.name()))
    }

    /// Returns the id of the run that the host belongs to.
    pub(super) fn run_id(&self) -> &str {
        &self.0.run_id
    }

    /// Returns the next number for a process's log files.
    pub(super) fn next_log(&self, program: &str) -> PathBuf {
        let number = self.0.logs.fetch_add(1, Ordering::Relaxed);
        self.0.dir.join("log").join(format!("{number:03}-{program}"))
    }

    /// Runs a job on the host's resident thread and returns its result.
    pub(super) fn on_resident<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (send, receive) = channel();
        {
            let resident = self.0.resident.lock().unwrap_or_else(PoisonError::into_inner);
            let resident = resident.as_ref().ok_or_else(|| Error::failed(format!("host {} has ended", self.name())))?;
            let job: Job = Box::new(move || drop(send.send(work())));
            resident.jobs.send(job).map_err(|_| Error::failed(format!("host {} has ended", self.name())))?;
        }
        receive.recv().map_err(|_| Error::failed(format!("host {} has ended", self.name())))
    }

    /// Ends the host: its processes first, then its name; the namespace goes with the last descriptor.
    fn stop(&self) {
        let resident = self.0.resident.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(resident) = resident {
            drop(resident.jobs);
            let _ = resident.thread.join();
        }
        sweep::kill_inside(self.0.netns.inode());
        if let Some(name) = &self.0.named {
            sweep::unname_netns(name);
        }
    }
}

impl Resident {
    fn start(name: &str, run_dir: &Path, netns: Netns) -> Result<Resident> {
        let (jobs, work) = channel::<Job>();
        let (ready, started) = channel();
        let host_name = name.to_owned();
        let run_dir = run_dir.to_owned();
        let thread = thread::Builder::new()
            .name(format!("host {name}"))
            .spawn(move || {
                let entered = settle(&host_name, &run_dir, &netns);
                let live = entered.is_ok();
                let _ = ready.send(entered);
                if live {
                    work.into_iter().for_each(|job| job());
                }
            })
            .context("start a host's thread")?;
        started.recv().map_err(|_| Error::failed(format!("host {name}: its thread ended at once")))??;
        Ok(Resident { jobs, thread })
    }
}

/// Gives the calling thread, and so every process it starts, the host's network, host name and `/run`.
fn settle(name: &str, run_dir: &Path, netns: &Netns) -> Result<()> {
    netns.join()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("make a host's mount and name spaces")?;
    // SAFETY: the call reads `len` bytes from the pointer, which are the name's. (In a user namespace the file below
    // /proc/sys cannot be written, so the call it is.)
    let named = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    nix::errno::Errno::result(named).context("set a host's name")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make a host's mounts private")?;
    mount(Some(run_dir), "/run", none, MsFlags::MS_BIND, none).context("give a host its own /run")?;
    // Whoever looks up the host's name must find it here and not ask this machine's resolver over the host's network.
    let hosts = format!("127.0.0.1 localhost {name}\n::1 localhost {name}\n");
    for (file, content) in [("/etc/hosts", hosts.as_str()), ("/etc/resolv.conf", "# no resolver\n")] {
        if !Path::new(file).exists() {
            continue;
        }
        let own = run_dir.join(file.trim_start_matches("/etc/"));
        std::fs::write(&own, content).context("write a host's own name files")?;
        mount(Some(&own), file, none, MsFlags::MS_BIND, none).context("give a host its own name files")?;
    }
    Ok(())
}

//! Giving up what the daemon does not need, before it does anything else.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use std::fmt;
use std::io;

/// A capability the daemon may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Capability {
    /// Binding ports below 1,024.
    NetBindService = 10,
    /// Addresses, routes, TUN devices, firewall marks and large socket buffers.
    NetAdmin = 12,
    /// Binding sockets to devices (kernels before 5.7).
    NetRaw = 13,
}

/// How far giving up came; each step is tried whatever became of the others.
#[derive(Debug)]
pub struct Reached {
    /// No core dumps, and no other process of this user may trace this one or read its memory.
    pub undumpable: Result<(), Errno>,
    /// The core file size limit is zero.
    pub no_core: Result<(), Errno>,
    /// No program started from here ever gains privileges.
    pub no_new_privileges: Result<(), Errno>,
    /// Only the capabilities asked for, of those the process had, are left.
    pub capabilities: Result<(), Errno>,
    /// The effective capabilities left, as a bit mask.
    pub effective: u64,
}

impl Reached {
    /// Tells whether every step succeeded.
    pub fn is_complete(&self) -> bool {
        self.undumpable.is_ok() && self.no_core.is_ok() && self.no_new_privileges.is_ok() && self.capabilities.is_ok()
    }

    /// Tells whether `capability` is still effective.
    pub fn has(&self, capability: Capability) -> bool {
        self.effective & bit(capability) != 0
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |step: &Result<(), Errno>| step.map_or_else(|errno| errno.desc(), |()| "yes");
        write!(
            f,
            "undumpable: {}, no core files: {}, no new privileges: {}, capabilities dropped: {} (left: {:#x})",
            word(&self.undumpable),
            word(&self.no_core),
            word(&self.no_new_privileges),
            word(&self.capabilities),
            self.effective
        )
    }
}

/// Keeps secrets out of core files, keeps `keep` and gives up every other capability for good.
///
/// Capabilities belong to threads: this must run before any other thread is started.
///
/// # Errors
/// `InvalidInput` where there are other threads already; nothing was done then. Steps the kernel refuses are in the
/// result.
pub fn give_up(keep: &[Capability]) -> io::Result<Reached> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let reason = format!("privileges are given up per thread, but {threads} are running already");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(give_up_in_this_thread(keep))
}

fn give_up_in_this_thread(keep: &[Capability]) -> Reached {
    let undumpable = prctl::set_dumpable(false);
    let no_core = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let capabilities = drop_capabilities(keep);
    Reached {
        undumpable,
        no_core,
        no_new_privileges: prctl::set_no_new_privs(),
        capabilities,
        effective: read_capabilities().map_or(0, |sets| sets.effective()),
    }
}

/// The two words of each of the kernel's version 3 capability sets.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Sets([SetWord; 2]);

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct SetWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct SetHeader {
    version: u32,
    pid: i32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64-bit sets, since Linux 2.6.26.
const VERSION_3: u32 = 0x2008_0522;

impl Sets {
    fn effective(&self) -> u64 {
        u64::from(self.0[0].effective) | u64::from(self.0[1].effective) << 32
    }

    fn permitted(&self) -> u64 {
        u64::from(self.0[0].permitted) | u64::from(self.0[1].permitted) << 32
    }
}

const fn bit(capability: Capability) -> u64 {
    1 << capability as u8
}

fn read_capabilities() -> Result<Sets, Errno> {
    let mut header = SetHeader { version: VERSION_3, pid: 0 };
    let mut sets = Sets::default();
    // SAFETY: version 3 writes two words of three u32 each, which `Sets` is; both pointers are to live locals.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
    Errno::result(result).map(|_| sets)
}

fn drop_capabilities(keep: &[Capability]) -> Result<(), Errno> {
    let kept = keep.iter().fold(0u64, |mask, &capability| mask | bit(capability));
    let mut outcome = drop_bounding(kept);
    let sets = read_capabilities()?;
    let is_root = nix::unistd::geteuid().is_root();
    let mut limited = Sets::default();
    for (word, (out, old)) in limited.0.iter_mut().zip(sets.0).enumerate() {
        let mask = (kept >> (32 * word)) as u32;
        // What root executes (itself, on a planned restart) gets it by the bounding set, with nothing inheritable.
        let inheritable = if is_root { 0 } else { old.permitted & mask };
        *out = SetWord { effective: old.permitted & mask, permitted: old.permitted & mask, inheritable };
    }
    let mut header = SetHeader { version: VERSION_3, pid: 0 };
    // SAFETY: as in `read_capabilities`; the kernel only reads the sets.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const limited) };
    outcome = outcome.and(Errno::result(result).map(|_| ()));
    if !is_root {
        outcome = outcome.and(raise_ambient(limited.permitted()));
    }
    outcome
}

/// Lets the capabilities of a mask outlive the execution of a program, which an ordinary user's do not by themselves.
fn raise_ambient(mask: u64) -> Result<(), Errno> {
    for capability in (0..64u32).filter(|capability| mask & (1 << capability) != 0) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, capability)?;
    }
    Ok(())
}

fn ambient(operation: libc::c_int, capability: u32) -> Result<(), Errno> {
    let (operation, capability) = (operation as libc::c_ulong, libc::c_ulong::from(capability));
    // SAFETY: PR_CAP_AMBIENT takes an operation and a capability number, and no pointers.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, capability, 0, 0) };
    Errno::result(result).map(drop)
}

/// Lets `program` be started without what the ambient set would give it: for programs that are the operator's, not ours.
pub fn start_without(program: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let clear = || ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0).map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call, with no memory allocated and no lock taken.
    unsafe { program.pre_exec(clear) };
}

/// Removes everything but `kept` from the bounding set. A process without CAP_SETPCAP cannot, and need not: it can
/// only ever execute its way to capabilities through files or uid 0, which "no new privileges" forbids.
fn drop_bounding(kept: u64) -> Result<(), Errno> {
    for capability in 0..64u32 {
        if kept & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_READ and PR_CAPBSET_DROP take a capability number and no pointers.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
        match present {
            1 => {
                // SAFETY: as above.
                let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
                match Errno::result(result) {
                    Ok(_) => {}
                    Err(Errno::EPERM) => return Ok(()),
                    Err(errno) => return Err(errno),
                }
            }
            0 => {}
            // Past the kernel's last capability.
            _ => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::test_process::in_process;
    use super::*;

    /// Runs the ignored test below in a process of its own, since what it does cannot be undone.
    #[test]
    fn what_is_given_up_is_gone() {
        in_process("platform::privileges::tests::in_a_process_of_its_own", None);
    }

    #[test]
    #[ignore = "started by what_is_given_up_is_gone"]
    fn in_a_process_of_its_own() {
        // A test harness has a second thread, which the public call must notice.
        assert_eq!(give_up(&[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);

        let before = read_capabilities().unwrap().effective();
        let reached = give_up_in_this_thread(&[Capability::NetAdmin]);
        assert!(reached.is_complete(), "{reached}");
        assert_eq!(reached.effective, before & bit(Capability::NetAdmin));
        assert_eq!(prctl::get_dumpable(), Ok(false));
        assert_eq!(prctl::get_no_new_privs(), Ok(true));
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(field("CapInh:"), 0);
        assert_eq!(field("CapPrm:"), reached.effective);
        if nix::unistd::geteuid().is_root() && before & (1 << 8) != 0 {
            assert_eq!(field("CapBnd:") & !bit(Capability::NetAdmin), 0);
        }
        // Root without CAP_DAC_OVERRIDE is refused what its mode bits refuse.
        if nix::unistd::geteuid().is_root() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("unreadable");
            std::fs::write(&path, "x").unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
    }
}

//! What a host is like, for whoever looks for what is wrong with it. Nothing here changes anything.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Returns the kernel's release as it calls itself, such as `6.1.0-18-amd64`.
///
/// # Errors
/// `/proc` is not there.
pub fn kernel_release() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned())
}

/// Returns whether somebody keeps the wall clock right, as the kernel was told by whoever does (adjtimex(2)).
///
/// # Errors
/// The kernel does not tell.
pub fn clock_is_disciplined() -> io::Result<bool> {
    // SAFETY: all zeros is a valid timex, which asks and changes nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local that the kernel fills.
    Errno::result(unsafe { libc::adjtimex(&raw mut timex) })?;
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

/// Opens the device that tunnels are made of, and closes it again.
///
/// # Errors
/// What the kernel says.
pub fn open_tun() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop)
}

/// Returns the bytes that are free for ordinary users where a path is, or where its nearest directory is.
///
/// # Errors
/// What the kernel says.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(there)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Returns a kernel parameter such as `net.ipv4.ip_forward`; `None` where this kernel has none of that name.
pub fn parameter(name: &str) -> Option<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Finds a program in PATH, or where administrators' programs lie.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    places.map(|place| place.join(name)).find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_tells() {
        assert!(kernel_release().unwrap().starts_with(|c: char| c.is_ascii_digit()));
        assert!(clock_is_disciplined().is_ok());
        assert_eq!(parameter("kernel.osrelease"), kernel_release().ok());
        assert_eq!(parameter("net.no_such_thing"), None);
        assert!(program("sh").is_some() && program("no-such-program").is_none());
        let directory = tempfile::tempdir().unwrap();
        assert!(free_bytes(&directory.path().join("not/yet/there")).unwrap() > 0);
    }
}

//! How a statically linked program looks up hosts, users and groups.

/// Keeps look-ups to what is linked in: files, and the servers of `/etc/resolv.conf` for hosts.
///
/// A static glibc otherwise loads whatever modules the host's `nsswitch.conf` names, which were built for another glibc.
/// Does nothing in other builds, where loading them is right. Call it before the first look-up.
pub fn settle() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    for (database, services) in [(c"hosts", c"files dns"), (c"passwd", c"files"), (c"group", c"files")] {
        unsafe extern "C" {
            fn __nss_configure_lookup(database: *const libc::c_char, services: *const libc::c_char) -> libc::c_int;
        }
        // SAFETY: both are texts that end with a zero and live as long as the program; glibc keeps copies.
        let _ = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}

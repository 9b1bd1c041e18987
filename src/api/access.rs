//! Who may call what.

use nix::unistd::{Gid, Uid, User, getgrouplist};

/// The process at the other end of the socket, as the kernel vouches for it (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Looks.
    Read,
    /// Changes something.
    Write,
}

/// Who may do what: deny by default. Root and the daemon's own user may do everything; members of the socket's group may
/// look.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The user the daemon runs as.
    pub own_uid: u32,
    /// The group whose members may look.
    pub reader_group: Option<u32>,
}

impl Policy {
    /// Returns whether a caller may do this.
    pub fn allows(&self, caller: Caller, right: Right) -> bool {
        let master = caller.uid == 0 || caller.uid == self.own_uid;
        match right {
            Right::Write => master,
            Right::Read => master || self.reader_group.is_some_and(|group| belongs(caller, group)),
        }
    }
}

/// Whether a caller is in a group: by its effective group, or by the group database, because SO_PEERCRED tells nothing of
/// supplementary groups.
fn belongs(caller: Caller, group: u32) -> bool {
    if caller.gid == group {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(caller.uid)) else { return false };
    let Ok(name) = std::ffi::CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&Gid::from_raw(group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_nothing() {
        // User numbers that no database knows, so that only the rules decide.
        let policy = Policy { own_uid: 4_000_001, reader_group: Some(4_000_010) };
        let stranger = Caller { uid: 4_000_002, gid: 4_000_002 };
        assert!(!policy.allows(stranger, Right::Read) && !policy.allows(stranger, Right::Write));
        let reader = Caller { uid: 4_000_003, gid: 4_000_010 };
        assert!(policy.allows(reader, Right::Read) && !policy.allows(reader, Right::Write));
        for uid in [0, 4_000_001] {
            let master = Caller { uid, gid: 4_000_002 };
            assert!(policy.allows(master, Right::Read) && policy.allows(master, Right::Write));
        }
        let groupless = Policy { reader_group: None, ..policy };
        assert!(!groupless.allows(reader, Right::Read));
    }
}

//! The names of our nftables tables.

use std::fmt::Write;

/// What a table is for, which says how long it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Address honesty: as long as the daemon runs.
    Addresses,
    /// A lock-down on trial: until it is confirmed, its time is over, or its owner is gone.
    Trial,
    /// A confirmed lock-down: until it is lifted.
    Lockdown,
}

impl Purpose {
    /// What the names of such tables begin with. None of them is the beginning of another.
    pub const fn prefix(self) -> &'static str {
        match self {
            Purpose::Addresses => "meshd_",
            Purpose::Trial => "meshd-trial_",
            Purpose::Lockdown => "meshd-lockdown_",
        }
    }

    /// Returns the name of the table of family `inet` that serves this purpose for the mesh on an interface, so that several
    /// meshes do not collide. What no name of a table may hold is written as a slash, which no interface's name holds, and
    /// two digits.
    pub fn table(self, interface: &str) -> String {
        let mut name = self.prefix().to_owned();
        for byte in interface.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => name.push(char::from(byte)),
                // Writing into a String cannot fail.
                _ => drop(write!(name, "/{byte:02x}")),
            }
        }
        name
    }
}

/// Tells whether rules can name an interface: nft knows no way to write a quotation mark, and reads an asterisk as a pattern.
pub fn is_nameable(interface: &str) -> bool {
    !interface.contains(['"', '\\', '*'])
}

/// Makes a table's body the whole of it, whatever was there before, as one transaction.
pub(super) fn replacing(table: &str, body: &str) -> String {
    format!("table inet {table} {{\n}}\ndelete table inet {table}\ntable inet {table} {{\n{body}}}\n")
}

/// Returns the script that removes a table, also where there is none.
pub fn removal(table: &str) -> String {
    format!("table inet {table} {{\n}}\ndelete table inet {table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_interfaces_have_two_tables() {
        assert_eq!(Purpose::Addresses.table("mesh0"), "meshd_mesh0");
        assert_eq!(Purpose::Lockdown.table("mesh-1.a_b"), "meshd-lockdown_mesh-1.a_b");
        assert_eq!(Purpose::Trial.table("m+1"), "meshd-trial_m/2b1");
        assert_ne!(Purpose::Addresses.table("m+1"), Purpose::Addresses.table("m2b1"));
        assert!(is_nameable("mesh+0") && !is_nameable("mesh*") && !is_nameable("a\"b"));
    }
}

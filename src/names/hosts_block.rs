//! Our lines in `/etc/hosts`, between two marks; every other byte of it is somebody else's.

use std::fmt::Write;
use std::net::IpAddr;

/// What the first mark says where the line above it had no end: then taking the block out takes its end out too.
const UNENDED: &str = ", behind a line without an end";

/// The lines of one mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsBlock {
    /// The mesh's name, which the marks bear.
    pub mesh: String,
    /// Addresses with their names, in the order of the file.
    pub hosts: Vec<(IpAddr, String)>,
}

impl HostsBlock {
    /// Returns a file with this block in place of the mesh's block, or behind everything else.
    pub fn put(&self, content: &[u8]) -> Vec<u8> {
        let found = find(content, &self.mesh);
        let (before, after) = match &found {
            Some(found) => (&content[..found.start], &content[found.end..]),
            None => (content, &content[..0]),
        };
        let ended = match &found {
            Some(found) => !found.is_behind_unended,
            None => before.is_empty() || before.ends_with(b"\n"),
        };
        let mut block = String::new();
        if !ended && found.is_none() {
            block.push('\n');
        }
        // Writing into a String cannot fail.
        let _ = writeln!(block, "{}{}", begin(&self.mesh), if ended { "" } else { UNENDED });
        for (address, name) in &self.hosts {
            let _ = writeln!(block, "{address} {name}");
        }
        let _ = writeln!(block, "{}", end(&self.mesh));
        [before, block.as_bytes(), after].concat()
    }

    /// Returns a file without the block of a mesh: as it was before there was one, but for what others changed meanwhile.
    pub fn take_out(mesh: &str, content: &[u8]) -> Vec<u8> {
        let Some(found) = find(content, mesh) else { return content.to_vec() };
        let mut before = &content[..found.start];
        let after = &content[found.end..];
        // Where others have written behind the block, the line has to end.
        if found.is_behind_unended && after.is_empty() {
            before = before.strip_suffix(b"\n").unwrap_or(before);
        }
        [before, after].concat()
    }
}

fn begin(mesh: &str) -> String {
    format!("# meshd {mesh} begin")
}

fn end(mesh: &str) -> String {
    format!("# meshd {mesh} end")
}

struct Found {
    start: usize,
    end: usize,
    is_behind_unended: bool,
}

/// Finds a mesh's block. Without its second mark, which somebody took, it is our lines behind the first that are left.
fn find(content: &[u8], mesh: &str) -> Option<Found> {
    let (begin, last) = (begin(mesh), end(mesh));
    let mut at = 0;
    let mut found: Option<Found> = None;
    let mut whole = true;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let (start, text) = (at, std::str::from_utf8(line).unwrap_or_default().trim_end_matches(['\n', '\r']));
        at += line.len();
        match &mut found {
            None => {
                let is_behind_unended = text.strip_prefix(&*begin) == Some(UNENDED);
                if text == begin || is_behind_unended {
                    found = Some(Found { start, end: at, is_behind_unended });
                }
            }
            Some(found) if text == last => {
                found.end = at;
                return Some(Found { ..*found });
            }
            // What we write is an address and one name; anything else there is not ours.
            Some(found) => {
                whole &= is_ours(text);
                if whole {
                    found.end = at;
                }
            }
        }
    }
    found
}

fn is_ours(line: &str) -> bool {
    let mut words = line.split(' ');
    let is_address = words.next().is_some_and(|word| word.parse::<IpAddr>().is_ok());
    is_address && words.next().is_some_and(|name| name.contains('.')) && words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(mesh: &str, names: &[&str]) -> HostsBlock {
        let host = |(number, name): (usize, &&str)| {
            (format!("10.77.0.{}", number + 1).parse().unwrap(), format!("{name}.{mesh}"))
        };
        HostsBlock { mesh: mesh.into(), hosts: names.iter().enumerate().map(host).collect() }
    }

    #[test]
    fn a_block_stands_between_its_marks_and_moves_nothing() {
        let file = "127.0.0.1 localhost\n# mine\n";
        let with = block("prod", &["a", "b"]).put(file.as_bytes());
        let text = String::from_utf8(with.clone()).unwrap();
        assert_eq!(text, format!("{file}# meshd prod begin\n10.77.0.1 a.prod\n10.77.0.2 b.prod\n# meshd prod end\n"));
        // Somebody writes behind it; it stays where it is, and so does their line.
        let written = [&with[..], b"192.0.2.1 new"].concat();
        let changed = String::from_utf8(block("prod", &["a"]).put(&written)).unwrap();
        assert_eq!(changed, format!("{file}# meshd prod begin\n10.77.0.1 a.prod\n# meshd prod end\n192.0.2.1 new"));
        assert_eq!(HostsBlock::take_out("prod", changed.as_bytes()), format!("{file}192.0.2.1 new").into_bytes());
    }

    #[test]
    fn meshes_leave_each_other_alone() {
        let both = block("prod", &["a"]).put(&block("prod2", &["x"]).put(b"# top\n"));
        let one = HostsBlock::take_out("prod2", &both);
        assert_eq!(one, block("prod", &["a"]).put(b"# top\n"));
        assert_eq!(HostsBlock::take_out("pro", &both), both);
        assert_eq!(HostsBlock::take_out("prod", &one), b"# top\n");
    }

    #[test]
    fn a_block_that_lost_its_end_takes_our_lines_and_no_others() {
        let cut = b"127.0.0.1 localhost\n# meshd prod begin\n10.77.0.1 a.prod\n192.0.2.1 theirs theirs.example\n";
        let mended = HostsBlock::take_out("prod", cut);
        assert_eq!(mended, b"127.0.0.1 localhost\n192.0.2.1 theirs theirs.example\n");
    }

    proptest! {
        #[test]
        fn what_was_there_comes_back_byte_by_byte(
            content in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            first in 0usize..4,
            second in 0usize..4,
        ) {
            let names = ["a", "b", "c", "d"];
            let once = block("prod", &names[..first]).put(&content);
            let twice = block("prod", &names[..second]).put(&once);
            prop_assert_eq!(&block("prod", &names[..second]).put(&twice), &twice);
            prop_assert_eq!(&twice, &block("prod", &names[..second]).put(&content));
            prop_assert_eq!(HostsBlock::take_out("prod", &twice), content.clone());
            let other = block("other", &["x"]).put(&twice);
            prop_assert_eq!(HostsBlock::take_out("prod", &HostsBlock::take_out("other", &other)), content);
        }
    }
}

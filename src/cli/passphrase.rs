//! Passphrases: from a file, or asked for on the terminal without showing them; never from an argument.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use crate::platform::file;

/// Bytes of a passphrase at most; nobody types more, and a file that has more is the wrong file.
const LIMIT: u64 = 4_096;

/// Returns the first line of a private file.
///
/// # Errors
/// The file cannot be read, is open to others, or has no passphrase in it.
pub fn from_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let bytes = file::read_private(path, LIMIT)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(Failure::failed(format!("{} has no passphrase in its first line", path.display())));
    }
    Ok(Zeroizing::new(line.to_vec()))
}

/// Asks for a passphrase on the terminal.
///
/// # Errors
/// There is no terminal, or the question was broken off.
pub fn ask(question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let no_terminal = |_| {
        Failure::new(
            Exit::Usage,
            "a passphrase is needed and there is no terminal to ask on; give it with --passphrase-file",
        )
    };
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let failed = |error| Failure::failed(format!("cannot use the terminal: {error}"));
    let original = tcgetattr(&terminal).map_err(|error| failed(error.into()))?;
    let _restore = Restore { terminal: terminal.try_clone().map_err(failed)?, original: original.clone() };
    let mut silent = original;
    // Without signals, so that an interrupt comes as a byte here and cannot leave the terminal mute.
    silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    silent.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON);
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|error| failed(error.into()))?;
    terminal.write_all(format!("{question}: ").as_bytes()).map_err(failed)?;
    read_line(&mut terminal)
}

/// Asks twice, for a passphrase that is being chosen.
///
/// # Errors
/// As [`ask`], and where the two differ or are empty.
pub fn choose(question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let first = ask(question)?;
    if first.is_empty() {
        return Err(Failure::failed("the passphrase is empty"));
    }
    if ask("once more")? == first { Ok(first) } else { Err(Failure::failed("the two passphrases differ")) }
}

/// Asks a question that is answered with yes or anything else.
///
/// # Errors
/// There is no terminal.
pub fn confirm(question: &str) -> Result<bool, Failure> {
    let no_terminal = |_| Failure::new(Exit::Usage, "there is no terminal to ask on; say --yes if you mean it");
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let failed = |error| Failure::failed(format!("cannot use the terminal: {error}"));
    terminal.write_all(format!("{question} [yes/no] ").as_bytes()).map_err(failed)?;
    Ok(read_line(&mut terminal)?.as_slice() == b"yes")
}

fn read_line(input: &mut impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // The whole size at once: a growing vector would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(LIMIT as usize));
    let mut byte = Zeroizing::new([0u8]);
    while (line.len() as u64) < LIMIT {
        match input.read(byte.as_mut_slice()) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::failed(format!("cannot read from the terminal: {error}"))),
        }
        match byte[0] {
            b'\n' => break,
            0x03 => return Err(Failure::failed("broken off")),
            other => line.push(other),
        }
    }
    Ok(line)
}

/// Gives the terminal its modes back, however the question ends.
struct Restore {
    terminal: File,
    original: Termios,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // The terminal may be gone, and then there is nothing to restore.
        let _ = tcsetattr(self.terminal.as_fd(), OptionalActions::Flush, &self.original);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_s_first_line_counts_and_it_must_be_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        file::create_new_private(&path, b"correct horse\r\nsecond line\n").unwrap();
        assert_eq!(from_file(&path).unwrap().as_slice(), b"correct horse");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(from_file(&path).unwrap_err().message.contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "\n").unwrap();
        assert!(from_file(&path).unwrap_err().message.contains("no passphrase"));
    }

    #[test]
    fn a_line_ends_at_its_end_and_an_interrupt_breaks_off() {
        assert_eq!(read_line(&mut &b"secret\nrest"[..]).unwrap().as_slice(), b"secret");
        assert_eq!(read_line(&mut &b"secret"[..]).unwrap().as_slice(), b"secret");
        assert!(read_line(&mut &b"sec\x03"[..]).is_err());
        assert_eq!(read_line(&mut &[b'x'; 10_000][..]).unwrap().len() as u64, LIMIT);
    }
}

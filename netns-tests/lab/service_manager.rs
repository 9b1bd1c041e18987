//! What systemd does for a daemon, as far as the daemon can tell: it listens at the socket that `NOTIFY_SOCKET` names, keeps
//! descriptors, and hands them to the next start.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::error::{Context, Result};
use super::host::Host;
use super::look;
use super::process::HostCommand;

/// A service manager of one host. It keeps what it was given until it is dropped.
pub struct ServiceManager {
    host: Host,
    socket: PathBuf,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    messages: Vec<String>,
    kept: BTreeMap<String, OwnedFd>,
}

impl ServiceManager {
    /// Listens for a daemon of the host.
    ///
    /// # Errors
    /// Where there can be no such socket.
    pub fn start(host: &Host) -> Result<ServiceManager> {
        let path = host.dir().join("notify");
        let socket = UnixDatagram::bind(&path).context(path.display())?;
        let heard = Arc::<Mutex<Heard>>::default();
        let listener = Arc::downgrade(&heard);
        socket.set_read_timeout(Some(Duration::from_millis(200))).context("a socket's patience")?;
        let listen = move || {
            while let Some(heard) = listener.upgrade() {
                if let Some((text, descriptors)) = receive(&socket) {
                    lock(&heard).take(text, descriptors);
                }
            }
        };
        thread::Builder::new().spawn(listen).context("a thread")?;
        Ok(ServiceManager { host: host.clone(), socket: path, heard })
    }

    /// Prepares a program that is to start with all that is kept, watched every `watchdog`.
    ///
    /// # Errors
    /// Where the limit of open files is reached.
    pub fn command(&self, program: &std::path::Path, watchdog: Duration) -> Result<HostCommand> {
        let heard = lock(&self.heard);
        let names: Vec<&str> = heard.kept.keys().map(String::as_str).collect();
        let copies: std::io::Result<Vec<OwnedFd>> = heard.kept.values().map(OwnedFd::try_clone).collect();
        // Only the program itself knows its number.
        let script = r#"export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$0" "$@""#;
        let command = self.host.command("sh").args(["-c", script]).arg(program);
        let command = command.env("NOTIFY_SOCKET", &self.socket).env("LISTEN_FDNAMES", names.join(":"));
        let command = command.env("LISTEN_FDS", names.len().to_string());
        let command = command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        Ok(command.descriptors(copies.context("copies of what is kept")?))
    }

    /// What was said so far, in order.
    pub fn messages(&self) -> Vec<String> {
        lock(&self.heard).messages.clone()
    }

    /// How often a message that begins with `what` was heard so far.
    pub fn count(&self, what: &str) -> usize {
        lock(&self.heard).messages.iter().filter(|message| message.starts_with(what)).count()
    }

    /// Waits until a message that begins with `what` was heard more than `before` times.
    ///
    /// # Errors
    /// Where the time runs out.
    pub fn wait_for(&self, what: &str, before: usize, limit: Duration) -> Result<()> {
        look::wait(what, limit, || {
            Ok(match self.count(what) > before {
                true => look::Look::Found(()),
                false => look::Look::NotYet(format!("{:?}", self.messages())),
            })
        })
    }

    /// The names of what is kept.
    pub fn kept(&self) -> Vec<String> {
        lock(&self.heard).kept.keys().cloned().collect()
    }

    /// Closes all that is kept, as when the unit stops for good.
    pub fn discard(&self) {
        lock(&self.heard).kept.clear();
    }
}

impl Heard {
    fn take(&mut self, text: String, descriptors: Vec<OwnedFd>) {
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(str::to_owned)
        };
        if let Some(name) = value("FDNAME") {
            if value("FDSTORE").is_some() {
                // What is kept already stays: a duplicate is the same.
                for descriptor in descriptors {
                    self.kept.entry(name.clone()).or_insert(descriptor);
                }
            } else if value("FDSTOREREMOVE").is_some() {
                self.kept.remove(&name);
            }
        }
        // A barrier's descriptor is closed here, when everything before it is done.
        self.messages.push(text);
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let (mut buffer, mut space) = ([0; 4_096], nix::cmsg_space!([RawFd; 8]));
    let mut pieces = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags).ok()?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these numbers for us.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    let length = message.bytes;
    Some((String::from_utf8_lossy(&buffer[..length]).into_owned(), descriptors))
}

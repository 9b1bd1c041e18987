//! What a service manager is told, and what it keeps: systemd's notification protocol (`sd_notify(3)`) and its store of
//! descriptors (`FDSTORE=1`, handed back as by `sd_listen_fds(3)`).
//!
//! Stored descriptors stay open when the program dies, however it dies. So the kernel keeps the device with its routes, the
//! port, and what comes to both meanwhile. systemd closes them when the unit stops for good.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::time::{ClockId, clock_gettime};

use super::handover::{Handover, is_open};

/// How long a message may wait for room: a manager that reads none is no reason to stand still.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long the manager may take to have done what it was told so far, where that is waited for.
const BARRIER_PATIENCE: u16 = 2_000;
/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// Descriptors taken at most: more than the queues and sockets of any daemon.
const MOST: usize = 1_024;

/// The variables by which descriptors are handed to a process. Another program executed in it must not see them.
pub(super) const LISTEN_VARIABLES: [&str; 3] = ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"];

/// What the stored descriptors are called: the kind, and the place among its kind. A manager keeps no order.
const DEVICE: &str = "meshd-device-";
const SOCKET: &str = "meshd-socket-";

/// The service manager that started this process, and listens.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
}

impl ServiceManager {
    /// The manager that the environment names (`NOTIFY_SOCKET`), if one does.
    ///
    /// # Errors
    /// Where it names one that cannot be reached.
    pub fn of_environment() -> io::Result<Option<Self>> {
        match std::env::var("NOTIFY_SOCKET") {
            Ok(name) => Self::at(&name).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The manager that listens at a path, or at an abstract name behind `@`.
    ///
    /// # Errors
    /// Where nobody does.
    pub fn at(name: &str) -> io::Result<Self> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(ServiceManager { socket })
    }

    /// Says that the program serves, at first or again, and what a person reads of it.
    ///
    /// # Errors
    /// Each of these: what the system says. The manager then knows no more than before.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.tell(&format!("READY=1\nSTATUS={}", line(status)))
    }

    /// Says what a person reads.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.tell(&format!("STATUS={}", line(status)))
    }

    /// Says that the configuration is being read again; [`ready`](Self::ready) ends it.
    pub fn reloading(&self) -> io::Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()))
    }

    /// Says that the program ends.
    pub fn stopping(&self) -> io::Result<()> {
        self.tell("STOPPING=1\nSTATUS=stopping")
    }

    /// Says that the program is well.
    pub fn well(&self) -> io::Result<()> {
        self.tell("WATCHDOG=1")
    }

    /// Has the manager keep these descriptors. What it has already it keeps once.
    ///
    /// Whether one is in error is for the next program to find out (`FDPOLL=0`): a socket is that also where a single
    /// datagram was refused on its way.
    pub fn store(&self, handover: &Handover) -> io::Result<()> {
        for (prefix, descriptors) in [(DEVICE, &handover.device), (SOCKET, &handover.sockets)] {
            for (number, descriptor) in descriptors.iter().enumerate() {
                let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={prefix}{number}");
                self.send(&text, &[descriptor.as_raw_fd()])?;
            }
        }
        Ok(())
    }

    /// Has the manager close what it keeps under the names of as many descriptors, and waits until it has.
    pub fn forget(&self, device: usize, sockets: usize) -> io::Result<()> {
        for (prefix, count) in [(DEVICE, device), (SOCKET, sockets)] {
            (0..count).try_for_each(|number| self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={prefix}{number}")))?;
        }
        self.barrier()
    }

    /// Waits until the manager has done what it was told before.
    fn barrier(&self) -> io::Result<()> {
        let (ours, theirs) = nix::unistd::pipe()?;
        self.send("BARRIER=1", &[theirs.as_raw_fd()])?;
        drop(theirs);
        // It closes its copy when it comes to this message, and then nobody can write any more.
        let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(BARRIER_PATIENCE))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn tell(&self, text: &str) -> io::Result<()> {
        self.send(text, &[])
    }

    fn send(&self, text: &str, descriptors: &[RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[] } else { &rights[..] };
        let pieces = [IoSlice::new(text.as_bytes())];
        sendmsg::<()>(self.socket.as_raw_fd(), &pieces, rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}

/// How long the manager waits for [`ServiceManager::well`] before it ends this process, where it watches at all.
pub fn watchdog() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    watchdog_of(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), std::process::id())
}

fn watchdog_of(time: Option<&str>, whose: Option<&str>, process: u32) -> Option<Duration> {
    if whose.is_some_and(|whose| whose.parse() != Ok(process)) {
        return None;
    }
    let time: u64 = time?.parse().ok()?;
    (time > 0).then(|| Duration::from_micros(time))
}

/// What the manager kept for this process, if it kept something. Later calls take nothing.
///
/// Descriptors under names that are not ours are closed, and of ours what comes behind one that is missing.
pub fn stored() -> Option<Handover> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    let [count, names, whose] = LISTEN_VARIABLES.map(|name| std::env::var(name).unwrap_or_default());
    let names = named(&count, &names, &whose, std::process::id())?;
    let numbers: Vec<RawFd> = (FIRST..).take(names.len()).collect();
    if !numbers.iter().all(|number| is_open(*number)) {
        return None;
    }
    // SAFETY: the numbers differ from each other and are open; the manager says that it made them for this process, and
    // nobody else has looked at them since, because they are taken only once.
    let owned = numbers.iter().map(|number| unsafe { OwnedFd::from_raw_fd(*number) });
    let owned: Vec<OwnedFd> = owned.collect();
    // Programs that are merely started do not get them.
    for descriptor in &owned {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    }
    let (mut device, mut sockets): (Vec<_>, Vec<_>) = Default::default();
    for (name, descriptor) in names.iter().zip(owned) {
        match place(name) {
            Some((DEVICE, number)) => device.push((number, descriptor)),
            Some((_, number)) => sockets.push((number, descriptor)),
            None => {}
        }
    }
    Some(Handover { device: in_order(device), sockets: in_order(sockets), restarts: 0 })
}

/// The names of the descriptors handed over, in their order; nothing where there are none for this process.
fn named<'a>(count: &str, names: &'a str, whose: &str, process: u32) -> Option<Vec<&'a str>> {
    let count: usize = count.parse().ok().filter(|count| (1..=MOST).contains(count))?;
    let names: Vec<&str> = names.split(':').collect();
    (whose.parse() == Ok(process) && names.len() == count).then_some(names)
}

/// Which of its kind a name of ours stands for.
fn place(name: &str) -> Option<(&'static str, usize)> {
    [DEVICE, SOCKET].into_iter().find_map(|prefix| Some((prefix, name.strip_prefix(prefix)?.parse().ok()?)))
}

/// Puts descriptors in their order, up to the first that is missing or there twice.
fn in_order<T>(mut placed: Vec<(usize, T)>) -> Vec<T> {
    placed.sort_by_key(|(number, _)| *number);
    let in_place = placed.into_iter().enumerate().take_while(|(place, (number, _))| place == number);
    in_place.map(|(_, (_, item))| item).collect()
}

/// The first line of a text: a message has one line for each assignment.
fn line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::IoSliceMut;

    /// A manager of a test's own, at an abstract name that no other test has.
    fn manager(name: &str) -> (UnixDatagram, ServiceManager) {
        let name = format!("meshd-test-{}-{name}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        (socket, ServiceManager::at(&format!("@{name}")).unwrap())
    }

    fn received(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let (mut buffer, mut space) = ([0; 512], nix::cmsg_space!([RawFd; 4]));
        let mut pieces = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags).unwrap();
        let mut descriptors = Vec::new();
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: the kernel has just made these numbers for us.
                descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        let length = message.bytes;
        (String::from_utf8_lossy(&buffer[..length]).into_owned(), descriptors)
    }

    #[test]
    fn a_manager_is_told_line_by_line() {
        let (socket, manager) = manager("told");
        manager.ready("node a: 2 of 3 links are up\nREADY=0").unwrap();
        assert_eq!(received(&socket).0, "READY=1\nSTATUS=node a: 2 of 3 links are up");
        manager.well().unwrap();
        assert_eq!(received(&socket).0, "WATCHDOG=1");
        manager.reloading().unwrap();
        let told = received(&socket).0;
        let time = told.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0, "{told}");
        manager.stopping().unwrap();
        assert!(received(&socket).0.starts_with("STOPPING=1\n"));
    }

    #[test]
    fn a_manager_has_the_descriptors_in_their_places_and_forgets_them_when_told() {
        let (socket, manager) = manager("stores");
        let (one, other) = UnixDatagram::pair().unwrap();
        let handover = Handover::of([one.as_fd(), other.as_fd()], [other.as_fd()], 0).unwrap();
        manager.store(&handover).unwrap();
        for name in ["meshd-device-0", "meshd-device-1", "meshd-socket-0"] {
            let (told, descriptors) = received(&socket);
            assert_eq!(told, format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"));
            assert_eq!(descriptors.len(), 1);
        }
        let forgetting = std::thread::spawn(move || manager.forget(1, 1));
        for name in ["meshd-device-0", "meshd-socket-0"] {
            assert_eq!(received(&socket).0, format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        }
        let (told, barrier) = received(&socket);
        assert!(!forgetting.is_finished(), "it waits until the manager is done");
        assert_eq!((told.as_str(), barrier.len()), ("BARRIER=1", 1));
        drop(barrier);
        forgetting.join().unwrap().unwrap();
    }

    #[test]
    fn only_what_was_made_for_this_process_is_taken() {
        assert_eq!(named("2", "meshd-device-0:meshd-socket-0", "7", 7).map(|names| names.len()), Some(2));
        for (count, names, whose) in
            [("2", "a:b", "8"), ("2", "a", "7"), ("0", "", "7"), ("", "", ""), ("x", "a", "7"), ("9999", "a", "7")]
        {
            assert_eq!(named(count, names, whose, 7), None, "{count} {names} {whose}");
        }
        assert_eq!(place("meshd-device-12"), Some((DEVICE, 12)));
        assert_eq!(place("meshd-socket-0"), Some((SOCKET, 0)));
        assert_eq!((place("stored"), place("meshd-socket-"), place("meshd-device--1")), (None, None, None));
    }

    #[test]
    fn what_is_behind_a_gap_is_not_taken() {
        assert_eq!(in_order(vec![(2, 'c'), (0, 'a'), (1, 'b')]), ['a', 'b', 'c']);
        assert_eq!(in_order(vec![(2, 'c'), (0, 'a')]), ['a']);
        assert_eq!(in_order(vec![(0, 'a'), (0, 'c'), (1, 'b')]), ['a']);
    }

    #[test]
    fn a_watchdog_watches_one_process() {
        let time = Some(Duration::from_secs(10));
        assert_eq!(watchdog_of(Some("10000000"), Some("7"), 7), time);
        assert_eq!(watchdog_of(Some("10000000"), None, 7), time);
        assert_eq!(watchdog_of(Some("10000000"), Some("8"), 7), None);
        assert_eq!((watchdog_of(Some("0"), None, 7), watchdog_of(None, None, 7)), (None, None));
    }
}

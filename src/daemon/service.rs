//! What the service manager is told: that the daemon serves, reads its configuration again or stops, and that its threads
//! turn. The manager also keeps the device and the port open while there is no daemon.

use std::time::Duration;

use super::driver::Driver;
use super::ports::LANES;
use crate::control::probe::LinkState;
use crate::platform::clock;
use crate::platform::handover::Handover;
use crate::platform::notify::{self, ServiceManager};
use crate::platform::steering::MOST_SHARDS;
use crate::time::Instant;

/// How often the manager hears that all is well, in its patience: a message or two may be late, or lost.
const FEEDS: u32 = 4;
/// How often an idle data thread turns between two looks at it.
const TURNS: u32 = 2;
/// The shortest time between two new status lines: nobody reads faster, and each wakes the manager.
const STATUS_PAUSE: Duration = Duration::from_secs(5);

/// The service manager, and what it was told last.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// `None` where nobody listens.
    manager: Option<ServiceManager>,
    /// How often it wants to hear that all is well; `None`: never.
    interval: Option<Duration>,
    feed_due: Option<Instant>,
    /// The data threads' turns at the last look.
    turns: Vec<u64>,
    /// It was said that a thread stands still.
    complained: bool,
    status: String,
    status_due: Option<Instant>,
    /// It keeps the device and the port.
    keeps: bool,
}

impl Service {
    /// Finds out who started the daemon. A manager that cannot be reached is none.
    pub(super) fn find() -> Self {
        let manager = ServiceManager::of_environment().unwrap_or_else(|error| {
            tracing::warn!("the service manager that NOTIFY_SOCKET names cannot be told anything: {error}");
            None
        });
        let interval = notify::watchdog().filter(|_| manager.is_some()).map(|patience| patience / FEEDS);
        Service { manager, interval, ..Service::default() }
    }

    /// How long a data thread may sleep, so that an idle one is not taken for one that hangs; `None`: without end.
    pub(super) fn longest_sleep(&self) -> Option<Duration> {
        self.interval.map(|interval| interval / TURNS)
    }

    /// Has the manager keep the device and the port.
    pub(super) fn store(&mut self, handover: &Handover) {
        let Some(manager) = &self.manager else { return };
        match manager.store(handover) {
            Ok(()) => self.keeps = true,
            Err(error) => tracing::warn!("the service manager does not keep the device over a crash: {error}"),
        }
    }

    /// Has the manager close what it kept, whatever it is: it is of no use any more.
    pub(super) fn forget(&self) {
        let shards = usize::from(MOST_SHARDS);
        if let Some(manager) = &self.manager
            && let Err(error) = manager.forget(shards * usize::from(LANES), shards)
        {
            tracing::warn!("the service manager does not let go of the former device and port: {error}");
        }
    }

    /// Tells whether the manager was asked to keep the device and the port.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// Says that the daemon serves, first or again.
    pub(super) fn ready(&mut self, status: String, now: Instant) {
        self.tell(|manager| manager.ready(&status));
        self.feed_due = self.interval.map(|interval| now + interval);
        self.status_due = Some(now + STATUS_PAUSE);
        self.status = status;
    }

    /// Says that the configuration is being read again.
    pub(super) fn reloading(&self) {
        self.tell(ServiceManager::reloading);
    }

    /// Says that the daemon ends.
    pub(super) fn stopping(&self) {
        self.tell(ServiceManager::stopping);
    }

    /// When the manager is to hear something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // The status waits for whatever turns the daemon anyway.
        self.feed_due
    }

    /// Tells the manager that all is well, if every data thread has turned since the last look.
    fn feed(&mut self, turns: impl FnOnce() -> Vec<u64>, now: Instant) {
        let (Some(due), Some(interval)) = (self.feed_due, self.interval) else { return };
        if due > now {
            return;
        }
        let turns = turns();
        self.feed_due = Some(now + interval);
        let still = turns.iter().zip(&self.turns).any(|(now, before)| now == before);
        self.turns = turns;
        if still {
            if !self.complained {
                tracing::error!("a data thread stands still: the service manager will restart the daemon");
            }
            self.complained = true;
            return;
        }
        self.complained = false;
        self.tell(ServiceManager::well);
    }

    fn is_status_due(&self, now: Instant) -> bool {
        self.manager.is_some() && self.status_due.is_some_and(|due| due <= now)
    }

    fn set_status(&mut self, status: String, now: Instant) {
        self.status_due = Some(now + STATUS_PAUSE);
        if status != self.status {
            self.tell(|manager| manager.status(&status));
            self.status = status;
        }
    }

    fn tell(&self, say: impl FnOnce(&ServiceManager) -> std::io::Result<()>) {
        if let Some(manager) = &self.manager
            && let Err(error) = say(manager)
        {
            tracing::debug!("the service manager was not told: {error}");
        }
    }
}

impl Driver {
    /// Says that the daemon serves.
    pub(super) fn report_ready(&mut self) {
        let status = self.status_line();
        self.service.ready(status, clock::now());
    }

    /// Tells the service manager what it is to hear by now.
    pub(super) fn report_health(&mut self, now: Instant) {
        if let Some(dataplane) = &self.dataplane {
            self.service.feed(|| dataplane.turns(), now);
        }
        if self.service.is_status_due(now) {
            let status = self.status_line();
            self.service.set_status(status, now);
        }
    }

    /// What `systemctl status` shows of the daemon.
    fn status_line(&self) -> String {
        let peers = self.engine.view(clock::now()).peers;
        let up = peers.iter().filter(|peer| peer.state == LinkState::Up).count();
        let certificate = self.engine.certificate().certificate();
        let mesh = &self.engine.membership().anchor().mesh_name;
        format!("{} in {mesh}: {up} of {} links are up", certificate.name, peers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn the_manager_hears_that_all_is_well_only_while_every_thread_turns() {
        let name = format!("meshd-test-{}-service", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let heard = || {
            let mut buffer = [0; 256];
            socket.recv(&mut buffer).ok().map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let manager = Some(ServiceManager::at(&format!("@{name}")).unwrap());
        let interval = Some(Duration::from_secs(2));
        let mut service = Service { manager, interval, ..Service::default() };
        assert_eq!(service.longest_sleep(), Some(Duration::from_secs(1)));
        let at = |secs: u64| Instant::from_millis(1_000 * secs);
        service.feed(|| vec![1, 1], at(1));
        assert_eq!(heard(), None, "nothing before the daemon serves");
        service.ready("a in example: 0 of 1 links are up".into(), at(2));
        assert!(heard().unwrap().starts_with("READY=1\n"));
        let well = Some("WATCHDOG=1".to_owned());
        service.feed(|| vec![5, 5], at(3));
        assert_eq!((heard(), service.deadline()), (None, Some(at(4))), "not due yet");
        service.feed(|| vec![5, 5], at(4));
        assert_eq!(heard(), well);
        service.feed(|| vec![6, 5], at(6));
        assert_eq!(heard(), None, "the second thread stands still");
        service.feed(|| vec![7, 6], at(8));
        assert_eq!(heard(), well, "it has caught up");
        service.feed(|| vec![8, 6], at(10));
        service.feed(|| vec![9, 6], at(12));
        assert_eq!(heard(), None);
        assert_eq!((service.is_status_due(at(6)), service.is_status_due(at(7))), (false, true), "not too often");
        service.set_status("a in example: 1 of 1 links are up".into(), at(8));
        assert_eq!(heard().as_deref(), Some("STATUS=a in example: 1 of 1 links are up"));
        service.set_status("a in example: 1 of 1 links are up".into(), at(20));
        assert_eq!(heard(), None, "nothing new");
    }
}

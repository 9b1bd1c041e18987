//! Keeps the names in the host's resolver, for as long as they are wanted there.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::handed::Handed;
use super::service::{Order, Shared};
use super::wiring::{Way, Wiring, undo};
use crate::platform::file;

/// Time between two looks whether all is still as it was: others write `/etc/hosts`, too.
const CALM: Duration = Duration::from_secs(20);
/// The same while something is wrong.
const RETRY: Duration = Duration::from_secs(3);
/// At least so long between two changes: a thousand nodes that start at once are some changes, not a thousand.
const SETTLE: Duration = Duration::from_millis(200);
/// How long the host's resolver may take over a name.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the resolver is to know, and who tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wired {
    /// What it is to know.
    pub wiring: Wiring,
    /// Where it is handed to root; `None` where this process may do it itself.
    pub handed: Option<PathBuf>,
}

/// Whether the host's resolver knows the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WiringStanding {
    /// The way that was taken; `None` where none is wanted, or none could be.
    pub way: Option<Way>,
    /// Why they are not known; `None` where they are.
    pub problem: Option<String>,
}

impl Wired {
    async fn apply(&self) -> Result<Way, String> {
        let Some(place) = &self.handed else { return self.wiring.apply().await.map_err(|error| error.to_string()) };
        let handed = Handed { server: self.wiring.server, hosts: self.wiring.hosts.clone() }.to_text();
        // Only what changed: root looks at each change.
        if file::read(place, Handed::LIMIT).is_ok_and(|there| there == handed.as_bytes()) {
            return Ok(self.wiring.way());
        }
        file::atomic_write(place, handed.as_bytes(), 0o644).map_err(|error| error.to_string())?;
        Ok(self.wiring.way())
    }

    async fn undo(&self) -> Result<(), String> {
        match &self.handed {
            None => undo(&self.wiring.mesh).await.map_err(|error| error.to_string()),
            // Root sees that it is gone.
            Some(place) => file::remove(place).map_err(|error| error.to_string()),
        }
    }

    /// Whether doing it again could change anything.
    fn differs(&self, before: &Wired) -> bool {
        match self.wiring.way() {
            Way::Hosts => self != before,
            // Which names there are is asked for, not told.
            _ => {
                let hosts = before.wiring.hosts.clone();
                Wired { wiring: Wiring { hosts, ..self.wiring.clone() }, ..self.clone() } != *before
            }
        }
    }

    /// Whether the host's resolver knows this node.
    async fn is_in_force(&self) -> Result<(), String> {
        let Some((address, name)) = self.wiring.hosts.first() else { return Ok(()) };
        let own: Vec<IpAddr> =
            self.wiring.hosts.iter().filter(|(_, other)| other == name).map(|(address, _)| *address).collect();
        let looked = timeout(PATIENCE, tokio::net::lookup_host((name.as_str(), 0))).await;
        let found = looked.map_err(|_| format!("the host's resolver says nothing of {name}"))?;
        let mut found = found.map_err(|_| format!("the host's resolver does not know {name}"))?;
        match found.all(|found| own.contains(&found.ip())) {
            true => Ok(()),
            false => Err(format!("the host's resolver has other addresses for {name} than {address}")),
        }
    }
}

/// Does what orders say of the resolver, until they end. Where the last one wants nothing, everything is undone.
pub(super) async fn keep(mut orders: watch::Receiver<Order>, shared: &Shared) {
    let mut done: Option<Wired> = None;
    loop {
        // In this order: what is ordered last is ordered before the end.
        let ended = orders.has_changed().is_err();
        let wanted = orders.borrow_and_update().wired.clone();
        if wanted.is_none()
            && let Some(before) = done.take()
            && let Err(why) = before.undo().await
        {
            tracing::warn!("names stay in the host's resolver: {why}");
        }
        if ended {
            return;
        }
        let Some(wanted) = wanted else {
            shared.tell_wiring(WiringStanding::default());
            // An end is seen above.
            let _ = orders.changed().await;
            continue;
        };
        let was_good = shared.wiring().problem.is_none();
        let again = !was_good || wanted.wiring.way() == Way::Hosts;
        let applied = match &done {
            Some(before) if !again && !wanted.differs(before) => Ok(wanted.wiring.way()),
            _ => wanted.apply().await,
        };
        done = Some(wanted.clone());
        let mut news = orders.clone();
        news.mark_unchanged();
        let problem = match &applied {
            Err(why) => Some(why.clone()),
            // What is ordered meanwhile does not wait for a resolver that says nothing.
            Ok(_) => tokio::select! {
                looked = wanted.is_in_force() => looked.err(),
                _ = news.changed() => shared.wiring().problem,
            },
        };
        if let Some(why) = problem.as_ref().filter(|_| was_good) {
            tracing::warn!("names.resolver: {why}");
        }
        let pause = if problem.is_some() { RETRY } else { CALM };
        shared.tell_wiring(WiringStanding { way: applied.ok(), problem });
        tokio::select! {
            () = sleep(SETTLE) => {}
            () = closed(orders.clone()) => {}
        }
        tokio::select! {
            _ = orders.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Waits until nobody orders anything any more.
async fn closed(mut orders: watch::Receiver<Order>) {
    while orders.changed().await.is_ok() {}
}

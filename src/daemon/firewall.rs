//! What the kernel's packet filter has of ours: made at the start, made again when somebody else took it, gone at the stop.

use std::net::SocketAddr;
use std::time::Duration;

use super::driver::{Driver, REPAIR_PAUSE};
use super::lockdown::PublicLockdown;
use super::startup::StartError;
use crate::config::Config;
use crate::identity::Certificate;
use crate::platform::clock;
use crate::platform::nft_watch::NftWatch;
use crate::platform::nftables::{Nft, NftError};
use crate::policy::{self, Addresses, Purpose};
use crate::time::Instant;

/// How long a packet filter that refuses is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// A table that is to be there, whole.
pub(super) struct Kept {
    name: String,
    pub(super) script: String,
    /// How the kernel's copy was printed when it was made.
    printed: Option<String>,
}

/// Our tables.
pub(super) struct Firewall {
    nft: Option<Nft>,
    watch: Option<NftWatch>,
    addresses: Option<Kept>,
    pub(super) lockdown: PublicLockdown,
    /// When to look at them.
    due: Option<Instant>,
    looked: Option<Instant>,
    /// What the packet filter refused, for the status.
    failure: Option<String>,
}

impl Firewall {
    /// Finds what this host has for it; nothing is changed yet.
    ///
    /// # Errors
    /// A lock-down or masquerading is wanted, and this host cannot do it.
    pub(super) fn find(
        config: &Config,
        interface: &str,
        certificate: &Certificate,
        listen: SocketAddr,
        now: Instant,
    ) -> Result<Self, StartError> {
        let lockdown = PublicLockdown::load(config, interface, listen.port());
        let nft = Nft::find();
        if lockdown.is_needed(config) {
            fit("[lockdown]", interface).map_err(StartError::Lockdown)?;
        }
        if config.gateway.masquerade {
            fit("gateway.masquerade", interface).map_err(StartError::Lockdown)?;
        }
        if nft.is_none() {
            tracing::warn!(
                "this host has no `nft` (package {}): packets for the mesh's addresses that arrive on other interfaces are \
                 not dropped",
                Nft::PACKAGE
            );
        }
        let mut failure = None;
        let addresses = match policy::is_nameable(interface) {
            true => Some(addresses(config, interface, certificate, listen)),
            false => {
                failure =
                    Some(format!("nftables cannot name the interface `{interface}`; choose another interface.name"));
                None
            }
        };
        let due = nft.as_ref().map(|_| now);
        Ok(Firewall { due, nft, watch: None, addresses, lockdown, looked: None, failure })
    }

    /// Waits until somebody changed our tables. Without a packet filter, for ever.
    pub(super) async fn changed(&mut self) {
        let Some(watch) = &mut self.watch else { return std::future::pending().await };
        if let Err(error) = watch.next().await {
            tracing::warn!("changes to the packet filter are not told any more: {error}");
            // A look starts it again.
            self.watch = None;
        }
    }

    /// Has the tables looked at: at once, or a while after the last look, so that a quarrel with another program costs both
    /// little.
    pub(super) fn look(&mut self, now: Instant) {
        let due = self.looked.map_or(now, |looked| now.max(looked + REPAIR_PAUSE));
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Puts the first look off: a planned restart has left the tables as they were.
    pub(super) fn put_off(&mut self, until: Instant) {
        self.due = self.due.map(|_| until);
    }

    /// When the tables are looked at next, or something else is to be done about them.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        [self.due, self.lockdown.next_deadline(now)].into_iter().flatten().min()
    }

    /// The program, where this host has it.
    pub(super) fn nft(&self) -> Option<&Nft> {
        self.nft.as_ref()
    }

    /// What the packet filter refused.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Brings the tables to what they should be.
    async fn keep(&mut self, config: &Config, interface: &str, now: Instant) {
        self.due = None;
        let Some(nft) = self.nft.clone() else { return };
        if self.watch.is_none() {
            let names = [Purpose::Addresses, Purpose::Lockdown].map(|purpose| purpose.table(interface));
            match NftWatch::start(names.into()) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => tracing::warn!("changes to the packet filter are not told: {error}"),
            }
        }
        self.looked = Some(now);
        let closed = self.lockdown.keep(&nft, config, now).await;
        let addresses = match &mut self.addresses {
            Some(kept) => kept.restore(&nft).await,
            None => Ok(()),
        };
        match closed.and(addresses) {
            // An interface that rules cannot name is told for good.
            Ok(()) if self.addresses.is_none() => {}
            Ok(()) => self.failure = None,
            Err(error) => {
                let failure = error.to_string();
                if self.failure.as_ref() != Some(&failure) {
                    tracing::warn!("packet filter: {failure}");
                }
                self.failure = Some(failure);
                self.due = Some(now + RETRY);
            }
        }
        // A look once in a while where nobody tells.
        if self.watch.is_none() {
            self.due.get_or_insert(now + RETRY);
        }
    }

    /// Takes the tables back that are of no use without the daemon.
    async fn remove(&mut self) {
        let (Some(nft), Some(kept)) = (&self.nft, &self.addresses) else { return };
        if let Err(error) = nft.apply(&policy::removal(&kept.name)).await {
            tracing::warn!("cannot take back table inet {}: {error}", kept.name);
        }
    }
}

impl Kept {
    pub(super) fn new(name: String, script: String) -> Self {
        Kept { name, script, printed: None }
    }

    /// Makes the table, unless it is as it was made.
    pub(super) async fn restore(&mut self, nft: &Nft) -> Result<(), NftError> {
        if let Some(printed) = &self.printed {
            if nft.table(&self.name).await?.as_ref() == Some(printed) {
                return Ok(());
            }
            tracing::warn!("packet filter: somebody changed table inet {}: it is made again", self.name);
        }
        nft.apply(&self.script).await?;
        self.printed = nft.table(&self.name).await?;
        Ok(())
    }
}

fn addresses(config: &Config, interface: &str, certificate: &Certificate, listen: SocketAddr) -> Kept {
    let addresses = Addresses {
        interface: interface.to_owned(),
        address_v4: certificate.address_v4,
        address_v6: certificate.address_v6,
        overlay_v4: certificate.overlay_v4,
        overlay_v6: certificate.overlay_v6,
        listen,
        masquerade: config.gateway.masquerade,
    };
    Kept::new(addresses.table(), addresses.script())
}

/// Whether this host can have rules that `what` of the configuration asks for; else why not.
pub(super) fn fit(what: &str, interface: &str) -> Result<(), String> {
    if Nft::find().is_none() {
        return Err(format!("{what} needs the program `nft`: apt-get install {}", Nft::PACKAGE));
    }
    if !policy::is_nameable(interface) {
        return Err(format!("{what}: nftables cannot name the interface `{interface}`; choose another interface.name"));
    }
    Ok(())
}

/// Removes the tables that a crashed predecessor left in this network namespace; returns how many. A lock-down stays.
pub(super) async fn cleanup() -> Result<usize, NftError> {
    let Some(nft) = Nft::find() else { return Ok(0) };
    let mut tables = nft.tables().await?;
    tables.retain(|table| table.starts_with(Purpose::Addresses.prefix()));
    let script: String = tables.iter().map(|table| policy::removal(table)).collect();
    nft.apply(&script).await?;
    Ok(tables.len())
}

impl Driver {
    /// Brings our tables of the packet filter to what they should be.
    pub(super) async fn keep_firewall(&mut self) {
        self.firewall.keep(&self.config, &self.interface, clock::now()).await;
    }

    /// Makes the table of addresses anew where a reload changed it.
    pub(super) fn take_gateway(&mut self) {
        let certificate = self.engine.certificate().certificate();
        let wanted = addresses(&self.config, &self.interface, certificate, self.bound);
        if self.firewall.addresses.as_ref().is_some_and(|kept| kept.script != wanted.script) {
            self.firewall.addresses = Some(wanted);
            self.firewall.due = self.firewall.nft.as_ref().map(|_| clock::now());
        }
    }

    /// Ends what must not outlive this program.
    pub(super) async fn end_trial(&mut self) {
        self.firewall.lockdown.end_trial().await;
    }

    /// Takes back what is of no use without the daemon.
    pub(super) async fn remove_firewall(&mut self) {
        self.firewall.remove().await;
    }
}

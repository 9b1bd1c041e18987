//! The lock-down of the host's public side: tried in a table that dies with this process, confirmed into a file that is
//! loaded at boot, lifted on request alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::backend::call;
use super::driver::{Command, Driver};
use super::firewall::{Firewall, Kept};
use crate::api::{
    Answer, ApiError, ErrorKind, Gravity, LockdownInfo, LockdownPhase, LockdownTrialRequest, Problem, SCHEMA,
};
use crate::config::{Config, Lockdown, Opening};
use crate::platform::clock;
use crate::platform::file;
use crate::platform::nftables::{Held, Nft, NftError};
use crate::policy::{self, PublicSide, Purpose};
use crate::time::Instant;

/// Bytes of the file of confirmed rules at most: each opening is named, and is two rules of less than 200 bytes.
const LIMIT: u64 = 256 << 10;

/// A confirmed lock-down.
struct Confirmed {
    rules: PublicSide,
    kept: Kept,
}

/// Rules on trial.
struct Trial {
    rules: PublicSide,
    held: Held,
    ends: Instant,
}

/// What an operator asked for.
enum Wish {
    Trial(Duration),
    Confirm,
    Lift,
}

/// Where an outcome is told.
type Outcome = oneshot::Sender<Result<(), String>>;

/// What is closed, and what is about to be.
pub(super) struct PublicLockdown {
    /// The file of confirmed rules.
    file: PathBuf,
    interface: String,
    port: u16,
    confirmed: Option<Confirmed>,
    trial: Option<Trial>,
    wish: Option<(Wish, Option<Outcome>)>,
    /// What went wrong without anybody waiting for it.
    failure: Option<String>,
}

impl PublicLockdown {
    /// Takes what was confirmed before this start.
    pub(super) fn load(config: &Config, interface: &str, port: u16) -> Self {
        let file = config.files.lockdown_path();
        let mut lockdown = PublicLockdown {
            file,
            interface: interface.to_owned(),
            port,
            confirmed: None,
            trial: None,
            wish: None,
            failure: None,
        };
        match read(&lockdown.file, port) {
            Ok(Some(mut rules)) => {
                // The interface and the port may be others since.
                let before = std::mem::replace(&mut rules.interface, interface.to_owned());
                let mut kept = Kept::new(rules.table(Purpose::Lockdown), rules.script());
                if before != interface {
                    kept.script.insert_str(0, &policy::lift(&before));
                }
                if let Err(error) = file::atomic_write(&lockdown.file, rules.to_file().as_bytes(), 0o600) {
                    tracing::warn!("{error}");
                }
                lockdown.confirmed = Some(Confirmed { rules, kept });
            }
            Ok(None) => {}
            Err(why) => lockdown.failure = Some(format!("{}: {why}", lockdown.file.display())),
        }
        lockdown
    }

    /// Whether this node cannot do without a packet filter.
    pub(super) fn is_needed(&self, config: &Config) -> bool {
        config.lockdown.is_some() || self.confirmed.is_some()
    }

    /// When something is to be done.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        match &self.wish {
            Some(_) => Some(now),
            None => self.trial.as_ref().map(|trial| trial.ends),
        }
    }

    /// Does what was asked for, ends a trial whose time is over, and keeps the confirmed rules.
    pub(super) async fn keep(&mut self, nft: &Nft, config: &Config, now: Instant) -> Result<(), NftError> {
        if self.trial.as_ref().is_some_and(|trial| trial.ends <= now) {
            self.end_trial().await;
            tracing::warn!("lock-down: nobody confirmed it, and its trial is over");
        }
        if let Some((wish, outcome)) = self.wish.take() {
            let done = match wish {
                Wish::Trial(length) => self.start_trial(nft, config.lockdown.as_ref(), length).await,
                Wish::Confirm => self.confirm(nft).await,
                Wish::Lift => self.lift(nft).await,
            };
            match outcome {
                // Whoever asked may have gone.
                Some(outcome) => drop(outcome.send(done)),
                None => self.failure = done.err().inspect(|why| tracing::error!("lock-down: {why}")),
            }
        }
        match &mut self.confirmed {
            Some(confirmed) => confirmed.kept.restore(nft).await,
            None => Ok(()),
        }
    }

    async fn start_trial(&mut self, nft: &Nft, lockdown: Option<&Lockdown>, length: Duration) -> Result<(), String> {
        let lockdown = lockdown.ok_or("the configuration has no [lockdown]")?;
        self.end_trial().await;
        let rules = self.rules(lockdown);
        let held = nft.hold(&rules.table(Purpose::Trial), &rules.trial()).await.map_err(|error| error.to_string())?;
        tracing::info!("lock-down: on trial for {} s", length.as_secs_f32());
        self.trial = Some(Trial { rules, held, ends: clock::now() + length });
        self.failure = None;
        Ok(())
    }

    async fn confirm(&mut self, nft: &Nft) -> Result<(), String> {
        let trial = self.trial.take().ok_or("there is no trial: `meshctl lockdown trial` starts one")?;
        let rules = trial.rules.clone();
        let mut kept = Kept::new(rules.table(Purpose::Lockdown), rules.script());
        // The file first: what is in force and would not be after a boot is worse than the other way about.
        let done = match file::atomic_write(&self.file, rules.to_file().as_bytes(), 0o600) {
            Ok(()) => kept.restore(nft).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = done {
            let before = self.confirmed.as_ref().map(|confirmed| confirmed.rules.to_file());
            let _ = match before {
                Some(text) => file::atomic_write(&self.file, text.as_bytes(), 0o600),
                None => file::remove(&self.file),
            };
            self.trial = Some(trial);
            return Err(format!("{why}; the trial goes on"));
        }
        self.confirmed = Some(Confirmed { rules, kept });
        // Its table goes once the other is there, so that nothing is open in between.
        trial.held.release().await;
        tracing::info!("lock-down: confirmed");
        self.failure = None;
        Ok(())
    }

    async fn lift(&mut self, nft: &Nft) -> Result<(), String> {
        self.end_trial().await;
        nft.apply(&policy::lift(&self.interface)).await.map_err(|error| error.to_string())?;
        self.confirmed = None;
        file::remove(&self.file).map_err(|error| error.to_string())?;
        tracing::info!("lock-down: lifted");
        self.failure = None;
        Ok(())
    }

    /// Ends a trial, if there is one.
    pub(super) async fn end_trial(&mut self) {
        if let Some(trial) = self.trial.take() {
            trial.held.release().await;
        }
    }

    fn rules(&self, lockdown: &Lockdown) -> PublicSide {
        PublicSide { interface: self.interface.clone(), port: self.port, allow: lockdown.allow.clone() }
    }

    /// After a reload: rules that were confirmed once are tried in their new form.
    fn take(&mut self, config: &Config) {
        let Some(lockdown) = &config.lockdown else { return };
        let differs = |rules: &PublicSide| rules.allow != lockdown.allow;
        if self.confirmed.as_ref().is_some_and(|confirmed| differs(&confirmed.rules)) {
            self.wish = Some((Wish::Trial(Duration::from_secs_f64(LockdownTrialRequest::SECONDS)), None));
        }
    }

    fn phase(&self, config: &Config) -> LockdownPhase {
        let configured = config.lockdown.as_ref().map(|lockdown| &lockdown.allow);
        match (&self.trial, &self.confirmed, configured) {
            (Some(_), ..) => LockdownPhase::Trial,
            (None, None, None) => LockdownPhase::Off,
            (None, None, Some(_)) => LockdownPhase::Open,
            (None, Some(confirmed), Some(allow)) if *allow == confirmed.rules.allow => LockdownPhase::Confirmed,
            (None, Some(_), _) => LockdownPhase::Outdated,
        }
    }

    /// What an operator should know.
    pub(super) fn problem(&self, config: &Config) -> Option<Problem> {
        let problem = |gravity, message: String, advice: &str| Problem {
            gravity,
            kind: "lockdown".into(),
            peer: None,
            message,
            advice: advice.into(),
            since: None,
        };
        if let Some(why) = &self.failure {
            return Some(problem(
                Gravity::Critical,
                format!("lock-down: {why}"),
                "mend it; then meshctl lockdown trial",
            ));
        }
        match self.phase(config) {
            LockdownPhase::Off | LockdownPhase::Confirmed => None,
            LockdownPhase::Trial => {
                let message = "the lock-down is on trial and vanishes unless it is confirmed";
                Some(problem(Gravity::Notice, message.into(), "meshctl lockdown confirm"))
            }
            LockdownPhase::Open => {
                let message = "[lockdown] is configured, and nothing is closed yet";
                Some(problem(Gravity::Warning, message.into(), "meshctl lockdown plan; then trial, and confirm"))
            }
            LockdownPhase::Outdated => {
                let message = "the lock-down in force is one confirmed earlier, not what [lockdown] says now";
                Some(problem(
                    Gravity::Warning,
                    message.into(),
                    "meshctl lockdown trial and confirm, or meshctl lockdown off",
                ))
            }
        }
    }

    fn info(&self, config: &Config, now: Instant) -> LockdownInfo {
        let texts = |allow: &[Opening]| allow.iter().map(ToString::to_string).collect();
        let trial = self.trial.as_ref().map(|trial| trial.rules.table(Purpose::Trial));
        let confirmed = self.confirmed.as_ref().map(|confirmed| confirmed.rules.table(Purpose::Lockdown));
        LockdownInfo {
            schema: SCHEMA,
            phase: self.phase(config),
            configured: config.lockdown.as_ref().map(|lockdown| texts(&lockdown.allow)),
            confirmed: self.confirmed.as_ref().map(|confirmed| texts(&confirmed.rules.allow)),
            trial_ends_seconds: self.trial.as_ref().map(|trial| trial.ends.saturating_since(now).as_secs_f64()),
            tables: trial.into_iter().chain(confirmed).collect(),
            closed_packets: 0,
            failure: self.failure.clone(),
        }
    }
}

fn read(path: &Path, port: u16) -> Result<Option<PublicSide>, String> {
    let bytes = match file::read(path, LIMIT) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let text = String::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    PublicSide::from_file(&text, port).map(Some)
}

impl Driver {
    /// Tries rules anew that a reload changed.
    pub(super) fn take_lockdown(&mut self) {
        self.firewall.lockdown.take(&self.config);
    }

    fn wish(&mut self, wish: Wish) -> Answer<oneshot::Receiver<Result<(), String>>> {
        if self.firewall.nft().is_none() {
            let message = "this host has no `nft`, which closes its public side";
            return Err(ApiError::new(ErrorKind::Conflict, message).advise("apt-get install nftables"));
        }
        let (outcome, told) = oneshot::channel();
        self.firewall.lockdown.wish = Some((wish, Some(outcome)));
        Ok(told)
    }
}

/// What is closed, with what was counted.
pub(super) async fn info(commands: &mpsc::Sender<Command>) -> Answer<LockdownInfo> {
    let look = |driver: &mut Driver| {
        let Firewall { lockdown, .. } = &driver.firewall;
        (lockdown.info(&driver.config, clock::now()), driver.firewall.nft().cloned())
    };
    let (mut info, nft) = call(commands, look).await?;
    if let Some(nft) = nft {
        for table in &info.tables {
            // One that went meanwhile counts nothing.
            info.closed_packets += nft.dropped(table).await.unwrap_or(0);
        }
    }
    Ok(info)
}

async fn done(commands: &mpsc::Sender<Command>, wish: Wish) -> Answer<LockdownInfo> {
    let told = call(commands, move |driver| driver.wish(wish)).await??;
    let another = || ApiError::new(ErrorKind::Conflict, "somebody else asked for something else at the same time");
    told.await.map_err(|_| another())?.map_err(|why| ApiError::new(ErrorKind::Conflict, why))?;
    info(commands).await
}

/// Tries the configured rules.
pub(super) async fn trial(commands: &mpsc::Sender<Command>, request: &LockdownTrialRequest) -> Answer<LockdownInfo> {
    if !(1.0..=LockdownTrialRequest::SECONDS_LIMIT).contains(&request.seconds) {
        let message = format!("a trial lasts 1 to {} s, not {}", LockdownTrialRequest::SECONDS_LIMIT, request.seconds);
        return Err(ApiError::new(ErrorKind::BadRequest, message));
    }
    done(commands, Wish::Trial(Duration::from_secs_f64(request.seconds))).await
}

/// Makes the rules on trial those that hold, at boot as well.
pub(super) async fn confirm(commands: &mpsc::Sender<Command>) -> Answer<LockdownInfo> {
    done(commands, Wish::Confirm).await
}

/// Opens everything again, for good.
pub(super) async fn lift(commands: &mpsc::Sender<Command>) -> Answer<LockdownInfo> {
    done(commands, Wish::Lift).await
}

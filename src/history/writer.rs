//! The writer's thread, and the bounded queue in front of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::HistoryError;
use super::store::{Batch, Sizes, Store, StoredEvent};
use crate::identity::NodeId;
use crate::telemetry::Sealed;
use crate::time::UnixTime;

/// Batches that wait: two minutes of them, longer than any settling takes.
const QUEUE: usize = 4;
/// Minutes that wait while the disk refuses them: what is older becomes a gap.
const BACKLOG_MINUTES: usize = 10;
/// Events that wait with them.
const BACKLOG_EVENTS: usize = 4_096;
/// How long a stop waits for the last batch: an idle disk takes milliseconds, and one that hangs must not keep the host from
/// going down.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// How the recording goes.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How much room it takes.
    pub sizes: Sizes,
    /// Why nothing is recorded at present.
    pub failing: Option<String>,
    /// Minutes of single links that could not be recorded since the start.
    pub lost_minutes: u64,
    /// Files that were set aside since the start, because they were damaged or not ours.
    pub set_aside: Vec<PathBuf>,
    /// When something was recorded last.
    pub written: Option<UnixTime>,
    /// The median round trip of each link's last seven days, computed at the start and each hour.
    pub baselines: Arc<BTreeMap<NodeId, Duration>>,
}

/// The way to the writer's thread.
#[derive(Debug)]
pub struct Writer {
    queue: SyncSender<(Batch, UnixTime)>,
    report: Arc<Mutex<Report>>,
    ended: Receiver<()>,
    path: PathBuf,
    next_event: u64,
}

impl Writer {
    /// Opens the history and starts its thread. What cannot be opened is in the report, and tried again with each batch.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(path: &Path, max_size: u64, wall: UnixTime) -> std::io::Result<Writer> {
        let report = Arc::new(Mutex::new(Report::default()));
        let mut work = Work {
            path: path.to_path_buf(),
            max_size,
            store: None,
            backlog: Backlog::default(),
            settled: None,
            report: Arc::clone(&report),
        };
        let opened = work.open(wall).and_then(|store| store.newest_event());
        let next_event = opened.as_ref().map_or(1, |newest| newest + 1);
        work.tell(opened.map(drop));
        let (queue, batches) = sync_channel(QUEUE);
        let (end, ended) = channel();
        std::thread::Builder::new().name("history".to_owned()).spawn(move || {
            // Here, and not before the daemon starts: a large file takes a while.
            let sound = work.store.as_ref().map_or(Ok(()), Store::check);
            if let Err(damaged) = sound {
                tracing::error!("the history is given up: {damaged}");
                let anew = work.begin_anew(wall);
                work.tell(anew);
            }
            while let Ok((batch, now)) = batches.recv() {
                work.take(batch, now);
            }
            // Whoever stops the daemon may have gone.
            let _ = end.send(());
        })?;
        Ok(Writer { queue, report, ended, path: path.to_path_buf(), next_event })
    }

    /// Offers a batch; never waits.
    ///
    /// # Errors
    /// The batch itself, where the queue is full: it is to be merged with the next one.
    pub fn offer(&self, batch: Batch, now: UnixTime) -> Result<(), Batch> {
        self.queue.try_send((batch, now)).map_err(|refused| match refused {
            TrySendError::Full((batch, _)) | TrySendError::Disconnected((batch, _)) => batch,
        })
    }

    /// How the recording goes.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number for the first event of this run.
    pub fn next_event(&self) -> u64 {
        self.next_event
    }

    /// Where the history lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a last batch and ends the thread; waits for it some seconds. Returns whether it ended.
    pub fn stop(self, last: Batch, now: UnixTime) -> bool {
        let offered = self.offer(last, now).is_ok();
        let Writer { queue, ended, .. } = self;
        drop(queue);
        let ended = !matches!(ended.recv_timeout(LAST_WRITE), Err(RecvTimeoutError::Timeout));
        offered && ended
    }
}

/// What the thread works with.
struct Work {
    path: PathBuf,
    max_size: u64,
    store: Option<Store>,
    backlog: Backlog,
    /// The hour that was settled last.
    settled: Option<u64>,
    report: Arc<Mutex<Report>>,
}

impl Work {
    fn open(&mut self, wall: UnixTime) -> Result<&mut Store, HistoryError> {
        if self.store.is_none() {
            let (store, aside) = Store::open(&self.path, self.max_size, wall)?;
            self.store = Some(store);
            self.note_aside(aside);
        }
        // Just made, where it was not there.
        self.store.as_mut().ok_or_else(|| HistoryError::Full(self.path.clone()))
    }

    fn take(&mut self, batch: Batch, now: UnixTime) {
        let lost = self.backlog.add(batch);
        self.with_report(|report| report.lost_minutes += lost);
        let waiting = self.backlog.batch();
        let mut done = self.record(&waiting, now).and_then(|()| self.settle(now));
        if let Err(damaged) = &done
            && damaged.is_unusable()
        {
            tracing::error!("the history is given up: {damaged}");
            // What was written into it a moment ago goes into the new one, too.
            done = self.begin_anew(now).and_then(|()| self.record(&waiting, now)).and_then(|()| self.settle(now));
        }
        let written = done.is_ok();
        self.tell(done);
        if written {
            self.with_report(|report| report.written = Some(now));
        }
    }

    /// Sets the file aside; the next one is made when it is needed.
    fn begin_anew(&mut self, now: UnixTime) -> Result<(), HistoryError> {
        (self.store, self.settled) = (None, None);
        let aside = Store::set_aside(&self.path, now)?;
        self.note_aside(Some(aside));
        Ok(())
    }

    /// Writes everything that waits.
    fn record(&mut self, batch: &Batch, now: UnixTime) -> Result<(), HistoryError> {
        let store = self.open(now)?;
        match store.write(batch) {
            // The file has reached its size, or the disk has; the former can be helped.
            Err(HistoryError::Full(_)) => {
                store.make_room()?;
                store.write(batch)?;
            }
            written => written?,
        }
        self.backlog = Backlog::default();
        Ok(())
    }

    /// Once an hour, and first of all.
    fn settle(&mut self, now: UnixTime) -> Result<(), HistoryError> {
        let hour = now.as_secs() / 3_600;
        if self.settled == Some(hour) {
            return Ok(());
        }
        let store = self.open(now)?;
        store.settle(now)?;
        let baselines = Arc::new(store.baselines(now)?);
        self.settled = Some(hour);
        self.with_report(|report| report.baselines = baselines);
        Ok(())
    }

    /// Puts into the report, and once into the log, how it went.
    fn tell(&mut self, done: Result<(), HistoryError>) {
        let failing = done.err().map(|error| {
            // After a failed write nothing that SQLite holds in memory is believed.
            self.store = None;
            error.to_string()
        });
        let sizes = self.store.as_ref().and_then(|store| store.sizes().ok());
        self.with_report(|report| {
            match (&report.failing, &failing) {
                (None, Some(why)) => tracing::warn!("the history is not recorded: {why}"),
                (Some(_), None) => tracing::info!("the history is recorded again"),
                _ => {}
            }
            report.sizes = sizes.unwrap_or(report.sizes);
            report.failing = failing;
        });
    }

    fn note_aside(&self, aside: Option<PathBuf>) {
        if let Some(aside) = aside {
            tracing::error!("the history could not be used and was set aside as {}; a new one begins", aside.display());
            self.with_report(|report| report.set_aside.push(aside));
        }
    }

    fn with_report(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What waits to be written, on either side of the queue: bounded, each minute of a link once.
#[derive(Debug, Default)]
pub struct Backlog {
    buckets: BTreeMap<UnixTime, BTreeMap<NodeId, Sealed>>,
    events: Vec<StoredEvent>,
}

impl Backlog {
    /// Adds a batch; what has waited for too long goes. Returns how many buckets those were.
    pub fn add(&mut self, batch: Batch) -> u64 {
        for sealed in batch.buckets {
            let minute = self.buckets.entry(sealed.minute).or_default();
            match minute.get_mut(&sealed.node) {
                Some(there) => there.bucket.merge(&sealed.bucket),
                None => {
                    minute.insert(sealed.node, sealed);
                }
            }
        }
        self.events.extend(batch.events);
        let surplus = self.events.len().saturating_sub(BACKLOG_EVENTS);
        self.events.drain(..surplus);
        let mut lost = 0;
        while self.buckets.len() > BACKLOG_MINUTES {
            lost += self.buckets.pop_first().map_or(0, |(_, minute)| minute.len() as u64);
        }
        lost
    }

    /// Returns a copy of it as a batch.
    pub fn batch(&self) -> Batch {
        let buckets = self.buckets.values().flat_map(BTreeMap::values).cloned().collect();
        Batch { buckets, events: self.events.clone() }
    }

    /// Empties it into a batch.
    pub fn take(&mut self) -> Batch {
        let buckets = std::mem::take(&mut self.buckets).into_values().flat_map(BTreeMap::into_values).collect();
        Batch { buckets, events: std::mem::take(&mut self.events) }
    }
}

//! The writing end: one connection, one transaction for each batch.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use super::block::Block;
use super::reader::{Scan, scan};
use super::schema::{self, Origin, STEPS};
use super::{HistoryError, Tier};
use crate::identity::NodeId;
use crate::platform::file::{self, FileError};
use crate::telemetry::varint::Damaged;
use crate::telemetry::{Bucket, Distribution, Sealed};
use crate::time::UnixTime;

/// Bytes of a page: SQLite's own default, and the block size of the usual file systems.
const PAGE: u64 = 4_096;
/// How long another process's lock is waited for: an administrator's `sqlite3` that reads the file.
const BUSY: Duration = Duration::from_secs(5);
/// Minutes whose hour is over are moved into the tiers; minutes of a future further away than this, which only a clock that
/// was wrong can have made, are moved with them.
const FUTURE: u64 = 3_600;
/// How far what is pruned may follow the wall clock with each hour: a clock that is years ahead for some hours must not
/// empty the history.
const PRUNE_STRIDE: Duration = Duration::from_secs(2 * 3_600);
/// Events kept at most: some 25 MiB.
const EVENT_LIMIT: i64 = 200_000;
/// How long events, and the names of links of which nothing else is left, are kept.
const EVENTS_KEPT: Duration = Tier::Day.kept();
/// Days whose median is a link's baseline.
const BASELINE: Duration = Duration::from_secs(7 * 86_400);
/// What must have been measured of a link before it has a baseline: an hour has seen more than one mood of a network.
const BASELINE_LEAST: Duration = Duration::from_secs(3_600);
/// Shares of the size in hundredths: above the first the oldest go, until the second is reached.
const FULL: u64 = 95;
const ROOMY: u64 = 90;

/// What is written at once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Buckets of whole or half minutes; one that is there already is added to.
    pub buckets: Vec<Sealed>,
    /// Events, in the order of their numbers.
    pub events: Vec<StoredEvent>,
}

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its number; later ones have greater ones.
    pub sequence: u64,
    /// When.
    pub at: UnixTime,
    /// What kind, in snake case.
    pub kind: String,
    /// The name, at that time, of the peer it is about.
    pub peer: Option<String>,
    /// What happened.
    pub text: String,
}

/// How much room the history takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Pages with something in them.
    pub used: u64,
    /// The file; its free pages are used again.
    pub file: u64,
}

/// The store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
    max_size: u64,
    /// The links' numbers and the names last written.
    links: BTreeMap<NodeId, (i64, String)>,
}

impl Store {
    /// Opens the file, or makes it with mode 0600. One that is damaged, another program's or a newer version's is set aside
    /// beside it, and its new name is returned.
    ///
    /// # Errors
    /// It can be neither used nor set aside.
    pub fn open(path: &Path, max_size: u64, wall: UnixTime) -> Result<(Store, Option<PathBuf>), HistoryError> {
        match Store::open_there(path, max_size) {
            Ok(store) => Ok((store, None)),
            Err(error) if error.is_unusable() => {
                let aside = Store::set_aside(path, wall)?;
                Ok((Store::open_there(path, max_size)?, Some(aside)))
            }
            Err(error) => Err(error),
        }
    }

    fn open_there(path: &Path, max_size: u64) -> Result<Store, HistoryError> {
        let refused = |source| FileError::System { action: "open", path: path.to_path_buf(), source };
        // Made here, because SQLite would give it the mode that the umask leaves.
        let (mut options, no_follow) = (OpenOptions::new(), nix::libc::O_NOFOLLOW);
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow);
        options.open(path).map_err(refused)?;
        let failed = |source| HistoryError::of(path, source);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY).map_err(failed)?;
        let unusable = |why: &str| HistoryError::Unusable { path: path.to_path_buf(), why: why.to_owned() };
        match schema::origin(&connection, &STEPS).map_err(failed)? {
            Origin::Ours => {}
            // Before the first table, or it cannot be any more.
            Origin::Empty => connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?,
            Origin::Foreign => return Err(unusable("is another program's")),
            Origin::Newer => return Err(unusable("was written by a newer version of meshd")),
        }
        // Each commit reaches the disk: a batch that was told to be written survives a power cut too.
        let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 4194304;
                        PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY;";
        connection.execute_batch(settings).map_err(failed)?;
        schema::migrate(&mut connection, &STEPS).map_err(failed)?;
        let mut store = Store { path: path.to_path_buf(), connection, max_size, links: BTreeMap::new() };
        store.limit_pages().map_err(failed)?;
        store.read_links().map_err(failed)?;
        Ok(store)
    }

    /// SQLite itself refuses to let the file grow beyond its size.
    fn limit_pages(&self) -> rusqlite::Result<()> {
        let pages = i64::try_from(self.max_size / PAGE).unwrap_or(i64::MAX);
        self.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
    }

    fn read_links(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare("SELECT node, id, name FROM link")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        self.links =
            rows.map(|row| row.map(|(node, link)| (NodeId::from_bytes(node), link))).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Moves the file aside with what SQLite keeps beside it, so that a human can look at all of it. No store may be open.
    ///
    /// # Errors
    /// The file stays where it is.
    pub fn set_aside(path: &Path, wall: UnixTime) -> Result<PathBuf, HistoryError> {
        let aside = file::quarantine(path, wall)?;
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        // Without its file the index of the log says nothing; the log itself may hold the last minutes.
        let _ = std::fs::remove_file(beside("-shm"));
        match file::quarantine(&beside("-wal"), wall) {
            Err(error) if !error.is_missing() => Err(error.into()),
            _ => Ok(aside),
        }
    }

    /// Reads the whole file and says whether it holds together. It takes seconds for a file of gigabytes.
    ///
    /// # Errors
    /// It is damaged.
    pub fn check(&self) -> Result<(), HistoryError> {
        let check = self.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        match check.map_err(|source| HistoryError::of(&self.path, source))? {
            fine if fine == "ok" => Ok(()),
            why => Err(HistoryError::Unusable { path: self.path.clone(), why: format!("is damaged ({why})") }),
        }
    }

    /// Writes a batch, all or nothing of it.
    ///
    /// # Errors
    /// Nothing of it was written.
    pub fn write(&mut self, batch: &Batch) -> Result<(), HistoryError> {
        self.in_transaction(|transaction, links| {
            for sealed in &batch.buckets {
                let link = number_of(transaction, links, sealed)?;
                let minute = sealed.minute.as_secs() as i64 / 60;
                let there: Option<Vec<u8>> = transaction
                    .query_row("SELECT bucket FROM recent WHERE minute = ? AND link = ?", [minute, link], |row| {
                        row.get(0)
                    })
                    .optional()?;
                let mut bucket = there.map_or(Ok(Bucket::default()), |bytes| Bucket::decode(&bytes))?;
                bucket.merge(&sealed.bucket);
                let row = params![minute, link, bucket.encode()];
                transaction.execute("INSERT OR REPLACE INTO recent VALUES (?, ?, ?)", row)?;
            }
            for event in &batch.events {
                let row = params![event.sequence, event.at.as_secs(), event.kind, event.peer, event.text];
                transaction.execute("INSERT OR REPLACE INTO event VALUES (?, ?, ?, ?, ?)", row)?;
            }
            Ok(())
        })
    }

    /// Moves the minutes of hours that are over into the tiers, and removes what was kept for long enough or is too much.
    ///
    /// # Errors
    /// What was done before it stays done; another call does the rest.
    pub fn settle(&mut self, now: UnixTime) -> Result<(), HistoryError> {
        let hour = now.as_secs() / 3_600 * 3_600;
        self.in_transaction(|transaction, _| move_into_tiers(transaction, hour, now.as_secs() + FUTURE))?;
        self.in_transaction(|transaction, _| prune(transaction, now))?;
        self.keep_to_size()
    }

    /// Removes the oldest minutes, then the oldest ten minutes and days, while there is more than the size allows.
    fn keep_to_size(&mut self) -> Result<(), HistoryError> {
        if self.sizes()?.used <= self.max_size / 100 * FULL {
            return Ok(());
        }
        for tier in Tier::ALL {
            while self.sizes()?.used > self.max_size / 100 * ROOMY {
                let removed = self.in_transaction(|transaction, links| remove_oldest(transaction, links, tier))?;
                if removed == 0 {
                    break;
                }
            }
        }
        self.give_back().map_err(|source| HistoryError::of(&self.path, source))
    }

    /// Gives free pages back to the file system.
    fn give_back(&self) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare("PRAGMA incremental_vacuum")?;
        // One page goes with each step.
        let mut steps = statement.query([])?;
        while steps.next()?.is_some() {}
        Ok(())
    }

    /// Makes room after the size was reached in the middle of writing: the file may not be full of what is oldest.
    ///
    /// # Errors
    /// There is no room for that either: the disk is full, not the file.
    pub fn make_room(&mut self) -> Result<(), HistoryError> {
        self.keep_to_size()
    }

    /// Returns how much room it takes.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn sizes(&self) -> Result<Sizes, HistoryError> {
        let failed = |source| HistoryError::of(&self.path, source);
        let pragma = |name: &str| {
            self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u64>(0)).map_err(failed)
        };
        let (pages, free) = (pragma("page_count")?, pragma("freelist_count")?);
        Ok(Sizes { used: pages.saturating_sub(free) * PAGE, file: pages * PAGE })
    }

    /// Returns the bytes of each table and index, by name: their pages, full or not. Reads the whole file.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn table_sizes(&self) -> Result<Vec<(String, u64)>, HistoryError> {
        let read = || -> rusqlite::Result<Vec<(String, u64)>> {
            let mut statement =
                self.connection.prepare("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY name")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        read().map_err(|source| HistoryError::of(&self.path, source))
    }

    /// Returns the number of the newest event; 0 without any.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn newest_event(&self) -> Result<u64, HistoryError> {
        let newest = self.connection.query_row("SELECT coalesce(max(sequence), 0) FROM event", [], |row| row.get(0));
        newest.map_err(|source| HistoryError::of(&self.path, source))
    }

    /// Returns the median round trip of each link's last seven days; links that were measured for less than an hour have
    /// none.
    ///
    /// # Errors
    /// SQLite refuses, or a bucket is damaged.
    pub fn baselines(&self, now: UnixTime) -> Result<BTreeMap<NodeId, Duration>, HistoryError> {
        let mut baselines = BTreeMap::new();
        for (node, (link, _)) in &self.links {
            let (mut path, mut observed) = (Distribution::default(), Duration::ZERO);
            let range = Scan { link: *link, tier: Tier::TenMinutes, since: now - BASELINE, until: now };
            scan(&self.connection, &range, &mut |_, bucket| {
                path.merge(&bucket.path);
                observed += bucket.observed();
                true
            })
            .map_err(|failure| failure.at(&self.path))?;
            if observed >= BASELINE_LEAST {
                baselines.extend(path.quantile(0.5).map(|median| (*node, median)));
            }
        }
        Ok(baselines)
    }

    fn in_transaction<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>, &mut BTreeMap<NodeId, (i64, String)>) -> Result<T, Failure>,
    ) -> Result<T, HistoryError> {
        let begun = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begun.map_err(|source| HistoryError::of(&self.path, source))?;
        let done = work(&transaction, &mut self.links).and_then(|done| Ok(transaction.commit().map(|()| done)?));
        done.map_err(|failure| {
            // What was rolled back may have been a link's number.
            let _ = self.read_links();
            failure.at(&self.path)
        })
    }
}

/// Why a piece of work failed.
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Damaged(Damaged),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Sqlite(error)
    }
}

impl From<Damaged> for Failure {
    fn from(damaged: Damaged) -> Self {
        Failure::Damaged(damaged)
    }
}

impl Failure {
    pub(super) fn at(self, path: &Path) -> HistoryError {
        match self {
            Failure::Sqlite(source) => HistoryError::of(path, source),
            Failure::Damaged(damaged) => HistoryError::Unusable {
                path: path.to_path_buf(),
                why: format!("holds a bucket that cannot be read: {damaged}"),
            },
        }
    }
}

/// The number of a link, which is made where it is new; its name is kept up to date.
fn number_of(
    transaction: &Transaction<'_>,
    links: &mut BTreeMap<NodeId, (i64, String)>,
    sealed: &Sealed,
) -> Result<i64, Failure> {
    if let Some((number, name)) = links.get(&sealed.node)
        && *name == sealed.name
    {
        return Ok(*number);
    }
    let number = transaction.query_row(
        "INSERT INTO link (node, name, seen) VALUES (?, ?, ?) ON CONFLICT (node) DO UPDATE SET name = excluded.name
         RETURNING id",
        params![sealed.node.as_bytes(), sealed.name, sealed.minute.as_secs()],
        |row| row.get(0),
    )?;
    links.insert(sealed.node, (number, sealed.name.clone()));
    Ok(number)
}

/// Moves the minutes before `hour` (seconds), and those from `future` on.
fn move_into_tiers(transaction: &Transaction<'_>, hour: u64, future: u64) -> Result<(), Failure> {
    let bounds = [hour as i64 / 60, future as i64 / 60];
    let mut statement = transaction
        .prepare("SELECT link, minute, bucket FROM recent WHERE minute < ?1 OR minute >= ?2 ORDER BY link, minute")?;
    let mut rows = statement.query(bounds)?;
    // The blocks that are open for the present link.
    let mut open = Open::default();
    while let Some(row) = rows.next()? {
        let (link, minute): (i64, u64) = (row.get(0)?, row.get(1)?);
        let bucket = Bucket::decode(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?)?;
        for (tier, blocks) in Tier::ALL.into_iter().zip(&mut open.0) {
            blocks.merge(transaction, tier, link, UnixTime::from_secs(minute * 60), &bucket)?;
        }
    }
    for (tier, blocks) in Tier::ALL.into_iter().zip(open.0) {
        blocks.write(transaction, tier)?;
    }
    transaction.execute(
        "UPDATE link SET seen = ?1 * 60 WHERE id IN (SELECT link FROM recent WHERE minute < ?1)",
        [bounds[0]],
    )?;
    transaction.execute("DELETE FROM recent WHERE minute < ?1 OR minute >= ?2", bounds)?;
    Ok(())
}

/// The block being filled, of each tier.
#[derive(Default)]
struct Open([Filling; 3]);

#[derive(Default)]
struct Filling(Option<(i64, Block)>);

impl Filling {
    fn merge(
        &mut self,
        transaction: &Transaction<'_>,
        tier: Tier,
        link: i64,
        at: UnixTime,
        bucket: &Bucket,
    ) -> Result<(), Failure> {
        let key = key_of(link, tier.block_of(at));
        if self.0.as_ref().is_none_or(|(open, _)| *open != key) {
            std::mem::take(self).write(transaction, tier)?;
            let sql = format!("SELECT block FROM {} WHERE key = ?", tier.table());
            let there: Option<Vec<u8>> = transaction.query_row(&sql, [key], |row| row.get(0)).optional()?;
            self.0 = Some((key, there.map_or(Ok(Block::default()), |bytes| Block::decode(&bytes))?));
        }
        if let Some((_, block)) = &mut self.0 {
            block.merge(tier.offset_of(at), bucket);
        }
        Ok(())
    }

    fn write(self, transaction: &Transaction<'_>, tier: Tier) -> Result<(), Failure> {
        if let Some((key, block)) = self.0 {
            let sql = format!("INSERT OR REPLACE INTO {} VALUES (?, ?)", tier.table());
            transaction.execute(&sql, params![key, block.encode()])?;
        }
        Ok(())
    }
}

pub(super) fn key_of(link: i64, block: u32) -> i64 {
    link << 32 | i64::from(block)
}

/// Removes what was kept for long enough.
fn prune(transaction: &Transaction<'_>, now: UnixTime) -> Result<(), Failure> {
    let before: Option<u64> = transaction.query_row("SELECT at FROM pruned", [], |row| row.get(0)).optional()?;
    let now = before.map_or(now, |before| now.min(UnixTime::from_secs(before) + PRUNE_STRIDE));
    transaction.execute("DELETE FROM pruned", [])?;
    transaction.execute("INSERT INTO pruned VALUES (?)", [now.as_secs()])?;
    let mut statement = transaction.prepare("SELECT id FROM link")?;
    let links: Vec<i64> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for tier in Tier::ALL {
        let oldest = tier.block_of(now - tier.kept());
        let mut delete = transaction.prepare(&format!("DELETE FROM {} WHERE key >= ? AND key < ?", tier.table()))?;
        for link in &links {
            delete.execute([key_of(*link, 0), key_of(*link, oldest)])?;
        }
    }
    let forgotten = (now - EVENTS_KEPT).as_secs();
    transaction.execute("DELETE FROM event WHERE at < ?", [forgotten])?;
    transaction.execute("DELETE FROM event WHERE sequence <= (SELECT max(sequence) FROM event) - ?", [EVENT_LIMIT])?;
    transaction.execute("DELETE FROM link WHERE seen < ?", [forgotten])?;
    Ok(())
}

/// Removes the blocks of the oldest day of a tier that has anything, of all links. Returns how many those were.
fn remove_oldest(
    transaction: &Transaction<'_>,
    links: &BTreeMap<NodeId, (i64, String)>,
    tier: Tier,
) -> Result<usize, Failure> {
    let table = tier.table();
    let mut oldest: Option<u32> = None;
    let mut first =
        transaction.prepare(&format!("SELECT key FROM {table} WHERE key >= ? AND key < ? ORDER BY key LIMIT 1"))?;
    for (link, _) in links.values() {
        let key: Option<i64> = first.query_row([key_of(*link, 0), key_of(link + 1, 0)], |row| row.get(0)).optional()?;
        let block = key.map(|key| key as u32);
        oldest = oldest.into_iter().chain(block).min();
    }
    let Some(oldest) = oldest else { return Ok(0) };
    let day = u32::try_from(86_400u64.div_ceil(tier.block())).unwrap_or(1);
    let mut delete = transaction.prepare(&format!("DELETE FROM {table} WHERE key >= ? AND key < ?"))?;
    let mut removed = 0;
    for (link, _) in links.values() {
        removed += delete.execute([key_of(*link, 0), key_of(*link, oldest.saturating_add(day))])?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Reader, Wanted};

    const NODE: NodeId = NodeId::from_bytes([7; 16]);
    /// The beginning of an hour and of a day.
    const WALL: UnixTime = UnixTime::from_secs(1_795_392_000);
    const SIZE: u64 = 64 << 20;

    fn minute(number: u64) -> UnixTime {
        WALL + Duration::from_secs(number * 60)
    }

    fn sealed(node: NodeId, name: &str, at: UnixTime, answered: u64) -> Sealed {
        let mut bucket = Bucket { up_millis: 60_000, ..Bucket::default() };
        for i in 0..answered {
            let path = Duration::from_micros(10_000 + i * 37 % 300);
            bucket.answer(path, path, Duration::ZERO, Duration::ZERO);
        }
        Sealed { node, name: name.to_owned(), minute: at, bucket }
    }

    fn batch(sealed: impl IntoIterator<Item = Sealed>) -> Batch {
        Batch { buckets: sealed.into_iter().collect(), events: Vec::new() }
    }

    fn answered(path: &Path, tier: Tier, since: UnixTime, until: UnixTime) -> BTreeMap<u64, u64> {
        let reader = Reader::open(path, Duration::from_secs(60)).unwrap();
        let mut found = BTreeMap::new();
        let visit = |at: UnixTime, bucket: &Bucket| *found.entry(at.as_secs()).or_insert(0) += bucket.answered;
        reader.buckets(NODE, tier, since, until, visit).unwrap();
        found
    }

    fn store() -> (tempfile::TempDir, PathBuf, Store) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.db");
        let (store, aside) = Store::open(&path, SIZE, WALL).unwrap();
        assert_eq!(aside, None);
        (directory, path, store)
    }

    #[test]
    fn every_tier_holds_every_minute_once_before_and_after_it_settles() {
        let (_directory, path, mut store) = store();
        for number in 0..150 {
            // In two halves, as the recorder gives them.
            store.write(&batch([sealed(NODE, "db1", minute(number), 20)])).unwrap();
            store.write(&batch([sealed(NODE, "db1", minute(number), 10)])).unwrap();
        }
        let whole = |path: &Path| {
            Tier::ALL.map(|tier| {
                let found = answered(path, tier, WALL, minute(1_440));
                (found.len(), found.values().sum::<u64>())
            })
        };
        assert_eq!(whole(&path), [(150, 4_500), (15, 4_500), (1, 4_500)]);
        store.settle(minute(150)).unwrap();
        assert_eq!(whole(&path), [(150, 4_500), (15, 4_500), (1, 4_500)]);
        // A second time moves nothing; more of a minute that was moved is added to it.
        store.settle(minute(150)).unwrap();
        store.write(&batch([sealed(NODE, "db1", minute(5), 1)])).unwrap();
        store.settle(minute(300)).unwrap();
        assert_eq!(whole(&path), [(150, 4_501), (15, 4_501), (1, 4_501)]);
        assert_eq!(
            answered(&path, Tier::Minute, minute(5), minute(7)),
            [(minute(5), 31), (minute(6), 30)].map(|(at, n)| (at.as_secs(), n)).into()
        );
    }

    #[test]
    fn a_batch_is_written_whole_or_not_at_all() {
        let (_directory, path, mut store) = store();
        store
            .connection
            .execute_batch("CREATE TRIGGER no BEFORE INSERT ON event BEGIN SELECT raise(ABORT, 'no'); END")
            .unwrap();
        let event = StoredEvent { sequence: 1, at: WALL, kind: "up".into(), peer: None, text: String::new() };
        let mut batch = batch([sealed(NODE, "db1", WALL, 30)]);
        batch.events.push(event);
        assert!(store.write(&batch).is_err());
        assert!(answered(&path, Tier::Minute, WALL, minute(1)).is_empty());
        store.connection.execute_batch("DROP TRIGGER no").unwrap();
        store.write(&batch).unwrap();
        assert_eq!(answered(&path, Tier::Minute, WALL, minute(1)).len(), 1);
    }

    #[test]
    fn what_was_kept_long_enough_goes_tier_by_tier() {
        let (_directory, path, mut store) = store();
        for day in [0, 120, 480, 500] {
            let at = WALL + Duration::from_secs(day * 86_400);
            store.write(&batch([sealed(NODE, "db1", at, 30)])).unwrap();
        }
        let last = WALL + Duration::from_secs(501 * 86_400);
        store.settle(last).unwrap();
        let days = |tier| answered(&path, tier, WALL, last).len();
        assert_eq!((days(Tier::Minute), days(Tier::TenMinutes), days(Tier::Day)), (2, 3, 4));
    }

    #[test]
    fn a_clock_years_ahead_for_some_hours_empties_nothing() {
        let (_directory, path, mut store) = store();
        store.write(&batch([sealed(NODE, "db1", WALL, 30)])).unwrap();
        store.settle(minute(60)).unwrap();
        let wrong = WALL + Duration::from_secs(20 * 365 * 86_400);
        for hour in 0..5 {
            store.write(&batch([sealed(NODE, "db1", wrong + Duration::from_secs(hour * 3_600), 30)])).unwrap();
            store.settle(wrong + Duration::from_secs(hour * 3_600 + 3_600)).unwrap();
        }
        for tier in Tier::ALL {
            assert_eq!(answered(&path, tier, WALL, minute(1_440)).values().sum::<u64>(), 30, "{tier:?}");
        }
        // Back again, the minutes of the wrong years are out of the way.
        store.settle(minute(180)).unwrap();
        let left: u64 = store.connection.query_row("SELECT count(*) FROM recent", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0);
    }

    /// A minute of round trips anywhere between 10 and 40 ms, which no packing makes small.
    fn noisy(at: UnixTime) -> Sealed {
        let (mut sealed, mut state) = (sealed(NODE, "db1", at, 0), at.as_secs());
        for _ in 0..60 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let path = Duration::from_micros(10_000 + (state >> 33) % 30_000);
            sealed.bucket.answer(path, path, Duration::ZERO, Duration::ZERO);
        }
        sealed
    }

    #[test]
    fn the_size_holds_and_the_oldest_minutes_go_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.db");
        let size = 1 << 20;
        let (mut store, _) = Store::open(&path, size, WALL).unwrap();
        let mut last = WALL;
        for day in 0..20 {
            for hour in 0..24 {
                let minutes = (0..60).map(|m| minute(day * 1_440 + hour * 60 + m));
                store.write(&batch(minutes.map(noisy))).unwrap();
                last = minute(day * 1_440 + hour * 60 + 60);
                store.settle(last).unwrap();
                assert!(store.sizes().unwrap().file <= size);
            }
        }
        let minutes = answered(&path, Tier::Minute, WALL, last);
        assert!(minutes.len() < 20 * 1_440 && !minutes.is_empty(), "{} minutes are left", minutes.len());
        assert_eq!(minutes.keys().next_back(), Some(&(last.as_secs() - 60)));
        assert_eq!(answered(&path, Tier::TenMinutes, WALL, last).len(), 20 * 144);
        assert_eq!(answered(&path, Tier::Day, WALL, last).values().sum::<u64>(), 20 * 86_400);
        // A smaller size is kept to as well, and the file becomes smaller.
        drop(store);
        let (mut store, _) = Store::open(&path, size / 2, WALL).unwrap();
        store.settle(last).unwrap();
        assert!(store.sizes().unwrap().file <= size / 2, "{:?}", store.sizes());
    }

    #[test]
    fn what_is_no_history_is_set_aside_and_kept() {
        for content in [&b"#!/bin/sh\necho this is no database at all, whatever its name says\n"[..], &[0x5a; 9_000]] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("history.db");
            std::fs::write(&path, content).unwrap();
            let (mut store, aside) = Store::open(&path, SIZE, WALL).unwrap();
            assert_eq!(std::fs::read(aside.unwrap()).unwrap(), content);
            store.write(&batch([sealed(NODE, "db1", WALL, 30)])).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
        let (_store, aside) = Store::open(&path, SIZE, WALL).unwrap();
        let kept = Connection::open(aside.unwrap()).unwrap();
        assert!(kept.query_row("SELECT count(*) FROM bookmarks", [], |_| Ok(())).is_ok());
    }

    #[test]
    fn only_its_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, path, mut store) = store();
        store.write(&batch([sealed(NODE, "db1", WALL, 30)])).unwrap();
        for file in std::fs::read_dir(path.parent().unwrap()).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
    }

    #[test]
    fn a_peer_that_has_gone_is_found_by_its_last_name() {
        let (_directory, path, mut store) = store();
        let other = NodeId::from_bytes([8; 16]);
        store.write(&batch([sealed(NODE, "db1", WALL, 30)])).unwrap();
        store.write(&batch([sealed(NODE, "db-old", minute(1), 30)])).unwrap();
        // Another host got the name, and is the one that has it now.
        store.write(&batch([sealed(other, "db1", minute(61), 30)])).unwrap();
        store.settle(minute(150)).unwrap();
        let reader = Reader::open(&path, Duration::from_secs(60)).unwrap();
        let found = |text: &str| reader.find(text).unwrap().map(|found| (found.node, found.name));
        assert_eq!(found("db-old"), Some((NODE, "db-old".to_owned())));
        assert_eq!(found("db1"), Some((other, "db1".to_owned())));
        assert_eq!(found(&NODE.to_string()), Some((NODE, "db-old".to_owned())));
        assert_eq!(found("nobody"), None);
        assert_eq!(answered(&path, Tier::Day, WALL, minute(1_440)).values().sum::<u64>(), 60);
    }

    #[test]
    fn a_baseline_is_the_median_of_seven_days_and_needs_an_hour() {
        let (_directory, _path, mut store) = store();
        store.write(&batch((0..30).map(|number| sealed(NODE, "db1", minute(number), 60)))).unwrap();
        assert!(store.baselines(minute(30)).unwrap().is_empty());
        store.write(&batch((30..70).map(|number| sealed(NODE, "db1", minute(number), 60)))).unwrap();
        let baseline = store.baselines(minute(70)).unwrap()[&NODE];
        let exact = Duration::from_micros(10_150);
        assert!(baseline.abs_diff(exact) < exact / 100, "{baseline:?}");
        assert!(store.baselines(minute(9 * 1_440)).unwrap().is_empty(), "what is older does not count");
    }

    #[test]
    fn events_are_found_by_time_peer_and_number() {
        let (_directory, path, mut store) = store();
        let event = |sequence: u64| StoredEvent {
            sequence,
            at: minute(sequence),
            kind: "up".into(),
            peer: sequence.is_multiple_of(2).then(|| "db1".to_owned()),
            text: format!("number {sequence}"),
        };
        store.write(&Batch { buckets: Vec::new(), events: (1..=20).map(event).collect() }).unwrap();
        assert_eq!(store.newest_event().unwrap(), 20);
        let reader = Reader::open(&path, Duration::from_secs(60)).unwrap();
        let numbers = |wanted: Wanted| reader.events(&wanted).unwrap().iter().map(|e| e.sequence).collect::<Vec<_>>();
        let all = Wanted { limit: 100, ..Wanted::default() };
        assert_eq!(numbers(all.clone()), (1..=20).collect::<Vec<_>>());
        assert_eq!(numbers(Wanted { limit: 3, ..all.clone() }), [18, 19, 20]);
        assert_eq!(numbers(Wanted { after: Some(18), ..all.clone() }), [19, 20]);
        let narrow = Wanted { peer: Some("db1".into()), since: Some(minute(5)), until: Some(minute(10)), ..all };
        assert_eq!(numbers(narrow), [6, 8]);
    }
}

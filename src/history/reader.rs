//! The reading ends: connections of their own, which the writer never waits for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::block::Block;
use super::store::{Failure, StoredEvent, key_of};
use super::{HistoryError, Tier};
use crate::identity::NodeId;
use crate::telemetry::Bucket;
use crate::time::UnixTime;

/// A link that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The peer.
    pub node: NodeId,
    /// Its name, the last one known.
    pub name: String,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// About this peer, by its name at that time.
    pub peer: Option<String>,
    /// From then on.
    pub since: Option<UnixTime>,
    /// Before that.
    pub until: Option<UnixTime>,
    /// With a greater number than this.
    pub after: Option<u64>,
    /// The newest so many.
    pub limit: u64,
}

impl Wanted {
    /// Whether an event is among those that are wanted, whatever their number.
    pub fn is_met_by(&self, event: &StoredEvent) -> bool {
        self.after.is_none_or(|after| event.sequence > after)
            && self.since.is_none_or(|since| event.at >= since)
            && self.until.is_none_or(|until| event.at < until)
            && self.peer.as_ref().is_none_or(|peer| event.peer.as_ref() == Some(peer))
    }
}

/// Reads the history. Each has a connection of its own; it sees what was written when it was asked.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: Connection,
    began: Instant,
    longest: Duration,
}

impl Reader {
    /// Opens the history for one answer, which may take `longest` altogether.
    ///
    /// # Errors
    /// It is not there, or SQLite refuses.
    pub fn open(path: &Path, longest: Duration) -> Result<Reader, HistoryError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let failed = |source| HistoryError::of(path, source);
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(longest).map_err(failed)?;
        connection.execute_batch("PRAGMA query_only = 1; PRAGMA cache_size = -2048;").map_err(failed)?;
        Ok(Reader { path: path.to_path_buf(), connection, began: Instant::now(), longest })
    }

    /// Finds a recorded link by the peer's identifier, or by its last name: the one recorded last, where several had it.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn find(&self, peer: &str) -> Result<Option<Found>, HistoryError> {
        let node = peer.parse::<NodeId>().ok().map(|node| node.as_bytes().to_vec());
        let sql = "SELECT node, name FROM link WHERE node = ?1 OR name = ?2 ORDER BY node = ?1 DESC, seen DESC LIMIT 1";
        let found = self.connection.query_row(sql, params![node.unwrap_or_default(), peer], |row| {
            Ok(Found { node: NodeId::from_bytes(row.get(0)?), name: row.get(1)? })
        });
        found.optional().map_err(|source| HistoryError::of(&self.path, source))
    }

    /// Hands over the buckets of a link that begin from `since` on and before `until`. A bucket may come in several pieces,
    /// not always in the order of time, to be merged.
    ///
    /// # Errors
    /// SQLite refuses, a bucket is damaged, or it takes too long.
    pub fn buckets(
        &self,
        node: NodeId,
        tier: Tier,
        since: UnixTime,
        until: UnixTime,
        mut visit: impl FnMut(UnixTime, &Bucket),
    ) -> Result<(), HistoryError> {
        let link = link_of(&self.connection, node).map_err(|source| HistoryError::of(&self.path, source))?;
        let Some(link) = link else { return Ok(()) };
        let complete = scan(&self.connection, &Scan { link, tier, since, until }, &mut |at, bucket| {
            visit(at, bucket);
            self.began.elapsed() < self.longest
        });
        self.in_time(complete.map_err(|failure| failure.at(&self.path))?)
    }

    /// Returns the newest events that are wanted, oldest first.
    ///
    /// # Errors
    /// SQLite refuses, or it takes too long.
    pub fn events(&self, wanted: &Wanted) -> Result<Vec<StoredEvent>, HistoryError> {
        let read = || -> rusqlite::Result<(Vec<StoredEvent>, bool)> {
            let mut statement = self.connection.prepare(
                "SELECT sequence, at, kind, peer, text FROM event
                 WHERE sequence > ?1 AND at >= ?2 AND at < ?3 AND (?4 IS NULL OR peer = ?4)
                 ORDER BY sequence DESC LIMIT ?5",
            )?;
            let seconds = |time: Option<UnixTime>, otherwise| time.map_or(otherwise, |at| at.as_secs() as i64);
            let (since, until) = (seconds(wanted.since, 0), seconds(wanted.until, i64::MAX));
            let after = i64::try_from(wanted.after.unwrap_or(0)).unwrap_or(i64::MAX);
            let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
            let mut rows = statement.query(params![after, since, until, wanted.peer, limit])?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                // A flipped bit in one event must not hide the others.
                let number = |i| row.get::<_, i64>(i).map(|number| u64::try_from(number).unwrap_or(0));
                let text =
                    |i| row.get_ref(i).map(|value| value.as_bytes().map(String::from_utf8_lossy).unwrap_or_default());
                events.push(StoredEvent {
                    sequence: number(0)?,
                    at: UnixTime::from_secs(number(1)?),
                    kind: text(2)?.into_owned(),
                    peer: row.get_ref(3)?.as_bytes().ok().map(|peer| String::from_utf8_lossy(peer).into_owned()),
                    text: text(4)?.into_owned(),
                });
                if self.began.elapsed() >= self.longest {
                    return Ok((events, false));
                }
            }
            Ok((events, true))
        };
        let (mut events, complete) = read().map_err(|source| HistoryError::of(&self.path, source))?;
        self.in_time(complete)?;
        events.reverse();
        Ok(events)
    }

    fn in_time(&self, complete: bool) -> Result<(), HistoryError> {
        if complete { Ok(()) } else { Err(HistoryError::TooLong { seconds: self.longest.as_secs() }) }
    }
}

/// The number of a link.
fn link_of(connection: &Connection, node: NodeId) -> rusqlite::Result<Option<i64>> {
    connection.query_row("SELECT id FROM link WHERE node = ?", [node.as_bytes()], |row| row.get(0)).optional()
}

/// A stretch of a link's past.
pub(super) struct Scan {
    pub(super) link: i64,
    pub(super) tier: Tier,
    pub(super) since: UnixTime,
    pub(super) until: UnixTime,
}

/// Hands over a stretch of a tier, and of the minutes that are not in it yet, until `visit` says no. Returns whether it never
/// did.
pub(super) fn scan(
    connection: &Connection,
    range: &Scan,
    visit: &mut dyn FnMut(UnixTime, &Bucket) -> bool,
) -> Result<bool, Failure> {
    let Scan { link, tier, since, until } = *range;
    if since >= until {
        return Ok(true);
    }
    // One picture of both tables: an hour that moves between them meanwhile is not seen twice.
    let snapshot = connection.unchecked_transaction()?;
    let mut statement =
        snapshot.prepare(&format!("SELECT key, block FROM {} WHERE key BETWEEN ? AND ? ORDER BY key", tier.table()))?;
    let mut rows = statement.query([key_of(link, tier.block_of(since)), key_of(link, tier.block_of(until))])?;
    while let Some(row) = rows.next()? {
        let key: i64 = row.get(0)?;
        let block = Block::decode(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?;
        for (place, bucket) in block.iter() {
            let at = tier.start_of(key as u32, place);
            if since <= at && at < until && !visit(at, bucket) {
                return Ok(false);
            }
        }
    }
    let mut statement =
        snapshot.prepare("SELECT minute, bucket FROM recent WHERE link = ?1 AND minute >= ?2 AND minute < ?3")?;
    let mut rows = statement.query([link, since.as_secs() as i64 / 60, (until.as_secs() as i64).div_euclid(60)])?;
    while let Some(row) = rows.next()? {
        let minute = UnixTime::from_secs(row.get::<_, u64>(0)? * 60);
        let at = tier.start_of(tier.block_of(minute), tier.offset_of(minute));
        let bucket = Bucket::decode(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?;
        if since <= at && !visit(at, &bucket) {
            return Ok(false);
        }
    }
    Ok(true)
}

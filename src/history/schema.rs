//! The tables, and how an older file gets those of today.

use rusqlite::Connection;

/// Marks the file as ours: "mesh" in ASCII.
pub(super) const APPLICATION: i64 = 0x6d65_7368;

/// The steps from an empty file to today's tables. The file's `user_version` is the number of steps it has gone; a change of
/// the tables is one more step here, never a change of an old one.
///
/// The key of a block is the link's number times 2^32 plus the block's, so that a link's past lies together.
pub(super) const STEPS: [&str; 2] = ["
    CREATE TABLE link (id INTEGER PRIMARY KEY, node BLOB NOT NULL UNIQUE, name TEXT NOT NULL, seen INTEGER NOT NULL) STRICT;
    CREATE TABLE recent (
        minute INTEGER NOT NULL, link INTEGER NOT NULL, bucket BLOB NOT NULL, PRIMARY KEY (minute, link)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE minutes (key INTEGER PRIMARY KEY, block BLOB NOT NULL) STRICT;
    CREATE TABLE ten_minutes (key INTEGER PRIMARY KEY, block BLOB NOT NULL) STRICT;
    CREATE TABLE days (key INTEGER PRIMARY KEY, block BLOB NOT NULL) STRICT;
    CREATE TABLE event (
        sequence INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, peer TEXT, text TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_at ON event (at);
    CREATE TABLE pruned (at INTEGER NOT NULL) STRICT;
", "
    -- Blocks may be packed from here on: an older program must not take them for damaged.
"];

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A history that this version can write to.
    Ours,
    /// Nothing was in it.
    Empty,
    /// Another program's.
    Foreign,
    /// A later version's, whose tables are not known here.
    Newer,
}

/// Looks whose file it is.
pub(super) fn origin(connection: &Connection, steps: &[&str]) -> rusqlite::Result<Origin> {
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match application {
        0 if tables == 0 && version == 0 => Origin::Empty,
        APPLICATION if version > steps.len() as i64 => Origin::Newer,
        APPLICATION => Origin::Ours,
        _ => Origin::Foreign,
    })
}

/// Takes the steps that are missing, all or none of them.
pub(super) fn migrate(connection: &mut Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let gone = usize::try_from(version).unwrap_or(0);
    for step in steps.iter().skip(gone) {
        transaction.execute_batch(step)?;
    }
    if gone < steps.len() {
        transaction.pragma_update(None, "user_version", steps.len() as i64)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_file_takes_the_steps_it_lacks_and_keeps_what_it_has() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert_eq!(origin(&connection, &STEPS).unwrap(), Origin::Empty);
        migrate(&mut connection, &STEPS).unwrap();
        connection.execute("INSERT INTO link VALUES (1, x'00', 'web1', 5)", []).unwrap();
        let tomorrow = [STEPS[0], STEPS[1], "ALTER TABLE link ADD COLUMN site TEXT NOT NULL DEFAULT 'gra'"];
        migrate(&mut connection, &tomorrow).unwrap();
        let row = connection.query_row("SELECT name || site FROM link", [], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(row, "web1gra");
        assert_eq!(origin(&connection, &tomorrow).unwrap(), Origin::Ours);
        assert_eq!(origin(&connection, &STEPS).unwrap(), Origin::Newer);
    }

    #[test]
    fn a_file_with_packed_blocks_is_not_opened_by_a_program_that_cannot_read_them() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &STEPS[..1]).unwrap();
        assert_eq!(origin(&connection, &STEPS).unwrap(), Origin::Ours);
        migrate(&mut connection, &STEPS).unwrap();
        assert_eq!(origin(&connection, &STEPS[..1]).unwrap(), Origin::Newer);
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &STEPS).unwrap();
        assert!(migrate(&mut connection, &[STEPS[0], STEPS[1], "CREATE TABLE half (x)", "nonsense"]).is_err());
        assert_eq!(origin(&connection, &STEPS).unwrap(), Origin::Ours);
        assert!(connection.query_row("SELECT count(*) FROM half", [], |_| Ok(())).is_err());
    }

    #[test]
    fn another_program_s_file_is_known_as_such() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
        assert_eq!(origin(&connection, &STEPS).unwrap(), Origin::Foreign);
    }
}

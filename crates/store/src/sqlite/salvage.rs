//! Finds damaged records and sets them aside, so that the rest serve. Runs on the writer's connection:
//! over everything when a store is opened, and again when a read met a record that is not whole.

use super::error::{from_sqlite, is_corrupt};
use super::record::{Broken, Sighting, counters, sight, to_sql};
use super::schema;
use rusqlite::{Connection, OpenFlags, params};
use std::path::Path;
use warren_core::PortError;
use warren_core::ports::store::{Record, Revision};

/// What a look at every record found.
enum Scan {
    Whole { newest: Revision },
    Damaged { newest: Revision, found: Found },
}

/// Everything that could be read.
#[derive(Default)]
struct Found {
    sightings: Vec<Sighting>,
    tree: Tree,
}

/// Whether the table's own pages can be walked, and so freed.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Tree {
    #[default]
    Walkable,
    Torn,
}

/// Sets aside what is damaged in the store at `path`, of which `writer` is the connection that writes.
/// Returns the newest revision that a record or the counter mentions.
pub(super) fn set_aside(path: &Path, writer: &Connection) -> Result<Revision, PortError> {
    let failed = |error| from_sqlite("be checked", error);
    let newest = match scan(path).map_err(failed)? {
        Scan::Whole { newest } => newest,
        Scan::Damaged { newest, found } => {
            writer.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
            let rebuilt = rebuild(writer, &found).and_then(|()| writer.execute_batch("COMMIT"));
            if rebuilt.is_err() && !writer.is_autocommit() {
                // The first failure is the one to report.
                drop(writer.execute_batch("ROLLBACK"));
            }
            rebuilt.map_err(|error| from_sqlite("set damaged records aside", error))?;
            newest
        }
    };
    let (counted, _) = counters(writer).map_err(failed)?;
    Ok(newest.max(counted))
}

const ALL: &str = "SELECT key, value, revision, checksum FROM records ORDER BY key";
const ALL_BACKWARDS: &str = "SELECT key, value, revision, checksum FROM records ORDER BY key DESC";

/// Looks at everything, on a connection of its own: one that has met an unreadable page answers later
/// writes with the same failure.
fn scan(path: &Path) -> Result<Scan, rusqlite::Error> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    schema::configure(&connection)?;
    if let Some(newest) = scan_quickly(&connection)? {
        return Ok(Scan::Whole { newest });
    }
    let mut found = Found::default();
    if let Reached::BadPage = collect(&connection, ALL, &mut found.sightings)? {
        // What lies behind the unreadable page can be reached from the other end.
        let mut behind = Vec::new();
        collect(&connection, ALL_BACKWARDS, &mut behind)?;
        let lost = lost_between(&found.sightings, &behind);
        found.sightings.extend(behind);
        found.sightings.push(Sighting::Broken(lost));
        found.tree = Tree::Torn;
    }
    let newest = found
        .sightings
        .iter()
        .map(|sighting| match sighting {
            Sighting::Whole(record) => record.revision,
            Sighting::Broken(_) => 0,
        })
        .max()
        .unwrap_or(0);
    Ok(Scan::Damaged { newest, found })
}

/// The newest revision, if all is whole.
fn scan_quickly(connection: &Connection) -> Result<Option<Revision>, rusqlite::Error> {
    let mut statement = connection.prepare(ALL)?;
    let mut rows = statement.query([])?;
    let mut newest = 0;
    let mut last: Option<String> = None;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(Some(newest)),
            Err(error) if is_corrupt(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        match sight(row)? {
            Sighting::Whole(record) if last.as_ref().is_none_or(|last| *last < record.key) => {
                newest = newest.max(record.revision);
                last = Some(record.key);
            }
            // Out of order counts too: a search would not find it.
            Sighting::Whole(_) | Sighting::Broken(_) => return Ok(None),
        }
    }
}

/// Puts whole records into a new table: the old tree may be out of order, so nothing in it can be
/// relied on to be found, changed or deleted.
fn rebuild(writer: &Connection, found: &Found) -> Result<(), rusqlite::Error> {
    writer.execute_batch(
        "CREATE TABLE records_whole (
             key      TEXT    NOT NULL PRIMARY KEY,
             value    BLOB    NOT NULL,
             revision INTEGER NOT NULL,
             checksum BLOB    NOT NULL
         ) WITHOUT ROWID",
    )?;
    for sighting in &found.sightings {
        match sighting {
            Sighting::Whole(record) => keep(writer, record)?,
            Sighting::Broken(broken) => set_one_aside(writer, broken)?,
        }
    }
    match found.tree {
        Tree::Walkable => writer.execute_batch("DROP TABLE records")?,
        // Its pages cannot be freed; it is kept under a name that nobody reads.
        Tree::Torn => {
            let held: i64 = writer.query_row(
                "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'records!_unreadable!_%' ESCAPE '!'",
                [],
                |row| row.get(0),
            )?;
            writer.execute_batch(&format!(
                "ALTER TABLE records RENAME TO records_unreadable_{held}"
            ))?;
        }
    }
    writer.execute_batch("ALTER TABLE records_whole RENAME TO records")
}

/// How far a reading came.
enum Reached {
    End,
    BadPage,
}

/// Reads until the end or an unreadable page.
fn collect(
    connection: &Connection,
    query: &str,
    sightings: &mut Vec<Sighting>,
) -> Result<Reached, rusqlite::Error> {
    let mut statement = connection.prepare(query)?;
    let mut rows = statement.query([])?;
    loop {
        match rows.next() {
            Ok(Some(row)) => sightings.push(sight(row)?),
            Ok(None) => return Ok(Reached::End),
            Err(error) if is_corrupt(&error) => return Ok(Reached::BadPage),
            Err(error) => return Err(error),
        }
    }
}

fn lost_between(before: &[Sighting], behind: &[Sighting]) -> Broken {
    let last_key = |sightings: &[Sighting]| {
        sightings.iter().rev().find_map(|sighting| match sighting {
            Sighting::Whole(record) => Some(record.key.clone()),
            Sighting::Broken(_) => None,
        })
    };
    let (last, first) = (last_key(before), last_key(behind));
    let after = last.as_ref().map_or_else(
        || "from the first".to_owned(),
        |key| format!("after {key:?}"),
    );
    let until = first.map_or_else(|| "to the last".to_owned(), |key| format!("before {key:?}"));
    Broken {
        key: last.unwrap_or_default(),
        reason: format!(
            "a page of the file could not be read: records {after} {until} may be lost"
        ),
        value: None,
        revision: None,
        checksum: None,
    }
}

fn keep(connection: &Connection, record: &Record) -> Result<(), rusqlite::Error> {
    let revision = to_sql(record.revision);
    let checksum = super::record::of_record(record.key.as_bytes(), &record.value, revision);
    // A row may be met twice, once from each end.
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO records_whole (key, value, revision, checksum) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![record.key, &record.value[..], revision, checksum])?;
    Ok(())
}

fn set_one_aside(connection: &Connection, broken: &Broken) -> Result<(), rusqlite::Error> {
    tracing::error!(
        key = broken.key,
        reason = broken.reason,
        "a record of the store is damaged and is set aside"
    );
    connection
        .prepare_cached(
            "INSERT INTO damaged (key, reason, value, revision, checksum)
             SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS
             (SELECT 1 FROM damaged WHERE key = ?1 AND value IS ?3 AND checksum IS ?5 AND reason = ?2)",
        )?
        .execute(params![
            broken.key,
            broken.reason,
            broken.value,
            broken.revision,
            broken.checksum
        ])?;
    Ok(())
}

//! The history that the file holds: the changes of the last commits, for watchers that were away.
//!
//! Opening a store reads none of it but its end: how much there is, the counters say. Where a page of it cannot be
//! read, history is put aside as a whole, and whoever watches lists again: no record is lost with it.

use super::error::{from_sqlite, is_corrupt};
use super::record::{counters, from_sql, of_change, raw, to_sql};
use super::schema;
use crate::history::{Cursor, READ_AT_ONCE, Read};
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row, params};
use std::path::Path;
use warren_core::PortError;
use warren_core::ports::store::{Change, Record, Revision};

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// The last commit that it tells of.
    pub(super) newest: Revision,
    /// How many changes.
    pub(super) held: u64,
}

/// How closely it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// At its end, and at what the counters say.
    Brief,
    /// At every row.
    Whole,
}

/// What there is in the store at `path`, of which `writer` is the connection that writes; put aside before, if it
/// cannot be read. No commit up to `known` can be watched then.
pub(super) fn settle(
    path: &Path,
    writer: &Connection,
    look: Look,
    known: Revision,
) -> Result<Extent, PortError> {
    // A connection of its own: one that has met an unreadable page answers later writes with the same failure.
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(|error| from_sqlite("be opened", error))?;
    let seen = schema::configure(&connection).and_then(|()| extent(&connection, look));
    drop(connection);
    match seen {
        Ok(Some(extent)) => Ok(extent),
        Ok(None) => put_aside(writer, known),
        Err(error) if is_corrupt(&error) => put_aside(writer, known),
        Err(error) => Err(from_sqlite("be read", error)),
    }
}

/// `None` when a row is not whole.
fn extent(connection: &Connection, look: Look) -> Result<Option<Extent>, rusqlite::Error> {
    let newest: Option<i64> =
        connection.query_row("SELECT max(revision) FROM changes", [], |row| row.get(0))?;
    let newest = newest.map_or(0, from_sql);
    let counted = connection.query_row("SELECT held FROM counters WHERE id = 0", [], |row| {
        Ok(match row.get_ref(0)? {
            ValueRef::Integer(held) => u64::try_from(held).ok(),
            _ => None,
        })
    })?;
    let held = match (look, counted) {
        (Look::Brief, Some(held)) => held,
        (Look::Brief, None) => {
            let count =
                connection.query_row("SELECT count(*) FROM changes", [], |row| row.get(0))?;
            from_sql(count)
        }
        (Look::Whole, _) => {
            let mut statement = connection.prepare(ALL)?;
            let mut rows = statement.query([])?;
            let mut held = 0;
            while let Some(row) = rows.next()? {
                if sight(row)?.is_none() {
                    return Ok(None);
                }
                held += 1;
            }
            held
        }
    };
    Ok(Some(Extent { newest, held }))
}

const ALL: &str =
    "SELECT revision, position, key, value, checksum FROM changes ORDER BY revision, position";

/// Begins a new history. The pages of the old one cannot be freed; it is kept under a name that nobody reads.
fn put_aside(writer: &Connection, known: Revision) -> Result<Extent, PortError> {
    tracing::error!(
        "the record's history cannot be read and is put aside: whoever watches begins anew"
    );
    let put = || -> Result<(), rusqlite::Error> {
        writer.execute_batch("BEGIN IMMEDIATE")?;
        let held: i64 = writer.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'changes!_unreadable!_%' ESCAPE '!'",
            [],
            |row| row.get(0),
        )?;
        writer.execute_batch(&format!(
            "ALTER TABLE changes RENAME TO changes_unreadable_{held};
             CREATE TABLE changes (
                 revision INTEGER NOT NULL,
                 position INTEGER NOT NULL,
                 key      TEXT    NOT NULL,
                 value    BLOB,
                 checksum BLOB    NOT NULL,
                 PRIMARY KEY (revision, position)
             ) WITHOUT ROWID;"
        ))?;
        writer.execute(
            "UPDATE counters SET compacted = max(revision, ?1), held = 0 WHERE id = 0",
            [to_sql(known)],
        )?;
        writer.execute_batch("COMMIT")
    };
    let done = put();
    if done.is_err() && !writer.is_autocommit() {
        // The first failure is the one to report.
        drop(writer.execute_batch("ROLLBACK"));
    }
    done.map_err(|error| from_sqlite("put its history aside", error))?;
    Ok(Extent::default())
}

/// The changes under `prefix` among the next ones from `cursor` on.
pub(super) fn read(
    connection: &mut Connection,
    prefix: &str,
    cursor: Cursor,
) -> Result<Read, rusqlite::Error> {
    match read_whole(connection, prefix, cursor) {
        Err(error) if is_corrupt(&error) => gone(connection),
        read => read,
    }
}

/// History with a hole in it is no history: whoever watches lists again.
fn gone(connection: &Connection) -> Result<Read, rusqlite::Error> {
    let (revision, _) = counters(connection)?;
    Ok(Read::Gone {
        oldest: revision + 1,
    })
}

fn read_whole(
    connection: &mut Connection,
    prefix: &str,
    cursor: Cursor,
) -> Result<Read, rusqlite::Error> {
    let snapshot = connection.transaction()?;
    let (revision, compacted) = counters(&snapshot)?;
    if cursor.revision <= compacted {
        return Ok(Read::Gone {
            oldest: compacted + 1,
        });
    }
    let mut statement = snapshot.prepare_cached(
        "SELECT revision, position, key, value, checksum FROM changes
         WHERE (revision, position) >= (?1, ?2) ORDER BY revision, position LIMIT ?3",
    )?;
    let mut rows = statement.query(params![
        to_sql(cursor.revision),
        cursor.position,
        READ_AT_ONCE as i64
    ])?;
    let mut changes = Vec::new();
    let mut looked_at = 0;
    let mut next = cursor;
    while let Some(row) = rows.next()? {
        looked_at += 1;
        let Some((at, change)) = sight(row)? else {
            return Ok(Read::Gone {
                oldest: revision + 1,
            });
        };
        next = Cursor {
            position: at.position + 1,
            ..at
        };
        let key = match &change {
            Change::Put(record) => &record.key,
            Change::Delete { key, .. } => key,
            Change::Compacted { .. } => continue,
        };
        if key.starts_with(prefix) {
            changes.push(change);
        }
    }
    if looked_at < READ_AT_ONCE {
        next = Cursor::start_of(revision + 1).max(cursor);
    }
    Ok(Read::Changes { changes, next })
}

/// A row as far as it is whole.
fn sight(row: &Row<'_>) -> Result<Option<(Cursor, Change)>, rusqlite::Error> {
    let (ValueRef::Integer(revision), ValueRef::Integer(position)) =
        (row.get_ref(0)?, row.get_ref(1)?)
    else {
        return Ok(None);
    };
    let value = row.get_ref(3)?;
    let (Ok(position), Some(key), Some(stored)) = (
        u32::try_from(position),
        raw(row.get_ref(2)?),
        raw(row.get_ref(4)?),
    ) else {
        return Ok(None);
    };
    let value = match value {
        ValueRef::Null => None,
        other => match raw(other) {
            Some(value) => Some(value),
            None => return Ok(None),
        },
    };
    if of_change(revision, position, key, value) != *stored {
        return Ok(None);
    }
    let Ok(key) = std::str::from_utf8(key) else {
        return Ok(None);
    };
    let at = Cursor {
        revision: from_sql(revision),
        position,
    };
    let key = key.to_owned();
    Ok(Some((
        at,
        match value {
            Some(value) => Change::Put(Record {
                key,
                value: Bytes::copy_from_slice(value),
                revision: at.revision,
            }),
            None => Change::Delete {
                key,
                revision: at.revision,
            },
        },
    )))
}

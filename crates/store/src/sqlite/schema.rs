//! The tables and how they came to be. Called once, when a store is opened, by its writer.
//!
//! A schema is never edited once released: a change is one more migration.

use super::error::from_sqlite;
use rusqlite::Connection;
use std::time::Duration;
use warren_core::{ErrorClass, PortError};

/// "WRRN": tells a store from any other SQLite file (sqlite.org/fileformat2.html, application id).
const APPLICATION_ID: i32 = 0x5752_524e;

/// The schema this binary writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// `MIGRATIONS[n]` leads from schema n to n + 1.
///
/// `records` has no rowid, so that there is one tree in which a flipped key can be out of order and no
/// index that could disagree with its table. Checksums: see `record.rs`.
const MIGRATIONS: [&str; 1] = ["
CREATE TABLE records (
    key      TEXT    NOT NULL PRIMARY KEY,
    value    BLOB    NOT NULL,
    revision INTEGER NOT NULL,
    checksum BLOB    NOT NULL
) WITHOUT ROWID;
CREATE TABLE changes (
    revision INTEGER NOT NULL,
    position INTEGER NOT NULL,
    key      TEXT    NOT NULL,
    value    BLOB,
    checksum BLOB    NOT NULL,
    PRIMARY KEY (revision, position)
) WITHOUT ROWID;
CREATE TABLE damaged (
    id       INTEGER PRIMARY KEY,
    key      TEXT    NOT NULL,
    reason   TEXT    NOT NULL,
    value    BLOB,
    revision INTEGER,
    checksum BLOB
);
CREATE TABLE counters (
    id        INTEGER PRIMARY KEY CHECK (id = 0),
    revision  INTEGER NOT NULL,
    compacted INTEGER NOT NULL
);
INSERT INTO counters (id, revision, compacted) VALUES (0, 0, 0);
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
"];

const BUSY: Duration = Duration::from_secs(5);

/// What every connection is set to.
pub(super) fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;")
}

/// What the writer's connection is set to besides: `Done` means that the log has reached the disk.
pub(super) fn configure_writer(connection: &Connection) -> Result<(), PortError> {
    let failed = |error| from_sqlite("be opened", error);
    configure(connection).map_err(failed)?;
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(failed)?;
    if mode != "wal" {
        return Err(PortError::unsupported(
            "store_no_wal",
            "the store's file system cannot hold a write-ahead log (shared memory is needed)",
        ));
    }
    connection
        .execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864; PRAGMA wal_autocheckpoint = 1000;",
        )
        .map_err(failed)
}

/// Whether the file was made just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Empty,
    Store,
}

/// Refuses what is not ours or newer than we know; looks only.
pub(super) fn recognise(connection: &Connection) -> Result<(Found, u32), PortError> {
    let failed = |error| from_sqlite("be read", error);
    let number = |pragma: &str| -> Result<i64, PortError> {
        connection
            .query_row(pragma, [], |row| row.get(0))
            .map_err(failed)
    };
    let version = number("PRAGMA user_version")?;
    let application = number("PRAGMA application_id")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    if version == 0 && application == 0 && tables == 0 {
        return Ok((Found::Empty, 0));
    }
    if application != i64::from(APPLICATION_ID) || version < 1 {
        return Err(PortError::invalid(
            "store_foreign",
            "this file is an SQLite database, but not a store of Warren",
        ));
    }
    if version > i64::from(SCHEMA_VERSION) {
        return Err(PortError::new(
            ErrorClass::Unsupported,
            "store_newer",
            format!(
                "this store was written by a newer Warren (schema {version}); this one knows {SCHEMA_VERSION}"
            ),
        )
        .with_hint("use the newer binary or restore a backup"));
    }
    Ok((
        Found::Store,
        u32::try_from(version).expect("checked to be within 1 and SCHEMA_VERSION"),
    ))
}

/// Brings schema `version` up to date, one transaction for each step.
pub(super) fn migrate(connection: &Connection, version: u32) -> Result<(), PortError> {
    for (from, migration) in (0u32..).zip(MIGRATIONS).skip(version as usize) {
        let script = format!(
            "BEGIN IMMEDIATE; {migration} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {}; COMMIT;",
            from + 1
        );
        if let Err(error) = connection.execute_batch(&script) {
            if !connection.is_autocommit() {
                // What failed is reported; the connection is dropped right after.
                drop(connection.execute_batch("ROLLBACK"));
            }
            return Err(from_sqlite(
                &format!("be brought from schema {from} to {}", from + 1),
                error,
            ));
        }
    }
    Ok(())
}

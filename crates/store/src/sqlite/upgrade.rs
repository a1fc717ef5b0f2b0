//! The tables and how they came to be, and how a store of an older schema is brought to the one of this binary: when
//! it is opened, by its writer, under its lock, before anybody else sees it.
//!
//! ```text
//! <store>, schema n ─► .<store>.schema-n ─► <store>.schema-n ─► BEGIN, all that came after n, COMMIT ─► newest
//!                      (copied)             (named)
//! ```
//! Killed at any place, there is the store as it was or one of the newest schema and none in between; the next opening
//! begins again. An older binary refuses the newer file: the copy is what can be restored for it, and stays.
//!
//! A migration is never edited once released: a change is one more, with a fixture of the schema that it leads to in
//! `tests/fixtures`. It must not need history to be readable, which is put aside later if it is not.

use super::backup;
use super::error::from_sqlite;
use super::restore::{BESIDE, beside, remove};
use super::schema::{APPLICATION_ID, Found};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use warren_core::PortError;
use warren_crashpoint::reached;

/// The schema this binary writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// `MIGRATIONS[n]` leads from schema n to n + 1.
///
/// 1: `records` has no rowid, so that there is one tree in which a flipped key can be out of order and no index that
/// could disagree with its table. Checksums: see `record.rs`.
///
/// 2: how many changes are held is counted with each commit. Before, a store was opened by walking all of its history.
/// NULL where nobody has counted yet.
const MIGRATIONS: [&str; 2] = [
    "
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
",
    "
ALTER TABLE counters ADD COLUMN held INTEGER;
",
];

/// Refuses schema `version` where it is not this binary's.
pub(super) fn refuse_older(version: u32) -> Result<(), PortError> {
    if version >= SCHEMA_VERSION {
        return Ok(());
    }
    Err(PortError::unsupported(
        "store_older",
        format!("this store was written by an older Warren (schema {version}); this one would bring it to {SCHEMA_VERSION}"),
    )
    .with_hint("start the server, which does so and keeps a copy of it as it was"))
}

/// Brings the store at `path`, which is of schema `version`, up to date: all of it or nothing.
pub(super) fn bring_up_to_date(
    path: &Path,
    connection: &Connection,
    found: Found,
    version: u32,
) -> Result<(), PortError> {
    let missing = MIGRATIONS.get(version as usize..).unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    match found {
        Found::Empty => {}
        Found::Store => {
            let copy = keep_copy(path, version).map_err(|error| PortError {
                message: format!(
                    "the store must be brought from schema {version} to {SCHEMA_VERSION}, and could not be copied \
                     before: {}",
                    error.message
                ),
                ..error
            })?;
            tracing::info!(from = version, to = SCHEMA_VERSION, copy = %copy.display(),
                "the record is brought to a newer schema; as it was it is kept");
        }
    }
    let changed = connection
        .execute_batch(&format!(
            "BEGIN IMMEDIATE; {} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};",
            missing.concat()
        ))
        .and_then(|()| {
            reached("upgrade.written");
            connection.execute_batch("COMMIT")
        });
    if changed.is_err() && !connection.is_autocommit() {
        // What failed is reported; the connection is dropped right after.
        drop(connection.execute_batch("ROLLBACK"));
    }
    changed.map_err(|error| {
        let what = format!("be brought from schema {version} to {SCHEMA_VERSION}");
        from_sqlite(&what, error)
    })?;
    reached("upgrade.durable");
    Ok(())
}

/// Where a store of this schema is kept as it was.
fn copy_path(store: &Path, version: u32) -> PathBuf {
    beside(store, &format!(".schema-{version}"))
}

/// The latest copy of before an upgrade that this binary can read, if there is one.
pub(super) fn newest_copy(store: &Path) -> Option<PathBuf> {
    let copies = (1..=SCHEMA_VERSION).rev();
    copies
        .map(|version| copy_path(store, version))
        .find(|copy| copy.is_file())
}

/// Copies the store, marked as a backup. An older copy of the same schema is replaced: it is of an earlier upgrade, or
/// of this one, which was broken off.
fn keep_copy(store: &Path, version: u32) -> Result<PathBuf, PortError> {
    let io = |error| PortError::io("cannot write the copy of the store", error);
    let copy = copy_path(store, version);
    // Whatever is not whole has a name that starts with a dot.
    let mut name = std::ffi::OsString::from(".");
    name.push(copy.file_name().unwrap_or_default());
    let half = copy.with_file_name(name);
    // What a broken-off copy left must not be taken for the journal of the next.
    let clear = || {
        BESIDE
            .iter()
            .try_for_each(|ending| remove(&beside(&half, ending)))
    };
    clear().map_err(io)?;
    let written = backup::write(store, &half);
    if written.is_err() {
        // Room, where there is little; the first failure is the one to report.
        drop(clear());
    }
    written?;
    reached("upgrade.copied");
    std::fs::rename(&half, &copy)
        .and_then(|()| backup::sync_directory_of(&copy))
        .map_err(io)?;
    reached("upgrade.copy-named");
    Ok(copy)
}

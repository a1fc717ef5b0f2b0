//! What a store is known by, and how connections to one are set. How its tables came to be: `upgrade.rs`.

use super::error::from_sqlite;
use super::upgrade::{self, SCHEMA_VERSION};
use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;
use warren_core::{ErrorClass, PortError};

/// "WRRN": tells a store from any other SQLite file (sqlite.org/fileformat2.html, application id).
pub(super) const APPLICATION_ID: i32 = 0x5752_524e;

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

/// Refuses what is not ours or newer than we know; looks only. `connection` is one to the file `path`.
pub(super) fn recognise(connection: &Connection, path: &Path) -> Result<(Found, u32), PortError> {
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
        .with_hint(match upgrade::newest_copy(path) {
            Some(copy) => format!(
                "use the newer binary or restore a backup, such as the one of before the upgrade: \
                 `warren system restore {}`",
                copy.display()
            ),
            None => "use the newer binary or restore a backup".to_owned(),
        }));
    }
    Ok((
        Found::Store,
        u32::try_from(version).expect("checked to be within 1 and SCHEMA_VERSION"),
    ))
}

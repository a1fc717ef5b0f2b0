//! Plain facts about the store itself, beside the records: not versioned, not watched.

use super::error::from_sqlite;
use rusqlite::{Connection, OptionalExtension};
use warren_core::PortError;

/// The installation whose names the records carry.
pub(super) const INSTALLATION: &str = "installation";
/// Set in every backup, to the revision it was made at, and nowhere else.
pub(super) const BACKUP_OF: &str = "backup_of_revision";

pub(super) fn get(connection: &Connection, key: &str) -> Result<Option<String>, PortError> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()
        .map_err(|error| from_sqlite("be read", error))
}

pub(super) fn set(connection: &Connection, key: &str, value: &str) -> Result<(), PortError> {
    connection
        .execute(
            "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
            [key, value],
        )
        .map(drop)
        .map_err(|error| from_sqlite("write", error))
}

pub(super) fn remove(connection: &Connection, key: &str) -> Result<(), PortError> {
    connection
        .execute("DELETE FROM meta WHERE key = ?1", [key])
        .map(drop)
        .map_err(|error| from_sqlite("write", error))
}

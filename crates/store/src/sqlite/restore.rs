//! Putting a backup in the store's place, while nobody has the store open.

use super::error::from_sqlite;
use super::lock::StoreLock;
use super::{backup, meta, record, schema};
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use warren_core::PortError;
use warren_core::ports::store::Revision;
use warren_crashpoint::reached;

/// A database and what SQLite keeps beside it (sqlite.org/tempfiles.html).
pub(super) const BESIDE: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Puts a copy of the backup `from` where the store `to` is, and what was there into the existing directory
/// `aside`, under its own names. What is restored is marked as a backup until it is accepted. Blocks. There is
/// the old store or the whole new one, or, for an instant, none.
///
/// # Errors
/// Conflict `store_locked` while a process has the store open; Invalid `store_foreign` and Unsupported
/// `store_newer` for what is no backup of ours; and what the disk does. The old store is then still there.
pub fn restore(from: &Path, to: &Path, aside: &Path) -> Result<Revision, PortError> {
    let io = |error| PortError::io("cannot restore the store", error);
    let failed = |error| from_sqlite("be restored", error);
    let _lock = StoreLock::take(to)?;
    let source = Connection::open_with_flags(
        from,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(|error| from_sqlite("read the backup", error))?;
    let (schema::Found::Store, _) = schema::recognise(&source, from)? else {
        return Err(PortError::invalid(
            "store_foreign",
            "this file is empty: there is nothing in it to restore",
        ));
    };
    let new = beside(to, ".restoring");
    for ending in BESIDE {
        remove(&beside(&new, ending)).map_err(io)?;
    }
    backup::make_file(&new).map_err(io)?;
    let mut target = Connection::open(&new).map_err(failed)?;
    backup::step_through(&source, &mut target)?;
    let (revision, _) = record::counters(&target).map_err(failed)?;
    meta::set(&target, meta::BACKUP_OF, &revision.to_string())?;
    backup::settle(target, &new)?;
    reached("restore.copied");
    for ending in BESIDE {
        let old = beside(to, ending);
        let name = old.file_name().map(OsString::from).unwrap_or_default();
        match std::fs::rename(&old, aside.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            Ok(()) | Err(_) => {}
        }
        reached("restore.old-set-aside");
    }
    std::fs::rename(&new, to).map_err(io)?;
    reached("restore.placed");
    backup::sync_directory_of(to).map_err(io)?;
    Ok(revision)
}

pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

//! A copy of a store that is in use: one consistent snapshot, complete or not there at all.

use super::error::from_sqlite;
use super::{meta, record, schema};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use warren_core::PortError;
use warren_core::ports::store::Revision;
use warren_crashpoint::reached;

/// How long a copy may wait for a lock that somebody else holds on the source.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// Copies the store at `from` into the new file `to`. Blocks.
pub(super) fn copy(from: &Path, to: &Path) -> Result<Revision, PortError> {
    let partial = partial_path(to);
    let copied = copy_into(from, to, &partial);
    // After success it is the second name of the backup, after a failure half a backup.
    if let Err(error) = std::fs::remove_file(&partial)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "the unfinished copy of a backup could not be removed");
    }
    copied
}

fn partial_path(to: &Path) -> PathBuf {
    let mut path = to.as_os_str().to_owned();
    path.push(format!(".{}.partial", std::process::id()));
    path.into()
}

fn copy_into(from: &Path, to: &Path, partial: &Path) -> Result<Revision, PortError> {
    let exists = || {
        PortError::conflict("backup_exists", "there is already a file of that name")
            .with_hint("choose another name")
    };
    if to.exists() {
        return Err(exists());
    }
    let revision = write(from, partial)?;
    reached("backup.copied");
    let io = |error| PortError::io("cannot write the backup", error);
    // A link, unlike a rename, never replaces what has appeared under that name meanwhile.
    std::fs::hard_link(partial, to).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(),
        _ => io(error),
    })?;
    reached("backup.named");
    sync_directory_of(to).map_err(io)?;
    Ok(revision)
}

/// Makes the file `to` a whole, durable copy of the store at `from`, marked as a backup. What was in it is gone.
pub(super) fn write(from: &Path, to: &Path) -> Result<Revision, PortError> {
    let failed = |error| from_sqlite("be backed up", error);
    make_file(to).map_err(|error| PortError::io("cannot write the backup", error))?;
    let source = Connection::open_with_flags(
        from,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(failed)?;
    schema::configure(&source).map_err(failed)?;
    let mut target = Connection::open(to).map_err(failed)?;
    step_through(&source, &mut target)?;
    let (revision, _) = record::counters(&target).map_err(failed)?;
    meta::set(&target, meta::BACKUP_OF, &revision.to_string())?;
    settle(target, to)?;
    Ok(revision)
}

/// Makes a name in the directory of `path` durable.
pub(super) fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|path| !path.as_os_str().is_empty()) {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// An empty file that its owner alone can read, for SQLite to fill.
pub(super) fn make_file(path: &Path) -> std::io::Result<()> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}

/// Makes a finished copy one durable file: without this it would want its log beside it.
pub(super) fn settle(copy: Connection, path: &Path) -> Result<(), PortError> {
    let failed = |error| from_sqlite("be copied", error);
    copy.query_row("PRAGMA journal_mode = DELETE", [], |row| {
        row.get::<_, String>(0)
    })
    .map_err(failed)?;
    copy.close().map_err(|(_, error)| failed(error))?;
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| PortError::io("cannot write the copy of the store", error))
}

pub(super) fn step_through(source: &Connection, target: &mut Connection) -> Result<(), PortError> {
    let failed = |error| from_sqlite("be backed up", error);
    let backup = Backup::new(source, target).map_err(failed)?;
    for _ in 0..ATTEMPTS {
        // All pages in one read transaction: with a log, that keeps no writer waiting.
        match backup.step(-1).map_err(failed)? {
            StepResult::Done => return Ok(()),
            _ => std::thread::sleep(PAUSE),
        }
    }
    Err(PortError::retry(
        "store_busy",
        "the store was too busy to be backed up",
    ))
}

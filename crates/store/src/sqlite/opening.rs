//! Opening a store: the lock first, then the file is known for what it is, brought up to date, looked over for damage,
//! and only then read and written by anybody. On the writer's thread.

use super::changes::{self, Extent, Look};
use super::error::from_sqlite;
use super::lock::StoreLock;
use super::readers::{self, Jobs};
use super::record;
use super::seen::{Noting, Seen};
use super::writer::Writer;
use super::{Never, Older, OpenOptions, Origin, TAIL_BYTES, TAIL_CHANGES, Unowned};
use super::{meta, salvage, schema, upgrade};
use crate::history::History;
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch as signal};
use warren_core::ports::store::Revision;
use warren_core::{InstallationId, PortError};

const READERS: usize = 3;

/// What the writer's thread found when it opened the file.
pub(super) struct Opened {
    pub(super) tail: Arc<Mutex<History>>,
    pub(super) committed: signal::Receiver<Revision>,
    pub(super) installation: Option<InstallationId>,
    pub(super) origin: Origin,
}

/// A connection to the existing file `path` that may write.
pub(super) fn connect(path: &Path) -> Result<Connection, PortError> {
    Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(|error| from_sqlite("be opened", error))
}

/// Opens everything and starts the readers.
pub(super) fn start(
    path: &Path,
    options: &OpenOptions,
    jobs: &Jobs,
    alive: &mpsc::Sender<Never>,
) -> Result<(Arc<StoreLock>, Writer, Opened), PortError> {
    let lock = Arc::new(StoreLock::take(path)?);
    // Made here for its mode, which SQLite gives to the log as well.
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| PortError::io("cannot open the store", error))?;
    let connection = connect(path)?;
    // Before anything is written: a foreign or newer file stays as it is.
    let (found, version) = schema::recognise(&connection, path)?;
    if found == schema::Found::Store && options.older == Older::Refuse {
        upgrade::refuse_older(version)?;
    }
    schema::configure_writer(&connection)?;
    upgrade::bring_up_to_date(path, &connection, found, version)?;
    let (revision, held) = look_over(path, &connection, Look::Brief)?;
    let opened_installation = settle_installation(&connection, options)?;
    let mut seen = Seen::open(path)?;
    let origin = match (found, meta::get(&connection, meta::BACKUP_OF)?) {
        (schema::Found::Empty, _) => Origin::New,
        (schema::Found::Store, Some(_)) => Origin::Backup { revision },
        (schema::Found::Store, None) => match seen.last() {
            Some(seen) if seen > revision => Origin::Behind { revision, seen },
            Some(_) | None => Origin::Existing,
        },
    };
    if matches!(origin, Origin::New | Origin::Existing) {
        seen.note(revision);
    }
    start_readers(path, jobs, &lock, alive)?;
    // Never more than the file has, so that where history begins does not depend on who is asked.
    let tail_changes = options.history.min(TAIL_CHANGES);
    let tail = Arc::new(Mutex::new(History::new(revision, tail_changes, TAIL_BYTES)));
    let (committed, committed_receiver) = signal::channel(revision);
    let writer = Writer {
        connection,
        path: path.to_owned(),
        tail: Arc::clone(&tail),
        committed,
        history: options.history as u64,
        held,
        seen,
        noting: match origin {
            Origin::New | Origin::Existing => Noting::EachCommit,
            Origin::Backup { .. } | Origin::Behind { .. } => Noting::NotYet,
        },
        mended: None,
    };
    let opened = Opened {
        tail,
        committed: committed_receiver,
        installation: opened_installation,
        origin,
    };
    Ok((lock, writer, opened))
}

/// Sets aside what is damaged; gives the last commit and how many changes are held. A lost counter must not hand out a
/// revision twice.
pub(super) fn look_over(
    path: &Path,
    writer: &Connection,
    look: Look,
) -> Result<(Revision, u64), PortError> {
    let recorded = salvage::set_aside(path, writer)?;
    let Extent { newest, held } = changes::settle(path, writer, look, recorded)?;
    let revision = recorded.max(newest);
    writer
        .execute(
            "UPDATE counters SET revision = ?1, held = ?2 WHERE id = 0 AND (revision < ?1 OR held IS NOT ?2)",
            [record::to_sql(revision), record::to_sql(held)],
        )
        .map_err(|error| from_sqlite("be opened", error))?;
    Ok((revision, held))
}

fn settle_installation(
    connection: &Connection,
    options: &OpenOptions,
) -> Result<Option<InstallationId>, PortError> {
    match (
        meta::get(connection, meta::INSTALLATION)?,
        &options.installation,
    ) {
        (Some(stored), _) => stored.parse().map(Some).map_err(|error| {
            PortError::bug(
                "store_corrupt",
                "the store's installation id is not readable",
            )
            .with_hint("restore a backup")
            .with_source(error)
        }),
        (None, Some(given)) if options.unowned == Unowned::Adopt => {
            meta::set(connection, meta::INSTALLATION, given.as_str())?;
            Ok(Some(given.clone()))
        }
        (None, Some(_) | None) => Ok(None),
    }
}

fn start_readers(
    path: &Path,
    jobs: &Jobs,
    lock: &Arc<StoreLock>,
    alive: &mpsc::Sender<Never>,
) -> Result<(), PortError> {
    for _ in 0..READERS {
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .and_then(|connection| {
            schema::configure(&connection)?;
            Ok(connection)
        })
        .map_err(|error| from_sqlite("be opened", error))?;
        let (jobs, lock, alive) = (Arc::clone(jobs), Arc::clone(lock), alive.clone());
        std::thread::Builder::new()
            .name("store-reader".to_owned())
            .spawn(move || {
                readers::serve(connection, &jobs);
                drop(lock);
                drop(alive);
            })
            .map_err(|error| PortError::io("cannot start a reader of the store", error))?;
    }
    Ok(())
}

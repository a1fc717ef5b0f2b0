//! The store on SQLite: a write-ahead log, one writer thread with group commit, a few readers.
//!
//! Owns the file, its lock and its threads. All of SQLite's work is done by those threads; the async
//! side only queues and waits, both with a deadline.

mod backup;
mod beside;
mod changes;
mod error;
mod lock;
mod meta;
mod opening;
mod readers;
mod record;
mod restore;
mod salvage;
mod schema;
mod seen;
mod upgrade;
mod writer;

use crate::DEFAULT_HISTORY;
use crate::history::{Cursor, History, Read};
use crate::rules::{KeyRange, check_limit, check_transaction};
use crate::watch::{self, Source};
use async_trait::async_trait;
use error::{closed, from_sqlite};
use readers::Job;
use record::Checked;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch as signal};
use tokio::time::timeout;
use warren_core::ports::BoxStream;
use warren_core::ports::store::{
    Change, Commit, Damaged, Page, Record, Revision, Store, StoreUpkeep, Transaction,
};
use warren_core::{InstallationId, PortError};
use writer::{Pending, Request, Writer};

pub use restore::restore;
pub use upgrade::SCHEMA_VERSION;

/// Requests that may wait for the writer.
const WRITE_QUEUE: usize = 1024;
/// Reads that may wait for a reader.
const READ_QUEUE: usize = 256;
/// How long a request may wait for its place in a queue.
const QUEUE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a queued request may wait for its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How long closing waits for what is under way.
const CLOSE_DEADLINE: Duration = Duration::from_secs(60);
/// How many changes, and how many bytes of them, spare watchers a query.
const TAIL_CHANGES: usize = 4096;
const TAIL_BYTES: usize = 16 << 20;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The id kept in the data directory. A store that has another keeps it, see
    /// [`SqliteStore::installation`].
    pub installation: Option<InstallationId>,
    /// What becomes of a store that names no installation: one that is new, or was made by a process that
    /// did not trust it.
    pub unowned: Unowned,
    /// How many changes are kept for watchers (up to a tenth more may be).
    pub history: usize,
    /// What becomes of a store of an older schema.
    pub older: Older,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            installation: None,
            unowned: Unowned::Adopt,
            history: DEFAULT_HISTORY,
            older: Older::BringUpToDate,
        }
    }
}

/// What becomes of a store that names no installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unowned {
    /// It becomes this installation's.
    Adopt,
    /// It stays nobody's until [`SqliteStore::accept`]: where instances exist it cannot be their record.
    Leave,
}

/// What becomes of a store of an older schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    /// A copy of it is kept, and it is brought to the schema of this binary.
    BringUpToDate,
    /// It stays as it is and is not opened: for who only looks.
    Refuse,
}

/// Where the contents of an opened store come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// There was none: this one is new and empty.
    New,
    /// It was used here before.
    Existing,
    /// It is a backup and knows nothing of what happened after this revision; it stays marked until
    /// [`SqliteStore::accept`].
    Backup {
        /// The last commit it holds.
        revision: Revision,
    },
    /// It is an older copy of what was used here, put in its place behind our back: this data directory has
    /// seen later commits. Stays so until [`SqliteStore::accept`].
    Behind {
        /// The last commit it holds.
        revision: Revision,
        /// The last commit that was made here.
        seen: Revision,
    },
}

/// See the module. Closed when dropped; [`SqliteStore::close`] also waits for it.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    queues: Arc<RwLock<Option<Queues>>>,
    tail: Arc<Mutex<History>>,
    committed: signal::Receiver<Revision>,
    /// As the store says.
    installation: Option<InstallationId>,
    /// As the data directory says.
    own: Option<InstallationId>,
    origin: Origin,
    /// Yields `None` once every thread has ended.
    threads: tokio::sync::Mutex<mpsc::Receiver<Never>>,
}

/// Nothing is ever sent.
#[derive(Debug)]
enum Never {}

#[derive(Debug, Clone)]
struct Queues {
    writes: mpsc::Sender<Request>,
    reads: mpsc::Sender<Job>,
}

impl SqliteStore {
    /// Opens the store at `path`, making it where there is none (its directory must exist), brings its
    /// schema up to date and sets damaged records aside.
    ///
    /// # Errors
    /// Conflict `store_locked` names the process that has it open; Unsupported `store_newer`, and
    /// `store_older` where it is not to be brought up to date; Invalid `store_foreign`; and what the disk does.
    pub async fn open(
        path: impl Into<PathBuf>,
        options: OpenOptions,
    ) -> Result<SqliteStore, PortError> {
        let path = path.into();
        let (writes, write_requests) = mpsc::channel(WRITE_QUEUE);
        let (reads, read_jobs) = mpsc::channel(READ_QUEUE);
        let (alive, threads) = mpsc::channel(1);
        let (answer, opened) = oneshot::channel();
        let store_path = path.clone();
        let own = options.installation.clone();
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                // Dropped last: whoever waits for it may open the store again at once.
                let alive = alive;
                let jobs = Arc::new(Mutex::new(read_jobs));
                match opening::start(&store_path, &options, &jobs, &alive) {
                    Ok((lock, mut writer, opened)) => {
                        // Nobody may be there to take it; then the queues are closed already.
                        drop(answer.send(Ok(opened)));
                        writer.serve(write_requests);
                        drop(writer);
                        drop(lock);
                    }
                    Err(error) => drop(answer.send(Err(error))),
                }
            })
            .map_err(|error| PortError::io("cannot start the store's thread", error))?;
        let opened = opened.await.map_err(|_| closed())??;
        Ok(SqliteStore {
            path,
            queues: Arc::new(RwLock::new(Some(Queues { writes, reads }))),
            tail: opened.tail,
            committed: opened.committed,
            installation: opened.installation,
            own,
            origin: opened.origin,
            threads: tokio::sync::Mutex::new(threads),
        })
    }

    /// The installation this store belongs to. Where it is not the one of the data directory, the store
    /// is another installation's.
    pub fn installation(&self) -> Option<&InstallationId> {
        self.installation.as_ref()
    }

    /// Where the contents came from when the store was opened.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Takes what the store holds as the record of what is, whatever was doubtful about it: from the next
    /// opening on it is [`Origin::Existing`] and this installation's.
    ///
    /// # Errors
    /// What the disk does.
    pub async fn accept(&self) -> Result<(), PortError> {
        let own = self.own.clone();
        self.ask_writer(move |writer| {
            if let Some(installation) = &own {
                meta::set(
                    &writer.connection,
                    meta::INSTALLATION,
                    installation.as_str(),
                )?;
            }
            meta::remove(&writer.connection, meta::BACKUP_OF)?;
            writer.note_seen();
            Ok(())
        })
        .await
    }

    /// A fact about the store itself: not versioned, not watched, at most a few of them.
    ///
    /// # Errors
    /// What the disk does.
    pub async fn meta(&self, key: &str) -> Result<Option<String>, PortError> {
        let key = key.to_owned();
        self.ask_reader(move |connection| meta::get(connection, &key))
            .await
    }

    /// Sets such a fact, durably.
    ///
    /// # Errors
    /// What the disk does.
    pub async fn set_meta(&self, key: &str, value: &str) -> Result<(), PortError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.ask_writer(move |writer| meta::set(&writer.connection, &key, &value))
            .await
    }

    /// Forgets the damaged records of this key, once somebody has dealt with them.
    ///
    /// # Errors
    /// What the disk does.
    pub async fn forget_damaged(&self, key: &str) -> Result<(), PortError> {
        let key = key.to_owned();
        self.ask_writer(move |writer| {
            writer
                .connection
                .execute("DELETE FROM damaged WHERE key = ?1", [key])
                .map(drop)
                .map_err(|error| from_sqlite("write", error))
        })
        .await
    }

    /// Copies the store, while it is in use, into the new file `path`; returns the last commit the copy
    /// holds. There is never half a backup under that name.
    ///
    /// # Errors
    /// Conflict `backup_exists`, NoSpace `disk_full`, and what else the disk does.
    pub async fn backup_to(&self, path: impl Into<PathBuf>) -> Result<Revision, PortError> {
        let (from, to) = (self.path.clone(), path.into());
        let (answer, copied) = oneshot::channel();
        // A thread of its own, so that no reader is missing meanwhile. The queue held open keeps the
        // lock from being released under it.
        let queues = self.queues()?;
        std::thread::Builder::new()
            .name("store-backup".to_owned())
            .spawn(move || {
                drop(answer.send(backup::copy(&from, &to)));
                drop(queues);
            })
            .map_err(|error| PortError::io("cannot start the backup's thread", error))?;
        // Without a deadline: how long it takes is a matter of size, and the caller can stop waiting.
        copied.await.map_err(|_| closed())?
    }

    /// Finishes what is queued, then lets go of the file: when this returns, it may be opened again.
    /// Everything asked of the store from now on fails with `store_closed`; watches end.
    ///
    /// # Errors
    /// Retry `store_slow` when the disk does not answer; closing then goes on behind the scenes.
    pub async fn close(&self) -> Result<(), PortError> {
        drop(
            self.queues
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let mut threads = self.threads.lock().await;
        match timeout(CLOSE_DEADLINE, threads.recv()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(slow()),
        }
    }

    fn queues(&self) -> Result<Queues, PortError> {
        current(&self.queues).ok_or_else(closed)
    }

    async fn ask_writer<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Writer) -> Result<T, PortError> + Send + 'static,
    ) -> Result<T, PortError> {
        let (answer, done) = oneshot::channel();
        let request = Request::Task(Box::new(move |writer| drop(answer.send(task(writer)))));
        enqueue(&self.queues()?.writes, request).await?;
        answered(done).await
    }

    async fn ask_reader<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Connection) -> Result<T, PortError> + Send + 'static,
    ) -> Result<T, PortError> {
        ask_reader(&self.queues()?.reads, read).await
    }

    /// Reads; sets damage aside where it is met, and reads again.
    async fn read_whole<T: Send + 'static>(
        &self,
        read: impl Fn(&mut Connection) -> Result<Checked<T>, rusqlite::Error> + Clone + Send + 'static,
    ) -> Result<T, PortError> {
        // A disk that keeps flipping bits is not waited for.
        for _ in 0..3 {
            let read = read.clone();
            let seen = self
                .ask_reader(move |connection| {
                    read(connection).map_err(|error| from_sqlite("be read", error))
                })
                .await?;
            match seen {
                Checked::Whole(found) => return Ok(found),
                Checked::Damaged => self.ask_writer(Writer::set_aside).await?,
            }
        }
        Err(PortError::bug(
            "store_corrupt",
            "records of the store are damaged again as soon as they are set aside",
        )
        .with_hint("check the disk and restore a backup"))
    }
}

fn current(queues: &RwLock<Option<Queues>>) -> Option<Queues> {
    queues
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

async fn enqueue<T>(queue: &mpsc::Sender<T>, request: T) -> Result<(), PortError> {
    queue
        .send_timeout(request, QUEUE_DEADLINE)
        .await
        .map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => PortError::retry(
                "store_busy",
                "the store has too much to do; nothing was changed",
            ),
            mpsc::error::SendTimeoutError::Closed(_) => closed(),
        })
}

async fn answered<T>(done: oneshot::Receiver<Result<T, PortError>>) -> Result<T, PortError> {
    match timeout(ANSWER_DEADLINE, done).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(closed()),
        Err(_) => Err(slow()),
    }
}

fn slow() -> PortError {
    PortError::retry(
        "store_slow",
        "the store's disk does not answer in time; a change that was asked for may still be made",
    )
}

async fn ask_reader<T: Send + 'static>(
    queue: &mpsc::Sender<Job>,
    read: impl FnOnce(&mut Connection) -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    let (answer, done) = oneshot::channel();
    let job: Job = Box::new(move |connection| drop(answer.send(read(connection))));
    enqueue(queue, job).await?;
    answered(done).await
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, PortError> {
        let key = key.to_owned();
        self.read_whole(move |connection| record::get(connection, &key))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, PortError> {
        check_limit(limit)?;
        let range = Arc::new(KeyRange::new(prefix, after));
        self.read_whole(move |connection| record::list(connection, &range, limit))
            .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, PortError> {
        check_transaction(&transaction)?;
        let (answer, done) = oneshot::channel();
        let request = Request::Commit(Pending {
            transaction,
            answer,
        });
        enqueue(&self.queues()?.writes, request).await?;
        answered(done).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<Change>, PortError> {
        self.queues()?;
        let source = SqliteSource {
            queues: Arc::downgrade(&self.queues),
            tail: Arc::clone(&self.tail),
        };
        Ok(watch::stream(source, prefix, from, self.committed.clone()))
    }

    async fn revision(&self) -> Result<Revision, PortError> {
        self.queues()?;
        Ok(*self.committed.borrow())
    }

    async fn damaged(&self) -> Result<Vec<Damaged>, PortError> {
        self.ask_reader(|connection| {
            record::damaged(connection).map_err(|error| from_sqlite("be read", error))
        })
        .await
    }

    fn upkeep(&self) -> Option<&dyn StoreUpkeep> {
        Some(self)
    }
}

#[async_trait]
impl StoreUpkeep for SqliteStore {
    async fn backup_to(&self, path: &Path) -> Result<Revision, PortError> {
        SqliteStore::backup_to(self, path).await
    }

    async fn accept(&self) -> Result<(), PortError> {
        SqliteStore::accept(self).await
    }

    async fn forget_damaged(&self, key: &str) -> Result<(), PortError> {
        SqliteStore::forget_damaged(self, key).await
    }
}

/// Weak: a watch does not keep its store open.
struct SqliteSource {
    queues: Weak<RwLock<Option<Queues>>>,
    tail: Arc<Mutex<History>>,
}

#[async_trait]
impl Source for SqliteSource {
    async fn read(&self, prefix: &str, cursor: Cursor) -> Result<Option<Read>, PortError> {
        let Some(queues) = self.queues.upgrade().and_then(|queues| current(&queues)) else {
            return Ok(None);
        };
        let recent = self
            .tail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(prefix, cursor);
        match recent {
            Read::Changes { .. } => Ok(Some(recent)),
            // Longer ago than the tail: the file knows.
            Read::Gone { .. } => {
                let prefix = prefix.to_owned();
                ask_reader(&queues.reads, move |connection| {
                    changes::read(connection, &prefix, cursor)
                        .map_err(|error| from_sqlite("be read", error))
                })
                .await
                .map(Some)
            }
        }
    }
}

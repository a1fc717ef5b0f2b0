//! The one thread that changes the store. Transactions that arrive while the disk is being waited for
//! are committed together by the next wait: one SQLite transaction, a savepoint for each, each answered
//! for itself once all of it is durable.
//!
//! ```text
//! wait for a request ─► take what else has come ─► BEGIN ─► each: guards, SAVEPOINT, writes ─► COMMIT (fsync)
//!        ▲                                                                                        │
//!        └────────────── answer each ◄── announce the revision ◄── extend the tail ◄──────────────┘
//! ```

use super::changes::Look;
use super::error::{STORE_CORRUPT, from_sqlite};
use super::opening;
use super::record::{counters, of_change, of_record, to_sql};
use super::salvage;
use super::schema;
use super::seen::{Noting, Seen};
use crate::history::History;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use warren_core::PortError;
use warren_core::ports::store::{Change, Commit, Guard, Record, Revision, Transaction, Write};

/// The most transactions that share one wait for the disk.
const BATCH: usize = 256;

/// How long after the store was looked over it may be again.
const MEND_AGAIN: Duration = Duration::from_secs(60);

/// What the thread is asked for.
pub(super) enum Request {
    Commit(Pending),
    Task(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// A transaction and who waits for it.
pub(super) struct Pending {
    pub(super) transaction: Transaction,
    pub(super) answer: oneshot::Sender<Result<Commit, PortError>>,
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    /// The last changes, for watchers that keep up.
    pub(super) tail: Arc<Mutex<History>>,
    pub(super) committed: watch::Sender<Revision>,
    /// Changes to keep.
    pub(super) history: u64,
    /// Changes held.
    pub(super) held: u64,
    /// The last commit, beside the store.
    pub(super) seen: Seen,
    pub(super) noting: Noting,
    /// When the store was looked over last because a write had met damage.
    pub(super) mended: Option<Instant>,
}

/// A batch that is durable.
struct Applied {
    outcomes: Vec<Result<Commit, PortError>>,
    commits: Vec<(Revision, Vec<Change>)>,
    held: u64,
}

impl Writer {
    /// Until all senders are gone.
    pub(super) fn serve(&mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match requests.blocking_recv() {
                    Some(request) => waiting.push_back(request),
                    None => return,
                }
            }
            while waiting.len() < BATCH
                && let Ok(request) = requests.try_recv()
            {
                waiting.push_back(request);
            }
            let mut batch = Vec::new();
            loop {
                match waiting.pop_front() {
                    Some(Request::Commit(pending)) => batch.push(pending),
                    Some(task @ Request::Task(_)) if !batch.is_empty() => {
                        waiting.push_front(task);
                        break;
                    }
                    Some(Request::Task(task)) => {
                        task(self);
                        break;
                    }
                    None => break,
                }
            }
            if !batch.is_empty() {
                self.commit(batch);
            }
        }
    }

    fn commit(&mut self, mut batch: Vec<Pending>) {
        let applied = match self.apply_all(&batch) {
            Err(error) if error.code == STORE_CORRUPT && self.may_mend() => {
                self.mend(error).and_then(|()| self.apply_all(&batch))
            }
            applied => applied,
        };
        match applied {
            Ok(applied) => {
                self.announce(applied.commits);
                self.held = applied.held;
                for (pending, outcome) in batch.into_iter().zip(applied.outcomes) {
                    // Whoever asked may have gone; what is durable stays.
                    drop(pending.answer.send(outcome));
                }
            }
            // One large transaction on a full disk must not take the small ones with it.
            Err(_) if batch.len() > 1 => {
                for pending in batch {
                    self.commit(vec![pending]);
                }
            }
            Err(error) => {
                if let Some(pending) = batch.pop() {
                    drop(pending.answer.send(Err(error)));
                }
            }
        }
    }

    fn announce(&mut self, commits: Vec<(Revision, Vec<Change>)>) {
        let Some(&(last, _)) = commits.last() else {
            return;
        };
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        for (revision, changes) in commits {
            tail.push(revision, changes);
        }
        drop(tail);
        if self.noting == Noting::EachCommit {
            self.seen.note(last);
        }
        warren_crashpoint::reached("store.commit-noted");
        self.committed.send_replace(last);
    }

    /// What the store holds is the record of what is, from now on.
    pub(super) fn note_seen(&mut self) {
        self.noting = Noting::EachCommit;
        self.seen.note(*self.committed.borrow());
    }

    fn apply_all(&mut self, batch: &[Pending]) -> Result<Applied, PortError> {
        let failed = |error| from_sqlite("write", error);
        self.connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(failed)?;
        let applied = self.apply_open(batch);
        let finished = match &applied {
            // Nothing was written: nothing to wait for.
            Ok(applied) if applied.commits.is_empty() => self.connection.execute_batch("ROLLBACK"),
            Ok(_) => {
                warren_crashpoint::reached("store.commit-written");
                let durable = self.connection.execute_batch("COMMIT");
                warren_crashpoint::reached("store.commit-durable");
                durable
            }
            Err(_) => Ok(()),
        };
        // A full disk may already have ended the transaction (sqlite.org/lang_transaction.html, 3.1).
        if (applied.is_err() || finished.is_err()) && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").map_err(failed)?;
        }
        finished.map_err(failed)?;
        applied.map_err(failed)
    }

    fn apply_open(&self, batch: &[Pending]) -> Result<Applied, rusqlite::Error> {
        let (mut revision, _) = counters(&self.connection)?;
        let mut applied = Applied {
            outcomes: Vec::with_capacity(batch.len()),
            commits: Vec::with_capacity(batch.len()),
            held: self.held,
        };
        for pending in batch {
            if let Some(guard) = self.first_refusal(&pending.transaction.guards)? {
                applied.outcomes.push(Ok(Commit::Refused { guard }));
                continue;
            }
            self.connection
                .prepare_cached("SAVEPOINT one")?
                .execute([])?;
            match self.write(&pending.transaction.writes, revision + 1) {
                Ok(changes) => {
                    revision += 1;
                    applied.held += changes.len() as u64;
                    applied.commits.push((revision, changes));
                    applied.outcomes.push(Ok(Commit::Done(revision)));
                }
                Err(error) if self.connection.is_autocommit() => return Err(error),
                Err(error) => {
                    self.connection.execute_batch("ROLLBACK TO one")?;
                    applied.outcomes.push(Err(from_sqlite("write", error)));
                }
            }
            self.connection.prepare_cached("RELEASE one")?.execute([])?;
        }
        if !applied.commits.is_empty() {
            applied.held = self.trim(applied.held)?;
            self.connection
                .prepare_cached("UPDATE counters SET revision = ?1, held = ?2 WHERE id = 0")?
                .execute([to_sql(revision), to_sql(applied.held)])?;
        }
        Ok(applied)
    }

    fn first_refusal(&self, guards: &[Guard]) -> Result<Option<usize>, rusqlite::Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT revision FROM records WHERE key = ?1")?;
        for (index, guard) in guards.iter().enumerate() {
            let (Guard::Absent(key) | Guard::At(key, _) | Guard::Present(key)) = guard;
            let found: Option<i64> = statement.query_row([key], |row| row.get(0)).optional()?;
            let holds = match guard {
                Guard::Absent(_) => found.is_none(),
                Guard::Present(_) => found.is_some(),
                Guard::At(_, revision) => found == Some(to_sql(*revision)),
            };
            if !holds {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    fn write(&self, writes: &[Write], revision: Revision) -> Result<Vec<Change>, rusqlite::Error> {
        let mut put = self.connection.prepare_cached(
            "INSERT INTO records (key, value, revision, checksum) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3, checksum = ?4",
        )?;
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM records WHERE key = ?1")?;
        let mut note = self.connection.prepare_cached(
            "INSERT INTO changes (revision, position, key, value, checksum) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let number = to_sql(revision);
        let mut changes = Vec::with_capacity(writes.len());
        let mut position = 0u32;
        for write in writes {
            let (key, value, change) = match write {
                Write::Put(key, value) => {
                    let checksum = of_record(key.as_bytes(), value, number);
                    put.execute(params![key, &value[..], number, checksum])?;
                    let record = Record {
                        key: key.clone(),
                        value: value.clone(),
                        revision,
                    };
                    (key, Some(&value[..]), Change::Put(record))
                }
                Write::Delete(key) => {
                    if delete.execute([key])? == 0 {
                        continue;
                    }
                    let change = Change::Delete {
                        key: key.clone(),
                        revision,
                    };
                    (key, None, change)
                }
            };
            let checksum = of_change(number, position, key.as_bytes(), value);
            note.execute(params![number, position, key, value, checksum])?;
            position += 1;
            changes.push(change);
        }
        Ok(changes)
    }

    /// Drops the oldest history, whole commits at a time, and only once a tenth too much is held.
    /// Returns what is held then, or a little more than that: a count that a flipped bit has changed comes right by it.
    fn trim(&self, held: u64) -> Result<u64, rusqlite::Error> {
        if held <= self.history.saturating_add(self.history / 10) {
            return Ok(held);
        }
        let newest_gone: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT revision FROM changes ORDER BY revision DESC, position DESC LIMIT 1 OFFSET ?1",
            )?
            .query_row([i64::try_from(self.history).unwrap_or(i64::MAX)], |row| {
                row.get(0)
            })
            .optional()?;
        if let Some(newest_gone) = newest_gone {
            self.connection
                .prepare_cached("DELETE FROM changes WHERE revision <= ?1")?
                .execute([newest_gone])?;
            self.connection
                .prepare_cached("UPDATE counters SET compacted = ?1 WHERE id = 0")?
                .execute([newest_gone])?;
        }
        Ok(self.history)
    }

    /// Where it did not help, not every commit waits for it.
    fn may_mend(&self) -> bool {
        self.mended.is_none_or(|last| last.elapsed() > MEND_AGAIN)
    }

    /// After a write met a page that cannot be read: the connection that did is of no use any more, and what the page
    /// belongs to is put aside.
    fn mend(&mut self, met: PortError) -> Result<(), PortError> {
        self.mended = Some(Instant::now());
        tracing::error!(error = %met, cause = ?met.source, "the store is damaged: looking it over");
        self.connection = opening::connect(&self.path)?;
        schema::configure_writer(&self.connection)?;
        let (_, held) = opening::look_over(&self.path, &self.connection, Look::Whole)?;
        self.held = held;
        Ok(())
    }

    /// After a read met a damaged record.
    pub(super) fn set_aside(&mut self) -> Result<(), PortError> {
        salvage::set_aside(&self.path, &self.connection).map(drop)
    }
}

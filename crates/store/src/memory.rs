//! The store in memory: for tests, and for whoever wants nothing to outlive the process.

use crate::DEFAULT_HISTORY;
use crate::history::{Cursor, History, Read};
use crate::rules::{KeyRange, check_limit, check_transaction};
use crate::watch::{self, Source};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch as signal;
use warren_core::PortError;
use warren_core::ports::BoxStream;
use warren_core::ports::store::{
    Change, Commit, Damaged, Guard, Page, Record, Revision, Store, Transaction, Write,
};

/// See the module.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    committed: signal::Sender<Revision>,
}

#[derive(Debug)]
struct State {
    records: BTreeMap<String, Record>,
    revision: Revision,
    history: History,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_history(DEFAULT_HISTORY)
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that keeps this many changes for watchers.
    pub fn with_history(changes: usize) -> Self {
        MemoryStore {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    records: BTreeMap::new(),
                    revision: 0,
                    history: History::new(0, changes, usize::MAX),
                }),
                committed: signal::Sender::new(0),
            }),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // A transaction is applied without a place to panic in, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => !self.records.contains_key(key),
            Guard::Present(key) => self.records.contains_key(key),
            Guard::At(key, revision) => self
                .records
                .get(key)
                .is_some_and(|record| record.revision == *revision),
        }
    }

    fn apply(&mut self, transaction: Transaction) -> Commit {
        if let Some(guard) = transaction.guards.iter().position(|g| !self.holds(g)) {
            return Commit::Refused { guard };
        }
        self.revision += 1;
        let revision = self.revision;
        let mut changes = Vec::with_capacity(transaction.writes.len());
        for write in transaction.writes {
            match write {
                Write::Put(key, value) => {
                    let record = Record {
                        key: key.clone(),
                        value,
                        revision,
                    };
                    self.records.insert(key, record.clone());
                    changes.push(Change::Put(record));
                }
                Write::Delete(key) => {
                    if self.records.remove(&key).is_some() {
                        changes.push(Change::Delete { key, revision });
                    }
                }
            }
        }
        self.history.push(revision, changes);
        Commit::Done(revision)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, PortError> {
        Ok(self.inner.state().records.get(key).cloned())
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, PortError> {
        check_limit(limit)?;
        let range = KeyRange::new(prefix, after);
        let state = self.inner.state();
        let mut records = Vec::new();
        let mut next = None;
        if !range.is_empty() {
            let high = range
                .high
                .as_deref()
                .map_or(Bound::Unbounded, Bound::Excluded);
            let mut found = state
                .records
                .range::<str, _>((Bound::Included(range.low.as_str()), high));
            records.extend(found.by_ref().take(limit).map(|(_, record)| record.clone()));
            next = found
                .next()
                .and_then(|_| records.last().map(|last| last.key.clone()));
        }
        Ok(Page {
            records,
            next,
            revision: state.revision,
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, PortError> {
        check_transaction(&transaction)?;
        let mut state = self.inner.state();
        let commit = state.apply(transaction);
        if let Commit::Done(revision) = commit {
            // Under the lock, so that what is announced never goes backwards.
            self.inner.committed.send_replace(revision);
        }
        Ok(commit)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<Change>, PortError> {
        let source = MemorySource(Arc::downgrade(&self.inner));
        Ok(watch::stream(
            source,
            prefix,
            from,
            self.inner.committed.subscribe(),
        ))
    }

    async fn revision(&self) -> Result<Revision, PortError> {
        Ok(self.inner.state().revision)
    }

    async fn damaged(&self) -> Result<Vec<Damaged>, PortError> {
        Ok(Vec::new())
    }
}

/// Weak: a watch ends with its store.
struct MemorySource(Weak<Inner>);

#[async_trait]
impl Source for MemorySource {
    async fn read(&self, prefix: &str, cursor: Cursor) -> Result<Option<Read>, PortError> {
        Ok(self
            .0
            .upgrade()
            .map(|inner| inner.state().history.read(prefix, cursor)))
    }
}

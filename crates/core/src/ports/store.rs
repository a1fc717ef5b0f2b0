//! The record of intent: keys and JSON values under one revision counter, changed only by guarded
//! transactions, and watched. The shape is etcd's (v3 API: revisions, compare-then-put, watch from a
//! revision), so that SQLite, memory and etcd can hold one contract.

use super::BoxStream;
use crate::PortError;
use async_trait::async_trait;
use bytes::Bytes;
use std::path::Path;

/// A counter that every commit raises by one; the first commit makes 1.
pub type Revision = u64;

/// One live key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// `kind/name`, for example `instance/my-instance`.
    pub key: String,
    /// A JSON document.
    pub value: Bytes,
    /// The commit that wrote this value.
    pub revision: Revision,
}

/// What must hold for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written by this commit.
    At(String, Revision),
    /// The key exists.
    Present(String),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(String, Bytes),
    /// Removes a key; removing what is not there is fine.
    Delete(String),
}

/// All of it or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub guards: Vec<Guard>,
    /// Applied in order.
    pub writes: Vec<Write>,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// Durable, as this revision.
    Done(Revision),
    /// Nothing changed: the first guard, by index, that did not hold.
    Refused {
        /// Index into [`Transaction::guards`].
        guard: usize,
    },
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order of their keys.
    pub records: Vec<Record>,
    /// Where the next page starts (exclusive), when there is one.
    pub next: Option<String>,
    /// The revision this listing is true of: a watch from `revision + 1` misses nothing.
    pub revision: Revision,
}

/// One change as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key was set.
    Put(Record),
    /// A key was removed by this commit.
    Delete {
        /// The key.
        key: String,
        /// The commit.
        revision: Revision,
    },
    /// The history from the asked revision is gone: list again and watch from that listing's revision.
    Compacted {
        /// The oldest revision that can still be watched from.
        oldest: Revision,
    },
}

/// A record that could not be read and was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Its key, as far as it can be told.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The store. At most one process writes.
#[async_trait]
pub trait Store: Send + Sync {
    /// The record under `key`.
    async fn get(&self, key: &str) -> Result<Option<Record>, PortError>;
    /// Up to `limit` records whose keys start with `prefix`, after the key `after` (exclusive).
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, PortError>;
    /// Applies a transaction; `Done` means it is durable.
    async fn commit(&self, transaction: Transaction) -> Result<Commit, PortError>;
    /// Every change of keys under `prefix` from revision `from` (inclusive) on, in order, without gaps
    /// and without end. A slow watcher is never skipped: it reads history.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<Change>, PortError>;
    /// The revision of the last commit; 0 for an empty store.
    async fn revision(&self) -> Result<Revision, PortError>;
    /// Records that were found damaged and are set aside; the rest serve.
    async fn damaged(&self) -> Result<Vec<Damaged>, PortError>;
    /// Looking after the store as a whole, where it is one that can be lost.
    fn upkeep(&self) -> Option<&dyn StoreUpkeep> {
        None
    }
}

/// Looking after a store that lives in a file of this host.
#[async_trait]
pub trait StoreUpkeep: Send + Sync {
    /// Copies the store, while it is in use, into the new file `path`; returns the last commit the copy holds.
    /// There is never half a copy under that name.
    async fn backup_to(&self, path: &Path) -> Result<Revision, PortError>;
    /// Takes what the store holds as the record of what is, whatever was doubtful about it, durably.
    async fn accept(&self) -> Result<(), PortError>;
    /// Forgets the damaged records of this key, once somebody has dealt with them.
    async fn forget_damaged(&self, key: &str) -> Result<(), PortError>;
}

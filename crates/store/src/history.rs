//! The recent changes, in memory: all that the memory store has, and the tail that saves watchers of
//! the SQLite store a query for each commit. Pure; its owner locks it.

use std::collections::VecDeque;
use warren_core::ports::store::{Change, Revision};

/// The next change a watcher wants: this place or anything after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    pub(crate) revision: Revision,
    /// Counting the changes of one commit from 0.
    pub(crate) position: u32,
}

impl Cursor {
    /// The first change of a commit.
    pub(crate) fn start_of(revision: Revision) -> Self {
        Cursor {
            revision,
            position: 0,
        }
    }
}

/// What reading from a cursor gave.
#[derive(Debug)]
pub(crate) enum Read {
    /// Changes under the prefix, and where to go on; the cursor has moved.
    Changes { changes: Vec<Change>, next: Cursor },
    /// Changes at the cursor may be gone.
    Gone { oldest: Revision },
}

/// How many changes one read looks at.
pub(crate) const READ_AT_ONCE: usize = 512;

#[derive(Debug)]
struct Entry {
    at: Cursor,
    change: Change,
}

/// Whole commits, oldest first, within a number and an amount of bytes.
#[derive(Debug)]
pub(crate) struct History {
    entries: VecDeque<Entry>,
    bytes: usize,
    limit: usize,
    limit_bytes: usize,
    /// Every change up to this commit may be gone.
    compacted: Revision,
    /// The last commit.
    revision: Revision,
}

impl History {
    /// Knows nothing of what happened up to `revision`.
    pub(crate) fn new(revision: Revision, limit: usize, limit_bytes: usize) -> Self {
        History {
            entries: VecDeque::new(),
            bytes: 0,
            limit,
            limit_bytes,
            compacted: revision,
            revision,
        }
    }

    /// Adds the changes of the next commit.
    pub(crate) fn push(&mut self, revision: Revision, changes: Vec<Change>) {
        debug_assert_eq!(revision, self.revision + 1);
        self.revision = revision;
        for (position, change) in (0u32..).zip(changes) {
            self.bytes += size(&change);
            self.entries.push_back(Entry {
                at: Cursor { revision, position },
                change,
            });
        }
        while self.entries.len() > self.limit || self.bytes > self.limit_bytes {
            let Some(oldest) = self.entries.front().map(|entry| entry.at.revision) else {
                break;
            };
            self.compacted = oldest;
            while let Some(entry) = self.entries.front()
                && entry.at.revision == oldest
            {
                self.bytes -= size(&entry.change);
                self.entries.pop_front();
            }
        }
    }

    /// The changes under `prefix` among the next [`READ_AT_ONCE`] from `cursor` on.
    pub(crate) fn read(&self, prefix: &str, cursor: Cursor) -> Read {
        if cursor.revision <= self.compacted {
            return Read::Gone {
                oldest: self.compacted + 1,
            };
        }
        let start = self.entries.partition_point(|entry| entry.at < cursor);
        let end = self.entries.len().min(start + READ_AT_ONCE);
        let next = if end == self.entries.len() {
            Cursor::start_of(self.revision + 1).max(cursor)
        } else {
            self.entries[end].at
        };
        let changes = self
            .entries
            .range(start..end)
            .filter(|entry| key(&entry.change).starts_with(prefix))
            .map(|entry| entry.change.clone())
            .collect();
        Read::Changes { changes, next }
    }
}

fn key(change: &Change) -> &str {
    match change {
        Change::Put(record) => &record.key,
        Change::Delete { key, .. } => key,
        Change::Compacted { .. } => "",
    }
}

fn size(change: &Change) -> usize {
    match change {
        Change::Put(record) => record.key.len() + record.value.len(),
        Change::Delete { key, .. } => key.len(),
        Change::Compacted { .. } => 0,
    }
}

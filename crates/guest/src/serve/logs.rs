//! Output, kept until the host has it: the workload's, and that of detached commands.
//!
//! At most so many bytes are kept. What does not fit pushes out the oldest records, acknowledged
//! or not, and whoever asks for those gets a gap. While a host is reading along, [`LogStore::push`] waits
//! a moment instead of pushing out what that host has not been sent yet, so that a fast workload loses
//! nothing to a healthy reader, and a stuck reader delays a workload by no more than that moment.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::protocol::{LogEntry, LogRecord, OutputStream};

/// Bytes kept, counting [`RECORD_OVERHEAD`] for each record.
const CAPACITY: usize = 1024 * 1024;
/// What a record costs beside its data.
const RECORD_OVERHEAD: usize = 64;
/// How long output waits for a reader that is behind.
const READER_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<LogRecord>,
    size: usize,
    /// The last sequence number given out.
    last: u64,
    /// No more output will come.
    ended: bool,
    /// The next record the newest subscriber has not been sent, while there is one that keeps up.
    cursor: Option<u64>,
    subscription: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct LogStore {
    inner: Mutex<Inner>,
    /// Bumped with every change; both ends wait on it.
    changes: watch::Sender<u64>,
    capacity: usize,
    patience: Duration,
}

impl Default for LogStore {
    fn default() -> Self {
        Self::with(CAPACITY, READER_PATIENCE)
    }
}

impl LogStore {
    /// One that keeps so many bytes, and waits so long for a reader that is behind.
    #[must_use]
    pub fn with(capacity: usize, patience: Duration) -> Self {
        Self {
            inner: Mutex::default(),
            changes: watch::Sender::new(0),
            capacity,
            patience,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Adds output. Waits only as the module's documentation says.
    pub async fn push(&self, stream: OutputStream, unix_nanos: u64, data: Bytes) {
        let patience = tokio::time::sleep(self.patience);
        tokio::pin!(patience);
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if !self.lock().would_drop_unsent(data.len(), self.capacity) {
                break;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = &mut patience => {
                    // Nobody waits for this reader again until it moves.
                    self.lock().cursor = None;
                    break;
                }
            }
        }
        self.lock().push(stream, unix_nanos, data, self.capacity);
        self.changed();
    }

    /// No more output will come.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed();
    }

    /// The host has everything up to and including `seq`.
    pub fn acknowledge(&self, seq: u64) {
        {
            let mut inner = self.lock();
            while inner
                .records
                .front()
                .is_some_and(|record| record.seq <= seq)
            {
                inner.drop_oldest();
            }
        }
        self.changed();
    }

    /// The last sequence number given out.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.lock().last
    }

    /// Reads along from a sequence number.
    pub fn subscribe(&self, from: u64) -> Subscription<'_> {
        let mut inner = self.lock();
        inner.subscription += 1;
        let from = from.clamp(1, inner.last + 1);
        inner.cursor = Some(from);
        Subscription {
            store: self,
            id: inner.subscription,
            next: from,
            changes: self.changes.subscribe(),
            state: Reading::Records,
        }
    }
}

impl Inner {
    fn would_drop_unsent(&self, incoming: usize, capacity: usize) -> bool {
        let Some(cursor) = self.cursor else {
            return false;
        };
        let mut size = self.size + incoming + RECORD_OVERHEAD;
        for record in &self.records {
            if size <= capacity {
                return false;
            }
            if record.seq >= cursor {
                return true;
            }
            size -= record.data.len() + RECORD_OVERHEAD;
        }
        false
    }

    fn push(&mut self, stream: OutputStream, unix_nanos: u64, data: Bytes, capacity: usize) {
        self.last += 1;
        self.size += data.len() + RECORD_OVERHEAD;
        self.records.push_back(LogRecord {
            seq: self.last,
            unix_nanos,
            stream,
            data,
        });
        while self.size > capacity && !self.records.is_empty() {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.size -= record.data.len() + RECORD_OVERHEAD;
        }
    }

    fn entry(&self, next: u64) -> Option<LogEntry> {
        let first = self
            .records
            .front()
            .map_or(self.last + 1, |record| record.seq);
        if next < first {
            return Some(LogEntry::Gap {
                from: next,
                to: first - 1,
            });
        }
        // Sequence numbers in the queue have no holes.
        let index = usize::try_from(next - first).ok()?;
        self.records.get(index).cloned().map(LogEntry::Record)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Records,
    Done,
}

/// One reader's place in the log.
#[derive(Debug)]
pub struct Subscription<'a> {
    store: &'a LogStore,
    id: u64,
    next: u64,
    changes: watch::Receiver<u64>,
    state: Reading,
}

impl Subscription<'_> {
    /// The next entry, as soon as there is one; `None` after the end.
    pub async fn next(&mut self) -> Option<LogEntry> {
        loop {
            self.changes.borrow_and_update();
            let entry = {
                let inner = self.store.lock();
                match inner.entry(self.next) {
                    None if inner.ended && self.state == Reading::Records => {
                        self.state = Reading::Done;
                        Some(LogEntry::End { last: inner.last })
                    }
                    other => other,
                }
            };
            match entry {
                Some(entry) => {
                    match &entry {
                        LogEntry::Record(record) => self.next = record.seq + 1,
                        LogEntry::Gap { to, .. } => self.next = to + 1,
                        LogEntry::End { .. } => {}
                    }
                    // Room for whoever waits to add output.
                    self.advance();
                    return Some(entry);
                }
                None if self.state == Reading::Done => return None,
                None => {
                    if self.changes.changed().await.is_err() {
                        return None;
                    }
                }
            }
        }
    }

    fn advance(&self) {
        let moved = {
            let mut inner = self.store.lock();
            let newest = inner.subscription == self.id;
            if newest {
                inner.cursor = Some(self.next);
            }
            newest
        };
        if moved {
            self.store.changed();
        }
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        {
            let mut inner = self.store.lock();
            if inner.subscription == self.id {
                inner.cursor = None;
            }
        }
        self.store.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fill(store: &LogStore, records: usize, size: usize) {
        for _ in 0..records {
            store
                .push(OutputStream::Stdout, 0, Bytes::from(vec![b'x'; size]))
                .await;
        }
    }

    #[tokio::test]
    async fn unread_output_beyond_the_capacity_becomes_one_gap() {
        let store = LogStore::default();
        fill(&store, 300, 8192).await;
        store.end();
        let mut reader = store.subscribe(1);
        let Some(LogEntry::Gap { from: 1, to }) = reader.next().await else {
            panic!("expected a gap");
        };
        let mut expected = to + 1;
        while let Some(LogEntry::Record(record)) = reader.next().await {
            assert_eq!(record.seq, expected);
            expected += 1;
        }
        assert_eq!(expected, 301);
        assert_eq!(to, 300 - (CAPACITY / (8192 + RECORD_OVERHEAD)) as u64);
    }

    #[tokio::test]
    async fn acknowledged_output_is_gone_and_the_rest_is_not() {
        let store = LogStore::default();
        fill(&store, 5, 10).await;
        store.acknowledge(3);
        assert_eq!(
            store.subscribe(1).next().await,
            Some(LogEntry::Gap { from: 1, to: 3 })
        );
        let mut reader = store.subscribe(4);
        assert!(matches!(reader.next().await, Some(LogEntry::Record(record)) if record.seq == 4));
    }

    #[tokio::test]
    async fn a_reader_that_keeps_up_sees_no_gap_however_fast_the_output() {
        let store = LogStore::default();
        let reading = async {
            let mut reader = store.subscribe(1);
            let mut expected = 1;
            loop {
                tokio::task::yield_now().await;
                match reader.next().await {
                    Some(LogEntry::Record(record)) => {
                        assert_eq!(record.seq, expected);
                        expected += 1;
                    }
                    Some(LogEntry::End { last }) => return (last, expected),
                    other => panic!("{other:?}"),
                }
            }
        };
        let writing = async {
            fill(&store, 1000, 16 * 1024).await;
            store.end();
        };
        let ((last, next), ()) = tokio::join!(reading, writing);
        assert_eq!((last, next), (1000, 1001));
    }

    #[tokio::test]
    async fn a_stuck_reader_does_not_stop_the_output() {
        let store = LogStore::default();
        let _stuck = store.subscribe(1);
        let patience = READER_PATIENCE * 3;
        let filled = tokio::time::timeout(patience, fill(&store, 1000, 16 * 1024)).await;
        assert!(filled.is_ok());
    }
}

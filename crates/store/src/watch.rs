//! A watch: reads history from a cursor, and waits for the next commit when there is none left. Nothing
//! is pushed to a watcher and nothing is queued for it, so a slow one costs nothing and misses nothing.

use crate::history::{Cursor, Read};
use async_trait::async_trait;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::watch;
use warren_core::PortError;
use warren_core::ports::BoxStream;
use warren_core::ports::store::{Change, Revision};

/// Where a watch reads from.
#[async_trait]
pub(crate) trait Source: Send + Sync + 'static {
    /// The next changes; `None` when the store is closed.
    async fn read(&self, prefix: &str, cursor: Cursor) -> Result<Option<Read>, PortError>;
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

struct Watch<S> {
    source: S,
    prefix: String,
    cursor: Cursor,
    committed: watch::Receiver<Revision>,
    ready: VecDeque<Change>,
    end: End,
}

enum End {
    NotYet,
    AfterReady,
}

/// The changes from `from` on. Ends after [`Change::Compacted`], and when the store is closed.
pub(crate) fn stream(
    source: impl Source,
    prefix: &str,
    from: Revision,
    committed: watch::Receiver<Revision>,
) -> BoxStream<Change> {
    let watch = Watch {
        source,
        prefix: prefix.to_owned(),
        // The first commit is 1.
        cursor: Cursor::start_of(from.max(1)),
        committed,
        ready: VecDeque::new(),
        end: End::NotYet,
    };
    Box::pin(futures::stream::unfold(watch, |mut watch| async move {
        let change = watch.next().await?;
        Some((change, watch))
    }))
}

impl<S: Source> Watch<S> {
    async fn next(&mut self) -> Option<Change> {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(change);
            }
            match self.end {
                End::AfterReady => return None,
                End::NotYet => {}
            }
            if *self.committed.borrow_and_update() < self.cursor.revision {
                // Without a deadline on purpose: there may never be another commit.
                self.committed.changed().await.ok()?;
                continue;
            }
            match self.source.read(&self.prefix, self.cursor).await {
                Ok(Some(Read::Changes { changes, next })) => {
                    self.ready = changes.into();
                    self.cursor = next;
                    pause = FIRST_PAUSE;
                }
                Ok(Some(Read::Gone { oldest })) => {
                    self.ready.push_back(Change::Compacted { oldest });
                    self.end = End::AfterReady;
                }
                Ok(None) => return None,
                // A watcher must not be skipped because the disk was slow for a moment.
                Err(error) => {
                    tracing::warn!(%error, prefix = self.prefix, "a watch could not read history and tries again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

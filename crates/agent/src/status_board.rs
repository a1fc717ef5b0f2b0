//! What every instance was last seen as, and who wants to hear of changes. A subscriber that falls
//! behind is not waited for: it gets the current status of every instance again.

use futures::Stream;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;
use warren_core::InstanceId;
use warren_core::instance::InstanceStatus;

/// Changes a subscriber may be behind before it is sent everything anew.
const BACKLOG: usize = 4096;

#[derive(Clone)]
pub(crate) struct StatusBoard {
    current: Arc<Mutex<BTreeMap<InstanceId, InstanceStatus>>>,
    changes: broadcast::Sender<InstanceStatus>,
}

impl StatusBoard {
    pub(crate) fn new() -> Self {
        StatusBoard {
            current: Arc::default(),
            changes: broadcast::Sender::new(BACKLOG),
        }
    }

    /// Publishes a status if it differs from the last one of its instance.
    pub(crate) fn publish(&self, status: InstanceStatus) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.get(&status.id) != Some(&status) {
            current.insert(status.id.clone(), status.clone());
            // Sent under the lock, so that a new subscriber's snapshot and its changes join without a gap.
            // Nobody listening is fine.
            let _ = self.changes.send(status);
        }
    }

    /// What an instance was last seen as.
    pub(crate) fn status(&self, id: &InstanceId) -> Option<InstanceStatus> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.get(id).cloned()
    }

    /// Forgets an instance that is gone.
    pub(crate) fn forget(&self, id: &InstanceId) {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    fn snapshot(&self) -> (Vec<InstanceStatus>, broadcast::Receiver<InstanceStatus>) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (
            current.values().cloned().collect(),
            self.changes.subscribe(),
        )
    }

    /// The current status of every instance, then every change.
    pub(crate) fn subscribe(&self) -> impl Stream<Item = InstanceStatus> + Send + use<> {
        let board = self.clone();
        let (pending, changes) = self.snapshot();
        futures::stream::unfold(
            (board, pending.into_iter(), changes),
            |(board, mut pending, mut changes)| async move {
                loop {
                    if let Some(status) = pending.next() {
                        return Some((status, (board, pending, changes)));
                    }
                    match changes.recv().await {
                        Ok(status) => return Some((status, (board, pending, changes))),
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            let (snapshot, receiver) = board.snapshot();
                            pending = snapshot.into_iter();
                            changes = receiver;
                        }
                        Err(broadcast::error::RecvError::Closed) => return None,
                    }
                }
            },
        )
    }
}

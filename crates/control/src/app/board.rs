//! What control knows of every instance, in memory: the committed intent and the last status. Only
//! this process writes intents, so the board is as true as the store: an intent is put here after its commit, never
//! before. A status is the host's word and is put here at once; the store has it a moment later, and after a crash in
//! between the host says it again. Waiters are woken by every change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use warren_core::InstanceId;
use warren_core::instance::{InstanceIntent, InstanceStatus};
use warren_core::ports::store::Revision;

/// The revision of what is not in the record: before the first commit.
pub(crate) const UNRECORDED: Revision = 0;

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What is wanted.
    pub intent: Arc<InstanceIntent>,
    /// The commit that wrote it.
    pub revision: Revision,
    /// What its host said last.
    pub status: Arc<InstanceStatus>,
}

impl View {
    pub(crate) fn new(intent: InstanceIntent, revision: Revision) -> Self {
        let status = Arc::new(InstanceStatus::unreported(&intent));
        View {
            intent: Arc::new(intent),
            revision,
            status,
        }
    }
}

pub(crate) struct Board {
    views: Mutex<BTreeMap<InstanceId, View>>,
    changed: watch::Sender<u64>,
}

impl Board {
    pub(crate) fn new() -> Self {
        Board {
            views: Mutex::new(BTreeMap::new()),
            changed: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, View>> {
        // Every change of the map is a single call: a panic cannot leave it half-made.
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &InstanceId) -> Option<View> {
        self.lock().get(id).cloned()
    }

    /// All of them, by id.
    pub(crate) fn all(&self) -> Vec<View> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn put_intent(&self, intent: InstanceIntent, revision: Revision) -> View {
        let view = {
            let mut views = self.lock();
            let view = views
                .entry(intent.id.clone())
                .and_modify(|view| {
                    if view.revision < revision {
                        view.intent = Arc::new(intent.clone());
                        view.revision = revision;
                    }
                })
                .or_insert_with(|| View::new(intent, revision));
            view.clone()
        };
        self.wake();
        view
    }

    /// An intent that the host knows and the record does not, or knows older. Its revision stays what the
    /// record's is: 0 where there is none.
    pub(crate) fn put_unrecorded(&self, intent: InstanceIntent) {
        self.lock()
            .entry(intent.id.clone())
            .and_modify(|view| {
                if view.intent.generation < intent.generation {
                    view.intent = Arc::new(intent.clone());
                }
            })
            .or_insert_with(|| View::new(intent, UNRECORDED));
        self.wake();
    }

    pub(crate) fn put_status(&self, status: InstanceStatus) {
        if let Some(view) = self.lock().get_mut(&status.id) {
            view.status = Arc::new(status);
        }
        self.wake();
    }

    pub(crate) fn remove(&self, id: &InstanceId) {
        self.lock().remove(id);
        self.wake();
    }

    fn wake(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Marked as seen: `changed` returns at the next change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

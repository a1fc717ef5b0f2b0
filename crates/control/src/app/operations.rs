//! Long work, as it is seen from outside: what it is, how far it is, and the word that ends it early. Whoever does
//! the work says here what it does; nothing is carried out here. It is kept in memory alone: with the server that
//! does the work its list ends, too.
//!
//! ```text
//! Queued ──► Running ──► Succeeded
//!    │          ├──────► Failed      (also when whoever did it went away without a word)
//!    └──────────┴──────► Cancelled
//! ```

use super::{App, AppError};
use futures::StreamExt;
use futures::stream;
use rand::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warren_api::{
    Code, ErrorDetail, Operation, OperationKind, OperationPhase, OperationState, Problem,
};
use warren_core::image::{ImageProgress, LayerPhase};
use warren_core::ports::Clock;
use warren_core::ports::outlet::Archive;
use warren_core::{PortError, Timestamp};

/// Operations of one kind under way at the same time.
const MOST_OF_A_KIND: usize = 64;
/// Ended operations that are remembered.
const MOST_ENDED: usize = 128;
/// How long they are.
const KEPT: std::time::Duration = std::time::Duration::from_secs(3600);
/// Layers whose progress is counted: more than any image may have.
const LAYERS: usize = 1024;

/// The code of what was cancelled, as a port's error has it.
const CANCELLED: &str = "cancelled";

/// How far it is. Pure.
#[derive(Debug, Clone)]
struct Progress {
    state: OperationState,
    phase: Option<OperationPhase>,
    layers: BTreeMap<String, (LayerPhase, u64, u64)>,
    done: Option<u64>,
    total: Option<u64>,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    error: Option<ErrorDetail>,
}

impl Progress {
    fn queued() -> Self {
        Progress {
            state: OperationState::Queued,
            phase: None,
            layers: BTreeMap::new(),
            done: None,
            total: None,
            started: None,
            ended: None,
            error: None,
        }
    }

    /// Takes in a step of an image's way.
    fn step(&mut self, step: &ImageProgress) {
        match step {
            ImageProgress::Resolved { total_bytes, .. } => self.total = Some(*total_bytes),
            ImageProgress::Finishing => self.phase = Some(OperationPhase::Finishing),
            ImageProgress::Layer {
                digest,
                phase,
                bytes,
                total,
            } => {
                if self.layers.len() < LAYERS || self.layers.contains_key(digest) {
                    self.layers.insert(digest.clone(), (*phase, *bytes, *total));
                }
                self.count();
            }
        }
    }

    /// The slowest that is going on names the phase; what has been converted has come in whole.
    fn count(&mut self) {
        let in_phase = |wanted| self.layers.values().any(|(phase, ..)| *phase == wanted);
        let phases = [
            (LayerPhase::Downloading, OperationPhase::Downloading),
            (LayerPhase::Uploading, OperationPhase::Uploading),
            (LayerPhase::Converting, OperationPhase::Converting),
        ];
        let now = phases.into_iter().find(|(layer, _)| in_phase(*layer));
        if let Some((_, phase)) = now {
            self.phase = Some(phase);
        }
        self.done = Some(
            self.layers
                .values()
                .map(|(phase, bytes, total)| match phase {
                    LayerPhase::Waiting => 0,
                    LayerPhase::Downloading | LayerPhase::Uploading => *bytes,
                    LayerPhase::Converting | LayerPhase::Done => *total,
                })
                .sum(),
        );
    }
}

struct Entry {
    id: String,
    kind: OperationKind,
    subject: String,
    created: Timestamp,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
}

impl Entry {
    fn shown(&self) -> Operation {
        let progress = self.progress.borrow();
        Operation {
            id: self.id.clone(),
            kind: self.kind,
            subject: self.subject.clone(),
            state: progress.state,
            phase: progress
                .phase
                .filter(|_| progress.state == OperationState::Running),
            bytes_done: progress.done,
            bytes_total: progress.total,
            created_at: self.created,
            started_at: progress.started,
            ended_at: progress.ended,
            error: progress.error.clone(),
        }
    }

    fn is_active(&self) -> bool {
        self.progress.borrow().state.is_active()
    }
}

/// All that are under way or remembered.
#[derive(Default)]
pub(super) struct Operations(Mutex<VecDeque<Arc<Entry>>>);

impl Operations {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Oldest first.
    fn all(&self, now: Timestamp) -> Vec<Arc<Entry>> {
        let mut list = self.lock();
        list.retain(|entry| {
            let ended = entry.progress.borrow().ended;
            ended.is_none_or(|at| now - at <= KEPT)
        });
        list.iter().map(Arc::clone).collect()
    }

    fn has_room_for(&self, kind: OperationKind) -> bool {
        let list = self.lock();
        let same = list.iter().filter(|it| it.kind == kind && it.is_active());
        same.count() < MOST_OF_A_KIND
    }

    fn add(&self, entry: Arc<Entry>) {
        let mut list = self.lock();
        let ended = list.iter().filter(|entry| !entry.is_active()).count();
        if ended >= MOST_ENDED
            && let Some(oldest) = list.iter().position(|entry| !entry.is_active())
        {
            list.remove(oldest);
        }
        list.push_back(entry);
    }
}

/// The hand of whoever carries an operation out. One that is dropped before its end has failed.
pub(super) struct Tracked {
    entry: Arc<Entry>,
    clock: Arc<dyn Clock>,
}

impl Tracked {
    /// Its turn has come.
    pub(super) fn started(&self, phase: OperationPhase) {
        let now = self.clock.now();
        self.entry.progress.send_modify(|progress| {
            progress.state = OperationState::Running;
            progress.phase = Some(phase);
            progress.started.get_or_insert(now);
        });
    }

    /// It goes on.
    pub(super) fn step(&self, step: &ImageProgress) {
        self.entry
            .progress
            .send_modify(|progress| progress.step(step));
    }

    /// So many bytes, of so many, have come or gone.
    pub(super) fn counted(&self, done: u64, total: Option<u64>) {
        self.entry.progress.send_modify(|progress| {
            progress.done = Some(done);
            progress.total = total.or(progress.total);
        });
    }

    /// What was counted is of the past: it waits for its next turn.
    pub(super) fn queued_again(&self) {
        self.entry.progress.send_modify(|progress| {
            progress.state = OperationState::Queued;
            progress.phase = None;
            progress.done = None;
            progress.total = None;
        });
    }

    /// Returns when somebody cancels it.
    pub(super) async fn cancelled(&self) {
        self.entry.cancel.cancelled().await;
    }

    /// Whether it ended because somebody cancelled it.
    pub(super) fn was_cancelled(&self) -> bool {
        self.entry.progress.borrow().state == OperationState::Cancelled
    }

    /// Why its work ends, where somebody cancelled it.
    pub(super) fn cancellation(&self) -> PortError {
        PortError::conflict(
            CANCELLED,
            format!(
                "the {} of {} was cancelled",
                self.entry.kind, self.entry.subject
            ),
        )
    }

    /// Its end.
    pub(super) fn ended(&self, outcome: Result<(), &Problem>) {
        let now = self.clock.now();
        self.entry.progress.send_modify(|progress| {
            if !progress.state.is_active() {
                return;
            }
            progress.ended = Some(now);
            match outcome {
                Ok(()) => progress.state = OperationState::Succeeded,
                Err(problem) => {
                    progress.state = match problem.code == CANCELLED {
                        true => OperationState::Cancelled,
                        false => OperationState::Failed,
                    };
                    progress.error = Some(ErrorDetail {
                        code: problem.code.clone(),
                        message: problem.detail.clone(),
                    });
                }
            }
        });
    }

    /// Does a part of its work, unless it is cancelled; where the part fails, the operation has.
    pub(super) async fn part<T>(
        &self,
        work: impl Future<Output = Result<T, AppError>>,
    ) -> Result<T, AppError> {
        let outcome = tokio::select! {
            biased;
            outcome = work => outcome,
            () = self.cancelled() => Err(self.cancellation().into()),
        };
        outcome.map_err(|error| {
            let problem = Problem::from(&error);
            self.ended(Err(&problem));
            AppError::Recorded(Box::new(problem))
        })
    }

    /// Does all of its work, unless it is cancelled.
    pub(super) async fn whole<T>(
        self,
        work: impl Future<Output = Result<T, AppError>>,
    ) -> Result<T, AppError> {
        let done = self.part(work).await?;
        self.ended(Ok(()));
        Ok(done)
    }

    /// Goes on for as long as the archive is read. An archive that is cancelled breaks off.
    pub(super) fn while_sent(self, archive: Archive) -> Archive {
        self.started(OperationPhase::Sending);
        self.counted(0, Some(archive.size));
        let size = archive.size;
        let bytes = stream::unfold(Some((archive.bytes, self, 0u64)), move |parts| async move {
            let (mut bytes, tracked, mut done) = parts?;
            let next = tokio::select! {
                biased;
                () = tracked.cancelled() => Some(Err(tracked.cancellation())),
                next = bytes.next() => next,
            };
            match next {
                Some(Ok(chunk)) => {
                    done += chunk.len() as u64;
                    tracked.counted(done, None);
                    if done >= size {
                        // Nobody asks for what comes after the last byte.
                        tracked.ended(Ok(()));
                    }
                    Some((Ok(chunk), Some((bytes, tracked, done))))
                }
                Some(Err(error)) => {
                    tracked.ended(Err(&Problem::from(&error)));
                    Some((Err(error), None))
                }
                None => {
                    tracked.ended(Ok(()));
                    None
                }
            }
        });
        Archive {
            size,
            bytes: bytes.boxed(),
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if self.entry.is_active() {
            self.ended(Err(&Problem::from(&PortError::retry(
                "interrupted",
                "it broke off: whoever waited for it has gone",
            ))));
        }
    }
}

impl App {
    /// As [`App::track`], unless as many of this kind are under way as may be.
    pub(super) fn track_within_bounds(
        &self,
        kind: OperationKind,
        subject: impl Into<String>,
    ) -> Result<Tracked, AppError> {
        if self.0.operations.has_room_for(kind) {
            return Ok(self.track(kind, subject));
        }
        Err(AppError::coded(
            Code::TooManyRequests,
            format!(
                "as many operations of this kind ({kind}) are under way as may be: try again when some have ended"
            ),
        ))
    }

    /// A long work begins: from now on it is seen. For what has a queue with a bound of its own.
    pub(super) fn track(&self, kind: OperationKind, subject: impl Into<String>) -> Tracked {
        let entry = Arc::new(Entry {
            id: format!("op-{:012x}", rand::rng().random::<u64>() >> 16),
            kind,
            subject: subject.into(),
            created: self.0.clock.now(),
            progress: watch::Sender::new(Progress::queued()),
            cancel: CancellationToken::new(),
        });
        self.0.operations.add(Arc::clone(&entry));
        Tracked {
            entry,
            clock: Arc::clone(&self.0.clock),
        }
    }

    /// What is under way, and what has ended of late; oldest first. Only in these states, where there are any.
    pub fn operations(&self, states: &[OperationState]) -> Vec<Operation> {
        let all = self.0.operations.all(self.0.clock.now());
        let shown = all.iter().map(|entry| entry.shown());
        shown
            .filter(|operation| states.is_empty() || states.contains(&operation.state))
            .collect()
    }

    /// How many of each kind have not ended.
    pub(super) fn operations_under_way(&self) -> Vec<(OperationKind, usize)> {
        let list = self.0.operations.lock();
        let active = |kind| {
            let same = list.iter().filter(|it| it.kind == kind && it.is_active());
            (kind, same.count())
        };
        OperationKind::ALL.into_iter().map(active).collect()
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, AppError> {
        let mut all = self.0.operations.all(self.0.clock.now()).into_iter();
        all.find(|entry| entry.id == id)
            .ok_or_else(|| AppError::Missing {
                code: Code::OperationNotFound,
                sentence: format!(
                    "there is no operation {id:?}, or it ended long ago: see `warren operations --all`"
                ),
            })
    }

    /// The operation with an id.
    ///
    /// # Errors
    /// Missing.
    pub fn operation(&self, id: &str) -> Result<Operation, AppError> {
        Ok(self.entry(id)?.shown())
    }

    /// Ends an operation early, for everybody who waits for it; returns when it has ended, or after a while. What
    /// cannot be undone at its very end is done instead, and its state says so.
    ///
    /// # Errors
    /// Missing; it has ended already.
    pub async fn cancel_operation(&self, id: &str) -> Result<Operation, AppError> {
        let entry = self.entry(id)?;
        let mut progress = entry.progress.subscribe();
        let over = match progress.borrow_and_update().state {
            OperationState::Queued | OperationState::Running => None,
            OperationState::Succeeded => Some("is done"),
            OperationState::Failed => Some("has failed"),
            OperationState::Cancelled => Some("is cancelled"),
        };
        if let Some(how) = over {
            return Err(AppError::coded(
                Code::WrongState,
                format!("the {} of {} {how} already", entry.kind, entry.subject),
            ));
        }
        tracing::info!(operation = id, kind = %entry.kind, subject = entry.subject, "cancelled");
        entry.cancel.cancel();
        tokio::select! {
            _ = progress.wait_for(|progress| !progress.state.is_active()) => {}
            () = self.0.clock.sleep(self.0.settings.delete_wait) => {}
        }
        Ok(entry.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, phase: LayerPhase, bytes: u64) -> ImageProgress {
        ImageProgress::Layer {
            digest: digest.to_owned(),
            phase,
            bytes,
            total: 100,
        }
    }

    #[test]
    fn layers_add_up_and_the_slowest_names_the_phase() {
        let mut progress = Progress::queued();
        progress.step(&ImageProgress::Resolved {
            digest: "sha256:m".to_owned(),
            layers: 3,
            total_bytes: 300,
        });
        assert_eq!((progress.done, progress.total), (None, Some(300)));
        let steps = [
            (layer("a", LayerPhase::Waiting, 0), 0, None),
            (
                layer("a", LayerPhase::Downloading, 40),
                40,
                Some(OperationPhase::Downloading),
            ),
            (
                layer("b", LayerPhase::Downloading, 10),
                50,
                Some(OperationPhase::Downloading),
            ),
            // Bytes of a layer that is converted are counted from the beginning; they have come all the same.
            (
                layer("a", LayerPhase::Converting, 5),
                110,
                Some(OperationPhase::Downloading),
            ),
            (
                layer("b", LayerPhase::Done, 0),
                200,
                Some(OperationPhase::Converting),
            ),
            (
                layer("a", LayerPhase::Done, 0),
                200,
                Some(OperationPhase::Converting),
            ),
            (
                ImageProgress::Finishing,
                200,
                Some(OperationPhase::Finishing),
            ),
        ];
        for (step, done, phase) in steps {
            progress.step(&step);
            let seen = (progress.done, progress.phase);
            assert_eq!(seen, (Some(done), phase), "{step:?}");
        }
    }
}

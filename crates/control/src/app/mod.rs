//! Use cases. Each one validates, admits, and changes intent in one guarded transaction; then hands
//! the intent to the host and, where asked, waits for what the host sees. No HTTP in here.

mod board;
mod bundle;
mod commits;
mod create;
mod error;
mod execs;
mod files;
mod follow;
mod host;
mod idempotency;
mod images;
mod lifecycle;
mod limits;
mod operations;
mod pushes;
mod query;
mod registry;
mod ssh;
mod starts;
mod storage;
mod streams;
mod upkeep;
mod uploads;

pub use board::View;
pub use create::{Creation, TENANT, Until};
pub use error::AppError;
pub use idempotency::{Fingerprint, Keyed, Outcome};
pub use images::{ImageItem, JobUpdate};
pub use limits::{Limit, LimitsError, NewLimits};
pub use pushes::PushStep;
pub use query::{Filter, PageOf, PageRequest, Waited};
pub use streams::EventStreamItem;
pub use uploads::Upload;

use crate::metrics::Metrics;
use crate::{Settings, keys};
use board::{Board, UNRECORDED};
use opentelemetry::context::FutureExt as _;
use std::future::Future;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;
use tokio::sync::{RwLock, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use warren_api::Code;
use warren_core::event::{Event, EventKind};
use warren_core::id::{Lookup, Prefixes, look_up};
use warren_core::instance::{Desired, InstanceIntent};
use warren_core::ports::store::{Commit, Guard, Transaction, Write};
use warren_core::ports::{Clock, HostLink, Store};
use warren_core::restart::{Verdict, decide};
use warren_core::state::StateName;
use warren_core::{InstanceId, PortError};
use warren_crashpoint::reached;

/// What a client is told of whom no more shall be known than the log does.
pub(crate) const PANICKED: &str = "something went wrong inside the server; its log has the cause";
/// Tries against others who change the same record.
const CONTENTION_TRIES: u32 = 8;

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct App(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) host: Arc<dyn HostLink>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    board: Board,
    /// A commit and its hand-over hold it shared; a sync, which calls everything else a leak, alone.
    link: RwLock<()>,
    /// Creates hold it shared, from the question for their image to the commit that uses it: what each takes of the host
    /// is reserved on the board. Whoever takes images away or makes room scarce otherwise holds it alone.
    placing: RwLock<()>,
    report: host::ReportCache,
    jobs: images::Jobs,
    pushes: pushes::Pushes,
    operations: operations::Operations,
    starts: starts::Starts,
    in_flight: idempotency::InFlight,
    /// Why the record may not be that of this host, while that is so.
    doubt: StdMutex<Option<String>>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    connected: watch::Sender<Result<(), String>>,
}

impl App {
    /// Loads the record and starts following the host, until `stopping`.
    ///
    /// # Errors
    /// [`PortError`] when the store cannot be read at all; damaged records are named in the log and skipped.
    pub async fn start(
        store: Arc<dyn Store>,
        host: Arc<dyn HostLink>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        stopping: CancellationToken,
    ) -> Result<Self, PortError> {
        let app = App(Arc::new(Inner {
            report: host::ReportCache::default(),
            jobs: images::Jobs::new(settings.pulls),
            pushes: pushes::Pushes::new(),
            operations: operations::Operations::default(),
            starts: starts::Starts::new(settings.starts),
            doubt: StdMutex::new(settings.doubt.clone()),
            store,
            host,
            clock,
            settings,
            metrics: Metrics::new(),
            board: Board::default(),
            link: RwLock::new(()),
            placing: RwLock::new(()),
            in_flight: idempotency::InFlight::default(),
            stopping,
            tasks: TaskTracker::new(),
            connected: watch::Sender::new(Err("its host has not answered yet".to_owned())),
        }));
        let complete = app.read_records().await?;
        let follower = app.clone();
        app.0
            .tasks
            .spawn(async move { follower.follow(complete).await });
        let sweeper = app.clone();
        app.0
            .tasks
            .spawn(async move { sweeper.expire_keys().await });
        let tidying = app.clone();
        app.0.tasks.spawn(async move {
            let mut connected = tidying.0.connected.subscribe();
            tokio::select! {
                answered = connected.wait_for(Result::is_ok) => {
                    if answered.is_err() {
                        return;
                    }
                }
                () = tidying.0.stopping.cancelled() => return,
            }
            tidying.tidy().await;
        });
        Ok(app)
    }

    /// Returns when what was started in the background has ended, after `stopping`.
    pub async fn stopped(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Ends when the server is asked to stop.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    /// Runs to its end even if the caller goes away: a commit must not lose its hand-over.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, AppError>> + Send + 'static,
    ) -> Result<T, AppError> {
        let work = work.in_current_span().with_current_context();
        self.0.tasks.spawn(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a use case panicked");
            Err(AppError::coded(Code::Internal, PANICKED))
        })
    }

    fn find(&self, wanted: &str, prefixes: Prefixes) -> Result<View, AppError> {
        // An id goes before everything else, and needs no search.
        if let Some(view) = wanted.parse().ok().and_then(|id| self.0.board.get(&id)) {
            return Ok(view);
        }
        let candidates = self.0.board.all().into_iter().map(|view| {
            (
                view.intent.id.to_string(),
                view.intent.spec.name.clone(),
                view,
            )
        });
        match look_up(wanted, prefixes, candidates) {
            Lookup::Found(view) => Ok(view),
            Lookup::Missing => Err(AppError::no_instance(wanted)),
            Lookup::Ambiguous(candidates) => Err(AppError::Ambiguous {
                wanted: wanted.to_owned(),
                candidates,
            }),
        }
    }

    fn event(&self, intent: &InstanceIntent, what: EventKind) -> Write {
        let event = Event {
            at: self.0.clock.now(),
            instance: intent.id.clone(),
            name: intent.spec.name.clone(),
            what,
        };
        Write::Put(keys::EVENT.to_owned(), keys::encode(&event))
    }

    /// Changes an intent: `change` sees the newest one and says what it is to be, or that it is so already.
    async fn change(
        &self,
        id: &InstanceId,
        change: impl Fn(&View) -> Result<Option<InstanceIntent>, AppError> + Send + Sync + 'static,
    ) -> Result<View, AppError> {
        let app = self.clone();
        let id = id.clone();
        self.detached(async move {
            for _ in 0..CONTENTION_TRIES {
                let view =
                    (app.0.board.get(&id)).ok_or_else(|| AppError::no_instance(id.as_str()))?;
                let Some(mut intent) = change(&view)? else {
                    return Ok(view);
                };
                if intent.desired != Desired::Deleted {
                    app.must_not_doubt()?;
                }
                intent.generation = view.intent.generation + 1;
                let _shared = app.0.link.read().await;
                let commit = app
                    .0
                    .store
                    .commit(Transaction {
                        guards: vec![view.as_recorded()],
                        writes: vec![Write::Put(keys::instance(&id), keys::encode(&intent))],
                    })
                    .await?;
                match commit {
                    Commit::Done(revision) => {
                        reached("change.intent-committed");
                        tracing::info!(instance = %id, name = intent.spec.name, generation = intent.generation, desired = ?intent.desired, "an intent was changed");
                        let view = app.0.board.put_intent(intent, revision);
                        app.hand_over(&view.intent).await;
                        reached("change.handed-over");
                        return Ok(view);
                    }
                    Commit::Refused { .. } => app.take_recorded(&id).await?,
                }
            }
            Err(AppError::coded(
                Code::Contention,
                "others changed the same instance again and again: try once more",
            ))
        })
        .await
    }

    /// The record is not what was thought: takes what it says now.
    async fn take_recorded(&self, id: &InstanceId) -> Result<(), PortError> {
        let key = keys::instance(id);
        match self.0.store.get(&key).await? {
            Some(record) => {
                self.0
                    .board
                    .put_intent(keys::decode(&record)?, record.revision);
            }
            // Not deleted: what is known of it goes on, and is recorded with the next change.
            None if self.is_damaged(&key).await? => self.0.board.lose_record(id),
            None => self.0.board.remove(id),
        }
        Ok(())
    }

    async fn is_damaged(&self, key: &str) -> Result<bool, PortError> {
        let damaged = self.0.store.damaged().await?;
        Ok(damaged.iter().any(|damaged| damaged.key == key))
    }

    /// Gives an intent to the host, now or, where that fails, as soon as it takes it.
    async fn hand_over(&self, intent: &InstanceIntent) {
        let Err(error) = self.0.host.apply(intent.clone()).await else {
            return;
        };
        tracing::warn!(instance = %intent.id, code = error.code, %error, "the host did not take an intent; trying again");
        let app = self.clone();
        let id = intent.id.clone();
        let generation = intent.generation;
        self.0.tasks.spawn(async move {
            let mut pause = Duration::from_millis(100);
            loop {
                tokio::select! {
                    () = app.0.clock.sleep(pause) => {}
                    () = app.0.stopping.cancelled() => return,
                }
                pause = (pause * 2).min(Duration::from_secs(10));
                let _shared = app.0.link.read().await;
                // A newer change has its own hand-over.
                let Some(view) = app.0.board.get(&id) else { return };
                if view.intent.generation != generation {
                    return;
                }
                match app.0.host.apply((*view.intent).clone()).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(instance = %id, code = error.code, %error, "still not taken");
                    }
                }
            }
        });
    }

    /// Waits until `done` says so about an instance, it is gone, or the time is up.
    async fn wait_until(
        &self,
        id: &InstanceId,
        limit: Duration,
        done: impl Fn(&View) -> bool + Send,
    ) -> Waiting {
        let deadline = self.0.clock.sleep(limit);
        tokio::pin!(deadline);
        loop {
            let Some((view, mut changes)) = self.0.board.watch(id) else {
                return Waiting::Gone;
            };
            if done(&view) {
                return Waiting::Done(view);
            }
            tokio::select! {
                // An error is its end, which the next look sees.
                _ = changes.changed() => {}
                () = &mut deadline => return Waiting::TimedOut(view),
                () = self.0.stopping.cancelled() => return Waiting::TimedOut(view),
            }
        }
    }
}

/// How a wait ended.
enum Waiting {
    Done(View),
    TimedOut(View),
    Gone,
}

impl View {
    /// Holds for as long as the record of its intent is the one that was seen.
    fn as_recorded(&self) -> Guard {
        let key = keys::instance(&self.intent.id);
        match self.revision {
            UNRECORDED => Guard::Absent(key),
            revision => Guard::At(key, revision),
        }
    }

    /// Whether the status is about the newest wish.
    pub(crate) fn is_current(&self) -> bool {
        self.status.generation >= self.intent.generation
    }

    /// Whether its run is over for good: nothing happens before somebody acts.
    pub(crate) fn has_ended(&self) -> bool {
        if !self.is_current() || self.status.state.name() != StateName::Stopped {
            return false;
        }
        if self.intent.desired == Desired::Stopped {
            return true;
        }
        match &self.status.exit {
            Some(exit) if self.status.run >= self.intent.run => matches!(
                decide(
                    &self.intent.spec.restart,
                    &self.status.restart,
                    exit.code,
                    self.status.started_at,
                    exit.at,
                ),
                Verdict::Stay
            ),
            _ => self.status.failure.is_some(),
        }
    }

    /// Whether it takes room on its host.
    fn takes_room(&self) -> bool {
        match self.intent.desired {
            Desired::Running | Desired::Paused => !self.has_ended(),
            // Until it is there: and where it cannot be had, it runs on.
            Desired::Standby => !self.has_ended() && self.status.state.name() != StateName::Standby,
            Desired::Stopped | Desired::Deleted => self.status.state.vmm().is_some(),
        }
    }
}

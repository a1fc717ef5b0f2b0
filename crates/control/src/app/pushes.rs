//! Pushes: images on their way to registries, as tracked jobs.

use super::images::registry_credentials;
use super::operations::Tracked;
use super::{App, AppError};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rand::Rng;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, broadcast, watch};
use tracing::Instrument;
use warren_api::push::{CreatePushRequest, Push, PushStatus};
use warren_api::{Code, OperationKind, OperationPhase, Problem};
use warren_core::PortError;
use warren_core::image::ImageProgress;
use warren_core::ports::host_link::PushUpdate;
use warren_core::ports::images::{PullRequest, PushRequest, Pushed, Transport};

/// Pushes under way or queued at most.
const MOST_ACTIVE: usize = 64;
/// Pushes remembered at most, with those under way.
const MOST: usize = 128;
/// Pushes carried out at once.
const AT_ONCE: usize = 3;

/// What a follower of a push gets; the last one is not `Progress`.
#[derive(Debug, Clone)]
pub enum PushStep {
    /// It goes on.
    Progress(ImageProgress),
    /// The registry has it.
    Done(Box<Push>),
    /// It failed.
    Failed(Box<Problem>),
}

#[derive(Debug, Clone)]
struct State {
    push: Push,
    problem: Option<Box<Problem>>,
}

struct Job {
    /// To join it: everything but credentials, with the image's own id.
    request: CreatePushRequest,
    state: watch::Sender<State>,
    progress: broadcast::Sender<ImageProgress>,
}

impl Job {
    fn is_active(&self) -> bool {
        matches!(
            self.state.borrow().push.status,
            PushStatus::Queued | PushStatus::Pushing
        )
    }

    fn follow(&self) -> BoxStream<'static, PushStep> {
        let parts = (self.progress.subscribe(), self.state.subscribe());
        stream::unfold(Some(parts), |parts| async move {
            let (mut progress, mut state) = parts?;
            loop {
                let now = state.borrow_and_update().clone();
                match (now.push.status, now.problem) {
                    (PushStatus::Pushed, _) => {
                        return Some((PushStep::Done(Box::new(now.push)), None));
                    }
                    (_, Some(problem)) => return Some((PushStep::Failed(problem), None)),
                    (_, None) => {}
                }
                tokio::select! {
                    step = progress.recv() => match step {
                        Ok(step) => {
                            return Some((PushStep::Progress(step), Some((progress, state))));
                        }
                        // Progress is for people: what a slow reader missed is not worth a wait.
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                    changed = state.changed() => {
                        if changed.is_err() {
                            return None;
                        }
                    }
                }
            }
        })
        .boxed()
    }
}

pub(super) struct Pushes {
    permits: Semaphore,
    list: Mutex<VecDeque<Arc<Job>>>,
}

impl Pushes {
    pub(super) fn new() -> Self {
        Pushes {
            permits: Semaphore::new(AT_ONCE),
            list: Mutex::default(),
        }
    }

    /// All that are remembered, oldest first.
    fn all(&self) -> Vec<Push> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = 0;
        list.iter()
            .map(|job| {
                let mut push = job.state.borrow().push.clone();
                if push.status == PushStatus::Queued {
                    waiting += 1;
                    push.queue_position = Some(waiting);
                }
                push
            })
            .collect()
    }

    /// The same push that is under way, or this one.
    fn enter(&self, job: Job) -> Result<(Arc<Job>, bool), AppError> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let active = |held: &&Arc<Job>| held.is_active();
        if let Some(same) = list
            .iter()
            .filter(active)
            .find(|held| held.request == job.request)
        {
            return Ok((Arc::clone(same), false));
        }
        if list.iter().filter(active).count() >= MOST_ACTIVE {
            return Err(AppError::coded(
                Code::TooManyRequests,
                "too many images are on their way out: try again when some have gone",
            ));
        }
        while list.len() >= MOST {
            let Some(oldest) = list.iter().position(|held| !held.is_active()) else {
                break;
            };
            list.remove(oldest);
        }
        let job = Arc::new(job);
        list.push_back(Arc::clone(&job));
        Ok((job, true))
    }
}

impl App {
    /// Pushes under way and remembered, oldest first.
    pub fn pushes(&self) -> Vec<Push> {
        self.0.pushes.all()
    }

    /// The push with an id.
    ///
    /// # Errors
    /// Missing.
    pub fn push(&self, id: &str) -> Result<Push, AppError> {
        let mut all = self.0.pushes.all().into_iter();
        all.find(|push| push.id == id)
            .ok_or_else(|| AppError::Missing {
                code: Code::PushNotFound,
                sentence: format!("there is no push {id:?}, or it was long ago"),
            })
    }

    /// Starts a push, or joins the same one; returns its state at once.
    ///
    /// # Errors
    /// Missing; a request that can never work or is not allowed; too many at once.
    pub async fn start_push(&self, request: CreatePushRequest) -> Result<Push, AppError> {
        let job = self.push_job(request).await?;
        let id = job.state.borrow().push.id.clone();
        self.push(&id)
    }

    /// Starts or joins a push, and follows it.
    ///
    /// # Errors
    /// As [`App::start_push`].
    pub async fn push_followed(
        &self,
        request: CreatePushRequest,
    ) -> Result<BoxStream<'static, PushStep>, AppError> {
        Ok(self.push_job(request).await?.follow())
    }

    async fn push_job(&self, mut request: CreatePushRequest) -> Result<Arc<Job>, AppError> {
        let credentials = registry_credentials(request.credentials.as_ref())?;
        request.credentials = None;
        let transport = match request.insecure {
            true => Transport::PlainHttp,
            false => Transport::Https,
        };
        // The same rules for where images go as for where they come from.
        let may = PullRequest {
            reference: request.target.clone(),
            ..PullRequest::default()
        };
        self.0.host.images().check_pull(&may).await?;
        let record = self.image_for(&request.image).await?;
        request.image.clone_from(&record.id);
        let push = Push {
            id: format!("push-{:012x}", rand::rng().random::<u64>() >> 16),
            image: record.name,
            digest: record.digest,
            target: request.target.clone(),
            status: PushStatus::Queued,
            queue_position: None,
            error: None,
            layers: None,
            bytes: None,
            created_at: self.0.clock.now(),
            completed_at: None,
        };
        let wanted = PushRequest {
            id: record.id,
            target: request.target.clone(),
            transport,
            credentials,
        };
        let (job, fresh) = self.0.pushes.enter(Job {
            request,
            state: watch::Sender::new(State {
                push,
                problem: None,
            }),
            progress: broadcast::Sender::new(256),
        })?;
        if fresh {
            let app = self.clone();
            let running = Arc::clone(&job);
            let operation = self.track(OperationKind::Push, &job.request.target);
            let work = async move {
                let ended = tokio::select! {
                    biased;
                    ended = app.run_push(&running, &operation, wanted) => ended,
                    () = operation.cancelled() => Err(operation.cancellation()),
                    () = app.0.stopping.cancelled() => Err(PortError::retry(
                        "server_stopping",
                        "the server is stopping: ask again when it is back",
                    )),
                };
                let at = app.0.clock.now();
                running.state.send_modify(|state| {
                    state.push.completed_at = Some(at);
                    match ended {
                        Ok(pushed) => {
                            operation.ended(Ok(()));
                            state.push.status = PushStatus::Pushed;
                            state.push.target = pushed.target;
                            state.push.layers = u64::try_from(pushed.layers).ok();
                            state.push.bytes = Some(pushed.sent_bytes);
                        }
                        Err(error) => {
                            let problem = Problem::from(&AppError::Port(error));
                            operation.ended(Err(&problem));
                            state.push.status = PushStatus::Failed;
                            state.push.error = Some(problem.detail.clone());
                            state.problem = Some(Box::new(problem));
                        }
                    }
                });
            };
            self.0.tasks.spawn(work.in_current_span());
        }
        Ok(job)
    }

    async fn run_push(
        &self,
        job: &Job,
        operation: &Tracked,
        request: PushRequest,
    ) -> Result<Pushed, PortError> {
        let _permit = self.0.pushes.permits.acquire().await.map_err(|e| {
            PortError::bug("queue_closed", "the queue of pushes is closed").with_source(e)
        })?;
        let pushing = |state: &mut State| state.push.status = PushStatus::Pushing;
        job.state.send_modify(pushing);
        operation.started(OperationPhase::Uploading);
        let mut updates = self.0.host.images().push(request).await?;
        while let Some(update) = updates.next().await {
            match update {
                PushUpdate::Done(result) => return result,
                PushUpdate::Progress(step) => {
                    operation.step(&step);
                    // Nobody listening is fine.
                    let _ = job.progress.send(step);
                }
            }
        }
        Err(PortError::retry(
            "push_interrupted",
            "the host went away before the image was sent: ask again",
        ))
    }
}

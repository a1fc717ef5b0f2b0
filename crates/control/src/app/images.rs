//! Images: what is on the host, and what is on its way there as tracked jobs.

use super::operations::Tracked;
use super::query::{Filter, PageOf, PageRequest};
use super::{App, AppError};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rand::Rng;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit, broadcast, watch};
use tracing::Instrument;
use warren_api::convert::{self, ConvertError};
use warren_api::{
    Code, CreateImageRequest, Image, ImageStatus, OperationKind, OperationPhase, Problem,
    PushCredentials,
};
use warren_core::image::{ImageProgress, ImageRecord};
use warren_core::ports::host_link::{ImageImport, ImageUpdate};
use warren_core::ports::images::{PullRequest, RegistryCredentials, Transport};
use warren_core::{ErrorClass, PortError, Timestamp};

/// Jobs under way or queued at most.
const MOST_JOBS: usize = 64;
/// Failures remembered at most.
const MOST_FAILURES: usize = 64;
/// How long a failure is remembered, for those who asked and looked away.
const FAILURES_KEPT: std::time::Duration = std::time::Duration::from_secs(3600);

/// An image here, or on its way.
pub type ImageItem = Image;

/// What a follower of a job gets; the last one is not `Progress`.
#[derive(Debug, Clone)]
pub enum JobUpdate {
    /// It goes on.
    Progress(ImageProgress),
    /// These images are here.
    Done(Vec<Image>),
    /// It failed.
    Failed(Problem),
}

#[derive(Debug, Clone)]
enum JobState {
    Queued,
    Running {
        digest: String,
        finishing: bool,
    },
    Done(Vec<Image>),
    Failed {
        problem: Box<Problem>,
        /// On the monotonic clock.
        at: std::time::Duration,
    },
}

impl JobState {
    /// What its followers hear last.
    fn end(&self) -> Option<JobUpdate> {
        match self {
            JobState::Done(images) => Some(JobUpdate::Done(images.clone())),
            JobState::Failed { problem, .. } => Some(JobUpdate::Failed((**problem).clone())),
            JobState::Queued | JobState::Running { .. } => None,
        }
    }
}

/// Whether a request for the same thing joins a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joins {
    /// It does: both want the same bytes.
    Same,
    /// Never: each upload has bytes of its own.
    Never,
}

struct Job {
    id: String,
    joins: Joins,
    /// What it was asked to do, to join it: everything but credentials.
    request: CreateImageRequest,
    at: Timestamp,
    state: watch::Sender<JobState>,
    progress: broadcast::Sender<ImageProgress>,
}

impl Job {
    fn is_active(&self) -> bool {
        matches!(
            *self.state.borrow(),
            JobState::Queued | JobState::Running { .. }
        )
    }

    fn has_failed(&self) -> bool {
        matches!(*self.state.borrow(), JobState::Failed { .. })
    }

    /// Whether it failed so long ago that nobody looks for it any more.
    fn is_forgotten(&self, now: std::time::Duration) -> bool {
        match &*self.state.borrow() {
            JobState::Failed { at, .. } => now.saturating_sub(*at) > FAILURES_KEPT,
            JobState::Queued | JobState::Running { .. } | JobState::Done(_) => false,
        }
    }

    fn image(&self, queue_position: Option<u32>) -> Image {
        let (status, digest, error) = match &*self.state.borrow() {
            JobState::Done(images) => match images.first() {
                Some(image) => return image.clone(),
                None => (ImageStatus::Ready, String::new(), None),
            },
            JobState::Queued => (ImageStatus::Pending, String::new(), None),
            JobState::Running { digest, finishing } => (
                if *finishing {
                    ImageStatus::Converting
                } else {
                    ImageStatus::Pulling
                },
                digest.clone(),
                None,
            ),
            JobState::Failed { problem, .. } => (
                ImageStatus::Failed,
                String::new(),
                Some(problem.detail.clone()),
            ),
        };
        Image {
            id: self.id.clone(),
            name: self.request.name.clone(),
            created_at: self.at,
            version: None,
            digest,
            platform: self.request.platform.clone(),
            status,
            queue_position: queue_position.filter(|_| status == ImageStatus::Pending),
            error,
            size_bytes: None,
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: std::collections::BTreeMap::new(),
            working_dir: None,
            user: None,
            exposed_ports: Vec::new(),
            tags: self.request.tags.clone(),
        }
    }

    fn follow(&self) -> BoxStream<'static, JobUpdate> {
        let progress = self.progress.subscribe();
        let state = self.state.subscribe();
        stream::unfold(Some((progress, state)), |parts| async move {
            let (mut progress, mut state) = parts?;
            loop {
                if let Some(end) = state.borrow_and_update().end() {
                    return Some((end, None));
                }
                tokio::select! {
                    step = progress.recv() => match step {
                        Ok(step) => {
                            return Some((JobUpdate::Progress(step), Some((progress, state))));
                        }
                        // Progress is for people: what a slow reader missed is not worth a wait.
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        // A job that nobody lists any more says how it ended all the same.
                        Err(broadcast::error::RecvError::Closed) => {
                            return state.borrow().end().map(|end| (end, None));
                        }
                    },
                    changed = state.changed() => {
                        if changed.is_err() {
                            return state.borrow().end().map(|end| (end, None));
                        }
                    }
                }
            }
        })
        .boxed()
    }
}

pub(super) struct Jobs {
    permits: Arc<Semaphore>,
    list: Mutex<VecDeque<Arc<Job>>>,
}

impl Jobs {
    pub(super) fn new(at_once: usize) -> Self {
        Jobs {
            permits: Arc::new(Semaphore::new(at_once.max(1))),
            list: Mutex::new(VecDeque::new()),
        }
    }

    /// Jobs that are not done, with their places in the queue.
    fn visible(&self, now: std::time::Duration) -> Vec<(Arc<Job>, Option<u32>)> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|job| !job.is_forgotten(now));
        let mut waiting = 0;
        list.iter()
            .filter(|job| job.is_active() || job.has_failed())
            .map(|job| {
                let place = matches!(*job.state.borrow(), JobState::Queued).then(|| {
                    waiting += 1;
                    waiting
                });
                (Arc::clone(job), place)
            })
            .collect()
    }

    fn enter(&self, job: Job) -> Result<(Arc<Job>, bool), AppError> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = list.iter().find(|held| {
            held.is_active()
                && held.joins == Joins::Same
                && job.joins == Joins::Same
                && held.request == job.request
        }) {
            return Ok((Arc::clone(same), false));
        }
        if list.iter().filter(|job| job.is_active()).count() >= MOST_JOBS {
            return Err(AppError::coded(
                Code::TooManyRequests,
                "too many images are on their way: try again when some are here",
            ));
        }
        list.retain(|held| {
            held.is_active() || (held.has_failed() && held.request.name != job.request.name)
        });
        while list.len() >= MOST_JOBS + MOST_FAILURES {
            let Some(oldest) = list.iter().position(|job| !job.is_active()) else {
                break;
            };
            list.remove(oldest);
        }
        let job = Arc::new(job);
        list.push_back(Arc::clone(&job));
        Ok((job, true))
    }

    fn forget(&self, job: &Arc<Job>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|held| !Arc::ptr_eq(held, job));
    }

    fn forget_failures(&self) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|job| !job.has_failed());
    }

    fn forget_failed(&self, wanted: &str) -> bool {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let before = list.len();
        list.retain(|job| !(job.has_failed() && (job.id == wanted || job.request.name == wanted)));
        list.len() < before
    }
}

pub(super) fn check(request: &CreateImageRequest) -> Result<Option<RegistryCredentials>, AppError> {
    let name = &request.name;
    if name.is_empty()
        || name.len() > 512
        || name.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        return Err(AppError::field(
            "name",
            "must be a reference such as nginx:1.27, without spaces",
        ));
    }
    if let Some(id) = &request.id {
        warren_core::id::check_id(id).map_err(|e| AppError::field("id", e.to_string()))?;
    }
    if let Some(platform) = &request.platform
        && !(3..=64).contains(&platform.len())
    {
        return Err(AppError::field("platform", "must be such as linux/amd64"));
    }
    convert::check_tags("tags", &request.tags)?;
    registry_credentials(request.credentials.as_ref())
}

/// The credentials of a request, as ports take them.
pub(super) fn registry_credentials(
    given: Option<&PushCredentials>,
) -> Result<Option<RegistryCredentials>, AppError> {
    let Some(credentials) = given else {
        return Ok(None);
    };
    match (
        &credentials.username,
        &credentials.password,
        &credentials.registry_token,
    ) {
        (None, None, None) => Ok(None),
        (None, None, Some(token)) => Ok(Some(RegistryCredentials::Token(token.clone()))),
        (Some(username), Some(password), None) => Ok(Some(RegistryCredentials::Basic {
            username: username.clone(),
            password: password.clone(),
        })),
        _ => Err(AppError::Request(ConvertError::Field {
            field: "credentials",
            problem: "give username and password, or registry_token".to_owned(),
        })),
    }
}

impl App {
    /// Forgets what has failed: somebody is clearing up.
    pub(super) fn forget_failed_images(&self) {
        self.0.jobs.forget_failures();
    }

    pub(super) fn jobs_running(&self) -> usize {
        self.0
            .jobs
            .visible(self.0.clock.monotonic())
            .iter()
            .filter(|(job, _)| job.is_active())
            .count()
    }

    /// Waits until one more image may come in.
    pub(super) async fn image_permit(&self) -> Result<SemaphorePermit<'_>, PortError> {
        self.0.jobs.permits.acquire().await.map_err(|e| {
            PortError::bug("queue_closed", "the queue of images is closed").with_source(e)
        })
    }

    /// Images here and on their way.
    ///
    /// # Errors
    /// The host's; a page token that is none.
    pub async fn images(
        &self,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<PageOf<Image>, AppError> {
        let records = self.0.host.images().list().await?;
        let mut all: Vec<Image> = records.iter().map(convert::image).collect();
        all.extend(
            self.0
                .jobs
                .visible(self.0.clock.monotonic())
                .iter()
                .map(|(job, place)| job.image(*place)),
        );
        all.retain(|image| filter.admits(None, &image.tags));
        all.sort_by(|a, b| (&a.id, &a.name).cmp(&(&b.id, &b.name)));
        PageOf::cut(all, page, |image| format!("{}\n{}", image.id, image.name))
    }

    /// The image that `wanted` names.
    ///
    /// # Errors
    /// Missing; the host's.
    pub async fn image(&self, wanted: &str) -> Result<Image, AppError> {
        match self.image_for(wanted).await {
            Ok(record) => Ok(convert::image(&record)),
            Err(missing @ AppError::Missing { .. }) => self
                .0
                .jobs
                .visible(self.0.clock.monotonic())
                .iter()
                .rev()
                .find(|(job, _)| job.id == wanted || job.request.name == wanted)
                .map(|(job, place)| job.image(*place))
                .ok_or(missing),
            Err(error) => Err(error),
        }
    }

    /// Starts a pull, or joins the same one, or finds the image here already; returns its state at once.
    ///
    /// # Errors
    /// A request that can never work or is not allowed; too many at once.
    pub async fn pull(&self, request: CreateImageRequest) -> Result<Image, AppError> {
        check(&request)?;
        if let Some(record) = self.0.host.images().find(&request.name).await? {
            let same_id = request.id.as_ref().is_none_or(|id| *id == record.id);
            let same_platform = request
                .platform
                .as_ref()
                .is_none_or(|p| *p == record.platform);
            let by_reference = request.name != record.id;
            if same_id && same_platform && by_reference && request.tags.is_empty() {
                return Ok(convert::image(&record));
            }
        }
        let job = self.pull_job(request).await?;
        let place = self
            .0
            .jobs
            .visible(self.0.clock.monotonic())
            .iter()
            .find(|(other, _)| Arc::ptr_eq(other, &job))
            .and_then(|(_, place)| *place);
        Ok(job.image(place))
    }

    /// Starts or joins a pull, and follows it. It asks the registry even when there is an image of that
    /// name: a tag may have moved.
    ///
    /// # Errors
    /// A request that can never work or is not allowed; too many at once.
    pub async fn pull_followed(
        &self,
        request: CreateImageRequest,
    ) -> Result<BoxStream<'static, JobUpdate>, AppError> {
        check(&request)?;
        Ok(self.pull_job(request).await?.follow())
    }

    async fn pull_job(&self, mut request: CreateImageRequest) -> Result<Arc<Job>, AppError> {
        let credentials = check(&request)?;
        request.credentials = None;
        let pull = PullRequest {
            reference: request.name.clone(),
            id: request.id.clone(),
            platform: request.platform.clone(),
            transport: match request.plain_http {
                Some(true) => Transport::PlainHttp,
                Some(false) | None => Transport::Https,
            },
            credentials,
            tags: request.tags.clone(),
        };
        // What can never work is said at once, and not by a job that fails.
        self.0.host.images().check_pull(&pull).await?;
        self.job(request, ImageImport::Pull(pull), Joins::Same, (), None)
    }

    /// Starts a job of its own, and follows it. `keep` lives as long as the job: the spooled file of an upload, whose
    /// coming in was a part of the operation `tracked`.
    pub(super) fn import_followed(
        &self,
        request: CreateImageRequest,
        import: ImageImport,
        keep: impl Send + Sync + 'static,
        tracked: Option<Tracked>,
    ) -> Result<BoxStream<'static, JobUpdate>, AppError> {
        let job = self.job(request, import, Joins::Never, keep, tracked)?;
        Ok(job.follow())
    }

    fn job(
        &self,
        request: CreateImageRequest,
        import: ImageImport,
        joins: Joins,
        keep: impl Send + Sync + 'static,
        tracked: Option<Tracked>,
    ) -> Result<Arc<Job>, AppError> {
        let id = request
            .id
            .clone()
            .unwrap_or_else(|| format!("img-{:012x}", rand::rng().random::<u64>() >> 16));
        let entered = self.0.jobs.enter(Job {
            id,
            joins,
            request,
            at: self.0.clock.now(),
            state: watch::Sender::new(JobState::Queued),
            progress: broadcast::Sender::new(256),
        });
        let (job, fresh) = entered.inspect_err(|error| {
            if let Some(tracked) = &tracked {
                tracked.ended(Err(&Problem::from(error)));
            }
        })?;
        if fresh {
            let app = self.clone();
            let running = Arc::clone(&job);
            let operation = tracked.unwrap_or_else(|| {
                let kind = match &import {
                    ImageImport::Pull(_) => OperationKind::Pull,
                    ImageImport::Load(_) => OperationKind::Load,
                    ImageImport::Commit(..) => OperationKind::Commit,
                };
                self.track(kind, &job.request.name)
            });
            let work = async move {
                let _keep = keep;
                let ended = tokio::select! {
                    biased;
                    ended = app.run_job(&running, &operation, import) => ended,
                    () = operation.cancelled() => Err(operation.cancellation()),
                    () = app.0.stopping.cancelled() => Err(PortError::retry(
                        "server_stopping",
                        "the server is stopping: ask again when it is back",
                    )),
                };
                let state = match ended {
                    Ok(records) => {
                        operation.ended(Ok(()));
                        JobState::Done(records.iter().map(convert::image).collect())
                    }
                    Err(error) => {
                        let problem = Box::new(Problem::from(&AppError::Port(error)));
                        operation.ended(Err(&problem));
                        JobState::Failed {
                            problem,
                            at: app.0.clock.monotonic(),
                        }
                    }
                };
                let done = matches!(state, JobState::Done(_));
                app.0.metrics.pull_ended(done);
                running.state.send_replace(state);
                if operation.was_cancelled() {
                    // Who cancelled it knows; it is no image that failed to come.
                    app.0.jobs.forget(&running);
                }
                if done {
                    // A tag may have moved on, and the store may have outgrown its budget.
                    app.tidy().await;
                }
            };
            self.0.tasks.spawn(work.in_current_span());
        }
        Ok(job)
    }

    async fn run_job(
        &self,
        job: &Job,
        operation: &Tracked,
        import: ImageImport,
    ) -> Result<Vec<ImageRecord>, PortError> {
        let _permit = self.image_permit().await?;
        operation.started(match &import {
            ImageImport::Pull(_) => OperationPhase::Resolving,
            ImageImport::Load(_) | ImageImport::Commit(..) => OperationPhase::Reading,
        });
        job.state.send_replace(JobState::Running {
            digest: String::new(),
            finishing: false,
        });
        let mut updates = self.0.host.images().import(import).await?;
        while let Some(update) = updates.next().await {
            match update {
                ImageUpdate::Done(result) => return result,
                ImageUpdate::Progress(step) => {
                    operation.step(&step);
                    match &step {
                        ImageProgress::Resolved { digest: found, .. } => {
                            job.state.send_modify(|state| {
                                if let JobState::Running { digest, .. } = state {
                                    digest.clone_from(found);
                                }
                            });
                        }
                        ImageProgress::Finishing => job.state.send_modify(|state| {
                            if let JobState::Running { finishing, .. } = state {
                                *finishing = true;
                            }
                        }),
                        ImageProgress::Layer { .. } => {}
                    }
                    // Nobody listening is fine.
                    let _ = job.progress.send(step);
                }
            }
        }
        Err(PortError::retry(
            "import_interrupted",
            "the host went away before the image was here: ask again",
        ))
    }

    /// Removes an image that no instance uses, or forgets a pull that failed.
    ///
    /// # Errors
    /// Missing; `image_in_use` that names the instances; the host's.
    pub async fn delete_image(&self, wanted: &str) -> Result<(), AppError> {
        let record = match self.image_for(wanted).await {
            Ok(record) => record,
            Err(AppError::Missing { .. }) if self.0.jobs.forget_failed(wanted) => return Ok(()),
            // Whoever wants it gone has no use for the way to get it.
            Err(AppError::Missing { code, .. }) => {
                return Err(AppError::Missing {
                    code,
                    sentence: format!("the image {wanted} is not here: see `warren images`"),
                });
            }
            Err(error) => return Err(error),
        };
        // No create may take the image between the question and the removal.
        let _placing = self.0.placing.write().await;
        let views = self.0.board.all();
        let in_use = self.images_in_use();
        match self.0.host.images().remove(&record.id, &in_use).await {
            Ok(()) => {
                // A pull under the same name that failed must not make it look as if it were still there.
                for name in [wanted, &record.id, &record.name] {
                    self.0.jobs.forget_failed(name);
                }
                Ok(())
            }
            Err(error) if error.class == ErrorClass::Conflict && error.code == "image_in_use" => {
                let users: Vec<String> = views
                    .iter()
                    .filter(|view| view.intent.image_digest == record.digest)
                    .take(5)
                    .map(|view| format!("{:?}", view.intent.spec.name))
                    .collect();
                Err(AppError::Taken {
                    code: Code::ImageInUse,
                    sentence: format!(
                        "the image {} is used by {}: remove what uses it first",
                        record.name,
                        if users.is_empty() {
                            "an instance".to_owned()
                        } else {
                            users.join(", ")
                        }
                    ),
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

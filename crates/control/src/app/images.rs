//! Images: what is on the host, and what is on its way there as tracked jobs.

mod jobs;

pub use jobs::JobUpdate;
pub(super) use jobs::{Jobs, Joins};

use jobs::{Job, JobState};

use super::operations::Tracked;
use super::query::{Filter, PageOf, PageRequest};
use super::{App, AppError};
use futures::StreamExt;
use futures::stream::BoxStream;
use rand::Rng;
use std::sync::Arc;
use tokio::sync::{SemaphorePermit, broadcast, watch};
use tracing::Instrument;
use warren_api::convert::{self, ConvertError};
use warren_api::{
    Code, CreateImageRequest, Image, OperationKind, OperationPhase, Problem, PushCredentials,
};
use warren_core::image::{ImageProgress, ImageRecord};
use warren_core::ports::host_link::{ImageImport, ImageUpdate};
use warren_core::ports::images::{PullRequest, RegistryCredentials, Transport};
use warren_core::{ErrorClass, PortError};

/// An image here, or on its way.
pub type ImageItem = Image;

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

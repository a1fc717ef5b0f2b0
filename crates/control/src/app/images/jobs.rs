//! Images on their way: who waits for which, and how it ended.

use crate::app::AppError;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, broadcast, watch};
use warren_api::{Code, CreateImageRequest, Image, ImageStatus, Problem};
use warren_core::Timestamp;
use warren_core::image::ImageProgress;

/// Jobs under way or queued at most.
const MOST_JOBS: usize = 64;
/// Failures remembered at most.
const MOST_FAILURES: usize = 64;
/// How long a failure is remembered, for those who asked and looked away.
const FAILURES_KEPT: std::time::Duration = std::time::Duration::from_secs(3600);

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
pub(super) enum JobState {
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
pub(in crate::app) enum Joins {
    /// It does: both want the same bytes.
    Same,
    /// Never: each upload has bytes of its own.
    Never,
}

/// Something on its way.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) joins: Joins,
    /// What it was asked to do, to join it: everything but credentials.
    pub(super) request: CreateImageRequest,
    pub(super) at: Timestamp,
    pub(super) state: watch::Sender<JobState>,
    pub(super) progress: broadcast::Sender<ImageProgress>,
}

impl Job {
    pub(super) fn is_active(&self) -> bool {
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

    pub(super) fn image(&self, queue_position: Option<u32>) -> Image {
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

    pub(super) fn follow(&self) -> BoxStream<'static, JobUpdate> {
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

/// All of them, in the order in which they came.
pub(in crate::app) struct Jobs {
    pub(super) permits: Arc<Semaphore>,
    list: Mutex<VecDeque<Arc<Job>>>,
}

impl Jobs {
    pub(in crate::app) fn new(at_once: usize) -> Self {
        Jobs {
            permits: Arc::new(Semaphore::new(at_once.max(1))),
            list: Mutex::new(VecDeque::new()),
        }
    }

    /// Jobs that are not done, with their places in the queue.
    pub(super) fn visible(&self, now: std::time::Duration) -> Vec<(Arc<Job>, Option<u32>)> {
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

    pub(super) fn enter(&self, job: Job) -> Result<(Arc<Job>, bool), AppError> {
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

    pub(super) fn forget(&self, job: &Arc<Job>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|held| !Arc::ptr_eq(held, job));
    }

    pub(super) fn forget_failures(&self) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|job| !job.has_failed());
    }

    pub(super) fn forget_failed(&self, wanted: &str) -> bool {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let before = list.len();
        list.retain(|job| !(job.has_failed() && (job.id == wanted || job.request.name == wanted)));
        list.len() < before
    }
}

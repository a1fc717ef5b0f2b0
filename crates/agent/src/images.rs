//! The image side of the host: imports as cancellable streams of progress.

use crate::commit::Committing;
use crate::context::Actors;
use async_trait::async_trait;
use std::sync::{Arc, PoisonError};
use tokio::sync::mpsc;
use warren_core::PortError;
use warren_core::image::ImageRecord;
use warren_core::ports::host_link::{HostImages, ImageImport, ImageUpdate, PushUpdate};
use warren_core::ports::images::{ProgressSink, PruneRequest, PullRequest, PushRequest};
use warren_core::ports::{BoxStream, ImageOutlet, Images, Registry};
use warren_core::storage::{Pruned, Repair, Verification};

/// Progress a reader may be behind before it loses some; results are never lost.
const BACKLOG: usize = 256;

pub(crate) struct AgentImages {
    images: Arc<dyn Images>,
    registry: Arc<dyn Registry>,
    outlet: Arc<dyn ImageOutlet>,
    actors: Arc<Actors>,
    committing: Committing,
}

impl AgentImages {
    pub(crate) fn new(
        images: Arc<dyn Images>,
        registry: Arc<dyn Registry>,
        outlet: Arc<dyn ImageOutlet>,
        actors: Arc<Actors>,
        committing: Committing,
    ) -> Self {
        AgentImages {
            images,
            registry,
            outlet,
            actors,
            committing,
        }
    }

    /// The images of the instances that are here.
    fn running_from(&self) -> Vec<String> {
        let actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        let wishes = actors.values().map(|shared| shared.wish.borrow());
        wishes.map(|wish| wish.image_digest.clone()).collect()
    }
}

/// Work that ends when the stream of its updates is dropped.
struct Work<T> {
    updates: mpsc::Receiver<T>,
    task: tokio::task::JoinHandle<()>,
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: Send + 'static> Work<T> {
    fn stream(self) -> BoxStream<T> {
        Box::pin(futures::stream::unfold(self, |mut work| async move {
            work.updates.recv().await.map(|update| (update, work))
        }))
    }
}

#[async_trait]
impl HostImages for AgentImages {
    async fn check_pull(&self, request: &PullRequest) -> Result<(), PortError> {
        self.images.check_pull(request)
    }

    async fn import(&self, import: ImageImport) -> Result<BoxStream<ImageUpdate>, PortError> {
        let (sender, updates) = mpsc::channel(BACKLOG);
        let images = Arc::clone(&self.images);
        let committing = self.committing.clone();
        let progress_sender = sender.clone();
        let progress: ProgressSink = Arc::new(move |progress| {
            // A slow reader misses steps, never the result.
            let _ = progress_sender.try_send(ImageUpdate::Progress(progress));
        });
        let task = tokio::spawn(async move {
            let result = match import {
                ImageImport::Pull(request) => images
                    .pull(request, progress)
                    .await
                    .map(|record| vec![record]),
                ImageImport::Load(request) => images.load(request, progress).await,
                ImageImport::Commit(id, request) => committing
                    .commit(&id, request, progress)
                    .await
                    .map(|record| vec![record]),
            };
            let _ = sender.send(ImageUpdate::Done(result)).await;
        });
        Ok(Work { updates, task }.stream())
    }

    async fn push(&self, request: PushRequest) -> Result<BoxStream<PushUpdate>, PortError> {
        let (sender, updates) = mpsc::channel(BACKLOG);
        let images = Arc::clone(&self.images);
        let progress_sender = sender.clone();
        let progress: ProgressSink = Arc::new(move |progress| {
            // A slow reader misses steps, never the result.
            let _ = progress_sender.try_send(PushUpdate::Progress(progress));
        });
        let task = tokio::spawn(async move {
            let result = images.push(request, progress).await;
            let _ = sender.send(PushUpdate::Done(result)).await;
        });
        Ok(Work { updates, task }.stream())
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, PortError> {
        self.images.list().await
    }

    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError> {
        self.images.find(wanted).await
    }

    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError> {
        let records = self.images.list().await?;
        if let Some(record) = records.iter().find(|record| record.id == id) {
            let last = records
                .iter()
                .filter(|other| other.digest == record.digest)
                .count()
                == 1;
            if last && in_use.contains(&record.digest) {
                return Err(PortError::conflict(
                    "image_in_use",
                    format!("image {} is used by an instance", record.name),
                )
                .with_hint("remove the instances that use it first"));
            }
        }
        self.images.remove(id, in_use).await
    }

    async fn prune(&self, mut request: PruneRequest) -> Result<Pruned, PortError> {
        // Where the record of intent was lost, its instances are still here.
        request.in_use.extend(self.running_from());
        self.images.upkeep().prune(request).await
    }

    async fn verify(&self, id: &str, repair: Repair) -> Result<Verification, PortError> {
        self.images.upkeep().verify(id, repair).await
    }

    fn registry(&self) -> &dyn Registry {
        self.registry.as_ref()
    }

    fn outlet(&self) -> &dyn ImageOutlet {
        self.outlet.as_ref()
    }
}

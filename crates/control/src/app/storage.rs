//! Looking after the host's disk: what takes room, what may go, and whether images are still what they were.

use super::{App, AppError};
use warren_api::storage::{
    ImageVerification, PruneImagesRequest, PruneImagesResponse, StorageUsage, VerifyImageRequest,
};
use warren_api::{OperationKind, OperationPhase};
use warren_core::ports::images::PruneRequest;
use warren_core::storage::{PruneMode, PruneScope, Pruned, Repair};

impl App {
    /// The digests of the images of all instances, once for each.
    pub(super) fn images_in_use(&self) -> Vec<String> {
        let views = self.0.board.all();
        views
            .iter()
            .map(|view| view.intent.image_digest.clone())
            .collect()
    }

    /// What takes room on the host.
    ///
    /// # Errors
    /// The host's.
    pub async fn storage(&self) -> Result<StorageUsage, AppError> {
        let storage = self.0.host.storage(&self.images_in_use()).await?;
        Ok(StorageUsage::new(storage, |id| {
            let view = self.0.board.get(&id.parse().ok()?)?;
            Some(view.intent.spec.name.clone())
        }))
    }

    /// Removes what no image needs any more, and, where asked, the images that no instance uses. Pulls and loads that failed
    /// are forgotten.
    ///
    /// # Errors
    /// The host's.
    pub async fn prune_images(
        &self,
        request: PruneImagesRequest,
    ) -> Result<PruneImagesResponse, AppError> {
        let scope = match request.all {
            Some(true) => PruneScope::Unused,
            Some(false) | None => PruneScope::Unreferenced,
        };
        let mode = match request.dry_run {
            Some(true) => PruneMode::DryRun,
            Some(false) | None => PruneMode::Remove,
        };
        if mode == PruneMode::Remove {
            self.must_not_doubt()?;
        }
        let app = self.clone();
        let pruned = self.detached(async move { app.prune(scope, mode).await });
        let pruned = pruned.await?;
        if mode == PruneMode::Remove {
            self.forget_failed_images();
        }
        Ok(PruneImagesResponse::new(pruned, mode))
    }

    async fn prune(&self, scope: PruneScope, mode: PruneMode) -> Result<Pruned, AppError> {
        // No create may take an image between the question and the removal.
        let _placing = self.0.placing.write().await;
        let request = PruneRequest {
            scope,
            mode,
            in_use: self.images_in_use(),
        };
        Ok(self.0.host.images().prune(request).await?)
    }

    /// Removes what is never missed, behind everybody's back.
    pub(super) async fn tidy(&self) {
        if self.doubt().is_some() {
            return;
        }
        match self.prune(PruneScope::Routine, PruneMode::Remove).await {
            Ok(pruned) if pruned == Pruned::default() => {}
            Ok(pruned) => {
                let images: Vec<&str> = pruned.images.iter().map(|it| it.name.as_str()).collect();
                tracing::info!(
                    ?images,
                    bytes = pruned.bytes,
                    "made room in the image store"
                );
            }
            Err(error) => tracing::warn!(%error, "the image store is not tidied"),
        }
    }

    /// Reads an image again.
    ///
    /// # Errors
    /// Missing; the host's; cancelled.
    pub async fn verify_image(
        &self,
        request: VerifyImageRequest,
    ) -> Result<ImageVerification, AppError> {
        let record = self.image_for(&request.image).await?;
        let repair = match request.repair {
            Some(true) => Repair::Yes,
            Some(false) | None => Repair::No,
        };
        let operation = self.track_within_bounds(OperationKind::Verify, &record.name)?;
        operation.started(OperationPhase::Reading);
        let verified = async {
            let images = self.0.host.images();
            Ok(images.verify(&record.id, repair).await?.into())
        };
        operation.whole(verified).await
    }
}

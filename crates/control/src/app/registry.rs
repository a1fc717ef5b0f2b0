//! Images that go out, and the registry's use cases that need more than the host's content: what instances use, and how many
//! images may come in at once.

use super::{App, AppError};
use warren_api::image::{DiskFormat, ExportImageRequest};
use warren_api::{Code, OperationKind, OperationPhase, SaveImagesRequest};
use warren_core::PortError;
use warren_core::ports::Registry;
use warren_core::ports::outlet::{Archive, ArchiveFormat, DiskLayout, ExportRequest, SaveRequest};
use warren_core::ports::registry::{ManifestKept, ManifestName, PutManifest};

/// Images in one archive.
const MOST_SAVED: usize = 64;

impl App {
    /// The host's content.
    pub(crate) fn registry(&self) -> &dyn Registry {
        self.0.host.images().registry()
    }

    /// An archive of images.
    ///
    /// # Errors
    /// Missing; the host's.
    pub async fn save_images(&self, request: SaveImagesRequest) -> Result<Archive, AppError> {
        if !(1..=MOST_SAVED).contains(&request.names.len()) {
            return Err(AppError::field(
                "names",
                format!("must be 1 to {MOST_SAVED} images"),
            ));
        }
        let mut ids: Vec<String> = Vec::new();
        let mut names: Vec<String> = Vec::new();
        for name in &request.names {
            let record = self.image_for(name).await?;
            if !ids.contains(&record.id) {
                ids.push(record.id);
                names.push(record.name);
            }
        }
        let format = match request.format {
            warren_api::ArchiveFormat::OciArchive => ArchiveFormat::Oci,
            warren_api::ArchiveFormat::DockerArchive => ArchiveFormat::Docker,
        };
        let operation = self.track_within_bounds(OperationKind::Save, names.join(", "))?;
        operation.started(OperationPhase::Reading);
        let archive = operation.part(async {
            let outlet = self.0.host.images().outlet();
            Ok(outlet.save(SaveRequest { ids, format }).await?)
        });
        let archive = archive.await?;
        Ok(operation.while_sent(archive))
    }

    /// A disk made of an image.
    ///
    /// # Errors
    /// Missing; the host's.
    pub async fn export_image(&self, request: ExportImageRequest) -> Result<Archive, AppError> {
        let record = self.image_for(&request.name).await?;
        let layout = match request.format {
            DiskFormat::Raw => DiskLayout::Partitioned,
            DiskFormat::Ext4 => DiskLayout::FileSystem,
        };
        let request = ExportRequest {
            id: record.id,
            layout,
            size: request.size_bytes,
        };
        let operation = self.track_within_bounds(OperationKind::Export, record.name)?;
        operation.started(OperationPhase::Reading);
        let archive = operation.part(async {
            let outlet = self.0.host.images().outlet();
            Ok(outlet.export(request).await?)
        });
        let archive = archive.await?;
        Ok(operation.while_sent(archive))
    }

    /// Keeps a manifest, and converts the image it describes as one of those that may come in at the same time.
    pub(crate) async fn put_manifest(&self, put: PutManifest) -> Result<ManifestKept, AppError> {
        let name = match (put.tags.first(), &put.digest) {
            (Some(tag), _) => format!("{}/{}:{tag}", put.host, put.repository),
            (None, Some(digest)) => format!("{}/{}@{digest}", put.host, put.repository),
            (None, None) => format!("{}/{}", put.host, put.repository),
        };
        let operation = self.track_within_bounds(OperationKind::Receive, name)?;
        let kept = async {
            let _permit = self.image_permit().await?;
            operation.started(OperationPhase::Converting);
            tokio::select! {
                kept = self.registry().put_manifest(put) => Ok(kept?),
                () = self.stopping().cancelled() => Err(AppError::coded(
                    Code::Unavailable,
                    "the server is stopping: push again when it is back",
                )),
            }
        };
        let kept = operation.part(kept).await?;
        operation.ended(Ok(()));
        Ok(kept)
    }

    /// Removes a tag or a manifest that no instance uses.
    pub(crate) async fn remove_manifest(
        &self,
        repository: &str,
        name: &ManifestName,
    ) -> Result<(), PortError> {
        // No create may take the image between the question and the removal.
        let _placing = self.0.placing.write().await;
        let in_use = self.images_in_use();
        self.registry()
            .remove_manifest(repository, name, &in_use)
            .await
    }
}

//! Images that are records alone: `localhost:5000` is the one registry that has any, and takes any.

use super::{Host, image};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use warren_core::image::{ImageProgress, ImageRecord};
use warren_core::ports::host_link::{HostImages, ImageImport, ImageUpdate, PushUpdate};
use warren_core::ports::images::{PruneRequest, PullRequest, PushRequest, Pushed};
use warren_core::ports::{BoxStream, ImageOutlet, Registry};
use warren_core::storage::{
    ImagePart, PartCheck, PartState, PruneMode, PruneScope, Pruned, PrunedImage, Repair,
    Verification,
};
use warren_core::{ErrorClass, PortError};

#[async_trait]
impl HostImages for Host {
    async fn check_pull(&self, request: &PullRequest) -> Result<(), PortError> {
        match request.reference.starts_with("forbidden.example/") {
            true => Err(PortError::new(
                ErrorClass::Denied,
                "registry_not_allowed",
                "this host pulls from elsewhere",
            )),
            false => Ok(()),
        }
    }

    async fn import(&self, import: ImageImport) -> Result<BoxStream<ImageUpdate>, PortError> {
        let mut held = self.pulls_held.subscribe();
        let _ = held.wait_for(|held| !held).await;
        let result = match import {
            ImageImport::Pull(pull) if pull.reference.starts_with("localhost:5000/") => {
                let id = pull.id.unwrap_or_else(|| "pulled".into());
                Ok(vec![image(&id, &pull.reference)])
            }
            ImageImport::Pull(pull) => Err(PortError::not_found(
                "registry_has_no_such_image",
                format!("there is no {} in its registry", pull.reference),
            )),
            ImageImport::Commit(_, commit) if commit.changes.iter().any(|one| one == "RUN x") => {
                Err(PortError::invalid("image_malformed", "RUN changes nothing"))
            }
            ImageImport::Commit(_, commit) => {
                let id = commit.id.unwrap_or_else(|| "committed".into());
                Ok(vec![image(&id, &commit.name)])
            }
            ImageImport::Load(load) => match std::fs::read(&load.path) {
                Ok(bytes) if bytes.starts_with(b"archive") => {
                    let name = load
                        .name
                        .unwrap_or_else(|| "localhost/loaded:latest".into());
                    Ok(vec![image("loaded", &name)])
                }
                Ok(_) => Err(PortError::invalid("not_an_archive", "this is no archive")),
                Err(error) => Err(PortError::io("the archive cannot be read", error)),
            },
        };
        if let Ok(records) = &result {
            let mut images = Self::lock(&self.images);
            for record in records {
                images.retain(|held| held.id != record.id);
                images.push(record.clone());
            }
        }
        Ok(stream::iter([
            ImageUpdate::Progress(ImageProgress::Resolved {
                digest: "sha256:ab".into(),
                layers: 1,
                total_bytes: 10,
            }),
            ImageUpdate::Progress(ImageProgress::Finishing),
            ImageUpdate::Done(result),
        ])
        .boxed())
    }

    async fn push(&self, request: PushRequest) -> Result<BoxStream<PushUpdate>, PortError> {
        let mut held = self.pulls_held.subscribe();
        let _ = held.wait_for(|held| !held).await;
        let result = match request.target.starts_with("localhost:5000/") {
            true => Ok(Pushed {
                target: request.target,
                digest: "sha256:ab".into(),
                layers: 2,
                sent_bytes: 10,
            }),
            false => Err(PortError::retry(
                "registry_unreachable",
                format!("nobody listens at {}", request.target),
            )),
        };
        Ok(stream::iter([
            PushUpdate::Progress(ImageProgress::Finishing),
            PushUpdate::Done(result),
        ])
        .boxed())
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, PortError> {
        Ok(Self::lock(&self.images).clone())
    }

    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError> {
        Ok(Self::lock(&self.images)
            .iter()
            .find(|image| image.id == wanted || image.name == wanted || image.digest == wanted)
            .cloned())
    }

    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError> {
        let mut images = Self::lock(&self.images);
        if images
            .iter()
            .any(|image| image.id == id && in_use.contains(&image.digest))
        {
            return Err(PortError::conflict("image_in_use", "it is in use"));
        }
        images.retain(|image| image.id != id);
        Ok(())
    }

    async fn prune(&self, request: PruneRequest) -> Result<Pruned, PortError> {
        let mut images = Self::lock(&self.images);
        let doomed: Vec<ImageRecord> = match request.scope {
            PruneScope::Unused => images
                .iter()
                .filter(|image| !request.in_use.contains(&image.digest))
                .cloned()
                .collect(),
            PruneScope::Unreferenced => Vec::new(),
            PruneScope::Routine => {
                *Self::lock(&self.tidied) += 1;
                Vec::new()
            }
        };
        if request.mode == PruneMode::Remove {
            images.retain(|image| doomed.iter().all(|gone| gone.id != image.id));
        }
        Ok(Pruned {
            bytes: doomed.len() as u64 * 60,
            disks: doomed.len(),
            blobs: 0,
            images: doomed
                .into_iter()
                .map(|image| PrunedImage {
                    id: image.id,
                    name: image.name,
                    digest: image.digest,
                })
                .collect(),
        })
    }

    async fn verify(&self, id: &str, repair: Repair) -> Result<Verification, PortError> {
        let images = Self::lock(&self.images);
        let Some(image) = images.iter().find(|image| image.id == id) else {
            return Err(PortError::not_found("image_not_here", "it is not here"));
        };
        let state = match (Self::lock(&self.damaged).contains(id), repair) {
            (false, _) => PartState::Sound,
            (true, Repair::No) => PartState::Damaged,
            (true, Repair::Yes) => PartState::Repaired,
        };
        Ok(Verification {
            id: image.id.clone(),
            name: image.name.clone(),
            digest: image.digest.clone(),
            parts: vec![PartCheck {
                part: ImagePart::Disk,
                digest: image.digest.clone(),
                state,
            }],
            advice: (state == PartState::Damaged).then(|| "repair it".to_owned()),
        })
    }

    fn registry(&self) -> &dyn Registry {
        &self.content
    }

    fn outlet(&self) -> &dyn ImageOutlet {
        &self.content
    }
}

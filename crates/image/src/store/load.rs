//! Loads from this host's file system.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use warren_core::image::{ImageProgress, ImageRecord, LayerPhase};
use warren_core::ports::images::{LoadRequest, ProgressSink};
use warren_crashpoint::reached;

use super::convert::{Copies, Job, Listeners, Work, layer_event};
use super::pull::{platform_of, resolved};
use super::{ImageStore, NewRecord, StoreError, keep, records};
use crate::pipeline::{ConvertError, LayerInput};
use crate::source::layout::{Found, Known};
use crate::source::manifest::Image;
use crate::source::unmade::Unmade;
use crate::source::{Reference, SourceError, open_local};

impl ImageStore {
    pub(super) async fn load_images(
        &self,
        request: LoadRequest,
        progress: ProgressSink,
    ) -> Result<Vec<ImageRecord>, StoreError> {
        if let Some(id) = &request.id {
            records::check_id(id)?;
        }
        let given = match &request.name {
            Some(name) => Some(name.parse::<Reference>().map_err(SourceError::from)?),
            None => None,
        };
        let (platform, wanted) = platform_of(request.platform.as_deref())?;
        let spool = self.disks.directory();
        let limits = &self.options.limits;
        let images = open_local(&request.path, spool, &platform, wanted, limits).await?;
        let images = named(images, given)?;
        if images.len() > 1 && request.id.is_some() {
            return Err(StoreError::OneIdForMany(images.len()));
        }
        let mut records = Vec::new();
        for (name, found) in images {
            let new = NewRecord {
                id: request.id.clone(),
                name: name.to_string(),
                tags: Default::default(),
            };
            records.push(match found.known {
                Known::Image(image) => {
                    self.load_known(new, *image, found.inputs, &progress)
                        .await?
                }
                Known::Unmade(unmade) => {
                    self.load_unmade(new, unmade, found.inputs, &progress)
                        .await?
                }
                // No file says this.
                Known::Committed(_) => return Err(SourceError::NotAnImage.into()),
            });
        }
        Ok(records)
    }

    pub(super) async fn load_known(
        &self,
        new: NewRecord,
        image: Image,
        inputs: Vec<LayerInput>,
        progress: &ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        let _lease = self.content.lease(image.contents());
        resolved(&image, progress);
        if !self.is_whole(&image) {
            let start = |listeners: Listeners| match self.disks.is_here(image.digest()) {
                true => self.complete(inputs),
                false => {
                    let job = Job {
                        known: Known::Image(Box::new(image.clone())),
                        inputs,
                        copies: Copies::Missing,
                    };
                    let work = self.convert(job, listeners);
                    Box::pin(async move { work.await.map(|_| ()).map_err(Arc::new) }) as Work
                }
            };
            let progress = Arc::clone(progress);
            let work = self.flights.join(image.digest(), progress, start);
            // Both to their ends: nothing is still being written when a failure is told, and nothing of a refused image
            // is left.
            let (work, documents) = futures::join!(work, self.stage_documents(&image));
            work.map_err(StoreError::Shared)?;
            documents?.publish().await?;
        }
        reached("load.content-here");
        for layer in &image.layers {
            progress(layer_event(layer, LayerPhase::Done, layer.size));
        }
        self.record(new, &image).await
    }

    /// An image whose digest is known when its layers have been read.
    async fn load_unmade(
        &self,
        new: NewRecord,
        unmade: Unmade,
        inputs: Vec<LayerInput>,
        progress: &ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        progress(ImageProgress::Resolved {
            digest: String::new(),
            layers: inputs.len(),
            total_bytes: inputs.iter().filter_map(|input| input.size).sum(),
        });
        let job = Job {
            known: Known::Unmade(unmade),
            inputs,
            copies: Copies::Missing,
        };
        let (image, _lease) = self
            .convert(job, Listeners::of(Arc::clone(progress)))
            .await?;
        self.put_documents(&image).await?;
        reached("load.made");
        self.record(new, &image).await
    }

    /// Brings the blobs that the image of a disk lacks.
    fn complete(&self, inputs: Vec<LayerInput>) -> Work {
        let content = Arc::clone(&self.content);
        let stop = CancellationToken::new();
        let stop_on_drop = stop.clone().drop_guard();
        let work = move || {
            for (index, input) in inputs.into_iter().enumerate() {
                let known = input
                    .digest
                    .as_ref()
                    .and_then(|digest| content.size(digest));
                if known.is_none() || known != input.size {
                    keep::only_keep(index, input, &content, &stop)?;
                    reached("load.layer-completed");
                }
            }
            Ok(())
        };
        Box::pin(async move {
            let _stop_on_drop = stop_on_drop;
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|error| StoreError::Disk {
                    what: "keeping the layers",
                    source: std::io::Error::other(error),
                })
                .and_then(|kept: Result<(), ConvertError>| Ok(kept?))
                .map_err(Arc::new)
        })
    }
}

/// Gives each image its reference: the user's for the only one (or the one with its tag), else its own.
fn named(
    mut images: Vec<Found>,
    given: Option<Reference>,
) -> Result<Vec<(Reference, Found)>, StoreError> {
    if let Some(given) = given {
        if images.len() > 1 {
            images.retain(|found| {
                let name = found.name.as_deref();
                name == given.tag()
                    || name.and_then(|n| n.parse::<Reference>().ok()).as_ref() == Some(&given)
            });
        }
        return match <[Found; 1]>::try_from(images) {
            Ok([only]) => Ok(vec![(given, only)]),
            Err(_) => Err(StoreError::NameNeeded),
        };
    }
    images
        .into_iter()
        .map(|found| {
            // A bare word is a tag of an unknown repository.
            let name = found
                .name
                .as_deref()
                .filter(|name| name.contains(['/', ':']));
            let reference = name
                .and_then(|name| name.parse().ok())
                .ok_or(StoreError::NameNeeded)?;
            Ok((reference, found))
        })
        .collect()
}

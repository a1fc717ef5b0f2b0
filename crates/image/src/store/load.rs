//! Loads from this host's file system.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use warren_core::image::{ImageConfig, ImageRecord, LayerPhase};
use warren_core::ports::images::{LoadRequest, ProgressSink};

use super::convert::{Job, Listeners, layer_event};
use super::pull::{platform_of, resolved};
use super::{ImageStore, NewRecord, StoreError, records};
use crate::digest::Digest;
use crate::pipeline::{Converted, LayerInput};
use crate::source::layout::{Found, open_regular, synthetic_digest};
use crate::source::manifest::Layer;
use crate::source::{Local, Reference, open_local};

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
            Some(name) => Some(
                name.parse::<Reference>()
                    .map_err(crate::source::SourceError::from)?,
            ),
            None => None,
        };
        let (platform, wanted) = platform_of(request.platform.as_deref())?;
        let spool = self.root.join("disks");
        let images = match open_local(&request.path, &spool, &platform, wanted).await? {
            Local::RootFs => {
                let name = given.ok_or(StoreError::NameNeeded)?;
                return Ok(vec![self.load_root_fs(&request, name, progress).await?]);
            }
            Local::Images(images) => images,
        };
        let images = named(images, given)?;
        if images.len() > 1 && request.id.is_some() {
            return Err(StoreError::OneIdForMany(images.len()));
        }
        let mut records = Vec::new();
        for (name, found) in images {
            records.push(self.load_found(&request, name, found, &progress).await?);
        }
        Ok(records)
    }

    async fn load_found(
        &self,
        request: &LoadRequest,
        name: Reference,
        found: Found,
        progress: &ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        let image = found.image;
        resolved(&image, progress);
        let path = self.disk_path(&image.digest);
        if !path.is_file() {
            let start = |listeners: Listeners| {
                let job = Job {
                    layers: image.layers.clone(),
                    inputs: found.inputs,
                };
                let target = path.clone();
                let work = self.convert(
                    job,
                    Some(image.digest.prefix()),
                    listeners,
                    Box::new(move |_| target),
                );
                let future: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                    Box::pin(async move { work.await.map(|_| ()).map_err(Arc::new) });
                future
            };
            let result = self
                .flights
                .join(&image.digest, Arc::clone(progress), start)
                .await;
            result.map_err(StoreError::Shared)?;
        }
        for layer in &image.layers {
            progress(layer_event(layer, LayerPhase::Done, layer.size));
        }
        self.record(NewRecord {
            id: request.id.clone(),
            name: name.to_string(),
            digest: image.digest,
            platform: image.platform,
            config: image.config,
            tags: Default::default(),
            // Local layers are not kept: they are where they came from.
            layers: Vec::new(),
        })
        .await
    }

    /// One layer without a manifest: its digest is known when it has been read.
    async fn load_root_fs(
        &self,
        request: &LoadRequest,
        name: Reference,
        progress: ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        let path = request.path.clone();
        let job = Job {
            layers: Vec::new(),
            inputs: vec![LayerInput {
                digest: None,
                size: None,
                diff_id: None,
                open: Box::new(move |_: &CancellationToken| Ok(Box::new(open_regular(&path)?.0))),
            }],
        };
        let disks = self.root.join("disks");
        let listeners = Listeners::default();
        let found: Arc<Mutex<Option<Digest>>> = Arc::default();
        let work = {
            let found = Arc::clone(&found);
            let name: Box<dyn FnOnce(&Converted) -> std::path::PathBuf + Send> =
                Box::new(move |converted| {
                    let digest = root_fs_digest(converted);
                    let path = disks.join(format!("{}-{}.erofs", digest.algorithm(), digest.hex()));
                    *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
                    path
                });
            self.convert(job, None, listeners, name)
        };
        // Its own name keeps a removal from running while the disk has no record.
        let flight = Digest::of(request.path.as_os_str().as_encoded_bytes());
        let start = |_: Listeners| {
            let future: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { work.await.map(|_| ()).map_err(Arc::new) });
            future
        };
        self.flights
            .join(&flight, progress, start)
            .await
            .map_err(StoreError::Shared)?;
        let digest = found.lock().unwrap_or_else(PoisonError::into_inner).take();
        let digest = digest.ok_or(StoreError::Busy)?;
        self.record(NewRecord {
            id: request.id.clone(),
            name: name.to_string(),
            digest,
            platform: platform_of(request.platform.as_deref())?.0.to_string(),
            config: ImageConfig::default(),
            tags: Default::default(),
            layers: Vec::new(),
        })
        .await
    }
}

fn root_fs_digest(converted: &Converted) -> Digest {
    let layers: Vec<Layer> = converted
        .layers
        .iter()
        .map(|layer| Layer {
            digest: layer.digest.clone(),
            size: layer.size,
            diff_id: layer.diff_id.clone(),
        })
        .collect();
    synthetic_digest(&Digest::of(b"{}"), &layers)
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

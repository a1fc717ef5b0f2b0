//! Pulls: resolve, fetch what is missing, convert while it comes, record.

use std::sync::Arc;
use std::time::Duration;

use futures::TryFutureExt as _;
use tokio_util::sync::CancellationToken;
use warren_core::image::{ImageProgress, ImageRecord, LayerPhase};
use warren_core::ports::images::{ProgressSink, PullRequest};
use warren_crashpoint::reached;

use super::convert::{Copies, Job, Listeners, Work, layer_event};
use super::documents::Documents;
use super::downloads::Layer as Found;
use super::{ImageStore, NewRecord, StoreError, records};
use crate::pipeline::{ConvertError, LayerInput};
use crate::source::layout::{Known, open_regular};
use crate::source::manifest::{self, Image, Platform, Wanted};
use crate::source::registry::{Client, Download};
use crate::source::{Reference, SourceError};

/// How often progress in bytes is told.
pub(super) const TICK: Duration = Duration::from_millis(100);

impl ImageStore {
    pub(super) fn admit_pull(&self, request: &PullRequest) -> Result<(), StoreError> {
        if let Some(id) = &request.id {
            records::check_id(id)?;
        }
        let reference: Reference = request.reference.parse().map_err(SourceError::from)?;
        platform_of(request.platform.as_deref())?;
        let settings = self.registries.settings();
        Ok(settings
            .allow(reference.registry())
            .map_err(SourceError::from)?)
    }

    pub(super) async fn pull_image(
        &self,
        request: PullRequest,
        progress: ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        if let Some(id) = &request.id {
            records::check_id(id)?;
        }
        let reference: Reference = request.reference.parse().map_err(SourceError::from)?;
        let (platform, wanted) = platform_of(request.platform.as_deref())?;
        let new = NewRecord {
            id: request.id,
            name: reference.to_string(),
            tags: request.tags,
        };
        if let Some(offer) = self.offered(&reference, &platform, wanted).await {
            return self.take_offer(new, offer, &progress).await;
        }
        let client = self
            .registries
            .client(&reference, request.transport, request.credentials)
            .await
            .map_err(SourceError::from)?;
        let client = Arc::new(client);
        let bytes = client.manifest(&reference).await?;
        let documents = Documents::new(&self.content, &self.asked, client.as_ref());
        let image = manifest::resolve(&documents, bytes, &platform, wanted).await?;
        let _lease = self.content.lease(image.contents());
        resolved(&image, &progress);
        if !self.is_whole(&image) {
            let pulled = self.ensure_pulled(&image, &client, &progress);
            // Both to their ends: nothing is still being written when a failure is told.
            let (pulled, documents) = futures::join!(pulled, self.put_documents(&image));
            pulled?;
            documents?;
        }
        reached("pull.content-here");
        for layer in &image.layers {
            progress(layer_event(layer, LayerPhase::Done, layer.size));
        }
        self.record(new, &image).await
    }

    async fn ensure_pulled(
        &self,
        image: &Image,
        client: &Arc<Client>,
        progress: &ProgressSink,
    ) -> Result<(), StoreError> {
        let start = |listeners: Listeners| {
            let mut downloads = Vec::new();
            let mut inputs = Vec::new();
            for layer in &image.layers {
                listeners.tell(&layer_event(layer, LayerPhase::Waiting, 0));
                let found =
                    self.downloads
                        .get_or_start(&self.content, &layer.digest, layer.size, client);
                let open: crate::pipeline::OpenLayer = match found {
                    Found::Here(path) => {
                        Box::new(move |_: &CancellationToken| Ok(Box::new(open_regular(&path)?.0)))
                    }
                    Found::Coming(download) => {
                        downloads.push((layer.clone(), Arc::clone(&download)));
                        Box::new(move |stop: &CancellationToken| {
                            Ok(Box::new(download.feed(stop.clone())))
                        })
                    }
                };
                inputs.push(LayerInput {
                    digest: Some(layer.digest.clone()),
                    size: Some(layer.size),
                    diff_id: Some(layer.diff_id.clone()),
                    open,
                });
            }
            // With its disk here, only blobs are missing.
            let work = match self.disks.is_here(image.digest()) {
                true => futures::future::Either::Left(wait_for(downloads.clone())),
                false => {
                    let job = Job {
                        known: Known::Image(Box::new(image.clone())),
                        inputs,
                        copies: Copies::None,
                    };
                    let work = self.convert(job, listeners.clone());
                    futures::future::Either::Right(work.map_ok(|_| ()))
                }
            };
            Box::pin(async move {
                let told = tell_downloads(&downloads, &listeners);
                tokio::select! {
                    result = work => result.map_err(Arc::new),
                    () = told => Err(Arc::new(StoreError::Convert(ConvertError::Cancelled))),
                }
            }) as Work
        };
        let result = self
            .flights
            .join(image.digest(), Arc::clone(progress), start)
            .await;
        if let Err(error) = &result {
            self.forget_damaged(image, error);
        }
        result.map_err(StoreError::Shared)
    }

    /// A layer on disk that is not what its name says must not be found again.
    fn forget_damaged(&self, image: &Image, error: &StoreError) {
        let damaged = match error {
            StoreError::Convert(
                ConvertError::Digest { layer, .. } | ConvertError::Size { layer, .. },
            ) => *layer,
            StoreError::Convert(ConvertError::Decompress { layer, .. }) => *layer,
            _ => return,
        };
        if let Some(layer) = image.layers.get(damaged)
            && let Err(error) = self.content.remove(&layer.digest)
        {
            tracing::warn!(digest = %layer.digest, %error, "a damaged layer could not be removed");
        }
    }
}

/// Waits for downloads that nothing else reads.
async fn wait_for(downloads: Vec<(manifest::Layer, Arc<Download>)>) -> Result<(), StoreError> {
    for (index, (_, download)) in downloads.into_iter().enumerate() {
        let stop = CancellationToken::new();
        let _stop_on_drop = stop.clone().drop_guard();
        let read = move || std::io::copy(&mut download.feed(stop), &mut std::io::sink());
        tokio::task::spawn_blocking(read)
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|source| ConvertError::Read {
                layer: index,
                source,
            })?;
    }
    Ok(())
}

/// Never ends: it is dropped with the conversion.
async fn tell_downloads(downloads: &[(manifest::Layer, Arc<Download>)], listeners: &Listeners) {
    let mut told = vec![0u64; downloads.len()];
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        for ((layer, download), told) in downloads.iter().zip(&mut told) {
            let written = download.written();
            if written != *told {
                *told = written;
                listeners.tell(&layer_event(layer, LayerPhase::Downloading, written));
            }
        }
    }
}

pub(super) fn platform_of(text: Option<&str>) -> Result<(Platform, Wanted), StoreError> {
    Ok(match text {
        Some(text) => (Platform::parse(text)?, Wanted::Explicitly),
        None => (Platform::host(), Wanted::ByHost),
    })
}

pub(super) fn resolved(image: &Image, progress: &ProgressSink) {
    progress(ImageProgress::Resolved {
        digest: image.digest().to_string(),
        layers: image.layers.len(),
        total_bytes: image.layers.iter().map(|layer| layer.size).sum(),
    });
}

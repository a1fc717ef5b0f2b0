//! Images whose blobs are here already: pushed to this store, or committed in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::TryFutureExt as _;
use tokio_util::sync::CancellationToken;
use warren_core::image::{ImageRecord, LayerPhase};
use warren_core::ports::images::ProgressSink;

use super::content::Content;
use super::convert::{Copies, Job, Listeners, Work, layer_event};
use super::pull::{platform_of, resolved};
use super::{ImageStore, NewRecord, StoreError, records};
use crate::digest::Digest;
use crate::pipeline::LayerInput;
use crate::source::layout::{Known, open_regular};
use crate::source::manifest::{self, Descriptor, Fetch, Image};
use crate::source::{Reference, SourceError};

/// An image to be made of blobs that are here.
#[derive(Debug, Clone)]
pub struct FromContent {
    /// Of its manifest, or of an index that has it.
    pub manifest: Digest,
    /// The reference to give it.
    pub name: String,
    /// The user's own id for it; made from the digest when absent.
    pub id: Option<String>,
    /// Which platform of an index; this host's when absent.
    pub platform: Option<String>,
    /// The user's labels.
    pub tags: BTreeMap<String, String>,
}

/// Documents as blobs. The caller of `fetch` checks their digests.
#[async_trait]
impl Fetch for Content {
    async fn fetch(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        let digest = descriptor.digest()?;
        read_document(self, &digest, limit)
    }
}

fn read_document(content: &Content, digest: &Digest, limit: u64) -> Result<Vec<u8>, SourceError> {
    let read = |source| SourceError::Read {
        what: format!("the blob {digest}"),
        source,
    };
    let bytes = content.document(digest).map_err(read)?;
    let bytes = bytes.ok_or_else(|| read(std::io::ErrorKind::NotFound.into()))?;
    if bytes.len() as u64 > limit {
        return Err(SourceError::TooLarge {
            what: format!("the blob {digest}"),
            limit,
        });
    }
    Ok(bytes.to_vec())
}

impl ImageStore {
    /// Makes the disk of an image whose manifest, configuration and layers are all blobs here, and records it.
    ///
    /// # Errors
    /// [`StoreError::Source`] when a document is missing or describes nothing that runs; [`StoreError::BlobMissing`]; what
    /// conversions fail with.
    pub async fn convert_from_content(
        &self,
        request: FromContent,
        progress: ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        if let Some(id) = &request.id {
            records::check_id(id)?;
        }
        let name: Reference = request.name.parse().map_err(SourceError::from)?;
        let (platform, wanted) = platform_of(request.platform.as_deref())?;
        let mut lease = self.content.lease([&request.manifest]);
        let bytes = read_document(&self.content, &request.manifest, manifest::MAX_MANIFEST)?;
        let content: &Content = &self.content;
        let image = manifest::resolve(content, bytes, &platform, wanted).await?;
        lease.extend(image.contents());
        resolved(&image, &progress);
        self.ensure_converted(&image, &progress).await?;
        for layer in &image.layers {
            progress(layer_event(layer, LayerPhase::Done, layer.size));
        }
        let new = NewRecord {
            id: request.id,
            name: name.to_string(),
            tags: request.tags,
        };
        self.record(new, &image).await
    }

    /// Makes the disk of an image from its blobs, unless it is here.
    pub(super) async fn ensure_converted(
        &self,
        image: &Image,
        progress: &ProgressSink,
    ) -> Result<(), StoreError> {
        let layers = image.layers.iter();
        if let Some(missing) = layers
            .map(|layer| (&layer.digest, layer.size))
            .find(|(digest, size)| self.content.size(digest) != Some(*size))
        {
            return Err(StoreError::BlobMissing(missing.0.clone()));
        }
        // Under a digest of another kind the manifest has come; it goes by this one.
        self.put_documents(image).await?;
        if self.disks.is_here(image.digest()) {
            return Ok(());
        }
        let start = |listeners: Listeners| {
            let job = Job {
                known: Known::Image(Box::new(image.clone())),
                inputs: self.inputs_from_content(image),
                copies: Copies::None,
            };
            let work = self.convert(job, listeners);
            Box::pin(work.map_ok(|_| ()).map_err(Arc::new)) as Work
        };
        self.flights
            .join(image.digest(), Arc::clone(progress), start)
            .await
            .map_err(StoreError::Shared)
    }

    /// The layers of an image, to be read from their blobs.
    pub(super) fn inputs_from_content(&self, image: &Image) -> Vec<LayerInput> {
        let layers = image.layers.iter();
        layers
            .map(|layer| {
                let path = self.content.path(&layer.digest);
                LayerInput {
                    digest: Some(layer.digest.clone()),
                    size: Some(layer.size),
                    diff_id: Some(layer.diff_id.clone()),
                    open: Box::new(move |_: &CancellationToken| {
                        Ok(Box::new(open_regular(&path)?.0))
                    }),
                }
            })
            .collect()
    }
}

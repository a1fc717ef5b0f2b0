//! Pushes: what the registry lacks, then the manifest, byte for byte as they are here.

use std::collections::HashSet;

use futures::StreamExt as _;
use serde::Deserialize;
use warren_core::image::{ImageProgress, LayerPhase};
use warren_core::ports::images::{ProgressSink, PushRequest, Pushed};

use super::records::Stored;
use super::{ImageStore, StoreError};
use crate::digest::Digest;
use crate::source::registry::{Delivered, Part};
use crate::source::{Reference, SourceError};

/// Blobs under way at once.
const AT_ONCE: usize = 4;

impl ImageStore {
    pub(super) async fn push_image(
        &self,
        request: PushRequest,
        progress: ProgressSink,
    ) -> Result<Pushed, StoreError> {
        let target: Reference = request.target.parse().map_err(SourceError::from)?;
        let all = self.records.list()?.readable;
        let stored = all
            .iter()
            .find(|stored| stored.record.id == request.id)
            .ok_or_else(|| StoreError::NotHere(request.id.clone()))?;
        let digest: Digest = stored
            .record
            .digest
            .parse()
            .map_err(|_| StoreError::NotHere(request.id.clone()))?;
        if target.digest().is_some_and(|wanted| *wanted != digest) {
            return Err(SourceError::Malformed {
                what: format!("the target {target}"),
                why: format!("the image has the digest {digest}"),
            }
            .into());
        }
        // Of an image that came before manifests were kept, there is nothing to send.
        let configuration = stored
            .configuration
            .clone()
            .ok_or_else(|| StoreError::BlobMissing(digest.clone()))?;
        let blobs = [&configuration].into_iter().chain(&stored.layers);
        let _lease = self.content.lease(blobs.clone().chain([&digest]));
        let manifest = self
            .content
            .document(&digest)
            .map_err(|source| StoreError::Disk {
                what: "reading the manifest",
                source,
            })?
            .ok_or_else(|| StoreError::BlobMissing(digest.clone()))?;
        let mut seen = HashSet::new();
        let parts: Vec<Part> = blobs
            .filter(|digest| seen.insert(*digest))
            .map(|digest| self.part(digest, &target, &all))
            .collect::<Result<_, _>>()?;
        let layers = stored.layers.len();
        progress(ImageProgress::Resolved {
            digest: digest.to_string(),
            layers,
            total_bytes: parts.iter().skip(1).map(|part| part.size).sum(),
        });
        let pusher = self
            .registries
            .pusher(&target, request.transport, request.credentials)
            .await
            .map_err(SourceError::from)?;
        let deliveries: Vec<_> = parts
            .iter()
            .map(|part| {
                let is_layer = part.digest != configuration;
                let (pusher, progress) = (&pusher, &progress);
                async move {
                    let tell = |phase, bytes| {
                        if is_layer {
                            progress(ImageProgress::Layer {
                                digest: part.digest.to_string(),
                                phase,
                                bytes,
                                total: part.size,
                            });
                        }
                    };
                    tell(LayerPhase::Waiting, 0);
                    let sent = |bytes| tell(LayerPhase::Uploading, bytes);
                    let delivered = pusher.deliver(part, &sent).await?;
                    tell(LayerPhase::Done, part.size);
                    Ok::<_, crate::source::registry::RegistryError>(match delivered {
                        Delivered::Sent => part.size,
                        Delivered::Held | Delivered::Mounted => 0,
                    })
                }
            })
            .collect();
        let mut sent_bytes = 0;
        let mut deliveries = futures::stream::iter(deliveries).buffer_unordered(AT_ONCE);
        while let Some(delivered) = deliveries.next().await {
            sent_bytes += delivered.map_err(SourceError::from)?;
        }
        drop(deliveries);
        progress(ImageProgress::Finishing);
        let name = match (target.digest(), target.tag()) {
            (_, Some(tag)) => tag.to_owned(),
            (Some(digest), None) => digest.to_string(),
            (None, None) => "latest".to_owned(),
        };
        pusher
            .put_manifest(&name, &digest, media_type(&manifest), &manifest)
            .await
            .map_err(SourceError::from)?;
        Ok(Pushed {
            target: target.to_string(),
            digest: digest.to_string(),
            layers,
            sent_bytes,
        })
    }

    fn part(
        &self,
        digest: &Digest,
        target: &Reference,
        all: &[Stored],
    ) -> Result<Part, StoreError> {
        let also_in = all
            .iter()
            .filter(|stored| stored.layers.contains(digest))
            .filter_map(|stored| stored.record.name.parse::<Reference>().ok())
            .find(|name| {
                name.registry() == target.registry() && name.repository() != target.repository()
            });
        Ok(Part {
            digest: digest.clone(),
            size: self
                .content
                .size(digest)
                .ok_or_else(|| StoreError::BlobMissing(digest.clone()))?,
            path: self.content.path(digest),
            also_in: also_in.map(|name| name.repository().to_owned()),
        })
    }
}

/// What a manifest says it is; what it must be where it says nothing (OCI image-spec v1.1: `mediaType` is optional).
fn media_type(manifest: &[u8]) -> &'static str {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        #[serde(default)]
        media_type: String,
    }
    let typed: Option<Typed> = serde_json::from_slice(manifest).ok();
    match typed {
        Some(typed) if typed.media_type.starts_with("application/vnd.docker.") => {
            "application/vnd.docker.distribution.manifest.v2+json"
        }
        _ => "application/vnd.oci.image.manifest.v1+json",
    }
}

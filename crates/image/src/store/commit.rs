//! Images made of what an instance has changed.
//!
//! ```text
//! the instance's disk ──► nameless copy ──► layer (tar, gzip) ──┬─► conversion, behind the layers of the base ──► disk
//!                                                              └─► blob
//! ```
//!
//! One pass: the new layer is read by the conversion while it is made, and becomes a blob on its way, as a loaded archive's
//! layers do. Nothing is published before all of it is right.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use warren_core::PortError;
use warren_core::image::{ImageProgress, ImageRecord};
use warren_core::ports::Commits;
use warren_core::ports::commits::CommitRequest;
use warren_core::ports::images::ProgressSink;
use warren_crashpoint::reached;

use super::content::{Content, Lease};
use super::convert::{Copies, Job, Listeners};
use super::pull::resolved;
use super::{ImageStore, NewRecord, StoreError, records};
use crate::changes::{self, Changed};
use crate::digest::Digest;
use crate::erofs;
use crate::pipeline::LayerInput;
use crate::source::change::Change;
use crate::source::committed::Committed;
use crate::source::layout::Known;
use crate::source::manifest::{self, Image, Platform, Wanted};
use crate::source::{Reference, SourceError};
use crate::volumes;

/// A commit that may begin.
struct Planned {
    committed: Committed,
    new: NewRecord,
    /// On everything that the base is made of.
    lease: Lease,
}

impl ImageStore {
    async fn plan_commit(
        &self,
        request: &CommitRequest,
        base: &str,
    ) -> Result<Planned, StoreError> {
        if let Some(id) = &request.id {
            records::check_id(id)?;
        }
        let name: Reference = request.name.parse().map_err(SourceError::from)?;
        let changes = request.changes.iter();
        let changes: Vec<Change> = changes
            .map(|change| Change::parse(change))
            .collect::<Result<_, _>>()?;
        let (base, lease) = self.base(base).await?;
        Ok(Planned {
            committed: Committed {
                base,
                changes,
                author: request.author.clone(),
                message: request.message.clone(),
            },
            new: NewRecord {
                id: request.id.clone(),
                name: name.to_string(),
                tags: request.tags.clone(),
            },
            lease,
        })
    }

    /// The image that an instance runs from, all of whose blobs are here.
    async fn base(&self, digest: &str) -> Result<(Image, Lease), StoreError> {
        let manifest: Digest = digest
            .parse()
            .map_err(|_| StoreError::NotHere(digest.to_owned()))?;
        let gone = || StoreError::BaseGone(manifest.clone());
        let mut lease = self.content.lease([&manifest]);
        let found = self.content.document(&manifest);
        let bytes = found.ok().flatten().ok_or_else(gone)?;
        let content: &Content = &self.content;
        let platform = Platform::host();
        let image = match manifest::resolve(content, bytes.to_vec(), &platform, Wanted::ByHost)
            .await
        {
            Err(SourceError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(gone());
            }
            image => image?,
        };
        lease.extend(image.contents());
        let is_here =
            |layer: &manifest::Layer| self.content.size(&layer.digest) == Some(layer.size);
        match image.layers.iter().all(is_here) {
            true => Ok((image, lease)),
            false => Err(gone()),
        }
    }

    async fn commit_changes(
        &self,
        request: CommitRequest,
        base: &str,
        disk: File,
        progress: ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        let Planned {
            committed,
            new,
            lease,
        } = self.plan_commit(&request, base).await?;
        let base_disk = self.disks.path(committed.base.digest());
        let limits = self.options.limits;
        let reading = "looking through the instance's changes";
        let changed = records::blocking(reading, move || {
            let base = match File::open(base_disk) {
                Ok(file) => Some(erofs::Reader::open(file)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let changed = Changed { disk, base, limits };
            Ok(match changes::is_empty(&changed) {
                Ok(true) => Ok(None),
                Ok(false) => Ok(Some(changed)),
                Err(error) => Err(error),
            })
        })
        .await??;
        let record = match changed {
            Some(changed) => {
                let (image, lease) = self.convert_changes(committed, changed, &progress).await?;
                self.put_documents(&image).await?;
                reached("commit.made");
                let record = self.record(new, &image).await?;
                drop(lease);
                record
            }
            None => {
                let image = committed.make(None)?;
                let _lease = self.content.lease(image.contents());
                resolved(&image, &progress);
                self.ensure_converted(&image, &progress).await?;
                self.record(new, &image).await?
            }
        };
        drop(lease);
        Ok(record)
    }

    async fn convert_changes(
        &self,
        committed: Committed,
        changed: Changed,
        progress: &ProgressSink,
    ) -> Result<(Image, Lease), StoreError> {
        let base = &committed.base;
        progress(ImageProgress::Resolved {
            digest: String::new(),
            layers: base.layers.len() + 1,
            total_bytes: base.layers.iter().map(|layer| layer.size).sum(),
        });
        let mut inputs = self.inputs_from_content(base);
        inputs.push(LayerInput {
            digest: None,
            size: None,
            diff_id: None,
            open: Box::new(move |_: &CancellationToken| Ok(Box::new(changes::open(changed)?))),
        });
        let job = Job {
            known: Known::Committed(Box::new(committed)),
            inputs,
            copies: Copies::Missing,
        };
        self.convert(job, Listeners::of(Arc::clone(progress))).await
    }
}

#[async_trait]
impl Commits for ImageStore {
    async fn check(&self, request: &CommitRequest, base: &str) -> Result<(), PortError> {
        self.plan_commit(request, base).await?;
        Ok(())
    }

    async fn capture(&self, disk: &Path) -> Result<File, PortError> {
        let disk = disk.to_owned();
        let copied = tokio::task::spawn_blocking(move || volumes::nameless_copy(&disk)).await;
        let copy = match copied.map_err(io::Error::other).flatten() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PortError::not_found(
                    "disk_not_here",
                    "the instance has no disk: it was never started",
                ));
            }
            copied => {
                copied.map_err(|error| PortError::io("copying the instance's disk", error))?
            }
        };
        reached("commit.captured");
        Ok(copy)
    }

    async fn commit(
        &self,
        request: CommitRequest,
        base: &str,
        disk: File,
        progress: ProgressSink,
    ) -> Result<ImageRecord, PortError> {
        Ok(self.commit_changes(request, base, disk, progress).await?)
    }
}

//! Images made of what an instance has changed.

use super::images::ProgressSink;
use crate::PortError;
use crate::image::ImageRecord;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// What the new image is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitRequest {
    /// The reference to give it.
    pub name: String,
    /// The user's own id for it; made from the digest when absent.
    pub id: Option<String>,
    /// Who made it, for its history.
    pub author: Option<String>,
    /// What it is for, for its history.
    pub message: Option<String>,
    /// Instructions of a Dockerfile that change its configuration: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`, `STOPSIGNAL`,
    /// `USER`, `VOLUME`, `WORKDIR`.
    pub changes: Vec<String>,
    /// The user's labels on it.
    pub tags: BTreeMap<String, String>,
}

/// Making images of instances' changes, in three steps: check, capture while nobody writes, commit.
#[async_trait]
pub trait Commits: Send + Sync {
    /// Whether a commit on top of the image `base` (a digest) can be made. Invalid for what can never be; a Conflict
    /// (`image_layers_gone`) when the image's layers are not here.
    async fn check(&self, request: &CommitRequest, base: &str) -> Result<(), PortError>;
    /// Copies a writable disk that nobody writes to meanwhile. The copy has no name: it is gone with its last handle, and with
    /// the process. NotFound (`disk_not_here`) without such a disk.
    async fn capture(&self, disk: &Path) -> Result<File, PortError>;
    /// Makes an image of what `disk`, as it was captured, has changed of the image `base`. When it returns, the image's disk is
    /// durable and its record written. Where nothing was changed, the new image has the layers of the old one. Dropping the
    /// future cancels.
    async fn commit(
        &self,
        request: CommitRequest,
        base: &str,
        disk: File,
        progress: ProgressSink,
    ) -> Result<ImageRecord, PortError>;
}

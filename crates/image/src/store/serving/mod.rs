//! The store as a registry: what was pushed here, and every image that came another way, by repository.
//!
//! Two kinds of things are in a repository. What was pushed into it is on its shelf (`shelf`): manifests and tags, of images
//! or of anything else. And every image that has a record is in the repository of its full name, `docker.io/library/nginx`,
//! with a port's colon written as `_`. Blobs belong to a repository by being named by one of its manifests, or for an hour
//! after they were uploaded.
//!
//! A tag whose image runs on this host has a record as well, written last, and the record decides: removing the one removes
//! the other. Must never: show a manifest whose content is not here.

mod described;
mod discard;
mod error;
mod links;
mod receive;
mod sessions;
mod shelf;
mod view;

use std::collections::HashSet;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use warren_core::PortError;
use warren_core::ports::registry::{
    Blob, ByteRange, ByteStream, Manifest, ManifestKept, ManifestName, Piece, PutManifest,
    Referrer, RegistryBlobs, RegistryManifests, Upload,
};

use super::inventory::{Key, Kind};
use super::records::{Records, Stored};
use super::{ImageStore, StoreError};
use crate::digest::Digest;
use error::ServeError;
use links::Links;
use sessions::Sessions;
use shelf::{Repository, Shelf, Tag};
use view::{Standing, standing};

pub use sessions::UploadLimits;

/// Bytes that are read at once for a client.
const READ: usize = 256 << 10;

/// What serving needs beyond records and content.
#[derive(Debug)]
pub(super) struct Serving {
    shelf: Shelf,
    sessions: Arc<Sessions>,
    links: Links,
    /// Shared from a tag until its record is written: in between it looks like one whose image was removed.
    showing: tokio::sync::RwLock<()>,
}

impl Serving {
    /// Reads the repositories below `directory`, which is there.
    pub(super) fn open(directory: PathBuf, limits: UploadLimits) -> io::Result<Self> {
        Ok(Serving {
            shelf: Shelf::open(directory)?,
            sessions: Arc::new(Sessions::new(limits)),
            links: Links::default(),
            showing: tokio::sync::RwLock::default(),
        })
    }

    /// A file of a repository that cannot be read.
    pub(super) fn damaged(&self) -> Option<PathBuf> {
        self.shelf.damaged().map(ToOwned::to_owned)
    }

    /// Everything that repositories need: manifests, and what they name.
    pub(super) fn needed(&self) -> HashSet<Key> {
        let mut needed = HashSet::new();
        for repository in self.shelf.all() {
            needed.extend(
                repository
                    .needed()
                    .map(|digest| (Kind::Blob, digest.clone())),
            );
        }
        needed
    }

    /// Everything that repositories would need if these were all the records.
    pub(super) fn needed_beside(&self, records: &[Stored]) -> HashSet<Key> {
        let now = now();
        let mut needed = HashSet::new();
        for repository in self.shelf.all() {
            let mut repository = (*repository).clone();
            let_go(&mut repository, records, now);
            needed.extend(
                repository
                    .needed()
                    .map(|digest| (Kind::Blob, digest.clone())),
            );
        }
        needed
    }

    /// Lets go of what nobody asks for any more: tags whose images were removed, manifests whose last tag went long ago.
    pub(super) async fn settle(&self, records: &Records) -> Result<(), StoreError> {
        let _alone = self.showing.write().await;
        let records = records.list()?.readable;
        let now = now();
        for repository in self.shelf.all() {
            self.shelf
                .change(&repository.name, |repository| {
                    let_go(repository, &records, now);
                })
                .await?;
        }
        Ok(())
    }
}

/// Takes away what these records say is gone, and what is due.
fn let_go(repository: &mut Repository, records: &[Stored], now: i64) {
    let is_gone = |tag: &Tag| matches!(standing(tag, records), Standing::Gone);
    let tags = repository.tags.iter().filter(|(_, tag)| is_gone(tag));
    let gone: Vec<String> = tags.map(|(name, _)| name.clone()).collect();
    for tag in &gone {
        // Its user has removed the image: nobody is pulling it.
        repository.take_tag(tag, now - shelf::LINGER);
    }
    repository.expire(now);
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

impl ImageStore {
    /// Whether a repository has a blob. Looks at records only where nothing else has it.
    fn has_blob(&self, repository: &str, digest: &Digest) -> Result<bool, ServeError> {
        let shelf = self.serving.shelf.get(repository);
        Ok(self.serving.links.has(repository, digest)
            || shelf.is_some_and(|shelf| shelf.names(digest))
            || self.view(repository)?.names_blob(digest))
    }

    fn find_blob(&self, repository: &str, digest: &Digest) -> Result<u64, ServeError> {
        let unknown = || ServeError::BlobUnknown {
            repository: repository.to_owned(),
            digest: digest.clone(),
        };
        if !self.has_blob(repository, digest)? {
            return Err(unknown());
        }
        self.content.size(digest).ok_or_else(unknown)
    }

    async fn open_blob(
        &self,
        repository: &str,
        digest: &str,
        range: ByteRange,
    ) -> Result<ByteStream, ServeError> {
        let digest: Digest = digest.parse()?;
        self.find_blob(repository, &digest)?;
        let opened = self.content.open(&digest).map_err(ServeError::Read)?;
        let (mut file, _) = opened.ok_or_else(|| ServeError::BlobUnknown {
            repository: repository.to_owned(),
            digest: digest.clone(),
        })?;
        file.seek(SeekFrom::Start(range.start))
            .map_err(ServeError::Read)?;
        let part = tokio::fs::File::from_std(file).take(range.end.saturating_sub(range.start));
        let bytes = ReaderStream::with_capacity(part, READ)
            .map(|bytes| bytes.map_err(|error| ServeError::Read(error).into()));
        Ok(bytes.boxed())
    }

    /// Shows a blob in a repository, and keeps it, until a manifest names it or an hour is over.
    fn link(&self, repository: &str, digest: &Digest) {
        self.content.keep_for(digest, links::GRACE);
        self.serving.links.add(repository, digest);
    }

    async fn finish(
        &self,
        repository: &str,
        id: &str,
        piece: Piece,
        digest: &str,
    ) -> Result<Blob, ServeError> {
        let digest: Digest = digest.parse()?;
        let sessions = &self.serving.sessions;
        let size = sessions
            .finish(&self.content, repository, id, piece, &digest)
            .await?;
        self.link(repository, &digest);
        Ok(Blob {
            digest: digest.to_string(),
            size,
        })
    }
}

#[async_trait]
impl RegistryBlobs for ImageStore {
    async fn blob(&self, repository: &str, digest: &str) -> Result<Blob, PortError> {
        let digest: Digest = digest.parse().map_err(ServeError::from)?;
        let size = self.find_blob(repository, &digest)?;
        Ok(Blob {
            digest: digest.to_string(),
            size,
        })
    }

    async fn read_blob(
        &self,
        repository: &str,
        digest: &str,
        range: ByteRange,
    ) -> Result<ByteStream, PortError> {
        Ok(self.open_blob(repository, digest, range).await?)
    }

    async fn remove_blob(&self, repository: &str, digest: &str) -> Result<(), PortError> {
        let digest: Digest = digest.parse().map_err(ServeError::from)?;
        let repository = repository.to_owned();
        if self.view(&repository)?.names_blob(&digest) {
            return Err(ServeError::BlobNeeded { repository, digest }.into());
        }
        if self.serving.links.remove(&repository, &digest) {
            Ok(())
        } else {
            Err(ServeError::BlobUnknown { repository, digest }.into())
        }
    }

    async fn mount_blob(
        &self,
        repository: &str,
        digest: &str,
        from: Option<&str>,
    ) -> Result<Option<Blob>, PortError> {
        let digest: Digest = digest.parse().map_err(ServeError::from)?;
        let lease = self.content.lease([&digest]);
        let there = match from {
            Some(from) => self.has_blob(from, &digest)?,
            None => true,
        };
        let Some(size) = self.content.size(&digest).filter(|_| there) else {
            return Ok(None);
        };
        self.link(repository, &digest);
        drop(lease);
        Ok(Some(Blob {
            digest: digest.to_string(),
            size,
        }))
    }

    async fn begin_upload(&self, repository: &str) -> Result<Upload, PortError> {
        let sessions = &self.serving.sessions;
        let id = sessions.begin(&self.content, repository).await?;
        Ok(Upload { id, offset: 0 })
    }

    async fn upload(&self, repository: &str, id: &str) -> Result<Upload, PortError> {
        let offset = self.serving.sessions.offset(repository, id)?;
        let id = id.to_owned();
        Ok(Upload { id, offset })
    }

    async fn append_upload(
        &self,
        repository: &str,
        id: &str,
        piece: Piece,
    ) -> Result<Upload, PortError> {
        let sessions = &self.serving.sessions;
        let appended = sessions.append(&self.content, repository, id, piece);
        let offset = appended.await?;
        let id = id.to_owned();
        Ok(Upload { id, offset })
    }

    async fn finish_upload(
        &self,
        repository: &str,
        id: &str,
        piece: Piece,
        digest: &str,
    ) -> Result<Blob, PortError> {
        Ok(self.finish(repository, id, piece, digest).await?)
    }

    async fn cancel_upload(&self, repository: &str, id: &str) -> Result<(), PortError> {
        let sessions = &self.serving.sessions;
        Ok(sessions.cancel(&self.content, repository, id)?)
    }
}

#[async_trait]
impl RegistryManifests for ImageStore {
    async fn manifest(&self, repository: &str, name: &ManifestName) -> Result<Manifest, PortError> {
        Ok(self.find_manifest(repository, name).await?)
    }

    async fn put_manifest(&self, put: PutManifest) -> Result<ManifestKept, PortError> {
        Ok(self.put(put).await?)
    }

    async fn remove_manifest(
        &self,
        repository: &str,
        name: &ManifestName,
        in_use: &[String],
    ) -> Result<(), PortError> {
        Ok(self.take(repository, name, in_use).await?)
    }

    async fn tags(&self, repository: &str) -> Result<Vec<String>, PortError> {
        Ok(self.list_tags(repository).await?)
    }

    async fn repositories(&self) -> Result<Vec<String>, PortError> {
        Ok(self.list_repositories().await?)
    }

    async fn referrers(&self, repository: &str, digest: &str) -> Result<Vec<Referrer>, PortError> {
        Ok(self.list_referrers(repository, digest).await?)
    }
}

//! Content-addressed bytes: manifests, configurations and layers, each under its digest, whole and verified, or not there.
//!
//! ```text
//! <data>/images/blobs/<algorithm>/<hex>     a blob
//! <data>/images/blobs/<algorithm>/.tmp-…    one that is being written, locked by its writer
//! ```
//!
//! Pulls, loads, uploads and commits put blobs here; conversions, pushes and downloads by others read them. A blob that no
//! record reaches may be collected at any time: whoever is about to need one takes a [`Lease`] on its digest first, and
//! looks whether it is there afterwards. Must never: show a blob whose digest was not checked, or change one.

mod lease;
mod upload;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use warren_crashpoint::reached;

use super::StoreError;
use super::publish::{self, Temporary};
use crate::digest::{Digest, Hasher};
use crate::source::layout::open_regular;
use crate::source::manifest::{MAX_CONFIG, Verbatim};

pub use lease::Lease;
pub(super) use lease::{Collection, Leases};
pub use upload::UploadError;

/// Documents are read whole into memory.
const MAX_DOCUMENT: u64 = MAX_CONFIG;

/// The blobs of a store.
#[derive(Debug)]
pub struct Content {
    directory: PathBuf,
    leases: Leases,
    uploads: upload::Uploads,
}

impl Content {
    pub(super) fn new(directory: PathBuf) -> Self {
        Content {
            directory,
            leases: Leases::default(),
            uploads: upload::Uploads::default(),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a blob is, or would be.
    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.algorithm()).join(digest.hex())
    }

    /// Keeps digests from being collected, whether they are here already or not, until the lease is dropped. To be taken
    /// before anything is looked up, and held until what reaches them is recorded.
    pub fn lease<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Lease {
        self.leases.take(digests)
    }

    /// Keeps one digest from being collected for a while: for a client that was told that it is here, and will ask for
    /// something that needs it.
    pub fn keep_for(&self, digest: &Digest, time: Duration) {
        self.leases.keep_for(digest, time);
    }

    /// What somebody has a lease on.
    pub(super) fn leased(&self) -> HashSet<Digest> {
        self.leases.leased()
    }

    pub(super) fn collect(&self) -> Collection {
        self.leases.collect()
    }

    /// A blob's bytes and their number, `None` when it is not here. It can be read to its end whatever happens to its name.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        match open_regular(&self.path(digest)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The size of a blob, `None` when it is not here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let found = self.path(digest).metadata().ok()?;
        found.is_file().then_some(found.len())
    }

    /// A manifest, index or configuration, whole; checked against its digest. `None` when it is not here.
    ///
    /// # Errors
    /// The file system's; `InvalidData` when it is larger than documents are, or damaged.
    pub fn document(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        let Some((mut file, size)) = self.open(digest)? else {
            return Ok(None);
        };
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        if size > MAX_DOCUMENT {
            return Err(wrong("the blob is too large for a document"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        io::Read::read_to_end(&mut file, &mut bytes)?;
        let mut hasher = Hasher::like(Some(digest));
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            return Err(wrong("the blob is damaged"));
        }
        Ok(Some(bytes.into()))
    }

    /// Keeps a document under its SHA-256; there may be one already.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub async fn put_document(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        let document = Verbatim::new(bytes);
        let digest = document.digest.clone();
        self.put(vec![document]).await?;
        Ok(digest)
    }

    /// Keeps documents that were checked, durably. A damaged one is replaced.
    pub(super) async fn put(&self, documents: Vec<Verbatim>) -> Result<(), StoreError> {
        let paths = documents.iter().map(|document| self.path(&document.digest));
        let directories = directories_of(paths);
        self.stage(documents).await?.publish().await?;
        blocking_io(move || {
            directories
                .iter()
                .try_for_each(|of| publish::sync_directory(of))
        })
        .await
        .map_err(keeping)
    }

    /// Writes documents that were checked, durably, and shows none of them yet.
    pub(super) async fn stage(&self, documents: Vec<Verbatim>) -> Result<Staged, StoreError> {
        let documents: Vec<(PathBuf, Verbatim)> = documents
            .into_iter()
            .map(|document| (self.path(&document.digest), document))
            .collect();
        blocking_io(move || {
            let mut staged = Vec::new();
            for (path, document) in documents {
                if std::fs::read(&path).is_ok_and(|known| known == document.bytes) {
                    continue;
                }
                let mut temporary = Temporary::beside(&path)?;
                temporary.file().write_all(&document.bytes)?;
                staged.push((path, temporary));
            }
            publish::sync_together(staged.iter().map(|(_, temporary)| temporary), &[])?;
            Ok(Staged(staged))
        })
        .await
        .map_err(keeping)
    }

    /// Takes a blob away, whoever may need it: it is damaged.
    pub(super) fn remove(&self, digest: &Digest) -> io::Result<()> {
        publish::remove(&self.path(digest))
    }
}

/// Documents that are on disk under other names than their own; gone when it is dropped.
#[derive(Debug)]
pub(super) struct Staged(Vec<(PathBuf, Temporary)>);

impl Staged {
    /// Shows them.
    pub(super) async fn publish(self) -> Result<(), StoreError> {
        blocking_io(move || {
            for (path, temporary) in self.0 {
                temporary.show(&path)?;
                reached("image.document-published");
            }
            Ok(())
        })
        .await
        .map_err(keeping)
    }
}

/// One of the files of each directory.
pub(super) fn directories_of(files: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut one_of_each: Vec<PathBuf> = Vec::new();
    for file in files {
        if one_of_each
            .iter()
            .all(|known| known.parent() != file.parent())
        {
            one_of_each.push(file);
        }
    }
    one_of_each
}

fn keeping(source: io::Error) -> StoreError {
    StoreError::Disk {
        what: "keeping a manifest",
        source,
    }
}

/// Runs what may wait for the disk where that does no harm.
async fn blocking_io<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
        .flatten()
}

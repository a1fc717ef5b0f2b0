//! Where images come from: a registry, containerd, an OCI layout, an OCI or docker archive, a root-file-system tarball.
//!
//! Owns: references, manifests, and the way to each layer's bytes. Must never: hand on a manifest or a configuration
//! whose digest was not checked, or hold a layer in memory. Layers are verified by `pipeline` as they pass.

pub(crate) mod archive;
pub(crate) mod change;
pub(crate) mod committed;
pub mod containerd;
pub(crate) mod layout;
pub(crate) mod manifest;
pub(crate) mod reference;
pub mod registry;
mod spool;
pub(crate) mod unmade;

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::decompress::Decoder;
use crate::limits::{LimitExceeded, Limits, Stop};
use archive::ArchiveIndex;
use layout::{Files, Found};
use manifest::{Platform, Wanted};

pub use reference::{Reference, ReferenceError};

/// Why a source does not give an image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file of a layout or an archive.
    #[error("{what} cannot be read")]
    Read {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing that is an image.
    #[error(
        "this is neither an OCI layout nor an OCI archive, a docker archive or a tarball of a root file system"
    )]
    NotAnImage,
    /// A document that is not what the specification says.
    #[error("{what} is not valid: {why}")]
    Malformed {
        /// Which document.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A document or blob is not what its digest says.
    #[error("{what} does not have the digest {expected}: it is damaged or was tampered with")]
    Digest {
        /// Which.
        what: String,
        /// Promised.
        expected: String,
    },
    /// A document is larger than is sane.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Which.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// What the manifest describes is not a container image.
    #[error("{0}")]
    NotRunnable(String),
    /// An index without the wanted platform.
    #[error("there is no image for {wanted}; there are: {found}")]
    Platform {
        /// Asked for.
        wanted: String,
        /// Offered.
        found: String,
    },
    /// A reference that is not one.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
    /// containerd.
    #[error(transparent)]
    Containerd(#[from] containerd::ContainerdError),
    /// An archive with too much in it.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// Room for a compressed archive.
    #[error("the archive cannot be laid out on disk")]
    Spool(#[source] io::Error),
    /// The caller does not want it any more.
    #[error("opening the image was cancelled")]
    Cancelled,
}

impl From<Stop> for SourceError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Limit(limit) => limit.into(),
            Stop::Cancelled => SourceError::Cancelled,
        }
    }
}

/// The images at a path on this host, told apart by content: an OCI layout, an OCI or docker archive, or one tarball. A
/// compressed archive of an image is spooled into the directory `spool` first. Dropping the future stops that.
pub(crate) async fn open_local(
    path: &Path,
    spool: &Path,
    platform: &Platform,
    wanted: Wanted,
    limits: &Limits,
) -> Result<Vec<Found>, SourceError> {
    let read = |source| SourceError::Read {
        what: path.display().to_string(),
        source,
    };
    if std::fs::metadata(path).map_err(read)?.is_dir() {
        let files = Files::Directory(path.to_owned());
        let images = layout::read_layout(&files, platform, wanted).await?;
        return images.ok_or(SourceError::NotAnImage);
    }
    let index = {
        let (path, spool, limits) = (path.to_owned(), spool.to_owned(), *limits);
        let stop = CancellationToken::new();
        let _stop_on_drop = stop.clone().drop_guard();
        tokio::task::spawn_blocking(move || index_archive(&path, &spool, &limits, &stop))
            .await
            .map_err(|error| read(io::Error::other(error)))??
    };
    let tarball = || vec![Found::tarball(path.to_owned(), platform.clone())];
    let Some(index) = index else {
        return Ok(tarball());
    };
    let files = Files::Archive(Arc::new(index));
    if let Some(images) = layout::read_layout(&files, platform, wanted).await? {
        return Ok(images);
    }
    Ok(layout::read_docker(&files)?.unwrap_or_else(tarball))
}

/// The index of an image archive, `None` for any other tar archive.
fn index_archive(
    path: &Path,
    directory: &Path,
    limits: &Limits,
    stop: &CancellationToken,
) -> Result<Option<ArchiveIndex>, SourceError> {
    let read = |source| SourceError::Read {
        what: path.display().to_string(),
        source,
    };
    let open = || layout::open_regular(path).map_err(read);
    let (file, _) = open()?;
    let mut first = Decoder::new(io::BufReader::with_capacity(128 << 10, file)).map_err(read)?;
    let file = if let Decoder::Plain(_) = first {
        open()?.0
    } else if looks_like_archive(&mut first) {
        spool::spool(path, open()?.0, directory, limits, stop)?
    } else {
        // Image archives show themselves with their first entry; a root file system would be spooled for nothing.
        return Ok(None);
    };
    ArchiveIndex::read(file).map_err(|_| SourceError::NotAnImage)
}

/// Whether the first name is one that only image archives begin with.
fn looks_like_archive(from: &mut impl io::Read) -> bool {
    let mut reader = warren_tar::Reader::new(io::BufReader::new(from), 1 << 20);
    let Ok(Some(entry)) = reader.next_entry() else {
        return false;
    };
    let name = String::from_utf8_lossy(&entry.path);
    let name = name.trim_start_matches("./");
    let first = name.split('/').next().unwrap_or_default();
    let stem = first
        .strip_suffix(".json")
        .or(first.strip_suffix(".tar"))
        .unwrap_or(first);
    matches!(
        first,
        "blobs" | "index.json" | "oci-layout" | "manifest.json" | "repositories"
    ) || (stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit()))
}

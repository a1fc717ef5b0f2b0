//! Records on disk: one JSON file a name, found again by reading the directory.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use warren_core::image::ImageRecord;

use super::StoreError;
use super::publish::{self, Temporary};
use crate::digest::Digest;

/// A record with the layers its image was made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(flatten)]
    pub(super) record: ImageRecord,
    /// Digests of the layers that came from a registry: they keep their blobs.
    #[serde(default)]
    pub(super) layers: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    /// One change at a time.
    writing: tokio::sync::Mutex<()>,
}

impl Records {
    pub(super) fn new(directory: PathBuf) -> Self {
        Records {
            directory,
            writing: tokio::sync::Mutex::new(()),
        }
    }

    /// All that can be read; a damaged one is named in the log and left out.
    pub(super) fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let reading = |source| StoreError::Disk {
            what: "reading the image records",
            source,
        };
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(reading)? {
            let path = entry.map_err(reading)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                // Removed between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(reading(error)),
            };
            match serde_json::from_slice::<Stored>(&bytes) {
                Ok(stored)
                    if path
                        .file_stem()
                        .is_some_and(|stem| *stem == *stored.record.id) =>
                {
                    all.push(stored)
                }
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "an image record has another id than its file's name")
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an image record is damaged")
                }
            }
        }
        Ok(all)
    }

    /// The id for a name without one of the user's: the one it has, or one made from the digest.
    pub(super) fn id_for(&self, name: &str, digest: &Digest) -> Result<String, StoreError> {
        let all = self.list()?;
        if let Some(known) = all.iter().find(|stored| stored.record.name == name) {
            return Ok(known.record.id.clone());
        }
        let made = format!("img-{}", &digest.hex()[..12]);
        if all.iter().all(|stored| stored.record.id != made) {
            return Ok(made);
        }
        // Two names of one image.
        let both = Digest::of(format!("{name} {digest}").as_bytes());
        Ok(format!("img-{}", &both.hex()[..12]))
    }

    pub(super) async fn put(&self, stored: Stored) -> Result<ImageRecord, StoreError> {
        let path = self.path(&stored.record.id)?;
        let _writing = self.writing.lock().await;
        let record = stored.record.clone();
        blocking("writing the image record", move || {
            let mut temporary = Temporary::beside(&path)?;
            let bytes = serde_json::to_vec_pretty(&stored)?;
            temporary.file().write_all(&bytes)?;
            temporary.publish(&path)
        })
        .await?;
        Ok(record)
    }

    /// Removes a record; what it said.
    pub(super) async fn remove(&self, id: &str) -> Result<Option<Stored>, StoreError> {
        let path = self.path(id)?;
        let _writing = self.writing.lock().await;
        let Some(stored) = self
            .list()?
            .into_iter()
            .find(|stored| stored.record.id == id)
        else {
            return Ok(None);
        };
        blocking("removing the image record", move || publish::remove(&path)).await?;
        Ok(Some(stored))
    }

    fn path(&self, id: &str) -> Result<PathBuf, StoreError> {
        check_id(id)?;
        Ok(self.directory.join(format!("{id}.json")))
    }
}

/// An id is a file's name here.
pub(super) fn check_id(id: &str) -> Result<(), StoreError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let starts = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts && id.len() <= 128 && id.bytes().all(fine) {
        Ok(())
    } else {
        Err(StoreError::Id(id.chars().take(128).collect()))
    }
}

/// Runs what may wait for the disk where that does no harm.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|source| StoreError::Disk { what, source })
}

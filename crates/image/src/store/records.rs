//! Records on disk: one JSON file a name, found again by reading the directory.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use warren_core::image::ImageRecord;
use warren_crashpoint::reached;

use super::StoreError;
use super::publish::{self, Temporary};
use crate::digest::Digest;
use crate::source::manifest::Image;

/// A record with what its image is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(flatten)]
    pub(super) record: ImageRecord,
    /// Digest of the configuration, which is a blob, as is the manifest then. Records of versions that did not keep them
    /// have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) configuration: Option<Digest>,
    /// Digests of the layers, oldest first. Without a configuration: of those that came from a registry.
    #[serde(default)]
    pub(super) layers: Vec<Digest>,
}

/// What a user wants an image to be called.
#[derive(Debug, Clone)]
pub(super) struct NewRecord {
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) tags: BTreeMap<String, String>,
}

/// The records, as far as they can be read.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) readable: Vec<Stored>,
    /// Files that are no records any more: nobody knows what they reached.
    pub(super) damaged: Vec<PathBuf>,
}

#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    /// One change at a time.
    writing: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

/// What the files said since the last change of one.
#[derive(Debug, Default)]
struct Known {
    changes: u64,
    records: Option<Arc<Vec<ImageRecord>>>,
}

impl Records {
    pub(super) fn new(directory: PathBuf) -> Self {
        Records {
            directory,
            writing: tokio::sync::Mutex::new(()),
            known: Mutex::default(),
        }
    }

    /// The same as [`Records::read`], without looking at the files again while nothing changes here: this is on the way of
    /// every create.
    pub(super) fn known(&self) -> Result<Arc<Vec<ImageRecord>>, StoreError> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = {
            let known = lock();
            if let Some(records) = &known.records {
                return Ok(Arc::clone(records));
            }
            known.changes
        };
        let records = Arc::new(self.read()?);
        let mut known = lock();
        // What changed since is not in it.
        if known.changes == changes {
            known.records = Some(Arc::clone(&records));
        }
        Ok(records)
    }

    /// All records that can be read, by name and id.
    pub(super) fn read(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let readable = self.list()?.readable.into_iter();
        let mut records: Vec<ImageRecord> = readable.map(|stored| stored.record).collect();
        records.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(records)
    }

    fn note_change(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.changes += 1;
        known.records = None;
    }

    /// All records; a damaged one is named in the log and left out.
    pub(super) fn list(&self) -> Result<Listing, StoreError> {
        let reading = |source| StoreError::Disk {
            what: "reading the image records",
            source,
        };
        let mut listing = Listing::default();
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
                    listing.readable.push(stored);
                    continue;
                }
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "an image record has another id than its file's name");
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an image record is damaged");
                }
            }
            listing.damaged.push(path);
        }
        Ok(listing)
    }

    /// Writes a record of an image. One of the same name without an id of the user's keeps its id. The names beside `needed`
    /// are durable before it is.
    pub(super) async fn put(
        &self,
        new: NewRecord,
        image: &Image,
        size_bytes: u64,
        needed: Vec<PathBuf>,
    ) -> Result<ImageRecord, StoreError> {
        let _writing = self.writing.lock().await;
        let digest = image.digest();
        let id = match new.id {
            Some(id) => id,
            None => id_for(&self.list()?.readable, &new.name, digest),
        };
        let path = self.path(&id)?;
        let record = ImageRecord {
            id,
            name: new.name,
            digest: digest.to_string(),
            platform: image.platform.clone(),
            created_at: time::OffsetDateTime::now_utc(),
            size_bytes,
            config: image.config.clone(),
            tags: new.tags,
        };
        let stored = Stored {
            record: record.clone(),
            configuration: Some(image.configuration.digest.clone()),
            layers: image.layers.iter().map(|it| it.digest.clone()).collect(),
        };
        let written = blocking("writing the image record", move || {
            let mut temporary = Temporary::beside(&path)?;
            let bytes = serde_json::to_vec_pretty(&stored)?;
            temporary.file().write_all(&bytes)?;
            publish::sync_together([&temporary], &needed)?;
            temporary.show(&path)?;
            publish::sync_directory(&path)
        })
        .await;
        self.note_change();
        written?;
        reached("image.recorded");
        Ok(record)
    }

    /// Removes a record; what it said.
    pub(super) async fn remove(&self, id: &str) -> Result<Option<Stored>, StoreError> {
        let path = self.path(id)?;
        let _writing = self.writing.lock().await;
        let all = self.list()?.readable;
        let Some(stored) = all.into_iter().find(|stored| stored.record.id == id) else {
            return Ok(None);
        };
        let removed = blocking("removing the image record", move || publish::remove(&path)).await;
        self.note_change();
        removed?;
        reached("remove.record-removed");
        Ok(Some(stored))
    }

    /// Removes a record unless it says something else by now; whether it did.
    pub(super) async fn remove_unchanged(&self, known: &Stored) -> Result<bool, StoreError> {
        let path = self.path(&known.record.id)?;
        let _writing = self.writing.lock().await;
        let all = self.list()?.readable;
        if !all.iter().any(|stored| stored.record == known.record) {
            return Ok(false);
        }
        let removed = blocking("removing the image record", move || publish::remove(&path)).await;
        self.note_change();
        removed?;
        Ok(true)
    }

    fn path(&self, id: &str) -> Result<PathBuf, StoreError> {
        check_id(id)?;
        Ok(self.directory.join(format!("{id}.json")))
    }
}

/// The id for a name without one of the user's: the one it has, or one made from the digest.
fn id_for(all: &[Stored], name: &str, digest: &Digest) -> String {
    if let Some(known) = all.iter().find(|stored| stored.record.name == name) {
        return known.record.id.clone();
    }
    let made = format!("img-{}", &digest.hex()[..12]);
    if all.iter().all(|stored| stored.record.id != made) {
        return made;
    }
    // Two names of one image.
    let both = Digest::of(format!("{name} {digest}").as_bytes());
    format!("img-{}", &both.hex()[..12])
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

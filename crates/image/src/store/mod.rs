//! The image store: what came in, on disk, whole or not at all.
//!
//! ```text
//! <data>/images/disks/sha256-<manifest digest>.erofs   one a manifest, shared by all its names
//! <data>/images/blobs/<algorithm>/<hex>                verified layers, kept for the next pull that has them
//! <data>/images/refs/<id>.json                         one a name
//! ```
//!
//! Everything appears by fsync and rename; temporary files are locked by whoever writes them, and those that nobody
//! holds are cleaned when the store is opened. Must never: publish a disk whose layers were not all verified.

mod blobs;
mod convert;
mod error;
mod load;
pub(crate) mod publish;
mod pull;
mod records;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use warren_core::PortError;
use warren_core::image::{ImageConfig, ImageRecord};
use warren_core::ports::Images;
use warren_core::ports::images::{LoadRequest, ProgressSink, PullRequest};

use crate::digest::Digest;
use crate::limits::Limits;
use crate::source::Reference;
use crate::source::registry::{Registries, RegistrySettings};
use blobs::Blobs;
use convert::Flights;
use records::{Records, Stored};

pub use error::StoreError;

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bounds of each conversion.
    pub limits: Limits,
    /// A registry that sends nothing for so long is asked again.
    pub stall: Duration,
    /// Layers fetched at once, by all pulls together.
    pub parallel_layers: usize,
    /// docker's configuration file with credentials; `None` for the user's own files.
    pub docker_config: Option<PathBuf>,
    /// How registries are reached.
    pub registries: RegistrySettings,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            limits: Limits::default(),
            stall: Duration::from_secs(30),
            parallel_layers: 6,
            docker_config: None,
            registries: RegistrySettings::of_this_host(),
        }
    }
}

/// The store. Cheap to share; all of its state is on disk but for the work under way.
#[derive(Debug)]
pub struct ImageStore {
    root: PathBuf,
    options: Options,
    records: Records,
    blobs: Blobs,
    flights: Flights,
    registries: Registries,
}

impl ImageStore {
    /// Opens the store below `<data>/images`, makes its directories and removes what a killed process left half-made.
    ///
    /// # Errors
    /// [`StoreError::Disk`] when the directories cannot be made or read.
    pub fn open(data: &Path, options: Options) -> Result<Self, StoreError> {
        let root = data.join("images");
        for directory in ["disks", "blobs/sha256", "blobs/sha512", "refs"] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path)
                .and_then(|()| publish::clean(&path))
                .map_err(|source| StoreError::Disk {
                    what: "opening the image store",
                    source,
                })?;
        }
        Ok(ImageStore {
            records: Records::new(root.join("refs")),
            blobs: Blobs::new(root.join("blobs"), options.parallel_layers),
            flights: Flights::default(),
            registries: Registries::new(
                options.registries.clone(),
                options.docker_config.clone(),
                options.stall,
            ),
            root,
            options,
        })
    }

    fn disk_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}.erofs", digest.algorithm(), digest.hex());
        self.root.join("disks").join(name)
    }

    /// Writes the record of a disk that is there.
    async fn record(&self, new: NewRecord) -> Result<ImageRecord, StoreError> {
        let size_bytes = std::fs::metadata(self.disk_path(&new.digest))
            .map_err(|source| StoreError::Disk {
                what: "looking at the new disk",
                source,
            })?
            .len();
        let id = match new.id {
            Some(id) => id,
            None => self.records.id_for(&new.name, &new.digest)?,
        };
        let stored = Stored {
            record: ImageRecord {
                id,
                name: new.name,
                digest: new.digest.to_string(),
                platform: new.platform,
                created_at: time::OffsetDateTime::now_utc(),
                size_bytes,
                config: new.config,
                tags: new.tags,
            },
            layers: new.layers.iter().map(Digest::to_string).collect(),
        };
        self.records.put(stored).await
    }

    async fn remove_record(&self, id: &str, in_use: &[String]) -> Result<(), StoreError> {
        let Some(removed) = self.records.remove(id).await? else {
            return Ok(());
        };
        let left = self.records.list()?;
        let digest = &removed.record.digest;
        let still_named = left.iter().any(|other| other.record.digest == *digest);
        // A conversion under way publishes its disk before its record and reads blobs before it has either.
        let _quiet = match self.flights.pause() {
            Some(guard) => guard,
            None => return Ok(()),
        };
        if let Ok(digest) = digest.parse::<Digest>()
            && !still_named
            && !in_use.contains(&removed.record.digest)
        {
            publish::remove(&self.disk_path(&digest)).map_err(|source| StoreError::Disk {
                what: "removing the disk",
                source,
            })?;
        }
        let kept: std::collections::HashSet<&String> =
            left.iter().flat_map(|other| &other.layers).collect();
        for layer in removed.layers.iter().filter(|layer| !kept.contains(layer)) {
            if let Ok(digest) = layer.parse::<Digest>() {
                self.blobs.remove(&digest)?;
            }
        }
        Ok(())
    }
}

/// What a pull or a load found out about an image.
struct NewRecord {
    id: Option<String>,
    name: String,
    digest: Digest,
    platform: String,
    config: ImageConfig,
    tags: BTreeMap<String, String>,
    layers: Vec<Digest>,
}

#[async_trait]
impl Images for ImageStore {
    async fn pull(
        &self,
        request: PullRequest,
        progress: ProgressSink,
    ) -> Result<ImageRecord, PortError> {
        Ok(self.pull_image(request, progress).await?)
    }

    async fn load(
        &self,
        request: LoadRequest,
        progress: ProgressSink,
    ) -> Result<Vec<ImageRecord>, PortError> {
        Ok(self.load_images(request, progress).await?)
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, PortError> {
        let mut records: Vec<ImageRecord> = self
            .records
            .list()?
            .into_iter()
            .map(|stored| stored.record)
            .collect();
        records.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(records)
    }

    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError> {
        let records = self.list().await?;
        let name = wanted
            .parse::<Reference>()
            .map(|reference| reference.to_string())
            .ok();
        let exact = |r: &&ImageRecord| r.id == wanted;
        let named = |r: &&ImageRecord| {
            Some(&r.name) == name.as_ref() || r.name == wanted || r.digest == wanted
        };
        if let Some(found) = records
            .iter()
            .find(exact)
            .or_else(|| records.iter().find(named))
        {
            return Ok(Some(found.clone()));
        }
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if hex.len() < 4 {
            return Ok(None);
        }
        let prefixed = |r: &&ImageRecord| {
            r.id.starts_with(wanted)
                || r.digest
                    .split_once(':')
                    .is_some_and(|(_, digits)| digits.starts_with(hex))
        };
        let mut matching = records.iter().filter(prefixed);
        let Some(first) = matching.next() else {
            return Ok(None);
        };
        if matching.any(|other| other.digest != first.digest) {
            return Err(PortError::conflict(
                "image_ambiguous",
                format!("{wanted:?} is the beginning of more than one image's id or digest"),
            )
            .with_hint("give more of it, or the whole reference"));
        }
        Ok(Some(first.clone()))
    }

    async fn disk(&self, digest: &str) -> Result<PathBuf, PortError> {
        let not_here = || {
            PortError::not_found(
                "image_not_here",
                format!("the image {digest} is not on this host"),
            )
            .with_hint("pull it with `warren pull`, or load it with `warren load`")
        };
        let path = self.disk_path(&digest.parse().map_err(|_| not_here())?);
        if path.is_file() {
            Ok(path)
        } else {
            Err(not_here())
        }
    }

    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError> {
        Ok(self.remove_record(id, in_use).await?)
    }
}

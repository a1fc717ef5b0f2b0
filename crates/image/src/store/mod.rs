//! The image store: what came in, on disk, whole or not at all.
//!
//! ```text
//! <data>/images/disks/sha256-<manifest digest>.erofs   one a manifest, shared by all its names
//! <data>/images/blobs/<algorithm>/<hex>                manifests, configurations and layers, as they came
//! <data>/images/refs/<id>.json                         one a name
//! <data>/images/repositories/<sha-256>.json            what was pushed to this host's own registry
//! ```
//!
//! Everything appears by fsync and rename; temporary files are locked by whoever writes them, and those that nobody
//! holds are cleaned when the store is opened. A record is written last: what it names is all there. What no record
//! names may be collected, but for what an operation under way has a lease on. Must never: publish a disk whose layers
//! were not all verified.

mod budget;
mod collect;
mod commit;
mod content;
mod convert;
mod disks;
mod documents;
mod downloads;
mod error;
mod export;
mod from_containerd;
mod from_content;
mod inventory;
mod keep;
mod load;
pub(crate) mod publish;
mod pull;
mod push;
mod records;
mod save;
mod serving;
mod usage;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::DropGuard;
use warren_core::PortError;
use warren_core::image::ImageRecord;
use warren_core::ports::Images;
use warren_core::ports::images::{
    ImageUpkeep, LoadRequest, ProgressSink, PruneRequest, PullRequest, PushRequest, Pushed,
};
use warren_core::storage::{ImagesUsage, Pruned, Repair, Verification};

use crate::digest::Digest;
use crate::limits::Limits;
use crate::source::Reference;
use crate::source::manifest::Image;
use crate::source::registry::{Registries, RegistrySettings};
use convert::Flights;
use disks::Disks;
use documents::Asked;
use downloads::Downloads;
use records::{NewRecord, Records};
use serving::Serving;

pub use content::{Content, Lease, UploadError};
pub use error::StoreError;
pub use from_content::FromContent;
pub use serving::UploadLimits;

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
    /// The socket of a containerd whose images are taken before a registry is asked.
    pub containerd: Option<PathBuf>,
    /// Bytes the store may take before images go that no instance uses; `None` for as many as there are.
    pub budget: Option<u64>,
    /// Bounds of what is pushed to this store.
    pub uploads: UploadLimits,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            limits: Limits::default(),
            stall: Duration::from_secs(30),
            parallel_layers: 6,
            docker_config: None,
            registries: RegistrySettings::of_this_host(),
            containerd: None,
            budget: None,
            uploads: UploadLimits::default(),
        }
    }
}

/// The store. Cheap to share; all of its state is on disk but for the work under way.
#[derive(Debug)]
pub struct ImageStore {
    options: Options,
    records: Records,
    content: Arc<Content>,
    disks: Arc<Disks>,
    downloads: Downloads,
    asked: Asked,
    flights: Flights,
    registries: Registries,
    serving: Serving,
    /// One collection at a time.
    collecting: tokio::sync::Mutex<()>,
    _stop_sealing: DropGuard,
}

impl ImageStore {
    /// Opens the store below `<data>/images`, makes its directories and removes what a killed process left half-made.
    ///
    /// # Errors
    /// [`StoreError::Disk`] when the directories cannot be made or read.
    pub fn open(data: &Path, options: Options) -> Result<Self, StoreError> {
        let root = data.join("images");
        let opening = |source| StoreError::Disk {
            what: "opening the image store",
            source,
        };
        for directory in [
            "disks",
            "blobs/sha256",
            "blobs/sha512",
            "refs",
            "repositories",
        ] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path)
                .and_then(|()| publish::clean(&path))
                .map_err(opening)?;
        }
        let disks = Arc::new(Disks::new(root.join("disks")));
        disks.clean().map_err(opening)?;
        Ok(ImageStore {
            _stop_sealing: disks.stop_on_drop(),
            disks,
            records: Records::new(root.join("refs")),
            content: Arc::new(Content::new(root.join("blobs"))),
            downloads: Downloads::new(options.parallel_layers),
            asked: Asked::default(),
            flights: Flights::default(),
            serving: Serving::open(root.join("repositories"), options.uploads).map_err(opening)?,
            registries: Registries::new(
                options.registries.clone(),
                options.docker_config.clone(),
                options.stall,
            ),
            collecting: tokio::sync::Mutex::default(),
            options,
        })
    }

    /// The blobs of the images, as they came.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Whether the disk and all blobs of an image are here. Only a lease keeps them.
    fn is_whole(&self, image: &Image) -> bool {
        let documents = [&image.manifest, &image.configuration];
        let documents = documents.map(|it| (&it.digest, it.bytes.len() as u64));
        let layers = image.layers.iter().map(|it| (&it.digest, it.size));
        let mut blobs = documents.into_iter().chain(layers);
        self.disks.is_here(image.digest())
            && blobs.all(|(digest, size)| self.content.size(digest) == Some(size))
    }

    async fn put_documents(&self, image: &Image) -> Result<(), StoreError> {
        self.stage_documents(image).await?.publish().await
    }

    async fn stage_documents(&self, image: &Image) -> Result<content::Staged, StoreError> {
        let documents = vec![image.manifest.clone(), image.configuration.clone()];
        self.content.stage(documents).await
    }

    /// Writes the record of an image that is whole, and on which the caller has a lease.
    async fn record(&self, new: NewRecord, image: &Image) -> Result<ImageRecord, StoreError> {
        let size_bytes = self
            .disks
            .size(image.digest())
            .map_err(|source| StoreError::Disk {
                what: "looking at the new disk",
                source,
            })?;
        let contents = image.contents().map(|it| self.content.path(it));
        let disk = self.disks.path(image.digest());
        let needed = content::directories_of(contents.chain([disk]));
        let record = self.records.put(new, image, size_bytes, needed).await?;
        self.disks.seal_later(image.digest());
        // It is needed now, whenever its disk was made.
        if let Err(error) = self.disks.mark_used(image.digest()) {
            tracing::debug!(image = record.name, %error, "cannot note that an image is used");
        }
        Ok(record)
    }

    async fn remove_record(&self, id: &str, in_use: &[String]) -> Result<(), StoreError> {
        match self.records.remove(id).await? {
            Some(removed) => self.collect_removed(&removed, in_use).await,
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Images for ImageStore {
    fn check_pull(&self, request: &PullRequest) -> Result<(), PortError> {
        Ok(self.admit_pull(request)?)
    }

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

    async fn push(
        &self,
        request: PushRequest,
        progress: ProgressSink,
    ) -> Result<Pushed, PortError> {
        Ok(self.push_image(request, progress).await?)
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, PortError> {
        // The files themselves: what somebody else has damaged is not shown.
        Ok(self.records.read()?)
    }

    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError> {
        let records = self.records.known()?;
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
        let path = self.disks.path(&digest.parse().map_err(|_| not_here())?);
        if path.is_file() {
            Ok(path)
        } else {
            Err(not_here())
        }
    }

    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError> {
        Ok(self.remove_record(id, in_use).await?)
    }

    fn upkeep(&self) -> &dyn ImageUpkeep {
        self
    }
}

#[async_trait]
impl ImageUpkeep for ImageStore {
    async fn mark_used(&self, digest: &str) -> Result<(), PortError> {
        let Ok(manifest) = digest.parse::<Digest>() else {
            return Ok(());
        };
        self.disks
            .mark_used(&manifest)
            .map_err(|error| PortError::io("noting that an image is used", error))
    }

    async fn usage(&self, in_use: &[String]) -> Result<ImagesUsage, PortError> {
        Ok(self.images_usage(in_use).await?)
    }

    async fn prune(&self, request: PruneRequest) -> Result<Pruned, PortError> {
        Ok(self.prune_images(request).await?)
    }

    async fn verify(&self, id: &str, repair: Repair) -> Result<Verification, PortError> {
        Ok(self.verify_image(id, repair).await?)
    }
}

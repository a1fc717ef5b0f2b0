//! What takes room on the host, what went, and how images were found, on the wire. All sizes are bytes as the file
//! system allocates them: a hole takes nothing.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use warren_core::storage::{self, HostStorage};

/// What one image takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageStorage {
    /// Its id.
    pub id: String,
    /// Its reference.
    pub name: String,
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// Its disk, its layers, its manifest and its configuration.
    pub size_bytes: u64,
    /// How much of it other images have too.
    pub shared_bytes: u64,
    /// How much of it nothing else has.
    pub unique_bytes: u64,
    /// What its removal would free; nothing while an instance uses it.
    pub reclaimable_bytes: u64,
    /// Instances that use it.
    pub instances: usize,
    /// When an instance last started from it, or it came here.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_used_at: Option<OffsetDateTime>,
}

/// What one layer takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerStorage {
    /// `sha256:…` of the compressed layer.
    pub digest: String,
    /// As it came, compressed.
    pub size_bytes: u64,
    /// Images that have it.
    pub images: usize,
}

/// What one instance takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceStorage {
    /// Its id.
    pub id: String,
    /// Its name; empty when it is not known any more.
    pub name: String,
    /// Its writable disk.
    pub disk_bytes: u64,
    /// Its kept output, its console and its machine's messages.
    pub logs_bytes: u64,
    /// All else that is kept for it.
    pub other_bytes: u64,
}

/// What takes room on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageUsage {
    /// Each image, by name.
    pub images: Vec<ImageStorage>,
    /// Each layer of an image, the largest first.
    pub layers: Vec<LayerStorage>,
    /// Each instance, by name.
    pub instances: Vec<InstanceStorage>,
    /// All images together, what they share counted once, and what no image needs any more.
    pub images_bytes: u64,
    /// How much of it no image, no instance and no operation under way needs: a prune frees it.
    pub unreferenced_bytes: u64,
    /// How much of it a prune of all images frees that no instance uses.
    pub reclaimable_bytes: u64,
    /// How much images may take before those go that were not used for longest; absent where that is not bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_budget_bytes: Option<u64>,
    /// Empty disks that new ones are cloned from.
    pub templates_bytes: u64,
    /// Disks of instances that nobody knows, set aside.
    pub set_aside_bytes: u64,
    /// Everything together.
    pub total_bytes: u64,
}

impl StorageUsage {
    /// From what the host says; `name_of` knows instances by their ids.
    pub fn new(host: HostStorage, name_of: impl Fn(&str) -> Option<String>) -> Self {
        let images = host.images;
        let mut instances: Vec<InstanceStorage> = host
            .instances
            .into_iter()
            .map(|it| InstanceStorage {
                name: name_of(it.id.as_str()).unwrap_or_default(),
                id: it.id.to_string(),
                disk_bytes: it.disk,
                logs_bytes: it.logs,
                other_bytes: it.other,
            })
            .collect();
        instances.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let of_instances: u64 = instances
            .iter()
            .map(|it| it.disk_bytes + it.logs_bytes + it.other_bytes)
            .sum();
        StorageUsage {
            images: images.images.into_iter().map(Into::into).collect(),
            layers: images
                .layers
                .into_iter()
                .map(|it| LayerStorage {
                    digest: it.digest,
                    size_bytes: it.size,
                    images: it.images,
                })
                .collect(),
            instances,
            images_bytes: images.total,
            unreferenced_bytes: images.unreferenced,
            reclaimable_bytes: images.reclaimable,
            image_budget_bytes: images.budget,
            templates_bytes: host.templates,
            set_aside_bytes: host.set_aside,
            total_bytes: images.total + of_instances + host.templates + host.set_aside,
        }
    }
}

impl From<storage::ImageUsage> for ImageStorage {
    fn from(it: storage::ImageUsage) -> Self {
        ImageStorage {
            id: it.id,
            name: it.name,
            digest: it.digest,
            size_bytes: it.size,
            shared_bytes: it.shared,
            unique_bytes: it.unique,
            reclaimable_bytes: it.reclaimable,
            instances: it.instances,
            last_used_at: it.last_used,
        }
    }
}

/// What may go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneImagesRequest {
    /// Whether the images that no instance uses go too, and not only what no image needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
    /// Whether it is only said what would go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
}

/// An image that went, or would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedImage {
    /// Its id.
    pub id: String,
    /// Its reference.
    pub name: String,
    /// `sha256:…` of its manifest.
    pub digest: String,
}

/// What went, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PruneImagesResponse {
    /// Images.
    pub images: Vec<PrunedImage>,
    /// Read-only disks.
    pub disks: usize,
    /// Layers, manifests and configurations.
    pub blobs: usize,
    /// The room that is free now, or would be.
    pub reclaimed_bytes: u64,
    /// Whether nothing was removed.
    pub dry_run: bool,
}

impl PruneImagesResponse {
    /// From what the host says.
    pub fn new(pruned: storage::Pruned, mode: storage::PruneMode) -> Self {
        PruneImagesResponse {
            images: pruned
                .images
                .into_iter()
                .map(|it| PrunedImage {
                    id: it.id,
                    name: it.name,
                    digest: it.digest,
                })
                .collect(),
            disks: pruned.disks,
            blobs: pruned.blobs,
            reclaimed_bytes: pruned.bytes,
            dry_run: mode == storage::PruneMode::DryRun,
        }
    }
}

/// An image to read again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyImageRequest {
    /// Id, reference, digest, or a prefix of at least four characters.
    #[schema(example = "nginx:1.27", min_length = 1, max_length = 512)]
    pub image: String,
    /// Whether its disk is made again where it is damaged, and blobs that are damaged are removed, so that the next pull
    /// brings them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<bool>,
}

/// What a part of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImagePartKind {
    /// The manifest.
    Manifest,
    /// The configuration.
    Configuration,
    /// A layer, compressed as it came.
    Layer,
    /// The disk that instances boot from.
    Disk,
}

/// How a part of an image was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImagePartState {
    /// As it came.
    Sound,
    /// It is not there.
    Missing,
    /// It is something else than it was.
    Damaged,
    /// There is nothing to compare it with.
    Unknown,
    /// It was damaged or missing, and is sound now.
    Repaired,
}

/// A part of an image that was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagePartCheck {
    /// What.
    pub part: ImagePartKind,
    /// Of a blob its own; of the disk its manifest's.
    pub digest: String,
    /// How it was found.
    pub state: ImagePartState,
}

/// How an image was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageVerification {
    /// Its id.
    pub id: String,
    /// Its reference.
    pub name: String,
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// Whether all its parts are as they should be now.
    pub sound: bool,
    /// Its parts.
    pub parts: Vec<ImagePartCheck>,
    /// What to do about what is still wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl From<storage::Verification> for ImageVerification {
    fn from(found: storage::Verification) -> Self {
        ImageVerification {
            sound: found.is_sound(),
            id: found.id,
            name: found.name,
            digest: found.digest,
            parts: found.parts.into_iter().map(Into::into).collect(),
            advice: found.advice,
        }
    }
}

impl From<storage::PartCheck> for ImagePartCheck {
    fn from(check: storage::PartCheck) -> Self {
        ImagePartCheck {
            part: match check.part {
                storage::ImagePart::Manifest => ImagePartKind::Manifest,
                storage::ImagePart::Configuration => ImagePartKind::Configuration,
                storage::ImagePart::Layer => ImagePartKind::Layer,
                storage::ImagePart::Disk => ImagePartKind::Disk,
            },
            digest: check.digest,
            state: match check.state {
                storage::PartState::Sound => ImagePartState::Sound,
                storage::PartState::Missing => ImagePartState::Missing,
                storage::PartState::Damaged => ImagePartState::Damaged,
                storage::PartState::Unknown => ImagePartState::Unknown,
                storage::PartState::Repaired => ImagePartState::Repaired,
            },
        }
    }
}

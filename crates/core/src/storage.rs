//! What Warren takes on a host's file systems, what of it may go, and what was found when an image was read again.
//!
//! All numbers are bytes as the file system allocates them: a hole takes nothing.

use crate::Timestamp;
use crate::id::InstanceId;
use serde::{Deserialize, Serialize};

/// What one image takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUsage {
    /// The record's id.
    pub id: String,
    /// The reference.
    pub name: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// Its disk, its layers, its manifest and its configuration.
    pub size: u64,
    /// How much of `size` other images have too.
    pub shared: u64,
    /// How much of `size` nothing else has.
    pub unique: u64,
    /// What its removal would free: `unique`, or nothing while an instance uses it.
    pub reclaimable: u64,
    /// Instances that use it.
    pub instances: usize,
    /// When an instance last started from it, or it came here.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_used: Option<Timestamp>,
}

/// What one layer takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerUsage {
    /// `sha256:…` of the compressed layer.
    pub digest: String,
    /// Its blob; 0 when it was not kept.
    pub size: u64,
    /// Images that have it.
    pub images: usize,
}

/// What all images take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagesUsage {
    /// Each image, by name.
    pub images: Vec<ImageUsage>,
    /// Each layer of an image, the largest first.
    pub layers: Vec<LayerUsage>,
    /// Everything in the store, what is being written included.
    pub total: u64,
    /// What no image, no instance and no operation under way needs.
    pub unreferenced: u64,
    /// What would be free if all went that no instance uses.
    pub reclaimable: u64,
    /// How large the store may grow before images that nobody uses go, if that is bounded.
    pub budget: Option<u64>,
}

/// What one instance takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStorage {
    /// Which.
    pub id: InstanceId,
    /// Its writable disk.
    pub disk: u64,
    /// What is kept of its output, its console and its machine's messages.
    pub logs: u64,
    /// All else in its directory.
    pub other: u64,
}

/// What everything takes on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStorage {
    /// The images.
    pub images: ImagesUsage,
    /// The instances.
    pub instances: Vec<InstanceStorage>,
    /// Empty disks that new ones are cloned from.
    pub templates: u64,
    /// Disks that were set aside because nobody knew whose they are.
    pub set_aside: u64,
}

/// How much may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneScope {
    /// What no image, no instance and no operation under way needs.
    Unreferenced,
    /// The images that no instance uses, too.
    Unused,
    /// What is never missed: disks whose tag moved on, what an interrupted pull left long ago, and, where the store
    /// has outgrown its budget, the images that were not used for longest.
    Routine,
}

/// Whether a prune does it, or only says what it would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PruneMode {
    /// It removes.
    #[default]
    Remove,
    /// It looks.
    DryRun,
}

/// An image that went, or would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedImage {
    /// The record's id.
    pub id: String,
    /// The reference.
    pub name: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
}

/// What a prune removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Images.
    pub images: Vec<PrunedImage>,
    /// Disks.
    pub disks: usize,
    /// Layers, manifests and configurations.
    pub blobs: usize,
    /// What is free now.
    pub bytes: u64,
}

/// What a part of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImagePart {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartState {
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartCheck {
    /// What.
    pub part: ImagePart,
    /// Of a blob its own; of the disk its manifest's.
    pub digest: String,
    /// How it was found.
    pub state: PartState,
}

/// Whether what is damaged is made anew where that is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// It is only named.
    #[default]
    No,
    /// A disk is made again from its layers; blobs that are wrong are removed, so that the next pull brings them.
    Yes,
}

/// An image that was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// The record's id.
    pub id: String,
    /// The reference.
    pub name: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// Its parts.
    pub parts: Vec<PartCheck>,
    /// What to do about what is still wrong.
    pub advice: Option<String>,
}

impl Verification {
    /// Whether all parts are as they should be now.
    pub fn is_sound(&self) -> bool {
        self.parts
            .iter()
            .all(|part| matches!(part.state, PartState::Sound | PartState::Repaired))
    }
}

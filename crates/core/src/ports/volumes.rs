//! Writable disks: an instance's own writable layer, and later volumes.

use super::Presence;
use crate::PortError;
use crate::units::ByteSize;
use async_trait::async_trait;
use std::path::Path;

/// Writable disks on this host.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// Makes `path` an empty ext4 of `size` if it is not there: cloned sparsely from a ready-made
    /// one, under a temporary name until whole. An existing disk is left as it is.
    async fn ensure_empty(&self, path: &Path, size: ByteSize) -> Result<(), PortError>;
    /// Whether `path` is there, whole.
    async fn observe(&self, path: &Path) -> Result<Presence, PortError>;
    /// Removes it; nothing to do when it is not there.
    async fn remove(&self, path: &Path) -> Result<(), PortError>;
    /// Bytes that `path` really takes on the host.
    async fn usage(&self, path: &Path) -> Result<ByteSize, PortError>;
    /// Bytes that the empty disks take that others are cloned from.
    async fn ready_made(&self) -> Result<ByteSize, PortError>;
}

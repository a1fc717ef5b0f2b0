//! Images on their way out of a host, as archives and as disks.

use super::registry::ByteStream;
use crate::PortError;
use async_trait::async_trait;

/// What an archive looks like. Both hold the images' blobs as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArchiveFormat {
    /// An OCI layout (image-spec v1.1, `image-layout.md`) in a tar archive.
    #[default]
    Oci,
    /// The same with the file by which docker finds images in an archive.
    Docker,
}

/// Images to put into one archive.
#[derive(Debug, Clone)]
pub struct SaveRequest {
    /// The ids of their records.
    pub ids: Vec<String>,
    /// What it looks like.
    pub format: ArchiveFormat,
}

/// How a disk is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskLayout {
    /// It is an ext4 file system and nothing else.
    FileSystem,
    /// It has a GUID partition table with one partition, and the file system in that.
    Partitioned,
}

/// An image to make a disk of.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// The id of its record.
    pub id: String,
    /// How it is laid out.
    pub layout: DiskLayout,
    /// Its bytes; as many as are needed, and room for more, when absent.
    pub size: Option<u64>,
}

/// An archive that is written while it is read.
pub struct Archive {
    /// Bytes of the whole.
    pub size: u64,
    /// All of them. The same images always give the same.
    pub bytes: ByteStream,
}

/// The way out.
#[async_trait]
pub trait ImageOutlet: Send + Sync {
    /// Puts images into an archive. What is needed for it stays until the stream is dropped.
    async fn save(&self, request: SaveRequest) -> Result<Archive, PortError>;
    /// Makes a writable disk of an image's tree: one sparse file in an archive.
    async fn export(&self, request: ExportRequest) -> Result<Archive, PortError>;
}

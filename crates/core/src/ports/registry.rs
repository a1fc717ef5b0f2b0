//! The host's content as a registry serves it (OCI distribution-spec v1.1): blobs, uploads, manifests, tags, referrers.
//!
//! Repository names, tags and digests come in checked against the specification's grammar; adapters check them again where
//! they become names of files. Failures carry one of the codes in [`code`].

use super::BoxStream;
use crate::PortError;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Bytes on their way. After an error the stream is over, and what came is not the whole.
pub type ByteStream = BoxStream<Result<Bytes, PortError>>;

/// The codes of [`PortError`]s that mean something of their own to a registry's client.
pub mod code {
    /// There is no such blob in the repository.
    pub const BLOB_UNKNOWN: &str = "blob_unknown";
    /// A manifest of the repository names the blob.
    pub const BLOB_NEEDED: &str = "blob_needed";
    /// There is no such upload, or it was given up.
    pub const UPLOAD_UNKNOWN: &str = "upload_unknown";
    /// Somebody else is writing to the upload.
    pub const UPLOAD_BUSY: &str = "upload_busy";
    /// A piece does not begin where the upload ends.
    pub const OUT_OF_ORDER: &str = "upload_out_of_order";
    /// A body is shorter or longer than it was announced.
    pub const SIZE_INVALID: &str = "size_invalid";
    /// A blob is larger than this host takes.
    pub const BLOB_TOO_LARGE: &str = "blob_too_large";
    /// What came does not have the digest it was announced with.
    pub const DIGEST_INVALID: &str = "digest_invalid";
    /// There is no such manifest in the repository.
    pub const MANIFEST_UNKNOWN: &str = "manifest_unknown";
    /// The manifest is not one, or describes an image that cannot be made.
    pub const MANIFEST_INVALID: &str = "manifest_invalid";
    /// The manifest names content that is not here.
    pub const MANIFEST_BLOB_UNKNOWN: &str = "manifest_blob_unknown";
    /// There is no such repository.
    pub const REPOSITORY_UNKNOWN: &str = "repository_unknown";
}

/// A blob of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…` or `sha512:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// A part of a blob: `start` up to and without `end`, both within its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

/// An upload under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// A UUID.
    pub id: String,
    /// Bytes that are here.
    pub offset: u64,
}

/// A piece of an upload.
pub struct Piece {
    /// Where it begins, as its sender says; where the upload ends when absent.
    pub at: Option<u64>,
    /// How long it is, as its sender says.
    pub length: Option<u64>,
    /// What it is.
    pub bytes: ByteStream,
}

/// How a manifest is named within its repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestName {
    /// By tag.
    Tag(String),
    /// By digest.
    Digest(String),
}

/// A manifest or an index, byte for byte as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Of its bytes.
    pub digest: String,
    /// Its type, as it was pushed.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A manifest to be kept.
#[derive(Debug, Clone)]
pub struct PutManifest {
    /// The repository.
    pub repository: String,
    /// The digest to check it against, where it was pushed by one.
    pub digest: Option<String>,
    /// The tags to give it.
    pub tags: Vec<String>,
    /// Its type, as the client says; its own `mediaType` when absent.
    pub media_type: Option<String>,
    /// Its bytes.
    pub bytes: Bytes,
    /// Under which name the client reached this registry (`localhost:8080`): images get names that begin with it.
    pub host: String,
}

/// What became of a manifest that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestKept {
    /// Of its bytes.
    pub digest: String,
    /// The manifest it refers to, where it has a `subject`.
    pub subject: Option<String>,
    /// Why it is kept as content alone, where it looked like an image: in words for people.
    pub remark: Option<String>,
}

/// A manifest that has another one as its `subject`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// Its type.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its `artifactType`, or its configuration's type where it has none.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Blobs and uploads.
#[async_trait]
pub trait RegistryBlobs: Send + Sync {
    /// A blob that the repository has.
    async fn blob(&self, repository: &str, digest: &str) -> Result<Blob, PortError>;
    /// The bytes of a part of it.
    async fn read_blob(
        &self,
        repository: &str,
        digest: &str,
        range: ByteRange,
    ) -> Result<ByteStream, PortError>;
    /// Takes a blob out of the repository; the bytes stay as long as something else needs them.
    async fn remove_blob(&self, repository: &str, digest: &str) -> Result<(), PortError>;
    /// Adds a blob that another repository has (`from`, or any); `None` if there is no such blob.
    async fn mount_blob(
        &self,
        repository: &str,
        digest: &str,
        from: Option<&str>,
    ) -> Result<Option<Blob>, PortError>;
    /// Begins an upload. It is given up after an hour in which nothing comes.
    async fn begin_upload(&self, repository: &str) -> Result<Upload, PortError>;
    /// An upload under way.
    async fn upload(&self, repository: &str, id: &str) -> Result<Upload, PortError>;
    /// Appends a piece. What came of it is kept, also when the rest does not come.
    async fn append_upload(
        &self,
        repository: &str,
        id: &str,
        piece: Piece,
    ) -> Result<Upload, PortError>;
    /// Appends a last piece, checks the digest, and adds the blob to the repository. A wrong digest ends the upload.
    async fn finish_upload(
        &self,
        repository: &str,
        id: &str,
        piece: Piece,
        digest: &str,
    ) -> Result<Blob, PortError>;
    /// Gives an upload up.
    async fn cancel_upload(&self, repository: &str, id: &str) -> Result<(), PortError>;
}

/// Manifests, and what finds them.
#[async_trait]
pub trait RegistryManifests: Send + Sync {
    /// A manifest.
    async fn manifest(&self, repository: &str, name: &ManifestName) -> Result<Manifest, PortError>;
    /// Keeps a manifest whose content is here. Given a tag, an image that this host can run is converted before this returns,
    /// and recorded as `<host>/<repository>:<tag>`; if it cannot be converted, nothing is kept. Dropping the future
    /// cancels.
    async fn put_manifest(&self, put: PutManifest) -> Result<ManifestKept, PortError>;
    /// Removes a tag, or a manifest with all its tags, and the images recorded by them; Conflict (`image_in_use`) when one of
    /// these has a digest in `in_use` and no other record has it.
    async fn remove_manifest(
        &self,
        repository: &str,
        name: &ManifestName,
        in_use: &[String],
    ) -> Result<(), PortError>;
    /// All tags of a repository, sorted by their bytes.
    async fn tags(&self, repository: &str) -> Result<Vec<String>, PortError>;
    /// All repositories that have a tag, sorted by their bytes.
    async fn repositories(&self) -> Result<Vec<String>, PortError>;
    /// What refers to a manifest, here or not, sorted by digest.
    async fn referrers(&self, repository: &str, digest: &str) -> Result<Vec<Referrer>, PortError>;
}

/// A whole registry.
pub trait Registry: RegistryBlobs + RegistryManifests {}

impl<T: RegistryBlobs + RegistryManifests> Registry for T {}

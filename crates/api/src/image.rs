//! Images on the wire, with the fields of both generations of clients.

use crate::instance::Tags;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;
use warren_core::image::ImageProgress;

/// How far an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageStatus {
    /// In the queue.
    Pending,
    /// Its layers are coming in.
    Pulling,
    /// Its disk is being written.
    Converting,
    /// Here.
    Ready,
    /// It did not come: see `error`.
    Failed,
}

/// Credentials for a registry: a user's or a token.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushCredentials {
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Password)]
    pub password: Option<String>,
    /// A bearer token instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Password)]
    pub registry_token: Option<String>,
}

impl std::fmt::Debug for PushCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PushCredentials(…)")
    }
}

/// An image to pull.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImageRequest {
    /// An OCI reference.
    #[schema(
        example = "docker.io/library/nginx:1.27",
        min_length = 1,
        max_length = 512
    )]
    pub name: String,
    /// The id to give it; made from its digest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        example = "img-nginx",
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    pub id: Option<String>,
    /// `os/arch[/variant]`; the host's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// For the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PushCredentials>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
    /// Whether the registry speaks plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_http: Option<bool>,
}

/// What a saved archive looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveFormat {
    /// An OCI layout in a tar archive.
    #[default]
    OciArchive,
    /// The same, with the file by which docker finds images.
    DockerArchive,
}

/// Images to save.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaveImagesRequest {
    /// Ids, references or digests.
    #[schema(min_items = 1, max_items = 64)]
    pub names: Vec<String>,
    /// What the archive looks like.
    #[serde(default)]
    pub format: ArchiveFormat,
}

/// What an exported disk looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// A disk with a GUID partition table and one partition, which has the file system.
    #[default]
    Raw,
    /// The file system alone.
    Ext4,
}

/// An image to make a disk of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportImageRequest {
    /// Id, reference or digest.
    pub name: String,
    /// What the disk looks like.
    #[serde(default)]
    pub format: DiskFormat,
    /// Bytes of the disk; what the image needs, and room for more, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub size_bytes: Option<u64>,
}

/// An image to make of what an instance has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitInstanceRequest {
    /// The reference to give it.
    #[schema(example = "team/web:2", min_length = 1, max_length = 512)]
    pub name: String,
    /// The id to give it; made from its digest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        example = "img-web",
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    pub id: Option<String>,
    /// Who made it, for its history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024)]
    pub author: Option<String>,
    /// What it is for, for its history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096)]
    pub message: Option<String>,
    /// Changes of its configuration, each an instruction of a Dockerfile: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`,
    /// `STOPSIGNAL`, `USER`, `VOLUME` or `WORKDIR`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 256, example = json!(["CMD [\"/bin/app\"]"]))]
    pub changes: Vec<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Its reference, normalised.
    pub name: String,
    /// When it came, or was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The reference's tag, or the start of its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `sha256:…` of its manifest; empty until it is known.
    pub digest: String,
    /// `os/arch[/variant]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// How far it is.
    pub status: ImageStatus,
    /// How many are before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u32>,
    /// Why it did not come, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its disk's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Its entrypoint.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Its cmd.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The ports it says it listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Labels given with the pull.
    #[serde(default)]
    pub tags: Tags,
}

/// What a streamed pull or load says: `event: progress`, then one `event: image` or `event: problem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageEvent {
    /// It goes on.
    Progress(ImageProgress),
    /// These images are here.
    Done(Vec<Image>),
}

/// Names of the events of a streamed pull or load.
pub mod events {
    /// Data: an `ImageProgress`.
    pub const PROGRESS: &str = "progress";
    /// Data: an array of `Image`; the last event.
    pub const IMAGES: &str = "images";
    /// Data: a problem document; the last event.
    pub const PROBLEM: &str = "problem";
}

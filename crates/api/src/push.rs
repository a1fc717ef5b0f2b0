//! Pushes on the wire: images on their way out to registries.

use crate::image::PushCredentials;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use warren_core::image::ImageProgress;

/// How far a push is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PushStatus {
    /// Others are before it.
    Queued,
    /// Its layers are going out.
    Pushing,
    /// The registry has it.
    Pushed,
    /// It does not: see `error`.
    Failed,
}

/// An image to push.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePushRequest {
    /// The image, by id, reference, digest or prefix.
    #[schema(min_length = 1, max_length = 512)]
    pub image: String,
    /// The reference to give it in its registry.
    #[schema(
        example = "registry.example/team/app:1",
        min_length = 1,
        max_length = 512
    )]
    pub target: String,
    /// Whether the registry speaks plain HTTP.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// For the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PushCredentials>,
}

/// A push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Push {
    /// Its id.
    pub id: String,
    /// The image's reference.
    pub image: String,
    /// `sha256:…` of the image's manifest.
    pub digest: String,
    /// The reference it gets.
    pub target: String,
    /// How far it is.
    pub status: PushStatus,
    /// How many are before it, itself included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u32>,
    /// Why it failed, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The image's layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<u64>,
    /// Bytes that were sent: what the registry had already is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ended.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<OffsetDateTime>,
}

/// What a streamed push says: `event: progress`, then one `event: push` or `event: problem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent {
    /// It goes on.
    Progress(ImageProgress),
    /// The registry has it.
    Done(Push),
}

/// The name of the last event of a streamed push that went well. Data: a [`Push`].
pub const PUSH: &str = "push";

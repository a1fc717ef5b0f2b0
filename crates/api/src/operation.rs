//! Operations on the wire: everything long that the server does, while it does it and for a while after.

use crate::problem::ErrorDetail;
use serde::{Deserialize, Serialize};
use std::fmt;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// An image comes from a registry.
    Pull,
    /// An image comes from an archive that a client sends.
    Load,
    /// What an instance has changed becomes an image.
    Commit,
    /// An image that a client pushed here becomes a disk.
    Receive,
    /// An image goes to a registry.
    Push,
    /// Images go to a client, as an archive.
    Save,
    /// An image goes to a client, as a disk.
    Export,
    /// An image is read again and compared with its digests.
    Verify,
}

impl OperationKind {
    /// All of them.
    pub const ALL: [OperationKind; 8] = [
        OperationKind::Pull,
        OperationKind::Load,
        OperationKind::Commit,
        OperationKind::Receive,
        OperationKind::Push,
        OperationKind::Save,
        OperationKind::Export,
        OperationKind::Verify,
    ];
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationKind::Pull => "pull",
            OperationKind::Load => "load",
            OperationKind::Commit => "commit",
            OperationKind::Receive => "receive",
            OperationKind::Push => "push",
            OperationKind::Save => "save",
            OperationKind::Export => "export",
            OperationKind::Verify => "verify",
        })
    }
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// Others are before it.
    Queued,
    /// It is being done.
    Running,
    /// It was done.
    Succeeded,
    /// It was not: see `error`.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl OperationState {
    /// Whether it may still change.
    pub fn is_active(self) -> bool {
        match self {
            OperationState::Queued | OperationState::Running => true,
            OperationState::Succeeded | OperationState::Failed | OperationState::Cancelled => false,
        }
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationState::Queued => "queued",
            OperationState::Running => "running",
            OperationState::Succeeded => "succeeded",
            OperationState::Failed => "failed",
            OperationState::Cancelled => "cancelled",
        })
    }
}

impl std::str::FromStr for OperationState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [
            OperationState::Queued,
            OperationState::Running,
            OperationState::Succeeded,
            OperationState::Failed,
            OperationState::Cancelled,
        ]
        .into_iter()
        .find(|state| state.to_string() == text)
        .ok_or_else(|| "must be queued, running, succeeded, failed or cancelled".to_owned())
    }
}

/// What a running operation is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationPhase {
    /// The client's archive is coming in.
    Receiving,
    /// The registry is asked what the reference stands for.
    Resolving,
    /// Layers are coming in.
    Downloading,
    /// What is here is read.
    Reading,
    /// Layers are written to the disk.
    Converting,
    /// The disk is being completed and made durable.
    Finishing,
    /// Layers are going out.
    Uploading,
    /// The client takes its bytes.
    Sending,
}

impl fmt::Display for OperationPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationPhase::Receiving => "receiving",
            OperationPhase::Resolving => "resolving",
            OperationPhase::Downloading => "downloading",
            OperationPhase::Reading => "reading",
            OperationPhase::Converting => "converting",
            OperationPhase::Finishing => "finishing",
            OperationPhase::Uploading => "uploading",
            OperationPhase::Sending => "sending",
        })
    }
}

/// One thing that takes the server long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    #[schema(example = "op-0123456789ab")]
    pub id: String,
    /// What is being done.
    pub kind: OperationKind,
    /// What it is done to: references, with commas between them where it is several images.
    pub subject: String,
    /// How far it is.
    pub state: OperationState,
    /// What it is doing; only while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<OperationPhase>,
    /// Bytes that have come in or gone out, as they are on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Of how many, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its turn came.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<OffsetDateTime>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
}

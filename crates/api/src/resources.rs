//! The server and its host on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// It lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Yes.
    Ok,
}

/// Whether the process lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: HealthStatus,
}

/// Whether the server can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether all parts are.
    pub ready: bool,
    /// Each part.
    pub parts: Vec<PartStatus>,
}

/// One thing the server depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartStatus {
    /// `store`, `host`, `record`.
    pub name: String,
    /// Whether it works.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A path in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathInfo {
    /// Whether it exists.
    pub exists: bool,
    /// Whether it is a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_dir: Option<bool>,
    /// Whether it is a regular file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_file: Option<bool>,
    /// Whether it is a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_symlink: Option<bool>,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Why it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One kind of resource of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceStatus {
    /// `cpu`, `memory`, `disk`, `network`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the host has.
    pub capacity: u64,
    /// What guests may have in all.
    pub effective_limit: u64,
    /// What they were promised.
    pub allocated: u64,
    /// What is left.
    pub available: u64,
    /// `effective_limit` over `capacity`, where more than there is may be promised.
    pub oversub_ratio: f64,
    /// Where the number comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What one instance was promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceAllocation {
    /// Whose.
    pub instance_id: String,
    /// Whose.
    pub instance_name: String,
    /// Virtual processors.
    pub cpu: u64,
    /// Memory at boot.
    pub memory_bytes: u64,
    /// The writable layer's size.
    pub disk_bytes: u64,
}

/// The host's resources, in the units of each: processors, bytes, addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Virtual processors.
    pub cpu: ResourceStatus,
    /// Bytes.
    pub memory: ResourceStatus,
    /// Bytes.
    pub disk: ResourceStatus,
    /// Guest addresses; all 0 where the mode has no pool.
    pub network: ResourceStatus,
    /// Each instance's part.
    pub allocations: Vec<ResourceAllocation>,
}

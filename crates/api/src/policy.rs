//! Policies on the wire: restarts, and those that are kept but have no effect yet.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa::openapi::{Array, ArrayBuilder, ObjectBuilder, Type};
use warren_core::restart;

/// When a workload is started again without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartWhen {
    /// Never.
    #[default]
    Never,
    /// Whenever it ended.
    Always,
    /// When it ended with anything but 0.
    OnFailure,
}

/// Restarts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// When.
    #[serde(default)]
    pub policy: RestartWhen,
    /// The pause before the first restart, doubled for each further one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "5s", pattern = r"^[0-9]{1,6}(ms|s|m|h)?$")]
    pub backoff: Option<String>,
    /// Restarts before it stays stopped; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1000000)]
    pub max_attempts: Option<u32>,
    /// A run that lasted this long starts the count anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10m", pattern = r"^[0-9]{1,6}(ms|s|m|h)?$")]
    pub stable_after: Option<String>,
}

/// Why no further restart is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockedReason {
    /// Somebody stopped it.
    ManualStop,
    /// The policy's limit.
    MaxAttemptsExceeded,
}

/// How restarts have gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RestartStatus {
    /// Restarts since the last stable run or explicit start.
    pub attempts: u32,
    /// The last one.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_attempt_at: Option<OffsetDateTime>,
    /// The next one, while waiting for it.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub next_attempt_at: Option<OffsetDateTime>,
    /// Why no further one is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<BlockedReason>,
}

impl From<restart::RestartWhen> for RestartWhen {
    fn from(when: restart::RestartWhen) -> Self {
        match when {
            restart::RestartWhen::Never => RestartWhen::Never,
            restart::RestartWhen::OnFailure => RestartWhen::OnFailure,
            restart::RestartWhen::Always => RestartWhen::Always,
        }
    }
}

impl From<RestartWhen> for restart::RestartWhen {
    fn from(when: RestartWhen) -> Self {
        match when {
            RestartWhen::Never => restart::RestartWhen::Never,
            RestartWhen::OnFailure => restart::RestartWhen::OnFailure,
            RestartWhen::Always => restart::RestartWhen::Always,
        }
    }
}

/// Standby when idle. Kept; only `enabled: false` is accepted yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoStandbyPolicy {
    /// Whether it is on.
    #[serde(default)]
    pub enabled: bool,
    /// Idle for this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// Connections from these do not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore_source_cidrs: Vec<String>,
    /// Connections to these do not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = ports)]
    pub ignore_destination_ports: Vec<u16>,
}

/// Ports; derived, the items would have no upper bound.
fn ports() -> Array {
    let port = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0))
        .maximum(Some(u16::MAX));
    ArrayBuilder::new()
        .description(Some("Connections to these do not count."))
        .items(port)
        .build()
}

/// How health is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheckType {
    /// Not at all.
    #[default]
    None,
    /// By an HTTP request.
    Http,
    /// By a connection.
    Tcp,
    /// By a command.
    Exec,
}

/// Health checks. Kept; only `type: none` is accepted yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// How.
    #[serde(rename = "type", default)]
    pub kind: HealthCheckType,
    /// How often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// How long one may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// How long failures do not count after a start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period: Option<String>,
    /// Failures in a row that make it unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65535)]
    pub failure_threshold: Option<u16>,
    /// Successes in a row that make it healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65535)]
    pub success_threshold: Option<u16>,
    /// For `http`: `port`, `path`, `scheme`, `expected_status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<BTreeMap<String, serde_json::Value>>,
    /// For `tcp`: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<BTreeMap<String, serde_json::Value>>,
    /// For `exec`: `command`, `working_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<BTreeMap<String, serde_json::Value>>,
}

/// How snapshots are compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCompressionConfig {
    /// Whether.
    pub enabled: bool,
    /// `zstd` or `lz4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
    /// How hard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
}

/// What happens to snapshots. Kept; it decides nothing before there are snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPolicy {
    /// Compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<SnapshotCompressionConfig>,
    /// How long after a standby it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby_compression_delay: Option<String>,
}

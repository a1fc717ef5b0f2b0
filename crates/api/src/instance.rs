//! Instances on the wire, with the fields of both generations of clients: memory as a number of
//! mebibytes and as a size, labels as labels and as tags.

use crate::policy::{
    AutoStandbyPolicy, HealthCheck, RestartPolicy, RestartStatus, SnapshotCompressionConfig,
    SnapshotPolicy,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;
use warren_core::ports::hypervisor::HypervisorKind;
use warren_core::state::StateName;

/// Key–value labels.
pub type Tags = BTreeMap<String, String>;

/// The state of an instance.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub enum InstanceState {
    /// Its parts are being made.
    Created,
    /// The machine runs; the guest is not ready yet.
    Initializing,
    /// The workload was started.
    Running,
    /// Processors stopped, memory held.
    Paused,
    /// The guest is off; the machine is being taken away.
    Shutdown,
    /// No machine and no snapshot.
    Stopped,
    /// No machine; a snapshot.
    Standby,
    /// The host cannot be asked.
    Unknown,
}

impl From<StateName> for InstanceState {
    fn from(state: StateName) -> Self {
        match state {
            StateName::Created => InstanceState::Created,
            StateName::Initializing => InstanceState::Initializing,
            StateName::Running => InstanceState::Running,
            StateName::Paused => InstanceState::Paused,
            StateName::Shutdown => InstanceState::Shutdown,
            StateName::Stopped => InstanceState::Stopped,
            StateName::Standby => InstanceState::Standby,
            StateName::Unknown => InstanceState::Unknown,
        }
    }
}

impl From<InstanceState> for StateName {
    fn from(state: InstanceState) -> Self {
        match state {
            InstanceState::Created => StateName::Created,
            InstanceState::Initializing => StateName::Initializing,
            InstanceState::Running => StateName::Running,
            InstanceState::Paused => StateName::Paused,
            InstanceState::Shutdown => StateName::Shutdown,
            InstanceState::Stopped => StateName::Stopped,
            InstanceState::Standby => StateName::Standby,
            InstanceState::Unknown => StateName::Unknown,
        }
    }
}

impl std::fmt::Display for InstanceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        StateName::from(*self).fmt(f)
    }
}

/// Which hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// Whatever the host finds best. Only in requests.
    #[default]
    Auto,
    /// QEMU's q35 machine.
    Qemu,
    /// QEMU's microvm machine.
    QemuMicrovm,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
    /// Apple's Virtualization.framework.
    Vz,
    /// None: for tests.
    Fake,
}

impl From<HypervisorKind> for Hypervisor {
    fn from(kind: HypervisorKind) -> Self {
        match kind {
            HypervisorKind::QemuMicrovm => Hypervisor::QemuMicrovm,
            HypervisorKind::Qemu => Hypervisor::Qemu,
            HypervisorKind::CloudHypervisor => Hypervisor::CloudHypervisor,
            HypervisorKind::Firecracker => Hypervisor::Firecracker,
            HypervisorKind::Vz => Hypervisor::Vz,
            HypervisorKind::Fake => Hypervisor::Fake,
        }
    }
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Where others connect.
    #[schema(minimum = 1, maximum = 65535)]
    pub host_port: u16,
    /// Where the guest listens.
    #[schema(minimum = 1, maximum = 65535)]
    pub guest_port: u16,
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: PortProtocol,
}

/// A volume in an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// Which.
    pub volume_id: String,
    /// Where.
    pub mount_path: String,
    /// Whether the guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// Whether writes go to a layer of the instance's own.
    #[serde(default)]
    pub overlay: bool,
    /// That layer's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_size: Option<String>,
}

/// Which egress is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EgressMode {
    /// Everything.
    #[default]
    All,
    /// HTTP and HTTPS.
    HttpHttpsOnly,
}

/// How egress is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkEgressEnforcement {
    /// What.
    #[serde(default)]
    pub mode: EgressMode,
}

/// Mediated egress. Only `enabled: false` is accepted yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkEgress {
    /// Whether.
    #[serde(default)]
    pub enabled: bool,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<NetworkEgressEnforcement>,
}

/// What a request says about the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstanceNetwork {
    /// Whether there is an interface; yes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// A limit; not accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_download: Option<String>,
    /// A limit; not accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_upload: Option<String>,
    /// Mediated egress; not accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<NetworkEgress>,
}

/// A GPU; not accepted yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GPUConfig)]
pub struct GpuConfig {
    /// Which profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// An instance to create. Only `name` and `image` are needed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstanceRequest {
    /// Made by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        example = "my-instance",
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    pub id: Option<String>,
    /// Free text, unique.
    #[schema(example = "My Workload", min_length = 1, max_length = 128)]
    pub name: String,
    /// An image's id, reference or digest.
    #[schema(example = "img-nginx", min_length = 1, max_length = 512)]
    pub image: String,
    /// The image's platform, where it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Memory at boot in MiB; 1024 when neither this nor `size` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 4194304)]
    pub memory_mb: Option<u64>,
    /// The most memory it may grow to, in MiB; at least 4096 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 4194304)]
    pub memory_max_mb: Option<u64>,
    /// Memory at boot as a size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "1GB")]
    pub size: Option<String>,
    /// Memory it may grow by, as a size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "3GB")]
    pub hotplug_size: Option<String>,
    /// The writable layer's size; 10GB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10GB")]
    pub overlay_size: Option<String>,
    /// Another name of `overlay_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<String>,
    /// A limit; not accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_io_bps: Option<String>,
    /// Virtual processors; 2 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 256)]
    pub vcpus: Option<u32>,
    /// Added to the image's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Seconds without use after which it is suspended; only where it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Volumes; not accepted yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Published ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// The network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<CreateInstanceNetwork>,
    /// Credentials to inject into egress; not accepted yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credentials: BTreeMap<String, serde_json::Value>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
    /// Labels; the same thing as `tags`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Tags,
    /// Host devices; not accepted yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// A GPU; not accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuConfig>,
    /// Which hypervisor; the host's best when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<Hypervisor>,
    /// Kept; decides nothing before there are snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_policy: Option<SnapshotPolicy>,
    /// Kept; only disabled is accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_standby: Option<AutoStandbyPolicy>,
    /// Kept; only `none` is accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// When the workload is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Accepted; guests never get kernel headers here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_kernel_headers: Option<bool>,
    /// Only false is accepted: the agent starts the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_guest_agent: Option<bool>,
    /// Replaces the image's entrypoint and its cmd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's cmd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// `user[:group]`; replaces the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Replaces the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// The guest's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// OpenSSH public keys for root: they are in its `authorized_keys` from each boot on, behind those that the image has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub ssh_keys: Vec<String>,
    /// Whether the workload gets a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
    /// Whether its standard input comes from whoever attaches; a terminal implies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_stdin: Option<bool>,
    /// Whether it is deleted when its workload has ended for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_remove: Option<bool>,
    /// Seconds between the stop signal and the kill; 10 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3600)]
    pub stop_grace_seconds: Option<u64>,
}

/// What is changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateInstanceRequest {
    /// Replaces the environment; the next run has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Replaces the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Kept; only disabled is accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_standby: Option<AutoStandbyPolicy>,
    /// Kept; only `none` is accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// What a start may change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartInstanceRequest {
    /// Replaces the entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the cmd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
}

/// How an instance is put into standby.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StandbyInstanceRequest {
    /// Of what is saved; only `enabled: false` is accepted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<SnapshotCompressionConfig>,
    /// How long after the standby it is compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_delay: Option<String>,
}

/// The network of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceNetwork {
    /// Whether there is an interface.
    pub enabled: bool,
    /// Which network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The guest's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The guest's MAC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image as it was asked for.
    pub image: String,
    /// The manifest's digest the image meant at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// The platform that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What its host sees.
    pub state: InstanceState,
    /// What went wrong last, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_error: Option<String>,
    /// In the answer to a create: what will not work on this host, and what to do about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Whether it is on its way out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
    /// When it was accepted.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the guest of the last run became ready.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub started_at: Option<OffsetDateTime>,
    /// When it stopped last.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub stopped_at: Option<OffsetDateTime>,
    /// The name under which other guests find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// The guest's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_ip: Option<String>,
    /// Memory at boot in MiB.
    pub memory_mb: u64,
    /// The most memory it may grow to, in MiB.
    pub memory_max_mb: u64,
    /// Memory at boot as a size.
    pub size: String,
    /// Memory it may grow by, as a size.
    pub hotplug_size: String,
    /// The writable layer's size.
    pub overlay_size: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// The environment given to it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// As it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// Published ports.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Whether there is a snapshot to restore from.
    #[serde(default)]
    pub has_snapshot: bool,
    /// Labels.
    #[serde(default)]
    pub tags: Tags,
    /// Labels; the same thing as `tags`.
    #[serde(default)]
    pub labels: Tags,
    /// The network.
    #[serde(default)]
    pub network: InstanceNetwork,
    /// The hypervisor that runs or last ran it; before that, the one asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<Hypervisor>,
    /// How the last run ended; 128 + signal where a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How the last run ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_message: Option<String>,
    /// When the workload is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// How restarts have gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_status: Option<RestartStatus>,
    /// Milliseconds each phase of the last start took.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phase_durations_ms: BTreeMap<String, u64>,
    /// As it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_policy: Option<SnapshotPolicy>,
    /// As it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_standby: Option<AutoStandbyPolicy>,
    /// As it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's cmd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Replaces the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Replaces the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// The guest's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// OpenSSH public keys that root was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Whether the workload has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether its standard input comes from whoever attaches.
    #[serde(default)]
    pub open_stdin: bool,
    /// Whether it is deleted when its workload has ended for good.
    #[serde(default)]
    pub auto_remove: bool,
}

/// The answer to a wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitForStateResponse {
    /// The state at the end of the wait.
    pub state: InstanceState,
    /// What went wrong, if something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_error: Option<String>,
    /// How the last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the time was up first.
    pub timed_out: bool,
}

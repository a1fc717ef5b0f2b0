//! An instance as the user wants it (intent) and as its host sees it (observation). `control` alone
//! writes intent; the agent alone writes observation.

use crate::Timestamp;
use crate::error::Failure;
use crate::id::{Handle, InstanceId, check_name};
use crate::network::{PortMapping, check_mappings};
use crate::ports::hypervisor::HypervisorKind;
use crate::restart::{RestartPolicy, RestartStatus};
use crate::state::InstanceState;
use crate::units::{ByteSize, MemoryMib};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Which hypervisor an instance asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HypervisorChoice {
    /// Whatever the host finds best.
    #[default]
    Auto,
    /// This one or none.
    #[serde(untagged)]
    Only(HypervisorKind),
}

/// Whether the workload gets a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Terminal {
    /// Separate stdout and stderr.
    #[default]
    None,
    /// A pseudo-terminal.
    Pty,
}

/// Where the workload's standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// Whoever attaches; it blocks until somebody does (`run -i`). A terminal implies it.
    Attached,
}

/// What happens to an instance whose workload has ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// It stays, stopped, until somebody deletes it.
    #[default]
    Keep,
    /// It is deleted (`run --rm`).
    WhenExited,
}

/// Whether the instance has a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkChoice {
    /// One interface on the host's guest network.
    #[default]
    Default,
    /// None.
    Disabled,
}

/// What the user asked for. Changed only by the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Free text.
    pub name: String,
    /// The image as the user wrote it.
    pub image: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory at boot.
    pub memory: MemoryMib,
    /// The most it may grow to, where the hypervisor can.
    pub memory_max: MemoryMib,
    /// Size of the writable layer.
    pub disk: ByteSize,
    /// Added to, and stronger than, the image's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Replaces the image's.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// Replaces the image's.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Replaces the image's.
    #[serde(default)]
    pub user: Option<String>,
    /// The guest's host name; a slug of the name when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// OpenSSH public keys that root is let in with: lines that its `authorized_keys` has from each boot on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// The user's labels ("tags" on the wire of v0.3).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Published ports.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// Whether there is an interface at all.
    #[serde(default)]
    pub network: NetworkChoice,
    /// What happens when the workload ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Which hypervisor.
    #[serde(default)]
    pub hypervisor: HypervisorChoice,
    /// Whether the workload gets a terminal.
    #[serde(default)]
    pub terminal: Terminal,
    /// Where its standard input comes from.
    #[serde(default)]
    pub stdin: Stdin,
    /// What happens to the instance when the workload has ended for good.
    #[serde(default)]
    pub removal: Removal,
    /// Seconds without use after which it is suspended; only where it was sent.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
    /// Fields of the API that are kept and shown as they were sent, and have no effect yet here.
    #[serde(default)]
    pub carried: BTreeMap<String, serde_json::Value>,
}

/// Bounds of a spec that hold on every host.
pub const VCPUS: std::ops::RangeInclusive<u32> = 1..=256;
/// Memory at boot: a kernel and the agent do not fit in less; more than 4 TiB is a mistake.
pub const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=(4 << 20);
/// Writable layer.
pub const DISK: std::ops::RangeInclusive<u64> = (16 << 20)..=(64 << 40);
/// The most bytes of environment: what the kernel takes for arguments and environment together.
pub const ENV_BYTES: usize = 128 * 1024;

/// Why a spec is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// The name.
    #[error(transparent)]
    Name(#[from] crate::id::IdError),
    /// The ports.
    #[error(transparent)]
    Ports(#[from] crate::network::NetworkError),
    /// A number outside its bounds.
    #[error("must be {low} to {high}, not {value}")]
    Range {
        /// Which field, as on the wire.
        field: &'static str,
        /// What it was.
        value: u64,
        /// The least.
        low: u64,
        /// The most.
        high: u64,
    },
    /// A field that the kernel or the protocol cannot carry.
    #[error("{field} {problem}")]
    Field {
        /// Which field, as on the wire.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl InstanceSpec {
    /// Everything that can be checked without looking at a host.
    ///
    /// # Errors
    /// The first [`SpecError`].
    pub fn check(&self) -> Result<(), SpecError> {
        check_name(&self.name)?;
        check_mappings(&self.ports)?;
        let range = |field, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(SpecError::Range {
                    field,
                    value,
                    low,
                    high,
                })
            }
        };
        range(
            "vcpus",
            self.vcpus.into(),
            (*VCPUS.start()).into(),
            (*VCPUS.end()).into(),
        )?;
        range(
            "memory_mb",
            self.memory.0,
            *MEMORY_MIB.start(),
            *MEMORY_MIB.end(),
        )?;
        range(
            "memory_max_mb",
            self.memory_max.0,
            self.memory.0,
            *MEMORY_MIB.end(),
        )?;
        range("overlay_size", self.disk.0, *DISK.start(), *DISK.end())?;
        let field = |field, problem: &str| {
            Err(SpecError::Field {
                field,
                problem: problem.to_owned(),
            })
        };
        let texts = self
            .entrypoint
            .iter()
            .flatten()
            .chain(self.cmd.iter().flatten());
        if texts.clone().any(|word| word.contains('\0')) {
            return field(
                "cmd",
                "contains a NUL character, which no program's argument can",
            );
        }
        let mut bytes: usize = texts.map(String::len).sum();
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return field(
                    "env",
                    "has a name that is empty or contains '=', or a NUL character",
                );
            }
            bytes += name.len() + value.len() + 2;
        }
        if bytes > ENV_BYTES {
            return field("env", "and arguments are larger than 128 KiB together");
        }
        if self.network == NetworkChoice::Disabled && !self.ports.is_empty() {
            return field("port_mappings", "cannot be used with the network disabled");
        }
        if let Some(dir) = &self.working_dir
            && (!dir.starts_with('/') || dir.contains('\0') || dir.len() > 4095)
        {
            return field("working_dir", "must be an absolute path");
        }
        if let Some(user) = &self.user
            && (user.is_empty() || user.len() > 256 || user.chars().any(char::is_control))
        {
            return field(
                "user",
                "must be a user name or number, optionally followed by ':' and a group",
            );
        }
        if let Some(hostname) = &self.hostname
            && (hostname.is_empty()
                || hostname.len() > 63
                || !hostname
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')))
        {
            return field("hostname", "must be 1 to 63 letters, digits, '-' or '.'");
        }
        if let Err(problem) = crate::ssh_key::check(&self.ssh_keys) {
            return field("ssh_keys", problem);
        }
        Ok(())
    }
}

/// What should be true of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Its workload runs (as far as the restart policy wants it to).
    Running,
    /// Processors stopped.
    Paused,
    /// No VMM; its memory and devices are saved beside the disk.
    Standby,
    /// No VMM; the disk stays.
    Stopped,
    /// Nothing of it is left.
    Deleted,
}

/// The whole intent for one instance: what `control` commits and an agent receives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceIntent {
    /// Its id.
    pub id: InstanceId,
    /// Its short name on the host.
    pub handle: Handle,
    /// Whose it is.
    pub tenant: String,
    /// What the user asked for.
    pub spec: InstanceSpec,
    /// A unique DNS label.
    pub slug: String,
    /// The image that `spec.image` meant when the instance was created: `sha256:…`.
    pub image_digest: String,
    /// That image's run-time configuration.
    pub image_config: crate::image::ImageConfig,
    /// Raised by every change.
    pub generation: u64,
    /// What should be true.
    pub desired: Desired,
    /// Raised by every explicit start: a workload that has ended is started again only for a new run
    /// or by the restart policy.
    pub run: u64,
    /// Its address, reserved in the same transaction; `None` where the mode has no pool.
    pub address: Option<Ipv4Addr>,
    /// Seconds the workload gets between its stop signal and the kill.
    pub stop_grace_seconds: u64,
    /// When it was accepted.
    pub created_at: Timestamp,
}

/// How a run of the workload ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal where a signal ended it; `None` where nobody saw it end.
    pub code: Option<i32>,
    /// In words, where there is something to say: "killed by SIGKILL", "the VMM died".
    pub message: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What the host sees. Written by the agent only; persisted as it was last reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Whose.
    pub id: InstanceId,
    /// The generation of the intent this is about: older reports say nothing about newer wishes.
    pub generation: u64,
    /// The state.
    pub state: InstanceState,
    /// What went wrong last, until something succeeds.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// Why the wish of this generation cannot be granted: all is as before.
    #[serde(default)]
    pub refused: Option<Failure>,
    /// The run this is about.
    pub run: u64,
    /// When the guest of this run became ready.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it stopped last.
    #[serde(default)]
    pub stopped_at: Option<Timestamp>,
    /// How the last run ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Restarts.
    #[serde(default)]
    pub restart: RestartStatus,
    /// Which hypervisor runs or last ran it.
    #[serde(default)]
    pub hypervisor: Option<HypervisorKind>,
    /// The guest's address as it was told.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// The guest's MAC.
    #[serde(default)]
    pub mac: Option<String>,
    /// Milliseconds each phase of the last start took, by name.
    #[serde(default)]
    pub phases: BTreeMap<String, u64>,
    /// Whether everything of a deleted instance is gone: its intent may be removed.
    #[serde(default)]
    pub gone: Gone,
}

/// Whether anything is left of an instance on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gone {
    /// Something is.
    #[default]
    No,
    /// Nothing is.
    Yes,
}

impl InstanceStatus {
    /// What is true of an instance no host has reported on yet.
    pub fn unreported(intent: &InstanceIntent) -> Self {
        InstanceStatus {
            id: intent.id.clone(),
            generation: 0,
            state: InstanceState::Created,
            failure: None,
            refused: None,
            run: 0,
            started_at: None,
            stopped_at: None,
            exit: None,
            restart: RestartStatus::default(),
            hypervisor: None,
            address: intent.address,
            mac: None,
            phases: BTreeMap::new(),
            gone: Gone::No,
        }
    }
}

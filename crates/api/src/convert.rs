//! Between the wire and the domain. Both generations of requests become one spec; one intent with
//! its status becomes an instance with the fields of both.

use crate::code::Code;
use crate::exec::{LogEntry, LogStream};
use crate::image::{Image, ImageStatus};
use crate::instance::{
    CreateInstanceRequest, Hypervisor, Instance, InstanceNetwork, PortMapping, PortProtocol, Tags,
};
use crate::policy::{BlockedReason, HealthCheckType, RestartPolicy, RestartStatus, RestartWhen};
use crate::problem::Problem;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;
use warren_core::image::ImageRecord;
use warren_core::instance::{
    Desired, HypervisorChoice, InstanceIntent, InstanceSpec, InstanceStatus, NetworkChoice,
    Removal, Stdin, Terminal,
};
use warren_core::network::{PortMapping as CoreMapping, Protocol};
use warren_core::ports::host_link::{LogLine, OutputStream};
use warren_core::ports::hypervisor::HypervisorKind;
use warren_core::state::{InstanceState as CoreState, StateName};
use warren_core::units::{ParseUnitError, parse_duration, parse_size};
use warren_core::{ByteSize, InstanceId, MemoryMib, restart};

/// Why a request cannot become a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A value that can never work.
    #[error("{field}: {problem}")]
    Field {
        /// The field, as on the wire.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A field of the API that would change what the instance is, and that is not served yet.
    #[error("{field} is not supported yet: leave it out")]
    NotYet {
        /// The field, as on the wire.
        field: &'static str,
    },
}

impl From<ConvertError> for Problem {
    fn from(error: ConvertError) -> Self {
        let (code, field) = match &error {
            ConvertError::Field { field, .. } => (Code::InvalidField, *field),
            ConvertError::NotYet { field } => (Code::NotImplemented, *field),
        };
        Problem::new(code, error.to_string()).with_detail(field, error.to_string())
    }
}

fn wrong(field: &'static str, problem: impl ToString) -> ConvertError {
    ConvertError::Field {
        field,
        problem: problem.to_string(),
    }
}

/// Names of fields in [`InstanceSpec::carried`].
mod carried {
    pub(super) const PLATFORM: &str = "platform";
    pub(super) const SNAPSHOT_POLICY: &str = "snapshot_policy";
    pub(super) const AUTO_STANDBY: &str = "auto_standby";
    pub(super) const HEALTH_CHECK: &str = "health_check";
}

/// What a create asks for, checked as far as it can be without looking at a host.
#[derive(Debug, Clone, PartialEq)]
pub struct NewInstance {
    /// The user's id, if there is one.
    pub id: Option<InstanceId>,
    /// What it is to be.
    pub spec: InstanceSpec,
    /// The platform the image must have, if one was named.
    pub platform: Option<String>,
    /// Seconds between the stop signal and the kill.
    pub stop_grace_seconds: u64,
}

/// Seconds between the stop signal and the kill where none are given.
pub const STOP_GRACE_SECONDS: u64 = 10;

impl TryFrom<CreateInstanceRequest> for NewInstance {
    type Error = ConvertError;

    fn try_from(request: CreateInstanceRequest) -> Result<Self, ConvertError> {
        refuse_unserved(&request)?;
        let id = request
            .id
            .as_deref()
            .map(|id| id.parse::<InstanceId>().map_err(|e| wrong("id", e)))
            .transpose()?;
        let size = optional_size("size", request.size.as_deref())?.map(mebibytes);
        let memory = match (request.memory_mb.map(MemoryMib), size) {
            (Some(a), Some(b)) if a != b => {
                return Err(wrong(
                    "size",
                    "says something else than memory_mb: give one of them",
                ));
            }
            (Some(memory), _) | (None, Some(memory)) => memory,
            (None, None) => MemoryMib(1024),
        };
        let hotplug =
            optional_size("hotplug_size", request.hotplug_size.as_deref())?.map(mebibytes);
        let memory_max = match (request.memory_max_mb, hotplug) {
            (Some(max), _) => MemoryMib(max),
            (None, Some(more)) => MemoryMib(memory.0.saturating_add(more.0)),
            (None, None) => MemoryMib(memory.0.max(4096)),
        };
        let overlay = optional_size("overlay_size", request.overlay_size.as_deref())?;
        let disk_size = optional_size("disk_size", request.disk_size.as_deref())?;
        let disk = match (overlay, disk_size) {
            (Some(a), Some(b)) if a != b => {
                return Err(wrong("disk_size", "says something else than overlay_size"));
            }
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => ByteSize::gib(10),
        };
        let mut labels = request.tags;
        for (key, value) in request.labels {
            if labels.get(&key).is_some_and(|tag| *tag != value) {
                return Err(wrong(
                    "labels",
                    format!("{key:?} says something else in tags"),
                ));
            }
            labels.insert(key, value);
        }
        check_tags("tags", &labels)?;
        let mut carried = BTreeMap::new();
        let mut carry = |name: &str, value: Option<serde_json::Value>| {
            if let Some(value) = value {
                carried.insert(name.to_owned(), value);
            }
        };
        carry(carried::PLATFORM, request.platform.clone().map(Into::into));
        carry(carried::SNAPSHOT_POLICY, to_value(&request.snapshot_policy));
        carry(carried::AUTO_STANDBY, to_value(&request.auto_standby));
        carry(carried::HEALTH_CHECK, to_value(&request.health_check));
        let spec = InstanceSpec {
            name: request.name,
            image: request.image,
            vcpus: request.vcpus.unwrap_or(2),
            memory,
            memory_max,
            disk,
            env: request.env,
            entrypoint: request.entrypoint,
            cmd: request.cmd,
            working_dir: request.working_dir,
            user: request.user,
            hostname: request.hostname,
            ssh_keys: request
                .ssh_keys
                .iter()
                .map(|key| key.trim().to_owned())
                .collect(),
            labels,
            ports: request
                .port_mappings
                .iter()
                .map(CoreMapping::from)
                .collect(),
            network: match request.network.and_then(|network| network.enabled) {
                Some(false) => NetworkChoice::Disabled,
                Some(true) | None => NetworkChoice::Default,
            },
            restart: restart_policy(request.restart_policy)?,
            hypervisor: request.hypervisor.unwrap_or_default().into(),
            terminal: if request.tty.unwrap_or_default() {
                Terminal::Pty
            } else {
                Terminal::None
            },
            stdin: if request.open_stdin.unwrap_or_default() {
                Stdin::Attached
            } else {
                Stdin::Null
            },
            removal: if request.auto_remove.unwrap_or_default() {
                Removal::WhenExited
            } else {
                Removal::Keep
            },
            timeout_seconds: request.timeout_seconds,
            carried,
        };
        spec.check().map_err(|e| match e {
            warren_core::instance::SpecError::Name(e) => wrong("name", e),
            warren_core::instance::SpecError::Ports(e) => wrong("port_mappings", e),
            warren_core::instance::SpecError::Range { field, .. } => wrong(field, e),
            warren_core::instance::SpecError::Field { field, .. } => wrong(field, e),
        })?;
        if spec.image.is_empty()
            || spec.image.len() > 512
            || spec.image.chars().any(char::is_control)
        {
            return Err(wrong(
                "image",
                "must be 1 to 512 characters and no control characters",
            ));
        }
        let stop_grace_seconds = request.stop_grace_seconds.unwrap_or(STOP_GRACE_SECONDS);
        if stop_grace_seconds > 3600 {
            return Err(wrong("stop_grace_seconds", "must be at most 3600"));
        }
        Ok(NewInstance {
            id,
            spec,
            platform: request.platform,
            stop_grace_seconds,
        })
    }
}

fn refuse_unserved(request: &CreateInstanceRequest) -> Result<(), ConvertError> {
    let network = request.network.clone().unwrap_or_default();
    let unserved = [
        ("volumes", !request.volumes.is_empty()),
        ("devices", !request.devices.is_empty()),
        ("gpu", request.gpu.is_some()),
        ("credentials", !request.credentials.is_empty()),
        ("disk_io_bps", request.disk_io_bps.is_some()),
        ("skip_guest_agent", request.skip_guest_agent == Some(true)),
        (
            "network.bandwidth_download",
            network.bandwidth_download.is_some(),
        ),
        (
            "network.bandwidth_upload",
            network.bandwidth_upload.is_some(),
        ),
        (
            "network.egress",
            network.egress.is_some_and(|egress| egress.enabled),
        ),
        (
            "auto_standby",
            request
                .auto_standby
                .as_ref()
                .is_some_and(|policy| policy.enabled),
        ),
        (
            "health_check",
            request
                .health_check
                .as_ref()
                .is_some_and(|check| check.kind != HealthCheckType::None),
        ),
    ];
    match unserved.into_iter().find(|(_, used)| *used) {
        Some((field, _)) => Err(ConvertError::NotYet { field }),
        None => Ok(()),
    }
}

fn to_value<T: serde::Serialize>(value: &Option<T>) -> Option<serde_json::Value> {
    value
        .as_ref()
        .map(|value| serde_json::to_value(value).expect("our own schemas are JSON"))
}

fn optional_size(
    field: &'static str,
    text: Option<&str>,
) -> Result<Option<ByteSize>, ConvertError> {
    text.map(|text| parse_size(text).map_err(|e| wrong(field, e)))
        .transpose()
}

fn mebibytes(size: ByteSize) -> MemoryMib {
    MemoryMib(size.0.div_ceil(1 << 20))
}

/// Labels: at most 64, keys of 1 to 128 characters, values of at most 512.
///
/// # Errors
/// [`ConvertError::Field`] on `field`.
pub fn check_tags(field: &'static str, tags: &Tags) -> Result<(), ConvertError> {
    if tags.len() > 64 {
        return Err(wrong(field, "there may be at most 64"));
    }
    for (key, value) in tags {
        let fits = |text: &str, low, high| {
            (low..=high).contains(&text.chars().count()) && !text.chars().any(char::is_control)
        };
        if !fits(key, 1, 128) || !fits(value, 0, 512) {
            return Err(wrong(
                field,
                format!(
                    "{:?} does not fit: keys have 1 to 128 characters, values at most 512, no control characters",
                    key.chars().take(40).collect::<String>()
                ),
            ));
        }
    }
    Ok(())
}

/// The policy of a request; the default where there is none.
///
/// # Errors
/// [`ConvertError::Field`] for durations that are none.
pub fn restart_policy(
    policy: Option<RestartPolicy>,
) -> Result<restart::RestartPolicy, ConvertError> {
    let default = restart::RestartPolicy::default();
    let Some(policy) = policy else {
        return Ok(default);
    };
    if policy.max_attempts.is_some_and(|most| most > 1_000_000) {
        return Err(wrong(
            "restart_policy.max_attempts",
            "must be at most 1000000",
        ));
    }
    let millis = |field, text: Option<String>, default| match text {
        None => Ok(default),
        Some(text) => parse_duration(&text)
            .map_err(|e: ParseUnitError| wrong(field, e))
            .and_then(|d: Duration| {
                if d > Duration::from_secs(86_400 * 7) {
                    Err(wrong(field, "must be at most seven days"))
                } else {
                    Ok(u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
                }
            }),
    };
    Ok(restart::RestartPolicy {
        when: policy.policy.into(),
        backoff_ms: millis("restart_policy.backoff", policy.backoff, default.backoff_ms)?,
        max_attempts: policy.max_attempts.unwrap_or(default.max_attempts),
        stable_after_ms: millis(
            "restart_policy.stable_after",
            policy.stable_after,
            default.stable_after_ms,
        )?,
    })
}

impl From<&restart::RestartPolicy> for RestartPolicy {
    fn from(policy: &restart::RestartPolicy) -> Self {
        RestartPolicy {
            policy: RestartWhen::from(policy.when),
            backoff: Some(duration_text(policy.backoff_ms)),
            max_attempts: Some(policy.max_attempts),
            stable_after: Some(duration_text(policy.stable_after_ms)),
        }
    }
}

fn duration_text(millis: u64) -> String {
    if millis == 0 {
        "0s".to_owned()
    } else if millis.is_multiple_of(60_000) {
        format!("{}m", millis / 60_000)
    } else if millis.is_multiple_of(1_000) {
        format!("{}s", millis / 1_000)
    } else {
        format!("{millis}ms")
    }
}

/// A size as clients write it, exactly: the largest unit (powers of 1024) that divides it.
pub fn size_text(size: ByteSize) -> String {
    [("TB", 40u32), ("GB", 30), ("MB", 20), ("KB", 10)]
        .into_iter()
        .find(|(_, shift)| size.0 > 0 && size.0.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{}B", size.0),
            |(unit, shift)| format!("{}{unit}", size.0 >> shift),
        )
}

impl From<&PortMapping> for CoreMapping {
    fn from(mapping: &PortMapping) -> Self {
        CoreMapping {
            host_port: mapping.host_port,
            guest_port: mapping.guest_port,
            protocol: match mapping.protocol {
                PortProtocol::Tcp => Protocol::Tcp,
                PortProtocol::Udp => Protocol::Udp,
            },
        }
    }
}

impl From<&CoreMapping> for PortMapping {
    fn from(mapping: &CoreMapping) -> Self {
        PortMapping {
            host_port: mapping.host_port,
            guest_port: mapping.guest_port,
            protocol: match mapping.protocol {
                Protocol::Tcp => PortProtocol::Tcp,
                Protocol::Udp => PortProtocol::Udp,
            },
        }
    }
}

impl From<Hypervisor> for HypervisorChoice {
    fn from(hypervisor: Hypervisor) -> Self {
        HypervisorChoice::Only(match hypervisor {
            Hypervisor::Auto => return HypervisorChoice::Auto,
            Hypervisor::Qemu => HypervisorKind::Qemu,
            Hypervisor::QemuMicrovm => HypervisorKind::QemuMicrovm,
            Hypervisor::CloudHypervisor => HypervisorKind::CloudHypervisor,
            Hypervisor::Firecracker => HypervisorKind::Firecracker,
            Hypervisor::Vz => HypervisorKind::Vz,
            Hypervisor::Fake => HypervisorKind::Fake,
        })
    }
}

/// The wire form of an instance.
pub fn instance(intent: &InstanceIntent, status: &InstanceStatus) -> Instance {
    let spec = &intent.spec;
    let enabled = spec.network == NetworkChoice::Default;
    let address = status
        .address
        .or(intent.address)
        .map(|address| address.to_string());
    Instance {
        id: intent.id.to_string(),
        name: spec.name.clone(),
        image: spec.image.clone(),
        image_digest: Some(intent.image_digest.clone()),
        platform: carried_value(spec, carried::PLATFORM),
        state: status.state.name().into(),
        state_error: state_error(status),
        warnings: Vec::new(),
        deleting: intent.desired == Desired::Deleted,
        created_at: intent.created_at,
        started_at: status.started_at,
        stopped_at: status.stopped_at,
        fqdn: enabled.then(|| intent.slug.clone()),
        private_ip: address.clone().filter(|_| enabled),
        memory_mb: spec.memory.0,
        memory_max_mb: spec.memory_max.0,
        size: size_text(ByteSize(spec.memory.bytes())),
        hotplug_size: size_text(ByteSize(
            spec.memory_max.bytes().saturating_sub(spec.memory.bytes()),
        )),
        overlay_size: size_text(spec.disk),
        vcpus: spec.vcpus,
        env: spec.env.clone(),
        timeout_seconds: spec.timeout_seconds,
        volumes: Vec::new(),
        port_mappings: spec.ports.iter().map(PortMapping::from).collect(),
        has_snapshot: status.state == CoreState::Standby,
        tags: spec.labels.clone(),
        labels: spec.labels.clone(),
        network: InstanceNetwork {
            enabled,
            name: enabled.then(|| "default".to_owned()),
            ip: address.filter(|_| enabled),
            mac: status.mac.clone().filter(|_| enabled),
        },
        hypervisor: Some(match (status.hypervisor, spec.hypervisor) {
            (Some(kind), _) | (None, HypervisorChoice::Only(kind)) => kind.into(),
            (None, HypervisorChoice::Auto) => Hypervisor::Auto,
        }),
        exit_code: status.exit.as_ref().and_then(|exit| exit.code),
        exit_message: status.exit.as_ref().and_then(|exit| exit.message.clone()),
        restart_policy: Some(RestartPolicy::from(&spec.restart)),
        restart_status: Some(restart_status(intent, status)),
        phase_durations_ms: status.phases.clone(),
        snapshot_policy: carried_value(spec, carried::SNAPSHOT_POLICY),
        auto_standby: carried_value(spec, carried::AUTO_STANDBY),
        health_check: carried_value(spec, carried::HEALTH_CHECK),
        entrypoint: spec.entrypoint.clone(),
        cmd: spec.cmd.clone(),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        hostname: spec.hostname.clone(),
        ssh_keys: spec.ssh_keys.clone(),
        tty: spec.terminal == Terminal::Pty,
        open_stdin: spec.stdin == Stdin::Attached || spec.terminal == Terminal::Pty,
        auto_remove: spec.removal == Removal::WhenExited,
    }
}

/// What went wrong, as users see it.
pub fn state_error(status: &InstanceStatus) -> Option<String> {
    match (&status.failure, &status.state) {
        (Some(failure), _) => Some(failure.message.clone()),
        (None, CoreState::Unknown { reason }) => Some(reason.clone()),
        (None, _) => None,
    }
}

fn restart_status(intent: &InstanceIntent, status: &InstanceStatus) -> RestartStatus {
    let limit = intent.spec.restart.max_attempts;
    let ended = status.exit.is_some() && status.state.name() == StateName::Stopped;
    let policy = intent.spec.restart.when != restart::RestartWhen::Never;
    RestartStatus {
        attempts: status.restart.attempts,
        last_attempt_at: status.restart.last_attempt_at,
        next_attempt_at: status.restart.next_attempt_at,
        blocked_reason: if !policy || !ended || status.restart.next_attempt_at.is_some() {
            None
        } else if intent.desired == Desired::Stopped {
            Some(BlockedReason::ManualStop)
        } else if limit != 0 && status.restart.attempts >= limit {
            Some(BlockedReason::MaxAttemptsExceeded)
        } else {
            None
        },
    }
}

fn carried_value<T: DeserializeOwned>(spec: &InstanceSpec, name: &str) -> Option<T> {
    spec.carried
        .get(name)
        .and_then(|value| serde_json::from_value(value.clone()).ok())
}

/// The wire form of an image that is here.
pub fn image(record: &ImageRecord) -> Image {
    Image {
        id: record.id.clone(),
        name: record.name.clone(),
        created_at: record.created_at,
        version: Some(version(&record.name, &record.digest)),
        digest: record.digest.clone(),
        platform: Some(record.platform.clone()),
        status: ImageStatus::Ready,
        queue_position: None,
        error: None,
        size_bytes: Some(record.size_bytes),
        entrypoint: record.config.entrypoint.clone(),
        cmd: record.config.cmd.clone(),
        env: record
            .config
            .env
            .iter()
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        working_dir: Some(if record.config.working_dir.is_empty() {
            "/".to_owned()
        } else {
            record.config.working_dir.clone()
        }),
        user: Some(record.config.user.clone()).filter(|user| !user.is_empty()),
        exposed_ports: record.config.exposed_ports.clone(),
        tags: record.tags.clone(),
    }
}

/// The tag of a reference; without one, the start of the digest.
fn version(name: &str, digest: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split('@').next().and_then(|name| name.split_once(':')) {
        Some((_, tag)) => tag.to_owned(),
        None => digest
            .split_once(':')
            .map_or(digest, |(_, hex)| hex)
            .chars()
            .take(12)
            .collect(),
    }
}

impl From<LogLine> for LogEntry {
    fn from(line: LogLine) -> Self {
        LogEntry {
            seq: line.seq,
            at: line.at,
            stream: match line.stream {
                OutputStream::Stdout => LogStream::Stdout,
                OutputStream::Stderr => LogStream::Stderr,
            },
            text: line.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: serde_json::Value) -> Result<NewInstance, ConvertError> {
        let request: CreateInstanceRequest =
            serde_json::from_value(json).expect("of the documented shape");
        request.try_into()
    }

    #[test]
    fn both_generations_say_the_same_thing() {
        let old = request(serde_json::json!({
            "id": "a", "name": "n", "image": "i", "memory_mb": 2048, "memory_max_mb": 4096, "vcpus": 2,
        }))
        .expect("v0.1");
        let new = request(serde_json::json!({
            "id": "a", "name": "n", "image": "i", "size": "2GB", "hotplug_size": "2GB", "overlay_size": "10GB",
        }))
        .expect("v0.3");
        assert_eq!(old, new);
    }

    #[test]
    fn defaults_are_those_of_the_contracts() {
        let new = request(serde_json::json!({"name": "n", "image": "i"})).expect("least");
        assert_eq!(new.spec.memory, MemoryMib(1024));
        assert_eq!(new.spec.memory_max, MemoryMib(4096));
        assert_eq!(new.spec.vcpus, 2);
        assert_eq!(new.spec.disk, ByteSize::gib(10));
        assert_eq!(new.spec.timeout_seconds, None);
    }

    #[test]
    fn what_would_change_the_meaning_is_refused_and_named() {
        for (field, value) in [
            ("devices", serde_json::json!(["x"])),
            ("gpu", serde_json::json!({})),
            ("credentials", serde_json::json!({"a": {}})),
            ("disk_io_bps", serde_json::json!("1MB")),
            ("skip_guest_agent", serde_json::json!(true)),
            ("auto_standby", serde_json::json!({"enabled": true})),
            (
                "health_check",
                serde_json::json!({"type": "tcp", "tcp": {"port": 1}}),
            ),
            (
                "volumes",
                serde_json::json!([{"volume_id": "v", "mount_path": "/v"}]),
            ),
        ] {
            let mut json = serde_json::json!({"name": "n", "image": "i"});
            json[field] = value;
            assert_eq!(request(json), Err(ConvertError::NotYet { field }));
        }
        assert!(
            request(serde_json::json!({"name": "n", "image": "i",
            "auto_standby": {"enabled": false}, "health_check": {"type": "none"},
            "network": {"enabled": true, "egress": {"enabled": false}}}))
            .is_ok()
        );
    }

    #[test]
    fn disagreeing_fields_are_refused() {
        for json in [
            serde_json::json!({"name": "n", "image": "i", "memory_mb": 512, "size": "1GB"}),
            serde_json::json!({"name": "n", "image": "i", "tags": {"a": "1"}, "labels": {"a": "2"}}),
            serde_json::json!({"name": "n", "image": "i", "overlay_size": "1GB", "disk_size": "2GB"}),
        ] {
            assert!(matches!(request(json), Err(ConvertError::Field { .. })));
        }
    }

    #[test]
    fn unknown_fields_are_named() {
        let error = serde_json::from_value::<CreateInstanceRequest>(
            serde_json::json!({"name": "n", "image": "i", "colour": "red"}),
        )
        .expect_err("unknown");
        assert!(error.to_string().contains("colour"));
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for text in ["1GB", "1536MB", "10GB", "2TB", "1KB", "7B", "0B"] {
            assert_eq!(size_text(parse_size(text).expect(text)), text);
        }
    }

    #[test]
    fn versions_come_from_tags() {
        assert_eq!(version("localhost:5000/web:1.2", "sha256:ab"), "1.2");
        assert_eq!(
            version("localhost:5000/web@sha256:ab", "sha256:0123456789abcdef"),
            "0123456789ab"
        );
    }
}

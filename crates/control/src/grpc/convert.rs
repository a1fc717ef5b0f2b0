//! Between this API's messages and the use cases: defaults, bounds, and how an instance looks. All of it pure.

use super::caller::{USER, user_of};
use super::refusal::invalid;
use super::wire::{CreateVmRequest, ResourceLimits, VmInfo, VmResponse, VmStatusResponse};
use crate::app::{NewLimits, View};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use tonic::Status;
use warren_api::instance::{PortMapping, PortProtocol};
use warren_api::{CreateInstanceRequest, Instance, convert};
use warren_core::instance::Desired;
use warren_core::state::StateName;
use warren_core::{ByteSize, MemoryMib};

/// How long a machine gets to stop where nothing is said, seconds.
const STOP_SECONDS: u64 = 30;
/// And at most.
const LONGEST_STOP: i32 = 3600;
/// A user's id fits in a label and, with what is added to it, in a name.
const LONGEST_USER: usize = 120;

/// A limit: what it is called, its bounds, and its default.
struct Bounds {
    field: &'static str,
    low: i64,
    high: i64,
    default: i64,
}

const CPUS: Bounds = Bounds {
    field: "limits.cpu_count",
    low: 1,
    high: 8,
    default: 2,
};
const MEMORY: Bounds = Bounds {
    field: "limits.memory_mb",
    low: 512,
    high: 16384,
    default: 4096,
};
const DISK: Bounds = Bounds {
    field: "limits.disk_size_gb",
    low: 5,
    high: 100,
    default: 20,
};

impl Bounds {
    /// 0 is none.
    fn optional(&self, value: i64) -> Result<Option<i64>, Status> {
        match value {
            0 => Ok(None),
            value if (self.low..=self.high).contains(&value) => Ok(Some(value)),
            value => Err(invalid(
                self.field,
                format_args!("must be {} to {}, not {value}", self.low, self.high),
            )),
        }
    }
}

/// The limits that a request names, within their bounds.
pub(super) fn limits(limits: Option<ResourceLimits>) -> Result<NewLimits, Status> {
    let limits = limits.unwrap_or_default();
    let bounded = |bounds: &Bounds, value| bounds.optional(value);
    Ok(NewLimits {
        vcpus: bounded(&CPUS, limits.cpu_count)?.and_then(|count| u32::try_from(count).ok()),
        memory: bounded(&MEMORY, limits.memory_mb)?.map(|size| MemoryMib(size.unsigned_abs())),
        disk: bounded(&DISK, limits.disk_size_gb)?.map(|size| ByteSize::gib(size.unsigned_abs())),
    })
}

/// What a create asks for.
///
/// # Errors
/// INVALID_ARGUMENT that names the field.
pub(super) fn creation(request: CreateVmRequest) -> Result<CreateInstanceRequest, Status> {
    let user = request.user_id;
    if user.is_empty() {
        return Err(invalid("user_id", "is required"));
    }
    if user.chars().count() > LONGEST_USER || user.chars().any(char::is_control) {
        let bound = format!("must be at most {LONGEST_USER} characters and no control characters");
        return Err(invalid("user_id", bound));
    }
    if request.image.is_empty() {
        return Err(invalid("image", "is required"));
    }
    let mut labels = request.labels;
    if labels.get(USER).is_some_and(|label| *label != user) {
        return Err(invalid(
            "labels",
            "user_id says something else than the field user_id",
        ));
    }
    labels.insert(USER.to_owned(), user.clone());
    let limits = limits(request.limits)?;
    let memory = limits
        .memory
        .map_or(MEMORY.default.unsigned_abs(), |size| size.0);
    let disk = limits
        .disk
        .unwrap_or(ByteSize::gib(DISK.default.unsigned_abs()));
    Ok(CreateInstanceRequest {
        name: match request.vm_name {
            name if name.is_empty() => format!("{user}-env"),
            name => name,
        },
        image: request.image,
        vcpus: Some(limits.vcpus.unwrap_or(CPUS.default.unsigned_abs() as u32)),
        memory_mb: Some(memory),
        memory_max_mb: Some(memory),
        overlay_size: Some(convert::size_text(disk)),
        env: request.env_vars,
        port_mappings: ports(&request.ports)?,
        labels,
        ssh_keys: request.ssh_keys,
        // Images of systems have a shell as their command. It waits for input that does not come.
        open_stdin: Some(true),
        stop_grace_seconds: Some(STOP_SECONDS),
        ..CreateInstanceRequest::default()
    })
}

fn ports(texts: &[String]) -> Result<Vec<PortMapping>, Status> {
    texts.iter().map(|text| port(text)).collect()
}

/// `host:guest` or `host:guest/proto`.
fn port(text: &str) -> Result<PortMapping, Status> {
    let wrong = || {
        invalid(
            "ports",
            format_args!("{text:?} is not host:guest or host:guest/udp, such as 8080:80"),
        )
    };
    let (numbers, protocol) = match text.split_once('/') {
        None => (text, PortProtocol::Tcp),
        Some((numbers, "tcp")) => (numbers, PortProtocol::Tcp),
        Some((numbers, "udp")) => (numbers, PortProtocol::Udp),
        Some(_) => return Err(wrong()),
    };
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain
            .then(|| text.parse().ok())
            .flatten()
            .filter(|port| *port > 0)
    };
    let (host, guest) = numbers.split_once(':').ok_or_else(wrong)?;
    Ok(PortMapping {
        host_port: number(host).ok_or_else(wrong)?,
        guest_port: number(guest).ok_or_else(wrong)?,
        protocol,
    })
}

fn port_text(port: &PortMapping) -> String {
    let protocol = match port.protocol {
        PortProtocol::Tcp => "",
        PortProtocol::Udp => "/udp",
    };
    format!("{}:{}{protocol}", port.host_port, port.guest_port)
}

/// How long a stop waits before it forces, seconds.
///
/// # Errors
/// INVALID_ARGUMENT beyond the bounds.
pub(super) fn stop_seconds(seconds: i32) -> Result<u64, Status> {
    match seconds {
        0 => Ok(STOP_SECONDS),
        1..=LONGEST_STOP => Ok(u64::from(seconds.unsigned_abs())),
        _ => Err(invalid(
            "timeout_seconds",
            format_args!("must be 1 to {LONGEST_STOP}, or 0 for {STOP_SECONDS}"),
        )),
    }
}

/// The statuses of this API.
pub(super) const STATUSES: [&str; 4] = ["created", "running", "stopped", "error"];

/// Which one an instance has.
pub(super) fn status_of(view: &View) -> &'static str {
    let wanted = match view.intent.desired {
        Desired::Running if !view.has_ended() => Wanted::Up,
        Desired::Running
        | Desired::Paused
        | Desired::Standby
        | Desired::Stopped
        | Desired::Deleted => Wanted::Down,
    };
    status(
        view.status.state.name(),
        wanted,
        view.status.failure.is_some(),
    )
}

/// Whether an instance is on its way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Up,
    Down,
}

fn status(state: StateName, wanted: Wanted, failed: bool) -> &'static str {
    match state {
        StateName::Running => "running",
        StateName::Created | StateName::Initializing => "created",
        // Between two runs, of which the next comes by itself.
        StateName::Stopped | StateName::Shutdown if wanted == Wanted::Up => "created",
        StateName::Stopped if failed => "error",
        // One that is paused or put away has no processors: this API knows no word for it that is closer.
        StateName::Stopped | StateName::Shutdown | StateName::Paused | StateName::Standby => {
            "stopped"
        }
        StateName::Unknown => "error",
    }
}

fn instance(view: &View) -> Instance {
    convert::instance(&view.intent, &view.status)
}

/// An instance after something was done to it: `done` in words, or what went wrong.
pub(super) fn response(view: &View, done: &str) -> VmResponse {
    let instance = instance(view);
    VmResponse {
        vm_id: instance.id,
        user_id: user_of(view).unwrap_or_default().to_owned(),
        vm_name: instance.name,
        status: status_of(view).to_owned(),
        message: match instance.state_error {
            Some(error) if status_of(view) != "running" => error,
            _ => done.to_owned(),
        },
        created_at: instance.created_at.unix_timestamp(),
        ip_address: instance.private_ip.unwrap_or_default(),
        ports: instance.port_mappings.iter().map(port_text).collect(),
    }
}

/// An instance in a list.
pub(super) fn info(view: &View) -> VmInfo {
    let instance = instance(view);
    VmInfo {
        vm_id: instance.id,
        user_id: user_of(view).unwrap_or_default().to_owned(),
        vm_name: instance.name,
        status: status_of(view).to_owned(),
        image: instance.image,
        created_at: instance.created_at.unix_timestamp(),
        ip_address: instance.private_ip.unwrap_or_default(),
    }
}

/// An instance by itself, without what it uses.
pub(super) fn described(view: &View, now: OffsetDateTime) -> VmStatusResponse {
    let instance = instance(view);
    let started = instance
        .started_at
        .map_or(0, OffsetDateTime::unix_timestamp);
    let labels: BTreeMap<String, String> = (instance.labels.into_iter())
        .filter(|(name, _)| name != USER)
        .collect();
    VmStatusResponse {
        vm_id: instance.id,
        user_id: user_of(view).unwrap_or_default().to_owned(),
        vm_name: instance.name,
        status: status_of(view).to_owned(),
        image: instance.image,
        created_at: instance.created_at.unix_timestamp(),
        started_at: started,
        uptime_seconds: match (status_of(view), started) {
            ("running", started) if started > 0 => (now.unix_timestamp() - started).max(0),
            _ => 0,
        },
        resource_usage: None,
        ip_address: instance.private_ip.unwrap_or_default(),
        labels,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn request() -> CreateVmRequest {
        CreateVmRequest {
            user_id: "user123".into(),
            image: "ubuntu:22.04".into(),
            ..CreateVmRequest::default()
        }
    }

    fn with_limits(cpu_count: i64, memory_mb: i64, disk_size_gb: i64) -> CreateVmRequest {
        CreateVmRequest {
            limits: Some(ResourceLimits {
                cpu_count,
                memory_mb,
                disk_size_gb,
            }),
            ..request()
        }
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let made = creation(request()).unwrap();
        assert_eq!(made.name, "user123-env");
        assert_eq!((made.vcpus, made.memory_mb), (Some(2), Some(4096)));
        assert_eq!(made.overlay_size.as_deref(), Some("20GB"));
        assert_eq!(made.stop_grace_seconds, Some(30));
        assert_eq!(made.labels["user_id"], "user123");
        // A limit of 0 is none, each by itself.
        let made = creation(with_limits(3, 0, 0)).unwrap();
        assert_eq!((made.vcpus, made.memory_mb), (Some(3), Some(4096)));
    }

    #[test]
    fn limits_have_bounds() {
        for (cpus, memory, disk) in [(1, 512, 5), (8, 16384, 100)] {
            let made = creation(with_limits(cpus, memory, disk)).unwrap();
            assert_eq!(made.vcpus.map(i64::from), Some(cpus));
            assert_eq!(made.memory_mb, Some(memory.unsigned_abs()));
            assert_eq!(made.memory_max_mb, Some(memory.unsigned_abs()));
            assert_eq!(made.overlay_size, Some(format!("{disk}GB")));
        }
        for (cpus, memory, disk, field) in [
            (9, 0, 0, "cpu_count"),
            (-1, 0, 0, "cpu_count"),
            (0, 511, 0, "memory_mb"),
            (0, 16385, 0, "memory_mb"),
            (0, i64::MIN, 0, "memory_mb"),
            (0, 0, 4, "disk_size_gb"),
            (0, 0, 101, "disk_size_gb"),
            (0, 0, i64::MAX, "disk_size_gb"),
        ] {
            let refused = creation(with_limits(cpus, memory, disk)).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains(field), "{}", refused.message());
        }
    }

    #[test]
    fn what_is_required_is_named() {
        for (request, field) in [
            (
                CreateVmRequest {
                    user_id: String::new(),
                    ..request()
                },
                "user_id",
            ),
            (
                CreateVmRequest {
                    user_id: "a\nb".into(),
                    ..request()
                },
                "user_id",
            ),
            (
                CreateVmRequest {
                    user_id: "u".repeat(121),
                    ..request()
                },
                "user_id",
            ),
            (
                CreateVmRequest {
                    image: String::new(),
                    ..request()
                },
                "image",
            ),
            (
                CreateVmRequest {
                    labels: [("user_id".to_owned(), "other".to_owned())].into(),
                    ..request()
                },
                "labels",
            ),
        ] {
            let refused = creation(request).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(
                refused.message().starts_with(field),
                "{}",
                refused.message()
            );
        }
    }

    #[test]
    fn ports_are_host_guest_and_protocol() {
        for (text, shown) in [
            ("8080:80", "8080:80"),
            ("8080:80/tcp", "8080:80"),
            ("53:5353/udp", "53:5353/udp"),
        ] {
            assert_eq!(port_text(&port(text).unwrap()), shown);
        }
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "65536:80",
            "80:80/sctp",
            "80:80/",
            "a:80",
            "+1:80",
            "1:2:3",
            " 80:80",
            "-80:80",
        ] {
            assert!(port(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_state_has_one_of_four_statuses() {
        for state in StateName::ALL {
            for wanted in [Wanted::Up, Wanted::Down] {
                for failed in [false, true] {
                    assert!(STATUSES.contains(&status(state, wanted, failed)));
                }
            }
        }
        assert_eq!(status(StateName::Stopped, Wanted::Down, true), "error");
        assert_eq!(status(StateName::Stopped, Wanted::Down, false), "stopped");
        assert_eq!(status(StateName::Stopped, Wanted::Up, false), "created");
        assert_eq!(status(StateName::Running, Wanted::Up, true), "running");
    }

    #[test]
    fn a_stop_has_its_time() {
        assert_eq!(stop_seconds(0).unwrap(), 30);
        assert_eq!(stop_seconds(1).unwrap(), 1);
        for wrong in [-1, 3601, i32::MIN] {
            assert!(stop_seconds(wrong).is_err(), "{wrong}");
        }
    }
}

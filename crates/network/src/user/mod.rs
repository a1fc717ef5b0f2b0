//! User mode: a network stack per guest (passt), without privileges.
//!
//! | traffic | way |
//! |---|---|
//! | guest to the outside, and to the host's own outer addresses | passt's sockets, as the server's user |
//! | guest to the host's loopback | dropped by the guard |
//! | anybody to a published port | our listening socket, then passt's on loopback, then the guest |
//! | guest to guest | not offered |
//!
//! Each guest has a guard process ([`guard`]) in a session of its own, recorded in the instance's directory, so that
//! guests keep their network while the server restarts. The guest is told its address: there is no DHCP.

mod filter;
mod frames;
pub(crate) mod fuzzing;
mod guard;
mod process;
mod queue;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use tokio::io::AsyncReadExt;
use warren_core::host::{NetworkMode, NetworkReport};
use warren_core::inventory::{Item, Kind, Part};
use warren_core::network::{MacAddress, PortMapping, Protocol};
use warren_core::ports::hypervisor::{Nic, NicBackend};
use warren_core::ports::network::{
    Attachment, AttachmentSpec, GuestNetwork, Network, NetworkUsage,
};
use warren_core::ports::{InstanceHome, Presence};
use warren_core::{Handle, InstallationId, PortError};
use warren_crashpoint::reached;
use warren_helper::Helper;

use crate::bridge::reachable;
use crate::error::from_helper;
use crate::publish::{self, PublishedPort};
use guard::{GuardConfig, Inner, read_record};

pub use guard::run as run_guard;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const PREFIX: u8 = 24;
const PASST: [&str; 3] = ["/usr/bin/passt", "/usr/local/bin/passt", "/bin/passt"];
/// How long a guard may take until guests can connect; a little more than it gives passt.
const START: Duration = Duration::from_secs(15);
/// A free port on loopback may be taken by others between finding and using it.
const ATTEMPTS: usize = 3;
const LOG_SHOWN: u64 = 4096;

/// How user mode is set up.
#[derive(Debug, Clone)]
pub struct UserConfig {
    /// Gives MAC addresses.
    pub installation: InstallationId,
    /// Where instances' directories are, named by handle: what the sweep looks through.
    pub instances: PathBuf,
    /// Name servers that guests are told (DNS_SERVER); those on loopback are left out.
    pub dns_servers: Vec<SocketAddr>,
    /// The program and leading arguments that run [`run_guard`] with the argument that follows them: the binary
    /// itself and its hidden subcommand.
    pub guard: Vec<std::ffi::OsString>,
}

/// The network of a host without privileges.
pub struct UserNetwork {
    config: UserConfig,
    passt: PathBuf,
    helper: Arc<dyn Helper>,
    live: Mutex<HashMap<Handle, Live>>,
}

struct Live {
    spec: AttachmentSpec,
    ports: HashMap<PortMapping, (u16, PublishedPort)>,
}

impl UserNetwork {
    /// Finds passt. Nothing is started before the first attachment. Needs a Tokio runtime.
    ///
    /// # Errors
    /// `program_missing`, Unsupported, with the way to get it.
    pub fn start(config: UserConfig, helper: Arc<dyn Helper>) -> Result<Self, PortError> {
        let passt = PASST
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .ok_or_else(|| {
                PortError::unsupported(
                    "program_missing",
                    "user-mode networking needs passt, which is not installed",
                )
                .with_hint("install the package passt, or run the server with privileges")
            })?;
        Ok(Self {
            config,
            passt,
            helper,
            live: Mutex::default(),
        })
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<Handle, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports of `spec` that this process does not hold for it yet.
    fn not_held(&self, spec: &AttachmentSpec) -> Vec<PortMapping> {
        let live = self.live();
        let own = live.get(&spec.home.handle);
        spec.ports
            .iter()
            .filter(|port| !own.is_some_and(|own| own.ports.contains_key(port)))
            .cloned()
            .collect()
    }

    /// A guard that runs and serves what is wanted: the one that is there, or a new one.
    async fn ensure_guard(&self, spec: &AttachmentSpec) -> Result<GuardConfig, PortError> {
        let directory = &spec.home.directory;
        let mac = MacAddress::of(&self.config.installation, &spec.home.handle);
        let wanted: Vec<(Protocol, u16)> = spec
            .ports
            .iter()
            .map(|port| (port.protocol, port.guest_port))
            .collect();
        if let Some(record) = read_record(directory) {
            let has: Vec<(Protocol, u16)> = record
                .config
                .ports
                .iter()
                .map(|port| (port.protocol, port.guest_port))
                .collect();
            if process::is_alive(&record.process)
                && guard::is_ready(directory)
                && has == wanted
                && record.config.mac == mac
            {
                return Ok(record.config);
            }
        }
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            end_guard(directory).await?;
            let config = GuardConfig {
                directory: directory.clone(),
                passt: self.passt.clone(),
                mac,
                address: ADDRESS,
                prefix: PREFIX,
                gateway: GATEWAY,
                ports: inner_ports(&wanted)
                    .map_err(|error| PortError::io("find free ports on loopback", error))?,
            };
            match self.start_guard(&config).await {
                Ok(()) => return Ok(config),
                // Only a port that was taken meanwhile is worth another try.
                Err(error) if error.message.contains("bind") => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| PortError::bug("passt_failed", "no attempt was made")))
    }

    async fn start_guard(&self, config: &GuardConfig) -> Result<(), PortError> {
        let failed = |error: io::Error| PortError::io("start the guest's network stack", error);
        let (program, leading) = self
            .config
            .guard
            .split_first()
            .ok_or_else(|| PortError::bug("guard_missing", "no program for the guard"))?;
        let text = serde_json::to_string(config)
            .map_err(|error| PortError::bug("guard_config", error.to_string()))?;
        let log = fs::File::create(log_path(config)).map_err(failed)?;
        let lock = guard::take_lock(&config.directory).map_err(failed)?;
        let mut child = tokio::process::Command::new(program)
            .args(leading)
            .arg(text)
            .env_clear()
            .current_dir("/")
            // Held by the guard for as long as it lives, however it ends: so one without a record is noticed.
            .stdin(lock)
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(false)
            .spawn()
            .map_err(failed)?;
        reached("user-network.guard-spawned");
        let mut said = String::new();
        let mut output = child.stdout.take().expect("stdout was asked for above");
        let ready = async {
            let mut byte = [0_u8; 1];
            while output.read(&mut byte).await? == 1 && byte[0] != b'\n' {
                said.push(char::from(byte[0]));
            }
            io::Result::Ok(())
        };
        let waited = tokio::time::timeout(START, ready).await;
        if matches!(waited, Ok(Ok(()))) && said == guard::READY {
            // Collected when it ends, so that it is no zombie while this process lives.
            tokio::spawn(async move { child.wait().await });
            reached("user-network.guard-ready");
            return Ok(());
        }
        let _ = child.kill().await;
        Err(stack_failure(&shown_log(&config.directory)))
    }

    fn attachment(
        &self,
        spec: &AttachmentSpec,
        config: &GuardConfig,
    ) -> Result<Attachment, PortError> {
        let address = Ipv4Net::new(config.address, config.prefix)
            .map_err(|error| PortError::bug("network_invalid", error.to_string()))?;
        Ok(Attachment {
            nic: Nic {
                mac: config.mac,
                backend: NicBackend::Stream {
                    socket: guard::socket_path(&spec.home.directory),
                },
            },
            guest: GuestNetwork {
                mac: config.mac,
                address,
                gateway: config.gateway,
                nameservers: reachable(&self.config.dns_servers),
                search: Vec::new(),
                mtu: 1500,
            },
        })
    }

    async fn release_directory(&self, handle: &Handle, directory: &Path) -> Result<(), PortError> {
        self.live().remove(handle);
        end_guard(directory).await?;
        reached("user-network.guard-ended");
        for path in guard::files(directory) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(PortError::io("remove a file of the guest's network", error));
                }
                Ok(()) | Err(_) => {}
            }
            reached("user-network.file-removed");
        }
        Ok(())
    }
}

#[async_trait]
impl Network for UserNetwork {
    async fn report(&self) -> Result<NetworkReport, PortError> {
        let mut warnings = vec![
            "guests cannot reach each other in user mode: publish a port, or run the server with privileges".to_owned(),
            "guests can reach what listens on this host's outer addresses (not its loopback), as its neighbours can".to_owned(),
        ];
        if reachable(&self.config.dns_servers).is_empty() {
            warnings.push(
                "no name server that guests can reach: set DNS_SERVER to one that is not on loopback".into(),
            );
        }
        Ok(NetworkReport {
            mode: NetworkMode::User,
            subnet: None,
            reason: "a user-mode network stack (passt) for each guest; no privileges needed".into(),
            warnings,
        })
    }

    async fn preflight(&self, spec: &AttachmentSpec) -> Result<(), PortError> {
        for mapping in self.not_held(spec) {
            publish::bind(&self.helper, &mapping)
                .await
                .map_err(from_helper)?;
        }
        Ok(())
    }

    async fn ensure(&self, spec: &AttachmentSpec) -> Result<Attachment, PortError> {
        let handle = &spec.home.handle;
        // Ports first: a taken one is the likeliest failure, and nothing has been started by then.
        if let Some(own) = self.live().get_mut(handle) {
            own.ports.retain(|port, _| spec.ports.contains(port));
        }
        let mut bound = HashMap::new();
        for mapping in self.not_held(spec) {
            let sockets = publish::bind(&self.helper, &mapping)
                .await
                .map_err(from_helper)?;
            bound.insert(mapping, sockets);
        }
        reached("user-network.ports-bound");
        let config = self.ensure_guard(spec).await?;
        let held = self.live().remove(handle);
        let mut ports = held.map(|own| own.ports).unwrap_or_default();
        for (mapping, inner) in spec.ports.iter().zip(&config.ports) {
            let sockets = match bound.remove(mapping) {
                Some(sockets) => sockets,
                None if ports
                    .get(mapping)
                    .is_some_and(|(to, _)| *to == inner.inner_port) =>
                {
                    continue;
                }
                // Held, but for a guard that is gone: its loopback port was another one.
                None => {
                    ports.remove(mapping);
                    self.rebind(mapping).await?
                }
            };
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, inner.inner_port));
            let port = publish::serve(sockets, mapping.protocol, target)
                .map_err(|error| PortError::io(format!("publish {mapping}"), error))?;
            ports.insert(mapping.clone(), (inner.inner_port, port));
        }
        let spec_kept = spec.clone();
        self.live().insert(
            handle.clone(),
            Live {
                spec: spec_kept,
                ports,
            },
        );
        self.attachment(spec, &config)
    }

    async fn observe(&self, spec: &AttachmentSpec) -> Result<Presence, PortError> {
        let known = self
            .live()
            .get(&spec.home.handle)
            .is_some_and(|own| own.spec == *spec);
        let directory = &spec.home.directory;
        let alive = read_record(directory).is_some_and(|record| process::is_alive(&record.process));
        Ok(if known && alive {
            Presence::Present
        } else if known || guard::files(directory).iter().any(|path| path.exists()) {
            Presence::Partial
        } else {
            Presence::Absent
        })
    }

    async fn release(&self, home: &InstanceHome) -> Result<(), PortError> {
        self.release_directory(&home.handle, &home.directory).await
    }

    async fn owned(&self) -> Result<Vec<Item>, PortError> {
        let record = |handle: Handle| {
            let path = guard::record_path(&self.config.instances.join(handle.as_str()));
            Item::new(
                Kind::File,
                path.display().to_string(),
                Part::Network { handle },
            )
        };
        Ok(self
            .attached_directories()?
            .into_iter()
            .map(record)
            .collect())
    }

    async fn sweep(&self, handle: &Handle) -> Result<(), PortError> {
        let directory = self.config.instances.join(handle.as_str());
        self.release_directory(handle, &directory).await
    }

    async fn tear_down(&self) -> Result<(), PortError> {
        let mut failed = None;
        for handle in self.attached_directories()? {
            if let Err(error) = self.sweep(&handle).await {
                failed.get_or_insert(error);
            }
        }
        self.live().clear();
        failed.map_or(Ok(()), Err)
    }

    async fn usage(&self, home: &InstanceHome) -> Result<NetworkUsage, PortError> {
        // Written by the guard; empty until guests may connect.
        let bytes = fs::read(guard::counters_path(&home.directory)).unwrap_or_default();
        let number = |at: usize| {
            bytes
                .get(at..at + 8)
                .and_then(|part| part.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        Ok(NetworkUsage {
            received: number(0),
            sent: number(8),
        })
    }
}

impl UserNetwork {
    /// The instances that have a guard's record, alive or not.
    fn attached_directories(&self) -> Result<Vec<Handle>, PortError> {
        let entries = match fs::read_dir(&self.config.instances) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(PortError::io("list instances' directories", error)),
        };
        let mut handles: Vec<Handle> = entries
            .filter_map(Result::ok)
            .filter(|entry| guard::record_path(&entry.path()).exists())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        handles.sort();
        Ok(handles)
    }

    /// Binds a port that was closed a moment ago: its task may need an instant to let go of it.
    async fn rebind(&self, mapping: &PortMapping) -> Result<Vec<std::os::fd::OwnedFd>, PortError> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        loop {
            match publish::bind(&self.helper, mapping).await {
                Ok(sockets) => return Ok(sockets),
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    return Err(from_helper(error));
                }
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

fn log_path(config: &GuardConfig) -> PathBuf {
    guard::log_path(&config.directory)
}

/// The last words in the log, cut to a size that can be shown.
fn shown_log(directory: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(guard::log_path(directory)) {
        let _ = file.take(LOG_SHOWN).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text)
        .lines()
        // Where no system log runs, this passt complains about each line.
        .filter(|line| !line.contains("to syslog") && !line.trim().is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

fn stack_failure(words: &str) -> PortError {
    let error = |code, message: String| PortError::unsupported(code, message);
    if words.contains("user namespace") || words.contains("isolation") {
        return error(
            "user_namespaces_missing",
            format!("passt could not make its user namespace: {words}"),
        )
        .with_hint("allow them (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces), or run the server with privileges");
    }
    if words.contains("routable interface") || words.contains("default route") {
        return error(
            "no_default_route",
            format!("passt found no network to give to guests: {words}"),
        )
        .with_hint("give this host an IPv4 default route");
    }
    PortError::retry("passt_failed", format!("passt did not start: {words}"))
}

async fn end_guard(directory: &Path) -> Result<(), PortError> {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || guard::end(&directory))
        .await
        .map_err(|error| PortError::bug("guard_kill", error.to_string()))?
        .map_err(|error| PortError::io("end the guest's network stack", error))
}

/// A free port on loopback for each wanted one, all different.
fn inner_ports(wanted: &[(Protocol, u16)]) -> io::Result<Vec<Inner>> {
    enum Held {
        Tcp(TcpListener),
        Udp(UdpSocket),
    }
    // All are held until all are found.
    let mut held = Vec::with_capacity(wanted.len());
    let mut ports = Vec::with_capacity(wanted.len());
    for (protocol, guest_port) in wanted {
        let socket = match protocol {
            Protocol::Tcp => Held::Tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?),
            Protocol::Udp => Held::Udp(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?),
        };
        let address = match &socket {
            Held::Tcp(socket) => socket.local_addr()?,
            Held::Udp(socket) => socket.local_addr()?,
        };
        held.push(socket);
        ports.push(Inner {
            protocol: *protocol,
            inner_port: address.port(),
            guest_port: *guest_port,
        });
    }
    Ok(ports)
}

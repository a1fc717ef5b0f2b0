//! The port on QEMU.

use super::QemuConfig;
use super::argv::{self, Beginning, Board, Descriptors, NicDescriptor, Platform};
use super::platform::{Resolved, Resolver};
use super::qmp::{self, QmpError, RunState};
use crate::process::{
    self, Files, Found, HugePages, Launch, Lock, ProcessError, Record, Stage, Watched, locate,
};
use crate::sockets;
use async_trait::async_trait;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::{
    Accelerator, HOST_DISK_FULL, Hypervisor, HypervisorKind, HypervisorReport, MachineConfig,
    NicBackend, Pause, ProcessIdentity, Room, Suspend, VMM_NOT_RUNNING, VmmSeen, VmmUsage,
};
use warren_core::{ErrorClass, PortError};
use warren_crashpoint::reached;
use warren_helper::{Helper, HelperExt, Verb};

/// How long an observer waits for QEMU's state before it says what the process shows.
const OBSERVE: Duration = Duration::from_millis(500);
/// How long pause and resume wait for QEMU.
const COMMAND: Duration = Duration::from_secs(5);
/// How long a killed process may take to go: writing back what a dying process has dirtied takes a while.
const KILL: Duration = Duration::from_secs(20);
/// How long a start waits for the lock of a VMM that was just destroyed, or is being looked at.
const LOCK: Duration = Duration::from_millis(500);
/// How often a running VMM's log is looked at.
const TRIM: Duration = Duration::from_secs(60);
/// A disk with less room than this is as good as full: a guest that is continued would stop again at once. Bytes.
const LEAST_ROOM: u64 = 16 << 20;

/// The driver for QEMU's `microvm`.
pub struct Qemu {
    config: Arc<QemuConfig>,
    resolver: Resolver,
    helper: Arc<dyn Helper>,
}

impl Qemu {
    /// A driver. Finds out nothing yet: [`Hypervisor::probe`] does, or the first start.
    pub fn new(config: QemuConfig, helper: Arc<dyn Helper>) -> Self {
        Qemu {
            config: Arc::new(config),
            resolver: Resolver::default(),
            helper,
        }
    }

    pub(super) async fn resolved(&self) -> Result<Arc<Resolved>, PortError> {
        Ok(self.resolver.get(&self.config).await?)
    }

    /// Starts a QEMU for a home that has none.
    pub(super) async fn begin(
        &self,
        machine: &MachineConfig,
        resolved: Arc<Resolved>,
        how: (Board, Beginning),
    ) -> Result<ProcessIdentity, PortError> {
        let lock = take_lock(&machine.home).await?;
        reached("qemu.lock-taken");
        let nic = self.nic(machine).await;
        let machine = machine.clone();
        let config = self.config.clone();
        let runtime = tokio::runtime::Handle::current();
        blocking(move || {
            let started = nic.and_then(|nic| {
                let nic = nic.as_ref();
                start(
                    &machine,
                    &resolved,
                    how,
                    &config.extra_cmdline,
                    nic,
                    &lock,
                    &runtime,
                )
            });
            if started.is_err() && !matches!(locate(&machine.home), Ok(Found::Alive(_))) {
                // What failed before there was a VMM leaves nothing.
                Files::clear(&machine.home.directory)?;
            }
            started
        })
        .await
    }

    async fn nic(&self, machine: &MachineConfig) -> Result<Option<(NicKind, OwnedFd)>, PortError> {
        let Some(nic) = &machine.nic else {
            return Ok(None);
        };
        match &nic.backend {
            NicBackend::Tap { name } => {
                Ok(Some((NicKind::Tap, self.open_tap(machine, name).await?)))
            }
            NicBackend::Stream { socket } => {
                let stream = sockets::connect_path(socket).map_err(|error| {
                    PortError::io("could not connect to the instance's network", error)
                })?;
                Ok(Some((NicKind::Stream, stream)))
            }
        }
    }

    async fn open_tap(&self, machine: &MachineConfig, name: &str) -> Result<OwnedFd, PortError> {
        let fail = |error: &dyn std::fmt::Display| {
            PortError::retry(
                "tap_unavailable",
                format!("could not open network device {name}: {error}"),
            )
        };
        let installation = warren_helper::Installation::new(machine.home.installation.as_str())
            .map_err(|error| fail(&error))?;
        let handle = warren_helper::Handle::new(machine.home.handle.as_str())
            .map_err(|error| fail(&error))?;
        if handle.tap_name(&installation) != name {
            return Err(PortError::invalid(
                "tap_not_ours",
                format!("network device {name} is not the one of this instance"),
            ));
        }
        self.helper
            .descriptor(Verb::OpenTap {
                installation,
                handle,
            })
            .await
            .map_err(|error| fail(&error).with_source(error))
    }

    async fn process(&self, home: &InstanceHome) -> Result<Option<ProcessIdentity>, PortError> {
        Ok(match located(home).await? {
            Found::Alive(process) => Some(process),
            Found::NeverStarted | Found::Remains | Found::Nothing => None,
        })
    }

    pub(super) async fn running(&self, home: &InstanceHome) -> Result<ProcessIdentity, PortError> {
        self.process(home).await?.ok_or_else(not_running)
    }

    /// Sends a command that may be repeated, and says how the machine is afterwards.
    async fn command(
        &self,
        home: &InstanceHome,
        command: &'static str,
        wanted: RunState,
    ) -> Result<(), PortError> {
        self.running(home).await?;
        qmp::ask(&home.directory, command, COMMAND)
            .await
            .map_err(qmp_failed)?;
        reached("qemu.commanded");
        let state = qmp::run_state(&home.directory, COMMAND)
            .await
            .map_err(qmp_failed)?;
        match (state, wanted) {
            (RunState::Stalled, RunState::Running) => Err(PortError::new(
                ErrorClass::NoSpace,
                HOST_DISK_FULL,
                "the host's disk is full: the guest cannot go on",
            )),
            // Its processors are stopped.
            (RunState::Stalled, _) => Ok(()),
            (state, wanted) if state == wanted => Ok(()),
            (RunState::Running | RunState::Paused | RunState::Off, _) => Err(PortError::conflict(
                "guest_off",
                "the guest has shut down".to_owned(),
            )),
        }
    }
}

#[derive(Clone, Copy)]
enum NicKind {
    Tap,
    Stream,
}

fn not_running() -> PortError {
    PortError::not_found(VMM_NOT_RUNNING, "the instance's VMM does not run")
}

pub(super) fn qmp_failed(error: QmpError) -> PortError {
    PortError::retry("vmm_no_answer", format!("the VMM did not do it: {error}")).with_source(error)
}

/// Runs file and process work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| PortError::bug("vmm_task_failed", "internal error").with_source(error))?
}

async fn located(home: &InstanceHome) -> Result<Found, PortError> {
    let home = home.clone();
    blocking(move || Ok(locate(&home)?)).await
}

/// Takes the lock. Waits a moment for one that is about to go: an observer holds it for a blink, and a dying
/// process's copies are closed shortly after its pidfd says that it is dead.
async fn take_lock(home: &InstanceHome) -> Result<Lock, PortError> {
    let deadline = tokio::time::Instant::now() + LOCK;
    let mut pause = Duration::from_millis(1);
    loop {
        match Lock::take(&home.directory) {
            Ok(lock) => return Ok(lock),
            Err(ProcessError::Busy) => {
                let runs = matches!(located(home).await?, Found::Alive(_));
                if runs || tokio::time::Instant::now() >= deadline {
                    return Err(ProcessError::Busy.into());
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn config_digest(machine: &MachineConfig) -> String {
    let bytes = serde_json::to_vec(machine).unwrap_or_default();
    crate::cache::digest(&bytes)
}

/// From an empty home directory to a running process. The lock is held all the while.
fn start(
    machine: &MachineConfig,
    resolved: &Resolved,
    (board, beginning): (Board, Beginning),
    extra_cmdline: &[String],
    nic: Option<&(NicKind, OwnedFd)>,
    lock: &Lock,
    runtime: &tokio::runtime::Handle,
) -> Result<ProcessIdentity, PortError> {
    let mut record = Record {
        home: machine.home.clone(),
        kind: HypervisorKind::QemuMicrovm,
        accelerator: resolved.decision.accelerator,
        config_sha256: config_digest(machine),
        stage: Stage::Starting,
    };
    let arguments = Arguments {
        board,
        beginning,
        extra_cmdline,
    };
    let process = launch(machine, resolved, &arguments, nic, lock, &record)?;
    reached("qemu.spawned");
    process::reap_at_end(&process, runtime);
    record.stage = Stage::Started {
        process: process.clone(),
    };
    // Should this fail (a full disk), the VMM runs and is found by its lock and its arguments.
    record.write()?;
    reached("qemu.identity-written");
    Ok(process)
}

/// What the arguments say beyond the machine and the host.
struct Arguments<'a> {
    board: Board,
    beginning: Beginning,
    extra_cmdline: &'a [String],
}

/// Everything before there is a process, and the process.
fn launch(
    machine: &MachineConfig,
    resolved: &Resolved,
    told: &Arguments<'_>,
    nic: Option<&(NicKind, OwnedFd)>,
    lock: &Lock,
    intent: &Record,
) -> Result<ProcessIdentity, PortError> {
    let directory = &machine.home.directory;
    let bind = |name| {
        sockets::listen(directory, name)
            .map_err(|error| PortError::io(format_args!("could not listen on {name}"), error))
    };
    let qmp = bind(Files::QMP)?;
    let events = bind(Files::EVENTS)?;
    let channel = bind(Files::CHANNEL)?;
    let console = bind(Files::CONSOLE)?;
    reached("qemu.sockets-bound");
    let descriptors = Descriptors {
        qmp: qmp.as_raw_fd(),
        events: events.as_raw_fd(),
        channel: channel.as_raw_fd(),
        console: console.as_raw_fd(),
        nic: nic.map(|(kind, descriptor)| match kind {
            NicKind::Tap => NicDescriptor::Tap(descriptor.as_raw_fd()),
            NicKind::Stream => NicDescriptor::Stream(descriptor.as_raw_fd()),
        }),
    };
    let platform = Platform {
        accelerator: resolved.decision.accelerator,
        board: told.board,
        kernel: &resolved.kernel.image,
        initramfs: &resolved.initramfs,
        timestamp: resolved.timestamp,
        extra_cmdline: told.extra_cmdline,
        beginning: told.beginning,
    };
    let arguments = argv::arguments(machine, &platform, &descriptors)?;
    intent.write()?;
    reached("qemu.intent-written");
    let mut inherited = vec![
        descriptors.qmp,
        descriptors.events,
        descriptors.channel,
        descriptors.console,
        lock.descriptor().as_raw_fd(),
    ];
    inherited.extend(nic.map(|(_, descriptor)| descriptor.as_raw_fd()));
    let process = process::launch(&Launch {
        program: &resolved.binary,
        arguments: &arguments,
        log: &directory.join(Files::LOG),
        inherited: &inherited,
        begun: lock.descriptor().as_raw_fd(),
        // A guest's boot is as fast without, and its memory takes less room.
        huge_pages: match resolved.decision.accelerator {
            Accelerator::Kvm => HugePages::AsHost,
            Accelerator::Tcg | Accelerator::None => HugePages::Never,
        },
    })?;
    Ok(process)
}

#[async_trait]
impl Hypervisor for Qemu {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::QemuMicrovm
    }

    async fn probe(&self) -> Result<HypervisorReport, PortError> {
        let resolved = self.resolver.get(&self.config).await?;
        Ok(HypervisorReport {
            kind: self.kind(),
            version: resolved.decision.version.clone(),
            binary: resolved.binary.clone(),
            accelerator: resolved.decision.accelerator,
            reason: resolved.decision.reason.clone(),
            kernel: resolved.kernel.description.clone(),
            capabilities: ["pause", "standby", "balloon"].map(str::to_owned).to_vec(),
        })
    }

    async fn start(&self, machine: &MachineConfig) -> Result<ProcessIdentity, PortError> {
        let resolved = self.resolved().await?;
        let how = (resolved.board, Beginning::Boot);
        self.begin(machine, resolved, how).await
    }

    async fn observe(&self, home: &InstanceHome) -> Result<VmmSeen, PortError> {
        let process = match located(home).await? {
            Found::Alive(process) => process,
            Found::NeverStarted => return Ok(VmmSeen::NeverStarted),
            Found::Remains => return Ok(VmmSeen::Dead),
            Found::Nothing => return Ok(VmmSeen::Absent),
        };
        match qmp::run_state(&home.directory, OBSERVE).await {
            Ok(RunState::Running) => Ok(VmmSeen::Running { process }),
            Ok(RunState::Paused) => Ok(VmmSeen::Paused { process }),
            Ok(RunState::Stalled) => Ok(VmmSeen::Stalled {
                process,
                room: room(&home.directory),
            }),
            Ok(RunState::Off) => Ok(VmmSeen::ShutDown { process }),
            Err(error) => match process::liveness(&process) {
                process::Liveness::Alive => {
                    // It lives and does not answer: busy or hung. What is certain is that it runs.
                    tracing::debug!(handle = %home.handle, %error, "no answer from QMP");
                    Ok(VmmSeen::Running { process })
                }
                _ => Ok(VmmSeen::Dead),
            },
        }
    }

    async fn open_channel(&self, home: &InstanceHome) -> Result<OwnedFd, PortError> {
        open(self, home, Files::CHANNEL).await
    }

    async fn open_console(&self, home: &InstanceHome) -> Result<OwnedFd, PortError> {
        open(self, home, Files::CONSOLE).await
    }

    async fn wait_exit(&self, home: &InstanceHome) -> Result<(), PortError> {
        let Some(process) = self.process(home).await? else {
            return Ok(());
        };
        let Some(watched) = Watched::open(&process)? else {
            return Ok(());
        };
        let exited = watched.exited();
        tokio::pin!(exited);
        let log = home.directory.join(Files::LOG);
        loop {
            match tokio::time::timeout(TRIM, &mut exited).await {
                Ok(ended) => return Ok(ended?),
                Err(_) => trim(&log),
            }
        }
    }

    async fn wait_stall(&self, home: &InstanceHome) {
        match qmp::stalled(&home.directory, COMMAND).await {
            Ok(()) => {}
            Err(error) => {
                // Started by an older Warren, or gone.
                tracing::debug!(handle = %home.handle, %error, "events cannot be waited for");
                std::future::pending().await
            }
        }
    }

    async fn destroy(&self, home: &InstanceHome) -> Result<(), PortError> {
        if let Some(process) = self.process(home).await?
            && let Some(watched) = Watched::open(&process)?
        {
            watched.kill()?;
            watched.exited_within(KILL).await?;
            reached("qemu.killed");
        }
        let directory = home.directory.clone();
        blocking(move || {
            trim(&directory.join(Files::LOG));
            Files::clear(&directory)?;
            reached("qemu.cleared");
            Ok(())
        })
        .await
    }

    async fn usage(&self, home: &InstanceHome) -> Result<VmmUsage, PortError> {
        let process = self.running(home).await?;
        process::usage(&process).ok_or_else(not_running)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }
}

/// Whether the disk that instances are on has room. Where that cannot be said, trying is all there is.
pub(super) fn room(directory: &Path) -> Room {
    match rustix::fs::statvfs(directory) {
        Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST_ROOM => Room::None,
        Ok(_) | Err(_) => Room::Some,
    }
}

fn trim(log: &Path) {
    if let Err(error) = process::trim(log) {
        tracing::warn!(path = %log.display(), %error, "could not shorten the VMM's log");
    }
}

async fn open(qemu: &Qemu, home: &InstanceHome, name: &'static str) -> Result<OwnedFd, PortError> {
    match sockets::connect(&home.directory, name) {
        Ok(stream) => Ok(stream),
        Err(error) => {
            qemu.running(home).await?;
            Err(PortError::io(
                format_args!("could not connect to {name} of the instance"),
                error,
            ))
        }
    }
}

#[async_trait]
impl Pause for Qemu {
    async fn pause(&self, home: &InstanceHome) -> Result<(), PortError> {
        self.command(home, "stop", RunState::Paused).await
    }

    async fn resume(&self, home: &InstanceHome) -> Result<(), PortError> {
        self.command(home, "cont", RunState::Running).await
    }
}

//! What Warren asks of a hypervisor. A power that not every hypervisor has is an optional object
//! ([`Hypervisor::pause`]), so that its absence is a value and not a failure at run time.

use super::InstanceHome;
use crate::PortError;
use crate::network::MacAddress;
use crate::units::MemoryMib;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which hypervisor: the driver's name on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HypervisorKind {
    /// QEMU's `microvm` machine: fast to boot, no hotplug.
    QemuMicrovm,
    /// QEMU's `q35` machine.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
    /// Apple's Virtualization.framework.
    Vz,
    /// No machine at all: the guest protocol answered in-process, for tests.
    Fake,
}

impl std::fmt::Display for HypervisorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            HypervisorKind::QemuMicrovm => "qemu-microvm",
            HypervisorKind::Qemu => "qemu",
            HypervisorKind::CloudHypervisor => "cloud-hypervisor",
            HypervisorKind::Firecracker => "firecracker",
            HypervisorKind::Vz => "vz",
            HypervisorKind::Fake => "fake",
        })
    }
}

/// How guests' instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor's virtualization, by way of `/dev/kvm`.
    Kvm,
    /// QEMU's emulation: works everywhere, slower.
    Tcg,
    /// Nothing is executed (the fake).
    None,
}

/// What a driver found out about this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypervisorReport {
    /// Which.
    pub kind: HypervisorKind,
    /// The VMM's own version.
    pub version: String,
    /// Its binary.
    pub binary: PathBuf,
    /// What it will use.
    pub accelerator: Accelerator,
    /// Why that one, in a sentence: shown by `warren doctor`.
    pub reason: String,
    /// The guest kernel in use and where it came from, in a sentence.
    pub kernel: String,
    /// Powers by name: `pause`, `standby`, `snapshot`, `hotplug`, `balloon`, `vsock`.
    pub capabilities: Vec<String>,
}

/// The identity of a process, safe against reuse of its pid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The pid at the time.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot at which it started.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` at the time.
    pub boot_id: String,
}

/// A disk of a machine. The guest's agent sees them in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// A raw file; never probed for another format.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: DiskAccess,
}

/// Whether the guest may write to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskAccess {
    /// Shared, never written.
    ReadOnly,
    /// This instance's own.
    ReadWrite,
}

/// What a machine's network interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NicBackend {
    /// A TAP device of this name, opened by way of the helper.
    Tap {
        /// The device's name.
        name: String,
    },
    /// A Unix stream socket that carries Ethernet frames with a 32-bit length before each (passt's and
    /// QEMU's `stream` netdev format).
    Stream {
        /// The listening socket.
        socket: PathBuf,
    },
}

/// A machine's network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address.
    pub mac: MacAddress,
    /// Where it leads.
    pub backend: NicBackend,
}

/// Everything a driver needs to start a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Whose machine, and where its sockets and records go.
    pub home: InstanceHome,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory at boot.
    pub memory: MemoryMib,
    /// In order: the read-only root, then the writable layer, then volumes.
    pub disks: Vec<Disk>,
    /// The network interface, if any.
    pub nic: Option<Nic>,
    /// Added to the guest kernel's command line, each without spaces: what the guest's agent must know
    /// before its channel is open (`warren.attach=<key>`).
    pub boot_args: Vec<String>,
}

/// What can be seen of a machine from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "seen", rename_all = "snake_case")]
pub enum VmmSeen {
    /// No process and nothing left of one.
    Absent,
    /// No process, and there was none: what a start that was broken off left. Nothing has run.
    NeverStarted,
    /// The process is gone; records or sockets of it are still there.
    Dead,
    /// It runs.
    Running {
        /// Which process.
        process: ProcessIdentity,
    },
    /// Its processors are stopped.
    Paused {
        /// Which process.
        process: ProcessIdentity,
    },
    /// The machine has stopped itself in a write of the guest: the host's disk has no room for it. Continued, it tries the
    /// write again; nothing is lost.
    Stalled {
        /// Which process.
        process: ProcessIdentity,
        /// Whether it is worth continuing.
        room: Room,
    },
    /// The guest is off; the process is still there.
    ShutDown {
        /// Which process.
        process: ProcessIdentity,
    },
}

/// Whether the host's disk has room for what guests write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Room {
    /// It is as good as full.
    None,
    /// There is some.
    Some,
}

/// The code of what is said of an instance that is [`VmmSeen::Stalled`].
pub const HOST_DISK_FULL: &str = "host_disk_full";

/// The code of what asks something of a VMM that has ended, or that never was.
pub const VMM_NOT_RUNNING: &str = "vmm_not_running";

/// Resources a VMM process has used, as its host counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct VmmUsage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub memory_rss: u64,
    /// Virtual memory, bytes.
    pub memory_vms: u64,
}

/// A driver.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Which hypervisor this is.
    fn kind(&self) -> HypervisorKind;
    /// Finds out whether and how it works here. May take a second the first time after the host's boot;
    /// remembered after that.
    async fn probe(&self) -> Result<HypervisorReport, PortError>;
    /// Starts a machine, detached from this process. Its identity is recorded in the home directory;
    /// returns as soon as the VMM process exists, with the guest booting. If a VMM of this home already
    /// runs it is a conflict.
    async fn start(&self, machine: &MachineConfig) -> Result<ProcessIdentity, PortError>;
    /// What there is now. Never changes anything. Also finds a VMM whose record is missing.
    async fn observe(&self, home: &InstanceHome) -> Result<VmmSeen, PortError>;
    /// A connected byte stream to the guest's agent: non-blocking, close-on-exec.
    async fn open_channel(&self, home: &InstanceHome) -> Result<OwnedFd, PortError>;
    /// A connected byte stream of the guest's serial console (output only), for the console log.
    async fn open_console(&self, home: &InstanceHome) -> Result<OwnedFd, PortError>;
    /// Resolves when the VMM process of `home` is gone; at once if there is none.
    async fn wait_exit(&self, home: &InstanceHome) -> Result<(), PortError>;
    /// Resolves when the machine is [`VmmSeen::Stalled`]; at once when it is. Where the hypervisor does not tell, never:
    /// then [`Hypervisor::observe`] shows it, later.
    async fn wait_stall(&self, _home: &InstanceHome) {
        std::future::pending().await
    }
    /// Ends the VMM (kill) and removes what it left in the home directory but disks and logs. Succeeds
    /// when there is nothing. Never signals a process whose identity does not match.
    async fn destroy(&self, home: &InstanceHome) -> Result<(), PortError>;
    /// Resources used so far.
    async fn usage(&self, home: &InstanceHome) -> Result<VmmUsage, PortError>;
    /// Stopping and continuing processors, where the hypervisor can.
    fn pause(&self) -> Option<&dyn Pause> {
        None
    }
    /// Saving a paused machine to files and bringing it back, where the hypervisor can.
    fn suspend(&self) -> Option<&dyn Suspend> {
        None
    }
    /// A hardware power button, where the machine has one.
    fn power_button(&self) -> Option<&dyn PowerButton> {
        None
    }
}

/// Stopping and continuing a machine's processors.
#[async_trait]
pub trait Pause: Send + Sync {
    /// Stops the processors; nothing to do when they are stopped.
    async fn pause(&self, home: &InstanceHome) -> Result<(), PortError>;
    /// Continues; nothing to do when they run.
    async fn resume(&self, home: &InstanceHome) -> Result<(), PortError>;
}

/// Saving a paused machine to files, and bringing it back: also by another process, and after the host has been off.
#[async_trait]
pub trait Suspend: Send + Sync {
    /// Writes all of a paused machine but its disks into `directory`, which is there and empty. The machine stays as it is and
    /// can be resumed, also after a failure. Where the disk is full that is a NoSpace error. Files are whole, not yet durable.
    async fn save(&self, home: &InstanceHome, directory: &Path) -> Result<(), PortError>;
    /// Starts a VMM with what `directory` holds; its processors stay stopped until they are resumed. `machine` is as it was
    /// saved. What this host's hypervisor cannot bring back is an Unsupported error, and no VMM is started for it. A conflict
    /// where a VMM of this home runs.
    async fn restore(
        &self,
        machine: &MachineConfig,
        directory: &Path,
    ) -> Result<ProcessIdentity, PortError>;
}

/// A power button, for guests without our agent.
#[async_trait]
pub trait PowerButton: Send + Sync {
    /// Presses it.
    async fn press(&self, home: &InstanceHome) -> Result<(), PortError>;
}

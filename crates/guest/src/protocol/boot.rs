//! What a guest is told once, when its session first comes up: everything it needs to become the
//! instance it is meant to be. The root file system is not in it: the kernel command line names the
//! disks, so that they are mounted while the host is still attaching.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Everything a guest is configured with. Sent as [`crate::protocol::ControlRequest::Boot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// The instance's id. A second boot with the same id is answered with the present state, with
    /// another one it is refused.
    pub instance_id: String,
    /// The host name, also written to `/etc/hostname`.
    pub hostname: String,
    /// Lines of `/etc/hosts` beyond the guest's own names.
    #[serde(default)]
    pub hosts: Vec<HostEntry>,
    /// `nameserver` lines of `/etc/resolv.conf`; with none, the image's file is left alone.
    #[serde(default)]
    pub nameservers: Vec<IpAddr>,
    /// The `search` line of `/etc/resolv.conf`.
    #[serde(default)]
    pub search: Vec<String>,
    /// Interfaces to configure; without any, only loopback is up.
    #[serde(default)]
    pub networks: Vec<NetworkConfig>,
    /// Further file systems, mounted in this order before the workload starts.
    #[serde(default)]
    pub mounts: Vec<MountConfig>,
    /// What to run.
    pub workload: WorkloadConfig,
    /// Lines that root's `authorized_keys` is to have.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
    /// The host's clock at sending, in nanoseconds since 1970; 0 leaves the guest's clock alone.
    #[serde(default)]
    pub unix_nanos: u64,
    /// Seed for the kernel's random generator, credited in full (at most 512 bytes).
    #[serde(default)]
    pub entropy: Vec<u8>,
    /// How long the guest stays up after the workload's exit while no host has acknowledged it.
    #[serde(default = "default_linger_millis")]
    pub exit_linger_millis: u64,
}

fn default_linger_millis() -> u64 {
    60_000
}

/// One line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The address.
    pub address: IpAddr,
    /// Its names, the canonical one first.
    pub names: Vec<String>,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Which interface, by hardware address (`aa:bb:cc:dd:ee:ff`); without one, the first that is
    /// not loopback.
    #[serde(default)]
    pub mac: Option<String>,
    /// Addresses to give it.
    pub addresses: Vec<InterfaceAddress>,
    /// Default routes, at most one per family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Its MTU; without one, the device's own.
    #[serde(default)]
    pub mtu: Option<u32>,
}

/// An address with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Its prefix's length in bits.
    pub prefix: u8,
}

/// A file system to mount in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountConfig {
    /// The device (`/dev/vdc`), or any word for file systems that have none (`tmpfs`).
    pub source: String,
    /// Where; made if missing.
    pub target: String,
    /// The file system's type.
    pub fstype: String,
    /// Whether the guest may write to it.
    #[serde(default)]
    pub access: MountAccess,
}

/// Whether a mount can be written to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountAccess {
    /// Reads and writes.
    #[default]
    ReadWrite,
    /// Only reads.
    ReadOnly,
}

/// The instance's main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadConfig {
    /// Program and arguments (the image's entrypoint and command, merged).
    pub command: Vec<String>,
    /// Environment; `PATH`, `HOME` and `HOSTNAME` (and `TERM` on a terminal) get values where it has none.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory, made if missing; empty means `/`.
    #[serde(default)]
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`, looked up in the image's own files; empty means root.
    #[serde(default)]
    pub user: String,
    /// Sent at shutdown where the host names none: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
    #[serde(default)]
    pub stop_signal: String,
    /// Run it on a terminal of this size.
    #[serde(default)]
    pub terminal: Option<crate::protocol::Terminal>,
    /// Where its standard input comes from.
    #[serde(default)]
    pub stdin: StdinMode,
}

/// Where a workload's standard input comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdinMode {
    /// `/dev/null`.
    #[default]
    Null,
    /// The host, by [`crate::protocol::Open::Input`].
    Attached,
}

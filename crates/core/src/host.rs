//! What a host says about itself.

use crate::network::Subnet;
use crate::ports::hypervisor::HypervisorReport;
use crate::units::MemoryMib;
use serde::{Deserialize, Serialize};

/// How guests are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A bridge, TAPs and NAT: needs privileges.
    Bridge,
    /// A user-mode stack per guest: needs none, guests do not see each other.
    User,
    /// Guests have no interface.
    None,
}

/// The state of this host's guest network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// How guests are connected.
    pub mode: NetworkMode,
    /// The pool addresses come from; `None` where each guest has a network to itself.
    pub subnet: Option<Subnet>,
    /// In words: what was chosen and why.
    pub reason: String,
    /// In words: what will not work here and what to do about it.
    pub warnings: Vec<String>,
}

/// A host as placement and `warren doctor` see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Logical processors.
    pub cpus: u32,
    /// Physical memory.
    pub memory: MemoryMib,
    /// Free bytes where instances' disks go.
    pub disk_free: u64,
    /// Total bytes there.
    pub disk_total: u64,
    /// Hypervisors that work here, best first.
    pub hypervisors: Vec<HypervisorReport>,
    /// Hypervisors that do not, each with the reason and the next step.
    pub unusable: Vec<(String, String)>,
    /// The guest network.
    pub network: NetworkReport,
}

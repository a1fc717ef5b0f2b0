//! What an instance uses, on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warren_core::instance::InstanceIntent;
use warren_core::ports::host_link::Usage;

/// Resources an instance uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceStats {
    /// Whose.
    pub instance_id: String,
    /// Whose.
    pub instance_name: String,
    /// Processor time of its machine.
    pub cpu_seconds: f64,
    /// Resident memory of its machine.
    pub memory_rss_bytes: u64,
    /// Virtual memory of its machine.
    pub memory_vms_bytes: u64,
    /// Received by the guest.
    pub network_rx_bytes: u64,
    /// Sent by the guest.
    pub network_tx_bytes: u64,
    /// Virtual processors.
    pub allocated_vcpus: u32,
    /// Memory at boot.
    pub allocated_memory_bytes: u64,
    /// Resident memory over memory at boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_utilization_ratio: Option<f64>,
    /// Memory in use as the guest sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_memory_used_bytes: Option<u64>,
    /// What its writable layer takes on the host.
    pub disk_bytes: u64,
    /// What the guest itself says; absent while it cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStats>,
}

/// Resources as a guest counts them, since its boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestStats {
    /// How long it has been up.
    pub uptime_seconds: f64,
    /// Time that its processors were not idle.
    pub cpu_seconds: f64,
    /// Memory that its kernel manages.
    pub memory_total_bytes: u64,
    /// Memory that could be had without swapping.
    pub memory_available_bytes: u64,
    /// Size of its writable file system.
    pub disk_total_bytes: u64,
    /// Space that is left on it.
    pub disk_free_bytes: u64,
    /// Read from its disks.
    pub disk_read_bytes: u64,
    /// Written to its disks.
    pub disk_written_bytes: u64,
    /// Processes and threads.
    pub tasks: u32,
}

/// The wire form of an instance's resources.
pub fn of(intent: &InstanceIntent, usage: &Usage) -> InstanceStats {
    let allocated = intent.spec.memory.bytes();
    InstanceStats {
        instance_id: intent.id.to_string(),
        instance_name: intent.spec.name.clone(),
        cpu_seconds: usage.cpu_seconds,
        memory_rss_bytes: usage.memory_rss,
        memory_vms_bytes: usage.memory_vms,
        network_rx_bytes: usage.network_received,
        network_tx_bytes: usage.network_sent,
        allocated_vcpus: intent.spec.vcpus,
        allocated_memory_bytes: allocated,
        #[expect(
            clippy::cast_precision_loss,
            reason = "a ratio for people: 52 bits are plenty"
        )]
        memory_utilization_ratio: (allocated > 0)
            .then(|| usage.memory_rss as f64 / allocated as f64),
        guest_memory_used_bytes: usage.guest.map(|guest| guest.memory_used()),
        disk_bytes: usage.disk,
        guest: usage.guest.map(|guest| GuestStats {
            uptime_seconds: guest.uptime_seconds,
            cpu_seconds: guest.cpu_seconds,
            memory_total_bytes: guest.memory_total,
            memory_available_bytes: guest.memory_available,
            disk_total_bytes: guest.disk_total,
            disk_free_bytes: guest.disk_free,
            disk_read_bytes: guest.disk_read,
            disk_written_bytes: guest.disk_written,
            tasks: guest.tasks,
        }),
    }
}

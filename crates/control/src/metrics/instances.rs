//! What each instance uses, as of one scrape: nothing is kept of it, so an instance that is gone is gone from here too.

use super::gauge;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use warren_api::InstanceStats;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabels {
    id: String,
    name: String,
}

type Seconds = Family<InstanceLabels, Counter<f64, AtomicU64>>;
type Bytes = Family<InstanceLabels, Counter>;
type Level = Family<InstanceLabels, Gauge>;

#[derive(Default)]
struct Families {
    cpu: Seconds,
    guest_cpu: Seconds,
    memory: Level,
    guest_memory: Level,
    disk: Level,
    disk_read: Bytes,
    disk_written: Bytes,
    received: Bytes,
    sent: Bytes,
    tasks: Level,
}

impl Families {
    fn add(&self, stats: &InstanceStats) {
        let labels = InstanceLabels {
            id: stats.instance_id.clone(),
            name: stats.instance_name.clone(),
        };
        let level = |family: &Level, value: u64| {
            family.get_or_create(&labels).set(gauge(value));
        };
        let count = |family: &Bytes, value: u64| {
            family.get_or_create(&labels).inc_by(value);
        };
        let seconds = |family: &Seconds, value: f64| {
            family.get_or_create(&labels).inc_by(value);
        };
        seconds(&self.cpu, stats.cpu_seconds);
        level(&self.memory, stats.memory_rss_bytes);
        level(&self.disk, stats.disk_bytes);
        count(&self.received, stats.network_rx_bytes);
        count(&self.sent, stats.network_tx_bytes);
        // What the guest alone knows is left out while it cannot be asked.
        if let Some(used) = stats.guest_memory_used_bytes {
            level(&self.guest_memory, used);
        }
        if let Some(guest) = &stats.guest {
            seconds(&self.guest_cpu, guest.cpu_seconds);
            count(&self.disk_read, guest.disk_read_bytes);
            count(&self.disk_written, guest.disk_written_bytes);
            level(&self.tasks, guest.tasks.into());
        }
    }
}

/// One scrape's registry.
pub(super) fn registry(instances: &[InstanceStats]) -> Registry {
    let families = Families::default();
    for stats in instances {
        families.add(stats);
    }
    let mut registry = Registry::with_prefix("warren_instance");
    let seconds = [
        ("cpu", "Processor time of its machine", families.cpu),
        (
            "guest_cpu",
            "Processor time as the guest counts it",
            families.guest_cpu,
        ),
    ];
    for (name, help, family) in seconds {
        registry.register_with_unit(name, help, Unit::Seconds, family);
    }
    let levels = [
        (
            "memory_resident",
            "Resident memory of its machine",
            families.memory,
        ),
        (
            "guest_memory_used",
            "Memory in use as the guest sees it",
            families.guest_memory,
        ),
        (
            "disk",
            "What its writable layer takes on the host",
            families.disk,
        ),
    ];
    for (name, help, family) in levels {
        registry.register_with_unit(name, help, Unit::Bytes, family);
    }
    let counts = [
        (
            "guest_disk_read",
            "Read from its disks, as the guest counts it",
            families.disk_read,
        ),
        (
            "guest_disk_written",
            "Written to its disks, as the guest counts it",
            families.disk_written,
        ),
        (
            "network_received",
            "Received by the guest",
            families.received,
        ),
        ("network_sent", "Sent by the guest", families.sent),
    ];
    for (name, help, family) in counts {
        registry.register_with_unit(name, help, Unit::Bytes, family);
    }
    registry.register(
        "guest_tasks",
        "Processes and threads in the guest",
        families.tasks,
    );
    registry
}

//! What a VM uses. Counters become rates by looking twice.

use super::caller::Caller;
use super::convert;
use super::wire::{ResourceUsage, ResourceUsageResponse, VmStatusResponse};
use crate::app::{App, View};
use std::time::Duration;
use tonic::Status;
use warren_api::InstanceStats;
use warren_core::state::StateName;

/// Between two looks: long enough for counters that tick every hundredth of a second.
const APART: Duration = Duration::from_millis(200);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(super) async fn described(
    app: &App,
    caller: &Caller,
    vm_id: &str,
) -> Result<VmStatusResponse, Status> {
    let view = caller.find(app, vm_id)?;
    let usage = measure(app, &view).await?;
    Ok(VmStatusResponse {
        resource_usage: Some(usage),
        ..convert::described(&view, app.0.clock.now())
    })
}

pub(super) async fn usage(
    app: &App,
    caller: &Caller,
    vm_id: &str,
) -> Result<ResourceUsageResponse, Status> {
    let view = caller.find(app, vm_id)?;
    let usage = measure(app, &view).await?;
    Ok(ResourceUsageResponse {
        vm_id: view.intent.id.to_string(),
        usage: Some(usage),
        timestamp: app.0.clock.now().unix_timestamp(),
    })
}

async fn measure(app: &App, view: &View) -> Result<ResourceUsage, Status> {
    let id = view.intent.id.as_str();
    let disk = view.intent.spec.disk.0;
    let (began, first) = (app.0.clock.monotonic(), app.stats(id).await?);
    if view.status.state.name() != StateName::Running {
        return Ok(rates(&first, &first, APART, disk));
    }
    app.0.clock.sleep(APART).await;
    let (ended, second) = (app.0.clock.monotonic(), app.stats(id).await?);
    Ok(rates(&first, &second, ended.saturating_sub(began), disk))
}

/// Two looks at the same instance, so far apart. A counter that went back is one that began anew: nothing is known of it.
fn rates(
    before: &InstanceStats,
    after: &InstanceStats,
    apart: Duration,
    disk: u64,
) -> ResourceUsage {
    let seconds = apart.as_secs_f64().max(f64::EPSILON);
    let megabits = |before: u64, after: u64| {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rate for people: 52 bits are plenty"
        )]
        let bytes = after.saturating_sub(before) as f64;
        bytes * 8.0 / 1e6 / seconds
    };
    let processors = f64::from(after.allocated_vcpus.max(1));
    let cpu = (after.cpu_seconds - before.cpu_seconds) / seconds / processors * 100.0;
    let used = after
        .guest_memory_used_bytes
        .unwrap_or(after.memory_rss_bytes);
    let whole = |bytes: u64, unit: u64| i64::try_from(bytes.div_ceil(unit)).unwrap_or(i64::MAX);
    ResourceUsage {
        cpu_percent: cpu.clamp(0.0, 100.0),
        memory_used_mb: whole(used, MIB),
        memory_total_mb: whole(after.allocated_memory_bytes, MIB),
        disk_used_gb: whole(after.disk_bytes, GIB),
        disk_total_gb: whole(disk, GIB),
        network_rx_mbps: megabits(before.network_rx_bytes, after.network_rx_bytes),
        network_tx_mbps: megabits(before.network_tx_bytes, after.network_tx_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(cpu_seconds: f64, network_rx_bytes: u64) -> InstanceStats {
        InstanceStats {
            instance_id: "i".into(),
            instance_name: "n".into(),
            cpu_seconds,
            memory_rss_bytes: 300 << 20,
            memory_vms_bytes: 1 << 30,
            network_rx_bytes,
            network_tx_bytes: 0,
            allocated_vcpus: 2,
            allocated_memory_bytes: 4096 << 20,
            memory_utilization_ratio: None,
            guest_memory_used_bytes: Some(100 << 20),
            disk_bytes: 1,
            guest: None,
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let second = Duration::from_secs(1);
        let used = rates(&stats(1.0, 0), &stats(2.0, 1_000_000), second, 20 << 30);
        assert!((used.cpu_percent - 50.0).abs() < 1e-9, "{used:?}");
        assert!((used.network_rx_mbps - 8.0).abs() < 1e-9, "{used:?}");
        assert_eq!((used.memory_used_mb, used.memory_total_mb), (100, 4096));
        assert_eq!((used.disk_used_gb, used.disk_total_gb), (1, 20));
        let half = rates(&stats(1.0, 0), &stats(1.5, 0), second / 2, 0);
        assert!((half.cpu_percent - 50.0).abs() < 1e-9, "{half:?}");
    }

    #[test]
    fn counters_that_went_back_and_threads_of_the_hypervisors_own_stay_within_bounds() {
        let second = Duration::from_secs(1);
        let back = rates(&stats(5.0, 9), &stats(0.0, 3), second, 0);
        assert!(back.cpu_percent.abs() < 1e-9 && back.network_rx_mbps.abs() < 1e-9);
        let busy = rates(&stats(0.0, 0), &stats(2.5, 0), second, 0);
        assert!((busy.cpu_percent - 100.0).abs() < 1e-9, "{busy:?}");
        let no_time = rates(&stats(0.0, 0), &stats(0.0, 0), Duration::ZERO, 0);
        assert!(no_time.cpu_percent.is_finite());
    }
}

//! Usage as the guest's kernel counts it. What cannot be read is zero.

use std::path::Path;

use super::system;
use crate::protocol::GuestStats;

/// Clock ticks per second in /proc, the same on every Linux (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;
/// Unit of /proc/diskstats, whatever the disk's own.
const SECTOR: u64 = 512;

/// Reads all of it.
pub(super) fn read() -> GuestStats {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu_busy_millis, cpus) = cpu(&text("/proc/stat"));
    let meminfo = text("/proc/meminfo");
    let (disk_total_bytes, disk_free_bytes) = match rustix::fs::statvfs("/") {
        Ok(disk) => (disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize),
        Err(_) => (0, 0),
    };
    let (network_rx_bytes, network_tx_bytes) = network(Path::new("/sys/class/net"));
    let (disk_read_bytes, disk_written_bytes) = disks(&text("/proc/diskstats"));
    GuestStats {
        uptime_millis: system::uptime_millis(),
        cpu_busy_millis,
        cpus,
        memory_total_bytes: memory(&meminfo, "MemTotal:"),
        memory_available_bytes: memory(&meminfo, "MemAvailable:"),
        disk_total_bytes,
        disk_free_bytes,
        network_rx_bytes,
        network_tx_bytes,
        disk_read_bytes,
        disk_written_bytes,
        tasks: tasks(&text("/proc/loadavg")),
    }
}

/// proc(5), /proc/stat: user nice system idle iowait irq softirq steal …
fn cpu(stat: &str) -> (u64, u32) {
    let mut cpus = 0;
    let mut busy = 0;
    for line in stat.lines() {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("cpu") => {
                busy = fields
                    .enumerate()
                    .filter(|(index, _)| !matches!(index, 3 | 4) && *index < 8)
                    .filter_map(|(_, field)| field.parse::<u64>().ok())
                    .sum::<u64>();
            }
            Some(name) if name.starts_with("cpu") => cpus += 1,
            _ => {}
        }
    }
    (busy * 1000 / TICKS_PER_SECOND, cpus)
}

fn memory(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn network(devices: &Path) -> (u64, u64) {
    let count = |device: &Path, name: &str| -> u64 {
        let text = std::fs::read_to_string(device.join("statistics").join(name));
        text.ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let Ok(entries) = std::fs::read_dir(devices) else {
        return (0, 0);
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name() != "lo")
        .fold((0, 0), |(rx, tx), entry| {
            let path = entry.path();
            (rx + count(&path, "rx_bytes"), tx + count(&path, "tx_bytes"))
        })
}

/// Documentation/admin-guide/iostats.rst: major minor name reads merged sectors-read … writes merged sectors-written
fn disks(diskstats: &str) -> (u64, u64) {
    diskstats.lines().fold((0, 0), |(read, written), line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let virtual_disk = fields.get(2).is_some_and(|name| name.starts_with("vd"));
        let sectors = |index: usize| {
            fields
                .get(index)
                .and_then(|field| field.parse::<u64>().ok())
                .unwrap_or(0)
                * SECTOR
        };
        if virtual_disk {
            (read + sectors(5), written + sectors(9))
        } else {
            (read, written)
        }
    })
}

/// proc(5), /proc/loadavg: the fourth field is running/existing.
fn tasks(loadavg: &str) -> u32 {
    let field = loadavg
        .split_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/'));
    field
        .and_then(|(_, existing)| existing.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_tables_are_read_by_their_columns() {
        let stat = "cpu  10 20 30 1000 99 1 2 3 50 60\ncpu0 1 1\ncpu1 1 1\nintr 5\n";
        assert_eq!(cpu(stat), (660, 2));
        assert_eq!(
            memory("MemTotal:  10 kB\nMemAvailable: 7 kB\n", "MemAvailable:"),
            7168
        );
        let disk = " 254 0 vda 1 0 8 0 2 0 16 0 0 0 0\n 7 0 loop0 9 9 9 9 9 9 9 9\n";
        assert_eq!(disks(disk), (4096, 8192));
        assert_eq!(tasks("0.1 0.2 0.3 1/42 77"), 42);
        assert_eq!((cpu(""), disks("x"), tasks("")), ((0, 0), (0, 0), 0));
    }
}

//! Mounts, loop devices and control groups. Warren makes none of them; one that is there holds the data
//! directory, or is of a version that did.

use super::name_prefixes;
use std::io;
use std::path::Path;
use warren_core::InstallationId;
use warren_core::inventory::{Item, Kind, Part};

/// Where control groups are, in either generation.
const CGROUPS: &str = "/sys/fs/cgroup";
/// A group of an instance would be in a slice of its own in one hierarchy.
const CGROUP_DEPTH: usize = 3;

pub(super) fn around(data: &Path, installation: &InstallationId) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    items.extend(mounted(&mounts, data));
    for device in entries(Path::new("/sys/block")) {
        let backing = std::fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        if Path::new(backing.trim_end()).starts_with(data) {
            let shown = format!("/dev/{name} over {}", backing.trim_end());
            items.push(Item::new(Kind::LoopDevice, shown, Part::Unknown));
        }
    }
    cgroups(Path::new(CGROUPS), installation, CGROUP_DEPTH, &mut items);
    Ok(items)
}

/// Mounts in the data directory: their fifth field is where they are (proc_pid_mountinfo(5), spaces as
/// `\040`). The data directory may be a mount itself.
fn mounted(table: &str, data: &Path) -> Vec<Item> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|place| place.replace("\\040", " "))
        .filter(|place| Path::new(place).starts_with(data) && Path::new(place) != data)
        .map(|place| Item::new(Kind::Mount, place, Part::Unknown))
        .collect()
}

fn cgroups(directory: &Path, installation: &InstallationId, depth: usize, items: &mut Vec<Item>) {
    for entry in entries(directory) {
        if !entry.is_dir() || entry.is_symlink() {
            continue;
        }
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        let ours = |prefix: &String| name.starts_with(prefix.as_str());
        if name_prefixes(installation).iter().any(ours) {
            items.push(Item::new(
                Kind::Cgroup,
                entry.display().to_string(),
                Part::Unknown,
            ));
        } else if depth > 0 {
            cgroups(&entry, installation, depth - 1, items);
        }
    }
}

/// What is in a directory of the kernel's; nothing where the kernel does not have it.
fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(directory)
        .map(|entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_in_the_data_directory_are_seen_and_its_own_is_not() {
        let table = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                     30 22 0:5 / /data rw - ext4 /dev/vdb rw\n\
                     31 30 0:6 / /data/instances/a\\040b rw - tmpfs none rw\n\
                     32 22 0:7 / /database rw - tmpfs none rw\n";
        let found = mounted(table, Path::new("/data"));
        assert_eq!(
            found,
            [Item::new(Kind::Mount, "/data/instances/a b", Part::Unknown)]
        );
    }
}

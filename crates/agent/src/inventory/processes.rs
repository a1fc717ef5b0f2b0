//! Processes of an installation, by their arguments: their records may be what is missing.

use super::handle_in;
use std::io;
use std::path::Path;
use warren_core::inventory::{Item, Kind, Part};
use warren_core::{Handle, InstallationId};

/// How VMMs are called, by the beginning of their program's name.
const VMMS: [&str; 3] = ["qemu-system-", "cloud-hypervisor", "firecracker"];
/// The program of a user-mode network's stack; some distributions add the processor's extension.
const STACK: &str = "passt";

struct Process {
    pid: u32,
    parent: u32,
    state: char,
    name: String,
    arguments: Vec<String>,
}

/// The VMMs, guards and stacks that belong to `installation`, and ended children of this process.
pub(super) fn of_installation(
    installation: &InstallationId,
    instances: &Path,
) -> io::Result<Vec<Item>> {
    let all = all()?;
    let mut items = Vec::new();
    let mut guards: Vec<(u32, Handle)> = Vec::new();
    for process in &all {
        if process.state == 'Z' && process.parent == std::process::id() {
            items.push(item(process, Kind::Zombie, Part::Unfinished));
        } else if let Some(handle) = machine(process, installation, instances) {
            items.push(item(process, Kind::Machine, Part::Machine { handle }));
        } else if let Some(handle) = guard(process, instances) {
            guards.push((process.pid, handle.clone()));
            items.push(item(process, Kind::Guard, Part::Network { handle }));
        }
    }
    for process in &all {
        let guard = guards.iter().find(|(pid, _)| *pid == process.parent);
        if let Some((_, handle)) = guard
            && process.name.starts_with(STACK)
        {
            let handle = handle.clone();
            items.push(item(process, Kind::NetworkStack, Part::Network { handle }));
        }
    }
    Ok(items)
}

fn item(process: &Process, kind: Kind, part: Part) -> Item {
    Item {
        pid: Some(process.pid),
        ..Item::new(
            kind,
            format!("pid {} ({})", process.pid, process.name),
            part,
        )
    }
}

/// A VMM names its guest `warren-<installation>-<handle>`, or a file in its instance's directory.
fn machine(process: &Process, installation: &InstallationId, instances: &Path) -> Option<Handle> {
    let program = process.arguments.first()?;
    let base = program.rsplit('/').next().unwrap_or_default();
    if !VMMS.iter().any(|vmm| base.starts_with(vmm)) {
        return None;
    }
    let prefix = format!("guest=warren-{installation}-");
    process.arguments.iter().skip(1).find_map(|argument| {
        let named = argument
            .strip_prefix(&prefix)
            .and_then(|rest| rest.split(',').next())
            .and_then(|handle| handle.parse().ok());
        named.or_else(|| mentioned(argument, instances))
    })
}

/// A guard is told its instance's directory in a JSON document.
fn guard(process: &Process, instances: &Path) -> Option<Handle> {
    if process.state == 'Z' {
        return None;
    }
    process.arguments.iter().skip(1).find_map(|argument| {
        let config: serde_json::Value = serde_json::from_str(argument).ok()?;
        // Both are there in a guard's configuration and in nobody else's.
        config.get("passt")?;
        handle_in(instances, Path::new(config.get("directory")?.as_str()?))
    })
}

/// The instance in whose directory a path in this argument lies.
fn mentioned(argument: &str, instances: &Path) -> Option<Handle> {
    let directory = format!("{}/", instances.to_str()?);
    let after = argument.split_once(&directory)?.1;
    after.split(['/', ',']).next()?.parse().ok()
}

fn all() -> io::Result<Vec<Process>> {
    Ok(std::fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        // One that ends meanwhile is left out.
        .filter_map(read)
        .collect())
}

/// `/proc/<pid>/stat` (proc_pid_stat(5)): the name is in parentheses and may hold any character.
fn read(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Process {
        pid,
        parent,
        state,
        name,
        arguments: arguments
            .split(|byte| *byte == 0)
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn process(arguments: &[&str]) -> Process {
        Process {
            pid: 7,
            parent: 1,
            state: 'S',
            name: "x".to_owned(),
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
        }
    }

    #[test]
    fn a_machine_is_known_by_its_guests_name_or_its_disk_and_by_nothing_less() {
        let installation: InstallationId = "abcd".parse().unwrap();
        let instances = Path::new("/data/instances");
        let found = |arguments: &[&str]| machine(&process(arguments), &installation, instances);
        let ours: Handle = "aaaabbbb".parse().unwrap();
        let named = [
            "qemu-system-x86_64",
            "-name",
            "guest=warren-abcd-aaaabbbb,process=w",
        ];
        assert_eq!(found(&named), Some(ours.clone()));
        let disk = "file.filename=/data/instances/aaaabbbb/disk.ext4,node-name=d";
        assert_eq!(found(&["/usr/bin/firecracker", disk]), Some(ours));
        for strangers in [
            &[
                "qemu-system-x86_64",
                "-name",
                "guest=warren-wxyz-aaaabbbb,process=w",
            ][..],
            &[
                "qemu-system-x86_64",
                "/elsewhere/instances/aaaabbbb/disk.ext4",
            ],
            &["tail", "-f", "/data/instances/aaaabbbb/vmm.log"],
            &[""],
        ] {
            assert_eq!(found(strangers), None, "{strangers:?}");
        }
    }

    #[test]
    fn a_guard_is_known_by_the_directory_it_was_told() {
        let instances = Path::new("/data/instances");
        let found =
            |argument: &str| guard(&process(&["warren", "network-guard", argument]), instances);
        let ours = r#"{"directory":"/data/instances/aaaabbbb","passt":"/usr/bin/passt"}"#;
        assert_eq!(found(ours), Some("aaaabbbb".parse().unwrap()));
        assert_eq!(found(r#"{"directory":"/data/instances/aaaabbbb"}"#), None);
        assert_eq!(
            found(r#"{"directory":"/other/aaaabbbb","passt":"p"}"#),
            None
        );
        assert_eq!(found("{"), None);
    }
}

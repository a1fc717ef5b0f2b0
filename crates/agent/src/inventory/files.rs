//! The files of the data directory, told apart by their names. A file that nothing here knows is named as
//! such: whoever adds one adds it to this table, or the crash tests fail.

use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use warren_core::Handle;
use warren_core::inventory::{Item, Kind, Part};

/// What lies in an instance's directory as long as the instance exists.
const HOME: [&str; 9] = [
    "record.json",
    "disk.ext4",
    "workload.log",
    "workload.log.1",
    "console.log",
    "console.log.1",
    "vmm.log",
    "saved",
    "saved.new",
];
/// What lies there while it has a VMM.
const MACHINE: [&str; 7] = [
    "vmm.json",
    "vmm.lock",
    "qmp.sock",
    "events.sock",
    "channel.sock",
    "console.sock",
    "fake.json",
];
/// What lies there while a user-mode network is attached.
const NETWORK: [&str; 5] = [
    "net.json",
    "net.lock",
    "net.sock",
    "net.counters",
    "net.log",
];
/// Directories in which files appear whole or not at all.
const PUBLISHED: [&str; 3] = ["images", "volumes", "set-aside"];
/// How deep they are.
const DEPTH: usize = 4;

pub(super) fn in_data_directory(data: &Path, instances: &Path) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    for entry in entries(data)? {
        if is_half(&entry) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            items.push(half(&entry));
        }
    }
    for name in PUBLISHED {
        halves(&data.join(name), DEPTH, &mut items)?;
    }
    for entry in entries(instances)? {
        let name = entry.file_name();
        let path = entry.path();
        let shown = path.display().to_string();
        match name.to_str().and_then(|name| name.parse::<Handle>().ok()) {
            Some(handle) if entry.file_type()?.is_dir() => {
                items.push(Item::new(
                    Kind::Directory,
                    shown,
                    Part::Home {
                        handle: handle.clone(),
                    },
                ));
                of_instance(&path, &handle, &mut items)?;
            }
            // Half a removed directory: the next start takes it away.
            _ if path.extension().is_some_and(|ending| ending == "deleted") => {
                items.push(Item::new(Kind::Directory, shown, Part::Unfinished));
            }
            _ => items.push(Item::new(kind_of(&entry)?, shown, Part::Unknown)),
        }
    }
    Ok(items)
}

fn of_instance(directory: &Path, handle: &Handle, items: &mut Vec<Item>) -> io::Result<()> {
    for entry in entries(directory)? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let handle = handle.clone();
        let part = if HOME.contains(&&*name) {
            Part::Home { handle }
        } else if MACHINE.contains(&&*name) {
            Part::Machine { handle }
        } else if NETWORK.contains(&&*name) {
            Part::Network { handle }
        } else if is_half(&entry) {
            if !is_held(&entry.path()) {
                items.push(half(&entry));
            }
            continue;
        } else {
            Part::Unknown
        };
        // The file that stands for a machine where nothing is executed.
        let kind = match &*name {
            "fake.json" => Kind::Machine,
            _ => kind_of(&entry)?,
        };
        items.push(Item {
            pid: (kind == Kind::Machine)
                .then(|| fake_pid(&entry.path()))
                .flatten(),
            ..Item::new(kind, entry.path().display().to_string(), part)
        });
    }
    Ok(())
}

/// The number that a fake machine has in the place of a pid.
fn fake_pid(path: &Path) -> Option<u32> {
    let text = std::fs::read(path).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&text).ok()?;
    state["process"]["pid"].as_u64()?.try_into().ok()
}

fn halves(directory: &Path, depth: usize, items: &mut Vec<Item>) -> io::Result<()> {
    for entry in entries(directory)? {
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            halves(&entry.path(), depth - 1, items)?;
        } else if is_half(&entry) && !is_held(&entry.path()) {
            items.push(half(&entry));
        }
    }
    Ok(())
}

/// Whatever is written aside before it gets its name has a name that starts with a dot.
fn is_half(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

fn half(entry: &DirEntry) -> Item {
    Item::new(
        Kind::File,
        entry.path().display().to_string(),
        Part::Unfinished,
    )
}

/// Whether somebody is at work on it: a lock says so where its writer takes one.
fn is_held(path: &Path) -> bool {
    use rustix::fs::{FlockOperation, flock};
    std::fs::File::open(path).is_ok_and(|file| {
        matches!(
            flock(&file, FlockOperation::NonBlockingLockShared),
            Err(rustix::io::Errno::WOULDBLOCK)
        )
    })
}

fn kind_of(entry: &DirEntry) -> io::Result<Kind> {
    let kind = entry.file_type()?;
    Ok(if kind.is_socket() {
        Kind::Socket
    } else if kind.is_dir() {
        Kind::Directory
    } else {
        Kind::File
    })
}

/// The entries of a directory; none where there is no directory. What vanishes meanwhile is left out.
fn entries(directory: &Path) -> io::Result<Vec<DirEntry>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => Ok(entries.filter_map(Result::ok).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

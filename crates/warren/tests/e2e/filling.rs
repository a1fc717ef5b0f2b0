//! The disk is full, at each write (reliability: typed, clean, and it works again once there is room): the data
//! directory is on a small file system of its own, filled to a little more or less each time.

use crate::harness::{Mode, Server, eventually, is_root, missing, skip};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;

/// Of the file system: uploads leave 256 MiB free.
const SIZE: &str = "400M";
/// Left free, in KiB: from nothing at all to enough.
const FREE: [u64; 14] = [0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 160, 320, 768, 4096];

/// An ext4 in a file, mounted.
pub(crate) struct SmallDisk {
    image: PathBuf,
    pub(crate) place: PathBuf,
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
}

impl SmallDisk {
    pub(crate) fn make() -> Self {
        let image = tempfile::NamedTempFile::new()
            .unwrap()
            .into_temp_path()
            .keep()
            .unwrap();
        let place = tempfile::Builder::new()
            .prefix("wrnd")
            .tempdir()
            .unwrap()
            .keep();
        let disk = SmallDisk { image, place };
        let (image, place) = (disk.image.to_str().unwrap(), disk.place.to_str().unwrap());
        run("truncate", &["-s", SIZE, image]);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", image]);
        run("mount", &["-o", "loop", image, place]);
        disk
    }

    fn free_kib(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.place).unwrap();
        stat.f_bavail * stat.f_frsize / 1024
    }

    fn ballast(&self) -> PathBuf {
        self.place.join("ballast")
    }

    /// Leaves so much.
    pub(crate) fn fill(&self, free: u64) {
        self.empty();
        let ballast = self.ballast();
        let size = self.free_kib().saturating_sub(free);
        let _ = Command::new("fallocate")
            .args(["-l", &format!("{size}KiB"), ballast.to_str().unwrap()])
            .output()
            .unwrap();
        // What the file system needed for itself is taken in small pieces.
        let mut piece = 0;
        while self.free_kib() > free + 4 && piece < 64 {
            let name = self.place.join(format!("ballast-{piece}"));
            let left = (self.free_kib() - free) * 1024;
            let _ = std::fs::write(name, vec![1; usize::try_from(left).unwrap()]);
            piece += 1;
        }
    }

    pub(crate) fn empty(&self) {
        for entry in std::fs::read_dir(&self.place).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("ballast") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).status();
        let _ = std::fs::remove_dir(&self.place);
        let _ = std::fs::remove_file(&self.image);
    }
}

/// A request on a disk that may be full: it is done, or refused for want of room.
fn ask(server: &Server, method: &str, path: &str, body: Option<serde_json::Value>) -> u16 {
    let (status, answer) = server.api(method, path, body);
    match status {
        507 => assert_eq!(answer["code"], "disk_full", "{method} {path}: {answer}"),
        200 | 201 | 204 | 404 => {}
        other => panic!("{method} {path}: {other} {answer}"),
    }
    status
}

#[test]
fn a_full_disk_is_said_at_each_write_leaves_nothing_and_is_got_over() {
    const NAME: &str = "a_full_disk_is_said_at_each_write_leaves_nothing_and_is_got_over";
    if !is_root() {
        return skip(NAME, "mounting a small file system needs root");
    }
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let disk = SmallDisk::make();
    let server = Server::start_at(&disk.place, &[("WARREN_HYPERVISORS", "[fake]")]);
    let body = json!({"id": "full", "name": "full", "image": "busybox-web", "memory_mb": 64, "overlay_size": "16MB",
                      "cmd": ["sleep", "1000"], "stop_grace_seconds": 1});
    let exists = || server.api("GET", "/instances/full", None).0 == 200;
    let mut refused = 0;
    for free in FREE {
        disk.fill(free);
        let made = ask(&server, "POST", "/instances", Some(body.clone()));
        refused += u32::from(made == 507);
        if made == 201 {
            let (_, instance) = server.api("GET", "/instances/full", None);
            let error = instance["state_error"].as_str().unwrap_or_default();
            assert!(
                instance["state"] == "Running" || error.contains("space"),
                "with {free} KiB: {instance}"
            );
            // Whatever became of the start, the rest of its life is as full.
            for verb in ["stop", "start"] {
                ask(&server, "POST", &format!("/instances/full/{verb}"), None);
            }
            ask(&server, "DELETE", "/instances/full", None);
        }
        disk.empty();
        // There is room: all works at once, and nothing was left.
        if exists() {
            eventually("it can be deleted", 20, || {
                (server.api("DELETE", "/instances/full", None).0 == 204 && !exists()).then_some(())
            });
        }
        assert_eq!(
            ask(&server, "POST", "/instances", Some(body.clone())),
            201,
            "after {free} KiB"
        );
        let (_, instance) = server.api("GET", "/instances/full", None);
        assert_eq!(instance["state"], "Running", "after {free} KiB: {instance}");
        assert_eq!(ask(&server, "DELETE", "/instances/full", None), 204);
        assert_eq!(
            server.differences(),
            Vec::<String>::new(),
            "after {free} KiB"
        );
    }
    assert!(refused > 0, "the disk was never full");
    println!(
        "{refused} of {} creates were refused for want of room",
        FREE.len()
    );
}

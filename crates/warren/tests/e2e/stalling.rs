//! The host's disk fills up under a guest that writes: its machine waits, the rest of the host goes on, what is wrong is said,
//! and once there is room the guest goes on as if nothing had been.

use crate::filling::SmallDisk;
use crate::harness::{Mode, Server, eventually, is_root, missing, skip};
use std::process::{Child, Command, Stdio};

/// What the guest writes and reads again. No zeros: those become holes, which need no room.
const WRITE: &str = "busybox yes warren | busybox head -c 33554432 > /big && sync && \
                     busybox md5sum < /big && rm /big";
/// What is left on the disk before, KiB.
const LEFT: u64 = 4096;

/// What `warren events` says, in a file.
struct Events {
    follower: Child,
    said: tempfile::NamedTempFile,
}

impl Events {
    fn follow(server: &Server) -> Self {
        let said = tempfile::NamedTempFile::new().unwrap();
        let mut command = server.cli(&["events"]);
        command.stdout(said.reopen().unwrap()).stderr(Stdio::null());
        Events {
            follower: command.spawn().unwrap(),
            said,
        }
    }

    fn has(&self, words: &[&str]) -> bool {
        let text = std::fs::read_to_string(self.said.path()).unwrap();
        let mut lines = text.lines();
        lines.any(|line| words.iter().all(|word| line.contains(word)))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.follower.kill();
        let _ = self.follower.wait();
    }
}

#[test]
fn a_guest_waits_while_the_hosts_disk_is_full_and_goes_on_when_there_is_room() {
    const NAME: &str = "a_guest_waits_while_the_hosts_disk_is_full_and_goes_on_when_there_is_room";
    if !is_root() {
        return skip(NAME, "mounting a small file system needs root");
    }
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let disk = SmallDisk::make();
    let server = Server::start_at(&disk.place, &[]);
    let events = Events::follow(&server);
    for name in ["writer", "other"] {
        let options = ["run", "-d", "--memory", "128M", "--disk", "128M", "--name"];
        server.ok(&[&options[..], &[name, "busybox-web", "sleep", "1000"]].concat());
    }
    let seen = |name: &str| server.api("GET", &format!("/instances/{name}"), None).1;
    let is_full = |words: &serde_json::Value| {
        let words = words.as_str().unwrap_or_default();
        words.contains("the host's disk is full")
    };

    disk.fill(LEFT);
    let mut writing = server.cli(&["exec", "writer", "sh", "-c", WRITE]);
    let writing = writing.stdout(Stdio::piped()).stderr(Stdio::piped());
    let writing = writing.spawn().unwrap();
    eventually("the guest waits", 30, || {
        let writer = seen("writer");
        (writer["state"] == "Paused" && is_full(&writer["state_error"])).then_some(())
    });
    let shown = server.ok(&["ps"]);
    assert!(shown.contains("Paused: the host's disk is full"), "{shown}");
    assert!(server.ok(&["inspect", "writer"]).contains("disk is full"));
    // Nobody else is the worse for it.
    assert_eq!(seen("other")["state"], "Running");
    assert_eq!(server.ok(&["exec", "other", "echo", "here"]), "here\n");

    disk.empty();
    eventually("the guest goes on", 30, || {
        let writer = seen("writer");
        (writer["state"] == "Running" && writer["state_error"].is_null()).then_some(())
    });
    let written = writing.wait_with_output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let expected = Command::new("sh")
        .args(["-c", "yes warren | head -c 33554432 | md5sum"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&written.stdout),
        String::from_utf8_lossy(&expected.stdout),
        "nothing of it is lost"
    );
    eventually("it is among the events", 20, || {
        let waits = events.has(&["writer", "Running → Paused", "the host's disk is full"]);
        (waits && events.has(&["writer", "Paused → Running"])).then_some(())
    });

    // One that waits can be removed, with as much room as the record of that needs.
    let spare = disk.place.join("spare");
    std::fs::write(&spare, vec![1; 1 << 20]).unwrap();
    disk.fill(LEFT);
    let mut again = server.cli(&["exec", "writer", "sh", "-c", WRITE]);
    let mut again = again
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it waits again", 30, || {
        is_full(&seen("writer")["state_error"]).then_some(())
    });
    std::fs::remove_file(spare).unwrap();
    server.ok(&["rm", "-f", "writer"]);
    assert!(!again.wait().unwrap().success());
    disk.empty();
    server.ok(&["rm", "-f", "other"]);
    assert_eq!(server.differences(), Vec::<String>::new());
}

//! A server whose file system is full: it says so, does what needs no room, and goes on when there is some.

use crate::harness::{Mode, Server, is_root, missing, skip};
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// A tmpfs whose size can be changed, unmounted at the end.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn mount(&self, options: &str) -> bool {
        let mut command = Command::new("mount");
        if !options.starts_with("remount") {
            command.args(["-t", "tmpfs", "warren-test"]);
        }
        let status = command.args(["-o", options]).arg(self.0).status();
        status.is_ok_and(|status| status.success())
    }

    /// No more room than is taken. What the server writes between the look and the change makes that too little, which the
    /// kernel refuses: then it is looked again.
    fn fill(&self) {
        let filled = (0..50).any(|_| {
            let found = rustix::fs::statvfs(self.0).expect("it is mounted");
            let used = (found.f_blocks - found.f_bfree) * found.f_frsize;
            self.mount(&format!("remount,size={used}"))
        });
        assert!(filled, "it was never full");
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_507_and_over_once_there_is_room() {
    let name = "full::a_full_disk_is_507_and_over_once_there_is_room";
    if !is_root() {
        return skip(name, "mounting needs root");
    }
    let work = tempfile::tempdir().expect("a temporary directory");
    let data = work.path().join("data");
    std::fs::create_dir(&data).expect("a directory in it");
    let small = Small(&data);
    if !small.mount("size=1g") {
        return skip(name, "a tmpfs cannot be mounted here");
    }
    let data = data.to_string_lossy().into_owned();
    let mut server = Server::start_in(
        Mode::Bridge,
        &[
            ("DATA_DIR", &data),
            ("WARREN_HYPERVISORS", "[fake]"),
            ("WARREN_NETWORK", "none"),
        ],
    );
    // Small enough to be sent whole before the answer comes.
    std::fs::write(work.path().join("file"), "something").expect("there is room here");
    let tarball = work.path().join("root.tar").to_string_lossy().into_owned();
    let packed = Command::new("tar")
        .args(["-cf", &tarball, "-C"])
        .arg(work.path())
        .arg("file")
        .status();
    assert!(packed.is_ok_and(|status| status.success()));
    let load = ["load", &tarball, "--name", "small"];
    let create = |n: usize| {
        let body = json!({"name": format!("n{n}"), "image": "busybox-web", "cmd": ["sleep", "9"]});
        server.api("POST", "/instances", Some(body))
    };

    small.fill();
    let refused = server.run(&load);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("space"),
        "{said}"
    );
    // What the record's file has room for still goes in, and what was given up has left some.
    let mut taken = Vec::new();
    let (status, problem) = loop {
        small.fill();
        let number = 100 + taken.len();
        match create(number) {
            (201, _) if taken.len() < 50 => taken.push(format!("n{number}")),
            refused => break refused,
        }
    };
    assert_eq!(
        (status, &problem["code"]),
        (507, &json!("disk_full")),
        "{problem}"
    );
    // What needs no room goes on.
    for path in ["/health", "/instances", "/images", "/system/df"] {
        assert_eq!(server.api("GET", path, None).0, 200, "{path}");
    }
    let (status, images) = server.api("GET", "/images", None);
    assert_eq!(
        (status, images.as_array().map(Vec::len)),
        (200, Some(1)),
        "{images}"
    );
    let (status, found) = server.api(
        "POST",
        "/images/verify",
        Some(json!({"image": "busybox-web"})),
    );
    assert_eq!((status, &found["sound"]), (200, &json!(true)), "{found}");

    assert!(small.mount("remount,size=1g"));
    for name in taken {
        server.ok(&["rm", "-f", &name]);
    }
    server.ok(&load);
    let (status, instance) = create(1);
    assert_eq!(status, 201, "{instance}");
    // An image of it has no room either, and leaves nothing of itself.
    server.ok(&["stop", "n1"]);
    small.fill();
    let commit = || {
        let body = json!({"name": "made:1"});
        server.api("POST", "/instances/n1/commit", Some(body))
    };
    let (status, problem) = commit();
    assert_eq!(
        (status, &problem["code"]),
        (507, &json!("disk_full")),
        "{problem}"
    );
    assert!(small.mount("remount,size=1g"));
    let (_, image) = server.api("GET", "/images/made:1", None);
    assert_eq!(image["status"], "failed", "{image}");
    assert_eq!(server.differences(), Vec::<String>::new());
    let (status, made) = commit();
    assert_eq!(status, 201, "{made}");
    server.ok(&["rm", "-f", "n1"]);
    let usage = server.ok(&["system", "df"]);
    assert!(usage.contains("images"), "{usage}");
    server.ok(&["prune", "--all"]);
    assert_eq!(server.ok(&["images", "-q"]), "");
    assert!(server.terminate().success());
}

#[test]
fn a_guests_disk_has_the_size_it_was_given_and_no_more() {
    let name = "full::a_guests_disk_has_the_size_it_was_given_and_no_more";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(name, &reason);
    }
    let mut server = Server::start(Mode::Bridge);
    let script = "df -k / | tail -n 1; dd if=/dev/zero of=/big bs=1M count=200 2>&1; echo code $?; \
                  rm -f /big; echo fine > /ok; cat /ok";
    let words = [
        "run",
        "--rm",
        "--disk",
        "64M",
        "busybox-web",
        "sh",
        "-c",
        script,
    ];
    let said = server.ok(&words);
    let kibibytes: Vec<u64> = said
        .lines()
        .next()
        .expect("df says something")
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // What ext4 keeps for itself is not shown.
    assert!((40_000..=65_536).contains(&kibibytes[0]), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert!(
        said.contains("code 1") && said.ends_with("fine\n"),
        "{said}"
    );
    assert!(server.terminate().success());
}

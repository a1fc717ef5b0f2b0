//! Instances made and removed again and again on the fake hypervisor (reliability: memory and descriptors flat,
//! disk as before).

use crate::harness::{Mode, Server, missing, skip};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// In one run of the test; `WARREN_CYCLES` asks for more (`./dev soak cycles`).
const CYCLES: u64 = 500;
/// After this part of them everything that is kept for later is there: caches, and the history of the store, which
/// two thousand fill.
const WARM_UP: u64 = 3;
/// Of so many, one has an interface: that part is the slowest, and has no caches.
const WITH_INTERFACE: u64 = 10;
/// Made at the same time by so many clients.
const CLIENTS: u64 = 4;

/// What a process holds, and what it has on the disk.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    threads: u64,
    disk_kib: u64,
}

fn held(server: &Server) -> Held {
    let process = Path::new("/proc").join(server.pid().to_string());
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let number = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    Held {
        resident_kib: number("VmRSS:"),
        descriptors: std::fs::read_dir(process.join("fd")).unwrap().count(),
        threads: number("Threads:"),
        disk_kib: disk(server.data()) / 2,
    }
}

/// Blocks of 512 bytes, of everything but the server's log.
fn disk(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut blocks = 0;
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            blocks += disk(&entry.path());
        } else if entry.file_name() != "server.log" {
            blocks += metadata.blocks();
        }
    }
    blocks
}

fn cycle(server: &Server, from: u64, to: u64) {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for number in (from..to).filter(|number| number % CLIENTS == client) {
                    let id = format!("c{number:06}");
                    let body = json!({"id": id, "name": id, "image": "busybox-web", "memory_mb": 64,
                                      "overlay_size": "16MB", "cmd": ["sleep", "1000"],
                                      "network": {"enabled": number % WITH_INTERFACE == 0}});
                    let (status, made) = server.api("POST", "/instances", Some(body));
                    assert_eq!((status, &made["state"]), (201, &json!("Running")), "{made}");
                    let (status, answer) = server.api("DELETE", &format!("/instances/{id}"), None);
                    assert_eq!(status, 204, "{answer}");
                }
            });
        }
    });
}

/// How many files a process may have open, soft and hard (proc(5), limits).
fn open_files_allowed(pid: u32) -> [u64; 2] {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut numbers = line.unwrap().split_whitespace().skip(3);
    [(); 2].map(|()| numbers.next().unwrap().parse().unwrap())
}

#[test]
fn cycles_of_create_and_delete_hold_nothing() {
    const NAME: &str = "cycles_of_create_and_delete_hold_nothing";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let cycles: u64 = std::env::var("WARREN_CYCLES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(CYCLES);
    let environment = [("WARREN_HYPERVISORS", "[fake]"), ("WARREN_LOG", "warn")];
    // As a login has it; nextest gives each test a process of its own.
    let limit = getrlimit(Resource::Nofile);
    let current = Some(512);
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    let server = Server::start_in(Mode::Bridge, &environment);
    let [soft, hard] = open_files_allowed(server.pid());
    assert_eq!(soft, hard);
    cycle(&server, 0, cycles / WARM_UP);
    let before = held(&server);
    cycle(&server, cycles / WARM_UP, cycles);
    let after = held(&server);
    println!(
        "{cycles} cycles: {before:?} after {}, {after:?} at the end",
        cycles / WARM_UP
    );
    assert!(
        after.descriptors <= before.descriptors + 8,
        "descriptors: {before:?} {after:?}"
    );
    assert!(
        after.threads <= before.threads + 8,
        "threads: {before:?} {after:?}"
    );
    assert!(
        after.resident_kib <= before.resident_kib + before.resident_kib / 10 + 8192,
        "memory: {before:?} {after:?}"
    );
    assert!(
        after.disk_kib <= before.disk_kib + before.disk_kib / 10 + 4096,
        "disk: {before:?} {after:?}"
    );
    assert_eq!(server.differences(), Vec::<String>::new());
}

/// Reading system calls of a process so far (proc(5), io).
fn reads(server: &Server) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).unwrap();
    let count = io.lines().find_map(|line| line.strip_prefix("syscr:"));
    count.unwrap().trim().parse().unwrap()
}

#[test]
fn a_server_with_instances_that_do_nothing_does_nothing() {
    const NAME: &str = "a_server_with_instances_that_do_nothing_does_nothing";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let environment = [("WARREN_HYPERVISORS", "[fake]"), ("WARREN_LOG", "warn")];
    let server = Server::start_in(Mode::Bridge, &environment);
    for number in 0..4 {
        let id = format!("idle-{number}");
        let body = json!({"id": id, "name": id, "image": "busybox-web", "memory_mb": 64,
                          "overlay_size": "16MB", "cmd": ["sleep", "1000"], "network": {"enabled": false}});
        let (status, made) = server.api("POST", "/instances", Some(body));
        assert_eq!((status, &made["state"]), (201, &json!("Running")), "{made}");
    }
    // What a start leaves to be done behind it.
    std::thread::sleep(Duration::from_secs(1));
    let before = reads(&server);
    std::thread::sleep(Duration::from_secs(2));
    let done = reads(&server) - before;
    println!("{done} reads in 2 s");
    assert!(done < 200, "{done} reads in 2 s: something is always awake");
    for number in 0..4 {
        let (status, _) = server.api("DELETE", &format!("/instances/idle-{number}"), None);
        assert_eq!(status, 204);
    }
}

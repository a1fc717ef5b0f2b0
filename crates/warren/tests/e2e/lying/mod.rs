//! A guest that lies, behind a real server and beside an honest one: at every way to it that a user has, nothing outside of it
//! is touched, the server's memory is bounded, what comes of it is said clearly, the honest one is served all the while,
//! and the liar can be deleted. The server runs on real QEMU and is what users run; only who answers at the liar's channel
//! is the test's own.

mod agent;

use crate::harness::{Mode, Server, eventually, free_port, missing, skip};
use agent::{ESCAPES, Liar, LogLie, TREES};
use serde_json::json;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

/// What is asked of a liar is answered within this, or given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a liar gets the server to hold at most, bytes: a message of 100 MB, and what a server has besides.
const MEMORY: u64 = 256 << 20;
/// Execs in the honest instance, each time.
const ROUNDS: usize = 25;

/// Ended with the test.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command said and how it ended: soon, and whatever a guest has written with nothing that a terminal would carry out.
fn said(server: &Server, arguments: &[&str]) -> (Option<i32>, String) {
    let begun = Instant::now();
    let output: Output = server.run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        begun.elapsed() < PATIENCE,
        "{arguments:?}: {:?}",
        begun.elapsed()
    );
    let is_clean = !stderr.contains(['\u{1b}', '\u{9b}', '\u{7}']);
    assert!(is_clean, "{arguments:?}: {stderr:?}");
    (output.status.code(), stderr)
}

/// The most memory that the server ever had, bytes.
fn peak_memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kibibytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kibibytes.parse::<u64>().unwrap() << 10
}

/// How long each of some execs in the honest instance took, the longest last.
fn times_of_the_honest(server: &Server) -> Vec<Duration> {
    let one = |_| {
        let begun = Instant::now();
        assert_eq!(server.ok(&["exec", "honest", "echo", "here"]), "here\n");
        begun.elapsed()
    };
    let mut times: Vec<Duration> = (0..ROUNDS).map(one).collect();
    times.sort();
    times
}

/// Waits until the liar's session is there (again).
fn until_attached(server: &Server) {
    until_it_says(server, &["exec", "liar", "hello"], "hello");
}

fn until_it_says(server: &Server, command: &[&str], words: &str) {
    eventually(&format!("{command:?} says {words:?}"), 60, || {
        let output = server.run(command);
        (output.stdout == words.as_bytes()).then_some(())
    });
}

fn commands_end(server: &Server) {
    for lie in ["length", "kind", "malformed", "gone", "empty"] {
        let (code, words) = said(server, &["exec", "liar", lie]);
        assert_eq!(code, Some(125), "{lie}: {words}");
        assert!(words.contains("guest"), "{lie}: {words}");
    }
    let (code, words) = said(server, &["exec", "liar", "rude"]);
    assert_eq!(code, Some(128), "{words}");
    // What breaks the session itself is followed by another one.
    for lie in ["control-length", "control-greeting", "control-talk"] {
        let (code, words) = said(server, &["exec", "liar", lie]);
        assert_eq!(code, Some(125), "{lie}: {words}");
        until_attached(server);
    }
    let (code, words) = said(server, &["exec", "-d", "liar", "true"]);
    assert_eq!(code, Some(125), "{words}");
    let listed = server.ok(&["execs", "liar"]);
    assert!(
        !listed.contains(['\u{1b}', '\u{9b}', '\u{7}']),
        "{listed:?}"
    );
    // Without end, for as long as somebody reads, and without anybody who does.
    for endless in [
        &["exec", "liar", "endless"][..],
        &["attach", "--no-stdin", "--exec", "endless", "liar"],
    ] {
        let mut reading = server.cli(endless);
        let mut reading = Busy(reading.stdout(Stdio::piped()).spawn().unwrap());
        let mut output = reading.0.stdout.take().unwrap();
        let mut taken = vec![0; 16 << 20];
        output.read_exact(&mut taken).unwrap();
    }
}

fn copies_stay_in_their_place(server: &Server) {
    for lie in TREES {
        let world = tempfile::tempdir().unwrap();
        let canary = world.path().join("canary");
        std::fs::write(&canary, "untouched").unwrap();
        let before = std::fs::metadata(&canary).unwrap();
        let target = world.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let source = format!("liar:/tree-{lie}/.");
        let (code, words) = said(server, &["cp", &source, target.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{lie}: {words}");
        assert!(!words.is_empty(), "{lie}");
        assert_eq!(names_in(world.path()), ["canary", "target"], "{lie}");
        let after = std::fs::metadata(&canary).unwrap();
        let identity = |found: &std::fs::Metadata| (found.ino(), found.nlink(), found.mode());
        assert_eq!(identity(&after), identity(&before), "{lie}");
        assert_eq!(std::fs::read(&canary).unwrap(), b"untouched", "{lie}");
        let is_half = |name: &String| name.starts_with(".warren-part-");
        assert!(!names_in(&target).iter().any(is_half), "{lie}");
    }
    // Into it: what was never taken is not said to be there.
    let world = tempfile::tempdir().unwrap();
    let source = world.path().join("source");
    std::fs::write(&source, vec![7; 3 << 20]).unwrap();
    let (code, words) = said(server, &["cp", source.to_str().unwrap(), "liar:/tree-in"]);
    assert_eq!(code, Some(1), "{words}");
}

fn names_in(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = names
        .map(|name| name.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// It was the guest that was found out, or more than there is room for.
fn refused(what: &str, status: u16, answer: &serde_json::Value) {
    let words = answer["message"].as_str().unwrap_or_default();
    let expected = match status {
        400 => "the guest broke the protocol",
        429 => "100 MB",
        _ => panic!("{what}: {status} {answer}"),
    };
    assert!(words.contains(expected), "{what}: {answer}");
}

fn the_apis_answer(server: &Server) {
    let begun = Instant::now();
    let (status, stat) = server.api("GET", "/instances/liar/stat?path=%2Fx", None);
    assert_eq!((status, stat["size"].as_u64()), (200, Some(10)), "{stat}");
    let (status, stats) = server.api("GET", "/instances/liar/stats", None);
    assert_eq!(status, 200, "{stats}");
    // Nothing can be made of what says that more is free than there is.
    assert_eq!(
        stats["guest_memory_used_bytes"].as_u64().unwrap_or(0),
        0,
        "{stats}"
    );
    assert_eq!(stats["guest"]["tasks"], u32::MAX, "{stats}");
    assert_eq!(server.api("GET", "/metrics", None).0, 200);
    let call = |method: &str, mut request: serde_json::Value| {
        request["vmId"] = json!("liar");
        server.api(
            "POST",
            &format!("/container.ContainerService/{method}"),
            Some(request),
        )
    };
    for path in ["/length", "/more", "/unsized", "/fewer", "/other"] {
        let (status, answer) = call("ReadFile", json!({"filePath": path}));
        refused(path, status, &answer);
    }
    for path in ["/endless", "/crowd"] {
        let (status, answer) = call("ListFiles", json!({"directoryPath": path}));
        refused(path, status, &answer);
    }
    let (status, listed) = call("ListFiles", json!({"directoryPath": "/names"}));
    assert_eq!(status, 200, "{listed}");
    assert_eq!(
        listed["files"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    let write = json!({"filePath": "/x", "content": "AAAA"});
    let remove = json!({"filePath": "/x"});
    let make = json!({"directoryPath": "/x"});
    for (method, request) in [
        ("WriteFile", write),
        ("DeleteFile", remove),
        ("CreateDirectory", make),
        ("ExecuteCommand", json!({"command": ["length"]})),
    ] {
        let (status, answer) = call(method, request);
        refused(method, status, &answer);
    }
    let (status, answer) = call("GetResourceUsage", json!({}));
    assert_eq!(status, 200, "{answer}");
    assert!(begun.elapsed() < 2 * PATIENCE, "{:?}", begun.elapsed());
}

/// The honest one's execs while the liar does its worst, as a ratio of what they take else.
fn the_honest_is_served(server: &Server, liar: &Liar, calm: &[Duration]) {
    liar.log(LogLie::Endless);
    let lies = ["endless", "drip"].map(|lie| {
        let mut command = server.cli(&["exec", "liar", lie]);
        // Nobody reads what is said: it waits in the guest.
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Busy(command.spawn().unwrap())
    });
    let mut copy = server.cli(&["cp", "liar:/tree-endless", "-"]);
    let copy = Busy(copy.stdout(Stdio::piped()).spawn().unwrap());
    let busy = times_of_the_honest(server);
    let ratio = |at: usize| busy[at].as_secs_f64() / calm[at].as_secs_f64();
    let (half, last) = (ROUNDS / 2, ROUNDS - 1);
    println!(
        "an honest guest's exec beside a lying one: median {:?}, {:.2} of before; slowest {:?}, {:.2} of before",
        busy[half],
        ratio(half),
        busy[last],
        ratio(last)
    );
    // The machine is the tests' own as well: what is bounded here is an order of magnitude.
    assert!(ratio(half) < 10.0, "{busy:?} instead of {calm:?}");
    drop((lies, copy));
    liar.log(LogLie::Twice);
    until_attached(server);
    liar.log(LogLie::Silence);
}

#[test]
fn a_guest_that_lies_harms_nothing_outside_of_its_instance() {
    const NAME: &str = "a_guest_that_lies_harms_nothing_outside_of_its_instance";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let port = free_port().to_string();
    let environment = [
        ("WARREN_CONTAINER_SERVICE", "on"),
        ("CONTAINER_SERVICE_PORT", &port),
    ];
    let mut server = Server::start_in(Mode::Bridge, &environment);
    for id in ["liar", "honest"] {
        let body = json!({"id": id, "name": id, "image": "busybox-web", "memory_mb": 128,
                          "cmd": ["sleep", "1000"]});
        let (status, made) = server.api("POST", "/instances", Some(body));
        assert_eq!((status, &made["state"]), (201, &json!("Running")), "{made}");
    }
    server.kill();
    let liar = Liar::replace(&server, "liar");
    server.launch();
    until_attached(&server);
    until_it_says(&server, &["exec", "honest", "echo", "here"], "here\n");
    let calm = times_of_the_honest(&server);

    commands_end(&server);
    // As long as its silence is waited for, everything else goes on.
    let mut silent = server.cli(&["cp", "liar:/silent", "-"]);
    let silent = Busy(
        silent
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    copies_stay_in_their_place(&server);
    the_apis_answer(&server);
    for lie in [
        &["stats", "--no-stream", "liar", "honest"][..],
        &["top", "--rounds", "2", "--every", "100ms"],
    ] {
        let (code, words) = said(&server, lie);
        assert_eq!(code, Some(0), "{words}");
    }
    the_honest_is_served(&server, &liar, &calm);

    // What it said without end is there as far as there is room, and no terminal sees more of it than text.
    let logs = server.run(&["logs", "--tail", "3", "liar"]);
    assert!(logs.status.success() && logs.stdout.len() < 1 << 20);
    let directory = server.data().join("instances");
    let kept: u64 = sizes_in(&directory, "workload.log");
    assert!(kept < 20 << 20, "{kept} bytes of logs");

    let peak = peak_memory(&server);
    println!("the server had {} MiB at most", peak >> 20);
    assert!(peak < MEMORY, "the server had {} MiB", peak >> 20);
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains(ESCAPES), "the server's own log has them");

    assert_eq!(
        server.ok(&["exec", "honest", "echo", "still here"]),
        "still here\n"
    );
    let begun = Instant::now();
    let (status, answer) = server.api("DELETE", "/instances/liar", None);
    assert_eq!(status, 204, "{answer}");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    drop(silent);
    assert_eq!(
        server.ok(&["ps", "-a", "-q", "-o", "name"]).trim(),
        "honest"
    );
    assert_eq!(server.differences(), Vec::<String>::new());
}

fn sizes_in(directory: &Path, prefix: &str) -> u64 {
    let instances = std::fs::read_dir(directory).unwrap().flatten();
    let files = instances.flat_map(|one| std::fs::read_dir(one.path()).unwrap().flatten());
    let logs = files.filter(|file| file.file_name().to_string_lossy().starts_with(prefix));
    logs.map(|file| file.metadata().unwrap().len()).sum()
}

//! A VMM that hangs, on real QEMU: nobody but its own guest is delayed, it can be looked at, and it can be deleted.

use crate::harness::{Mode, Server, http};
use crate::scenarios::in_mode;
use serde_json::{Value, json};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What reads nothing of the hung machine is answered at once, however busy the tests' own machine is.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The process of the machine of an instance, by the host's own records.
fn machine_of(server: &Server, id: &str) -> rustix::process::Pid {
    let read = |path: PathBuf| -> Option<Value> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    };
    let instances = std::fs::read_dir(server.data().join("instances")).unwrap();
    let pid = instances.flatten().find_map(|directory| {
        let record = read(directory.path().join("record.json"))?;
        let machine = read(directory.path().join("vmm.json"))?;
        (record["intent"]["id"] == id).then(|| find_pid(&machine))?
    });
    rustix::process::Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap()
}

fn find_pid(record: &Value) -> Option<u64> {
    match record {
        Value::Object(fields) => match fields.get("pid") {
            Some(pid) => pid.as_u64(),
            None => fields.values().find_map(find_pid),
        },
        _ => None,
    }
}

fn processes_in(bundle: &Path) -> String {
    let file = std::fs::File::open(bundle).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut text = String::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().ends_with("host/processes.txt") {
            entry.read_to_string(&mut text).unwrap();
        }
    }
    text
}

fn a_hung_machine_delays_nobody_else(server: &Server) {
    let create = |id: &str| {
        let body = json!({"id": id, "name": id, "image": "busybox-web", "memory_mb": 128,
                          "cmd": ["sleep", "1000"]});
        let (status, made) = server.api("POST", "/instances", Some(body));
        assert_eq!((status, &made["state"]), (201, &json!("Running")), "{made}");
    };
    create("hung");
    create("calm");
    let machine = machine_of(server, "hung");
    rustix::process::kill_process(machine, rustix::process::Signal::STOP).unwrap();

    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    for path in [
        "/instances",
        "/instances/hung",
        "/operations",
        "/metrics",
        "/ready",
    ] {
        let begun = Instant::now();
        let answer = http(address, "GET", path, None).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert!(
            begun.elapsed() < AT_ONCE,
            "{path} took {:?}",
            begun.elapsed()
        );
    }
    let begun = Instant::now();
    assert_eq!(
        server.ok(&["exec", "calm", "echo", "still here"]),
        "still here\n"
    );
    assert!(begun.elapsed() < AT_ONCE, "exec took {:?}", begun.elapsed());
    // Comes up as if nothing were wrong.
    create("late");
    server.ok(&["stop", "calm"]);

    // What somebody needs who asks why it hangs.
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("hung.tar.gz");
    server.ok(&[
        "debug",
        "bundle",
        "hung",
        "--file",
        bundle.to_str().unwrap(),
    ]);
    let processes = processes_in(&bundle);
    assert!(
        processes.contains("qemu-system") && processes.contains("\n    -m\n"),
        "{processes}"
    );

    // Nothing of it has to answer for it to go.
    let (status, answer) = server.api("DELETE", "/instances/hung", None);
    assert_eq!(status, 204, "{answer}");
    assert!(
        rustix::process::test_kill_process(machine).is_err(),
        "it lives"
    );
}

#[test]
fn a_machine_that_hangs_delays_no_other() {
    const NAME: &str = "a_machine_that_hangs_delays_no_other";
    in_mode(NAME, Mode::Bridge, a_hung_machine_delays_nobody_else);
}

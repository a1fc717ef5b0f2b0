//! The record is lost, or replaced by an older one: nothing that runs is touched, and `warren system recover`
//! brings every instance and reservation back.

use crate::harness::{Mode, Server, eventually, is_root, missing, skip};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The sweep looks twice, a second apart, and removes what both looks found.
const TWO_LOOKS: Duration = Duration::from_secs(3);

/// The machines there are, by the handles of their instances: which process, however it is counted.
pub(crate) fn machines(server: &Server) -> BTreeMap<String, u64> {
    let (_, check) = server.api("GET", "/system/check", None);
    let items = check["inventory"].as_array().unwrap();
    items
        .iter()
        .filter(|item| item["kind"] == "machine")
        .map(|item| {
            let handle = item["handle"].as_str().unwrap().to_owned();
            (handle, item["pid"].as_u64().unwrap())
        })
        .collect()
}

/// The ids of all instances that are Running.
pub(crate) fn running(server: &Server) -> Vec<String> {
    let (_, all) = server.api("GET", "/instances?state=Running", None);
    let ids = all.as_array().unwrap().iter();
    ids.map(|one| one["id"].as_str().unwrap().to_owned())
        .collect()
}

fn store(server: &Server, ending: &str) -> PathBuf {
    server.data().join(format!("store.db{ending}"))
}

fn remove_store(server: &Server) {
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(store(server, ending));
    }
}

pub(crate) fn make(server: &Server, id: &str, port: u16) {
    let body = json!({
        "id": id, "name": id, "image": "busybox-web", "memory_mb": 128, "overlay_size": "16MB", "stop_grace_seconds": 1,
        "cmd": ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"],
        "port_mappings": [{"host_port": port, "guest_port": 80}],
    });
    let (status, made) = server.api("POST", "/instances", Some(body));
    assert_eq!(status, 201, "{made}");
    eventually("it runs", 90, || {
        running(server).contains(&id.to_owned()).then_some(())
    });
}

/// While the record is in doubt: all that ran is shown and runs on, and nothing new is promised.
fn is_in_doubt(server: &Server, runs: &[&str], before: &BTreeMap<String, u64>) {
    eventually("what runs is shown", 10, || {
        (running(server) == runs).then_some(())
    });
    let (status, problem) = server.api(
        "POST",
        "/instances",
        Some(json!({"name": "new", "image": "busybox-web"})),
    );
    assert_eq!((status, &problem["code"]), (503, &json!("record_in_doubt")));
    std::thread::sleep(TWO_LOOKS);
    assert_eq!(machines(server), *before, "something was touched");
    let fsck = server.run(&["fsck"]);
    assert_eq!(fsck.status.code(), Some(1));
    let said = String::from_utf8_lossy(&fsck.stdout).into_owned();
    assert!(said.contains("warren system recover"), "{said}");
}

fn recover(server: &Server) -> Value {
    let recovery = server.ok(&["system", "recover", "-o", "json"]);
    serde_json::from_str(&recovery).unwrap()
}

fn a_lost_record_and_an_older_one(server: &mut Server) {
    let port = |number: u16| 20_000 + (server.port % 4000) * 5 + number;
    let ports: Vec<u16> = (0..5).map(port).collect();
    make(server, "one", ports[0]);
    make(server, "gone", ports[1]);
    make(server, "two", ports[2]);
    let backup = server.data().join("hour-old.db");
    server.ok(&["system", "backup", backup.to_str().unwrap()]);
    server.ok(&["rm", "-f", "gone"]);
    server.ok(&["stop", "two"]);
    make(server, "three", ports[3]);
    assert_eq!(server.differences(), Vec::<String>::new());
    let before = machines(server);
    assert_eq!(before.len(), 2);

    // Lost.
    server.kill();
    remove_store(server);
    server.launch();
    is_in_doubt(server, &["one", "three"], &before);
    // However often it is started.
    server.kill();
    server.launch();
    is_in_doubt(server, &["one", "three"], &before);
    let recovery = recover(server);
    assert_eq!(
        recovery["recovered"],
        json!(["one", "three", "two"]),
        "{recovery}"
    );
    assert_eq!(recovery["forgotten"], json!([]));
    assert_eq!(server.differences(), Vec::<String>::new());
    assert_eq!(machines(server), before, "something was restarted");
    assert_eq!(server.api("GET", "/instances/gone", None).0, 404);
    assert_eq!(
        server.api("GET", "/instances/two", None).1["state"],
        "Stopped"
    );
    assert!(server.ok(&["images"]).contains("busybox-web"));
    // Names, addresses and ports are taken as they were.
    let taken = json!({"name": "one", "image": "busybox-web"});
    assert_eq!(server.api("POST", "/instances", Some(taken)).0, 409);
    let taken = json!({"name": "four", "image": "busybox-web",
                       "port_mappings": [{"host_port": ports[0], "guest_port": 80}]});
    assert_eq!(server.api("POST", "/instances", Some(taken)).0, 409);
    make(server, "four", ports[4]);

    // Replaced by an older one.
    let before = machines(server);
    server.kill();
    remove_store(server);
    std::fs::copy(&backup, store(server, "")).unwrap();
    server.launch();
    is_in_doubt(server, &["four", "one", "three"], &before);
    let recovery = recover(server);
    assert_eq!(
        recovery["recovered"],
        json!(["four", "three"]),
        "{recovery}"
    );
    assert_eq!(recovery["updated"], json!(["two"]), "{recovery}");
    assert_eq!(
        recovery["forgotten"],
        json!(["gone"]),
        "deleted things stay deleted"
    );
    assert_eq!(server.differences(), Vec::<String>::new());
    assert_eq!(machines(server), before, "something was restarted");
    assert_eq!(server.api("GET", "/instances/gone", None).0, 404);

    // From now on it is believed.
    server.kill();
    server.launch();
    eventually("it is believed", 5, || {
        (server.api("GET", "/ready", None).0 == 200).then_some(())
    });
    assert_eq!(server.differences(), Vec::<String>::new());
    assert_eq!(machines(server), before);
    let addresses: std::collections::BTreeSet<String> = ["one", "two", "three", "four"]
        .iter()
        .map(|id| server.api("GET", &format!("/instances/{id}"), None).1["private_ip"].to_string())
        .collect();
    assert_eq!(addresses.len(), 4, "{addresses:?}");
}

#[test]
fn a_lost_record_and_an_older_one_touch_nothing_and_are_rebuilt_on_the_fake_hypervisor() {
    const NAME: &str =
        "a_lost_record_and_an_older_one_touch_nothing_and_are_rebuilt_on_the_fake_hypervisor";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let mut server = Server::start_in(Mode::Bridge, &[("WARREN_HYPERVISORS", "[fake]")]);
    a_lost_record_and_an_older_one(&mut server);
}

#[test]
fn a_lost_record_and_an_older_one_touch_nothing_and_are_rebuilt_while_guests_count() {
    const NAME: &str =
        "a_lost_record_and_an_older_one_touch_nothing_and_are_rebuilt_while_guests_count";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let mut server = Server::start(Mode::Bridge);
    a_lost_record_and_an_older_one(&mut server);
    // Nobody who counted has missed a number.
    for id in ["one", "three", "four"] {
        let numbers: Vec<u64> = eventually("it is heard again", 20, || {
            let lines = server.ok(&["logs", id]);
            let numbers: Vec<u64> = lines.lines().map(|line| line.parse().unwrap()).collect();
            (numbers.len() > 20).then_some(numbers)
        });
        assert!(
            numbers.iter().copied().eq(1..=numbers.len() as u64),
            "{id}: {numbers:?}"
        );
    }
}

/// Makes and removes instances until told to stop; half of the first ones stay.
fn write(server: &Server, stop: &AtomicBool, writer: u32) {
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let id = format!("w{writer}n{number:05}");
        let body = json!({"id": id, "name": id, "image": "busybox-web", "memory_mb": 64, "overlay_size": "16MB",
                          "cmd": ["sleep", "1000"], "network": {"enabled": false}});
        let (status, made) = server.api("POST", "/instances", Some(body));
        assert_eq!((status, &made["state"]), (201, &json!("Running")), "{made}");
        if number % 2 == 0 && number < 10 {
            continue;
        }
        let (status, answer) = server.api("DELETE", &format!("/instances/{id}"), None);
        assert_eq!(status, 204, "{answer}");
    }
}

#[test]
fn backups_taken_during_writes_are_restored_and_brought_up_to_date() {
    const NAME: &str = "backups_taken_during_writes_are_restored_and_brought_up_to_date";
    if !is_root() {
        return skip(NAME, "these tests start as root");
    }
    let environment = [("WARREN_HYPERVISORS", "[fake]"), ("WARREN_NETWORK", "none")];
    let mut server = Server::start_in(Mode::Bridge, &environment);
    let stop = AtomicBool::new(false);
    let backups: Vec<PathBuf> = (0..3)
        .map(|number| server.data().join(format!("copy-{number}.db")))
        .collect();
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || write(server, stop, writer));
        }
        for (number, backup) in backups.iter().enumerate() {
            eventually("more was written", 20, || {
                (running(&server).len() > 3 * number).then_some(())
            });
            server.ok(&["system", "backup", backup.to_str().unwrap()]);
        }
        stop.store(true, Ordering::SeqCst);
    });
    let (before, runs) = (machines(&server), running(&server));
    assert!(!runs.is_empty());
    for backup in backups {
        server.kill();
        server.ok(&["system", "restore", backup.to_str().unwrap()]);
        server.launch();
        eventually("what runs is shown", 10, || {
            (running(&server) == runs).then_some(())
        });
        recover(&server);
        assert_eq!(server.differences(), Vec::<String>::new());
        assert_eq!(
            (machines(&server), running(&server)),
            (before.clone(), runs.clone())
        );
    }
}

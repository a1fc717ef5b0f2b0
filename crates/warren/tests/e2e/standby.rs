//! Into standby and back, on real machines: nothing is lost, nothing is taken meanwhile, and what is not as it was saved is not
//! restored.

use crate::filling::SmallDisk;
use crate::harness::{Mode, Server, eventually, free_port, is_root, missing, skip};
use crate::losing::machines;
use crate::scenarios::{in_mode, page};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Counts without a program for each number, and serves a page.
const COUNT: &str = "httpd -p 80 -h /var/www; mkfifo /tick; exec 3<>/tick; i=0; \
                     while :; do i=$((i+1)); echo $i; read -t 0.1 x <&3; done";

fn make(server: &Server, name: &str, port: u16) {
    let body = json!({
        "id": name, "name": name, "image": "busybox-web", "vcpus": 1, "memory_mb": 128, "overlay_size": "64MB",
        "stop_grace_seconds": 1, "cmd": ["sh", "-c", COUNT],
        "port_mappings": [{"host_port": port, "guest_port": 80}],
    });
    let (status, made) = server.api("POST", "/instances", Some(body));
    assert_eq!(
        (status, made["state"].as_str()),
        (201, Some("Running")),
        "{made}"
    );
}

fn seen(server: &Server, name: &str) -> Value {
    server.api("GET", &format!("/instances/{name}"), None).1
}

fn post(server: &Server, name: &str, verb: &str) -> (u16, Value) {
    server.api("POST", &format!("/instances/{name}/{verb}"), None)
}

/// No number is missing and none came twice; gives the last.
fn counted(server: &Server, name: &str) -> u64 {
    let lines = server.ok(&["logs", name]);
    let numbers: Vec<u64> = lines.lines().map(|line| line.parse().unwrap()).collect();
    let last = numbers.len() as u64;
    assert!(numbers.iter().copied().eq(1..=last), "{numbers:?}");
    last
}

fn counts_beyond(server: &Server, name: &str, before: u64) {
    eventually("it counts on", 20, || {
        (counted(server, name) > before).then_some(())
    });
}

fn in_both(name: &str, scenario: fn(&Server)) {
    in_mode(&format!("{name} (bridge)"), Mode::Bridge, scenario);
    in_mode(&format!("{name} (user)"), Mode::User, scenario);
}

/// Seconds between the guest's clock and this one.
fn clock_error(server: &Server, name: &str) -> f64 {
    let unix = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs_f64()
    };
    let before = unix();
    let said = server.ok(&["exec", name, "date", "+%s"]);
    let after = unix();
    let said: f64 = said.trim().parse().unwrap();
    // It says whole seconds, of some moment in between.
    (before.floor() - said).max(said - after).max(0.0)
}

#[test]
fn what_is_in_standby_takes_nothing_and_comes_back_as_it_was() {
    in_both(
        "what_is_in_standby_takes_nothing_and_comes_back_as_it_was",
        |server| {
            let port = free_port();
            make(server, "counter", port);
            server.ok(&[
                "exec",
                "counter",
                "sh",
                "-c",
                "echo kept > /dev/shm/word; echo kept > /word",
            ]);
            let left = server.ok(&["exec", "-d", "counter", "sleep", "1000"]);
            let before = counted(server, "counter");
            let address = seen(server, "counter")["private_ip"].clone();

            server.ok(&["standby", "counter"]);
            let saved = seen(server, "counter");
            assert_eq!(saved["state"], "Standby");
            assert_eq!(saved["has_snapshot"], true);
            assert_eq!(saved["state_error"], Value::Null);
            assert!(machines(server).is_empty());
            let taken: Vec<String> = server
                .leftovers()
                .into_iter()
                .filter(|left| !left.starts_with("directory"))
                .collect();
            assert_eq!(taken, Vec::<String>::new(), "no process and no device");
            eventually("record and host agree", 5, || {
                server.differences().is_empty().then_some(())
            });
            let refused = server.run(&["exec", "counter", "true"]);
            assert!(
                String::from_utf8_lossy(&refused.stderr).contains("restore it"),
                "{refused:?}"
            );
            assert!(server.ok(&["ps", "-a"]).contains("Standby"));
            // Its clock must not stay behind by what passes here.
            std::thread::sleep(Duration::from_secs(2));

            server.ok(&["restore", "counter"]);
            assert_eq!(seen(server, "counter")["state"], "Running");
            assert!(clock_error(server, "counter") < 0.5);
            let kept = server.ok(&["exec", "counter", "sh", "-c", "cat /dev/shm/word /word"]);
            assert_eq!(kept, "kept\nkept\n");
            counts_beyond(server, "counter", before + 3);
            let running = server.ok(&["execs", "counter"]);
            assert!(
                running.contains(left.trim()) && running.contains("running"),
                "{running}"
            );
            eventually("the page", 20, || page(port));
            assert_eq!(seen(server, "counter")["private_ip"], address);
            eventually("record and host agree", 5, || {
                server.differences().is_empty().then_some(())
            });

            // And once more, from a pause; then it is removed as it is.
            server.ok(&["pause", "counter"]);
            server.ok(&["standby", "counter"]);
            server.ok(&["restore", "counter"]);
            let before = counted(server, "counter");
            counts_beyond(server, "counter", before);
            server.ok(&["standby", "counter"]);
            server.ok(&["rm", "counter"]);
        },
    );
}

#[test]
fn a_guest_that_counts_loses_nothing_over_standby_a_killed_server_and_a_host_that_was_off() {
    const NAME: &str =
        "a_guest_that_counts_loses_nothing_over_standby_a_killed_server_and_a_host_that_was_off";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let mut server = Server::start(Mode::Bridge);
    let port = free_port();
    make(&server, "counter", port);
    let before = counted(&server, "counter");
    server.ok(&["standby", "counter"]);
    let saved = counted(&server, "counter");
    // All processes and network objects go, as with a host that is switched off.
    server.kill();
    let bridge = format!("wrnt{}", server.url().rsplit(':').next().unwrap());
    let installation = std::fs::read_to_string(server.data().join("installation")).unwrap();
    let table = format!("warren_{}", installation.trim());
    for command in [
        ["ip", "link", "del", &bridge].as_slice(),
        &["nft", "delete", "table", "inet", &table],
    ] {
        let _ = Command::new(command[0]).args(&command[1..]).output();
    }
    assert_eq!(server.network_leftovers(), Vec::<String>::new());
    server.launch();
    assert_eq!(seen(&server, "counter")["state"], "Standby");
    server.ok(&["restore", "counter"]);
    assert!(saved >= before);
    counts_beyond(&server, "counter", saved + 3);
    // Killed while it runs again, it goes on as any other.
    server.kill();
    server.launch();
    let now = counted(&server, "counter");
    counts_beyond(&server, "counter", now + 3);
    assert!(clock_error(&server, "counter") < 0.5);
    server.ok(&["rm", "-f", "counter"]);
}

#[test]
fn a_restore_for_which_something_is_missing_says_so_at_once_and_can_be_asked_for_again() {
    in_both(
        "a_restore_for_which_something_is_missing_says_so_at_once_and_can_be_asked_for_again",
        |server| {
            let port = free_port();
            make(server, "web", port);
            server.ok(&["standby", "web"]);
            let taken = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
            for _ in 0..2 {
                let (status, problem) = post(server, "web", "restore");
                let words = problem["detail"].as_str().unwrap_or_default();
                assert!((400..500).contains(&status), "{problem}");
                assert!(words.contains(&port.to_string()), "{problem}");
                assert_eq!(seen(server, "web")["state"], "Standby");
            }
            drop(taken);
            let before = counted(server, "web");
            server.ok(&["restore", "web"]);
            counts_beyond(server, "web", before);
            assert!(page(port).is_some());
            server.ok(&["rm", "-f", "web"]);
        },
    );
}

fn saved_machine(server: &Server) -> PathBuf {
    let homes = std::fs::read_dir(server.data().join("instances")).unwrap();
    let mut machines = homes.map(|home| home.unwrap().path().join("saved/machine"));
    machines.find(|machine| machine.exists()).unwrap()
}

#[test]
fn what_is_not_as_it_was_saved_is_not_restored_and_can_be_given_up() {
    const NAME: &str = "what_is_not_as_it_was_saved_is_not_restored_and_can_be_given_up";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let server = Server::start(Mode::Bridge);
    make(&server, "damaged", free_port());
    server.ok(&["exec", "damaged", "sh", "-c", "echo written > /word; sync"]);
    server.ok(&["standby", "damaged"]);
    let machine = saved_machine(&server);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&machine)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4 << 20).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, 4 << 20).unwrap();

    let restores = || {
        let log = server.log();
        log.lines()
            .filter(|line| line.contains("actor: step") && line.contains("RestoreVmm"))
            .count()
    };
    assert_eq!(restores(), 0);
    let (status, problem) = post(&server, "damaged", "restore");
    assert_eq!(
        (status, problem["code"].as_str()),
        (409, Some("saved_damaged")),
        "{problem}"
    );
    assert_eq!(restores(), 1, "it is not tried again");
    assert!(machines(&server).is_empty());
    let shown = seen(&server, "damaged");
    assert_eq!(shown["state"], "Standby", "{shown}");
    assert!(
        shown["state_error"]
            .as_str()
            .unwrap()
            .contains("machine is not what was written"),
        "{shown}"
    );
    // Put right, it is restored after all.
    byte[0] ^= 1;
    file.write_all_at(&byte, 4 << 20).unwrap();
    let (status, restored) = post(&server, "damaged", "restore");
    assert_eq!(
        (status, restored["state"].as_str()),
        (200, Some("Running")),
        "{restored}"
    );
    assert_eq!(restored["state_error"], Value::Null);
    assert_eq!(server.ok(&["exec", "damaged", "cat", "/word"]), "written\n");

    // Cut off, it is given up: the disk is whole.
    server.ok(&["standby", "damaged"]);
    let machine = std::fs::File::options()
        .write(true)
        .open(saved_machine(&server))
        .unwrap();
    machine.set_len(1 << 20).unwrap();
    let refused = server.run(&["restore", "damaged"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && words.contains("warren stop"),
        "{words}"
    );
    server.ok(&["stop", "damaged"]);
    assert_eq!(seen(&server, "damaged")["has_snapshot"], false);
    server.ok(&["start", "damaged"]);
    assert_eq!(server.ok(&["exec", "damaged", "cat", "/word"]), "written\n");

    // And a broken one can be removed as it is.
    server.ok(&["standby", "damaged"]);
    std::fs::write(saved_machine(&server).with_file_name("manifest.json"), "no").unwrap();
    server.ok(&["rm", "damaged"]);
    eventually("nothing is left", 5, || {
        server.leftovers().is_empty().then_some(())
    });
}

#[test]
fn without_room_for_its_memory_it_runs_on_and_nothing_half_made_stays() {
    const NAME: &str = "without_room_for_its_memory_it_runs_on_and_nothing_half_made_stays";
    if !is_root() {
        return skip(NAME, "mounting a small file system needs root");
    }
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let disk = SmallDisk::make();
    let server = Server::start_at(&disk.place, &[]);
    make(&server, "large", free_port());
    // Less than its kernel alone takes, and enough for records.
    disk.fill(4096);
    let before = counted(&server, "large");
    let (status, problem) = post(&server, "large", "standby");
    assert_eq!(
        (status, problem["code"].as_str()),
        (507, Some("host_disk_full")),
        "{problem}"
    );
    eventually("it runs on", 20, || {
        (seen(&server, "large")["state"] == "Running").then_some(())
    });
    assert!(
        seen(&server, "large")["state_error"]
            .as_str()
            .unwrap()
            .contains("no room")
    );
    counts_beyond(&server, "large", before + 3);
    let homes = std::fs::read_dir(server.data().join("instances")).unwrap();
    for home in homes {
        let home = home.unwrap().path();
        assert!(!home.join("saved").exists() && !home.join("saved.new").exists());
    }
    disk.empty();
    server.ok(&["standby", "large"]);
    assert_eq!(seen(&server, "large")["state_error"], Value::Null);
    server.ok(&["restore", "large"]);
    let now = counted(&server, "large");
    counts_beyond(&server, "large", now);
    server.ok(&["rm", "-f", "large"]);
}

//! The server dies while guests count, and a newer one is started, to which the record is of an older schema: nobody
//! misses a number, and the server is soon there.
//!
//! `./dev soak upgrade` runs it at full size, with these in the environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `WARREN_UPGRADE_GUESTS=N` | so many count |
//! | `WARREN_UPGRADE_EXACT=1` | the API is up within one second, and all are heard again within two |
//! | `WARREN_OLDER=FILE` | the program of an older release, which is upgraded from, and gone back to afterwards |
//!
//! Without an older release the record is turned back to what one would have left.

use crate::harness::{Build, Mode, Server, eventually, missing, skip};
use crate::losing::{machines, running};
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The schema of the releases before.
const OLDER: u32 = 1;

/// Turns the record of a server that does not run back to the first schema.
pub(crate) fn turn_back(data: &Path) {
    Connection::open(data.join("store.db"))
        .unwrap()
        .execute_batch("ALTER TABLE counters DROP COLUMN held; PRAGMA user_version = 1;")
        .unwrap();
}

fn schema(file: &Path) -> u32 {
    let store = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    store
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap()
}

/// Makes the guests, two at a time.
fn make_all(server: &Server, ids: &[String], pause: &str) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(id) = ids.get(next.fetch_add(1, Ordering::SeqCst)) {
                    // Without a program for each number: an emulated machine takes long to start one.
                    let count = format!(
                        "mkfifo /tick; exec 3<>/tick; i=0; while :; do i=$((i+1)); echo $i; read -t {pause} x <&3; done"
                    );
                    let body = json!({
                        "id": id, "name": id, "image": "busybox-web", "vcpus": 1, "memory_mb": 96,
                        "overlay_size": "16MB",
                        "cmd": ["sh", "-c", count],
                    });
                    let (status, made) = server.api("POST", "/instances", Some(body));
                    assert_eq!(status, 201, "{made}");
                }
            });
        }
    });
}

/// What each guest has said, as far as the host has it.
fn logs(server: &Server) -> Vec<PathBuf> {
    let homes = std::fs::read_dir(server.data().join("instances")).unwrap();
    homes
        .map(|home| home.unwrap().path().join("workload.log"))
        .collect()
}

fn sizes(logs: &[PathBuf]) -> Vec<u64> {
    let size = |log: &PathBuf| log.metadata().map_or(0, |log| log.len());
    logs.iter().map(size).collect()
}

/// Until every guest has been heard since its log was of this size.
fn all_heard(logs: &[PathBuf], before: &[u64], seconds: u64) {
    eventually("every guest is heard", seconds, || {
        let now = sizes(logs);
        let heard = now.iter().zip(before).all(|(now, before)| now > before);
        heard.then_some(())
    });
}

fn numbers(server: &Server, id: &str) -> Vec<u64> {
    let lines = server.ok(&["logs", id]);
    lines.lines().map(|line| line.parse().unwrap()).collect()
}

/// No number is missing and none came twice; gives the last.
fn has_counted(server: &Server, id: &str) -> u64 {
    let numbers = numbers(server, id);
    let last = numbers.len() as u64;
    assert!(numbers.iter().copied().eq(1..=last), "{id}: {numbers:?}");
    last
}

#[test]
fn guests_that_count_miss_no_number_while_the_server_is_killed_and_upgraded() {
    const NAME: &str = "guests_that_count_miss_no_number_while_the_server_is_killed_and_upgraded";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let guests = std::env::var("WARREN_UPGRADE_GUESTS").ok();
    let guests: usize = guests.and_then(|text| text.parse().ok()).unwrap_or(3);
    let is_exact = std::env::var_os("WARREN_UPGRADE_EXACT").is_some();
    let has_older = std::env::var_os("WARREN_OLDER").is_some();
    // Many that count fast are a load of their own.
    let (pause, silence) = if guests > 10 { ("1", 3) } else { ("0.1", 1) };

    let mut server = Server::start_build(Build::Older, Mode::Bridge, &[]);
    let ids: Vec<String> = (0..guests)
        .map(|number| format!("guest-{number:03}"))
        .collect();
    make_all(&server, &ids, pause);
    let logs = logs(&server);
    all_heard(&logs, &vec![0; guests], 120);
    let before: Vec<u64> = ids.iter().map(|id| has_counted(&server, id)).collect();
    let vmms = machines(&server);
    assert_eq!(vmms.len(), guests);

    server.kill();
    if !has_older {
        turn_back(server.data());
    }
    let record = server.data().join("store.db");
    assert_eq!(schema(&record), OLDER);
    let heard = sizes(&logs);
    std::thread::sleep(Duration::from_secs(silence));
    assert_eq!(sizes(&logs), heard, "nobody listens");

    server.becomes(Build::Chosen);
    let started = Instant::now();
    server.launch();
    let up = started.elapsed();
    all_heard(&logs, &heard, 60);
    let adopted = started.elapsed();
    assert_eq!(running(&server), ids);
    println!(
        "{guests} guests: the API was up after {up:.0?}, all were heard again after {adopted:.0?}"
    );
    if is_exact {
        assert!(up <= Duration::from_secs(1), "the API was up after {up:?}");
        assert!(
            adopted <= Duration::from_secs(2),
            "all were heard after {adopted:?}"
        );
    }
    assert!(schema(&record) > OLDER);
    let kept = server.data().join(format!("store.db.schema-{OLDER}"));
    assert_eq!(schema(&kept), OLDER);

    all_count_on(&server, &ids, &before, silence);
    assert_eq!(machines(&server), vmms, "the same machines run on");
    assert_eq!(server.differences(), Vec::<String>::new());
    if has_older {
        go_back(&mut server, &kept, &ids);
        all_count_on(&server, &ids, &before, silence);
        assert_eq!(machines(&server), vmms, "the same machines run on");
    }
    println!("{guests} guests: no number is missing");
}

fn all_count_on(server: &Server, ids: &[String], before: &[u64], silence: u64) {
    for (id, before) in ids.iter().zip(before) {
        eventually("it counted on", 60, || {
            (has_counted(server, id) > before + silence).then_some(())
        });
    }
}

/// The older release does not read the newer record, says so, and goes on from the copy that was kept.
fn go_back(server: &mut Server, kept: &Path, ids: &[String]) {
    server.kill();
    server.becomes(Build::Older);
    server.spawn(&[]);
    assert!(
        server.dies_within(Duration::from_secs(10)),
        "it reads what it does not know"
    );
    let log = server.log();
    assert!(
        log.contains("written by a newer Warren (schema 2)"),
        "{log}"
    );
    server.ok(&["system", "restore", kept.to_str().unwrap()]);
    server.launch();
    server.ok(&["system", "recover"]);
    assert_eq!(running(server), ids);
    assert_eq!(server.differences(), Vec::<String>::new());
}

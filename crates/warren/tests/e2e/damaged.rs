//! Single records of the store are damaged: each is set aside and named, the rest serve, nothing that runs is
//! touched, and what `warren fsck` advises puts it right.

use crate::harness::{Mode, Server, eventually, missing, skip};
use crate::losing::{machines, make, running};
use rusqlite::Connection;
use serde_json::{Value, json};

/// What the store knows of an instance, but for its status, which comes again by itself.
fn keys_of(server: &Server, id: &str) -> Vec<String> {
    let store = Connection::open(server.data().join("store.db")).unwrap();
    let query = "SELECT key FROM records WHERE key NOT LIKE 'status/%' AND key NOT LIKE 'event/%'
                 AND (key = 'instance/' || ?1 OR CAST(value AS TEXT) = '\"' || ?1 || '\"') ORDER BY key";
    let mut statement = store.prepare(query).unwrap();
    let keys = statement.query_map([id], |row| row.get(0)).unwrap();
    keys.map(Result::unwrap).collect()
}

/// One bit of a record is another, and its checksum is the old one.
fn flip(server: &Server, key: &str) {
    let store = Connection::open(server.data().join("store.db")).unwrap();
    let mut value: Vec<u8> = store
        .query_row("SELECT value FROM records WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .unwrap();
    let middle = value.len() / 2;
    value[middle] ^= 0x10;
    let changed = store
        .execute(
            "UPDATE records SET value = ?1 WHERE key = ?2",
            rusqlite::params![value, key],
        )
        .unwrap();
    assert_eq!(changed, 1);
}

/// The handle of an instance, as its record says.
fn handle_of(server: &Server, id: &str) -> String {
    let store = Connection::open(server.data().join("store.db")).unwrap();
    let query = "SELECT value FROM records WHERE key = 'instance/' || ?1";
    let value: Vec<u8> = store.query_row(query, [id], |row| row.get(0)).unwrap();
    let intent: Value = serde_json::from_slice(&value).unwrap();
    intent["handle"].as_str().unwrap().to_owned()
}

/// A start with these records flipped, and what comes of it; gives what `warren fsck` said.
fn start_with(server: &mut Server, flipped: &[String]) -> String {
    server.kill();
    for key in flipped {
        flip(server, key);
    }
    server.launch();
    eventually("all that ran is shown", 10, || {
        (running(server) == ["one", "two"]).then_some(())
    });
    // The rest serve, and nobody gets what the damaged one has.
    server.ok(&["stop", "one"]);
    server.ok(&["start", "one"]);
    let second = json!({"name": "two", "image": "busybox-web"});
    let (status, refused) = server.api("POST", "/instances", Some(second));
    assert_eq!((status, &refused["code"]), (409, &json!("name_taken")));
    let fsck = server.run(&["fsck", "--repair"]);
    let said = String::from_utf8_lossy(&fsck.stdout).into_owned();
    for key in flipped {
        let named = format!("the record {key} was damaged");
        assert!(said.contains(&named), "{key}: {said}");
    }
    said
}

#[test]
fn a_flipped_record_is_named_the_rest_serve_and_what_is_advised_puts_it_right() {
    const NAME: &str = "a_flipped_record_is_named_the_rest_serve_and_what_is_advised_puts_it_right";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let mut server = Server::start_in(Mode::Bridge, &[("WARREN_HYPERVISORS", "[fake]")]);
    let port = 20_000 + (server.port % 4000) * 5;
    make(&server, "one", port);
    make(&server, "two", port + 1);
    let handle = handle_of(&server, "two");
    let machine = machines(&server)[&handle];
    let (instance, others): (Vec<String>, Vec<String>) = keys_of(&server, "two")
        .into_iter()
        .partition(|key| key.starts_with("instance/"));
    let kinds: Vec<&str> = others
        .iter()
        .filter_map(|key| key.split('/').next())
        .collect();
    assert_eq!(kinds, ["address", "name", "port", "slug"]);

    // What follows from instances is put right from them.
    start_with(&mut server, &others);
    assert_eq!(server.differences(), Vec::<String>::new());
    assert_eq!(keys_of(&server, "two").len(), 5);

    // The record of an instance is what its host remembers of it; until somebody has asked for that, no repair takes
    // anything of it away.
    let said = start_with(&mut server, &instance);
    assert!(said.contains("warren system recover"), "{said}");
    assert_eq!(machines(&server).get(&handle), Some(&machine));
    assert_eq!(keys_of(&server, "two").len(), 4);
    let recovery = server.ok(&["system", "recover"]);
    assert!(recovery.contains("two: recorded again"), "{recovery}");
    assert_eq!(server.differences(), Vec::<String>::new());
    assert_eq!(keys_of(&server, "two").len(), 5);
    assert_eq!(machines(&server).get(&handle), Some(&machine));
}

#[test]
fn a_repair_without_a_server_takes_nothing_away_whose_record_is_lost() {
    const NAME: &str = "a_repair_without_a_server_takes_nothing_away_whose_record_is_lost";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let mut server = Server::start_in(Mode::Bridge, &[("WARREN_HYPERVISORS", "[fake]")]);
    make(&server, "one", 20_000 + (server.port % 4000) * 5);
    let before = machines(&server);
    let (_, check) = server.api("GET", "/system/check", None);
    server.kill();
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(server.data().join(format!("store.db{ending}")));
    }
    let data = server.data().to_str().unwrap().to_owned();
    let repair = server.run(&["fsck", "--repair", "-o", "json", "--data-dir", &data]);
    let repair: Value = serde_json::from_slice(&repair.stdout).unwrap();
    assert_eq!(repair["repaired"], json!([]), "{repair}");
    assert_eq!(repair["failed"], json!([]), "{repair}");
    server.launch();
    server.ok(&["system", "recover"]);
    assert_eq!(server.differences(), Vec::<String>::new());
    assert_eq!(machines(&server), before);
    let (_, after) = server.api("GET", "/system/check", None);
    assert_eq!(after["inventory"], check["inventory"]);
}

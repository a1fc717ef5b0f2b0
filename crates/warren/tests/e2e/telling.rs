//! What a server tells of itself: its log, the bundle for whoever looks for a fault, and what it was busy with. On the
//! fake hypervisor.

use crate::harness::{Mode, Server, missing, skip};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

const SECRET: &str = "sesame-open-wide";

fn instance() -> Value {
    json!({"id": "told", "name": "told", "image": "busybox-web", "memory_mb": 64, "overlay_size": "16MB",
           "cmd": ["sleep", "1000"], "env": {"KEY": SECRET}, "network": {"enabled": false}})
}

#[test]
fn each_line_of_the_log_is_an_object_with_the_ids_of_request_and_instance() {
    const NAME: &str = "each_line_of_the_log_is_an_object_with_the_ids_of_request_and_instance";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let environment = [
        ("WARREN_HYPERVISORS", "[fake]"),
        ("WARREN_LOG", "info,warren_control=debug,warren_agent=debug"),
        ("WARREN_LOG_FORMAT", "json"),
    ];
    let server = Server::start_in(Mode::Bridge, &environment);
    let headers = [("X-Request-Id", "trace-me-1")];
    let made = server.try_api_with("POST", "/instances", Some(instance()), &headers);
    assert_eq!(made, Some(201), "{}", server.log());
    let (status, _) = server.api("DELETE", "/instances/told", None);
    assert_eq!(status, 204);
    let log = server.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let within = |line: &Value, name: &str, value: &str| {
        let spans = line["spans"].as_array();
        spans.is_some_and(|spans| spans.iter().any(|span| span[name] == value))
    };
    let said = |words: &str| {
        let found = lines
            .iter()
            .find(|line| line["message"] == words && within(line, "request_id", "trace-me-1"));
        found.unwrap_or_else(|| panic!("{words:?} is not in {log}"))
    };
    assert_eq!(said("an instance was recorded")["instance"], "told");
    assert_eq!(said("answered")["status"], 201);
    assert!(
        lines.iter().any(|line| within(line, "instance", "told")),
        "no line of its actor: {log}"
    );
    assert!(!log.contains(SECRET), "a secret is in the log");
}

/// The archive's files by name, without their directory.
fn unpack(file: &Path) -> BTreeMap<String, String> {
    let file = std::fs::File::open(file).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let name = path.strip_prefix("warren-debug-told").unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(name.display().to_string(), text);
    }
    files
}

#[test]
fn a_bundle_has_what_the_host_knows_and_no_secret() {
    const NAME: &str = "a_bundle_has_what_the_host_knows_and_no_secret";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let server = Server::start_in(Mode::Bridge, &[("WARREN_HYPERVISORS", "[fake]")]);
    let (status, made) = server.api("POST", "/instances", Some(instance()));
    assert_eq!(status, 201, "{made}");
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("told.tar.gz");
    server.ok(&["debug", "bundle", "told", "--file", file.to_str().unwrap()]);
    let files = unpack(&file);
    let record: Value = serde_json::from_str(&files["host/record.json"]).unwrap();
    assert_eq!(record["intent"]["id"], "told");
    assert_eq!(record["intent"]["spec"]["env"]["KEY"], "(hidden)");
    assert!(record["attach_key"].is_null());
    assert!(files["host/files.txt"].contains("disk.ext4"), "{files:?}");
    assert!(files["events.jsonl"].contains("created"), "{files:?}");
    assert_eq!(files["missing.txt"], "nothing\n");
    let versions: Value = serde_json::from_str(&files["versions.json"]).unwrap();
    assert_eq!(versions["server"], env!("CARGO_PKG_VERSION"));
    assert!(versions["client"].as_str().unwrap().starts_with("warren/"));
    for (name, text) in &files {
        assert!(!text.contains(SECRET), "{name}: {text}");
    }
    // What it was busy with before: the image that the test loaded.
    let operations = server.ok(&["operations", "--all", "-o", "json"]);
    let operations: Value = serde_json::from_str(&operations).unwrap();
    assert_eq!(operations[0]["kind"], "load");
    assert_eq!(operations[0]["state"], "succeeded", "{operations}");
    assert!(
        operations[0]["bytes_done"].as_u64() > Some(0),
        "{operations}"
    );
    let (status, _) = server.api("DELETE", "/instances/told", None);
    assert_eq!(status, 204);
    assert!(!server.log().contains('\u{1b}'), "a file is no terminal");
}

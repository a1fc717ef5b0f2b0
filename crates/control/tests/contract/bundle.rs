//! The bundle for whoever looks for a fault: whole, and without secrets.

use super::*;
use std::collections::BTreeMap;
use std::io::Read;
use warren_core::ports::host_link::{LogLine, OutputStream};

const SECRET: &str = "hunter2-and-more";

/// The archive's files by name.
fn unpack(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    };
    archive.entries().unwrap().map(read).collect()
}

impl World {
    async fn bundle(&self, name: &str) -> BTreeMap<String, String> {
        let request = Request::get(format!("/instances/{name}/debug-bundle"))
            .header("host", "localhost:8080")
            .header("user-agent", "warren/9.9")
            .body(Body::empty())
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/gzip");
        unpack(&to_bytes(response.into_body(), 1 << 24).await.unwrap())
    }
}

#[tokio::test]
async fn a_bundle_has_everything_that_is_known_and_no_secret() {
    let world = world().await;
    world
        .make(json!({"id": "web", "name": "web", "image": "busybox", "env": {"DB_KEY": SECRET, "A": "1"},
            "cmd": ["serve", format!("--key={SECRET}"), "--password=pw", "https://me:word@db"]}))
        .await;
    world
        .make(json!({"id": "other", "name": "other", "image": "busybox"}))
        .await;
    world.host.logs.lock().unwrap().push(LogLine {
        seq: 11,
        at: support::now(),
        stream: OutputStream::Stdout,
        text: format!("connected with {SECRET} as Bearer abcdefghijkl"),
    });
    // What the host says of it is an event a moment after it is shown.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let files = loop {
        let files = world.bundle("web").await;
        let events = &files["warren-debug-web/events.jsonl"];
        if events.contains("\"state_changed\"") || tokio::time::Instant::now() > deadline {
            break files;
        }
    };
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        "README.txt",
        "check.json",
        "doctor.json",
        "events.jsonl",
        "host/processes.txt",
        "host/record.json",
        "instance.json",
        "intent.json",
        "logs/console.log",
        "logs/vmm.log",
        "logs/workload.log",
        "missing.txt",
        "operations.json",
        "stats.json",
        "status.json",
        "versions.json",
    ]
    .map(|name| format!("warren-debug-web/{name}"));
    assert_eq!(names, expected);
    let file = |name: &str| &files[&format!("warren-debug-web/{name}")];
    let object = |name: &str| serde_json::from_str::<Value>(file(name)).unwrap();

    assert_eq!(file("missing.txt"), "nothing\n");
    assert_eq!(
        object("instance.json")["env"],
        json!({"A": "(hidden)", "DB_KEY": "(hidden)"})
    );
    assert_eq!(object("intent.json")["intent"]["spec"]["name"], "web");
    assert_eq!(object("doctor.json")["host"]["cpus"], 8);
    assert_eq!(object("doctor.json")["readiness"]["ready"], true);
    let versions = object("versions.json");
    assert_eq!(
        (&versions["server"], &versions["client"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!("warren/9.9"))
    );
    assert!(file("host/processes.txt").contains("qemu-system-x86_64"));
    assert!(file("logs/workload.log").contains("line 10"));
    assert!(file("logs/workload.log").contains("connected with (hidden) as Bearer (hidden)"));
    let events: Vec<Value> = file("events.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        events.len() >= 2
            && events
                .iter()
                .all(|one| one["event"].to_string().contains("web")),
        "{events:?}"
    );

    for (name, text) in &files {
        for secret in [SECRET, "never to be seen", "abcdefghijkl", "=pw", ":word@"] {
            assert!(!text.contains(secret), "{secret} is in {name}: {text}");
        }
        assert!(
            !text.contains("\"other\"") || name.ends_with("doctor.json"),
            "{name}: {text}"
        );
    }
}

#[tokio::test]
async fn a_bundle_of_nobody_is_refused() {
    let world = world().await;
    world
        .get("/instances/nobody/debug-bundle")
        .await
        .problem(404, "instance_not_found");
}

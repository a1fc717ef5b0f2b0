//! Streams, restarts, and what the server tells about itself.

use super::*;

#[tokio::test]
async fn logs_resume_after_the_last_event() {
    let world = world().await;
    world
        .make(json!({"id": "logs", "name": "l", "image": "busybox"}))
        .await;
    let all = world.get("/instances/logs/logs").await;
    assert_eq!(all.headers["content-type"], "text/event-stream");
    assert_eq!(all.text.matches("data: line ").count(), 10);
    let tail = world.get("/instances/logs/logs?tail=2&format=json").await;
    assert_eq!(
        tail.text.matches("data: {\"seq\"").count(),
        2,
        "{}",
        tail.text
    );
    let rest = world
        .with(
            "GET",
            "/instances/logs/logs",
            None,
            &[("last-event-id", "7")],
        )
        .await;
    assert_eq!(rest.text.matches("data: line ").count(), 3);
    assert!(rest.text.contains("id: 8\ndata: line 8\n\n"));
    world
        .with(
            "GET",
            "/instances/logs/logs",
            None,
            &[("last-event-id", "x")],
        )
        .await
        .problem(400, "invalid_header");
    world
        .get("/instances/logs/logs?source=moon")
        .await
        .problem(400, "invalid_query");
}

#[tokio::test]
async fn a_host_that_refuses_gets_it_later_and_a_restart_loses_nothing() {
    let world = world().await;
    *world.host.refuse_applies.lock().unwrap() = 3;
    let made = world
        .make(json!({"id": "later", "name": "later", "image": "busybox"}))
        .await;
    assert_eq!(made["state"], "Running");
    world.stop().await;
    let second = world.next_server().await;
    assert_eq!(
        second.get("/instances/later").await.json()["state"],
        "Running"
    );
    second.ready().await;
    second
        .call(
            "POST",
            "/instances",
            Some(json!({"name": "later", "image": "busybox"})),
        )
        .await
        .problem(409, "name_taken");
    assert!(*world.host.synced.lock().unwrap() >= 2);
}

#[tokio::test]
async fn ids_of_requests_come_back() {
    let world = world().await;
    let answer = world
        .with("GET", "/health", None, &[("x-request-id", "abc-1")])
        .await;
    assert_eq!(answer.headers["x-request-id"], "abc-1");
    let answer = world
        .with(
            "GET",
            "/health",
            None,
            &[("x-request-id", &"x".repeat(100))],
        )
        .await;
    assert_eq!(answer.headers["x-request-id"].len(), 16);
    assert_eq!(answer.status, StatusCode::OK.as_u16());
}

#[tokio::test]
async fn a_damaged_record_is_skipped_and_nothing_is_swept() {
    use warren_core::ports::Store;
    use warren_core::ports::store::{Transaction, Write};
    let first = world().await;
    first
        .make(json!({"id": "whole", "name": "whole", "image": "busybox"}))
        .await;
    first.stopping.cancel();
    let damage = Transaction {
        guards: Vec::new(),
        writes: vec![Write::Put("instance/broken".into(), "{".into())],
    };
    first.store.commit(damage).await.unwrap();
    let host = Host::new();
    let second = world_with(Auth::from_secret(None), host.clone(), first.store.clone()).await;
    second.ready().await;
    let shown = second
        .get("/instances/whole/wait?state=Running&timeout=5s")
        .await;
    assert_eq!(shown.json()["state"], "Running", "{}", shown.text);
    assert_eq!(*host.synced.lock().unwrap(), 0, "a sync sweeps");
    assert_eq!(*host.applied.lock().unwrap(), 1);
}

#[tokio::test]
async fn changes_of_an_instance_are_kept() {
    let world = world().await;
    world
        .make(json!({"name": "p", "image": "busybox", "env": {"A": "1"}}))
        .await;
    let patch = json!({"env": {"B": "2"}, "restart_policy": {"policy": "always"}});
    let changed = world
        .call("PATCH", "/instances/p", Some(patch))
        .await
        .json();
    assert_eq!(changed["env"], json!({"B": "2"}));
    assert_eq!(changed["restart_policy"]["policy"], "always");
    let bad = json!({"env": {"": "x"}});
    world
        .call("PATCH", "/instances/p", Some(bad))
        .await
        .problem(400, "invalid_field");
    let soon = json!({"auto_standby": {"enabled": true}});
    world
        .call("PATCH", "/instances/p", Some(soon))
        .await
        .problem(501, "not_implemented");
}

#[tokio::test]
async fn the_server_tells_about_itself() {
    let world = world().await;
    world.ready().await;
    world
        .make(json!({"id": "m", "name": "m", "image": "busybox", "memory_mb": 512}))
        .await;
    let metrics = world.get("/metrics").await;
    assert!(metrics.text.ends_with("# EOF\n"));
    for line in [
        "warren_instances{state=\"Running\"} 1",
        "warren_instances{state=\"Standby\"} 0",
        "warren_http_requests_total{method=\"POST\",route=\"/instances\",status=\"201\"} 1",
    ] {
        assert!(metrics.text.contains(line), "{line}: {}", metrics.text);
    }
    let resources = world.get("/resources").await.json();
    assert_eq!(resources["memory"]["allocated"], 512 << 20);
    assert_eq!(resources["allocations"][0]["instance_id"], "m");
    let spec = world.get("/spec.json").await.json();
    assert_eq!(spec["openapi"], "3.1.0");
    let docs = world.get("/docs").await;
    assert!(
        docs.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
    // The page works where there is no network but the server's.
    assert!(!docs.text.contains("http://") && !docs.text.contains("https://"));
    assert!(docs.headers.contains_key("content-security-policy"));
}

#[tokio::test]
async fn room_is_promised_once() {
    let world = world().await;
    world.host.report.lock().unwrap().memory = warren_core::MemoryMib(4096);
    let body = |name: &str| json!({"name": name, "image": "busybox", "memory_mb": 2000});
    world.make(body("one")).await;
    world
        .call("POST", "/instances", Some(body("two")))
        .await
        .problem(429, "no_capacity");
    // A stopped one takes none, until it is to start again.
    assert_eq!(
        world.call("POST", "/instances/one/stop", None).await.status,
        200
    );
    world.make(body("two")).await;
    world
        .call("POST", "/instances/one/start", None)
        .await
        .problem(429, "no_capacity");
}

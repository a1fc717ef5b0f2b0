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
async fn logs_are_of_the_period_that_was_asked_for() {
    let world = world().await;
    world
        .make(json!({"id": "logs", "name": "l", "image": "busybox"}))
        .await;
    let all = world.get("/instances/logs/logs?format=json").await;
    let times: Vec<String> = all
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| line["at"].as_str().unwrap().to_owned())
        .collect();
    assert!(times.len() == 10 && times[3] < times[4], "{times:?}");
    let count = async |query: &str| {
        let answer = world.get(&format!("/instances/logs/logs?{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text);
        answer.text.matches("data: line ").count()
    };
    assert_eq!(count(&format!("since={}", times[3])).await, 7);
    assert_eq!(count(&format!("until={}", times[3])).await, 3);
    let both = format!("since={}&until={}", times[3], times[7]);
    assert_eq!(count(&both).await, 4);
    assert_eq!(count(&format!("{both}&tail=1")).await, 1);
    // What is over is not waited for.
    assert_eq!(count(&format!("{both}&follow=true")).await, 4);
    for wrong in ["since=10m", "until=2026-01-31", "since=0"] {
        world
            .get(&format!("/instances/logs/logs?{wrong}"))
            .await
            .problem(400, "invalid_query");
    }
}

#[tokio::test]
async fn what_instances_use_is_told_of_one_and_of_all() {
    let world = world().await;
    for name in ["here", "gone"] {
        let body = json!({"id": name, "name": name, "image": "busybox"});
        world.make(body).await;
    }
    let stats = world.get("/instances/here/stats").await.json();
    assert_eq!(stats["guest_memory_used_bytes"], 28 << 20, "{stats}");
    assert_eq!(stats["guest"]["disk_written_bytes"], 5 << 20, "{stats}");
    assert_eq!(stats["guest"]["tasks"], 7, "{stats}");
    let metrics = world.get("/metrics").await.text;
    for line in [
        "warren_instance_cpu_seconds_total{id=\"here\",name=\"here\"} 1.5",
        "warren_instance_guest_cpu_seconds_total{id=\"here\",name=\"here\"} 1.25",
        "warren_instance_guest_disk_written_bytes_total{id=\"here\",name=\"here\"} 5242880",
        "warren_instance_guest_memory_used_bytes{id=\"here\",name=\"here\"} 29360128",
        "warren_instance_guest_tasks{id=\"here\",name=\"here\"} 7",
        "warren_instance_memory_resident_bytes{id=\"gone\",name=\"gone\"} 67108864",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line}: {metrics}");
    }
    assert_eq!(metrics.matches("# EOF").count(), 1);
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    // A name says nothing of what is not there.
    world.call("DELETE", "/instances/gone", None).await;
    let metrics = world.get("/metrics").await.text;
    assert!(metrics.contains("name=\"here\""), "{metrics}");
    assert!(!metrics.contains("name=\"gone\""), "{metrics}");
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

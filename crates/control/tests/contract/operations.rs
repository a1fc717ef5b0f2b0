//! `/operations`: everything long is seen while it is under way and for a while after, and can be ended.

use super::*;

const PULL: &str = "localhost:5000/team/web:1";

async fn list(world: &World, query: &str) -> Vec<Value> {
    let answer = world.get(&format!("/operations{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json().as_array().unwrap().clone()
}

/// The operations, when one of them is like that.
async fn until(world: &World, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let all = list(world, "").await;
        if let Some(one) = all.iter().find(|one| done(one)) {
            return one.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "{all:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_pull_is_seen_from_its_queue_to_its_end() {
    let world = world().await;
    assert!(list(&world, "").await.is_empty());
    world.host.pulls_held.send_replace(true);
    for number in 0..4 {
        let body = json!({"name": format!("{PULL}{number}")});
        let begun = world.call("POST", "/images", Some(body)).await;
        assert_eq!(begun.status, 202, "{}", begun.text);
    }
    let queued = until(&world, |one| one["subject"] == format!("{PULL}3")).await;
    assert_eq!(queued["kind"], "pull");
    let running = until(&world, |one| one["state"] == "running").await;
    assert_eq!(running["phase"], "resolving", "{running}");
    assert!(running["started_at"].is_string() && running["ended_at"].is_null());
    // Three come in at once.
    until(&world, |one| {
        one["subject"] == format!("{PULL}2") && one["state"] == "running"
    })
    .await;
    assert_eq!(list(&world, "?state=queued").await.len(), 1);
    assert_eq!(list(&world, "?state=queued,running").await.len(), 4);
    world.host.pulls_held.send_replace(false);
    for number in 0..4 {
        let done = until(&world, |one| {
            one["subject"] == format!("{PULL}{number}") && one["state"] == "succeeded"
        });
        let done = done.await;
        assert!(
            done["ended_at"].is_string() && done["phase"].is_null(),
            "{done}"
        );
        assert_eq!(done["bytes_total"], 10);
        let id = done["id"].as_str().unwrap();
        assert_eq!(world.get(&format!("/operations/{id}")).await.json(), done);
    }
    *world.clock.passed.lock().unwrap() = Duration::from_secs(3601);
    assert!(
        list(&world, "").await.is_empty(),
        "nobody asks after an hour"
    );
}

#[tokio::test]
async fn a_cancelled_pull_ends_for_all_who_wait_and_gives_its_place_to_the_next() {
    let world = world().await;
    world.host.pulls_held.send_replace(true);
    let body = json!({"name": PULL});
    let events = [("accept", "text/event-stream")];
    let cancel = async {
        let one = until(&world, |one| one["state"] == "running").await;
        let route = format!("/operations/{}", one["id"].as_str().unwrap());
        let ended = world.call("DELETE", &route, None).await;
        (ended, route)
    };
    let pull = || world.with("POST", "/images", Some(body.clone()), &events);
    let (first, second, (ended, route)) = tokio::join!(pull(), pull(), cancel);
    assert_eq!(ended.status, 200, "{}", ended.text);
    assert_eq!(ended.json()["state"], "cancelled");
    assert_eq!(ended.json()["error"]["code"], "cancelled");
    for followed in [first, second] {
        assert!(
            followed.text.contains("event: problem\n"),
            "{}",
            followed.text
        );
        assert!(
            followed.text.contains("\"code\":\"cancelled\""),
            "{}",
            followed.text
        );
    }
    let problem = world.call("DELETE", &route, None).await;
    problem.problem(409, "wrong_state");
    // It is no image that failed to come, and its place in the queue is free.
    world
        .get(&format!("/images/{PULL}"))
        .await
        .problem(404, "image_not_found");
    world.host.pulls_held.send_replace(false);
    let again = world
        .with("POST", "/images", Some(body.clone()), &events)
        .await;
    assert!(again.text.contains("event: images\n"), "{}", again.text);
}

#[tokio::test]
async fn what_waits_for_its_turn_can_be_cancelled_and_what_runs_goes_on() {
    let world = world().await;
    world.host.pulls_held.send_replace(true);
    for number in 0..4 {
        let body = json!({"name": format!("{PULL}{number}")});
        world.call("POST", "/images", Some(body)).await;
    }
    until(&world, |one| {
        one["subject"] == format!("{PULL}2") && one["state"] == "running"
    })
    .await;
    let waiting = until(&world, |one| one["state"] == "queued").await;
    let route = format!("/operations/{}", waiting["id"].as_str().unwrap());
    let ended = world.call("DELETE", &route, None).await.json();
    assert_eq!(ended["state"], "cancelled");
    assert!(ended["started_at"].is_null());
    assert_eq!(list(&world, "?state=running").await.len(), 3);
}

#[tokio::test]
async fn pushes_commits_loads_archives_and_verifications_are_operations_too() {
    let world = world().await;
    world
        .make(json!({"id": "i-one", "name": "one", "image": "busybox"}))
        .await;
    let calls = [
        (
            "/pushes",
            json!({"image": "busybox", "target": "localhost:5000/away:1"}),
        ),
        (
            "/instances/i-one/commit",
            json!({"name": "localhost/made:1"}),
        ),
        ("/images/verify", json!({"image": "busybox"})),
        ("/images/save", json!({"names": ["busybox"]})),
        (
            "/images/export",
            json!({"name": "busybox", "format": "ext4"}),
        ),
    ];
    for (path, body) in calls {
        let answer = world.call("POST", path, Some(body)).await;
        assert!(answer.status < 300, "{path}: {}", answer.text);
    }
    let load = Request::post("/images/load?name=loaded:1")
        .header("host", "localhost:8080")
        .body(Body::from("archive"))
        .unwrap();
    assert_eq!(world.send(load).await.status, 201);
    for (kind, subject) in [
        ("push", "localhost:5000/away:1"),
        ("commit", "localhost/made:1"),
        ("verify", "localhost:5000/team/busybox:latest"),
        ("save", "localhost:5000/team/busybox:latest"),
        ("export", "localhost:5000/team/busybox:latest"),
        ("load", "loaded:1"),
    ] {
        let one = until(&world, |one| {
            one["kind"] == kind && one["state"] == "succeeded"
        })
        .await;
        assert_eq!(one["subject"], subject);
    }
    let saved = until(&world, |one| one["kind"] == "save").await;
    assert_eq!(saved["bytes_done"], saved["bytes_total"], "{saved}");
}

#[tokio::test]
async fn an_archive_breaks_off_when_it_is_cancelled_or_nobody_reads_it() {
    let world = world().await;
    let save = || {
        Request::post("/images/save")
            .header("host", "localhost:8080")
            .header("content-type", "application/json")
            .body(Body::from(json!({"names": ["busybox"]}).to_string()))
            .unwrap()
    };
    let response = world.router.clone().oneshot(save()).await.unwrap();
    let one = until(&world, |one| one["kind"] == "save").await;
    assert_eq!(
        (&one["state"], &one["phase"]),
        (&json!("running"), &json!("sending"))
    );
    drop(response);
    let left = until(&world, |one| one["state"] == "failed").await;
    assert_eq!(left["error"]["code"], "interrupted", "{left}");

    let response = world.router.clone().oneshot(save()).await.unwrap();
    let one = until(&world, |one| one["state"] == "running").await;
    let route = format!("/operations/{}", one["id"].as_str().unwrap());
    let (ended, body) = tokio::join!(
        world.call("DELETE", &route, None),
        to_bytes(response.into_body(), 1 << 22),
    );
    assert_eq!(ended.json()["state"], "cancelled", "{}", ended.text);
    assert!(body.is_err(), "what is not whole must not look so");
}

#[tokio::test]
async fn a_load_that_breaks_off_has_failed() {
    let world = world().await;
    let pieces = futures::stream::iter([
        Ok::<_, std::io::Error>("arch"),
        Err(std::io::ErrorKind::ConnectionReset.into()),
    ]);
    let load = Request::post("/images/load?name=loaded:1")
        .header("host", "localhost:8080")
        .body(Body::from_stream(pieces))
        .unwrap();
    world.send(load).await.problem(400, "invalid_body");
    let one = until(&world, |one| one["kind"] == "load").await;
    assert_eq!(
        (&one["state"], &one["error"]["code"]),
        (&json!("failed"), &json!("invalid_body"))
    );
    assert_eq!(one["bytes_done"], 4);
}

#[tokio::test]
async fn questions_about_operations_that_make_no_sense_are_refused() {
    let world = world().await;
    for (method, path, status, code) in [
        ("GET", "/operations?state=lost", 400, "invalid_query"),
        ("GET", "/operations?kind=pull", 400, "invalid_query"),
        ("GET", "/operations/op-none", 404, "operation_not_found"),
        ("DELETE", "/operations/op-none", 404, "operation_not_found"),
        ("POST", "/operations", 405, "method_not_allowed"),
    ] {
        world.call(method, path, None).await.problem(status, code);
    }
}

//! Back-pressure: who comes when as many are on their way as may be is asked to come again, and everything else is
//! served as ever.

use super::*;

/// A world in which two instances may be on their way up, each for as long as `start_wait`.
async fn narrow(start_wait: Duration) -> World {
    let store = Arc::new(MemoryStore::new());
    world_set(Auth::from_secret(None), Host::new(), store, |settings| {
        settings.starts = 2;
        settings.start_wait = start_wait;
    })
    .await
}

impl World {
    /// One that never comes up.
    async fn hang(&self, name: &str) {
        let body = json!({"id": name, "name": name, "image": "busybox", "cmd": ["hang"]});
        let answer = self.call("POST", "/instances?wait=none", Some(body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
    }

    async fn create(&self, name: &str) -> Answer {
        let body = json!({"id": name, "name": name, "image": "busybox"});
        self.call("POST", "/instances", Some(body)).await
    }

    /// Comes again as it is told, without its pauses.
    async fn create_with_patience(&self, name: &str) -> Answer {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            let answer = self.create(name).await;
            if answer.status != 429 || tokio::time::Instant::now() > deadline {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn at_the_bound_creates_and_starts_are_put_off_and_all_else_is_served() {
    let world = narrow(Duration::from_secs(60)).await;
    assert_eq!(world.create("done").await.status, 201);
    let stopped = world.call("POST", "/instances/done/stop", None).await;
    assert_eq!(stopped.status, 200, "{}", stopped.text);
    // Its place is given back a moment after it is up.
    for name in ["one", "two"] {
        let body = json!({"id": name, "name": name, "image": "busybox", "cmd": ["hang"]});
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            let answer = world
                .call("POST", "/instances?wait=none", Some(body.clone()))
                .await;
            if answer.status == 201 {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{}", answer.text);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let refused = world.create("three").await;
    refused.problem(429, "too_many_requests");
    assert_eq!(refused.headers["retry-after"], "1");
    let started = world.call("POST", "/instances/done/start", None).await;
    started.problem(429, "too_many_requests");

    // Looking, stopping, changing, deleting, images: as ever.
    for path in [
        "/instances",
        "/instances/one",
        "/images",
        "/operations",
        "/metrics",
    ] {
        assert_eq!(world.get(path).await.status, 200, "{path}");
    }
    let patch = Some(json!({"env": {"A": "1"}}));
    let changed = world.call("PATCH", "/instances/done", patch).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let body = Some(json!({"name": "localhost:5000/team/web:1"}));
    assert_eq!(world.call("POST", "/images", body).await.status, 202);
    let stopped = world.call("POST", "/instances/one/stop", None).await;
    assert_eq!(stopped.status, 200, "{}", stopped.text);
    assert_eq!(world.create_with_patience("three").await.status, 201);
    let deleted = world.call("DELETE", "/instances/two", None).await;
    assert_eq!(deleted.status, 204, "{}", deleted.text);
    for name in ["four", "five"] {
        assert_eq!(world.create_with_patience(name).await.status, 201);
    }
}

#[tokio::test]
async fn an_instance_that_hangs_delays_no_other() {
    let world = narrow(Duration::from_secs(60)).await;
    world.hang("hung").await;
    for number in 0..20 {
        let made = world.create_with_patience(&format!("n{number}")).await;
        assert_eq!(made.status, 201, "{}", made.text);
        assert_eq!(made.json()["state"], "Running");
    }
    assert_eq!(
        world.get("/instances/hung").await.json()["state"],
        "Initializing"
    );
}

#[tokio::test]
async fn one_that_hangs_gives_its_place_back_after_as_long_as_a_client_waits() {
    let world = narrow(Duration::from_millis(200)).await;
    world.hang("one").await;
    world.hang("two").await;
    world
        .create("three")
        .await
        .problem(429, "too_many_requests");
    assert_eq!(world.create_with_patience("three").await.status, 201);
}

#[tokio::test]
async fn a_create_that_is_refused_takes_no_place() {
    let world = narrow(Duration::from_secs(60)).await;
    for _ in 0..5 {
        let body = json!({"name": "x", "image": "absent"});
        let refused = world.call("POST", "/instances", Some(body)).await;
        refused.problem(404, "image_not_found");
    }
    world.hang("one").await;
    world.hang("two").await;
}

#[tokio::test]
async fn archives_of_images_have_a_bound_too() {
    let world = world().await;
    let request = || {
        Request::post("/images/save")
            .header("host", "localhost:8080")
            .header("content-type", "application/json")
            .body(Body::from(json!({"names": ["busybox"]}).to_string()))
            .unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..64 {
        let response = world.router.clone().oneshot(request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        held.push(response);
    }
    world
        .send(request())
        .await
        .problem(429, "too_many_requests");
    held.pop();
    assert_eq!(world.send(request()).await.status, 200);
}

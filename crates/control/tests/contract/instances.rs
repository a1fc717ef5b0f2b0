//! Instances: both generations' requests, states, admission, idempotency, lists.

use super::*;

#[tokio::test]
async fn the_seeds_example_works_as_printed() {
    let world = world().await;
    let body = r#"{
    "id": "my-instance",
    "name": "My Workload",
    "image": "img-nginx",
    "memory_mb": 2048,
    "memory_max_mb": 4096,
    "vcpus": 2,
    "env": {
      "NODE_ENV": "production"
    }
  }"#;
    let request = Request::post("/instances")
        .header("Host", "localhost:8080")
        .header("Content-Type", "application/json")
        .body(Body::from(body))
        .unwrap();
    let answer = world.send(request).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let made = answer.json();
    assert_eq!(made["id"], "my-instance");
    assert_eq!(made["state"], "Running");
    assert_eq!(made["memory_mb"], 2048);
    assert_eq!(made["env"]["NODE_ENV"], "production");
    assert_eq!(made["fqdn"], "my-workload");
    // The other generation's fields are there as well.
    assert_eq!(made["size"], "2GB");
    assert_eq!(made["network"]["ip"], made["private_ip"]);
    for path in [
        "/instances/my-instance",
        "/instances/My%20Workload",
        "/instances/my-i",
    ] {
        assert_eq!(world.get(path).await.json()["id"], "my-instance", "{path}");
    }
}

#[tokio::test]
async fn the_grown_up_request_works_too() {
    let world = world().await;
    let made = world
        .make(json!({
            "name": "web", "image": "docker.io/library/nginx:1.27", "size": "512MB", "overlay_size": "2GB",
            "hotplug_size": "512MB", "tags": {"team": "a"}, "network": {"enabled": true}, "hypervisor": "fake",
            "restart_policy": {"policy": "on_failure", "backoff": "1s"}, "cmd": ["serve"], "entrypoint": ["/e"],
            "skip_kernel_headers": true, "health_check": {"type": "none"}, "snapshot_policy": {},
        }))
        .await;
    assert_eq!(made["memory_mb"], 512);
    assert_eq!(made["memory_max_mb"], 1024);
    assert_eq!(made["overlay_size"], "2GB");
    assert_eq!(
        (&made["tags"], &made["labels"]),
        (&json!({"team": "a"}), &json!({"team": "a"}))
    );
    assert_eq!(made["restart_policy"]["policy"], "on_failure");
    assert_eq!(made["hypervisor"], "fake");
    assert_eq!(made["health_check"]["type"], "none");
}

#[tokio::test]
async fn how_a_workload_ends_is_told() {
    let world = world().await;
    let ended = world
        .make(json!({"name": "e", "image": "busybox", "cmd": ["exit", "7"]}))
        .await;
    assert!(matches!(
        ended["state"].as_str(),
        Some("Running" | "Stopped")
    ));
    let waited = world
        .get("/instances/e/wait?state=Stopped&timeout=5s")
        .await
        .json();
    assert_eq!(
        waited,
        json!({"state": "Stopped", "exit_code": 7, "timed_out": false})
    );
    // Running will not come any more: told at once.
    let waited = world
        .get("/instances/e/wait?state=Running&timeout=60s")
        .await
        .json();
    assert_eq!(waited["timed_out"], false);
    let failed = world
        .make(json!({"name": "f", "image": "busybox", "cmd": ["fail"]}))
        .await;
    assert_eq!(failed["state"], "Stopped");
    assert_eq!(failed["state_error"], "the double was told to fail");
    let hanging = world
        .call(
            "POST",
            "/instances?wait=none",
            Some(json!({"name": "h", "image": "busybox", "cmd": ["hang"]})),
        )
        .await;
    assert_eq!(hanging.status, 201);
    let waited = world
        .get("/instances/h/wait?state=Running&timeout=100ms")
        .await
        .json();
    assert_eq!(waited["timed_out"], true);
}

#[tokio::test]
async fn an_instance_that_removes_itself_goes() {
    let world = world().await;
    world.make(json!({"id": "gone", "name": "g", "image": "busybox", "cmd": ["exit", "0"], "auto_remove": true})).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while world.get("/instances/gone").await.status == 200 {
        assert!(tokio::time::Instant::now() < deadline, "it stayed");
        tokio::task::yield_now().await;
    }
    // Its name and address are free again.
    world
        .make(json!({"id": "gone", "name": "g", "image": "busybox"}))
        .await;
}

#[tokio::test]
async fn refusals_have_their_statuses_and_codes() {
    let world = world().await;
    world.make(json!({"id": "aaaa1", "name": "one", "image": "busybox", "port_mappings": [{"host_port": 80, "guest_port": 80}]})).await;
    world
        .make(json!({"id": "aaaa2", "name": "two", "image": "busybox"}))
        .await;
    world.host.taken_ports.lock().unwrap().insert(9999);
    let create = |body: Value| ("POST", "/instances", Some(body));
    let many: serde_json::Map<String, Value> =
        (0..65).map(|i| (i.to_string(), json!(""))).collect();
    type Case<'a> = ((&'a str, &'a str, Option<Value>), u16, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (create(json!({"name": "x"})), 400, "invalid_body"),
        (
            create(json!({"name": "x", "image": "busybox", "colour": 1})),
            400,
            "invalid_body",
        ),
        (create(json!(["x", "busybox"])), 400, "invalid_body"),
        (
            create(json!({"name": "", "image": "busybox"})),
            400,
            "invalid_field",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "id": "a/b"})),
            400,
            "invalid_field",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "vcpus": 0})),
            400,
            "invalid_field",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "size": "big"})),
            400,
            "invalid_field",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "tags": many})),
            400,
            "invalid_field",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "platform": "linux/arm64"})),
            400,
            "invalid_field",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "gpu": {}})),
            501,
            "not_implemented",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "hypervisor": "firecracker"})),
            501,
            "hypervisor_unavailable",
        ),
        (
            create(json!({"name": "x", "image": "nothing:1"})),
            404,
            "image_not_found",
        ),
        (
            create(json!({"name": "one", "image": "busybox"})),
            409,
            "name_taken",
        ),
        (
            create(json!({"id": "aaaa1", "name": "x", "image": "busybox"})),
            409,
            "id_taken",
        ),
        (
            create(
                json!({"name": "x", "image": "busybox", "port_mappings": [{"host_port": 80, "guest_port": 1}]}),
            ),
            409,
            "port_taken",
        ),
        (
            create(
                json!({"name": "x", "image": "busybox", "port_mappings": [{"host_port": 9999, "guest_port": 1}]}),
            ),
            409,
            "port_taken",
        ),
        (
            create(json!({"name": "x", "image": "busybox", "memory_mb": 1 << 21})),
            429,
            "no_capacity",
        ),
        (
            ("GET", "/instances/nobody", None),
            404,
            "instance_not_found",
        ),
        (("GET", "/instances/aaaa", None), 409, "ambiguous"),
        (
            ("DELETE", "/instances/aaaa", None),
            404,
            "instance_not_found",
        ),
        (("GET", "/instances?colour=red", None), 400, "invalid_query"),
        (("GET", "/instances/aaaa1?x=1", None), 400, "invalid_query"),
        (
            ("GET", "/instances?state=Exploded", None),
            400,
            "invalid_query",
        ),
        (("GET", "/instances?limit=0", None), 400, "invalid_query"),
        (
            ("GET", "/instances?page_token=!!", None),
            400,
            "invalid_page_token",
        ),
        (("GET", "/instances/aaaa1/wait", None), 400, "invalid_query"),
        (
            (
                "GET",
                "/instances/aaaa1/wait?state=Running&timeout=soon",
                None,
            ),
            400,
            "invalid_query",
        ),
        (("GET", "/instances/%ff", None), 400, "invalid_path"),
        (
            ("GET", "/instances/aaaa1/exec", None),
            400,
            "upgrade_required",
        ),
        (("GET", "/nowhere", None), 404, "route_not_found"),
        (("PUT", "/instances", None), 405, "method_not_allowed"),
        (("POST", "/instances", None), 415, "unsupported_media_type"),
        (
            (
                "POST",
                "/instances/aaaa1/standby",
                Some(json!({"compression": {"enabled": true}})),
            ),
            501,
            "not_implemented",
        ),
        (
            ("POST", "/instances/aaaa1/fork", None),
            501,
            "not_implemented",
        ),
        (("GET", "/volumes?tags[a]=b", None), 501, "not_implemented"),
        (("GET", "/volumes?what=b", None), 400, "invalid_query"),
        (("DELETE", "/images/busybox", None), 409, "image_in_use"),
        (
            ("GET", "/images/nothing/at/all:1", None),
            404,
            "image_not_found",
        ),
    ];
    for ((method, path, body), status, code) in cases {
        let told = format!("{method} {path} {body:?}");
        let answer = world.call(method, path, body).await;
        assert_eq!(answer.status, status, "{told}: {}", answer.text);
        let problem = answer.problem(status, code);
        assert_eq!(
            problem["instance"],
            path.split('?').next().unwrap(),
            "{told}"
        );
    }
    let missing = world
        .call(
            "POST",
            "/instances",
            Some(json!({"name": "x", "image": "nothing:1"})),
        )
        .await;
    assert!(missing.text.contains("warren pull nothing:1"));
    let ambiguous = world.get("/instances/aaaa").await.json();
    assert_eq!(ambiguous["details"].as_array().unwrap().len(), 2);
    let large = json!({"name": "x", "image": "busybox", "user": "u".repeat(2 << 20)});
    world
        .call("POST", "/instances", Some(large))
        .await
        .problem(413, "body_too_large");
    let allow = world.call("PUT", "/instances", None).await;
    assert!(allow.headers.contains_key("allow"));
}

#[tokio::test]
async fn every_request_in_every_state_has_an_answer() {
    use warren_core::admission::{Admission, Operation, admit};
    use warren_core::instance::Desired;
    in_every_state("i-state", async |world, state| {
        for route in ["exec", "attach"] {
            let answer = world.get(&format!("/instances/i-state/{route}")).await;
            match state {
                // These can be waited for, once it is a WebSocket.
                StateName::Running | StateName::Created | StateName::Initializing => {
                    answer.problem(400, "upgrade_required")
                }
                _ => answer.problem(409, "wrong_state"),
            };
        }
    })
    .await;
    for (verb, operation) in [
        ("start", Operation::Start),
        ("stop", Operation::Stop),
        ("pause", Operation::Pause),
        ("resume", Operation::Resume),
        ("standby", Operation::Standby),
        ("restore", Operation::Restore),
    ] {
        in_every_state("i-state", async |world, state| {
            let answer = world
                .call("POST", &format!("/instances/i-state/{verb}"), None)
                .await;
            match admit(operation, state, Desired::Running) {
                Admission::Refuse(_) => {
                    answer.problem(409, "wrong_state");
                }
                Admission::Accept | Admission::AlreadySo => {
                    assert_eq!(answer.status, 200, "{verb} in {state}: {}", answer.text);
                }
            }
            // Whatever happened: it can be deleted, and again.
            assert_eq!(
                world
                    .call("DELETE", "/instances/i-state", None)
                    .await
                    .status,
                204,
                "{verb} in {state}"
            );
            world
                .get("/instances/i-state")
                .await
                .problem(404, "instance_not_found");
        })
        .await;
    }
}

#[tokio::test]
async fn into_standby_and_back() {
    let world = world_of_one("i-standby").await;
    let post = async |verb: &str, body| {
        let path = format!("/instances/i-standby/{verb}");
        world.call("POST", &path, body).await
    };
    for body in [None, Some(json!({"compression": {"enabled": false}}))] {
        let saved = post("standby", body).await.json();
        assert_eq!(saved["state"], "Standby");
        assert_eq!(saved["has_snapshot"], true);
        // Again: it is so already.
        assert_eq!(post("standby", None).await.status, 200);
        let refused = post("start", None).await;
        assert!(
            refused.problem(409, "wrong_state")["detail"]
                .as_str()
                .unwrap()
                .contains("restore it")
        );
        let restored = post("restore", None).await.json();
        assert_eq!(restored["state"], "Running");
        assert_eq!(restored["has_snapshot"], false);
        post("restore", None).await.problem(409, "wrong_state");
    }
    // Its memory is given up, and it can be started.
    post("standby", None).await;
    assert_eq!(post("stop", None).await.json()["state"], "Stopped");
    assert_eq!(post("start", None).await.json()["state"], "Running");
}

#[tokio::test]
async fn what_cannot_be_saved_runs_on_and_its_caller_hears_why() {
    let world = world().await;
    let body = json!({"id": "full", "name": "full", "image": "busybox", "cmd": ["unsavable"]});
    world.make(body).await;
    let answer = world.call("POST", "/instances/full/standby", None).await;
    let problem = answer.problem(507, "host_disk_full");
    assert_eq!(problem["detail"], "the double has no room");
    let shown = world.get("/instances/full").await.json();
    assert_eq!(shown["state"], "Running");
    assert_eq!(shown["state_error"], "the double has no room");
    // Asked again, it is tried again; and another wish is another one.
    let again = world.call("POST", "/instances/full/standby", None).await;
    again.problem(507, "host_disk_full");
    let stopped = world.call("POST", "/instances/full/stop", None).await;
    assert_eq!(stopped.json()["state"], "Stopped");
}

#[tokio::test]
async fn of_two_hundred_creates_of_one_name_one_succeeds() {
    let world = Arc::new(world().await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let world = world.clone();
        tasks.spawn(async move {
            world
                .call(
                    "POST",
                    "/instances",
                    Some(json!({"name": "one", "image": "busybox"})),
                )
                .await
                .status
        });
    }
    let statuses = tasks.join_all().await;
    assert_eq!(statuses.iter().filter(|s| **s == 201).count(), 1);
    assert_eq!(statuses.iter().filter(|s| **s == 409).count(), 199);
}

#[tokio::test]
async fn addresses_are_given_once() {
    let world = Arc::new(world().await);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..100 {
        let world = world.clone();
        tasks.spawn(async move {
            world
                .make(json!({"name": format!("n{i}"), "image": "busybox"}))
                .await["private_ip"]
                .to_string()
        });
    }
    let addresses: std::collections::BTreeSet<String> =
        tasks.join_all().await.into_iter().collect();
    assert_eq!(addresses.len(), 100);
}

#[tokio::test]
async fn idempotency_keys() {
    let world = world().await;
    let body = json!({"name": "k", "image": "busybox"});
    let key = [("idempotency-key", "k-1")];
    let first = world
        .with("POST", "/instances", Some(body.clone()), &key)
        .await;
    assert_eq!(first.status, 201);
    let again = world
        .with("POST", "/instances", Some(body.clone()), &key)
        .await;
    assert_eq!((again.status, &again.text), (201, &first.text));
    let other = json!({"name": "other", "image": "busybox"});
    world
        .with("POST", "/instances", Some(other), &key)
        .await
        .problem(409, "idempotency_mismatch");
    world
        .with("POST", "/instances?wait=none", Some(body.clone()), &key)
        .await
        .problem(409, "idempotency_mismatch");
    // Another server on the same store knows the key, too.
    let second = world.next_server().await;
    let later = second
        .with("POST", "/instances", Some(body.clone()), &key)
        .await;
    assert_eq!(later.text, first.text);
    *world.clock.passed.lock().unwrap() = Duration::from_secs(24 * 3600 + 1);
    world
        .with("POST", "/instances", Some(body), &key)
        .await
        .problem(409, "name_taken");
    world
        .with(
            "POST",
            "/instances",
            Some(json!({"name": "x", "image": "busybox"})),
            &[("idempotency-key", "")],
        )
        .await
        .problem(400, "invalid_header");
}

#[tokio::test]
async fn duplicates_in_flight_wait_for_the_first() {
    let world = Arc::new(world().await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let world = world.clone();
        tasks.spawn(async move {
            let body = json!({"name": "once", "image": "busybox"});
            let answer = world
                .with(
                    "POST",
                    "/instances",
                    Some(body),
                    &[("idempotency-key", "same")],
                )
                .await;
            (answer.status, answer.text)
        });
    }
    let answers: std::collections::BTreeSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers.first().unwrap().0, 201);
    assert_eq!(*world.host.applied.lock().unwrap(), 1);
}

#[tokio::test]
async fn pages_and_filters() {
    let world = world().await;
    for i in 0..7 {
        world.make(json!({"id": format!("i{i}"), "name": format!("n{i}"), "image": "busybox", "labels": {"odd": (i % 2).to_string()}})).await;
    }
    let mut seen = Vec::new();
    let mut path = "/instances?limit=3".to_owned();
    loop {
        let answer = world.get(&path).await;
        seen.extend(
            answer
                .json()
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["id"].as_str().unwrap().to_owned()),
        );
        match answer.headers.get("x-next-page-token") {
            Some(token) => {
                path = format!("/instances?limit=3&page_token={}", token.to_str().unwrap())
            }
            None => break,
        }
    }
    assert_eq!(seen, (0..7).map(|i| format!("i{i}")).collect::<Vec<_>>());
    for query in [
        "labels=odd%3D1",
        "tags[odd]=1",
        "tags%5Bodd%5D=1&state=Running,Paused",
    ] {
        assert_eq!(
            world
                .get(&format!("/instances?{query}"))
                .await
                .json()
                .as_array()
                .unwrap()
                .len(),
            3,
            "{query}"
        );
    }
    assert_eq!(
        world.get("/instances?state=Stopped").await.json(),
        json!([])
    );
}

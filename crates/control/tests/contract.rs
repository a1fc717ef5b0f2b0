//! The REST contract over a host without machines: every generation's shapes, every refusal's status.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

#[expect(dead_code, reason = "each test file uses a part")]
mod support;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use support::{Host, TestClock};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use warren_control::{App, Auth, Settings, http};
use warren_core::InstallationId;
use warren_core::state::InstanceState;
use warren_store::MemoryStore;

struct World {
    router: Router,
    host: Arc<Host>,
    clock: Arc<TestClock>,
    store: Arc<MemoryStore>,
    stopping: CancellationToken,
    _spool: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

async fn world() -> World {
    world_with(
        Auth::from_secret(None),
        Host::new(),
        Arc::new(MemoryStore::new()),
    )
    .await
}

async fn world_with(auth: Auth, host: Arc<Host>, store: Arc<MemoryStore>) -> World {
    let spool = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(InstallationId::from_entropy([1; 3]), spool.path().into());
    settings.start_wait = Duration::from_secs(5);
    settings.removal_delay = Duration::from_millis(100);
    let clock = TestClock::new();
    let stopping = CancellationToken::new();
    let app = App::start(
        store.clone(),
        host.clone(),
        clock.clone(),
        settings,
        stopping.clone(),
    )
    .await
    .unwrap();
    World {
        router: http::router(app, auth),
        host,
        clock,
        store,
        stopping,
        _spool: spool,
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Every refusal is one document with the fields of both generations.
    fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["message"], problem["detail"]);
        assert!(problem["type"].is_string() && problem["title"].is_string());
        problem
    }
}

impl World {
    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = to_bytes(response.into_body(), 1 << 22).await.unwrap();
        Answer {
            status,
            headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn with(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.with(method, path, body, &[]).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    async fn ready(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while self.get("/ready").await.status != 200 {
            assert!(tokio::time::Instant::now() < deadline, "never ready");
            tokio::task::yield_now().await;
        }
    }

    async fn make(&self, body: Value) -> Value {
        let answer = self.call("POST", "/instances", Some(body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.json()
    }
}

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
            ("POST", "/instances/aaaa1/standby", None),
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
    use warren_core::state::StateName;
    let vmm =
        || serde_json::from_value(json!({"pid": 1, "start_time": 1, "boot_id": "b"})).unwrap();
    let states = || {
        let since = support::now();
        [
            InstanceState::Created,
            InstanceState::Initializing { vmm: vmm(), since },
            InstanceState::Running { vmm: vmm(), since },
            InstanceState::Paused { vmm: vmm(), since },
            InstanceState::Shutdown { vmm: vmm() },
            InstanceState::Stopped,
            InstanceState::Standby,
            InstanceState::Unknown {
                reason: "the host is away".into(),
            },
        ]
    };
    for state in states() {
        let world = world().await;
        world
            .make(json!({"id": "i-state", "name": "i", "image": "busybox"}))
            .await;
        let name = state.name();
        world.host.force("i-state", state);
        let shown = format!("/instances/i-state/wait?state={name}&timeout=5s");
        world.get(&shown).await;
        for route in ["exec", "attach"] {
            let answer = world.get(&format!("/instances/i-state/{route}")).await;
            match name {
                // These can be waited for, once it is a WebSocket.
                StateName::Running | StateName::Created | StateName::Initializing => {
                    answer.problem(400, "upgrade_required")
                }
                _ => answer.problem(409, "wrong_state"),
            };
        }
    }
    for (verb, operation) in [
        ("start", Operation::Start),
        ("stop", Operation::Stop),
        ("pause", Operation::Pause),
        ("resume", Operation::Resume),
    ] {
        for state in states() {
            let world = world().await;
            world
                .make(json!({"id": "i-state", "name": "i", "image": "busybox"}))
                .await;
            let name: StateName = state.name();
            world.host.force("i-state", state);
            let shown = format!("/instances/i-state/wait?state={name}&timeout=5s");
            assert_eq!(world.get(&shown).await.json()["state"], name.to_string());
            let answer = world
                .call("POST", &format!("/instances/i-state/{verb}"), None)
                .await;
            match admit(operation, name, Desired::Running) {
                Admission::Refuse(_) => {
                    answer.problem(409, "wrong_state");
                }
                Admission::Accept | Admission::AlreadySo => {
                    assert_eq!(answer.status, 200, "{verb} in {name}: {}", answer.text);
                }
            }
            // Whatever happened: it can be deleted, and again.
            assert_eq!(
                world
                    .call("DELETE", "/instances/i-state", None)
                    .await
                    .status,
                204,
                "{verb} in {name}"
            );
            world
                .get("/instances/i-state")
                .await
                .problem(404, "instance_not_found");
        }
    }
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
    let second = world_with(
        Auth::from_secret(None),
        world.host.clone(),
        world.store.clone(),
    )
    .await;
    let later = second
        .with("POST", "/instances", Some(body.clone()), &key)
        .await;
    assert_eq!(later.text, first.text);
    *world.clock.ahead.lock().unwrap() = Duration::from_secs(24 * 3600 + 1);
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

#[tokio::test]
async fn images_of_both_generations() {
    let world = world().await;
    for path in [
        "/images/img-nginx",
        "/images/docker.io%2Flibrary%2Fnginx:1.27",
        "/images/docker.io/library/nginx:1.27",
    ] {
        let image = world.get(path).await.json();
        assert_eq!(
            (image["id"].as_str(), image["version"].as_str()),
            (Some("img-nginx"), Some("1.27")),
            "{path}"
        );
        assert_eq!(image["status"], "ready");
    }
    let here = world
        .call(
            "POST",
            "/images",
            Some(json!({"name": "docker.io/library/nginx:1.27"})),
        )
        .await;
    assert_eq!(here.status, 201);
    world.host.pulls_held.send_replace(true);
    let coming = world
        .call(
            "POST",
            "/images",
            Some(json!({"name": "localhost:5000/web:1", "id": "img-web"})),
        )
        .await;
    assert_eq!(coming.status, 202, "{}", coming.text);
    assert!(matches!(
        coming.json()["status"].as_str(),
        Some("pending" | "pulling")
    ));
    world.host.pulls_held.send_replace(false);
    let events = world
        .with(
            "POST",
            "/images",
            Some(json!({"name": "localhost:5000/web:1", "id": "img-web"})),
            &[("accept", "text/event-stream")],
        )
        .await;
    assert_eq!(events.status, 200);
    assert!(
        events.text.contains("event: images\n") && events.text.ends_with(": end\n\n"),
        "{}",
        events.text
    );
    assert_eq!(world.get("/images/img-web").await.json()["status"], "ready");
    let failed = world
        .with(
            "POST",
            "/images",
            Some(json!({"name": "registry.example/none:1"})),
            &[("accept", "text/event-stream")],
        )
        .await;
    assert!(failed.text.contains("event: problem\n"), "{}", failed.text);
    let failed = world.get("/images/registry.example/none:1").await.json();
    assert_eq!(failed["status"], "failed");
    assert!(
        failed["error"]
            .as_str()
            .unwrap()
            .contains("registry.example/none:1")
    );
    assert_eq!(
        world
            .call("DELETE", "/images/registry.example/none:1", None)
            .await
            .status,
        204
    );
    assert_eq!(
        world.call("DELETE", "/images/img-web", None).await.status,
        204
    );
}

#[tokio::test]
async fn a_deleted_image_is_gone_whatever_pulls_have_failed() {
    let world = world().await;
    let path = "/images/docker.io/library/nginx:1.27";
    let again = json!({"name": "docker.io/library/nginx:1.27", "id": "another"});
    let events = [("accept", "text/event-stream")];
    let failed = world.with("POST", "/images", Some(again), &events).await;
    assert!(failed.text.contains("event: problem"), "{}", failed.text);
    assert_eq!(world.get(path).await.json()["status"], "ready");
    assert_eq!(world.call("DELETE", path, None).await.status, 204);
    world.get(path).await.problem(404, "image_not_found");
}

#[tokio::test]
async fn archives_are_loaded() {
    let world = world().await;
    let load = |body: &'static str, path: &str| {
        Request::post(path)
            .header("host", "localhost")
            .header("content-type", "application/octet-stream")
            .body(Body::from(body))
            .unwrap()
    };
    let loaded = world
        .send(load("archive of web", "/images/load?name=web:1"))
        .await;
    assert_eq!(
        (loaded.status, loaded.json()[0]["name"].as_str()),
        (201, Some("web:1"))
    );
    world
        .send(load("junk", "/images/load?name=web:1"))
        .await
        .problem(400, "not_an_archive");
    world
        .send(load("", "/images/load"))
        .await
        .problem(400, "invalid_body");
    let html = Request::post("/images/load")
        .header("host", "localhost")
        .header("content-type", "text/html")
        .body(Body::from("x"))
        .unwrap();
    world
        .send(html)
        .await
        .problem(415, "unsupported_media_type");
    assert_eq!(
        std::fs::read_dir(world._spool.path()).unwrap().count(),
        0,
        "uploads are removed"
    );
}

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
async fn credentials_and_scopes() {
    let world = world_with(
        Auth::from_secret(Some("s3cret")),
        Host::new(),
        Arc::new(MemoryStore::new()),
    )
    .await;
    assert_eq!(world.get("/health").await.status, 200);
    assert_eq!(world.get("/spec.json").await.status, 200);
    for path in ["/instances", "/metrics", "/docs", "/ready", "/nowhere"] {
        let refused = world.get(path).await;
        refused.problem(401, "unauthorized");
        assert!(refused.headers.contains_key("www-authenticate"));
    }
    let token = |claims: Value| {
        use base64::Engine;
        let b64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let head = format!(
            "{}.{}",
            b64(br#"{"alg":"HS256"}"#),
            b64(claims.to_string().as_bytes())
        );
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"s3cret");
        format!(
            "Bearer {head}.{}",
            b64(ring::hmac::sign(&key, head.as_bytes()).as_ref())
        )
    };
    let full = token(json!({"sub": "me"}));
    assert_eq!(
        world
            .with("GET", "/instances", None, &[("authorization", &full)])
            .await
            .status,
        200
    );
    let reader = token(json!({"permissions": ["instance:read"]}));
    assert_eq!(
        world
            .with("GET", "/instances", None, &[("authorization", &reader)])
            .await
            .status,
        200
    );
    let body = json!({"name": "x", "image": "busybox"});
    world
        .with(
            "POST",
            "/instances",
            Some(body),
            &[("authorization", &reader)],
        )
        .await
        .problem(403, "forbidden");
    world
        .with("GET", "/images", None, &[("authorization", &reader)])
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let world = world().await;
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://localhost:1"),
    ] {
        world
            .with("GET", "/instances", None, &[(name, value)])
            .await
            .problem(403, "foreign_origin");
    }
    assert_eq!(
        world
            .with(
                "GET",
                "/instances",
                None,
                &[("origin", "http://localhost:8080")]
            )
            .await
            .status,
        200
    );
    let rebound = Request::get("/health")
        .header("host", "evil.example")
        .body(Body::empty())
        .unwrap();
    world.send(rebound).await.problem(403, "foreign_origin");
}

#[tokio::test]
async fn a_host_that_refuses_gets_it_later_and_a_restart_loses_nothing() {
    let world = world().await;
    *world.host.refuse_applies.lock().unwrap() = 3;
    let made = world
        .make(json!({"id": "later", "name": "later", "image": "busybox"}))
        .await;
    assert_eq!(made["state"], "Running");
    world.stopping.cancel();
    let second = world_with(
        Auth::from_secret(None),
        world.host.clone(),
        world.store.clone(),
    )
    .await;
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

//! The REST contract over a host without machines: every generation's shapes, every refusal's status.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod access;
mod bundle;
mod commits;
mod dashboard;
mod execs;
mod files;
mod grpc;
mod images;
mod instances;
mod operations;
mod pressure;
mod races;
mod registry;
mod serving;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test file uses a part")]
mod support;
mod upkeep;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, request};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use support::{Host, TestClock};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use warren_control::{App, Auth, Settings, http};
use warren_core::InstallationId;
use warren_core::state::{InstanceState, StateName};
use warren_store::MemoryStore;

struct World {
    router: Router,
    app: App,
    host: Arc<Host>,
    clock: Arc<TestClock>,
    store: Arc<MemoryStore>,
    stopping: CancellationToken,
    _spool: tempfile::TempDir,
}

impl World {
    /// As the server does when it is asked to.
    async fn stop(&self) {
        self.stopping.cancel();
        self.app.stopped().await;
    }

    /// Another server, on the same host and the same store.
    async fn next_server(&self) -> World {
        world_with(
            Auth::from_secret(None),
            self.host.clone(),
            self.store.clone(),
        )
        .await
    }
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
    world_in_doubt(auth, host, store, None).await
}

const SECRET: &str = "s3cret";

async fn world_with_a_secret() -> World {
    world_with(
        Auth::from_secret(Some(SECRET)),
        Host::new(),
        Arc::new(MemoryStore::new()),
    )
    .await
}

/// A JWT of [`SECRET`]'s.
fn token(claims: &Value) -> String {
    use base64::Engine;
    let b64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let head = format!(
        "{}.{}",
        b64(br#"{"alg":"HS256"}"#),
        b64(claims.to_string().as_bytes())
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    format!(
        "{head}.{}",
        b64(ring::hmac::sign(&key, head.as_bytes()).as_ref())
    )
}

async fn world_in_doubt(
    auth: Auth,
    host: Arc<Host>,
    store: Arc<MemoryStore>,
    doubt: Option<&str>,
) -> World {
    world_set(auth, host, store, |settings| {
        settings.doubt = doubt.map(str::to_owned);
    })
    .await
}

async fn world_set(
    auth: Auth,
    host: Arc<Host>,
    store: Arc<MemoryStore>,
    set: impl FnOnce(&mut Settings),
) -> World {
    let spool = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(InstallationId::from_entropy([1; 3]), spool.path().into());
    settings.start_wait = Duration::from_secs(5);
    settings.removal_delay = Duration::from_millis(100);
    set(&mut settings);
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
        router: http::router(app.clone(), auth),
        app,
        host,
        clock,
        store,
        stopping,
        _spool: spool,
    }
}

async fn world_of_one(id: &str) -> World {
    let world = world().await;
    world
        .make(json!({"id": id, "name": "i", "image": "busybox"}))
        .await;
    world
}

/// In each state there is, a world of its own with an instance that is shown in it.
async fn in_every_state(id: &str, check: impl AsyncFn(World, StateName)) {
    let vmm =
        || serde_json::from_value(json!({"pid": 1, "start_time": 1, "boot_id": "b"})).unwrap();
    let since = support::now();
    let states = [
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
    ];
    assert_eq!(states.each_ref().map(InstanceState::name), StateName::ALL);
    for state in states {
        let world = world_of_one(id).await;
        let name = state.name();
        world.host.force(id, state);
        let shown = format!("/instances/{id}/wait?state={name}&timeout=5s");
        assert_eq!(world.get(&shown).await.json()["state"], name.to_string());
        check(world, name).await;
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> request::Builder {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost:8080");
    headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    })
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
        let mut request = request(method, path, headers);
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

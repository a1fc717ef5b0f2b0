//! The wire of a server, without anything behind it: answers as the API's contract says, remembers what
//! was asked. Instances do what their image's name says.

use axum::Json;
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// What is remembered.
#[derive(Default)]
struct Seen {
    requests: Vec<String>,
    bodies: Vec<Value>,
    pulled: bool,
    created: Option<Value>,
    /// How often it is busy before it creates an instance of the image `busy`.
    busy: u32,
}

#[derive(Clone)]
struct Shared {
    seen: Arc<Mutex<Seen>>,
    stopped: watch::Sender<bool>,
    token: Option<&'static str>,
}

impl Shared {
    fn with<T>(&self, what: impl FnOnce(&mut Seen) -> T) -> T {
        what(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running double.
pub(crate) struct Double {
    pub(crate) url: String,
    shared: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl Double {
    /// On a port of its own; with a token, every request but /health needs it.
    pub(crate) fn start(token: Option<&'static str>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = Shared {
            seen: Arc::default(),
            stopped: watch::Sender::new(false),
            token,
        };
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new()
            .route("/health", get(async || Json(json!({"status": "ok"}))))
            .route("/instances", get(list).post(create))
            .route("/instances/{id}", get(one).delete(delete))
            .route("/instances/{id}/stop", post(stop))
            .route("/instances/{id}/stats", get(crate::usage::stats))
            .route("/instances/{id}/wait", get(wait))
            .route("/instances/{id}/commit", post(commit))
            .route("/instances/{id}/logs", get(logs))
            .route("/instances/{id}/exec", get(exec))
            .route("/instances/{id}/stat", get(crate::copying::stat))
            .route("/instances/{id}/cp", get(crate::copying::cp))
            .route("/images", get(async || Json(json!([]))).post(pull))
            .route("/images/{name}", get(no_image))
            .route("/images/load", post(load))
            .route("/images/save", post(crate::outlet::save))
            .route("/images/export", post(crate::outlet::export))
            .route("/images/prune", post(prune))
            .route("/images/verify", post(verify))
            .route("/instances/{id}/debug-bundle", get(crate::debug::bundle))
            .route("/operations", get(async || Json(crate::operations::list())))
            .route("/operations/{id}", axum::routing::delete(crate::operations::cancel))
            .route("/system/df", get(async || Json(usage())))
            .route("/system/check", get(async || Json(check())))
            .route("/system/repair", post(async || Json(json!({
                "clean": true, "differences": [], "repaired": check()["differences"], "failed": [], "inventory": [],
            }))))
            .route("/system/recover", post(async || Json(json!({
                "recovered": ["web"], "updated": [], "unchanged": ["db"], "forgotten": ["old"], "unreadable": [],
            }))))
            .route("/system/backup", post(async || "the whole record".repeat(10_000)))
            .layer(from_fn_with_state(shared.clone(), note))
            .with_state(shared.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Double {
            url,
            shared,
            _runtime: runtime,
        }
    }

    /// From now on it is busy for so many creates of the image `busy`.
    pub(crate) fn be_busy(&self, times: u32) {
        self.shared.with(|seen| seen.busy = times);
    }

    /// `METHOD /path?query` of everything asked so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.with(|seen| seen.requests.clone())
    }

    /// The JSON bodies of creates and pulls.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.shared.with(|seen| seen.bodies.clone())
    }
}

/// One image that an instance uses and one that none does.
fn usage() -> Value {
    let image = |name: &str, reclaimable: u64, instances: u64| {
        json!({"id": format!("id-{name}"), "name": name, "digest": "sha256:0123456789abcdef", "size_bytes": 3072,
               "shared_bytes": 1024, "unique_bytes": 2048, "reclaimable_bytes": reclaimable, "instances": instances,
               "last_used_at": "2026-01-01T00:00:00Z"})
    };
    json!({
        "images": [image("web:1", 0, 2), image("old\u{1b}[2J:1", 2048, 0)],
        "layers": [{"digest": "sha256:fedcba9876543210", "size_bytes": 1024, "images": 2}],
        "instances": [{"id": "id-web", "name": "web", "disk_bytes": 4096, "logs_bytes": 512, "other_bytes": 0}],
        "images_bytes": 8192, "unreferenced_bytes": 0, "reclaimable_bytes": 2048, "image_budget_bytes": 1 << 20,
        "templates_bytes": 0, "set_aside_bytes": 0, "total_bytes": 12800,
    })
}

async fn prune(State(shared): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    let images = match body["all"] == true {
        true => json!([{"id": "id-old", "name": "old:1", "digest": "sha256:00"}]),
        false => json!([]),
    };
    let dry_run = body["dry_run"] == true;
    shared.with(|seen| seen.bodies.push(body));
    Json(
        json!({"images": images, "disks": 1, "blobs": 3, "reclaimed_bytes": 2048, "dry_run": dry_run}),
    )
}

async fn verify(State(shared): State<Shared>, Json(body): Json<Value>) -> Response {
    let name = body["image"].as_str().unwrap_or_default().to_owned();
    let state = match (name.as_str(), body["repair"] == true) {
        ("none", _) => return problem(404, "image_not_found", "the image none is not here"),
        ("bad", true) => "repaired",
        ("bad", false) => "damaged",
        _ => "sound",
    };
    shared.with(|seen| seen.bodies.push(body));
    let mut found = json!({
        "id": "img-1", "name": name, "digest": "sha256:0123456789abcdef", "sound": state != "damaged",
        "parts": [{"part": "layer", "digest": "sha256:fedcba9876543210", "state": "sound"},
                  {"part": "disk", "digest": "sha256:0123456789abcdef", "state": state}],
    });
    if state == "damaged" {
        found["advice"] = json!("make it again");
    }
    Json(found).into_response()
}

fn check() -> Value {
    let leak = json!({"kind": "device", "name": "wtabcdaaaabbbb", "handle": "aaaabbbb"});
    json!({
        "clean": false, "repaired": [], "failed": [], "inventory": [leak],
        "differences": [{
            "kind": "leaked", "sentence": "network device wtabcdaaaabbbb belongs to no recorded instance",
            "remedy": "repair", "hint": "`warren fsck --repair` puts it right", "item": leak,
        }],
    })
}

async fn note(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    shared.with(|seen| seen.requests.push(line));
    if let Some(token) = shared.token
        && request.uri().path() != "/health"
    {
        let given = request.headers().get(header::AUTHORIZATION);
        if given.and_then(|value| value.to_str().ok()) != Some(&format!("Bearer {token}")) {
            return problem(401, "unauthorized", "a token is needed");
        }
    }
    next.run(request).await
}

pub(crate) fn problem(status: u16, code: &str, detail: &str) -> Response {
    let body = json!({
        "type": format!("urn:warren:problem:{code}"), "title": "no", "status": status,
        "detail": detail, "code": code, "message": detail,
    });
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

fn instance(id: &str, name: &str, extra: Value) -> Value {
    let mut object = json!({
        "id": id, "name": name, "image": "busybox", "state": "Running",
        "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:01Z",
        "private_ip": "192.168.100.2", "memory_mb": 128, "memory_max_mb": 4096,
        "size": "128MB", "hotplug_size": "0", "overlay_size": "1GB", "vcpus": 1,
        "port_mappings": [{"host_port": 8080, "guest_port": 80, "protocol": "tcp"}],
    });
    for (key, value) in extra.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

async fn list() -> Json<Value> {
    Json(json!([
        instance("id-web", "web", json!({})),
        instance(
            "id-evil",
            "evil\u{1b}]0;owned\u{7}\nrow",
            json!({"state": "Stopped", "exit_code": 3})
        ),
    ]))
}

async fn create(State(shared): State<Shared>, Json(body): Json<Value>) -> Response {
    let image = body["image"].as_str().unwrap_or_default().to_owned();
    shared.with(|seen| seen.bodies.push(body.clone()));
    let is_absent = image == "absent" || image.ends_with("/absent");
    if is_absent && !shared.with(|seen| seen.pulled) {
        let sentence = format!("image {image} is not here: run `warren pull {image}`");
        return problem(404, "image_not_found", &sentence);
    }
    let is_busy = |seen: &mut Seen| {
        let busy = image == "busy" && seen.busy > 0;
        seen.busy -= u32::from(busy);
        busy
    };
    if shared.with(is_busy) {
        let mut refusal = problem(429, "too_many_requests", "2 are on their way up");
        let pause = header::HeaderValue::from_static("1");
        refusal.headers_mut().insert(header::RETRY_AFTER, pause);
        return refusal;
    }
    if image == "huge" {
        return problem(429, "no_capacity", "there is no room: ask for less");
    }
    let name = body["name"].as_str().unwrap_or_default();
    let extra = match image.as_str() {
        "broken" => {
            json!({"image": image, "state": "Stopped", "state_error": "there is no kernel"})
        }
        _ => json!({"image": image}),
    };
    let made = instance(&format!("id-{name}"), name, extra);
    shared.with(|seen| seen.created = Some(made.clone()));
    (StatusCode::CREATED, Json(made)).into_response()
}

fn is_endless(shared: &Shared) -> bool {
    shared.with(|seen| {
        seen.created
            .as_ref()
            .is_some_and(|made| made["image"] == "endless")
    })
}

async fn one(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    match id.as_str() {
        "web" | "id-web" | "id-w" => Json(instance("id-web", "web", json!({}))).into_response(),
        "off" => {
            let off = json!({"state": "Stopped", "exit_code": 0});
            Json(instance("id-off", "off", off)).into_response()
        }
        _ => match shared.with(|seen| seen.created.clone()) {
            Some(made) if made["id"] == id => {
                let code = if is_endless(&shared) { 143 } else { 7 };
                let mut made = made;
                made["state"] = json!("Stopped");
                if made["state_error"].is_null() {
                    made["exit_code"] = json!(code);
                }
                Json(made).into_response()
            }
            _ => problem(
                404,
                "instance_not_found",
                &format!("there is no instance {id}"),
            ),
        },
    }
}

async fn delete() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn stop(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    // A workload that does not listen to its stop signal.
    if id != "id-deaf" {
        shared.stopped.send_replace(true);
    }
    Json(instance(&id, "stopped", json!({"state": "Stopped"}))).into_response()
}

async fn until_stopped(shared: &Shared) {
    if is_endless(shared) {
        let mut stopped = shared.stopped.subscribe();
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

async fn wait(State(shared): State<Shared>) -> Json<Value> {
    until_stopped(&shared).await;
    let failure = shared.with(|seen| seen.created.as_ref()?.get("state_error").cloned());
    Json(match failure {
        Some(reason) => json!({"state": "Stopped", "state_error": reason, "timed_out": false}),
        None => json!({"state": "Stopped", "exit_code": 7, "timed_out": false}),
    })
}

fn events(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], text).into_response()
}

fn log_line(seq: u32, stream: &str, text: &str) -> String {
    let line = json!({"seq": seq, "at": "2026-01-01T00:00:00Z", "stream": stream, "text": text});
    format!("id: {seq}\ndata: {line}\n\n")
}

async fn logs(State(shared): State<Shared>, request: Request) -> Response {
    let follows = request
        .uri()
        .query()
        .unwrap_or_default()
        .contains("follow=true");
    let first = log_line(1, "stdout", "out") + &log_line(2, "stderr", "err");
    if !follows || !is_endless(&shared) {
        return events(first + ": end\n\n");
    }
    let begin = async move { Ok::<_, std::io::Error>(first) };
    let end = async move {
        until_stopped(&shared).await;
        Ok(": end\n\n".to_owned())
    };
    let stream =
        futures::StreamExt::chain(futures::stream::once(begin), futures::stream::once(end));
    (
        [(header::CONTENT_TYPE, "text/event-stream")],
        axum::body::Body::from_stream(stream),
    )
        .into_response()
}

async fn pull(State(shared): State<Shared>, Json(body): Json<Value>) -> Response {
    let name = body["name"].clone();
    shared.with(|seen| {
        seen.pulled = true;
        seen.bodies.push(body);
    });
    let resolved =
        json!({"kind": "resolved", "digest": "sha256:aa", "layers": 1, "total_bytes": 3});
    let layer =
        json!({"kind": "layer", "digest": "sha256:bb", "phase": "done", "bytes": 3, "total": 3});
    events(format!(
        "event: progress\ndata: {resolved}\n\nevent: progress\ndata: {layer}\n\n\
         event: images\ndata: {}\n\n",
        json!([image(name)])
    ))
}

async fn no_image(Path(name): Path<String>) -> Response {
    let sentence = format!("the image {name} is not here: run `warren pull {name}`");
    problem(404, "image_not_found", &sentence)
}

fn image(name: Value) -> Value {
    json!({"id": "img-1", "name": name, "created_at": "2026-01-01T00:00:00Z",
           "digest": "sha256:0123456789abcdef", "status": "ready", "size_bytes": 4096})
}

async fn commit(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    if id == "paused" {
        return problem(
            409,
            "wrong_state",
            "cannot commit an instance that is Paused: resume it, or stop it",
        );
    }
    let name = body["name"].clone();
    shared.with(|seen| seen.bodies.push(body));
    events(format!("event: images\ndata: {}\n\n", json!([image(name)])))
}

async fn load(request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20)
        .await
        .unwrap();
    if !body.windows(10).any(|window| window == b"oci-layout") {
        return problem(400, "not_an_image", "this is no image");
    }
    let name = query.strip_prefix("name=").unwrap_or_default().to_owned();
    events(format!(
        "event: images\ndata: {}\n\n",
        json!([image(json!(name))])
    ))
}

async fn exec(Path(id): Path<String>, upgrade: WebSocketUpgrade) -> Response {
    if id != "web" {
        return problem(
            404,
            "instance_not_found",
            &format!("there is no instance {id}"),
        );
    }
    upgrade.on_upgrade(shell)
}

/// Sends its stdin back, in capitals, until it ends; a signal ends it as it would a program.
async fn shell(mut socket: WebSocket) {
    let mut first = None;
    let code = loop {
        match socket.recv().await {
            Some(Ok(Message::Text(text))) => {
                let value: Value = serde_json::from_str(&text).unwrap();
                if first.is_none() {
                    if value["command"][0] == "absent" {
                        break 127;
                    }
                    first = Some(value);
                    let _ = socket
                        .send(Message::Binary(b"\x02ready\n".to_vec().into()))
                        .await;
                } else if let Some(signal) = value["signal"].as_i64() {
                    break 128 + signal;
                } else if value["stdin"] == "close" {
                    break 5;
                }
            }
            Some(Ok(Message::Binary(bytes))) => {
                let mut frame = vec![1];
                frame.extend(bytes.to_ascii_uppercase());
                let _ = socket.send(Message::Binary(frame.into())).await;
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            _ => return,
        }
    };
    let exit = json!({"exitCode": code}).to_string();
    let _ = socket.send(Message::Text(exit.into())).await;
}
